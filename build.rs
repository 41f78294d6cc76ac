//! Compiles the contract without protoc: the server's code, and the descriptor set for reflection.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new(["proto"])?;
    // With comments, so that `grpcurl describe` shows them.
    compiler.include_imports(true).include_source_info(true);
    for name in [
        "project_service",
        "endpoint_service",
        "subscription_service",
        "event_service",
        "delivery_service",
        "watch_service",
        "secret_service",
        "audit_service",
    ] {
        compiler.open_file(format!("hawser/v1/{name}.proto"))?;
    }
    std::fs::write(out.join("hawser.bin"), compiler.encode_file_descriptor_set())?;

    // Code is made of our own package only: annotations need no types at run time.
    let mut set = compiler.file_descriptor_set();
    set.file.retain(|file| ["hawser.v1", "google.protobuf", "google.rpc"].contains(&file.package()));
    for file in &mut set.file {
        file.dependency.retain(|name| !name.starts_with("buf/") && !name.starts_with("google/api/"));
    }
    let set = Message::decode(set.encode_to_vec().as_slice())?;
    tonic_prost_build::configure()
        .build_client(false)
        .bytes(".")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(set)?;
    Ok(())
}

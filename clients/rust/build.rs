//! Compiles the contract without protoc: the client's code.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../../proto");
    let mut compiler = protox::Compiler::new(["../../proto"])?;
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
    let mut set = compiler.file_descriptor_set();
    // Annotations need no types at run time.
    set.file.retain(|file| ["hawser.v1", "google.protobuf", "google.rpc"].contains(&file.package()));
    for file in &mut set.file {
        file.dependency.retain(|name| !name.starts_with("buf/") && !name.starts_with("google/api/"));
    }
    let set = Message::decode(set.encode_to_vec().as_slice())?;
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(set)?;
    Ok(())
}

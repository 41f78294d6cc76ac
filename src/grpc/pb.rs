//! The generated messages and service traits of `hawser.v1`, and the contract for reflection.

#![allow(missing_docs, clippy::all, clippy::unwrap_used)]

tonic::include_proto!("hawser.v1");

/// All files of the contract with their comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hawser.bin"));

pub mod dispatch;
pub mod domain;
pub mod engine;
pub mod grpc;
pub mod service;
pub mod store;

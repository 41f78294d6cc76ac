//! Hawser: webhook delivery over gRPC.
//!
//! The map, from the outside in. Data flows one way: [`grpc`] → [`service`] → [`engine`] and [`store`];
//! [`engine`] → [`dispatch`] → the receiver. Each module knows only those below it:
//!
//! | module | what it is for | knows |
//! |---|---|---|
//! | [`cli`] | the `hawser` command | app, config, service, domain |
//! | [`app`] | puts the parts together, starts and stops them | everything |
//! | [`config`] | reads and checks settings | settings of the parts |
//! | [`grpc`] | the contract's handlers, authentication, errors, health | service, domain |
//! | [`http`] | the admin listener: metrics, health; the portal's: public keys | service, domain |
//! | [`service`] | the use cases: authorise, validate, store, wake | domain, store, handles of the engine |
//! | [`engine`] | moves deliveries | domain, store, dispatch |
//! | [`dispatch`] | one guarded HTTP attempt | domain |
//! | [`tls`] | the server's own certificate, for both faces | nothing |
//! | [`store`] | SQLite or PostgreSQL; alone knows SeaORM | domain, migrations |
//! | [`metrics`] | what operators measure; all but domain and store may use it | nothing |
//! | [`domain`] | the vocabulary and the rules, pure | nothing |
//!
//! `tests/it/layering.rs` holds the table against the code.

pub mod app;
pub mod cli;
pub mod config;
pub mod dispatch;
pub mod domain;
pub mod engine;
pub mod grpc;
pub mod http;
pub mod metrics;
pub mod service;
pub mod store;
pub mod tls;

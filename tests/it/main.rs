//! Behaviour, proved through the public face: the real binary, gRPC, real HTTP receivers, on SQLite and on a
//! real PostgreSQL. Run it with `scripts/test`, which starts one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod access;
mod audit;
mod authentication;
mod batch;
mod breaker;
mod canary;
mod cli_secrets;
mod delivery;
mod egress;
mod egress_proxy;
mod egress_table;
mod endpoints;
mod events;
mod fairness;
mod fan_out;
mod faults;
mod guard;
mod inactive;
mod jwks;
mod layering;
mod leases;
mod limits;
mod metrics;
mod mtls;
mod nodes;
mod oauth2;
mod oauth2_failing;
mod outage;
mod paging;
mod pause;
mod ping;
mod poison;
mod policies;
mod probe;
mod publish_stream;
mod readiness;
mod retry;
mod rotation;
mod rotation_live;
mod shutdown;
mod signing;
mod stale;
mod states;
mod surface;
mod tls;
mod watch;
mod watch_limits;
mod watch_order;
mod watch_resume;
mod watch_start;
mod web;

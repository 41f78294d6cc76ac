//! Rust client of Hawser: the generated stubs, the bearer key, and a Watch that resumes by itself.
//!
//! ```no_run
//! use hawser_client::{Client, Key, pb};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("http://127.0.0.1:8610", Key::new("hk_…")).await?;
//! let reply = client
//!     .events()
//!     .publish_event(pb::PublishEventRequest {
//!         event_type: "invoice.paid".to_owned(),
//!         target: Some(pb::publish_event_request::Target::OwnerId("acme".to_owned())),
//!         payload: r#"{"invoice":1}"#.into(),
//!         ..Default::default()
//!     })
//!     .await?
//!     .into_inner();
//! println!("{} with {} deliveries", reply.event_id, reply.delivery_count);
//! # Ok(())
//! # }
//! ```

mod client;
mod error;
mod watch;

pub use client::{Bearer, Channel, Client, ConnectError, Key};
pub use error::{FieldViolation, error_of, field_violations, reason};
pub use watch::WatchStream;

/// The generated messages and stubs of `hawser.v1`.
#[allow(missing_docs, clippy::all)]
pub mod pb {
    tonic::include_proto!("hawser.v1");
}

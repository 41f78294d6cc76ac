//! `hawser health`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::connect::{HEADING, Tls, explain};

/// Ask a server whether it serves; needs no key
///
/// Exits with 0 if it serves, 3 if it does not (starting or draining), 1 if it cannot be reached.
#[derive(clap::Args)]
#[command(
    after_help = "Example, as a container's health check:\n  hawser health --addr http://127.0.0.1:8610"
)]
pub struct Health {
    /// The server's address
    #[arg(long, help_heading = HEADING, value_name = "URL", env = "HAWSER_ADDR", default_value = "http://127.0.0.1:8610")]
    addr: String,

    #[command(flatten)]
    tls: Tls,

    /// Ask for one service, such as hawser.v1.EventService; empty: the whole server
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,
}

impl Health {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut endpoint = Endpoint::from_shared(self.addr.clone())?
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(5));
        if self.addr.starts_with("https:") {
            endpoint = endpoint.tls_config(self.tls.config()?)?;
        }
        let channel = endpoint.connect().await.with_context(|| format!("cannot reach {}", self.addr))?;
        let request = HealthCheckRequest { service: self.service };
        let reply = HealthClient::new(channel).check(request).await.map_err(|status| explain(&status))?;
        let status = reply.into_inner().status();
        println!("{}", status.as_str_name());
        Ok(if status == ServingStatus::Serving { ExitCode::SUCCESS } else { ExitCode::from(3) })
    }
}

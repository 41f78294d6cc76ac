//! What holds where nobody says otherwise. The help text and docs/configuration.md name the same values; a test
//! compares.

use std::net::SocketAddr;

use super::{ADMIN_PORT, ListenOrOff, LogFormat, Options, PORT, PORTAL_PORT, SmtpTls};
use crate::dispatch::DispatchSettings;
use crate::domain::breaker::BreakerPolicy;
use crate::domain::egress;
use crate::domain::event::FanOut;
use crate::domain::rotation::PERIOD_MIN;
use crate::engine::LaneLimits;
use crate::service::PingSettings;

pub const DRAIN: u64 = 25;
pub const LEASE: u64 = 15;
pub const PENDING_MAX: u64 = 5_000_000;
pub const ENDPOINTS_MAX: u32 = 100_000;
pub const MESSAGE_MAX: usize = 4 * 1024 * 1024;
pub const READ_CONNECTIONS: u32 = 8;
pub const REQUEST_TIMEOUT: u64 = 30;
pub const CALLS_MAX: usize = 4096;
pub const CONNECTIONS_MAX: usize = 10_000;
pub const CONNECTION_AGE: u64 = 1800;
pub const WATCH_STREAMS: usize = 1000;
pub const WATCH_LAG: u64 = 30;
pub const CHANGES_RETENTION: u64 = 7 * 24 * 3600;
pub const ALERT_ATTEMPTS: u16 = 12;
pub const ALERT_BACKOFF: u64 = 5;
pub const ALERTS_RETENTION: u64 = 30 * 24 * 3600;

pub fn listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], PORT))
}

pub fn admin_listen() -> ListenOrOff {
    ListenOrOff::At(SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT)))
}

pub fn portal_listen() -> ListenOrOff {
    ListenOrOff::At(SocketAddr::from(([127, 0, 0, 1], PORTAL_PORT)))
}

impl Options {
    /// Every setting that has a value without being set.
    pub(super) fn defaults(&self) -> Self {
        Self {
            data: Some(self.data_folder()),
            store: self.database().ok().map(|place| place.to_string()),
            migrate: Some(true),
            read_connections: Some(READ_CONNECTIONS),
            listen: Some(listen()),
            reflection_open: Some(false),
            message_max: Some(MESSAGE_MAX),
            request_timeout: Some(REQUEST_TIMEOUT),
            calls_max: Some(CALLS_MAX),
            connections_max: Some(CONNECTIONS_MAX),
            connection_age: Some(CONNECTION_AGE),
            admin_listen: Some(admin_listen()),
            portal_listen: Some(portal_listen()),
            watch_streams: Some(WATCH_STREAMS),
            watch_lag_max: Some(WATCH_LAG),
            changes_retention: Some(CHANGES_RETENTION),
            allow_http: Some(false),
            insecure_skip_tls_verify: Some(false),
            skip_ping: Some(false),
            ping_method: ["HEAD", "GET", "POST"].map(str::to_owned).into(),
            pings_per_minute: Some(PingSettings::default().per_minute),
            dns_timeout: Some(DispatchSettings::default().dns_timeout.as_secs()),
            connect_timeout: Some(DispatchSettings::default().connect_timeout.as_secs()),
            slots: Some(LaneLimits::default().slots),
            breaker_failures: Some(BreakerPolicy::default().failures),
            breaker_pause: Some(BreakerPolicy::default().pause.as_secs()),
            egress_window: Some(egress::WINDOW.as_secs()),
            fan_out_max: Some(FanOut::default().max),
            pending_max: Some(PENDING_MAX),
            endpoints_max: Some(ENDPOINTS_MAX),
            fan_out_at_once: Some(FanOut::default().at_once),
            rotation_period_min: Some(PERIOD_MIN.as_secs()),
            smtp_tls: Some(SmtpTls::default()),
            alert_attempts: Some(ALERT_ATTEMPTS),
            alert_backoff: Some(ALERT_BACKOFF),
            alerts_retention: Some(ALERTS_RETENTION),
            drain: Some(DRAIN),
            lease: Some(LEASE),
            node: Some(self.node_name()),
            log: Some("info".to_owned()),
            log_format: Some(LogFormat::default()),
            ..Self::default()
        }
    }
}

//! Domain values as messages.

use std::time::Duration;

use super::{alerts, credentials, pb, policies, signatures};
use crate::domain::attempt::ErrorClass;
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{Attempt, Delivery, DeliveryStatus};
use crate::domain::endpoint::{Circuit, ContentType, Endpoint, EndpointStatus};
use crate::domain::event::{StoredEvent, Target};
use crate::domain::principal::Scope;
use crate::domain::project::{ApiKey, PausedPolicy, Project};
use crate::domain::subscription::Subscription;

pub fn time(at: Timestamp) -> prost_types::Timestamp {
    let millis = at.as_millis();
    prost_types::Timestamp {
        seconds: millis.div_euclid(1000),
        nanos: i32::try_from(millis.rem_euclid(1000) * 1_000_000).unwrap_or_default(),
    }
}

pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

fn micros(micros: u32) -> prost_types::Duration {
    duration(Duration::from_micros(u64::from(micros)))
}

pub fn count(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

pub fn project(project: Project) -> pb::Project {
    let etag = project.etag();
    let settings = project.settings;
    let policy = match settings.paused_policy {
        PausedPolicy::Discard => pb::PausedPolicy::Discard,
        PausedPolicy::Hold => pb::PausedPolicy::Hold,
    };
    pb::Project {
        id: project.id.to_string(),
        name: settings.name,
        paused_policy: policy.into(),
        retry_policy: settings.retry_policy.map(policies::retry_message),
        disable_policy: settings.disable_policy.map(policies::disable_message),
        publishes_per_second: settings.publishes_per_second.map_or(0, |limit| count(limit.get())),
        http_timeout: settings.http_timeout.map(duration),
        alerts: settings.alerts.map(alerts::message),
        unreadable_fields: project.alerts_unreadable.then(|| "alerts".to_owned()).into_iter().collect(),
        operational_webhook: settings.operational_webhook.map(alerts::webhook_message),
        etag,
        create_time: Some(time(project.created_at)),
    }
}

pub const fn scope(scope: Scope) -> pb::Scope {
    match scope {
        Scope::EventsPublish => pb::Scope::EventsPublish,
        Scope::EventsRead => pb::Scope::EventsRead,
        Scope::EndpointsRead => pb::Scope::EndpointsRead,
        Scope::EndpointsWrite => pb::Scope::EndpointsWrite,
        Scope::DeliveriesRead => pb::Scope::DeliveriesRead,
        Scope::DeliveriesWrite => pb::Scope::DeliveriesWrite,
        Scope::Watch => pb::Scope::Watch,
        Scope::SecretsReveal => pb::Scope::SecretsReveal,
        Scope::AuditRead => pb::Scope::AuditRead,
    }
}

pub fn api_key(key: ApiKey) -> pb::ApiKey {
    pb::ApiKey {
        id: key.id.to_string(),
        project_id: key.project.map(|project| project.to_string()).unwrap_or_default(),
        name: key.name,
        scopes: key.scopes.iter().map(|one| scope(one).into()).collect(),
        expire_time: key.expires_at.map(time),
        create_time: Some(time(key.created_at)),
        last_use_time: key.last_used_at.map(time),
        revoke_time: key.revoked_at.map(time),
    }
}

pub fn endpoint(endpoint: Endpoint) -> pb::Endpoint {
    let etag = endpoint.etag();
    let settings = endpoint.settings;
    let headers = settings.headers.into_iter().map(|header| {
        let hidden = header.is_sensitive();
        let value = if hidden { "[redacted]".to_owned() } else { header.value };
        pb::Header { name: header.name, value }
    });
    pb::Endpoint {
        id: endpoint.id.to_string(),
        project_id: endpoint.project.to_string(),
        uid: settings.uid.unwrap_or_default(),
        name: settings.name,
        url: settings.url,
        description: settings.description,
        owner_id: settings.owner_id.unwrap_or_default(),
        labels: settings.labels.into_iter().collect(),
        status: endpoint_status(endpoint.status).into(),
        status_reason: endpoint.status_reason,
        status_change_time: Some(time(endpoint.status_changed_at)),
        http_timeout: settings.http_timeout.map(duration),
        retry_policy: settings.retry_policy.map(policies::retry_message),
        disable_policy: settings.disable_policy.map(policies::disable_message),
        headers: headers.collect(),
        max_in_flight: settings.max_in_flight.into(),
        signature: Some(signatures::message(settings.signature)),
        rotation_period: settings.rotation.period.map(duration),
        rotation_grace: Some(duration(settings.rotation.grace)),
        content_type: content_type(settings.content_type).into(),
        rate_limit: settings.rate_limit.map(policies::rate_message),
        circuit: Some(circuit(endpoint.circuit)),
        consecutive_failures: count(endpoint.consecutive_failures),
        last_response: endpoint.last_response.map(|last| pb::LastResponse {
            time: Some(time(last.at)),
            status_code: last.status.map(i32::from),
            error_class: error_class(last.error).into(),
        }),
        etag,
        create_time: Some(time(endpoint.created_at)),
        update_time: Some(time(endpoint.updated_at)),
        revision: endpoint.revision,
        authentication: settings.authentication.map(credentials::authentication_message),
        mtls_client_cert: settings.client_certificate.map(credentials::client_certificate_message),
        ca_certificate: settings.authorities.unwrap_or_default(),
        alerts: settings.alerts.map(alerts::message),
        unreadable_fields: endpoint.unreadable.iter().map(|setting| setting.as_str().to_owned()).collect(),
    }
}

const fn endpoint_status(status: EndpointStatus) -> pb::EndpointStatus {
    match status {
        EndpointStatus::Active => pb::EndpointStatus::Active,
        EndpointStatus::Paused => pb::EndpointStatus::Paused,
        EndpointStatus::Inactive => pb::EndpointStatus::Inactive,
        EndpointStatus::Pending => pb::EndpointStatus::Pending,
    }
}

const fn content_type(content_type: ContentType) -> pb::ContentType {
    match content_type {
        ContentType::Json => pb::ContentType::Json,
        ContentType::Form => pb::ContentType::Form,
    }
}

fn circuit(circuit: Circuit) -> pb::Circuit {
    let (state, until) = match circuit {
        Circuit::Closed => (pb::CircuitState::Closed, None),
        Circuit::Open(until) => (pb::CircuitState::Open, Some(time(until))),
        Circuit::HalfOpen => (pb::CircuitState::HalfOpen, None),
    };
    pb::Circuit { state: state.into(), until }
}

pub fn subscription(subscription: Subscription) -> pb::Subscription {
    pb::Subscription {
        etag: subscription.etag(),
        id: subscription.id.to_string(),
        project_id: subscription.project.to_string(),
        endpoint_id: subscription.endpoint.to_string(),
        event_types: subscription.event_types.iter().map(ToString::to_string).collect(),
        enabled: Some(subscription.enabled),
        create_time: Some(time(subscription.created_at)),
        update_time: Some(time(subscription.updated_at)),
    }
}

pub fn event(event: StoredEvent) -> pb::Event {
    let target = match event.target {
        Target::Endpoint(id) => pb::event::Target::EndpointId(id.to_string()),
        Target::Owner(owner) => pb::event::Target::OwnerId(owner),
        Target::Broadcast => pb::event::Target::Broadcast(pb::Broadcast {}),
    };
    pb::Event {
        id: event.id.to_string(),
        project_id: event.project.to_string(),
        event_type: event.event_type,
        target: Some(target),
        payload: event.payload,
        payload_size: count(event.payload_size),
        headers: event.headers.into_iter().collect(),
        idempotency_key: event.idempotency_key.unwrap_or_default(),
        delivery_count: count(event.deliveries),
        create_time: Some(time(event.created_at)),
    }
}

pub fn delivery(delivery: Delivery) -> pb::Delivery {
    let latency = delivery.latency().map(duration);
    pb::Delivery {
        id: delivery.id.to_string(),
        project_id: delivery.project.to_string(),
        event_id: delivery.event.to_string(),
        endpoint_id: delivery.endpoint.to_string(),
        event_type: delivery.event_type.to_string(),
        status: delivery_status(delivery.status).into(),
        attempt_count: delivery.attempts.into(),
        next_attempt_time: delivery.next_attempt_at.map(time),
        last_error_class: error_class(delivery.last_error).into(),
        last_status_code: delivery.last_status.map(i32::from),
        latency,
        create_time: Some(time(delivery.created_at)),
        end_time: delivery.ended_at.map(time),
    }
}

const fn delivery_status(status: DeliveryStatus) -> pb::DeliveryStatus {
    match status {
        DeliveryStatus::Scheduled => pb::DeliveryStatus::Scheduled,
        DeliveryStatus::Processing => pb::DeliveryStatus::Processing,
        DeliveryStatus::Retry => pb::DeliveryStatus::Retry,
        DeliveryStatus::Success => pb::DeliveryStatus::Success,
        DeliveryStatus::Failed => pb::DeliveryStatus::Failed,
        DeliveryStatus::Discarded => pb::DeliveryStatus::Discarded,
    }
}

pub const fn error_class(class: Option<ErrorClass>) -> pb::ErrorClass {
    match class {
        None => pb::ErrorClass::Unspecified,
        Some(ErrorClass::Dns) => pb::ErrorClass::Dns,
        Some(ErrorClass::BlockedAddress) => pb::ErrorClass::BlockedAddress,
        Some(ErrorClass::Connect) => pb::ErrorClass::Connect,
        Some(ErrorClass::Tls) => pb::ErrorClass::Tls,
        Some(ErrorClass::Timeout) => pb::ErrorClass::Timeout,
        Some(ErrorClass::Reset) => pb::ErrorClass::Reset,
        Some(ErrorClass::Protocol) => pb::ErrorClass::Protocol,
        Some(ErrorClass::HttpStatus) => pb::ErrorClass::HttpStatus,
        Some(ErrorClass::Auth) => pb::ErrorClass::Auth,
        Some(ErrorClass::Certificate) => pb::ErrorClass::Certificate,
        Some(ErrorClass::Cancelled) => pb::ErrorClass::Cancelled,
    }
}

/// An attempt; `with_body` says whether the captured body goes along.
pub fn attempt(attempt: Attempt, with_body: bool) -> pb::Attempt {
    let outcome = attempt.outcome;
    let timings = outcome.timings;
    let headers = |list: Vec<(String, String)>| {
        list.into_iter().map(|(name, value)| pb::CapturedHeader { name, value }).collect()
    };
    let (class, detail) = match outcome.error {
        Some((class, detail)) => (Some(class), detail),
        None => (None, String::new()),
    };
    pb::Attempt {
        id: attempt.id.to_string(),
        delivery_id: attempt.delivery.to_string(),
        endpoint_id: attempt.endpoint.to_string(),
        event_id: attempt.event.to_string(),
        number: attempt.number.into(),
        start_time: Some(time(outcome.started_at)),
        request_headers: headers(attempt.request_headers),
        status_code: outcome.status.map(i32::from),
        response_headers: headers(outcome.response_headers),
        response_headers_truncated: outcome.headers_truncated,
        response_body: if with_body { outcome.body } else { bytes::Bytes::new() },
        response_body_truncated: outcome.body_truncated,
        error_class: error_class(class).into(),
        error_detail: detail,
        peer_address: outcome.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        timings: Some(pb::AttemptTimings {
            dns: timings.dns_us.map(micros),
            connect: timings.connect_us.map(micros),
            tls: timings.tls_us.map(micros),
            first_byte: timings.first_byte_us.map(micros),
            total: Some(micros(timings.total_us)),
            reused: timings.reused,
        }),
    }
}

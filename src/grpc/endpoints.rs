//! EndpointService.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::check::Check;
use super::listener::Connection;
use super::{Api, alerts, bulk_stream, convert, credentials, pb, pings, policies, principal, signatures};
use crate::domain::endpoint::{ContentType, CustomHeader, EndpointFilter, EndpointSettings, EndpointStatus};
use crate::domain::id::EndpointId;
use crate::service::{EndpointField, EndpointUpdate};

const TEXT_MAX: usize = 128;
pub(super) const PATTERNS_MAX: usize = 100;
const IN_FLIGHT_MAX: u16 = 1000;
const LABELS_MAX: usize = 32;

#[tonic::async_trait]
impl pb::endpoint_service_server::EndpointService for Api {
    async fn create_endpoint(
        &self,
        request: Request<pb::CreateEndpointRequest>,
    ) -> Result<Response<pb::CreateEndpointResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let patterns = check.patterns("event_types", &request.event_types, PATTERNS_MAX);
        let settings = settings(&mut check, request.endpoint.unwrap_or_default());
        let secret = signatures::new_secret(&mut check, &request.secret, request.secret_type);
        let settings = check.finish(Some(settings))?;
        let ping = pings::ping_first(request.skip_ping);
        let created =
            self.services.create_endpoint(&caller, project, settings, patterns, secret, ping).await?;
        Ok(Response::new(pb::CreateEndpointResponse {
            endpoint: Some(convert::endpoint(created.endpoint)),
            subscription: Some(convert::subscription(created.subscription)),
            public_key: created.secret.public_key().map(|key| key.to_string()).unwrap_or_default(),
            secret: created.secret.reveal().to_string(),
        }))
    }

    async fn get_endpoint(
        &self,
        request: Request<pb::GetEndpointRequest>,
    ) -> Result<Response<pb::GetEndpointResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<EndpointId> = check.id("endpoint_id", &request.endpoint_id);
        let id = check.finish(id)?;
        let endpoint = self.services.get_endpoint(&caller, project, id).await?;
        Ok(Response::new(pb::GetEndpointResponse { endpoint: Some(convert::endpoint(endpoint)) }))
    }

    async fn list_endpoints(
        &self,
        request: Request<pb::ListEndpointsRequest>,
    ) -> Result<Response<pb::ListEndpointsResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let labels = labels(&mut check, "labels", request.labels);
        let (status_text, labels_text) = (request.status.to_string(), format!("{labels:?}"));
        let context = [
            "endpoints",
            request.project_id.as_str(),
            request.owner_id.as_str(),
            status_text.as_str(),
            request.uid.as_str(),
            labels_text.as_str(),
        ];
        let page = self.services.page(request.page_size, &request.page_token, &context)?;
        let status = match pb::EndpointStatus::try_from(request.status) {
            Ok(pb::EndpointStatus::Unspecified) => None,
            Ok(pb::EndpointStatus::Active) => Some(EndpointStatus::Active),
            Ok(pb::EndpointStatus::Paused) => Some(EndpointStatus::Paused),
            Ok(pb::EndpointStatus::Inactive) => Some(EndpointStatus::Inactive),
            Ok(pb::EndpointStatus::Pending) => Some(EndpointStatus::Pending),
            Err(_) => {
                check.refuse("status", "is not a known status");
                None
            }
        };
        let filter = EndpointFilter {
            ids: Vec::new(),
            owner: check.optional_text("owner_id", request.owner_id.clone(), TEXT_MAX),
            status,
            uid: check.optional_text("uid", request.uid.clone(), TEXT_MAX),
            labels,
        };
        let filter = check.finish(Some(filter))?;
        let page = self.services.list_endpoints(&caller, project, filter, page).await?;
        let next_page_token = self.services.next_page(&page, &context);
        let endpoints = page.items.into_iter().map(convert::endpoint).collect();
        Ok(Response::new(pb::ListEndpointsResponse { endpoints, next_page_token }))
    }

    async fn update_endpoint(
        &self,
        request: Request<pb::UpdateEndpointRequest>,
    ) -> Result<Response<pb::UpdateEndpointResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let endpoint = request.endpoint.unwrap_or_default();
        let id: Option<EndpointId> = check.id("endpoint.id", &endpoint.id);
        let fields = match request.update_mask {
            Some(mask) if !mask.paths.is_empty() => masked(&mut check, &mask.paths),
            _ => populated(&endpoint),
        };
        let etag = endpoint.etag.clone();
        let ping = pings::ping_first(request.skip_ping);
        let settings = settings(&mut check, endpoint);
        let id = check.finish(id)?;
        let update = EndpointUpdate { settings, fields, etag, ping };
        let endpoint = self.services.update_endpoint(&caller, project, id, update).await?;
        Ok(Response::new(pb::UpdateEndpointResponse { endpoint: Some(convert::endpoint(endpoint)) }))
    }

    async fn delete_endpoint(
        &self,
        request: Request<pb::DeleteEndpointRequest>,
    ) -> Result<Response<pb::DeleteEndpointResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<EndpointId> = check.id("endpoint_id", &request.endpoint_id);
        let id = check.finish(id)?;
        self.services.delete_endpoint(&caller, project, id, &request.etag).await?;
        Ok(Response::new(pb::DeleteEndpointResponse {}))
    }

    async fn pause_endpoint(
        &self,
        request: Request<pb::PauseEndpointRequest>,
    ) -> Result<Response<pb::PauseEndpointResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<EndpointId> = check.id("endpoint_id", &request.endpoint_id);
        let reason = check.text("reason", request.reason, 256);
        let id = check.finish(id)?;
        let endpoint = self.services.pause_endpoint(&caller, project, id, reason).await?;
        Ok(Response::new(pb::PauseEndpointResponse { endpoint: Some(convert::endpoint(endpoint)) }))
    }

    async fn resume_endpoint(
        &self,
        request: Request<pb::ResumeEndpointRequest>,
    ) -> Result<Response<pb::ResumeEndpointResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<EndpointId> = check.id("endpoint_id", &request.endpoint_id);
        let id = check.finish(id)?;
        let endpoint = self.services.resume_endpoint(&caller, project, id).await?;
        Ok(Response::new(pb::ResumeEndpointResponse { endpoint: Some(convert::endpoint(endpoint)) }))
    }

    async fn activate_endpoint(
        &self,
        request: Request<pb::ActivateEndpointRequest>,
    ) -> Result<Response<pb::ActivateEndpointResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<EndpointId> = check.id("endpoint_id", &request.endpoint_id);
        let id = check.finish(id)?;
        let endpoint = self.services.activate_endpoint(&caller, project, id).await?;
        Ok(Response::new(pb::ActivateEndpointResponse { endpoint: Some(convert::endpoint(endpoint)) }))
    }

    async fn ping_endpoint(
        &self,
        request: Request<pb::PingEndpointRequest>,
    ) -> Result<Response<pb::PingEndpointResponse>, Status> {
        let caller = principal(&request)?;
        self.ping(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn test_o_auth2(
        &self,
        request: Request<pb::TestOAuth2Request>,
    ) -> Result<Response<pb::TestOAuth2Response>, Status> {
        let caller = principal(&request)?;
        self.token_test(&caller, request.into_inner()).await.map(Response::new)
    }

    type BulkCreateEndpointsStream =
        Pin<Box<dyn Stream<Item = Result<pb::BulkCreateEndpointsResponse, Status>> + Send>>;

    async fn bulk_create_endpoints(
        &self,
        request: Request<Streaming<pb::BulkCreateEndpointsRequest>>,
    ) -> Result<Response<Self::BulkCreateEndpointsStream>, Status> {
        let caller = principal(&request)?;
        let connection = request.extensions().get::<Connection>();
        let leaving = connection.map(|connection| connection.leaving.clone()).unwrap_or_default();
        let answers = bulk_stream::answer(self.clone(), caller, leaving, request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }
}

const FIELDS: [(&str, EndpointField); 20] = [
    ("uid", EndpointField::Uid),
    ("name", EndpointField::Name),
    ("url", EndpointField::Url),
    ("description", EndpointField::Description),
    ("owner_id", EndpointField::OwnerId),
    ("labels", EndpointField::Labels),
    ("http_timeout", EndpointField::HttpTimeout),
    ("retry_policy", EndpointField::RetryPolicy),
    ("disable_policy", EndpointField::DisablePolicy),
    ("headers", EndpointField::Headers),
    ("max_in_flight", EndpointField::MaxInFlight),
    ("content_type", EndpointField::ContentType),
    ("rate_limit", EndpointField::RateLimit),
    ("authentication", EndpointField::Authentication),
    ("mtls_client_cert", EndpointField::ClientCertificate),
    ("ca_certificate", EndpointField::Authorities),
    ("signature", EndpointField::Signature),
    ("rotation_period", EndpointField::RotationPeriod),
    ("rotation_grace", EndpointField::RotationGrace),
    ("alerts", EndpointField::Alerts),
];

pub(super) fn masked(check: &mut Check, paths: &[String]) -> Vec<EndpointField> {
    let mut fields = Vec::new();
    for path in paths {
        match FIELDS.iter().find(|(name, _)| name == path) {
            Some((_, field)) => fields.push(*field),
            None if path == "*" => fields.extend(EndpointField::ALL),
            None => check.refuse("update_mask", format!("{path:?} is not a field that can be changed")),
        }
    }
    fields
}

/// The fields that an update without a mask changes (AIP-134).
pub(super) fn populated(endpoint: &pb::Endpoint) -> Vec<EndpointField> {
    let is_set = |field: &EndpointField| match field {
        EndpointField::Uid => !endpoint.uid.is_empty(),
        EndpointField::Name => !endpoint.name.is_empty(),
        EndpointField::Url => !endpoint.url.is_empty(),
        EndpointField::Description => !endpoint.description.is_empty(),
        EndpointField::OwnerId => !endpoint.owner_id.is_empty(),
        EndpointField::Labels => !endpoint.labels.is_empty(),
        EndpointField::HttpTimeout => endpoint.http_timeout.is_some(),
        EndpointField::RetryPolicy => endpoint.retry_policy.is_some(),
        EndpointField::DisablePolicy => endpoint.disable_policy.is_some(),
        EndpointField::Headers => !endpoint.headers.is_empty(),
        EndpointField::MaxInFlight => endpoint.max_in_flight != 0,
        EndpointField::RateLimit => endpoint.rate_limit.is_some(),
        EndpointField::ContentType => endpoint.content_type() != pb::ContentType::Unspecified,
        EndpointField::Authentication => endpoint.authentication.is_some(),
        EndpointField::ClientCertificate => endpoint.mtls_client_cert.is_some(),
        EndpointField::Authorities => !endpoint.ca_certificate.is_empty(),
        EndpointField::Signature => endpoint.signature.is_some(),
        EndpointField::RotationPeriod => endpoint.rotation_period.is_some(),
        EndpointField::RotationGrace => endpoint.rotation_grace.is_some(),
        EndpointField::Alerts => endpoint.alerts.is_some(),
    };
    EndpointField::ALL.into_iter().filter(is_set).collect()
}

pub(super) fn settings(check: &mut Check, endpoint: pb::Endpoint) -> EndpointSettings {
    let content_type = content_type(check, endpoint.content_type);
    EndpointSettings {
        content_type,
        rate_limit: policies::rate(check, "endpoint.rate_limit", endpoint.rate_limit),
        uid: check.optional_text("endpoint.uid", endpoint.uid, TEXT_MAX),
        name: check.text("endpoint.name", endpoint.name, TEXT_MAX),
        url: endpoint.url,
        description: check.text("endpoint.description", endpoint.description, 1024),
        owner_id: check.optional_text("endpoint.owner_id", endpoint.owner_id, TEXT_MAX),
        labels: labels(check, "endpoint.labels", endpoint.labels),
        http_timeout: policies::http_timeout(check, "endpoint.http_timeout", endpoint.http_timeout),
        retry_policy: policies::retry(check, "endpoint.retry_policy", endpoint.retry_policy),
        disable_policy: policies::disable(check, "endpoint.disable_policy", endpoint.disable_policy),
        headers: endpoint
            .headers
            .into_iter()
            .map(|header| CustomHeader { name: header.name, value: header.value })
            .collect(),
        max_in_flight: match u16::try_from(endpoint.max_in_flight) {
            Ok(most) if most <= IN_FLIGHT_MAX => most,
            _ => {
                check.refuse("endpoint.max_in_flight", "must be 0 to 1,000");
                0
            }
        },
        authentication: credentials::authentication(check, endpoint.authentication),
        client_certificate: endpoint.mtls_client_cert.map(credentials::client_certificate),
        authorities: (!endpoint.ca_certificate.is_empty()).then_some(endpoint.ca_certificate),
        signature: signatures::settings(check, "endpoint.signature", endpoint.signature),
        rotation: signatures::rotation(check, endpoint.rotation_period, endpoint.rotation_grace),
        alerts: alerts::settings(check, "endpoint.alerts", endpoint.alerts),
    }
}

fn content_type(check: &mut Check, given: i32) -> ContentType {
    match pb::ContentType::try_from(given) {
        Ok(pb::ContentType::Unspecified | pb::ContentType::Json) => ContentType::Json,
        Ok(pb::ContentType::Form) => ContentType::Form,
        Err(_) => {
            check.refuse("endpoint.content_type", "is not a known content type");
            ContentType::Json
        }
    }
}

fn labels(check: &mut Check, field: &str, labels: HashMap<String, String>) -> BTreeMap<String, String> {
    if labels.len() > LABELS_MAX {
        check.refuse(field, format!("must have at most {LABELS_MAX} entries"));
        return BTreeMap::new();
    }
    let mut checked = BTreeMap::new();
    for (name, value) in labels {
        let field = format!("{field}[{name:?}]");
        let name = check.required_text(&field, name, 63);
        checked.insert(name, check.text(&field, value, 255));
    }
    checked
}

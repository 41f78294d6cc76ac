//! SecretService.

use std::time::Duration;

use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::check::Check;
use super::{Api, convert, pb, principal, signatures};
use crate::domain::clock::Timestamp;
use crate::domain::id::{EndpointId, SecretId};
use crate::domain::rotation::{GRACE_MAX, SecretInfo, SecretState};
use crate::domain::secret::SecretKind;
use crate::service::RotationRequest;

#[tonic::async_trait]
impl pb::secret_service_server::SecretService for Api {
    async fn rotate_secret(
        &self,
        request: Request<pb::RotateSecretRequest>,
    ) -> Result<Response<pb::RotateSecretResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let endpoint: Option<EndpointId> = check.id("endpoint_id", &request.endpoint_id);
        let grace = request.grace.map(|grace| check.duration("grace", grace, Duration::ZERO..=GRACE_MAX));
        let secret = signatures::new_secret(&mut check, &request.secret, request.secret_type);
        let request_id = request_id(&mut check, &request.request_id);
        let endpoint = check.finish(endpoint)?;
        let rotation = RotationRequest { endpoint, grace, secret, request: request_id };
        let made = self.services.rotate_secret(&caller, project, rotation).await?;
        let now = Timestamp::now();
        Ok(Response::new(pb::RotateSecretResponse {
            secret: Some(message(made.secret, now)),
            value: made.value.reveal().to_string(),
            previous: Some(message(made.previous, now)),
            warning: made.warning.unwrap_or_default().to_owned(),
        }))
    }

    async fn list_secrets(
        &self,
        request: Request<pb::ListSecretsRequest>,
    ) -> Result<Response<pb::ListSecretsResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let endpoint: Option<EndpointId> = check.id("endpoint_id", &request.endpoint_id);
        let endpoint = check.finish(endpoint)?;
        let context = ["secrets", request.project_id.as_str(), request.endpoint_id.as_str()];
        let page = self.services.page(request.page_size, &request.page_token, &context)?;
        let (page, due) = self.services.list_secrets(&caller, project, endpoint, page).await?;
        let next_page_token = self.services.next_page(&page, &context);
        let now = Timestamp::now();
        let secrets = page.items.into_iter().map(|secret| message(secret, now)).collect();
        let next_rotation_time = due.map(convert::time);
        Ok(Response::new(pb::ListSecretsResponse { secrets, next_page_token, next_rotation_time }))
    }

    async fn reveal_secret(
        &self,
        request: Request<pb::RevealSecretRequest>,
    ) -> Result<Response<pb::RevealSecretResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<SecretId> = check.id("secret_id", &request.secret_id);
        let id = check.finish(id)?;
        let (secret, value) = self.services.reveal_secret(&caller, project, id).await?;
        Ok(Response::new(pb::RevealSecretResponse {
            secret: Some(message(secret, Timestamp::now())),
            value: value.reveal().to_string(),
        }))
    }

    async fn expire_secret(
        &self,
        request: Request<pb::ExpireSecretRequest>,
    ) -> Result<Response<pb::ExpireSecretResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<SecretId> = check.id("secret_id", &request.secret_id);
        let id = check.finish(id)?;
        let secret = self.services.expire_secret(&caller, project, id).await?;
        Ok(Response::new(pb::ExpireSecretResponse { secret: Some(message(secret, Timestamp::now())) }))
    }
}

fn request_id(check: &mut Check, text: &str) -> Option<Uuid> {
    if text.is_empty() {
        return None;
    }
    let id = Uuid::try_parse(text).ok().filter(|id| !id.is_nil());
    if id.is_none() {
        check.refuse("request_id", "must be a UUID, and not the nil one");
    }
    id
}

fn message(secret: SecretInfo, now: Timestamp) -> pb::Secret {
    let state = match secret.state(now) {
        SecretState::Current => pb::SecretState::Current,
        SecretState::Retiring => pb::SecretState::Retiring,
        SecretState::Expired => pb::SecretState::Expired,
    };
    let kind = match secret.kind {
        SecretKind::Hmac => pb::SecretType::Hmac,
        SecretKind::Ed25519 => pb::SecretType::Ed25519,
        SecretKind::Text => pb::SecretType::Text,
    };
    pb::Secret {
        id: secret.id.to_string(),
        endpoint_id: secret.endpoint.to_string(),
        r#type: kind.into(),
        state: state.into(),
        create_time: Some(convert::time(secret.created_at)),
        expire_time: secret.expires_at.map(convert::time),
        public_key: secret.public_key.unwrap_or_default(),
    }
}

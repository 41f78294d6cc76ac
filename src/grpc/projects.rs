//! ProjectService.

use std::num::NonZeroU32;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::check::Check;
use super::{Api, alerts, convert, pb, policies, principal};
use crate::domain::id::{KeyId, ProjectId};
use crate::domain::principal::{Scope, Scopes};
use crate::domain::project::{PausedPolicy, ProjectSettings};
use crate::domain::rotation::GRACE_MAX;
use crate::domain::secret::SigningSecret;
use crate::service::{NewKey, ProjectField};

const NAME_MAX: usize = 128;
const PUBLISHES_MAX: u32 = 1_000_000;

#[tonic::async_trait]
impl pb::project_service_server::ProjectService for Api {
    async fn create_project(
        &self,
        request: Request<pb::CreateProjectRequest>,
    ) -> Result<Response<pb::CreateProjectResponse>, Status> {
        let caller = principal(&request)?;
        let mut check = Check::default();
        let project = request.into_inner().project.unwrap_or_default();
        let settings = settings(&mut check, project, &ProjectField::ALL);
        let settings = check.finish(Some(settings))?;
        let made = self.services.create_project(&caller, settings).await?;
        Ok(Response::new(pb::CreateProjectResponse {
            project: Some(convert::project(made.project)),
            operational_secret: shown(made.operational_secret),
        }))
    }

    async fn get_project(
        &self,
        request: Request<pb::GetProjectRequest>,
    ) -> Result<Response<pb::GetProjectResponse>, Status> {
        let caller = principal(&request)?;
        let mut check = Check::default();
        let id: Option<ProjectId> = check.id("project_id", &request.into_inner().project_id);
        let id = check.finish(id)?;
        let project = self.services.get_project(&caller, id).await?;
        Ok(Response::new(pb::GetProjectResponse { project: Some(convert::project(project)) }))
    }

    async fn update_project(
        &self,
        request: Request<pb::UpdateProjectRequest>,
    ) -> Result<Response<pb::UpdateProjectResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = request.project.unwrap_or_default();
        let id: Option<ProjectId> = check.id("project.id", &project.id);
        let fields = match request.update_mask {
            Some(mask) if !mask.paths.is_empty() => masked(&mut check, &mask.paths),
            _ => populated(&project),
        };
        let etag = project.etag.clone();
        let new = settings(&mut check, project, &fields);
        let id = check.finish(id)?;
        let changed = self.services.update_project(&caller, id, new, &fields, &etag).await?;
        Ok(Response::new(pb::UpdateProjectResponse {
            project: Some(convert::project(changed.project)),
            operational_secret: shown(changed.operational_secret),
        }))
    }

    async fn list_projects(
        &self,
        request: Request<pb::ListProjectsRequest>,
    ) -> Result<Response<pb::ListProjectsResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let context = ["projects"];
        let page = self.services.page(request.page_size, &request.page_token, &context)?;
        let page = self.services.list_projects(&caller, page).await?;
        let next_page_token = self.services.next_page(&page, &context);
        let projects = page.items.into_iter().map(convert::project).collect();
        Ok(Response::new(pb::ListProjectsResponse { projects, next_page_token }))
    }

    async fn reveal_operational_secret(
        &self,
        request: Request<pb::RevealOperationalSecretRequest>,
    ) -> Result<Response<pb::RevealOperationalSecretResponse>, Status> {
        let caller = principal(&request)?;
        let mut check = Check::default();
        let id: Option<ProjectId> = check.id("project_id", &request.into_inner().project_id);
        let id = check.finish(id)?;
        let secret = self.services.reveal_operational_secret(&caller, id).await?;
        Ok(Response::new(pb::RevealOperationalSecretResponse { secret: secret.to_string() }))
    }

    async fn rotate_operational_secret(
        &self,
        request: Request<pb::RotateOperationalSecretRequest>,
    ) -> Result<Response<pb::RotateOperationalSecretResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let id: Option<ProjectId> = check.id("project_id", &request.project_id);
        let grace = request.grace.map(|grace| check.duration("grace", grace, Duration::ZERO..=GRACE_MAX));
        let id = check.finish(id)?;
        let secret = self.services.rotate_operational_secret(&caller, id, grace).await?;
        Ok(Response::new(pb::RotateOperationalSecretResponse { secret: secret.to_string() }))
    }

    async fn create_api_key(
        &self,
        request: Request<pb::CreateApiKeyRequest>,
    ) -> Result<Response<pb::CreateApiKeyResponse>, Status> {
        let caller = principal(&request)?;
        let mut check = Check::default();
        let key = request.into_inner().api_key.unwrap_or_default();
        let new = NewKey {
            project: check.optional_id("api_key.project_id", &key.project_id),
            scopes: scopes(&mut check, &key.scopes),
            expires_at: check.time("api_key.expire_time", key.expire_time),
            name: check.required_text("api_key.name", key.name, NAME_MAX),
        };
        let new = check.finish(Some(new))?;
        let (key, secret) = self.services.create_key(&caller, new).await?;
        let reply = pb::CreateApiKeyResponse {
            api_key: Some(convert::api_key(key)),
            secret: secret.reveal().to_owned(),
        };
        Ok(Response::new(reply))
    }

    async fn list_api_keys(
        &self,
        request: Request<pb::ListApiKeysRequest>,
    ) -> Result<Response<pb::ListApiKeysResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let project = check.finish(Some(project))?;
        let context = ["api_keys", request.project_id.as_str()];
        let page = self.services.page(request.page_size, &request.page_token, &context)?;
        let page = self.services.list_keys(&caller, project, page).await?;
        let next_page_token = self.services.next_page(&page, &context);
        let api_keys = page.items.into_iter().map(convert::api_key).collect();
        Ok(Response::new(pb::ListApiKeysResponse { api_keys, next_page_token }))
    }

    async fn revoke_api_key(
        &self,
        request: Request<pb::RevokeApiKeyRequest>,
    ) -> Result<Response<pb::RevokeApiKeyResponse>, Status> {
        let caller = principal(&request)?;
        let mut check = Check::default();
        let id: Option<KeyId> = check.id("api_key_id", &request.into_inner().api_key_id);
        let id = check.finish(id)?;
        let key = self.services.revoke_key(&caller, id).await?;
        Ok(Response::new(pb::RevokeApiKeyResponse { api_key: Some(convert::api_key(key)) }))
    }
}

const FIELDS: [(&str, ProjectField); 8] = [
    ("name", ProjectField::Name),
    ("paused_policy", ProjectField::PausedPolicy),
    ("retry_policy", ProjectField::RetryPolicy),
    ("disable_policy", ProjectField::DisablePolicy),
    ("publishes_per_second", ProjectField::PublishesPerSecond),
    ("http_timeout", ProjectField::HttpTimeout),
    ("alerts", ProjectField::Alerts),
    ("operational_webhook", ProjectField::OperationalWebhook),
];

fn masked(check: &mut Check, paths: &[String]) -> Vec<ProjectField> {
    let mut fields = Vec::new();
    for path in paths {
        match FIELDS.iter().find(|(name, _)| name == path) {
            Some((_, field)) => fields.push(*field),
            None if path == "*" => fields.extend(ProjectField::ALL),
            None => check.refuse("update_mask", format!("{path:?} is not a field that can be changed")),
        }
    }
    fields
}

/// The fields that an update without a mask changes (AIP-134).
fn populated(project: &pb::Project) -> Vec<ProjectField> {
    let is_set = |field: &ProjectField| match field {
        ProjectField::Name => !project.name.is_empty(),
        ProjectField::PausedPolicy => project.paused_policy != 0,
        ProjectField::RetryPolicy => project.retry_policy.is_some(),
        ProjectField::DisablePolicy => project.disable_policy.is_some(),
        ProjectField::PublishesPerSecond => project.publishes_per_second != 0,
        ProjectField::HttpTimeout => project.http_timeout.is_some(),
        ProjectField::Alerts => project.alerts.is_some(),
        ProjectField::OperationalWebhook => project.operational_webhook.is_some(),
    };
    ProjectField::ALL.into_iter().filter(is_set).collect()
}

/// `fields` are those that will be taken over.
fn settings(check: &mut Check, project: pb::Project, fields: &[ProjectField]) -> ProjectSettings {
    let paused_policy = match pb::PausedPolicy::try_from(project.paused_policy) {
        Ok(pb::PausedPolicy::Hold) => PausedPolicy::Hold,
        Ok(_) => PausedPolicy::Discard,
        Err(_) => {
            check.refuse("project.paused_policy", "is not a known policy");
            PausedPolicy::Discard
        }
    };
    ProjectSettings {
        name: if fields.contains(&ProjectField::Name) {
            check.required_text("project.name", project.name, NAME_MAX)
        } else {
            String::new()
        },
        paused_policy,
        retry_policy: policies::retry(check, "project.retry_policy", project.retry_policy),
        disable_policy: policies::disable(check, "project.disable_policy", project.disable_policy),
        publishes_per_second: match u32::try_from(project.publishes_per_second) {
            Ok(limit @ 0..=PUBLISHES_MAX) => NonZeroU32::new(limit),
            _ => {
                check.refuse("project.publishes_per_second", "must be 0 to 1,000,000");
                None
            }
        },
        http_timeout: policies::http_timeout(check, "project.http_timeout", project.http_timeout),
        alerts: alerts::settings(check, "project.alerts", project.alerts),
        operational_webhook: alerts::webhook(
            check,
            "project.operational_webhook",
            project.operational_webhook,
        ),
    }
}

fn shown(secret: Option<SigningSecret>) -> String {
    secret.map(|secret| secret.reveal().to_string()).unwrap_or_default()
}

fn scopes(check: &mut Check, numbers: &[i32]) -> Scopes {
    let mut scopes = Vec::new();
    for (index, number) in numbers.iter().enumerate() {
        let known = Scope::ALL.into_iter().find(|scope| i32::from(convert::scope(*scope)) == *number);
        match known {
            Some(scope) => scopes.push(scope),
            None => check.refuse(format!("api_key.scopes[{index}]"), "is not a known scope"),
        }
    }
    scopes.into_iter().collect()
}

//! Projects.

use super::operational::align_secrets;
use super::{Services, alerts, found};
use crate::domain::clock::Timestamp;
use crate::domain::error::Result;
use crate::domain::id::ProjectId;
use crate::domain::page::{Page, PageRequest};
use crate::domain::principal::Principal;
use crate::domain::project::{Project, ProjectSettings};
use crate::domain::secret::SigningSecret;
use crate::store::{AuditEntry, Lane, Tx};

/// A field that an update may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectField {
    Name,
    PausedPolicy,
    RetryPolicy,
    DisablePolicy,
    PublishesPerSecond,
    HttpTimeout,
    Alerts,
    OperationalWebhook,
}

impl ProjectField {
    pub const ALL: [Self; 8] = [
        Self::Name,
        Self::PausedPolicy,
        Self::RetryPolicy,
        Self::DisablePolicy,
        Self::PublishesPerSecond,
        Self::HttpTimeout,
        Self::Alerts,
        Self::OperationalWebhook,
    ];
}

/// A project that was made or changed.
pub struct ChangedProject {
    pub project: Project,
    /// Of its operational webhook, where it was made now.
    pub operational_secret: Option<SigningSecret>,
}

impl Services {
    pub async fn create_project(
        &self,
        principal: &Principal,
        mut settings: ProjectSettings,
    ) -> Result<ChangedProject> {
        principal.require_operator()?;
        self.check_alerts(ALERTS, &mut settings.alerts, None)?;
        self.check_webhook(&mut settings.operational_webhook)?;
        let project = Project {
            id: ProjectId::new(),
            settings,
            alerts_unreadable: false,
            version: 1,
            created_at: Timestamp::now(),
        };
        let tx = self.store.begin(Lane::Service).await?;
        tx.insert_project(&project).await?;
        let operational_secret = align_secrets(&tx, &project).await?;
        audit(&tx, principal, "CreateProject", None, &project).await?;
        self.commit(tx, async { Ok(ChangedProject { project, operational_secret }) }).await
    }

    pub async fn update_project(
        &self,
        principal: &Principal,
        id: ProjectId,
        mut settings: ProjectSettings,
        fields: &[ProjectField],
        etag: &str,
    ) -> Result<ChangedProject> {
        principal.require_operator()?;
        let mut tx = self.store.begin(Lane::Service).await?;
        let before = found(tx.project(id).await?, "project", id)?;
        // It waits for other changes of the project, so that what is read after it is the newest.
        let version = tx.bump_routing(id).await?;
        let before = tx.project(id).await?.unwrap_or(before);
        before.check_etag(etag)?;
        let mut project = before.clone();
        for field in fields {
            copy(*field, &mut settings, &mut project.settings);
        }
        // What is set again, or cleared, can be read again.
        project.alerts_unreadable &= !fields.contains(&ProjectField::Alerts);
        let stored = before.settings.alerts.as_ref();
        alerts::keep_stored(project.settings.alerts.as_mut(), stored);
        self.check_alerts(ALERTS, &mut project.settings.alerts, stored)?;
        if project.settings.operational_webhook != before.settings.operational_webhook {
            self.check_webhook(&mut project.settings.operational_webhook)?;
        }
        if project == before {
            tx.rollback().await?;
            return Ok(ChangedProject { project: before, operational_secret: None });
        }
        project.version += 1;
        tx.update_project(&project).await?;
        let operational_secret = align_secrets(&tx, &project).await?;
        audit(&tx, principal, "UpdateProject", Some(&before), &project).await?;
        self.commit_routes(tx, id, version).await?;
        Ok(ChangedProject { project, operational_secret })
    }

    pub async fn get_project(&self, principal: &Principal, id: ProjectId) -> Result<Project> {
        principal.require_operator()?;
        found(self.store.project(id).await?, "project", id)
    }

    pub async fn list_projects(&self, principal: &Principal, page: PageRequest) -> Result<Page<Project>> {
        principal.require_operator()?;
        Ok(self.store.projects(page).await?)
    }

    /// The project a call is about; with an operator key it must exist.
    pub(super) async fn project_of(
        &self,
        principal: &Principal,
        requested: Option<ProjectId>,
        scope: crate::domain::principal::Scope,
    ) -> Result<ProjectId> {
        let project = principal.project_for(requested, scope)?;
        if principal.is_operator() {
            found(self.store.project(project).await?, "project", project)?;
        }
        Ok(project)
    }
}

fn copy(field: ProjectField, from: &mut ProjectSettings, to: &mut ProjectSettings) {
    match field {
        ProjectField::Name => to.name = std::mem::take(&mut from.name),
        ProjectField::PausedPolicy => to.paused_policy = from.paused_policy,
        ProjectField::RetryPolicy => to.retry_policy = from.retry_policy.take(),
        ProjectField::DisablePolicy => to.disable_policy = from.disable_policy,
        ProjectField::PublishesPerSecond => to.publishes_per_second = from.publishes_per_second,
        ProjectField::HttpTimeout => to.http_timeout = from.http_timeout,
        ProjectField::Alerts => to.alerts = from.alerts.take(),
        ProjectField::OperationalWebhook => to.operational_webhook = from.operational_webhook.take(),
    }
}

const ALERTS: &str = "project.alerts";

async fn audit(
    tx: &Tx,
    principal: &Principal,
    action: &'static str,
    before: Option<&Project>,
    after: &Project,
) -> Result<()> {
    let summary = |project: &Project| {
        let settings = &project.settings;
        serde_json::json!({
            "name": settings.name,
            "paused_policy": settings.paused_policy.as_str(),
            "retry_policy": settings.retry_policy,
            "disable_policy": settings.disable_policy,
            "publishes_per_second": settings.publishes_per_second,
            "http_timeout_ms": settings.http_timeout.map(|timeout| timeout.as_millis()),
            "alerts": settings.alerts,
            "operational_webhook": settings.operational_webhook,
        })
        .to_string()
    };
    let entry = AuditEntry {
        principal,
        project: Some(after.id),
        action,
        resource: after.id.to_string(),
        before: before.map(summary),
        after: Some(summary(after)),
    };
    Ok(tx.audit(entry).await?)
}

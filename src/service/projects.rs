//! Projects.

use super::{Services, found};
use crate::domain::clock::Timestamp;
use crate::domain::error::Result;
use crate::domain::id::ProjectId;
use crate::domain::page::{Page, PageRequest};
use crate::domain::principal::Principal;
use crate::domain::project::{PausedPolicy, Project};
use crate::store::{AuditEntry, Lane};

impl Services {
    pub async fn create_project(
        &self,
        principal: &Principal,
        name: String,
        paused_policy: PausedPolicy,
    ) -> Result<Project> {
        principal.require_operator()?;
        let project = Project { id: ProjectId::new(), name, paused_policy, created_at: Timestamp::now() };
        let tx = self.store.begin(Lane::Service).await?;
        tx.insert_project(&project).await?;
        tx.audit(AuditEntry {
            principal,
            project: Some(project.id),
            action: "CreateProject",
            resource: project.id.to_string(),
            before: None,
            after: None,
        })
        .await?;
        self.commit(tx, async { Ok(project) }).await
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

//! Reading the audit log.

use super::Services;
use crate::domain::audit::{AuditEvent, AuditFilter};
use crate::domain::error::Result;
use crate::domain::id::ProjectId;
use crate::domain::page::{Page, PageRequest};
use crate::domain::principal::{Principal, Scope};

impl Services {
    /// Entries, newest first. An operator that names no project sees all.
    pub async fn list_audit_events(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        filter: AuditFilter,
        page: PageRequest,
    ) -> Result<Page<AuditEvent>> {
        let project = match project {
            None if principal.is_operator() => None,
            named => Some(self.project_of(principal, named, Scope::AuditRead).await?),
        };
        Ok(self.store.audit_events(project, &filter, page).await?)
    }
}

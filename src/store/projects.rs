//! Projects and API keys.

use std::collections::HashSet;

use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::entity::prelude::*;
use sea_orm::{QueryOrder, QuerySelect, Statement};
use uuid::Uuid;

use super::Store;
use super::endpoint_rows::short_millis;
use super::endpoints::to_json;
use super::error::{Result, StoreError};
use super::routes::{limit_of, own_timeout, policy_of};
use super::rows::{Kind, Rows};
use super::tx::Tx;
use super::vault::Place;
use crate::domain::clock::Timestamp;
use crate::domain::disable::DisablePolicy;
use crate::domain::id::{KeyId, ProjectId};
use crate::domain::page::{Page, PageRequest};
use crate::domain::principal::Scopes;
use crate::domain::project::{ApiKey, PausedPolicy, Project, ProjectSettings};

mod project {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, DeriveEntityModel)]
    #[sea_orm(table_name = "projects")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub name: String,
        pub paused_policy: i16,
        pub routing_version: i64,
        pub created_at: i64,
        pub retry_policy: Option<String>,
        pub disable_policy: Option<String>,
        pub http_timeout_ms: Option<i32>,
        pub version: i64,
        pub publishes_per_second: Option<i32>,
        pub alerts_sealed: Option<Vec<u8>>,
        pub operational_webhook: Option<String>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

mod api_key {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, DeriveEntityModel)]
    #[sea_orm(table_name = "api_keys")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub project_id: Option<Uuid>,
        pub name: String,
        pub hash: Vec<u8>,
        pub scopes: i64,
        pub created_at: i64,
        pub expires_at: Option<i64>,
        pub last_used_at: Option<i64>,
        pub revoked_at: Option<i64>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

impl Tx {
    pub async fn insert_project(&self, project: &Project) -> Result<()> {
        let row = project::ActiveModel { routing_version: Set(1), ..self.store().row_of_project(project)? };
        self.db().execute(&project::Entity::insert(row)).await?;
        Ok(())
    }

    /// A project as of this transaction.
    pub async fn project(&self, id: ProjectId) -> Result<Option<Project>> {
        let row = self.db().one(project::Entity::find_by_id(id.uuid())).await?;
        row.map(|row| self.store().project_of(row)).transpose()
    }

    /// The disable policy of endpoints without their own. Read alone: what else the project has may be unreadable, and
    /// must not keep attempts from being recorded.
    pub(super) async fn project_disable_policy(&self, project: ProjectId) -> Result<Option<DisablePolicy>> {
        let sql = "SELECT disable_policy FROM projects WHERE id = $1";
        let statement = Statement::from_sql_and_values(self.backend(), sql, [project.uuid().into()]);
        match self.db().query_one_raw(statement).await? {
            Some(row) => policy_of(row.try_get_by_index(0)?),
            None => Ok(None),
        }
    }

    /// Writes a changed project; its routing version is bumped apart.
    pub async fn update_project(&self, project: &Project) -> Result<()> {
        let row = self.store().row_of_project(project)?;
        self.db().update_one(&project::Entity::update(row).validate()?).await?;
        // Its settings are part of all its routes.
        let sql = "UPDATE projects SET routing_base = routing_version WHERE id = $1";
        self.run(sql, [project.id.uuid().into()]).await?;
        Ok(())
    }

    /// Keeps the key with the hash of its secret.
    pub async fn insert_key(&self, key: &ApiKey, hash: [u8; 32]) -> Result<()> {
        let row = api_key::ActiveModel {
            id: Set(key.id.uuid()),
            project_id: Set(key.project.map(ProjectId::uuid)),
            name: Set(key.name.clone()),
            hash: Set(hash.to_vec()),
            scopes: Set(key.scopes.bits()),
            created_at: Set(key.created_at.as_millis()),
            expires_at: Set(key.expires_at.map(Timestamp::as_millis)),
            last_used_at: Set(None),
            revoked_at: Set(None),
        };
        self.db().execute(&api_key::Entity::insert(row)).await?;
        Ok(())
    }

    /// Revokes a key that was not yet; returns it as it is now, none where there is none.
    pub async fn revoke_key(&self, id: KeyId, at: Timestamp) -> Result<Option<ApiKey>> {
        let revoke = api_key::Entity::update_many()
            .col_expr(api_key::Column::RevokedAt, Expr::value(at.as_millis()))
            .filter(api_key::Column::Id.eq(id.uuid()))
            .filter(api_key::Column::RevokedAt.is_null());
        self.db().execute(&revoke).await?;
        let row = self.db().one(api_key::Entity::find_by_id(id.uuid())).await?;
        Ok(row.map(|row| key_of(row).0))
    }
}

impl Store {
    /// Calls that name a project ask whether it is there, publishes among them.
    pub async fn project(&self, id: ProjectId) -> Result<Option<Project>> {
        let row = self.call_reader().one(project::Entity::find_by_id(id.uuid())).await?;
        row.map(|row| self.project_of(row)).transpose()
    }

    /// Oldest first.
    pub async fn projects(&self, page: PageRequest) -> Result<Page<Project>> {
        let mut query =
            project::Entity::find().order_by_asc(project::Column::Id).limit(u64::from(page.size) + 1);
        if let Some(after) = page.after {
            query = query.filter(project::Column::Id.gt(after));
        }
        let rows = self.reader().all(query).await?;
        let rows = rows.into_iter().map(|row| self.project_of(row)).collect::<Result<Vec<_>>>()?;
        Ok(Page::from_rows(rows, page.size, |project| project.id.uuid()))
    }

    /// Keys of a project, or operator keys; oldest first.
    pub async fn keys(&self, project: Option<ProjectId>, page: PageRequest) -> Result<Page<ApiKey>> {
        let mut query =
            api_key::Entity::find().order_by_asc(api_key::Column::Id).limit(u64::from(page.size) + 1);
        query = match project {
            Some(project) => query.filter(api_key::Column::ProjectId.eq(project.uuid())),
            None => query.filter(api_key::Column::ProjectId.is_null()),
        };
        if let Some(after) = page.after {
            query = query.filter(api_key::Column::Id.gt(after));
        }
        let rows = self.reader().all(query).await?.into_iter().map(|row| key_of(row).0).collect();
        Ok(Page::from_rows(rows, page.size, |key| key.id.uuid()))
    }

    /// A key with the hash of its secret.
    pub async fn key(&self, id: KeyId) -> Result<Option<(ApiKey, Vec<u8>)>> {
        let row = self.call_reader().one(api_key::Entity::find_by_id(id.uuid())).await?;
        Ok(row.map(key_of))
    }

    /// Which of these keys can still be used.
    pub async fn valid_keys(&self, ids: &HashSet<KeyId>, now: Timestamp) -> Result<HashSet<KeyId>> {
        let mut rows = Rows::new([("key_id", Kind::Uuid), ("now", Kind::BigInt)]);
        for id in ids {
            rows.push([id.uuid().into(), now.as_millis().into()]);
        }
        let sql = "SELECT k.id FROM v JOIN api_keys k ON k.id = v.key_id WHERE k.revoked_at IS NULL \
                   AND (k.expires_at IS NULL OR k.expires_at > v.now)";
        let found = rows.query(self.own_reader(), sql).await?;
        found.iter().map(|row| Ok(KeyId::from_uuid(row.try_get_by_index(0)?))).collect()
    }

    /// Whether any operator key could be used.
    pub async fn has_operator_key(&self) -> Result<bool> {
        let usable = api_key::Entity::find()
            .filter(api_key::Column::ProjectId.is_null())
            .filter(api_key::Column::RevokedAt.is_null());
        Ok(self.own_reader().one(usable).await?.is_some())
    }

    /// Notes when keys were last used.
    pub async fn touch_keys(&self, used: &[(KeyId, Timestamp)]) -> Result<()> {
        let tx = self.begin(super::Lane::Service).await?;
        for (id, at) in used {
            let touch = api_key::Entity::update_many()
                .col_expr(api_key::Column::LastUsedAt, Expr::value(at.as_millis()))
                .filter(api_key::Column::Id.eq(id.uuid()));
            tx.db().execute(&touch).await?;
        }
        tx.commit().await
    }
}

impl Store {
    fn row_of_project(&self, project: &Project) -> Result<project::ActiveModel> {
        let settings = &project.settings;
        Ok(project::ActiveModel {
            id: Set(project.id.uuid()),
            name: Set(settings.name.clone()),
            paused_policy: Set(settings.paused_policy.code()),
            retry_policy: Set(settings.retry_policy.as_ref().map(to_json).transpose()?),
            disable_policy: Set(settings.disable_policy.as_ref().map(to_json).transpose()?),
            http_timeout_ms: Set(settings.http_timeout.map(short_millis)),
            version: Set(project.version),
            publishes_per_second: Set(settings
                .publishes_per_second
                .map(|limit| i32::try_from(limit.get()).unwrap_or(i32::MAX))),
            created_at: Set(project.created_at.as_millis()),
            // Bumped apart.
            routing_version: NotSet,
            // What cannot be read stays as it is stored.
            alerts_sealed: match project.alerts_unreadable {
                true => NotSet,
                false => Set(self.seal_alerts(&alerts_place(project.id), settings.alerts.as_ref())?),
            },
            operational_webhook: Set(settings.operational_webhook.as_ref().map(to_json).transpose()?),
        })
    }

    fn project_of(&self, row: project::Model) -> Result<Project> {
        let id = ProjectId::from_uuid(row.id);
        // Alerts that do not open hide nothing else of the project, and nothing of others.
        let (alerts, alerts_unreadable) = match self.open_alerts(&alerts_place(id), row.alerts_sealed) {
            Err(error) if error.is_unreadable() => (None, true),
            opened => (opened?, false),
        };
        Ok(Project {
            id,
            alerts_unreadable,
            settings: ProjectSettings {
                name: row.name,
                paused_policy: PausedPolicy::from_code(row.paused_policy)
                    .ok_or_else(|| StoreError::Corrupt("a project's paused_policy".to_owned()))?,
                retry_policy: policy_of(row.retry_policy)?,
                disable_policy: policy_of(row.disable_policy)?,
                publishes_per_second: limit_of(row.publishes_per_second),
                http_timeout: row.http_timeout_ms.and_then(own_timeout),
                alerts,
                operational_webhook: policy_of(row.operational_webhook)?,
            },
            version: row.version,
            created_at: Timestamp::from_millis(row.created_at),
        })
    }
}

/// Where a project's sealed alert settings live.
pub(super) fn alerts_place(project: ProjectId) -> Place {
    Place { table: "projects", column: "alerts_sealed", row: project.uuid(), project: Some(project) }
}

fn key_of(row: api_key::Model) -> (ApiKey, Vec<u8>) {
    let project: Option<Uuid> = row.project_id;
    let key = ApiKey {
        id: KeyId::from_uuid(row.id),
        project: project.map(ProjectId::from_uuid),
        name: row.name,
        scopes: Scopes::from_bits(row.scopes),
        created_at: Timestamp::from_millis(row.created_at),
        expires_at: row.expires_at.map(Timestamp::from_millis),
        last_used_at: row.last_used_at.map(Timestamp::from_millis),
        revoked_at: row.revoked_at.map(Timestamp::from_millis),
    };
    (key, row.hash)
}

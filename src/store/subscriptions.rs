//! Subscriptions.

use std::collections::HashMap;

use sea_orm::entity::prelude::*;
use sea_orm::{ActiveValue::Set, QueryOrder, QuerySelect};

use super::Store;
use super::db::Db;
use super::endpoints::to_json;
use super::error::Result;
use super::routes::from_json;
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::clock::Timestamp;
use crate::domain::id::{EndpointId, ProjectId, SubscriptionId};
use crate::domain::page::{Page, PageRequest};
use crate::domain::subscription::Subscription;

mod entity {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, DeriveEntityModel)]
    #[sea_orm(table_name = "subscriptions")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub project_id: Uuid,
        pub endpoint_id: Uuid,
        pub event_types: String,
        pub enabled: bool,
        pub version: i64,
        pub created_at: i64,
        pub updated_at: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

use entity::Column;

impl Tx {
    pub async fn insert_subscriptions(&mut self, subscriptions: &[&Subscription]) -> Result<()> {
        for subscription in subscriptions {
            self.reroute(subscription.endpoint);
        }
        let rows = subscriptions.iter().map(|subscription| row_of(subscription));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        self.db().insert_all::<entity::Entity>(rows).await
    }

    /// A subscription as of this transaction.
    pub async fn subscription(&self, project: ProjectId, id: SubscriptionId) -> Result<Option<Subscription>> {
        self.db().one(find(project, id)).await?.map(subscription_of).transpose()
    }

    pub async fn update_subscription(&mut self, subscription: &Subscription) -> Result<()> {
        self.reroute(subscription.endpoint);
        let row = row_of(subscription)?;
        self.db().update_one(&entity::Entity::update(row).validate()?).await?;
        Ok(())
    }

    pub async fn delete_subscription(&mut self, subscription: &Subscription) -> Result<()> {
        self.reroute(subscription.endpoint);
        self.db().execute(&entity::Entity::delete_by_id(subscription.id.uuid())).await?;
        Ok(())
    }
}

impl Store {
    pub async fn subscription(&self, project: ProjectId, id: SubscriptionId) -> Result<Option<Subscription>> {
        self.reader().one(find(project, id)).await?.map(subscription_of).transpose()
    }

    /// Oldest first.
    pub async fn subscriptions(
        &self,
        project: ProjectId,
        endpoint: Option<EndpointId>,
        page: PageRequest,
    ) -> Result<Page<Subscription>> {
        let mut query = entity::Entity::find()
            .filter(Column::ProjectId.eq(project.uuid()))
            .order_by_asc(Column::Id)
            .limit(u64::from(page.size) + 1);
        if let Some(endpoint) = endpoint {
            query = query.filter(Column::EndpointId.eq(endpoint.uuid()));
        }
        if let Some(after) = page.after {
            query = query.filter(Column::Id.gt(after));
        }
        let rows = self.reader().all(query).await?;
        let rows = rows.into_iter().map(subscription_of).collect::<Result<Vec<_>>>()?;
        Ok(Page::from_rows(rows, page.size, |subscription| subscription.id.uuid()))
    }
}

/// The oldest subscription of each of these endpoints that has one.
pub(super) async fn first_of(
    db: Db<'_>,
    endpoints: &[EndpointId],
) -> Result<HashMap<EndpointId, Subscription>> {
    let mut rows = Rows::new([("id", Kind::Uuid)]);
    for endpoint in endpoints {
        rows.push([endpoint.uuid().into()]);
    }
    let sql =
        "SELECT (SELECT f.id FROM subscriptions f WHERE f.endpoint_id = v.id ORDER BY f.id LIMIT 1) FROM v";
    let found = rows.query(db, sql).await?;
    let ids = found.iter().map(|row| row.try_get_by_index::<Option<Uuid>>(0)).collect::<Result<Vec<_>>>()?;
    let first = entity::Entity::find().filter(Column::Id.is_in(ids.into_iter().flatten()));
    let first = db.all(first).await?.into_iter().map(subscription_of);
    first.map(|subscription| subscription.map(|subscription| (subscription.endpoint, subscription))).collect()
}

fn find(project: ProjectId, id: SubscriptionId) -> sea_orm::Select<entity::Entity> {
    entity::Entity::find_by_id(id.uuid()).filter(Column::ProjectId.eq(project.uuid()))
}

fn subscription_of(row: entity::Model) -> Result<Subscription> {
    Ok(Subscription {
        id: SubscriptionId::from_uuid(row.id),
        project: ProjectId::from_uuid(row.project_id),
        endpoint: EndpointId::from_uuid(row.endpoint_id),
        event_types: from_json(&row.event_types)?,
        enabled: row.enabled,
        version: row.version,
        created_at: Timestamp::from_millis(row.created_at),
        updated_at: Timestamp::from_millis(row.updated_at),
    })
}

fn row_of(subscription: &Subscription) -> Result<entity::ActiveModel> {
    Ok(entity::ActiveModel {
        id: Set(subscription.id.uuid()),
        project_id: Set(subscription.project.uuid()),
        endpoint_id: Set(subscription.endpoint.uuid()),
        event_types: Set(to_json(&subscription.event_types)?),
        enabled: Set(subscription.enabled),
        version: Set(subscription.version),
        created_at: Set(subscription.created_at.as_millis()),
        updated_at: Set(subscription.updated_at.as_millis()),
    })
}

//! What bulk calls read of many endpoints at once, outside a transaction or in one.

use std::collections::HashMap;

use sea_orm::DbBackend;
use uuid::Uuid;

use super::db::Db;
use super::rows::{Kind, Rows};
use super::tx::Tx;
use super::{Result, Store};
use crate::domain::endpoint::Endpoint;
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::secret::LiveSecret;
use crate::domain::subscription::Subscription;

/// What an endpoint is found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointKey {
    Uid(String),
    /// Its owner, if it has one, and its canonical URL.
    Address(Option<String>, String),
}

/// Of more than one endpoint with a key it is enough to know two.
const FOUND_MAX: usize = 2;

impl Store {
    /// The endpoints that each key finds, at most two.
    pub async fn endpoints_by_key(
        &self,
        project: ProjectId,
        keys: &[&EndpointKey],
    ) -> Result<Vec<Vec<Endpoint>>> {
        by_key(self, self.reader(), project, keys).await
    }

    /// The oldest subscription of each of these endpoints that has one.
    pub async fn first_subscriptions(
        &self,
        endpoints: &[EndpointId],
    ) -> Result<HashMap<EndpointId, Subscription>> {
        super::subscriptions::first_of(self.reader(), endpoints).await
    }

    /// The live secrets of these endpoints, in no particular order.
    pub async fn live_secrets_among(
        &self,
        project: ProjectId,
        endpoints: &[EndpointId],
    ) -> Result<HashMap<EndpointId, Vec<LiveSecret>>> {
        super::secrets::live_among(self, self.reader(), project, endpoints).await
    }
}

impl Tx {
    /// The same as of this transaction.
    pub async fn endpoints_by_key(
        &self,
        project: ProjectId,
        keys: &[&EndpointKey],
    ) -> Result<Vec<Vec<Endpoint>>> {
        by_key(self.store(), self.db(), project, keys).await
    }

    /// The same as of this transaction.
    pub async fn first_subscriptions(
        &self,
        endpoints: &[EndpointId],
    ) -> Result<HashMap<EndpointId, Subscription>> {
        super::subscriptions::first_of(self.db(), endpoints).await
    }
}

async fn by_key(
    store: &Store,
    db: Db<'_>,
    project: ProjectId,
    keys: &[&EndpointKey],
) -> Result<Vec<Vec<Endpoint>>> {
    let mut by_uid = Rows::new([("project_id", Kind::Uuid), ("place", Kind::Int), ("uid", Kind::Text)]);
    let mut by_address = Rows::new([
        ("project_id", Kind::Uuid),
        ("place", Kind::Int),
        ("owner", Kind::Text),
        ("url", Kind::Text),
    ]);
    for (place, key) in keys.iter().enumerate() {
        let (project, place) = (project.uuid().into(), i32::try_from(place).unwrap_or(i32::MAX).into());
        match key {
            EndpointKey::Uid(uid) => by_uid.push([project, place, uid.as_str().into()]),
            EndpointKey::Address(owner, url) => {
                let owner = owner.as_deref().unwrap_or_default();
                by_address.push([project, place, owner.into(), url.as_str().into()]);
            }
        }
    }
    let uid_sql =
        "SELECT v.place, e.id FROM v JOIN endpoints e ON e.project_id = v.project_id AND e.uid = v.uid";
    // As the index spells it.
    let url = match db.backend() {
        DbBackend::Postgres => "md5(e.url) = md5(v.url) AND e.url = v.url",
        _ => "e.url = v.url",
    };
    let address_sql = format!(
        "SELECT v.place, e.id FROM v JOIN endpoints e ON e.project_id = v.project_id \
         AND COALESCE(e.owner_id, '') = v.owner AND {url}"
    );
    let mut places: Vec<Vec<EndpointId>> = vec![Vec::new(); keys.len()];
    let found_by_uid = by_uid.query(db, uid_sql).await?;
    for row in found_by_uid.iter().chain(&by_address.query(db, &address_sql).await?) {
        let place = usize::try_from(row.try_get_by_index::<i32>(0)?).unwrap_or(usize::MAX);
        if let Some(found) = places.get_mut(place).filter(|found| found.len() < FOUND_MAX) {
            found.push(EndpointId::from_uuid(row.try_get_by_index(1)?));
        }
    }
    let ids: Vec<Uuid> = places.iter().flatten().map(|id| id.uuid()).collect();
    let endpoints = super::endpoints::with_ids(store, db, &ids).await?;
    let endpoints: HashMap<EndpointId, Endpoint> =
        endpoints.into_iter().map(|endpoint| (endpoint.id, endpoint)).collect();
    let of = |ids: Vec<EndpointId>| ids.iter().filter_map(|id| endpoints.get(id).cloned()).collect();
    Ok(places.into_iter().map(of).collect())
}

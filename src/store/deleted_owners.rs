//! Whose endpoints were that are deleted. What was queued for them ends after they are gone, in batches, and those who
//! watch by owner are told of it all the same.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::error::Result;
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::clock::Timestamp;
use crate::domain::endpoint::Endpoint;
use crate::domain::id::EndpointId;

/// Long after upkeep has ended what was queued.
const KEPT_MS: i64 = 30 * 24 * 3600 * 1000;

impl Tx {
    /// Notes whose endpoint it was.
    pub(super) async fn keep_owner(&self, deleted: &Endpoint) -> Result<()> {
        let Some(owner) = &deleted.settings.owner_id else { return Ok(()) };
        let expires_at = Timestamp::now().as_millis() + KEPT_MS;
        let sql = "INSERT INTO deleted_owners (endpoint_id, owner_id, expires_at) VALUES ($1, $2, $3)";
        self.run(sql, [deleted.id.uuid().into(), owner.as_str().into(), expires_at.into()]).await?;
        Ok(())
    }

    /// The owners of those of the endpoints that have one, or had when they were deleted.
    pub async fn owners_of(
        &self,
        endpoints: impl Iterator<Item = EndpointId>,
    ) -> Result<HashMap<EndpointId, Arc<str>>> {
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        for endpoint in endpoints.collect::<BTreeSet<_>>() {
            rows.push([endpoint.uuid().into()]);
        }
        let sql = "SELECT v.id, COALESCE(e.owner_id, d.owner_id) FROM v LEFT JOIN endpoints AS e ON e.id = v.id \
                   LEFT JOIN deleted_owners AS d ON d.endpoint_id = v.id \
                   WHERE COALESCE(e.owner_id, d.owner_id) IS NOT NULL";
        let mut owners = HashMap::new();
        for row in rows.query(self.db(), sql).await? {
            let owner: String = row.try_get_by_index(1)?;
            owners.insert(EndpointId::from_uuid(row.try_get_by_index(0)?), owner.into());
        }
        Ok(owners)
    }
}

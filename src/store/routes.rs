//! Reading a project's routes: everything that sending to its endpoints needs, as of one version.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::{AccessMode, DbBackend, IsolationLevel, Statement, TransactionTrait, Value};

use super::Store;
use super::credentials::read;
use super::db::{Db, Row};
use super::error::{Result, StoreError};
use super::rows::{Kind, Rows};
use super::vault::Place;
use crate::domain::clock::Timestamp;
use crate::domain::credentials::Credentials;
use crate::domain::disable::DisablePolicy;
use crate::domain::endpoint::{ContentType, CustomHeader, EndpointStatus, HTTP_TIMEOUT};
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::project::PausedPolicy;
use crate::domain::rate::RateLimit;
use crate::domain::retry::RetryPolicy;
use crate::domain::routing::{EndpointRoute, ProjectRoutes};
use crate::domain::subscription::EventTypePattern;
use crate::domain::url_rules::UrlRules;

impl Store {
    /// A project's routes, or none where the project is gone. `rules` are today's rules for URLs. Of what was `known`
    /// before only what changed since is read again.
    pub async fn load_routes(
        &self,
        project: ProjectId,
        rules: &UrlRules,
        known: Option<&ProjectRoutes>,
    ) -> Result<Option<ProjectRoutes>> {
        // One snapshot, so that the version belongs to what is read with it.
        let txn = match self.backend() {
            DbBackend::Postgres => {
                let (isolation, mode) = (IsolationLevel::RepeatableRead, AccessMode::ReadOnly);
                self.inner.own.begin_with_config(Some(isolation), Some(mode)).await?
            }
            _ => self.inner.own.begin().await?,
        };
        let routes = self.read_routes(Db::Transaction(&txn), project, rules, known).await;
        txn.rollback().await?;
        routes
    }

    /// The routing versions of these projects; one that is gone is absent.
    pub async fn routing_versions(&self, projects: &[ProjectId]) -> Result<HashMap<ProjectId, i64>> {
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        for project in projects {
            rows.push([project.uuid().into()]);
        }
        let sql = "SELECT projects.id, projects.routing_version FROM v JOIN projects ON projects.id = v.id";
        let found = rows.query(self.own_reader(), sql).await?;
        found
            .iter()
            .map(|row| Ok((ProjectId::from_uuid(row.try_get_by_index(0)?), row.try_get_by_index(1)?)))
            .collect()
    }

    async fn read_routes(
        &self,
        txn: Db<'_>,
        project: ProjectId,
        rules: &UrlRules,
        known: Option<&ProjectRoutes>,
    ) -> Result<Option<ProjectRoutes>> {
        let sql = "SELECT routing_version, paused_policy, retry_policy, disable_policy, publishes_per_second, \
                   http_timeout_ms, routing_base, (SELECT COUNT(*) FROM endpoints WHERE project_id = $1) \
                   FROM projects WHERE id = $1";
        let Some(row) = query(txn, sql, project, None).await?.into_iter().next() else { return Ok(None) };
        let version = row.try_get_by_index(0)?;
        let policy = PausedPolicy::from_code(row.try_get_by_index(1)?)
            .ok_or_else(|| StoreError::Corrupt("a project's paused_policy".to_owned()))?;
        let retry: RetryPolicy = policy_of(row.try_get_by_index(2)?)?.unwrap_or_default();
        let disable: DisablePolicy = policy_of(row.try_get_by_index(3)?)?.unwrap_or_default();
        let publishes_per_second = limit_of(row.try_get_by_index(4)?);
        let timeout: Option<i32> = row.try_get_by_index(5)?;
        let timeout = timeout.and_then(own_timeout).unwrap_or(HTTP_TIMEOUT);
        let base: i64 = row.try_get_by_index(6)?;
        let count: i64 = row.try_get_by_index(7)?;

        let mut routes = ProjectRoutes::new(project, version, policy, publishes_per_second);
        let known = known.filter(|known| known.version >= base);
        known.iter().for_each(|known| routes.begin_with(known));
        let since = known.map_or(-1, |known| known.version);
        let mut live = self.live_secrets(txn, project, since, Timestamp::now()).await?;
        let mut patterns = enabled_patterns(txn, project, since).await?;
        let sql = "SELECT id, url, owner_id, http_timeout_ms, retry_policy, headers_sealed, status, \
                   disable_policy, max_in_flight, authentication_sealed, client_certificate_sealed, authorities, \
                   credential_version, signature, content_type, rate_requests, rate_per_ms, rate_burst \
                   FROM endpoints WHERE project_id = $1 AND routing_version > $2";
        for row in query(txn, sql, project, Some(since)).await? {
            let id = EndpointId::from_uuid(row.try_get_by_index(0)?);
            let url: String = row.try_get_by_index(1)?;
            let owner: Option<String> = row.try_get_by_index(2)?;
            let url = rules.parse(&url).ok();
            // One that does not open is no fault of the others'.
            let (headers, credentials, unopened) = match self.open_sealed(project, id, &row, rules) {
                Ok((headers, credentials)) => (headers, credentials, live.unopened.remove(&id)),
                Err(error) if error.is_unreadable() => (Vec::new(), None, Some(error)),
                Err(error) => return Err(error),
            };
            routes.insert(EndpointRoute {
                id,
                owner: owner.map(Into::into),
                status: EndpointStatus::from_code(row.try_get_by_index(6)?)
                    .ok_or_else(|| StoreError::Corrupt(format!("the status of {id}")))?,
                url,
                timeout: own_timeout(row.try_get_by_index(3)?).unwrap_or(timeout),
                unopened: unopened.map(|error| error.to_string()),
                signature: policy_of(row.try_get_by_index(13)?)?.unwrap_or_default(),
                secrets: live.secrets.remove(&id).unwrap_or_default(),
                retry: policy_of(row.try_get_by_index(4)?)?.unwrap_or_else(|| retry.clone()),
                disable: policy_of(row.try_get_by_index(7)?)?.unwrap_or(disable),
                max_in_flight: u16::try_from(row.try_get_by_index::<i32>(8)?).unwrap_or_default(),
                rate_limit: rate_of(
                    row.try_get_by_index(15)?,
                    row.try_get_by_index(16)?,
                    row.try_get_by_index(17)?,
                ),
                content_type: ContentType::from_code(row.try_get_by_index(14)?)
                    .ok_or_else(|| StoreError::Corrupt(format!("the content type of {id}")))?,
                patterns: patterns.remove(&id).unwrap_or_default(),
                headers,
                credentials: credentials.map(Arc::new),
            });
        }
        // Those that were deleted since are still among them.
        if i64::try_from(routes.endpoint_count()).is_ok_and(|had| had != count) {
            let sql = "SELECT id FROM endpoints WHERE project_id = $1";
            let rows = query(txn, sql, project, None).await?;
            let ids = rows.iter().map(|row| Ok(EndpointId::from_uuid(row.try_get_by_index(0)?)));
            routes.retain(&ids.collect::<Result<_>>()?);
        }
        Ok(Some(routes))
    }

    /// What is sealed in such a row of endpoints.
    fn open_sealed(
        &self,
        project: ProjectId,
        endpoint: EndpointId,
        row: &Row,
        rules: &UrlRules,
    ) -> Result<(Vec<CustomHeader>, Option<Credentials>)> {
        let headers = self.open_headers(project, endpoint, row.try_get_by_index(5)?)?;
        Ok((headers, self.credentials_of(project, endpoint, row, 9, rules)?))
    }

    /// Opens an endpoint's custom headers.
    pub(super) fn open_headers(
        &self,
        project: ProjectId,
        endpoint: EndpointId,
        sealed: Option<Vec<u8>>,
    ) -> Result<Vec<CustomHeader>> {
        let Some(sealed) = sealed else { return Ok(Vec::new()) };
        let json = self.vault().open(&headers_place(project, endpoint), &sealed)?;
        read("custom headers", json.expose())
    }

    /// Seals an endpoint's custom headers; none where there are none.
    pub(super) fn seal_headers(
        &self,
        project: ProjectId,
        endpoint: EndpointId,
        headers: &[CustomHeader],
    ) -> Result<Option<Vec<u8>>> {
        if headers.is_empty() {
            return Ok(None);
        }
        let json = serde_json::to_vec(headers)
            .map(zeroize::Zeroizing::new)
            .map_err(|error| StoreError::Corrupt(format!("custom headers: {error}")))?;
        Ok(Some(self.vault().seal(&headers_place(project, endpoint), &json)?))
    }
}

async fn enabled_patterns(
    txn: Db<'_>,
    project: ProjectId,
    since: i64,
) -> Result<HashMap<EndpointId, Vec<EventTypePattern>>> {
    let sql = "SELECT s.endpoint_id, s.event_types FROM endpoints e JOIN subscriptions s ON s.endpoint_id = e.id \
               WHERE e.project_id = $1 AND e.routing_version > $2 AND s.enabled";
    let mut patterns: HashMap<EndpointId, Vec<EventTypePattern>> = HashMap::new();
    for row in query(txn, sql, project, Some(since)).await? {
        let json: String = row.try_get_by_index(1)?;
        let endpoint = EndpointId::from_uuid(row.try_get_by_index(0)?);
        patterns.entry(endpoint).or_default().extend(from_json::<Vec<EventTypePattern>>(&json)?);
    }
    Ok(patterns)
}

async fn query(txn: Db<'_>, sql: &str, project: ProjectId, since: Option<i64>) -> Result<Vec<Row>> {
    let backend = txn.backend();
    let values = [Value::from(project.uuid())].into_iter().chain(since.map(Value::from));
    let statement = Statement::from_sql_and_values(backend, sql, values);
    txn.query_all_raw(statement).await
}

/// Where an endpoint's sealed headers live.
fn headers_place(project: ProjectId, endpoint: EndpointId) -> Place {
    Place { table: "endpoints", column: "headers_sealed", row: endpoint.uuid(), project: Some(project) }
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// A policy that may be absent.
pub(super) fn policy_of<T: serde::de::DeserializeOwned>(json: Option<String>) -> Result<Option<T>> {
    json.as_deref().map(from_json).transpose()
}

/// A rate limit; none where its columns are NULL.
pub(super) fn rate_of(requests: Option<i32>, per_ms: Option<i64>, burst: Option<i32>) -> Option<RateLimit> {
    Some(RateLimit {
        requests: u32::try_from(requests?).ok()?,
        per: Duration::from_millis(u64::try_from(per_ms?).ok()?),
        burst: u32::try_from(burst?).ok()?,
    })
}

/// A limit; none where its column is NULL.
pub(super) fn limit_of(stored: Option<i32>) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(stored?).ok()?)
}

/// A timeout; none where 0 is stored.
pub(super) fn own_timeout(millis: i32) -> Option<Duration> {
    u64::try_from(millis).ok().filter(|millis| *millis > 0).map(Duration::from_millis)
}

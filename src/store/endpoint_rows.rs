//! An endpoint as its row: which columns there are, and what is sealed in them.

use std::time::Duration;

use sea_orm::ActiveValue::{NotSet, Set};

use super::Store;
use super::credentials::place;
use super::endpoints::to_json;
use super::error::{Result, StoreError};
use super::routes::{from_json, own_timeout, policy_of, rate_of};
use crate::domain::clock::Timestamp;
use crate::domain::endpoint::{
    Circuit, ContentType, Endpoint, EndpointSettings, EndpointStatus, SealedSetting,
};
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::rotation::RotationSettings;

pub(super) mod entity {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, DeriveEntityModel)]
    #[sea_orm(table_name = "endpoints")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub project_id: Uuid,
        pub uid: Option<String>,
        pub name: String,
        pub url: String,
        pub description: String,
        pub owner_id: Option<String>,
        pub labels: String,
        pub http_timeout_ms: i32,
        pub retry_policy: Option<String>,
        pub headers_sealed: Option<Vec<u8>>,
        pub status: i16,
        pub status_reason: String,
        pub status_changed_at: i64,
        pub version: i64,
        pub revision: i64,
        pub created_at: i64,
        pub updated_at: i64,
        pub disable_policy: Option<String>,
        pub max_in_flight: i32,
        pub content_type: i16,
        pub rate_requests: Option<i32>,
        pub rate_per_ms: Option<i64>,
        pub rate_burst: Option<i32>,
        pub authentication_sealed: Option<Vec<u8>>,
        pub client_certificate_sealed: Option<Vec<u8>>,
        pub certificate_ends_at: Option<i64>,
        pub authorities: Option<String>,
        pub credential_version: i64,
        pub signature: Option<String>,
        pub rotation_period_ms: Option<i64>,
        pub rotation_grace_ms: i64,
        pub alerts_sealed: Option<Vec<u8>>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

impl Store {
    pub(super) fn endpoint_of(&self, row: entity::Model) -> Result<Endpoint> {
        let (id, project) = (EndpointId::from_uuid(row.id), ProjectId::from_uuid(row.project_id));
        // One that does not open hides nothing else of the endpoint, and nothing of others.
        let mut unreadable = Vec::new();
        let headers = self.open_headers(project, id, row.headers_sealed);
        let headers = opened(headers, SealedSetting::Headers, &mut unreadable)?;
        let authentication = self.open_authentication(project, id, row.authentication_sealed);
        let authentication = opened(authentication, SealedSetting::Authentication, &mut unreadable)?;
        let certificate = self.open_certificate(project, id, row.client_certificate_sealed);
        let client_certificate = opened(certificate, SealedSetting::ClientCertificate, &mut unreadable)?;
        let alerts = self.open_alerts(&place("alerts_sealed", project, id), row.alerts_sealed);
        let alerts = opened(alerts, SealedSetting::Alerts, &mut unreadable)?;
        Ok(Endpoint {
            id,
            project,
            unreadable,
            settings: EndpointSettings {
                uid: row.uid,
                name: row.name,
                url: row.url,
                description: row.description,
                owner_id: row.owner_id,
                labels: from_json(&row.labels)?,
                http_timeout: own_timeout(row.http_timeout_ms),
                retry_policy: policy_of(row.retry_policy)?,
                disable_policy: policy_of(row.disable_policy)?,
                headers,
                max_in_flight: u16::try_from(row.max_in_flight).unwrap_or_default(),
                rate_limit: rate_of(row.rate_requests, row.rate_per_ms, row.rate_burst),
                content_type: ContentType::from_code(row.content_type)
                    .ok_or_else(|| StoreError::Corrupt(format!("the content type of {id}")))?,
                authentication,
                client_certificate,
                authorities: row.authorities,
                signature: policy_of(row.signature)?.unwrap_or_default(),
                rotation: RotationSettings {
                    period: row.rotation_period_ms.map(long_millis),
                    grace: long_millis(row.rotation_grace_ms),
                },
                alerts,
            },
            status: EndpointStatus::from_code(row.status)
                .ok_or_else(|| StoreError::Corrupt(format!("the status of {id}")))?,
            status_reason: row.status_reason,
            status_changed_at: Timestamp::from_millis(row.status_changed_at),
            version: row.version,
            credential_version: row.credential_version,
            revision: row.revision,
            created_at: Timestamp::from_millis(row.created_at),
            updated_at: Timestamp::from_millis(row.updated_at),
            consecutive_failures: 0,
            circuit: Circuit::Closed,
            last_response: None,
        })
    }

    pub(super) fn row_of(&self, endpoint: &Endpoint) -> Result<entity::ActiveModel> {
        let settings = &endpoint.settings;
        let retry = settings.retry_policy.as_ref().map(to_json).transpose()?;
        let rate = settings.rate_limit.as_ref();
        let disable = settings.disable_policy.as_ref().map(to_json).transpose()?;
        let mut row = entity::ActiveModel {
            id: Set(endpoint.id.uuid()),
            project_id: Set(endpoint.project.uuid()),
            uid: Set(settings.uid.clone()),
            name: Set(settings.name.clone()),
            url: Set(settings.url.clone()),
            description: Set(settings.description.clone()),
            owner_id: Set(settings.owner_id.clone()),
            labels: Set(to_json(&settings.labels)?),
            // 0: as the project says.
            http_timeout_ms: Set(settings.http_timeout.map(short_millis).unwrap_or_default()),
            retry_policy: Set(retry),
            headers_sealed: Set(self.seal_headers(endpoint.project, endpoint.id, &settings.headers)?),
            status: Set(endpoint.status.code()),
            status_reason: Set(endpoint.status_reason.clone()),
            status_changed_at: Set(endpoint.status_changed_at.as_millis()),
            version: Set(endpoint.version),
            revision: Set(endpoint.revision),
            created_at: Set(endpoint.created_at.as_millis()),
            updated_at: Set(endpoint.updated_at.as_millis()),
            disable_policy: Set(disable),
            max_in_flight: Set(settings.max_in_flight.into()),
            content_type: Set(settings.content_type.code()),
            rate_requests: Set(rate.map(|rate| i32::try_from(rate.requests).unwrap_or(i32::MAX))),
            rate_per_ms: Set(rate.map(|rate| i64::try_from(rate.per.as_millis()).unwrap_or(i64::MAX))),
            rate_burst: Set(rate.map(|rate| i32::try_from(rate.burst).unwrap_or(i32::MAX))),
            authentication_sealed: Set(self.seal_authentication(
                endpoint.project,
                endpoint.id,
                settings.authentication.as_ref(),
            )?),
            client_certificate_sealed: Set(self.seal_certificate(
                endpoint.project,
                endpoint.id,
                settings.client_certificate.as_ref(),
            )?),
            certificate_ends_at: Set(settings
                .client_certificate
                .as_ref()
                .map(|certificate| certificate.ends_at.as_millis())),
            authorities: Set(settings.authorities.clone()),
            credential_version: Set(endpoint.credential_version),
            signature: Set(Some(to_json(&settings.signature)?)),
            rotation_period_ms: Set(settings.rotation.period.map(in_millis)),
            rotation_grace_ms: Set(in_millis(settings.rotation.grace)),
            alerts_sealed: Set(self.seal_alerts(
                &place("alerts_sealed", endpoint.project, endpoint.id),
                settings.alerts.as_ref(),
            )?),
        };
        // What cannot be read stays as it is stored.
        for setting in &endpoint.unreadable {
            match setting {
                SealedSetting::Headers => row.headers_sealed = NotSet,
                SealedSetting::Authentication => row.authentication_sealed = NotSet,
                SealedSetting::Alerts => row.alerts_sealed = NotSet,
                SealedSetting::ClientCertificate => {
                    (row.client_certificate_sealed, row.certificate_ends_at) = (NotSet, NotSet);
                }
            }
        }
        Ok(row)
    }
}

/// What was sealed, or its absence where it cannot be read, which is noted.
fn opened<T: Default>(
    result: Result<T>,
    setting: SealedSetting,
    unreadable: &mut Vec<SealedSetting>,
) -> Result<T> {
    match result {
        Err(error) if error.is_unreadable() => {
            unreadable.push(setting);
            Ok(T::default())
        }
        result => result,
    }
}

fn long_millis(stored: i64) -> Duration {
    Duration::from_millis(u64::try_from(stored).unwrap_or_default())
}

pub(super) fn short_millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

fn in_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

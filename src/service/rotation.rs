//! Rotation: an endpoint gets a new secret, and the one before goes on signing until its grace ends.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

use super::secrets::{NewSecret, audit, check_fit};
use super::{Services, found};
use crate::domain::change::EndpointChangeKind;
use crate::domain::clock::Timestamp;
use crate::domain::endpoint::Endpoint;
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::principal::{Principal, Scope};
use crate::domain::rotation::{LIVE_MAX, REPLY_KEPT, SecretInfo, SecretState};
use crate::domain::secret::SigningSecret;
use crate::domain::signature::SignatureSettings;
use crate::store::{KeptReply, Lane, Tx};

/// A rotation to be made.
pub struct RotationRequest {
    pub endpoint: EndpointId,
    /// None: the endpoint's.
    pub grace: Option<Duration>,
    pub secret: NewSecret,
    /// The same request with the same id is carried out once.
    pub request: Option<Uuid>,
}

/// What a rotation made.
pub struct Rotation {
    pub secret: SecretInfo,
    pub value: SigningSecret,
    pub previous: SecretInfo,
    /// What to beware of.
    pub warning: Option<&'static str>,
}

/// Requests of one endpoint that are remembered at once.
const REQUESTS_MAX: i64 = 100;
/// Expired secrets of one endpoint that are kept, to be listed.
const EXPIRED_KEPT: u32 = 20;

impl Services {
    pub async fn rotate_secret(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        request: RotationRequest,
    ) -> Result<Rotation> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        let content_hash = self.content_hash(principal, &request)?;
        let mut tx = self.store.begin(Lane::Service).await?;
        // It waits for other rotations of the project, so that what is read after it is the newest.
        let version = tx.bump_routing(project).await?;
        let now = Timestamp::now();
        let endpoint = found(tx.endpoint(project, request.endpoint).await?, "endpoint", request.endpoint)?;
        let warning = warning(&endpoint);
        if let Some(id) = request.request
            && let Some(earlier) = tx.rotation_request(project, id, now).await?
        {
            if earlier.content_hash != content_hash {
                return Err(request_id_taken(id));
            }
            let KeptReply { secret, previous, value } = earlier.reply;
            // It shows a secret once more, so it is written down once more.
            audit(&tx, principal, project, "RotateSecret", None, &secret, Some("the first reply again"))
                .await?;
            self.commit_routes(tx, project, version).await?;
            let value = SigningSecret::parse(&value).map_err(Error::internal)?;
            return Ok(Rotation { secret, value, previous, warning });
        }
        let grace = request.grace.unwrap_or(endpoint.settings.rotation.grace);
        let rotation = rotate(&mut tx, &endpoint, grace, request.secret, now).await?;
        if let Some(id) = request.request {
            if tx.rotation_requests(endpoint.id, now).await? >= REQUESTS_MAX {
                let message = format!("{REQUESTS_MAX} rotations of it within a day are remembered already");
                return Err(Error::quota("ROTATION_REQUESTS", endpoint.id, message));
            }
            let reply = KeptReply {
                secret: rotation.secret.clone(),
                previous: rotation.previous.clone(),
                value: rotation.value.reveal(),
            };
            tx.keep_rotation_request(project, id, content_hash, &reply, now, REPLY_KEPT).await?;
        }
        let (before, after) = (&rotation.previous, &rotation.secret);
        audit(&tx, principal, project, "RotateSecret", Some(before), after, None).await?;
        self.commit_routes(tx, project, version).await?;
        self.rotations.notify_one();
        Ok(Rotation { warning, ..rotation })
    }

    /// What a request asks for and who asks. Keyed, because a secret that people chose could be guessed from a hash.
    fn content_hash(&self, principal: &Principal, request: &RotationRequest) -> Result<[u8; 32]> {
        let key = self.store.vault().derive("rotation requests")?;
        let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).map_err(Error::internal)?;
        mac.update(principal.key_id.uuid().as_bytes());
        mac.update(request.endpoint.uuid().as_bytes());
        mac.update(format!("{:?}", request.grace).as_bytes());
        match &request.secret {
            NewSecret::Given(secret) => mac.update(secret.reveal().as_bytes()),
            NewSecret::Make(kind) => mac.update(format!("{kind:?}").as_bytes()),
        }
        Ok(mac.finalize().into_bytes().into())
    }
}

/// Makes the new secret the endpoint's current one, in a transaction that holds the project's routing version.
pub(super) async fn rotate(
    tx: &mut Tx,
    endpoint: &Endpoint,
    grace: Duration,
    secret: NewSecret,
    now: Timestamp,
) -> Result<Rotation> {
    let secrets = tx.secrets_of(endpoint.project, endpoint.id).await?;
    let current = secrets.iter().find(|secret| secret.state(now) == SecretState::Current);
    let current = current.ok_or_else(|| Error::internal(anyhow::anyhow!("{} has no secret", endpoint.id)))?;
    let previous = SecretInfo { expires_at: Some(now.plus(grace)), ..current.clone() };
    let live = secrets.iter().filter(|secret| secret.id != current.id && secret.is_live(now)).count();
    if live + usize::from(previous.is_live(now)) >= LIVE_MAX {
        return Err(too_many(endpoint.id));
    }
    let value = secret.or_make(current.kind);
    check_fit(&endpoint.settings.signature, &value)?;
    tx.retire_secret(endpoint.id, current.id, now.plus(grace)).await?;
    let id = tx.insert_secret(endpoint.project, endpoint.id, &value, now).await?;
    tx.forget_expired_secrets(endpoint.id, now, EXPIRED_KEPT).await?;
    let due = endpoint.settings.rotation.period.map(|period| now.plus(period));
    tx.set_rotation_due(endpoint.id, due).await?;
    // What others are told of it: Watch, and whoever alerts, by the same record.
    let told = Endpoint { updated_at: now, ..endpoint.clone() };
    tx.update_endpoint(EndpointChangeKind::SecretRotated, &told).await?;
    let secret = SecretInfo {
        id,
        endpoint: endpoint.id,
        kind: value.kind(),
        public_key: value.public_key().map(|key| key.to_string()),
        created_at: now,
        expires_at: None,
    };
    Ok(Rotation { secret, value, previous, warning: None })
}

fn warning(endpoint: &Endpoint) -> Option<&'static str> {
    matches!(endpoint.settings.signature, SignatureSettings::Simple(_)).then_some(
        "SIMPLE signs by the newest secret only: receivers that do not have it refuse deliveries from now on",
    )
}

pub(super) const TOO_MANY: &str = "TOO_MANY_SECRETS";

fn too_many(endpoint: EndpointId) -> Error {
    let message = format!("{LIVE_MAX} secrets of it are live already; expire one first");
    Error::new(ErrorKind::FailedPrecondition, TOO_MANY, message).about("endpoint", endpoint)
}

fn request_id_taken(request: Uuid) -> Error {
    let message = "this request_id was used within 24 h for another request, or by another key";
    Error::new(ErrorKind::AlreadyExists, "REQUEST_ID_TAKEN", message).about("request", request)
}

//! The life of an endpoint's secrets: one is current, those before it retire, and end.

use std::time::Duration;

use super::clock::{Timestamp, spoken};
use super::error::{Error, Result};
use super::id::{EndpointId, SecretId};
use super::secret::SecretKind;
use super::signature::SignatureSettings;

/// Secrets of one endpoint that sign at once.
pub const LIVE_MAX: usize = 5;
/// For how long the secret before goes on signing, where nobody says.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
pub const GRACE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often a secret may rotate by itself.
pub const PERIOD_MIN: Duration = Duration::from_secs(7 * 24 * 3600);
pub const PERIOD_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// For how long the reply of a rotation is kept for who repeats the request.
pub const REPLY_KEPT: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretState {
    Current,
    Retiring,
    Expired,
}

/// A secret as it may be shown: without its value.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SecretInfo {
    pub id: SecretId,
    pub endpoint: EndpointId,
    pub kind: SecretKind,
    /// Of an ed25519 key, in its text form.
    pub public_key: Option<String>,
    pub created_at: Timestamp,
    /// None: it is the current one.
    pub expires_at: Option<Timestamp>,
}

impl SecretInfo {
    pub fn state(&self, now: Timestamp) -> SecretState {
        match self.expires_at {
            None => SecretState::Current,
            Some(end) if now < end => SecretState::Retiring,
            Some(_) => SecretState::Expired,
        }
    }

    pub fn is_live(&self, now: Timestamp) -> bool {
        self.state(now) != SecretState::Expired
    }
}

/// When an endpoint's secret rotates by itself, and for how long the one before goes on signing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RotationSettings {
    /// None: only by hand.
    pub period: Option<Duration>,
    pub grace: Duration,
}

impl Default for RotationSettings {
    fn default() -> Self {
        Self { period: None, grace: GRACE }
    }
}

impl RotationSettings {
    /// Whether an endpoint may say so. `period_min` is the server's.
    pub fn check(&self, signature: &SignatureSettings, period_min: Duration) -> Result<()> {
        if self.grace > GRACE_MAX {
            return Err(Error::invalid("endpoint.rotation_grace", "must be 0 s to 30 d"));
        }
        let Some(period) = self.period else { return Ok(()) };
        let refuse = |why: String| Err(Error::invalid("endpoint.rotation_period", why));
        if !(period_min..=PERIOD_MAX).contains(&period) {
            return refuse(format!("must be {} to 365 d", spoken(period_min)));
        }
        // More would be live at once than may be.
        if self.grace > period * (LIVE_MAX as u32 - 1) {
            return refuse("must be at least a quarter of rotation_grace".to_owned());
        }
        if matches!(signature, SignatureSettings::Simple(_)) {
            return refuse(
                "is not for SIMPLE signatures: receivers would be cut off at each rotation".to_owned(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn rotations_by_themselves_never_meet_the_limit() {
        for period_days in 7..=365 {
            let period = DAY * period_days;
            for grace in [Duration::ZERO, DAY, GRACE_MAX, period * 4, period * 4 + DAY] {
                let settings = RotationSettings { period: Some(period), grace };
                // Live right after any rotation: the new one, and each before it whose grace is not over.
                let retiring = (0..).take_while(|before| period * *before < grace).count();
                let fits = retiring < LIVE_MAX && grace <= GRACE_MAX;
                let checked = settings.check(&SignatureSettings::Standard, PERIOD_MIN);
                assert_eq!(checked.is_ok(), fits, "{period_days} d, {grace:?}");
            }
        }
    }

    #[test]
    fn the_server_says_how_short_a_period_may_be() {
        let check = |period, min| {
            let (period, grace) = (Some(Duration::from_secs(period)), Duration::from_secs(1));
            RotationSettings { period, grace }.check(&SignatureSettings::Standard, min)
        };
        assert!(check(3, PERIOD_MIN).is_err());
        assert!(check(3, Duration::from_secs(3)).is_ok());
        assert!(check(366 * 24 * 3600, PERIOD_MIN).is_err());
    }

    #[test]
    fn a_secret_ends_at_its_time() {
        let at = Timestamp::from_millis(1000);
        let mut secret = SecretInfo {
            id: SecretId::new(),
            endpoint: EndpointId::new(),
            kind: SecretKind::Hmac,
            public_key: None,
            created_at: at,
            expires_at: None,
        };
        assert_eq!(secret.state(at), SecretState::Current);
        secret.expires_at = Some(at);
        assert_eq!(secret.state(Timestamp::from_millis(999)), SecretState::Retiring);
        assert_eq!(secret.state(at), SecretState::Expired);
    }
}

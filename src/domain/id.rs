//! Typed ids: UUIDv7 inside, TypeID text outside (`ep_01h2…`), so they sort by creation time.
//!
//! The text form is the TypeID specification's: a prefix, `_`, and the 128 bits as 26 characters of
//! Crockford's base32 in lower case, most significant first (the first character is at most `7`).

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ENCODED_LEN: usize = 26;

/// Why a text is not an id of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not an id of the form {prefix}_ and 26 characters")]
pub struct InvalidId {
    prefix: &'static str,
}

fn encode(uuid: Uuid) -> [u8; ENCODED_LEN] {
    let mut bits = uuid.as_u128();
    let mut text = [0; ENCODED_LEN];
    for place in text.iter_mut().rev() {
        *place = ALPHABET[(bits & 31) as usize];
        bits >>= 5;
    }
    text
}

fn decode(text: &str) -> Option<Uuid> {
    let text = text.as_bytes();
    if text.len() != ENCODED_LEN || text[0] > b'7' {
        return None;
    }
    let mut bits: u128 = 0;
    for byte in text {
        let digit = ALPHABET.iter().position(|letter| letter == byte)?;
        bits = (bits << 5) | digit as u128;
    }
    Some(Uuid::from_u128(bits))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            /// A fresh id that carries the present millisecond.
            #[allow(clippy::new_without_default)] // a default id would be a surprise
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = encode(self.0);
                f.write_str(concat!($prefix, "_"))?;
                f.write_str(std::str::from_utf8(&text).unwrap_or_default())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                text.strip_prefix(concat!($prefix, "_"))
                    .and_then(decode)
                    .map(Self)
                    .ok_or(InvalidId { prefix: $prefix })
            }
        }
    };
}

id!(
    /// A project, the tenant.
    ProjectId,
    "prj"
);
id!(
    /// An API key (not its secret).
    KeyId,
    "key"
);
id!(
    /// A customer's endpoint.
    EndpointId,
    "ep"
);
id!(
    /// A signing secret of an endpoint (not its value).
    SecretId,
    "sec"
);
id!(
    /// A subscription of an endpoint to event types.
    SubscriptionId,
    "sub"
);
id!(
    /// A published event; also the `webhook-id` of all its deliveries.
    EventId,
    "evt"
);
id!(
    /// One event on its way to one endpoint.
    DeliveryId,
    "dlv"
);
id!(
    /// One HTTP request made for a delivery.
    AttemptId,
    "att"
);
id!(
    /// An entry of the audit log.
    AuditId,
    "aud"
);
id!(
    /// A running process's lease, under which it holds claims.
    LeaseId,
    "lse"
);
id!(
    /// A ping, as its `webhook-id`.
    PingId,
    "ping"
);
id!(
    /// One alert on its way by one channel: its `webhook-id`, and its mail's Message-ID.
    AlertId,
    "alr"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_the_typeid_of_the_uuid() {
        // The example of the TypeID specification.
        let uuid = Uuid::from_u128(0x0188_9c89_df6b_7f1c_a388_9139_6ec3_14bc);
        let id = EndpointId::from_uuid(uuid);
        assert_eq!(id.to_string(), "ep_01h2e8kqvbfwea724h75qc655w");
        assert_eq!("ep_01h2e8kqvbfwea724h75qc655w".parse(), Ok(id));
    }

    #[test]
    fn refuses_other_kinds_lengths_letters_and_overflow() {
        for text in [
            "",
            "ep_",
            "evt_01h2e8kqvbfwea724h75qc655w",
            "01h2e8kqvbfwea724h75qc655w",
            "ep_01h2e8kqvbfwea724h75qc655",
            "ep_01h2e8kqvbfwea724h75qc655ww",
            "ep_01H2e8kqvbfwea724h75qc655w",
            "ep_01h2e8kqvbfwea724h75qc65uw",
            "ep_81h2e8kqvbfwea724h75qc655w",
        ] {
            assert!(text.parse::<EndpointId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ids_sort_by_creation() {
        let ids: Vec<_> = (0..1000).map(|_| EventId::new()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(ids.windows(2).all(|pair| pair[0].to_string() < pair[1].to_string()));
    }
}

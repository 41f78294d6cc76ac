//! Signing deliveries by Standard Webhooks (standardwebhooks.com, version 1.0.0).
//!
//! The signed text is `id.timestamp.body`. Each live secret adds one `v1,<base64 HMAC-SHA256>`, newest
//! first, joined by spaces, so that receivers holding any one of them accept the delivery.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::clock::Timestamp;
use super::secret::LiveSecret;

/// The value of `webhook-signature`. `secrets` are newest first; expired ones are passed over.
pub fn standard(secrets: &[LiveSecret], id: &str, at: Timestamp, body: &[u8]) -> String {
    let prefix = format!("{id}.{}.", at.as_secs());
    let mut header = String::with_capacity(48 * secrets.len());
    for live in secrets.iter().filter(|live| live.is_live(at)) {
        // HMAC takes keys of every length (RFC 2104), so this cannot fail.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(live.secret.key()) else { continue };
        mac.update(prefix.as_bytes());
        mac.update(body);
        if !header.is_empty() {
            header.push(' ');
        }
        header.push_str("v1,");
        STANDARD.encode_string(mac.finalize().into_bytes(), &mut header);
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::SecretId;
    use crate::domain::secret::SigningSecret;

    fn live(text: &str, expires_at: Option<i64>) -> LiveSecret {
        LiveSecret {
            id: SecretId::new(),
            secret: SigningSecret::parse(text).expect("valid"),
            expires_at: expires_at.map(Timestamp::from_millis),
        }
    }

    const A: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const B: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const AT: Timestamp = Timestamp::from_millis(1_614_265_330_000);

    #[test]
    fn known_answer_of_the_specification() {
        let header =
            standard(&[live(A, None)], "msg_p5jXN8AQM9LWM0D4loKWxJek", AT, b"{\"test\": 2432232314}");
        assert_eq!(header, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn the_official_library_accepts_every_live_secret() {
        let id = "evt_01h2e8kqvbfwea724h75qc655w";
        let body = "{ \"a\":1, \"a\" : 1152921504606846976 }\r\n é".as_bytes();
        let now = Timestamp::now();
        let header = standard(&[live(A, None), live(B, Some(now.as_millis() + 60_000))], id, now, body);
        assert_eq!(header.split(' ').count(), 2);
        for secret in [A, B] {
            let mut headers = http::HeaderMap::new();
            headers.insert("webhook-id", id.parse().expect("ascii"));
            headers.insert("webhook-timestamp", now.as_secs().into());
            headers.insert("webhook-signature", header.parse().expect("ascii"));
            let verifier = standardwebhooks::Webhook::new(secret).expect("valid");
            verifier.verify(body, &headers).expect("accepted");
        }
    }

    #[test]
    fn an_expired_secret_signs_no_more() {
        let one = standard(&[live(A, None), live(B, Some(AT.as_millis()))], "evt_x", AT, b"");
        assert_eq!(one, standard(&[live(A, None)], "evt_x", AT, b""));
    }
}

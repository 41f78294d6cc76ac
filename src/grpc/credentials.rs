//! An endpoint's credentials as messages: taken in with their secrets, given out without.

use super::check::Check;
use super::{convert, pb};
use crate::domain::clock::Timestamp;
use crate::domain::credentials::{AuthMethod, Authentication, ClientCertificate};
use crate::domain::secret::SecretText;
use crate::service::REDACTED;

pub fn authentication(check: &mut Check, message: Option<pb::Authentication>) -> Option<Authentication> {
    use pb::authentication::Method;
    let (method, secret) = match message?.method {
        Some(Method::ApiKey(key)) => (AuthMethod::ApiKey { header_name: key.header_name }, key.header_value),
        Some(Method::BasicAuth(basic)) => {
            (AuthMethod::BasicAuth { username: basic.username }, basic.password)
        }
        None => {
            check.refuse("endpoint.authentication", "must say a method");
            return None;
        }
    };
    Some(Authentication { method, secret: SecretText::new(secret) })
}

pub fn authentication_message(authentication: Authentication) -> pb::Authentication {
    use pb::authentication::Method;
    let method = match authentication.method {
        AuthMethod::ApiKey { header_name } => {
            Method::ApiKey(pb::ApiKeyAuth { header_name, header_value: REDACTED.to_owned() })
        }
        AuthMethod::BasicAuth { username } => {
            Method::BasicAuth(pb::BasicAuth { username, password: REDACTED.to_owned() })
        }
    };
    pb::Authentication { method: Some(method) }
}

/// As it was given; the service reads what it says.
pub fn client_certificate(message: pb::MtlsClientCert) -> ClientCertificate {
    ClientCertificate {
        subject: String::new(),
        issuer: String::new(),
        fingerprint: String::new(),
        ends_at: Timestamp::from_millis(0),
        chain: message.certificate_chain,
        key: SecretText::new(message.private_key),
    }
}

pub fn client_certificate_message(certificate: ClientCertificate) -> pb::MtlsClientCert {
    pb::MtlsClientCert {
        certificate_chain: String::new(),
        private_key: String::new(),
        subject: certificate.subject,
        issuer: certificate.issuer,
        sha256_fingerprint: certificate.fingerprint,
        not_after_time: Some(convert::time(certificate.ends_at)),
    }
}

//! An endpoint's credentials as messages: taken in with their secrets, given out without.

use super::check::Check;
use super::{convert, pb};
use crate::domain::clock::Timestamp;
use crate::domain::credentials::{
    AuthMethod, Authentication, ClientCertificate, ClientProof, LifeUnit, OAuth2, TokenFields,
};
use crate::domain::secret::SecretText;
use crate::service::REDACTED;

pub fn authentication(check: &mut Check, message: Option<pb::Authentication>) -> Option<Authentication> {
    use pb::authentication::Method;
    let (method, secret) = match message?.method {
        Some(Method::ApiKey(key)) => (AuthMethod::ApiKey { header_name: key.header_name }, key.header_value),
        Some(Method::BasicAuth(basic)) => {
            (AuthMethod::BasicAuth { username: basic.username }, basic.password)
        }
        Some(Method::Oauth2(oauth2)) => return self::oauth2(check, "endpoint.authentication.oauth2", oauth2),
        None => {
            check.refuse("endpoint.authentication", "must say a method");
            return None;
        }
    };
    Some(Authentication { method, secret: SecretText::new(secret) })
}

/// `place` is where in the request it stands.
pub fn oauth2(check: &mut Check, place: &str, message: pb::OAuth2) -> Option<Authentication> {
    use pb::o_auth2::Client;
    let (client, secret) = match message.client {
        Some(Client::SharedSecret(shared)) => {
            (ClientProof::SharedSecret { in_header: shared.http_basic }, shared.client_secret)
        }
        Some(Client::ClientAssertion(assertion)) => {
            let pb::ClientAssertion { private_jwk, issuer, subject, audience, key_id: _ } = assertion;
            (ClientProof::Assertion { key_id: String::new(), issuer, subject, audience }, private_jwk)
        }
        None => {
            check.refuse(place, "must say how the client proves itself");
            return None;
        }
    };
    let fields = message.fields.unwrap_or_default();
    let unit = match pb::ExpiresInUnit::try_from(fields.expires_in_unit) {
        Ok(pb::ExpiresInUnit::Milliseconds) => LifeUnit::Milliseconds,
        Ok(pb::ExpiresInUnit::Unspecified | pb::ExpiresInUnit::Seconds) => LifeUnit::Seconds,
        Ok(pb::ExpiresInUnit::Minutes) => LifeUnit::Minutes,
        Ok(pb::ExpiresInUnit::Hours) => LifeUnit::Hours,
        Err(_) => {
            check.refuse(format!("{place}.fields.expires_in_unit"), "is not a known unit");
            LifeUnit::Seconds
        }
    };
    let pb::TokenFields { access_token, token_type, expires_in, .. } = fields;
    let oauth2 = OAuth2 {
        token_url: message.token_url,
        client_id: message.client_id,
        scope: message.scope,
        audience: message.audience,
        client,
        fields: TokenFields { access_token, token_type, expires_in, unit },
    };
    let method = AuthMethod::OAuth2(Box::new(oauth2));
    Some(Authentication { method, secret: SecretText::new(secret) })
}

fn oauth2_message(oauth2: OAuth2) -> pb::OAuth2 {
    use pb::o_auth2::Client;
    let client = match oauth2.client {
        ClientProof::SharedSecret { in_header } => Client::SharedSecret(pb::SharedSecret {
            client_secret: REDACTED.to_owned(),
            http_basic: in_header,
        }),
        ClientProof::Assertion { key_id, issuer, subject, audience } => {
            let private_jwk = REDACTED.to_owned();
            Client::ClientAssertion(pb::ClientAssertion { private_jwk, issuer, subject, audience, key_id })
        }
    };
    let TokenFields { access_token, token_type, expires_in, unit } = oauth2.fields.clone();
    let unit = match unit {
        LifeUnit::Milliseconds => pb::ExpiresInUnit::Milliseconds,
        LifeUnit::Seconds => pb::ExpiresInUnit::Seconds,
        LifeUnit::Minutes => pb::ExpiresInUnit::Minutes,
        LifeUnit::Hours => pb::ExpiresInUnit::Hours,
    };
    let is_usual = oauth2.fields == TokenFields::default();
    pb::OAuth2 {
        token_url: oauth2.token_url,
        client_id: oauth2.client_id,
        scope: oauth2.scope,
        audience: oauth2.audience,
        client: Some(client),
        fields: (!is_usual).then(|| pb::TokenFields {
            access_token,
            token_type,
            expires_in,
            expires_in_unit: unit.into(),
        }),
    }
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
        AuthMethod::OAuth2(oauth2) => Method::Oauth2(oauth2_message(*oauth2)),
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

//! Rules for an endpoint's credentials, and keeping what was shown without its secret.

use super::endpoints::{EndpointField, REDACTED};
use super::headers;
use crate::dispatch::assertion::SigningKey;
use crate::dispatch::identity::{self, InvalidIdentity};
use crate::domain::credentials::{AuthMethod, Authentication, ClientProof, OAuth2};
use crate::domain::endpoint::EndpointSettings;
use crate::domain::error::{Error, Result};
use crate::domain::secret::SecretText;
use crate::domain::url_rules::UrlRules;

const USERNAME_MAX: usize = 256;
const PASSWORD_MAX: usize = 1024;
const SECRET_MAX: usize = 4096;
const FIELD_MAX: usize = 128;

/// Checks what is set, and reads the client certificate for what is shown of it. A certificate or a method that is stored
/// already is not checked again: it may have expired meanwhile, or break rules that came later, and other settings can be
/// changed all the same.
pub fn check(
    settings: &mut EndpointSettings,
    stored: Option<&EndpointSettings>,
    rules: &UrlRules,
) -> Result<()> {
    if let Some(authentication) = &mut settings.authentication {
        keep_key_id(authentication, stored.and_then(|stored| stored.authentication.as_ref()));
        if stored.is_none_or(|stored| stored.authentication.as_ref() != Some(&*authentication)) {
            check_method("endpoint.authentication", authentication, rules)?;
        }
        if settings.headers.iter().any(|header| header.name == authentication.header_name()) {
            let field = format!("endpoint.headers[{:?}]", authentication.header_name());
            return Err(Error::invalid(field, "is the header that the endpoint's authentication sets"));
        }
    }
    let unchanged = stored.is_some_and(|stored| stored.client_certificate == settings.client_certificate);
    if !unchanged && let Some(own) = settings.client_certificate.take() {
        settings.client_certificate =
            Some(identity::client_certificate(own.chain, own.key).map_err(|invalid| match invalid {
                InvalidIdentity::Chain(why) => Error::invalid(CHAIN, why),
                InvalidIdentity::Key(why) => Error::invalid(KEY, why),
            })?);
    }
    match &settings.authorities {
        Some(pem) => identity::authorities(pem).map_err(|why| Error::invalid("endpoint.ca_certificate", why)),
        None => Ok(()),
    }
}

/// A key's id is read from the key, and so it is the same where the key is.
fn keep_key_id(new: &mut Authentication, stored: Option<&Authentication>) {
    let Some(stored) = stored.filter(|stored| stored.secret == new.secret) else { return };
    if let (AuthMethod::OAuth2(new), AuthMethod::OAuth2(stored)) = (&mut new.method, &stored.method)
        && let (ClientProof::Assertion { key_id, .. }, ClientProof::Assertion { key_id: known, .. }) =
            (&mut new.client, &stored.client)
    {
        key_id.clone_from(known);
    }
}

const CHAIN: &str = "endpoint.mtls_client_cert.certificate_chain";
const KEY: &str = "endpoint.mtls_client_cert.private_key";

/// `place` is where in the request the method stands, such as `endpoint.authentication`; OAuth2 alone may be the request's
/// own field, where it is empty.
pub fn check_method(place: &str, authentication: &mut Authentication, rules: &UrlRules) -> Result<()> {
    let path = |field: &str| match place {
        "" => field.to_owned(),
        place => format!("{place}.{field}"),
    };
    let invalid = |field: &str, rule: &str| Err(Error::invalid(path(field), rule));
    let secret = authentication.secret.expose();
    if secret == REDACTED {
        let field = match authentication.method {
            AuthMethod::ApiKey { .. } => "api_key.header_value",
            AuthMethod::BasicAuth { .. } => "basic_auth.password",
            AuthMethod::OAuth2(_) => "oauth2",
        };
        return invalid(field, "is redacted, and there is no stored one to keep; give the secret");
    }
    match &mut authentication.method {
        AuthMethod::ApiKey { header_name } => {
            *header_name = headers::check_name(&path("api_key.header_name"), header_name)?;
            headers::check_value(&path("api_key.header_value"), secret)?;
            if secret.is_empty() {
                return invalid("api_key.header_value", "is required");
            }
        }
        AuthMethod::BasicAuth { username } => {
            let rule = |text: &str, most: usize| text.len() <= most && !text.chars().any(char::is_control);
            if username.is_empty() || !rule(username, USERNAME_MAX) || username.contains(':') {
                let rule = "must have 1 to 256 bytes, without a colon and control characters";
                return invalid("basic_auth.username", rule);
            }
            if !rule(secret, PASSWORD_MAX) {
                let rule = "must have at most 1,024 bytes, without control characters";
                return invalid("basic_auth.password", rule);
            }
        }
        AuthMethod::OAuth2(oauth2) => check_oauth2(&path("oauth2"), oauth2, &authentication.secret, rules)?,
    }
    Ok(())
}

fn check_oauth2(place: &str, oauth2: &mut OAuth2, secret: &SecretText, rules: &UrlRules) -> Result<()> {
    let invalid = |field: &str, rule: &str| Err(Error::invalid(format!("{place}.{field}"), rule));
    match rules.parse(&oauth2.token_url) {
        Ok(url) => oauth2.token_url = url.to_string(),
        Err(error) => return invalid("token_url", &error.to_string()),
    }
    if oauth2.client_id.is_empty() {
        return invalid("client_id", "is required");
    }
    let fields = &oauth2.fields;
    for (name, value, most) in [
        ("client_id", &oauth2.client_id, USERNAME_MAX),
        ("scope", &oauth2.scope, PASSWORD_MAX),
        ("audience", &oauth2.audience, PASSWORD_MAX),
        ("fields.access_token", &fields.access_token, FIELD_MAX),
        ("fields.token_type", &fields.token_type, FIELD_MAX),
        ("fields.expires_in", &fields.expires_in, FIELD_MAX),
    ] {
        if value.len() > most || value.chars().any(char::is_control) {
            return invalid(name, &format!("must have at most {most} bytes, without control characters"));
        }
    }
    match &mut oauth2.client {
        ClientProof::SharedSecret { .. } => {
            let text = secret.expose();
            if text.is_empty() || text.len() > SECRET_MAX || text.chars().any(char::is_control) {
                let rule = "must have 1 to 4,096 bytes, without control characters";
                return invalid("shared_secret.client_secret", rule);
            }
        }
        ClientProof::Assertion { key_id, issuer, subject, audience } => {
            match SigningKey::parse(secret) {
                Ok(key) => *key_id = key.id,
                Err(rule) => return invalid("client_assertion.private_jwk", rule),
            }
            for (name, value) in [("issuer", issuer), ("subject", subject), ("audience", audience)] {
                if value.len() > PASSWORD_MAX || value.chars().any(char::is_control) {
                    let rule = "must have at most 1,024 bytes, without control characters";
                    return invalid(&format!("client_assertion.{name}"), rule);
                }
            }
        }
    }
    Ok(())
}

/// What was shown without its secret and comes back so is what is stored.
pub fn keep_stored(
    new: &mut EndpointSettings,
    stored: &EndpointSettings,
    fields: &[EndpointField],
) -> Result<()> {
    if let (Some(authentication), Some(stored)) = (&mut new.authentication, &stored.authentication)
        && authentication.secret.expose() == REDACTED
    {
        authentication.keep_secret_of(stored);
    }
    if let Some(own) = &mut new.client_certificate
        && fields.contains(&EndpointField::ClientCertificate)
        && own.chain.is_empty()
        && own.key == SecretText::default()
    {
        match &stored.client_certificate {
            Some(stored) => own.clone_from(stored),
            None => return Err(Error::invalid(CHAIN, "is required")),
        }
    }
    Ok(())
}

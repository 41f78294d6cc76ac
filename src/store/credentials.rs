//! Credentials of endpoints at rest: each sealed as a whole, with what is shown of it. And whom alerts go to, because
//! some of those URLs are credentials too.

use std::borrow::Cow;

use zeroize::Zeroizing;

use super::Store;
use super::db::Row;
use super::error::{Result, StoreError};
use super::vault::Place;
use crate::domain::alert::{AlertSettings, SecretUrl};
use crate::domain::credentials::{AuthMethod, Authentication, ClientCertificate, Credentials};
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::secret::SecretText;
use crate::domain::subscription::EventTypePattern;
use crate::domain::url_rules::UrlRules;

#[derive(serde::Serialize, serde::Deserialize)]
struct SealedAuthentication<'a> {
    method: Cow<'a, AuthMethod>,
    secret: Cow<'a, str>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct SealedCertificate<'a> {
    shown: Cow<'a, ClientCertificate>,
    chain: Cow<'a, str>,
    key: Cow<'a, str>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct SealedAlerts<'a> {
    emails: Cow<'a, [String]>,
    slack: Option<Cow<'a, str>>,
    teams: Option<Cow<'a, str>>,
    on: Cow<'a, [EventTypePattern]>,
}

impl Store {
    /// Of an endpoint or of a project.
    pub(super) fn seal_alerts(
        &self,
        place: &Place,
        alerts: Option<&AlertSettings>,
    ) -> Result<Option<Vec<u8>>> {
        let Some(AlertSettings { emails, slack, teams, on }) = alerts else { return Ok(None) };
        let value = SealedAlerts {
            emails: Cow::Borrowed(emails),
            slack: slack.as_ref().map(|url| Cow::Borrowed(url.text.expose())),
            teams: teams.as_ref().map(|url| Cow::Borrowed(url.text.expose())),
            on: Cow::Borrowed(on),
        };
        self.seal_json(place, &value).map(Some)
    }

    pub(super) fn open_alerts(
        &self,
        place: &Place,
        sealed: Option<Vec<u8>>,
    ) -> Result<Option<AlertSettings>> {
        let Some(sealed) = sealed else { return Ok(None) };
        let json = self.vault().open(place, &sealed)?;
        let SealedAlerts { emails, slack, teams, on } = read("alerts", json.expose())?;
        Ok(Some(AlertSettings {
            emails: emails.into_owned(),
            slack: slack.map(SecretUrl::new),
            teams: teams.map(SecretUrl::new),
            on: on.into_owned(),
        }))
    }

    pub(super) fn seal_authentication(
        &self,
        project: ProjectId,
        endpoint: EndpointId,
        authentication: Option<&Authentication>,
    ) -> Result<Option<Vec<u8>>> {
        let Some(Authentication { method, secret }) = authentication else { return Ok(None) };
        let value =
            SealedAuthentication { method: Cow::Borrowed(method), secret: Cow::Borrowed(secret.expose()) };
        self.seal_json(&place("authentication_sealed", project, endpoint), &value).map(Some)
    }

    pub(super) fn open_authentication(
        &self,
        project: ProjectId,
        endpoint: EndpointId,
        sealed: Option<Vec<u8>>,
    ) -> Result<Option<Authentication>> {
        let Some(sealed) = sealed else { return Ok(None) };
        let json = self.vault().open(&place("authentication_sealed", project, endpoint), &sealed)?;
        let SealedAuthentication { method, secret } = read("authentication", json.expose())?;
        Ok(Some(Authentication { method: method.into_owned(), secret: SecretText::new(secret) }))
    }

    pub(super) fn seal_certificate(
        &self,
        project: ProjectId,
        endpoint: EndpointId,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Option<Vec<u8>>> {
        let Some(certificate) = certificate else { return Ok(None) };
        let value = SealedCertificate {
            shown: Cow::Borrowed(certificate),
            chain: Cow::Borrowed(&certificate.chain),
            key: Cow::Borrowed(certificate.key.expose()),
        };
        self.seal_json(&place("client_certificate_sealed", project, endpoint), &value).map(Some)
    }

    pub(super) fn open_certificate(
        &self,
        project: ProjectId,
        endpoint: EndpointId,
        sealed: Option<Vec<u8>>,
    ) -> Result<Option<ClientCertificate>> {
        let Some(sealed) = sealed else { return Ok(None) };
        let json = self.vault().open(&place("client_certificate_sealed", project, endpoint), &sealed)?;
        let SealedCertificate { shown, chain, key } = read("client certificate", json.expose())?;
        let key = SecretText::new(key);
        Ok(Some(ClientCertificate { chain: chain.into_owned(), key, ..shown.into_owned() }))
    }

    /// Those of an endpoint whose `authentication_sealed`, `client_certificate_sealed`, `authorities` and `credential_version` a
    /// row has from column `at` on; none where it has none.
    pub(super) fn credentials_of(
        &self,
        project: ProjectId,
        endpoint: EndpointId,
        row: &Row,
        at: usize,
        rules: &UrlRules,
    ) -> Result<Option<Credentials>> {
        let authentication = self.open_authentication(project, endpoint, row.try_get_by_index(at)?)?;
        let client_certificate = self.open_certificate(project, endpoint, row.try_get_by_index(at + 1)?)?;
        let authorities: Option<String> = row.try_get_by_index(at + 2)?;
        if authentication.is_none() && client_certificate.is_none() && authorities.is_none() {
            return Ok(None);
        }
        let version = row.try_get_by_index(at + 3)?;
        let token_url = match &authentication {
            Some(Authentication { method: AuthMethod::OAuth2(oauth2), .. }) => {
                rules.parse(&oauth2.token_url).ok()
            }
            _ => None,
        };
        Ok(Some(Credentials { version, authentication, client_certificate, authorities, token_url }))
    }

    pub(super) fn seal_json<T: serde::Serialize>(&self, place: &Place, value: &T) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(value)
            .map(Zeroizing::new)
            .map_err(|error| StoreError::Corrupt(format!("{}: {error}", place.column)))?;
        self.vault().seal(place, &json)
    }
}

/// What fails to parse is told by its place only: serde's message might quote it.
pub(super) fn read<'a, T: serde::Deserialize<'a>>(what: &str, json: &'a [u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| {
        StoreError::Corrupt(format!("{what}, at line {} column {}", error.line(), error.column()))
    })
}

pub(super) fn place(column: &'static str, project: ProjectId, endpoint: EndpointId) -> Place {
    Place { table: "endpoints", column, row: endpoint.uuid(), project: Some(project) }
}

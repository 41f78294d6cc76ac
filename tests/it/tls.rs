//! The server's own TLS: handshakes in time, certificates of clients, a new certificate without a restart, customers'
//! connections as well as services'.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use hawser_client::{Client, Key, pb};
use http::{Request, StatusCode};
use http_body_util::Full;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use sqlx::Row;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::web::send_on;
use crate::support::{Database, PATIENCE, Server};

/// A CA of the test's own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for this name, and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.signed_by(&key, &self.0).expect("a certificate").pem(), key.serialize_pem())
    }

    fn write(&self, folder: &Path) {
        let (certificate, key) = self.issue("127.0.0.1");
        std::fs::write(folder.join("server.pem"), certificate).expect("written");
        std::fs::write(folder.join("server.key"), key).expect("written");
    }
}

fn arguments(folder: &Path, more: &[&str]) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    let mut all =
        vec!["--tls-cert".to_owned(), path("server.pem"), "--tls-key".to_owned(), path("server.key")];
    all.extend(more.iter().map(|text| (*text).to_owned()));
    all
}

async fn start(database: Database, folder: &Path, more: &[&str]) -> Server {
    let arguments = arguments(folder, more);
    Server::start_with(database, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
}

async fn connect(server: &Server, tls: ClientTlsConfig) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("https://{}", server.authority())).expect("a URL");
    endpoint.tls_config(tls.domain_name("127.0.0.1"))?.connect().await
}

fn trusting(authority: &Authority) -> ClientTlsConfig {
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem()))
}

async fn healthy(channel: Channel) -> bool {
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_read_on_hangup() {
    let folder = tempfile::tempdir().expect("a folder");
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    old.write(folder.path());
    let server = start(Database::sqlite(), folder.path(), &[]).await;
    let kept = connect(&server, trusting(&old)).await.expect("trusted");
    assert!(healthy(kept.clone()).await);
    assert!(connect(&server, trusting(&new)).await.is_err(), "the new CA has signed nothing yet");

    // What does not fit is not taken.
    std::fs::write(folder.path().join("server.key"), new.issue("127.0.0.1").1).expect("written");
    server.signal("HUP").await;
    let refused = async {
        while !server.log().contains("the old one stays") {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("refused");
    assert!(healthy(connect(&server, trusting(&old)).await.expect("still trusted")).await);

    new.write(folder.path());
    server.signal("HUP").await;
    let renewed = async {
        loop {
            if let Ok(channel) = connect(&server, trusting(&new)).await {
                return channel;
            }
        }
    };
    let channel = tokio::time::timeout(PATIENCE, renewed).await.expect("the new certificate is in use");
    assert!(healthy(channel).await);
    assert!(connect(&server, trusting(&old)).await.is_err(), "the old one is not");
    assert!(healthy(kept).await, "an open connection goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_shows_its_certificate_and_the_audit_log_its_fingerprint() {
    let folder = tempfile::tempdir().expect("a folder");
    let (authority, stranger) = (Authority::new("ours"), Authority::new("a stranger"));
    authority.write(folder.path());
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).expect("written");
    let more = ["--tls-client-ca", ca.to_str().expect("UTF-8")];
    let mut server = start(Database::postgres().await, folder.path(), &more).await;
    let known = |authority: &Authority| {
        let (certificate, key) = authority.issue("client");
        Identity::from_pem(certificate, key)
    };
    for tls in [trusting(&authority), trusting(&authority).identity(known(&stranger))] {
        // In TLS 1.3 the client learns of the refusal with its first call.
        if let Ok(channel) = connect(&server, tls).await {
            assert!(!healthy(channel).await);
        }
    }
    let channel = connect(&server, trusting(&authority).identity(known(&authority))).await.expect("let in");
    let operator = Client::over(channel, &Key::new(server.operator_key().await)).expect("a key");
    let project = pb::Project { name: "audited".to_owned(), ..pb::Project::default() };
    let request = pb::CreateProjectRequest { project: Some(project) };
    operator.projects().create_project(request).await.expect("created");
    let mut session = server.database().session().await;
    let row = sqlx::query("SELECT origin FROM audit_events WHERE action = 'CreateProject'")
        .fetch_one(&mut session)
        .await
        .expect("audited");
    let origin: String = row.get(0);
    assert!(origin.starts_with("127.0.0.1 certificate sha256:"), "{origin}");
    assert_eq!(origin.len(), "127.0.0.1 certificate sha256:".len() + 64, "{origin}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_come_is_not_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("ours");
    authority.write(folder.path());
    let server = start(Database::sqlite(), folder.path(), &[]).await;
    // More than may shake hands at once: who comes after them is served all the same.
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(server.authority()).await.expect("connected"));
    }
    let mut rest = Vec::new();
    for mut stream in silent {
        // A reset is an end as well.
        let _end =
            tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("closed in time");
    }
    assert!(healthy(connect(&server, trusting(&authority)).await.expect("connected")).await);
}

/// A customer's connection to the portal.
async fn customer(server: &Server, authority: &Authority) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(server.portal()).await.expect("connected");
    TlsConnector::from(Arc::new(config)).connect("127.0.0.1".try_into().expect("a name"), stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn customers_get_the_same_certificate_and_are_asked_for_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    old.write(folder.path());
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, old.pem()).expect("written");
    let more = ["--tls-client-ca", ca.to_str().expect("UTF-8")];
    let mut server = start(Database::sqlite(), folder.path(), &more).await;
    let identity = old.issue("client");
    let identity = Identity::from_pem(identity.0, identity.1);
    let channel = connect(&server, trusting(&old).identity(identity)).await.expect("let in");
    let operator = Client::over(channel, &Key::new(server.operator_key().await)).expect("a key");
    let (project, _) = crate::support::world::project(&operator, pb::PausedPolicy::Discard).await;
    let endpoint = pb::Endpoint { url: "https://example.com/".to_owned(), ..Default::default() };
    let request = pb::CreateEndpointRequest {
        project_id: project,
        endpoint: Some(endpoint),
        secret_type: pb::SecretType::Ed25519.into(),
        ..Default::default()
    };
    let made = operator.endpoints().create_endpoint(request).await.expect("created").into_inner();
    let path = format!("/endpoints/{}/.well-known/jwks.json", made.endpoint.expect("one").id);

    let ask = || {
        let request = Request::get(&path).header("host", server.portal());
        request.body(Full::<Bytes>::default()).expect("a request")
    };
    let answer = send_on(customer(&server, &old).await.expect("trusted, without a certificate"), ask()).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.text().await.contains("Ed25519"));

    // What is no handshake gets no answer in plain text.
    let mut plain = TcpStream::connect(server.portal()).await.expect("connected");
    plain.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.expect("sent");
    let mut said = Vec::new();
    // A reset is an end as well.
    let _end = tokio::time::timeout(PATIENCE, plain.read_to_end(&mut said)).await.expect("closed in time");
    assert!(!String::from_utf8_lossy(&said).contains("HTTP/1"), "{said:?}");

    new.write(folder.path());
    server.signal("HUP").await;
    let renewed = async {
        loop {
            if let Ok(stream) = customer(&server, &new).await {
                return stream;
            }
        }
    };
    let stream = tokio::time::timeout(PATIENCE, renewed).await.expect("the new certificate is in use");
    assert_eq!(send_on(stream, ask()).await.status, StatusCode::OK);
    assert!(customer(&server, &old).await.is_err(), "the old one is not");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_trusts_and_shows_certificates() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("ours");
    authority.write(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (certificate, key) = authority.issue("client");
    for (name, text) in [("ca.pem", authority.pem()), ("client.pem", certificate), ("client.key", key)] {
        std::fs::write(path(name), text).expect("written");
    }
    let mut server = start(Database::sqlite(), folder.path(), &["--tls-client-ca", &path("ca.pem")]).await;
    let operator = server.operator_key().await;
    let address = format!("https://{}", server.authority());
    let run = async |command: &[&str], tls: &[(&str, &str)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hawser"))
            .args(command)
            .env_clear()
            .envs([("HAWSER_ADDR", address.as_str()), ("HAWSER_KEY", &operator)])
            .envs(tls.iter().map(|(name, file)| (name, path(file))))
            .output();
        let output = tokio::time::timeout(PATIENCE, output).await.expect("in time").expect("started");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let all =
        [("HAWSER_CA", "ca.pem"), ("HAWSER_CLIENT_CERT", "client.pem"), ("HAWSER_CLIENT_KEY", "client.key")];
    assert_eq!(run(&["health"], &all).await, (true, "SERVING".to_owned()));
    let (done, key) = run(&["keys", "create", "--name", "another"], &all).await;
    assert!(done && key.starts_with("hk_"), "{key}");
    for too_little in [&all[..1], &all[..2], &all[1..], &[]] {
        for command in [&["health"] as &[&str], &["keys", "list"]] {
            assert!(!run(command, too_little).await.0, "{command:?} with {too_little:?}");
        }
    }
}

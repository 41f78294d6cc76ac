//! TLS: who is trusted, and what is said when someone is not.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::sink::{Script, Sink, answer};
use super::{class, detail, post, settings};
use crate::dispatch::{DispatchSettings, Dispatcher};
use crate::domain::attempt::ErrorClass;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        Self(CertifiedIssuer::self_signed(params, key).expect("authority"))
    }

    fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A server's side with a certificate for these names.
    fn acceptor(&self, names: &[&str], change: fn(&mut CertificateParams)) -> TlsAcceptor {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.0).expect("certificate").der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("config");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

fn trusting(authority: &Authority) -> Dispatcher {
    let settings = DispatchSettings { extra_roots: vec![authority.root()], ..settings() };
    Dispatcher::new(settings).expect("dispatcher")
}

async fn sink(acceptor: TlsAcceptor) -> Sink {
    Sink::start_tls(Script::Reply(answer("200 OK", "", b"secret")), acceptor).await
}

#[tokio::test]
async fn a_good_certificate_is_accepted() {
    let authority = Authority::new("ours");
    let sink = sink(authority.acceptor(&["127.0.0.1", "localhost"], |_| {})).await;
    let dispatcher = trusting(&authority);
    let outcome = post(&dispatcher, &sink.https()).await;
    assert!(outcome.is_success(), "{outcome:?}");
    assert_eq!(&outcome.body[..], b"secret");
    assert!(outcome.timings.connect_us.is_some() && outcome.timings.tls_us.is_some());
    let again = post(&dispatcher, &sink.https()).await;
    assert_eq!((again.timings.reused, again.timings.tls_us), (true, None));
    assert_eq!(sink.connections(), 1);

    // By name: verified as the name, though an address is dialled.
    let outcome = post(&dispatcher, &format!("https://localhost:{}/", sink.address.port())).await;
    assert!(outcome.is_success(), "{outcome:?}");
}

#[tokio::test]
async fn a_bad_certificate_is_refused_and_nothing_is_sent() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("a stranger"));
    let names = &["127.0.0.1"];
    let cases = [
        (stranger.acceptor(names, |_| {}), "certificate is not issued by a trusted authority"),
        (authority.acceptor(&["other.example.com"], |_| {}), "certificate is for another host"),
        (
            authority.acceptor(names, |params| params.not_after = date_time_ymd(2001, 1, 1)),
            "certificate has expired",
        ),
        (
            authority.acceptor(names, |params| params.not_before = date_time_ymd(4000, 1, 1)),
            "certificate is not valid yet",
        ),
    ];
    let dispatcher = trusting(&authority);
    for (acceptor, said) in cases {
        let sink = sink(acceptor).await;
        let outcome = post(&dispatcher, &sink.https()).await;
        assert_eq!((class(&outcome), detail(&outcome)), (Some(ErrorClass::Tls), said));
        assert!(outcome.timings.connect_us.is_some());
        assert_eq!(sink.requests().len(), 0, "{said}");
    }
}

#[tokio::test]
async fn what_does_not_speak_tls_is_tls() {
    let authority = Authority::new("ours");
    let settings = DispatchSettings {
        extra_roots: vec![authority.root()],
        connect_timeout: Duration::from_millis(500),
        ..settings()
    };
    let dispatcher = Dispatcher::new(settings).expect("dispatcher");
    let plain = Sink::start(Script::ReplyAndClose(answer("400 Bad Request", "", b""))).await;
    // A plain server sees no request line to answer, so it waits, and our patience ends.
    let outcome = post(&dispatcher, &plain.https()).await;
    assert_eq!(class(&outcome), Some(ErrorClass::Tls));
    assert_eq!(detail(&outcome), "no TLS handshake within 0.5 s");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let rude = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let (mut stream, _) = listener.accept().await.expect("accept");
        stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await.expect("write");
        stream
    });
    let outcome = post(&dispatcher, &format!("https://{address}/")).await;
    assert_eq!(
        (class(&outcome), detail(&outcome)),
        (Some(ErrorClass::Tls), "server does not speak TLS on this port")
    );
    rude.await.expect("server");
}

#[tokio::test]
async fn a_server_that_speaks_only_http2_is_refused() {
    let authority = Authority::new("ours");
    let dispatcher = trusting(&authority);
    let acceptor = authority.acceptor(&["127.0.0.1"], |_| {});
    let mut config = ServerConfig::clone(acceptor.config());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let sink = sink(TlsAcceptor::from(Arc::new(config))).await;
    let outcome = post(&dispatcher, &sink.https()).await;
    assert_eq!(class(&outcome), Some(ErrorClass::Tls), "{outcome:?}");
    assert_eq!(detail(&outcome), "server ended TLS with NoApplicationProtocol");
}

#[test]
fn an_extra_root_that_is_none_is_refused() {
    let settings = DispatchSettings { extra_roots: vec![CertificateDer::from(vec![1, 2, 3])], ..settings() };
    assert!(Dispatcher::new(settings).is_err());
}

//! The gRPC server: services, reflection, health, limits.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Router, TcpIncoming};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic_health::pb::health_server::HealthServer;
use tower::layer::util::{Identity as NoLayer, Stack};

use super::auth::AuthLayer;
use super::health::Health;
use super::{Api, pb};
use crate::service::Services;

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct GrpcSettings {
    /// The largest request message in bytes.
    pub message_max: usize,
    /// Reflection without a key.
    pub reflection_open: bool,
    pub tls: Option<GrpcTls>,
}

/// The server's certificate, and whose clients it asks for certificates.
#[derive(Clone)]
pub struct GrpcTls {
    pub certificate_pem: Vec<u8>,
    pub key_pem: zeroize::Zeroizing<Vec<u8>>,
    pub client_ca_pem: Option<Vec<u8>>,
}

impl std::fmt::Debug for GrpcTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcTls").field("mutual", &self.client_ca_pem.is_some()).finish_non_exhaustive()
    }
}

const STREAMS_PER_CONNECTION: u32 = 256;
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest reply: a page of attempts with their bodies.
const REPLY_MAX: usize = 32 * 1024 * 1024;

/// A server that is ready to be run.
pub struct GrpcServer {
    router: Router<Stack<AuthLayer, NoLayer>>,
    stop: CancellationToken,
}

impl GrpcServer {
    /// `stop` ends the streams and the server.
    pub fn new(
        services: Services,
        health: Health,
        settings: &GrpcSettings,
        stop: CancellationToken,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut server = Server::builder()
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .tcp_nodelay(true);
        if let Some(tls) = &settings.tls {
            let mut config =
                ServerTlsConfig::new().identity(Identity::from_pem(&tls.certificate_pem, &*tls.key_pem));
            if let Some(ca) = &tls.client_ca_pem {
                config = config.client_ca_root(Certificate::from_pem(ca));
            }
            server = server.tls_config(config)?;
        }
        let api = Api { services: services.clone(), stop: stop.clone() };
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that tools can read error details.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        macro_rules! service {
            ($server:path) => {
                <$server>::new(api.clone())
                    .max_decoding_message_size(settings.message_max)
                    .max_encoding_message_size(REPLY_MAX)
                    .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
                    .send_compressed(tonic::codec::CompressionEncoding::Gzip)
            };
        }
        let router = server
            .layer(AuthLayer::new(services, settings.reflection_open))
            .add_service(HealthServer::new(health))
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .add_service(service!(pb::project_service_server::ProjectServiceServer<Api>))
            .add_service(service!(pb::endpoint_service_server::EndpointServiceServer<Api>))
            .add_service(service!(pb::subscription_service_server::SubscriptionServiceServer<Api>))
            .add_service(service!(pb::event_service_server::EventServiceServer<Api>))
            .add_service(service!(pb::delivery_service_server::DeliveryServiceServer<Api>))
            .add_service(service!(pb::watch_service_server::WatchServiceServer<Api>));
        Ok(Self { router, stop })
    }

    /// Serves until the stop token; then ends when the last call has.
    pub async fn run(self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        self.router.serve_with_incoming_shutdown(incoming, self.stop.cancelled_owned()).await
    }
}

//! The gRPC server: services, reflection, health, and the order of what every call passes through.

use std::sync::Arc;

use http::HeaderValue;
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tower::ServiceBuilder;

use super::auth::AuthLayer;
use super::browsers::BrowserLayer;
use super::calls::{CallLayer, CallLimits};
use super::health::Health;
use super::listener::{ConnectionLimits, Listener};
use super::{Api, pb, publish};
use crate::metrics::Metrics;
use crate::service::Services;
use crate::tls::Identity;

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct GrpcSettings {
    /// The largest request message in bytes.
    pub message_max: usize,
    pub calls: CallLimits,
    pub connections: ConnectionLimits,
    /// Reflection without a key.
    pub reflection_open: bool,
    /// Whose pages may read our answers in a browser.
    pub web_origins: Vec<HeaderValue>,
}

/// The largest reply: a page of attempts with their bodies.
const REPLY_MAX: usize = 32 * 1024 * 1024;

/// A server that is ready to be run.
pub struct GrpcServer {
    routes: Routes,
    auth: AuthLayer,
    calls: CallLayer,
    browsers: BrowserLayer,
    listener: Listener,
}

impl GrpcServer {
    /// `stop` ends the streams and the server.
    pub fn new(
        services: Services,
        health: Health,
        settings: GrpcSettings,
        tls: Option<Arc<Identity>>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let api = Api { services: services.clone(), stop: stop.clone() };
        let error_details = error_details()?;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that tools can read error details.
                .register_file_descriptor_set(error_details.clone())
        };
        let message_max = settings.message_max;
        macro_rules! service {
            ($server:path, $request_max:expr) => {
                <$server>::new(api.clone())
                    .max_decoding_message_size($request_max)
                    .max_encoding_message_size(REPLY_MAX)
                    .accept_compressed(Gzip)
                    .send_compressed(Gzip)
            };
        }
        let routes = Routes::new(HealthServer::new(health))
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .add_service(service!(pb::project_service_server::ProjectServiceServer<Api>, message_max))
            .add_service(service!(pb::endpoint_service_server::EndpointServiceServer<Api>, message_max))
            .add_service(service!(
                pb::subscription_service_server::SubscriptionServiceServer<Api>,
                message_max
            ))
            .add_service(service!(
                pb::event_service_server::EventServiceServer<Api>,
                message_max.max(publish::MESSAGE_MAX)
            ))
            .add_service(service!(pb::delivery_service_server::DeliveryServiceServer<Api>, message_max))
            .add_service(service!(pb::watch_service_server::WatchServiceServer<Api>, message_max))
            .add_service(service!(pb::secret_service_server::SecretServiceServer<Api>, message_max))
            .add_service(service!(pb::audit_service_server::AuditServiceServer<Api>, message_max))
            .prepare();
        Ok(Self {
            routes,
            auth: AuthLayer::new(services, settings.reflection_open),
            calls: CallLayer::new(settings.calls, metrics.clone())?,
            browsers: BrowserLayer::new(settings.web_origins),
            listener: Listener { limits: settings.connections, tls, metrics, stop },
        })
    }

    /// Serves until the stop token; then ends when the last call has.
    pub async fn run(self, listener: TcpListener) {
        let service = ServiceBuilder::new()
            .layer(self.browsers)
            .layer(self.calls)
            .layer(self.auth)
            .service(self.routes);
        self.listener.run(listener, service).await;
    }
}

/// The types of error details. `google.rpc.Status` itself is in the contract, under its own file's name.
fn error_details() -> Result<prost_types::FileDescriptorSet, prost::DecodeError> {
    let mut set = prost_types::FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET)?;
    set.file.retain(|file| file.name() != "status.proto");
    Ok(set)
}

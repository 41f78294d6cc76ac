//! A connection with its key, and a stub for each service.

use std::fmt;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::pb;
use crate::watch::WatchStream;

/// An API key. `Debug` does not show it.
#[derive(Clone, Default)]
pub struct Key(String);

impl Key {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([redacted])")
    }
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The key holds characters that no key has.
    #[error("the key is not one of Hawser's: it holds characters that a header cannot carry")]
    Key,
    /// The address does not parse, or nobody answers there.
    #[error("cannot connect to {address}")]
    Transport {
        /// What was tried.
        address: String,
        /// Why it failed.
        source: tonic::transport::Error,
    },
}

/// Adds `authorization: Bearer …` to each call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// The channel that stubs speak over.
pub type Channel = InterceptedService<tonic::transport::Channel, Bearer>;

/// A client of one server with one key. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    transport: tonic::transport::Channel,
    channel: Channel,
}

/// More than the largest event with its headers.
const MESSAGE_MAX: usize = 17 * 1024 * 1024;

impl Client {
    /// Connects to `http://host:port` or `https://host:port`; with https the system's roots are trusted.
    pub async fn connect(address: impl Into<String>, key: Key) -> Result<Self, ConnectError> {
        Self::connect_with(address, key, ClientTlsConfig::new().with_enabled_roots()).await
    }

    /// As [`Client::connect`], with whom to trust, and the certificate to show, where it is https.
    pub async fn connect_with(
        address: impl Into<String>,
        key: Key,
        tls: ClientTlsConfig,
    ) -> Result<Self, ConnectError> {
        let address = address.into();
        let failed = |source| ConnectError::Transport { address: address.clone(), source };
        let mut endpoint = Endpoint::from_shared(address.clone())
            .map_err(failed)?
            .connect_timeout(Duration::from_secs(10))
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20))
            .tcp_nodelay(true);
        if address.starts_with("https:") {
            endpoint = endpoint.tls_config(tls).map_err(failed)?;
        }
        let channel = endpoint.connect().await.map_err(failed)?;
        Self::over(channel, &key)
    }

    /// A client over a channel of your own.
    pub fn over(transport: tonic::transport::Channel, key: &Key) -> Result<Self, ConnectError> {
        let bearer = if key.0.is_empty() {
            None
        } else {
            let mut value: MetadataValue<Ascii> =
                format!("Bearer {}", key.0).parse().map_err(|_| ConnectError::Key)?;
            value.set_sensitive(true);
            Some(value)
        };
        let channel = InterceptedService::new(transport.clone(), Bearer(bearer));
        Ok(Self { transport, channel })
    }

    /// A client with another key over the same connection.
    pub fn with_key(&self, key: &Key) -> Result<Self, ConnectError> {
        Self::over(self.transport.clone(), key)
    }

    /// Projects and API keys; needs an operator key.
    pub fn projects(&self) -> pb::project_service_client::ProjectServiceClient<Channel> {
        pb::project_service_client::ProjectServiceClient::new(self.channel.clone())
    }

    /// Endpoints.
    pub fn endpoints(&self) -> pb::endpoint_service_client::EndpointServiceClient<Channel> {
        pb::endpoint_service_client::EndpointServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_MAX)
    }

    /// Subscriptions.
    pub fn subscriptions(&self) -> pb::subscription_service_client::SubscriptionServiceClient<Channel> {
        pb::subscription_service_client::SubscriptionServiceClient::new(self.channel.clone())
    }

    /// Events.
    pub fn events(&self) -> pb::event_service_client::EventServiceClient<Channel> {
        pb::event_service_client::EventServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_MAX)
    }

    /// Signing secrets.
    pub fn secrets(&self) -> pb::secret_service_client::SecretServiceClient<Channel> {
        pb::secret_service_client::SecretServiceClient::new(self.channel.clone())
    }

    /// The audit log.
    pub fn audit(&self) -> pb::audit_service_client::AuditServiceClient<Channel> {
        pb::audit_service_client::AuditServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_MAX)
    }

    /// Deliveries and attempts.
    pub fn deliveries(&self) -> pb::delivery_service_client::DeliveryServiceClient<Channel> {
        pb::delivery_service_client::DeliveryServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_MAX)
    }

    /// The Watch stub itself; [`Client::watch`] resumes by itself.
    pub fn watches(&self) -> pb::watch_service_client::WatchServiceClient<Channel> {
        pb::watch_service_client::WatchServiceClient::new(self.channel.clone())
    }

    /// Watches, and resumes with the last token when the connection or the server goes away.
    pub async fn watch(&self, request: pb::WatchRequest) -> Result<WatchStream, Status> {
        WatchStream::open(self.watches(), request).await
    }
}

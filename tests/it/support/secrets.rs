//! Signing secrets as their holders use them.

use hawser_client::{Client, pb};
use tonic::Status;

use super::receiver::Seen;

pub fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// Whether a receiver that holds only this secret accepts a request, by the official library.
pub fn accepts(secret: &str, request: &Seen) -> bool {
    let verifier = standardwebhooks::Webhook::new(secret).expect("a secret");
    verifier.verify(&request.body, &request.headers).is_ok()
}

pub async fn rotate(client: &Client, endpoint: &str, grace: i64) -> Result<pb::RotateSecretResponse, Status> {
    let request = pb::RotateSecretRequest {
        endpoint_id: endpoint.to_owned(),
        grace: Some(seconds(grace)),
        ..Default::default()
    };
    Ok(client.secrets().rotate_secret(request).await?.into_inner())
}

pub async fn list(client: &Client, endpoint: &str) -> pb::ListSecretsResponse {
    let request = pb::ListSecretsRequest { endpoint_id: endpoint.to_owned(), ..Default::default() };
    client.secrets().list_secrets(request).await.expect("listed").into_inner()
}

pub async fn reveal(client: &Client, secret: &str) -> Result<String, Status> {
    let request = pb::RevealSecretRequest { secret_id: secret.to_owned(), ..Default::default() };
    Ok(client.secrets().reveal_secret(request).await?.into_inner().value)
}

pub async fn expire(client: &Client, secret: &str) -> Result<pb::Secret, Status> {
    let request = pb::ExpireSecretRequest { secret_id: secret.to_owned(), ..Default::default() };
    Ok(client.secrets().expire_secret(request).await?.into_inner().secret.expect("a secret"))
}

//! Bulk calls as clients make them.

use hawser_client::pb::bulk_create_endpoints_request::Message as Body;
use hawser_client::pb::{self, BulkOutcome};
use hawser_client::{Client, error_of, field_violations};
use tonic::Status;

use super::PATIENCE;

/// A row that creates an endpoint at this URL.
pub fn row(number: i64, url: &str, owner: &str) -> pb::BulkRow {
    let endpoint = pb::Endpoint { url: url.to_owned(), owner_id: owner.to_owned(), ..Default::default() };
    pb::BulkRow { row_number: number, endpoint: Some(endpoint), ..Default::default() }
}

/// All answers to these rows, or what the call ended with.
pub async fn bulk(
    client: &Client,
    options: pb::BulkOptions,
    rows: Vec<pb::BulkRow>,
) -> Result<Vec<pb::BulkCreateEndpointsResponse>, Status> {
    let messages = std::iter::once(Body::Options(options)).chain(rows.into_iter().map(Body::Row));
    let (answers, end) = messages_of(client, messages.collect()).await;
    end.map(|()| answers)
}

/// The answers to these messages, and how the call ended.
pub async fn messages_of(
    client: &Client,
    messages: Vec<Body>,
) -> (Vec<pb::BulkCreateEndpointsResponse>, Result<(), Status>) {
    let messages =
        messages.into_iter().map(|message| pb::BulkCreateEndpointsRequest { message: Some(message) });
    let mut answers = Vec::new();
    let reading = async {
        let call = client.endpoints().bulk_create_endpoints(tokio_stream::iter(messages)).await;
        let mut stream = call?.into_inner();
        while let Some(answer) = stream.message().await? {
            answers.push(answer);
        }
        Ok(())
    };
    let end = tokio::time::timeout(PATIENCE, reading).await.expect("the call ends in time");
    (answers, end)
}

pub fn outcomes(answers: &[pb::BulkCreateEndpointsResponse]) -> Vec<BulkOutcome> {
    answers.iter().map(pb::BulkCreateEndpointsResponse::outcome).collect()
}

/// The fields that a row was refused for, and nothing where it was refused for something else.
pub fn refused_fields(answer: &pb::BulkCreateEndpointsResponse) -> Vec<String> {
    let error = answer.error.as_ref().expect("an error");
    field_violations(&error_of(error)).into_iter().map(|violation| violation.field).collect()
}

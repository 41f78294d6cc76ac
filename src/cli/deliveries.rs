//! `hawser deliveries`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use hawser_client::{Client, pb};

use super::arguments::moment;
use super::connect::{Place, explain};
use super::listing::Listing;
use super::{contract, table};

/// List, show and retry deliveries, and list their attempts
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hawser deliveries list --endpoint ep_… --status failed --since 24h\n  \
    hawser deliveries get dlv_…\n  \
    hawser deliveries attempts dlv_…                  # with --json also headers and bodies of answers\n  \
    hawser deliveries retry dlv_…                     # one that is FAILED or DISCARDED\n\n\
    Add --project prj_… when the key is an operator's.")]
pub struct Deliveries {
    #[command(flatten)]
    place: Place,

    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List deliveries, newest first
    List(Filter),
    /// Show a delivery
    Get {
        /// The delivery's id
        delivery: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the attempts made for a delivery, oldest first
    Attempts {
        /// The delivery's id
        delivery: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Give a FAILED or DISCARDED delivery a fresh budget of attempts, the first of them now
    ///
    /// Where its endpoint is INACTIVE it becomes the endpoint's probe: one attempt, whose success switches the endpoint
    /// on again.
    Retry {
        /// The delivery's id
        delivery: String,
    },
}

/// All that is given must match.
#[derive(clap::Args)]
struct Filter {
    /// Only deliveries to this endpoint
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    endpoint: String,
    /// Only deliveries of this event
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    event: String,
    /// Only deliveries in this status (may repeat)
    #[arg(long, value_name = "STATUS", ignore_case = true)]
    status: Vec<Status>,
    /// Only those created from this instant on (2030-01-31T12:00:00Z), or since so long ago (24h)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<prost_types::Timestamp>,
    /// Only those created before this instant, or so long ago
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<prost_types::Timestamp>,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Status {
    Scheduled,
    Processing,
    Retry,
    Success,
    Failed,
    Discarded,
}

impl From<Status> for pb::DeliveryStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Scheduled => Self::Scheduled,
            Status::Processing => Self::Processing,
            Status::Retry => Self::Retry,
            Status::Success => Self::Success,
            Status::Failed => Self::Failed,
            Status::Discarded => Self::Discarded,
        }
    }
}

impl Deliveries {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let (client, project_id) = self.place.enter().await?;
        match self.action {
            Action::List(filter) => list(&client, project_id, filter).await?,
            Action::Get { delivery, json } => {
                let request = pb::GetDeliveryRequest { project_id, delivery_id: delivery };
                let reply =
                    client.deliveries().get_delivery(request).await.map_err(|status| explain(&status))?;
                contract::print(&reply.into_inner().delivery.context("an empty reply")?, json)?;
            }
            Action::Attempts { delivery, listing } => {
                attempts(&client, project_id, delivery, listing).await?;
            }
            Action::Retry { delivery } => {
                let request = pb::RetryDeliveryRequest { project_id, delivery_id: delivery };
                let reply =
                    client.deliveries().retry_delivery(request).await.map_err(|status| explain(&status))?;
                let delivery = reply.into_inner().delivery.context("an empty reply")?;
                eprintln!("{} is {}", delivery.id, status_text(&delivery));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(client: &Client, project_id: String, filter: Filter) -> anyhow::Result<()> {
    let statuses = filter.status.into_iter().map(|status| pb::DeliveryStatus::from(status).into());
    let request = pb::ListDeliveriesRequest {
        project_id,
        endpoint_id: filter.endpoint,
        event_id: filter.event,
        statuses: statuses.collect(),
        start_time: filter.since,
        end_time: filter.until,
        ..Default::default()
    };
    let columns = ["id", "status", "event type", "endpoint", "attempts", "answer", "next attempt", "created"];
    let row = |delivery: &pb::Delivery| {
        vec![
            delivery.id.clone(),
            status_text(delivery),
            delivery.event_type.clone(),
            delivery.endpoint_id.clone(),
            delivery.attempt_count.to_string(),
            table::answer(delivery.last_status_code, delivery.last_error_class()),
            table::time(delivery.next_attempt_time),
            table::time(delivery.create_time),
        ]
    };
    let mut deliveries = client.deliveries();
    let page = async |page_size, page_token| {
        let request = pb::ListDeliveriesRequest { page_size, page_token, ..request.clone() };
        let reply = deliveries.list_deliveries(request).await?.into_inner();
        Ok((reply.deliveries, reply.next_page_token))
    };
    filter.listing.print(&columns, row, page).await
}

async fn attempts(
    client: &Client,
    project_id: String,
    delivery_id: String,
    listing: Listing,
) -> anyhow::Result<()> {
    let request = pb::ListAttemptsRequest { project_id, delivery_id, ..Default::default() };
    let columns = ["attempt", "started", "answer", "took", "peer", "detail"];
    let row = |attempt: &pb::Attempt| {
        let total = attempt.timings.as_ref().and_then(|timings| timings.total);
        vec![
            attempt.number.to_string(),
            table::time(attempt.start_time),
            table::answer(attempt.status_code, attempt.error_class()),
            table::took(total),
            attempt.peer_address.clone(),
            attempt.error_detail.clone(),
        ]
    };
    let mut deliveries = client.deliveries();
    let page = async |page_size, page_token| {
        let request = pb::ListAttemptsRequest { page_size, page_token, ..request.clone() };
        let reply = deliveries.list_attempts(request).await?.into_inner();
        Ok((reply.attempts, reply.next_page_token))
    };
    listing.print(&columns, row, page).await
}

fn status_text(delivery: &pb::Delivery) -> String {
    delivery.status().as_str_name().trim_start_matches("DELIVERY_STATUS_").to_owned()
}

//! `hawser endpoints`.

mod pings;
mod settings;
mod write;

use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use hawser_client::{Client, pb};

use super::arguments::pair;
use super::connect::{Place, explain};
use super::listing::Listing;
use super::{contract, table};

/// Make, list, change, switch and ping endpoints
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hawser endpoints create --url https://acme.example/hook --owner acme --event-type 'invoice.*'\n  \
    hawser endpoints list --owner acme --status inactive\n  \
    hawser endpoints update ep_… --rate 20/s --label tier=gold --clear description\n  \
    hawser endpoints get ep_… --json >one.json        # change it, and give it back:\n  \
    hawser endpoints update ep_… --file one.json\n  \
    hawser endpoints pause ep_… --reason 'they move house'\n  \
    hawser endpoints ping ep_…\n\n\
    Add --project prj_… when the key is an operator's. Many at once: `hawser import`.")]
pub struct Endpoints {
    #[command(flatten)]
    place: Place,

    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List endpoints, oldest first
    List(Filter),
    /// Show an endpoint
    Get {
        /// The endpoint's id
        endpoint: String,
        /// Print JSON, which `update --file` takes
        #[arg(long)]
        json: bool,
    },
    Create(Box<write::Create>),
    Update(Box<write::Update>),
    /// Delete an endpoint, with its subscriptions and secrets; its history stays
    Delete {
        /// The endpoint's id
        endpoint: String,
        /// Only this version of it
        #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
        etag: String,
    },
    /// Switch an ACTIVE endpoint off; what is queued is held
    Pause {
        /// The endpoint's id
        endpoint: String,
        /// Why, for people
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Switch a PAUSED endpoint on again; what was held goes on
    Resume {
        /// The endpoint's id
        endpoint: String,
    },
    /// Switch an INACTIVE or PAUSED endpoint on
    ///
    /// What was discarded is sent only if someone retries it.
    Activate {
        /// The endpoint's id
        endpoint: String,
    },
    /// Ping an endpoint as it is; fails if it does not accept that
    Ping {
        /// The endpoint's id
        endpoint: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask an endpoint's token server for a token, which is not shown; fails if there is none
    TestOauth2 {
        /// The endpoint's id
        endpoint: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// All that is given must match.
#[derive(clap::Args)]
struct Filter {
    /// Only endpoints of this owner
    #[arg(long, value_name = "OWNER", default_value = "", hide_default_value = true)]
    owner: String,
    /// Only endpoints in this state
    #[arg(long, value_name = "STATE", ignore_case = true)]
    status: Option<Status>,
    /// Only the endpoint with this uid
    #[arg(long, value_name = "UID", default_value = "", hide_default_value = true)]
    uid: String,
    /// Only endpoints with this label (may repeat: with all of them)
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Status {
    Active,
    Paused,
    Inactive,
    Pending,
}

impl From<Status> for pb::EndpointStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Active => Self::Active,
            Status::Paused => Self::Paused,
            Status::Inactive => Self::Inactive,
            Status::Pending => Self::Pending,
        }
    }
}

impl Endpoints {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let (client, project_id) = self.place.enter().await?;
        match self.action {
            Action::List(filter) => list(&client, project_id, filter).await?,
            Action::Get { endpoint, json } => {
                let request = pb::GetEndpointRequest { project_id, endpoint_id: endpoint };
                let reply =
                    client.endpoints().get_endpoint(request).await.map_err(|status| explain(&status))?;
                contract::print(&reply.into_inner().endpoint.context("an empty reply")?, json)?;
            }
            Action::Create(create) => create.run(&client, project_id).await?,
            Action::Update(update) => update.run(&client, project_id).await?,
            Action::Delete { endpoint, etag } => {
                let request = pb::DeleteEndpointRequest { project_id, endpoint_id: endpoint.clone(), etag };
                client.endpoints().delete_endpoint(request).await.map_err(|status| explain(&status))?;
                eprintln!("{endpoint} is deleted");
            }
            Action::Pause { endpoint, reason } => {
                let request = pb::PauseEndpointRequest { project_id, endpoint_id: endpoint, reason };
                let reply =
                    client.endpoints().pause_endpoint(request).await.map_err(|status| explain(&status))?;
                say_status(reply.into_inner().endpoint);
            }
            Action::Resume { endpoint } => {
                let request = pb::ResumeEndpointRequest { project_id, endpoint_id: endpoint };
                let reply =
                    client.endpoints().resume_endpoint(request).await.map_err(|status| explain(&status))?;
                say_status(reply.into_inner().endpoint);
            }
            Action::Activate { endpoint } => {
                let request = pb::ActivateEndpointRequest { project_id, endpoint_id: endpoint };
                let reply =
                    client.endpoints().activate_endpoint(request).await.map_err(|status| explain(&status))?;
                say_status(reply.into_inner().endpoint);
            }
            Action::Ping { endpoint, json } => pings::ping(&client, project_id, endpoint, json).await?,
            Action::TestOauth2 { endpoint, json } => {
                pings::test_oauth2(&client, project_id, endpoint, json).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(client: &Client, project_id: String, filter: Filter) -> anyhow::Result<()> {
    let request = pb::ListEndpointsRequest {
        project_id,
        owner_id: filter.owner,
        status: filter.status.map_or(pb::EndpointStatus::Unspecified, Into::into).into(),
        uid: filter.uid,
        labels: filter.labels.into_iter().collect(),
        ..Default::default()
    };
    let row = |endpoint: &pb::Endpoint| {
        let last = endpoint.last_response.as_ref();
        vec![
            endpoint.id.clone(),
            status_text(endpoint),
            endpoint.owner_id.clone(),
            endpoint.uid.clone(),
            endpoint.consecutive_failures.to_string(),
            last.map(|last| table::answer(last.status_code, last.error_class())).unwrap_or_default(),
            endpoint.url.clone(),
        ]
    };
    let mut endpoints = client.endpoints();
    let page = async |page_size, page_token| {
        let request = pb::ListEndpointsRequest { page_size, page_token, ..request.clone() };
        let reply = endpoints.list_endpoints(request).await?.into_inner();
        Ok((reply.endpoints, reply.next_page_token))
    };
    filter.listing.print(&["id", "state", "owner", "uid", "failures", "answer", "url"], row, page).await
}

fn say_status(endpoint: Option<pb::Endpoint>) {
    let endpoint = endpoint.unwrap_or_default();
    eprintln!("{} is {}", endpoint.id, status_text(&endpoint));
}

fn status_text(endpoint: &pb::Endpoint) -> String {
    endpoint.status().as_str_name().trim_start_matches("ENDPOINT_STATUS_").to_owned()
}

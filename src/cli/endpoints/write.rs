//! Making and changing an endpoint.

use std::io::Write;

use anyhow::{Context, bail};
use hawser_client::{Client, pb};
use serde_json::json;

use super::settings::{self, Settings};
use crate::cli::arguments::read_file;
use crate::cli::connect::explain;
use crate::cli::contract;
use crate::cli::import::fields::Fields;

/// Make an endpoint and print its id and its signing secret, a line each
///
/// It is pinged first. The secret can be shown again by `hawser secrets reveal`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hawser endpoints create --url https://acme.example/hook --owner acme --event-type 'invoice.*'\n  \
    hawser endpoints create --file - <<END            # with every setting that there is\n  \
    {\"url\": \"https://acme.example/hook\", \"authentication\": {\"basic_auth\": {\"username\": \"hawser\", \"password\": \"…\"}}}\n  \
    END")]
pub struct Create {
    #[command(flatten)]
    settings: Settings,

    /// What it wants, such as invoice.paid or invoice.* (may repeat) [default: *]
    #[arg(long, value_name = "PATTERN")]
    event_type: Vec<String>,

    /// File with its signing secret, instead of one that is made; - is standard input
    #[arg(long, value_name = "FILE")]
    secret_file: Option<String>,

    /// Print the whole reply as JSON, the secret included
    #[arg(long)]
    json: bool,
}

/// Change what is given of an endpoint, and keep the rest
///
/// Labels and headers are each replaced as a whole. What a file names is changed, and cleared where it is null or empty; what only
/// the server writes is passed over, and the file's etag makes sure that nobody changed the endpoint in between.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hawser endpoints update ep_… --url https://acme.example/new\n  \
    hawser endpoints update ep_… --rate 20/s --clear labels --clear retry_policy\n  \
    hawser endpoints get ep_… --json | jq .max_in_flight=4 | hawser endpoints update ep_… --file -")]
pub struct Update {
    /// The endpoint's id
    endpoint: String,

    #[command(flatten)]
    settings: Settings,

    /// Empty this field, by its name in the contract, such as rate_limit (may repeat)
    #[arg(long, value_name = "FIELD")]
    clear: Vec<String>,

    /// Only this version of it
    #[arg(long, value_name = "ETAG")]
    etag: Option<String>,
}

impl Create {
    pub async fn run(self, client: &Client, project_id: String) -> anyhow::Result<()> {
        let fields = Fields::new()?;
        let mut object = self.settings.object(&fields)?;
        if !self.event_type.is_empty() {
            object.insert("event_types".to_owned(), json!(self.event_type));
        }
        if let Some(path) = &self.secret_file {
            object.insert("secret".to_owned(), json!(read_file(path)?));
        }
        let row = settings::read(&fields, object)?;
        let request = pb::CreateEndpointRequest {
            project_id,
            endpoint: row.endpoint,
            event_types: row.event_types,
            secret: row.secret,
            secret_type: row.secret_type,
            skip_ping: self.settings.skip_ping,
        };
        let reply = client.endpoints().create_endpoint(request).await.map_err(|status| explain(&status))?;
        let reply = reply.into_inner();
        if self.json {
            return contract::print(&reply, true);
        }
        if !reply.public_key.is_empty() {
            eprintln!("its public key, for receivers: {}", reply.public_key);
        }
        // At once: who reads only the first line may leave then.
        let lines = format!("{}\n{}\n", reply.endpoint.context("an empty reply")?.id, reply.secret);
        std::io::stdout().write_all(lines.as_bytes()).context("cannot write")
    }
}

impl Update {
    pub async fn run(self, client: &Client, project_id: String) -> anyhow::Result<()> {
        let fields = Fields::new()?;
        let object = self.settings.object(&fields)?;
        let mut paths = Vec::new();
        for name in object.keys() {
            if fields.of_row(name).is_some() {
                bail!(
                    "{name}: an update does not change it; see `hawser secrets rotate` and SubscriptionService"
                );
            }
            if name != "etag" && !fields.is_output(name) {
                paths.push(name.clone());
            }
        }
        paths.extend(self.clear);
        if paths.is_empty() {
            bail!("nothing to change: give a setting, --clear or --file");
        }
        let mut endpoint = settings::read(&fields, object)?.endpoint.unwrap_or_default();
        endpoint.id = self.endpoint;
        if let Some(etag) = self.etag {
            endpoint.etag = etag;
        }
        let request = pb::UpdateEndpointRequest {
            project_id,
            endpoint: Some(endpoint),
            update_mask: Some(prost_types::FieldMask { paths }),
            skip_ping: self.settings.skip_ping,
        };
        let reply = client.endpoints().update_endpoint(request).await.map_err(|status| explain(&status))?;
        eprintln!("{} is changed", reply.into_inner().endpoint.context("an empty reply")?.id);
        Ok(())
    }
}

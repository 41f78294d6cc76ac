//! `hawser projects`.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use hawser_client::{Client, pb};
use serde_json::{Map, Value, json};

use super::arguments::{duration, read_file};
use super::connect::{Server, explain};
use super::contract::{self, Reading};
use super::listing::Listing;
use super::table;

/// Make, list and change projects, and what their endpoints do where they do not say
///
/// For operators: a project's own keys do not reach its settings.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hawser projects create --name acme\n  \
    hawser projects list\n  \
    hawser projects get prj_… --json >one.json        # change it, and give it back:\n  \
    hawser projects update prj_… --file one.json\n  \
    echo '{\"http_timeout\": \"5s\", \"retry_policy\": {\"linear\": {\"wait\": \"30s\"}, \"max_attempts\": 5}}' |\n    \
    hawser projects update prj_… --file -\n  \
    hawser projects update prj_… --clear retry_policy\n  \
    hawser projects rotate-secret prj_… --grace 7d    # the operational webhook's")]
pub struct Projects {
    #[command(flatten)]
    server: Server,

    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a project and print its id, and its operational webhook's secret on a second line if it has one
    Create {
        #[command(flatten)]
        settings: Settings,
    },
    /// List projects, oldest first
    List(Listing),
    /// Show a project
    Get {
        /// The project's id
        project: String,
        /// Print JSON, which `update --file` takes
        #[arg(long)]
        json: bool,
    },
    /// Change what is given of a project, and keep the rest
    ///
    /// What a file names is changed, and cleared where it is null or empty; what only the server writes is passed over, and the
    /// file's etag makes sure that nobody changed the project in between. Where that first sets an operational webhook, its
    /// secret is printed.
    Update {
        /// The project's id
        project: String,
        #[command(flatten)]
        settings: Settings,
        /// Empty this field, by its name in the contract, such as retry_policy (may repeat)
        #[arg(long, value_name = "FIELD")]
        clear: Vec<String>,
        /// Only this version of it
        #[arg(long, value_name = "ETAG")]
        etag: Option<String>,
    },
    /// Print the operational webhook's secret; who did is in the audit log
    RevealSecret {
        /// The project's id
        project: String,
    },
    /// Give the operational webhook a new secret and print it
    RotateSecret {
        /// The project's id
        project: String,
        /// For how long the secret before goes on signing, such as 90s, 30m, 24h or 7d [default: 24h]
        #[arg(long, value_name = "TIME", value_parser = duration)]
        grace: Option<Duration>,
    },
}

/// Settings of a project
#[derive(clap::Args)]
struct Settings {
    /// A name for people
    #[arg(long)]
    name: Option<String>,

    /// File with any settings as an object of JSON; - is standard input. Flags come over it
    #[arg(long, value_name = "FILE")]
    file: Option<String>,
}

impl Settings {
    /// The file's object without what only the server writes, and over it what the flags say, by the contract's names.
    fn object(&self, reading: &Reading) -> anyhow::Result<Map<String, Value>> {
        let mut object = match &self.file {
            Some(path) => reading.object(path, &read_file(path)?)?,
            None => Map::new(),
        };
        object.retain(|name, _| !reading.is_output(name));
        if let Some(name) = &self.name {
            object.insert("name".to_owned(), json!(name));
        }
        Ok(object)
    }
}

impl Projects {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.server.connect().await?;
        match self.action {
            Action::Create { settings } => create(&client, &settings).await?,
            Action::List(listing) => list(&client, listing).await?,
            Action::Get { project, json } => {
                let request = pb::GetProjectRequest { project_id: project };
                let reply =
                    client.projects().get_project(request).await.map_err(|status| explain(&status))?;
                contract::print(&reply.into_inner().project.context("an empty reply")?, json)?;
            }
            Action::Update { project, settings, clear, etag } => {
                update(&client, project, &settings, clear, etag).await?;
            }
            Action::RevealSecret { project } => {
                let request = pb::RevealOperationalSecretRequest { project_id: project };
                let reply = client.projects().reveal_operational_secret(request).await;
                println!("{}", reply.map_err(|status| explain(&status))?.into_inner().secret);
            }
            Action::RotateSecret { project, grace } => {
                let grace = grace.map(prost_types::Duration::try_from).transpose()?;
                let request = pb::RotateOperationalSecretRequest { project_id: project, grace };
                let reply = client.projects().rotate_operational_secret(request).await;
                println!("{}", reply.map_err(|status| explain(&status))?.into_inner().secret);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn create(client: &Client, settings: &Settings) -> anyhow::Result<()> {
    let reading = Reading::of::<pb::Project>()?;
    let project = reading.message::<pb::Project>(settings.object(&reading)?)?;
    let request = pb::CreateProjectRequest { project: Some(project) };
    let reply = client.projects().create_project(request).await.map_err(|status| explain(&status))?;
    let reply = reply.into_inner();
    let mut lines = format!("{}\n", reply.project.context("an empty reply")?.id);
    if !reply.operational_secret.is_empty() {
        lines.push_str(&format!("{}\n", reply.operational_secret));
    }
    // At once: who reads only the first line may leave then.
    std::io::stdout().write_all(lines.as_bytes()).context("cannot write")
}

async fn list(client: &Client, listing: Listing) -> anyhow::Result<()> {
    let row = |project: &pb::Project| {
        let policy =
            project.paused_policy().as_str_name().trim_start_matches("PAUSED_POLICY_").to_lowercase();
        vec![project.id.clone(), project.name.clone(), policy, table::time(project.create_time)]
    };
    let mut projects = client.projects();
    let page = async |page_size, page_token| {
        let reply = projects.list_projects(pb::ListProjectsRequest { page_size, page_token }).await?;
        let reply = reply.into_inner();
        Ok((reply.projects, reply.next_page_token))
    };
    listing.print(&["id", "name", "while paused", "created"], row, page).await
}

async fn update(
    client: &Client,
    id: String,
    settings: &Settings,
    clear: Vec<String>,
    etag: Option<String>,
) -> anyhow::Result<()> {
    let reading = Reading::of::<pb::Project>()?;
    let object = settings.object(&reading)?;
    let changed = object.keys().filter(|name| *name != "etag").cloned();
    let paths: Vec<String> = changed.chain(clear).collect();
    if paths.is_empty() {
        bail!("nothing to change: give --name, --clear or --file");
    }
    let mut project = reading.message::<pb::Project>(object)?;
    project.id = id;
    if let Some(etag) = etag {
        project.etag = etag;
    }
    let request = pb::UpdateProjectRequest {
        project: Some(project),
        update_mask: Some(prost_types::FieldMask { paths }),
    };
    let reply = client.projects().update_project(request).await.map_err(|status| explain(&status))?;
    let reply = reply.into_inner();
    eprintln!("{} is changed", reply.project.context("an empty reply")?.id);
    if !reply.operational_secret.is_empty() {
        println!("{}", reply.operational_secret);
    }
    Ok(())
}

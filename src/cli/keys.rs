//! `hawser keys`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use hawser_client::{Client, pb};

use super::connect::{Server, explain};
use super::table;
use crate::config::Options;
use crate::domain::id::ProjectId;
use crate::domain::principal::{Scope, Scopes};
use crate::service::{NewKey, generate_operator_key, offline};
use crate::store::{Store, StoreSettings};

/// Make, list and revoke API keys
///
/// Speaks to a running server with an operator key. With --store it works on a stopped one instead, which is
/// how a lost operator key is replaced.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hawser keys create --project prj_… --name billing --scope events.publish --scope deliveries.read\n  \
    hawser keys list --project prj_…\n  \
    hawser keys revoke key_…\n  \
    hawser keys generate                              # text for HAWSER_OPERATOR_KEY\n  \
    hawser keys --store sqlite:hawser-data/hawser.db create --name rescue   # server stopped")]
pub struct Keys {
    #[command(flatten)]
    server: Server,

    /// Work on this store directly; its server must be stopped if it is SQLite
    #[arg(long, global = true, value_name = "URL")]
    store: Option<String>,

    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a key and print it, once
    Create {
        /// The project; without it an operator key is made
        #[arg(long, value_name = "ID")]
        project: Option<String>,
        /// A name for people
        #[arg(long)]
        name: String,
        /// What it may do: events.publish, events.read, endpoints.read, endpoints.write, deliveries.read,
        /// deliveries.write, watch, secrets.reveal, audit.read (may repeat; all where none is given)
        #[arg(long, value_name = "SCOPE")]
        scope: Vec<String>,
    },
    /// List keys
    List {
        /// The project; without it operator keys are listed
        #[arg(long, value_name = "ID")]
        project: Option<String>,
    },
    /// Revoke a key at once
    Revoke {
        /// The key's id (not its secret)
        id: String,
    },
    /// Print a fresh operator key for HAWSER_OPERATOR_KEY, without any server
    Generate,
}

const HEADINGS: [&str; 4] = ["id", "name", "scopes", "state"];

impl Keys {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match (&self.store, &self.action) {
            (_, Action::Generate) => println!("{}", generate_operator_key().reveal()),
            (Some(url), action) => offline(url, &self.server, action).await?,
            (None, action) => online(&self.server.connect().await?, action).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn offline(url: &str, server: &Server, action: &Action) -> anyhow::Result<()> {
    let options =
        Options { store: Some(url.to_owned()), data: Some(server.data.clone()), ..Options::default() };
    let (url, vault) = (options.database()?, options.vault()?);
    let store = Store::open(StoreSettings { url, vault, migrate: false, read_connections: 1 }).await?;
    let result = act_offline(&store, action).await;
    store.close().await;
    result
}

async fn act_offline(store: &Store, action: &Action) -> anyhow::Result<()> {
    match action {
        Action::Create { project, name, scope } => {
            let project: Option<ProjectId> = project.as_deref().map(str::parse).transpose()?;
            let scopes = if project.is_some() { named(scope)? } else { Scopes::default() };
            let new = NewKey { project, name: name.clone(), scopes, expires_at: None };
            println!("{}", offline::create_key(store, new).await?.reveal());
        }
        Action::List { project } => {
            let project: Option<ProjectId> = project.as_deref().map(str::parse).transpose()?;
            let mut table = table::plain(&HEADINGS);
            for key in offline::list_keys(store, project).await? {
                let scopes: Vec<&str> = key.scopes.iter().map(Scope::as_str).collect();
                let state = if key.revoked_at.is_some() { "revoked" } else { "valid" };
                table.add_row([key.id.to_string(), key.name, scopes.join(" "), state.to_owned()]);
            }
            println!("{table}");
        }
        Action::Revoke { id } => {
            offline::revoke_key(store, id.parse()?).await?;
            eprintln!("{id} is revoked");
        }
        Action::Generate => {}
    }
    Ok(())
}

async fn online(client: &Client, action: &Action) -> anyhow::Result<()> {
    let mut projects = client.projects();
    match action {
        Action::Create { project, name, scope } => {
            let api_key = pb::ApiKey {
                project_id: project.clone().unwrap_or_default(),
                name: name.clone(),
                scopes: if project.is_some() { scopes(scope)? } else { Vec::new() },
                ..pb::ApiKey::default()
            };
            let request = pb::CreateApiKeyRequest { api_key: Some(api_key) };
            let reply =
                projects.create_api_key(request).await.map_err(|status| explain(&status))?.into_inner();
            eprintln!("{} (the key is shown once)", reply.api_key.unwrap_or_default().id);
            println!("{}", reply.secret);
        }
        Action::List { project } => {
            let mut table = table::plain(&HEADINGS);
            let mut request = pb::ListApiKeysRequest {
                project_id: project.clone().unwrap_or_default(),
                page_size: 1000,
                ..pb::ListApiKeysRequest::default()
            };
            loop {
                let reply =
                    projects.list_api_keys(request.clone()).await.map_err(|status| explain(&status))?;
                let reply = reply.into_inner();
                for key in reply.api_keys {
                    let scopes: Vec<&str> = key.scopes().map(scope_name).collect();
                    let state = if key.revoke_time.is_some() { "revoked" } else { "valid" };
                    table.add_row([key.id.as_str(), key.name.as_str(), &scopes.join(" "), state]);
                }
                if reply.next_page_token.is_empty() {
                    break;
                }
                request.page_token = reply.next_page_token;
            }
            println!("{table}");
        }
        Action::Revoke { id } => {
            let request = pb::RevokeApiKeyRequest { api_key_id: id.clone() };
            projects.revoke_api_key(request).await.map_err(|status| explain(&status))?;
            eprintln!("{id} is revoked");
        }
        Action::Generate => {}
    }
    Ok(())
}

fn scope_name(scope: pb::Scope) -> &'static str {
    Scope::ALL.into_iter().find(|known| number(*known) == i32::from(scope)).map_or("?", Scope::as_str)
}

/// The contract numbers scopes from 1, in the order of the domain.
fn number(scope: Scope) -> i32 {
    scope as i32 + 1
}

fn scopes(names: &[String]) -> anyhow::Result<Vec<i32>> {
    Ok(named(names)?.iter().map(number).collect())
}

/// Scopes by name; all where none is named.
fn named(names: &[String]) -> anyhow::Result<Scopes> {
    if names.is_empty() {
        return Ok(Scopes::all());
    }
    names
        .iter()
        .map(|name| {
            Scope::from_name(name).with_context(|| {
                let known: Vec<&str> = Scope::ALL.into_iter().map(Scope::as_str).collect();
                format!("{name:?} is not a scope; there are {}", known.join(", "))
            })
        })
        .collect()
}

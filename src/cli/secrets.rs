//! `hawser secrets`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use hawser_client::{Client, pb};

use super::arguments::{duration, read_file};
use super::connect::{Place, explain};
use super::table;

/// Rotate, list, reveal and expire signing secrets of endpoints
///
/// A rotation gives an endpoint a new secret. The one before goes on signing beside it until its grace ends, so that
/// receivers can change over without a refused delivery.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hawser secrets rotate ep_…                        # the endpoint's grace, 24 h unless it says otherwise\n  \
    hawser secrets rotate ep_… --grace 7d --type ed25519\n  \
    hawser secrets rotate ep_… --secret-file new.txt  # a secret of your own; - is standard input\n  \
    hawser secrets list ep_…\n  \
    hawser secrets reveal sec_…\n  \
    hawser secrets expire sec_…                       # ends a retiring one now\n\n\
    Add --project prj_… when the key is an operator's.")]
pub struct Secrets {
    #[command(flatten)]
    place: Place,

    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Give an endpoint a new secret and print it
    Rotate {
        /// The endpoint's id
        endpoint: String,
        /// For how long the secret before goes on signing, such as 90s, 30m, 24h or 7d [default: the endpoint's]
        #[arg(long, value_name = "TIME", value_parser = duration)]
        grace: Option<Duration>,
        /// What to make [default: what the current one is]
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<Kind>,
        /// File with the new secret, instead of one that is made; - is standard input
        #[arg(long, value_name = "FILE", conflicts_with = "kind")]
        secret_file: Option<String>,
        /// A UUID of your own: the same command repeated with it prints the same secret and rotates nothing
        #[arg(long, value_name = "UUID", default_value = "", hide_default_value = true)]
        request_id: String,
    },
    /// List an endpoint's secrets, without their values
    List {
        /// The endpoint's id
        endpoint: String,
    },
    /// Print a secret's value; who did is in the audit log
    Reveal {
        /// The secret's id
        secret: String,
    },
    /// End a retiring secret now
    Expire {
        /// The secret's id
        secret: String,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Hmac,
    Ed25519,
}

impl Secrets {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let (client, project) = self.place.enter().await?;
        match self.action {
            Action::Rotate { endpoint, grace, kind, secret_file, request_id } => {
                let secret_type = match kind {
                    Some(Kind::Hmac) => pb::SecretType::Hmac,
                    Some(Kind::Ed25519) => pb::SecretType::Ed25519,
                    None => pb::SecretType::Unspecified,
                };
                let request = pb::RotateSecretRequest {
                    project_id: project,
                    endpoint_id: endpoint,
                    grace: grace.map(prost_types::Duration::try_from).transpose()?,
                    secret: secret_file.as_deref().map(read_file).transpose()?.unwrap_or_default(),
                    secret_type: secret_type.into(),
                    request_id,
                };
                rotate(&client, request).await?;
            }
            Action::List { endpoint } => list(&client, project, endpoint).await?,
            Action::Reveal { secret } => {
                let request = pb::RevealSecretRequest { project_id: project, secret_id: secret };
                let reply =
                    client.secrets().reveal_secret(request).await.map_err(|status| explain(&status))?;
                println!("{}", reply.into_inner().value);
            }
            Action::Expire { secret } => {
                let request = pb::ExpireSecretRequest { project_id: project, secret_id: secret.clone() };
                client.secrets().expire_secret(request).await.map_err(|status| explain(&status))?;
                eprintln!("{secret} signs no more");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn rotate(client: &Client, request: pb::RotateSecretRequest) -> anyhow::Result<()> {
    let reply =
        client.secrets().rotate_secret(request).await.map_err(|status| explain(&status))?.into_inner();
    let (new, old) = (reply.secret.unwrap_or_default(), reply.previous.unwrap_or_default());
    eprintln!("{} is the current secret; {} signs until {}", new.id, old.id, table::time(old.expire_time));
    if !new.public_key.is_empty() {
        eprintln!("its public key, for receivers: {}", new.public_key);
    }
    if !reply.warning.is_empty() {
        eprintln!("warning: {}", reply.warning);
    }
    println!("{}", reply.value);
    Ok(())
}

async fn list(client: &Client, project_id: String, endpoint_id: String) -> anyhow::Result<()> {
    let mut table = table::plain(&["id", "type", "state", "created", "expires", "public key"]);
    let mut request =
        pb::ListSecretsRequest { project_id, endpoint_id, page_size: 1000, ..Default::default() };
    let next = loop {
        let reply =
            client.secrets().list_secrets(request.clone()).await.map_err(|status| explain(&status))?;
        let reply = reply.into_inner();
        for secret in reply.secrets {
            let kind = secret.r#type().as_str_name().trim_start_matches("SECRET_TYPE_").to_lowercase();
            let state = secret.state().as_str_name().trim_start_matches("SECRET_STATE_").to_lowercase();
            let (created, expires) = (table::time(secret.create_time), table::time(secret.expire_time));
            table.add_row([secret.id, kind, state, created, expires, secret.public_key]);
        }
        if reply.next_page_token.is_empty() {
            break reply.next_rotation_time;
        }
        request.page_token = reply.next_page_token;
    };
    println!("{table}");
    if next.is_some() {
        eprintln!("rotates by itself at {}", table::time(next));
    }
    Ok(())
}

//! What an endpoint is made with and changed to: flags for what people set at a prompt, a file for everything.

use std::time::Duration;

use anyhow::bail;
use hawser_client::pb;
use serde_json::{Map, Value, json};

use crate::cli::arguments::{Rate, duration, pair, rate, read_file};
use crate::cli::import::fields::{Fields, Problem};
use crate::domain::endpoint::CustomHeader;
use crate::service::REDACTED;

/// Settings of an endpoint
#[derive(clap::Args)]
pub struct Settings {
    /// Where to deliver
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// Your id of the customer it belongs to
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,

    /// Your own id for it, unique in the project
    #[arg(long, value_name = "UID")]
    uid: Option<String>,

    /// A name for people
    #[arg(long)]
    name: Option<String>,

    /// Free text
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,

    /// A label (may repeat)
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,

    /// A header to send on every delivery (may repeat); `[redacted]` keeps the value it has
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = pair)]
    headers: Vec<(String, String)>,

    /// The same with its value in a file, for credentials; - is standard input
    #[arg(long = "header-file", value_name = "NAME=FILE", value_parser = pair)]
    header_files: Vec<(String, String)>,

    /// How many attempts may start in a time, such as 20/s or 100/1m
    #[arg(long, value_name = "N/TIME", value_parser = rate)]
    rate: Option<Rate>,

    /// How many of them at once, when none did for a while
    #[arg(long, value_name = "N", requires = "rate")]
    burst: Option<u32>,

    /// The time for a whole attempt, such as 5s
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,

    /// File with any settings as an object of JSON, as in a line of `hawser import`; - is standard input. Flags come over it
    #[arg(long, value_name = "FILE")]
    file: Option<String>,

    /// Do not ping it first
    #[arg(long)]
    pub skip_ping: bool,
}

impl Settings {
    /// The file's object, and over it what the flags say, by the contract's names.
    pub fn object(&self, fields: &Fields) -> anyhow::Result<Map<String, Value>> {
        let mut object = match &self.file {
            Some(path) => read_object(path, fields)?,
            None => Map::new(),
        };
        let mut set = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
        let texts = [
            ("url", &self.url),
            ("owner_id", &self.owner),
            ("uid", &self.uid),
            ("name", &self.name),
            ("description", &self.description),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                set(name, json!(text));
            }
        }
        if !self.labels.is_empty() {
            set("labels", self.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect());
        }
        let headers = self.headers()?;
        if !headers.is_empty() {
            set("headers", Value::Array(headers));
        }
        if let Some(Rate { requests, per }) = self.rate {
            let mut limit = json!({ "requests": requests, "per": seconds(per) });
            if let Some(burst) = self.burst {
                limit["burst"] = json!(burst);
            }
            set("rate_limit", limit);
        }
        if let Some(timeout) = self.timeout {
            set("http_timeout", json!(seconds(timeout)));
        }
        Ok(object)
    }

    fn headers(&self) -> anyhow::Result<Vec<Value>> {
        let mut headers = Vec::new();
        for (name, value) in &self.headers {
            let header = CustomHeader { name: name.clone(), value: value.clone() };
            if header.is_sensitive() && value != REDACTED {
                bail!(
                    "endpoint.headers: the value of {name} looks like a credential, which others can see in the list of \
                     processes: use --header-file {name}=FILE"
                );
            }
            headers.push(json!({ "name": name, "value": value }));
        }
        for (name, path) in &self.header_files {
            headers.push(json!({ "name": name, "value": read_file(path)? }));
        }
        Ok(headers)
    }
}

/// The object as the messages that the server takes.
pub fn read(fields: &Fields, object: Map<String, Value>) -> anyhow::Result<pb::BulkRow> {
    fields.read(object).map_err(|problems| {
        let line = |problem: &Problem| format!("\n  {}: {}", problem.field, problem.description);
        anyhow::anyhow!("the settings are wrong{}", problems.iter().map(line).collect::<String>())
    })
}

/// As JSON has durations.
fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

fn read_object(path: &str, fields: &Fields) -> anyhow::Result<Map<String, Value>> {
    let Ok(object) = serde_json::from_str::<Map<String, Value>>(&read_file(path)?) else {
        // No more than that: the text may hold a secret.
        bail!("{path} is not an object of JSON");
    };
    if object.contains_key("update_mask") || object.contains_key("updateMask") {
        bail!("update_mask: is not for one endpoint; what a file names is what is changed");
    }
    Ok(object.into_iter().map(|(name, value)| (fields.canonical(name), value)).collect())
}

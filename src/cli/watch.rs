//! `hawser watch`, and the lines that the demo shows too.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use hawser_client::pb::watch_response::Change;
use hawser_client::pb::{self, watch_request};
use serde_json::json;

use super::connect::{Server, explain};

/// Watch a project's changes live
///
/// On a terminal a table, in a pipe one JSON object a line, each with the token to resume after it. The
/// connection is made again by itself when the server restarts.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hawser watch --project prj_…\n  \
    hawser watch --project prj_… --owner acme --type 'invoice.*' | jq .\n  \
    hawser watch --project prj_… --from snapshot | jq .\n  \
    hawser watch --project prj_… --after TOKEN")]
pub struct Watch {
    #[command(flatten)]
    server: Server,

    /// The project; needed with an operator key
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    project: String,

    /// Only this endpoint (may repeat)
    #[arg(long, value_name = "ID")]
    endpoint: Vec<String>,

    /// Only endpoints of this owner
    #[arg(long, value_name = "OWNER", default_value = "", hide_default_value = true)]
    owner: String,

    /// Only event types that match this pattern (may repeat)
    #[arg(long = "type", value_name = "PATTERN")]
    event_type: Vec<String>,

    /// Where to begin
    #[arg(long, value_name = "WHERE", default_value = "now", conflicts_with = "after")]
    from: From,

    /// Go on after this token instead
    #[arg(long, value_name = "TOKEN")]
    after: Option<String>,
}

/// Where a stream begins.
#[derive(Clone, Copy, clap::ValueEnum)]
enum From {
    /// What happens from now on
    Now,
    /// The oldest change that is kept
    Earliest,
    /// All endpoints as they are, then what changes
    Snapshot,
}

impl Watch {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.server.connect().await?;
        let start = match (self.after, self.from) {
            (Some(token), _) => watch_request::Start::ResumeToken(token),
            (None, From::Now) => watch_request::Start::Now(pb::StartNow {}),
            (None, From::Earliest) => watch_request::Start::Earliest(pb::StartEarliest {}),
            (None, From::Snapshot) => watch_request::Start::Snapshot(pb::StartSnapshot {}),
        };
        let request = pb::WatchRequest {
            project_id: self.project,
            start: Some(start),
            endpoint_ids: self.endpoint,
            owner_id: self.owner,
            event_types: self.event_type,
            kinds: Vec::new(),
            include_payload: false,
        };
        let mut stream = client.watch(request).await.map_err(|status| explain(&status))?;
        let mut out = std::io::stdout();
        let terminal = out.is_terminal();
        if terminal {
            println!("{}", heading());
        }
        loop {
            let message = tokio::select! {
                message = stream.message() => message.map_err(|status| explain(&status))?,
                _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
            };
            let text = if terminal { line(&message) } else { Some(json_line(&message)) };
            let Some(text) = text else { continue };
            if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
                // The reader of the pipe left.
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// The heading of [`line()`]'s columns.
pub fn heading() -> String {
    row("TIME", "WHAT", "ID", "STATE", "DETAIL")
}

fn row(time: &str, what: &str, id: &str, state: &str, detail: &str) -> String {
    format!("{time:<12}  {what:<9}  {id:<30}  {state:<10}  {detail}").trim_end().to_owned()
}

/// A change for people; none for bookmarks.
pub fn line(message: &pb::WatchResponse) -> Option<String> {
    let time = message.commit_time.map(clock).unwrap_or_default();
    Some(match message.change.as_ref()? {
        Change::EndpointChange(change) => {
            let what =
                change.r#type().as_str_name().trim_start_matches("ENDPOINT_CHANGE_TYPE_").to_lowercase();
            let endpoint = change.endpoint.as_ref()?;
            let state = endpoint.status().as_str_name().trim_start_matches("ENDPOINT_STATUS_").to_owned();
            row(&time, "endpoint", &endpoint.id, &state, &format!("{what} {}", endpoint.url))
        }
        Change::DeliveryChange(change) => {
            let delivery = change.delivery.as_ref()?;
            let state = delivery.status().as_str_name().trim_start_matches("DELIVERY_STATUS_").to_owned();
            let mut detail = format!("{} to {}", delivery.event_type, delivery.endpoint_id);
            if let Some(next) = delivery.next_attempt_time.filter(|_| delivery.attempt_count > 0) {
                detail.push_str(&format!(", next at {}", clock(next)));
            }
            row(&time, "delivery", &delivery.id, &state, &detail)
        }
        Change::Attempt(attempt) => {
            let state = match attempt.status_code {
                Some(code) => code.to_string(),
                None => attempt.error_class().as_str_name().trim_start_matches("ERROR_CLASS_").to_owned(),
            };
            let took = attempt.timings.as_ref().and_then(|timings| timings.total);
            let took =
                took.map(|took| took.seconds as f64 * 1e3 + f64::from(took.nanos) / 1e6).unwrap_or_default();
            let detail = format!("#{} in {took:.1} ms {}", attempt.number, attempt.error_detail);
            row(&time, "attempt", &attempt.delivery_id, &state, &detail)
        }
        Change::Bookmark(_) => return None,
    })
}

/// A change for programs.
fn json_line(message: &pb::WatchResponse) -> String {
    let mut object = match &message.change {
        Some(Change::EndpointChange(change)) => {
            let endpoint = change.endpoint.clone().unwrap_or_default();
            json!({
                "kind": "endpoint", "type": change.r#type().as_str_name(), "endpoint_id": endpoint.id,
                "status": endpoint.status().as_str_name(), "url": endpoint.url, "owner_id": endpoint.owner_id,
                "revision": endpoint.revision,
            })
        }
        Some(Change::DeliveryChange(change)) => {
            let delivery = change.delivery.clone().unwrap_or_default();
            json!({
                "kind": "delivery", "type": change.r#type().as_str_name(), "delivery_id": delivery.id,
                "event_id": delivery.event_id, "endpoint_id": delivery.endpoint_id,
                "event_type": delivery.event_type, "status": delivery.status().as_str_name(),
                "attempt_count": delivery.attempt_count, "last_status_code": delivery.last_status_code,
                "last_error_class": delivery.last_error_class().as_str_name(),
                "next_attempt_time": delivery.next_attempt_time.map(instant),
            })
        }
        Some(Change::Attempt(attempt)) => json!({
            "kind": "attempt", "attempt_id": attempt.id, "delivery_id": attempt.delivery_id,
            "event_id": attempt.event_id, "endpoint_id": attempt.endpoint_id, "number": attempt.number,
            "status_code": attempt.status_code, "error_class": attempt.error_class().as_str_name(),
            "error_detail": attempt.error_detail, "peer_address": attempt.peer_address,
        }),
        Some(Change::Bookmark(bookmark)) => {
            json!({ "kind": "bookmark", "snapshot_end": bookmark.snapshot_end })
        }
        None => json!({ "kind": "unknown" }),
    };
    object["commit_time"] = json!(message.commit_time.map(instant));
    object["resume_token"] = json!(message.resume_token);
    object.to_string()
}

fn utc(time: prost_types::Timestamp) -> time::OffsetDateTime {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    time::OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

/// RFC 3339.
pub fn instant(time: prost_types::Timestamp) -> String {
    utc(time).format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

/// The time of day, in UTC.
fn clock(time: prost_types::Timestamp) -> String {
    let format = time::macros::format_description!("[hour]:[minute]:[second].[subsecond digits:3]");
    utc(time).format(format).unwrap_or_default()
}

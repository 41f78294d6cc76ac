//! Bulk calls as messages: reading options and rows, and telling what became of each row.

use super::check::Check;
use super::endpoints::{PATTERNS_MAX, masked, populated, settings};
use super::{pb, pings, signatures, status};
use crate::domain::error::{Error, Result};
use crate::domain::id::ProjectId;
use crate::service::{BulkOutcome, BulkPing, BulkResult, BulkRow, Ping};

/// What holds for all rows.
pub struct Options {
    pub project: Option<ProjectId>,
    pub dry_run: bool,
    pub ping: BulkPing,
}

pub fn read_options(options: pb::BulkOptions) -> Result<Options> {
    let mut check = Check::default();
    let project = check.project(&options.project_id);
    let ping = match pb::BulkPing::try_from(options.ping) {
        Ok(pb::BulkPing::Unspecified | pb::BulkPing::Off) => Some(BulkPing::Off),
        Ok(pb::BulkPing::Report) => Some(BulkPing::Report),
        Ok(pb::BulkPing::Require) => Some(BulkPing::Require),
        Err(_) => {
            check.refuse("options.ping", "is not a known way");
            None
        }
    };
    let ping = check.finish(ping)?;
    Ok(Options { project, dry_run: options.dry_run, ping })
}

/// A row with its number; one that is not valid is an error with its number.
pub fn read_row(row: pb::BulkRow) -> (i64, Result<BulkRow>) {
    let number = row.row_number;
    let Some(endpoint) = row.endpoint else {
        return (number, Err(Error::invalid("endpoint", "is required")));
    };
    let mut check = Check::default();
    let fields = match row.update_mask {
        Some(mask) if !mask.paths.is_empty() => masked(&mut check, &mask.paths),
        _ => populated(&endpoint),
    };
    let event_types = check.patterns("event_types", &row.event_types, PATTERNS_MAX);
    let settings = settings(&mut check, endpoint);
    let secret = signatures::new_secret(&mut check, &row.secret, row.secret_type);
    (number, check.finish(Some(BulkRow { settings, fields, event_types, secret })))
}

pub fn message(result: BulkResult) -> pb::BulkCreateEndpointsResponse {
    let ping = result.ping.as_ref().map(ping_message);
    let mut message =
        pb::BulkCreateEndpointsResponse { row_number: result.number, ping, ..Default::default() };
    let outcome = match result.outcome {
        Ok(BulkOutcome::Created(created)) => {
            message.endpoint_id = created.endpoint.id.to_string();
            message.public_key = created.secret.public_key().map(|key| key.to_string()).unwrap_or_default();
            message.secret = created.secret.reveal().to_string();
            pb::BulkOutcome::Created
        }
        Ok(BulkOutcome::Updated(id)) => {
            message.endpoint_id = id.to_string();
            pb::BulkOutcome::Updated
        }
        Ok(BulkOutcome::Unchanged(id)) => {
            message.endpoint_id = id.to_string();
            pb::BulkOutcome::Unchanged
        }
        Ok(BulkOutcome::WouldCreate) => pb::BulkOutcome::WouldCreate,
        Ok(BulkOutcome::WouldUpdate(id)) => {
            message.endpoint_id = id.to_string();
            pb::BulkOutcome::WouldUpdate
        }
        Err(error) => {
            message.error = Some(status::embedded(error));
            pb::BulkOutcome::Refused
        }
    };
    message.set_outcome(outcome);
    message
}

fn ping_message(ping: &Ping) -> pb::BulkPingResult {
    pb::BulkPingResult { accepted: ping.is_accepted(), tries: pings::tries(ping) }
}

//! `hawser audit`.

use std::process::ExitCode;

use hawser_client::pb;

use super::arguments::moment;
use super::connect::Server;
use super::listing::Listing;
use super::table;

/// List who changed what, when, and from where; newest first
///
/// JSON has what it was before and after too, without secrets.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hawser audit --resource ep_…\n  \
    hawser audit --action RevealSecret --since 7d\n  \
    hawser audit --limit 1 --json | jq -r '.before, .after'\n\n\
    An operator key sees the entries of all projects; --project prj_… narrows them to one.")]
pub struct Audit {
    #[command(flatten)]
    server: Server,

    /// The project
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    project: String,

    /// Only what was done to the thing with this id
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    resource: String,

    /// Only this call, such as UpdateEndpoint
    #[arg(long, value_name = "CALL", default_value = "", hide_default_value = true)]
    action: String,

    /// Only from this instant on (2030-01-31T12:00:00Z), or since so long ago (24h)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<prost_types::Timestamp>,

    /// Only before this instant, or so long ago
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<prost_types::Timestamp>,

    #[command(flatten)]
    listing: Listing,
}

impl Audit {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut audit = self.server.connect().await?.audit();
        let request = pb::ListAuditEventsRequest {
            project_id: self.project,
            resource: self.resource,
            action: self.action,
            start_time: self.since,
            end_time: self.until,
            ..Default::default()
        };
        let row = |event: &pb::AuditEvent| {
            let key = if event.api_key_name.is_empty() { &event.api_key_id } else { &event.api_key_name };
            let (action, resource) = (event.action.clone(), event.resource.clone());
            vec![table::time(event.create_time), action, resource, key.clone(), event.origin.clone()]
        };
        let page = async |page_size, page_token| {
            let request = pb::ListAuditEventsRequest { page_size, page_token, ..request.clone() };
            let reply = audit.list_audit_events(request).await?.into_inner();
            Ok((reply.audit_events, reply.next_page_token))
        };
        self.listing.print(&["time", "action", "resource", "key", "from"], row, page).await?;
        Ok(ExitCode::SUCCESS)
    }
}

//! `hawser import`: endpoints from a file, through BulkCreateEndpoints.

mod columns;
mod exchange;
pub(super) mod fields;
mod report;
mod source;
mod twins;

use std::path::PathBuf;
use std::process::ExitCode;

use hawser_client::pb;

use super::connect::Server;
use exchange::Exchange;
use report::Report;
use source::{Format, Source};

/// Create and update endpoints from a CSV or JSON lines file
///
/// A row is an update where its endpoint is there: the one with its uid or, where it has none, the only one with its
/// owner_id and url. What is as the row wants it stays untouched, so that running the same command again goes on after
/// a failure. Rows that are refused are told on stderr with their fields; the others are not kept from being made.
#[derive(clap::Args)]
#[command(after_help = "A row is a line of JSON, or of CSV under a line of column names:\n  \
    {\"url\": \"https://acme.example/hook\", \"owner_id\": \"acme\", \"event_types\": [\"invoice.*\"]}\n\n  \
    url,owner_id,labels.tier,event_types,authentication.basic_auth.username,authentication.basic_auth.password\n  \
    https://acme.example/hook,acme,gold,invoice.*;order.paid,hawser,secret\n\n\
    Names are those of the contract's Endpoint, and event_types, secret, secret_type and update_mask.\n\n\
    Examples:\n  \
    hawser import endpoints.csv --project prj_… --dry-run\n  \
    hawser import endpoints.csv --project prj_… --results made.jsonl\n  \
    psql -c \"…\" | hawser import - --format jsonl --ping require --results made.jsonl\n\n\
    Exits with 4 if rows were refused.")]
pub struct Import {
    #[command(flatten)]
    server: Server,

    /// The file; - is standard input
    file: String,

    /// The project, which an operator key must name
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    project: String,

    /// What the file is [default: by its name, .csv or .jsonl, .ndjson or .json]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Say what would come of each row, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Ping endpoints before they are made, or changed in how they are reached; a server with skip-ping makes no pings
    #[arg(long, value_name = "WHEN", default_value = "off")]
    ping: Ping,

    /// Add what became of each row, with new secrets, to this file (for its owner alone); - is standard output
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,

    /// What separates the cells of CSV
    #[arg(long, value_name = "CHARACTER", default_value = ",", value_parser = ascii)]
    delimiter: u8,

    /// What separates the entries of a list in one cell of CSV, such as event_types
    #[arg(long, value_name = "CHARACTER", default_value = ";")]
    list_separator: char,
}

/// What is done about pings.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Ping {
    /// None are made
    Off,
    /// Failed ones are told
    Report,
    /// Rows whose endpoint does not accept it are refused
    Require,
}

/// A row was refused.
const REFUSED: u8 = 4;

impl Import {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let source = Source {
            file: self.file,
            format: self.format,
            delimiter: self.delimiter,
            list_separator: self.list_separator,
        };
        let rows = source.open()?;
        let client = self.server.connect().await?;
        let pings = !matches!(self.ping, Ping::Off);
        let mut report = Report::open(self.results.as_deref(), rows.size, self.dry_run, pings)?;
        let ping = match self.ping {
            Ping::Off => pb::BulkPing::Off,
            Ping::Report => pb::BulkPing::Report,
            Ping::Require => pb::BulkPing::Require,
        };
        let options = pb::BulkOptions { project_id: self.project, dry_run: self.dry_run, ping: ping.into() };
        let done = Exchange::new(client, options, rows.rows).run(&mut report).await;
        let refused = report.finish()?;
        done?;
        Ok(if refused > 0 { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS })
    }
}

fn ascii(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [byte] if byte.is_ascii() => Ok(*byte),
        _ if text == "\\t" => Ok(b'\t'),
        _ => Err("must be one ASCII character, or \\t".to_owned()),
    }
}

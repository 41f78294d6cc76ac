//! What an import tells: progress, refused rows, and the file of results.

use std::fs::{OpenOptions, Permissions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hawser_client::{error_of, field_violations, pb, reason};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::fields::Problem;

/// Without a terminal, rows between two lines of progress.
const LINE_EVERY: u64 = 1000;

/// Tells what becomes of rows.
pub struct Report {
    /// Only on a terminal.
    bar: Option<ProgressBar>,
    results: Option<Box<dyn Write + Send>>,
    dry_run: bool,
    /// Whether pings are asked for, and nobody was told yet that there are none.
    pings: bool,
    counts: Counts,
    /// New secrets that nobody was told.
    untold: u64,
}

#[derive(Default)]
struct Counts {
    created: u64,
    updated: u64,
    unchanged: u64,
    refused: u64,
}

impl Counts {
    const fn all(&self) -> u64 {
        self.created + self.updated + self.unchanged + self.refused
    }

    fn line(&self, dry_run: bool) -> String {
        let would = if dry_run { "would be " } else { "" };
        let Self { created, updated, unchanged, refused } = self;
        let all = self.all();
        format!(
            "{all} rows: {created} {would}created, {updated} {would}updated, {unchanged} unchanged, {refused} refused"
        )
    }
}

impl Report {
    /// `size` is the file's, where it is known.
    pub fn open(
        results: Option<&Path>,
        size: Option<u64>,
        dry_run: bool,
        pings: bool,
    ) -> anyhow::Result<Self> {
        let results = results.map(open_results).transpose()?;
        let bar = std::io::stderr().is_terminal().then(|| bar(size));
        Ok(Self { bar, results, dry_run, pings, counts: Counts::default(), untold: 0 })
    }

    /// The server's answer to a row.
    pub fn answered(
        &mut self,
        row: &pb::BulkRow,
        end: u64,
        answer: &pb::BulkCreateEndpointsResponse,
    ) -> anyhow::Result<()> {
        let number = answer.row_number;
        let problems = answer.error.as_ref().map(problems).unwrap_or_default();
        self.keep(number, row.endpoint.as_ref(), answer, &problems)?;
        match answer.outcome() {
            pb::BulkOutcome::Created | pb::BulkOutcome::WouldCreate => self.counts.created += 1,
            pb::BulkOutcome::Updated | pb::BulkOutcome::WouldUpdate => self.counts.updated += 1,
            pb::BulkOutcome::Unchanged => self.counts.unchanged += 1,
            pb::BulkOutcome::Refused | pb::BulkOutcome::Unspecified => self.counts.refused += 1,
        }
        if !answer.secret.is_empty() && self.results.is_none() && row.secret.is_empty() {
            self.untold += 1;
        }
        self.tell(number, &problems);
        self.tell_of_no_pings(answer);
        if problems.is_empty()
            && let Some(ping) = answer.ping.as_ref().filter(|ping| !ping.accepted)
        {
            self.say(&format!("row {number}: made, but its ping failed: {}", tries(ping)));
        }
        self.advance(end);
        Ok(())
    }

    /// A row that is not sent.
    pub fn refused(&mut self, number: i64, end: u64, problems: &[Problem]) -> anyhow::Result<()> {
        let outcome = pb::BulkOutcome::Refused.into();
        let answer = pb::BulkCreateEndpointsResponse { row_number: number, outcome, ..Default::default() };
        self.keep(number, None, &answer, problems)?;
        self.counts.refused += 1;
        self.tell(number, problems);
        self.advance(end);
        Ok(())
    }

    /// Ends it; says how many rows were refused.
    pub fn finish(mut self) -> anyhow::Result<u64> {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if let Some(results) = &mut self.results {
            results.flush().context("cannot write the results")?;
        }
        eprintln!("{}", self.counts.line(self.dry_run));
        if self.untold > 0 {
            eprintln!(
                "{} new signing secrets were not shown (--results keeps them): `hawser secrets list ep_…`, then reveal",
                self.untold
            );
        }
        Ok(self.counts.refused)
    }

    /// A line for people.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Once. A new endpoint is pinged wherever the server makes pings.
    fn tell_of_no_pings(&mut self, answer: &pb::BulkCreateEndpointsResponse) {
        let is_new = matches!(answer.outcome(), pb::BulkOutcome::Created | pb::BulkOutcome::WouldCreate);
        if self.pings && is_new && answer.ping.is_none() {
            self.pings = false;
            self.say("the server makes no pings (skip-ping): endpoints are made unasked");
        }
    }

    fn tell(&self, number: i64, problems: &[Problem]) {
        for Problem { field, description } in problems {
            let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
            self.say(&format!("row {number}: {field}{description}"));
        }
    }

    fn advance(&self, end: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(end);
                bar.set_message(self.counts.line(self.dry_run));
            }
            None if self.counts.all().is_multiple_of(LINE_EVERY) => {
                eprintln!("{}", self.counts.line(self.dry_run));
            }
            None => {}
        }
    }

    /// Writes a line into the results, before the row counts as done: nobody else has its secret.
    fn keep(
        &mut self,
        number: i64,
        endpoint: Option<&pb::Endpoint>,
        answer: &pb::BulkCreateEndpointsResponse,
        problems: &[Problem],
    ) -> anyhow::Result<()> {
        let Some(results) = &mut self.results else { return Ok(()) };
        let mut line = json!({
            "row": number,
            "outcome": answer.outcome().as_str_name().trim_start_matches("BULK_OUTCOME_"),
        });
        let texts = [
            ("uid", endpoint.map(|endpoint| &endpoint.uid)),
            ("owner_id", endpoint.map(|endpoint| &endpoint.owner_id)),
            ("url", endpoint.map(|endpoint| &endpoint.url)),
            ("endpoint_id", Some(&answer.endpoint_id)),
            ("secret", Some(&answer.secret)),
            ("public_key", Some(&answer.public_key)),
        ];
        for (name, text) in texts {
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                line[name] = json!(text);
            }
        }
        if let Some(ping) = &answer.ping {
            line["ping"] = json!({ "accepted": ping.accepted, "tries": tries(ping) });
        }
        if !problems.is_empty() {
            let problem = |one: &Problem| json!({ "field": one.field, "description": one.description });
            line["problems"] = problems.iter().map(problem).collect::<Value>();
        }
        let text = format!("{line}\n");
        results.write_all(text.as_bytes()).and_then(|()| results.flush()).context("cannot write the results")
    }
}

/// What was before stays: it may hold the only copy of a secret.
fn open_results(path: &Path) -> anyhow::Result<Box<dyn Write + Send>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(std::io::stdout()));
    }
    let describe = || format!("cannot write {}", path.display());
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).with_context(describe)?;
    if file.metadata().with_context(describe)?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600)).with_context(describe)?;
    }
    Ok(Box::new(file))
}

fn bar(size: Option<u64>) -> ProgressBar {
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{bar:30} {percent:>3} %  {msg}  {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}"),
    };
    bar.enable_steady_tick(Duration::from_millis(200));
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The fields that a row was refused for; or what else it was refused for.
fn problems(error: &tonic_types::pb::Status) -> Vec<Problem> {
    let status = error_of(error);
    let fields: Vec<Problem> = field_violations(&status)
        .into_iter()
        .map(|violation| Problem::new(violation.field, violation.description))
        .collect();
    if !fields.is_empty() {
        return fields;
    }
    let reason = reason(&status).map(|reason| format!(" ({reason})")).unwrap_or_default();
    vec![Problem::new("", format!("{}{reason}", status.message()))]
}

fn tries(ping: &pb::BulkPingResult) -> String {
    let one = |one: &pb::PingTry| match one.status_code {
        Some(code) => format!("{} answered {code}", one.method),
        None => {
            let class = one.error_class().as_str_name().trim_start_matches("ERROR_CLASS_").to_owned();
            format!("{} failed ({class})", one.method)
        }
    };
    ping.tries.iter().map(one).collect::<Vec<_>>().join("; ")
}

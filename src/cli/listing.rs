//! Lists of the server, page by page, as tables or JSON lines.

use std::io::Write;

use anyhow::Context;
use tonic::Status;

use super::connect::explain;
use super::contract::{Display, Shown};
use super::table;

/// In one page; the largest that there can be are far below what a client takes.
const PAGE: u32 = 100;

/// How much to show, and how
#[derive(clap::Args)]
pub struct Listing {
    /// Show at most so many, up to 100000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,

    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

impl Listing {
    /// Prints what is listed; `page` asks for a page by its size and token, and has the next one's token.
    pub async fn print<M: Shown>(
        self,
        columns: &[&str],
        row: impl Fn(&M) -> Vec<String>,
        mut page: impl AsyncFnMut(i32, String) -> Result<(Vec<M>, String), Status>,
    ) -> anyhow::Result<()> {
        let (display, mut out) = (Display::of::<M>()?, std::io::stdout());
        let mut table = table::plain(columns);
        let (mut left, mut token) = (self.limit, String::new());
        while left > 0 {
            let (items, next) =
                page(left.min(PAGE) as i32, token).await.map_err(|status| explain(&status))?;
            left = left.saturating_sub(items.len() as u32);
            for item in &items {
                if !self.json {
                    table.add_row(row(item).iter().map(|text| table::cell(text)));
                } else if writeln!(out, "{}", display.json(item)?).is_err() {
                    // The reader of the pipe left.
                    return Ok(());
                }
            }
            token = next;
            if token.is_empty() {
                break;
            }
        }
        if !self.json && writeln!(out, "{table}").is_err() {
            return Ok(());
        }
        out.flush().context("cannot write")?;
        if !token.is_empty() {
            eprintln!("there are more than these {}: see --limit", self.limit);
        }
        Ok(())
    }
}

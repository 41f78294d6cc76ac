//! The file: its rows, one by one, with their numbers and how far into the file they reach.
//!
//! It is read by a thread of its own, a bounded number of rows ahead.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail};
use hawser_client::pb;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::columns::Column;
use super::fields::{Fields, Problem};

/// Rows read ahead.
const AHEAD: usize = 256;
/// The longest line of JSON: more than the server takes.
const LINE_MAX: u64 = 8 * 1024 * 1024;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Cells under a line of column names
    Csv,
    /// An object of JSON on each line
    Jsonl,
}

/// Which file, and how to read it.
pub struct Source {
    /// `-` for standard input.
    pub file: String,
    pub format: Option<Format>,
    pub delimiter: u8,
    pub list_separator: char,
}

/// The rows of a file.
pub struct Rows {
    pub rows: mpsc::Receiver<anyhow::Result<Row>>,
    /// Its bytes, where that is known.
    pub size: Option<u64>,
}

/// A row.
pub struct Row {
    /// Its line of JSON, or its row as a spreadsheet counts them, under the names in row 1.
    pub number: i64,
    /// Bytes of the file up to its end.
    pub end: u64,
    pub row: Result<pb::BulkRow, Vec<Problem>>,
}

type Sender = mpsc::Sender<anyhow::Result<Row>>;

impl Source {
    pub fn open(self) -> anyhow::Result<Rows> {
        let format = self.format()?;
        let (reader, size): (Box<dyn Read + Send>, _) = match self.file.as_str() {
            "-" => (Box::new(std::io::stdin()), None),
            path => {
                let file = File::open(path).with_context(|| format!("cannot read {path}"))?;
                let size = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|about| about.len());
                (Box::new(file), size)
            }
        };
        let fields = Fields::new()?;
        let (sender, rows) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || {
            let read = match format {
                Format::Csv => self.read_csv(reader, &fields, &sender),
                Format::Jsonl => read_lines(reader, &fields, &sender),
            };
            if let Err(error) = read {
                // Whoever wanted the rows may have gone.
                drop(sender.blocking_send(Err(error.context(format!("cannot read {}", self.file)))));
            }
        });
        Ok(Rows { rows, size })
    }

    fn format(&self) -> anyhow::Result<Format> {
        let extension = Path::new(&self.file).extension().and_then(|text| text.to_str()).unwrap_or_default();
        match (self.format, extension.to_lowercase().as_str()) {
            (Some(format), _) => Ok(format),
            (None, "csv" | "tsv") => Ok(Format::Csv),
            (None, "jsonl" | "ndjson" | "json") => Ok(Format::Jsonl),
            (None, _) => bail!("{}: say what it is with --format csv or --format jsonl", self.file),
        }
    }

    fn read_csv(&self, reader: impl Read, fields: &Fields, sender: &Sender) -> anyhow::Result<()> {
        // A row with too many cells or too few stands alone.
        let mut csv =
            csv::ReaderBuilder::new().delimiter(self.delimiter).flexible(true).from_reader(Lines::of(reader));
        let names = csv.headers().context("the column names")?.clone();
        let mut empty = empty_rows(&csv, 1, true, names.iter().map(str::as_bytes));
        let mut columns: Vec<Column> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for name in names.iter().map(str::trim) {
            if !seen.insert(name) {
                bail!("column {name:?} is there twice");
            }
            columns.push(Column::parse(fields, name).map_err(anyhow::Error::msg)?);
        }
        let mut record = csv::ByteRecord::new();
        for number in 2.. {
            let line = csv.position().line();
            if !csv.read_byte_record(&mut record)? {
                return Ok(());
            }
            empty += empty_rows(&csv, line, false, &record);
            let number = number + empty;
            let end = csv.position().byte();
            // Spreadsheets leave such rows.
            if record.iter().all(<[u8]>::is_empty) {
                continue;
            }
            let row = self.row(&columns, &names, &record).and_then(|row| fields.read(row));
            if sender.blocking_send(Ok(Row { number, end, row })).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn row(
        &self,
        columns: &[Column],
        names: &csv::StringRecord,
        record: &csv::ByteRecord,
    ) -> Result<Map<String, Value>, Vec<Problem>> {
        if record.len() != columns.len() {
            let message = format!("has {} cells, and there are {} columns", record.len(), columns.len());
            return Err(vec![Problem::new("", message)]);
        }
        let (mut row, mut problems) = (Map::new(), Vec::new());
        for ((column, name), cell) in columns.iter().zip(names).zip(record) {
            match std::str::from_utf8(cell) {
                Ok(cell) => column.put(&mut row, cell, self.list_separator),
                Err(_) => problems.push(Problem::new(name, "is not UTF-8")),
            }
        }
        if problems.is_empty() { Ok(row) } else { Err(problems) }
    }
}

/// A file that notes how its lines end, and when it is read to its end.
struct Lines<R> {
    reader: R,
    before: u8,
    /// Whether they end with a carriage return, by the first of them.
    returns: Option<bool>,
    is_over: bool,
}

impl<R> Lines<R> {
    fn of(reader: R) -> Self {
        Self { reader, before: 0, returns: None, is_over: false }
    }
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.is_over |= read == 0;
        if self.returns.is_none()
            && let Some(at) = buffer[..read].iter().position(|byte| *byte == b'\n')
        {
            let before = if at == 0 { self.before } else { buffer[at - 1] };
            self.returns = Some(before == b'\r');
        }
        self.before = buffer[..read].last().copied().unwrap_or(self.before);
        Ok(read)
    }
}

/// Rows without anything in them that stood before the one that was just read from this line on: they are passed over, and
/// counted all the same, as a spreadsheet does.
fn empty_rows<'a, R: Read>(
    csv: &csv::Reader<Lines<R>>,
    from_line: u64,
    is_first: bool,
    record: impl IntoIterator<Item = &'a [u8]>,
) -> i64 {
    let file = csv.get_ref();
    // A row is given out at its carriage return: the line that this ends is the next row's to count. Else its own, which only
    // the last may lack.
    let ended = if file.returns == Some(true) { !is_first } else { !file.is_over };
    // Cells in quotes may have lines of their own.
    let within = record.into_iter().flatten().filter(|byte| **byte == b'\n').count() as u64;
    let empty = (csv.position().line() - from_line).saturating_sub(within + u64::from(ended));
    i64::try_from(empty).unwrap_or(i64::MAX)
}

fn read_lines(reader: impl Read, fields: &Fields, sender: &Sender) -> anyhow::Result<()> {
    let mut reader = BufReader::new(reader);
    let (mut line, mut end) = (Vec::new(), 0);
    for number in 1.. {
        line.clear();
        let length = reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? as u64;
        if length == 0 {
            return Ok(());
        }
        if length == LINE_MAX {
            bail!("line {number} is too long");
        }
        end += length;
        let text = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line).trim_ascii();
        if text.is_empty() {
            continue;
        }
        let row = match serde_json::from_slice::<Map<String, Value>>(text) {
            Ok(object) => fields.read(object),
            // Where, but not what: the text may be a secret.
            Err(error) => {
                let message = format!("is not an object of JSON (column {})", error.column());
                Err(vec![Problem::new("", message)])
            }
        };
        if sender.blocking_send(Ok(Row { number, end, row })).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

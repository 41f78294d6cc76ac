//! Tables for people, and what is in their cells.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use hawser_client::pb;

use super::watch::instant;

/// A table without borders, as wide as the terminal.
pub fn plain(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(columns.iter().map(|name| name.to_uppercase()));
    table
}

/// Text that others wrote, on one line: nothing in it moves the cursor or changes a terminal's colours.
pub fn cell(text: &str) -> String {
    text.replace(['\n', '\t'], " ").replace(char::is_control, "\u{fffd}")
}

/// An instant, or nothing.
pub fn time(time: Option<prost_types::Timestamp>) -> String {
    time.map(instant).unwrap_or_default()
}

/// How long something took, or nothing.
pub fn took(time: Option<prost_types::Duration>) -> String {
    time.map(|time| format!("{:.1} ms", time.seconds as f64 * 1e3 + f64::from(time.nanos) / 1e6))
        .unwrap_or_default()
}

/// What came of a request: its status, or why there is none.
pub fn answer(status_code: Option<i32>, class: pb::ErrorClass) -> String {
    match (status_code, class) {
        (Some(code), _) => code.to_string(),
        (None, pb::ErrorClass::Unspecified) => String::new(),
        (None, class) => class.as_str_name().trim_start_matches("ERROR_CLASS_").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_hold_no_control_characters() {
        assert_eq!(cell("a\u{1b}[31mé\nb\u{9b}"), "a\u{fffd}[31mé b\u{fffd}");
    }
}

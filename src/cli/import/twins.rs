//! Two rows of one file for the same endpoint are refused: by the server within a call, and here where the call broke
//! between them.

use hawser_client::pb;
use tonic::Code;

use super::fields::Problem;
use crate::domain::seen::{RowKey, SeenRows};
use crate::domain::url_rules::canonical_text;

/// The rows that were answered.
#[derive(Default)]
pub struct Twins {
    answered: SeenRows,
}

impl Twins {
    /// Refuses a row that means the endpoint of one that was answered.
    pub fn check(&self, row: &pb::BulkRow) -> Result<(), Vec<Problem>> {
        let url = url(row);
        self.answered.check(key(row, url.as_deref())).map_err(|error| {
            error.violations.into_iter().map(|one| Problem::new(one.field, one.description)).collect()
        })
    }

    /// Takes note of an answer. As on the server, a row whose fields were refused stands for no endpoint.
    pub fn answered(&mut self, row: &pb::BulkRow, answer: &pb::BulkCreateEndpointsResponse) {
        if answer.error.as_ref().is_none_or(|error| error.code != Code::InvalidArgument as i32) {
            let url = url(row);
            self.answered.add(row.row_number, key(row, url.as_deref()));
        }
    }
}

fn key<'a>(row: &'a pb::BulkRow, url: Option<&'a str>) -> RowKey<'a> {
    let (uid, owner) = row
        .endpoint
        .as_ref()
        .map_or(("", ""), |endpoint| (endpoint.uid.as_str(), endpoint.owner_id.as_str()));
    RowKey { uid: Some(uid).filter(|uid| !uid.is_empty()), address: url.map(|url| (owner, url)) }
}

/// The URL that the row's endpoint will have; none where the endpoint's own stays, which only the server knows.
fn url(row: &pb::BulkRow) -> Option<String> {
    let endpoint = row.endpoint.as_ref()?;
    let paths = row.update_mask.as_ref().map(|mask| mask.paths.as_slice()).unwrap_or_default();
    let is_changed = paths.is_empty() || paths.iter().any(|path| path == "url" || path == "*");
    let is_said = is_changed || endpoint.uid.is_empty();
    (is_said && !endpoint.url.is_empty()).then(|| canonical_text(&endpoint.url))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: i64, uid: &str, owner: &str, url: &str) -> pb::BulkRow {
        let endpoint = pb::Endpoint {
            uid: uid.to_owned(),
            owner_id: owner.to_owned(),
            url: url.to_owned(),
            ..Default::default()
        };
        pb::BulkRow { row_number: number, endpoint: Some(endpoint), ..Default::default() }
    }

    #[test]
    fn a_row_like_an_answered_one_is_refused_by_its_field() {
        let mut twins = Twins::default();
        let done = pb::BulkCreateEndpointsResponse::default();
        twins.answered(&row(1, "one", "acme", "https://a.example.com/x"), &done);
        twins.answered(&row(2, "", "acme", "https://b.example.com/x"), &done);
        let error = tonic_types::pb::Status { code: Code::InvalidArgument as i32, ..Default::default() };
        let refused = pb::BulkCreateEndpointsResponse { error: Some(error), ..done };
        twins.answered(&row(3, "three", "acme", "https://c.example.com/x"), &refused);

        let mask = prost_types::FieldMask { paths: vec!["name".to_owned()] };
        let named =
            pb::BulkRow { update_mask: Some(mask), ..row(9, "nine", "acme", "https://b.example.com/x") };
        for (row, field) in [
            (row(4, "one", "zoo", "https://d.example.com/"), Some("endpoint.uid")),
            (row(5, "", "acme", "https://B.example.com.:443/x"), Some("endpoint.url")),
            (row(6, "six", "acme", "https://b.example.com/x"), Some("endpoint.url")),
            (row(7, "seven", "acme", "https://a.example.com/x"), None),
            (row(8, "", "acme", "https://a.example.com/x"), Some("endpoint.url")),
            (named, None),
            (row(10, "", "zoo", "https://b.example.com/x"), None),
            (row(11, "three", "acme", "https://c.example.com/x"), None),
        ] {
            let problem = twins.check(&row).err().map(|mut problems| problems.remove(0).field);
            assert_eq!(problem.as_deref(), field, "row {}", row.row_number);
        }
    }
}

//! CSV columns: dotted names of fields, and the JSON that a cell of each becomes.

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::cli::contract::{find, is_named, is_text};

/// A column.
#[derive(Debug)]
pub struct Column {
    /// Where in a row its cells go.
    path: Vec<String>,
    leaf: Leaf,
}

/// What a cell is.
#[derive(Debug)]
enum Leaf {
    Text,
    Number,
    Bool,
    Enum(EnumDescriptor),
    List(Box<Leaf>),
    /// One of a list of named values, with this name.
    Named(String),
}

impl Column {
    /// The column of this name.
    pub fn parse(fields: &Fields, name: &str) -> Result<Self, String> {
        let unknown = |why: String| format!("column {name:?}: {why}");
        let segments: Vec<&str> = name.split('.').collect();
        if let Some(field) = fields.of_row(name) {
            return Ok(Self { path: vec![field.name().to_owned()], leaf: leaf(&field) });
        }
        resolve(&fields.endpoint, &segments, Vec::new()).map_err(unknown)
    }

    /// Puts a cell into a row; an empty one sets nothing.
    pub fn put(&self, row: &mut Map<String, Value>, cell: &str, separator: char) {
        if cell.is_empty() {
            return;
        }
        let Some((last, folders)) = self.path.split_last() else { return };
        let mut place = row;
        for folder in folders {
            let inner = place.entry(folder).or_insert_with(|| json!({}));
            let Value::Object(inner) = inner else { return };
            place = inner;
        }
        match &self.leaf {
            Leaf::Named(name) => {
                if let Value::Array(list) = place.entry(last).or_insert_with(|| json!([])) {
                    list.push(json!({ "name": name, "value": cell }));
                }
            }
            leaf => drop(place.insert(last.clone(), leaf.value(cell, separator))),
        }
    }
}

impl Leaf {
    /// The cell as JSON. What it cannot be stays text, which the field then refuses.
    fn value(&self, cell: &str, separator: char) -> Value {
        let text = || Value::String(cell.to_owned());
        match self {
            Self::Text | Self::Named(_) => text(),
            Self::Number => cell.trim().parse().map_or_else(|_| text(), Value::Number),
            Self::Bool => cell.trim().to_lowercase().parse().map_or_else(|_| text(), Value::Bool),
            Self::Enum(kind) => Value::String(full_name(kind, cell.trim())),
            Self::List(one) => {
                let entries = cell.split(separator).map(str::trim).filter(|entry| !entry.is_empty());
                entries.map(|entry| one.value(entry, separator)).collect()
            }
        }
    }
}

/// An enum's value may be written without the prefix that all have: FORM for CONTENT_TYPE_FORM.
fn full_name(kind: &EnumDescriptor, text: &str) -> String {
    let prefix = kind.default_value().name().trim_end_matches("UNSPECIFIED").to_owned();
    let long = format!("{prefix}{}", text.to_uppercase());
    if kind.get_value_by_name(&long).is_some() { long } else { text.to_owned() }
}

fn resolve(message: &MessageDescriptor, segments: &[&str], mut path: Vec<String>) -> Result<Column, String> {
    let Some((first, rest)) = segments.split_first() else {
        return Err("names no field".to_owned());
    };
    let field =
        find(message, first).ok_or_else(|| format!("{first:?} is not a field of {}", message.name()))?;
    path.push(field.name().to_owned());
    // Names of labels and headers may have dots.
    let name = rest.join(".");
    match field.kind() {
        _ if field.is_map() && name.is_empty() => Err(format!("name one of them, as in {first}.NAME")),
        _ if field.is_map() => {
            path.push(name);
            Ok(Column { path, leaf: Leaf::Text })
        }
        Kind::Message(inner) if field.is_list() && is_named(&inner) => {
            if name.is_empty() {
                return Err(format!("name one of them, as in {first}.NAME"));
            }
            Ok(Column { path, leaf: Leaf::Named(name) })
        }
        Kind::Message(inner) if !is_text(&inner) => {
            if rest.is_empty() {
                let names: Vec<String> =
                    inner.fields().map(|field| format!("{first}.{}", field.name())).collect();
                return Err(format!("name one of its fields: {}", names.join(", ")));
            }
            resolve(&inner, rest, path)
        }
        _ if rest.is_empty() => Ok(Column { path, leaf: leaf(&field) }),
        _ => Err(format!("{first:?} has no fields")),
    }
}

fn leaf(field: &FieldDescriptor) -> Leaf {
    let one = match field.kind() {
        Kind::String | Kind::Bytes | Kind::Message(_) => Leaf::Text,
        Kind::Bool => Leaf::Bool,
        Kind::Enum(kind) => Leaf::Enum(kind),
        _ => Leaf::Number,
    };
    if field.is_list() { Leaf::List(Box::new(one)) } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[(&str, &str)]) -> Value {
        let fields = Fields::new().expect("descriptors");
        let mut row = Map::new();
        for (name, cell) in columns {
            Column::parse(&fields, name).expect(name).put(&mut row, cell, ';');
        }
        assert!(fields.read(row.clone()).is_ok(), "{:?}", fields.read(row));
        Value::Object(row)
    }

    #[test]
    fn cells_go_where_their_columns_say() {
        let got = row(&[
            ("url", "https://example.com/"),
            ("uid", ""),
            ("labels.team.name", "a b"),
            ("headers.x-one", "1"),
            ("headers.x-two", "2"),
            ("http_timeout", "5s"),
            ("content_type", "form"),
            ("max_in_flight", "7"),
            ("disable_policy.off", "TRUE"),
            ("authentication.basic_auth.username", "u"),
            ("authentication.oauth2.client_id", ""),
            ("retry_policy.exponential.factor", "2.5"),
            ("retry_policy.max_attempts", "3"),
            ("event_types", "a.*; b;"),
            ("secret_type", "ED25519"),
        ]);
        let expected = json!({
            "url": "https://example.com/",
            "labels": {"team.name": "a b"},
            "headers": [{"name": "x-one", "value": "1"}, {"name": "x-two", "value": "2"}],
            "http_timeout": "5s",
            "content_type": "CONTENT_TYPE_FORM",
            "max_in_flight": 7,
            "disable_policy": {"off": true},
            "authentication": {"basic_auth": {"username": "u"}},
            "retry_policy": {"exponential": {"factor": 2.5}, "max_attempts": 3},
            "event_types": ["a.*", "b"],
            "secret_type": "SECRET_TYPE_ED25519",
        });
        assert_eq!(got, expected);
        let waits = row(&[("retry_policy.schedule.waits", "1s;2s")]);
        assert_eq!(waits["retry_policy"]["schedule"]["waits"], json!(["1s", "2s"]));
    }

    #[test]
    fn unknown_columns_are_named() {
        let fields = Fields::new().expect("descriptors");
        for (name, why) in [
            ("ulr", "\"ulr\" is not a field of Endpoint"),
            ("labels", "labels.NAME"),
            ("headers", "headers.NAME"),
            ("authentication", "authentication.api_key"),
            ("authentication.basic_auth.user", "\"user\" is not a field of BasicAuth"),
            ("url.x", "\"url\" has no fields"),
            ("", "is not a field"),
        ] {
            let error = Column::parse(&fields, name).expect_err(name);
            assert!(error.contains(why), "{error}");
        }
    }
}

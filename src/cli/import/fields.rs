//! A row as JSON, and as the message that the server takes. What fields there are, the contract's descriptors say.

use anyhow::Context;
use hawser_client::pb;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use crate::cli::contract::{descriptors, find, is_output, is_text};

/// What is wrong with a field of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Named as the server names it, such as `endpoint.http_timeout`; empty where it is about the whole row.
    pub field: String,
    pub description: String,
}

impl Problem {
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

/// Fields of a row that are not the endpoint's.
const ROW_FIELDS: [&str; 3] = ["event_types", "secret", "secret_type"];
/// Read apart: in JSON its names would be written another way than everywhere else.
const MASK: &str = "update_mask";

/// The fields of rows.
pub struct Fields {
    row: MessageDescriptor,
    pub endpoint: MessageDescriptor,
}

impl Fields {
    pub fn new() -> anyhow::Result<Self> {
        let pool = descriptors()?;
        let message = |name| pool.get_message_by_name(name).with_context(|| format!("{name} is missing"));
        Ok(Self { row: message("hawser.v1.BulkRow")?, endpoint: message("hawser.v1.Endpoint")? })
    }

    /// A field of the row beside its endpoint.
    pub fn of_row(&self, name: &str) -> Option<FieldDescriptor> {
        let field = find(&self.row, name)?;
        (field.name() == MASK || ROW_FIELDS.contains(&field.name())).then_some(field)
    }

    /// The contract's name of a field, which JSON may have in another way.
    pub fn canonical(&self, name: String) -> String {
        let field = self.of_row(&name).or_else(|| find(&self.endpoint, &name));
        field.map_or(name, |field| field.name().to_owned())
    }

    /// Whether it is a field of the endpoint that only the server writes.
    pub fn is_output(&self, name: &str) -> bool {
        find(&self.endpoint, name).is_some_and(|field| is_output(&field))
    }

    /// The message of a row: the fields of its endpoint, and the row's own beside them.
    pub fn read(&self, object: Map<String, Value>) -> Result<pb::BulkRow, Vec<Problem>> {
        let (mut row, mut endpoint, mut mask) = (Map::new(), Map::new(), None);
        for (name, value) in object {
            match self.of_row(&name) {
                Some(field) if field.name() == MASK => mask = Some(value),
                Some(_) => drop(row.insert(name, value)),
                None => drop(endpoint.insert(name, value)),
            }
        }
        row.insert("endpoint".to_owned(), Value::Object(endpoint));
        let row = Value::Object(row);
        // Its own message might quote a value, and that may be a secret.
        let message = DynamicMessage::deserialize(self.row.clone(), &row)
            .ok()
            .and_then(|message| message.transcode_to::<pb::BulkRow>().ok());
        let Some(mut message) = message else {
            return Err(problems(&self.row, &row));
        };
        if let Some(mask) = mask {
            let Value::String(names) = mask else {
                return Err(vec![Problem::new(MASK, "must be names of fields separated by commas")]);
            };
            let paths = names.split(',').map(|name| name.trim().to_owned()).collect();
            message.update_mask = Some(prost_types::FieldMask { paths });
        }
        Ok(message)
    }
}

/// What keeps an object from being this message.
fn problems(message: &MessageDescriptor, object: &Value) -> Vec<Problem> {
    let mut found = Vec::new();
    look(message, object, "", &mut found);
    if found.is_empty() {
        found.push(Problem::new("", "is not what the contract says"));
    }
    found
}

fn look(message: &MessageDescriptor, object: &Value, path: &str, found: &mut Vec<Problem>) {
    let Value::Object(entries) = object else { return };
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for (name, value) in entries {
        let Some(field) = find(message, name) else {
            found.push(Problem::new(join(name), "is not a field"));
            continue;
        };
        if DynamicMessage::deserialize(message.clone(), &json!({ name: value })).is_ok() {
            continue;
        }
        match field.kind() {
            Kind::Message(inner) if value.is_object() && !field.is_map() && !is_text(&inner) => {
                look(&inner, value, &join(name), found);
            }
            _ => found.push(Problem::new(join(name), rule(&field))),
        }
    }
    for oneof in message.oneofs().filter(|oneof| oneof.fields().len() > 1) {
        let is_set = |field: &FieldDescriptor| {
            let value = entries.get(field.name()).or_else(|| entries.get(field.json_name()));
            value.is_some_and(|value| !value.is_null())
        };
        let set: Vec<String> = oneof.fields().filter(is_set).map(|field| field.name().to_owned()).collect();
        if set.len() > 1 {
            let path = if path.is_empty() { oneof.name() } else { path };
            found.push(Problem::new(path, format!("has {}: only one of them can be", set.join(" and "))));
        }
    }
}

/// What JSON wants for a field.
fn rule(field: &FieldDescriptor) -> String {
    let one = match field.kind() {
        Kind::String => "text".to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::Float | Kind::Double => "a number".to_owned(),
        Kind::Enum(kind) => {
            let names: Vec<String> = kind.values().map(|value| value.name().to_owned()).collect();
            format!("one of {}", names.join(", "))
        }
        Kind::Message(message) => match message.full_name() {
            "google.protobuf.Duration" => "a time in seconds, such as 15s or 0.5s".to_owned(),
            "google.protobuf.Timestamp" => "a time, such as 2030-01-31T12:00:00Z".to_owned(),
            _ => "an object".to_owned(),
        },
        _ => "a whole number".to_owned(),
    };
    if field.is_map() {
        "must be an object of names and texts".to_owned()
    } else if field.is_list() {
        format!("must be a list, each entry {one}")
    } else {
        format!("must be {one}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<pb::BulkRow, Vec<(String, String)>> {
        let Value::Object(object) = value else { panic!("an object") };
        let told = |problem: Problem| (problem.field, problem.description);
        let fields = Fields::new().expect("descriptors");
        fields.read(object).map_err(|problems| problems.into_iter().map(told).collect())
    }

    #[test]
    fn a_row_is_an_endpoint_with_its_own_fields_beside() {
        let row = read(json!({
            "url": "https://example.com/", "ownerId": "acme", "labels": {"a": "b"}, "http_timeout": "2.5s",
            "authentication": {"oauth2": {"token_url": "https://t/", "shared_secret": {"client_secret": "x"}}},
            "retry_policy": {"schedule": {"waits": ["1s", "60s"]}}, "rate_limit": {"requests": 5},
            "event_types": ["a.*", "b"], "secret_type": "SECRET_TYPE_ED25519", "update_mask": "labels, owner_id",
        }))
        .expect("a row");
        assert_eq!(row.event_types, ["a.*", "b"]);
        assert_eq!(row.secret_type(), pb::SecretType::Ed25519);
        assert_eq!(row.update_mask.expect("a mask").paths, ["labels", "owner_id"]);
        let endpoint = row.endpoint.expect("an endpoint");
        assert_eq!((endpoint.owner_id.as_str(), endpoint.labels["a"].as_str()), ("acme", "b"));
        assert_eq!(endpoint.http_timeout.map(|time| (time.seconds, time.nanos)), Some((2, 500_000_000)));
        assert_eq!(endpoint.rate_limit.expect("a limit").requests, 5);
    }

    #[test]
    fn problems_name_their_field_and_quote_nothing() {
        let problems = read(json!({
            "http_timeout": "canary", "ulr": "x", "authentication": {"basic_auth": {"username": 4242}},
            "content_type": "canary", "event_types": "canary", "labels": ["canary"],
        }))
        .expect_err("problems");
        let shown = format!("{problems:?}");
        assert!(!shown.contains("canary") && !shown.contains("4242"), "{shown}");
        let mut names: Vec<&str> = problems.iter().map(|(field, _)| field.as_str()).collect();
        names.sort_unstable();
        let expected = [
            "endpoint.authentication.basic_auth.username",
            "endpoint.content_type",
            "endpoint.http_timeout",
            "endpoint.labels",
            "endpoint.ulr",
            "event_types",
        ];
        assert_eq!(names, expected);

        let two = json!({ "authentication": { "api_key": {}, "basic_auth": {} } });
        let problems = read(two).expect_err("two methods");
        assert_eq!(problems[0].0, "endpoint.authentication");
        assert!(problems[0].1.contains("api_key and basic_auth"), "{problems:?}");
    }
}

//! Messages of the contract as JSON and as fields for people, by the contract's own descriptors.

use anyhow::{Context, anyhow, bail};
use hawser_client::pb;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage,
    SerializeOptions, Value,
};

use serde_json::{Map, Value as Json, json};

use super::table;
use crate::grpc::pb::FILE_DESCRIPTOR_SET;

pub fn descriptors() -> anyhow::Result<DescriptorPool> {
    DescriptorPool::decode(FILE_DESCRIPTOR_SET).context("the contract's descriptors")
}

/// A message that is shown, and its name in the contract.
pub trait Shown: prost::Message {
    const NAME: &'static str;
}

macro_rules! shown {
    ($($message:ident),+ $(,)?) => {
        $(impl Shown for pb::$message {
            const NAME: &'static str = concat!("hawser.v1.", stringify!($message));
        })+
    };
}

shown!(
    Attempt,
    AuditEvent,
    CreateEndpointResponse,
    Delivery,
    Endpoint,
    PingEndpointResponse,
    Project,
    TestOAuth2Response,
);

/// Shows messages of one kind.
pub struct Display(MessageDescriptor);

impl Display {
    pub fn of<M: Shown>() -> anyhow::Result<Self> {
        let message = descriptors()?.get_message_by_name(M::NAME);
        Ok(Self(message.with_context(|| format!("{} is missing", M::NAME))?))
    }

    /// One line, with the names that the contract has; what is empty is left out.
    pub fn json(&self, message: &impl Shown) -> anyhow::Result<String> {
        let mut text = Vec::new();
        let options = SerializeOptions::new().use_proto_field_name(true);
        let mut serializer = serde_json::Serializer::new(&mut text);
        self.dynamic(message)?.serialize_with_options(&mut serializer, &options)?;
        Ok(String::from_utf8(text)?)
    }

    /// What is not empty, each with the name that a column of `hawser import` has.
    pub fn fields(&self, message: &impl Shown) -> anyhow::Result<Vec<(String, String)>> {
        let mut rows = Vec::new();
        collect(&self.dynamic(message)?, "", &mut rows);
        Ok(rows)
    }

    fn dynamic(&self, message: &impl Shown) -> anyhow::Result<DynamicMessage> {
        Ok(DynamicMessage::decode(self.0.clone(), message.encode_to_vec().as_slice())?)
    }
}

/// Reads messages of one kind. What it says of a text names fields and no values, which may be secrets.
pub struct Reading(MessageDescriptor);

impl Reading {
    pub fn of<M: Shown>() -> anyhow::Result<Self> {
        Ok(Self(Display::of::<M>()?.0))
    }

    /// An object of JSON from this file, by the contract's names.
    pub fn object(&self, path: &str, text: &str) -> anyhow::Result<Map<String, Json>> {
        let Ok(object) = serde_json::from_str::<Map<String, Json>>(text) else {
            bail!("{path} is not an object of JSON");
        };
        let named = object.into_iter().map(|(name, value)| match find(&self.0, &name) {
            Some(field) => Ok((field.name().to_owned(), value)),
            None => bail!("{name}: is not a field of {}", self.0.name()),
        });
        named.collect()
    }

    /// Whether only the server writes this field.
    pub fn is_output(&self, name: &str) -> bool {
        find(&self.0, name).is_some_and(|field| is_output(&field))
    }

    pub fn message<M: prost::Message + Default>(&self, object: Map<String, Json>) -> anyhow::Result<M> {
        let mut bytes = Vec::new();
        for (name, value) in object {
            // One after the other, so that what is wrong can be named.
            let one = DynamicMessage::deserialize(self.0.clone(), json!({ name.as_str(): value }));
            let one = one.map_err(|_| anyhow!("{name}: is not what the contract has there"))?;
            bytes.extend(one.encode_to_vec());
        }
        Ok(M::decode(bytes.as_slice())?)
    }
}

/// Prints a message: its fields, or JSON.
pub fn print<M: Shown>(message: &M, json: bool) -> anyhow::Result<()> {
    let display = Display::of::<M>()?;
    if json {
        println!("{}", display.json(message)?);
        return Ok(());
    }
    let mut table = table::plain(&["field", "value"]);
    for (name, value) in display.fields(message)? {
        table.add_row([table::cell(&name), table::cell(&value)]);
    }
    println!("{table}");
    Ok(())
}

fn collect(message: &DynamicMessage, path: &str, rows: &mut Vec<(String, String)>) {
    for (field, value) in message.fields() {
        let path = if path.is_empty() { field.name().to_owned() } else { format!("{path}.{}", field.name()) };
        put(&field.kind(), value, path, rows);
    }
}

fn put(kind: &Kind, value: &Value, path: String, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Message(inner) if !is_text(&inner.descriptor()) => {
            // What is there and empty says something else than what is absent.
            if inner.fields().next().is_none() {
                rows.push((path, "{}".to_owned()));
            } else {
                collect(inner, &path, rows);
            }
        }
        Value::Map(map) => {
            let mut entries: Vec<(String, &Value)> =
                map.iter().map(|(name, value)| (key(name), value)).collect();
            entries.sort_by(|(one, _), (other, _)| one.cmp(other));
            for (name, value) in entries {
                put(kind, value, format!("{path}.{name}"), rows);
            }
        }
        Value::List(list) => {
            for (at, one) in list.iter().enumerate() {
                match named(one) {
                    Some((name, value)) => rows.push((format!("{path}.{name}"), value)),
                    None => put(kind, one, format!("{path}[{at}]"), rows),
                }
            }
        }
        value => rows.push((path, text(kind, value))),
    }
}

fn text(kind: &Kind, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(value) => value.to_string(),
        Value::I32(number) => number.to_string(),
        Value::I64(number) => number.to_string(),
        Value::U32(number) => number.to_string(),
        Value::U64(number) => number.to_string(),
        Value::F32(number) => number.to_string(),
        Value::F64(number) => number.to_string(),
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::EnumNumber(number) => {
            let known = kind.as_enum().and_then(|kind| {
                let prefix = kind.default_value().name().trim_end_matches("UNSPECIFIED").to_owned();
                kind.get_value(*number).map(|value| value.name().trim_start_matches(&prefix).to_owned())
            });
            known.unwrap_or_else(|| number.to_string())
        }
        // Times, which JSON has a text for.
        Value::Message(time) => match serde_json::to_value(time) {
            Ok(serde_json::Value::String(text)) => text,
            _ => String::new(),
        },
        // Taken apart before.
        Value::List(_) | Value::Map(_) => String::new(),
    }
}

fn key(key: &MapKey) -> String {
    match key {
        MapKey::String(name) => name.clone(),
        other => format!("{other:?}"),
    }
}

/// Headers are shown by their names.
fn named(value: &Value) -> Option<(String, String)> {
    let message = value.as_message().filter(|message| is_named(&message.descriptor()))?;
    let text = |name: &str| message.get_field_by_name(name)?.as_str().map(str::to_owned);
    Some((text("name")?, text("value")?))
}

/// A field by its name in the contract or in JSON.
pub fn find(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name))
}

/// Whether JSON has a text for the message.
pub fn is_text(message: &MessageDescriptor) -> bool {
    matches!(
        message.full_name(),
        "google.protobuf.Duration" | "google.protobuf.Timestamp" | "google.protobuf.FieldMask"
    )
}

/// Whether entries of a list have a name and a value, as headers do.
pub fn is_named(message: &MessageDescriptor) -> bool {
    message.fields().len() == 2 && find(message, "name").is_some() && find(message, "value").is_some()
}

/// Whether only the server writes it.
pub fn is_output(field: &FieldDescriptor) -> bool {
    const OUTPUT_ONLY: i32 = 3;
    let behaviors = field.parent_pool().get_extension_by_name("google.api.field_behavior");
    behaviors.is_some_and(|behaviors| {
        let options = field.options();
        let of_field = options.get_extension(&behaviors);
        of_field
            .as_list()
            .is_some_and(|list| list.iter().any(|one| one.as_enum_number() == Some(OUTPUT_ONLY)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> pb::Endpoint {
        pb::Endpoint {
            id: "ep_1".to_owned(),
            url: "https://example.com/".to_owned(),
            labels: [("b", "2"), ("a.x", "1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            status: pb::EndpointStatus::Paused.into(),
            headers: vec![pb::Header { name: "x-shop".to_owned(), value: "eu".to_owned() }],
            http_timeout: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            create_time: Some(prost_types::Timestamp { seconds: 1_896_091_200, nanos: 0 }),
            rate_limit: Some(pb::RateLimit { requests: 5, ..Default::default() }),
            unreadable_fields: vec!["alerts".to_owned()],
            alerts: Some(pb::Alerts::default()),
            ..Default::default()
        }
    }

    #[test]
    fn fields_have_the_names_of_columns() {
        let fields = Display::of::<pb::Endpoint>().and_then(|display| display.fields(&endpoint()));
        let fields = fields.expect("fields");
        let mut shown: Vec<(&str, &str)> =
            fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(shown[0], ("id", "ep_1"));
        shown.sort_unstable();
        let expected = [
            ("alerts", "{}"),
            ("create_time", "2030-01-31T12:00:00Z"),
            ("headers.x-shop", "eu"),
            ("http_timeout", "2s"),
            ("id", "ep_1"),
            ("labels.a.x", "1"),
            ("labels.b", "2"),
            ("rate_limit.requests", "5"),
            ("status", "PAUSED"),
            ("unreadable_fields[0]", "alerts"),
            ("url", "https://example.com/"),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn json_has_the_names_of_the_contract() {
        let line = Display::of::<pb::Endpoint>().and_then(|display| display.json(&endpoint())).expect("JSON");
        assert!(!line.contains('\n'));
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(json["status"], "ENDPOINT_STATUS_PAUSED");
        assert_eq!(json["rate_limit"], serde_json::json!({ "requests": 5 }));
        assert_eq!((&json["uid"], &json["labels"]["b"]), (&serde_json::Value::Null, &"2".into()));
    }

    #[test]
    fn every_shown_message_is_in_the_contract_and_output_is_told_apart() {
        assert!(Display::of::<pb::Attempt>().is_ok());
        assert!(Display::of::<pb::AuditEvent>().is_ok());
        assert!(Display::of::<pb::CreateEndpointResponse>().is_ok());
        assert!(Display::of::<pb::Delivery>().is_ok());
        assert!(Display::of::<pb::PingEndpointResponse>().is_ok());
        assert!(Display::of::<pb::TestOAuth2Response>().is_ok());
        let endpoint = Display::of::<pb::Endpoint>().expect("there").0;
        let output = |name: &str| is_output(&find(&endpoint, name).expect(name));
        assert!(output("id") && output("status") && output("circuit"));
        assert!(!output("url") && !output("etag") && !output("authentication"));
    }
}

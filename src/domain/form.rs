//! Payloads as `application/x-www-form-urlencoded`: a JSON object's keys in their order, repeats kept.
//!
//! Strings are sent as they are, numbers with the digits they were written with, booleans as `true` and `false`,
//! null as nothing, objects and arrays as compact JSON text.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use serde_json::value::RawValue;
use url::form_urlencoded::Serializer;

/// Why a payload cannot be a form. Says nothing of what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAForm {
    #[error("the payload cannot be sent as a form: it is not JSON")]
    NotJson,
    #[error("the payload cannot be sent as a form: it is not a JSON object")]
    NotAnObject,
}

/// The payload as a form.
pub fn encode(payload: &[u8]) -> Result<Vec<u8>, NotAForm> {
    let fields = parse(payload)?;
    let mut form = Serializer::new(String::with_capacity(payload.len() * 3 / 2));
    for (name, value) in &fields.0 {
        form.append_pair(name, &text(value)?);
    }
    Ok(form.finish().into_bytes())
}

/// Whether [`encode`] would succeed.
pub fn check(payload: &[u8]) -> Result<(), NotAForm> {
    parse(payload)?.0.iter().try_for_each(|(_, value)| text(value).map(|_| ()))
}

/// An object's fields as they were written.
struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

fn parse(payload: &[u8]) -> Result<Fields, NotAForm> {
    serde_json::from_slice(payload).map_err(|error| {
        // The visitor takes objects only, so a mismatch is of the whole.
        if error.is_data() { NotAForm::NotAnObject } else { NotAForm::NotJson }
    })
}

fn text(value: &RawValue) -> Result<String, NotAForm> {
    let raw = value.get();
    match raw.as_bytes().first() {
        // An escaped half of a surrogate pair is no text.
        Some(b'"') => serde_json::from_str(raw).map_err(|_| NotAForm::NotJson),
        Some(b'n') => Ok(String::new()),
        Some(b'{' | b'[') => Ok(compact(raw)),
        _ => Ok(raw.to_owned()),
    }
}

/// JSON without the blanks between its parts; all else stays as it was written.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|letter| {
            if in_string {
                (in_string, escaped) = (escaped || *letter != '"', !escaped && *letter == '\\');
                return true;
            }
            in_string = *letter == '"';
            !letter.is_ascii_whitespace()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn form(payload: &str) -> Result<String, NotAForm> {
        let encoded = encode(payload.as_bytes()).map(|form| String::from_utf8(form).expect("ASCII"));
        assert_eq!(check(payload.as_bytes()).err(), encoded.as_ref().err().copied());
        encoded
    }

    #[test]
    fn values_keep_their_order_and_their_digits() {
        for (payload, expected) in [
            ("{}", ""),
            (r#"{"b":[1,2],"a":"x y","n":1.5,"z":null}"#, "b=%5B1%2C2%5D&a=x+y&n=1.5&z="),
            (r#" { "a" : 1 , "a" : 2 } "#, "a=1&a=2"),
            (
                r#"{"n":12345678901234567890.10,"e":-1E+5,"t":true,"f":false}"#,
                "n=12345678901234567890.10&e=-1E%2B5&t=true&f=false",
            ),
            (
                r#"{"o":{ "b" : "a \" \\" , "a" : [ 1.0 , { } ] }}"#,
                "o=%7B%22b%22%3A%22a+%5C%22+%5C%5C%22%2C%22a%22%3A%5B1.0%2C%7B%7D%5D%7D",
            ),
            (r#"{"é":"ü&=+","":""}"#, "%C3%A9=%C3%BC%26%3D%2B&="),
            (r#"{"a":"\u00e9\n"}"#, "a=%C3%A9%0A"),
        ] {
            assert_eq!(form(payload).as_deref(), Ok(expected), "{payload}");
        }
    }

    #[test]
    fn what_is_no_object_is_no_form() {
        for payload in ["[1]", "1", "\"a\"", "null", "true"] {
            assert_eq!(form(payload), Err(NotAForm::NotAnObject), "{payload}");
        }
        for payload in
            ["", "{", "{\"a\":}", "{} {}", "{'a':1}", "\u{feff}{}", r#"{"a":"\ud800"}"#, "{\"a\":01}"]
        {
            assert_eq!(form(payload), Err(NotAForm::NotJson), "{payload}");
        }
        assert_eq!(encode(b"{\"a\":\"\xff\"}"), Err(NotAForm::NotJson));
        // Nesting costs no stack.
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(form(&deep).is_ok());
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Whatever reads the form sees the fields that were written, however the JSON was laid out.
        #[test]
        fn a_form_says_what_the_payload_said(
            fields in prop::collection::vec((any::<String>(), json()), 0..8),
            pretty in any::<bool>(),
        ) {
            let written: Vec<String> = fields
                .iter()
                .map(|(name, value)| {
                    let value = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
                    format!("{} : {}", Value::from(name.as_str()), value.expect("JSON"))
                })
                .collect();
            let encoded = encode(format!("{{{}}}", written.join(" ,\n ")).as_bytes()).expect("a form");
            let read: Vec<(String, String)> = url::form_urlencoded::parse(&encoded).into_owned().collect();
            prop_assert_eq!(read.len(), fields.len());
            for ((name, value), (read_name, read_value)) in fields.iter().zip(&read) {
                prop_assert_eq!(name, read_name);
                let expected = match value {
                    Value::Null => String::new(),
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                prop_assert_eq!(&expected, read_value);
            }
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}\",:0-9a\\\\ ]{0,40}") {
            prop_assert_eq!(check(&bytes).err(), encode(&bytes).err());
            prop_assert_eq!(check(text.as_bytes()).err(), encode(text.as_bytes()).err());
        }
    }
}

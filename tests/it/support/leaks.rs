//! Looking for what must not be there: a secret in any of the forms that it could leak in.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// A letter for each byte, so that bytes can be looked for in a text as well as text.
pub fn letters(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// A secret, by what it is called, in every form that it could be found in.
pub struct Secret {
    name: String,
    forms: Vec<String>,
}

impl Secret {
    pub fn new(name: &str, value: impl AsRef<[u8]>) -> Self {
        let bytes = value.as_ref();
        assert!(bytes.len() >= 8, "{name} is too short to be told from chance");
        let hexadecimal: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        // As a list of numbers, which is how `Debug` shows bytes.
        let numbers = bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        // Without the last letters, which depend on what follows it.
        let encoded = |text: String| text.trim_end_matches('=').to_owned();
        let forms = vec![
            letters(bytes),
            encoded(STANDARD.encode(bytes)),
            URL_SAFE_NO_PAD.encode(bytes),
            hexadecimal.to_uppercase(),
            hexadecimal,
            numbers,
        ];
        Self { name: name.to_owned(), forms }
    }
}

/// Each text with the place that it is from. Tells what stands before what was found, which says who put it there.
pub fn assert_nowhere(secrets: &[Secret], places: &[(String, String)]) {
    for (place, text) in places {
        for Secret { name, forms } in secrets {
            for form in forms {
                let before = text.find(form.as_str()).map(|at| {
                    let before: Vec<char> = text[..at].chars().rev().take(300).collect();
                    before.into_iter().rev().collect::<String>()
                });
                assert_eq!(before, None, "{name} is in the {place} as {form}");
            }
        }
    }
}

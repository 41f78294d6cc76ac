//! Checking requests: every rule that a message alone can break, each told by its field's path.

use std::str::FromStr;
use std::time::Duration;

use crate::domain::clock::Timestamp;
use crate::domain::error::{Error, Result, Violation};
use crate::domain::id::ProjectId;
use crate::domain::subscription::EventTypePattern;

/// Gathers violations, so that a caller learns of all of them at once.
#[derive(Default)]
pub struct Check {
    violations: Vec<Violation>,
}

/// Violations told in one answer; details travel in a trailer of limited size.
const TOLD_MAX: usize = 16;

impl Check {
    pub fn refuse(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.violations.len() < TOLD_MAX {
            self.violations.push(Violation { field: field.into(), description: description.into() });
        }
    }

    /// Ends the check: the value, or all violations.
    pub fn finish<T>(self, value: Option<T>) -> Result<T> {
        match value {
            Some(value) if self.violations.is_empty() => Ok(value),
            _ if self.violations.is_empty() => Err(Error::invalid("", "is not valid")),
            _ => Err(Error::violations(self.violations)),
        }
    }

    /// Text of at most `max` bytes without NUL, which PostgreSQL cannot hold, and without control characters.
    pub fn text(&mut self, field: &str, value: String, max: usize) -> String {
        if value.len() > max {
            self.refuse(field, format!("must be at most {max} bytes"));
        }
        if value.chars().any(|letter| letter.is_control() && letter != '\n' && letter != '\t') {
            self.refuse(field, "must not hold control characters");
        }
        value
    }

    pub fn required_text(&mut self, field: &str, value: String, max: usize) -> String {
        if value.is_empty() {
            self.refuse(field, "is required");
        }
        self.text(field, value, max)
    }

    /// Text that may be absent.
    pub fn optional_text(&mut self, field: &str, value: String, max: usize) -> Option<String> {
        let value = self.text(field, value, max);
        (!value.is_empty()).then_some(value)
    }

    pub fn id<T: FromStr<Err: std::fmt::Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        if text.is_empty() {
            self.refuse(field, "is required");
            return None;
        }
        match text.parse() {
            Ok(id) => Some(id),
            Err(error) => {
                self.refuse(field, error.to_string());
                None
            }
        }
    }

    /// An id that may be empty.
    pub fn optional_id<T: FromStr<Err: std::fmt::Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        if text.is_empty() { None } else { self.id(field, text) }
    }

    pub fn project(&mut self, text: &str) -> Option<ProjectId> {
        self.optional_id("project_id", text)
    }

    pub fn patterns(&mut self, field: &str, texts: &[String], max: usize) -> Vec<EventTypePattern> {
        if texts.len() > max {
            self.refuse(field, format!("must have at most {max} entries"));
            return Vec::new();
        }
        let mut patterns = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            match EventTypePattern::parse(text) {
                Ok(pattern) if patterns.contains(&pattern) => {}
                Ok(pattern) => patterns.push(pattern),
                Err(error) => self.refuse(format!("{field}[{index}]"), error.to_string()),
            }
        }
        patterns
    }

    pub fn duration(
        &mut self,
        field: &str,
        value: prost_types::Duration,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Duration {
        match Duration::try_from(value) {
            Ok(duration) if range.contains(&duration) => duration,
            _ => {
                self.refuse(field, format!("must be {:?} to {:?}", range.start(), range.end()));
                *range.start()
            }
        }
    }

    pub fn time(&mut self, field: &str, value: Option<prost_types::Timestamp>) -> Option<Timestamp> {
        let value = value?;
        let millis = value
            .seconds
            .checked_mul(1000)
            .and_then(|millis| millis.checked_add(i64::from(value.nanos) / 1_000_000));
        match millis {
            Some(millis) if (0..1_000_000_000).contains(&value.nanos) && millis >= 0 => {
                Some(Timestamp::from_millis(millis))
            }
            _ => {
                self.refuse(field, "must be a time since 1970");
                None
            }
        }
    }
}

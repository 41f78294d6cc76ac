//! What a place answered to an alert.

use std::time::Duration;

use crate::domain::attempt::AttemptOutcome;

/// Without anything that the place chose itself.
pub enum Answer {
    Taken,
    Refused {
        error: String,
        retry_after: Option<Duration>,
    },
    /// Nothing: it is out of reach, or too slow.
    None {
        error: String,
    },
}

impl Answer {
    pub fn refused(error: impl Into<String>) -> Self {
        Self::Refused { error: error.into(), retry_after: None }
    }

    pub fn of(outcome: AttemptOutcome) -> Self {
        let error = match outcome.error {
            None => return Self::Taken,
            Some((class, detail)) if detail.is_empty() => class.as_str().to_owned(),
            Some((_, detail)) => detail,
        };
        match outcome.status {
            Some(_) => Self::Refused { error, retry_after: outcome.retry_after },
            None => Self::None { error },
        }
    }

    /// Whether there was any.
    pub const fn came(&self) -> bool {
        !matches!(self, Self::None { .. })
    }
}

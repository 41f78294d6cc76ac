//! What can go wrong in the store, and which of it passes by itself.

use std::borrow::Cow;

use sea_orm::{DbErr, RuntimeErr, SqlErr};

use crate::domain::error::{Error, ErrorKind};
use crate::domain::id::ProjectId;

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database failed")]
    Db(#[from] DbErr),
    #[error("the database connection failed")]
    Sqlx(#[from] sqlx::Error),
    #[error("the database failed")]
    Sqlite(#[from] rusqlite::Error),
    /// SQLite undid the transaction by itself, as it does when the disk fails or is full.
    #[error("the database ended the transaction")]
    Interrupted,
    #[error("the database did not answer in time")]
    TimedOut,
    /// Whether the transaction is committed is not known.
    #[error("the database did not answer the commit")]
    Unanswered(#[source] Box<StoreError>),
    /// A list that takes longer to read than any may.
    #[error("reading the {list} was broken off")]
    ListTooLong {
        list: &'static str,
        /// The fields of the request by which less is looked through.
        narrow: &'static str,
        source: Box<StoreError>,
    },
    /// The lease that was to be claimed under is not in force any more.
    #[error("the lease was given up")]
    LeaseGone,
    /// The project has as many endpoints as it may.
    #[error("the project has {most} endpoints; no more are allowed")]
    ProjectFull { project: ProjectId, most: u32 },
    /// A stored value that this version cannot read.
    #[error("stored data does not read: {0}")]
    Corrupt(String),
    /// A statement of ours that asks for what is not there.
    #[error("a statement is wrong: {0}")]
    Statement(String),
    /// A sealed value that does not open: another key, another place, or damage.
    #[error("a sealed value cannot be used: {0}")]
    Sealed(String),
    /// Something in the configuration or the surroundings that a person must mend.
    #[error("{0}")]
    Setup(String),
}

impl StoreError {
    /// The name of the unique constraint or the columns that a row collided on.
    pub fn unique_violation(&self) -> Option<String> {
        match self {
            Self::Db(error) => match error.sql_err() {
                Some(SqlErr::UniqueConstraintViolation(message)) => Some(message),
                _ => None,
            },
            // SQLITE_CONSTRAINT_UNIQUE and SQLITE_CONSTRAINT_PRIMARYKEY.
            Self::Sqlite(rusqlite::Error::SqliteFailure(failure, Some(message)))
                if matches!(failure.extended_code, 2067 | 1555) =>
            {
                Some(message.clone())
            }
            _ => None,
        }
    }

    /// The same of a list, where the database broke its reading off because it took too long.
    pub(super) fn of_list(self, list: &'static str, narrow: &'static str) -> Self {
        if self.is_broken_off() { Self::ListTooLong { list, narrow, source: Box::new(self) } } else { self }
    }

    /// Whether the database ended the statement because it ran for too long.
    fn is_broken_off(&self) -> bool {
        // PostgreSQL's query_canceled, and SQLite's INTERRUPT.
        self.code().is_some_and(|code| code == "57014" || code == "9")
    }

    fn sqlx(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Db(DbErr::Conn(RuntimeErr::SqlxError(error)))
            | Self::Db(DbErr::Exec(RuntimeErr::SqlxError(error)))
            | Self::Db(DbErr::Query(RuntimeErr::SqlxError(error))) => Some(error),
            Self::Sqlx(error) => Some(error),
            _ => None,
        }
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        if let Self::Sqlite(error) = self {
            return Some(error.sqlite_error()?.extended_code.to_string().into());
        }
        self.sqlx()?.as_database_error()?.code()
    }

    /// Whether it is one stored value that cannot be read, of which nothing else should suffer.
    pub const fn is_unreadable(&self) -> bool {
        matches!(self, Self::Sealed(_) | Self::Corrupt(_))
    }

    /// Whether the database says that what it stores is damaged: PostgreSQL's class XX, SQLite's CORRUPT.
    pub fn is_damage(&self) -> bool {
        self.code().is_some_and(|code| match code.len() {
            5 => code.starts_with("XX"),
            _ => code.parse::<i32>().is_ok_and(|code| code & 0xff == 11),
        })
    }

    /// Whether PostgreSQL refused it because rows that are there speak against it.
    pub fn is_check_violation(&self) -> bool {
        self.code().is_some_and(|code| code == "23514")
    }

    /// Whether what the call should have done may have been done all the same, or may still be.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Unanswered(_) | Self::TimedOut)
    }

    /// Whether the database is out of reach, busy or full, so that the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Db(DbErr::ConnectionAcquire(_)) => true,
            Self::TimedOut | Self::Interrupted | Self::Unanswered(_) | Self::LeaseGone => true,
            Self::Sqlite(_) => self.code().is_some_and(|code| passes(&code)),
            _ => self.sqlx().is_some_and(is_transient),
        }
    }
}

fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| passes(&code)),
        _ => false,
    }
}

/// Whether what a database's code names passes by itself.
fn passes(code: &str) -> bool {
    if code.len() == 5 {
        // PostgreSQL classes 08 (connection), 25 (the transaction ended, or the server turned read-only), 40
        // (rollback), 53 (resources), 55, 57 (operator) and 58 (system).
        return ["08", "25", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class));
    }
    // SQLite: BUSY, LOCKED, INTERRUPT, IOERR, FULL, CANTOPEN, by the low byte of the extended code.
    code.parse::<i32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 9 | 10 | 13 | 14))
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        if error.is_transient() {
            return Self::unavailable("the database is not available now; try again").caused_by(error);
        }
        match error {
            StoreError::Setup(message) => Self::new(ErrorKind::FailedPrecondition, "SETUP", message),
            // Not UNAVAILABLE: clients would try again, and it would take as long.
            StoreError::ListTooLong { list, narrow, .. } => {
                let message = format!("the {list} could not be read in time; narrow the call by {narrow}");
                Self::new(ErrorKind::DeadlineExceeded, "LIST_TOO_LONG", message)
                    .with("list", list)
                    .with("narrow_by", narrow)
                    .caused_by(error)
            }
            StoreError::ProjectFull { project, .. } => Self::quota("ENDPOINTS", project, error.to_string()),
            error => Self::internal(error),
        }
    }
}

//! Many rows in one statement, spelled the same for both databases.
//!
//! The rows become a common table expression `v` with the given columns: an UNNEST of one array per column
//! on PostgreSQL, a VALUES list on SQLite. A statement then reads from `v` (`INSERT … SELECT … FROM v`,
//! `UPDATE … FROM v`). Values are never NULL here, because arrays of the driver cannot hold it: a column
//! that may be NULL carries a value outside its range and the statement says NULLIF.

use sea_orm::sea_query::ArrayType;
use sea_orm::{ConnectionTrait, DbBackend, QueryResult, Statement, Value};

use super::error::Result;

/// A column's type.
#[derive(Clone, Copy)]
pub enum Kind {
    Uuid,
    SmallInt,
    Int,
    BigInt,
    Text,
    Bytes,
}

impl Kind {
    fn array(self) -> (ArrayType, &'static str) {
        match self {
            Self::Uuid => (ArrayType::Uuid, "uuid[]"),
            Self::SmallInt => (ArrayType::SmallInt, "smallint[]"),
            Self::Int => (ArrayType::Int, "integer[]"),
            Self::BigInt => (ArrayType::BigInt, "bigint[]"),
            Self::Text => (ArrayType::String, "text[]"),
            Self::Bytes => (ArrayType::Bytes, "bytea[]"),
        }
    }
}

/// SQLite takes 32,766 parameters in a statement. Chunks come in few sizes, so that their texts stay in the
/// connection's statement cache; one that is not full ends with rows of NULLs, which `v` leaves out. So up to
/// 256 rows are one statement: each costs a hand-over to the driver's thread and back.
const SQLITE_CHUNKS: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// Statements for SQLite are joined while their texts are no longer than this, up to about 64 rows each: the driver keeps each
/// combination of sizes prepared, so only small ones, of which a hand-over is the larger part, are combined.
const JOINED: usize = 6 << 10;

/// A statement's text, and the values of its parameters.
type Part = (String, Vec<Value>);

/// Statements that return nothing, carried out by one round trip: SQLite takes them as one text, PostgreSQL as the
/// parts of one WITH, in no order and each on the state before all of them. So none may read or change rows that another
/// one writes.
pub struct Script {
    backend: DbBackend,
    parts: Vec<Part>,
    values: usize,
}

impl Script {
    pub fn new(backend: DbBackend) -> Self {
        Self { backend, parts: Vec::new(), values: 0 }
    }

    /// Adds a statement without rows; its parameters are `?`. Only for SQLite.
    pub fn add(&mut self, sql: &str, values: Vec<Value>) {
        self.values += values.len();
        self.parts.push((sql.to_owned(), values));
    }

    /// On SQLite, returns the number of the row that was inserted last.
    pub async fn run(self, db: &impl ConnectionTrait) -> Result<i64> {
        let (backend, mut last) = (self.backend, 0);
        for (text, values) in self.texts() {
            let done = db.execute_raw(Statement::from_sql_and_values(backend, text, values)).await?;
            if backend == DbBackend::Sqlite {
                last = done.last_insert_id().cast_signed();
            }
        }
        Ok(last)
    }

    /// What is sent at once.
    fn texts(self) -> Vec<Part> {
        if self.backend == DbBackend::Postgres && self.parts.len() > 1 {
            let (texts, values): (Vec<String>, Vec<Vec<Value>>) = self.parts.into_iter().unzip();
            let parts = texts.iter().enumerate().map(|(at, text)| format!("s{at} AS ({text})"));
            let text = format!("WITH {} SELECT", parts.collect::<Vec<_>>().join(", "));
            return vec![(text, values.into_iter().flatten().collect())];
        }
        let mut texts: Vec<Part> = Vec::new();
        for (text, values) in self.parts {
            match texts.last_mut() {
                Some((before, others)) if before.len() + text.len() <= JOINED => {
                    before.push_str("; ");
                    before.push_str(&text);
                    others.extend(values);
                }
                _ => texts.push((text, values)),
            }
        }
        texts
    }
}

/// Rows for one statement.
#[derive(Clone)]
pub struct Rows<const N: usize> {
    columns: [(&'static str, Kind); N],
    rows: Vec<[Value; N]>,
}

impl<const N: usize> Rows<N> {
    pub fn new(columns: [(&'static str, Kind); N]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    pub fn push(&mut self, row: [Value; N]) {
        self.rows.push(row);
    }

    /// Runs a statement that reads from `v`; says how many rows it changed.
    pub async fn execute(self, db: &impl ConnectionTrait, sql: &str) -> Result<u64> {
        let mut changed = 0;
        for statement in self.statements(db.get_database_backend(), sql) {
            changed += db.execute_raw(statement).await?.rows_affected();
        }
        Ok(changed)
    }

    /// Runs a statement that reads from `v` and returns rows.
    pub async fn query(self, db: &impl ConnectionTrait, sql: &str) -> Result<Vec<QueryResult>> {
        let mut found = Vec::new();
        for statement in self.statements(db.get_database_backend(), sql) {
            found.extend(db.query_all_raw(statement).await?);
        }
        Ok(found)
    }

    /// Adds a statement that reads from `v` to a script.
    pub fn add_to(self, script: &mut Script, sql: &str) {
        if self.rows.is_empty() {
            return;
        }
        let parts = match script.backend {
            DbBackend::Postgres => vec![self.unnest(sql, script.values)],
            _ => self.values_lists(sql),
        };
        script.values += parts.iter().map(|(_, values)| values.len()).sum::<usize>();
        script.parts.extend(parts);
    }

    fn statements(self, backend: DbBackend, sql: &str) -> Vec<Statement> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        let parts = match backend {
            DbBackend::Postgres => vec![self.unnest(sql, 0)],
            _ => self.values_lists(sql),
        };
        parts
            .into_iter()
            .map(|(text, values)| Statement::from_sql_and_values(backend, text, values))
            .collect()
    }

    fn names(&self) -> String {
        self.columns.map(|(name, _)| name).join(", ")
    }

    /// `before` parameters are taken by what stands before it.
    fn unnest(self, sql: &str, before: usize) -> Part {
        let casts: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, (_, kind))| format!("${}::{}", before + at + 1, kind.array().1))
            .collect();
        let text = format!("WITH v({}) AS (SELECT * FROM UNNEST({})) {sql}", self.names(), casts.join(", "));
        let mut arrays = self.columns.map(|_| Vec::with_capacity(self.rows.len()));
        for row in self.rows {
            for (array, value) in arrays.iter_mut().zip(row) {
                array.push(value);
            }
        }
        let values = arrays
            .into_iter()
            .zip(self.columns)
            .map(|(array, (_, kind))| Value::Array(kind.array().0, Some(Box::new(array))));
        (text, values.collect())
    }

    fn values_lists(self, sql: &str) -> Vec<Part> {
        let names = self.names();
        let first = self.columns[0].0;
        let row = format!("({})", ["?"; N].join(","));
        let sql = unjournaled(sql);
        let mut rows = self.rows.into_iter();
        let mut statements = Vec::new();
        while rows.len() > 0 {
            let wanted = rows.len().min(SQLITE_CHUNKS[SQLITE_CHUNKS.len() - 1]);
            let size = SQLITE_CHUNKS.into_iter().find(|size| *size >= wanted).unwrap_or(wanted);
            let list = vec![row.as_str(); size].join(",");
            let text = format!(
                "WITH w({names}) AS (VALUES {list}), v AS (SELECT * FROM w WHERE {first} IS NOT NULL) {sql}"
            );
            let padding = std::iter::repeat_n(Value::Int(None), (size - wanted) * N);
            let values = rows.by_ref().take(wanted).flatten().chain(padding);
            statements.push((text, values.collect()));
        }
        statements
    }
}

/// ABORT, which is SQLite's default, keeps a journal of every statement to undo it alone. Nothing here goes on in a
/// transaction of which a statement failed, so FAIL does, and writes each page once.
fn unjournaled(sql: &str) -> String {
    let verb = ["INSERT", "UPDATE"].into_iter().find(|verb| sql.starts_with(verb));
    match verb {
        Some(verb) => format!("{verb} OR FAIL{}", &sql[verb.len()..]),
        None => sql.to_owned(),
    }
}

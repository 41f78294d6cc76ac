//! Many rows in one statement, spelled the same for both databases.
//!
//! The rows become a common table expression `v` with the given columns: an UNNEST of one array per column
//! on PostgreSQL; on SQLite a VALUES list for reads, and in a transaction one row after the other, each bound to the same
//! prepared statement, which is the cheapest where nothing stands between. A statement then reads from `v` (`INSERT … SELECT … FROM v`,
//! `UPDATE … FROM v`). Values are never NULL here, because arrays of the driver cannot hold it: a column
//! that may be NULL carries a value outside its range and the statement says NULLIF.

use sea_orm::sea_query::ArrayType;
use sea_orm::{DbBackend, Statement, Value};

use super::db::{Db, Row};
use super::error::Result;
use super::session::{Runs, Session};

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

/// A statement's text, and the values of its parameters.
type Part = (String, Vec<Value>);

/// Statements that return nothing, of a transaction. PostgreSQL takes them in one round trip, as the parts of one WITH, in no
/// order and each on the state before all of them. So none may read or change rows that another one writes.
pub struct Script {
    backend: DbBackend,
    /// For PostgreSQL.
    parts: Vec<Part>,
    values: usize,
    /// For SQLite.
    runs: Vec<Runs>,
}

impl Script {
    pub fn new(backend: DbBackend) -> Self {
        Self { backend, parts: Vec::new(), values: 0, runs: Vec::new() }
    }

    pub async fn run(self, db: Db<'_>) -> Result<()> {
        if let Db::Session(session) = db {
            for runs in &self.runs {
                session.execute(runs)?;
            }
        } else if let Some((text, values)) = self.joined() {
            db.execute_raw(Statement::from_sql_and_values(db.backend(), text, values)).await?;
        }
        Ok(())
    }

    /// Joins what is in it with a statement that reads from `before`, whose `n` is there when all else has run; for
    /// PostgreSQL. `sql` is told the number of its first parameter.
    pub fn ended(
        self,
        sql: impl FnOnce(usize) -> String,
        values: impl IntoIterator<Item = Value>,
    ) -> Statement {
        let mut text = String::from("WITH ");
        let (mut sum, mut counts) = (String::from("0"), vec!["(SELECT 1) AS nothing".to_owned()]);
        let (texts, before): (Vec<String>, Vec<Vec<Value>>) = self.parts.into_iter().unzip();
        for (at, part) in texts.iter().enumerate() {
            text.push_str(&format!("s{at} AS ({part} RETURNING 1), "));
            counts.push(format!("(SELECT COUNT(*) AS n FROM s{at}) AS c{at}"));
            sum.push_str(&format!(" + c{at}.n"));
        }
        text.push_str(&format!("before(n) AS MATERIALIZED (SELECT {sum} FROM {})", counts.join(", ")));
        text.push_str(&sql(self.values + 1));
        let values = before.into_iter().flatten().chain(values);
        Statement::from_sql_and_values(DbBackend::Postgres, text, values)
    }

    fn joined(mut self) -> Option<Part> {
        if self.parts.len() < 2 {
            return self.parts.pop();
        }
        let (texts, values): (Vec<String>, Vec<Vec<Value>>) = self.parts.into_iter().unzip();
        let texts = texts.iter().enumerate().map(|(at, text)| format!("s{at} AS ({text})"));
        let text = format!("WITH {} SELECT", texts.collect::<Vec<_>>().join(", "));
        Some((text, values.into_iter().flatten().collect()))
    }
}

/// Rows for one statement.
#[derive(Clone)]
pub struct Rows<const N: usize> {
    columns: [(&'static str, Kind); N],
    /// One after the other.
    values: Vec<Value>,
}

impl<const N: usize> Rows<N> {
    pub fn new(columns: [(&'static str, Kind); N]) -> Self {
        Self { columns, values: Vec::new() }
    }

    pub fn push(&mut self, row: [Value; N]) {
        self.values.extend(row);
    }

    fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Runs a statement that reads from `v`; says how many rows it changed.
    pub async fn execute(self, db: Db<'_>, sql: &str) -> Result<u64> {
        let mut changed = 0;
        match db {
            Db::Session(session) if !self.is_empty() => {
                changed = session.execute(&self.row_by_row(sql))?;
            }
            _ => {
                for statement in self.statements(db.backend(), sql) {
                    changed += db.execute_raw(statement).await?;
                }
            }
        }
        Ok(changed)
    }

    /// Runs a statement that reads from `v` and returns rows.
    pub async fn query(self, db: Db<'_>, sql: &str) -> Result<Vec<Row>> {
        let mut found = Vec::new();
        match db {
            Db::Session(session) if !self.is_empty() => {
                found = session.query(&self.row_by_row(sql))?;
            }
            _ => {
                for statement in self.statements(db.backend(), sql) {
                    found.extend(db.query_all_raw(statement).await?);
                }
            }
        }
        Ok(found)
    }

    /// Runs a statement for each row, on SQLite; says which of them changed something.
    pub(super) fn changed(self, session: &Session, sql: &str) -> Result<Vec<bool>> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        session.changed(&self.row_by_row(sql))
    }

    /// Adds the insertion of a row for each of them to a script: `into` a table's columns `values`, which name ours like
    /// `:id`, and on conflict as said.
    pub fn insert(self, script: &mut Script, into: &str, values: &str, on_conflict: &str) {
        let sql = match script.backend {
            DbBackend::Postgres => {
                // `::` is a cast.
                let values = format!(" {values}").replace(" :", " v.").replace("(:", "(v.");
                format!("INSERT INTO {into} SELECT{values} FROM v {on_conflict}")
            }
            _ => format!("INSERT INTO {into} VALUES ({values}) {on_conflict}"),
        };
        self.add_to(script, &sql);
    }

    /// Adds a statement that reads from `v` to a script.
    pub fn add_to(self, script: &mut Script, sql: &str) {
        if self.is_empty() {
            return;
        }
        match script.backend {
            DbBackend::Postgres => {
                let part = self.unnest(sql, script.values);
                script.values += part.1.len();
                script.parts.push(part);
            }
            _ => script.runs.push(self.row_by_row(sql)),
        }
    }

    fn statements(self, backend: DbBackend, sql: &str) -> Vec<Statement> {
        if self.is_empty() {
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
        let mut arrays = self.columns.map(|_| Vec::with_capacity(self.values.len() / N));
        for (at, value) in self.values.into_iter().enumerate() {
            arrays[at % N].push(value);
        }
        let values = arrays
            .into_iter()
            .zip(self.columns)
            .map(|(array, (_, kind))| Value::Array(kind.array().0, Some(Box::new(array))));
        (text, values.collect())
    }

    /// `v` has one row, and the statement is run for each: it must do the same as for all of them at once. One that names its
    /// columns as parameters, such as `:id`, needs no `v`, which costs SQLite something.
    fn row_by_row(self, sql: &str) -> Runs {
        let names = self.columns.map(|(name, _)| name);
        let sql = unjournaled(sql);
        let text = match sql.contains(" :") {
            true => sql,
            false => format!("WITH v({}) AS (VALUES (:{})) {sql}", names.join(", "), names.join(", :")),
        };
        Runs { text, names: names.into(), values: self.values }
    }

    fn values_lists(self, sql: &str) -> Vec<Part> {
        let names = self.names();
        let first = self.columns[0].0;
        let row = format!("({})", ["?"; N].join(","));
        let mut rows = self.values.len() / N;
        let mut values = self.values.into_iter();
        let mut parts = Vec::new();
        while rows > 0 {
            let wanted = rows.min(SQLITE_CHUNKS[SQLITE_CHUNKS.len() - 1]);
            let size = SQLITE_CHUNKS.into_iter().find(|size| *size >= wanted).unwrap_or(wanted);
            let list = vec![row.as_str(); size].join(",");
            let text = format!(
                "WITH w({names}) AS (VALUES {list}), v AS (SELECT * FROM w WHERE {first} IS NOT NULL) {sql}"
            );
            let padding = std::iter::repeat_n(Value::Int(None), (size - wanted) * N);
            let values = values.by_ref().take(wanted * N).chain(padding).collect();
            parts.push((text, values));
            rows -= wanted;
        }
        parts
    }
}

/// ABORT, which is SQLite's default, keeps a journal of every statement to undo it alone. Nothing here goes on in a
/// transaction of which a statement failed, so FAIL does.
fn unjournaled(sql: &str) -> String {
    let verb = ["INSERT", "UPDATE"].into_iter().find(|verb| sql.starts_with(verb));
    match verb {
        Some(verb) => format!("{verb} OR FAIL{}", &sql[verb.len()..]),
        None => sql.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_script_waits_for_all_its_parts() {
        let mut script = Script::new(DbBackend::Postgres);
        let mut first = Rows::new([("id", Kind::Uuid), ("n", Kind::Int)]);
        first.push([uuid::Uuid::nil().into(), 1.into()]);
        first.insert(&mut script, "a (id, n)", ":id, COALESCE(:n, 0)", "ON CONFLICT DO NOTHING");
        let mut second = Rows::new([("id", Kind::Uuid)]);
        second.push([uuid::Uuid::nil().into()]);
        second.add_to(&mut script, "DELETE FROM b USING v WHERE b.id = v.id");
        Rows::new([("id", Kind::Uuid)]).add_to(&mut script, "DELETE FROM c USING v WHERE c.id = v.id");
        let end = script.ended(|first| format!(" SELECT ${first} FROM before WHERE n >= 0"), [7.into()]);
        assert_eq!(
            end.sql,
            "WITH s0 AS (WITH v(id, n) AS (SELECT * FROM UNNEST($1::uuid[], $2::integer[])) INSERT INTO a (id, n) SELECT \
             v.id, COALESCE(v.n, 0) FROM v ON CONFLICT DO NOTHING RETURNING 1), s1 AS (WITH v(id) AS (SELECT * FROM \
             UNNEST($3::uuid[])) DELETE FROM b USING v WHERE b.id = v.id RETURNING 1), before(n) AS MATERIALIZED (SELECT \
             0 + c0.n + c1.n FROM (SELECT 1) AS nothing, (SELECT COUNT(*) AS n FROM s0) AS c0, (SELECT COUNT(*) AS n FROM \
             s1) AS c1) SELECT $4 FROM before WHERE n >= 0"
        );
        assert_eq!(end.values.unwrap().0.len(), 4);
        let alone = Script::new(DbBackend::Postgres)
            .ended(|first| format!(" SELECT ${first} FROM before"), [7.into()]);
        assert_eq!(
            alone.sql,
            "WITH before(n) AS MATERIALIZED (SELECT 0 FROM (SELECT 1) AS nothing) SELECT $1 FROM before"
        );
    }
}

//! Where a statement runs, and the rows that come back: connections of a pool, a transaction of theirs, or SQLite's
//! writing connection, which is our own (see [`super::session`]).

use rusqlite::types::{FromSql, FromSqlError, ValueRef};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryResult,
    QueryTrait, Select, Statement, TryGetable, TryIntoModel,
};

use super::error::{Result, StoreError};
use super::session::Session;

/// What runs statements.
#[derive(Clone, Copy)]
pub(crate) enum Db<'a> {
    Pool(&'a DatabaseConnection),
    Transaction(&'a DatabaseTransaction),
    Session(&'a Session),
}

/// A row of an answer.
pub(crate) enum Row {
    Sqlx(QueryResult),
    Sqlite(Vec<Stored>),
}

/// A column's value as SQLite has it. Text is read when it is asked for: one that does not read concerns its own column.
pub(crate) enum Stored {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl From<ValueRef<'_>> for Stored {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) => Self::Integer(number),
            ValueRef::Real(number) => Self::Real(number),
            ValueRef::Text(text) => Self::Text(text.to_vec()),
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }
}

impl<'a> From<&'a Stored> for ValueRef<'a> {
    fn from(value: &'a Stored) -> Self {
        match value {
            Stored::Null => Self::Null,
            Stored::Integer(number) => Self::Integer(*number),
            Stored::Real(number) => Self::Real(*number),
            Stored::Text(text) => Self::Text(text),
            Stored::Blob(bytes) => Self::Blob(bytes),
        }
    }
}

/// A type that columns of both databases are read as.
pub(crate) trait Column: TryGetable + FromSql {}

impl<T: TryGetable + FromSql> Column for T {}

impl Row {
    /// The value of a column, by its place in the answer.
    pub fn try_get_by_index<T: Column>(&self, at: usize) -> Result<T> {
        let values = match self {
            Self::Sqlx(row) => return Ok(row.try_get_by_index(at)?),
            Self::Sqlite(values) => values,
        };
        let value = values.get(at).ok_or_else(|| StoreError::Statement(format!("no column {at}")))?;
        T::column_result(value.into())
            .map_err(|error: FromSqlError| StoreError::Corrupt(format!("column {at}: {error}")))
    }
}

impl Db<'_> {
    pub fn backend(&self) -> DbBackend {
        match self {
            Self::Pool(pool) => pool.get_database_backend(),
            Self::Transaction(txn) => txn.get_database_backend(),
            Self::Session(_) => DbBackend::Sqlite,
        }
    }

    pub async fn query_all_raw(&self, statement: Statement) -> Result<Vec<Row>> {
        let rows = match self {
            Self::Pool(pool) => pool.query_all_raw(statement).await?,
            Self::Transaction(txn) => txn.query_all_raw(statement).await?,
            Self::Session(session) => return session.query(&statement.into()),
        };
        Ok(rows.into_iter().map(Row::Sqlx).collect())
    }

    pub async fn query_one_raw(&self, statement: Statement) -> Result<Option<Row>> {
        let row = match self {
            Self::Pool(pool) => pool.query_one_raw(statement).await?,
            Self::Transaction(txn) => txn.query_one_raw(statement).await?,
            Self::Session(session) => return Ok(session.query(&statement.into())?.into_iter().next()),
        };
        Ok(row.map(Row::Sqlx))
    }

    /// Runs a statement that returns nothing; says how many rows it changed.
    pub async fn execute_raw(&self, statement: Statement) -> Result<u64> {
        let done = match self {
            Self::Pool(pool) => pool.execute_raw(statement).await?,
            Self::Transaction(txn) => txn.execute_raw(statement).await?,
            Self::Session(session) => return session.execute(&statement.into()),
        };
        Ok(done.rows_affected())
    }

    /// Runs a statement that a builder makes; says how many rows it changed.
    pub async fn execute(&self, statement: &impl QueryTrait) -> Result<u64> {
        self.execute_raw(statement.build(self.backend())).await
    }

    /// Inserts rows of an entity, if there are any.
    pub async fn insert_all<E: EntityTrait>(&self, rows: Vec<E::ActiveModel>) -> Result<()> {
        if !rows.is_empty() {
            self.execute(&E::insert_many(rows)).await?;
        }
        Ok(())
    }

    /// Runs an update of one row, which must be there.
    pub async fn update_one(&self, statement: &impl QueryTrait) -> Result<()> {
        match self.execute(statement).await? {
            0 => Err(DbErr::RecordNotUpdated.into()),
            _ => Ok(()),
        }
    }

    /// Runs statements without parameters.
    pub async fn execute_unprepared(&self, sql: &str) -> Result<()> {
        match self {
            Self::Pool(pool) => _ = pool.execute_unprepared(sql).await?,
            Self::Transaction(txn) => _ = txn.execute_unprepared(sql).await?,
            Self::Session(session) => session.run_text(sql)?,
        }
        Ok(())
    }

    /// The entities that are selected.
    pub async fn all<E: EntityTrait>(&self, select: Select<E>) -> Result<Vec<E::Model>>
    where
        E::ActiveModel: TryIntoModel<E::Model>,
    {
        match self {
            Self::Pool(pool) => Ok(select.all(*pool).await?),
            Self::Transaction(txn) => Ok(select.all(*txn).await?),
            Self::Session(session) => session.models(&select),
        }
    }

    /// The first entity that is selected.
    pub async fn one<E: EntityTrait>(&self, select: Select<E>) -> Result<Option<E::Model>>
    where
        E::ActiveModel: TryIntoModel<E::Model>,
    {
        match self {
            Self::Pool(pool) => Ok(select.one(*pool).await?),
            Self::Transaction(txn) => Ok(select.one(*txn).await?),
            Self::Session(session) => Ok(session.models(&select)?.into_iter().next()),
        }
    }
}

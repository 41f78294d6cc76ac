//! What only SQL can do to a test's own database: keep it from writing, or make it refuse some rows.

use sqlx::{Connection, Executor, PgConnection, SqliteConnection};

use super::Server;

/// A session of the test's own beside the server.
pub enum Session {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Session {
    pub async fn run(&mut self, sql: &str) {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        match self {
            Self::Sqlite(session) => session.execute(sql).await.map(|_| ()),
            Self::Postgres(session) => session.execute(sql).await.map(|_| ()),
        }
        .expect("the statement runs");
    }

    pub async fn count(&mut self, table: &str) -> i64 {
        let sql = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
        match self {
            Self::Sqlite(session) => sqlx::query_scalar(sql).fetch_one(session).await,
            Self::Postgres(session) => sqlx::query_scalar(sql).fetch_one(session).await,
        }
        .expect("counted")
    }

    /// What a query of one column of whole numbers says.
    pub async fn numbers(&mut self, sql: &str) -> Vec<i64> {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        match self {
            Self::Sqlite(session) => sqlx::query_scalar(sql).fetch_all(session).await,
            Self::Postgres(session) => sqlx::query_scalar(sql).fetch_all(session).await,
        }
        .expect("read")
    }

    /// Waits until a query of one column of whole numbers says this.
    pub async fn until_numbers(&mut self, sql: &str, expected: &[i64]) {
        let settling = async {
            // Another process's rows cannot be awaited.
            while self.numbers(sql).await != expected {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let settled = tokio::time::timeout(super::PATIENCE, settling).await;
        assert!(settled.is_ok(), "{sql}: not {expected:?} in time");
    }

    /// A condition on the new row: this column holds these bytes, given in hexadecimal.
    pub fn bytes_equal(&self, column: &str, hex: &str) -> String {
        match self {
            Self::Sqlite(_) => format!("NEW.{column} = x'{hex}'"),
            Self::Postgres(_) => format!("NEW.{column} = decode('{hex}', 'hex')"),
        }
    }

    /// Makes the table refuse new rows that meet the condition.
    pub async fn refuse(&mut self, table: &str, condition: &str, trigger: &str) {
        self.refuse_to("INSERT", table, condition, trigger).await;
    }

    /// The same of rows that change so that they meet it.
    pub async fn refuse_change(&mut self, table: &str, condition: &str, trigger: &str) {
        self.refuse_to("UPDATE", table, condition, trigger).await;
    }

    async fn refuse_to(&mut self, verb: &str, table: &str, condition: &str, trigger: &str) {
        match self {
            Self::Sqlite(_) => {
                let sql = format!(
                    "CREATE TRIGGER {trigger} BEFORE {verb} ON {table} WHEN {condition} \
                     BEGIN SELECT RAISE(ABORT, 'refused'); END"
                );
                self.run(&sql).await;
            }
            Self::Postgres(_) => {
                let sql = format!(
                    "CREATE FUNCTION {trigger}() RETURNS trigger LANGUAGE plpgsql \
                     AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$"
                );
                self.run(&sql).await;
                let sql = format!(
                    "CREATE TRIGGER {trigger} BEFORE {verb} ON {table} FOR EACH ROW WHEN ({condition}) \
                     EXECUTE FUNCTION {trigger}()"
                );
                self.run(&sql).await;
            }
        }
    }

    /// Ends what `refuse` began.
    pub async fn allow(&mut self, table: &str, trigger: &str) {
        match self {
            Self::Sqlite(_) => self.run(&format!("DROP TRIGGER {trigger}")).await,
            Self::Postgres(_) => self.run(&format!("DROP TRIGGER {trigger} ON {table}")).await,
        }
    }

    /// From now on nobody's reading of this table ends by itself.
    pub async fn make_endless(&mut self, table: &str) {
        self.run(&format!("ALTER TABLE {table} RENAME TO {table}_kept")).await;
        let endless = match self {
            Self::Sqlite(_) => {
                "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n) > 0"
            }
            Self::Postgres(_) => "(SELECT TRUE FROM pg_sleep(3600))",
        };
        self.run(&format!("CREATE VIEW {table} AS SELECT * FROM {table}_kept WHERE {endless}")).await;
    }

    /// Lets the server write again.
    pub async fn release(mut self) {
        self.run("ROLLBACK").await;
    }
}

impl Server {
    /// A session on its database, running or not.
    pub async fn sql(&self) -> Session {
        if self.database().url().is_some() {
            return Session::Postgres(self.database().session().await);
        }
        let file = format!("sqlite:{}", self.data().join("hawser.db").display());
        Session::Sqlite(SqliteConnection::connect(&file).await.expect("opened"))
    }

    /// From now until the session's release no event can be written. The server gives up after some seconds.
    pub async fn hold_writes(&self) -> Session {
        let mut session = self.sql().await;
        match session {
            Session::Sqlite(_) => session.run("BEGIN IMMEDIATE").await,
            Session::Postgres(_) => {
                session.run("BEGIN").await;
                session.run("LOCK TABLE events IN EXCLUSIVE MODE").await;
            }
        }
        session
    }
}

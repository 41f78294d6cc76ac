//! A fresh database for each test, gone with it.

use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};

use super::PATIENCE;

/// Where a test's server keeps its data.
pub struct Database {
    /// None: SQLite in the server's data folder.
    url: Option<String>,
    admin: String,
    name: String,
}

impl Database {
    pub fn sqlite() -> Self {
        Self { url: None, admin: String::new(), name: String::new() }
    }

    /// A database of its own in the cluster that `scripts/test` started.
    pub async fn postgres() -> Self {
        let admin = std::env::var("HAWSER_TEST_POSTGRES").expect(
            "HAWSER_TEST_POSTGRES names no PostgreSQL; run the tests with scripts/test, which starts one",
        );
        let name = format!("it_{}", uuid::Uuid::now_v7().simple());
        let mut session = PgConnection::connect(&admin).await.expect("PostgreSQL answers");
        // With the schema in it, where there is one to copy: a server would spend more on that than most tests take.
        let template = std::env::var("HAWSER_TEST_TEMPLATE").ok().filter(|template| !template.is_empty());
        let template = template.map(|template| format!(" TEMPLATE {template}")).unwrap_or_default();
        let create = format!("CREATE DATABASE {name}{template}");
        session.execute(sqlx::AssertSqlSafe(create)).await.expect("created");
        session.close().await.expect("closed");
        let base = admin.rsplit_once('/').expect("a URL with a database").0;
        Self { url: Some(format!("{base}/{name}")), admin: admin.clone(), name }
    }

    /// A session of the test's own on this database, which must be PostgreSQL.
    pub async fn session(&self) -> PgConnection {
        PgConnection::connect(self.url().expect("PostgreSQL")).await.expect("PostgreSQL answers")
    }

    /// Ends everyone's connections and lets nobody in again; or lets them in. Only on PostgreSQL.
    pub async fn set_reachable(&self, reachable: bool) {
        let mut session = PgConnection::connect(&self.admin).await.expect("PostgreSQL answers");
        let allow = format!("ALTER DATABASE {} ALLOW_CONNECTIONS {reachable}", self.name);
        session.execute(sqlx::AssertSqlSafe(allow)).await.expect("altered");
        if !reachable {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
            sqlx::query(end).bind(&self.name).execute(&mut session).await.expect("ended");
        }
    }

    /// A session beside this database, for what must not be done from within it.
    pub async fn admin_session(&self) -> PgConnection {
        PgConnection::connect(&self.admin).await.expect("PostgreSQL answers")
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks the same question of this database, which must be PostgreSQL, until the answer is as wanted.
    pub async fn until(&self, what: &str, question: &str, wanted: i64) {
        let mut session = self.session().await;
        let mut last = None;
        let asking = async {
            while last != Some(wanted) {
                if last.is_some() {
                    // Another process's rows cannot be awaited.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let sql = sqlx::AssertSqlSafe(question.to_owned());
                last = Some(sqlx::query_scalar(sql).fetch_one(&mut session).await.expect("read"));
            }
        };
        if tokio::time::timeout(PATIENCE, asking).await.is_err() {
            panic!("{what}: not in time; {question} says {last:?}");
        }
    }

    pub fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.url.is_none() {
            return;
        }
        let (admin, name) = (self.admin.clone(), self.name.clone());
        // A thread of its own, because a test's runtime may be ending.
        let dropping = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let mut session = PgConnection::connect(&admin).await.expect("PostgreSQL answers");
                let sql = format!("DROP DATABASE {name} WITH (FORCE)");
                session.execute(sqlx::AssertSqlSafe(sql)).await.expect("dropped");
            });
        });
        if dropping.join().is_err() && !std::thread::panicking() {
            panic!("the test's database could not be dropped");
        }
    }
}

//! What the tests run on.

pub mod bulk;
pub mod cli;
pub mod database;
pub mod desk;
pub mod failing;
pub mod feed;
pub mod import;
pub mod leaks;
pub mod mail;
pub mod names;
pub mod pki;
pub mod proxy;
pub mod receiver;
pub mod scrape;
pub mod secrets;
pub mod server;
pub mod single;
pub mod sql;
pub mod stale;
pub mod token_server;
pub mod told;
pub mod web;
pub mod world;

pub use database::Database;
pub use desk::{Answer, Desk};
pub use proxy::Proxy;
pub use receiver::{Receiver, Reply};
pub use server::Server;
pub use world::World;

/// Makes of each named test function two tests, one on each database.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            use crate::support::Database;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                crate::support::in_time(super::$name(Database::sqlite())).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                crate::support::in_time(super::$name(Database::postgres().await)).await;
            }
        })+
    };
}
pub(crate) use on_both;

/// Small numbers in the everyday run, full ones where the fault tier is asked for.
pub fn tier(small: usize, full: usize) -> usize {
    match std::env::var("HAWSER_FAULT_TIER").as_deref() {
        Ok("full") => full,
        _ => small,
    }
}

/// Time that must pass because the test is about time: the end of a lease, an outage's length.
pub async fn pass_time(time: std::time::Duration) {
    tokio::time::sleep(time).await;
}

/// Ends a test that goes on for ever, for example because bookmarks keep a stream alive.
pub async fn in_time(test: impl Future<Output = ()>) {
    // Full numbers take longer.
    let limit = PATIENCE * tier(4, 20) as u32;
    tokio::time::timeout(limit, test).await.expect("the test ends in time");
}

/// The longest that anything a test awaits may take.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(90);

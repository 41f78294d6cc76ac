//! The limit of open files: raised at start, and told where it is too low.

use crate::support::{Database, Server};

#[tokio::test]
async fn the_limit_is_raised_and_told_where_it_is_too_low() {
    const WARNING: &str = "the limit of open files is lower";
    // Six for each slot, the connections, 1,000 of the portal's, and the rest.
    let few = ["--slots", "10", "--connections-max", "50"];
    for (hard, arguments, told) in [
        ("2000", &[][..], Some("limit=2000 needed=17656")),
        ("1500", &few[..], Some("limit=1500 needed=1622")),
        ("1700", &few[..], None),
    ] {
        let wrapper = ["prlimit", &format!("--nofile=200:{hard}")];
        let server = Server::start_under(&wrapper, Database::sqlite(), arguments).await;
        let log = server.log();
        assert_eq!(log.contains(WARNING), told.is_some(), "{log}");
        if let Some(told) = told {
            assert!(log.contains(told), "{told}: {log}");
        }
        let limit = server
            .proc("limits")
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .map(|line| line.split_whitespace().skip(3).take(2).map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(limit.expect("a limit"), [hard, hard]);
    }
}

//! `hawser serve --print-config`: every setting in force with where it came from, no secret, and nothing made.

use std::process::Stdio;

use tokio::process::Command;

/// Runs it in a folder of its own with this file and these variables and flags; says whether it was content, and what
/// it wrote to stdout and stderr.
async fn print(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> (bool, String, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("hawser.toml");
    std::fs::write(&path, file).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_hawser"))
        .args(["serve", "--print-config", "--config", "hawser.toml"])
        .args(flags)
        .env_clear()
        .envs(variables.iter().copied())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .await
        .expect("started");
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("a folder").collect();
    assert_eq!(left.len(), 1, "it made a file: {left:?}");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn settings_are_told_with_their_sources_and_secrets_are_not() {
    let file = "store = \"postgres://me:canary-1@db/hawser\"\nslots = 7\noperator-key = \"hk_canary-2\"\ndrain = 9\n";
    // Whole keys, since the settings are checked as at a start.
    let master = "1:Y2FuYXJ5LTMtY2FuYXJ5LTMtY2FuYXJ5LTMtY2FuYXI=";
    let variables = [
        ("HAWSER_MASTER_KEY", master),
        ("HAWSER_EGRESS_PROXY", "http://me:canary-4@proxy:3128"),
        ("HAWSER_SLOTS", "8"),
        ("HAWSER_LEASE", "20"),
    ];
    let (content, shown, said) = print(file, &variables, &["--slots", "9", "--allow-http"]).await;
    assert!(content && said.is_empty(), "{said}");
    for line in [
        "slots = 9  # flag",
        "allow-http = true  # flag",
        "lease = 20  # environment",
        "drain = 9  # file",
        "store = \"postgres://db:5432/hawser\"  # file",
        "operator-key = \"[redacted]\"  # file",
        "master-key = \"[redacted]\"  # environment",
        "egress-proxy = \"http://proxy:3128\"  # environment",
        "pending-max = 5000000  # default",
        "# tls-cert is not set",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
    }
    assert!(!shown.contains("canary") && !shown.contains("Y2FuYXJ5"), "{shown}");
    assert!(!shown.contains("WARNING"), "{shown}");
}

#[tokio::test]
async fn that_receivers_are_not_verified_is_told_loudly() {
    let (content, shown, said) = print("insecure-skip-tls-verify = true\n", &[], &[]).await;
    assert!(content && said.is_empty(), "{said}");
    assert!(shown.starts_with("# WARNING: insecure-skip-tls-verify: "), "{shown}");
    assert!(shown.lines().any(|line| line == "insecure-skip-tls-verify = true  # file"), "{shown}");
    let (_, shown, _) =
        print("insecure-skip-tls-verify = true\n", &[], &["--insecure-skip-tls-verify=false"]).await;
    assert!(!shown.contains("WARNING"), "{shown}");
}

#[tokio::test]
async fn what_would_not_start_is_told_without_what_it_holds() {
    for (file, variables, reason) in [
        ("lease = 1\n", [("HAWSER_NODE", "x")], "lease must be 3 to 300 seconds"),
        ("", [("HAWSER_MASTER_KEY", "1:canary")], "master-key"),
        ("", [("HAWSER_STORE", "postgres://me:canary@[/")], "does not parse"),
        ("", [("HAWSER_EGRESS_PROXY", "http://me:canary@proxy/path")], "egress-proxy"),
        ("operator_key = \"canary\"\n", [("HAWSER_NODE", "x")], "line 1"),
    ] {
        let (content, shown, said) = print(file, &variables, &[]).await;
        assert!(!content && shown.is_empty(), "{shown}");
        assert!(said.contains(reason) && !said.contains("canary"), "{reason}: {said}");
    }
}

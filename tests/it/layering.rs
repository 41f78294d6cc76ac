//! The layers: each module uses only those below it.

use std::path::{Path, PathBuf};

/// A module of `src`, and what its code must not mention.
const RULES: &[(&str, &[&str])] = &[
    (
        "domain",
        &[
            "tonic",
            "prost",
            "sea_orm",
            "sqlx",
            "rusqlite",
            "reqwest",
            "hyper",
            "axum",
            "crate::store",
            "crate::engine",
            "crate::dispatch",
            "crate::service",
            "crate::grpc",
            "crate::cli",
            "crate::app",
            "crate::config",
        ],
    ),
    (
        "store",
        &[
            "tonic",
            "prost",
            "reqwest",
            "hyper",
            "axum",
            "crate::engine",
            "crate::dispatch",
            "crate::service",
            "crate::grpc",
            "crate::cli",
            "crate::app",
            "crate::config",
        ],
    ),
    (
        "dispatch",
        &[
            "sea_orm",
            "sqlx",
            "rusqlite",
            "tonic",
            "prost",
            "crate::store",
            "crate::engine",
            "crate::service",
            "crate::grpc",
            "crate::cli",
            "crate::app",
            "crate::config",
        ],
    ),
    (
        "engine",
        &[
            "tonic",
            "prost",
            "sea_orm",
            "sqlx",
            "rusqlite",
            "hyper",
            "crate::service",
            "crate::grpc",
            "crate::cli",
            "crate::app",
            "crate::config",
        ],
    ),
    (
        "service",
        &[
            "tonic",
            "prost",
            "sea_orm",
            "sqlx",
            "rusqlite",
            "hyper",
            "crate::grpc",
            "crate::cli",
            "crate::app",
            "crate::config",
        ],
    ),
    (
        "grpc",
        &[
            "sea_orm",
            "sqlx",
            "rusqlite",
            "crate::store",
            "crate::engine",
            "crate::dispatch",
            "crate::cli",
            "crate::app",
            "crate::config",
        ],
    ),
    (
        "http",
        &[
            "sea_orm",
            "sqlx",
            "rusqlite",
            "tonic",
            "crate::store",
            "crate::engine",
            "crate::dispatch",
            "crate::grpc",
            "crate::cli",
            "crate::app",
            "crate::config",
        ],
    ),
    ("metrics", &["sea_orm", "sqlx", "tonic", "prost", "hyper", "axum", "crate"]),
    ("cli", &["sea_orm", "sqlx"]),
];

const LINES_MAX: usize = 450;

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The forbidden names that a file's code uses as a path.
fn violations<'a>(text: &str, forbidden: &[&'a str]) -> Vec<&'a str> {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let uses = |name: &&&str| {
        let path = format!("{name}::");
        code.iter().any(|line| {
            line.match_indices(&path).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                !before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_' || letter == ':')
            })
        })
    };
    forbidden.iter().filter(uses).copied().collect()
}

#[test]
fn modules_know_only_those_below_them() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut problems = Vec::new();
    for (module, forbidden) in RULES {
        let files = files(&source.join(module));
        assert!(!files.is_empty(), "there is no module {module}");
        for file in files {
            let text = std::fs::read_to_string(&file).expect("text");
            for name in violations(&text, forbidden) {
                problems.push(format!("{} must not use {name}", file.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn files_hold_one_idea() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["src", "tests", "migrations/src", "clients/rust/src", "examples"] {
        for file in files(&root.join(folder)) {
            let lines = std::fs::read_to_string(&file).expect("text").lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines", file.display());
        }
    }
}

#[test]
fn the_check_can_fail() {
    let text = "use sea_orm::Value;\nlet x = my_tonic::y; // use prost::Message;\ncrate::store::z();";
    assert_eq!(violations(text, &["sea_orm", "tonic", "prost", "crate::store"]), ["sea_orm", "crate::store"]);
}

//! `hawser serve --print-config`: the settings in force, and where each came from.

use std::fmt::Write;

use anyhow::Context;
use clap::{Args, Command};

use super::{DatabaseUrl, Options};
use crate::dispatch::{EgressProxy, UNVERIFIED};

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Flag,
    Environment,
    /// Neither: the file, or nobody.
    Other,
}

const REDACTED: &str = "[redacted]";

/// A TOML file with every setting. `given` is what flags and the environment say, `file` what the file says, and
/// `source` tells the first two apart by a setting's name. Secrets are not shown.
pub fn show(given: &Options, file: &Options, source: impl Fn(&str) -> Source) -> anyhow::Result<String> {
    let set = given.clone().over(file.clone());
    let effective = table(&set.clone().over(set.defaults()))?;
    let unverified = set.insecure_skip_tls_verify == Some(true);
    let (filed, set) = (table(file)?, table(&set)?);
    let mut text = String::new();
    if unverified {
        writeln!(text, "# WARNING: {UNVERIFIED}")?;
    }
    let command = Options::augment_args(Command::new("serve"));
    for argument in command.get_arguments() {
        let Some(name) = argument.get_long().filter(|name| *name != "config") else { continue };
        let from = match source(argument.get_id().as_str()) {
            Source::Flag => "flag",
            Source::Environment => "environment",
            Source::Other if is_set(&filed, name) => "file",
            Source::Other => "default",
        };
        let from = if is_set(&set, name) { from } else { "default" };
        match effective.get(name) {
            Some(value) => writeln!(text, "{name} = {value}  # {from}")?,
            None => writeln!(text, "# {name} is not set")?,
        }
    }
    Ok(text)
}

fn is_set(table: &toml::Table, name: &str) -> bool {
    table.get(name).is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty()))
}

/// As TOML, without secrets.
fn table(options: &Options) -> anyhow::Result<toml::Table> {
    let mut options = options.clone();
    // Whatever a URL that does not parse may hold, it is not shown.
    options.store = options.store.map(|url| match DatabaseUrl::parse(&url) {
        Ok(place) => place.to_string(),
        Err(_) => REDACTED.to_owned(),
    });
    options.egress_proxy = options.egress_proxy.map(|url| match url.parse::<EgressProxy>() {
        Ok(proxy) => proxy.to_string(),
        Err(_) => REDACTED.to_owned(),
    });
    options.master_key = options.master_key.map(|_| REDACTED.to_owned());
    options.operator_key = options.operator_key.map(|_| REDACTED.to_owned());
    options.smtp_password = options.smtp_password.map(|_| REDACTED.to_owned());
    toml::Table::try_from(&options).context("the settings cannot be written as TOML")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_reads_back_and_help_names_the_same_defaults() {
        let none = Options::default();
        let shown = show(&none, &none, |_| Source::Other).expect("shown");
        let read: toml::Table = toml::from_str(&shown).expect("TOML");
        let command = Options::augment_args(Command::new("serve"));
        for argument in command.get_arguments() {
            let (name, help) = (argument.get_long().expect("a flag"), argument.get_help().expect("help"));
            let help = help.to_string();
            let Some((_, stated)) = help.rsplit_once("[default: ") else { continue };
            let stated = stated.trim_end_matches(']');
            // Those that are a sentence are of no fixed value.
            if stated.contains(' ') {
                continue;
            }
            let value = read.get(name).unwrap_or_else(|| panic!("{name} has a default and is not shown"));
            assert_eq!(value.to_string().trim_matches('"'), stated, "{name}");
        }
    }

    #[test]
    fn sources_are_told_and_secrets_are_not() {
        let key = format!("1:{}", "Q0FO".repeat(10) + "QVI=");
        let given = Options {
            slots: Some(7),
            store: Some("postgres://me:canary@db/hawser?password=canary".to_owned()),
            master_key: Some(key),
            egress_proxy: Some("http://me:canary@proxy:3128".to_owned()),
            ..Options::default()
        };
        let file = Options {
            slots: Some(8),
            operator_key: Some("hk_canary".to_owned()),
            smtp_password: Some("canary".to_owned()),
            allow_net: vec!["10.0.0.0/8".to_owned()],
            ..Options::default()
        };
        let source = |name: &str| if name == "slots" { Source::Flag } else { Source::Environment };
        let source = |name: &str| match name {
            "slots" | "store" | "master_key" | "egress_proxy" => source(name),
            _ => Source::Other,
        };
        let shown = show(&given, &file, source).expect("shown");
        for line in [
            "slots = 7  # flag",
            "store = \"postgres://db:5432/hawser\"  # environment",
            "allow-net = [\"10.0.0.0/8\"]  # file",
            "egress-proxy = \"http://proxy:3128\"  # environment",
            "operator-key = \"[redacted]\"  # file",
            "drain = 25  # default",
            "# tls-cert is not set",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
        }
        assert!(!shown.contains("canary") && !shown.contains("Q0FO"), "{shown}");
    }
}

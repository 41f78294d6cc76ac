//! Key files in the data folder: the master key that secrets are sealed with, and the first operator key.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::store::MasterKey;

const MASTER: &str = "master.key";
const OPERATOR: &str = "operator.key";

/// Where a key was written to.
pub type KeyFile = PathBuf;

/// The configured master keys, or the one in the data folder, which is made on first use; and kept, with `keep`.
pub fn read_master_keys(configured: Option<&str>, data: &Path, keep: bool) -> anyhow::Result<Vec<MasterKey>> {
    if let Some(text) = configured {
        return parse(text).context("master-key");
    }
    let path = data.join(MASTER);
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&Zeroizing::new(text)).with_context(|| path.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = MasterKey::generate(1);
            if keep {
                let text = Zeroizing::new(format!("1:{}\n", STANDARD.encode(key.expose().expose())));
                write_secret(&path, &text)?;
            }
            Ok(vec![key])
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes the first operator key where its owner alone can read it.
pub fn write_operator_key(data: &Path, key: &str) -> anyhow::Result<KeyFile> {
    let path = data.join(OPERATOR);
    write_secret(&path, &format!("{key}\n"))?;
    Ok(path)
}

/// The operator key in a data folder, for commands that run beside their server.
pub fn read_operator_key(data: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data.join(OPERATOR)).ok()?;
    Some(text.trim().to_owned())
}

/// `VERSION:BASE64`, several separated by commas.
fn parse(text: &str) -> anyhow::Result<Vec<MasterKey>> {
    let mut keys = Vec::new();
    for part in text.trim().split(',') {
        let Some((version, key)) = part.trim().split_once(':') else {
            bail!("a key must be VERSION:BASE64, such as 1: and the base64 of 32 random bytes");
        };
        let version = version.parse().context("a key's version must be a number")?;
        // The decoder's message would quote the key.
        let Ok(key) = STANDARD.decode(key) else { bail!("key {version} is not base64") };
        keys.push(MasterKey::new(version, key)?);
    }
    Ok(keys)
}

/// Readable by the owner alone, from the first byte; an older file is replaced as a whole.
fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let describe = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(describe)?;
    }
    let draft = path.with_extension("key.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .with_context(describe)?;
    file.write_all(text.as_bytes()).with_context(describe)?;
    file.sync_all().with_context(describe)?;
    std::fs::rename(&draft, path).with_context(describe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_embedded_key_is_made_once_and_private() {
        let folder = tempfile::tempdir().expect("folder");
        let first = read_master_keys(None, folder.path(), true).expect("made");
        let again = read_master_keys(None, folder.path(), true).expect("read");
        assert_eq!(first[0].expose(), again[0].expose());
        let mode = std::fs::metadata(folder.path().join(MASTER)).expect("file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn configured_keys_are_checked_without_being_quoted() {
        let good = format!("2:{}, 1:{}", STANDARD.encode([7; 32]), STANDARD.encode([8; 32]));
        assert_eq!(parse(&good).expect("good").len(), 2);
        for text in ["", "x", "1:!CANARY!", "x:AAAA", "1:Q0FOQVJZ"] {
            let error = format!("{:#}", parse(text).expect_err(text));
            assert!(!error.contains("CANARY") && !error.contains("Q0FOQVJZ"), "{error}");
        }
    }
}

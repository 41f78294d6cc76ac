//! Secrets at rest: envelope encryption with XChaCha20-Poly1305.
//!
//! Each value is sealed under a data key of its own, and the data key under a master key. Both seals
//! authenticate where the value lives (table, column, row, project), so a sealed value that is moved does
//! not open. The stored form says its format and its master key's version:
//!
//! `format (1) | version (4) | nonce (24) | wrapped data key (48) | nonce (24) | sealed value`

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::{Result, StoreError};
use crate::domain::id::ProjectId;
use crate::domain::secret::SecretBytes;

const FORMAT: u8 = 1;
const NONCE_LEN: usize = 24;
const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
const HEADER_LEN: usize = 1 + 4 + NONCE_LEN + KEY_LEN + TAG_LEN;

/// A master key and its version. Versions only grow; new values are sealed under the newest.
#[derive(Clone, Debug)]
pub struct MasterKey {
    pub version: u32,
    key: SecretBytes,
}

impl MasterKey {
    /// Takes exactly 32 bytes.
    pub fn new(version: u32, key: Vec<u8>) -> Result<Self> {
        if key.len() != KEY_LEN {
            let message = format!("master key {version} must be {KEY_LEN} bytes, and is {}", key.len());
            return Err(StoreError::Setup(message));
        }
        Ok(Self { version, key: SecretBytes::new(key) })
    }

    pub fn generate(version: u32) -> Self {
        let key: [u8; KEY_LEN] = rand::random();
        Self { version, key: SecretBytes::new(key.to_vec()) }
    }

    pub const fn expose(&self) -> &SecretBytes {
        &self.key
    }
}

/// Where a sealed value lives.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub table: &'static str,
    pub column: &'static str,
    pub row: Uuid,
    pub project: Option<ProjectId>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} of row {}", self.table, self.column, self.row)
    }
}

impl Place {
    fn associated_data(&self, version: u32) -> Vec<u8> {
        let mut data = vec![FORMAT];
        data.extend_from_slice(&version.to_be_bytes());
        for name in [self.table, self.column] {
            data.extend_from_slice(name.as_bytes());
            data.push(0);
        }
        data.extend_from_slice(self.row.as_bytes());
        data.extend_from_slice(self.project.map(ProjectId::uuid).unwrap_or_default().as_bytes());
        data
    }
}

/// Seals and opens values.
#[derive(Clone, Debug)]
pub struct Vault {
    /// Oldest first, never empty.
    keys: Vec<MasterKey>,
}

impl Vault {
    pub fn new(mut keys: Vec<MasterKey>) -> Result<Self> {
        if keys.is_empty() {
            return Err(StoreError::Setup("there is no master key to seal secrets with".to_owned()));
        }
        keys.sort_by_key(|key| key.version);
        if keys.windows(2).any(|pair| pair[0].version == pair[1].version) {
            return Err(StoreError::Setup("two master keys have the same version".to_owned()));
        }
        Ok(Self { keys })
    }

    /// The versions that this vault can open.
    pub fn versions(&self) -> impl Iterator<Item = u32> {
        self.keys.iter().map(|key| key.version)
    }

    /// A key for another purpose, derived from the oldest master key so that it survives rotation.
    pub fn derive(&self, purpose: &str) -> Result<SecretBytes> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.keys[0].key.expose())
            .map_err(|_| StoreError::Setup("the master key cannot derive others".to_owned()))?;
        mac.update(purpose.as_bytes());
        Ok(SecretBytes::new(mac.finalize().into_bytes().to_vec()))
    }

    pub fn seal(&self, place: &Place, value: &[u8]) -> Result<Vec<u8>> {
        let failed = || StoreError::Sealed(format!("{place}: it could not be sealed"));
        let master = self.keys.last().ok_or_else(failed)?;
        let data = place.associated_data(master.version);
        let data_key: Zeroizing<[u8; KEY_LEN]> = Zeroizing::new(rand::random());
        let (wrap_nonce, value_nonce): ([u8; NONCE_LEN], [u8; NONCE_LEN]) = (rand::random(), rand::random());

        let wrapped = cipher(master.key.expose())
            .and_then(|cipher| {
                cipher.encrypt(&XNonce::from(wrap_nonce), Payload { msg: &data_key[..], aad: &data }).ok()
            })
            .ok_or_else(failed)?;
        let sealed = cipher(&data_key[..])
            .and_then(|cipher| {
                cipher.encrypt(&XNonce::from(value_nonce), Payload { msg: value, aad: &data }).ok()
            })
            .ok_or_else(failed)?;

        let mut stored = Vec::with_capacity(HEADER_LEN + NONCE_LEN + sealed.len());
        stored.push(FORMAT);
        stored.extend_from_slice(&master.version.to_be_bytes());
        stored.extend_from_slice(&wrap_nonce);
        stored.extend_from_slice(&wrapped);
        stored.extend_from_slice(&value_nonce);
        stored.extend_from_slice(&sealed);
        Ok(stored)
    }

    pub fn open(&self, place: &Place, stored: &[u8]) -> Result<SecretBytes> {
        self.try_open(place, stored).map_err(|why| StoreError::Sealed(format!("{place}: {why}")))
    }

    fn try_open(&self, place: &Place, stored: &[u8]) -> Result<SecretBytes, String> {
        let (version, rest) = split_version(stored).ok_or("it is not of a known format")?;
        let master = self.keys.iter().find(|key| key.version == version);
        let master = master.ok_or_else(|| format!("there is no master key {version}"))?;
        let value = decrypt(master, place, rest);
        value.ok_or_else(|| "it is damaged, was moved, or another key sealed it".to_owned())
    }
}

/// The master key's version and what follows it.
fn split_version(stored: &[u8]) -> Option<(u32, &[u8])> {
    let (_, rest) = stored.split_first().filter(|(format, _)| **format == FORMAT)?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*version), rest))
}

fn decrypt(master: &MasterKey, place: &Place, stored: &[u8]) -> Option<SecretBytes> {
    let (wrap_nonce, rest) = stored.split_first_chunk::<NONCE_LEN>()?;
    let (wrapped, rest) = rest.split_first_chunk::<{ KEY_LEN + TAG_LEN }>()?;
    let (value_nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;

    let data = place.associated_data(master.version);
    let data_key = cipher(master.key.expose())?
        .decrypt(&XNonce::from(*wrap_nonce), Payload { msg: wrapped, aad: &data })
        .map(Zeroizing::new)
        .ok()?;
    let value =
        cipher(&data_key)?.decrypt(&XNonce::from(*value_nonce), Payload { msg: sealed, aad: &data }).ok()?;
    Some(SecretBytes::new(value))
}

fn cipher(key: &[u8]) -> Option<XChaCha20Poly1305> {
    XChaCha20Poly1305::new_from_slice(key).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(row: Uuid) -> Place {
        Place { table: "secrets", column: "sealed", row, project: None }
    }

    #[test]
    fn a_value_opens_only_in_its_place() {
        let vault = Vault::new(vec![MasterKey::generate(1)]).expect("vault");
        let here = place(Uuid::now_v7());
        let stored = vault.seal(&here, b"value").expect("sealed");
        assert_eq!(vault.open(&here, &stored).expect("opens").expose(), b"value");
        assert!(!stored.windows(5).any(|window| window == b"value"));

        let elsewhere = [
            place(Uuid::now_v7()),
            Place { column: "other", ..here },
            Place { table: "endpoints", ..here },
            Place { project: Some(ProjectId::new()), ..here },
        ];
        for place in elsewhere {
            assert!(vault.open(&place, &stored).is_err(), "{place:?}");
        }
        for at in 0..stored.len() {
            let mut damaged = stored.clone();
            damaged[at] ^= 1;
            assert!(vault.open(&here, &damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn older_keys_open_what_they_sealed_and_the_newest_seals() {
        let (one, two) = (MasterKey::generate(1), MasterKey::generate(2));
        let here = place(Uuid::now_v7());
        let before = Vault::new(vec![one.clone()]).expect("vault");
        let old = before.seal(&here, b"x").expect("sealed");
        let both = Vault::new(vec![two, one]).expect("vault");
        assert!(both.open(&here, &old).is_ok());
        let new = both.seal(&here, b"x").expect("sealed");
        let refused = before.open(&here, &new).expect_err("not its key").to_string();
        let row = here.row;
        assert!(
            refused.ends_with(&format!("secrets.sealed of row {row}: there is no master key 2")),
            "{refused}"
        );
    }
}

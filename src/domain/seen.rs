//! The rows of a bulk call, or of an import, so far: two of them that mean the same endpoint would undo each other at
//! every run.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::error::{Error, Result};

/// Enough of a hash to tell any two apart; texts would take more memory.
type Mark = [u8; 16];

/// The numbers of rows by what they are found by.
#[derive(Default)]
pub struct SeenRows {
    uids: HashMap<Mark, i64>,
    addresses: HashMap<Mark, Address>,
}

struct Address {
    first: i64,
    /// Whether all rows with it are told apart by a uid.
    have_uids: bool,
}

/// What a row is found by.
#[derive(Clone, Copy)]
pub struct RowKey<'a> {
    pub uid: Option<&'a str>,
    /// The owner's id, empty where there is none, and the canonical URL; none where they are not known.
    pub address: Option<(&'a str, &'a str)>,
}

impl SeenRows {
    /// Refuses a row that means the endpoint of one before it.
    pub fn check(&self, key: RowKey<'_>) -> Result<()> {
        if let Some(first) = key.uid.and_then(|uid| self.uids.get(&mark(&[uid]))) {
            return Err(Error::invalid("endpoint.uid", format!("is that of row {first}")));
        }
        let address = key.address.and_then(|(owner, url)| self.addresses.get(&mark(&[owner, url])));
        match address {
            Some(address) if !(key.uid.is_some() && address.have_uids) => {
                let message = format!("is with its owner_id that of row {}; give both a uid", address.first);
                Err(Error::invalid("endpoint.url", message))
            }
            _ => Ok(()),
        }
    }

    /// Takes note of a row.
    pub fn add(&mut self, number: i64, key: RowKey<'_>) {
        if let Some(uid) = key.uid {
            self.uids.entry(mark(&[uid])).or_insert(number);
        }
        if let Some((owner, url)) = key.address {
            let have_uids = key.uid.is_some();
            self.addresses
                .entry(mark(&[owner, url]))
                .and_modify(|address| address.have_uids &= have_uids)
                .or_insert(Address { first: number, have_uids });
        }
    }
}

fn mark(texts: &[&str]) -> Mark {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    let mut mark = Mark::default();
    let length = mark.len();
    mark.copy_from_slice(&hash.finalize()[..length]);
    mark
}

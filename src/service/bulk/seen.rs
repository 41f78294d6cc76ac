//! The rows that a bulk call had so far: two of them that mean the same endpoint would undo each other at every run.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::domain::endpoint::EndpointSettings;
use crate::domain::error::{Error, Result};

/// Enough of a hash to tell any two apart; texts would take more memory.
type Mark = [u8; 16];

/// The numbers of rows by what they are found by.
#[derive(Default)]
pub struct Seen {
    uids: HashMap<Mark, i64>,
    addresses: HashMap<Mark, Address>,
}

struct Address {
    first: i64,
    /// Whether all rows with it are told apart by a uid.
    have_uids: bool,
}

impl Seen {
    /// Takes note of a row, by the endpoint's settings as they would be and the uid that the row itself gives.
    pub fn note(&mut self, number: i64, uid: Option<&str>, settings: &EndpointSettings) -> Result<()> {
        if let Some(uid) = uid {
            if let Some(first) = self.uids.get(&mark(&[uid])) {
                return Err(Error::invalid("endpoint.uid", format!("is that of row {first}")));
            }
            self.uids.insert(mark(&[uid]), number);
        }
        let owner = settings.owner_id.as_deref().unwrap_or_default();
        let mark = mark(&[owner, &settings.url]);
        let have_uids = uid.is_some();
        match self.addresses.get(&mark) {
            Some(address) if !(have_uids && address.have_uids) => {
                let message = format!("is with its owner_id that of row {}; give both a uid", address.first);
                Err(Error::invalid("endpoint.url", message))
            }
            Some(_) => Ok(()),
            None => {
                self.addresses.insert(mark, Address { first: number, have_uids });
                Ok(())
            }
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

//! Pages of lists (AIP-158) and the opaque tokens that continue them.
//!
//! A token is base64url of the last id seen and an HMAC that binds it to the list's kind, its project and
//! its filters, so that a token of another project or another query is refused rather than misread.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::error::{Error, Result};
use super::secret::SecretBytes;

/// Entries in a page where the request names no number.
pub const PAGE_DEFAULT: u32 = 50;
/// More is cut down to this.
pub const PAGE_MAX: u32 = 1000;

/// Which page of a list is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    pub size: u32,
    /// The last id of the page before.
    pub after: Option<Uuid>,
}

/// A page, and the id to go on after, if there is more.
#[derive(Clone, Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next: Option<Uuid>,
}

impl<T> Page<T> {
    /// Makes a page of up to `size + 1` rows: the one too many says that there is more.
    pub fn from_rows(mut items: Vec<T>, size: u32, id: impl Fn(&T) -> Uuid) -> Self {
        let more = items.len() > size as usize;
        items.truncate(size as usize);
        let next = if more { items.last().map(id) } else { None };
        Self { items, next }
    }
}

/// The key that authenticates page and resume tokens; derived from the store's master key.
#[derive(Clone, Debug)]
pub struct TokenKey(SecretBytes);

const TAG_LEN: usize = 16;

impl TokenKey {
    pub const fn new(key: SecretBytes) -> Self {
        Self(key)
    }

    /// An opaque token that holds `content`, valid only with the same `context`.
    pub fn seal(&self, content: &[u8], context: &[&str]) -> String {
        let mut bytes = content.to_vec();
        bytes.extend_from_slice(&self.tag(content, context));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The content of a token, if it was made by this key with this context.
    pub fn open(&self, token: &str, context: &[&str]) -> Option<Vec<u8>> {
        let mut bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let content_len = bytes.len().checked_sub(TAG_LEN)?;
        let tag = bytes.split_off(content_len);
        let valid: bool = tag.as_slice().ct_eq(&self.tag(&bytes, context)).into();
        valid.then_some(bytes)
    }

    fn tag(&self, content: &[u8], context: &[&str]) -> [u8; TAG_LEN] {
        let mut tag = [0; TAG_LEN];
        // HMAC takes keys of every length (RFC 2104), so this cannot fail.
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.expose()) {
            for part in context {
                mac.update(&(part.len() as u64).to_be_bytes());
                mac.update(part.as_bytes());
            }
            mac.update(content);
            tag.copy_from_slice(&mac.finalize().into_bytes()[..TAG_LEN]);
        }
        tag
    }

    /// Reads `page_size` and `page_token` of a list request. `context` is the list's kind, project and filters.
    pub fn page_request(&self, size: i32, token: &str, context: &[&str]) -> Result<PageRequest> {
        let size = match u32::try_from(size) {
            Ok(0) => PAGE_DEFAULT,
            Ok(size) => size.min(PAGE_MAX),
            Err(_) => return Err(Error::invalid("page_size", "must not be negative")),
        };
        if token.is_empty() {
            return Ok(PageRequest { size, after: None });
        }
        let after = self.open(token, context).and_then(|bytes| Uuid::from_slice(&bytes).ok());
        match after {
            Some(after) => Ok(PageRequest { size, after: Some(after) }),
            None => Err(Error::invalid("page_token", "is not a token of this list with these filters")),
        }
    }

    /// The token for the page after this one, empty at the end.
    pub fn next_token<T>(&self, page: &Page<T>, context: &[&str]) -> String {
        page.next.map(|id| self.seal(id.as_bytes(), context)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_bound_to_its_list() {
        let key = TokenKey::new(SecretBytes::new(vec![1; 32]));
        let id = Uuid::now_v7();
        let token = key.seal(id.as_bytes(), &["endpoints", "prj_a", "owner"]);
        let read = key.page_request(0, &token, &["endpoints", "prj_a", "owner"]).expect("own token");
        assert_eq!(read, PageRequest { size: PAGE_DEFAULT, after: Some(id) });
        for context in
            [["endpoints", "prj_b", "owner"], ["endpoints", "prj_a", ""], ["endpointsp", "rj_a", "owner"]]
        {
            let error = key.page_request(0, &token, &context).expect_err("foreign token");
            assert_eq!(error.violations[0].field, "page_token");
        }
        let other = TokenKey::new(SecretBytes::new(vec![2; 32]));
        assert!(other.open(&token, &["endpoints", "prj_a", "owner"]).is_none());
        assert!(key.open("", &[]).is_none());
    }

    #[test]
    fn page_sizes_are_bounded() {
        let key = TokenKey::new(SecretBytes::new(vec![1; 32]));
        let size = |asked| key.page_request(asked, "", &[]).map(|page| page.size);
        assert_eq!(size(0).expect("default"), 50);
        assert_eq!(size(7).expect("as asked"), 7);
        assert_eq!(size(1_000_000).expect("cut"), 1000);
        assert_eq!(size(-1).expect_err("negative").violations[0].field, "page_size");
    }

    #[test]
    fn one_row_too_many_means_more() {
        let ids: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
        assert_eq!(Page::from_rows(ids.clone(), 3, |id| *id).next, None);
        let page = Page::from_rows(ids.clone(), 2, |id| *id);
        assert_eq!((page.items.len(), page.next), (2, Some(ids[1])));
    }
}

//! A bounded memory of what was made for endpoints, each for one version of its credentials.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::domain::id::EndpointId;

/// What is kept. A newer version takes the place of an older one; what was not used for long goes, and where there
/// is no room what was used longest ago.
pub(super) struct Kept<T> {
    most: usize,
    unused: Duration,
    values: HashMap<EndpointId, Value<T>>,
    swept_at: Instant,
}

struct Value<T> {
    version: i64,
    value: T,
    used_at: Instant,
}

impl<T: Clone> Kept<T> {
    pub(super) fn new(most: usize, unused: Duration) -> Self {
        Self { most, unused, values: HashMap::new(), swept_at: Instant::now() }
    }

    /// What is kept for that version, or else what `make` makes, which is kept from now on.
    pub(super) fn get<E>(
        &mut self,
        endpoint: EndpointId,
        version: i64,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let now = Instant::now();
        self.sweep(now);
        if let Some(kept) = self.values.get_mut(&endpoint).filter(|kept| kept.version == version) {
            kept.used_at = now;
            return Ok(kept.value.clone());
        }
        let value = make()?;
        self.values.remove(&endpoint);
        if self.values.len() >= self.most
            && let Some(oldest) = self.values.iter().min_by_key(|(_, kept)| kept.used_at).map(|(id, _)| *id)
        {
            self.values.remove(&oldest);
        }
        self.values.insert(endpoint, Value { version, value: value.clone(), used_at: now });
        Ok(value)
    }

    /// What is kept for that version, if anything is.
    pub(super) fn known(&self, endpoint: EndpointId, version: i64) -> Option<T> {
        self.values.get(&endpoint).filter(|kept| kept.version == version).map(|kept| kept.value.clone())
    }

    fn sweep(&mut self, now: Instant) {
        if now.duration_since(self.swept_at) >= self.unused / 5 {
            self.swept_at = now;
            let unused = self.unused;
            self.values.retain(|_, kept| now.duration_since(kept.used_at) < unused);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_take_each_others_place_and_the_oldest_goes() {
        let mut kept = Kept::new(2, Duration::from_secs(60));
        let ids = [EndpointId::new(), EndpointId::new(), EndpointId::new()];
        let mut get = |id: usize, version: i64, value: i32| {
            kept.get(ids[id], version, || Ok::<_, ()>(value)).expect("made")
        };
        assert_eq!((get(0, 1, 10), get(0, 1, 11)), (10, 10));
        assert_eq!((get(0, 2, 12), get(0, 1, 13)), (12, 13));
        assert_eq!((get(1, 1, 20), get(0, 1, 14), get(2, 1, 30)), (20, 13, 30));
        // The second was used longest ago.
        assert_eq!((get(0, 1, 15), get(1, 1, 21)), (13, 21));
    }

    #[test]
    fn what_cannot_be_made_is_not_kept() {
        let mut kept = Kept::new(2, Duration::from_secs(60));
        let id = EndpointId::new();
        assert_eq!(kept.get(id, 1, || Err::<i32, _>("no")), Err("no"));
        assert_eq!(kept.known(id, 1), None);
        assert_eq!(kept.get(id, 1, || Ok::<_, ()>(1)), Ok(1));
        assert_eq!((kept.known(id, 1), kept.known(id, 2)), (Some(1), None));
    }
}

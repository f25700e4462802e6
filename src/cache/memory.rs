//! Tier 1: small hot blobs in moka, weighed in bytes.
//!
//! A body that is on its way to a client stays in memory though the tier has let it go. So large ones are
//! lent, counted, and only up to a share of the limit; beyond it they come from their files, in pieces.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::entry::{Key, Meta};
use crate::store::segment::INLINE_MAX;

/// Larger bodies stay on disk, where the page cache keeps what is hot.
pub const ENTRY_MAX: u64 = 1 << 20;
/// What an entry weighs besides its body: key, meta, and moka's own book-keeping.
const OVERHEAD: u32 = 384;
/// Smaller bodies have no file to come from, and fit into what the kernel takes of an answer.
const COUNTED_FROM: u64 = INLINE_MAX as u64;
/// Large bodies on their way to clients may take this part of the limit.
const LENT_SHARE: u64 = 16;

/// See the module.
#[derive(Clone, Debug)]
pub struct Memory {
    entries: moka::sync::Cache<Key, (Meta, Bytes)>,
    limit: u64,
    lent: Arc<AtomicU64>,
}

/// A large body, for as long as somebody holds it.
struct Lent {
    bytes: Bytes,
    lent: Arc<AtomicU64>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.lent.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

impl Memory {
    pub fn new(limit: u64) -> Self {
        let entries = moka::sync::Cache::builder()
            .max_capacity(limit)
            .weigher(|_, (_, bytes): &(Meta, Bytes)| {
                u32::try_from(bytes.len()).unwrap_or(u32::MAX).saturating_add(OVERHEAD)
            })
            .build();
        Self { entries, limit, lent: Arc::default() }
    }

    pub fn get(&self, key: &Key) -> Option<(Meta, Bytes)> {
        self.entries.get(key)
    }

    /// Keeps the blob if it is small enough to be worth its place.
    pub fn offer(&self, key: &Key, meta: &Meta, bytes: &Bytes) {
        if bytes.len() as u64 <= ENTRY_MAX.min(self.limit) {
            self.entries.insert(key.clone(), (meta.clone(), bytes.clone()));
        }
    }

    /// The bytes for a client, who may take his time. None: enough are lent.
    pub fn lend(&self, bytes: Bytes) -> Option<Bytes> {
        let len = bytes.len() as u64;
        if len <= COUNTED_FROM {
            return Some(bytes);
        }
        if !self.may_lend(len) {
            return None;
        }
        // Two that come at once may go beyond the share together, by one body.
        self.lent.fetch_add(len, Ordering::Relaxed);
        Some(Bytes::from_owner(Lent { bytes, lent: self.lent.clone() }))
    }

    /// Whether a body of this length is worth reading whole.
    pub fn may_lend(&self, len: u64) -> bool {
        let lent = self.lent.load(Ordering::Relaxed);
        len <= COUNTED_FROM || lent + len <= self.limit / LENT_SHARE
    }

    pub fn remove(&self, key: &Key) {
        self.entries.invalidate(key);
    }

    pub fn clear(&self) {
        self.entries.invalidate_all();
    }

    pub fn entries(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.entry_count()
    }

    pub fn bytes(&self) -> u64 {
        self.entries.weighted_size()
    }

    pub const fn limit(&self) -> u64 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_are_lent_up_to_a_share_of_the_limit_and_come_back() {
        let memory = Memory::new(64 << 20);
        let large = Bytes::from(vec![7; 1 << 20]);
        let mut lent: Vec<Bytes> = std::iter::from_fn(|| memory.lend(large.clone())).collect();
        assert_eq!(lent.len(), 4);
        assert_eq!(lent[0], large);
        let part = lent.pop().unwrap().slice(..10);
        assert!(memory.lend(large.clone()).is_none(), "a part of it is held");
        drop(part);
        assert!(memory.lend(large).is_some());
        let small = Bytes::from(vec![7; INLINE_MAX]);
        assert!(memory.lend(small).is_some(), "it has no file");
    }
}

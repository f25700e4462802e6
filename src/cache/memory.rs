//! Tier 1: small hot blobs in moka, weighed in bytes.

use bytes::Bytes;

use crate::entry::{Key, Meta};

/// Larger bodies stay on disk, where the page cache keeps what is hot.
pub const ENTRY_MAX: u64 = 1 << 20;
/// What an entry weighs besides its body: key, meta, and moka's own book-keeping.
const OVERHEAD: u32 = 384;

/// See the module.
#[derive(Clone, Debug)]
pub struct Memory {
    entries: moka::sync::Cache<Key, (Meta, Bytes)>,
    limit: u64,
}

impl Memory {
    pub fn new(limit: u64) -> Self {
        let entries = moka::sync::Cache::builder()
            .max_capacity(limit)
            .weigher(|_, (_, bytes): &(Meta, Bytes)| {
                u32::try_from(bytes.len()).unwrap_or(u32::MAX).saturating_add(OVERHEAD)
            })
            .build();
        Self { entries, limit }
    }

    pub fn get(&self, key: &Key) -> Option<(Meta, Bytes)> {
        self.entries.get(key)
    }

    /// Keeps the blob if it is small enough to be worth its place.
    pub fn offer(&self, key: &Key, meta: &Meta, bytes: &Bytes) {
        if bytes.len() as u64 <= ENTRY_MAX {
            self.entries.insert(key.clone(), (meta.clone(), bytes.clone()));
        }
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

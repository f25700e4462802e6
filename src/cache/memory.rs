//! Tier 1: small hot blobs in moka, weighed in bytes.
//!
//! A body that is on its way to a client stays in memory though the tier has let it go. So large ones are
//! lent, counted, and only up to a share of the limit, which the tier leaves for them; beyond it they come
//! from their files, in pieces.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::entry::{Key, Meta};
use crate::store::segment::INLINE_BODY_MAX;

/// Larger bodies stay on disk, where the page cache keeps what is hot.
pub const ENTRY_MAX: u64 = 1 << 20;
/// What an entry weighs besides its body: key, meta, moka's own book-keeping, and what the allocator rounds
/// up. Of 200,000 entries of 64 bytes each took 721 of resident memory.
const OVERHEAD: u32 = 704;
/// Smaller bodies have no file to come from, and fit into what the kernel takes of an answer.
const COUNTED_FROM: u64 = INLINE_BODY_MAX as u64;
/// Large bodies on their way to clients may take this part of the limit, and no more than that: those who
/// read fast give them back at once, and few are enough for them.
const LENT_SHARE: u64 = 16;
const LENT_MAX: u64 = 32 << 20;

/// See the module.
#[derive(Clone, Debug)]
pub struct Memory {
    entries: moka::sync::Cache<Key, (Meta, Bytes)>,
    limit: u64,
    lent: Arc<AtomicU64>,
}

/// Room for a body on its way to a client, counted from before it is read until nobody holds it.
#[derive(Debug)]
pub struct Room {
    counted: u64,
    lent: Arc<AtomicU64>,
}

impl Room {
    /// The bytes for a client, who may take his time.
    pub fn lend(self, bytes: Bytes) -> Bytes {
        if self.counted == 0 { bytes } else { Bytes::from_owner(Lent { bytes, _room: self }) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.lent.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

/// A large body, for as long as somebody holds it.
struct Lent {
    bytes: Bytes,
    _room: Room,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

const fn most_lent(limit: u64) -> u64 {
    let share = limit / LENT_SHARE;
    if share < LENT_MAX { share } else { LENT_MAX }
}

impl Memory {
    pub fn new(limit: u64) -> Self {
        let entries = moka::sync::Cache::builder()
            .max_capacity(limit - most_lent(limit))
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
            if bytes.len() as u64 > COUNTED_FROM {
                // Else dozens come before others go for them.
                self.entries.run_pending_tasks();
            }
        }
    }

    /// Room for a body of this length, to be taken before it is read. None: enough are lent.
    pub fn room(&self, len: u64) -> Option<Room> {
        let counted = if len <= COUNTED_FROM { 0 } else { len };
        let most = most_lent(self.limit);
        let take = |lent: u64| (counted == 0 || lent + counted <= most).then_some(lent + counted);
        let taken = self.lent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_ok().then(|| Room { counted, lent: self.lent.clone() })
    }

    /// The bytes for a client, who may take his time. None: enough are lent.
    pub fn lend(&self, bytes: Bytes) -> Option<Bytes> {
        Some(self.room(bytes.len() as u64)?.lend(bytes))
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
        let small = Bytes::from(vec![7; INLINE_BODY_MAX]);
        assert!(memory.lend(small).is_some(), "it has no file");
    }

    /// Of a crowd that came at once each once read its whole body, before the first one was counted.
    #[test]
    fn room_for_a_body_is_taken_before_it_is_read() {
        let memory = Memory::new(64 << 20);
        let mut rooms: Vec<Room> = std::iter::from_fn(|| memory.room(1 << 20)).collect();
        assert_eq!(rooms.len(), 4);
        rooms.pop();
        let lent = memory.room(1 << 20).unwrap().lend(vec![7; 1 << 20].into());
        assert!(memory.room(1 << 20).is_none());
        drop(lent);
        assert!(memory.room(1 << 20).is_some());
        let memory = Memory::new(64 << 30);
        let rooms = std::iter::from_fn(|| memory.room(1 << 20)).take(40).collect::<Vec<_>>();
        assert_eq!(rooms.len() as u64, LENT_MAX >> 20);
    }

    /// Counts itself while it lives.
    struct Counted(Vec<u8>, Arc<AtomicU64>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What was let go once stayed until sixty others had come.
    #[test]
    fn the_limit_holds_while_large_bodies_come() {
        let (memory, alive) = (Memory::new(16 << 20), Arc::new(AtomicU64::new(0)));
        for number in 0_u8..64 {
            let body = Counted(vec![number; 1 << 20], alive.clone());
            alive.fetch_add(1, Ordering::Relaxed);
            let digest = crate::entry::Digest::of(&body.0);
            let key = Key::go(crate::entry::RealmId([0; 16]), digest);
            let (class, time) = (crate::entry::Class::Other, crate::units::Timestamp(0));
            let meta = Meta::new(digest, 1 << 20, time, class);
            memory.offer(&key, &meta, &Bytes::from_owner(body));
            let alive = alive.load(Ordering::Relaxed);
            // What is dropped may wait for readers that might still look at it.
            assert!(alive <= 24, "{alive} after {number}");
        }
        assert!(alive.load(Ordering::Relaxed) > 8);
    }
}

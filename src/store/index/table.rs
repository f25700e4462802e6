//! A table of the index: each value ends with a checksum of its key and itself, which LMDB has none of.
//! It is looked at where an index is read through that nobody vouches for (see `sound`), not at a look-up.

use std::ops::Bound;

use heed::types::Bytes;
use heed::{Database, RoTxn, RwTxn};

/// CRC-32C, little-endian.
const SUM: usize = 4;

#[derive(Clone, Copy)]
pub(super) struct Table(pub(super) Database<Bytes, Bytes>);

type Item<'t> = Result<(&'t [u8], &'t [u8]), heed::Error>;

impl Table {
    pub(super) fn put(self, txn: &mut RwTxn<'_>, key: &[u8], value: &[u8]) -> heed::Result<()> {
        let summed = [value, &sum(key, value)].concat();
        self.0.put(txn, key, &summed)
    }

    pub(super) fn delete(self, txn: &mut RwTxn<'_>, key: &[u8]) -> heed::Result<bool> {
        self.0.delete(txn, key)
    }

    pub(super) fn get<'t>(self, txn: &'t RoTxn<'_>, key: &[u8]) -> heed::Result<Option<&'t [u8]>> {
        Ok(self.0.get(txn, key)?.map(value_of))
    }

    pub(super) fn len(self, txn: &RoTxn<'_>) -> heed::Result<u64> {
        self.0.len(txn)
    }

    /// What stands under a key and those after it; of all keys without one.
    pub(super) fn range<'t>(
        self,
        txn: &'t RoTxn<'_>,
        from: &[u8],
    ) -> heed::Result<impl Iterator<Item = Item<'t>> + use<'t>> {
        // LMDB knows no key of no length.
        let from = if from.is_empty() { Bound::Unbounded } else { Bound::Included(from) };
        let items = self.0.range(txn, &(from, Bound::Unbounded))?;
        Ok(items.map(|item| item.map(|(key, summed)| (key, value_of(summed)))))
    }
}

/// Whether this is what was put there.
pub(super) fn is_whole(key: &[u8], summed: &[u8]) -> bool {
    summed.split_last_chunk::<SUM>().is_some_and(|(value, found)| *found == sum(key, value))
}

fn value_of(summed: &[u8]) -> &[u8] {
    &summed[..summed.len().saturating_sub(SUM)]
}

fn sum(key: &[u8], value: &[u8]) -> [u8; SUM] {
    crc32c::crc32c_append(crc32c::crc32c(key), value).to_le_bytes()
}

//! The overlay: what is acknowledged, and not in the index yet; and what readers see, which is the
//! overlay and behind it the index. It is filled by changes and emptied by commits.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::entry::RealmId;
use crate::store::index::{IndexError, Owed};
use crate::store::record::Row;
use crate::store::tail::Tail;

/// Each value stands beside the number of its operation. `None` is a removal.
#[derive(Default)]
pub(super) struct Overlay {
    pub(super) rows: HashMap<Vec<u8>, (u64, Option<Row>)>,
    pub(super) owed: BTreeMap<u64, (u64, Option<Owed>)>,
    pub(super) owed_keys: HashMap<Vec<u8>, (u64, Option<u64>)>,
    pub(super) realms: HashMap<RealmId, (u64, String)>,
}

impl Overlay {
    /// Drops what the index has.
    pub(super) fn forget(&mut self, upto: u64) {
        self.rows.retain(|_, (sequence, _)| *sequence > upto);
        self.owed.retain(|_, (sequence, _)| *sequence > upto);
        self.owed_keys.retain(|_, (sequence, _)| *sequence > upto);
        self.realms.retain(|_, (sequence, _)| *sequence > upto);
    }
}

impl Tail {
    /// The row of a key if the overlay knows it: `Some(None)` is a removal.
    pub(in crate::store) fn row(&self, key: &[u8]) -> Option<Option<Row>> {
        if self.overlay_len.load(Ordering::Acquire) == 0 {
            return None;
        }
        let overlay = self.overlay.read().unwrap_or_else(PoisonError::into_inner);
        overlay.rows.get(key).map(|(_, row)| *row)
    }

    /// Owed uploads from `number` on, oldest first.
    pub(in crate::store) fn owed(&self, number: u64, most: usize) -> Vec<(u64, Owed)> {
        // The overlay first: a commit in between only makes an upload show up in both.
        let (added, gone) = {
            let overlay = self.overlay.read().unwrap_or_else(PoisonError::into_inner);
            let mut added = Vec::new();
            let mut gone = HashSet::new();
            for (number, (_, owed)) in overlay.owed.range(number..) {
                match owed {
                    Some(owed) if added.len() < most => added.push((*number, owed.clone())),
                    Some(_) => {}
                    None => drop(gone.insert(*number)),
                }
            }
            (added, gone)
        };
        let mut list = match self.index.read().and_then(|r| r.owed(number, most + gone.len())) {
            Ok(list) => list,
            Err(error) => {
                self.fault("read the journal", &error);
                Vec::new()
            }
        };
        list.retain(|(number, _)| !gone.contains(number));
        for (number, owed) in added {
            if !list.iter().any(|(seen, _)| *seen == number) {
                list.push((number, owed));
            }
        }
        list.sort_unstable_by_key(|(number, _)| *number);
        list.truncate(most);
        list
    }

    /// Number of the upload that is owed under this identity, if any.
    pub(in crate::store) fn owed_number(&self, identity: &[u8]) -> Option<u64> {
        let overlay = self.overlay.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, number)) = overlay.owed_keys.get(identity) {
            return *number;
        }
        drop(overlay);
        self.index.read().and_then(|r| r.owed_number(identity)).ok().flatten()
    }

    /// The upload with this number, if it is still owed. Looks at nothing behind it: whoever
    /// settles many asks this once for each.
    pub(in crate::store) fn owed_by_number(&self, number: u64) -> Result<Option<Owed>, IndexError> {
        let overlay = self.overlay.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, owed)) = overlay.owed.get(&number) {
            return Ok(owed.clone());
        }
        drop(overlay);
        let list = self.index.read()?.owed(number, 1)?;
        Ok(list.into_iter().next().filter(|(n, _)| *n == number).map(|(_, owed)| owed))
    }

    /// What a realm stands for.
    pub(in crate::store) fn realm(&self, id: RealmId) -> Option<String> {
        let overlay = self.overlay.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, text)) = overlay.realms.get(&id) {
            return Some(text.clone());
        }
        drop(overlay);
        self.index.read().and_then(|r| r.realm(id)).ok().flatten()
    }

    pub(in crate::store) fn realms(&self) -> Vec<(RealmId, String)> {
        let overlay = self.overlay.read().unwrap_or_else(PoisonError::into_inner);
        let added = overlay.realms.iter().map(|(id, (_, text))| (*id, text.clone()));
        let mut all: HashMap<_, _> = added.collect();
        drop(overlay);
        all.extend(self.index.read().and_then(|r| r.realms()).unwrap_or_default());
        all.into_iter().collect()
    }
}

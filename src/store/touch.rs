//! What was used when: noted in memory, and written to the index now and then.
//!
//! Invariant: whoever tells a client that an entry is there notes its use first, and looks then.
//! Whoever removes what nobody uses holds the change's lock and the notes from the last look at them
//! until it is gone. Without both, one comes between the other's two steps:
//!   the evictor sees no note · a client notes its use, and sees the file · the file is removed.

use std::collections::HashMap;
use std::sync::PoisonError;

use crate::entry::Key;
use crate::store::record::Row;
use crate::store::{Store, seconds};
use crate::tasks::sync::MutexGuard;

/// A touch is noted when the last one is older than this: recency is coarse.
pub(super) const TOUCH_EVERY_S: u32 = 300;
/// Touches held in memory before they are written early.
const TOUCHES_MAX: usize = 64 << 10;

#[derive(Default)]
pub(super) struct Touches {
    keys: HashMap<Vec<u8>, u32>,
    segments: HashMap<u32, u32>,
}

impl Touches {
    /// The last use of an entry that is not in its row yet.
    pub(super) fn of(&self, key: &[u8]) -> Option<u32> {
        self.keys.get(key).copied()
    }
}

impl Store {
    /// The notes; take them after a change's lock, never before it.
    pub(super) fn touches(&self) -> MutexGuard<'_, Touches> {
        self.inner.touches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an entry is used, unless that was noted lately.
    pub fn touch(&self, key: &Key, row: &Row) {
        let now = seconds(self.inner.clock.now());
        if now.saturating_sub(row.touched) < TOUCH_EVERY_S && row.condemned == 0 {
            return;
        }
        self.touch_anew(key, row);
    }

    /// The same whenever that was noted last: who has put what is there already relies on it from now on,
    /// and what is owed is owed since now.
    pub(super) fn touch_anew(&self, key: &Key, row: &Row) {
        let now = seconds(self.inner.clock.now());
        let mut touches = self.touches();
        touches.keys.insert(key.encode(), now);
        touches.segments.insert(row.at.segment, now);
        if touches.keys.len() >= TOUCHES_MAX {
            drop(touches);
            self.flush_touches();
        }
    }

    /// Writes the touches noted since the last time.
    pub fn flush_touches(&self) {
        if self.touches().keys.is_empty() {
            return;
        }
        // Under the change's lock each use is in the notes or in its row, never on its way.
        let change = self.inner.tail.begin();
        let touches = std::mem::take(&mut *self.touches());
        if let Ok(mut change) = change {
            for (key, at) in touches.keys {
                // Found under the change's lock, so that no newer row is overwritten.
                if let Some(row) = self.find_encoded(&key) {
                    let touched = row.touched.max(at);
                    change.put(key, Row { touched, condemned: 0, ..row });
                }
            }
            for (segment, at) in touches.segments {
                change.segment_touched(segment, at);
            }
        }
    }
}

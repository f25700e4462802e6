//! What stays while room is made: by age, and in the last resort by who relies on it.

use std::collections::HashSet;
use std::sync::Arc;

use super::GO_DAY_S;
use crate::entry::Digest;
use crate::store::{Store, TOUCH_EVERY_S};

/// Under pressure the day shrinks to this: longer than builds take.
const HOURS_S: u32 = 3 * 3600;
/// What is owed is looked through again after this long.
const OWED_EVERY_S: u32 = 10;
/// Owed uploads that are looked through. Whoever owes more gives nothing up in the last resort.
const OWED_MAX: usize = 200_000;
/// Owed uploads read in one go.
const OWED_STEP: usize = 10_000;

/// How hard room is looked for, mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// What was used within a day stays.
    Day,
    /// What was used within hours stays.
    Hours,
    /// The least recently used goes, whenever that was; what is in use or owed stays.
    Live,
}

impl Level {
    pub(super) const ALL: [Self; 3] = [Self::Day, Self::Hours, Self::Live];
}

/// What stays at a level.
pub(super) struct Needs {
    pub(super) level: Level,
    pub(super) now: u32,
    /// What builds use that go on now was used since then.
    pub(super) live_since: Option<u32>,
    /// Bodies that are to be sent upstream. None: not looked at, or too many.
    pub(super) owed: Option<OwedBodies>,
}

impl Needs {
    /// Whether a file stays that was used last at `touched`.
    pub(super) fn spare(&self, touched: u32, digest: &Digest) -> bool {
        match self.level {
            Level::Day => self.now.saturating_sub(touched) < GO_DAY_S,
            Level::Hours => self.now.saturating_sub(touched) < HOURS_S,
            Level::Live => {
                // A touch is noted only now and then.
                let is_live = |since: u32| touched.saturating_add(TOUCH_EVERY_S) >= since;
                self.live_since.is_some_and(is_live)
                    || self.owed.as_ref().is_none_or(|owed| owed.may_hold(touched, digest))
            }
        }
    }

    /// Whether a small body stays: no path leads to it, so hours are enough.
    pub(super) fn spare_inline(&self, touched: u32, digest: &Digest) -> bool {
        match self.level {
            Level::Day | Level::Hours => self.now.saturating_sub(touched) < HOURS_S,
            Level::Live => self.spare(touched, digest),
        }
    }
}

/// The bodies that are owed upstream, as of a while ago.
#[derive(Clone, Debug)]
pub(super) struct OwedBodies {
    at: u32,
    bodies: Arc<HashSet<Digest>>,
}

impl OwedBodies {
    /// What was put since may be owed too.
    fn may_hold(&self, touched: u32, digest: &Digest) -> bool {
        touched >= self.at || self.bodies.contains(digest)
    }
}

/// Looks through what is owed, now and then.
#[derive(Debug, Default)]
pub(super) struct Owed {
    at: u32,
    seen: Option<OwedBodies>,
}

impl Owed {
    /// None if they are too many to tell.
    pub(super) fn look(&mut self, store: &Store, now: u32) -> Option<OwedBodies> {
        if store.owed_entries() == 0 || now.saturating_sub(self.at) >= OWED_EVERY_S {
            self.at = now;
            let bodies = owed_bodies(store).map(Arc::new);
            self.seen = bodies.map(|bodies| OwedBodies { at: now, bodies });
        }
        self.seen.clone()
    }
}

fn owed_bodies(store: &Store) -> Option<HashSet<Digest>> {
    let mut bodies = HashSet::new();
    let mut from = 0;
    let mut seen = 0;
    loop {
        let some = store.owed_from(from, OWED_STEP);
        let Some((last, _)) = some.last() else { return Some(bodies) };
        from = last + 1;
        seen += some.len();
        if seen > OWED_MAX {
            return None;
        }
        let digests = some.iter().filter_map(|(_, owed)| store.find(&owed.key));
        bodies.extend(digests.map(|row| row.digest));
    }
}

//! What stays while room is made: what somebody relies on, then what is young.

use std::collections::HashMap;
use std::sync::Arc;

use super::GO_DAY_S;
use crate::entry::Digest;
use crate::store::Store;
use crate::store::touch::TOUCH_EVERY_S;

/// Under pressure the day shrinks to this: longer than builds take.
const HOURS_S: u32 = 3 * 3600;
/// Beyond the limit, what is owed stays no longer than this.
const BEYOND_S: u32 = 600;
/// What is owed is looked through again after this long.
const OWED_EVERY_S: u32 = 10;
/// Owed uploads that are looked through. Whoever owes more gives up nothing but what is old.
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
    /// What has been owed for hours goes too: an upstream that takes nothing must not end caching.
    Last,
}

impl Level {
    pub(super) const ALL: [Self; 4] = [Self::Day, Self::Hours, Self::Live, Self::Last];
}

/// Who relies on what, now.
pub(super) struct Needs {
    pub(super) now: u32,
    /// What builds use that go on now was used since then.
    pub(super) live_since: Option<u32>,
    /// Bodies that are to be sent upstream. None: too many, or not known.
    pub(super) owed: Option<OwedBodies>,
    /// The store holds more than it may: builds have written what they had to.
    pub(super) is_beyond: bool,
}

impl Needs {
    /// Whether a build that goes on may rely on what was used last at `touched`.
    pub(super) fn is_live(&self, touched: u32) -> bool {
        // A touch is noted only now and then.
        self.live_since.is_some_and(|since| touched.saturating_add(TOUCH_EVERY_S) >= since)
    }

    /// Whether somebody relies on a body, whatever its age.
    pub(super) fn is_needed(&self, level: Level, touched: u32, digest: &Digest) -> bool {
        let most = match level {
            Level::Last if self.is_beyond => BEYOND_S,
            Level::Last => HOURS_S,
            Level::Day | Level::Hours | Level::Live => u32::MAX,
        };
        let oldest = self.now.saturating_sub(most);
        let is_owed = || match &self.owed {
            Some(owed) => owed.may_hold(oldest, touched, digest),
            // Nobody can tell. At last, only what is young is taken to be.
            None => level < Level::Last || touched > oldest,
        };
        self.is_live(touched) || is_owed()
    }

    /// Whether a file stays.
    pub(super) fn spare(&self, level: Level, touched: u32, digest: &Digest) -> bool {
        let keep = match level {
            Level::Day => GO_DAY_S,
            Level::Hours => HOURS_S,
            Level::Live | Level::Last => 0,
        };
        self.age(touched) < keep || self.is_needed(level, touched, digest)
    }

    /// Whether a small body stays: no path leads to it, so hours are enough.
    pub(super) fn spare_inline(&self, level: Level, touched: u32, digest: &Digest) -> bool {
        self.spare(level.max(Level::Hours), touched, digest)
    }

    /// Whether a name stays whose content is there.
    pub(super) fn spare_name(&self, level: Level, touched: u32, digest: &Digest) -> bool {
        self.age(touched) < GO_DAY_S || self.is_needed(level, touched, digest)
    }

    const fn age(&self, touched: u32) -> u32 {
        self.now.saturating_sub(touched)
    }
}

/// The bodies that are owed upstream, as of a while ago, and since when.
#[derive(Clone, Debug)]
pub(super) struct OwedBodies {
    at: u32,
    bodies: Arc<HashMap<Digest, u32>>,
}

impl OwedBodies {
    /// Whether it is owed, and not since before `oldest`. What was put since may be owed too.
    fn may_hold(&self, oldest: u32, touched: u32, digest: &Digest) -> bool {
        touched >= self.at || self.bodies.get(digest).is_some_and(|since| *since > oldest)
    }
}

/// Looks through what is owed, now and then.
#[derive(Debug, Default)]
pub(super) struct Owed {
    at: u32,
    /// How many uploads were owed then.
    count: u64,
    seen: Option<OwedBodies>,
}

impl Owed {
    /// None if they are too many to tell, or cannot be read.
    pub(super) fn look(&mut self, store: &Store, now: u32) -> Option<OwedBodies> {
        // Half of it was sent: what it kept may go.
        let is_less = self.is_less_than_seen(store);
        let is_old = is_less || now < self.at || now.saturating_sub(self.at) >= OWED_EVERY_S;
        // That nothing is owed is true only until something is.
        let was_none = self.seen.as_ref().is_none_or(|seen| seen.bodies.is_empty());
        if is_old || was_none {
            (self.at, self.count) = (now, store.owed_entries());
            let bodies = owed_bodies(store).map(Arc::new);
            // Where nothing is owed, nothing was put since either that is.
            let at = if bodies.as_ref().is_some_and(|b| b.is_empty()) { u32::MAX } else { now };
            self.seen = bodies.map(|bodies| OwedBodies { at, bodies });
        }
        self.seen.clone()
    }

    /// Whether much less is owed than when it was looked through.
    pub(super) fn is_less_than_seen(&self, store: &Store) -> bool {
        store.owed_entries().saturating_mul(2) < self.count
    }
}

fn owed_bodies(store: &Store) -> Option<HashMap<Digest, u32>> {
    let mut bodies = HashMap::new();
    let (mut from, mut seen) = (0, 0);
    loop {
        let some = store.owed_from(from, OWED_STEP);
        let Some((last, _)) = some.last() else { break };
        from = last + 1;
        seen += some.len();
        if seen > OWED_MAX {
            return None;
        }
        for (_, owed) in some {
            if let Some(row) = store.find(&owed.key) {
                let since = bodies.entry(row.digest).or_insert(owed.since);
                *since = owed.since.max(*since);
            }
        }
    }
    // A journal that cannot be read looks empty.
    (seen > 0 || store.owed_entries() == 0).then_some(bodies)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u32 = 3600;
    const NOW: u32 = 1_800_000_000;

    #[test]
    fn what_stays_depends_on_age_and_on_who_relies_on_it() {
        let (plain, lately, long) = (Digest([1; 32]), Digest([2; 32]), Digest([3; 32]));
        let bodies = HashMap::from([(lately, NOW - HOUR), (long, NOW - 30 * HOUR)]);
        let owed = Some(OwedBodies { at: NOW - 5, bodies: Arc::new(bodies) });
        let needs =
            |live_since| Needs { now: NOW, live_since, owed: owed.clone(), is_beyond: false };
        let (quiet, busy) = (needs(None), needs(Some(NOW - 8 * HOUR)));
        // Level after level, whether it stays.
        let cases = [
            (&quiet, plain, HOUR, [true, true, false, false]),
            (&quiet, plain, 4 * HOUR, [true, false, false, false]),
            (&quiet, plain, 25 * HOUR, [false, false, false, false]),
            (&quiet, plain, 2, [true, true, true, true]),
            (&quiet, lately, 30 * HOUR, [true, true, true, true]),
            (&quiet, long, 30 * HOUR, [true, true, true, false]),
            (&busy, plain, 7 * HOUR, [true, true, true, true]),
            (&busy, plain, 9 * HOUR, [true, false, false, false]),
        ];
        for (needs, digest, age, expected) in cases {
            let stays = Level::ALL.map(|level| needs.spare(level, NOW - age, &digest));
            assert_eq!(stays, expected, "{digest} after {age} s");
        }
        assert!(!quiet.spare_inline(Level::Day, NOW - 4 * HOUR, &plain));
        assert!(quiet.spare_inline(Level::Day, NOW - 4 * HOUR, &long));
        assert!(quiet.spare_name(Level::Live, NOW - HOUR, &plain));
        assert!(!quiet.spare_name(Level::Day, NOW - 25 * HOUR, &plain));
        let beyond = Needs { is_beyond: true, ..needs(None) };
        assert!(!beyond.spare(Level::Last, NOW - 30 * HOUR, &lately), "for an hour is too long");
        assert!(beyond.spare(Level::Live, NOW - 30 * HOUR, &long));
        let unknown = Needs { owed: None, ..needs(None) };
        assert!(unknown.spare(Level::Live, 0, &plain), "too many are owed to tell");
        let at_last = [HOUR, 4 * HOUR].map(|age| unknown.spare(Level::Last, NOW - age, &plain));
        assert_eq!(at_last, [true, false], "too many must not end caching");
        // The clock was set back: nothing is old.
        let early = Needs { now: NOW - 25 * HOUR, ..needs(None) };
        assert!(early.spare(Level::Day, NOW, &plain));
    }
}

//! What upstream is known not to have, and what it is known to have: both bounded, both short-lived.
//!
//! Only a clear "it does not exist" comes in here, never a fault.

use std::time::Duration;

use crate::entry::{Digest, Key, Kind, RealmId};
use crate::units::Clock;

/// Somebody may be building it right now.
const ACTION_FOR: Duration = Duration::from_secs(2);
/// Content that nobody has is asked for again only after an action was fetched again.
const CONTENT_FOR: Duration = Duration::from_secs(5);
const ENTRIES_MAX: u64 = 100_000;
/// After so long of real time the memory for what no longer counts is given back.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// Keys that upstream said it does not have, and when it said so, by the daemon's clock: a map's own
/// would go on where the daemon's stands still.
#[derive(Clone, Debug)]
pub struct Absent {
    said: moka::sync::Cache<(RealmId, Key), Duration>,
    clock: Clock,
}

impl Absent {
    pub fn new(clock: Clock) -> Self {
        let said = moka::sync::Cache::builder().max_capacity(ENTRIES_MAX).time_to_live(KEPT_FOR);
        Self { said: said.build(), clock }
    }

    /// Content belongs to no realm, but each realm's upstream is asked by its own name.
    pub fn contains(&self, realm: RealmId, key: &Key) -> bool {
        let Some(said) = self.said.get(&(realm, key.clone())) else { return false };
        let holds_for = match key.kind {
            Kind::Content => CONTENT_FOR,
            Kind::Action | Kind::Opaque | Kind::Go => ACTION_FOR,
        };
        self.clock.elapsed().saturating_sub(said) < holds_for
    }

    pub fn insert(&self, realm: RealmId, key: &Key) {
        self.said.insert((realm, key.clone()), self.clock.elapsed());
    }

    pub fn remove(&self, realm: RealmId, key: &Key) {
        self.said.invalidate(&(realm, key.clone()));
    }
}

/// How long a confirmation that upstream has an object is believed.
const CONFIRMED_FOR: Duration = Duration::from_secs(3600);

/// What upstream has confirmed to hold, with the digest that it holds. A key counts as one of the realm
/// whose upstream it is, whichever realm's entry it was sent for.
#[derive(Clone, Debug)]
pub struct Confirmed {
    entries: moka::sync::Cache<(RealmId, Key), Digest>,
}

impl Default for Confirmed {
    fn default() -> Self {
        let entries = moka::sync::Cache::builder()
            .max_capacity(ENTRIES_MAX)
            .time_to_live(CONFIRMED_FOR)
            .build();
        Self { entries }
    }
}

impl Confirmed {
    pub fn insert(&self, realm: RealmId, key: &Key, digest: Digest) {
        self.entries.insert((realm, key.in_realm(realm)), digest);
    }

    pub fn contains(&self, realm: RealmId, key: &Key, digest: &Digest) -> bool {
        self.entries.get(&(realm, key.in_realm(realm))).is_some_and(|held| held == *digest)
    }

    /// Whether upstream is known to have this, whatever it holds.
    pub fn holds(&self, realm: RealmId, key: &Key) -> bool {
        self.entries.contains_key(&(realm, key.in_realm(realm)))
    }

    /// Upstream turned out to have lost it.
    pub fn remove(&self, realm: RealmId, key: &Key) {
        self.entries.invalidate(&(realm, key.in_realm(realm)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Timestamp;

    /// It was so by real time: the same life of a simulated daemon came out in two ways.
    #[test]
    fn what_is_absent_is_so_for_seconds_of_the_daemons_clock() {
        let clock = Clock::manual(Timestamp::from_seconds(1_000_000));
        let absent = Absent::new(clock.clone());
        let realm = RealmId([1; 16]);
        let digest = Digest::of(b"x");
        for (key, holds_for) in
            [(Key::go(realm, digest), ACTION_FOR), (Key::content(digest), CONTENT_FOR)]
        {
            absent.insert(realm, &key);
            clock.advance(holds_for.checked_sub(Duration::from_millis(1)).unwrap());
            assert!(absent.contains(realm, &key));
            assert!(!absent.contains(RealmId([2; 16]), &key), "another upstream may have it");
            clock.advance(Duration::from_millis(1));
            assert!(!absent.contains(realm, &key));
        }
    }
}

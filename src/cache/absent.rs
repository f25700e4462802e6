//! What upstream is known not to have, and what it is known to have: both bounded, both short-lived.
//!
//! Only a clear "it does not exist" comes in here, never a fault.

use std::time::Duration;

use crate::entry::{Digest, Key, Kind, RealmId};

/// Somebody may be building it right now.
const ACTION_FOR: Duration = Duration::from_secs(2);
/// Content that nobody has is asked for again only after an action was fetched again.
const CONTENT_FOR: Duration = Duration::from_secs(5);
const ENTRIES_MAX: u64 = 100_000;

/// Keys that upstream said it does not have.
#[derive(Clone, Debug)]
pub struct Absent {
    actions: moka::sync::Cache<(RealmId, Key), ()>,
    content: moka::sync::Cache<(RealmId, Key), ()>,
}

impl Default for Absent {
    fn default() -> Self {
        let make =
            |ttl| moka::sync::Cache::builder().max_capacity(ENTRIES_MAX).time_to_live(ttl).build();
        Self { actions: make(ACTION_FOR), content: make(CONTENT_FOR) }
    }
}

impl Absent {
    fn of(&self, key: &Key) -> &moka::sync::Cache<(RealmId, Key), ()> {
        match key.kind {
            Kind::Content => &self.content,
            Kind::Action | Kind::Opaque | Kind::Go => &self.actions,
        }
    }

    /// Content belongs to no realm, but each realm's upstream is asked by its own name.
    pub fn contains(&self, realm: RealmId, key: &Key) -> bool {
        self.of(key).contains_key(&(realm, key.clone()))
    }

    pub fn insert(&self, realm: RealmId, key: &Key) {
        self.of(key).insert((realm, key.clone()), ());
    }

    pub fn remove(&self, realm: RealmId, key: &Key) {
        self.of(key).invalidate(&(realm, key.clone()));
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

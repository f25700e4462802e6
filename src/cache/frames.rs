//! Where the frames of outputs stand upstream, as far as this daemon has seen it, and which actions
//! are said to be there though they were built here.
//!
//! Learned from manifests, from actions that were read and from what was sent. Forgetting costs
//! that a frame is packed once more.

use std::time::Duration;

use crate::entry::action::{Frame, Packed};
use crate::entry::{Digest, RealmId};

const ENTRIES_MAX: u64 = 400_000;
/// Upstream may forget packs: what was seen so long ago is seen anew.
pub const KNOWN_FOR: Duration = Duration::from_secs(3600);

/// A frame's place upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Packed(Packed),
    /// Alone in the CAS.
    Alone {
        digest: Digest,
        size: u64,
    },
}

impl Standing {
    /// What an action says of its frame; None for one that needs no place.
    pub const fn of(frame: &Frame) -> Option<Self> {
        match frame {
            Frame::Empty | Frame::Inline(_) => None,
            Frame::Stored { digest, size } => Some(Self::Alone { digest: *digest, size: *size }),
            Frame::Packed(packed) => Some(Self::Packed(*packed)),
        }
    }
}

/// Frames by the realm whose upstream holds them and by the output that they hold.
#[derive(Clone, Debug)]
pub struct Frames {
    known: moka::sync::Cache<(RealmId, Digest), Standing>,
    listed: moka::sync::Cache<(RealmId, Digest), ()>,
    spoiled: moka::sync::Cache<(RealmId, Digest), ()>,
}

impl Default for Frames {
    fn default() -> Self {
        let known = moka::sync::Cache::builder().max_capacity(ENTRIES_MAX).time_to_live(KNOWN_FOR);
        let listed = moka::sync::Cache::builder().max_capacity(ENTRIES_MAX).time_to_live(KNOWN_FOR);
        let spoiled =
            moka::sync::Cache::builder().max_capacity(ENTRIES_MAX).time_to_live(KNOWN_FOR);
        Self { known: known.build(), listed: listed.build(), spoiled: spoiled.build() }
    }
}

impl Frames {
    pub fn get(&self, realm: RealmId, output: &Digest) -> Option<Standing> {
        self.known.get(&(realm, *output))
    }

    pub fn insert(&self, realm: RealmId, output: Digest, standing: Standing) {
        self.known.insert((realm, output), standing);
    }

    /// Upstream turned out to have lost it.
    pub fn remove(&self, realm: RealmId, output: &Digest) {
        self.known.invalidate(&(realm, *output));
    }

    /// What stands there is not what it should be: that it is there says nothing any more.
    pub fn spoil(&self, realm: RealmId, output: &Digest) {
        self.remove(realm, output);
        self.spoiled.insert((realm, *output), ());
    }

    pub fn is_spoiled(&self, realm: RealmId, output: &Digest) -> bool {
        self.spoiled.contains_key(&(realm, *output))
    }

    /// An action was built here that a manifest lists.
    pub fn built_though_listed(&self, realm: RealmId, action: Digest) {
        self.listed.insert((realm, action), ());
    }

    pub fn is_built_though_listed(&self, realm: RealmId, action: &Digest) -> bool {
        self.listed.contains_key(&(realm, *action))
    }
}

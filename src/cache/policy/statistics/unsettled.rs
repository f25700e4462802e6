//! Keys of which upstream has said no, or which were built here and are bound to this machine, until the
//! other word comes: a probe's answer often comes after its key was built.

use std::collections::{HashMap, HashSet};

use super::Kind;
use crate::entry::Digest;

/// Keys of either sort; beyond, all are forgotten. A build asks for few that it does not soon build.
const KEYS_MAX: usize = 1 << 12;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Unsettled {
    missed: HashMap<Digest, Kind>,
    bound: HashSet<Digest>,
}

impl Unsettled {
    /// Upstream does not have it; false if that says nothing of upstream, for it could not have it.
    pub(super) fn missed(&mut self, key: &Digest, kind: Kind) -> bool {
        if self.bound.remove(key) {
            return false;
        }
        if self.missed.len() >= KEYS_MAX {
            self.missed.clear();
        }
        self.missed.insert(*key, kind);
        true
    }

    /// It was built here. The kind of question by which its absence was counted, and should not have
    /// been.
    pub(super) fn built(&mut self, key: &Digest, is_bound: bool, is_asked: bool) -> Option<Kind> {
        let missed = self.missed.remove(key).filter(|_| is_bound);
        if is_bound && is_asked && missed.is_none() {
            if self.bound.len() >= KEYS_MAX {
                self.bound.clear();
            }
            self.bound.insert(*key);
        }
        missed
    }

    /// Upstream has it, or nothing of use was heard.
    pub(super) fn settled(&mut self, key: &Digest) {
        self.missed.remove(key);
        self.bound.remove(key);
    }
}

//! Keys of which upstream has said no, and keys that were built here after upstream was asked, until the
//! other word comes: a probe's answer often comes after its key was built.

use std::collections::HashMap;

use super::Kind;
use crate::entry::Digest;

/// Keys of either sort; beyond, all of it are forgotten. Some stay: go asks for keys that it does not put.
const KEYS_MAX: usize = 1 << 12;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Unsettled {
    missed: HashMap<Digest, Kind>,
    /// With whether it is bound to this machine.
    built: HashMap<Digest, bool>,
}

impl Unsettled {
    /// Upstream does not have it; false if that says nothing of upstream, for it could not have it.
    pub(super) fn missed(&mut self, key: &Digest, kind: Kind) -> bool {
        if let Some(is_bound) = self.built.remove(key) {
            return !is_bound;
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
        let missed = self.missed.remove(key);
        if is_asked && missed.is_none() {
            if self.built.len() >= KEYS_MAX {
                self.built.clear();
            }
            self.built.insert(*key, is_bound);
        }
        missed.filter(|_| is_bound)
    }

    /// Upstream has it.
    pub(super) fn hit(&mut self, key: &Digest) {
        self.missed.remove(key);
        self.built.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_which_nothing_more_is_heard_take_bounded_room() {
        let mut unsettled = Unsettled::default();
        let mut last = Digest::EMPTY;
        for number in 0..3 * KEYS_MAX as u64 {
            let asked = Digest::of(&number.to_le_bytes());
            last = Digest::of(&number.to_be_bytes());
            assert_eq!(unsettled.built(&asked, true, true), None);
            assert!(unsettled.missed(&last, Kind::Unlisted) || asked == last);
            assert!(unsettled.built.len() <= KEYS_MAX && unsettled.missed.len() <= KEYS_MAX);
        }
        assert_eq!(unsettled.built(&last, true, true), Some(Kind::Unlisted));
    }
}

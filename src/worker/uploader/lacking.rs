//! Contents that were given up: upstream lacks them, and an action that names one must not be sent, or
//! whoever finds it there looks for them in vain.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::entry::{Digest, RealmId};

/// Contents that are remembered; beyond, all of them are forgotten.
const LACKING_MAX: usize = 1 << 16;
/// A digest as actions write it, in letters.
const HEX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lacking(Mutex<HashSet<(RealmId, Digest)>>);

impl Lacking {
    fn set(&self) -> MutexGuard<'_, HashSet<(RealmId, Digest)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set().is_empty()
    }

    pub(super) fn insert(&self, realm: RealmId, content: Digest) {
        let mut set = self.set();
        if set.len() >= LACKING_MAX {
            set.clear();
        }
        set.insert((realm, content));
    }

    /// Upstream has it after all.
    pub(super) fn remove(&self, realm: RealmId, content: Digest) {
        self.set().remove(&(realm, content));
    }

    /// What an action names that upstream lacks.
    pub(super) fn named_in(&self, realm: RealmId, action: &[u8]) -> Option<Digest> {
        let set = self.set();
        let runs = action.split(|byte| !byte.is_ascii_hexdigit()).filter(|run| run.len() >= HEX);
        let mut digests = runs.flat_map(|run| run.windows(HEX)).filter_map(digest_of);
        digests.find(|digest| set.contains(&(realm, *digest)))
    }
}

fn digest_of(hex: &[u8]) -> Option<Digest> {
    Digest::from_hex(std::str::from_utf8(hex).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_names_contents_in_letters_wherever_they_stand() {
        let (lacking, realm) = (Lacking::default(), RealmId([1; 16]));
        let (gone, there) = (Digest::of(b"gone"), Digest::of(b"there"));
        lacking.insert(realm, gone);
        let action = |digest: Digest| format!("\x12\x44\x0a\x40{digest}\x10\x05").into_bytes();
        assert_eq!(lacking.named_in(realm, &action(gone)), Some(gone));
        assert_eq!(lacking.named_in(realm, &action(there)), None);
        assert_eq!(lacking.named_in(RealmId([2; 16]), &action(gone)), None);
        assert_eq!(lacking.named_in(realm, format!("0{gone}f").as_bytes()), Some(gone));
        lacking.remove(realm, gone);
        assert!(lacking.is_empty() && lacking.named_in(realm, &action(gone)).is_none());
    }
}

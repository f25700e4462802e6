//! Groups: an action and its subkeys, which Go computes from it and asks for after it.
//!
//! A build of the action makes all of them, so what a subkey saves is what its action costs: if Go
//! has a package but not what its compiler printed, it compiles the package again. The helper
//! measures that cost, from the miss of the action to its put; a subkey's own put comes without one.
//! Here it is remembered which keys belong to an action that was answered, and which are empty.

use std::collections::{HashMap, VecDeque};

use crate::cache::policy::ask::Known;
use crate::entry::{Digest, Hasher};

/// Names that Go gives to subkeys, other than those made of file names, flags and inputs.
const NAMES: [&str; 4] = ["stdout", "link-stdout", "srcfiles", "_cgo_install.h"];
/// Those of them that are empty unless a tool printed something.
const STDOUTS: usize = 2;
/// Four times the packages of the largest builds we know; beyond, the oldest are forgotten.
const ACTIONS_MAX: usize = 16 << 10;

/// The key of what belongs to an action under this name.
pub fn subkey(action: &Digest, name: &str) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(b"subkey:");
    hasher.update(action.as_bytes());
    hasher.update(name.as_bytes());
    hasher.finish()
}

/// The keys that belong to an action, as far as their names are fixed.
pub fn subkeys(action: &Digest) -> impl Iterator<Item = Digest> {
    NAMES.iter().map(|name| subkey(action, name))
}

/// What a key is to the actions of a session that were answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// An action of its own, or a subkey of one that was not answered.
    Stranger,
    /// A subkey of an action that was answered and costs so much.
    Of { cost_ms: u32 },
    /// The same, and its output is known to be empty: no network is needed.
    Empty,
}

impl Member {
    /// What is known of a key of which a manifest says `known`: its cost is its action's.
    pub fn refine(self, known: Known) -> Known {
        let Self::Of { cost_ms: group } = self else { return known };
        match known {
            Known::Coming { cost_ms, frame_bytes, eta_ms } => {
                Known::Coming { cost_ms: cost_ms.max(group), frame_bytes, eta_ms }
            }
            Known::Listed { cost_ms, frame_bytes } => {
                Known::Listed { cost_ms: cost_ms.max(group), frame_bytes }
            }
            // Who has the action has put its subkeys before or right after it.
            Known::Unlisted | Known::NoManifest => Known::Listed { cost_ms: group, frame_bytes: 0 },
        }
    }
}

/// What an answered action still needs before go takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// What its compiler printed: without it a package is built although it is there.
    Stdout,
    /// The same, but a manifest says that nothing was printed.
    EmptyStdout,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    member: Member,
    /// What the answer to this subkey saves, as the one to its action has not.
    owed_ms: u32,
}

/// The groups that one session has met.
#[derive(Debug, Default)]
pub struct Groups {
    places: HashMap<Digest, Place>,
    /// The actions, oldest first.
    actions: VecDeque<Digest>,
}

impl Groups {
    /// A key was answered that costs so much; returns what that has saved for sure, which is what its
    /// session's account may be given. Costs little: four hashes of a hundred bytes.
    #[must_use]
    pub fn hit(&mut self, key: &Digest, cost_ms: u32, needs: Needs) -> u32 {
        if let Some(place) = self.places.get_mut(key) {
            return std::mem::take(&mut place.owed_ms);
        }
        if self.places.contains_key(&subkey(key, NAMES[0])) {
            // Asked for again in the same session: saved once.
            return 0;
        }
        if self.actions.len() >= ACTIONS_MAX
            && let Some(oldest) = self.actions.pop_front()
        {
            for key in subkeys(&oldest) {
                self.places.remove(&key);
            }
        }
        self.actions.push_back(*key);
        for (n, key) in subkeys(key).enumerate() {
            let is_silent = needs == Needs::EmptyStdout && n < STDOUTS;
            let member = if is_silent { Member::Empty } else { Member::Of { cost_ms } };
            let owed_ms = if needs == Needs::Stdout && n == 0 { cost_ms } else { 0 };
            self.places.insert(key, Place { member, owed_ms });
        }
        if needs == Needs::Stdout { 0 } else { cost_ms }
    }

    pub fn of(&self, key: &Digest) -> Member {
        self.places.get(key).map_or(Member::Stranger, |place| place.member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(n: u32) -> Digest {
        Digest::of(&n.to_le_bytes())
    }

    #[test]
    fn subkeys_are_what_go_computes() {
        let known = [
            ("stdout", "cc2f6ec93bf262db372c6719a0710b21b88fe99241e6d1074853d20cd6ef4680"),
            ("link-stdout", "d7ef473806bcb58fbebeec4b4825725713002e10289b5e1c65a6b6953c5097e6"),
            ("srcfiles", "bec63c11224ef7af456852b28ae2a469caf751e22738e2e5d2c455b3a8c40b3d"),
            ("_cgo_install.h", "c0afe1ca3444e5453d656849c0cd697d0f55813f2f22bab0fcca839ce625b6f2"),
        ];
        for ((name, hex), key) in known.into_iter().zip(subkeys(&Digest::EMPTY)) {
            assert_eq!(key.to_string(), hex, "{name}");
            assert_eq!(subkey(&Digest::EMPTY, name), key);
        }
    }

    #[test]
    fn a_subkey_is_worth_its_action() {
        let mut groups = Groups::default();
        let stdout = subkey(&action(1), "stdout");
        assert_eq!(groups.of(&stdout), Member::Stranger);
        assert_eq!(groups.hit(&action(1), 700, Needs::Nothing), 700);
        assert_eq!(groups.of(&stdout), Member::Of { cost_ms: 700 });
        assert_eq!(groups.of(&action(1)), Member::Stranger);
        let listed = Known::Listed { cost_ms: 0, frame_bytes: 9 };
        let refined = groups.of(&stdout).refine(listed);
        assert_eq!(refined, Known::Listed { cost_ms: 700, frame_bytes: 9 });
        let coming = Known::Coming { cost_ms: 900, frame_bytes: 0, eta_ms: None };
        assert_eq!(groups.of(&stdout).refine(coming), coming);
        let refined = groups.of(&stdout).refine(Known::NoManifest);
        assert_eq!(refined, Known::Listed { cost_ms: 700, frame_bytes: 0 });
        assert_eq!(groups.of(&action(2)).refine(Known::Unlisted), Known::Unlisted);
    }

    #[test]
    fn a_group_is_saved_once_and_only_when_it_is_whole() {
        let mut groups = Groups::default();
        let stdout = |n| subkey(&action(n), "stdout");
        assert_eq!(groups.hit(&action(1), 700, Needs::Stdout), 0);
        assert_eq!(groups.hit(&action(1), 700, Needs::Stdout), 0);
        assert_eq!(groups.hit(&subkey(&action(1), "srcfiles"), 5, Needs::Nothing), 0);
        assert_eq!(groups.hit(&stdout(1), 0, Needs::Nothing), 700);
        assert_eq!(groups.hit(&stdout(1), 0, Needs::Nothing), 0);
        assert_eq!(groups.hit(&action(2), 300, Needs::EmptyStdout), 300);
        assert_eq!(groups.of(&stdout(2)), Member::Empty);
        assert_eq!(groups.of(&subkey(&action(2), "link-stdout")), Member::Empty);
        assert_eq!(groups.of(&subkey(&action(2), "srcfiles")), Member::Of { cost_ms: 300 });
        assert_eq!(groups.hit(&stdout(2), 0, Needs::Nothing), 0);
    }

    #[test]
    fn the_oldest_groups_give_way() {
        let mut groups = Groups::default();
        let count = u32::try_from(ACTIONS_MAX).unwrap() + 10;
        for n in 0..count {
            assert_eq!(groups.hit(&action(n), n, Needs::Nothing), n);
            assert_eq!(groups.hit(&action(n), n, Needs::Nothing), 0);
        }
        assert_eq!(groups.places.len(), ACTIONS_MAX * NAMES.len());
        assert_eq!(groups.actions.len(), ACTIONS_MAX);
        assert_eq!(groups.of(&subkey(&action(9), "stdout")), Member::Stranger);
        assert_ne!(groups.of(&subkey(&action(10), "stdout")), Member::Stranger);
    }
}

//! What a forecast is of: whose build, of what.

use std::sync::Arc;

use crate::cache::realm::Realm;

/// What is asked of the past.
#[derive(Clone, Debug)]
pub struct Aim {
    pub realm: Arc<Realm>,
    pub scope: Arc<str>,
    pub commit: Arc<str>,
    pub branch: Arc<str>,
    pub default_branch: Arc<str>,
}

impl Aim {
    /// Whether this asks for what the other does, or, as a command before the checkout, says less of it.
    pub(super) fn serves(&self, other: &Self) -> bool {
        let says = |mine: &Arc<str>, theirs: &Arc<str>| mine.is_empty() || mine == theirs;
        self.realm.id == other.realm.id
            && self.scope == other.scope
            && self.commit == other.commit
            && says(&self.branch, &other.branch)
            && says(&self.default_branch, &other.default_branch)
    }

    pub(super) fn says_all_of(&self, other: &Self) -> bool {
        (&self.branch, &self.default_branch) == (&other.branch, &other.default_branch)
    }
}

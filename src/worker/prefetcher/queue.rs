//! What is still to be fetched, and in which order: what a build waits for overtakes the rest.
//!
//! Pure: nothing is fetched here.

use std::collections::{HashSet, VecDeque};

use crate::entry::Digest;
use crate::worker::prefetcher::plan::{self, Unit};

/// Units in order of first use, and before them those that a build waits for.
#[derive(Default)]
pub(super) struct Queue {
    urgent: VecDeque<Unit>,
    waiting: VecDeque<Unit>,
}

impl Queue {
    pub(super) fn new(units: Vec<Unit>) -> Self {
        Self { urgent: VecDeque::new(), waiting: units.into() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.waiting.is_empty()
    }

    /// The next one, and whether a build waits for it.
    pub(super) fn front(&self) -> Option<(&Unit, bool)> {
        let urgent = self.urgent.front().map(|unit| (unit, true));
        urgent.or_else(|| self.waiting.front().map(|unit| (unit, false)))
    }

    pub(super) fn pop_front(&mut self) -> Option<Unit> {
        self.urgent.pop_front().or_else(|| self.waiting.pop_front())
    }

    /// Brings forward what holds these.
    pub(super) fn overtake(&mut self, actions: &[Digest]) {
        if actions.is_empty() {
            return;
        }
        let actions: HashSet<&Digest> = actions.iter().collect();
        let is_named = |unit: &Unit| unit.actions().any(|action| actions.contains(action));
        if !self.waiting.iter().any(is_named) {
            return;
        }
        let (urgent, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(is_named);
        self.waiting = waiting;
        self.urgent.extend::<VecDeque<Unit>>(urgent);
    }

    /// Parts of objects came back whose upstream sends only the whole: see `plan::whole`.
    pub(super) fn return_whole(&mut self, returned: Vec<Unit>) {
        let rest = std::mem::take(self).into_units();
        self.waiting = plan::whole(returned, rest).into();
    }

    /// What is left, in its order.
    pub(super) fn into_units(self) -> impl Iterator<Item = Unit> {
        self.urgent.into_iter().chain(self.waiting)
    }
}

//! What a helper has done, for its reports: totals, actions to be marked as used, and how long ago
//! each missing action was asked for, which is what its output cost.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::entry::COST_MAX_MS;
use crate::store::record::Row;
use crate::wire::go::{Frame, Report};

/// Missing actions that are remembered; what is built beyond has no known cost.
const MISSED_MAX: usize = 64 << 10;
/// Used actions that nobody was told of; those beyond count as used when they were before.
const USED_MAX: usize = 64 << 10;
/// Actions in one frame.
const USED_IN_FRAME: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Account(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    report: Report,
    told: Report,
    used: Vec<[u8; 32]>,
    missed: HashMap<[u8; 32], Duration>,
}

impl Account {
    pub(super) fn get(&self) {
        self.locked().report.gets += 1;
    }

    /// Every use is told, however lately the entry was used: it belongs into this build's manifest.
    pub(super) fn hit_index(&self, action: [u8; 32], row: &Row) {
        let mut inner = self.locked();
        inner.report.hits_index += 1;
        inner.report.saved_ms += u64::from(row.cost_ms.min(COST_MAX_MS));
        if inner.used.len() < USED_MAX {
            inner.used.push(action);
        }
    }

    pub(super) fn hit_native(&self) {
        self.locked().report.hits_native += 1;
    }

    /// go was told to build this.
    pub(super) fn missed(&self, action: [u8; 32], at: Duration) {
        let mut inner = self.locked();
        if inner.missed.len() < MISSED_MAX {
            // A second question is no new beginning.
            inner.missed.entry(action).or_insert(at);
        }
    }

    /// go has built this; returns for how long, in milliseconds.
    pub(super) fn built(&self, action: &[u8; 32], at: Duration) -> u32 {
        let mut inner = self.locked();
        inner.report.puts += 1;
        let since = inner.missed.remove(action);
        let cost = since.map(|since| u32::try_from(at.saturating_sub(since).as_millis()));
        // Zero says that nobody measured.
        cost.map_or(0, |ms| ms.unwrap_or(u32::MAX).clamp(1, COST_MAX_MS))
    }

    /// Says what there is to tell since the last time; what nobody hears is kept for the next.
    pub(super) fn tell(&self, say: impl FnOnce(&[Frame]) -> bool) {
        let (used, report, is_news) = {
            let mut inner = self.locked();
            let is_news = inner.report != inner.told;
            (std::mem::take(&mut inner.used), inner.report.clone(), is_news)
        };
        let uses = used.chunks(USED_IN_FRAME).map(|part| Frame::Used { actions: part.to_vec() });
        let frames: Vec<Frame> =
            uses.chain(is_news.then(|| Frame::Report(report.clone()))).collect();
        if frames.is_empty() {
            return;
        }
        let is_heard = say(&frames);
        let mut inner = self.locked();
        if is_heard {
            inner.told = report;
        } else {
            // What go has been given in the meantime comes after it.
            inner.used.splice(..0, used);
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Class, Digest};
    use crate::store::record::{Place, Stamp};
    use crate::store::segment::Position;
    use crate::units::Timestamp;

    fn told(account: &Account) -> Vec<Frame> {
        let mut told = Vec::new();
        account.tell(|frames| {
            told = frames.to_vec();
            true
        });
        told
    }

    #[test]
    fn a_build_costs_the_time_from_its_miss_to_its_put() {
        let account = Account::default();
        account.missed([1; 32], Duration::from_millis(500));
        assert_eq!(account.built(&[1; 32], Duration::from_millis(1_700)), 1_200);
        assert_eq!(account.built(&[1; 32], Duration::from_secs(9)), 0, "told once");
        assert_eq!(account.built(&[2; 32], Duration::from_secs(9)), 0, "never asked for");
        let report = Report { puts: 3, ..Report::default() };
        assert_eq!(told(&account), [Frame::Report(report)]);
        assert_eq!(told(&account), []);
    }

    #[test]
    fn every_use_is_told_for_the_manifest() {
        let account = Account::default();
        let row = Row {
            place: Place::Elsewhere,
            class: Class::Archive,
            has_more: false,
            at: Position::default(),
            len: 0,
            digest: Digest::EMPTY,
            size: 0,
            stored: Timestamp(0),
            cost_ms: 40,
            c_env: 0,
            touched: 0,
            condemned: 0,
            stamp: Stamp::default(),
        };
        account.hit_index([1; 32], &row);
        account.hit_index([2; 32], &row);
        let report = Report { hits_index: 2, saved_ms: 80, ..Report::default() };
        let used = Frame::Used { actions: vec![[1; 32], [2; 32]] };
        // They were lost where the daemon was just away, and what go held could be removed.
        account.tell(|_| false);
        assert_eq!(told(&account), [used, Frame::Report(report)]);
        assert_eq!(told(&account), []);
    }
}

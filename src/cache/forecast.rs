//! What a build is expected to need, as manifests of earlier builds foretell it.
//!
//! One forecast for each realm, scope and commit: sessions that build the same share it. A worker
//! reads the manifests and fills it in. It only predicts: nothing is believed because it says so.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::cache::policy::ask::Known;
use crate::entry::{COST_MAX_MS, Digest};
use crate::telemetry::Metrics;
use crate::units::Clock;

mod aim;
mod all;
mod overtaking;

pub use aim::Aim;
pub use all::Forecasts;
use overtaking::Overtaking;

/// What is on its way is waited for as if building it took at least so long.
const COMING_COST_MIN_MS: u32 = 150;

/// Longest request for a part of a pack: what is fetched next comes with so many others.
const TOGETHER_MAX: u64 = 2 << 20;
/// What less has arrived says nothing of how fast the rest comes.
const MEASURED_FROM: u64 = 256 << 10;
/// A command that follows another one so closely belongs to the same build.
const FOLLOWS_WITHIN_MS: u64 = 10_000;

/// How far a forecast is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Loading,
    /// What is listed is known.
    Known,
    /// There is no manifest, or none could be read.
    Nothing,
}

/// An entry that a manifest names.
#[derive(Debug)]
pub struct Listed {
    pub cost_ms: u32,
    pub frame_bytes: u64,
    /// Bytes that are fetched before it.
    pub before: u64,
    state: AtomicU8,
}

const WANTED: u8 = 0;
const THERE: u8 = 1;
const FETCHED: u8 = 2;
const USED: u8 = 3;
const LEFT: u8 = 4;

impl Listed {
    pub fn new(cost_ms: u32, frame_bytes: u64, before: u64) -> Self {
        let cost_ms = cost_ms.min(COST_MAX_MS);
        Self { cost_ms, frame_bytes, before, state: AtomicU8::new(WANTED) }
    }

    /// It was on this machine already.
    pub fn there(self) -> Self {
        self.state.store(THERE, Ordering::Relaxed);
        self
    }

    fn turn(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Forecast {
    pub aim: Aim,
    metrics: Arc<Metrics>,
    made: Duration,
    phase: watch::Sender<Phase>,
    parents: watch::Sender<Option<Vec<Arc<str>>>>,
    /// None before the first manifest was read; anew when what was cut short goes on.
    listed: RwLock<Option<Arc<HashMap<Digest, Listed>>>>,
    /// Bytes of the plan that are here.
    pub arrived_bytes: AtomicU64,
    /// And those that will not come: nobody waits behind them.
    pub skipped_bytes: AtomicU64,
    /// And those that are asked for.
    pub under_way_bytes: AtomicU64,
    /// What builds wait for.
    pub overtaking: Overtaking,
    pub fetched: AtomicU64,
    /// Of the frames that were fetched and kept.
    pub fetched_bytes: AtomicU64,
    pub used: AtomicU64,
    /// Sessions and commands that want it.
    wanted_by: AtomicU64,
    /// Since when it is fetched, in milliseconds of the clock; zero before.
    fetching_since_ms: AtomicU64,
    /// When the last of them left, in milliseconds of the clock.
    left_ms: AtomicU64,
    clock: Clock,
    /// Rows of the fullest manifest that was read: about what a whole build uses.
    pub fullest: AtomicUsize,
    pub is_by_scope_alone: AtomicBool,
    /// Whether upstream did not say of a manifest or a trail whether it is there.
    pub was_refused: AtomicBool,
    is_done: AtomicBool,
    done: Notify,
    /// It ended because nobody wanted it any more.
    is_cut: AtomicBool,
}

impl Forecast {
    fn new(aim: Aim, clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self {
            aim,
            metrics,
            made: clock.elapsed(),
            phase: watch::Sender::new(Phase::Loading),
            parents: watch::Sender::new(None),
            listed: RwLock::default(),
            arrived_bytes: AtomicU64::new(0),
            skipped_bytes: AtomicU64::new(0),
            under_way_bytes: AtomicU64::new(0),
            overtaking: Overtaking::default(),
            fetched: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
            used: AtomicU64::new(0),
            wanted_by: AtomicU64::new(0),
            fetching_since_ms: AtomicU64::new(0),
            left_ms: AtomicU64::new(0),
            clock,
            fullest: AtomicUsize::new(0),
            is_by_scope_alone: AtomicBool::new(false),
            was_refused: AtomicBool::new(false),
            is_done: AtomicBool::new(false),
            done: Notify::new(),
            is_cut: AtomicBool::new(false),
        }
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Since when its manifests are known, or asked for.
    pub fn age(&self) -> Duration {
        self.clock.elapsed().saturating_sub(self.made)
    }

    /// Returns when it is known what is listed, or that nothing is.
    pub async fn told(&self) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as this does.
        let _ = phase.wait_for(|phase| *phase != Phase::Loading).await;
    }

    /// The first that are named count. Where none are, nobody waits for them any more.
    pub fn parents_are(&self, parents: &[Arc<str>]) {
        self.parents.send_if_modified(|known| {
            let is_news =
                known.as_ref().is_none_or(|known| known.is_empty() && !parents.is_empty());
            if is_news {
                *known = Some(parents.to_vec());
            }
            is_news
        });
    }

    pub fn has_parents(&self) -> bool {
        self.parents.borrow().as_ref().is_some_and(|parents| !parents.is_empty())
    }

    /// The parents, once a helper has named them, or without `is_named` said that it cannot; else empty.
    pub async fn parents(&self, within: Duration, is_named: bool) -> Vec<Arc<str>> {
        let mut parents = self.parents.subscribe();
        let is_said =
            |known: &Option<Vec<_>>| known.as_ref().is_some_and(|ids| !is_named || !ids.is_empty());
        let said = tokio::time::timeout(within, parents.wait_for(is_said)).await;
        said.ok().and_then(|said| said.ok()?.clone()).unwrap_or_default()
    }

    /// Says what is listed; the flights of what is wanted have begun by now.
    pub fn list(&self, listed: HashMap<Digest, Listed>) {
        let before = self.listed();
        for (action, entry) in &listed {
            // What was fetched or used in an earlier run stays so, or it would be counted twice.
            let was = before.as_ref().and_then(|before| before.get(action));
            let was = was.map_or(WANTED, |was| was.state.load(Ordering::Relaxed));
            if matches!(was, FETCHED | USED) {
                entry.state.store(was, Ordering::Relaxed);
            }
        }
        *self.listed.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(listed));
        self.arrived_bytes.store(0, Ordering::Relaxed);
        self.skipped_bytes.store(0, Ordering::Relaxed);
        self.phase.send_replace(Phase::Known);
    }

    fn listed(&self) -> Option<Arc<HashMap<Digest, Listed>>> {
        self.listed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does something with what is listed of an action, if it is.
    fn with<T>(&self, action: &Digest, act: impl FnOnce(&Listed) -> T) -> Option<T> {
        self.listed()?.get(action).map(act)
    }

    /// Nobody asks it any more; what it has counted stays. Who comes all the same has it read again.
    pub fn release(&self) {
        self.cut_short();
        *self.listed.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub fn nothing(&self) {
        self.phase.send_replace(Phase::Nothing);
        self.finish();
    }

    /// Nothing was known, and more has been said of what is built: manifests are read again.
    pub fn look_again(&self) {
        self.is_done.store(false, Ordering::Release);
        self.phase.send_replace(Phase::Loading);
    }

    /// The same, without anybody waiting for it once more.
    pub fn try_again(&self) {
        self.is_done.store(false, Ordering::Release);
    }

    /// What is known of a key that this machine does not have. `latency_ms` and `bytes_per_ms`: how
    /// fast it comes.
    pub fn word(&self, action: &Digest, latency_ms: f64, bytes_per_ms: f64) -> Known {
        let Some(listed) = self.listed() else { return Known::NoManifest };
        let Some(entry) = listed.get(action) else { return Known::Unlisted };
        let (cost_ms, frame_bytes) = (entry.cost_ms, entry.frame_bytes);
        if entry.state.load(Ordering::Relaxed) != WANTED {
            return Known::Listed { cost_ms, frame_bytes };
        }
        let eta_ms = self.eta_ms(entry, latency_ms, bytes_per_ms);
        // It comes in any case; building it too would take processors from what else is built.
        let doubled = cost_ms.saturating_mul(2).max(COMING_COST_MIN_MS);
        let cost_ms = if cost_ms == 0 { 0 } else { doubled };
        Known::Coming { cost_ms, frame_bytes, eta_ms }
    }

    /// In how long an entry is here: in its turn, or as what a build waits for.
    #[expect(clippy::cast_possible_truncation, reason = "a float beyond 64 bits saturates")]
    fn eta_ms(&self, entry: &Listed, latency_ms: f64, bytes_per_ms: f64) -> Option<u64> {
        let ahead = entry
            .before
            .saturating_add(entry.frame_bytes)
            .saturating_sub(self.arrived_bytes.load(Ordering::Relaxed))
            .saturating_sub(self.skipped_bytes.load(Ordering::Relaxed));
        let together = self.under_way_bytes.load(Ordering::Relaxed).saturating_add(TOGETHER_MAX);
        let bytes_per_ms = self.bytes_per_ms().max(bytes_per_ms);
        let next = latency_ms.max(0.0) + together as f64 / bytes_per_ms;
        (bytes_per_ms > 0.0).then(|| (ahead as f64 / bytes_per_ms).min(next) as u64)
    }

    /// How fast all streams together have brought what is here; zero before that can be told.
    pub fn bytes_per_ms(&self) -> f64 {
        let bytes = self.arrived_bytes.load(Ordering::Relaxed);
        let began = self.fetching_since_ms.load(Ordering::Relaxed);
        let ms = self.now_ms().saturating_sub(began);
        if began == 0 || ms == 0 || bytes < MEASURED_FROM { 0.0 } else { bytes as f64 / ms as f64 }
    }

    /// The streams begin.
    pub fn fetching(&self) {
        self.fetching_since_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// What building it took where the manifest was made; None if it is not listed.
    pub fn cost_of(&self, action: &Digest) -> Option<u32> {
        self.with(action, |entry| entry.cost_ms)
    }

    pub fn lists(&self) -> usize {
        self.listed().map_or(0, |listed| listed.len())
    }

    /// It has been fetched ahead, or was there when its turn came.
    pub fn arrived(&self, action: &Digest, is_fetched: bool) {
        let is_new = self.with(action, |entry| {
            let is_new = is_fetched && (entry.turn(WANTED, FETCHED) || entry.turn(LEFT, FETCHED));
            if !is_new {
                entry.turn(WANTED, THERE);
            }
            is_new
        });
        if is_new == Some(true) {
            self.fetched.fetch_add(1, Ordering::Relaxed);
            self.metrics.prefetched_entries.inc();
        }
    }

    /// A frame of this length has been fetched and kept.
    pub fn brought(&self, frame_bytes: u64) {
        self.fetched_bytes.fetch_add(frame_bytes, Ordering::Relaxed);
        self.metrics.prefetched_bytes.add(frame_bytes);
    }

    /// It is not fetched ahead any more: whoever needs it asks.
    pub fn left(&self, action: &Digest) {
        self.with(action, |entry| entry.turn(WANTED, LEFT));
    }

    /// How many are not here because they could not be fetched, or are not wanted any more.
    pub fn count_left(&self) -> usize {
        let is_left = |entry: &&Listed| entry.state.load(Ordering::Relaxed) == LEFT;
        self.listed().map_or(0, |listed| listed.values().filter(is_left).count())
    }

    /// A build has used it.
    pub fn used(&self, action: &Digest) {
        if self.with(action, |entry| entry.turn(FETCHED, USED)) == Some(true) {
            self.used.fetch_add(1, Ordering::Relaxed);
            self.metrics.prefetch_used.inc();
        }
    }

    pub fn want(&self) {
        self.wanted_by.fetch_add(1, Ordering::Relaxed);
    }

    pub fn unwant(&self) {
        self.left_ms.store(self.now_ms(), Ordering::Relaxed);
        self.wanted_by.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether somebody wants it, or has only just left: the commands of a job follow each other.
    pub fn is_wanted(&self) -> bool {
        self.wanted_by.load(Ordering::Relaxed) > 0 || {
            let left_ms = self.left_ms.load(Ordering::Relaxed);
            left_ms > 0 && self.now_ms().saturating_sub(left_ms) < FOLLOWS_WITHIN_MS
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Nothing more is fetched ahead for it.
    pub fn finish(&self) {
        self.is_done.store(true, Ordering::Release);
        self.done.notify_waiters();
    }

    pub fn is_finished(&self) -> bool {
        self.is_done.load(Ordering::Acquire)
    }

    /// It is finished, and something is left that is fetched once somebody wants it again.
    pub fn cut_short(&self) {
        self.is_cut.store(true, Ordering::Release);
    }

    /// Begins anew; false if nothing was cut short. Who is told true sees to it.
    pub fn resume(&self) -> bool {
        let is_cut = self.is_cut.swap(false, Ordering::AcqRel);
        if is_cut {
            self.is_done.store(false, Ordering::Release);
        }
        is_cut
    }

    pub async fn finished(&self) {
        let done = self.done.notified();
        tokio::pin!(done);
        // Enabled before the look, so that no end falls between the two.
        done.as_mut().enable();
        if !self.is_finished() {
            done.await;
        }
    }
}

#[cfg(test)]
mod tests;

//! What an upstream is like, learnt from its answers: latency, bandwidth, how often it has what it is
//! asked for, what building costs, and how this machine's costs compare with the recorded ones.
//!
//! Hits are counted by kind of question and not by class: Go's ActionID does not tell a class, so that
//! who asks does not know it. What a manifest lists has its own cost, which is of its class and more.
//!
//! Everything fades, by samples and with age, towards what is assumed of an upstream nobody knows.
//! Times are passed in. `format` says how it is kept over a restart.

use crate::cache::policy::ask::{Decision, Known, Upstream};
use crate::entry::Digest;
use crate::units::Timestamp;

mod format;
mod unsettled;
mod window;

use unsettled::Unsettled;
use window::Window;

/// After so long half of what was learnt is forgotten: a night leaves a quarter, a weekend nothing.
const HALF_LIFE_H: f64 = 6.0;
/// After so many answers an older one counts half: enough to tell one hit in fifty from none.
const HALF_LIFE_ANSWERS: f64 = 64.0;
/// The same for costs, which lie orders of magnitude apart.
const HALF_LIFE_COSTS: f64 = 256.0;
/// The same for speed, which changes with what else the machine does.
const HALF_LIFE_SPEEDS: f64 = 32.0;
/// Answers that what is assumed of the hit rate counts as.
const PRIOR_ANSWERS: f64 = 4.0;
/// What takes less to build is idle to ask for, as what is bound to this machine.
const COST_LEAST_MS: u32 = 10;
/// Weight of one key in the share of idle ones. Go asks for all indexes of a build before the first
/// package: after three keys of one sort, more of it are expected.
const IDLE_STEP: f64 = 0.4;
/// Builds that are needed before their cost is believed.
const COSTS_LEAST: f64 = 3.0;
/// Pairs of costs that count as much as the assumption that machines are alike.
const PRIOR_SPEEDS: f64 = 4.0;
/// One link of a giant must not stand for all packages.
const COST_MAX_MS: f64 = 60_000.0;
/// Both costs of a pair: below, they are mostly scheduling.
const PAIR_LEAST_MS: u32 = 20;
const SPEED_LEAST: f64 = 0.1;
const SPEED_MOST: f64 = 10.0;
/// Smaller bodies arrive with the head and say nothing of the bandwidth, unless they take long.
const TRANSFER_LEAST_BYTES: u64 = 16 << 10;
const TRANSFER_LONG_MS: f64 = 100.0;
/// What arrives within a tick of the clock.
const TICK_MS: f64 = 0.5;

/// However many keys in a row were idle, the next one may not be.
const IDLE_MOST: f64 = 0.95;

/// Kinds of questions, which are answered unlike each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A manifest says that upstream has it.
    Listed,
    /// A manifest covers the build and does not have it.
    Unlisted,
    NoManifest,
}

impl Kind {
    /// What is assumed of the hit rate.
    const fn prior(self) -> f64 {
        match self {
            Self::Listed => 0.95,
            Self::Unlisted => 0.05,
            Self::NoManifest => 0.5,
        }
    }
}

impl From<&Known> for Kind {
    fn from(known: &Known) -> Self {
        match known {
            Known::Coming { .. } | Known::Listed { .. } => Self::Listed,
            Known::Unlisted => Self::Unlisted,
            Known::NoManifest => Self::NoManifest,
        }
    }
}

/// A count of answers and of hits among them, fading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Answers {
    all: f64,
    hits: f64,
    declined: u32,
}

/// A mean and how many samples it stands for, fading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Mean {
    value: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64, half_life: f64) {
        self.weight = self.weight * keep(half_life) + 1.0;
        self.value += (value - self.value) / self.weight;
    }
}

/// What one more sample leaves of the weight of those before it.
fn keep(half_life: f64) -> f64 {
    0.5_f64.powf(1.0 / half_life)
}

/// What is known of one upstream. Bounded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// When anything was last learnt.
    at: Timestamp,
    /// By `Kind`.
    answers: [Answers; 3],
    latencies_ms: Window,
    bytes_per_ms: Window,
    costs_ms: Mean,
    /// Share of the latest keys that were idle to ask for. Not kept: it changes in a moment.
    idle: f64,
    /// The logarithm of own cost / recorded cost.
    speeds: Mean,
    /// Not kept either.
    unsettled: Unsettled,
}

impl Statistics {
    /// Upstream has said whether it has the key that it was asked for, so long after the question.
    pub fn observe_answer(
        &mut self,
        key: &Digest,
        kind: Kind,
        is_hit: bool,
        latency_ms: f64,
        now: Timestamp,
    ) {
        self.observe_latency(latency_ms, now);
        if is_hit {
            self.unsettled.hit(key);
        } else if !self.unsettled.missed(key, kind) {
            return;
        }
        self.count(kind, is_hit);
    }

    /// Upstream has answered so long after the question; what it said is another's to tell.
    pub fn observe_latency(&mut self, latency_ms: f64, now: Timestamp) {
        self.fade(now);
        self.latencies_ms.push(latency_ms);
    }

    /// A question has ended so long after it was asked, and upstream has not said anything of use:
    /// refused, broken, silent. An answer would not have come sooner than those before it.
    pub fn observe_fault(&mut self, kind: Kind, after_ms: f64, now: Timestamp) {
        self.fade(now);
        let usual = self.latencies_ms.median().unwrap_or_default();
        self.latencies_ms.push(usual.max(after_ms));
        self.count(kind, false);
    }

    /// So many bytes have come in so long, whether or not they were all.
    pub fn observe_transfer(&mut self, bytes: u64, ms: f64, now: Timestamp) {
        if ms.is_nan() || bytes < TRANSFER_LEAST_BYTES && ms < TRANSFER_LONG_MS {
            return;
        }
        self.fade(now);
        self.bytes_per_ms.push(bytes as f64 / ms.max(TICK_MS));
    }

    /// A key was built here and took so long, after upstream was asked for it or was not. A key that
    /// is bound to this machine could not have been there: its absence says nothing of upstream, whether
    /// it is known already or comes later. One that took no time was put without a question, and says
    /// nothing of the keys that are asked for.
    pub fn observe_built(
        &mut self,
        key: &Digest,
        cost_ms: u32,
        is_bound: bool,
        is_asked: bool,
        now: Timestamp,
    ) {
        self.observe_settled(key, is_bound, is_asked);
        if cost_ms > 0 {
            self.observe_cost(cost_ms, is_bound, now);
        }
    }

    /// The same, as far as it tells of an answer: of what building costs another upstream is told.
    pub fn observe_settled(&mut self, key: &Digest, is_bound: bool, is_asked: bool) {
        if let Some(kind) = self.unsettled.built(key, is_bound, is_asked) {
            let answers = &mut self.answers[kind as usize];
            answers.all = (answers.all - 1.0).max(answers.hits);
        }
    }

    /// A hit from upstream has saved building a key, which took so long where it was built.
    #[expect(clippy::cast_possible_truncation, reason = "a minute at most, by ten")]
    pub fn observe_saved(&mut self, recorded_ms: u32, now: Timestamp) {
        let here = f64::from(recorded_ms).min(COST_MAX_MS) * self.speed(now);
        self.observe_cost(here.max(1.0).round() as u32, false, now);
    }

    /// A key was built here although its cost elsewhere is on record.
    pub fn observe_speed(&mut self, own_ms: u32, recorded_ms: u32, now: Timestamp) {
        if own_ms < PAIR_LEAST_MS || recorded_ms < PAIR_LEAST_MS {
            return;
        }
        self.fade(now);
        let ratio = f64::from(own_ms) / f64::from(recorded_ms);
        self.speeds.add(ratio.clamp(SPEED_LEAST, SPEED_MOST).ln(), HALF_LIFE_SPEEDS);
    }

    /// What was decided; every decision is told, so that one in some is a probe.
    pub const fn observe_decision(&mut self, kind: Kind, decision: Decision) {
        if let Decision::Build | Decision::Probe = decision {
            let answers = &mut self.answers[kind as usize];
            answers.declined = answers.declined.wrapping_add(1);
        }
    }

    /// What upstream is like now, for one kind of question.
    pub fn estimate(&self, kind: Kind, now: Timestamp) -> Upstream {
        let left = self.left_at(now);
        let answers = &self.answers[kind as usize];
        let (all, hits) = (answers.all * left, answers.hits * left);
        let latencies = self.latencies_ms.faded(left);
        // What is assumed fades as the first answers do, or a dead upstream would keep a chance.
        let heard = (all * (1.0 - keep(HALF_LIFE_ANSWERS))).min(1.0);
        let assumed = PRIOR_ANSWERS * (1.0 - heard) + f64::EPSILON;
        let rate = (hits + kind.prior() * assumed) / (all + assumed);
        // What is listed is known by its own cost.
        let idle = if kind == Kind::Listed { 0.0 } else { (self.idle * left).min(IDLE_MOST) };
        Upstream {
            latency_ms: latencies.median().unwrap_or_default(),
            bandwidth_bytes_per_ms: self.bytes_per_ms.faded(left).median().unwrap_or_default(),
            hit_rate: rate * (1.0 - idle),
            answers: all,
            samples: latencies.count(),
            declined: answers.declined,
        }
    }

    /// What a key of unknown cost takes to build here; zero if too few were built.
    #[expect(clippy::cast_possible_truncation, reason = "a mean of what is at most a minute")]
    pub fn typical_cost_ms(&self, now: Timestamp) -> u32 {
        let is_known = self.costs_ms.weight * self.left_at(now) >= COSTS_LEAST;
        if is_known { self.costs_ms.value.max(1.0).round() as u32 } else { 0 }
    }

    /// What building costs here relative to what is recorded.
    pub fn speed(&self, now: Timestamp) -> f64 {
        let weight = self.speeds.weight * self.left_at(now);
        let log = self.speeds.value * weight / (weight + PRIOR_SPEEDS);
        log.exp().clamp(SPEED_LEAST, SPEED_MOST)
    }

    fn observe_cost(&mut self, cost_ms: u32, is_bound: bool, now: Timestamp) {
        self.fade(now);
        let is_idle = is_bound || cost_ms < COST_LEAST_MS;
        self.idle += (f64::from(u8::from(is_idle)) - self.idle) * IDLE_STEP;
        if !is_idle {
            self.costs_ms.add(f64::from(cost_ms).min(COST_MAX_MS), HALF_LIFE_COSTS);
        }
    }

    fn count(&mut self, kind: Kind, is_hit: bool) {
        let answers = &mut self.answers[kind as usize];
        let keep = keep(HALF_LIFE_ANSWERS);
        answers.all = answers.all * keep + 1.0;
        answers.hits = answers.hits * keep + f64::from(u8::from(is_hit));
    }

    /// The share of what was learnt that is not forgotten yet.
    fn left_at(&self, now: Timestamp) -> f64 {
        let hours = now.since(self.at).as_secs_f64() / 3600.0;
        0.5_f64.powf(hours / HALF_LIFE_H)
    }

    fn fade(&mut self, now: Timestamp) {
        let left = self.left_at(now);
        self.at = now;
        for answers in &mut self.answers {
            answers.all *= left;
            answers.hits *= left;
        }
        self.idle *= left;
        self.costs_ms.weight *= left;
        self.speeds.weight *= left;
        self.latencies_ms = self.latencies_ms.faded(left);
        self.bytes_per_ms = self.bytes_per_ms.faded(left);
    }
}

#[cfg(test)]
mod tests;

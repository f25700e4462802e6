//! Ask, wait or build: what to do about a key that is not on this machine, while a build waits.
//!
//! Asking pays if what an answer saves, times how likely it is, is more than the wait for it, the more
//! the less time is left. One clock (`waiting`) bounds a session's waiting: what its hits have saved and
//! a second. It runs while at least one question waits, so each may be granted all that is left, and
//! none more.

use crate::cache::FETCH_WAIT;
use crate::entry::action::INLINE_FRAME_MAX;

/// What a session may wait for the network before any hit has saved anything.
pub const GRACE_MS: u64 = 1000;
/// With less than this left, a question has to pay more than it costs, and in the end so many times as
/// much: a build asks first for what costs little, and hits are all that fill the clock again.
const SCARCE_MS: u64 = 500;
const PRICE_MAX: f64 = 3.0;
/// A shorter deadline is spent on the way to the network and back to the build.
const LEAST_MS: u64 = 10;
/// What an answer may take at least, as a multiple of what is expected: most late ones are within it.
const PATIENCE: f64 = 4.0;
/// Scheduling alone may take this long on a busy machine.
const NOISE_MS: f64 = 25.0;
/// Where nothing is known: connecting and one answer at 100 ms, and half of the grace.
const CURIOUS_MS: u64 = 500;
/// Where nothing is known, what takes less to build is not worth a question to anybody.
const NEAR_MS: f64 = 5.0;
/// Next door is asked for whatever is there at least so often.
const HOPE: f64 = 0.01;
/// Of the questions that do not pay, each such one is asked in the background.
const PROBE_EVERY: u32 = 64;
/// The same where there is no manifest and so few answers are known: by a rate that is mostly assumed,
/// most of a build would be over before it is set right.
const PROBE_EARLY: u32 = 8;
const FEW_ANSWERS: f64 = 16.0;
/// Body of a key of which nothing is known: between the mean of all, 40 KiB, and of archives, 160.
const TYPICAL_BYTES: f64 = 65_536.0;
/// And one that is still waited for: the few that are large cost the most.
const LARGE_BYTES: f64 = 33_554_432.0;
/// 80 Mbit/s, until a transfer was measured.
const TYPICAL_BANDWIDTH: f64 = 10_000.0;
/// Cost of a compiled package in a large Go build, until some were measured.
const TYPICAL_COST_MS: u32 = 200;

/// What a session has waited for, questions that still wait included, and saved so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub waited_ms: u64,
    pub saved_ms: u64,
}

impl Account {
    /// What may still be waited.
    pub const fn left_ms(&self) -> u64 {
        self.saved_ms.saturating_add(GRACE_MS).saturating_sub(self.waited_ms)
    }
}

/// What a manifest says of a key. Costs are as recorded, zero if nobody measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is on its way, and expected in so long, if anybody can tell.
    Coming {
        cost_ms: u32,
        frame_bytes: u64,
        eta_ms: Option<u64>,
    },
    /// It exists upstream, and nobody is fetching it.
    Listed {
        cost_ms: u32,
        frame_bytes: u64,
    },
    /// A manifest covers this build and does not have it.
    Unlisted,
    NoManifest,
}

/// What an upstream is like, for one kind of question. See `statistics`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Upstream {
    /// From the question to the head of the answer.
    pub latency_ms: f64,
    /// Zero if not measured yet.
    pub bandwidth_bytes_per_ms: f64,
    /// Share of the questions that were hits, 0 to 1.
    pub hit_rate: f64,
    /// Answers to questions of this kind that the rate is taken from.
    pub answers: f64,
    /// Answers that the latency is taken from; zero: nothing is known of it.
    pub samples: u32,
    /// Questions of this kind that were not asked because it did not pay.
    pub declined: u32,
}

/// What to do about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Wait for what is coming.
    Wait { most_ms: u64 },
    /// Ask upstream for this key.
    Ask { most_ms: u64 },
    /// Answer that it misses.
    Build,
    /// Answer that it misses, and ask in the background to learn what upstream is like.
    Probe,
}

impl Decision {
    /// How long the build waits at most.
    pub const fn most_ms(self) -> u64 {
        match self {
            Self::Wait { most_ms } | Self::Ask { most_ms } => most_ms,
            Self::Build | Self::Probe => 0,
        }
    }
}

/// What would be done, if it pays and there is time.
#[derive(Clone, Copy, Debug)]
struct Plan {
    step: Step,
    /// How long it takes, by how likely a hit is, which takes longer than a miss.
    expected_ms: f64,
    /// How long a hit takes.
    hit_ms: f64,
    /// How long a late one takes, or a large one.
    late_ms: f64,
    /// Nobody knows: the latency has never been measured.
    is_blind: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Wait,
    Ask,
}

/// Ask, wait or build. `speed` is what building costs here relative to where the costs were recorded; `typical_cost_ms`
/// is what a key of unknown cost takes to build here, zero if nobody knows.
pub fn decide(
    known: &Known,
    upstream: &Upstream,
    account: &Account,
    speed: f64,
    typical_cost_ms: u32,
) -> Decision {
    let cost_ms = cost_of(known, sane(speed, 0.01, 100.0, 1.0), typical_cost_ms);
    let gain_ms = cost_ms * rate_of(upstream);
    let share_ms = account.left_ms().min(wait_max_ms());
    let Some(plan) = plan(known, upstream) else {
        return decline(known, upstream);
    };
    // Next door a question costs less than it is to guess wrongly; the clock bounds them all.
    let is_near = !plan.is_blind && plan.expected_ms <= NEAR_MS && rate_of(upstream) >= HOPE;
    let price = price_of(account.left_ms());
    if share_ms < LEAST_MS || plan.expected_ms * price >= gain_ms && !is_near {
        return decline(known, upstream);
    }
    // Waiting as long as building would have taken costs at most twice the better choice, where it is
    // known to be there: the last of a package that hits may have to wait for the link. One silent
    // answer is not to take all the time that is left.
    let worth_ms = match known {
        Known::Coming { .. } => cost_ms,
        Known::Listed { .. } => cost_ms.min(share_ms as f64 / 2.0),
        Known::Unlisted | Known::NoManifest => 0.0,
    };
    let late_ms = plan.late_ms.max(worth_ms);
    let most_ms = if plan.is_blind && plan.step == Step::Ask {
        share_ms.min(CURIOUS_MS)
    } else {
        let needed = whole_ms(plan.hit_ms);
        if share_ms < needed {
            // It would be cut off just before the answer.
            return decline(known, upstream);
        }
        whole_ms(late_ms.max(NOISE_MS)).max(needed).clamp(1, share_ms)
    };
    match plan.step {
        Step::Wait => Decision::Wait { most_ms },
        Step::Ask => Decision::Ask { most_ms },
    }
}

/// What a millisecond of waiting has to gain.
fn price_of(left_ms: u64) -> f64 {
    let spent = SCARCE_MS.saturating_sub(left_ms);
    1.0 + (PRICE_MAX - 1.0) * spent as f64 / SCARCE_MS as f64
}

/// A build it is, now and then with a question behind its back.
const fn decline(known: &Known, upstream: &Upstream) -> Decision {
    let every = match known {
        // Its coming tells what upstream is like.
        Known::Coming { .. } => return Decision::Build,
        Known::NoManifest if upstream.answers < FEW_ANSWERS => PROBE_EARLY,
        _ => PROBE_EVERY,
    };
    if upstream.declined.is_multiple_of(every) { Decision::Probe } else { Decision::Build }
}

/// What building the key here is expected to take.
fn cost_of(known: &Known, speed: f64, typical_cost_ms: u32) -> f64 {
    let typical = if typical_cost_ms == 0 { TYPICAL_COST_MS } else { typical_cost_ms };
    match *known {
        Known::Coming { cost_ms, .. } | Known::Listed { cost_ms, .. } if cost_ms > 0 => {
            f64::from(cost_ms) * speed
        }
        _ => f64::from(typical),
    }
}

/// None if nothing can be planned: whatever upstream is like, asking blindly is not likely to help.
fn plan(known: &Known, upstream: &Upstream) -> Option<Plan> {
    let is_blind = upstream.samples == 0;
    let (bytes, large) = match *known {
        Known::Coming { frame_bytes, .. } | Known::Listed { frame_bytes, .. } => {
            (frame_bytes as f64, PATIENCE * frame_bytes as f64)
        }
        Known::Unlisted | Known::NoManifest => (TYPICAL_BYTES, LARGE_BYTES),
    };
    let mut singly = asking(upstream, bytes, large, is_blind);
    let latency_ms = latency_of(upstream, is_blind);
    match known {
        // A package that hits has its output asked for next.
        Known::Unlisted | Known::NoManifest => singly.expected_ms += rate_of(upstream) * latency_ms,
        // The action says where the frame is.
        Known::Listed { frame_bytes, .. } if *frame_bytes > INLINE_FRAME_MAX as u64 => {
            singly.expected_ms += rate_of(upstream) * latency_ms;
            singly.hit_ms += latency_ms;
            singly.late_ms += latency_ms * PATIENCE;
        }
        Known::Listed { .. } | Known::Coming { .. } => {}
    }
    match *known {
        Known::Unlisted if is_blind => None,
        Known::Coming { eta_ms: Some(eta_ms), .. } => {
            let eta = eta_ms as f64;
            // Whoever asks for it joins its flight, and brings it forward.
            let late_ms = eta * PATIENCE;
            Some(Plan { step: Step::Wait, expected_ms: eta, hit_ms: eta, late_ms, is_blind: false })
        }
        Known::Coming { eta_ms: None, .. } => Some(Plan { step: Step::Wait, ..singly }),
        Known::Listed { .. } | Known::Unlisted | Known::NoManifest => Some(singly),
    }
}

fn asking(upstream: &Upstream, bytes: f64, large: f64, is_blind: bool) -> Plan {
    let (latency_ms, bandwidth) = (latency_of(upstream, is_blind), bandwidth_of(upstream));
    let transfer_ms = bytes / bandwidth;
    Plan {
        step: Step::Ask,
        expected_ms: latency_ms + rate_of(upstream) * transfer_ms,
        hit_ms: latency_ms + transfer_ms,
        late_ms: latency_ms * PATIENCE + large / bandwidth,
        is_blind,
    }
}

const fn rate_of(upstream: &Upstream) -> f64 {
    sane(upstream.hit_rate, 0.0, 1.0, 0.0)
}

const fn latency_of(upstream: &Upstream, is_blind: bool) -> f64 {
    let far = wait_max_ms() as f64;
    if is_blind { NEAR_MS } else { sane(upstream.latency_ms, 0.0, far, far) }
}

const fn bandwidth_of(upstream: &Upstream) -> f64 {
    let measured = upstream.bandwidth_bytes_per_ms;
    if measured > 0.0 { sane(measured, 0.001, 1e9, 0.001) } else { TYPICAL_BANDWIDTH }
}

/// The number within its limits, or what stands for one that is none.
const fn sane(number: f64, least: f64, most: f64, otherwise: f64) -> f64 {
    if number.is_nan() { otherwise } else { number.clamp(least, most) }
}

const fn wait_max_ms() -> u64 {
    FETCH_WAIT.as_secs() * 1000
}

#[expect(clippy::cast_possible_truncation, reason = "what is too large for it becomes the largest")]
fn whole_ms(ms: f64) -> u64 {
    ms.ceil() as u64
}

#[cfg(test)]
mod tests;

//! Plays a recorded session against an upstream that there is not, in a time that there is not, with
//! the real decisions, statistics and groups: what would the build take, and what would it wait for?
//!
//! Lanes take the session's rows in order, as `go` does with a job on each core. One link carries all
//! bodies, one after the other. What a lane does not get it builds, in the time that was recorded.

use std::time::Duration;

use crate::cache::policy::ask::{Account, Decision, Known, decide};
use crate::cache::policy::group::{Groups, Member, Needs, subkey};
use crate::cache::policy::statistics::{Kind, Statistics};
use crate::cache::policy::waiting::Waiting;
use crate::entry::Digest;
use crate::entry::action::INLINE_FRAME_MAX;
use crate::units::{Random, Timestamp};

mod tests;

/// When upstream says nothing for so long the guard gives a question up.
const SILENCE_MS: f64 = 2000.0;
/// When a body is given up that comes in too slowly.
const TRICKLE_MS: f64 = 4000.0;
/// What a lookup costs in any case, in the helper and in go.
const LOOKUP_MS: f64 = 0.5;
const SUBKEYS: [&str; 2] = ["stdout", "link-stdout"];

/// A recorded action with what was asked for after it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Holds for one machine: larder never sends it upstream, but go asks for it all the same.
    is_bound: bool,
    cost_ms: u32,
    frame_bytes: u64,
    subkey_bytes: Vec<u64>,
}

/// What is asked, and over what.
#[derive(Clone, Copy, Debug)]
pub(super) enum Upstream {
    /// Has this share of the rows.
    Well {
        latency_ms: f64,
        bytes_per_ms: f64,
        there: f64,
    },
    /// Refuses in a millisecond.
    Dead,
    BlackHole,
    /// Has everything, 5 ms away, and is a black hole from then on.
    Dies {
        after_ms: f64,
    },
    /// Has everything, says so in 5 ms, and then sends a byte a millisecond.
    Trickle,
}

/// What is known of upstream before.
#[derive(Clone, Copy, Debug)]
pub(super) enum Manifest {
    None,
    /// Lists this share of what is there.
    Lists(f64),
    /// Lists everything, and nothing of it has to be there.
    Stale,
    /// Lists everything that is there, and all of it is being fetched in order.
    Streams,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Policy {
    Never,
    Always,
    Larder(Manifest),
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    pub(super) wall_ms: f64,
    pub(super) waited_ms: u64,
    pub(super) saved_ms: u64,
    pub(super) questions: u32,
    pub(super) hits: u32,
    pub(super) probes: u32,
}

#[derive(Clone, Copy, Debug)]
enum Seen {
    Answer { key: Digest, kind: Kind, is_hit: bool, latency_ms: f64 },
    Transfer { bytes: u64, ms: f64 },
    Fault { kind: Kind, after_ms: f64 },
}

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    at: f64,
    /// The row and which of its keys: zero is the action.
    job: Option<(usize, usize)>,
    /// Whether what it waits for is a hit.
    waiting: Option<bool>,
    /// Whether upstream was asked for the job.
    is_asked: bool,
    is_over: bool,
}

pub(super) struct Game<'a> {
    rows: &'a [Row],
    upstream: Upstream,
    policy: Policy,
    lanes: Vec<Lane>,
    next_row: usize,
    /// When the link has carried all that it was given.
    link_free: f64,
    /// When each row comes by itself.
    arrivals: Vec<f64>,
    /// What flights will tell when they are there.
    seen: Vec<(f64, Seen)>,
    waits: Waiting,
    account: Account,
    groups: Groups,
    pub(super) statistics: Statistics,
    outcome: Outcome,
}

/// Plays a session from its first lookup to its last build.
pub(super) fn play(rows: &[Row], upstream: Upstream, policy: Policy, lanes: usize) -> Outcome {
    let mut game = Game::new(rows, upstream, policy, lanes);
    game.run()
}

impl<'a> Game<'a> {
    pub(super) fn new(rows: &'a [Row], upstream: Upstream, policy: Policy, lanes: usize) -> Self {
        let mut game = Self {
            rows,
            upstream,
            policy,
            lanes: vec![Lane::default(); lanes],
            next_row: 0,
            link_free: 0.0,
            arrivals: Vec::new(),
            seen: Vec::new(),
            waits: Waiting::default(),
            account: Account::default(),
            groups: Groups::default(),
            statistics: Statistics::default(),
            outcome: Outcome::default(),
        };
        if let (
            Upstream::Well { latency_ms, bytes_per_ms, .. },
            Policy::Larder(Manifest::Streams),
        ) = (upstream, policy)
        {
            let mut at = 2.0 * latency_ms;
            for (n, row) in rows.iter().enumerate() {
                let comes = game.is_there(n);
                at += if comes { row.frame_bytes as f64 / bytes_per_ms } else { 0.0 };
                game.arrivals.push(if comes { at } else { f64::INFINITY });
            }
        }
        game
    }

    pub(super) fn run(&mut self) -> Outcome {
        let earliest = |lanes: &[Lane]| {
            let left = lanes.iter().enumerate().filter(|(_, lane)| !lane.is_over);
            left.min_by(|a, b| a.1.at.total_cmp(&b.1.at)).map(|(n, _)| n)
        };
        while let Some(n) = earliest(&self.lanes) {
            let mut lane = self.lanes[n];
            self.learn(lane.at);
            self.step(&mut lane);
            self.lanes[n] = lane;
        }
        self.learn(f64::INFINITY);
        self.outcome.wall_ms = self.lanes.iter().map(|lane| lane.at).fold(0.0, f64::max);
        self.outcome.waited_ms = self.account.waited_ms;
        self.outcome.saved_ms = self.account.saved_ms;
        self.outcome
    }

    fn step(&mut self, lane: &mut Lane) {
        if let Some(is_hit) = lane.waiting.take() {
            self.account.waited_ms += self.waits.end(elapsed(lane.at));
            if is_hit { self.hit(lane) } else { self.build(lane) }
        } else if let Some((row, part)) = lane.job {
            lane.at += LOOKUP_MS;
            self.look_up(lane, row, part);
        } else if self.next_row < self.rows.len() {
            lane.job = Some((self.next_row, 0));
            self.next_row += 1;
        } else {
            lane.is_over = true;
        }
    }

    fn look_up(&mut self, lane: &mut Lane, row: usize, part: usize) {
        let member = match part {
            0 => Member::Stranger,
            _ => self.groups.of(&key_of(row, part)),
        };
        let has_come = self.arrivals.get(row).is_some_and(|at| *at <= lane.at);
        if has_come || member == Member::Empty {
            return self.hit(lane);
        }
        let known = member.refine(self.known(row, part, lane.at));
        let kind = Kind::from(&known);
        let decision = match self.policy {
            Policy::Never => Decision::Build,
            Policy::Always => Decision::Ask { most_ms: 10_000 },
            Policy::Larder(_) => {
                let now = stamp(lane.at);
                let upstream = self.statistics.estimate(kind, now);
                let (speed, cost) =
                    (self.statistics.speed(now), self.statistics.typical_cost_ms(now));
                // As a session counts: what waits still, and what is saved shared by its lanes.
                let account = Account {
                    waited_ms: self.account.waited_ms + self.waits.open_ms(elapsed(lane.at)),
                    saved_ms: self.account.saved_ms / self.lanes.len() as u64,
                };
                decide(&known, &upstream, &account, speed, cost)
            }
        };
        self.statistics.observe_decision(kind, decision);
        let (at, is_hit) = match decision {
            Decision::Build => return self.build(lane),
            Decision::Probe => {
                self.outcome.probes += 1;
                lane.is_asked = true;
                self.ask(row, part, kind, lane.at);
                return self.build(lane);
            }
            Decision::Ask { .. } => {
                self.outcome.questions += 1;
                self.ask(row, part, kind, lane.at)
            }
            Decision::Wait { .. } => (self.arrivals[row], true),
        };
        lane.is_asked = true;
        self.waits.begin(elapsed(lane.at));
        let until = lane.at + decision.most_ms() as f64;
        lane.waiting = Some(is_hit && at <= until);
        lane.at = at.min(until);
    }

    /// Sends a question: when it ends, and whether with a hit.
    fn ask(&mut self, row: usize, part: usize, kind: Kind, now: f64) -> (f64, bool) {
        let bytes = match part {
            0 => self.rows[row].frame_bytes,
            _ => self.rows[row].subkey_bytes[part - 1],
        };
        let is_there = self.is_there(row);
        let (latency_ms, is_hit, bytes_per_ms) = match self.upstream {
            Upstream::Well { latency_ms, bytes_per_ms, .. } => (latency_ms, is_there, bytes_per_ms),
            Upstream::Trickle => (5.0, is_there, 1.0),
            Upstream::Dies { after_ms } if now < after_ms => (5.0, is_there, 125_000.0),
            Upstream::Dead | Upstream::BlackHole | Upstream::Dies { .. } => {
                let is_dead = matches!(self.upstream, Upstream::Dead);
                let after_ms = if is_dead { 1.0 } else { SILENCE_MS };
                self.seen.push((now + after_ms, Seen::Fault { kind, after_ms }));
                return (now + after_ms, false);
            }
        };
        let head = now + latency_ms;
        let key = key_of(row, part);
        self.seen.push((head, Seen::Answer { key, kind, is_hit, latency_ms }));
        if !is_hit {
            return (head, false);
        }
        // The action says where a longer frame is.
        let apart = if bytes > INLINE_FRAME_MAX as u64 { latency_ms } else { 0.0 };
        let starts = (head + apart).max(self.link_free);
        let ms = bytes as f64 / bytes_per_ms;
        if matches!(self.upstream, Upstream::Trickle) && ms > TRICKLE_MS {
            let end = head + TRICKLE_MS;
            self.seen.push((end, Seen::Transfer { bytes: 4000, ms: TRICKLE_MS }));
            self.seen.push((end, Seen::Fault { kind, after_ms: end - now }));
            return (end, false);
        }
        self.link_free = starts + ms;
        self.seen.push((starts + ms, Seen::Transfer { bytes, ms: starts + ms - head - apart }));
        (starts + ms, true)
    }

    fn hit(&mut self, lane: &mut Lane) {
        let (row, part) = lane.job.unwrap();
        lane.is_asked = false;
        let Row { cost_ms, ref subkey_bytes, .. } = self.rows[row];
        let needs = if part == 0 { self.needs(row, lane.at) } else { Needs::Nothing };
        let key = key_of(row, part);
        self.account.saved_ms += u64::from(self.groups.hit(&key, cost_ms, needs));
        if part == 0 {
            self.outcome.hits += 1;
            self.statistics.observe_saved(cost_ms, stamp(lane.at));
        }
        lane.job = (part < subkey_bytes.len()).then_some((row, part + 1));
    }

    fn needs(&self, row: usize, now: f64) -> Needs {
        let Row { subkey_bytes, .. } = &self.rows[row];
        let is_known = !matches!(self.known(row, 0, now), Known::Unlisted | Known::NoManifest);
        if subkey_bytes.is_empty() {
            Needs::Nothing
        } else if is_known && subkey_bytes.iter().all(|bytes| *bytes == 0) {
            Needs::EmptyStdout
        } else {
            Needs::Stdout
        }
    }

    fn build(&mut self, lane: &mut Lane) {
        let (row, part) = lane.job.take().unwrap();
        let cost_ms = self.rows[row].cost_ms;
        lane.at += f64::from(cost_ms);
        let Row { is_bound, .. } = self.rows[row];
        let is_asked = std::mem::take(&mut lane.is_asked);
        let key = key_of(row, part);
        self.statistics.observe_built(&key, cost_ms, is_bound, is_asked, stamp(lane.at));
    }

    fn learn(&mut self, now: f64) {
        let mut news: Vec<_> = self.seen.extract_if(.., |(at, _)| *at <= now).collect();
        news.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (at, seen) in news {
            let at = stamp(at);
            match seen {
                Seen::Answer { key, kind, is_hit, latency_ms } => {
                    self.statistics.observe_answer(&key, kind, is_hit, latency_ms, at);
                }
                Seen::Transfer { bytes, ms } => self.statistics.observe_transfer(bytes, ms, at),
                Seen::Fault { kind, after_ms } => self.statistics.observe_fault(kind, after_ms, at),
            }
        }
    }

    fn known(&self, row: usize, part: usize, now: f64) -> Known {
        let Row { cost_ms, frame_bytes, is_bound, .. } = self.rows[row];
        let listed = Known::Listed { cost_ms, frame_bytes };
        let Policy::Larder(manifest) = self.policy else { return Known::NoManifest };
        match manifest {
            Manifest::None => Known::NoManifest,
            Manifest::Stale if !is_bound => listed,
            Manifest::Lists(share) if self.is_there(row) && chance(row, 2) < share => match part {
                0 => listed,
                _ => {
                    Known::Listed { cost_ms: 0, frame_bytes: self.rows[row].subkey_bytes[part - 1] }
                }
            },
            Manifest::Streams if self.is_there(row) => {
                let eta_ms = Some(whole(self.arrivals[row] - now));
                Known::Coming { cost_ms, frame_bytes, eta_ms }
            }
            Manifest::Stale | Manifest::Lists(_) | Manifest::Streams => Known::Unlisted,
        }
    }

    fn is_there(&self, row: usize) -> bool {
        match self.upstream {
            Upstream::Well { there, .. } => {
                // With everything there, so is what another cache would have taken in.
                there >= 1.0 || !self.rows[row].is_bound && chance(row, 1) < there
            }
            Upstream::Trickle | Upstream::Dies { .. } => !self.rows[row].is_bound,
            Upstream::Dead | Upstream::BlackHole => false,
        }
    }
}

fn id(row: usize) -> Digest {
    Digest::of(&u64::try_from(row).unwrap().to_le_bytes())
}

/// Of a row's key: zero is the action.
fn key_of(row: usize, part: usize) -> Digest {
    if part == 0 { id(row) } else { subkey(&id(row), SUBKEYS[part - 1]) }
}

/// A number in 0..1, the same for the same row and use.
fn chance(row: usize, of: u64) -> f64 {
    Random::new(u64::try_from(row).unwrap() * 4 + of).next_share()
}

#[expect(clippy::cast_possible_truncation, reason = "sessions take less than an age")]
fn whole(ms: f64) -> u64 {
    ms.round() as u64
}

fn elapsed(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
}

fn stamp(ms: f64) -> Timestamp {
    Timestamp(1_700_000_000_000_000_000 + whole(ms.min(1e9)) * 1_000_000)
}

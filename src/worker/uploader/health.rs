//! How an upstream is: how many uploads it gets at once, and whether it is left alone for a while.
//!
//! Pure: time comes in, decisions come out. Who sends what is decided in `lane`.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::BackendError;
use crate::units::Backoff;

const LIMIT_FIRST: usize = 4;
const LIMIT_MAX: usize = 32;
/// Below this a slower answer says more about this machine than about upstream.
const LATENCY_FLOOR: Duration = Duration::from_millis(5);
/// Share of a new sample in the smoothed latency, and how fast the best one is forgotten.
const SMOOTH: u32 = 8;
const FORGET: u32 = 256;

/// How many uploads go at once: one more after each clean round, half after trouble.
#[derive(Clone, Debug)]
pub(super) struct Aimd {
    limit: usize,
    clean: usize,
    recent: Option<Duration>,
    best: Option<Duration>,
}

impl Default for Aimd {
    fn default() -> Self {
        Self { limit: LIMIT_FIRST, clean: 0, recent: None, best: None }
    }
}

impl Aimd {
    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// An upload went well. `took` is known where its size does not explain its time. True if
    /// upstream has become so slow that fewer must go.
    pub(super) fn success(&mut self, took: Option<Duration>) -> bool {
        if let Some(took) = took
            && self.is_slow(took)
        {
            self.halve();
            return true;
        }
        self.clean += 1;
        if self.clean >= self.limit {
            self.clean = 0;
            self.limit = (self.limit + 1).min(LIMIT_MAX);
        }
        false
    }

    fn is_slow(&mut self, took: Duration) -> bool {
        let recent = self.recent.map_or(took, |recent| (recent * (SMOOTH - 1) + took) / SMOOTH);
        self.recent = Some(recent);
        // The best is forgotten slowly: the way to upstream may have changed for good.
        let best = self.best.map_or(recent, |best| (best + best / FORGET).min(recent));
        self.best = Some(best);
        recent > 2 * best.max(LATENCY_FLOOR)
    }

    pub(super) fn halve(&mut self) {
        self.limit = (self.limit / 2).max(1);
        self.clean = 0;
        // The same slow answers must not count twice.
        self.recent = None;
    }
}

/// Failures of different entries in a row that make it upstream's trouble.
const IN_A_ROW: u32 = 3;
pub(super) const PAUSE_FIRST: Duration = Duration::from_secs(1);
pub(super) const PAUSE_MOST: Duration = Duration::from_secs(60);
/// Gets are tried as often: what is owed until an upstream that is back is asked fills the store.
const REST_MOST: Duration = Duration::from_secs(30);
/// An upstream that takes no writes is asked again after this long.
const READ_ONLY_FOR: Duration = Duration::from_secs(3600);

/// Whose fault a failed upload is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// Nothing else would have got through: all wait, the entry is not held responsible.
    Upstream,
    /// All wait, and others go before this entry.
    Both,
    /// This entry waits; others are sent, unless they fail too.
    Entry,
    /// Too many at once.
    Load,
}

pub(super) const fn blame(error: &BackendError) -> Blame {
    match error {
        BackendError::Connect(_) | BackendError::BreakerOpen => Blame::Upstream,
        // One namespace may be denied where another is not, or one name be none.
        BackendError::Denied(_)
        | BackendError::ReadOnly
        | BackendError::Full
        | BackendError::Redirect(_)
        | BackendError::Unsure(_) => Blame::Both,
        BackendError::Deadline { .. }
        | BackendError::Status(_)
        | BackendError::Broken(_)
        | BackendError::TooLarge
        | BackendError::Unnameable => Blame::Entry,
        BackendError::Busy => Blame::Load,
    }
}

/// What is new about an upstream, worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    None,
    /// It takes no uploads, for a reason that was not said yet.
    Trouble,
    /// It takes uploads again.
    Well,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Health {
    pub(super) aimd: Aimd,
    backoff: Backoff,
    until: Option<Instant>,
    in_a_row: u32,
    /// Counts setbacks: attempts that began before one say nothing new about upstream.
    epoch: u64,
    is_read_only: bool,
    /// Uploads that were denied, one after the other.
    denied: u32,
    /// Different ones to which upstream said that nothing is written there, since one was taken; a few.
    unwritable: BTreeSet<u64>,
    /// The kind of trouble that was told, and its words.
    trouble: Option<std::mem::Discriminant<BackendError>>,
    last_error: Option<String>,
}

impl Health {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            aimd: Aimd::default(),
            backoff: Backoff::new(PAUSE_FIRST, REST_MOST, seed),
            until: None,
            in_a_row: 0,
            epoch: 0,
            is_read_only: false,
            denied: 0,
            unwritable: BTreeSet::new(),
            trouble: None,
            last_error: None,
        }
    }

    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) const fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Whether nothing that was tried since somebody asked for it was permitted; `jobs` are owed.
    pub(super) fn is_denying(&self, jobs: usize) -> bool {
        self.denied > 0 && self.denied as usize >= jobs.min(IN_A_ROW as usize)
    }

    /// Upstream has said to this upload that nothing is written there.
    pub(super) fn note_unwritable(&mut self, number: u64) {
        if self.unwritable.len() < IN_A_ROW as usize {
            self.unwritable.insert(number);
        }
    }

    /// Whether it has said so to all that are owed, or to enough of them; `jobs` are owed.
    pub(super) fn is_unwritable(&self, jobs: usize) -> bool {
        !self.unwritable.is_empty() && self.unwritable.len() >= jobs.min(IN_A_ROW as usize)
    }

    pub(super) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Until when upstream is left alone.
    pub(super) fn rests_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    pub(super) fn success(&mut self, took: Option<Duration>) -> News {
        if self.aimd.success(took) {
            self.epoch += 1;
        }
        self.in_a_row = 0;
        self.denied = 0;
        self.unwritable.clear();
        self.until = None;
        self.is_read_only = false;
        self.last_error = None;
        self.backoff.reset();
        if self.trouble.take().is_some() { News::Well } else { News::None }
    }

    /// An attempt that began in `epoch` failed.
    pub(super) fn failure(&mut self, error: &BackendError, epoch: u64, now: Instant) -> News {
        let blame = blame(error);
        let is_denied = matches!(error, BackendError::Denied(_));
        self.denied = if is_denied { self.denied.saturating_add(1) } else { 0 };
        self.last_error = Some(error.to_string());
        if blame == Blame::Entry {
            self.in_a_row += 1;
        }
        if epoch < self.epoch {
            return News::None;
        }
        self.epoch += 1;
        self.aimd.halve();
        let rests = match blame {
            Blame::Upstream | Blame::Both => true,
            Blame::Entry => self.in_a_row >= IN_A_ROW,
            Blame::Load => false,
        };
        if !rests {
            return News::None;
        }
        // One name may be none that can be written: all of them are not.
        let is_unwritable = matches!(error, BackendError::ReadOnly);
        self.is_read_only = is_unwritable && self.unwritable.len() >= IN_A_ROW as usize;
        let pause = if self.is_read_only { READ_ONLY_FOR } else { self.backoff.next_delay() };
        self.until = Some(now + pause);
        if is_unwritable && !self.is_read_only {
            return News::None;
        }
        let kind = std::mem::discriminant(error);
        if self.trouble.replace(kind) == Some(kind) { News::None } else { News::Trouble }
    }

    /// Somebody waits: forget the pauses, not what was learnt.
    pub(super) fn try_now(&mut self) {
        self.unwritable.clear();
        self.until = None;
        self.is_read_only = false;
        self.denied = 0;
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn clean_rounds_add_one_and_trouble_halves() {
        let mut aimd = Aimd::default();
        // Uploads that go well, and the limit after them.
        for (successes, limit) in [(3, 4), (1, 5), (5, 6), (2000, LIMIT_MAX)] {
            for _ in 0..successes {
                aimd.success(None);
            }
            assert_eq!(aimd.limit(), limit, "after {successes} more");
        }
        for limit in [16, 8, 4, 2, 1, 1] {
            aimd.halve();
            assert_eq!(aimd.limit(), limit);
        }
    }

    #[test]
    fn answers_twice_as_slow_as_the_best_halve_it_once() {
        let cases = [
            (20 * MS, 30 * MS, false),
            (20 * MS, 90 * MS, true),
            // What a busy machine does to a loopback is not upstream's doing.
            (MS / 5, 4 * MS, false),
        ];
        for (best, then, halved) in cases {
            let mut aimd = Aimd::default();
            for _ in 0..40 {
                assert!(!aimd.success(Some(best)));
            }
            let slow = (0..10).filter(|_| aimd.success(Some(then))).count();
            assert_eq!(slow > 0, halved, "{best:?} then {then:?}");
            assert!(slow < 10, "it halves not at every answer");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_outage_is_one_setback_however_many_attempts_it_ends() {
        let mut health = Health::new(1);
        let (now, epoch) = (Instant::now(), health.epoch());
        let down = || BackendError::Connect("refused".into());
        assert_eq!(health.failure(&down(), epoch, now), News::Trouble);
        let rests = health.rests_until(now).unwrap();
        assert!(rests <= now + PAUSE_FIRST);
        for _ in 0..3 {
            assert_eq!(health.failure(&down(), epoch, now), News::None);
        }
        assert_eq!(health.rests_until(now), Some(rests));
        assert_eq!(health.aimd.limit(), 2);
        assert_eq!(health.failure(&down(), health.epoch(), now), News::None, "told once");
        assert_eq!(health.failure(&BackendError::Denied(403), health.epoch(), now), News::Trouble);
        assert_eq!(health.success(None), News::Well);
        assert_eq!(health.rests_until(now), None);
    }

    /// A minute's rest after an outage of a minute and a half once made a small store full of what was owed.
    #[tokio::test(start_paused = true)]
    async fn however_long_an_upstream_was_down_it_rests_for_half_a_minute_at_most() {
        let (mut health, mut now) = (Health::new(1), Instant::now());
        for _ in 0..100 {
            health.failure(&BackendError::Connect("refused".into()), health.epoch(), now);
            let until = health.rests_until(now).unwrap();
            assert!(until - now <= Duration::from_secs(30), "{:?}", until - now);
            now = until;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_that_fails_alone_stops_nobody_else() {
        let now = Instant::now();
        type Errors = &'static [fn() -> BackendError];
        let cases: [(Errors, bool); 5] = [
            (&[|| BackendError::Status(500)], false),
            (&[|| BackendError::Status(500), || BackendError::Status(500)], false),
            (
                &[
                    || BackendError::Status(500),
                    || BackendError::Broken(String::new()),
                    || BackendError::Status(502),
                ],
                true,
            ),
            (&[|| BackendError::Busy, || BackendError::Busy, || BackendError::Busy], false),
            (&[|| BackendError::Full], true),
        ];
        for (errors, rests) in cases {
            let mut health = Health::new(1);
            for error in errors {
                health.failure(&error(), health.epoch(), now);
            }
            assert_eq!(health.rests_until(now).is_some(), rests, "{:?}", health.last_error());
        }
    }
}

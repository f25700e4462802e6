//! The uploads owed to one upstream, as far as they are in memory, and which of them may go now.
//!
//! Pure: nothing is sent or settled here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::entry::{Kind, RealmId};
use crate::store::index::Owed;
use crate::units::Backoff;
use crate::worker::uploader::health::{Health, PAUSE_FIRST, PAUSE_MOST};
use crate::worker::uploader::packer::WAITING_MAX;

/// Uploads held in memory; more of them wait in the journal.
pub(super) const JOBS_MAX: usize = 8192;
/// With so many that could go, no more are read.
const READY_ENOUGH: usize = 512;
/// What did not get through goes behind so many younger ones, each time.
const BEHIND: u64 = 64;
/// More than there are numbers at a time.
const DENIED_BEHIND: u64 = 1 << 48;
/// Contents from this size on are asked for before they are sent.
const ASK_SIZE_MIN: u64 = 64 << 10;
/// Fewer of them are sent as quickly as they are asked for.
const ASK_MIN: usize = 8;
/// Names in one question.
const ASK_MAX: usize = 512;

/// In which order uploads go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Oldest,
    /// As many as possible before the machine goes.
    Smallest,
}

/// Where an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    /// Upstream is being asked whether it has this.
    Asking,
    /// An attempt is under way.
    Flying,
}

/// An upload that is owed.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) owed: Owed,
    state: State,
    tries: u32,
    /// Since when it could not be read from disk.
    unreadable: Option<Instant>,
    /// Upstream was asked whether it has this.
    is_asked: bool,
    not_before: Option<Instant>,
    backoff: Backoff,
}

/// See the module.
pub(super) struct Lane {
    pub(super) upstream: Arc<str>,
    pub(super) health: Health,
    /// The journal was read up to this number.
    pub(super) cursor: u64,
    /// There was no more to read.
    pub(super) is_caught_up: bool,
    jobs: BTreeMap<u64, Job>,
    /// Contents that are owed, by realm: they hold back the actions behind them.
    contents: BTreeMap<RealmId, BTreeSet<u64>>,
    /// Entries that are not waiting: two attempts at one could leave the older bytes upstream.
    busy: HashSet<Vec<u8>>,
    /// Whose uploads were denied since somebody asked for all to be tried.
    denied: HashSet<RealmId>,
    /// Some of theirs stay in the journal.
    has_left: bool,
    attempts: usize,
    /// Attempts that wait for their packs: they ask nothing of upstream.
    pub(super) boarded: Arc<AtomicUsize>,
    is_asking: bool,
}

impl Lane {
    pub(super) fn new(upstream: Arc<str>, seed: u64) -> Self {
        Self {
            upstream,
            health: Health::new(seed),
            cursor: 0,
            is_caught_up: false,
            jobs: BTreeMap::new(),
            contents: BTreeMap::new(),
            busy: HashSet::new(),
            denied: HashSet::new(),
            has_left: false,
            attempts: 0,
            boarded: Arc::default(),
            is_asking: false,
        }
    }

    pub(super) fn insert(&mut self, number: u64, owed: Owed) {
        if self.jobs.contains_key(&number) {
            return;
        }
        if self.jobs.len() >= JOBS_MAX / 2 && self.denied.contains(&owed.realm) {
            // Others need the room; it is read again when something of it is permitted.
            self.has_left = true;
            return;
        }
        if owed.key.kind == Kind::Content {
            self.contents.entry(owed.realm).or_default().insert(number);
        }
        let job = Job {
            owed,
            state: State::Waiting,
            tries: 0,
            unreadable: None,
            is_asked: false,
            not_before: None,
            backoff: Backoff::new(PAUSE_FIRST, PAUSE_MOST, number),
        };
        self.jobs.insert(number, job);
    }

    pub(super) fn get(&self, number: u64) -> Option<&Job> {
        self.jobs.get(&number)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Upstream has taken this upload.
    pub(super) fn permit(&mut self, number: u64) {
        let Some(job) = self.jobs.get(&number) else { return };
        if self.denied.remove(&job.owed.realm) && std::mem::take(&mut self.has_left) {
            self.cursor = 0;
            self.is_caught_up = false;
        }
    }

    /// Upstream does not permit this upload: perhaps none of its realm.
    pub(super) fn deny(&mut self, number: u64) {
        if let Some(job) = self.jobs.get(&number) {
            self.denied.insert(job.owed.realm);
        }
    }

    /// Whether nothing that is owed is permitted, as far as was tried.
    pub(super) fn is_denied(&self) -> bool {
        self.health.is_denying(self.jobs.len())
            && self.is_caught_up
            && self.jobs.values().all(|job| self.denied.contains(&job.owed.realm))
    }

    /// Whether upstream writes nothing of what is owed to it, as far as was tried.
    pub(super) fn is_unwritable(&self) -> bool {
        self.health.is_read_only()
            || self.is_caught_up && self.health.is_unwritable(self.jobs.len())
    }

    /// Attempts under way.
    pub(super) const fn attempts(&self) -> usize {
        self.attempts
    }

    /// How many more may begin.
    pub(super) fn free(&self) -> usize {
        let boarded = self.boarded.load(Ordering::Relaxed).min(WAITING_MAX);
        (self.health.aimd.limit() + boarded).saturating_sub(self.attempts)
    }

    /// Whether another upload of the same entry is under way: of two, the older bytes may arrive last.
    pub(super) fn is_beside(&self, number: u64) -> bool {
        self.jobs.get(&number).is_some_and(|job| self.busy.contains(&job.owed.identity()))
    }

    pub(super) fn is_busy(&self, number: u64) -> bool {
        self.jobs.get(&number).is_some_and(|job| job.state != State::Waiting)
    }

    /// Whether more of the journal should be read.
    pub(super) fn wants_more(&self, order: Order, now: Instant) -> bool {
        if self.is_caught_up || self.jobs.len() >= JOBS_MAX {
            return false;
        }
        match order {
            Order::Smallest => true,
            Order::Oldest => {
                self.health.rests_until(now).is_none()
                    && (self.jobs.len() < READY_ENOUGH || self.permitted(now) < READY_ENOUGH)
            }
        }
    }

    /// How many may go now, up to enough, of realms that were not denied.
    fn permitted(&self, now: Instant) -> usize {
        let is_denied = |number: &u64| {
            self.jobs.get(number).is_some_and(|job| self.denied.contains(&job.owed.realm))
        };
        // What is denied stands last.
        let ready = self.ready(Order::Oldest, now, READY_ENOUGH);
        ready.iter().filter(|number| !is_denied(number)).count()
    }

    /// Up to `most` uploads that may go now. Promise 7: an action goes only when all contents of
    /// its realm that were owed before it are settled.
    pub(super) fn ready(&self, order: Order, now: Instant, most: usize) -> Vec<u64> {
        let all = self.jobs.iter().filter(|(number, job)| self.may_go(**number, job, now));
        match order {
            Order::Oldest => self.first_of(all, most),
            Order::Smallest => {
                let mut by_size: Vec<_> =
                    all.map(|(number, job)| (job.owed.size, *number)).collect();
                by_size.sort_unstable();
                by_size.truncate(most);
                by_size.into_iter().map(|(_, number)| number).collect()
            }
        }
    }

    /// Those whose turn comes first, of jobs in order of their numbers.
    fn first_of<'a>(
        &self,
        jobs: impl Iterator<Item = (&'a u64, &'a Job)>,
        most: usize,
    ) -> Vec<u64> {
        let (mut first, mut later) = (Vec::new(), BinaryHeap::new());
        for (number, job) in jobs {
            later.push(Reverse((self.turn(*number, job), *number)));
            // None that follows comes before these.
            while let Some(Reverse((turn, _))) = later.peek()
                && turn <= number
                && first.len() < most
            {
                first.extend(later.pop().map(|Reverse((_, number))| number));
            }
            if first.len() >= most {
                return first;
            }
        }
        let left = std::iter::from_fn(|| later.pop()).map(|Reverse((_, number))| number);
        first.extend(left.take(most - first.len()));
        first
    }

    /// Which has this turn goes before all that are higher: the oldest, but that what has not got through is
    /// behind some younger ones each time, and what is not permitted behind all. An upstream in trouble
    /// gets one at a time, and it must not always be the same.
    fn turn(&self, number: u64, job: &Job) -> u64 {
        let denied = if self.denied.contains(&job.owed.realm) { DENIED_BEHIND } else { 0 };
        number.saturating_add(u64::from(job.tries) * BEHIND).saturating_add(denied)
    }

    fn may_go(&self, number: u64, job: &Job, now: Instant) -> bool {
        job.state == State::Waiting
            && job.not_before.is_none_or(|at| at <= now)
            && !self.is_held_back(number, &job.owed)
            && !self.busy.contains(&job.owed.identity())
    }

    fn is_held_back(&self, number: u64, owed: &Owed) -> bool {
        owed.key.kind == Kind::Action
            && self
                .contents
                .get(&owed.realm)
                .and_then(BTreeSet::first)
                .is_some_and(|first| *first < number)
    }

    /// Contents that upstream should be asked for in one call, if that pays.
    pub(super) fn to_ask(&self, now: Instant) -> Option<Vec<u64>> {
        if self.is_asking {
            return None;
        }
        let wanted = |(number, job): (&u64, &Job)| {
            let is_large = job.owed.key.kind == Kind::Content
                && job.owed.size >= ASK_SIZE_MIN
                && !job.is_asked;
            (is_large && self.may_go(*number, job, now)).then_some(*number)
        };
        let numbers: Vec<u64> = self.jobs.iter().filter_map(wanted).take(ASK_MAX).collect();
        (numbers.len() >= ASK_MIN).then_some(numbers)
    }

    /// The question begins. No upload is asked for twice, whatever the answer.
    pub(super) fn ask(&mut self, numbers: &[u64]) {
        self.is_asking = true;
        for number in numbers {
            let Some(job) = self.jobs.get_mut(number) else { continue };
            job.is_asked = true;
            job.state = State::Asking;
            self.busy.insert(job.owed.identity());
        }
    }

    /// The question is answered: what upstream has may be removed, the rest goes on.
    pub(super) fn answered(&mut self, numbers: &[u64]) {
        self.is_asking = false;
        numbers.iter().for_each(|number| self.land(*number));
    }

    /// Notes that an attempt begins; false if it is not the first one.
    pub(super) fn launch(&mut self, number: u64) -> bool {
        let Some(job) = self.jobs.get_mut(&number) else { return true };
        job.state = State::Flying;
        job.tries += 1;
        self.attempts += 1;
        self.busy.insert(job.owed.identity());
        job.tries == 1
    }

    /// Nothing is left to do for this number.
    pub(super) fn remove(&mut self, number: u64) {
        self.land(number);
        let Some(job) = self.jobs.remove(&number) else { return };
        if job.owed.key.kind == Kind::Content
            && let Some(numbers) = self.contents.get_mut(&job.owed.realm)
        {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.contents.remove(&job.owed.realm);
            }
        }
    }

    /// What was under way is over; nothing about the entry says that it must wait.
    pub(super) fn land(&mut self, number: u64) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        match job.state {
            State::Waiting => return,
            State::Asking => {}
            State::Flying => self.attempts -= 1,
        }
        job.state = State::Waiting;
        job.unreadable = None;
        self.busy.remove(&job.owed.identity());
    }

    /// The attempt failed, and others go first for a while.
    pub(super) fn postpone(&mut self, number: u64, now: Instant) {
        self.land(number);
        if let Some(job) = self.jobs.get_mut(&number) {
            job.not_before = Some(now + job.backoff.next_delay());
        }
    }

    /// As `postpone`, because its bytes could not be read; for how long that has been so.
    pub(super) fn postpone_unreadable(&mut self, number: u64, now: Instant) -> Duration {
        let since = self.jobs.get(&number).and_then(|job| job.unreadable).unwrap_or(now);
        self.postpone(number, now);
        if let Some(job) = self.jobs.get_mut(&number) {
            job.unreadable = Some(since);
        }
        now - since
    }

    /// Somebody waits: no pauses, and the journal is read from its beginning.
    pub(super) fn try_now(&mut self) {
        self.health.try_now();
        self.denied.clear();
        self.cursor = 0;
        self.is_caught_up = false;
        for job in self.jobs.values_mut() {
            job.not_before = None;
            job.backoff.reset();
        }
    }

    /// When something may go that may not go now, if no attempt ends before.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        if self.jobs.is_empty() && self.is_caught_up {
            return None;
        }
        if let Some(until) = self.health.rests_until(now) {
            return Some(until);
        }
        let waiting = self.jobs.values().filter(|job| job.state == State::Waiting);
        waiting.filter_map(|job| job.not_before).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;

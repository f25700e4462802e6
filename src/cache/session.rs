//! Sessions: the requests of one build, counted together, and the clock that bounds its waiting.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::cache::forecast::Forecast;
use crate::cache::policy::ask::{Account, Decision, Known, Upstream, decide};
use crate::cache::policy::group::{Groups, Needs};
use crate::cache::policy::waiting::Waiting;
use crate::entry::{COST_MAX_MS, Class, Digest, Found, Lookup, RealmId, Why};
use crate::manifest::ROWS_MAX;
use crate::telemetry::metrics::{Counter, Gauge};
use crate::units::{Clock, Timestamp};
use crate::wire::go::Report;

mod all;

pub use all::{Opening, Sessions};

/// Commands of one scope and commit that follow each other so closely are one session.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(10);

/// Counters of one session.
#[derive(Debug)]
pub struct Session {
    pub id: Arc<str>,
    pub realm: RealmId,
    pub scope: Arc<str>,
    pub commit: Arc<str>,
    pub branch: Arc<str>,
    pub default_branch: Arc<str>,
    /// What the commit was made from; not known before a helper has said it.
    pub parents: OnceLock<Vec<Arc<str>>>,
    pub started: Timestamp,
    /// When the last helper left, in seconds since 1970; zero while one is there.
    pub ended: Gauge,
    helpers: Counter,
    left: Counter,
    pub hits_near: Counter,
    pub hits_upstream: Counter,
    pub misses: Counter,
    /// Those of them that were built because that is quicker than to ask.
    pub misses_policy: Counter,
    /// Those of what is sent nowhere: it misses on every machine, and is built again.
    pub misses_local: Counter,
    /// Those of what the manifests of this build do not name.
    pub misses_new: Counter,
    pub puts: Counter,
    pub bytes_in: Counter,
    pub saved_ms: Counter,
    pub waited_ms: Counter,
    /// What earlier builds foretell of this one, if it is known what is built.
    pub forecast: Option<Arc<Forecast>>,
    questions: Mutex<Questions>,
    log: Mutex<Log>,
    processors: u64,
    /// Whether all its helpers may write upstream: only then is what they used written down.
    writes: AtomicBool,
    clock: Clock,
}

/// The questions that upstream is asked for a build.
#[derive(Debug, Default)]
struct Questions {
    waiting: Waiting,
    groups: Groups,
    /// What was asked for, until it hits or is built.
    asked: HashSet<Digest>,
}

/// Answers that are remembered as asked for.
const ASKED_MAX: usize = 16 << 10;

/// What a build has used, in order of first use.
#[derive(Debug, Default)]
struct Log {
    order: Vec<Digest>,
    seen: HashSet<Digest>,
    /// So many were written into a manifest.
    written: usize,
}

/// A wait that the session's clock bounds. Dropping it ends the wait.
#[derive(Debug)]
pub struct Wait<'a> {
    session: &'a Session,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let now = self.session.clock.elapsed();
        let mut questions = self.session.questions();
        // Under the lock: else the wait would for a moment be neither going on nor counted.
        self.session.waited_ms.add(questions.waiting.end(now));
    }
}

impl Session {
    fn questions(&self) -> MutexGuard<'_, Questions> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a hit saves is shared by all processors that would have built it.
    fn account(&self, questions: &Questions) -> Account {
        let open_ms = questions.waiting.open_ms(self.clock.elapsed());
        Account {
            waited_ms: self.waited_ms.get() + open_ms,
            saved_ms: self.saved_ms.get() / self.processors,
        }
    }

    fn begin(&self, questions: &mut Questions) -> Wait<'_> {
        questions.waiting.begin(self.clock.elapsed());
        Wait { session: self }
    }

    /// Ask, wait or build; the wait that follows must not outlive the decision's time.
    pub fn decide(
        &self,
        action: &Digest,
        known: &Known,
        upstream: &Upstream,
        speed: f64,
        typical_cost_ms: u32,
    ) -> (Decision, Option<Wait<'_>>) {
        let mut questions = self.questions();
        let account = self.account(&questions);
        let decision = decide(known, upstream, &account, speed, typical_cost_ms);
        let is_asked = matches!(decision, Decision::Ask { .. } | Decision::Probe);
        if is_asked && questions.asked.len() < ASKED_MAX {
            questions.asked.insert(*action);
        }
        let wait = (decision.most_ms() > 0).then(|| self.begin(&mut questions));
        (decision, wait)
    }

    /// A wait for what is listed, as long as the clock and `most` permit.
    pub fn wait(&self, most: Duration) -> Option<(Duration, Wait<'_>)> {
        let mut questions = self.questions();
        let most = Duration::from_millis(self.account(&questions).left_ms()).min(most);
        (!most.is_zero()).then(|| (most, self.begin(&mut questions)))
    }

    /// What is known of a key of which a manifest says `known`, once its action has hit.
    pub fn refine(&self, action: &Digest, known: Known) -> Known {
        self.questions().groups.of(action).refine(known)
    }

    /// Whether this was asked for; forgets it.
    pub fn asked(&self, action: &Digest) -> bool {
        self.questions().asked.remove(action)
    }

    /// Notes that a build has used an entry of its own realm.
    pub fn used(&self, action: Digest) {
        if let Some(forecast) = &self.forecast {
            forecast.used(&action);
        }
        let mut log = self.log();
        if log.order.len() < ROWS_MAX && log.seen.insert(action) {
            log.order.push(action);
        }
    }

    /// A helper that may not write, or was told not to, has joined.
    pub fn writes_nothing(&self) {
        self.writes.store(false, Ordering::Relaxed);
    }

    pub fn may_write(&self) -> bool {
        self.writes.load(Ordering::Relaxed)
    }

    /// Whether there is more than was written, and somebody who may write it.
    fn is_owing(&self) -> bool {
        let log = self.log();
        self.forecast.is_some() && self.may_write() && log.order.len() > log.written
    }

    /// What was used, in order of first use, if there is more than was written.
    pub fn unwritten(&self) -> Option<Vec<Digest>> {
        let log = self.log();
        (log.order.len() > log.written).then(|| log.order.clone())
    }

    /// The first `count` uses are in a manifest.
    pub fn written(&self, count: usize) {
        self.log().written = count;
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a hit has saved: an archive is compiled again unless its output is there too.
    fn saves(&self, action: &Digest, lookup: &Lookup) -> u64 {
        let Lookup::Hit(blob, _) = lookup else { return 0 };
        let needs = if blob.meta.class == Class::Archive { Needs::Stdout } else { Needs::Nothing };
        let mut questions = self.questions();
        questions.asked.remove(action);
        u64::from(questions.groups.hit(action, blob.meta.cost_ms.min(COST_MAX_MS), needs))
    }

    /// Counts what a lookup in the daemon came to.
    pub fn count(&self, action: &Digest, lookup: &Lookup) {
        let saved = self.saves(action, lookup);
        self.saved_ms.add(saved);
        match lookup {
            Lookup::Hit(blob, Found::Upstream) => {
                self.hits_upstream.inc();
                self.bytes_in.add(blob.meta.size);
            }
            // Its bytes count where they were asked for: what is fetched ahead counts all of them.
            Lookup::Hit(_, Found::Coalesced) => self.hits_upstream.inc(),
            Lookup::Hit(_, Found::Memory | Found::Disk | Found::Native) => self.hits_near.inc(),
            Lookup::Miss(why) => {
                self.misses.inc();
                self.misses_policy.add(u64::from(*why == Why::Policy));
            }
        }
    }

    /// Counts what a miss has come to, now that it is built and its nature is known.
    pub fn count_built(&self, action: &Digest, is_local: bool) {
        let word = self.forecast.as_ref().map(|forecast| forecast.word(action, 0.0, 0.0));
        self.misses_local.add(u64::from(is_local));
        self.misses_new.add(u64::from(!is_local && matches!(word, Some(Known::Unlisted))));
    }

    /// Adds what a helper has answered by itself since its last report.
    pub fn add(&self, before: &Report, now: &Report) {
        let hits = |r: &Report| r.hits_index + r.hits_native;
        self.hits_near.add(hits(now).saturating_sub(hits(before)));
        self.saved_ms.add(now.saved_ms.saturating_sub(before.saved_ms));
    }

    /// What a helper's `Hello` knows of the commit's parents, which may be nothing yet.
    fn hear_opening(&self, opening: &Opening<'_>) {
        if !opening.parents.is_empty() {
            self.parents_are(opening.parents);
        }
    }

    /// The first that are named count: all helpers of a session build one commit. None at all may mean
    /// that git would not say.
    pub fn parents_are(&self, ids: &[String]) {
        if ids.is_empty() {
            if let Some(forecast) = &self.forecast {
                forecast.parents_are(&[]);
            }
            return;
        }
        let parents =
            self.parents.get_or_init(|| ids.iter().map(|id| id.as_str().into()).collect());
        if let Some(forecast) = &self.forecast {
            forecast.parents_are(parents);
        }
    }

    pub fn helper_came(&self) {
        self.helpers.inc();
        self.ended.set(0);
        if let Some(forecast) = &self.forecast {
            forecast.want();
        }
    }

    pub fn helper_left(&self, at: Timestamp) {
        self.left.inc();
        if let Some(forecast) = &self.forecast {
            forecast.unwant();
        }
        if self.left.get() >= self.helpers.get() {
            self.ended.set(at.seconds());
        }
    }

    /// Whether a command that nobody has put into this session comes too late for it.
    fn is_long_over(&self, now_s: u64) -> bool {
        !self.is_live() && self.ended.get() + FOLLOWS_WITHIN.as_secs() < now_s
    }

    /// Lets go of what was used, once that is written down and nobody is there: what counts stays.
    fn release(&self) {
        *self.log() = Log::default();
        *self.questions() = Questions::default();
        // Another session may share it.
        if let Some(forecast) = self.forecast.as_ref().filter(|forecast| !forecast.is_wanted()) {
            forecast.release();
        }
    }

    pub fn is_live(&self) -> bool {
        self.left.get() < self.helpers.get()
    }
}

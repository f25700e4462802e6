//! Sends upstream what is owed to it: content before the actions that name it, oldest first.
//!
//! One task owns all of it: it reads the journal, decides what may go, holds the attempts under way
//! and settles them. While nothing is owed it sleeps until a put wakes it. An upload stays in the
//! journal until upstream has it or it is given up, so that this task may end or panic anywhere.
//!
//! Order of reading: `uploads` (who waits), `journal`, `lane` and `health` (decisions), `attempt`,
//! then this file.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep, sleep_until};

use crate::backend::{BackendError, Name};
use crate::cache::Cache;
use crate::cache::realm::Upstream;
use crate::telemetry::metrics::Dropped;
use crate::worker::desk::Desk;
use crate::worker::uploader::attempt::{Attempt, Outcome, Packing};
use crate::worker::uploader::journal::{Journal, drop_owed, is_expired};
use crate::worker::uploader::lacking::Lacking;
use crate::worker::uploader::lane::{Lane, Order};

mod attempt;
#[cfg(test)]
pub(super) mod bench;
mod health;
mod journal;
mod lacking;
mod land;
mod lane;
mod packer;
#[cfg(test)]
mod tests;
mod uploads;

pub(super) use uploads::Uploads;

/// A build puts in bursts: what comes within this time travels together.
const GATHER: Duration = Duration::from_millis(25);
/// What nobody takes is looked at again, so that it expires and settings are noticed.
const STUCK_LOOK_EVERY: Duration = Duration::from_secs(3600);

/// Uploads until it is told to end.
pub(super) async fn run(cache: Cache, uploads: Arc<Uploads>, desk: Arc<Desk>) {
    Uploader::new(cache, uploads.clone(), desk, Journal::default()).run().await;
    uploads.publish_end();
}

type Panic = Box<dyn Any + Send>;

/// What was under way and is over.
struct Landed {
    lane: usize,
    /// The lane's epoch when it began.
    epoch: u64,
    what: What,
}

enum What {
    Attempt(u64, Result<Outcome, Panic>),
    Question(Vec<u64>, Result<Result<Vec<bool>, BackendError>, Panic>),
}

struct Uploader {
    cache: Cache,
    uploads: Arc<Uploads>,
    desk: Arc<Desk>,
    upstreams: Vec<Upstream>,
    /// One for each upstream, in their order.
    lanes: Vec<Lane>,
    journal: Journal,
    packing: Arc<Packing>,
    lacking: Arc<Lacking>,
    flying: FuturesUnordered<BoxFuture<'static, Landed>>,
    heard: u64,
    stuck_looked: Instant,
}

impl Uploader {
    fn new(cache: Cache, uploads: Arc<Uploads>, desk: Arc<Desk>, journal: Journal) -> Self {
        let upstreams = cache.realms().upstreams().to_vec();
        let seed = cache.clock().now().0;
        let lanes = upstreams.iter().map(|u| Lane::new(u.name.clone(), seed)).collect();
        Self {
            cache,
            uploads,
            desk,
            upstreams,
            lanes,
            journal,
            packing: Arc::default(),
            lacking: Arc::default(),
            flying: FuturesUnordered::new(),
            heard: 0,
            stuck_looked: Instant::now(),
        }
    }

    async fn run(mut self) {
        let mut shutdown = self.cache.tasks().shutdown_signal();
        loop {
            self.desk.woke();
            self.hear();
            if self.uploads.is_ending() {
                return;
            }
            let order = self.order();
            // One moment for the whole round: what is not due now must be due later.
            let now = Instant::now();
            let has_more = self.journal.refill(&self.cache, &mut self.lanes, order, now);
            self.launch_all(order, now);
            self.publish();
            let due = self.next_due(now);
            tokio::select! {
                biased;
                () = shutdown.wait() => return,
                Some(landed) = self.flying.next(), if !self.flying.is_empty() => {
                    self.land(landed);
                    self.land_others();
                }
                () = self.cache.owed() => self.wake().await,
                () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
                () = tokio::task::yield_now(), if has_more => {}
            }
        }
    }

    fn order(&self) -> Order {
        if self.uploads.is_draining() { Order::Smallest } else { Order::Oldest }
    }

    /// Something is owed, or somebody waits.
    async fn wake(&mut self) {
        let is_asked = self.uploads.requested() > self.heard || self.uploads.is_draining();
        if self.flying.is_empty() && !is_asked {
            sleep(GATHER).await;
        }
        self.journal.has_news();
        for lane in &mut self.lanes {
            lane.is_caught_up = false;
        }
    }

    fn hear(&mut self) {
        let requested = self.uploads.requested();
        let is_time = self.journal.has_stuck() && self.stuck_looked.elapsed() >= STUCK_LOOK_EVERY;
        if requested > self.heard || is_time {
            self.journal.start_again();
            self.stuck_looked = Instant::now();
        }
        if requested > self.heard {
            self.heard = requested;
            self.lanes.iter_mut().for_each(Lane::try_now);
        }
    }

    fn launch_all(&mut self, order: Order, now: Instant) {
        for lane in 0..self.lanes.len() {
            // What has expired goes without an attempt and leaves its place to the next one.
            while self.launch_in(lane, order, now) {}
        }
    }

    /// Starts what may go to one upstream; true if it dropped something instead.
    fn launch_in(&mut self, at: usize, order: Order, now: Instant) -> bool {
        let today = self.cache.clock().now();
        let lane = &self.lanes[at];
        if lane.health.rests_until(now).is_some() {
            return false;
        }
        if let Some(numbers) = lane.to_ask(now) {
            self.ask(at, numbers);
        }
        let lane = &self.lanes[at];
        let free = lane.free();
        let mut has_dropped = false;
        for number in self.lanes[at].ready(order, now, free) {
            let Some(job) = self.lanes[at].get(number) else { continue };
            // One that was launched just now: the entry was put twice since it was looked.
            if self.lanes[at].is_beside(number) {
                continue;
            }
            if is_expired(&job.owed, today) {
                drop_owed(&self.cache, number, Dropped::Expired);
                self.lanes[at].remove(number);
                has_dropped = true;
            } else {
                self.launch(at, number);
            }
        }
        has_dropped
    }

    fn launch(&mut self, at: usize, number: u64) {
        let lane = &mut self.lanes[at];
        let Some(job) = lane.get(number) else { return };
        // A realm is known for as long as the process lives.
        let Some(realm) = self.cache.realms().by_id(job.owed.realm) else { return };
        let attempt = Attempt {
            cache: self.cache.clone(),
            realm,
            upstream: self.upstreams[at].clone(),
            packing: self.packing.clone(),
            lacking: self.lacking.clone(),
            uploads: self.uploads.clone(),
            boarded: lane.boarded.clone(),
            number,
            owed: job.owed.clone(),
        };
        if !lane.launch(number) {
            self.cache.metrics().upload_retries.inc();
        }
        let epoch = lane.health.epoch();
        // An entry that makes its attempt panic must not take the others with it.
        let outcome = AssertUnwindSafe(attempt.run()).catch_unwind();
        let landed = outcome.map(move |outcome| Landed {
            lane: at,
            epoch,
            what: What::Attempt(number, outcome),
        });
        self.flying.push(landed.boxed());
    }

    /// Asks in one call which contents upstream has.
    fn ask(&mut self, at: usize, numbers: Vec<u64>) {
        let lane = &mut self.lanes[at];
        lane.ask(&numbers);
        let mut asked = Vec::with_capacity(numbers.len());
        let mut names: Vec<Name> = Vec::with_capacity(numbers.len());
        for number in numbers {
            let Some(job) = lane.get(number) else { continue };
            let Some(realm) = self.cache.realms().by_id(job.owed.realm) else { continue };
            names.push(realm.name_of(&job.owed.key));
            asked.push(number);
        }
        let epoch = lane.health.epoch();
        let backend = self.upstreams[at].backend.clone();
        let answer = async move { backend.contains(&names).await };
        let landed = AssertUnwindSafe(answer).catch_unwind().map(move |answer| Landed {
            lane: at,
            epoch,
            what: What::Question(asked, answer),
        });
        self.flying.push(landed.boxed());
    }

    /// When to look again though nothing happens; None: never.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let stuck = self.journal.has_stuck().then(|| self.stuck_looked + STUCK_LOOK_EVERY);
        self.lanes.iter().filter_map(|lane| lane.next_due(now)).chain(stuck).min()
    }

    fn publish(&self) {
        let is_open = |lane: &Lane| !lane.is_empty() || !lane.is_caught_up;
        // What an upstream that takes no writes, or not ours, is owed can wait for nothing.
        let is_refusing = |lane: &Lane| lane.is_unwritable() || lane.is_denied();
        let has_work = !self.journal.is_caught_up()
            || self
                .lanes
                .iter()
                .any(|lane| lane.attempts() > 0 || is_open(lane) && !is_refusing(lane));
        let told = |lane: &Lane| {
            let error = lane.health.last_error().filter(|_| is_open(lane))?;
            let upstream = self.cache.metrics().upstream(&lane.upstream);
            // That it was not asked does not say why.
            let cause = upstream.trouble().filter(|_| upstream.state() != "closed");
            let cause = cause.filter(|cause| **cause != *error);
            let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
            Some(format!("upstream `{}`: {error}{cause}", lane.upstream))
        };
        let mut why: Vec<String> = self.lanes.iter().filter_map(told).collect();
        why.extend(self.journal.reasons());
        let attempts: usize = self.lanes.iter().map(Lane::attempts).sum();
        let mut state = match (attempts, has_work) {
            (0, false) => "idle".to_owned(),
            (0, true) => "waiting".to_owned(),
            (attempts, _) => format!("{attempts} uploads under way"),
        };
        for reason in &why {
            state.push_str("; ");
            state.push_str(reason);
        }
        self.desk.set_state(state);
        self.uploads.publish(self.heard, has_work, why);
    }
}

//! The guard around a backend: every deadline, limit and retry, and the breaker.
//!
//! Whatever upstream does, a caller has an answer within a bounded time, and a dead upstream is
//! soon not asked at all. Here is the path of each request; what it decides by are pure parts:
//! `breaker` (ask at all?), `budget` (retry?), `progress` (fast enough?), over `window`; `received`
//! watches a body after its headers. What transfers bytes lies inside; who repeats uploads, outside.

use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use crate::backend::{Backend, BackendError, Fetched, FetchedPart, Name, Upload};
use crate::telemetry::metrics::Upstream;
use crate::units::{Random, show_duration};

mod breaker;
mod budget;
mod leave;
mod limits;
mod progress;
mod received;
mod window;

#[cfg(test)]
mod put_tests;
#[cfg(test)]
mod tests;

use breaker::{Asks, Breaker, Outcome, State};
use budget::Budget;
use leave::Leave;
pub use limits::Config;
use progress::Sending;
use received::Received;

/// What `small_get` applies to: a second's worth at the floor.
const SMALL_BODY_BYTES: u64 = 64 << 10;
/// Far below the deadline that the second attempt shares with the first.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(100);
/// Asked in one call: few enough that `contains` is a bound for any backend.
const CONTAINS_BATCH: usize = 64;

/// A backend that always answers in time.
pub struct Guard {
    inner: Arc<dyn Backend>,
    shared: Arc<Shared>,
    gets: Arc<Semaphore>,
    puts: Arc<Semaphore>,
}

struct Shared {
    name: String,
    config: Config,
    upstream: Arc<Upstream>,
    /// Where the breaker's and the budget's time begins.
    started: Instant,
    judges: Mutex<Judges>,
    /// Bodies that wait for upstream's next bytes now: these share the link.
    waiting: AtomicUsize,
}

/// What decides; locked for a few instructions and never across an await.
struct Judges {
    breaker: Breaker,
    budget: Budget,
    random: Random,
}

impl Guard {
    pub fn new(
        inner: Arc<dyn Backend>,
        name: &str,
        config: Config,
        upstream: Arc<Upstream>,
        seed: u64,
    ) -> Self {
        let mut random = Random::new(seed);
        let breaker = Breaker::new(random.next_u64());
        Self {
            inner,
            gets: Arc::new(Semaphore::new(config.gets_max.max(1))),
            puts: Arc::new(Semaphore::new(config.puts_max.max(1))),
            shared: Arc::new(Shared {
                name: name.to_owned(),
                config,
                upstream,
                started: Instant::now(),
                judges: Mutex::new(Judges { breaker, budget: Budget::default(), random }),
                waiting: AtomicUsize::new(0),
            }),
        }
    }

    /// A place and leave to ask, or why not. A broken upstream is known before waiting for a place.
    async fn enter(&self, who: Asks) -> Result<(Leave, OwnedSemaphorePermit), BackendError> {
        if self.shared.with_breaker(|breaker, now| breaker.is_refusing(who, now)) {
            return Err(BackendError::BreakerOpen);
        }
        let seats = match who {
            Asks::Get => &self.gets,
            Asks::Put => &self.puts,
        };
        let seat = timeout(self.shared.config.seat_wait, seats.clone().acquire_owned())
            .await
            .map_err(|_| BackendError::Busy)?
            .expect("the semaphore is never closed");
        let ticket = self.shared.with_breaker(|breaker, now| breaker.ask(who, now));
        let ticket = ticket.ok_or(BackendError::BreakerOpen)?;
        self.shared.count_request();
        Ok((Leave::new(self.shared.clone(), ticket, who), seat))
    }

    async fn guarded_get(
        &self,
        name: &Name,
        want: Want,
    ) -> Result<Option<FetchedPart>, BackendError> {
        let (mut leave, seat) = self.enter(Asks::Get).await?;
        let upstream = &self.shared.upstream;
        upstream.gets.inc();
        let asked = Instant::now();
        let limit = self.shared.config.first_byte;
        let answer = timeout(limit, self.get_twice(name, want))
            .await
            .unwrap_or_else(|_| Err(deadline("answer", limit)));
        if answer.is_ok() {
            upstream.latency.record(asked.elapsed());
        }
        match answer {
            Ok(Some(FetchedPart { is_whole, fetched })) => {
                let len = fetched.len;
                let chunks = Box::pin(Received::new(fetched, leave, seat, asked));
                Ok(Some(FetchedPart { is_whole, fetched: Fetched { len, chunks } }))
            }
            Ok(None) => {
                leave.good();
                Ok(None)
            }
            Err(error) => Err(leave.fail(error)),
        }
    }

    /// Once more where no connection came about: then upstream has not seen the request, and what
    /// comes twice is only the connecting.
    async fn get_twice(
        &self,
        name: &Name,
        want: Want,
    ) -> Result<Option<FetchedPart>, BackendError> {
        let get = || async {
            match want.clone() {
                Want::Part(part) => self.inner.get_part(name, part).await,
                Want::Whole => Ok(self.inner.get(name).await?.map(FetchedPart::whole)),
                Want::Fresh => Ok(self.inner.get_fresh(name).await?.map(FetchedPart::whole)),
                Want::FreshPart(part) => self.inner.get_fresh_part(name, part).await,
            }
        };
        let first = get().await;
        if !matches!(first, Err(BackendError::Connect(_))) {
            return first;
        }
        let Some(pause) = self.shared.take_retry() else { return first };
        self.shared.upstream.retries.inc();
        sleep(pause).await;
        get().await
    }

    async fn guarded_put(&self, name: &Name, body: Upload) -> Result<(), BackendError> {
        let (mut leave, _seat) = self.enter(Asks::Put).await?;
        self.shared.upstream.puts.inc();
        let (len, rest) = (body.len, self.shared.config.put_answer);
        let sending = Sending::new();
        let end = sending.end(len, self.shared.config.floor_bytes_per_s, rest);
        let putting = self.inner.put(name, sending.watch(body, &self.shared.upstream));
        let answer = sending.answer(putting, rest, end, || leave.prove()).await;
        let answer = answer.unwrap_or_else(|| Err(deadline("answer to an upload", rest)));
        match answer {
            Ok(()) => {
                leave.good();
                Ok(())
            }
            Err(error) if sending.is_ours() => {
                // Our own disk kept upstream waiting: that says nothing about upstream.
                leave.settle(Outcome::Unknown);
                Err(error)
            }
            Err(error) => {
                let says_little = match &error {
                    // A full disk, a name that is a directory: it may serve what it cannot store.
                    BackendError::Status(_) => true,
                    // What went on to its end was the link's pace.
                    BackendError::Deadline { .. } => sending.is_moving(len, rest),
                    _ => false,
                };
                Err(if says_little {
                    leave.fail_as(error, Outcome::Unknown)
                } else {
                    leave.fail(error)
                })
            }
        }
    }

    async fn guarded_contains(&self, names: &[Name]) -> Result<Vec<bool>, BackendError> {
        let mut found = Vec::with_capacity(names.len());
        for batch in names.chunks(CONTAINS_BATCH) {
            let (mut leave, _seat) = self.enter(Asks::Get).await?;
            let limit = self.shared.config.contains;
            let answer = timeout(limit, self.inner.contains(batch))
                .await
                .unwrap_or_else(|_| Err(deadline("answer", limit)));
            match answer {
                Ok(part) => found.extend(part),
                Err(error) => return Err(leave.fail(error)),
            }
            leave.good();
        }
        Ok(found)
    }
}

impl Backend for Guard {
    fn get<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<Option<Fetched>, BackendError>> {
        self.guarded_get(name, Want::Whole).map(whole).boxed()
    }

    fn get_fresh<'a>(
        &'a self,
        name: &'a Name,
    ) -> BoxFuture<'a, Result<Option<Fetched>, BackendError>> {
        self.guarded_get(name, Want::Fresh).map(whole).boxed()
    }

    fn get_fresh_part<'a>(
        &'a self,
        name: &'a Name,
        part: Range<u64>,
    ) -> BoxFuture<'a, Result<Option<FetchedPart>, BackendError>> {
        self.guarded_get(name, Want::FreshPart(part)).boxed()
    }

    fn get_part<'a>(
        &'a self,
        name: &'a Name,
        part: Range<u64>,
    ) -> BoxFuture<'a, Result<Option<FetchedPart>, BackendError>> {
        self.guarded_get(name, Want::Part(part)).boxed()
    }

    fn put<'a>(&'a self, name: &'a Name, body: Upload) -> BoxFuture<'a, Result<(), BackendError>> {
        self.guarded_put(name, body).boxed()
    }

    fn contains<'a>(&'a self, names: &'a [Name]) -> BoxFuture<'a, Result<Vec<bool>, BackendError>> {
        self.guarded_contains(names).boxed()
    }
}

impl Shared {
    fn judges(&self) -> MutexGuard<'_, Judges> {
        self.judges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Uses the breaker, and tells operators if that changed its state.
    fn with_breaker<T>(&self, act: impl FnOnce(&mut Breaker, Duration) -> T) -> T {
        let mut judges = self.judges();
        // Read under the lock, so that the breaker's time never runs backwards.
        let now = self.now();
        let before = judges.breaker.state();
        let result = act(&mut judges.breaker, now);
        let after = judges.breaker.state();
        if before != after {
            // Still locked: else the gauge could keep the older of two changes.
            self.announce(before, after, now);
        }
        result
    }

    fn announce(&self, before: State, after: State, now: Duration) {
        let name = self.name.as_str();
        match after {
            State::Closed => {
                self.upstream.breaker.set(0);
                tracing::info!(upstream = name, "upstream is well again");
            }
            State::HalfOpen { probe } => {
                self.upstream.breaker.set(1);
                // Not for every probe that was given up.
                if probe.is_some() && matches!(before, State::Open { .. }) {
                    tracing::info!(upstream = name, "probing upstream with one request");
                }
            }
            State::Open { until } => {
                self.upstream.breaker.set(2);
                self.upstream.breaker_opened.inc();
                let pause = show_duration(until.saturating_sub(now));
                let why = self.upstream.trouble().unwrap_or_default();
                let why = &*why;
                tracing::warn!(upstream = name, pause, why, "upstream is in trouble and not asked");
            }
        }
    }

    fn count_request(&self) {
        let now = self.now();
        self.judges().budget.count_request(now);
    }

    /// How long to pause before a retry, if there may be one.
    fn take_retry(&self) -> Option<Duration> {
        let now = self.now();
        let mut judges = self.judges();
        let may = judges.budget.take_retry(now);
        may.then(|| RETRY_PAUSE_MAX.mul_f64(judges.random.next_share()))
    }
}

/// What is asked for of an object.
#[derive(Clone)]
enum Want {
    Whole,
    Part(Range<u64>),
    /// The same, as they are now at their source.
    Fresh,
    FreshPart(Range<u64>),
}

type Got<T> = Result<Option<T>, BackendError>;

fn whole(got: Got<FetchedPart>) -> Got<Fetched> {
    got.map(|found| found.map(|found| found.fetched))
}

fn deadline(phase: &'static str, limit: Duration) -> BackendError {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    BackendError::Deadline { phase, limit_ms }
}

//! Where a worker sits: its name, its state for `/status`, and who starts it again when it panics.
//!
//! What a worker does is its own business.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep};

use crate::cache::Cache;
use crate::telemetry::log;
use crate::telemetry::metrics::Counter;
use crate::units::Backoff;
use crate::worker::WorkerStatus;

/// Between a panic and the next start.
const RESTART_FIRST: Duration = Duration::from_secs(1);
const RESTART_MOST: Duration = Duration::from_secs(60);
/// A worker that lived this long was well; its next panic is a new story.
const WELL_AFTER: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub(super) struct Desk {
    name: &'static str,
    runs: Counter,
    panics: Counter,
    state: Mutex<String>,
}

impl Desk {
    pub(super) fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            name,
            runs: Counter::default(),
            panics: Counter::default(),
            state: Mutex::new("idle".to_owned()),
        })
    }

    /// The worker woke up.
    pub(super) fn woke(&self) {
        self.runs.inc();
    }

    /// A panic was caught, here or in a part of the work.
    pub(super) fn panicked(&self, cache: &Cache, panic: &(dyn Any + Send)) {
        self.panics.inc();
        cache.metrics().panics.inc();
        log::panicked(self.name, panic);
    }

    pub(super) fn set_state(&self, state: impl Into<String>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state.into();
    }

    pub(super) fn status(&self) -> WorkerStatus {
        WorkerStatus {
            name: self.name,
            state: self.state.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            runs: self.runs.get(),
            panics: self.panics.get(),
        }
    }
}

/// Runs `life` in a task; starts it again after a panic, until it ends or the process goes down.
pub(super) fn staff<F>(desk: &Arc<Desk>, cache: &Cache, life: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (desk, cache) = (desk.clone(), cache.clone());
    let tasks = cache.tasks().clone();
    let mut shutdown = tasks.shutdown_signal();
    tasks.spawn(desk.name, async move {
        let mut backoff = Backoff::new(RESTART_FIRST, RESTART_MOST, cache.clock().now().0);
        loop {
            let started = Instant::now();
            let Err(panic) = AssertUnwindSafe(life()).catch_unwind().await else { break };
            desk.panicked(&cache, panic.as_ref());
            if started.elapsed() > WELL_AFTER {
                backoff.reset();
            }
            desk.set_state("waiting to start again after a panic");
            tokio::select! {
                () = shutdown.wait() => break,
                () = sleep(backoff.next_delay()) => {}
            }
        }
        desk.set_state("stopped");
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::uploader::bench::{Bench, until};

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_panics_is_counted_and_starts_again() {
        let bench = Bench::new();
        let cache = bench.cache(&bench.open());
        let desk = Desk::new("worker");
        let starting = desk.clone();
        staff(&desk, &cache, move || {
            let desk = starting.clone();
            async move {
                desk.woke();
                assert!(desk.runs.get() > 2, "a panic on purpose");
            }
        });
        until(|| desk.status().state == "stopped").await;
        let status = desk.status();
        assert_eq!((status.runs, status.panics, cache.metrics().panics.get()), (3, 2, 2));
        bench.close(&cache).await;
    }
}

//! Tasks and threads: each has a name, an owner that waits for it, and hears of the shutdown.
//!
//! The only place that spawns. A panic is caught here, counted and logged, and ends its task alone.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;

use crate::telemetry::log;

/// Whether the process is going down; cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    pub fn is_on(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once the process is going down.
    pub async fn wait(&mut self) {
        // An error means that the owner is gone, which is a shutdown too.
        let _ = self.0.wait_for(|on| *on).await;
    }
}

/// The owner of tasks: spawns them, tells them to stop, waits for them.
#[derive(Clone, Debug)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    runtime: tokio::runtime::Handle,
    shutdown: watch::Sender<bool>,
    /// How many tasks are alive.
    alive: watch::Sender<usize>,
    panics: AtomicU64,
}

impl Tasks {
    /// Tasks of the runtime that this is called in.
    pub fn new() -> Self {
        Self::on(tokio::runtime::Handle::current())
    }

    pub fn on(runtime: tokio::runtime::Handle) -> Self {
        Self {
            inner: Arc::new(Inner {
                runtime,
                shutdown: watch::Sender::new(false),
                alive: watch::Sender::new(0),
                panics: AtomicU64::new(0),
            }),
        }
    }

    pub fn shutdown_signal(&self) -> Shutdown {
        Shutdown(self.inner.shutdown.subscribe())
    }

    /// Tells every task to stop; does not wait.
    pub fn begin_shutdown(&self) {
        self.inner.shutdown.send_replace(true);
    }

    /// Runs `future` as a task that `drain` waits for.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn(
        &self,
        name: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> tokio::task::AbortHandle {
        let alive = Alive::new(self.inner.clone());
        let handle = self.inner.runtime.spawn(async move {
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                alive.0.panics.fetch_add(1, Ordering::Relaxed);
                log::panicked(name, panic.as_ref());
            }
        });
        handle.abort_handle()
    }

    /// Runs blocking work off the reactor. None if it panicked.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let alive = Alive::new(self.inner.clone());
        let done = self.inner.runtime.spawn_blocking(move || {
            let _counted = alive;
            work()
        });
        match done.await {
            Ok(value) => Some(value),
            Err(error) => {
                self.inner.panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!(task = name, %error, "blocking work did not finish");
                None
            }
        }
    }

    /// How many tasks have panicked.
    pub fn panics(&self) -> u64 {
        self.inner.panics.load(Ordering::Relaxed)
    }

    pub fn alive(&self) -> usize {
        *self.inner.alive.borrow()
    }

    /// Waits until every task has ended, at most `deadline`; returns how many are left.
    pub async fn drain(&self, deadline: Duration) -> usize {
        let mut alive = self.inner.alive.subscribe();
        let _ = tokio::time::timeout(deadline, alive.wait_for(|n| *n == 0)).await;
        self.alive()
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts a task for as long as it lives, even if it panics.
struct Alive(Arc<Inner>);

impl Alive {
    fn new(inner: Arc<Inner>) -> Self {
        inner.alive.send_modify(|n| *n += 1);
        Self(inner)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.send_modify(|n| *n -= 1);
    }
}

/// Starts a thread with a name. Its owner joins it.
#[expect(clippy::disallowed_methods, reason = "the one place that starts threads")]
pub fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

//! Tasks and threads: each has a name, an owner that waits for it, and hears of the shutdown. Polite
//! threads are waited for while they are at work; idle they hold nothing but tables, and end by themselves.
//!
//! The only place that spawns. A panic is caught here, counted and logged, and ends its task alone.

use std::future::Future;
use std::num::NonZero;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::telemetry::log;

mod polite;
pub mod sync;

use polite::Polite;

/// More lanes than this serve nobody faster.
const LANES_MAX: usize = 16;

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
    runtime: Handle,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shutdown: watch::Sender<bool>,
    /// How many tasks are alive.
    alive: watch::Sender<usize>,
    panics: AtomicU64,
    /// Blocking work is done where it is asked for.
    is_inline: bool,
    polite: Arc<Polite>,
}

impl Tasks {
    /// Tasks of the runtime that this is called in.
    pub fn new() -> Self {
        Self::on(Handle::current())
    }

    pub fn on(runtime: Handle) -> Self {
        Self::with(runtime, false)
    }

    /// For simulations: blocking work is done at once, in the thread that asks for it, so that things
    /// happen in the same order each time.
    pub fn inline() -> Self {
        Self::with(Handle::current(), true)
    }

    fn with(runtime: Handle, is_inline: bool) -> Self {
        Self {
            runtime,
            inner: Arc::new(Inner {
                shutdown: watch::Sender::new(false),
                alive: watch::Sender::new(0),
                panics: AtomicU64::new(0),
                is_inline,
                polite: Arc::default(),
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
    pub fn spawn(
        &self,
        name: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> sync::AbortHandle {
        let alive = Alive::new(self.inner.clone());
        sync::spawn(&self.runtime, async move {
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                alive.0.panics.fetch_add(1, Ordering::Relaxed);
                log::panicked(name, panic.as_ref());
            }
        })
    }

    /// Runs blocking work off the reactor. None if it panicked.
    pub async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let alive = Alive::new(self.inner.clone());
        if self.inner.is_inline {
            return Some(work());
        }
        let done = sync::spawn_blocking(&self.runtime, move || {
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

    /// Runs blocking work that nobody waits for, on a thread that has the processors when nobody else
    /// wants them: how many there are at once is up to who asks. On a kernel that groups processes by
    /// session, that is among the daemon's own threads. None if it panicked.
    pub async fn polite<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if self.inner.is_inline {
            return Some(work());
        }
        let polite = self.inner.polite.clone();
        // Waited for as blocking work is, so that a paused clock stands still meanwhile.
        self.blocking(name, move || polite.run(work)).await
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

/// Threads that each turn their own few tasks, for connections: a request that is answered from memory
/// is read, answered and written by one thread, which nobody else has to be woken for.
///
/// What may take long, and what outlives a connection, belongs to the `Tasks` that these came from.
#[derive(Debug)]
pub struct Lanes {
    /// Each with how many connections it has.
    lanes: Vec<(Tasks, Arc<AtomicUsize>)>,
    /// Where the search for the quietest begins, so that equal ones take turns.
    next: AtomicUsize,
    /// The lanes' threads end when this goes, or with the process. They are not joined: one that a
    /// dead disk holds up must not hold up the end.
    _open: watch::Sender<()>,
}

/// A connection's place in a lane, for as long as it lives.
#[derive(Debug)]
pub struct Lane {
    pub tasks: Tasks,
    open: Arc<AtomicUsize>,
}

impl Lanes {
    /// As many as there are processors, under this name. Their tasks are counted among those of `tasks`.
    /// An error: a thread cannot be started.
    pub fn start(tasks: &Tasks, name: &str) -> std::io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(2, NonZero::get).min(LANES_MAX);
        let open = watch::Sender::new(());
        let start = |_| {
            let mut closed = open.subscribe();
            let (tell, told) = std::sync::mpsc::channel();
            // Made on its thread: a runtime must not be dropped where others run.
            thread(name, move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
                // Nobody hears of it only if the daemon ends just now.
                let _ = tell.send(
                    runtime
                        .as_ref()
                        .map(|runtime| runtime.handle().clone())
                        .map_err(|error| std::io::Error::new(error.kind(), error.to_string())),
                );
                if let Ok(runtime) = runtime {
                    // An error is what it waits for: the sender is gone.
                    runtime.block_on(async { while closed.changed().await.is_ok() {} });
                }
            })?;
            let handle = told.recv().map_err(std::io::Error::other)??;
            Ok((Tasks { runtime: handle, inner: tasks.inner.clone() }, Arc::default()))
        };
        let lanes = (0..count).map(start).collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self { lanes, next: AtomicUsize::new(0), _open: open })
    }

    /// A place in the lane with the fewest connections.
    pub fn enter(&self) -> Lane {
        let (before, after) =
            self.lanes.split_at(self.next.fetch_add(1, Ordering::Relaxed) % self.lanes.len());
        let lanes = after.iter().chain(before);
        let quietest = lanes.min_by_key(|(_, open)| open.load(Ordering::Relaxed));
        let (tasks, open) = quietest.unwrap_or(&self.lanes[0]).clone();
        open.fetch_add(1, Ordering::Relaxed);
        Lane { tasks, open }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether our starter wants this signal ignored, as `nohup` does: then it is not ours to hear, and
/// what we start inherits that. Where there is no /proc, none is taken to be.
pub fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// Starts a thread with a name. Its owner joins it, or says why not.
#[expect(clippy::disallowed_methods, reason = "the one place that starts threads")]
pub fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_runs_in_a_lane_is_counted_by_the_owner_and_a_panic_ends_one_task_alone() {
        let tasks = Tasks::new();
        let lanes = Lanes::start(&tasks, "lane").unwrap();
        let (sender, mut names) = tokio::sync::mpsc::channel(64);
        for n in 0..32 {
            let sender = sender.clone();
            lanes.enter().tasks.spawn("test", async move {
                assert!(n % 2 == 0, "every other one falls");
                let thread = std::thread::current().name().map(str::to_owned);
                sender.send(thread).await.unwrap();
            });
        }
        drop(sender);
        let mut count = 0;
        while let Some(name) = names.recv().await {
            assert_eq!(name.as_deref(), Some("lane"));
            count += 1;
        }
        assert_eq!(
            (count, tasks.drain(Duration::from_secs(10)).await, tasks.panics()),
            (16, 0, 16)
        );
    }

    #[tokio::test]
    async fn a_connection_gets_the_lane_with_the_fewest() {
        let lanes = Lanes::start(&Tasks::new(), "lane").unwrap();
        let count = lanes.lanes.len();
        // Every other one is short, as a probe is: those that stay are spread all the same.
        let mut staying = Vec::new();
        for _ in 0..4 * count {
            staying.push(lanes.enter());
            drop(lanes.enter());
        }
        let open = || lanes.lanes.iter().map(|(_, open)| open.load(Ordering::Relaxed));
        assert_eq!(open().collect::<Vec<_>>(), vec![4; count]);
        drop(staying);
        assert_eq!(open().sum::<usize>(), 0);
    }
}

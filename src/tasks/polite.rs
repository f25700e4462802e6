//! Threads for work that nobody waits for: they have the processors when nobody else wants them.
//!
//! One that is done stays for a while, with what it has made for itself: a compressor's tables cost more
//! than most of what it packs. How many there are at once is up to who asks.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::thread;

/// What others leave of the processors is enough. The kernel derives the priority of the thread's disk
/// accesses from it.
#[cfg(target_os = "linux")]
pub(super) const POLITE: i32 = 19;
/// A thread that has had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// Those that are there, and idle ones among them, the latest last.
#[derive(Debug, Default)]
pub(super) struct Polite {
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    threads: Vec<(u64, Sender<Job>)>,
    next: u64,
}

impl Polite {
    /// Has it done by a thread that is idle, or by a new one, and waits. A panic goes on in the caller.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (tell, told) = mpsc::channel();
        let job = move || {
            // It is waited for below.
            let _ = tell.send(catch_unwind(AssertUnwindSafe(work)));
        };
        // Where no thread can be started it is done here.
        self.begin(Box::new(job)).unwrap_or_else(|job| job());
        match told.recv() {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => unreachable!("a job tells before it ends, and is not dropped before"),
        }
    }

    /// The job comes back if there is no thread for it.
    fn begin(self: &Arc<Self>, job: Job) -> Result<(), Job> {
        let (number, idle) = {
            let mut idle = self.idle();
            idle.next += 1;
            (idle.next, idle.threads.pop())
        };
        if let Some((_, thread)) = idle {
            return thread.send(job).map_err(|refused| refused.0);
        }
        let (sender, jobs) = mpsc::channel();
        let (all, own) = (self.clone(), sender.clone());
        match thread("polite", move || all.work(number, &own, &jobs)) {
            Ok(_) => sender.send(job).map_err(|refused| refused.0),
            Err(_) => Err(job),
        }
    }

    /// Does what comes, until nothing has come for a while.
    fn work(&self, number: u64, own: &Sender<Job>, jobs: &Receiver<Job>) {
        give_way();
        let mut next = jobs.recv().ok();
        while let Some(job) = next {
            job();
            self.idle().threads.push((number, own.clone()));
            next = match jobs.recv_timeout(IDLE) {
                Ok(job) => Some(job),
                Err(_) if self.retire(number) => None,
                // Whoever has taken it off the list just now is about to send.
                Err(_) => jobs.recv().ok(),
            };
        }
    }

    /// Takes it off the list; false if it is not on it.
    fn retire(&self, number: u64) -> bool {
        let mut idle = self.idle();
        let at = idle.threads.iter().position(|(other, _)| *other == number);
        at.map(|at| idle.threads.remove(at)).is_some()
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets all others go before this thread. Elsewhere than on Linux it would be the whole process.
fn give_way() {
    #[cfg(target_os = "linux")]
    // Where it is refused, the work is done all the same.
    let _ = rustix::process::setpriority_process(None, POLITE);
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::tasks::Tasks;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn polite_work_has_what_others_leave_of_the_processors() {
        let tasks = Tasks::new();
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        assert_eq!(tasks.polite("test", nice).await, Some(POLITE));
        assert_eq!(nice(), before, "other threads keep theirs");
        assert_eq!(tasks.polite("test", || panic!("it falls")).await, None::<()>);
        assert_eq!((tasks.drain(Duration::from_secs(10)).await, tasks.panics()), (0, 1));
    }

    #[tokio::test]
    async fn a_polite_thread_that_is_idle_does_the_next_work() {
        let tasks = Tasks::new();
        let name = || std::thread::current().id();
        let first = tasks.polite("test", name).await;
        assert!(first.is_some());
        // It tells before it is on the list again.
        let idle = || tasks.inner.polite.idle().threads.len();
        while idle() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(tasks.polite("test", name).await, first);
        let both = Arc::new(Barrier::new(2));
        let meet = |both: Arc<Barrier>| move || both.wait().is_leader();
        let (a, b) = (meet(both.clone()), meet(both));
        let leaders = tokio::join!(tasks.polite("test", a), tasks.polite("test", b));
        assert_eq!(leaders.0.map(|is| !is), leaders.1, "two at once are two threads");
    }
}

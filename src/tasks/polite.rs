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
/// A thread that has had nothing to do for so long ends. What it holds meanwhile is tables.
const IDLE: Duration = Duration::from_secs(5);

/// Work, and then the word that it is done.
type Job = Box<dyn FnOnce() -> Tell + Send>;
type Tell = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
pub(super) struct Polite {
    idle: Mutex<Idle>,
    ends_after: Duration,
}

/// The idle ones, the latest last.
#[derive(Debug, Default)]
struct Idle {
    threads: Vec<(u64, Sender<Job>)>,
    begun: u64,
}

impl Default for Polite {
    fn default() -> Self {
        Self { idle: Mutex::default(), ends_after: IDLE }
    }
}

impl Polite {
    /// Has it done by a thread that is idle, or by a new one, and waits. A panic goes on in the caller.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (tell, told) = mpsc::channel();
        let job = move || {
            let result = catch_unwind(AssertUnwindSafe(work));
            // It is waited for below.
            Box::new(move || drop(tell.send(result))) as Tell
        };
        // Where no thread can be started it is done here.
        if let Err(job) = self.begin(Box::new(job)) {
            job()();
        }
        match told.recv() {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => unreachable!("a job is done before it is dropped"),
        }
    }

    /// The job comes back if there is no thread for it.
    fn begin(self: &Arc<Self>, job: Job) -> Result<(), Job> {
        let number = {
            let mut idle = self.idle();
            if let Some((_, thread)) = idle.threads.pop() {
                drop(idle);
                return thread.send(job).map_err(|refused| refused.0);
            }
            idle.begun += 1;
            idle.begun
        };
        let (sender, jobs) = mpsc::channel();
        let (all, own) = (self.clone(), sender.clone());
        // Nobody joins it: who has it at work waits for the word, and idle it owes nothing.
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
            let tell = job();
            // First, so that who hears it finds this one idle.
            self.idle().threads.push((number, own.clone()));
            tell();
            next = match jobs.recv_timeout(self.ends_after) {
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
    use super::*;
    use crate::tasks::Tasks;
    use crate::units::{Clock, Random};

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

    #[test]
    fn a_polite_thread_that_is_idle_does_the_next_work() {
        let polite = Arc::new(Polite { ends_after: Duration::from_secs(600), ..Polite::default() });
        let name = || std::thread::current().id();
        let first = polite.run(name);
        for _ in 0..100 {
            assert_eq!(polite.run(name), first);
        }
        // Two at once are two threads: each waits for the other's word.
        let ((to_a, at_a), (to_b, at_b)) = (mpsc::channel(), mpsc::channel());
        let within = Duration::from_secs(60);
        let other = polite.clone();
        let b =
            thread("test", move || other.run(move || (to_a.send(()), at_b.recv_timeout(within)).1));
        assert_eq!(polite.run(move || (to_b.send(()), at_a.recv_timeout(within)).1), Ok(()));
        assert_eq!(b.unwrap().join().unwrap(), Ok(()));
        assert_eq!(polite.idle().threads.len(), 2);
    }

    /// Threads that end all the time, beside who finds them on the list.
    #[test]
    fn polite_threads_end_when_idle_and_no_work_is_lost_by_that() {
        let polite =
            Arc::new(Polite { ends_after: Duration::from_micros(50), ..Polite::default() });
        let asking = |seed: u64| {
            let polite = polite.clone();
            move || {
                let mut random = Random::new(seed);
                for number in 0..2_000 {
                    assert_eq!(polite.run(move || number), number);
                    for _ in 0..random.next_u64() % 4 {
                        std::thread::yield_now();
                    }
                }
            }
        };
        let asking: Vec<_> = (0..3).map(|seed| thread("test", asking(seed)).unwrap()).collect();
        asking.into_iter().for_each(|thread| thread.join().unwrap());
        // Each holds it.
        let clock = Clock::system();
        while Arc::strong_count(&polite) > 1 {
            assert!(clock.elapsed() < Duration::from_secs(60), "threads do not end");
            std::thread::yield_now();
        }
        assert!(polite.idle().threads.is_empty());
        let begun = polite.idle().begun;
        polite.run(|| ());
        assert_eq!(polite.idle().begun, begun + 1);
    }
}

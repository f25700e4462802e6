//! The most that a process has taken while it was watched: memory, descriptors, threads; and what the
//! kernel has dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::support::proc;

/// Growth that lasts shorter is nobody's trouble.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Ten thousand descriptors take the kernel ten milliseconds to list, on a core that clients want: only
/// every so many looks, when a crowd has come, and by a thread that waits for them.
const COUNT_EVERY: u64 = 25;
const COUNT_AT: u64 = 20;
const LOWEST_PRIORITY: i32 = 19;

/// The most of each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) all: u64,
    pub(crate) anonymous: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
}

/// Looks until it is ended.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Watch {
    #[expect(clippy::disallowed_methods, reason = "larder's own threads are not to be depended on")]
    pub(crate) fn start(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, pid) = (stop.clone(), pid.to_string());
        let thread = std::thread::spawn(move || {
            // A thread has a priority of its own under Linux. Refused: it disturbs a little.
            let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
            let (mut seen, mut looks) = (Seen::default(), 0_u64);
            while !stopped.load(Ordering::Acquire) {
                let now = proc::resident(&pid);
                seen.all = seen.all.max(now.all);
                seen.anonymous = seen.anonymous.max(now.anonymous);
                if looks % COUNT_EVERY == COUNT_AT {
                    seen.descriptors = seen.descriptors.max(proc::entries(&pid, "fd"));
                }
                looks += 1;
                seen.threads = seen.threads.max(proc::entries(&pid, "task"));
                std::thread::park_timeout(LOOK_EVERY);
            }
            seen
        });
        Self { stop, thread }
    }

    pub(crate) fn end(self) -> Seen {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        self.thread.join().expect("looking does not fail")
    }
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Attempts to connect that the kernel has dropped since its boot, whoever's: a queue was full.
pub(crate) fn dropped() -> u64 {
    let text = std::fs::read_to_string("/proc/net/netstat").unwrap_or_default();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let mut all = names.split_whitespace().zip(values.split_whitespace());
    let found = all.find(|(name, _)| *name == "ListenDrops");
    found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

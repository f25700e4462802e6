//! Locks, atomics, channels and threads of what must be right in any interleaving: flights, the
//! store, and what the uploader and those who wait for it say to each other.
//!
//! They are std's and tokio's. Under `--cfg shuttle` they are those of a scheduler that explores
//! interleavings, for `tests/races`; then `explored` says how. Counters that nobody decides by stay
//! with std.

#[cfg(shuttle)]
mod explored;
#[cfg(not(shuttle))]
mod plain {
    use tokio::runtime::Handle;
    use tokio::task::JoinError;

    pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
    pub use std::sync::{Condvar, Mutex, MutexGuard, RwLock};
    pub use std::thread::JoinHandle;

    pub use tokio::sync::watch;
    pub use tokio::task::AbortHandle;

    pub use std::thread::sleep;

    pub use crate::tasks::thread;

    #[expect(clippy::disallowed_methods, reason = "for tasks, the one place that spawns")]
    pub(in crate::tasks) fn spawn(
        runtime: &Handle,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        runtime.spawn(future).abort_handle()
    }

    #[expect(clippy::disallowed_methods, reason = "for tasks, the one place that spawns")]
    pub(in crate::tasks) fn spawn_blocking<T: Send + 'static>(
        runtime: &Handle,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, JoinError>> {
        runtime.spawn_blocking(work)
    }
}

#[cfg(shuttle)]
pub use explored::*;
#[cfg(not(shuttle))]
pub use plain::*;

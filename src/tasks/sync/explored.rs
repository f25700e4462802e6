//! What `sync` is under the scheduler that explores interleavings; built with `--cfg shuttle` alone.
//!
//! All tasks and threads take turns on one thread. Before each use of a lock, atomic, condition or
//! channel the scheduler chooses who goes on. What is not made of these (the index, files, moka, the
//! clock) happens at once between two such places, and must not hold anything of its own across one.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, PoisonError};
use std::time::Duration;

use shuttle::rand::RngCore;
use tokio::runtime::Handle;

pub use shuttle::future::AbortHandle;
pub use shuttle::sync::RwLock;
pub use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
pub use shuttle::thread::JoinHandle;

/// A wait of this long may be over before anything else happens; a longer one never is.
const SHORT: Duration = Duration::from_secs(5);
/// How often others may have a turn before a short wait is over.
const TURNS_MAX: u64 = 8;

fn below(most: u64) -> u64 {
    shuttle::rand::thread_rng().next_u64() % most
}

pub(in crate::tasks) fn spawn(
    _: &Handle,
    future: impl Future<Output = ()> + Send + 'static,
) -> AbortHandle {
    shuttle::future::spawn(future).abort_handle()
}

/// Blocking work is a task like others, which has no await.
pub(in crate::tasks) fn spawn_blocking<T: Send + 'static>(
    _: &Handle,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, shuttle::future::JoinError>> {
    shuttle::future::spawn(async move { work() })
}

/// Others may have a turn.
pub fn sleep(_: Duration) {
    shuttle::thread::yield_now();
}

pub fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<JoinHandle<T>> {
    shuttle::thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// A lock whose guard knows it, so that a wait can end without a notice.
#[derive(Debug, Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    of: &'a Mutex<T>,
    held: shuttle::sync::MutexGuard<'a, T>,
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    /// A panic ends the exploration: no lock is ever found poisoned.
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(MutexGuard { of: self, held })
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.held
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.held
    }
}

/// A condition whose short waits are over whenever the scheduler likes.
#[derive(Debug, Default)]
pub struct Condvar(shuttle::sync::Condvar);

impl Condvar {
    pub const fn new() -> Self {
        Self(shuttle::sync::Condvar::new())
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        let MutexGuard { of, held } = guard;
        let held = self.0.wait(held).unwrap_or_else(PoisonError::into_inner);
        Ok(MutexGuard { of, held })
    }

    /// As std's; the second of the pair says whether the time was over.
    pub fn wait_timeout_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        within: Duration,
        mut is_so: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        while is_so(&mut guard) {
            if within <= SHORT && below(2) == 0 {
                let lock = guard.of;
                drop(guard);
                for _ in 0..below(TURNS_MAX) {
                    shuttle::thread::yield_now();
                }
                let mut guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
                let is_over = is_so(&mut guard);
                return Ok((guard, is_over));
            }
            guard = self.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        Ok((guard, false))
    }
}

/// tokio's, so that nothing of tokio's is held where others have their turn: what is given to it
/// looks at atomics of ours.
pub mod watch {
    use std::ops::Deref;
    use std::sync::Arc;

    use tokio::sync::watch as plain;

    pub use plain::error::RecvError;

    use super::Mutex;

    /// Senders take turns with it, and readers have a place for others before they look.
    type Turn = Arc<Mutex<()>>;

    #[derive(Debug)]
    pub struct Sender<T> {
        inner: plain::Sender<T>,
        turn: Turn,
    }

    #[derive(Debug)]
    pub struct Receiver<T> {
        inner: plain::Receiver<T>,
        turn: Turn,
    }

    /// What was seen, as it was then.
    pub struct Seen<T>(T);

    pub fn channel<T: Clone>(value: T) -> (Sender<T>, Receiver<T>) {
        let sender = Sender::new(value);
        let receiver = sender.subscribe();
        (sender, receiver)
    }

    impl<T: Clone> Sender<T> {
        pub fn new(value: T) -> Self {
            Self { inner: plain::Sender::new(value), turn: Arc::default() }
        }

        pub fn subscribe(&self) -> Receiver<T> {
            Receiver { inner: self.inner.subscribe(), turn: self.turn.clone() }
        }

        pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
            let _turn = self.turn.lock();
            let mut value = self.inner.borrow().clone();
            let is_modified = modify(&mut value);
            if is_modified {
                self.inner.send_replace(value);
            }
            is_modified
        }

        pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
            self.send_if_modified(|value| {
                modify(value);
                true
            });
        }

        pub fn send_replace(&self, value: T) {
            self.send_modify(|held| *held = value);
        }

        pub fn receiver_count(&self) -> usize {
            drop(self.turn.lock());
            self.inner.receiver_count()
        }
    }

    impl<T: Clone + Default> Default for Sender<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Self {
            Self { inner: self.inner.clone(), turn: self.turn.clone() }
        }
    }

    impl<T: Clone> Receiver<T> {
        pub fn borrow(&self) -> Seen<T> {
            drop(self.turn.lock());
            Seen(self.inner.borrow().clone())
        }

        pub fn borrow_and_update(&mut self) -> Seen<T> {
            drop(self.turn.lock());
            Seen(self.inner.borrow_and_update().clone())
        }

        pub async fn changed(&mut self) -> Result<(), RecvError> {
            drop(self.turn.lock());
            self.inner.changed().await
        }

        pub async fn wait_for(&mut self, is_so: impl Fn(&T) -> bool) -> Result<Seen<T>, RecvError> {
            loop {
                drop(self.turn.lock());
                let value = self.inner.borrow_and_update().clone();
                if is_so(&value) {
                    return Ok(Seen(value));
                }
                self.inner.changed().await?;
            }
        }
    }

    impl<T> Deref for Seen<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }
}

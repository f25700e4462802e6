//! What the uploader and those who wait for it say to each other.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use crate::store::Store;
use crate::tasks::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, watch};

/// How far the uploader is.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// The last request that it has heard.
    heard: u64,
    /// Something is left that can be sent, sooner or later.
    has_work: bool,
    has_ended: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::worker) struct Uploads {
    requests: AtomicU64,
    is_draining: AtomicBool,
    is_ending: AtomicBool,
    progress: watch::Sender<Progress>,
    /// Whether somebody waits, and how many.
    waiting: AtomicUsize,
    is_hurried: watch::Sender<bool>,
    why: Mutex<Vec<String>>,
}

impl Uploads {
    /// Asks for everything to be tried again. Wake the uploader after this.
    pub(in crate::worker) fn request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(super) fn requested(&self) -> u64 {
        self.requests.load(Ordering::Acquire)
    }

    /// From now on smallest first.
    pub(in crate::worker) fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    /// Nothing more is sent. Wake the uploader after this.
    pub(in crate::worker) fn end(&self) {
        self.is_ending.store(true, Ordering::Release);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    pub(super) fn publish(&self, heard: u64, has_work: bool, why: Vec<String>) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
        self.progress.send_modify(|progress| {
            progress.heard = heard;
            progress.has_work = has_work;
        });
    }

    pub(super) fn publish_end(&self) {
        self.progress.send_modify(|progress| progress.has_ended = true);
    }

    /// Waits until nothing is owed, or nothing can be done, since `request`.
    pub(in crate::worker) async fn settled(&self, request: u64, store: &Store, within: Duration) {
        let _hurry = Hurry::new(self);
        let mut progress = self.progress.subscribe();
        let is_settled = |now: &Progress| {
            now.has_ended || now.heard >= request && (!now.has_work || store.owed_entries() == 0)
        };
        // Either error leaves what is left to be told by the store.
        let _ = timeout(within, progress.wait_for(is_settled)).await;
    }

    pub(in crate::worker) async fn ended(&self, within: Duration) {
        let mut progress = self.progress.subscribe();
        let _ = timeout(within, progress.wait_for(|now| now.has_ended)).await;
    }

    /// Whether somebody waits for the uploads, now and whenever that changes.
    pub(super) fn hurried(&self) -> watch::Receiver<bool> {
        self.is_hurried.subscribe()
    }

    /// Why something is still owed.
    pub(in crate::worker) fn why(&self) -> String {
        self.trouble().unwrap_or_else(|| "the time was too short".to_owned())
    }

    pub(in crate::worker) fn trouble(&self) -> Option<String> {
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        (!why.is_empty()).then(|| why.join("; "))
    }
}

/// Somebody waits as long as this lives.
struct Hurry<'a>(&'a Uploads);

impl<'a> Hurry<'a> {
    fn new(uploads: &'a Uploads) -> Self {
        uploads.waiting.fetch_add(1, Ordering::AcqRel);
        uploads.is_hurried.send_replace(true);
        Self(uploads)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            let is_hurried = |hurried: &mut bool| {
                *hurried = self.0.waiting.load(Ordering::Acquire) > 0;
                true
            };
            self.0.is_hurried.send_if_modified(is_hurried);
        }
    }
}

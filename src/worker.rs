//! What runs without a request: uploads, eviction, tidying. No request ever waits for a worker.
//!
//! Here: how the workers are started, watched, asked to flush and drained. What each of them does
//! lies in its own file; protocols and what `/status` looks like lie elsewhere.
//!
//! Order of reading: `desk` (how a worker is watched), `uploader`, `evictor`, `scrubber`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cache::Cache;
use crate::worker::desk::Desk;
use crate::worker::recorder::Recorder;
use crate::worker::uploader::Uploads;

mod desk;
mod evictor;
mod prefetcher;
mod recorder;
mod scrubber;
mod uploader;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// An auto-started daemon ends after this long without a client.
    pub idle_exit: Duration,
}

/// What one worker is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    pub name: &'static str,
    /// In words, for people.
    pub state: String,
    /// How often it woke up to look for work.
    pub runs: u64,
    pub panics: u64,
}

/// What is still owed after a flush, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    pub left_entries: u64,
    pub left_bytes: u64,
    /// None if nothing is left.
    pub why: Option<String>,
}

/// Kept of a flush's time for manifests, at most.
const MANIFEST_WITHIN: Duration = Duration::from_secs(5);
/// How long a drained uploader may take to notice that it must end.
const END_WAIT: Duration = Duration::from_secs(1);

/// The rest of a deadline is the manifest's: without one, the next machine finds less of what went up.
fn for_uploads(deadline: Duration) -> Duration {
    deadline - (deadline / 4).min(MANIFEST_WITHIN)
}

/// The workers of a daemon. Cheap to clone; they run until the tasks of the cache are shut down.
#[derive(Clone)]
pub struct Workers {
    cache: Cache,
    uploads: Arc<Uploads>,
    recorder: Arc<Recorder>,
    desks: Arc<[Arc<Desk>]>,
}

impl Workers {
    pub fn start(cache: &Cache) -> Self {
        let uploads = Arc::new(Uploads::default());
        let desks = ["uploader", "recorder", "prefetcher", "evictor", "scrubber"].map(Desk::new);
        let [uploading, recording, prefetching, evicting, scrubbing] = desks.clone();
        desk::staff(&uploading, cache, {
            let (desk, cache, uploads) = (uploading.clone(), cache.clone(), uploads.clone());
            move || uploader::run(cache.clone(), uploads.clone(), desk.clone())
        });
        let recorder = Arc::new(Recorder::default());
        desk::staff(&recording, cache, {
            let (desk, cache) = (recording.clone(), cache.clone());
            let (recorder, uploads) = (recorder.clone(), uploads.clone());
            move || recorder::run(cache.clone(), recorder.clone(), uploads.clone(), desk.clone())
        });
        desk::staff(&prefetching, cache, {
            let (desk, cache) = (prefetching.clone(), cache.clone());
            move || prefetcher::run(cache.clone(), desk.clone())
        });
        desk::staff(&evicting, cache, {
            let (desk, cache) = (evicting.clone(), cache.clone());
            move || evictor::run(cache.clone(), desk.clone())
        });
        desk::staff(&scrubbing, cache, {
            let (desk, cache) = (scrubbing.clone(), cache.clone());
            move || scrubber::run(cache.clone(), desk.clone())
        });
        Self { cache: cache.clone(), uploads, recorder, desks: desks.into() }
    }

    pub fn status(&self) -> Vec<WorkerStatus> {
        self.desks.iter().map(|desk| desk.status()).collect()
    }

    /// Tries everything again now, and waits until nothing is owed, until nothing of what is owed
    /// can be sent to anybody, or for `deadline`.
    pub async fn flush(&self, deadline: Duration) -> Flushed {
        let began = Instant::now();
        self.settled(for_uploads(deadline)).await;
        self.recorder.write_within(&self.cache, deadline.saturating_sub(began.elapsed())).await;
        self.left()
    }

    /// What keeps owed uploads from being sent, as far as that is known now. None: nothing does.
    pub fn trouble(&self) -> Option<String> {
        self.uploads.trouble()
    }

    /// Uploads smallest first until `deadline`, then ends the uploader; what is left stays in the
    /// journal. Call it before the tasks are told to shut down: that ends every worker at once.
    pub async fn drain(&self, deadline: Duration) -> Flushed {
        let began = Instant::now();
        self.uploads.drain();
        self.settled(for_uploads(deadline)).await;
        self.recorder.write_within(&self.cache, deadline.saturating_sub(began.elapsed())).await;
        self.uploads.end();
        self.cache.wake_uploader();
        self.uploads.ended(END_WAIT).await;
        self.left()
    }

    async fn settled(&self, deadline: Duration) {
        let request = self.uploads.request();
        self.cache.wake_uploader();
        self.uploads.settled(request, self.cache.store(), deadline).await;
    }

    fn left(&self) -> Flushed {
        let left_entries = self.cache.store().owed_entries();
        if left_entries == 0 {
            return Flushed::default();
        }
        let left_bytes = self.cache.store().owed_bytes();
        Flushed { left_entries, left_bytes, why: Some(self.uploads.why()) }
    }
}

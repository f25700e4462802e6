//! What the plays stand on: a store in memory, a cache with an upstream, a clock that somebody moves.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use larder::backend::memory::MemoryBackend;
use larder::backend::{Backend, BackendError, Fetched, FetchedPart, Name, Upload};
use larder::cache::realm::{Realm, Upstream, Wanted};
use larder::cache::{self, Cache};
use larder::entry::{Class, Digest, Incoming, Key, Lookup, Meta, RealmId};
use larder::store::file::Finished;
use larder::store::{self, Limit, Store, StoreError, Stored};
use larder::tasks::Tasks;
use larder::telemetry::Metrics;
use larder::telemetry::metrics::Protocol;
use larder::units::{ByteSize, Clock, Timestamp};
use shuttle::future::yield_now;
use shuttle::rand::RngCore;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use tokio::runtime::Runtime;

/// Waits that only a lost notice makes too short.
pub(crate) const LONG: Duration = Duration::from_secs(3600);

thread_local! {
    // Never dropped: after a failure it would wake tasks that are gone.
    static RUNTIME: &'static Runtime = Box::leak(Box::new(paused()));
}

fn paused() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

/// Whose clock all sleeps of a test follow. Nothing runs on it.
pub(crate) fn runtime() -> &'static Runtime {
    RUNTIME.with(|runtime| *runtime)
}

/// Lets time pass for all who sleep.
pub(crate) fn pass(time: Duration) {
    runtime().block_on(tokio::time::advance(time));
}

pub(crate) fn below(most: u64) -> u64 {
    shuttle::rand::thread_rng().next_u64() % most
}

pub(crate) struct Stage {
    dir: tempfile::TempDir,
    disk: ByteSize,
    pub(crate) clock: Clock,
    pub(crate) central: Arc<MemoryBackend>,
    metrics: Arc<Metrics>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with_disk(ByteSize::gib(1))
    }

    pub(crate) fn with_disk(disk: ByteSize) -> Self {
        let memory = Path::new("/dev/shm");
        let dir = memory.is_dir().then(|| tempfile::tempdir_in(memory).ok()).flatten();
        Self {
            dir: dir.unwrap_or_else(|| tempfile::tempdir().unwrap()),
            disk,
            clock: Clock::manual(Timestamp::from_seconds(1_800_000_000)),
            central: Arc::default(),
            metrics: Arc::default(),
        }
    }

    pub(crate) fn open(&self) -> Store {
        let config = store::Config {
            dir: self.dir.path().join("store"),
            disk: Some(Limit::Size(self.disk)),
            floor: Some(Limit::Size(ByteSize(0))),
        };
        Store::open(&config, self.clock.clone(), self.metrics.clone()).unwrap()
    }

    /// A cache in front of the central one, and the realm of its clients.
    pub(crate) fn cache(&self, store: &Store) -> (Cache, Arc<Realm>) {
        let upstream = Upstream {
            name: "central".into(),
            url: "http://central".into(),
            backend: Arc::new(Slow::new(&self.central)),
            writes: true,
        };
        let config = cache::Config { memory: Some(ByteSize(1 << 20)), ..cache::Config::default() };
        let cache = Cache::new(
            config,
            store.clone(),
            vec![upstream],
            Tasks::new(),
            self.metrics.clone(),
            self.clock.clone(),
        );
        let realm = cache.realms().resolve(Wanted::default()).unwrap();
        (cache, realm)
    }
}

pub(crate) fn put(store: &Store, key: &Key, body: &[u8], owed: Option<RealmId>) {
    assert!(try_put(store, key, body, owed), "no room");
}

/// False if there is no room.
pub(crate) fn try_put(store: &Store, key: &Key, body: &[u8], owed: Option<RealmId>) -> bool {
    let body = Finished::of(body.to_vec());
    let meta = Meta::new(body.digest, body.size, Timestamp(0), Class::Other);
    match store.put(key, body, &meta, owed) {
        Ok(_) => true,
        Err(StoreError::Full) => false,
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn body_of(store: &Store, key: &Key) -> Option<Bytes> {
    match store.get(key)? {
        Stored::Bytes(_, bytes) => Some(bytes),
        Stored::File(meta, file) => {
            // The path may go at once: what was opened stays.
            let mut bytes = vec![0; usize::try_from(meta.size).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            Some(bytes.into())
        }
    }
}

pub(crate) async fn put_in(cache: &Cache, realm: &Realm, key: &Key, body: &Bytes) {
    let body = Incoming::bytes(body.clone());
    cache.put(Protocol::Kv, realm, key, body, |_| {}).await.unwrap();
}

/// What a client gets, or why it gets nothing.
pub(crate) async fn get_from(cache: &Cache, realm: &Realm, key: &Key) -> Result<Bytes, String> {
    match cache.get(Protocol::Kv, realm, key).await {
        Lookup::Miss(why) => Err(why.name().to_owned()),
        Lookup::Hit(blob, _) => {
            let mut body = Vec::new();
            let mut pieces = blob.body.into_chunks();
            while let Some(piece) = pieces.next().await {
                body.extend_from_slice(&piece.map_err(|error| format!("broke: {error}"))?);
            }
            Ok(body.into())
        }
    }
}

pub(crate) fn body(seed: u8, len: usize) -> Bytes {
    let mut body = Digest::of(&[seed]).0.repeat(len / 32 + 1);
    body.truncate(len);
    body.into()
}

/// The central cache, with places for others in each of its answers.
struct Slow {
    inner: Arc<MemoryBackend>,
    /// It lets all others go first: who waits for the network. Else whoever the scheduler likes.
    is_patient: bool,
}

impl Slow {
    fn new(inner: &Arc<MemoryBackend>) -> Self {
        Self { inner: inner.clone(), is_patient: below(2) == 0 }
    }

    async fn pause(&self) {
        if self.is_patient {
            yield_now().await;
        } else {
            AtomicBool::new(true).load(Ordering::SeqCst);
        }
    }
}

impl Backend for Slow {
    fn get<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<Option<Fetched>, BackendError>> {
        async move {
            self.pause().await;
            let fetched = self.inner.get(name).await?;
            self.pause().await;
            let Some(Fetched { len, chunks }) = fetched else { return Ok(None) };
            let slow = Self { inner: self.inner.clone(), is_patient: self.is_patient };
            let chunks =
                futures_util::stream::unfold((chunks, slow), |(mut chunks, slow)| async move {
                    slow.pause().await;
                    let piece = chunks.next().await?;
                    Some((piece, (chunks, slow)))
                });
            Ok(Some(Fetched { len, chunks: Box::pin(chunks) }))
        }
        .boxed()
    }

    fn get_part<'a>(
        &'a self,
        name: &'a Name,
        part: std::ops::Range<u64>,
    ) -> BoxFuture<'a, Result<Option<FetchedPart>, BackendError>> {
        self.inner.get_part(name, part)
    }

    fn put<'a>(&'a self, name: &'a Name, body: Upload) -> BoxFuture<'a, Result<(), BackendError>> {
        async move {
            self.pause().await;
            self.inner.put(name, body).await?;
            self.pause().await;
            Ok(())
        }
        .boxed()
    }

    fn contains<'a>(&'a self, names: &'a [Name]) -> BoxFuture<'a, Result<Vec<bool>, BackendError>> {
        async move {
            self.pause().await;
            self.inner.contains(names).await
        }
        .boxed()
    }
}

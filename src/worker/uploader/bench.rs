//! A cache with an upstream in memory, for the tests of the workers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::backend::memory::MemoryBackend;
use crate::backend::{Backend, Name, Space};
use crate::cache::realm::{Realm, Upstream, Wanted};
use crate::cache::{self, Cache};
use crate::entry::{Class, Digest, Incoming, Key, Meta};
use crate::store::{self, Limit, Store};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Protocol;
use crate::units::{ByteSize, Clock, Timestamp};

pub(in crate::worker) struct Bench {
    dir: tempfile::TempDir,
    disk: u64,
    pub(in crate::worker) clock: Clock,
    pub(in crate::worker) backend: Arc<MemoryBackend>,
    metrics: Arc<Metrics>,
}

impl Bench {
    pub(in crate::worker) fn new() -> Self {
        Self::with_disk(1 << 30)
    }

    pub(in crate::worker) fn with_disk(disk: u64) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            disk,
            clock: Clock::manual(Timestamp::from_seconds(1_800_000_000)),
            backend: Arc::new(MemoryBackend::new()),
            metrics: Arc::default(),
        }
    }

    pub(in crate::worker) fn open(&self) -> Store {
        let config = store::Config {
            dir: self.dir.path().join("store"),
            disk: Some(Limit::Size(ByteSize(self.disk))),
            floor: Some(Limit::Size(ByteSize(0))),
        };
        Store::open(&config, self.clock.clone(), self.metrics.clone()).unwrap()
    }

    /// A cache whose only upstream is the bench's.
    pub(in crate::worker) fn cache(&self, store: &Store) -> Cache {
        self.cache_of(store, vec![upstream("main", self.backend.clone())])
    }

    pub(in crate::worker) fn cache_of(&self, store: &Store, upstreams: Vec<Upstream>) -> Cache {
        self.cache_as(store, upstreams, false)
    }

    pub(in crate::worker) fn cache_as(
        &self,
        store: &Store,
        upstreams: Vec<Upstream>,
        read_only: bool,
    ) -> Cache {
        let memory = Some(ByteSize(1 << 20));
        let config = cache::Config { memory, read_only, ..cache::Config::default() };
        let metrics = self.metrics.clone();
        Cache::new(config, store.clone(), upstreams, Tasks::new(), metrics, self.clock.clone())
    }

    pub(in crate::worker) fn realm(&self, cache: &Cache, namespace: &str) -> Arc<Realm> {
        cache.realms().resolve(Wanted { namespace, ..Wanted::default() }).unwrap()
    }

    pub(in crate::worker) async fn put(
        &self,
        cache: &Cache,
        realm: &Realm,
        key: &Key,
        body: &[u8],
    ) {
        let body = Incoming::bytes(Bytes::copy_from_slice(body));
        cache.put(Protocol::Kv, realm, key, body, |_| {}).await.unwrap();
    }

    /// Stores content for `team`; how it is named upstream.
    pub(in crate::worker) async fn put_content(&self, cache: &Cache, body: &[u8]) -> Name {
        let key = Key::content(Digest::of(body));
        self.put(cache, &self.realm(cache, "team"), &key, body).await;
        name(Space::Cas, &Digest::of(body).to_string())
    }

    /// Stores an opaque entry for `team`; how it is named upstream.
    pub(in crate::worker) async fn put_opaque(&self, cache: &Cache, id: &str, body: &[u8]) -> Name {
        let realm = self.realm(cache, "team");
        self.put(cache, &realm, &Key::opaque(realm.id, id).unwrap(), body).await;
        name(Space::Kv, id)
    }

    /// Stores an action for `team`; how it is named upstream.
    pub(in crate::worker) async fn put_action(&self, cache: &Cache, id: &str, body: &[u8]) -> Name {
        let realm = self.realm(cache, "team");
        let id = Digest::of(id.as_bytes());
        self.put(cache, &realm, &Key::action(realm.id, id), body).await;
        name(Space::Ac, &id.to_string())
    }

    /// Puts outputs as go does, for `team`, each under the digest of its digest.
    pub(in crate::worker) fn put_outputs(&self, cache: &Cache, outputs: &[Vec<u8>]) {
        let realm = self.realm(cache, "team");
        for output in outputs {
            let digest = Digest::of(output);
            std::fs::write(cache.store().layout().file(&digest), output).unwrap();
            let meta = Meta::new(digest, output.len() as u64, self.clock.now(), Class::Archive);
            cache.put_go(&realm, &Digest::of(&digest.0), meta, true).unwrap();
        }
    }

    /// Ends every task, then the store.
    pub(in crate::worker) async fn close(&self, cache: &Cache) {
        cache.tasks().begin_shutdown();
        assert_eq!(cache.tasks().drain(Duration::from_secs(60)).await, 0, "tasks are left");
        cache.store().close();
    }
}

pub(in crate::worker) fn name(space: Space, id: &str) -> Name {
    Name { namespace: "team".into(), space, id: id.into() }
}

pub(in crate::worker) fn upstream(name: &str, backend: Arc<dyn Backend>) -> Upstream {
    Upstream { name: name.into(), url: format!("https://{name}").into(), backend, writes: true }
}

/// Returns once `is_so`. The paused clock stands still meanwhile, unless somebody else waits for it.
pub(in crate::worker) async fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Bytes that zstd cannot make smaller.
pub(in crate::worker) fn noise(len: usize) -> Vec<u8> {
    let mut random = crate::units::Random::new(len as u64);
    (0..len).map(|_| random.next_u64().to_le_bytes()[0]).collect()
}

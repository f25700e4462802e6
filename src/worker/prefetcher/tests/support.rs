//! Machines that build for one upstream, and what they build: for the tests of who writes down what
//! builds use and of who fetches it ahead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::backend::memory::MemoryBackend;
use crate::backend::{Name, Space};
use crate::cache::Cache;
use crate::cache::forecast::Forecast;
use crate::cache::realm::{Realm, Wanted};
use crate::cache::session::{Opening, Session};
use crate::entry::{Class, Digest, Lookup, Meta};
use crate::manifest::Manifest;
use crate::manifest::trail::Trail;
use crate::units::{Clock, Random};
use crate::worker::prefetcher::{name_of_manifest, name_of_scope_trail, name_of_trail};
use crate::worker::uploader::bench::{Bench, until};
use crate::worker::{Flushed, Workers};

pub(in crate::worker) const MINUTE: Duration = Duration::from_secs(60);
pub(in crate::worker) const SCOPE: &str = "app";
const COST_MS: u32 = 200;

/// An action and what it comes to.
#[derive(Clone)]
pub(in crate::worker) struct Output {
    pub(in crate::worker) action: Digest,
    pub(in crate::worker) body: Vec<u8>,
}

impl Output {
    pub(in crate::worker) fn digest(&self) -> Digest {
        Digest::of(&self.body)
    }
}

/// The action of this number, and `len` bytes that do not compress.
pub(in crate::worker) fn output(number: u64, len: usize) -> Output {
    let mut random = Random::new(number + 1);
    let body = (0..len).map(|_| random.next_u64().to_le_bytes()[0]).collect();
    Output { action: Digest::of(&number.to_le_bytes()), body }
}

/// Outputs of different small sizes, numbered from `first`.
pub(in crate::worker) fn outputs(first: u64, count: u64) -> Vec<Output> {
    let len = |n: u64| usize::try_from(100 + n * 977 % 9000).unwrap();
    (first..first + count).map(|n| output(n, len(n))).collect()
}

/// A cache with its workers.
pub(in crate::worker) struct Machine {
    pub(in crate::worker) bench: Bench,
    pub(in crate::worker) cache: Cache,
    pub(in crate::worker) workers: Workers,
}

impl Machine {
    pub(in crate::worker) fn new(backend: &Arc<MemoryBackend>) -> Self {
        Self::with_disk(backend, 1 << 30)
    }

    pub(in crate::worker) fn with_disk(backend: &Arc<MemoryBackend>, disk: u64) -> Self {
        let mut bench = Bench::with_disk(disk);
        bench.backend = backend.clone();
        let cache = bench.cache(&bench.open());
        Self::of(bench, cache)
    }

    pub(in crate::worker) fn of(bench: Bench, cache: Cache) -> Self {
        let workers = Workers::start(&cache);
        Self { bench, cache, workers }
    }

    pub(in crate::worker) fn realm(&self) -> Arc<Realm> {
        self.bench.realm(&self.cache, "team")
    }

    pub(in crate::worker) fn realm_that_trusts(&self, namespace: &str, trust: &str) -> Arc<Realm> {
        let wanted = Wanted { namespace, trust: Some(trust), ..Wanted::default() };
        self.cache.realms().resolve(wanted).unwrap()
    }

    /// A session of a commit of `main` in `team`, with a helper.
    pub(in crate::worker) fn begin(&self, commit: &str) -> Arc<Session> {
        self.begin_in(&self.realm(), commit, &[])
    }

    pub(in crate::worker) fn begin_in(
        &self,
        realm: &Arc<Realm>,
        commit: &str,
        parents: &[&str],
    ) -> Arc<Session> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
        self.begin_as(&id, realm, commit, parents)
    }

    pub(in crate::worker) fn begin_as(
        &self,
        id: &str,
        realm: &Arc<Realm>,
        commit: &str,
        parents: &[&str],
    ) -> Arc<Session> {
        let parents: Vec<String> = parents.iter().map(|parent| (*parent).to_owned()).collect();
        let opening = Opening {
            is_derived: false,
            id,
            realm: realm.id,
            scope: SCOPE,
            commit,
            branch: "main",
            default_branch: "main",
            parents: &parents,
        };
        let session = self.cache.open_session(realm, &opening);
        session.helper_came();
        session
    }

    /// Puts outputs as a helper does whose go has built them.
    pub(in crate::worker) fn build(&self, realm: &Realm, session: &Session, outputs: &[Output]) {
        for output in outputs {
            let digest = output.digest();
            let path = self.cache.store().layout().file(&digest);
            if !path.exists() {
                std::fs::write(path, &output.body).unwrap();
            }
            let size = output.body.len() as u64;
            let mut meta = Meta::new(digest, size, self.cache.clock().now(), Class::Archive);
            meta.cost_ms = COST_MS;
            self.cache.put_go(realm, &output.action, meta, true).unwrap();
            session.used(output.action);
        }
    }

    /// The last helper leaves.
    pub(in crate::worker) fn end(&self, session: &Session) {
        session.helper_left(self.cache.clock().now());
        self.cache.sessions().tell();
    }

    /// Builds all of `outputs` as one session, and waits until everything is upstream.
    pub(in crate::worker) async fn build_commit(&self, commit: &str, outputs: &[Output]) {
        let session = self.begin(commit);
        self.build(&self.realm(), &session, outputs);
        self.end(&session);
        assert_eq!(self.workers.flush(10 * MINUTE).await, Flushed::default());
    }

    /// Whether it hits; what hits is right.
    pub(in crate::worker) async fn get(
        &self,
        realm: &Realm,
        session: Option<&Session>,
        output: &Output,
    ) -> bool {
        match self.cache.get_go(realm, session, &output.action, 0).await {
            Lookup::Hit(blob, _) => {
                assert_eq!(blob.meta.digest, output.digest(), "another output");
                let file = std::fs::read(self.cache.store().layout().file(&output.digest()));
                assert!(file.unwrap() == output.body, "wrong bytes");
                true
            }
            Lookup::Miss(_) => false,
        }
    }

    /// How many of `outputs` hit.
    pub(in crate::worker) async fn hits(
        &self,
        session: Option<&Session>,
        outputs: &[Output],
    ) -> usize {
        let realm = self.realm();
        let mut hits = 0;
        for output in outputs {
            hits += usize::from(self.get(&realm, session, output).await);
        }
        hits
    }

    /// Returns when nothing is fetched ahead any more.
    pub(in crate::worker) async fn settled(&self, session: &Session) -> Arc<Forecast> {
        let forecast = session.forecast.clone().unwrap();
        forecast.finished().await;
        until(|| self.cache.flights().is_empty()).await;
        forecast
    }

    pub(in crate::worker) async fn close(self) {
        assert_eq!(self.cache.tasks().panics(), 0);
        self.bench.close(&self.cache).await;
    }
}

fn realm_of(namespace: &str) -> Realm {
    Realm::alone(crate::entry::RealmId([0; 16]), namespace, None)
}

pub(in crate::worker) fn manifest_name(namespace: &str, commit: &str) -> Name {
    name_of_manifest(&realm_of(namespace), SCOPE, commit)
}

pub(in crate::worker) fn trail_name(namespace: &str) -> Name {
    name_of_trail(&realm_of(namespace), SCOPE, "main")
}

pub(in crate::worker) fn scope_trail_name(namespace: &str) -> Name {
    name_of_scope_trail(&realm_of(namespace), SCOPE)
}

pub(in crate::worker) fn manifest_of(backend: &MemoryBackend, commit: &str) -> Manifest {
    Manifest::decode(&backend.peek(&manifest_name("team", commit)).unwrap()).unwrap()
}

pub(in crate::worker) fn trail_of(backend: &MemoryBackend) -> Trail {
    Trail::decode(&backend.peek(&trail_name("team")).unwrap()).unwrap()
}

/// The same objects, with no calls counted.
pub(in crate::worker) fn copy_of(backend: &MemoryBackend) -> Arc<MemoryBackend> {
    let copy = MemoryBackend::new();
    for name in backend.names() {
        copy.insert(name.clone(), backend.peek(&name).unwrap());
    }
    Arc::new(copy)
}

/// The contents, packs among them.
pub(in crate::worker) fn contents(backend: &MemoryBackend) -> Vec<Name> {
    backend.names().into_iter().filter(|name| name.space == Space::Cas).collect()
}

/// Gets of contents so far.
pub(in crate::worker) fn content_gets(backend: &MemoryBackend) -> u64 {
    contents(backend).iter().map(|name| backend.calls(name).gets).sum()
}

/// Does `work` while the manual clock keeps step with the paused one.
pub(in crate::worker) async fn timed<T>(clock: &Clock, work: impl Future<Output = T>) -> T {
    let step = Duration::from_millis(1);
    let ticking = async {
        loop {
            tokio::time::sleep(step).await;
            clock.advance(step);
        }
    };
    tokio::select! {
        biased;
        done = work => done,
        () = ticking => unreachable!("it ticks on"),
    }
}

//! Two daemons that live for a while, what they are asked, and what must then be true.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use larder::backend::guard::{self, Guard};
use larder::backend::memory::MemoryBackend;
use larder::backend::{Name, Space};
use larder::cache::realm::{Realm, Upstream, Wanted};
use larder::cache::{self, Cache};
use larder::entry::{Digest, Incoming, Key, Lookup, RealmId};
use larder::store::{self, Limit, Store};
use larder::tasks::Tasks;
use larder::telemetry::Metrics;
use larder::telemetry::metrics::Protocol;
use larder::units::{ByteSize, Clock, Random, Timestamp};
use larder::worker::Workers;
use tokio::time::{Instant, sleep};

use crate::builds;
use crate::link::{Link, Mood};

const BEGIN: Timestamp = Timestamp(1_800_000_000 * 1_000_000_000);
const DAEMONS: usize = 2;
/// Things that happen in a life.
const STEPS: usize = 80;
/// Names that are put again and again.
const NAMES: u64 = 6;
const LENS: [usize; 6] = [0, 10, 3_000, 65_536, 65_537, 300_000];
const BRANCHES: [&str; 3] = ["main", "feature", ""];
/// Longest that a whole lookup may take: the wait for an answer, then a body at the slowest pace that
/// is put up with.
const PATIENCE: Duration = Duration::from_secs(60);
/// Within which everything arrives when all is well.
const FLUSH: Duration = Duration::from_secs(1800);

/// A daemon without its sockets.
struct Daemon {
    cache: Cache,
    workers: Workers,
    link: Arc<Link>,
    realm: Arc<Realm>,
    dir: PathBuf,
    /// What it was told to keep last, by name.
    own: BTreeMap<Key, Bytes>,
    /// Actions of go that it has built or fetched.
    built: BTreeSet<Digest>,
}

/// What outlives a daemon: its directory, its way to the central cache, and what it must not forget.
struct Rest {
    dir: PathBuf,
    link: Arc<Link>,
    own: BTreeMap<Key, Bytes>,
    built: BTreeSet<Digest>,
}

impl Daemon {
    fn start(dir: PathBuf, link: Arc<Link>, seed: u64) -> Self {
        let (metrics, clock) = (Arc::new(Metrics::default()), Clock::of_runtime(BEGIN));
        let config = store::Config {
            dir: dir.clone(),
            disk: Some(Limit::Size(ByteSize(1 << 30))),
            floor: Some(Limit::Size(ByteSize(0))),
        };
        let store = Store::open(&config, clock.clone(), metrics.clone()).unwrap();
        let counters = metrics.upstream("central");
        let guard = Guard::new(link.clone(), "central", guard::Config::default(), counters, seed);
        let upstream = Upstream {
            name: "central".into(),
            url: "http://central".into(),
            backend: Arc::new(guard),
            writes: true,
        };
        let config = cache::Config { memory: Some(ByteSize(1 << 20)), ..cache::Config::default() };
        let cache = Cache::new(config, store, vec![upstream], Tasks::inline(), metrics, clock);
        let realm = cache.realms().resolve(Wanted::default()).unwrap();
        let workers = Workers::start(&cache);
        let (own, built) = (BTreeMap::new(), BTreeSet::new());
        Self { cache, workers, link, realm, dir, own, built }
    }

    /// In order. A store must be let go of by all before another daemon can have it.
    async fn end(self) -> Rest {
        let Self { cache, workers, link, realm, dir, own, built } = self;
        workers.drain(Duration::from_secs(2)).await;
        cache.tasks().begin_shutdown();
        assert_eq!(cache.tasks().drain(Duration::from_secs(120)).await, 0, "tasks do not end");
        cache.store().close();
        drop((cache, workers, realm));
        Rest { dir, link, own, built }
    }

    /// Puts, and says how long that took.
    async fn put(&self, key: &Key, body: Bytes) -> Duration {
        let began = Instant::now();
        let protocol = if key.expected().is_some() { Protocol::Cas } else { Protocol::Kv };
        let put = self.cache.put(protocol, &self.realm, key, Incoming::bytes(body), |_| {});
        put.await.unwrap();
        began.elapsed()
    }

    /// What is there, or why there is nothing.
    async fn get(&self, key: &Key) -> Result<Bytes, String> {
        let protocol = if key.expected().is_some() { Protocol::Cas } else { Protocol::Kv };
        match self.cache.get(protocol, &self.realm, key).await {
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
}

/// See the module.
pub(crate) struct World {
    seed: u64,
    random: Random,
    dir: tempfile::TempDir,
    central: Arc<MemoryBackend>,
    daemons: Vec<Daemon>,
    /// Every body that was ever put under a name, by whomever.
    ever: BTreeMap<Key, BTreeSet<Bytes>>,
    /// The newest commit of the program that is built.
    commit: u64,
    trace: Vec<String>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let memory = Path::new("/dev/shm");
        let dir = memory.is_dir().then(|| tempfile::tempdir_in(memory).ok()).flatten();
        Self {
            seed,
            random: Random::new(seed),
            dir: dir.unwrap_or_else(|| tempfile::tempdir().unwrap()),
            central: Arc::default(),
            daemons: Vec::new(),
            ever: BTreeMap::new(),
            commit: 0,
            trace: Vec::new(),
        }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random.next_u64() % n
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }

    fn start(&mut self, name: &str) {
        let link = Arc::new(Link::new(&self.central, self.random.next_u64()));
        let (dir, seed) = (self.dir.path().join(name), self.random.next_u64());
        self.daemons.push(Daemon::start(dir, link, seed));
    }

    /// All of it; panics at the first wrong thing.
    pub(crate) async fn live(mut self) -> Vec<String> {
        for number in 0..DAEMONS {
            self.start(&number.to_string());
        }
        let began = Instant::now();
        for step in 0..STEPS {
            let what = self.step(step).await;
            self.trace.push(format!("{:?} {what}", began.elapsed()));
        }
        self.recover().await;
        self.trace.push(format!("{:?} the end", began.elapsed()));
        for daemon in self.daemons {
            daemon.end().await;
        }
        self.trace
    }

    async fn step(&mut self, step: usize) -> String {
        let at = usize::try_from(self.below(DAEMONS as u64)).unwrap();
        match self.below(23) {
            20..23 => self.build(at, step).await,
            0..7 => self.put(at, step).await,
            7..14 => self.get(at).await,
            14 => self.get_at_once(at).await,
            15..17 => {
                let pause = Duration::from_millis(self.below(20_000));
                sleep(pause).await;
                format!("nothing for {pause:?}")
            }
            17 | 18 => {
                let mood = self.one_of(&Mood::ALL);
                self.daemons[at].link.set(mood);
                format!("{at}'s link: {mood:?}")
            }
            _ => self.restart(at).await,
        }
    }

    /// A name of one of the tools, or, once there is some, of content.
    fn name(&mut self) -> Key {
        let contents: Vec<Key> =
            self.ever.keys().filter(|key| key.expected().is_some()).cloned().collect();
        match self.below(4) {
            0 if !contents.is_empty() => {
                contents[usize::try_from(self.below(contents.len() as u64)).unwrap()].clone()
            }
            _ => Key::opaque(RealmId::NONE, &format!("n{}", self.below(NAMES))).unwrap(),
        }
    }

    async fn put(&mut self, at: usize, step: usize) -> String {
        let len = self.one_of(&LENS);
        let tag = format!("{}/{at}/{step}/", self.seed);
        let body: Bytes = tag.bytes().cycle().take(len).collect();
        let key = match self.below(4) {
            0 => Key::content(Digest::of(&body)),
            _ => Key::opaque(RealmId::NONE, &format!("n{}", self.below(NAMES))).unwrap(),
        };
        self.ever.entry(key.clone()).or_default().insert(body.clone());
        let daemon = &mut self.daemons[at];
        let took = daemon.put(&key, body.clone()).await;
        assert_eq!(took, Duration::ZERO, "{}: a put has waited", self.at(step));
        self.daemons[at].own.insert(key.clone(), body);
        format!("{at} puts {len} bytes as {key}")
    }

    async fn get(&mut self, at: usize) -> String {
        let key = self.name();
        let began = Instant::now();
        let got = self.daemons[at].get(&key).await;
        let took = began.elapsed();
        assert!(took <= PATIENCE, "{}: {key} took {took:?}", self.at(self.trace.len()));
        self.judge(at, &key, got)
    }

    /// Several clients ask for the same.
    async fn get_at_once(&mut self, at: usize) -> String {
        let key = self.name();
        let all = join_all((0..3).map(|_| self.daemons[at].get(&key))).await;
        let all: Vec<String> = all.into_iter().map(|got| self.judge(at, &key, got)).collect();
        all.join("; ")
    }

    /// Whether what came may have come.
    fn judge(&self, at: usize, key: &Key, got: Result<Bytes, String>) -> String {
        let own = self.daemons[at].own.get(key);
        match got {
            Ok(body) => {
                let is_known = self.ever.get(key).is_some_and(|bodies| bodies.contains(&body));
                let is_empty = key.expected() == Some(Digest::EMPTY) && body.is_empty();
                assert!(is_known || is_empty, "{}: {at} lies: {key}", self.at(self.trace.len()));
                let is_own = own.is_none_or(|own| *own == body);
                assert!(
                    is_own,
                    "{}: {at} forgot what it was told: {key}",
                    self.at(self.trace.len())
                );
                format!("{at} has {} bytes as {key}", body.len())
            }
            Err(why) => {
                assert!(own.is_none(), "{}: {at} lost {key}: {why}", self.at(self.trace.len()));
                format!("{at} misses {key}: {why}")
            }
        }
    }

    /// Somebody builds the newest commit, or one that is not much older.
    async fn build(&mut self, at: usize, step: usize) -> String {
        self.commit += self.below(3) / 2;
        let commit = self.commit.saturating_sub(self.below(3) / 2);
        let (branch, place) = (self.one_of(&BRANCHES), format!("seed {}, step {step}", self.seed));
        let Daemon { cache, realm, built, .. } = &mut self.daemons[at];
        let told = builds::build(cache, realm, built, (commit, branch), &place).await;
        format!("{at} {told}")
    }

    async fn restart(&mut self, at: usize) -> String {
        let seed = self.random.next_u64();
        let daemon = self.daemons.remove(at);
        let Rest { dir, link, own, built } = daemon.end().await;
        let daemon = Daemon { own, built, ..Daemon::start(dir, link, seed) };
        self.daemons.insert(at, daemon);
        format!("{at} starts again")
    }

    /// All links are well: what is owed arrives, and a third daemon finds it.
    async fn recover(&mut self) {
        for daemon in &self.daemons {
            daemon.link.set(Mood::Well);
        }
        for daemon in &self.daemons {
            let left = daemon.workers.flush(FLUSH).await;
            let owed = daemon.cache.store().owed_entries();
            assert_eq!(owed, 0, "seed {}: {left:?} though all is well", self.seed);
        }
        self.start("late");
        let late = self.daemons.pop().unwrap();
        for (key, bodies) in &self.ever {
            let last: Vec<&Bytes> =
                self.daemons.iter().filter_map(|daemon| daemon.own.get(key)).collect();
            let name = name_of(key);
            let there = self.central.peek(&name);
            let is_last = there.as_ref().is_some_and(|there| last.contains(&there));
            let is_empty = key.expected() == Some(Digest::EMPTY);
            assert!(
                is_last || is_empty,
                "seed {}: central has {:?} bytes of {} as {key}",
                self.seed,
                there.map(|there| there.len()),
                bodies.len()
            );
            let got = late.get(key).await;
            assert_eq!(got.as_ref().ok(), there.as_ref().or(Some(&Bytes::new())), "{key}: {got:?}");
        }
        for package in (0..=self.commit).flat_map(builds::packages) {
            let is_known = self.daemons.iter().any(|daemon| daemon.built.contains(&package.action));
            let got = late.cache.get_go(&late.realm, None, &package.action, 0).await;
            let place = format!("seed {}, the late one", self.seed);
            let has = builds::has(&late.cache, &package, got, &place);
            assert!(has || !is_known, "{place}: {} did not arrive", package.action);
        }
        self.daemons.push(late);
    }

    fn at(&self, step: usize) -> String {
        format!("seed {}, step {step}:\n{}", self.seed, self.trace.join("\n"))
    }
}

/// How the central cache knows it.
fn name_of(key: &Key) -> Name {
    let (space, id) = match (&key.id, key.expected()) {
        (_, Some(digest)) => (Space::Cas, digest.to_string()),
        (larder::entry::Id::Name(name), None) => (Space::Kv, name.to_string()),
        (larder::entry::Id::Digest(digest), None) => (Space::Kv, digest.to_string()),
    };
    Name { namespace: "".into(), space, id }
}

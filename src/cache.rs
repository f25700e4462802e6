//! The cache: what a GET and a PUT are, from the memory tier down to the upstream.
//!
//! A lookup does not fail: it hits, or says why it misses. A put is acknowledged after the local
//! commit, before the network. No protocol and no concrete backend is known here.
//!
//! Order of reading: `realm` (whose keys), `policy` (decisions), `memory`, `local`, `absent`,
//! `flight`, `fetch` and `unpack` (what a flight does), `session` (who asked), `forecast` and `ahead`
//! (what will be asked for), `ask` (what Go may wait for), `put`, `outgoing`, then this file.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use crate::backend::Name;
use crate::cache::absent::{Absent, Confirmed};
use crate::cache::ask::Estimates;
use crate::cache::flight::{Arrival, End, Flights, Joined};
use crate::cache::forecast::Forecasts;
use crate::cache::frames::Frames;
use crate::cache::memory::Memory;
use crate::cache::policy::statistics::Kind as Question;
use crate::cache::realm::{Realm, Realms, Upstream};
use crate::cache::session::Sessions;
use crate::entry::{Blob, Body, Digest, Found, Id, Key, Kind, Lookup, Meta, Why};
use crate::store::Store;
use crate::store::record::{Place, Row};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Protocol;
use crate::units::{ByteSize, Clock};

pub mod absent;
pub mod ahead;
mod ask;
mod fetch;
pub mod flight;
pub mod forecast;
pub mod frames;
pub mod fresh;
mod go;
mod local;
pub mod memory;
mod outgoing;
pub mod policy;
mod put;
pub mod realm;
pub mod session;
mod unpack;

pub use fetch::GO_VALUE_MAX;
pub use go::GoPut;
pub use outgoing::Outgoing;
pub use put::{PutDone, PutError};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Limit of the memory tier. None: a sixteenth of the cgroup's or the machine's memory,
    /// within 64 MiB and 1 GiB.
    pub memory: Option<ByteSize>,
    /// Default namespace: part of the realm of every client that names none.
    pub namespace: String,
    /// The namespace that is read besides the own one.
    pub trust: Option<String>,
    /// Nothing goes upstream.
    pub read_only: bool,
    /// What predicts; empty: repository and job.
    pub scope: String,
    /// Upstream of each frontend that does not use the first one, by the frontend's name.
    pub frontends: Vec<(String, String)>,
    pub classes: Vec<ClassRule>,
}

/// What may be done with the entries of one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassRule {
    pub class: String,
    pub share: Share,
    pub upstream: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    Upstream,
    Local,
    Off,
}

/// A client waits no longer than this for a fetch to answer; then it is told that it misses.
const FETCH_WAIT: Duration = Duration::from_secs(10);
/// Files up to this size are read on the reactor: opening one costs more than reading it.
const READ_HERE_MAX: u64 = 256 << 10;
/// Pieces in which bodies go to disk.
const WRITE_PIECE: usize = 1 << 20;
const MEMORY_MIN: u64 = 64 << 20;
const MEMORY_MAX: u64 = 1 << 30;

/// What it means if nobody is found to have it: where there is no upstream, nobody was asked.
fn nobody_has_it<'a>(mut realms: impl Iterator<Item = &'a Realm>) -> Why {
    if realms.any(|realm| realm.upstream.is_some()) { Why::Absent } else { Why::Local }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    memory: Memory,
    absent: Absent,
    confirmed: Confirmed,
    flights: Flights,
    frames: Frames,
    forecasts: Forecasts,
    statistics: Estimates,
    realms: Realms,
    sessions: Sessions,
    config: Config,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    clock: Clock,
    owed: Notify,
    room: Notify,
    store_lost: Notify,
}

impl Cache {
    pub fn new(
        config: Config,
        store: Store,
        upstreams: Vec<Upstream>,
        tasks: Tasks,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let limit = config.memory.map_or_else(default_memory, ByteSize::bytes);
        let of_classes = config.classes.iter().filter_map(|rule| rule.upstream.clone()).collect();
        Self {
            inner: Arc::new(Inner {
                memory: Memory::new(limit),
                absent: Absent::new(clock.clone()),
                confirmed: Confirmed::default(),
                flights: Flights::default(),
                frames: Frames::default(),
                forecasts: Forecasts::new(clock.clone(), metrics.clone()),
                statistics: Estimates::new(&upstreams, &store),
                realms: Realms::new(upstreams, of_classes, store.clone()),
                sessions: Sessions::new(clock.clone()),
                owed: Notify::new(),
                room: Notify::new(),
                store_lost: Notify::new(),
                config,
                store,
                tasks,
                metrics,
                clock,
            }),
        }
    }

    pub fn store(&self) -> &Store {
        &self.inner.store
    }
    pub fn memory(&self) -> &Memory {
        &self.inner.memory
    }
    pub fn realms(&self) -> &Realms {
        &self.inner.realms
    }
    pub fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }
    pub fn tasks(&self) -> &Tasks {
        &self.inner.tasks
    }
    pub fn config(&self) -> &Config {
        &self.inner.config
    }
    pub fn flights(&self) -> &Flights {
        &self.inner.flights
    }
    pub fn frames(&self) -> &Frames {
        &self.inner.frames
    }
    pub fn forecasts(&self) -> &Forecasts {
        &self.inner.forecasts
    }
    pub fn confirmed(&self) -> &Confirmed {
        &self.inner.confirmed
    }

    /// Returns when an upload is owed that was not owed before.
    pub async fn owed(&self) {
        self.inner.owed.notified().await;
    }

    /// Wakes whoever uploads.
    pub fn wake_uploader(&self) {
        self.inner.owed.notify_one();
    }

    /// Finds `key`, nearest first, in the realm and in the one that it trusts.
    pub async fn get(&self, protocol: Protocol, realm: &Realm, key: &Key) -> Lookup {
        self.inner.metrics.of(protocol).gets.inc();
        let lookup = self.look_up(realm, key).await;
        self.count(protocol, &lookup);
        lookup
    }

    async fn look_up(&self, realm: &Realm, key: &Key) -> Lookup {
        if key.expected() == Some(Digest::EMPTY) {
            return self.empty();
        }
        for realm in realm.chain() {
            if let Some((blob, found)) = self.local(&key.in_realm(realm.id)).await {
                return Lookup::Hit(blob, found);
            }
        }
        let mut why = nobody_has_it(realm.chain());
        for realm in realm.chain() {
            match self.upstream(realm, &key.in_realm(realm.id)).await {
                Lookup::Hit(blob, found) => return Lookup::Hit(blob, found),
                Lookup::Miss(Why::Absent) => {}
                Lookup::Miss(other) => why = other,
            }
        }
        Lookup::Miss(why)
    }

    fn empty(&self) -> Lookup {
        let meta = Meta::new(Digest::EMPTY, 0, self.inner.clock.now(), crate::entry::Class::Other);
        Lookup::Hit(Blob { meta, body: Body::Bytes(Bytes::new()) }, Found::Memory)
    }

    /// Asks the realm's upstream, together with everybody else who asks now.
    async fn upstream(&self, realm: &Realm, key: &Key) -> Lookup {
        let Some(upstream) = &realm.upstream else { return Lookup::Miss(Why::Absent) };
        if self.inner.absent.contains(realm.id, key) {
            return Lookup::Miss(Why::Absent);
        }
        let (follower, found) = match self.inner.flights.join(realm.id, key) {
            Joined::Later(follower) => (follower, Found::Coalesced),
            Joined::First(leader, follower) => {
                let name = realm.name_of(key);
                let flight = self.clone().fly(
                    leader,
                    upstream.clone(),
                    realm.id,
                    name,
                    key.clone(),
                    Question::NoManifest,
                );
                self.inner.tasks.spawn("fetch", flight);
                (follower, Found::Upstream)
            }
        };
        match tokio::time::timeout(FETCH_WAIT, follower.arrival()).await {
            Err(_) => Lookup::Miss(Why::Deadline),
            Ok(arrival) => self.arrived(key, arrival, found).await,
        }
    }

    async fn arrived(&self, key: &Key, arrival: Arrival, found: Found) -> Lookup {
        match arrival {
            Arrival::Ended(End::Failed(why)) => Lookup::Miss(why),
            Arrival::Ended(End::Held(meta, bytes)) => {
                Lookup::Hit(Blob { meta, body: Body::Bytes(bytes) }, found)
            }
            Arrival::Ended(End::Stored(_)) => match self.local(key).await {
                Some((blob, _)) => Lookup::Hit(blob, found),
                None => Lookup::Miss(Why::Fault),
            },
            Arrival::Streaming { len, source } => {
                let digest = key.expected().unwrap_or(Digest([0; 32]));
                let now = self.inner.clock.now();
                let meta = Meta::new(digest, len.unwrap_or(0), now, crate::entry::Class::Other);
                let body = Body::Source { len, source: Box::new(source) };
                Lookup::Hit(Blob { meta, body }, found)
            }
        }
    }

    fn count(&self, protocol: Protocol, lookup: &Lookup) {
        let counters = self.inner.metrics.of(protocol);
        match lookup {
            Lookup::Hit(_, Found::Memory) => counters.hit_memory.inc(),
            Lookup::Hit(_, Found::Disk) => counters.hit_disk.inc(),
            Lookup::Hit(_, Found::Native) => counters.hit_native.inc(),
            Lookup::Hit(_, Found::Upstream) => counters.hit_upstream.inc(),
            Lookup::Hit(_, Found::Coalesced) => counters.coalesced.inc(),
            Lookup::Miss(why) => {
                let at = Why::ALL.iter().position(|w| w == why).unwrap_or(0);
                counters.miss[at].inc();
            }
        }
    }

    /// Whether `key` is there, without its body. The size, if this machine knows it.
    pub async fn contains(&self, realm: &Realm, key: &Key) -> Result<Option<u64>, Why> {
        if key.expected() == Some(Digest::EMPTY) {
            return Ok(Some(0));
        }
        for realm in realm.chain() {
            let key = key.in_realm(realm.id);
            if let Some(row) = self.inner.store.find(&key)
                && self.holds(&key, row).await
            {
                return Ok(Some(row.size));
            }
        }
        let mut why = nobody_has_it(realm.chain());
        for realm in realm.chain() {
            let Some(upstream) = &realm.upstream else { continue };
            let key = key.in_realm(realm.id);
            if self.inner.absent.contains(realm.id, &key) {
                continue;
            }
            match self.is_upstream(upstream, realm.name_of(&key)).await {
                Ok(true) => return Ok(None),
                Ok(false) => {}
                Err(other) => why = other,
            }
        }
        Err(why)
    }

    /// Whether a row's file is unchanged. After a boot it is hashed again, which takes a while.
    async fn holds(&self, key: &Key, row: Row) -> bool {
        if row.size <= READ_HERE_MAX {
            return self.inner.store.holds(key, &row);
        }
        let (store, key) = (self.inner.store.clone(), key.clone());
        let work = move || store.holds(&key, &row);
        self.inner.tasks.blocking("look at an entry", work).await.unwrap_or(false)
    }

    /// Asked in a task of the daemon's own: a connection to upstream must not belong to a client's.
    async fn is_upstream(&self, upstream: &Upstream, name: Name) -> Result<bool, Why> {
        let (tell, told) = oneshot::channel();
        let backend = upstream.backend.clone();
        self.inner.tasks.spawn("ask whether it is there", async move {
            let there = backend.contains(&[name]).await;
            // Whoever has asked may be gone.
            let _ = tell.send(there.map(|there| there.first() == Some(&true)));
        });
        told.await.map_err(|_| Why::Fault)?.map_err(|error| error.why())
    }

    /// Whether the bytes of a row may be asked for by their digest in memory; for tests of tiers.
    pub fn place_of(&self, key: &Key) -> Option<Place> {
        self.inner.store.find(key).map(|row| row.place)
    }

    /// Notes that upstream holds this now.
    pub fn confirm(&self, realm: &Realm, key: &Key, digest: Digest) {
        self.inner.confirmed.insert(realm.id, key, digest);
    }
}

/// A sixteenth of the memory that this process may use.
fn default_memory() -> u64 {
    let cgroup = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
    });
    let most = cgroup.into_iter().chain(machine).min().unwrap_or(4 << 30);
    (most / 16).clamp(MEMORY_MIN, MEMORY_MAX)
}

/// The id of a Go action's key.
fn action_of(key: &Key) -> Option<Digest> {
    match (key.kind, &key.id) {
        (Kind::Go, Id::Digest(action)) => Some(*action),
        _ => None,
    }
}

#[cfg(test)]
mod tests;

//! What clients speak to: listeners, the URL space, one protocol a file.
//!
//! Knows protocols and their codes; never opens an entry's file and never calls a backend.
//!
//! Order of reading: `listener` (connections), `access` (who may come in), `route` (the URL space),
//! `request` and `respond` (HTTP in and out), `http` (a request's way), then one file a protocol.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, Semaphore};

use crate::cache::Cache;
use crate::tasks::Lanes;
use crate::units::Secret;

mod access;
mod go;
mod http;
pub mod listener;
mod request;
mod respond;
pub mod route;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Clone, Debug)]
pub struct Config {
    /// Data listeners named in the settings; the clients' socket is one more.
    pub listen: Vec<Listen>,
    /// Whether `listen` was written by someone; the default may give way if its port is taken.
    pub listen_is_default: bool,
    pub socket: PathBuf,
    /// What sockets that were bound for us are called, in their order.
    pub passed: Vec<String>,
    pub tokens: Vec<Token>,
    /// Serve beyond loopback without tokens.
    pub insecure: bool,
    /// PEM files of certificate chain and key, for TCP listeners.
    pub tls: Option<(PathBuf, PathBuf)>,
    pub allow_host: Vec<String>,
    /// Users besides our own who may use the socket.
    pub allow_uid: Vec<u32>,
}

/// Who may come in, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub name: String,
    pub secret: Secret,
    /// None: the namespace that the request names.
    pub namespace: Option<String>,
    pub trust: Option<String>,
    pub write: bool,
}

/// What the control client may ask of the daemon; the daemon itself answers.
pub trait Control: Send + Sync {
    /// Answers a request. `progress` may be called with what a person would like to see meanwhile.
    fn call<'a>(
        &'a self,
        request: serde_json::Value,
        progress: &'a (dyn Fn(serde_json::Value) + Send + Sync),
    ) -> BoxFuture<'a, serde_json::Value>;
}

/// What every connection needs.
#[derive(Clone)]
pub struct Frontend {
    inner: Arc<Inner>,
}

/// Bytes of actions that are gathered at once: two of the largest, or a thousand usual ones.
const GATHERED_MAX: usize = 64 << 20;

struct Inner {
    cache: Cache,
    config: Config,
    control: Arc<dyn Control>,
    /// Addresses where HTTP is served, for clients that ask.
    http: Vec<String>,
    /// Of those who come over TCP, and of those who come by the socket: a build on this machine does not
    /// wait for its turn among a thousand connections from elsewhere.
    lanes: Lanes,
    socket_lanes: Lanes,
    connections: AtomicUsize,
    /// Bytes of actions that must be seen whole before they are kept.
    gathering: Semaphore,
    /// A connection has gone.
    place: Notify,
    /// When it was last said that accepting rests, in milliseconds of the clock.
    rest_told_ms: AtomicU64,
    /// When the last connection was there, in milliseconds of the clock; for idle daemons.
    last_seen_ms: AtomicU64,
}

impl Frontend {
    /// An error: threads cannot be started.
    pub fn new(
        cache: Cache,
        config: Config,
        control: Arc<dyn Control>,
        http: Vec<String>,
    ) -> std::io::Result<Self> {
        let inner = Inner {
            lanes: Lanes::start(cache.tasks(), "lane")?,
            socket_lanes: Lanes::start(cache.tasks(), "socket lane")?,
            cache,
            config,
            control,
            http,
            connections: AtomicUsize::new(0),
            gathering: Semaphore::new(GATHERED_MAX),
            place: Notify::new(),
            rest_told_ms: AtomicU64::new(0),
            last_seen_ms: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// How many connections are open, and for how long there have been none.
    pub fn idle(&self) -> (usize, std::time::Duration) {
        let seen = self.inner.last_seen_ms.load(Ordering::Relaxed);
        let seen = std::time::Duration::from_millis(seen);
        let now = self.inner.cache.clock().elapsed();
        (self.inner.connections.load(Ordering::Relaxed), now.saturating_sub(seen))
    }

    fn seen(&self) {
        let now = u64::try_from(self.inner.cache.clock().elapsed().as_millis()).unwrap_or(u64::MAX);
        self.inner.last_seen_ms.store(now, Ordering::Relaxed);
    }
}

/// A path in the first line, a header of each kind in the next ones.
#[cfg(fuzzing)]
pub fn fuzz(input: &[u8]) {
    use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, HeaderMap, HeaderValue, RANGE};
    let mut lines = input.split(|byte| *byte == b'\n');
    if let Some(path) = lines.next().and_then(|line| std::str::from_utf8(line).ok())
        && let Ok(target) = route::route(path)
    {
        assert!(target.key.encode().len() <= 511, "LMDB takes no longer key");
    }
    let mut headers = HeaderMap::new();
    for (name, line) in [RANGE, CONTENT_LENGTH, CACHE_CONTROL].into_iter().zip(lines) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(name, value);
        }
    }
    for len in [0, 1, 100, u64::MAX] {
        if let request::Part::Range(range) = request::part(&headers, len) {
            assert!(range.start < range.end && range.end <= len, "{range:?} of {len}");
        }
    }
    let _ = (request::has_bad_length(&headers), request::wants_no_old(&headers));
}

//! What is upstream: the trait that the cache sees, the errors, and how a guarded chain is built.
//!
//! A backend transfers bytes by name. It knows no tiers, no realms and no clients; the guard around
//! it owns every deadline, retry and breaker.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::entry::{Chunks, Why};
use crate::telemetry::Metrics;
use crate::units::Secret;

pub mod guard;
pub mod http;
pub mod memory;
mod part;

/// What an entry is upstream: the first path segment of larder's own URLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// `ac`: actions.
    Ac,
    /// `cas`: content, named by its SHA-256.
    Cas,
    /// `kv`: any tool's own keys.
    Kv,
}

/// How an entry is named upstream: `[namespace/]space/id`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    pub namespace: Arc<str>,
    pub space: Space,
    pub id: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = match self.space {
            Space::Ac => "ac",
            Space::Cas => "cas",
            Space::Kv => "kv",
        };
        if self.namespace.is_empty() {
            write!(f, "{space}/{}", self.id)
        } else {
            write!(f, "{}/{space}/{}", self.namespace, self.id)
        }
    }
}

/// A body that upstream is sending.
pub struct Fetched {
    pub len: Option<u64>,
    pub chunks: Chunks,
}

/// What came for a part of a body.
pub struct FetchedPart {
    /// Upstream knows no ranges, and sends everything from the body's first byte.
    pub is_whole: bool,
    pub fetched: Fetched,
}

impl FetchedPart {
    pub const fn whole(fetched: Fetched) -> Self {
        Self { is_whole: true, fetched }
    }

    /// The part alone; None if the body is shorter. What precedes it is received and skipped.
    pub fn cut(self, part: Range<u64>) -> Option<Fetched> {
        if self.is_whole { part::cut(self.fetched, part) } else { Some(self.fetched) }
    }
}

/// A body to send, replayable: a retry asks for the pieces again.
#[derive(Clone)]
pub struct Upload {
    pub len: u64,
    pub open: Arc<dyn Fn() -> Chunks + Send + Sync>,
}

impl Upload {
    pub fn bytes(bytes: Bytes) -> Self {
        Self {
            len: bytes.len() as u64,
            open: Arc::new(move || crate::entry::body::once(bytes.clone())),
        }
    }
}

/// Why upstream could not be used. None of these says that an entry does not exist.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BackendError {
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("no {phase} within {limit_ms} ms")]
    Deadline { phase: &'static str, limit_ms: u64 },
    #[error("upstream is in trouble and was not asked")]
    BreakerOpen,
    #[error("too many requests to upstream are under way")]
    Busy,
    #[error("upstream answered {0}")]
    Status(u16),
    /// 401 and 403: asking again changes nothing.
    #[error("upstream answered {0}: check the token and what it may do")]
    Denied(u16),
    /// 413: this entry will never fit.
    #[error("upstream takes no body of this size")]
    TooLarge,
    /// 507, or a larder that says "not stored".
    #[error("upstream is full")]
    Full,
    /// Answered by a redirect, which is never followed.
    #[error("upstream answered a redirect ({0}), which larder does not follow: name the final URL")]
    Redirect(u16),
    #[error("the transfer broke: {0}")]
    Broken(String),
    /// Another larder that could not tell.
    #[error("upstream could not tell ({0:?})")]
    Unsure(Why),
    /// Upstream takes no writes from us.
    #[error("upstream is read-only")]
    ReadOnly,
    /// A name that upstream would read as another one, such as `a/../b` in a URL.
    #[error("the entry has a name that upstream cannot tell from another one")]
    Unnameable,
}

impl BackendError {
    /// What a client is told when a GET ends like this.
    pub const fn why(&self) -> Why {
        match self {
            Self::Deadline { .. } => Why::Deadline,
            Self::BreakerOpen | Self::Busy => Why::Breaker,
            Self::Unsure(why) => *why,
            Self::Connect(_)
            | Self::Status(_)
            | Self::Denied(_)
            | Self::TooLarge
            | Self::Full
            | Self::Redirect(_)
            | Self::Broken(_)
            | Self::ReadOnly
            | Self::Unnameable => Why::Fault,
        }
    }

    /// Whether this counts against upstream's health. A refusal of one entry does not: whoever says that
    /// a request is wrong is well, unless it has no time.
    pub const fn is_trouble(&self) -> bool {
        match self {
            Self::Connect(_)
            | Self::Deadline { .. }
            | Self::Status(408 | 425 | 429 | ..=399 | 500..)
            | Self::Broken(_) => true,
            Self::BreakerOpen
            | Self::Status(_)
            | Self::Busy
            | Self::Denied(_)
            | Self::TooLarge
            | Self::Full
            | Self::Redirect(_)
            | Self::Unsure(_)
            | Self::ReadOnly
            | Self::Unnameable => false,
        }
    }

    /// Whether this says nothing of other entries, or what was known before.
    pub const fn is_of_entry(&self) -> bool {
        matches!(self, Self::TooLarge | Self::Unnameable | Self::ReadOnly)
    }

    /// Whether the same upload may succeed later.
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::Connect(_)
            | Self::Deadline { .. }
            | Self::BreakerOpen
            | Self::Busy
            | Self::Status(_)
            | Self::Full
            | Self::Broken(_)
            | Self::Denied(_)
            | Self::Redirect(_)
            | Self::Unsure(_) => true,
            Self::TooLarge | Self::ReadOnly | Self::Unnameable => false,
        }
    }
}

/// A central cache.
pub trait Backend: Send + Sync {
    /// `Ok(None)`: it certainly does not exist. The pieces of a found body are not verified yet.
    fn get<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<Option<Fetched>, BackendError>>;

    /// As `get`, of what changes in place: caches on the way are asked to look at the source. What
    /// wraps another backend passes it on.
    fn get_fresh<'a>(
        &'a self,
        name: &'a Name,
    ) -> BoxFuture<'a, Result<Option<Fetched>, BackendError>> {
        self.get(name)
    }

    /// The same of a part, and less where the value ends within it. `Ok(None)`: it does not exist, or
    /// ends before the part begins.
    fn get_fresh_part<'a>(
        &'a self,
        name: &'a Name,
        _part: Range<u64>,
    ) -> BoxFuture<'a, Result<Option<FetchedPart>, BackendError>> {
        Box::pin(async { Ok(self.get_fresh(name).await?.map(FetchedPart::whole)) })
    }

    /// A part of a body. `Ok(None)`: it does not exist, or ends before the part does.
    fn get_part<'a>(
        &'a self,
        name: &'a Name,
        part: Range<u64>,
    ) -> BoxFuture<'a, Result<Option<FetchedPart>, BackendError>>;

    /// Stores the body, over whatever was there.
    fn put<'a>(&'a self, name: &'a Name, body: Upload) -> BoxFuture<'a, Result<(), BackendError>>;

    /// Whether each of `names` is there, as far as it can be told without transferring bodies.
    fn contains<'a>(&'a self, names: &'a [Name]) -> BoxFuture<'a, Result<Vec<bool>, BackendError>>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    None,
    Bearer(Secret),
    Basic { user: String, password: Secret },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMethod {
    Put,
    Post,
}

/// One upstream, as configured.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    /// `http://…` or `https://…`, without credentials.
    pub url: String,
    pub credentials: Credentials,
    pub ca_file: Option<PathBuf>,
    /// PEM files of a client certificate and its key.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    pub write: bool,
    pub write_method: WriteMethod,
    pub guard: guard::Config,
}

/// A configuration that no backend can be made of.
#[derive(Debug, thiserror::Error)]
#[error("upstream `{name}`: {problem}")]
pub struct BuildError {
    pub name: String,
    pub problem: String,
}

/// The guarded chain for one upstream. `seed` is for jitter alone.
pub fn build(
    config: &Config,
    metrics: &Metrics,
    seed: u64,
) -> Result<Arc<dyn Backend>, BuildError> {
    let refuse = |problem: String| BuildError { name: config.name.clone(), problem };
    // The rest of the URL is not repeated: it may hold a secret.
    let scheme = config.url.trim().split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    let plain: Arc<dyn Backend> = match scheme.as_deref() {
        Some("http" | "https") => Arc::new(http::HttpBackend::new(config)?),
        Some(other) => {
            return Err(refuse(format!(
                "`{other}://` is not supported; larder speaks `http://` and `https://`"
            )));
        }
        None => {
            return Err(refuse(
                "its url names no scheme; write for example `https://cache.example.com/prefix`"
                    .to_owned(),
            ));
        }
    };
    let upstream = metrics.upstream(&config.name);
    Ok(Arc::new(guard::Guard::new(plain, &config.name, config.guard.clone(), upstream, seed)))
}

#[cfg(test)]
mod tests;

//! Realms: upstream, namespace and trust, and how one is found for a client.
//!
//! A realm reads itself and the realm that it trusts, and writes only itself. Realms are remembered
//! in the store, so that uploads owed to one are not lost when the client that named it is gone.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, Name, Space};
use crate::entry::action::upstream_key;
use crate::entry::{Id, Key, Kind, RealmId};
use crate::store::Store;

/// Realms that clients may bring into being by naming namespaces.
const REALMS_MAX: usize = 4096;
/// Answers that are looked through before a realm is worked out.
const USUAL_MAX: usize = 8;

/// A central cache as realms see it.
#[derive(Clone)]
pub struct Upstream {
    pub name: Arc<str>,
    pub url: Arc<str>,
    pub backend: Arc<dyn Backend>,
    pub writes: bool,
}

/// See the module.
pub struct Realm {
    pub id: RealmId,
    pub namespace: Arc<str>,
    pub upstream: Option<Upstream>,
    pub trusted: Option<Arc<Self>>,
    /// The same namespace at the upstreams that some classes of Go entries have of their own.
    pub elsewhere: Vec<Arc<Self>>,
}

impl std::fmt::Debug for Realm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let upstream = self.upstream.as_ref().map(|upstream| &upstream.url);
        write!(f, "Realm({upstream:?}, {:?}, {:?})", self.namespace, self.trusted)
    }
}

impl Realm {
    /// The realms to read, nearest first.
    pub fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.trusted.as_deref())
    }

    /// The realms to read for Go, whose lookups do not tell an entry's class: nearest first.
    pub fn go_chain(&self) -> impl Iterator<Item = &Self> {
        self.chain().flat_map(Self::everywhere)
    }

    /// The realm and the same namespace elsewhere.
    fn everywhere(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.elsewhere.iter().map(|realm| &**realm))
    }

    /// Where entries go that have an upstream of their own, by its name; None: to this realm's.
    pub fn elsewhere_at(&self, upstream: Option<&str>) -> Option<&Arc<Self>> {
        let name = upstream?;
        self.elsewhere
            .iter()
            .find(|realm| realm.upstream.as_ref().is_some_and(|u| &*u.name == name))
    }

    /// The upstream that takes writes, if any.
    pub fn writes_to(&self) -> Option<&Upstream> {
        self.upstream.as_ref().filter(|upstream| upstream.writes)
    }

    /// How a key of this realm is named upstream.
    pub fn name_of(&self, key: &Key) -> Name {
        let (space, id) = match (key.kind, &key.id) {
            (Kind::Go, Id::Digest(action)) => {
                (Space::Ac, upstream_key(&self.namespace, action).to_string())
            }
            (Kind::Content, Id::Digest(digest)) => (Space::Cas, digest.to_string()),
            (Kind::Action, Id::Digest(digest)) => (Space::Ac, digest.to_string()),
            (_, Id::Name(name)) => (Space::Kv, name.to_string()),
            (Kind::Opaque, Id::Digest(digest)) => (Space::Kv, digest.to_string()),
        };
        Name { namespace: self.namespace.clone(), space, id }
    }
}

/// What the store remembers of a realm.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    upstream: String,
    namespace: String,
    trust: Option<String>,
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    pub namespace: &'a str,
    pub trust: Option<&'a str>,
    /// The upstream's URL or name; None: the first one.
    pub upstream: Option<&'a str>,
}

/// Why a realm cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RealmError {
    #[error(
        "`{0}` is not a namespace: write segments of letters, digits, `.`, `_` and `-`, for example `main` or `pr/17`"
    )]
    Namespace(String),
    #[error("{REALMS_MAX} namespaces are in use, and no more are taken")]
    TooMany,
}

/// All realms of a daemon.
pub struct Realms {
    upstreams: Vec<Upstream>,
    /// Names of the upstreams that classes of Go entries have of their own.
    of_classes: Vec<String>,
    known: RwLock<HashMap<RealmId, Arc<Realm>>>,
    /// The first few answers, so that a request that asks as most do needs no hashing.
    usual: RwLock<Vec<(Asked, Arc<Realm>)>>,
    /// The upstreams of realms that the store remembers, where they are not configured any more.
    forgotten: HashMap<RealmId, Arc<str>>,
    store: Store,
}

/// What a client has asked for.
struct Asked {
    namespace: Box<str>,
    trust: Option<Box<str>>,
    upstream: Option<Box<str>>,
}

impl Asked {
    fn is(&self, wanted: Wanted<'_>) -> bool {
        *self.namespace == *wanted.namespace
            && self.trust.as_deref() == wanted.trust
            && self.upstream.as_deref() == wanted.upstream
    }
}

impl Realms {
    /// Knows the realms that the store remembers, as far as their upstreams are still configured.
    pub fn new(upstreams: Vec<Upstream>, of_classes: Vec<String>, store: Store) -> Self {
        let (known, usual) = (RwLock::default(), RwLock::default());
        let forgotten = HashMap::new();
        let mut realms = Self { upstreams, of_classes, known, usual, forgotten, store };
        for (id, text) in realms.store.realms() {
            let Ok(seen) = serde_json::from_str::<Remembered>(&text) else { continue };
            let still_there = realms.upstreams.iter().any(|u| *u.url == *seen.upstream);
            if still_there {
                let trust = seen.trust.as_deref();
                realms.keep(realms.make(&seen.namespace, trust, Some(&seen.upstream)));
            } else {
                realms.forgotten.insert(id, seen.upstream.into());
            }
        }
        realms
    }

    pub fn upstreams(&self) -> &[Upstream] {
        &self.upstreams
    }

    pub fn by_id(&self, id: RealmId) -> Option<Arc<Realm>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The upstream of a realm that the store remembers, and that is not configured any more.
    pub fn former_upstream(&self, id: RealmId) -> Option<Arc<str>> {
        self.forgotten.get(&id).cloned()
    }

    /// The realm that a client asks for, made and remembered if it is new.
    pub fn resolve(&self, wanted: Wanted<'_>) -> Result<Arc<Realm>, RealmError> {
        {
            let usual = self.usual.read().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, realm)) = usual.iter().find(|(asked, _)| asked.is(wanted)) {
                return Ok(realm.clone());
            }
        }
        let realm = self.resolve_anew(wanted)?;
        let mut usual = self.usual.write().unwrap_or_else(PoisonError::into_inner);
        if usual.len() < USUAL_MAX && !usual.iter().any(|(asked, _)| asked.is(wanted)) {
            let asked = Asked {
                namespace: wanted.namespace.into(),
                trust: wanted.trust.map(Into::into),
                upstream: wanted.upstream.map(Into::into),
            };
            usual.push((asked, realm.clone()));
        }
        Ok(realm)
    }

    fn resolve_anew(&self, wanted: Wanted<'_>) -> Result<Arc<Realm>, RealmError> {
        for name in std::iter::once(wanted.namespace).chain(wanted.trust) {
            if !is_namespace(name) {
                return Err(RealmError::Namespace(name.to_owned()));
            }
        }
        let realm = self.make(wanted.namespace, wanted.trust, wanted.upstream);
        if let Some(known) = self.by_id(realm.id) {
            return Ok(known);
        }
        if self.known.read().unwrap_or_else(PoisonError::into_inner).len() >= REALMS_MAX {
            return Err(RealmError::TooMany);
        }
        self.remember(&realm, wanted.trust);
        Ok(self.keep(realm))
    }

    /// Knows a realm, and those that its entries go to: what is owed to these must find them, also
    /// after a restart, and also if the settings have come to name them since.
    fn keep(&self, realm: Realm) -> Arc<Realm> {
        for elsewhere in &realm.elsewhere {
            if self.by_id(elsewhere.id).is_none() {
                self.remember(elsewhere, None);
                let url = elsewhere.upstream.as_ref().map(|u| &*u.url);
                self.insert(self.make(&elsewhere.namespace, None, url).into());
            }
        }
        self.insert(realm.into())
    }

    fn remember(&self, realm: &Realm, trust: Option<&str>) {
        let remembered = Remembered {
            upstream: realm.upstream.as_ref().map(|u| u.url.to_string()).unwrap_or_default(),
            namespace: realm.namespace.to_string(),
            trust: trust.map(str::to_owned),
        };
        let text = serde_json::to_string(&remembered).expect("plain text serializes");
        if let Err(error) = self.store.register_realm(realm.id, &text) {
            // Uploads of this realm may be forgotten by a restart; nothing else depends on it.
            tracing::warn!(%error, "cannot remember a realm");
        }
    }

    /// An upstream that is asked for but not configured makes a realm of its own, without one.
    fn make(&self, namespace: &str, trust: Option<&str>, upstream: Option<&str>) -> Realm {
        let found = match upstream {
            None => self.upstreams.first(),
            Some(wanted) => self.upstreams.iter().find(|u| same(u, wanted)),
        };
        let url = found.map(|u| &*u.url).or(upstream).unwrap_or("");
        let trust = trust.filter(|trust| *trust != namespace);
        // Trusted realms are read; writing them is their own clients' business.
        let read_only = |u: &Upstream| Upstream { writes: false, ..u.clone() };
        let trusted = trust.map(|trust| {
            let realm = Realm {
                id: RealmId::of(url, trust, None),
                namespace: trust.into(),
                upstream: found.map(read_only),
                trusted: None,
                elsewhere: self.elsewhere(found, trust, read_only),
            };
            Arc::new(realm)
        });
        Realm {
            id: RealmId::of(url, namespace, trust),
            namespace: namespace.into(),
            upstream: found.cloned(),
            trusted,
            elsewhere: self.elsewhere(found, namespace, Upstream::clone),
        }
    }

    /// A namespace at the upstreams of classes, where it has an upstream at all.
    fn elsewhere(
        &self,
        own: Option<&Upstream>,
        namespace: &str,
        as_seen: impl Fn(&Upstream) -> Upstream,
    ) -> Vec<Arc<Realm>> {
        let Some(own) = own else { return Vec::new() };
        let of_classes = |u: &&Upstream| self.of_classes.iter().any(|name| **name == *u.name);
        let others = self.upstreams.iter().filter(of_classes).filter(|u| u.name != own.name);
        let realm = |u: &Upstream| {
            Arc::new(Realm {
                id: RealmId::of(&u.url, namespace, None),
                namespace: namespace.into(),
                upstream: Some(as_seen(u)),
                trusted: None,
                elsewhere: Vec::new(),
            })
        };
        others.map(realm).collect()
    }

    fn insert(&self, realm: Arc<Realm>) -> Arc<Realm> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(realm.id).or_insert(realm).clone()
    }

    /// Whether an upstream with this URL or name is configured.
    pub fn has_upstream(&self, wanted: &str) -> bool {
        self.upstreams.iter().any(|u| same(u, wanted))
    }
}

fn same(upstream: &Upstream, wanted: &str) -> bool {
    *upstream.name == *wanted || upstream.url.trim_end_matches('/') == wanted.trim_end_matches('/')
}

/// Segments of letters, digits, `.`, `_`, `-`; none of them a reserved word or a way upwards.
pub fn is_namespace(name: &str) -> bool {
    name.is_empty()
        || name.len() <= 200
            && name.split('/').all(|segment| {
                !matches!(segment, "" | "." | ".." | "kv" | "cas" | "ac")
                    && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_cannot_climb_or_shadow_a_space() {
        for good in ["", "main", "pr/17", "a.b_c-d"] {
            assert!(is_namespace(good), "{good}");
        }
        for bad in ["..", "a/../b", "/a", "a/", "a//b", "cas", "x/ac", "ä", "a b", "%2e"] {
            assert!(!is_namespace(bad), "{bad}");
        }
        assert!(!is_namespace(&"x".repeat(201)));
    }
}

//! Realms: upstream, namespace and trust, and how one is found for a client.
//!
//! A realm reads itself and the realm that it trusts, and writes only itself. Realms are remembered
//! in the store, so that uploads owed to one are not lost when the client that named it is gone, and
//! so that its entries can be purged by its name. Nobody is refused because there are many.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, Name, Space};
use crate::entry::action::upstream_key;
use crate::entry::{Id, Key, Kind, RealmId};
use crate::store::Store;

/// Realms that are remembered because somebody reads them; beyond, those alone that are written. As
/// many are kept in memory, and beyond those that somebody holds.
const REALMS_MAX: usize = 4096;
/// Realms that are remembered at all. Nothing is owed to further ones.
const WRITTEN_MAX: usize = 64 << 10;
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
    /// Whether the store is known to remember it.
    is_remembered: AtomicBool,
}

impl std::fmt::Debug for Realm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let upstream = self.upstream.as_ref().map(|upstream| &upstream.url);
        write!(f, "Realm({upstream:?}, {:?}, {:?})", self.namespace, self.trusted)
    }
}

impl Realm {
    /// One that trusts nobody and knows of no other upstream.
    pub fn alone(id: RealmId, namespace: &str, upstream: Option<Upstream>) -> Self {
        Self {
            id,
            namespace: namespace.into(),
            upstream,
            trusted: None,
            elsewhere: Vec::new(),
            is_remembered: AtomicBool::default(),
        }
    }

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

impl Remembered {
    fn of(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

/// The realms that a namespace is part of, as far as the store remembers them: of one upstream or
/// another, trusting others or not. A realm's own number means that one.
pub fn named(store: &Store, name: &str) -> HashSet<RealmId> {
    let mut named = HashSet::new();
    for (id, text) in store.realms() {
        let Some(seen) = Remembered::of(&text) else { continue };
        if seen.namespace == name || id.to_string() == name {
            named.insert(id);
        }
        // What is read of a namespace that is trusted is that one's.
        if seen.trust.as_deref() == Some(name) {
            named.insert(RealmId::of(&seen.upstream, name, None));
        }
    }
    named
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
}

/// All realms of a daemon.
pub struct Realms {
    upstreams: Vec<Upstream>,
    /// Names of the upstreams that classes of Go entries have of their own.
    of_classes: Vec<String>,
    known: RwLock<HashMap<RealmId, Arc<Realm>>>,
    /// The first few answers, so that a request that asks as most do needs no hashing.
    usual: RwLock<Vec<(Asked, Arc<Realm>)>>,
    /// How many the store remembers.
    remembered: AtomicUsize,
    /// It was said that these are too many.
    is_told: AtomicBool,
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
    pub fn new(upstreams: Vec<Upstream>, of_classes: Vec<String>, store: Store) -> Self {
        let remembered = AtomicUsize::new(store.realms().len());
        let (known, usual) = (RwLock::default(), RwLock::default());
        let is_told = AtomicBool::default();
        Self { upstreams, of_classes, known, usual, remembered, is_told, store }
    }

    pub fn upstreams(&self) -> &[Upstream] {
        &self.upstreams
    }

    /// The realm with this number, if it is known, or the store remembers it and its upstream is
    /// still configured.
    pub fn by_id(&self, id: RealmId) -> Option<Arc<Realm>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        known.or_else(|| self.recall(id))
    }

    fn recall(&self, id: RealmId) -> Option<Arc<Realm>> {
        let seen = Remembered::of(&self.store.realm(id)?)?;
        if !self.upstreams.iter().any(|u| *u.url == *seen.upstream) {
            return None;
        }
        let realm = self.make(&seen.namespace, seen.trust.as_deref(), Some(&seen.upstream));
        realm.is_remembered.store(true, Ordering::Relaxed);
        (realm.id == id).then(|| self.insert(realm))
    }

    /// The upstream of a realm that the store remembers, also if it is not configured any more.
    pub fn former_upstream(&self, id: RealmId) -> Option<Arc<str>> {
        Some(Remembered::of(&self.store.realm(id)?)?.upstream.into())
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
        let realm = self.insert(realm);
        for realm in realm.go_chain() {
            if self.remembered.load(Ordering::Relaxed) < REALMS_MAX {
                self.remember(realm);
            }
        }
        Ok(realm)
    }

    /// Before something is put in a realm: whoever sends what is owed must find the realm, also after a
    /// restart, and also if the settings have changed since. False: there are too many.
    pub fn remember(&self, realm: &Realm) -> bool {
        if realm.is_remembered.load(Ordering::Relaxed) {
            return true;
        }
        if self.store.realm(realm.id).is_none() {
            let before = self.remembered.fetch_add(1, Ordering::Relaxed);
            if before >= WRITTEN_MAX {
                self.remembered.fetch_sub(1, Ordering::Relaxed);
                if !self.is_told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "{WRITTEN_MAX} namespaces were put in here: what is put in further ones is \
                         not uploaded; use another --store"
                    );
                }
                return false;
            }
            let remembered = Remembered {
                upstream: realm.upstream.as_ref().map(|u| u.url.to_string()).unwrap_or_default(),
                namespace: realm.namespace.to_string(),
                trust: realm.trusted.as_ref().map(|trusted| trusted.namespace.to_string()),
            };
            let text = serde_json::to_string(&remembered).expect("plain text serializes");
            if let Err(error) = self.store.register_realm(realm.id, &text) {
                // Uploads of this realm may be forgotten by a restart; nothing else depends on it.
                tracing::warn!(%error, "cannot remember a realm");
                self.remembered.fetch_sub(1, Ordering::Relaxed);
                return true;
            }
        }
        realm.is_remembered.store(true, Ordering::Relaxed);
        true
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
            let id = RealmId::of(url, trust, None);
            let elsewhere = self.elsewhere(found, trust, read_only);
            Arc::new(Realm { elsewhere, ..Realm::alone(id, trust, found.map(read_only)) })
        });
        let id = RealmId::of(url, namespace, trust);
        let elsewhere = self.elsewhere(found, namespace, Upstream::clone);
        Realm { trusted, elsewhere, ..Realm::alone(id, namespace, found.cloned()) }
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
            let id = RealmId::of(&u.url, namespace, None);
            Arc::new(Realm::alone(id, namespace, Some(as_seen(u))))
        };
        others.map(realm).collect()
    }

    /// Into memory. Where that is full, those go that nobody holds: they are found again.
    fn insert(&self, realm: Realm) -> Arc<Realm> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REALMS_MAX && !known.contains_key(&realm.id) {
            known.retain(|_, realm| Arc::strong_count(realm) > 1);
        }
        known.entry(realm.id).or_insert_with(|| realm.into()).clone()
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
    use crate::backend::memory::MemoryBackend;
    use crate::store::{Config, Limit};
    use crate::units::{ByteSize, Clock, Timestamp};

    fn realms(store: &Store) -> Realms {
        let backend = Arc::new(MemoryBackend::new());
        let upstream =
            Upstream { name: "main".into(), url: "http://main".into(), backend, writes: true };
        Realms::new(vec![upstream], Vec::new(), store.clone())
    }

    /// Each namespace that anybody read was kept for ever. A central cache that had seen 4,096 pull
    /// requests refused the next one.
    #[test]
    fn no_namespace_is_refused_because_many_were_read() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual(Timestamp::from_seconds(1_000_000));
        let disk = Some(Limit::Size(ByteSize::gib(1)));
        let settings = Config { dir: dir.path().join("store"), disk, floor: None };
        let store = Store::open(&settings, clock, Arc::default()).unwrap();
        let all = realms(&store);
        let resolve = |realms: &Realms, n: usize| {
            let namespace = &*format!("pr/{n}");
            let wanted = Wanted { namespace, trust: Some("main"), upstream: None };
            realms.resolve(wanted).unwrap()
        };
        let held = resolve(&all, 0);
        let ids: Vec<_> = (0..REALMS_MAX + 100).map(|n| resolve(&all, n).id).collect();
        assert_eq!(store.realms().len(), REALMS_MAX, "the log grows with what is only read");
        assert!(all.known.read().unwrap().len() <= REALMS_MAX, "memory grows with it");
        assert!(Arc::ptr_eq(&held, &resolve(&all, 0)), "two of one realm");
        // Dropped from memory, and not committed yet.
        let early = all.by_id(ids[100]).expect("what the store remembers is found again");
        assert_eq!((&*early.namespace, early.chain().count()), ("pr/100", 2));
        // One more that is only read is forgotten with its reader; one that is written is not.
        let (read, written) = (ids[REALMS_MAX + 7], ids[REALMS_MAX + 9]);
        all.remember(&resolve(&all, REALMS_MAX + 9));
        all.remember(&resolve(&all, REALMS_MAX + 9));
        assert_eq!(store.realms().len(), REALMS_MAX + 1);
        assert_eq!(named(&store, &format!("pr/{}", REALMS_MAX + 9)), HashSet::from([written]));
        let again = realms(&store);
        assert!(again.by_id(read).is_none());
        assert!(again.by_id(written).is_some(), "what is owed to it would stay");
        let other = Realms::new(Vec::new(), Vec::new(), store.clone());
        assert!(other.by_id(written).is_none());
        assert_eq!(other.former_upstream(written).as_deref(), Some("http://main"));
        store.close();
    }

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

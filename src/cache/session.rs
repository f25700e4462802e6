//! Sessions: the requests of one build, counted together.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::entry::{Found, Lookup, RealmId, Why};
use crate::telemetry::metrics::{Counter, Gauge};
use crate::units::{Clock, Timestamp};
use crate::wire::go::Report;

/// Sessions that are remembered; the oldest ended ones give way.
const SESSIONS_MAX: usize = 128;

/// Counters of one session.
#[derive(Debug)]
pub struct Session {
    pub id: Arc<str>,
    pub realm: RealmId,
    pub scope: Arc<str>,
    pub commit: Arc<str>,
    pub branch: Arc<str>,
    pub default_branch: Arc<str>,
    /// What the commit was made from; not known before a helper has said it.
    pub parents: OnceLock<Vec<Arc<str>>>,
    pub started: Timestamp,
    /// When the last helper left, in seconds since 1970; zero while one is there.
    pub ended: Gauge,
    helpers: Counter,
    left: Counter,
    pub hits_near: Counter,
    pub hits_upstream: Counter,
    pub misses: Counter,
    pub puts: Counter,
    pub bytes_in: Counter,
    pub saved_ms: Counter,
    pub waited_ms: Counter,
}

impl Session {
    /// Counts what a lookup in the daemon came to.
    pub fn count(&self, lookup: &Lookup, waited_ms: u64) {
        match lookup {
            Lookup::Hit(blob, Found::Upstream | Found::Coalesced) => {
                self.hit_upstream(blob.meta.size, blob.meta.cost_ms, waited_ms);
            }
            Lookup::Hit(blob, Found::Memory | Found::Disk | Found::Native) => {
                self.hits_near.inc();
                self.saved_ms.add(u64::from(blob.meta.cost_ms));
            }
            Lookup::Miss(why) => self.miss(*why, waited_ms),
        }
    }

    pub fn hit_upstream(&self, bytes: u64, cost_ms: u32, waited_ms: u64) {
        self.hits_upstream.inc();
        self.bytes_in.add(bytes);
        self.saved_ms.add(u64::from(cost_ms));
        self.waited_ms.add(waited_ms);
    }

    pub fn miss(&self, _why: Why, waited_ms: u64) {
        self.misses.inc();
        self.waited_ms.add(waited_ms);
    }

    /// Adds what a helper has answered by itself since its last report.
    pub fn add(&self, before: &Report, now: &Report) {
        let hits = |r: &Report| r.hits_index + r.hits_native;
        self.hits_near.add(hits(now).saturating_sub(hits(before)));
        self.saved_ms.add(now.saved_ms.saturating_sub(before.saved_ms));
    }

    /// The first word about them counts: all helpers of a session build one commit.
    pub fn parents_are(&self, ids: &[String]) {
        if !ids.is_empty() {
            self.parents.get_or_init(|| ids.iter().map(|id| id.as_str().into()).collect());
        }
    }

    pub fn helper_came(&self) {
        self.helpers.inc();
        self.ended.set(0);
    }

    pub fn helper_left(&self, at: Timestamp) {
        self.left.inc();
        if self.left.get() >= self.helpers.get() {
            self.ended.set(at.seconds());
        }
    }

    pub fn is_live(&self) -> bool {
        self.left.get() < self.helpers.get()
    }
}

/// The sessions of a daemon.
#[derive(Debug)]
pub struct Sessions {
    list: Mutex<VecDeque<Arc<Session>>>,
    clock: Clock,
}

/// What a helper says of the session that it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    pub id: &'a str,
    pub realm: RealmId,
    pub scope: &'a str,
    pub commit: &'a str,
    pub branch: &'a str,
    pub default_branch: &'a str,
    /// Empty: not known yet.
    pub parents: &'a [String],
}

impl Sessions {
    pub fn new(clock: Clock) -> Self {
        Self { list: Mutex::default(), clock }
    }

    /// The session with this id and realm, begun if it is new.
    pub fn open(&self, opening: &Opening<'_>) -> Arc<Session> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |s: &&Arc<Session>| *s.id == *opening.id && s.realm == opening.realm;
        if let Some(found) = list.iter().find(same) {
            found.parents_are(opening.parents);
            return found.clone();
        }
        if list.len() >= SESSIONS_MAX {
            let oldest = list.iter().position(|session| !session.is_live()).unwrap_or(0);
            list.remove(oldest);
        }
        let session = Arc::new(Session {
            id: opening.id.into(),
            realm: opening.realm,
            scope: opening.scope.into(),
            commit: opening.commit.into(),
            branch: opening.branch.into(),
            default_branch: opening.default_branch.into(),
            parents: OnceLock::new(),
            started: self.clock.now(),
            ended: Gauge::default(),
            helpers: Counter::default(),
            left: Counter::default(),
            hits_near: Counter::default(),
            hits_upstream: Counter::default(),
            misses: Counter::default(),
            puts: Counter::default(),
            bytes_in: Counter::default(),
            saved_ms: Counter::default(),
            waited_ms: Counter::default(),
        });
        session.parents_are(opening.parents);
        list.push_back(session.clone());
        session
    }

    pub fn list(&self) -> Vec<Arc<Session>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub fn any_live(&self) -> bool {
        self.list().iter().any(|session| session.is_live())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_known_from_whichever_helper_says_them_first() {
        let sessions = Sessions::new(Clock::manual(Timestamp(0)));
        let ids = ["a".to_owned(), "b".to_owned()];
        let opening = Opening {
            id: "s",
            realm: RealmId([1; 16]),
            scope: "app",
            commit: "c",
            branch: "feature",
            default_branch: "main",
            parents: &[],
        };
        let session = sessions.open(&opening);
        assert_eq!((&*session.branch, &*session.default_branch), ("feature", "main"));
        assert_eq!(session.parents.get(), None);
        sessions.open(&Opening { parents: &ids, ..opening });
        session.parents_are(&ids[..1]);
        let known: Vec<&str> = session.parents.get().unwrap().iter().map(|id| &**id).collect();
        assert_eq!(known, ids);
    }
}

//! The sessions of a daemon: which commands are one, and which of them are still remembered.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::cache::forecast::Forecast;
use crate::cache::session::Session;
use crate::entry::RealmId;
use crate::telemetry::metrics::{Counter, Gauge};
use crate::units::{Clock, Timestamp};

/// Sessions that are remembered; the oldest ended ones give way.
const SESSIONS_MAX: usize = 128;

/// What a build used stays this long after its last helper has left, though room is needed: `go list
/// -export` prints paths for others to read.
const LINGER: Duration = Duration::from_secs(300);

/// The sessions of a daemon.
#[derive(Debug)]
pub struct Sessions {
    list: Mutex<VecDeque<Arc<Session>>>,
    /// A session has ended, or somebody wants its manifest.
    news: Notify,
    clock: Clock,
}

/// What a helper says of the session that it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    pub id: &'a str,
    /// Nobody has named the session: what does not follow closely is another one.
    pub is_derived: bool,
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
        Self { list: Mutex::default(), news: Notify::new(), clock }
    }

    /// The session with this id and realm, begun if it is new, with a forecast if there may be one.
    pub fn open(
        &self,
        opening: &Opening<'_>,
        forecast: impl FnOnce() -> Option<Arc<Forecast>>,
    ) -> Arc<Session> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        // A command may build several repositories, one after the other: each is remembered apart.
        let now_s = self.clock.now().seconds();
        let same = |s: &&Arc<Session>| {
            *s.id == *opening.id
                && !(opening.is_derived && s.is_long_over(now_s))
                && s.realm == opening.realm
                && *s.scope == *opening.scope
                && *s.commit == *opening.commit
        };
        if let Some(found) = list.iter().rev().find(same) {
            found.hear_opening(opening);
            return found.clone();
        }
        if list.len() >= SESSIONS_MAX {
            // One that goes on is still counted on, and what is not written down would be lost.
            let is_over = |session: &Arc<Session>| !session.is_live();
            let is_written = |session: &Arc<Session>| is_over(session) && !session.is_owing();
            let oldest = list.iter().position(is_written).or(list.iter().position(is_over));
            if let Some(oldest) = oldest {
                list.remove(oldest);
            }
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
            misses_policy: Counter::default(),
            misses_local: Counter::default(),
            misses_new: Counter::default(),
            puts: Counter::default(),
            bytes_in: Counter::default(),
            saved_ms: Counter::default(),
            waited_ms: Counter::default(),
            forecast: forecast(),
            questions: Mutex::default(),
            log: Mutex::default(),
            writes: AtomicBool::new(true),
            processors: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            clock: self.clock.clone(),
        });
        session.hear_opening(opening);
        list.push_back(session.clone());
        session
    }

    pub fn list(&self) -> Vec<Arc<Session>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Wakes whoever writes manifests.
    pub fn tell(&self) {
        self.news.notify_one();
    }

    pub async fn told(&self) {
        self.news.notified().await;
    }

    /// Since when the builds have been using entries that go on now. None: none goes on.
    pub fn live_since(&self) -> Option<Timestamp> {
        let now = self.clock.now();
        let lately = now.seconds().saturating_sub(LINGER.as_secs());
        let is_in_use = |session: &&Arc<Session>| {
            session.is_live() || session.ended.get().max(session.started.seconds()) >= lately
        };
        let list = self.list();
        // The clock may have been set back since.
        list.iter().filter(is_in_use).map(|session| session.started.min(now)).min()
    }

    /// Lets go of the memory of sessions that are long over and written down.
    pub fn release_old(&self) {
        let before = self.clock.now().seconds().saturating_sub(LINGER.as_secs());
        let is_old = |session: &&Arc<Session>| {
            !session.is_live() && session.ended.get() < before && !session.is_owing()
        };
        self.list().iter().filter(is_old).for_each(|session| session.release());
    }

    pub fn any_live(&self) -> bool {
        self.list().iter().any(|session| session.is_live())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::policy::ask::{Decision, Known, Upstream};
    use crate::entry::{Blob, Body, Class, Found, Lookup, Meta};

    const OPENING: Opening<'static> = Opening {
        id: "s",
        is_derived: false,
        realm: RealmId([1; 16]),
        scope: "app",
        commit: "c",
        branch: "feature",
        default_branch: "main",
        parents: &[],
    };

    /// A daemon that has seen many builds kept a log of each.
    #[test]
    fn what_a_session_used_is_let_go_once_it_is_written_and_over() {
        let clock = Clock::manual(Timestamp::from_seconds(1_000_000));
        let sessions = Sessions::new(clock.clone());
        let session = sessions.open(&OPENING, || None);
        session.helper_came();
        session.used(crate::entry::Digest([7; 32]));
        session.helper_left(clock.now());
        sessions.release_old();
        assert!(session.unwritten().is_some(), "it may go on");
        clock.advance(LINGER + Duration::from_secs(1));
        sessions.release_old();
        assert!(session.unwritten().is_none());
    }

    /// The miss of a probe for a key that is bound to the machine once stayed upstream's fault.
    #[test]
    fn what_is_asked_behind_the_builds_back_is_known_to_be_asked() {
        let sessions = Sessions::new(Clock::manual(Timestamp(0)));
        let session = sessions.open(&OPENING, || None);
        let upstream = Upstream {
            latency_ms: 50.0,
            bandwidth_bytes_per_ms: 0.0,
            hit_rate: 0.01,
            answers: 64.0,
            samples: 15,
            declined: 64,
        };
        let [probed, built] = [1, 2].map(|n| crate::entry::Digest([n; 32]));
        let decide = |action, declined| {
            session
                .decide(action, &Known::NoManifest, &Upstream { declined, ..upstream }, 1.0, 200)
                .0
        };
        assert_eq!([decide(&probed, 64), decide(&built, 65)], [Decision::Probe, Decision::Build]);
        assert!(session.asked(&probed) && !session.asked(&probed) && !session.asked(&built));
    }

    /// What came ahead of a build and was waited for was once counted twice: as it came, and as an answer.
    #[test]
    fn what_others_have_asked_for_is_a_hit_that_brings_no_bytes() {
        let sessions = Sessions::new(Clock::manual(Timestamp(0)));
        let session = sessions.open(&OPENING, || None);
        let action = crate::entry::Digest([1; 32]);
        let meta = Meta::new(crate::entry::Digest([2; 32]), 100, Timestamp(0), Class::Archive);
        for (found, bytes) in [
            (Found::Coalesced, 0),
            (Found::Upstream, 100),
            (Found::Disk, 100),
            (Found::Coalesced, 100),
        ] {
            let blob = Blob { meta: meta.clone(), body: Body::Bytes(bytes::Bytes::new()) };
            session.count(&action, &Lookup::Hit(blob, found));
            assert_eq!(session.bytes_in.get(), bytes, "{found:?}");
        }
        assert_eq!((session.hits_upstream.get(), session.hits_near.get()), (3, 1));
    }

    #[test]
    fn parents_are_known_from_whichever_helper_says_them_first() {
        let sessions = Sessions::new(Clock::manual(Timestamp(0)));
        let ids = ["a".to_owned(), "b".to_owned()];
        let session = sessions.open(&OPENING, || None);
        assert_eq!((&*session.branch, &*session.default_branch), ("feature", "main"));
        assert_eq!(session.parents.get(), None);
        sessions.open(&Opening { parents: &ids, ..OPENING }, || None);
        session.parents_are(&ids[..1]);
        let known: Vec<&str> = session.parents.get().unwrap().iter().map(|id| &**id).collect();
        assert_eq!(known, ids);
    }
}

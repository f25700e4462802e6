//! Go's lookups beyond this machine: ask, wait or build, within the session's clock.
//!
//! `policy` decides; here are what it decides by, the questions themselves, and what is learned from
//! the answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::cache::flight::{Arrival, End, Joined};
use crate::cache::forecast::{Aim, Forecast, Phase};
use crate::cache::policy::ask::{Decision, Known};
use crate::cache::policy::statistics::{Kind as Question, Statistics};
use crate::cache::realm::{Realm, Upstream};
use crate::cache::session::{Opening, Session};
use crate::cache::{Cache, FETCH_WAIT, policy};
use crate::entry::{Blob, Body, Digest, Found, Id, Key, Lookup, Meta, Why};
use crate::store::Store;

/// A build's first questions wait so long for the manifests to be read, if its clock permits.
const FORECAST_WAIT: Duration = Duration::from_millis(800);
/// Frame of an entry of which only is known that it was sent.
const SENT_BYTES: u64 = 64 << 10;
/// What a flight of an action has brought; its output is in place.
fn landed(arrival: Arrival) -> Result<Blob, Why> {
    match arrival {
        Arrival::Ended(End::Stored(meta) | End::Held(meta, _)) => {
            Ok(Blob { meta, body: Body::Bytes(bytes::Bytes::new()) })
        }
        Arrival::Ended(End::Failed(why)) => Err(why),
        Arrival::Streaming { .. } => Err(Why::Fault),
    }
}

/// What is kept of an upstream in the store, under its name.
const NOTE: &str = "statistics";

/// What each upstream is like.
pub(super) struct Estimates {
    by_upstream: HashMap<Arc<str>, Mutex<Statistics>>,
}

impl Estimates {
    pub(super) fn new(upstreams: &[Upstream], store: &Store) -> Self {
        let remembered = |upstream: &Upstream| {
            let bytes = store.note(&note_of(upstream))?;
            Statistics::decode(&bytes)
        };
        let by_upstream = upstreams
            .iter()
            .map(|u| (u.name.clone(), Mutex::new(remembered(u).unwrap_or_default())))
            .collect();
        Self { by_upstream }
    }

    fn with<T>(&self, upstream: &str, act: impl FnOnce(&mut Statistics) -> T) -> Option<T> {
        let statistics = self.by_upstream.get(upstream)?;
        Some(act(&mut statistics.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Another URL under the same name is another upstream.
fn note_of(upstream: &Upstream) -> String {
    let digest = Digest::of(upstream.url.as_bytes()).to_string();
    format!("{NOTE}-{}", &digest[..16])
}

impl Cache {
    /// A helper's session, with the forecast that it shares with all who build the same.
    pub fn open_session(&self, realm: &Arc<Realm>, opening: &Opening<'_>) -> Arc<Session> {
        let session = self.inner.sessions.open(opening, || {
            let has_upstream = realm.go_chain().any(|realm| realm.upstream.is_some());
            let is_aimed = !opening.scope.is_empty() && !opening.commit.is_empty();
            (has_upstream && is_aimed).then(|| {
                self.inner.forecasts.open(Aim {
                    realm: realm.clone(),
                    scope: opening.scope.into(),
                    commit: opening.commit.into(),
                    branch: opening.branch.into(),
                    default_branch: opening.default_branch.into(),
                })
            })
        });
        if let Some(forecast) = &session.forecast {
            self.inner.forecasts.resume(forecast);
        }
        session
    }

    /// What this machine has of a Go action, in the realm or in the one that it trusts.
    pub(super) async fn local_go(&self, realm: &Realm, action: &Digest) -> Option<Blob> {
        for realm in realm.go_chain() {
            let key = Key::go(realm.id, *action);
            if let Some(row) = self.inner.store.find(&key)
                && let Some(blob) = self.go_blob(&key, &row).await
            {
                return Some(blob);
            }
        }
        None
    }

    /// A key that is not here: within the session's clock, if there is one.
    pub(super) async fn ask_for(
        &self,
        realm: &Realm,
        session: Option<&Session>,
        action: &Digest,
    ) -> Lookup {
        let is_absent = |realm: &&Realm| {
            let key = Key::go(realm.id, *action);
            realm.upstream.is_none() || self.inner.absent.contains(realm.id, &key)
        };
        if realm.go_chain().all(|realm| is_absent(&realm)) {
            return Lookup::Miss(super::nobody_has_it(realm.go_chain()));
        }
        let Some(session) = session else { return self.ask_chain(realm, action, FETCH_WAIT).await };
        if let Some(blob) = self.await_forecast(realm, session, action).await {
            return Lookup::Hit(blob, Found::Disk);
        }
        let lookup = self.ask_once(realm, session, action).await;
        match (&lookup, &session.forecast) {
            // What was to come has been given up: then it is asked for.
            (Lookup::Miss(Why::Fault), Some(forecast))
                if matches!(forecast.word(action, 0.0, 0.0), Known::Listed { .. }) =>
            {
                if let Some(blob) = self.local_go(realm, action).await {
                    return Lookup::Hit(blob, Found::Disk);
                }
                self.ask_once(realm, session, action).await
            }
            _ => lookup,
        }
    }

    /// Waits for the manifests of a build that has just begun; what they bring may be here then.
    async fn await_forecast(
        &self,
        realm: &Realm,
        session: &Session,
        action: &Digest,
    ) -> Option<Blob> {
        let forecast = session.forecast.as_ref()?;
        if forecast.phase() != Phase::Loading {
            return None;
        }
        let (most, _wait) = session.wait(FORECAST_WAIT)?;
        // Late or never: then it goes on as if there were none.
        let _ = tokio::time::timeout(most, forecast.told()).await;
        self.local_go(realm, action).await
    }

    async fn ask_once(&self, realm: &Realm, session: &Session, action: &Digest) -> Lookup {
        let now = self.inner.clock.now();
        let upstream = realm.upstream.as_ref().map(|upstream| upstream.name.clone());
        let upstream = upstream.unwrap_or_else(|| "".into());
        let statistics = &self.inner.statistics;
        let speed = statistics.with(&upstream, |s| {
            let kind = self.known(realm, session, action, (0.0, 0.0));
            (s.estimate((&kind).into(), now), s.speed(now), s.typical_cost_ms(now))
        });
        let Some((estimate, speed, typical)) = speed else {
            return self.ask_chain(realm, action, FETCH_WAIT).await;
        };
        let link = (estimate.latency_ms, estimate.bandwidth_bytes_per_ms);
        let known = self.known(realm, session, action, link);
        let (decision, _wait) = session.decide(action, &known, &estimate, speed, typical);
        statistics.with(&upstream, |s| s.observe_decision((&known).into(), decision));
        tracing::trace!(%action, ?known, ?estimate, ?decision, "a key that is not here");
        match decision {
            Decision::Build => Lookup::Miss(Why::Policy),
            Decision::Probe => {
                // What was on its way may have come since: then nobody is asked.
                if let Some(blob) = self.local_go(realm, action).await {
                    return Lookup::Hit(blob, Found::Disk);
                }
                for realm in realm.go_chain() {
                    // Nobody waits for it; what it brings is kept and learned from.
                    let _ = self.join_go(realm, &Key::go(realm.id, *action), (&known).into());
                }
                Lookup::Miss(Why::Policy)
            }
            Decision::Wait { most_ms } | Decision::Ask { most_ms } => {
                let most = Duration::from_millis(most_ms);
                if let (Known::Coming { .. }, Some(forecast)) = (&known, &session.forecast) {
                    // Once written down it is on the list no more.
                    forecast.overtaking.name(*action);
                    self.inner.forecasts.name(*action);
                }
                self.ask_chain_as(realm, action, most, (&known).into()).await
            }
        }
    }

    /// What the forecast says of a key, this daemon's own memory of what it has sent, or the hit of the
    /// action that it belongs to.
    /// `link`: its latency in milliseconds, and bytes a millisecond.
    fn known(
        &self,
        realm: &Realm,
        session: &Session,
        action: &Digest,
        (latency_ms, bytes_per_ms): (f64, f64),
    ) -> Known {
        let forecast = session.forecast.as_ref();
        let word = forecast.map_or(Known::NoManifest, |f| f.word(action, latency_ms, bytes_per_ms));
        let is_there =
            |realm: &Realm| self.inner.confirmed.holds(realm.id, &Key::go(realm.id, *action));
        let word = match word {
            // go has moved the output away, or it was evicted: upstream has what we have sent it.
            Known::Unlisted | Known::NoManifest if realm.go_chain().any(is_there) => {
                Known::Listed { cost_ms: 0, frame_bytes: SENT_BYTES }
            }
            word => word,
        };
        session.refine(action, word)
    }

    async fn ask_chain(&self, realm: &Realm, action: &Digest, most: Duration) -> Lookup {
        self.ask_chain_as(realm, action, most, Question::NoManifest).await
    }

    /// The realms of the chain, all at once, within one deadline. What is on its way from any of them is
    /// waited for first: a pull request asks nobody for what comes from main.
    async fn ask_chain_as(
        &self,
        realm: &Realm,
        action: &Digest,
        most: Duration,
        question: Question,
    ) -> Lookup {
        let asking = async {
            let mut why = Why::Absent;
            let keys = realm.go_chain().map(|realm| (realm.id, Key::go(realm.id, *action)));
            let under_way = keys.filter_map(|(id, key)| self.inner.flights.under_way(id, &key));
            for follower in under_way.collect::<Vec<_>>() {
                if let Ok(blob) = landed(follower.arrival().await) {
                    return Lookup::Hit(blob, Found::Coalesced);
                }
            }
            // One that was on its way when it was looked for here may have come before it could be
            // joined.
            if let Some(blob) = self.local_go(realm, action).await {
                return Lookup::Hit(blob, Found::Disk);
            }
            let asked = realm.go_chain().map(|realm| self.upstream_go(realm, action, question));
            let mut asked: FuturesUnordered<_> = asked.collect();
            while let Some(answer) = asked.next().await {
                match answer {
                    Ok((blob, found)) => return Lookup::Hit(blob, found),
                    Err(Why::Absent) => {}
                    Err(other) => why = other,
                }
            }
            Lookup::Miss(why)
        };
        tokio::time::timeout(most, asking).await.unwrap_or(Lookup::Miss(Why::Deadline))
    }

    async fn upstream_go(
        &self,
        realm: &Realm,
        action: &Digest,
        question: Question,
    ) -> Result<(Blob, Found), Why> {
        let key = Key::go(realm.id, *action);
        if self.inner.absent.contains(realm.id, &key) {
            return Err(Why::Absent);
        }
        let Some((follower, found)) = self.join_go(realm, &key, question) else {
            return Err(Why::Absent);
        };
        landed(follower.arrival().await).map(|blob| (blob, found))
    }

    /// The flight for a key, begun if there is none.
    fn join_go(
        &self,
        realm: &Realm,
        key: &Key,
        question: Question,
    ) -> Option<(crate::cache::flight::Follower, Found)> {
        let upstream = realm.upstream.as_ref()?;
        Some(match self.inner.flights.join(realm.id, key) {
            Joined::Later(follower) => (follower, Found::Coalesced),
            Joined::First(leader, follower) => {
                let name = realm.name_of(key);
                let cache = self.clone();
                let flight =
                    cache.fly(leader, upstream.clone(), realm.id, name, key.clone(), question);
                self.inner.tasks.spawn("fetch", flight);
                (follower, Found::Upstream)
            }
        })
    }

    /// A session has built what nobody had.
    pub fn learn_built(&self, realm: &Realm, session: &Session, action: &Digest, meta: &Meta) {
        let is_asked = session.asked(action);
        let is_bound =
            meta.class.is_missed_in_vain() || !policy::is_worth_a_place(meta.size, meta.cost_ms);
        session.count_built(action, is_bound);
        let Some(upstream) = &realm.upstream else { return };
        let now = self.inner.clock.now();
        let recorded = session.forecast.as_ref().and_then(|f| f.cost_of(action));
        if recorded.is_some() {
            self.inner.frames.built_though_listed(realm.id, *action);
        }
        self.inner.statistics.with(&upstream.name, |s| {
            s.observe_built(action, meta.cost_ms, is_bound, is_asked, now);
            if let Some(recorded) = recorded {
                s.observe_speed(meta.cost_ms, recorded, now);
            }
        });
        // Those of other classes were asked as well, and what they said counts among theirs.
        for elsewhere in realm.elsewhere.iter().filter_map(|realm| realm.upstream.as_ref()) {
            let settle = |s: &mut Statistics| s.observe_settled(action, is_bound, is_asked);
            self.inner.statistics.with(&elsewhere.name, settle);
        }
    }

    /// A question has saved building what it asked for.
    pub(super) fn learn_saved(&self, realm: &Realm, meta: &Meta) {
        let Some(upstream) = realm.upstream.as_ref().filter(|_| meta.cost_ms > 0) else { return };
        let now = self.inner.clock.now();
        self.inner.statistics.with(&upstream.name, |s| s.observe_saved(meta.cost_ms, now));
    }

    #[cfg(test)]
    pub(crate) fn statistics_of(&self, upstream: &str) -> Statistics {
        self.inner.statistics.with(upstream, |s| s.clone()).unwrap()
    }

    pub(super) fn learn_answer(
        &self,
        upstream: &Upstream,
        key: &Key,
        question: Question,
        is_hit: Result<bool, Why>,
        took: Duration,
    ) {
        let (ms, now) = (took.as_secs_f64() * 1000.0, self.inner.clock.now());
        // A pull request's own namespace lacks most of what the trusted one has, which is asked too:
        // it would count as a miss beside each hit.
        let realm = self.inner.realms.by_id(key.realm);
        let asks_others = realm.is_some_and(|realm| realm.trusted.is_some());
        let Id::Digest(action) = &key.id else { return };
        self.inner.statistics.with(&upstream.name, |s| match is_hit {
            Ok(false) if asks_others => s.observe_latency(ms, now),
            Ok(is_hit) => s.observe_answer(action, question, is_hit, ms, now),
            Err(_) => s.observe_fault(question, ms, now),
        });
    }

    /// A body has come in one stream.
    pub fn learn_transfer(&self, upstream: &Upstream, bytes: u64, took: Duration) {
        let (ms, now) = (took.as_secs_f64() * 1000.0, self.inner.clock.now());
        self.inner.statistics.with(&upstream.name, |s| s.observe_transfer(bytes, ms, now));
    }

    /// Keeps what was learned of the upstreams for the next daemon; blocks.
    pub fn save_statistics(&self) {
        for upstream in self.inner.realms.upstreams() {
            let bytes = self.inner.statistics.with(&upstream.name, |s| s.encode());
            if let Some(bytes) = bytes {
                self.inner.store.keep_note(&note_of(upstream), &bytes);
            }
        }
    }

    /// The forecast of a command that wants one without a build.
    pub fn forecast(&self, aim: Aim) -> Arc<Forecast> {
        self.inner.forecasts.open(aim)
    }
}

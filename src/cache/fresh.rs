//! Values that change in place, for clients that want no old one: manifests and trails, which
//! builds elsewhere write on. Everything else says the same for ever, and is answered by the tiers.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;

use crate::backend::Name;
use crate::cache::Cache;
use crate::cache::flight::{Arrival, End, Joined, Leader};
use crate::cache::realm::{Realm, Upstream};
use crate::entry::{Blob, Body, Class, Digest, Found, Key, Kind, Lookup, Meta};
use crate::manifest;
use crate::telemetry::metrics::Protocol;

/// How long upstream may take to say what is new. Then what is here is better than nothing.
const FRESH_WAIT: Duration = Duration::from_secs(2);

/// So much of a value tells what it is.
const HEAD: u64 = 64;

impl Cache {
    /// As `get`, but of a manifest or trail that is here upstream is asked first: it may have grown.
    pub async fn get_fresh(&self, protocol: Protocol, realm: &Realm, key: &Key) -> Lookup {
        for realm in realm.chain() {
            let own = key.in_realm(realm.id);
            if self.may_be_old(realm, &own).await {
                if let Some(lookup) = self.refreshed(realm, &own).await {
                    self.inner.metrics.of(protocol).gets.inc();
                    self.count(protocol, &lookup);
                    return lookup;
                }
                break;
            }
        }
        self.get(protocol, realm, key).await
    }

    /// Whether this is what others write on, and nothing of ours is still to be sent.
    async fn may_be_old(&self, realm: &Realm, key: &Key) -> bool {
        if key.kind != Kind::Action || self.inner.store.owes(key, realm.id) {
            return false;
        }
        let Some((blob, _)) = self.local(key).await else { return false };
        match blob.body {
            Body::Bytes(bytes) => manifest::is_one(&bytes),
            Body::Source { source, .. } => {
                let head = source.stream(0..blob.meta.size.min(HEAD)).next().await;
                head.is_some_and(|head| head.is_ok_and(|head| manifest::is_one(&head)))
            }
        }
    }

    /// What upstream has now; None: it does not say. All who ask now share one question.
    async fn refreshed(&self, realm: &Realm, key: &Key) -> Option<Lookup> {
        let upstream = realm.upstream.clone()?;
        let (follower, found) = match self.inner.flights.join(realm.id, key) {
            Joined::Later(follower) => (follower, Found::Coalesced),
            Joined::First(leader, follower) => {
                let question = self.clone().ask_again(leader, upstream, realm.name_of(key));
                self.inner.tasks.spawn("fetch", question);
                (follower, Found::Upstream)
            }
        };
        match tokio::time::timeout(FRESH_WAIT, follower.arrival()).await {
            Ok(Arrival::Ended(End::Held(meta, bytes))) => {
                Some(Lookup::Hit(Blob { meta, body: Body::Bytes(bytes) }, found))
            }
            _ => None,
        }
    }

    /// Not kept: a put that comes meanwhile would be lost under it.
    async fn ask_again(self, leader: Leader, upstream: Upstream, name: Name) {
        let limit = manifest::SIZE_MAX as u64;
        let end = match self.fetch_fresh(&upstream, &name, limit).await {
            Ok(value) => {
                let bytes = Bytes::from(value);
                let now = self.inner.clock.now();
                let size = bytes.len() as u64;
                End::Held(Meta::new(Digest::of(&bytes), size, now, Class::Other), bytes)
            }
            Err(end) => end,
        };
        leader.end(end);
    }
}

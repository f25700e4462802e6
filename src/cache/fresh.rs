//! Values that change in place: manifests and trails, which builds elsewhere write on. For clients that
//! want no old one, and for a prefetch that wants them soon. Everything else says the same for ever,
//! and is answered by the tiers.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::backend::Name;
use crate::cache::Cache;
use crate::cache::flight::{Arrival, End, Joined, Leader};
use crate::cache::realm::{Realm, Upstream};
use crate::entry::{Blob, Body, Class, Digest, Found, Key, Kind, Lookup, Meta, Why};
use crate::manifest;
use crate::telemetry::metrics::Protocol;

/// How long upstream may take to say what is new. Then what is here is better than nothing, and must
/// come before whoever asks has given us up, who has counted from earlier on.
const FRESH_WAIT: Duration = Duration::from_millis(500);

/// What a new connection brings with the first answer, its head aside: ten segments less.
const FIRST_WINDOW: u64 = 13 << 10;
/// Parts of a value that are asked for at once, each on a connection that a prefetch will use.
pub const PARTS_MAX: usize = 12;

/// So much of a value tells what it is.
const HEAD: u64 = 64;

impl Cache {
    /// As `get`, but of a manifest or trail that is here upstream is asked first: it may have grown.
    pub async fn get_fresh(&self, protocol: Protocol, realm: &Realm, key: &Key) -> Lookup {
        for realm in realm.chain() {
            let own = key.in_realm(realm.id);
            // The nearest that is here counts, as for `get`.
            let Some((blob, _)) = self.local(&own).await else { continue };
            if self.may_be_old(realm, &own, blob).await
                && let Some(lookup) = self.refreshed(realm, &own).await
            {
                self.inner.metrics.of(protocol).gets.inc();
                self.count(protocol, &lookup);
                return lookup;
            }
            break;
        }
        self.get(protocol, realm, key).await
    }

    /// Whether this is what others write on, and nothing of ours is still to be sent.
    async fn may_be_old(&self, realm: &Realm, key: &Key, blob: Blob) -> bool {
        if key.kind != Kind::Action || self.inner.store.owes(key, realm.id) {
            return false;
        }
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

    /// A value of up to some megabytes, as it is now at its source, in as few round trips as can be.
    /// A new connection brings little at first, so that all of it on one would take several: so many
    /// parts come at once, and one failing has the whole read. Parts of two versions are told by who
    /// reads the value.
    pub async fn read_in_parts(
        &self,
        upstream: &Upstream,
        name: &Name,
        limit: u64,
        parts: u64,
    ) -> Result<Option<Vec<u8>>, Why> {
        match self.try_in_parts(upstream, name, limit, parts).await {
            Err(_) => self.read_value(upstream, name, limit).await,
            read => read,
        }
    }

    async fn try_in_parts(
        &self,
        upstream: &Upstream,
        name: &Name,
        limit: u64,
        count: u64,
    ) -> Result<Option<Vec<u8>>, Why> {
        let mut value = Vec::new();
        // Windows are twice as wide when they have been filled once.
        for len in [FIRST_WINDOW, 2 * FIRST_WINDOW] {
            let from = value.len() as u64;
            let parts = (0..count).map(|n| from + n * len..from + (n + 1) * len);
            let parts = parts.map(|part| self.read_part(upstream, name, part, limit));
            let mut parts = stream::iter(parts).buffered(PARTS_MAX);
            while let Some(part) = parts.next().await {
                match part? {
                    // The other ones are given up.
                    Part::Whole(whole) => return Ok(Some(whole)),
                    Part::None if value.is_empty() => return Ok(None),
                    Part::None => return Ok(Some(value)),
                    Part::Some(bytes) => {
                        value.extend_from_slice(&bytes);
                        if (bytes.len() as u64) < len {
                            return Ok(Some(value));
                        }
                    }
                }
            }
        }
        let rest = value.len() as u64..limit;
        match self.read_part(upstream, name, rest, limit).await? {
            Part::Whole(whole) => return Ok(Some(whole)),
            Part::Some(bytes) => value.extend_from_slice(&bytes),
            Part::None => {}
        }
        Ok(Some(value))
    }

    async fn read_part(
        &self,
        upstream: &Upstream,
        name: &Name,
        part: Range<u64>,
        limit: u64,
    ) -> Result<Part, Why> {
        let (start, end) = (part.start, part.end);
        let answer = upstream.backend.get_fresh_part(name, part).await;
        let is_whole = matches!(&answer, Ok(Some(part)) if part.is_whole);
        if is_whole && start > 0 {
            // The first one brings it: it is not held twelve times.
            return Err(Why::Fault);
        }
        let answer = answer.map(|found| found.map(|found| found.fetched));
        match self.collect(name, answer, if is_whole { limit } else { end }).await {
            Ok(bytes) if is_whole => Ok(Part::Whole(bytes)),
            Ok(bytes) => Ok(Part::Some(bytes)),
            Err(End::Failed(Why::Absent)) => Ok(Part::None),
            Err(End::Failed(why)) => Err(why),
            Err(End::Stored(_) | End::Held(..)) => Err(Why::Fault),
        }
    }
}

/// What came of a part.
enum Part {
    Some(Vec<u8>),
    /// Its upstream knows no parts.
    Whole(Vec<u8>),
    None,
}

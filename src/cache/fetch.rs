//! What a flight does: asks the backend, stages what arrives, verifies it, keeps it.
//!
//! Must finish: this runs in a task of its own, whether or not anybody still waits.

use bytes::Bytes;
use futures_util::StreamExt;

use crate::backend::{BackendError, Fetched, Name};
use crate::cache::flight::{End, Leader};
use crate::cache::policy::statistics::Kind as Question;
use crate::cache::realm::Upstream;
use crate::cache::{Cache, READ_HERE_MAX, policy};
use crate::entry::{Class, Digest, Key, Kind, Meta, RealmId, Why};
use crate::store::StoreError;
use crate::store::file::Finished;
use crate::store::record::Row;
use crate::store::segment::INLINE_BODY_MAX;

/// Bodies that find no room on disk are passed on from memory up to this size, as far as bodies may be
/// lent at once.
const HELD_MAX: u64 = 8 << 20;
/// The value of a Go action, with a frame inside.
pub const GO_VALUE_MAX: u64 = 1 << 20;

impl Cache {
    pub(super) async fn fly(
        self,
        leader: Leader,
        upstream: Upstream,
        realm: RealmId,
        name: Name,
        key: Key,
        question: Question,
    ) {
        if let Some(end) = self.brought(realm, &key).await {
            return leader.end(end);
        }
        let end = match key.kind {
            Kind::Go => self.fetch_go(&upstream, &name, &key, question).await,
            Kind::Content | Kind::Action | Kind::Opaque => {
                self.fetch_plain(&leader, &upstream, realm, &name, &key).await
            }
        };
        match &end {
            End::Stored(meta) | End::Held(meta, _) => {
                // What was put here meanwhile is not what upstream has, or is owed to it.
                let there = self.inner.store.find(&key);
                let is_ours = there.is_some_and(|row| row.digest != meta.digest);
                if !is_ours && !self.inner.store.owes(&key, realm) {
                    self.inner.confirmed.insert(realm, &key, meta.digest);
                }
            }
            End::Failed(Why::Absent) => {
                // What upstream was thought to have, it has lost: a new put must be sent.
                self.inner.confirmed.remove(realm, &key);
                self.inner.absent.insert(realm, &key);
            }
            End::Failed(_) => {}
        }
        leader.end(end);
    }

    /// What the last flight of this key has come to, if it ended after this client had looked:
    ///   looks, and finds nothing · a flight brings it, and ends · joins: the first of a new one.
    async fn brought(&self, realm: RealmId, key: &Key) -> Option<End> {
        if self.inner.absent.contains(realm, key) {
            return Some(End::Failed(Why::Absent));
        }
        let blob = match key.kind {
            Kind::Go => {
                let row = self.inner.store.find(key)?;
                self.go_blob(key, &row).await
            }
            Kind::Content | Kind::Action | Kind::Opaque => {
                self.local(key).await.map(|(blob, _)| blob)
            }
        };
        blob.map(|blob| End::Stored(blob.meta))
    }

    async fn fetch_plain(
        &self,
        leader: &Leader,
        upstream: &Upstream,
        realm: RealmId,
        name: &Name,
        key: &Key,
    ) -> End {
        let fetched = match upstream.backend.get(name).await {
            Ok(Some(fetched)) => fetched,
            Ok(None) => return End::Failed(Why::Absent),
            Err(error) => return self.failed(name, &error),
        };
        let limit = policy::body_limit(key.kind);
        if fetched.len.is_some_and(|len| len > limit) {
            tracing::warn!(%name, "upstream: a body over the limit was not taken");
            return End::Failed(Why::Policy);
        }
        if !self.has_room_now(fetched.len.unwrap_or(0), 0) {
            return self.hold(fetched, name, key).await;
        }
        let announced = fetched.len;
        let finished = match self.stage(leader, fetched, limit).await {
            Ok(finished) => finished,
            Err(why) => return End::Failed(why),
        };
        if announced.is_some_and(|len| len != finished.size)
            || !self.is_right(name, key, finished.digest)
        {
            // A new put must be sent, whatever upstream says that it has.
            self.inner.confirmed.remove(realm, key);
            if let Some(content) = key.expected() {
                self.inner.frames.spoil(realm, &content);
            }
            return self.wrong(upstream, &"not what its name says");
        }
        let meta = Meta::new(finished.digest, finished.size, self.inner.clock.now(), Class::Other);
        let (cache, key) = (self.clone(), key.clone());
        let keep = move || cache.keep_plain(&key, meta, finished);
        // What is large and known already may have to be hashed again.
        if announced.is_none_or(|len| len > READ_HERE_MAX) {
            let kept = self.inner.tasks.blocking("keep what was fetched", keep).await;
            return kept.unwrap_or(End::Failed(Why::Fault));
        }
        keep()
    }

    /// Keeps what upstream had, unless something was put here meanwhile: that was acknowledged, and is
    /// newer.
    fn keep_plain(&self, key: &Key, meta: Meta, finished: Finished) -> End {
        let small = finished.inline().map(Bytes::copy_from_slice);
        let held = |small: Option<Bytes>, meta| match small {
            Some(bytes) => End::Held(meta, bytes),
            None => End::Stored(meta),
        };
        let seen = self.inner.store.seen(key);
        let sound = |row: Row| self.inner.store.is_sound(key, &row);
        if key.kind != Kind::Content && self.inner.store.find(key).is_some_and(sound) {
            return held(small, meta);
        }
        match self.inner.store.put_fetched(key, finished, &meta, seen) {
            Ok(_) => {
                if let Some(bytes) = small {
                    self.inner.memory.offer(key, &meta, &bytes);
                    if self.inner.store.find(key).is_none_or(|now| now.digest != meta.digest) {
                        // Replaced or removed since: what is newer must be what is kept.
                        self.inner.memory.remove(key);
                    }
                }
                End::Stored(meta)
            }
            Err(StoreError::Newer) => held(small, meta),
            Err(error) => match small {
                Some(bytes) => End::Held(meta, bytes),
                None => {
                    tracing::debug!(%key, %error, "fetched but not kept");
                    End::Failed(Why::Fault)
                }
            },
        }
    }

    pub(super) fn failed(&self, name: &Name, error: &BackendError) -> End {
        tracing::debug!(%name, %error, "upstream: no answer");
        End::Failed(error.why())
    }

    /// Upstream has answered with what cannot be taken: a miss, and told where its state is shown.
    pub(super) fn wrong(&self, upstream: &Upstream, error: &dyn std::fmt::Display) -> End {
        let counters = self.inner.metrics.upstream(&upstream.name);
        counters.get_errors.bad(&format_args!("wrong answer: {error}"));
        End::Failed(Why::Fault)
    }

    /// Content must be what it is called; anything else is only as right as its upstream.
    fn is_right(&self, name: &Name, key: &Key, digest: Digest) -> bool {
        let right = key.expected().is_none_or(|expected| expected == digest);
        if !right {
            self.inner.metrics.corrupt.inc();
            tracing::warn!(%name, "upstream: wrong bytes were not taken");
        }
        right
    }

    /// Writes what arrives to a file that followers read, one piece behind; small bodies whole.
    async fn stage(
        &self,
        leader: &Leader,
        mut fetched: Fetched,
        limit: u64,
    ) -> Result<Finished, Why> {
        let small = fetched.len.is_some_and(|len| len <= INLINE_BODY_MAX as u64);
        let mut staged =
            if small { self.inner.store.stage() } else { self.inner.store.stage_shared() };
        let mut begun = false;
        while let Some(chunk) = fetched.chunks.next().await {
            let chunk = chunk.map_err(|error| {
                tracing::debug!(%error, "upstream: a body broke off");
                error.why()
            })?;
            if chunk.is_empty() {
                // An empty last piece would release everything before it is verified.
                continue;
            }
            let after = staged.len() + chunk.len() as u64;
            if after > limit {
                return Err(Why::Policy);
            }
            if fetched.len.is_some_and(|len| after > len) {
                return Err(Why::Fault);
            }
            let before = staged.len();
            staged.write(&chunk).map_err(|error| {
                self.inner.metrics.store_faults.inc();
                tracing::warn!(%error, "store: cannot write a fetched body");
                Why::Fault
            })?;
            if let (false, Some(file)) = (begun, staged.file()) {
                leader.begin(file, fetched.len);
                begun = true;
            }
            if begun {
                leader.release(before);
            }
        }
        Ok(staged.finish())
    }

    /// There is no room on disk: pass the body on from memory if it is not too large.
    async fn hold(&self, mut fetched: Fetched, name: &Name, key: &Key) -> End {
        // Counted before it is read, and for as long as a client takes to read it.
        let len = fetched.len.filter(|len| *len <= HELD_MAX);
        let Some(room) = len.and_then(|len| self.inner.memory.room(len)) else {
            return End::Failed(Why::Fault);
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = fetched.chunks.next().await {
            match chunk {
                Ok(chunk) if Some((bytes.len() + chunk.len()) as u64) <= len => {
                    bytes.extend_from_slice(&chunk);
                }
                _ => return End::Failed(Why::Fault),
            }
        }
        let digest = Digest::of(&bytes);
        if !self.is_right(name, key, digest) {
            return End::Failed(Why::Fault);
        }
        let meta = Meta::new(digest, bytes.len() as u64, self.inner.clock.now(), Class::Other);
        End::Held(meta, room.lend(bytes.into()))
    }

    pub(super) async fn fetch_small(
        &self,
        upstream: &Upstream,
        name: &Name,
        limit: u64,
    ) -> Result<Vec<u8>, End> {
        self.collect(name, upstream.backend.get(name).await, limit).await
    }

    /// The same of a value that changes in place, as it is now at its source.
    pub(super) async fn fetch_fresh(
        &self,
        upstream: &Upstream,
        name: &Name,
        limit: u64,
    ) -> Result<Vec<u8>, End> {
        self.collect(name, upstream.backend.get_fresh(name).await, limit).await
    }

    pub(super) async fn collect(
        &self,
        name: &Name,
        answer: Result<Option<Fetched>, BackendError>,
        limit: u64,
    ) -> Result<Vec<u8>, End> {
        let mut fetched = match answer {
            Ok(Some(fetched)) => fetched,
            Ok(None) => return Err(End::Failed(Why::Absent)),
            Err(error) => return Err(self.failed(name, &error)),
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = fetched.chunks.next().await {
            let chunk = chunk.map_err(|_| End::Failed(Why::Fault))?;
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(End::Failed(Why::Fault));
            }
            bytes.extend_from_slice(&chunk);
        }
        if fetched.len.is_some_and(|len| len != bytes.len() as u64) {
            return Err(End::Failed(Why::Fault));
        }
        Ok(bytes)
    }
}

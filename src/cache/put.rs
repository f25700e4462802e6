//! Storing what clients bring: staged, hashed, verified, kept, owed to the upstream.

use std::io;

use bytes::Bytes;

use crate::cache::realm::Realm;
use crate::cache::{Cache, READ_HERE_MAX, WRITE_PIECE, policy};
use crate::entry::body::Receiving;
use crate::entry::{BodyError, Digest, Hasher, Incoming, Key, Meta, RealmId};
use crate::store::file::{Finished, Staged};
use crate::store::{Put, StoreError};
use crate::telemetry::metrics::Protocol;

/// What a put came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutDone {
    New,
    Replaced,
    /// The same content was there already.
    Known,
}

/// Why nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    #[error("the body has the digest {got}, not {expected}")]
    Mismatch { expected: Digest, got: Digest },
    #[error("the body is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the client broke off: {0}")]
    Client(BodyError),
    #[error("the body ended after {got} of {announced} bytes")]
    Short { announced: u64, got: u64 },
    #[error("not stored: {0}")]
    NotStored(StoreError),
}

impl Cache {
    /// Stores `body` under `key`: readable here, and owed to the upstream, when this returns.
    pub async fn put(
        &self,
        protocol: Protocol,
        realm: &Realm,
        key: &Key,
        body: Incoming,
        describe: impl FnOnce(&mut Meta),
    ) -> Result<PutDone, PutError> {
        self.inner.metrics.of(protocol).puts.inc();
        let key = key.in_realm(realm.id);
        let result = self.put_in(realm, &key, body, describe).await;
        self.want_room();
        if let Err(PutError::NotStored(_)) = result {
            self.inner.metrics.not_stored.inc();
        }
        result
    }

    async fn put_in(
        &self,
        realm: &Realm,
        key: &Key,
        body: Incoming,
        describe: impl FnOnce(&mut Meta),
    ) -> Result<PutDone, PutError> {
        let limit = policy::body_limit(key.kind);
        if body.len.is_some_and(|len| len > limit) {
            return Err(PutError::TooLarge { limit });
        }
        // A body that cannot be stored is read all the same: its sender must be able to go on.
        let finished = match self.receive(body, limit).await? {
            Ok(finished) => finished,
            Err((error, got)) => {
                return Err(match (key.expected(), got) {
                    (Some(expected), Some(got)) if expected != got => {
                        PutError::Mismatch { expected, got }
                    }
                    _ => PutError::NotStored(error),
                });
            }
        };
        if let Some(expected) = key.expected()
            && expected != finished.digest
        {
            return Err(PutError::Mismatch { expected, got: finished.digest });
        }
        let class = crate::entry::Class::Other;
        let mut meta = Meta::new(finished.digest, finished.size, self.inner.clock.now(), class);
        describe(&mut meta);
        let small = finished.inline().map(Bytes::copy_from_slice);
        let is_known = self.inner.realms.remember(realm);
        let owed = is_known && self.owed_to(realm, key, &meta.digest);
        if owed {
            // Another machine may have put something else since: the last put stays.
            self.inner.confirmed.remove(realm.id, key);
        }
        let size = meta.size;
        let kept = {
            let (cache, realm, key) = (self.clone(), realm.id, key.clone());
            move || cache.keep(realm, &key, finished, &meta, small, owed)
        };
        // What is large and known already may have to be hashed again. What is begun is seen through,
        // whether or not the client stays.
        let done = if size <= READ_HERE_MAX {
            kept()
        } else {
            let done = self.inner.tasks.blocking("keep a body", kept).await;
            done.unwrap_or_else(|| Err(io::Error::other("storing panicked").into()))
        };
        let done = done.map_err(PutError::NotStored)?;
        Ok(match done {
            Put::New => PutDone::New,
            Put::Replaced => PutDone::Replaced,
            Put::Known => PutDone::Known,
        })
    }

    /// Returns when something was put and the store is nearly full.
    pub async fn room_wanted(&self) {
        self.inner.room.notified().await;
    }

    /// Returns when the store's directory was found to be removed.
    pub async fn store_lost(&self) {
        self.inner.store_lost.notified().await;
    }

    pub fn lose_store(&self) {
        self.inner.store_lost.notify_one();
    }

    /// Whether `size` more bytes may be stored; if not, room is looked for.
    pub fn has_room(&self, size: u64) -> bool {
        let has = self.inner.store.has_room(size);
        if !has {
            self.inner.room.notify_one();
        }
        has
    }

    /// The same for what somebody puts or asks for now: room is made for it, whatever must go.
    /// Of it, `placed` bytes lie in a file already.
    pub(super) fn has_room_now(&self, size: u64, placed: u64) -> bool {
        let has = self.inner.store.has_room_beside(size, placed);
        if !has {
            self.inner.store.wish(size);
            self.inner.room.notify_one();
        }
        has
    }

    pub(super) fn want_room(&self) {
        if self.inner.store.excess() > 0 {
            self.inner.room.notify_one();
        }
    }

    /// Into the store, and whoever must know of it.
    fn keep(
        &self,
        realm: RealmId,
        key: &Key,
        finished: Finished,
        meta: &Meta,
        small: Option<Bytes>,
        owed: bool,
    ) -> Result<Put, StoreError> {
        let done = self.inner.store.put(key, finished, meta, owed.then_some(realm))?;
        self.inner.absent.remove(realm, key);
        match small {
            Some(bytes) => self.inner.memory.offer(key, meta, &bytes),
            None => self.inner.memory.remove(key),
        }
        if self.inner.store.find(key).is_none_or(|now| now.digest != meta.digest) {
            self.inner.memory.remove(key);
        }
        if owed {
            self.inner.owed.notify_one();
        }
        Ok(done)
    }

    /// Whether the realm's upstream must be sent this, because it has not confirmed it lately.
    pub(super) fn owed_to(&self, realm: &Realm, key: &Key, digest: &Digest) -> bool {
        !self.inner.config.read_only
            && realm.writes_to().is_some()
            && key.expected() != Some(Digest::EMPTY)
            && !(key.has_one_value() && self.inner.confirmed.contains(realm.id, key, digest))
    }

    /// Takes a body in. The inner error is ours, with the digest of what was sent, where that is known;
    /// the outer one is the client's.
    pub(super) async fn receive(
        &self,
        body: Incoming,
        limit: u64,
    ) -> Result<Result<Finished, (StoreError, Option<Digest>)>, PutError> {
        use futures_util::StreamExt;
        let announced = body.len;
        let mut chunks = body.chunks;
        let mut writer = Writer::new(self, announced);
        let mut receiving = Receiving::begin();
        let mut got = 0_u64;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(PutError::Client)?;
            got += chunk.len() as u64;
            if got > limit {
                return Err(PutError::TooLarge { limit });
            }
            receiving.hold(chunk);
            if receiving.is_full(WRITE_PIECE) {
                writer.write(receiving.take()).await;
                receiving.written();
            }
        }
        if let Some(announced) = announced.filter(|announced| *announced != got) {
            return Err(PutError::Short { announced, got });
        }
        writer.write(receiving.take()).await;
        Ok(writer.finish())
    }

    /// Removes an entry here; upstream keeps what it has.
    pub async fn delete(&self, realm: &Realm, key: &Key) -> bool {
        let key = key.in_realm(realm.id);
        self.inner.confirmed.remove(realm.id, &key);
        let cache = self.clone();
        // A large file takes a while. What is begun is seen through, whether or not the client stays.
        let remove = move || {
            let was_there = cache.inner.store.remove(&key);
            // After the store, or a lookup in between would put it back.
            cache.inner.memory.remove(&key);
            was_there
        };
        self.inner.tasks.blocking("remove an entry", remove).await.unwrap_or(false)
    }
}

/// A body on its way to disk, written in large pieces off the reactor. After a fault it only
/// hashes, so that the sender can finish.
struct Writer<'a> {
    cache: &'a Cache,
    to: To,
}

/// Where a body goes.
enum To {
    Store(Staged),
    Nowhere(StoreError, Hasher),
    /// What had been written went with the thread that wrote it.
    Lost,
}

impl<'a> Writer<'a> {
    fn new(cache: &'a Cache, announced: Option<u64>) -> Self {
        let size = announced.unwrap_or(0);
        let to = if cache.has_room_now(size, 0) {
            To::Store(cache.inner.store.stage_of(size))
        } else {
            To::Nowhere(StoreError::Full, Hasher::default())
        };
        Self { cache, to }
    }

    async fn write(&mut self, pieces: Vec<Bytes>) {
        let more: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.to = match std::mem::replace(&mut self.to, To::Lost) {
            To::Store(staged) if self.fits(&staged, more) => self.store(staged, pieces, more).await,
            // A body that did not say its length has outgrown the disk: its file goes at once.
            To::Store(staged) => nowhere(StoreError::Full, staged.into_hasher(), &pieces),
            To::Nowhere(fault, hasher) => nowhere(fault, hasher, &pieces),
            To::Lost => To::Lost,
        };
    }

    fn fits(&self, staged: &Staged, more: u64) -> bool {
        let placed = if staged.file().is_some() { staged.len() } else { 0 };
        self.cache.has_room_now(staged.len() + more, placed)
    }

    async fn store(&self, mut staged: Staged, pieces: Vec<Bytes>, more: u64) -> To {
        let is_held = staged.holds(more);
        let work = move || {
            for (at, piece) in pieces.iter().enumerate() {
                if let Err(error) = staged.write(piece) {
                    let fault = StoreError::Fault(error);
                    return nowhere(fault, staged.into_hasher(), &pieces[at + 1..]);
                }
            }
            To::Store(staged)
        };
        // Beyond that it is a file, and disks may be slow.
        let to = if is_held {
            work()
        } else {
            let done = self.cache.inner.tasks.blocking("write a body", work).await;
            done.unwrap_or(To::Lost)
        };
        if let To::Nowhere(error, _) = &to {
            self.cache.inner.metrics.store_faults.inc();
            tracing::warn!(%error, "store: cannot write a body");
        }
        to
    }

    /// The error comes with the digest of what was sent, where that is known.
    fn finish(self) -> Result<Finished, (StoreError, Option<Digest>)> {
        match self.to {
            To::Store(staged) => Ok(staged.finish()),
            To::Nowhere(fault, hasher) => Err((fault, Some(hasher.finish()))),
            To::Lost => Err((io::Error::other("writing panicked").into(), None)),
        }
    }
}

fn nowhere(fault: StoreError, mut hasher: Hasher, pieces: &[Bytes]) -> To {
    pieces.iter().for_each(|piece| hasher.update(piece));
    To::Nowhere(fault, hasher)
}

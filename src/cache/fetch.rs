//! What a flight does: asks the backend, stages what arrives, verifies it, keeps it.
//!
//! Must finish: this runs in a task of its own, whether or not anybody still waits.

use bytes::Bytes;
use futures_util::StreamExt;

use crate::backend::{BackendError, Fetched, Name, Space};
use crate::cache::flight::{End, Leader};
use crate::cache::realm::Upstream;
use crate::cache::{Cache, action_of, policy};
use crate::entry::action::{Frame, GoEntry};
use crate::entry::{Class, Digest, Hasher, Key, Kind, Meta, RealmId, Why};
use crate::store::StoreError;
use crate::store::file::{Finished, Staged};
use crate::store::record::Row;
use crate::store::segment::INLINE_MAX;

/// Bodies that find no room on disk are passed on from memory up to this size.
const HELD_MAX: u64 = 8 << 20;
/// The value of a Go action, with a frame inside.
const GO_VALUE_MAX: u64 = 1 << 20;

impl Cache {
    pub(super) async fn fly(
        self,
        leader: Leader,
        upstream: Upstream,
        realm: RealmId,
        name: Name,
        key: Key,
    ) {
        let end = match key.kind {
            Kind::Go => self.fetch_go(&upstream, &name, &key).await,
            Kind::Content | Kind::Action | Kind::Opaque => {
                self.fetch_plain(&leader, &upstream, &name, &key).await
            }
        };
        match &end {
            End::Stored(meta) | End::Held(meta, _) => {
                self.inner.confirmed.insert(realm, &key, meta.digest);
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

    async fn fetch_plain(
        &self,
        leader: &Leader,
        upstream: &Upstream,
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
        if !self.inner.store.has_room(fetched.len.unwrap_or(0)) {
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
            return End::Failed(Why::Fault);
        }
        let meta = Meta::new(finished.digest, finished.size, self.inner.clock.now(), Class::Other);
        let small = finished.inline().map(Bytes::copy_from_slice);
        let sound = |row: Row| self.inner.store.is_sound(key, &row);
        if key.kind != Kind::Content && self.inner.store.find(key).is_some_and(sound) {
            // Put here while it was fetched: theirs was acknowledged, and is newer.
            return small.map_or(End::Stored(meta.clone()), |bytes| End::Held(meta, bytes));
        }
        match self.inner.store.put(key, finished, &meta, None) {
            Ok(_) => {
                if let Some(bytes) = small {
                    self.inner.memory.offer(key, &meta, &bytes);
                }
                End::Stored(meta)
            }
            Err(error) => match small {
                Some(bytes) => End::Held(meta, bytes),
                None => {
                    tracing::debug!(%name, %error, "fetched but not kept");
                    End::Failed(Why::Fault)
                }
            },
        }
    }

    fn failed(&self, name: &Name, error: &BackendError) -> End {
        tracing::debug!(%name, %error, "upstream: no answer");
        End::Failed(error.why())
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
        let small = fetched.len.is_some_and(|len| len <= INLINE_MAX as u64);
        let mut staged =
            if small { self.inner.store.stage() } else { self.inner.store.stage_shared() };
        let mut begun = false;
        while let Some(chunk) = fetched.chunks.next().await {
            let chunk = chunk.map_err(|error| {
                tracing::debug!(%error, "upstream: a body broke off");
                Why::Fault
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
        if fetched.len.is_none_or(|len| len > HELD_MAX) {
            return End::Failed(Why::Fault);
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = fetched.chunks.next().await {
            match chunk {
                Ok(chunk) if (bytes.len() + chunk.len()) as u64 <= HELD_MAX => {
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
        End::Held(meta, bytes.into())
    }

    /// Action, frame, output: the action may carry the frame, or name it.
    async fn fetch_go(&self, upstream: &Upstream, name: &Name, key: &Key) -> End {
        let value = match self.fetch_small(upstream, name, GO_VALUE_MAX).await {
            Ok(value) => value,
            Err(end) => return end,
        };
        let entry = match GoEntry::decode(&value) {
            Ok(entry) => entry,
            Err(error) => {
                tracing::debug!(%name, %error, "upstream: an action that is not for Go");
                return End::Failed(Why::Fault);
            }
        };
        match self.unpack(upstream, name, &entry).await {
            Ok(finished) => self.keep_go(key, &entry, finished),
            Err(why) => End::Failed(why),
        }
    }

    async fn fetch_small(
        &self,
        upstream: &Upstream,
        name: &Name,
        limit: u64,
    ) -> Result<Vec<u8>, End> {
        let mut fetched = match upstream.backend.get(name).await {
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

    /// The output out of its frame, never more than the entry says.
    async fn unpack(
        &self,
        upstream: &Upstream,
        name: &Name,
        entry: &GoEntry,
    ) -> Result<Finished, Why> {
        if !self.inner.store.has_room(entry.size) {
            return Err(Why::Fault);
        }
        let unpacking = Unpacking::new(self.inner.store.stage(), entry.size)?;
        let mut unpacking = Some(unpacking);
        match &entry.frame {
            Frame::Empty => {}
            Frame::Inline(frame) => self.feed(&mut unpacking, frame.clone().into()).await?,
            Frame::Stored { digest, .. } => {
                let content = Name {
                    namespace: name.namespace.clone(),
                    space: Space::Cas,
                    id: digest.to_string(),
                };
                let fetched = upstream.backend.get(&content).await;
                let fetched = fetched.map_err(|error| error.why())?;
                // An action whose content is gone: the entry is as good as absent.
                let mut chunks = fetched.ok_or(Why::Absent)?.chunks;
                while let Some(chunk) = chunks.next().await {
                    self.feed(&mut unpacking, chunk.map_err(|_| Why::Fault)?).await?;
                }
            }
        }
        let finished = unpacking.ok_or(Why::Fault)?.finish()?;
        if finished.digest != entry.digest || finished.size != entry.size {
            self.inner.metrics.corrupt.inc();
            tracing::warn!(%name, "upstream: wrong bytes were not taken");
            return Err(Why::Fault);
        }
        Ok(finished)
    }

    /// Decompresses a piece; large ones on a thread of their own.
    async fn feed(&self, unpacking: &mut Option<Unpacking>, piece: Bytes) -> Result<(), Why> {
        let mut state = unpacking.take().ok_or(Why::Fault)?;
        if piece.len() <= 16 << 10 {
            state.feed(&piece)?;
            *unpacking = Some(state);
            return Ok(());
        }
        let fed = self.inner.tasks.blocking("decompress", move || {
            state.feed(&piece)?;
            Ok(state)
        });
        *unpacking = Some(fed.await.unwrap_or(Err(Why::Fault))?);
        Ok(())
    }

    fn keep_go(&self, key: &Key, entry: &GoEntry, mut finished: Finished) -> End {
        if let Some(row) = self.inner.store.find_go(key) {
            // Put here while it was fetched: theirs was acknowledged, and is newer.
            return End::Stored(row.meta());
        }
        let mut meta = Meta::new(entry.digest, entry.size, entry.stored, entry.class);
        meta.cost_ms = entry.cost_ms;
        meta.c_env = entry.c_env;
        meta.writer = entry.writer.clone();
        let kept = self
            .inner
            .store
            .place(&mut finished, None)
            .and_then(|()| self.inner.store.record_go(key, &meta, None));
        match kept {
            Ok(()) => End::Stored(meta),
            Err(error) => {
                tracing::debug!(action = ?action_of(key), %error, "fetched but not kept");
                End::Failed(Why::Fault)
            }
        }
    }
}

/// A body on its way to disk, written in large pieces off the reactor. After a fault it only
/// hashes, so that the sender can finish.
pub(super) struct Writer<'a> {
    cache: &'a Cache,
    staged: Option<Staged>,
    fault: Option<StoreError>,
    hasher: Hasher,
}

impl<'a> Writer<'a> {
    pub(super) fn new(cache: &'a Cache, announced: Option<u64>) -> Self {
        let room = cache.inner.store.has_room(announced.unwrap_or(0));
        Self {
            cache,
            staged: room.then(|| cache.inner.store.stage()),
            fault: (!room).then_some(StoreError::Full),
            hasher: Hasher::default(),
        }
    }

    pub(super) async fn write(&mut self, pieces: Vec<Bytes>) {
        let more: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let written = self.staged.as_ref().map_or(0, Staged::len);
        if self.staged.is_some() && !self.cache.inner.store.has_room(written + more) {
            // A body that did not say its length has outgrown the disk: its file goes at once.
            self.staged = None;
            self.fault = Some(StoreError::Full);
        }
        let Some(mut staged) = self.staged.take() else {
            pieces.iter().for_each(|piece| self.hasher.update(piece));
            return;
        };
        let len: usize = pieces.iter().map(Bytes::len).sum();
        let mut hasher = std::mem::take(&mut self.hasher);
        let work = move || {
            let mut fault = None;
            for piece in &pieces {
                hasher.update(piece);
                if fault.is_none() {
                    fault = staged.write(piece).err();
                }
            }
            (staged, hasher, fault)
        };
        let done = if len <= INLINE_MAX {
            Some(work())
        } else {
            self.cache.inner.tasks.blocking("write a body", work).await
        };
        match done {
            Some((staged, hasher, None)) => {
                self.staged = Some(staged);
                self.hasher = hasher;
            }
            Some((_, hasher, Some(error))) => {
                self.cache.inner.metrics.store_faults.inc();
                tracing::warn!(%error, "store: cannot write a body");
                self.hasher = hasher;
                self.fault = Some(StoreError::Fault(error));
            }
            None => self.fault = Some(StoreError::Fault(std::io::Error::other("panicked"))),
        }
    }

    pub(super) fn finish(self) -> Result<Finished, (StoreError, Digest)> {
        match (self.staged, self.fault) {
            (Some(staged), None) => Ok(staged.finish()),
            (_, fault) => {
                let fault = fault.unwrap_or(StoreError::Full);
                Err((fault, self.hasher.finish()))
            }
        }
    }
}

/// An output on its way out of its frame.
struct Unpacking {
    decoder: zstd::stream::write::Decoder<'static, Bounded>,
}

/// Takes at most the bytes that the entry announced: a frame cannot blow up the disk.
struct Bounded {
    staged: Staged,
    left: u64,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let len = bytes.len() as u64;
        self.left = self.left.checked_sub(len).ok_or(std::io::ErrorKind::FileTooLarge)?;
        self.staged.write(bytes)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Unpacking {
    /// Larger windows would let a hostile frame take memory.
    const WINDOW_LOG_MAX: u32 = 27;

    fn new(staged: Staged, size: u64) -> Result<Self, Why> {
        let decoder = zstd::stream::write::Decoder::new(Bounded { staged, left: size })
            .and_then(|mut decoder| decoder.window_log_max(Self::WINDOW_LOG_MAX).map(|()| decoder));
        decoder.map(|decoder| Self { decoder }).map_err(|_| Why::Fault)
    }

    fn feed(&mut self, piece: &[u8]) -> Result<(), Why> {
        std::io::Write::write_all(&mut self.decoder, piece).map_err(|_| Why::Fault)
    }

    fn finish(mut self) -> Result<Finished, Why> {
        std::io::Write::flush(&mut self.decoder).map_err(|_| Why::Fault)?;
        Ok(self.decoder.into_inner().staged.finish())
    }
}

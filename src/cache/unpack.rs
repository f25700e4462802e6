//! Go entries on their way in: the action, its frame, the output out of it, verified and kept.

use bytes::Bytes;
use futures_util::StreamExt;

use crate::backend::{BackendError, Fetched, Name, Space};
use crate::cache::flight::End;
use crate::cache::frames::Standing;
use crate::cache::policy::statistics::Kind as Question;
use crate::cache::realm::Upstream;
use crate::cache::{Cache, GO_VALUE_MAX, action_of};
use crate::entry::action::{Frame, GoEntry};
use crate::entry::{Digest, Id, Key, Meta, Why};
use crate::store::StoreError;
use crate::store::file::{Finished, Staged};

/// Outputs up to this size are unpacked where they arrive.
const AT_ONCE_MAX: u64 = 256 << 10;

impl Cache {
    /// Action, frame, output: the action may carry the frame, or name it.
    pub(super) async fn fetch_go(
        &self,
        upstream: &Upstream,
        name: &Name,
        key: &Key,
        question: Question,
    ) -> End {
        let began = self.inner.clock.elapsed();
        let value = self.fetch_small(upstream, name, GO_VALUE_MAX).await;
        let took = self.inner.clock.elapsed().saturating_sub(began);
        let (is_hit, end) = match value {
            Ok(value) => {
                let end = self.take_go(upstream, name, key, &value).await;
                // An action whose frame is gone is as good as absent.
                (Ok(!matches!(end, End::Failed(Why::Absent))), end)
            }
            Err(End::Failed(Why::Absent)) => (Ok(false), End::Failed(Why::Absent)),
            Err(End::Failed(why)) => (Err(why), End::Failed(why)),
            Err(end @ (End::Stored(_) | End::Held(..))) => (Err(Why::Fault), end),
        };
        self.learn_answer(upstream, key, question, is_hit, took);
        end
    }

    /// The output that an action names, kept.
    async fn take_go(&self, upstream: &Upstream, name: &Name, key: &Key, value: &[u8]) -> End {
        let entry = match GoEntry::decode(value) {
            Ok(entry) if Id::Digest(entry.action) == key.id => entry,
            Ok(entry) => {
                let error = "the answer to another action";
                tracing::warn!(%name, action = %entry.action, "upstream: {error}");
                return self.wrong(upstream, &error);
            }
            Err(error) => {
                tracing::debug!(%name, %error, "upstream: an action that is not for Go");
                return self.wrong(upstream, &error);
            }
        };
        let had_room = self.has_room(entry.size);
        match self.unpack(upstream, name, &entry).await {
            Ok(finished) => {
                if let Some(standing) = Standing::of(&entry.frame) {
                    self.inner.frames.insert(key.realm, entry.digest, standing);
                }
                self.keep_go(key, &entry, finished)
            }
            Err(why) => {
                // Gone, or not what it should be: a build of it must be sent again. After a mere
                // broken connection that sends a frame twice. Where there is no room, it may be sound.
                if why == Why::Absent || why == Why::Fault && had_room {
                    self.inner.frames.spoil(key.realm, &entry.digest);
                }
                End::Failed(why)
            }
        }
    }

    /// The output out of its frame, never more than the entry says.
    async fn unpack(
        &self,
        upstream: &Upstream,
        name: &Name,
        entry: &GoEntry,
    ) -> Result<Finished, Why> {
        if !self.has_room(entry.size) {
            return Err(Why::Fault);
        }
        let unpacking = Unpacking::new(self.inner.store.stage(), entry.size)?;
        let mut unpacking = Some(unpacking);
        match &entry.frame {
            Frame::Empty => {}
            Frame::Inline(frame) => self.feed(&mut unpacking, frame.clone().into()).await?,
            Frame::Stored { digest, size } => {
                let content = in_cas(name, digest);
                let fetched = upstream.backend.get(&content).await;
                self.feed_all(&mut unpacking, fetched, *size).await?;
            }
            Frame::Packed(packed) => {
                let pack = in_cas(name, &packed.pack);
                let part = packed.at..packed.at + packed.size;
                let fetched = upstream.backend.get_part(&pack, part.clone()).await;
                let fetched = fetched.map(|found| found.and_then(|found| found.cut(part)));
                self.feed_all(&mut unpacking, fetched, packed.size).await?;
            }
        }
        let finished = unpacking.ok_or(Why::Fault)?.finish()?;
        if finished.digest != entry.digest || finished.size != entry.size {
            self.inner.metrics.corrupt.inc();
            tracing::warn!(%name, "upstream: wrong bytes were not taken");
            self.wrong(upstream, &"an output is not what its action says");
            return Err(Why::Fault);
        }
        Ok(finished)
    }

    async fn feed_all(
        &self,
        unpacking: &mut Option<Unpacking>,
        fetched: Result<Option<Fetched>, BackendError>,
        size: u64,
    ) -> Result<(), Why> {
        let fetched = fetched.map_err(|error| error.why())?;
        // An action whose content is gone: the entry is as good as absent.
        let mut chunks = fetched.ok_or(Why::Absent)?.chunks;
        // A frame that goes on without bringing bytes would never end.
        let mut left = size;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| error.why())?;
            left = left.checked_sub(chunk.len() as u64).ok_or(Why::Fault)?;
            self.feed(unpacking, chunk).await?;
        }
        Ok(())
    }

    /// Decompresses a piece; large ones on a thread of their own.
    async fn feed(&self, unpacking: &mut Option<Unpacking>, piece: Bytes) -> Result<(), Why> {
        let mut state = unpacking.take().ok_or(Why::Fault)?;
        // A few bytes may be many when they are unpacked.
        if piece.len() <= 16 << 10 && state.size <= AT_ONCE_MAX {
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
        // Put here while it was fetched: theirs was acknowledged, and is newer.
        let theirs = || self.inner.store.find_go(key).map(|row| End::Stored(row.meta()));
        let seen = self.inner.store.seen(key);
        if let Some(theirs) = theirs() {
            return theirs;
        }
        let mut meta = Meta::new(entry.digest, entry.size, entry.stored, entry.class);
        meta.cost_ms = entry.cost_ms;
        meta.c_env = entry.c_env;
        meta.writer = entry.writer.clone();
        let kept = self
            .inner
            .store
            .place(&mut finished)
            .and_then(|()| self.inner.store.record_fetched(key, &meta, seen));
        match kept {
            Ok(()) => End::Stored(meta),
            Err(StoreError::Newer) => theirs().unwrap_or(End::Failed(Why::Fault)),
            Err(error) => {
                tracing::debug!(action = ?action_of(key), %error, "fetched but not kept");
                End::Failed(Why::Fault)
            }
        }
    }
}

fn in_cas(beside: &Name, digest: &Digest) -> Name {
    Name { namespace: beside.namespace.clone(), space: Space::Cas, id: digest.to_string() }
}

/// An output on its way out of its frame.
pub(super) struct Unpacking {
    decoder: zstd::stream::write::Decoder<'static, Bounded>,
    size: u64,
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
    /// 8 MiB, as much as RFC 8878 asks of who unpacks, and sixteen times what larder's own frames need:
    /// larger windows would let a hostile frame take memory.
    const WINDOW_LOG_MAX: u32 = 23;

    pub(super) fn new(staged: Staged, size: u64) -> Result<Self, Why> {
        let decoder = zstd::stream::write::Decoder::new(Bounded { staged, left: size })
            .and_then(|mut decoder| decoder.window_log_max(Self::WINDOW_LOG_MAX).map(|()| decoder));
        decoder.map(|decoder| Self { decoder, size }).map_err(|_| Why::Fault)
    }

    pub(super) fn feed(&mut self, piece: &[u8]) -> Result<(), Why> {
        std::io::Write::write_all(&mut self.decoder, piece).map_err(|_| Why::Fault)
    }

    pub(super) fn finish(mut self) -> Result<Finished, Why> {
        std::io::Write::flush(&mut self.decoder).map_err(|_| Why::Fault)?;
        Ok(self.decoder.into_inner().staged.finish())
    }
}

//! Go entries on their way out: an output's frame, and the action that names it.

use bytes::Bytes;

use crate::cache::Cache;
use crate::entry::action::{Frame, GoEntry, INLINE_MAX};
use crate::entry::{Digest, Id, Key};
use crate::store::record::Row;

/// Level of the frames: what costs a build least time for what it sends.
const ZSTD_LEVEL: i32 = 3;

/// A Go entry, ready to be sent upstream.
pub struct Outgoing {
    /// Its frame is `Stored` where it does not fit into the action's value.
    pub entry: GoEntry,
    /// A frame that does not fit, which the entry names: send it first.
    pub frame: Option<Bytes>,
}

impl Cache {
    /// Packs an action and its output for upstream; blocks. None if the output is gone or changed.
    pub fn pack_go(&self, key: &Key) -> Option<Outgoing> {
        let Id::Digest(action) = key.id else { return None };
        let row = self.inner.store.find_go(key)?;
        let writer = self.inner.store.writer_of(key, &row).unwrap_or_default();
        let (frame, apart) = if row.size == 0 {
            (Frame::Empty, None)
        } else {
            let frame = self.frame_of(&row)?;
            if frame.len() <= INLINE_MAX {
                (Frame::Inline(frame), None)
            } else {
                let (digest, size) = (Digest::of(&frame), frame.len() as u64);
                (Frame::Stored { digest, size }, Some(frame.into()))
            }
        };
        let entry = GoEntry {
            action,
            digest: row.digest,
            size: row.size,
            class: row.class,
            c_env: row.c_env,
            writer,
            stored: row.stored,
            cost_ms: row.cost_ms,
            frame,
        };
        Some(Outgoing { entry, frame: apart })
    }

    /// The zstd frame of an action's output; blocks. None if the output is gone or changed.
    pub fn frame_of(&self, row: &Row) -> Option<Vec<u8>> {
        let output = std::fs::read(self.inner.store.layout().file(&row.digest)).ok()?;
        if Digest::of(&output) != row.digest {
            return None;
        }
        zstd::bulk::compress(&output, ZSTD_LEVEL).ok()
    }
}

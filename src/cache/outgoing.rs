//! Go entries on their way out: an output's frame, and the action that names it.

use std::cell::RefCell;

use bytes::Bytes;
use zstd::bulk::Compressor;

use crate::cache::Cache;
use crate::entry::action::{Frame, GoEntry, INLINE_FRAME_MAX};
use crate::entry::{Digest, Id, Key};
use crate::store::record::{Place, Row};

/// Level of the frames: what costs builds least time, those that send and those that fetch. Of level 3,
/// frames are 4 % smaller, and take twice as long to make and half as long again to unpack.
const ZSTD_LEVEL: i32 = 1;

/// A Go entry, ready to be sent upstream.
pub struct Outgoing {
    /// Its frame is `Stored` where it does not fit into the action's value.
    pub entry: GoEntry,
    /// A frame that does not fit, which the entry names: send it first.
    pub frame: Option<Bytes>,
}

impl Cache {
    /// An action that is to be sent upstream, as if its output were empty; blocks. None if it is gone.
    /// That its output is sound turns out when it is packed, and to send it is no use of it.
    pub fn outgoing(&self, key: &Key) -> Option<(Row, GoEntry)> {
        let Id::Digest(action) = key.id else { return None };
        let row = self.inner.store.find(key)?;
        let is_file = |there: Row| there.place == Place::File;
        if !self.inner.store.find(&Key::content(row.digest)).is_some_and(is_file) {
            // Somebody stored the same bytes as plain content: it makes a file of them.
            self.inner.store.find_go(key)?;
        }
        let writer = self.inner.store.writer_of(key, &row).unwrap_or_default();
        let entry = GoEntry {
            action,
            digest: row.digest,
            size: row.size,
            class: row.class,
            c_env: row.c_env,
            writer,
            stored: row.stored,
            cost_ms: row.cost_ms,
            frame: Frame::Empty,
        };
        Some((row, entry))
    }

    /// Packs the output of such an action; blocks, and takes no locks. None if it is gone or changed.
    pub fn pack(&self, row: &Row, mut entry: GoEntry) -> Option<Outgoing> {
        if row.size == 0 {
            return Some(Outgoing { entry, frame: None });
        }
        let frame = self.frame_of(row)?;
        if frame.len() <= INLINE_FRAME_MAX {
            entry.frame = Frame::Inline(frame);
            return Some(Outgoing { entry, frame: None });
        }
        entry.frame = Frame::Stored { digest: Digest::of(&frame), size: frame.len() as u64 };
        Some(Outgoing { entry, frame: Some(frame.into()) })
    }

    /// The zstd frame of an action's output; blocks. None if the output is gone or changed.
    pub fn frame_of(&self, row: &Row) -> Option<Vec<u8>> {
        let output = std::fs::read(self.inner.store.layout().file(&row.digest)).ok()?;
        if Digest::of(&output) != row.digest {
            return None;
        }
        compress(&output).ok()
    }
}

/// One frame, by this thread's own compressor: its tables take longer to make than a small frame does.
fn compress(output: &[u8]) -> std::io::Result<Vec<u8>> {
    thread_local! {
        static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    }
    COMPRESSOR.with_borrow_mut(|own| {
        let compressor = match own {
            Some(compressor) => compressor,
            None => own.insert(Compressor::new(ZSTD_LEVEL)?),
        };
        compressor.compress(output)
    })
}

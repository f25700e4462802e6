//! Tier 2, on disk: small bodies in segments, large ones in files, an index over both.
//!
//! The only code that touches the store. It knows no tier above it and no network; it verifies what
//! it hands out, and a fault of the disk is a miss here, logged and counted once. Everything in this
//! room blocks: callers decide on which thread.
//!
//! Order of reading: `segment`, `sectors` and `record` (bytes), `layout` (names), `index` (LMDB), `tail` (what
//! is acknowledged), `replay` (start), `file`, `touch`, `space` and `evict`, then this file.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::entry::{Key, Meta, RealmId};
use crate::store::index::{Index, IndexError, Owed};
use crate::store::layout::{Layout, LayoutError};
use crate::store::record::{EntryMeta, Row, Stamp};
use crate::store::segment::{Position, Seal, Tag};
use crate::store::space::Space;
use crate::store::tail::{Append, Tail};
use crate::store::touch::Touches;
use crate::tasks::sync::{AtomicU64, JoinHandle, Mutex, thread};
use crate::telemetry::Metrics;
use crate::units::{ByteSize, Clock, Percent, Timestamp};

pub mod evict;
pub mod file;
pub mod index;
mod keep;
pub mod layout;
mod load;
mod note;
pub mod reader;
pub mod record;
mod remove;
mod replay;
mod sectors;
pub mod segment;
pub mod space;
pub mod spool;
mod tail;
#[cfg(test)]
mod tests;
mod touch;
mod trust;
pub mod verify;

/// A limit as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Size(ByteSize),
    Share(Percent),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub dir: PathBuf,
    /// None: half of what is free beside it, at most 50 GiB. A share is of the file system.
    pub disk: Option<Limit>,
    /// Free space that is never used. None: 1 GiB or 5 %, whichever is less.
    pub floor: Option<Limit>,
}

/// Segments kept open for reading.
const OPEN_SEGMENTS_MAX: usize = 64;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("store {dir}: {source}")]
    Index { dir: PathBuf, source: IndexError },
    #[error("store {dir}: {source}")]
    Io { dir: PathBuf, source: io::Error },
}

/// Why an entry was not stored. The client is told "not stored"; its build goes on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the disk tier is full")]
    Full,
    #[error("the store cannot be written: {0}")]
    Fault(#[from] io::Error),
    #[error("the output is not where its writer said")]
    Gone,
    #[error("something newer was put meanwhile")]
    Newer,
}

impl StoreError {
    fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem => Self::Full,
            _ => Self::Fault(error),
        }
    }
}

/// An entry read from disk, verified.
#[derive(Debug)]
pub enum Stored {
    Bytes(Meta, Bytes),
    File(Meta, Arc<File>),
}

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    New,
    Replaced,
    /// The same content was there already.
    Known,
}

/// The disk tier. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    layout: Layout,
    index: Index,
    tail: Tail,
    space: Space,
    clock: Clock,
    metrics: Arc<Metrics>,
    boot: u64,
    /// Everything counts as used at least this recently, after an unclean stop.
    fresh_since: u32,
    touches: Mutex<Touches>,
    open_segments: Mutex<HashMap<u32, Arc<File>>>,
    committer: Mutex<Option<JoinHandle<bool>>>,
    nonce: String,
    seal: Seal,
    /// Looks into the index that failed: what was not found then may be there.
    index_faults: AtomicU64,
    /// The largest entry that found no room lately.
    wish: AtomicU64,
    /// Until when that counts, in seconds since 1970.
    wished: AtomicU64,
    /// Held as long as the store is open.
    lock: File,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dir", &self.inner.layout.dir).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or makes the store; replays what the last process did not commit.
    pub fn open(config: &Config, clock: Clock, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        let layout = Layout::new(&config.dir);
        let io = |source| OpenError::Io { dir: config.dir.clone(), source };
        let lock = layout.open()?;
        let damage = |source| OpenError::Index { dir: config.dir.clone(), source };
        let seal = layout.seal().map_err(io)?;
        let replayed = replay::open_index(&layout, &seal, &clock).map_err(damage)?;
        let own = segment::bytes_in(&layout.segments()).map_err(io)?;
        let own = own.saturating_add(replayed.covered.file_bytes);
        let space = Space::new(config, own).map_err(io)?;
        let index = replayed.index;
        let tail = Tail::open(
            (&layout, seal.clone()),
            index.clone(),
            metrics.clone(),
            space.segment_max(),
            replayed.covered,
            replayed.owed_entries,
        )
        .map_err(io)?;
        let store = Self {
            inner: Arc::new(Inner {
                nonce: std::fs::read_to_string(layout.nonce()).map_err(io)?,
                seal,
                layout,
                index,
                tail,
                space,
                metrics,
                boot: layout::boot(),
                fresh_since: if replayed.was_clean { 0 } else { seconds(clock.now()) },
                clock,
                touches: Mutex::default(),
                open_segments: Mutex::default(),
                committer: Mutex::default(),
                index_faults: AtomicU64::new(0),
                wish: AtomicU64::new(0),
                wished: AtomicU64::new(0),
                lock,
            }),
        };
        if replayed.is_any {
            store.finish_replay(replayed.files);
        }
        store.start_committer().map_err(io)?;
        Ok(store)
    }

    /// The first commit syncs the files that were replayed, and covers what was: no later start replays it.
    fn finish_replay(&self, files: Vec<PathBuf>) {
        let current = self.inner.tail.current_segment();
        if let Ok(mut change) = self.inner.tail.begin() {
            files.into_iter().for_each(|path| change.sync_file(path));
            // Who has nothing to commit syncs nothing.
            change.segment_touched(current, seconds(self.inner.clock.now()));
        }
    }

    fn start_committer(&self) -> io::Result<()> {
        // The thread keeps the store open until `close`.
        let inner = self.inner.clone();
        let handle = thread("larder-commit", move || inner.tail.commit_until_stopped())?;
        *self.inner.committer.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        Ok(())
    }

    /// Commits everything and ends the committing thread. Later changes stay in the segments alone.
    pub fn close(&self) {
        self.flush_touches();
        self.inner.tail.stop();
        let handle = self.inner.committer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle {
            // A panic there was reported by the thread itself; the segments have everything.
            let is_whole = handle.join().unwrap_or(false);
            // Without the note the index is read through at the next start.
            if is_whole {
                let _ = trust::note_closed(&self.inner.layout);
            } else {
                trust::note_nothing(&self.inner.layout);
            }
        }
    }

    pub fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    pub fn nonce(&self) -> &str {
        &self.inner.nonce
    }

    pub fn boot(&self) -> u64 {
        self.inner.boot
    }

    /// Owed uploads from `number` on, oldest first.
    pub fn owed_from(&self, number: u64, most: usize) -> Vec<(u64, Owed)> {
        self.inner.tail.owed(number, most)
    }

    /// The upload with this number; None once it is settled, or replaced by a newer one, or if the journal
    /// cannot be read.
    pub fn owed_at(&self, number: u64) -> Option<Owed> {
        self.inner.tail.owed_by_number(number).unwrap_or_default()
    }

    /// Whether an upload is certainly settled, or replaced by a newer one.
    pub fn is_settled(&self, number: u64) -> bool {
        match self.inner.tail.owed_by_number(number) {
            Ok(owed) => owed.is_none(),
            Err(error) => {
                self.fault("read the journal", &error);
                false
            }
        }
    }

    /// Whether an upload of this key is owed to the realm's upstream: then ours is the newer one.
    pub fn owes(&self, key: &Key, realm: RealmId) -> bool {
        let owed = Owed { realm, key: key.clone(), size: 0, since: 0 };
        self.inner.tail.owed_number(&owed.identity()).is_some()
    }

    pub fn settle(&self, number: u64) -> bool {
        self.inner.tail.begin().is_ok_and(|mut change| change.settle(number))
    }

    /// Remembers what a realm stands for.
    pub fn register_realm(&self, id: RealmId, text: &str) -> Result<(), StoreError> {
        let mut change = self.inner.tail.begin().map_err(StoreError::of)?;
        let record = Append { tag: Tag::Realm, key: &id.0, meta: text.as_bytes(), body: &[] };
        change.append(&record).map_err(StoreError::of)?;
        change.realm(id, text.to_owned());
        Ok(())
    }

    /// What a realm stands for, if that is remembered.
    pub fn realm(&self, id: RealmId) -> Option<String> {
        self.inner.tail.realm(id)
    }

    /// All realms that are remembered, in no order.
    pub fn realms(&self) -> Vec<(RealmId, String)> {
        self.inner.tail.realms()
    }

    /// Waits until everything acknowledged is on stable storage.
    pub fn sync(&self, within: Duration) -> bool {
        self.inner.tail.flush(within)
    }

    pub fn used_bytes(&self) -> u64 {
        self.inner.tail.segment_bytes.load(Ordering::Relaxed)
            + self.inner.tail.file_bytes.load(Ordering::Relaxed)
    }

    pub fn entries(&self) -> u64 {
        self.inner.index.read().and_then(|reading| reading.entries()).unwrap_or(0)
    }

    pub fn limit_bytes(&self) -> u64 {
        self.inner.space.limit()
    }

    pub fn free_bytes(&self) -> u64 {
        self.inner.space.free()
    }

    pub fn owed_entries(&self) -> u64 {
        self.inner.tail.owed_entries.load(Ordering::Relaxed)
    }

    pub fn owed_bytes(&self) -> u64 {
        self.inner.tail.owed_bytes()
    }

    /// Age of the oldest owed upload, in seconds.
    pub fn owed_oldest_s(&self) -> u64 {
        let now = seconds(self.inner.clock.now());
        self.owed_from(0, 1).first().map_or(0, |(_, o)| u64::from(now.saturating_sub(o.since)))
    }

    fn fault(&self, what: &'static str, error: &dyn std::error::Error) {
        self.inner.metrics.store_faults.inc();
        tracing::warn!(%error, "store: cannot {what}");
    }

    /// Whether another start would find more than this one does: the index is damaged, or the directory
    /// is not the one that was opened. Somebody may have removed it, and what is written then is lost.
    pub fn is_lost(&self) -> bool {
        self.inner.index.is_lost() || !self.is_there()
    }

    fn is_there(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let place = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let held = self.inner.lock.metadata().map(place);
        let found = std::fs::metadata(self.inner.layout.dir.join("lock")).map(place);
        // Where that cannot be told, nothing is concluded from it.
        match (held, found) {
            (Ok(held), Ok(found)) => held == found,
            (_, Err(error)) => error.kind() != io::ErrorKind::NotFound,
            (Err(_), Ok(_)) => true,
        }
    }

    pub fn dir(&self) -> &Path {
        &self.inner.layout.dir
    }
}

/// The row of an entry whose record is at a position.
fn row_of(entry: &EntryMeta, at: Position, len: u32, stamp: Stamp, touched: u32) -> Row {
    Row {
        place: entry.place,
        class: entry.meta.class,
        has_more: entry.has_more(),
        at,
        len,
        digest: entry.meta.digest,
        size: entry.meta.size,
        stored: entry.meta.stored,
        cost_ms: entry.meta.cost_ms,
        c_env: entry.meta.c_env,
        touched,
        condemned: 0,
        stamp,
    }
}

/// Seconds since 1970, as rows keep them.
fn seconds(at: Timestamp) -> u32 {
    u32::try_from(at.seconds()).unwrap_or(u32::MAX)
}

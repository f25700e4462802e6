//! Tier 2, on disk: small bodies in segments, large ones in files, an index over both.
//!
//! The only code that touches the store. It knows no tier above it and no network; it verifies what
//! it hands out, and a fault of the disk is a miss here, logged and counted once. Everything in this
//! room blocks: callers decide on which thread.
//!
//! Order of reading: `segment` and `record` (bytes), `layout` (names), `index` (LMDB), `tail` (what
//! is acknowledged), `replay` (start), `file`, `space` and `evict`, then this file.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::entry::{Digest, Key, Kind, Meta, RealmId};
use crate::store::file::{Finished, Staged};
use crate::store::index::{Index, IndexError, Owed};
use crate::store::layout::{Layout, LayoutError};
use crate::store::record::{EntryMeta, Place, Row, Stamp};
use crate::store::segment::{INLINE_MAX, Position, Tag};
use crate::store::space::Space;
use crate::store::tail::{Append, Tail};
use crate::telemetry::Metrics;
use crate::units::{ByteSize, Clock, Percent, Timestamp};

pub mod evict;
pub mod file;
pub mod index;
pub mod layout;
pub mod reader;
pub mod record;
mod replay;
pub mod segment;
pub mod space;
pub mod spool;
mod tail;
#[cfg(test)]
mod tests;
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
    /// None: half of what is free, at most 50 GiB. A share is of the file system.
    pub disk: Option<Limit>,
    /// Free space that is never used. None: 1 GiB or 5 %, whichever is less.
    pub floor: Option<Limit>,
}

/// A touch is noted when the last one is older than this: recency is coarse.
const TOUCH_EVERY_S: u32 = 300;
/// Touches held in memory before they are written early.
const TOUCHES_MAX: usize = 64 << 10;
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
    committer: Mutex<Option<std::thread::JoinHandle<()>>>,
    nonce: String,
    /// Held as long as the store is open.
    _lock: File,
}

#[derive(Default)]
struct Touches {
    keys: HashMap<Vec<u8>, u32>,
    segments: HashMap<u32, u32>,
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
        let replayed = replay::open_index(&layout, &clock).map_err(damage)?;
        let space = Space::new(config).map_err(io)?;
        let index = replayed.index;
        let tail = Tail::open(
            &layout,
            index.clone(),
            metrics.clone(),
            replayed.covered,
            replayed.owed_entries,
        )
        .map_err(io)?;
        let store = Self {
            inner: Arc::new(Inner {
                nonce: std::fs::read_to_string(layout.nonce()).map_err(io)?,
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
                _lock: lock,
            }),
        };
        store.start_committer().map_err(io)?;
        Ok(store)
    }

    fn start_committer(&self) -> io::Result<()> {
        // The thread keeps the store open until `close`.
        let inner = self.inner.clone();
        let handle =
            crate::tasks::thread("larder-commit", move || inner.tail.commit_until_stopped())?;
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
            let _ = handle.join();
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

    /// Looks a key up; reads no body.
    pub fn find(&self, key: &Key) -> Option<Row> {
        self.find_encoded(&key.encode())
    }

    fn find_encoded(&self, key: &[u8]) -> Option<Row> {
        if let Some(row) = self.inner.tail.row(key) {
            return row;
        }
        match self.inner.index.read().and_then(|reading| reading.row(key)) {
            Ok(row) => row,
            Err(error) => {
                self.fault("read the index", &error);
                None
            }
        }
    }

    /// Reads and verifies what `row` says. None, counted, if it is damaged or gone.
    pub fn load(&self, key: &Key, row: &Row) -> Option<Stored> {
        self.touch(key, row);
        match row.place {
            Place::Inline => self.load_inline(key, row),
            Place::File => self.load_file(key, row).map(|file| Stored::File(row.meta(), file)),
            Place::Elsewhere => self.load_elsewhere(key, row),
        }
    }

    pub fn get(&self, key: &Key) -> Option<Stored> {
        let row = self.find(key)?;
        self.load(key, &row)
    }

    fn load_inline(&self, key: &Key, row: &Row) -> Option<Stored> {
        let record = self.read_record(key, row)?;
        let entry = EntryMeta::decode(&record.meta)?;
        if Digest::of(&record.body) != row.digest {
            self.drop_corrupt(key, row);
            return None;
        }
        Some(Stored::Bytes(entry.meta, record.body.into()))
    }

    fn load_elsewhere(&self, key: &Key, row: &Row) -> Option<Stored> {
        let meta = if row.has_more {
            EntryMeta::decode(&self.read_record(key, row)?.meta)?.meta
        } else {
            row.meta()
        };
        let content = Key::content(row.digest);
        let there = self.find(&content)?;
        self.touch(&content, &there);
        match self.load(&content, &there)? {
            Stored::Bytes(_, bytes) => Some(Stored::Bytes(meta, bytes)),
            Stored::File(_, file) => Some(Stored::File(meta, file)),
        }
    }

    /// Opens a body's file once it is sure that its bytes are still those of the digest.
    fn load_file(&self, key: &Key, row: &Row) -> Option<Arc<File>> {
        if !self.vouch(key, row) {
            return None;
        }
        match File::open(self.inner.layout.file(&row.digest)) {
            Ok(file) => Some(Arc::new(file)),
            Err(error) => {
                self.fault("open a file", &error);
                None
            }
        }
    }

    /// Whether the file of a content row holds its bytes; hashes it again if anything about it has
    /// changed. A file that does not is removed with its row.
    pub fn vouch(&self, key: &Key, row: &Row) -> bool {
        let path = self.inner.layout.file(&row.digest);
        let meta = match std::fs::metadata(&path) {
            Ok(meta) => meta,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.fault("look at a file", &error);
                    return false;
                }
                // Go may have moved it away; whoever asks next must not be sent here.
                self.forget(key, row);
                return false;
            }
        };
        let stamp = layout::stamp(&meta, self.inner.boot);
        if meta.is_file() && meta.len() == row.size && stamp == row.stamp {
            return true;
        }
        match file::hash(&path) {
            Ok((digest, size)) if digest == row.digest && size == row.size => {
                let restamped = Row { stamp, ..*row };
                if let Ok(mut change) = self.inner.tail.begin() {
                    change.put(key.encode(), restamped);
                }
                true
            }
            Ok(_) => {
                self.drop_corrupt(key, row);
                false
            }
            Err(error) => {
                self.fault("read a file", &error);
                false
            }
        }
    }

    fn read_record(&self, key: &Key, row: &Row) -> Option<segment::Record> {
        let file = match self.segment(row.at.segment) {
            Ok(file) => file,
            Err(error) => {
                self.forget(key, row);
                self.fault("open a segment", &error);
                return None;
            }
        };
        match segment::read(&file, row.at.offset, row.len) {
            Ok(Ok(record)) if record.key == key.encode() => Some(record),
            Ok(_) => {
                self.drop_corrupt(key, row);
                None
            }
            Err(error) => {
                self.fault("read a segment", &error);
                None
            }
        }
    }

    fn segment(&self, number: u32) -> io::Result<Arc<File>> {
        let mut open = self.inner.open_segments.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&number) {
            return Ok(file.clone());
        }
        let path = segment::path(&self.inner.layout.segments(), number);
        let file = Arc::new(File::open(path)?);
        if open.len() >= OPEN_SEGMENTS_MAX {
            open.clear();
        }
        open.insert(number, file.clone());
        Ok(file)
    }

    fn drop_corrupt(&self, key: &Key, row: &Row) {
        self.inner.metrics.corrupt.inc();
        tracing::warn!(%key, "store: damaged entry dropped");
        self.remove_row(key, row);
    }

    /// Takes a row out whose bytes are gone.
    fn forget(&self, key: &Key, row: &Row) {
        self.remove_row(key, row);
    }

    /// Removes an entry: its row, a mark in the log, and the file if it had one.
    pub fn remove(&self, key: &Key) -> bool {
        let Some(row) = self.find(key) else { return false };
        self.remove_row(key, &row);
        true
    }

    fn remove_row(&self, key: &Key, row: &Row) {
        let encoded = key.encode();
        let removed = self.inner.tail.begin().and_then(|mut change| {
            // Put anew, moved or removed since `row` was read: not ours to remove.
            if self.find_encoded(&encoded).is_none_or(|now| now.at != row.at) {
                return Ok(());
            }
            if row.place == Place::File {
                self.unlink(row);
            }
            let mark = Append { tag: Tag::Removal, key: &encoded, meta: &[], body: &[] };
            // Without the mark the entry could come back if the index had to be built again; it
            // must go from the index all the same.
            let marked = change.append(&mark);
            change.remove(encoded.clone(), Some(row.at));
            marked.map(drop)
        });
        if let Err(error) = removed {
            self.fault("write a removal", &error);
        }
    }

    fn unlink(&self, row: &Row) {
        match std::fs::remove_file(self.inner.layout.file(&row.digest)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.fault("remove a file", &error),
        }
        self.inner.tail.sub_file_bytes(row.size);
    }

    /// A body on its way in; up to 64 KiB stay in memory.
    pub fn stage(&self) -> Staged {
        Staged::new(&self.inner.layout, INLINE_MAX)
    }

    /// A body on its way in that others read along: always a file.
    pub fn stage_shared(&self) -> Staged {
        Staged::new(&self.inner.layout, 0)
    }

    /// Whether `size` more bytes may be stored.
    pub fn has_room(&self, size: u64) -> bool {
        self.inner.space.has_room(self.used_bytes(), size)
    }

    /// Stores a finished body. Acknowledge the client only after this.
    pub fn put(
        &self,
        key: &Key,
        mut body: Finished,
        meta: &Meta,
        owed: Option<RealmId>,
    ) -> Result<Put, StoreError> {
        let before = self.find(key);
        if let (Kind::Content, Some(row)) = (key.kind, &before)
            && self.is_sound(key, row)
        {
            self.touch(key, row);
            if let Some(realm) = owed {
                self.owe(key, row, realm)?;
            }
            return Ok(Put::Known);
        }
        if !self.has_room(body.size) {
            return Err(StoreError::Full);
        }
        if let Some(bytes) = body.inline() {
            let place = EntryMeta { meta: meta.clone(), place: Place::Inline, owed };
            self.append(key, &place, bytes, Stamp::default(), None)?;
        } else {
            self.place(&mut body, if key.kind == Kind::Content { owed } else { None })?;
            if key.kind != Kind::Content {
                let place = EntryMeta { meta: meta.clone(), place: Place::Elsewhere, owed };
                self.append(key, &place, &[], Stamp::default(), None)?;
            }
        }
        Ok(if before.is_some() { Put::Replaced } else { Put::New })
    }

    /// Places a body as a file and records it as content.
    pub fn place(&self, body: &mut Finished, owed: Option<RealmId>) -> Result<(), StoreError> {
        let (path, stamp) =
            body.place(&self.inner.layout, self.inner.boot).map_err(StoreError::of)?;
        let meta = self.content_meta(body.digest, body.size);
        let entry = EntryMeta { meta, place: Place::File, owed };
        self.append(&Key::content(body.digest), &entry, &[], stamp, Some(path))
    }

    fn content_meta(&self, digest: Digest, size: u64) -> Meta {
        Meta::new(digest, size, self.inner.clock.now(), crate::entry::Class::Other)
    }

    /// Records an output that is in place already, and the Go action that names it.
    pub fn record_go(
        &self,
        action: &Key,
        meta: &Meta,
        owed: Option<RealmId>,
    ) -> Result<(), StoreError> {
        let content = Key::content(meta.digest);
        let path = self.inner.layout.file(&meta.digest);
        let file = std::fs::metadata(&path).map_err(|_| StoreError::Gone)?;
        if !file.is_file() || file.len() != meta.size {
            return Err(StoreError::Gone);
        }
        let stamp = layout::stamp(&file, self.inner.boot);
        let known = self.find(&content).is_some_and(|row| {
            row.place == Place::File && row.stamp == stamp && row.condemned == 0
        });
        if !known {
            let meta = self.content_meta(meta.digest, meta.size);
            let entry = EntryMeta { meta, place: Place::File, owed: None };
            self.append(&content, &entry, &[], stamp, Some(path))?;
        }
        let entry = EntryMeta { meta: meta.clone(), place: Place::Elsewhere, owed };
        self.append(action, &entry, &[], Stamp::default(), None)
    }

    /// The action's row if its output is in place as a file and unchanged.
    pub fn find_go(&self, action: &Key) -> Option<Row> {
        let row = self.find(action)?;
        let content = Key::content(row.digest);
        let there = self.find(&content)?;
        self.touch(action, &row);
        self.touch(&content, &there);
        match there.place {
            Place::File => self.vouch(&content, &there).then_some(row),
            // Somebody stored the same bytes as plain content; Go needs them as a file.
            Place::Inline | Place::Elsewhere => {
                let Some(Stored::Bytes(_, bytes)) = self.load(&content, &there) else {
                    return None;
                };
                let mut staged = self.stage_shared();
                staged.write(&bytes).ok()?;
                self.place(&mut staged.finish(), None).ok()?;
                Some(row)
            }
        }
    }

    /// Appends the record of an entry and makes it visible.
    fn append(
        &self,
        key: &Key,
        entry: &EntryMeta,
        body: &[u8],
        stamp: Stamp,
        sync: Option<PathBuf>,
    ) -> Result<(), StoreError> {
        let encoded = key.encode();
        let meta = entry.encode();
        let mut change = self.inner.tail.begin().map_err(StoreError::of)?;
        let before = self.find_encoded(&encoded);
        // A removal may have come between placing the file and recording it.
        if sync.as_ref().is_some_and(|path| !path.exists()) {
            return Err(StoreError::Gone);
        }
        let record = Append { tag: Tag::Entry, key: &encoded, meta: &meta, body };
        let (at, len) = change.append(&record).map_err(StoreError::of)?;
        let row = row_of(entry, at, len, stamp, seconds(self.inner.clock.now()));
        self.account(before.as_ref(), &row);
        if let Some(path) = sync {
            change.sync_file(path);
        }
        change.put(encoded, row);
        if let Some(realm) = entry.owed {
            change.owe(self.owed(key, entry.meta.size, realm));
        }
        Ok(())
    }

    fn account(&self, before: Option<&Row>, after: &Row) {
        if let Some(row) = before.filter(|row| row.place == Place::File) {
            self.inner.tail.sub_file_bytes(row.size);
        }
        if after.place == Place::File {
            self.inner.tail.file_bytes.fetch_add(after.size, Ordering::Relaxed);
        }
    }

    fn owed(&self, key: &Key, size: u64, realm: RealmId) -> Owed {
        Owed { realm, key: key.clone(), size, since: seconds(self.inner.clock.now()) }
    }

    /// Whether an entry is there without reading it: its file unchanged, its record in a segment.
    pub fn is_sound(&self, key: &Key, row: &Row) -> bool {
        match row.place {
            Place::Inline => true,
            Place::File => self.vouch(key, row),
            Place::Elsewhere => {
                let content = Key::content(row.digest);
                self.find(&content).is_some_and(|there| self.is_sound(&content, &there))
            }
        }
    }

    /// Owes an upload of an entry that is stored already, unless it is owed.
    ///
    /// The entry is written to the log once more, or a SIGKILL before the next commit would forget
    /// what is owed.
    pub fn owe(&self, key: &Key, row: &Row, realm: RealmId) -> Result<(), StoreError> {
        if self.inner.tail.owed_number(&self.owed(key, row.size, realm).identity()).is_some() {
            return Ok(());
        }
        let mut body = Vec::new();
        let mut entry = EntryMeta { meta: row.meta(), place: row.place, owed: None };
        if row.place == Place::Inline || row.has_more {
            let Some(record) = self.read_record(key, row) else { return Err(StoreError::Gone) };
            body = record.body;
            entry = EntryMeta::decode(&record.meta).ok_or(StoreError::Gone)?;
        }
        entry.owed = Some(realm);
        self.append(key, &entry, &body, row.stamp, None)
    }

    /// Owed uploads from `number` on, oldest first.
    pub fn owed_from(&self, number: u64, most: usize) -> Vec<(u64, Owed)> {
        self.inner.tail.owed(number, most)
    }

    /// The upload with this number; None once it is settled, or replaced by a newer one.
    pub fn owed_at(&self, number: u64) -> Option<Owed> {
        self.inner.tail.owed_by_number(number)
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

    pub fn realms(&self) -> Vec<(RealmId, String)> {
        self.inner.index.read().and_then(|reading| reading.realms()).unwrap_or_default()
    }

    /// Notes that an entry is used, unless that was noted lately.
    pub fn touch(&self, key: &Key, row: &Row) {
        let now = seconds(self.inner.clock.now());
        if now.saturating_sub(row.touched) < TOUCH_EVERY_S && row.condemned == 0 {
            return;
        }
        let mut touches = self.inner.touches.lock().unwrap_or_else(PoisonError::into_inner);
        touches.keys.insert(key.encode(), now);
        if row.place == Place::Inline {
            touches.segments.insert(row.at.segment, now);
        }
        if touches.keys.len() >= TOUCHES_MAX {
            drop(touches);
            self.flush_touches();
        }
    }

    /// Writes the touches noted since the last time.
    pub fn flush_touches(&self) {
        let touches =
            std::mem::take(&mut *self.inner.touches.lock().unwrap_or_else(PoisonError::into_inner));
        if touches.keys.is_empty() {
            return;
        }
        if let Ok(mut change) = self.inner.tail.begin() {
            for (key, at) in touches.keys {
                // Found under the change's lock, so that no newer row is overwritten.
                if let Some(row) = self.find_encoded(&key) {
                    let touched = row.touched.max(at);
                    change.put(key, Row { touched, condemned: 0, ..row });
                }
            }
            for (segment, at) in touches.segments {
                change.segment_touched(segment, at);
            }
        }
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

//! The end of the log: where records are appended, what is acknowledged but not committed to the
//! index yet (the overlay), and the thread that commits once a second.
//!
//! Invariant: a record is appended, and its operation queued, under one lock, so that a commit
//! covers exactly the records before its position. Readers look into the overlay first, then into
//! the index; the committer empties the overlay only after the index has it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::entry::RealmId;
use crate::store::index::{Covered, Index, Op, Owed};
use crate::store::layout::Layout;
use crate::store::record::Row;
use crate::store::segment::{self, Position, Seal, Tag};
use crate::tasks::sync::{AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, RwLock};
use crate::telemetry::Metrics;

mod commit;
mod overlay;

use overlay::Overlay;

/// How long an acknowledged change may wait for its commit: what a power cut can lose.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// A commit is made early when so many operations wait.
const COMMIT_OPS: usize = 20_000;
/// Past this the index has been failing for long, and nothing more is taken in.
const PENDING_MAX: usize = 400_000;
/// Between two attempts when committing fails: at first, and then up to this long.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_EVERY: Duration = Duration::from_secs(5);

struct State {
    segment: u32,
    file: Arc<File>,
    offset: u64,
    pending: Vec<Op>,
    /// Counts operations; says which part of the overlay a commit covers.
    sequence: u64,
    /// To be synced with the next commit: closed segments, and bodies in files.
    unsynced_segments: Vec<Arc<File>>,
    unsynced_files: Vec<PathBuf>,
    covered: Covered,
    /// Somebody waits for a commit of everything up to here.
    wanted: u64,
    committed: u64,
    stopping: bool,
}

/// See the module.
pub(super) struct Tail {
    layout: Layout,
    seal: Seal,
    index: Index,
    metrics: Arc<Metrics>,
    /// Bytes after which a new segment is begun.
    segment_max: u64,
    state: Mutex<State>,
    overlay: RwLock<Overlay>,
    overlay_len: AtomicUsize,
    changed: Condvar,
    done: Condvar,
    pub(super) segment_bytes: AtomicU64,
    pub(super) file_bytes: AtomicU64,
    pub(super) owed_entries: AtomicU64,
    failing: AtomicBool,
}

/// A record to append and what follows from it.
pub(super) struct Append<'a> {
    pub(super) tag: Tag,
    pub(super) key: &'a [u8],
    pub(super) meta: &'a [u8],
    pub(super) body: &'a [u8],
}

impl Tail {
    /// Continues after `covered`, in a new segment if `segment` is not there.
    pub(super) fn open(
        (layout, seal): (&Layout, Seal),
        index: Index,
        metrics: Arc<Metrics>,
        segment_max: u64,
        covered: Covered,
        owed_entries: u64,
    ) -> io::Result<Self> {
        let segments = segment::list(&layout.segments())?;
        let bytes = segment::bytes_in(&layout.segments())?;
        // Always a new segment: a torn tail of the old one is left to the scan that skips it.
        let last = segments.last().copied().unwrap_or(0);
        // Never one that was used: what the index covers must not lie ahead.
        let number = last.max(covered.position.segment) + 1;
        let file = create_segment(layout, number)?;
        let mut covered = covered;
        covered.position = Position { segment: number, offset: 0 };
        covered.clean = false;
        Ok(Self {
            layout: layout.clone(),
            seal,
            index,
            metrics,
            segment_max,
            state: Mutex::new(State {
                segment: number,
                file,
                offset: 0,
                pending: Vec::new(),
                sequence: 0,
                unsynced_segments: Vec::new(),
                unsynced_files: Vec::new(),
                covered,
                wanted: 0,
                committed: 0,
                stopping: false,
            }),
            overlay: RwLock::default(),
            overlay_len: AtomicUsize::new(0),
            changed: Condvar::new(),
            done: Condvar::new(),
            segment_bytes: AtomicU64::new(bytes),
            file_bytes: AtomicU64::new(covered.file_bytes),
            owed_entries: AtomicU64::new(owed_entries),
            failing: AtomicBool::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file is gone, or counted elsewhere.
    pub(super) fn sub_file_bytes(&self, bytes: u64) {
        let subtract = |held: u64| Some(held.saturating_sub(bytes));
        let _ = self.file_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
    }

    /// The segment that is being written; it is never evicted.
    pub(super) fn current_segment(&self) -> u32 {
        self.state().segment
    }

    /// Begins a change: records and operations made through it become visible together.
    pub(super) fn begin(&self) -> Result<Change<'_>, io::Error> {
        let state = self.state();
        if state.pending.len() >= PENDING_MAX {
            return Err(io::Error::other("the index cannot be written"));
        }
        Ok(Change { tail: self, state })
    }

    pub(super) fn owed_bytes(&self) -> u64 {
        self.state().covered.owed_bytes
    }

    /// Waits until everything acknowledged so far is in the index, on stable storage.
    pub(super) fn flush(&self, within: Duration) -> bool {
        let mut state = self.state();
        let target = state.sequence;
        state.wanted = state.wanted.max(target);
        self.changed.notify_all();
        let (state, _) = self
            .done
            .wait_timeout_while(state, within, |s| s.committed < target && !s.stopping)
            .unwrap_or_else(PoisonError::into_inner);
        state.committed >= target
    }

    /// Whether the index has what a change says.
    pub(super) fn has_committed(&self, sequence: u64) -> bool {
        self.state().committed >= sequence
    }

    /// Ends the committing thread after a last commit.
    pub(super) fn stop(&self) {
        self.state().stopping = true;
        self.changed.notify_all();
    }

    fn fault(&self, what: &'static str, error: &dyn std::error::Error) {
        self.metrics.store_faults.inc();
        tracing::warn!(%error, "store: cannot {what}");
    }
}

fn create_segment(layout: &Layout, number: u32) -> io::Result<Arc<File>> {
    let path = segment::path(&layout.segments(), number);
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    Ok(Arc::new(file))
}

/// A change under way; holds the log's lock.
pub(super) struct Change<'a> {
    tail: &'a Tail,
    state: MutexGuard<'a, State>,
}

impl Change<'_> {
    /// Appends a record; nothing is visible if this fails.
    pub(super) fn append(&mut self, record: &Append<'_>) -> io::Result<(Position, u32)> {
        let len = segment::len_of(record.key, record.meta, record.body);
        if self.state.offset + u64::from(len) > self.tail.segment_max {
            self.roll()?;
        }
        let at = Position {
            segment: self.state.segment,
            offset: u32::try_from(self.state.offset).map_err(|_| io::ErrorKind::InvalidData)?,
        };
        let mut bytes = Vec::with_capacity(record.body.len() + record.meta.len() + 128);
        let parts = (record.key, record.meta, record.body);
        segment::encode(record.tag, parts, self.tail.seal.mark(at), &mut bytes);
        // A failed write leaves the offset where it was: the next record overwrites the torn one.
        self.state.file.write_all_at(&bytes, self.state.offset)?;
        self.state.offset += u64::from(len);
        self.tail.segment_bytes.fetch_add(u64::from(len), Ordering::Relaxed);
        Ok((at, len))
    }

    fn roll(&mut self) -> io::Result<()> {
        let number = self.state.segment + 1;
        let file = create_segment(&self.tail.layout, number)?;
        let old = std::mem::replace(&mut self.state.file, file);
        self.state.unsynced_segments.push(old);
        self.state.segment = number;
        self.state.offset = 0;
        Ok(())
    }

    /// Of its last operation: once the index has that, readers see it.
    pub(super) fn sequence(&self) -> u64 {
        self.state.sequence
    }

    pub(super) fn put(&mut self, key: Vec<u8>, row: Row) {
        self.show(key.clone(), Some(row));
        self.push(Op::Put { key, row });
    }

    /// Removes the entry; with a position, only if it is still there.
    pub(super) fn remove(&mut self, key: Vec<u8>, at: Option<Position>) {
        self.show(key.clone(), None);
        self.push(Op::Remove { key, at });
    }

    pub(super) fn realm(&mut self, id: RealmId, text: String) {
        let sequence = self.state.sequence + 1;
        let mut overlay = self.tail.overlay.write().unwrap_or_else(PoisonError::into_inner);
        overlay.realms.insert(id, (sequence, text.clone()));
        drop(overlay);
        self.push(Op::Realm { id, text });
    }

    pub(super) fn segment_touched(&mut self, segment: u32, at: u32) {
        self.push(Op::SegmentTouched { segment, at });
    }

    pub(super) fn segment_gone(&mut self, segment: u32) {
        self.push(Op::SegmentGone { segment });
    }

    pub(super) fn sync_file(&mut self, path: PathBuf) {
        self.state.unsynced_files.push(path);
    }

    /// Owes an upload; an older one of the same key is replaced.
    pub(super) fn owe(&mut self, owed: Owed) -> u64 {
        let identity = owed.identity();
        let older = self.tail.owed_number(&identity);
        let older = older.and_then(|older| Some((older, self.tail.owed_by_number(older).ok()??)));
        let number = self.state.covered.next_number;
        self.state.covered.next_number += 1;
        self.state.covered.owed_bytes += owed.size;
        let sequence = self.state.sequence + 1;
        let mut overlay = self.tail.overlay.write().unwrap_or_else(PoisonError::into_inner);
        // At once, or whoever waits for all that is owed would find nothing in between.
        if let Some((older, replaced)) = older {
            let bytes = &mut self.state.covered.owed_bytes;
            *bytes = bytes.saturating_sub(replaced.size);
            overlay.owed.insert(older, (sequence, None));
        } else {
            self.tail.owed_entries.fetch_add(1, Ordering::Relaxed);
        }
        overlay.owed.insert(number, (sequence, Some(owed.clone())));
        overlay.owed_keys.insert(identity, (sequence, Some(number)));
        drop(overlay);
        self.push(Op::Owe { number, owed });
        number
    }

    /// An owed upload is done or given up. False if it was replaced or settled before.
    pub(super) fn settle(&mut self, number: u64) -> bool {
        let Some(owed) = self.forget_owed(number) else { return false };
        let identity = owed.identity();
        if self.tail.owed_number(&identity) == Some(number) {
            let sequence = self.state.sequence + 1;
            let mut overlay = self.tail.overlay.write().unwrap_or_else(PoisonError::into_inner);
            overlay.owed_keys.insert(identity, (sequence, None));
        }
        self.push(Op::Settle { number });
        true
    }

    fn forget_owed(&mut self, number: u64) -> Option<Owed> {
        let owed = self.tail.owed_by_number(number).ok()??;
        let bytes = &mut self.state.covered.owed_bytes;
        *bytes = bytes.saturating_sub(owed.size);
        self.tail.owed_entries.fetch_sub(1, Ordering::Relaxed);
        let sequence = self.state.sequence + 1;
        let mut overlay = self.tail.overlay.write().unwrap_or_else(PoisonError::into_inner);
        overlay.owed.insert(number, (sequence, None));
        Some(owed)
    }

    fn show(&mut self, key: Vec<u8>, row: Option<Row>) {
        let sequence = self.state.sequence + 1;
        let mut overlay = self.tail.overlay.write().unwrap_or_else(PoisonError::into_inner);
        overlay.rows.insert(key, (sequence, row));
        self.tail.overlay_len.store(overlay.rows.len(), Ordering::Release);
    }

    fn push(&mut self, op: Op) {
        self.state.sequence += 1;
        self.state.pending.push(op);
        if self.state.pending.len() == 1 || self.state.pending.len() == COMMIT_OPS {
            self.tail.changed.notify_all();
        }
    }
}

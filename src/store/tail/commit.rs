//! The committing thread: once a second, what was acknowledged becomes index and stable storage.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::store::file;
use crate::store::segment::Position;
use crate::store::tail::{COMMIT_EVERY, COMMIT_OPS, RETRY_EVERY, RETRY_FIRST, State, Tail};
use crate::tasks::sync::MutexGuard;
use crate::units::Backoff;

/// What a commit stands on, and is not on the disk yet.
struct Unsynced {
    closed: Vec<Arc<File>>,
    /// The segment that is being written.
    last: Arc<File>,
    files: Vec<PathBuf>,
}

impl Tail {
    /// The committing thread's life; whether its last commit went well.
    pub(in crate::store) fn commit_until_stopped(&self) -> bool {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_EVERY, 0);
        loop {
            let mut state = self.state();
            while state.pending.is_empty() && !state.stopping {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let (mut state, _) = self
                .changed
                .wait_timeout_while(state, COMMIT_EVERY, |s| {
                    !s.stopping && s.wanted <= s.committed && s.pending.len() < COMMIT_OPS
                })
                .unwrap_or_else(PoisonError::into_inner);
            let stopping = state.stopping;
            state.covered.clean = stopping;
            let committed = self.commit(state);
            if stopping {
                self.done.notify_all();
                return committed;
            }
            if committed {
                backoff.reset();
            } else {
                let (state, pause) = (self.state(), backoff.next_delay());
                drop(self.changed.wait_timeout_while(state, pause, |s| !s.stopping));
            }
        }
    }

    /// Syncs what the records stand on, then commits the index; false if it must be tried again.
    fn commit(&self, mut state: MutexGuard<'_, State>) -> bool {
        let ops = std::mem::take(&mut state.pending);
        let upto = state.sequence;
        let mut covered = state.covered;
        covered.position = Position {
            segment: state.segment,
            offset: u32::try_from(state.offset).unwrap_or(u32::MAX),
        };
        covered.file_bytes = self.file_bytes.load(Ordering::Relaxed);
        let mut unsynced = Unsynced {
            closed: std::mem::take(&mut state.unsynced_segments),
            last: state.file.clone(),
            files: std::mem::take(&mut state.unsynced_files),
        };
        drop(state);
        unsynced.files.sort_unstable();
        unsynced.files.dedup();

        let result = match self.sync(&mut unsynced) {
            Ok(()) => self.index.commit(&ops, &covered),
            Err(error) => Err(error.into()),
        };
        let mut state = self.state();
        match result {
            Ok(()) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("store: commits go well again");
                }
                state.committed = upto;
                drop(state);
                self.forget(upto);
                self.done.notify_all();
                true
            }
            Err(error) => {
                self.metrics.store_faults.inc();
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "store: what was acknowledged cannot be committed; trying again");
                }
                let newer = std::mem::replace(&mut state.pending, ops);
                state.pending.extend(newer);
                state.unsynced_segments.splice(..0, unsynced.closed);
                state.unsynced_files.append(&mut unsynced.files);
                state.wanted = state.wanted.min(state.committed);
                false
            }
        }
    }

    /// What could not be synced stays in the lists, and the index must not say that it is there. The
    /// kernel may take what it could not write for written: it is written again first.
    fn sync(&self, unsynced: &mut Unsynced) -> io::Result<()> {
        let mut first = Ok(());
        let Unsynced { closed, last, files } = unsynced;
        closed.retain(|segment| {
            let synced = segment.sync_data();
            if synced.is_err() {
                write_again(segment, u64::MAX);
            }
            self.is_kept("sync a segment", synced, &mut first)
        });
        let synced = last.sync_data();
        if synced.is_err() {
            // With what came meanwhile, and nobody appends until it is done.
            let state = self.state();
            let is_last = Arc::ptr_eq(&state.file, last);
            write_again(last, if is_last { state.offset } else { u64::MAX });
        }
        self.is_kept("sync a segment", synced, &mut first);
        files.retain(|path| {
            let synced = File::open(path).and_then(|file| file.sync_data());
            match synced {
                // One that is gone by now needs none: Go may have moved it away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(_) if file::renew(path).is_ok() => false,
                synced => self.is_kept("sync a file", synced, &mut first),
            }
        });
        first
    }

    /// Whether it must be synced once more.
    fn is_kept(
        &self,
        what: &'static str,
        synced: io::Result<()>,
        first: &mut io::Result<()>,
    ) -> bool {
        let Err(error) = synced else { return false };
        self.fault(what, &error);
        if first.is_ok() {
            *first = Err(error);
        }
        true
    }

    /// Drops what the index has from the overlay.
    fn forget(&self, upto: u64) {
        let mut overlay = self.overlay.write().unwrap_or_else(PoisonError::into_inner);
        overlay.forget(upto);
        self.overlay_len.store(overlay.rows.len(), Ordering::Release);
    }
}

/// Writes a file's first bytes once more where they are, as far as they can be read.
fn write_again(file: &File, len: u64) {
    let len = len.min(file.metadata().map_or(0, |meta| meta.len()));
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let most = usize::try_from(len - at).map_or(piece.len(), |left| left.min(piece.len()));
        let piece = &mut piece[..most];
        // What cannot be read is lost, and what is lost is found when it is read.
        if file.read_exact_at(piece, at).is_ok() && file.write_all_at(piece, at).is_err() {
            return;
        }
        at += most as u64;
    }
}

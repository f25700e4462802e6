//! The committing thread: once a second, what was acknowledged becomes index and stable storage.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::store::segment::Position;
use crate::store::tail::{COMMIT_EVERY, COMMIT_OPS, RETRY_EVERY, State, Tail};
use crate::tasks::sync::MutexGuard;

impl Tail {
    /// The committing thread's life; whether its last commit went well.
    pub(in crate::store) fn commit_until_stopped(&self) -> bool {
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
            if !committed {
                let state = self.state();
                drop(self.changed.wait_timeout_while(state, RETRY_EVERY, |s| !s.stopping));
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
        let mut segments = std::mem::take(&mut state.unsynced_segments);
        segments.push(state.file.clone());
        let mut files = std::mem::take(&mut state.unsynced_files);
        drop(state);
        files.sort_unstable();
        files.dedup();

        self.sync(&segments, &files);
        let result = self.index.commit(&ops, &covered);
        let mut state = self.state();
        match result {
            Ok(()) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("store: the index can be written again");
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
                    tracing::warn!(%error, "store: the index cannot be written; trying again");
                }
                let newer = std::mem::replace(&mut state.pending, ops);
                state.pending.extend(newer);
                state.wanted = state.wanted.min(state.committed);
                false
            }
        }
    }

    fn sync(&self, segments: &[Arc<File>], files: &[PathBuf]) {
        for file in segments {
            if let Err(error) = file.sync_data() {
                self.fault("sync a segment", &error);
            }
        }
        for path in files {
            // A file that is gone by now needs no sync: Go may have moved it away.
            if let Err(error) = File::open(path).and_then(|file| file.sync_data())
                && error.kind() != io::ErrorKind::NotFound
            {
                self.fault("sync a file", &error);
            }
        }
    }

    /// Drops what the index has from the overlay.
    fn forget(&self, upto: u64) {
        let mut overlay = self.overlay.write().unwrap_or_else(PoisonError::into_inner);
        overlay.rows.retain(|_, (sequence, _)| *sequence > upto);
        overlay.owed.retain(|_, (sequence, _)| *sequence > upto);
        overlay.owed_keys.retain(|_, (sequence, _)| *sequence > upto);
        self.overlay_len.store(overlay.rows.len(), Ordering::Release);
    }
}

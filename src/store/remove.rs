//! Taking entries out: row, mark in the log, and file.

use std::io;
use std::path::PathBuf;

use crate::entry::Key;
use crate::store::record::{Place, Row, Stamp};
use crate::store::segment::Tag;
use crate::store::tail::{Append, Change};
use crate::store::{Store, layout};

impl Store {
    /// Removes an entry: its row, a mark in the log, and the file if it had one.
    pub fn remove(&self, key: &Key) -> bool {
        self.remove_if(key, |_| true)
    }

    /// The same if it is so of the entry, wherever it has been moved meanwhile to make room.
    pub(super) fn remove_if(&self, key: &Key, is_meant: impl Fn(&Row) -> bool) -> bool {
        while let Some(row) = self.find(key).filter(&is_meant) {
            if self.remove_row(key, &row) {
                return true;
            }
        }
        false
    }

    /// False if another row stands there by now: it was put anew, moved or removed.
    pub(super) fn remove_row(&self, key: &Key, row: &Row) -> bool {
        let encoded = key.encode();
        let mut change = match self.inner.tail.begin() {
            Ok(change) => change,
            Err(error) => {
                self.fault("write a removal", &error);
                // Trying again would change nothing.
                return true;
            }
        };
        // Not ours to remove.
        if self.find_encoded(&encoded).is_none_or(|now| now.at != row.at) {
            return false;
        }
        let file = self.take_out(&mut change, &encoded, row);
        drop(change);
        self.discard(file);
        true
    }

    /// Takes a file's entry out, as its bytes are gone or damaged, unless it is another file than the
    /// one that was judged: a helper that puts it anew has it in place before it tells of it.
    pub(super) fn remove_judged(&self, key: &Key, row: &Row, judged: Option<Stamp>) -> bool {
        let encoded = key.encode();
        let Ok(mut change) = self.inner.tail.begin() else { return false };
        if self.find_encoded(&encoded).is_none_or(|now| now.at != row.at)
            || self.stamp_of(row) != judged
        {
            return false;
        }
        let file = self.take_out(&mut change, &encoded, row);
        drop(change);
        self.discard(file);
        true
    }

    /// What is in a file's place now.
    pub(super) fn stamp_of(&self, row: &Row) -> Option<Stamp> {
        let file = std::fs::metadata(self.inner.layout.file(&row.digest)).ok()?;
        Some(layout::stamp(&file, self.inner.boot))
    }

    /// Takes an entry out that stands there: mark, file and row. Returned is where its file is until it
    /// is discarded, once no lock is held.
    pub(super) fn take_out(
        &self,
        change: &mut Change<'_>,
        key: &[u8],
        row: &Row,
    ) -> Option<PathBuf> {
        let mark = Append { tag: Tag::Removal, key, meta: &[], body: &[] };
        // Without the mark the entry could come back if the index had to be built again; it must go
        // from the index all the same.
        if let Err(error) = change.append(&mark) {
            self.fault("write a removal", &error);
        }
        // After the mark: of a process that ends in between, the next one sweeps up a file that nothing
        // names, and finds no entry whose file is gone.
        let file = (row.place == Place::File).then(|| self.put_aside(row)).flatten();
        change.remove(key.to_vec(), Some(row.at));
        file
    }

    /// Removes a file that was put aside: of a large one that takes a while.
    pub(super) fn discard(&self, file: Option<PathBuf>) {
        let Some(file) = file else { return };
        match std::fs::remove_file(file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.fault("remove a file", &error),
        }
    }

    /// Moves a file to where nobody looks for it; if that cannot be, it is removed where it is.
    fn put_aside(&self, row: &Row) -> Option<PathBuf> {
        let file = self.inner.layout.file(&row.digest);
        let aside = self.inner.layout.tmp().join(format!("out-{}", row.digest));
        let moved = match std::fs::rename(&file, &aside) {
            Ok(()) => Some(aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_) => {
                self.discard(Some(file));
                None
            }
        };
        self.inner.tail.sub_file_bytes(row.size);
        moved
    }
}

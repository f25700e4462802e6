//! Looking entries up and reading them, verified; what is damaged or gone is taken out.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::entry::{Digest, Key};
use crate::store::record::{EntryMeta, Place, Row, Stamp};
use crate::store::{OPEN_SEGMENTS_MAX, Store, Stored, file, layout, segment};

impl Store {
    /// Looks a key up; reads no body.
    pub fn find(&self, key: &Key) -> Option<Row> {
        self.find_encoded(&key.encode())
    }

    pub(super) fn find_encoded(&self, key: &[u8]) -> Option<Row> {
        if let Some(row) = self.inner.tail.row(key) {
            return row;
        }
        match self.inner.index.read().and_then(|reading| reading.row(key)) {
            Ok(row) => row,
            Err(error) => {
                self.inner.index_faults.fetch_add(1, Ordering::Relaxed);
                self.fault("read the index", &error);
                None
            }
        }
    }

    /// Counts looks into the index that failed. Who removes what was not found compares it before and
    /// after the look.
    pub(super) fn index_faults(&self) -> u64 {
        self.inner.index_faults.load(Ordering::Relaxed)
    }

    /// Reads and verifies what `row` says. None, counted, if it is damaged or gone.
    pub fn load(&self, key: &Key, row: &Row) -> Option<Stored> {
        self.touch(key, row);
        let mut row = *row;
        loop {
            let stored = match row.place {
                Place::Inline => self.load_inline(key, &row),
                Place::File => self.load_file(key, &row).map(|file| Stored::File(row.meta(), file)),
                Place::Elsewhere => self.load_elsewhere(key, &row),
            };
            if stored.is_some() {
                return stored;
            }
            // To make room it may have been copied to another segment, and its old one removed.
            row = self.find(key).filter(|now| now.at != row.at)?;
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
        let (content, there) = self.content_of(row)?;
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
                self.remove_judged(key, row, None);
                return false;
            }
        };
        let stamp = layout::stamp(&meta, self.inner.boot);
        if meta.is_file() && meta.len() == row.size && stamp == row.stamp {
            return true;
        }
        match file::hash(&path) {
            Ok((digest, size)) if digest == row.digest && size == row.size => {
                let key = key.encode();
                if let Ok(mut change) = self.inner.tail.begin() {
                    // Under the lock: it may have been used, put anew or removed meanwhile.
                    match self.find_encoded(&key) {
                        Some(now) if now.at == row.at => {
                            // Not only of another boot: somebody has put another file in its place, or a
                            // replay knew of none, and nobody may have synced it.
                            if (Stamp { boot: stamp.boot, ..row.stamp }) != stamp {
                                change.sync_file(path);
                            }
                            change.put(key, Row { stamp, ..now });
                        }
                        now => return now.is_some(),
                    }
                }
                true
            }
            Ok(_) => {
                if self.remove_judged(key, row, Some(stamp)) {
                    self.damaged(key);
                }
                false
            }
            Err(error) => {
                self.fault("read a file", &error);
                false
            }
        }
    }

    /// As `is_sound`, for somebody who is told so: it stays as what is used does.
    pub fn holds(&self, key: &Key, row: &Row) -> bool {
        self.touch(key, row);
        if row.place == Place::Elsewhere {
            return self
                .content_of(row)
                .is_some_and(|(content, there)| self.holds(&content, &there));
        }
        self.is_sound(key, row)
    }

    /// Whether an entry is there without reading it: its file unchanged, its record in a segment.
    pub fn is_sound(&self, key: &Key, row: &Row) -> bool {
        match row.place {
            // It may have been removed since it was looked up.
            Place::Inline => self.find(key).is_some(),
            Place::File => self.vouch(key, row),
            Place::Elsewhere => {
                self.content_of(row).is_some_and(|(content, there)| self.is_sound(&content, &there))
            }
        }
    }

    /// Whether an entry, or the content that it names, is certainly not there: what cannot be looked up or
    /// read now may be there in a moment. What is found damaged is taken out, and is gone.
    pub fn is_gone(&self, key: &Key) -> bool {
        let faults = self.index_faults();
        if self.find(key).is_some_and(|row| self.is_sound(key, &row)) {
            return false;
        }
        let body = match self.find(key) {
            Some(row) if row.place == Place::Elsewhere => self.content_of(&row).map(|(_, row)| row),
            found => found,
        };
        body.is_none() && self.index_faults() == faults
    }

    /// The content that an entry's body is, if it stands elsewhere.
    fn content_of(&self, row: &Row) -> Option<(Key, Row)> {
        let content = Key::content(row.digest);
        self.find(&content).map(|there| (content, there))
    }

    pub(super) fn read_record(&self, key: &Key, row: &Row) -> Option<segment::Record> {
        let file = match self.segment(row.at.segment) {
            Ok(file) => file,
            Err(error) => {
                // What cannot be opened for another reason may be there in a moment; what stands
                // elsewhere by now is no fault.
                if error.kind() == io::ErrorKind::NotFound && !self.remove_row(key, row) {
                    return None;
                }
                self.fault("open a segment", &error);
                return None;
            }
        };
        match segment::read(&file, &self.inner.seal, row.at, row.len) {
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

    pub(super) fn segment(&self, number: u32) -> io::Result<Arc<File>> {
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

    pub(super) fn drop_corrupt(&self, key: &Key, row: &Row) {
        self.damaged(key);
        self.remove_row(key, row);
    }

    /// What was read of an entry's file is not what it should be, though its stamp says that nobody has
    /// touched it. It goes, unless another one is in its place by now.
    pub fn disown(&self, key: &Key, row: &Row, file: &File) {
        let (content, body) = match row.place {
            Place::Elsewhere => match self.content_of(row) {
                Some(found) => found,
                None => return,
            },
            Place::Inline | Place::File => (key.clone(), *row),
        };
        let judged = file.metadata().map(|meta| layout::stamp(&meta, self.inner.boot)).ok();
        if body.place == Place::File
            && judged.is_some()
            && self.remove_judged(&content, &body, judged)
        {
            self.damaged(&content);
        }
    }

    fn damaged(&self, key: &Key) {
        self.inner.metrics.corrupt.inc();
        tracing::warn!(%key, "store: damaged entry dropped");
    }
}

//! Storing entries and taking them out: bodies, records, rows, and what is owed for them.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use crate::entry::{Digest, Key, Kind, Meta, RealmId};
use crate::store::file::{Finished, Staged};
use crate::store::index::Owed;
use crate::store::record::{EntryMeta, Place, Row, Stamp};
use crate::store::segment::{INLINE_BODY_MAX, Position, Tag};
use crate::store::tail::{Append, Change};
use crate::store::{Put, Store, StoreError, Stored, layout, row_of, seconds};

impl Store {
    /// A body on its way in; up to 64 KiB stay in memory.
    pub fn stage(&self) -> Staged {
        Staged::new(&self.inner.layout, INLINE_BODY_MAX)
    }

    /// The same for a body of this size, as far as anybody says: one that will be a file is one from its
    /// first byte, so that senders who stop halfway hold no memory.
    pub fn stage_of(&self, size: u64) -> Staged {
        if size > INLINE_BODY_MAX as u64 { self.stage_shared() } else { self.stage() }
    }

    /// A body on its way in that others read along: always a file.
    pub fn stage_shared(&self) -> Staged {
        Staged::new(&self.inner.layout, 0)
    }

    /// Whether `size` more bytes may be stored.
    pub fn has_room(&self, size: u64) -> bool {
        self.inner.space.has_room(self.used_bytes(), size)
    }

    /// Whether not even what is small may be stored.
    pub fn is_full(&self) -> bool {
        !self.has_room(64 << 10)
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
            && self.holds(key, row)
            // A record that is damaged is taken out as it is read.
            && (row.place != Place::Inline || self.read_record(key, row).is_some())
        {
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
            self.put_file(key, &mut body, meta, owed)?;
        }
        Ok(if before.is_some() { Put::Replaced } else { Put::New })
    }

    /// A body that is large, as content, and what names it.
    fn put_file(
        &self,
        key: &Key,
        body: &mut Finished,
        meta: &Meta,
        owed: Option<RealmId>,
    ) -> Result<(), StoreError> {
        if key.kind == Kind::Content {
            return self.place_new(body, owed);
        }
        let entry = EntryMeta { meta: meta.clone(), place: Place::Elsewhere, owed };
        if self.is_here(&Key::content(body.digest)) {
            let path = self.inner.layout.file(&body.digest);
            match self.append(key, &entry, &[], Stamp::default(), Some(path)) {
                // It has gone in this moment.
                Err(StoreError::Gone) => {}
                recorded => return recorded,
            }
        }
        self.place_new(body, None)?;
        self.append(key, &entry, &[], Stamp::default(), None)
    }

    /// Places a body as a file and records it as content.
    pub fn place(&self, body: &mut Finished) -> Result<(), StoreError> {
        if self.is_here(&Key::content(body.digest)) {
            return Ok(());
        }
        self.place_new(body, None)
    }

    /// Whether content is here as a file: another one in its place would be on the disk later, and until then
    /// a power cut would take what was acknowledged long ago.
    fn is_here(&self, content: &Key) -> bool {
        self.find(content).is_some_and(|row| row.place == Place::File && self.holds(content, &row))
    }

    fn place_new(&self, body: &mut Finished, owed: Option<RealmId>) -> Result<(), StoreError> {
        let (path, stamp) =
            body.place(&self.inner.layout, self.inner.boot).map_err(StoreError::of)?;
        let content = Key::content(body.digest);
        self.sync_over_inline(&content, &path)?;
        let meta = self.content_meta(body.digest, body.size);
        let entry = EntryMeta { meta, place: Place::File, owed };
        self.append(&content, &entry, &[], stamp, Some(path))
    }

    /// A file that takes the place of a body in a segment, which may have been acknowledged long ago, is on
    /// the disk before its record is: a power cut would leave the record alone.
    fn sync_over_inline(&self, content: &Key, file: &Path) -> Result<(), StoreError> {
        if self.find(content).is_some_and(|row| row.place == Place::Inline) {
            File::open(file).and_then(|file| file.sync_data()).map_err(StoreError::of)?;
        }
        Ok(())
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
        let known = self
            .find(&content)
            .filter(|row| row.place == Place::File && row.stamp == stamp && row.condemned == 0);
        if let Some(row) = known {
            // Its path goes to go again.
            self.touch(&content, &row);
        } else {
            self.sync_over_inline(&content, &path)?;
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
                self.place_new(&mut staged.finish(), None).ok()?;
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
        self.note_segment(&mut change, at);
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

    /// A segment is as young as what was written to it: noted when it is begun, and when it is full.
    pub(super) fn note_segment(&self, change: &mut Change<'_>, at: Position) {
        if at.offset == 0 {
            let now = seconds(self.inner.clock.now());
            change.segment_touched(at.segment.saturating_sub(1), now);
            change.segment_touched(at.segment, now);
        }
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

    /// Owes an upload of an entry that is stored already, unless it is owed.
    ///
    /// The entry is written to the log once more, or a SIGKILL before the next commit would forget
    /// what is owed.
    pub fn owe(&self, key: &Key, row: &Row, realm: RealmId) -> Result<(), StoreError> {
        if self.owes(key, realm) {
            return Ok(());
        }
        let mut row = *row;
        let mut body = Vec::new();
        let mut entry = EntryMeta { meta: row.meta(), place: row.place, owed: None };
        if row.place == Place::Inline || row.has_more {
            let record = loop {
                if let Some(record) = self.read_record(key, &row) {
                    break record;
                }
                // To make room it may have been copied to another segment.
                let moved = self.find(key).filter(|now| now.at != row.at);
                row = moved.ok_or(StoreError::Gone)?;
            };
            body = record.body;
            entry = EntryMeta::decode(&record.meta).ok_or(StoreError::Gone)?;
        }
        entry.owed = Some(realm);
        self.append(key, &entry, &body, row.stamp, None)
    }

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

    /// Takes an entry out that stands there: file, mark and row. Returned is where its file is until it
    /// is discarded, once no lock is held.
    pub(super) fn take_out(
        &self,
        change: &mut Change<'_>,
        key: &[u8],
        row: &Row,
    ) -> Option<PathBuf> {
        let file = (row.place == Place::File).then(|| self.put_aside(row)).flatten();
        let mark = Append { tag: Tag::Removal, key, meta: &[], body: &[] };
        // Without the mark the entry could come back if the index had to be built again; it must go
        // from the index all the same.
        if let Err(error) = change.append(&mark) {
            self.fault("write a removal", &error);
        }
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

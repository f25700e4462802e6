//! Storing entries: bodies, records, rows, and what is owed for them. Taking them out is `remove`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use crate::entry::{Digest, Key, Kind, Meta, RealmId};
use crate::store::file::{Finished, Staged};
use crate::store::index::Owed;
use crate::store::record::{EntryMeta, Place, Row, Stamp};
use crate::store::segment::{INLINE_BODY_MAX, Position, Tag};
use crate::store::tail::{Append, Change};
use crate::store::{Put, Store, StoreError, Stored, layout, row_of, seconds};

/// What stood under a key at a moment, if anything did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(Option<Position>);

impl Seen {
    fn of(row: Option<&Row>) -> Self {
        Self(row.map(|row| row.at))
    }
}

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
        self.has_room_beside(size, 0)
    }

    /// The same of a body of which so many bytes lie in a file already.
    pub fn has_room_beside(&self, size: u64, placed: u64) -> bool {
        self.inner.space.has_room(self.used_bytes(), size, placed)
    }

    /// Whether not even what is small may be stored.
    pub fn is_full(&self) -> bool {
        !self.has_room(64 << 10)
    }

    /// What stands under a key now.
    pub fn seen(&self, key: &Key) -> Seen {
        Seen::of(self.find(key).as_ref())
    }

    /// Stores a finished body. Acknowledge the client only after this.
    pub fn put(
        &self,
        key: &Key,
        body: Finished,
        meta: &Meta,
        owed: Option<RealmId>,
    ) -> Result<Put, StoreError> {
        self.put_over(key, body, meta, owed, None)
    }

    /// Stores what upstream had of a key; what was put since that was `seen` is newer, and stays.
    pub fn put_fetched(
        &self,
        key: &Key,
        body: Finished,
        meta: &Meta,
        seen: Seen,
    ) -> Result<Put, StoreError> {
        self.put_over(key, body, meta, None, Some(seen))
    }

    fn put_over(
        &self,
        key: &Key,
        mut body: Finished,
        meta: &Meta,
        owed: Option<RealmId>,
        over: Option<Seen>,
    ) -> Result<Put, StoreError> {
        let before = self.find(key);
        if let (Kind::Content, Some(row)) = (key.kind, &before)
            && self.holds_for_put(key, row)
            // A record that is damaged is taken out as it is read.
            && (row.place != Place::Inline || self.read_record(key, row).is_some())
        {
            if let Some(realm) = owed {
                self.owe(key, row, realm)?;
            }
            return Ok(Put::Known);
        }
        let placed = if body.inline().is_some() { 0 } else { body.size };
        if !self.has_room_beside(body.size, placed) {
            return Err(StoreError::Full);
        }
        if let Some(bytes) = body.inline() {
            let place = EntryMeta { meta: meta.clone(), place: Place::Inline, owed };
            self.append(key, &place, bytes, Stamp::default(), None, over)?;
        } else {
            self.put_file(key, &mut body, meta, owed, over)?;
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
        over: Option<Seen>,
    ) -> Result<(), StoreError> {
        if key.kind == Kind::Content {
            return self.place_new(body, owed);
        }
        let entry = EntryMeta { meta: meta.clone(), place: Place::Elsewhere, owed };
        if self.is_here(&Key::content(body.digest)) {
            let path = self.inner.layout.file(&body.digest);
            match self.append(key, &entry, &[], Stamp::default(), Some(path), over) {
                // It has gone in this moment.
                Err(StoreError::Gone) => {}
                recorded => return recorded,
            }
        }
        self.place_new(body, None)?;
        self.append(key, &entry, &[], Stamp::default(), None, over)
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
        let row = self.find(content);
        row.is_some_and(|row| row.place == Place::File && self.holds_for_put(content, &row))
    }

    /// Whether content that is put is there already; it stays, then, as what is put does.
    fn holds_for_put(&self, content: &Key, row: &Row) -> bool {
        // Before it is looked at: see `touch`.
        self.touch_anew(content, row);
        self.holds(content, row)
    }

    fn place_new(&self, body: &mut Finished, owed: Option<RealmId>) -> Result<(), StoreError> {
        let (path, stamp) =
            body.place(&self.inner.layout, self.inner.boot).map_err(StoreError::of)?;
        let content = Key::content(body.digest);
        self.sync_over_inline(&content, &path)?;
        let meta = self.content_meta(body.digest, body.size);
        let entry = EntryMeta { meta, place: Place::File, owed };
        self.append(&content, &entry, &[], stamp, Some(path), None)
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
        self.record_over(action, meta, owed, None)
    }

    /// The same of what upstream had; what was put since that was `seen` is newer, and stays.
    pub fn record_fetched(&self, action: &Key, meta: &Meta, seen: Seen) -> Result<(), StoreError> {
        self.record_over(action, meta, None, Some(seen))
    }

    fn record_over(
        &self,
        action: &Key,
        meta: &Meta,
        owed: Option<RealmId>,
        over: Option<Seen>,
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
            self.append(&content, &entry, &[], stamp, Some(path), None)?;
        }
        let entry = EntryMeta { meta: meta.clone(), place: Place::Elsewhere, owed };
        self.append(action, &entry, &[], Stamp::default(), None, over)
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
        over: Option<Seen>,
    ) -> Result<(), StoreError> {
        let encoded = key.encode();
        let meta = entry.encode();
        let mut change = self.inner.tail.begin().map_err(StoreError::of)?;
        let before = self.find_encoded(&encoded);
        if over.is_some_and(|seen| seen != Seen::of(before.as_ref())) {
            return Err(StoreError::Newer);
        }
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
        self.append(key, &entry, &body, row.stamp, None, None)
    }
}

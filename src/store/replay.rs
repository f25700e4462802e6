//! Opening the index: replaying what was appended after its last commit, and building it anew from
//! the segments where it is damaged or gone.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::entry::{Key, Kind, RealmId};
use crate::store::index::{Covered, Index, IndexError, Op, Owed, sound};
use crate::store::layout::Layout;
use crate::store::record::{EntryMeta, Place, Stamp};
use crate::store::sectors::Sectors;
use crate::store::segment::{self, Position, Record, Seal, Tag};
use crate::store::{row_of, seconds, trust};
use crate::units::Clock;

/// Operations in one commit of a replay.
const BATCH: usize = 20_000;
/// Segments that a killed process may not have synced, and more: it did so every second.
const RECENT: usize = 16;

pub(super) struct Replayed {
    pub index: Index,
    pub covered: Covered,
    pub owed_entries: u64,
    pub was_clean: bool,
    pub is_any: bool,
    /// What the last process may not have synced, which the first commit is to do.
    pub files: Vec<PathBuf>,
}

/// Opens the index and brings it up to the end of the log.
pub(super) fn open_index(
    layout: &Layout,
    seal: &Seal,
    clock: &Clock,
) -> Result<Replayed, IndexError> {
    let ends = trust::is_known(layout);
    let check = || sound::check(&layout.index().join("data.mdb"));
    if ends.is_none()
        // What could not be read once may be readable.
        && let Err(error) = check().or_else(|_| check())
    {
        if !error.is_damage() {
            return Err(io::Error::other(error).into());
        }
        tracing::warn!(%error, "store: the index is damaged and is built again from the segments");
        set_aside(layout)?;
    }
    let index = match Index::open(layout) {
        Err(error) if error.is_damage() => {
            tracing::warn!(%error, "store: the index is damaged and is built again from the segments");
            set_aside(layout)?;
            Index::open(layout)?
        }
        other => other?,
    };
    // Without the note helpers ask us, and the next start reads the index through.
    let _ = trust::note_open(layout, ends.unwrap_or(0));
    let before = index.read()?.covered()?;
    let was_clean = before.is_none_or(|covered| covered.clean);
    let mut replay = Replay {
        layout,
        seal,
        clock,
        index: &index,
        ops: Vec::new(),
        covered: before.unwrap_or_default(),
        now: seconds(clock.now()),
        records: 0,
        skipped: 0,
        before: before.unwrap_or_default(),
        segments: Vec::new(),
        files: Vec::new(),
    };
    replay.run()?;
    let (is_any, files) = (replay.records > 0, replay.files);
    if replay.records > 0 || replay.skipped > 0 {
        tracing::info!(
            records = replay.records,
            skipped_bytes = replay.skipped,
            "store: replayed what the last process had not committed"
        );
    }
    let mut covered = replay.covered;
    if replay.records > 0 {
        // Records say what was once there; the index says what is.
        covered.file_bytes = file_bytes(&index)?;
    }
    let owed_entries = index.read()?.owed_entries()?;
    Ok(Replayed { index, covered, owed_entries, was_clean, is_any, files })
}

fn file_bytes(index: &Index) -> Result<u64, IndexError> {
    let content = Kind::Content as u8;
    let mut bytes = 0;
    index.read()?.visit(&[content], |key, row| {
        if key.first() != Some(&content) {
            return ControlFlow::Break(());
        }
        if row.place == Place::File {
            bytes += row.size;
        }
        ControlFlow::Continue(())
    })?;
    Ok(bytes)
}

fn set_aside(layout: &Layout) -> io::Result<()> {
    let aside = layout.dir.join("index.damaged");
    if let Err(error) = std::fs::remove_dir_all(&aside)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    std::fs::rename(layout.index(), aside)
}

struct Replay<'a> {
    layout: &'a Layout,
    seal: &'a Seal,
    clock: &'a Clock,
    index: &'a Index,
    ops: Vec<Op>,
    covered: Covered,
    now: u32,
    records: u64,
    skipped: u64,
    /// As the index has it until what was replayed is synced: who starts after us begins here again.
    before: Covered,
    /// Not synced yet.
    segments: Vec<File>,
    files: Vec<PathBuf>,
}

impl Replay<'_> {
    fn run(&mut self) -> Result<(), IndexError> {
        let from = self.covered.position;
        let all = segment::list(&self.layout.segments())?;
        let control = File::open(self.layout.nonce())?;
        // All others are on the disk for long, also where the index is built anew.
        let recent = all.len().saturating_sub(RECENT);
        for (nth, number) in all.into_iter().enumerate() {
            if number < from.segment {
                continue;
            }
            let start = if number == from.segment { u64::from(from.offset) } else { 0 };
            let path = segment::path(&self.layout.segments(), number);
            let file = File::open(&path)?;
            if file.metadata()?.len() == 0 {
                // Opened by a process that wrote nothing.
                std::fs::remove_file(path)?;
                continue;
            }
            let mut records = Vec::new();
            let mut sectors = Sectors::new(&file, &control, self.clock);
            let scanned = segment::scan_by(
                |bytes, at| sectors.read(bytes, at),
                (&file, number),
                self.seal,
                start,
                |offset, len, record| {
                    records.push((Position { segment: number, offset }, len, meta_only(record)));
                },
            )?;
            self.skipped += scanned.skipped;
            if !records.is_empty() {
                self.ops.push(Op::SegmentTouched { segment: number, at: self.now });
            }
            let is_recent = nth >= recent;
            if is_recent && !records.is_empty() {
                self.segments.push(file);
            }
            for (at, len, record) in records {
                self.apply(at, len, &record, is_recent)?;
            }
            self.covered.position = Position {
                segment: number,
                offset: u32::try_from(scanned.end).unwrap_or(u32::MAX),
            };
        }
        self.commit()
    }

    fn apply(
        &mut self,
        at: Position,
        len: u32,
        record: &Record,
        is_recent: bool,
    ) -> Result<(), IndexError> {
        self.records += 1;
        match record.tag {
            Tag::Realm => {
                if let (Ok(id), Ok(text)) =
                    (record.key[..].try_into(), std::str::from_utf8(&record.meta))
                {
                    self.ops.push(Op::Realm { id: RealmId(id), text: text.to_owned() });
                }
            }
            Tag::Removal => self.ops.push(Op::Remove { key: record.key.clone(), at: None }),
            Tag::Entry => {
                let (Some(entry), Some(key)) =
                    (EntryMeta::decode(&record.meta), Key::decode(&record.key))
                else {
                    return Ok(());
                };
                // A file is hashed before its first use: its stamp was lost with the process.
                let row = row_of(&entry, at, len, Stamp::default(), self.now);
                if row.place == Place::File && is_recent {
                    self.files.push(self.layout.file(&row.digest));
                }
                self.ops.push(Op::Put { key: record.key.clone(), row });
                if let Some(realm) = entry.owed {
                    let owed = Owed { realm, key, size: row.size, since: self.now };
                    self.ops.push(Op::Owe { number: self.covered.next_number, owed });
                    self.covered.next_number += 1;
                    self.covered.owed_bytes += row.size;
                }
            }
        }
        if self.ops.len() >= BATCH {
            self.commit()?;
        }
        Ok(())
    }

    /// Repeating operations is harmless: they come in the same order, and under the same numbers.
    fn commit(&mut self) -> Result<(), IndexError> {
        if !self.ops.is_empty() {
            // What the index has had so far is on the disk; what it says from now on must be, too.
            for segment in self.segments.drain(..) {
                segment.sync_data()?;
            }
            self.index.commit(&self.ops, &self.before)?;
            self.ops.clear();
        }
        Ok(())
    }
}

/// A record without its body, which a replay does not need.
fn meta_only(record: Record) -> Record {
    Record { body: Vec::new(), ..record }
}

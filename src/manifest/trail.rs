//! A trail: the last sessions of a branch, newest first; and one of the scope, whatever the branch.
//! `fields` has what its fields are.
//!
//! ```text
//! trail   "LRDTRAIL" | u8 version | text scope | text branch | varint number of rows | rows | seal
//! row     u8 flags (1: complete) | text commit | varint written, before the row's before
//!         (the first: before u64::MAX) | text writer | varint rows | varint bytes
//!         varint number of packs | per pack: varint number, and if that is new: the pack
//! ```
//!
//! Packs are numbered as they first appear, so that one which many sessions need is written once.
//! Times can only fall: a trail that is not newest first has no encoding. Whoever writes one reads
//! it, merges, and writes it back; what two writers do at once costs a row at most.

use std::cmp::Reverse;

use crate::manifest::fields::{
    MAGIC_LEN, Numbers, PACK_REF_MAX, Reader, SEAL_LEN, TEXT_LEN_MAX, VARINT_MAX, cut, put_pack,
    put_text, put_varint, seal,
};
use crate::manifest::pack::PACK_MAX;
use crate::manifest::{FormatError, Manifest, PackRef};
use crate::units::Timestamp;

/// What stands for the branch in the trail of the scope, which has a key of its own: every session is
/// written there too, and what is lost there is one of many.
pub const ALL_BRANCHES: &str = "";
/// Most sessions of a trail.
pub const ROWS_MAX: usize = 64;
/// Most packs of one session; a writer's later ones are left out.
pub const ROW_PACKS_MAX: usize = 1_024;
/// Most packs of all sessions; those of the oldest are left out.
pub const PACKS_MAX: usize = 8_192;
/// Longest encoding of a trail. The limits above hold it.
pub const SIZE_MAX: usize = 1 << 20;

pub(super) const MAGIC: &[u8; MAGIC_LEN] = b"LRDTRAIL";
const VERSION: u8 = 1;
const COMPLETE: u8 = 1;
/// Among how many of the newest the fullest is the best, where none is complete. They are followed
/// however old they are.
const NEWEST: usize = 8;
/// So long after it, and after that while it is among the newest few, the one session of all of a build
/// leads, whatever came since. Then what is built may have become less.
pub const LEADS_NS: u64 = 14 * 86_400 * 1_000_000_000;
/// What is read beside the session to start from, on either side of it.
const WHOLES_MAX: usize = 3;
/// What covers a smaller part of what another does is of a part of the build.
const PARTIAL: f64 = 0.8;

/// Shortest and longest encoding of a row, its packs aside.
const ROW_LEN_MIN: usize = 1 + 6;
const ROW_LEN_MAX: usize = 1 + 2 * TEXT_LEN_MAX + 4 * VARINT_MAX;
const HEAD_LEN_MAX: usize = MAGIC_LEN + 1 + 2 * TEXT_LEN_MAX + VARINT_MAX + SEAL_LEN;

const _: () = assert!(
    HEAD_LEN_MAX + PACKS_MAX * PACK_REF_MAX + ROWS_MAX * (ROW_LEN_MAX + 2 * ROW_PACKS_MAX)
        <= SIZE_MAX
);

/// The last sessions of a (scope, branch), or of all branches of a scope, newest first, one per commit,
/// at most `ROWS_MAX`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    pub scope: String,
    pub branch: String,
    pub rows: Vec<TrailRow>,
}

/// What one session left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrailRow {
    pub commit: String,
    pub written: Timestamp,
    pub writer: String,
    /// What its manifest covers: entries.
    pub rows: u32,
    /// And their size.
    pub bytes: u64,
    pub complete: bool,
    pub packs: Vec<PackRef>,
}

impl Trail {
    /// Whether it is the one that was asked for.
    pub fn is_of(&self, scope: &str, branch: &str) -> bool {
        (self.scope.as_str(), self.branch.as_str()) == (cut(scope), cut(branch))
    }

    /// The sessions of both: of one commit's the fuller, newest first, at most `ROWS_MAX`.
    pub fn merge(self, other: Self, now: Timestamp) -> Self {
        let rows = settle(self.rows.iter().chain(&other.rows), now).into_iter().cloned().collect();
        Self { rows, ..self }
    }

    /// The sessions that are followed: the newest few, and those not much older than the newest. Who
    /// wrote that one by a clock that is ahead of `now` has not made the others old.
    pub fn current(&self, now: Timestamp) -> impl Iterator<Item = &TrailRow> + Clone {
        let newest = self.rows.first().map_or(now, |row| row.written.min(now));
        let few = self.rows.len().min(NEWEST);
        let others = self.rows[few..].iter().take_while(move |row| leads(row, newest));
        self.rows[..few].iter().chain(others)
    }

    /// The session to start from: the newest complete one, else the fullest of the newest few, unless
    /// an older one has much more: all of these are of a part of the build then.
    pub fn best(&self, now: Timestamp) -> Option<&TrailRow> {
        let current = self.current(now);
        let complete = current.clone().find(|row| row.complete);
        complete.or_else(|| fullest(current))
    }

    /// What the best one may hide: what came since, and of what came before that which it is far fuller than,
    /// as a commit is that was edited and built all day: its place is that of when it was built last.
    pub fn beside(&self, best: &TrailRow, now: Timestamp) -> Beside<'_> {
        let current: Vec<_> = self.current(now).collect();
        let at = current.iter().position(|row| row.commit == best.commit);
        let (newer, older) = current.split_at(at.unwrap_or(current.len()));
        let older: Vec<_> = older.iter().copied().filter(|row| row.is_part_of(best)).collect();
        Beside { newer: wholes(newer), older: wholes(&older) }
    }

    /// Its bytes, at most `SIZE_MAX`; settled as `merge` does it. Texts are cut, packs beyond the
    /// limits are left out.
    pub fn encode(&self) -> Vec<u8> {
        let newest = self.rows.iter().map(|row| row.written).max().unwrap_or_default();
        let rows = settle(self.rows.iter(), newest);
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        put_text(&self.scope, &mut out);
        put_text(&self.branch, &mut out);
        put_varint(rows.len() as u64, &mut out);
        let mut before = u64::MAX;
        let mut numbers = Numbers::new();
        for row in rows {
            out.push(if row.complete { COMPLETE } else { 0 });
            put_text(&row.commit, &mut out);
            put_varint(before - row.written.0, &mut out);
            before = row.written.0;
            put_text(&row.writer, &mut out);
            put_varint(u64::from(row.rows), &mut out);
            put_varint(row.bytes, &mut out);
            put_packs(&row.packs, &mut numbers, &mut out);
        }
        seal(out)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::open(bytes, MAGIC, VERSION, SIZE_MAX)?;
        let mut trail = Self { scope: reader.text()?, branch: reader.text()?, rows: Vec::new() };
        let rows = reader.count("sessions", ROWS_MAX, ROW_LEN_MIN)?;
        trail.rows.reserve_exact(rows);
        let mut before = u64::MAX;
        let mut known = Vec::new();
        for _ in 0..rows {
            let row = read_row(&mut reader, before, &mut known)?;
            if trail.rows.iter().any(|other| other.commit == row.commit) {
                return Err(FormatError::Twice);
            }
            before = row.written.0;
            trail.rows.push(row);
        }
        reader.close()?;
        Ok(trail)
    }
}

/// What the session to start from may hide, each newest first.
#[derive(Debug, Default)]
pub struct Beside<'a> {
    pub newer: Vec<&'a TrailRow>,
    pub older: Vec<&'a TrailRow>,
}

/// The newest that is not of a part of what the fullest covers; as that may be fuller than a build, the same
/// of what is newer, and so on, to the newest of all. Newest first.
fn wholes<'a>(mut rows: &[&'a TrailRow]) -> Vec<&'a TrailRow> {
    let mut found = Vec::new();
    while let Some(fullest) = fullest(rows.iter().copied()) {
        let at = rows.iter().position(|row| !row.is_part_of(fullest)).unwrap_or(0);
        found.push(rows[at]);
        rows = &rows[..at];
    }
    if found.len() > WHOLES_MAX {
        found.drain(WHOLES_MAX - 1..found.len() - 1);
    }
    found.reverse();
    found
}

/// The fullest of the newest few, unless an older one has much more.
fn fullest<'a>(rows: impl Iterator<Item = &'a TrailRow> + Clone) -> Option<&'a TrailRow> {
    // Of equals the newest.
    fn fuller<'a>(a: &'a TrailRow, b: &'a TrailRow) -> &'a TrailRow {
        if b.rows > a.rows { b } else { a }
    }
    let newest = rows.clone().take(NEWEST).reduce(fuller)?;
    let fullest = rows.reduce(fuller)?;
    Some(if newest.is_part_of(fullest) { fullest } else { newest })
}

/// Whether a session is young enough beside the newest one to be followed.
const fn leads(row: &TrailRow, newest: Timestamp) -> bool {
    newest.0.saturating_sub(row.written.0) <= LEADS_NS
}

/// One row per commit, newest first, no more than the most. However many of a part of the build came
/// after it, one that leads to all of it stays for a while.
fn settle<'a>(rows: impl Iterator<Item = &'a TrailRow>, now: Timestamp) -> Vec<&'a TrailRow> {
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by(|a, b| {
        cut(&a.commit).cmp(cut(&b.commit)).then_with(|| b.fullness().cmp(&a.fullness()))
    });
    rows.dedup_by(|later, kept| cut(&later.commit) == cut(&kept.commit));
    rows.sort_by_key(|row| Reverse(row.written));
    let complete = rows.iter().position(|row| row.complete);
    let fullest = || (0..rows.len()).rev().max_by_key(|at| rows[*at].rows);
    if let Some(at) = complete.or_else(fullest).filter(|at| *at >= ROWS_MAX)
        && leads(rows[at], rows[0].written.min(now))
    {
        rows.swap(ROWS_MAX - 1, at);
    }
    rows.truncate(ROWS_MAX);
    rows
}

impl TrailRow {
    /// Of the session that has written this.
    pub fn of(manifest: &Manifest) -> Self {
        Self {
            commit: manifest.commit.clone(),
            written: manifest.written,
            writer: manifest.writer.clone(),
            rows: u32::try_from(manifest.rows.len()).unwrap_or(u32::MAX),
            bytes: manifest.bytes_by_pack().iter().sum(),
            complete: manifest.complete,
            packs: manifest.packs.clone(),
        }
    }

    /// Whether it covers much less than another: fewer entries, and fewer bytes. A first build names each
    /// output twice, under keys that those after it do not ask for.
    pub fn is_part_of(&self, other: &Self) -> bool {
        is_part(f64::from(self.rows), f64::from(other.rows))
            && (other.bytes == 0 || is_part(self.bytes as f64, other.bytes as f64))
    }

    /// Complete first, then more rows, then newer; the rest only decides, the same for everyone.
    fn fullness(&self) -> impl Ord + '_ {
        (self.complete, self.rows, self.written, self.bytes, &self.writer, &self.packs)
    }
}

fn is_part(some: f64, all: f64) -> bool {
    some < all * PARTIAL
}

fn put_packs(packs: &[PackRef], numbers: &mut Numbers<PackRef>, out: &mut Vec<u8>) {
    let mut count = 0;
    let mut list = Vec::new();
    for pack in packs.iter().filter(|pack| pack.size <= PACK_MAX).take(ROW_PACKS_MAX) {
        if numbers.len() >= PACKS_MAX && !numbers.knows(pack) {
            continue;
        }
        count += 1;
        if numbers.put(*pack, &mut list) {
            put_pack(pack, &mut list);
        }
    }
    put_varint(count, out);
    out.extend_from_slice(&list);
}

fn read_row(
    reader: &mut Reader<'_>,
    before: u64,
    known: &mut Vec<PackRef>,
) -> Result<TrailRow, FormatError> {
    let flags = reader.u8()?;
    if flags & !COMPLETE != 0 {
        return Err(FormatError::Flags(flags));
    }
    let mut row = TrailRow {
        complete: flags & COMPLETE != 0,
        commit: reader.text()?,
        written: Timestamp(before.checked_sub(reader.varint()?).ok_or(FormatError::Number)?),
        writer: reader.text()?,
        rows: reader.varint_u32()?,
        bytes: reader.varint()?,
        packs: Vec::new(),
    };
    let packs = reader.count("packs of a session", ROW_PACKS_MAX, 1)?;
    row.packs.reserve_exact(packs);
    for _ in 0..packs {
        row.packs.push(reader.numbered(known, Reader::pack)?);
    }
    if known.len() > PACKS_MAX {
        let (count, max) = (known.len() as u64, PACKS_MAX as u64);
        return Err(FormatError::TooMany { what: "packs", count, max });
    }
    Ok(row)
}

#[cfg(test)]
mod tests;

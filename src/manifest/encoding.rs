//! A manifest, byte by byte. `fields` has what a varint, a zigzag, a text, a pack and a seal are.
//!
//! ```text
//! manifest   "LRDMANIF" | u8 version | u8 flags (1: complete)
//!            text scope | text commit | u64 written | text writer
//!            varint number of packs | packs | varint number of rows | rows | seal
//! row        u8: bits 0-1 place, 2-5 class, 6 cost follows, 7 c_env follows
//!            action 32 | zigzag stored, from the row's before (the first's: from written)
//!            [varint cost] [varint number of c_env, and if that is new: u64 c_env] and by place
//!              0 empty   nothing: an output of size 0
//!              1 pack    output 32 | varint size | varint number of the pack
//!                        zigzag offset, from where the pack's next frame begins | varint length
//!              2 frame   output 32 | varint size | digest 32 | varint size of the frame
//!              3 ask     output 32 | varint size
//! ```
//!
//! Digests are most of a row and cannot be shortened; the rest takes some 12 bytes. A pack's next
//! frame begins after the one that the last row in that pack named, at first where its first frame
//! does: rows in the order of their pack write 0. What a manifest says beyond the limits is left out
//! when it is written, and refused when it is read. A class that is not known reads as `Other`, as
//! everywhere.

use crate::entry::{Class, Digest};
use crate::manifest::fields::{
    MAGIC_LEN, Numbers, PACK_REF_MAX, PACK_REF_MIN, Reader, SEAL_LEN, TEXT_LEN_MAX, VARINT_MAX,
    put_pack, put_text, put_varint, put_zigzag, seal,
};
use crate::manifest::pack::{FIRST_FRAME, FRAME_GAP, PACK_MAX};
use crate::manifest::{FormatError, Manifest, PACKS_MAX, PackRef, Place, ROWS_MAX, Row, SIZE_MAX};
use crate::units::Timestamp;

pub(super) const MAGIC: &[u8; MAGIC_LEN] = b"LRDMANIF";
const VERSION: u8 = 1;
const COMPLETE: u8 = 1;

const PLACE: u8 = 0b11;
const CLASS_SHIFT: u32 = 2;
const CLASS: u8 = 0b1111;
const HAS_COST: u8 = 1 << 6;
const HAS_C_ENV: u8 = 1 << 7;
const EMPTY: u8 = 0;
const PACK: u8 = 1;
const FRAME: u8 = 2;
const ASK: u8 = 3;

/// Shortest and longest encoding of a row.
pub(super) const ROW_LEN_MIN: usize = 1 + 32 + 1;
pub(super) const ROW_LEN_MAX: usize = 1 + 32 + VARINT_MAX + 5 + (3 + 8) + 2 * (32 + VARINT_MAX);
const HEAD_LEN_MAX: usize = MAGIC_LEN + 2 + 3 * TEXT_LEN_MAX + 8 + 2 * VARINT_MAX + SEAL_LEN;

const _: () = assert!(HEAD_LEN_MAX + PACKS_MAX * PACK_REF_MAX + ROWS_MAX * ROW_LEN_MAX <= SIZE_MAX);
const _: () = assert!(Class::ALL.len() <= CLASS as usize + 1);

/// What the next row is written against.
struct Before {
    stored: u64,
    /// Where the next frame of each pack begins.
    next: Vec<u64>,
}

impl Before {
    fn new(written: Timestamp, packs: usize) -> Self {
        Self { stored: written.0, next: vec![FIRST_FRAME; packs] }
    }

    fn note(&mut self, row: &Row) {
        self.stored = row.stored.0;
        if let Place::Pack { pack, offset, len } = row.place {
            self.next[pack as usize] = offset + u64::from(len) + FRAME_GAP;
        }
    }
}

impl Manifest {
    /// Its bytes, at most `SIZE_MAX`. What contradicts itself or the limits is not written: texts
    /// are cut, rows and packs beyond the most are left out, and a row whose place cannot be true,
    /// or whose pack is left out, is to be asked for.
    pub fn encode(&self) -> Vec<u8> {
        let rows = &self.rows[..self.rows.len().min(ROWS_MAX)];
        let (packs, numbers) = self.packs_to_write();
        let mut out = Vec::with_capacity(256 + packs.len() * PACK_REF_MAX + rows.len() * 96);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, if self.complete { COMPLETE } else { 0 }]);
        put_text(&self.scope, &mut out);
        put_text(&self.commit, &mut out);
        out.extend_from_slice(&self.written.0.to_le_bytes());
        put_text(&self.writer, &mut out);
        put_varint(packs.len() as u64, &mut out);
        for pack in &packs {
            put_pack(pack, &mut out);
        }
        put_varint(rows.len() as u64, &mut out);
        let mut before = Before::new(self.written, packs.len());
        let mut c_envs = Numbers::new();
        for row in rows {
            let number = |pack| numbers.get(pack as usize).copied().flatten();
            let mut row = Row { place: row.place.renumbered(number), ..*row };
            row.place = row.sound_place(&packs);
            put_row(&row, &before, &mut c_envs, &mut out);
            before.note(&row);
        }
        seal(out)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::open(bytes, MAGIC, VERSION, SIZE_MAX)?;
        let flags = reader.u8()?;
        if flags & !COMPLETE != 0 {
            return Err(FormatError::Flags(flags));
        }
        let mut manifest = Self {
            complete: flags & COMPLETE != 0,
            scope: reader.text()?,
            commit: reader.text()?,
            written: Timestamp(reader.u64()?),
            writer: reader.text()?,
            packs: Vec::new(),
            rows: Vec::new(),
        };
        let packs = reader.count("packs", PACKS_MAX, PACK_REF_MIN)?;
        manifest.packs.reserve_exact(packs);
        for _ in 0..packs {
            manifest.packs.push(reader.pack()?);
        }
        let rows = reader.count("rows", ROWS_MAX, ROW_LEN_MIN)?;
        manifest.rows.reserve_exact(rows);
        let mut before = Before::new(manifest.written, packs);
        let mut c_envs = Vec::new();
        for _ in 0..rows {
            let row = read_row(&mut reader, &before, &mut c_envs)?;
            if row.sound_place(&manifest.packs) != row.place {
                return Err(FormatError::Place);
            }
            before.note(&row);
            manifest.rows.push(row);
        }
        reader.close()?;
        Ok(manifest)
    }

    /// The packs that may be written, and the number that each of its own has among them.
    fn packs_to_write(&self) -> (Vec<PackRef>, Vec<Option<u32>>) {
        let mut packs = Vec::with_capacity(self.packs.len().min(PACKS_MAX));
        let mut numbers = Vec::with_capacity(self.packs.len());
        for pack in &self.packs {
            let fits = packs.len() < PACKS_MAX && pack.size <= PACK_MAX;
            numbers.push(u32::try_from(packs.len()).ok().filter(|_| fits));
            if fits {
                packs.push(*pack);
            }
        }
        (packs, numbers)
    }
}

fn put_row(row: &Row, before: &Before, c_envs: &mut Numbers<u64>, out: &mut Vec<u8>) {
    let place = match row.place {
        Place::Empty => EMPTY,
        Place::Pack { .. } => PACK,
        Place::Frame { .. } => FRAME,
        Place::Ask => ASK,
    };
    let cost = if row.cost_ms == 0 { 0 } else { HAS_COST };
    let c_env = if row.c_env == 0 { 0 } else { HAS_C_ENV };
    out.push(place | (row.class as u8) << CLASS_SHIFT | cost | c_env);
    out.extend_from_slice(&row.action.0);
    put_zigzag(row.stored.0, before.stored, out);
    if row.cost_ms != 0 {
        put_varint(u64::from(row.cost_ms), out);
    }
    if row.c_env != 0 && c_envs.put(row.c_env, out) {
        out.extend_from_slice(&row.c_env.to_le_bytes());
    }
    if row.place == Place::Empty {
        return;
    }
    out.extend_from_slice(&row.output.0);
    put_varint(row.size, out);
    match row.place {
        Place::Pack { pack, offset, len } => {
            put_varint(u64::from(pack), out);
            put_zigzag(offset, before.next[pack as usize], out);
            put_varint(u64::from(len), out);
        }
        Place::Frame { digest, size } => {
            out.extend_from_slice(&digest.0);
            put_varint(size, out);
        }
        Place::Empty | Place::Ask => {}
    }
}

/// A row as it is written; that its place is sound is not looked at.
fn read_row(
    reader: &mut Reader<'_>,
    before: &Before,
    c_envs: &mut Vec<u64>,
) -> Result<Row, FormatError> {
    let tag = reader.u8()?;
    let mut row = Row {
        action: reader.digest()?,
        output: Digest::EMPTY,
        size: 0,
        class: Class::from_u8(tag >> CLASS_SHIFT & CLASS),
        cost_ms: 0,
        c_env: 0,
        stored: Timestamp(reader.zigzag(before.stored)?),
        place: Place::Empty,
    };
    if tag & HAS_COST != 0 {
        row.cost_ms = reader.varint_u32()?;
    }
    if tag & HAS_C_ENV != 0 {
        row.c_env = reader.numbered(c_envs, Reader::u64)?;
    }
    if tag & PLACE == EMPTY {
        return Ok(row);
    }
    row.output = reader.digest()?;
    row.size = reader.varint()?;
    row.place = match tag & PLACE {
        PACK => {
            let pack = reader.varint_u32()?;
            let next = before.next.get(pack as usize).ok_or(FormatError::Index(pack.into()))?;
            Place::Pack { pack, offset: reader.zigzag(*next)?, len: reader.varint_u32()? }
        }
        FRAME => Place::Frame { digest: reader.digest()?, size: reader.varint()? },
        _ => Place::Ask,
    };
    Ok(row)
}

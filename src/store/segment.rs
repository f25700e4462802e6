//! Segments: files that records are appended to, at once store and log. The record, byte by byte.
//!
//! ```text
//!  0 u32 magic "LREC"      4 u32 CRC-32C of everything from byte 8 to the end of the body
//!  8 u8 version  9 u8 kind of record  10 u16 length of key
//! 12 u32 length of meta   16 u32 length of body   20 u32 mark of this store, and of this place
//! 24 key, meta, body; padded with zeros to a multiple of 8       (numbers little-endian)
//! ```
//!
//! Where a record is damaged the next one is looked for, inside of its body too, which somebody may have
//! filled with records. Without the mark they would be as good as real ones.
//!
//! What a key or meta means is decided in `record`; here are bytes on disk only.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::entry::Digest;

pub const MAGIC: [u8; 4] = *b"LREC";
pub const VERSION: u8 = 1;
pub const HEADER: usize = 24;
/// A segment is closed when the next record would pass this size.
pub const SEGMENT_MAX: u64 = 128 << 20;
/// Bodies up to this size live in segments, larger ones in files of their own.
pub const INLINE_BODY_MAX: usize = 64 << 10;
/// No record is larger: the largest body, a key, and a meta with its headers.
pub const RECORD_MAX: usize = INLINE_BODY_MAX + (16 << 10);

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// An entry: its meta and, if it is small, its body.
    Entry = 1,
    /// The entry with this key is gone.
    Removal = 2,
    /// What a realm's sixteen bytes stand for.
    Realm = 3,
}

impl Tag {
    const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Entry),
            2 => Some(Self::Removal),
            3 => Some(Self::Realm),
            _ => None,
        }
    }
}

/// Where a record is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub segment: u32,
    pub offset: u32,
}

/// What makes the marks of a store's records, from its secret.
#[derive(Clone)]
pub struct Seal([u8; 32]);

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<secret>")
    }
}

impl Seal {
    pub fn new(secret: &str) -> Self {
        Self(Digest::of(secret.as_bytes()).0)
    }

    /// The mark of the record that begins here.
    pub fn mark(&self, at: Position) -> u32 {
        let mut text = [0; 40];
        text[..32].copy_from_slice(&self.0);
        text[32..36].copy_from_slice(&at.segment.to_le_bytes());
        text[36..].copy_from_slice(&at.offset.to_le_bytes());
        u32::from_le_bytes(*Digest::of(&text).0.first_chunk().expect("a digest has 32 bytes"))
    }
}

/// A record as read, its checksum verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub tag: Tag,
    pub key: Vec<u8>,
    pub meta: Vec<u8>,
    pub body: Vec<u8>,
}

/// The bytes at a position are not a whole, unchanged record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no valid record here")]
pub struct BadRecord;

/// Length of a record on disk.
pub fn len_of(key: &[u8], meta: &[u8], body: &[u8]) -> u32 {
    let len = (HEADER + key.len() + meta.len() + body.len()).next_multiple_of(8);
    u32::try_from(len).expect("records are bounded")
}

/// Appends the record to `out` and returns its length on disk.
pub fn encode(
    tag: Tag,
    (key, meta, body): (&[u8], &[u8], &[u8]),
    mark: u32,
    out: &mut Vec<u8>,
) -> u32 {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.push(VERSION);
    out.push(tag as u8);
    let key_len = u16::try_from(key.len()).expect("keys are shorter than 512 bytes");
    out.extend_from_slice(&key_len.to_le_bytes());
    for part in [meta, body] {
        let len = u32::try_from(part.len()).expect("records are bounded");
        out.extend_from_slice(&len.to_le_bytes());
    }
    out.extend_from_slice(&mark.to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(meta);
    out.extend_from_slice(body);
    let crc = crc32c::crc32c(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    let padded = (out.len() - start).next_multiple_of(8);
    out.resize(start + padded, 0);
    u32::try_from(padded).expect("records are bounded")
}

/// The parts of a header: tag, lengths of key, meta and body.
struct Header {
    tag: Tag,
    crc: u32,
    key: usize,
    meta: usize,
    body: usize,
    mark: u32,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        let u32_at = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        if header[..4] != MAGIC || header[8] != VERSION {
            return None;
        }
        let parsed = Self {
            tag: Tag::from_u8(header[9])?,
            crc: u32_at(4),
            key: usize::from(u16::from_le_bytes([header[10], header[11]])),
            meta: size(u32_at(12)),
            body: size(u32_at(16)),
            mark: u32_at(20),
        };
        (parsed.len() <= RECORD_MAX).then_some(parsed)
    }

    /// Length without padding.
    const fn len(&self) -> usize {
        HEADER.saturating_add(self.key).saturating_add(self.meta).saturating_add(self.body)
    }
}

/// Reads the record at the front of `bytes`, which bears this mark; returns it with its padded length. One
/// whose padding was cut off is none: it could not be read by that length.
pub fn decode(bytes: &[u8], mark: impl FnOnce() -> u32) -> Result<(Record, u32), BadRecord> {
    let header = Header::parse(bytes).ok_or(BadRecord)?;
    let padded = header.len().next_multiple_of(8);
    let whole = &bytes.get(..padded).ok_or(BadRecord)?[..header.len()];
    if crc32c::crc32c(&whole[8..]) != header.crc || header.mark != mark() {
        return Err(BadRecord);
    }
    let (key, rest) = whole[HEADER..].split_at(header.key);
    let (meta, body) = rest.split_at(header.meta);
    let len = u32::try_from(padded).map_err(|_| BadRecord)?;
    let record = Record { tag: header.tag, key: key.into(), meta: meta.into(), body: body.into() };
    Ok((record, len))
}

/// The file of a segment.
pub fn path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("{segment:08}.seg"))
}

/// The numbers of the segments in a directory, ascending.
pub fn list(dir: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".seg"));
        if let Some(number) = number.and_then(|digits| digits.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What the segments in a directory hold.
pub fn bytes_in(dir: &Path) -> io::Result<u64> {
    let lens = list(dir)?.into_iter().map(|number| Ok(std::fs::metadata(path(dir, number))?.len()));
    lens.sum()
}

/// Reads one record of known length.
pub fn read(
    file: &File,
    seal: &Seal,
    at: Position,
    len: u32,
) -> io::Result<Result<Record, BadRecord>> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > RECORD_MAX + 8 {
        return Ok(Err(BadRecord));
    }
    let mut bytes = vec![0; len];
    match file.read_exact_at(&mut bytes, u64::from(at.offset)) {
        Ok(()) => Ok(decode(&bytes, || seal.mark(at)).map(|(record, _)| record)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(BadRecord)),
        Err(error) => Err(error),
    }
}

/// What a scan met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// End of the last valid record.
    pub end: u64,
    /// Bytes that belong to no valid record.
    pub skipped: u64,
}

/// Visits every valid record of a segment from `from` on; bad stretches are skipped by looking for the next
/// magic on an 8-byte boundary.
pub fn scan(
    segment: (&File, u32),
    seal: &Seal,
    from: u64,
    visit: impl FnMut(u32, u32, Record),
) -> io::Result<Scanned> {
    let file = segment.0;
    scan_by(|bytes, at| file.read_exact_at(bytes, at), segment, seal, from, visit)
}

/// As `scan`, by somebody else's way of reading.
pub(super) fn scan_by(
    read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    (file, segment): (&File, u32),
    seal: &Seal,
    from: u64,
    mut visit: impl FnMut(u32, u32, Record),
) -> io::Result<Scanned> {
    let size = file.metadata()?.len();
    let mut scanned = Scanned { end: from, skipped: 0 };
    let mut window = Window { read, start: from, bytes: Vec::new() };
    let mut at = from;
    while at < size {
        let bytes = window.at(at, size)?;
        let offset = u32::try_from(at).map_err(|_| io::ErrorKind::InvalidData)?;
        match decode(bytes, || seal.mark(Position { segment, offset })) {
            Ok((record, len)) => {
                visit(offset, len, record);
                at += u64::from(len);
                scanned.end = at;
            }
            Err(BadRecord) => {
                let step = bytes.chunks(8).skip(1).position(|b| b.starts_with(&MAGIC));
                let step = step.map_or(bytes.len(), |n| (n + 1) * 8).max(8) as u64;
                scanned.skipped += step.min(size - at);
                at += step;
            }
        }
    }
    Ok(scanned)
}

/// A sliding view of a segment, always holding at least one whole record if the file does.
struct Window<R> {
    read: R,
    start: u64,
    bytes: Vec<u8>,
}

impl<R: FnMut(&mut [u8], u64) -> io::Result<()>> Window<R> {
    fn at(&mut self, at: u64, size: u64) -> io::Result<&[u8]> {
        const READ_AHEAD: u64 = 4 << 20;
        let want = (RECORD_MAX as u64 + 8).min(size - at);
        let held_to = self.start + self.bytes.len() as u64;
        if at < self.start || at + want > held_to {
            let len = usize::try_from(READ_AHEAD.min(size - at)).unwrap_or(usize::MAX);
            self.bytes.resize(len, 0);
            (self.read)(&mut self.bytes, at)?;
            self.start = at;
        }
        let from = usize::try_from(at - self.start).unwrap_or(usize::MAX);
        Ok(&self.bytes[from..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, Vec<u8>)> {
        let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
        (bytes(60), bytes(90), bytes(300))
    }

    const SEGMENT: u32 = 3;

    fn written(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    /// As the tail does it.
    fn append(out: &mut Vec<u8>, key: &[u8], meta: &[u8], body: &[u8]) -> u32 {
        let at = Position { segment: SEGMENT, offset: u32::try_from(out.len()).unwrap() };
        encode(Tag::Entry, (key, meta, body), seal().mark(at), out)
    }

    fn seal() -> Seal {
        Seal::new("secret")
    }

    fn first(bytes: &[u8]) -> Result<(Record, u32), BadRecord> {
        decode(bytes, || seal().mark(Position { segment: SEGMENT, offset: 0 }))
    }

    /// The bodies that a scan finds, by offset.
    fn scanned(bytes: &[u8]) -> (Scanned, Vec<(usize, Vec<u8>)>) {
        let mut seen = Vec::new();
        let visit = |at: u32, _, record: Record| seen.push((at as usize, record.body));
        (scan((&written(bytes), SEGMENT), &seal(), 0, visit).unwrap(), seen)
    }

    /// Who may write one namespace could fill bodies with records of another, and wait for damage.
    #[test]
    fn records_inside_a_body_are_none_even_where_it_is_damaged() {
        let mut smuggled = Vec::new();
        while smuggled.len() < 4000 {
            encode(Tag::Entry, (b"key", b"", b"false"), 0, &mut smuggled);
            append(&mut smuggled, b"key", b"", b"false");
        }
        let mut out = Vec::new();
        append(&mut out, b"a", b"", b"before");
        let from = out.len();
        append(&mut out, b"b", b"", &smuggled);
        append(&mut out, b"c", b"", b"after");
        out[from] ^= 1;
        let bodies: Vec<_> = scanned(&out).1.into_iter().map(|(_, body)| body).collect();
        assert_eq!(bodies, [b"before".to_vec(), b"after".to_vec()]);
    }

    #[test]
    fn a_record_in_another_place_or_of_another_store_is_none() {
        let mut out = Vec::new();
        append(&mut out, b"a", b"", b"body");
        assert!(first(&out).is_ok());
        for (seal, segment, offset) in
            [("secret", SEGMENT + 1, 0), ("secret", SEGMENT, 8), ("other", SEGMENT, 0)]
        {
            let mark = || Seal::new(seal).mark(Position { segment, offset });
            assert_eq!(decode(&out, mark), Err(BadRecord));
        }
    }

    proptest! {
        #[test]
        fn a_written_record_reads_back((key, meta, body) in record()) {
            let mut out = Vec::new();
            let len = append(&mut out, &key, &meta, &body);
            prop_assert_eq!(out.len() % 8, 0);
            let (record, read_len) = first(&out).unwrap();
            prop_assert_eq!(read_len, len);
            prop_assert_eq!(record, Record { tag: Tag::Entry, key, meta, body });
        }

        #[test]
        fn a_flipped_bit_is_always_noticed((key, meta, body) in record(), at: prop::sample::Index, bit in 0_u8..8) {
            let mut out = Vec::new();
            append(&mut out, &key, &meta, &body);
            let unpadded = HEADER + key.len() + meta.len() + body.len();
            out[at.index(unpadded)] ^= 1 << bit;
            prop_assert_eq!(first(&out), Err(BadRecord));
        }

        /// Found by fuzzing. A write that broke off in the padding was taken for a whole record, whose
        /// length then reached beyond the file: it was in the index and could never be read.
        #[test]
        fn a_record_that_is_cut_short_is_none((key, meta, body) in record(), at: prop::sample::Index) {
            let mut out = Vec::new();
            append(&mut out, &key, &meta, &body);
            for len in [at.index(out.len()), out.len() - 1] {
                prop_assert_eq!(first(&out[..len]), Err(BadRecord));
                let (scanned, _) = scanned(&out[..len]);
                prop_assert_eq!(scanned, Scanned { end: 0, skipped: len as u64 });
            }
        }

        #[test]
        fn reading_a_record_from_anything_never_panics(bytes: Vec<u8>) {
            let _ = first(&bytes);
            let _ = scanned(&bytes);
        }

        #[test]
        fn a_scan_skips_what_is_damaged_and_nothing_else(
            records in prop::collection::vec(record(), 3..8),
            damage: prop::sample::Index,
        ) {
            let (mut out, mut starts) = (Vec::new(), Vec::new());
            for (key, meta, body) in &records {
                starts.push(out.len());
                append(&mut out, key, meta, body);
            }
            let victim = damage.index(records.len());
            out[starts[victim] + 12] ^= 0xff;
            let (_, seen) = scanned(&out);
            for (i, (_, _, body)) in records.iter().enumerate() {
                let found = seen.contains(&(starts[i], body.clone()));
                prop_assert_eq!(found, i != victim);
            }
        }
    }
}

//! What records and index values mean: meta of an entry, its row in the index, byte by byte.
//!
//! ```text
//! meta of an entry   u8 place | u8 class | u8 flags (1: upload owed) | u8 number of headers
//!                    digest 32 | u64 size | u64 stored | u32 cost | u64 c_env | realm 16 (owed to)
//!                    u8 length, writer | per header: u8 length, name, u16 length, value
//! row of the index   u8 version | u8 place | u8 class | u8 flags (1: meta has writer or headers)
//!                    u32 segment | u32 offset | u32 length | digest 32 | u64 size | u64 stored
//!                    u32 cost | u64 c_env | u32 touched | u32 condemned
//!                    and for files: u64 inode | u64 mtime | u64 ctime | u64 boot
//! ```

use std::sync::Arc;

use crate::entry::{Class, Digest, Meta, RealmId};
use crate::store::segment::Position;
use crate::units::Timestamp;

/// Where an entry's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Place {
    /// In the record itself.
    Inline = 0,
    /// In a file named by the digest.
    File = 1,
    /// Under the content key of the digest.
    Elsewhere = 2,
}

impl Place {
    const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Inline),
            1 => Some(Self::File),
            2 => Some(Self::Elsewhere),
            _ => None,
        }
    }
}

/// What identifies the state of a file that was hashed. Any change of it means hashing again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    pub inode: u64,
    pub mtime: u64,
    pub ctime: u64,
    /// Of the machine's current boot: after another one everything is hashed again.
    pub boot: u64,
}

/// An entry's row in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub place: Place,
    pub class: Class,
    /// Whether the record holds a writer or headers, which the row does not.
    pub has_more: bool,
    pub at: Position,
    pub len: u32,
    pub digest: Digest,
    pub size: u64,
    pub stored: Timestamp,
    pub cost_ms: u32,
    pub c_env: u64,
    /// Seconds since 1970; coarse.
    pub touched: u32,
    /// When it was chosen for eviction; zero if it was not.
    pub condemned: u32,
    /// Of the file, if there is one; all zero if it was never hashed here.
    pub stamp: Stamp,
}

const ROW_VERSION: u8 = 1;
const ROW_LEN: usize = 84;
const ROW_FILE_LEN: usize = ROW_LEN + 32;
/// No header that is kept is longer; what is longer is not kept.
const HEADER_VALUE_MAX: usize = 1024;
/// No more headers are kept.
const HEADERS_MAX: usize = 8;

impl Row {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ROW_FILE_LEN);
        out.extend_from_slice(&[
            ROW_VERSION,
            self.place as u8,
            self.class as u8,
            u8::from(self.has_more),
        ]);
        for n in [self.at.segment, self.at.offset, self.len] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&self.digest.0);
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.stored.0.to_le_bytes());
        out.extend_from_slice(&self.cost_ms.to_le_bytes());
        out.extend_from_slice(&self.c_env.to_le_bytes());
        out.extend_from_slice(&self.touched.to_le_bytes());
        out.extend_from_slice(&self.condemned.to_le_bytes());
        if self.place == Place::File {
            let stamp = &self.stamp;
            for n in [stamp.inode, stamp.mtime, stamp.ctime, stamp.boot] {
                out.extend_from_slice(&n.to_le_bytes());
            }
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        if cursor.u8()? != ROW_VERSION {
            return None;
        }
        let place = Place::from_u8(cursor.u8()?)?;
        let mut row = Self {
            place,
            class: Class::from_u8(cursor.u8()?),
            has_more: cursor.u8()? & 1 != 0,
            at: Position { segment: cursor.u32()?, offset: cursor.u32()? },
            len: cursor.u32()?,
            digest: Digest(cursor.take()?),
            size: cursor.u64()?,
            stored: Timestamp(cursor.u64()?),
            cost_ms: cursor.u32()?,
            c_env: cursor.u64()?,
            touched: cursor.u32()?,
            condemned: cursor.u32()?,
            stamp: Stamp::default(),
        };
        if place == Place::File {
            row.stamp = Stamp {
                inode: cursor.u64()?,
                mtime: cursor.u64()?,
                ctime: cursor.u64()?,
                boot: cursor.u64()?,
            };
        }
        cursor.0.is_empty().then_some(row)
    }

    /// Meta as far as the row knows it.
    pub fn meta(&self) -> Meta {
        Meta {
            cost_ms: self.cost_ms,
            c_env: self.c_env,
            ..Meta::new(self.digest, self.size, self.stored, self.class)
        }
    }
}

/// The meta part of an entry's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryMeta {
    pub meta: Meta,
    pub place: Place,
    /// The realm whose upstream is owed this entry.
    pub owed: Option<RealmId>,
}

impl EntryMeta {
    pub fn has_more(&self) -> bool {
        !self.meta.writer.is_empty() || !self.meta.headers.is_empty()
    }

    pub fn encode(&self) -> Vec<u8> {
        let meta = &self.meta;
        let headers: Vec<_> = meta
            .headers
            .iter()
            .filter(|(name, value)| name.len() < 256 && value.len() <= HEADER_VALUE_MAX)
            .take(HEADERS_MAX)
            .collect();
        let mut out = Vec::with_capacity(96);
        let count = u8::try_from(headers.len()).expect("few are taken");
        out.extend_from_slice(&[
            self.place as u8,
            meta.class as u8,
            u8::from(self.owed.is_some()),
            count,
        ]);
        out.extend_from_slice(&meta.digest.0);
        out.extend_from_slice(&meta.size.to_le_bytes());
        out.extend_from_slice(&meta.stored.0.to_le_bytes());
        out.extend_from_slice(&meta.cost_ms.to_le_bytes());
        out.extend_from_slice(&meta.c_env.to_le_bytes());
        out.extend_from_slice(&self.owed.unwrap_or_default().0);
        put_short(&meta.writer, &mut out);
        for (name, value) in headers {
            put_short(name, &mut out);
            let len = u16::try_from(value.len()).expect("longer values were left out");
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(value.as_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let place = Place::from_u8(cursor.u8()?)?;
        let class = Class::from_u8(cursor.u8()?);
        let owed = cursor.u8()? & 1 != 0;
        let count = cursor.u8().filter(|count| usize::from(*count) <= HEADERS_MAX)?;
        let mut meta =
            Meta::new(Digest(cursor.take()?), cursor.u64()?, Timestamp(cursor.u64()?), class);
        meta.cost_ms = cursor.u32()?;
        meta.c_env = cursor.u64()?;
        let realm = RealmId(cursor.take()?);
        meta.writer = cursor.short()?;
        for _ in 0..count {
            let name = cursor.short()?;
            let len = usize::from(u16::from_le_bytes(cursor.take()?));
            let value = cursor.text(len).filter(|_| len <= HEADER_VALUE_MAX)?;
            meta.headers.push((name, value));
        }
        let whole = cursor.0.is_empty();
        whole.then_some(Self { meta, place, owed: owed.then_some(realm) })
    }
}

/// Text of at most 255 bytes; what is longer is cut at a character.
fn put_short(text: &str, out: &mut Vec<u8>) {
    let mut end = text.len().min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.push(u8::try_from(end).expect("cut above"));
    out.extend_from_slice(&text.as_bytes()[..end]);
}

/// Reads little-endian numbers off the front of a slice.
pub struct Cursor<'a>(pub &'a [u8]);

impl Cursor<'_> {
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    pub fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[b]| b)
    }
    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    fn short(&mut self) -> Option<Arc<str>> {
        let len = self.u8()?;
        self.text(usize::from(len))
    }
    fn text(&mut self, len: usize) -> Option<Arc<str>> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(head).ok().map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_place() -> impl Strategy<Value = Place> {
        prop_oneof![Just(Place::Inline), Just(Place::File), Just(Place::Elsewhere)]
    }

    prop_compose! {
        fn any_meta()(
            digest: [u8; 32], size: u64, stored: u64, class in 0_u8..14, cost_ms: u32, c_env: u64,
            writer in "[a-zäöü]{0,40}",
            headers in prop::collection::vec(("[a-z]{1,20}", "[ -~]{0,90}"), 0..4),
        ) -> Meta {
            let mut meta =
                Meta::new(Digest(digest), size, Timestamp(stored), Class::from_u8(class));
            meta.cost_ms = cost_ms;
            meta.c_env = c_env;
            meta.writer = writer.into();
            meta.headers = headers.into_iter().map(|(n, v)| (n.into(), v.into())).collect();
            meta
        }
    }

    /// Found by fuzzing: what no writer writes was read, and written again as less.
    #[test]
    fn more_headers_than_are_kept_are_not_read() {
        let mut meta = Meta::new(Digest::EMPTY, 0, Timestamp(0), Class::Other);
        meta.headers = vec![("a".into(), "b".into()); HEADERS_MAX];
        let entry = EntryMeta { meta, place: Place::Inline, owed: None };
        let mut bytes = entry.encode();
        assert_eq!(EntryMeta::decode(&bytes), Some(entry));
        bytes[3] += 1;
        bytes.extend_from_slice(&[0, 0, 0]);
        assert_eq!(EntryMeta::decode(&bytes), None);
    }

    proptest! {
        #[test]
        fn written_meta_reads_back(meta in any_meta(), place in any_place(), realm: Option<[u8; 16]>) {
            let entry = EntryMeta { meta, place, owed: realm.map(RealmId) };
            prop_assert_eq!(EntryMeta::decode(&entry.encode()), Some(entry));
        }

        #[test]
        fn a_written_row_reads_back(
            meta in any_meta(), place in any_place(), at: (u32, u32, u32), times: (u32, u32),
            stamp: (u64, u64, u64, u64), has_more: bool,
        ) {
            let stamp = Stamp { inode: stamp.0, mtime: stamp.1, ctime: stamp.2, boot: stamp.3 };
            let row = Row {
                place, class: meta.class, has_more,
                at: Position { segment: at.0, offset: at.1 }, len: at.2,
                digest: meta.digest, size: meta.size, stored: meta.stored,
                cost_ms: meta.cost_ms, c_env: meta.c_env, touched: times.0, condemned: times.1,
                stamp: if place == Place::File { stamp } else { Stamp::default() },
            };
            prop_assert_eq!(Row::decode(&row.encode()), Some(row));
        }

        #[test]
        fn reading_rows_and_meta_from_anything_never_panics(bytes: Vec<u8>) {
            let _ = Row::decode(&bytes);
            let _ = EntryMeta::decode(&bytes);
        }
    }
}

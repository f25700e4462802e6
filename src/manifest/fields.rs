//! Numbers, texts and digests as manifests and trails write them, and the seal that ends both.
//!
//! ```text
//! varint   LEB128 of a u64, never longer than it must be
//! zigzag   varint of a difference: 0, -1, 1, -2, … as 0, 1, 2, 3, …; it wraps, so any two u64 have one
//! text     varint length | UTF-8, at most TEXT_MAX bytes
//! pack     digest 32 | varint size, at most PACK_MAX
//! seal     the first 16 bytes of the SHA-256 of all that precedes it
//! ```
//!
//! What the fields mean together is in `encoding` and `trail`. Packs are not sealed: `pack`.

use std::collections::HashMap;
use std::hash::Hash;

use crate::entry::Digest;
use crate::manifest::pack::PACK_MAX;
use crate::manifest::{FormatError, PackRef, TEXT_MAX};

pub(super) const MAGIC_LEN: usize = 8;
pub(super) const SEAL_LEN: usize = 16;
pub(super) const VARINT_MAX: usize = 10;
/// Shortest and longest encoding of a pack's name.
pub(super) const PACK_REF_MIN: usize = 32 + 1;
pub(super) const PACK_REF_MAX: usize = 32 + VARINT_MAX;
/// Longest encoding of a text.
pub(super) const TEXT_LEN_MAX: usize = 2 + TEXT_MAX;

pub(super) fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n.to_le_bytes()[0] | 0x80);
        n >>= 7;
    }
    out.push(n.to_le_bytes()[0]);
}

/// Writes `n` as what it differs from `base`.
pub(super) fn put_zigzag(n: u64, base: u64, out: &mut Vec<u8>) {
    let difference = n.wrapping_sub(base).cast_signed();
    put_varint(((difference << 1) ^ (difference >> 63)).cast_unsigned(), out);
}

/// The part of a text that is written: what is longer is cut at a character.
pub(super) fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

pub(super) fn put_text(text: &str, out: &mut Vec<u8>) {
    let text = cut(text);
    put_varint(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn put_pack(pack: &PackRef, out: &mut Vec<u8>) {
    out.extend_from_slice(&pack.digest.0);
    put_varint(pack.size, out);
}

/// Ends what was written.
pub(super) fn seal(mut out: Vec<u8>) -> Vec<u8> {
    let digest = Digest::of(&out);
    out.extend_from_slice(&digest.0[..SEAL_LEN]);
    out
}

/// Numbers values in order of first use, so that each is written once.
pub(super) struct Numbers<T>(HashMap<T, u64>);

impl<T: Eq + Hash> Numbers<T> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn knows(&self, value: &T) -> bool {
        self.0.contains_key(value)
    }

    /// Writes the value's number; true if it is new, and its bytes must follow.
    pub(super) fn put(&mut self, value: T, out: &mut Vec<u8>) -> bool {
        let next = self.0.len() as u64;
        let number = *self.0.entry(value).or_insert(next);
        put_varint(number, out);
        number == next
    }
}

/// Reads fields off the front of what is left, in bounds.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Proves magic, version, length and seal, then reads what is between.
    pub(super) fn open(
        bytes: &'a [u8],
        magic: &[u8; MAGIC_LEN],
        version: u8,
        size_max: usize,
    ) -> Result<Self, FormatError> {
        if bytes.len() > size_max {
            let (count, max) = (bytes.len() as u64, size_max as u64);
            return Err(FormatError::TooMany { what: "bytes", count, max });
        }
        let rest = bytes.strip_prefix(magic).ok_or(FormatError::Magic)?;
        let (found, rest) = rest.split_first().ok_or(FormatError::Short)?;
        if *found != version {
            return Err(FormatError::Version(*found));
        }
        let (body, seal) = rest.split_last_chunk::<SEAL_LEN>().ok_or(FormatError::Short)?;
        if Digest::of(&bytes[..bytes.len() - SEAL_LEN]).0[..SEAL_LEN] != *seal {
            return Err(FormatError::Checksum);
        }
        Ok(Self(body))
    }

    /// Nothing may be left.
    pub(super) const fn close(self) -> Result<(), FormatError> {
        if self.0.is_empty() { Ok(()) } else { Err(FormatError::Trailing(self.0.len())) }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(FormatError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, FormatError> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(super) fn u64(&mut self) -> Result<u64, FormatError> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn digest(&mut self) -> Result<Digest, FormatError> {
        self.take().map(Digest)
    }

    pub(super) fn varint(&mut self) -> Result<u64, FormatError> {
        let mut n = 0;
        for shift in (0..).step_by(7).take(VARINT_MAX) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(FormatError::Number);
            }
            n |= bits << shift;
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(FormatError::Number)
    }

    pub(super) fn varint_u32(&mut self) -> Result<u32, FormatError> {
        u32::try_from(self.varint()?).map_err(|_| FormatError::Number)
    }

    pub(super) fn zigzag(&mut self, base: u64) -> Result<u64, FormatError> {
        let n = self.varint()?;
        let sign = (n & 1).wrapping_neg();
        Ok(base.wrapping_add((n >> 1) ^ sign))
    }

    /// A number of things of at least `shortest` bytes each: within `max`, and what is left can
    /// hold them, so that room for them may be taken.
    pub(super) fn count(
        &mut self,
        what: &'static str,
        max: usize,
        shortest: usize,
    ) -> Result<usize, FormatError> {
        let count = self.varint()?;
        let fits = usize::try_from(count).ok().filter(|count| *count <= max);
        let Some(fits) = fits else {
            return Err(FormatError::TooMany { what, count, max: max as u64 });
        };
        if fits > self.0.len() / shortest { Err(FormatError::Short) } else { Ok(fits) }
    }

    pub(super) fn text(&mut self) -> Result<String, FormatError> {
        let len = self.count("bytes of text", TEXT_MAX, 1)?;
        let (text, rest) = self.0.split_at(len);
        self.0 = rest;
        std::str::from_utf8(text).map(str::to_owned).map_err(|_| FormatError::Text)
    }

    pub(super) fn pack(&mut self) -> Result<PackRef, FormatError> {
        let pack = PackRef { digest: self.digest()?, size: self.varint()? };
        if pack.size > PACK_MAX {
            let (count, max) = (pack.size, PACK_MAX);
            return Err(FormatError::TooMany { what: "bytes of a pack", count, max });
        }
        Ok(pack)
    }

    /// A value that `Numbers` wrote: one of `known`, or a new one, read by `new` and then known.
    pub(super) fn numbered<T: Copy>(
        &mut self,
        known: &mut Vec<T>,
        new: impl FnOnce(&mut Self) -> Result<T, FormatError>,
    ) -> Result<T, FormatError> {
        let number = self.varint()?;
        if number == known.len() as u64 {
            known.push(new(self)?);
        }
        usize::try_from(number)
            .ok()
            .and_then(|number| known.get(number).copied())
            .ok_or(FormatError::Index(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_written_number_reads_back(n: u64, base: u64, shift in 0_u32..64) {
            let n = n >> shift;
            let mut out = Vec::new();
            put_varint(n, &mut out);
            put_zigzag(n, base, &mut out);
            let mut reader = Reader(&out);
            prop_assert_eq!(reader.varint(), Ok(n));
            prop_assert_eq!(reader.zigzag(base), Ok(n));
            prop_assert_eq!(reader.close(), Ok(()));
        }

        #[test]
        fn a_number_has_one_encoding(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = Reader(&bytes);
            if let Ok(n) = reader.varint() {
                let mut out = Vec::new();
                put_varint(n, &mut out);
                prop_assert_eq!(&out[..], &bytes[..bytes.len() - reader.0.len()]);
            }
        }
    }

    #[test]
    fn numbers_that_overflow_or_run_on_are_refused() {
        let mut most = vec![0xff; 9];
        most.push(1);
        assert_eq!(Reader(&most).varint(), Ok(u64::MAX));
        assert_eq!(Reader(&most).varint_u32(), Err(FormatError::Number));
        most[9] = 2;
        assert_eq!(Reader(&most).varint(), Err(FormatError::Number));
        assert_eq!(Reader(&[0xff; 20]).varint(), Err(FormatError::Number));
        assert_eq!(Reader(&[0x80, 0]).varint(), Err(FormatError::Number));
        assert_eq!(Reader(&[0x80]).varint(), Err(FormatError::Short));
    }

    #[test]
    fn small_differences_are_short_on_both_sides() {
        for (n, base, len) in [(7, 7, 1), (0, 63, 1), (63, 0, 1), (0, u64::MAX, 1), (64, 0, 2)] {
            let mut out = Vec::new();
            put_zigzag(n, base, &mut out);
            assert_eq!(out.len(), len, "{n} after {base}");
        }
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let mut out = Vec::new();
        put_text(&"ä".repeat(TEXT_MAX), &mut out);
        assert_eq!(Reader(&out).text(), Ok("ä".repeat(TEXT_MAX / 2)));
        out.clear();
        put_text(&format!("x{}", "ä".repeat(TEXT_MAX)), &mut out);
        assert_eq!(Reader(&out).text().map(|text| text.len()), Ok(TEXT_MAX - 1));
    }
}

//! A pack: the frames of many entries in one object, read while it arrives.
//!
//! ```text
//! pack    "LRDPACKS" | u8 version | frame …          nothing after the last
//! frame   output 32 | u32 length | u64 size | one zstd frame of that length
//! ```
//!
//! `output` and `size` are what the frame unpacks to; integers are little endian. A pack carries no
//! seal: whoever unpacks a frame does so within `size` and compares the digest. A row of a manifest
//! gives offset and length of the zstd frame itself, so that a range of a pack needs no reader, and
//! none looks at the version: those of the manifest and of the action rule what may be read.
//!
//! Frames are opaque here; compressing, unpacking, storing and fetching happen elsewhere.

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::entry::Digest;
use crate::manifest::Place;

/// A writer starts another pack when this one is as long.
pub const PACK_TARGET: u64 = 8 << 20;
/// No pack is longer.
pub const PACK_MAX: u64 = 16 << 20;
/// Frames up to this length travel in packs; longer ones stand alone.
pub const FRAME_MAX: u64 = 1 << 20;

const MAGIC: &[u8; 8] = b"LRDPACKS";
const VERSION: u8 = 1;
const PACK_HEAD: usize = MAGIC.len() + 1;
const FRAME_HEAD: usize = 32 + 4 + 8;

/// Where the bytes of a pack's first frame begin.
pub(super) const FIRST_FRAME: u64 = (PACK_HEAD + FRAME_HEAD) as u64;
/// From the end of one frame's bytes to where the next one's begin.
pub(super) const FRAME_GAP: u64 = FRAME_HEAD as u64;

/// Why a pack, or a frame for it, was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    #[error("not a pack")]
    Magic,
    #[error("a pack of version {0}, which this larder does not know")]
    Version(u8),
    #[error("a frame of {0} bytes does not travel in packs")]
    Frame(usize),
    #[error("a pack of {0} bytes is longer than any may be")]
    Size(u64),
    #[error("the frame at {at} is longer than what the pack's {size} bytes have left")]
    Past { at: u64, size: u64 },
    #[error("bytes after the last frame")]
    Trailing,
    #[error("the pack ends at {at} of {size} bytes")]
    Short { at: u64, size: u64 },
    #[error("the pack has no room for this frame")]
    Full,
}

/// Where a frame's bytes are in its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub offset: u64,
    pub len: u32,
}

impl Slot {
    /// As a row says it, in a manifest that names the pack under this number.
    pub const fn in_pack(self, pack: u32) -> Place {
        Place::Pack { pack, offset: self.offset, len: self.len }
    }
}

/// Puts frames together, in the order in which a build will want them.
#[derive(Debug)]
pub struct PackWriter {
    out: Vec<u8>,
}

impl Default for PackWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl PackWriter {
    pub fn new() -> Self {
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        Self { out }
    }

    /// Adds the zstd frame of an output of `size` bytes. A frame that is refused leaves no trace:
    /// `Full` asks for another pack, `Frame` says that it goes singly.
    pub fn push(&mut self, output: Digest, size: u64, frame: &[u8]) -> Result<Slot, PackError> {
        let len = frame_len(frame.len())?;
        if self.len() + (FRAME_HEAD + frame.len()) as u64 > PACK_MAX {
            return Err(PackError::Full);
        }
        self.out.extend_from_slice(&output.0);
        self.out.extend_from_slice(&len.to_le_bytes());
        self.out.extend_from_slice(&size.to_le_bytes());
        let offset = self.len();
        self.out.extend_from_slice(frame);
        Ok(Slot { offset, len })
    }

    /// The pack's length so far.
    pub const fn len(&self) -> u64 {
        self.out.len() as u64
    }

    /// Whether no frame is in it.
    pub const fn is_empty(&self) -> bool {
        self.out.len() == PACK_HEAD
    }

    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

/// A frame as it came out of a pack; nothing of it is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackFrame {
    /// Where its bytes begin in the pack.
    pub offset: u64,
    pub output: Digest,
    /// What the output's size is said to be.
    pub size: u64,
    pub bytes: Bytes,
}

/// Takes a pack in pieces and gives its frames, each as soon as it is whole.
///
/// Who asks for all frames after each piece makes it hold one frame and one piece at most; who
/// does not, one pack. The first error stays.
pub struct PackReader {
    /// Of the whole pack, as its name says.
    size: u64,
    /// Where in the pack `held` begins.
    at: u64,
    held: BytesMut,
    begun: bool,
    head: Option<Head>,
    /// Whether more came than the pack has.
    over: bool,
    failed: Option<PackError>,
}

#[derive(Clone, Copy)]
struct Head {
    output: Digest,
    len: usize,
    size: u64,
}

impl PackReader {
    /// A reader of a pack of this size.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            at: 0,
            held: BytesMut::new(),
            begun: false,
            head: None,
            over: false,
            failed: (size > PACK_MAX).then_some(PackError::Size(size)),
        }
    }

    /// Takes the next piece.
    pub fn feed(&mut self, piece: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let room = self.size - self.at - self.held.len() as u64;
        let fits = usize::try_from(room).map_or(piece.len(), |room| piece.len().min(room));
        self.over |= fits < piece.len();
        self.held.extend_from_slice(&piece[..fits]);
    }

    /// The next whole frame; none if more must be fed first, or the pack is at its end.
    pub fn next_frame(&mut self) -> Result<Option<PackFrame>, PackError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let next = self.advance();
        if let Err(error) = next {
            self.failed = Some(error);
            self.held = BytesMut::new();
        }
        next
    }

    /// Says whether the pack was whole; frames that were not asked for are let go.
    pub fn finish(mut self) -> Result<(), PackError> {
        while self.next_frame()?.is_some() {}
        if self.begun && self.at == self.size {
            return Ok(());
        }
        Err(PackError::Short { at: self.at + self.held.len() as u64, size: self.size })
    }

    fn advance(&mut self) -> Result<Option<PackFrame>, PackError> {
        if !self.begun {
            let Some(head) = self.take(PACK_HEAD)? else { return Ok(None) };
            check_head(&head)?;
            self.begun = true;
        }
        let head = match self.head {
            Some(head) => head,
            None if self.at == self.size && self.over => return Err(PackError::Trailing),
            None if self.at == self.size => return Ok(None),
            None => {
                let Some(bytes) = self.take(FRAME_HEAD)? else { return Ok(None) };
                *self.head.insert(Head::decode(&bytes)?)
            }
        };
        let offset = self.at;
        let Some(bytes) = self.take(head.len)? else { return Ok(None) };
        self.head = None;
        Ok(Some(PackFrame { offset, output: head.output, size: head.size, bytes }))
    }

    /// The next `len` bytes, once they are there.
    fn take(&mut self, len: usize) -> Result<Option<Bytes>, PackError> {
        if len as u64 > self.size - self.at {
            return Err(PackError::Past { at: self.at, size: self.size });
        }
        if self.held.len() < len {
            return Ok(None);
        }
        self.at += len as u64;
        Ok(Some(self.held.split_to(len).freeze()))
    }
}

impl fmt::Debug for PackReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackReader")
            .field("size", &self.size)
            .field("at", &self.at)
            .field("held", &self.held.len())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Head {
    fn decode(bytes: &[u8]) -> Result<Self, PackError> {
        let (output, rest) = bytes.split_first_chunk().expect("as long as a frame's head");
        let (len, rest) = rest.split_first_chunk().expect("as long as a frame's head");
        let (size, _) = rest.split_first_chunk().expect("as long as a frame's head");
        let len = u32::from_le_bytes(*len) as usize;
        frame_len(len)?;
        Ok(Self { output: Digest(*output), len, size: u64::from_le_bytes(*size) })
    }
}

fn check_head(head: &[u8]) -> Result<(), PackError> {
    match head.strip_prefix(MAGIC) {
        Some([VERSION]) => Ok(()),
        Some([other, ..]) => Err(PackError::Version(*other)),
        _ => Err(PackError::Magic),
    }
}

/// The length of a frame that may travel in packs.
fn frame_len(len: usize) -> Result<u32, PackError> {
    u32::try_from(len)
        .ok()
        .filter(|len| *len > 0 && u64::from(*len) <= FRAME_MAX)
        .ok_or(PackError::Frame(len))
}

#[cfg(test)]
mod tests;

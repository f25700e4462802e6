//! Bodies: bytes at hand, or something that streams them; and what a client sends us.
//!
//! Files and fetches in progress stand behind `Source`; this module opens nothing itself.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::Stream;

use super::Why;

/// A body broke off. Whoever has begun to answer must break off visibly too.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the sender stopped after {got} bytes")]
    Truncated { got: u64 },
    #[error("the body is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("no progress for {waited_ms} ms")]
    Stalled { waited_ms: u64 },
    #[error("the bytes do not match their digest")]
    Corrupt,
    #[error("{0}")]
    Broken(String),
}

impl BodyError {
    /// What a client is told that misses because of this.
    pub const fn why(&self) -> Why {
        match self {
            Self::Stalled { .. } => Why::Deadline,
            Self::Truncated { .. } | Self::TooLarge { .. } | Self::Corrupt | Self::Broken(_) => {
                Why::Fault
            }
        }
    }
}

/// A stream of pieces of a body.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>;

/// Something that can stream a part of a body: a file, a fetch in progress.
pub trait Source: Send + Sync {
    /// Streams `range` of the body; the end is ignored where the length is not known yet.
    fn stream(&self, range: Range<u64>) -> Chunks;
}

/// What the pieces of all bodies that are being streamed take together, one each; below `PIECE_MIN` they
/// do not shrink.
const PIECES_BYTES: u64 = 8 << 20;
/// As a piece is on its way while the next one is read. Beyond this, whoever comes has a part of his share:
/// a few who do not take theirs cannot take it from others.
const PIECES_MAX: u64 = 2 * PIECES_BYTES;
const PART: u64 = 8;
const PIECE_MIN: u64 = 4 << 10;
static STREAMS: AtomicU64 = AtomicU64::new(0);
static PIECES: AtomicU64 = AtomicU64::new(0);

/// A body that is being streamed in pieces, counted for as long as it is.
#[derive(Debug)]
pub struct Streaming(());

impl Streaming {
    pub fn begin() -> Self {
        STREAMS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }

    /// Room for the next piece: at most `most` while few are read, less where a thousand are, or where
    /// those who came when they were few have not taken theirs.
    pub fn piece(&self, most: u64) -> Piece {
        let share = PIECES_BYTES / STREAMS.load(Ordering::Relaxed).max(1);
        let is_left = PIECES.load(Ordering::Relaxed) + share <= PIECES_MAX;
        let len = if is_left { share } else { share / PART }.max(PIECE_MIN).min(most);
        PIECES.fetch_add(len, Ordering::Relaxed);
        Piece { len, bytes: Vec::new() }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        STREAMS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A piece of a body, counted from before it is read until nobody holds its bytes.
#[derive(Debug)]
pub struct Piece {
    len: u64,
    bytes: Vec<u8>,
}

impl Piece {
    /// How long it may be.
    pub const fn room(&self) -> u64 {
        self.len
    }

    /// `bytes` are no longer than there is room.
    pub fn hold(mut self, bytes: Vec<u8>) -> Bytes {
        self.bytes = bytes;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        PIECES.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// What all bodies that come in hold together before it is written; below `RECEIVED_MIN` each they do not
/// shrink. Beyond it, whoever sends holds a part of his share.
const RECEIVED_BYTES: usize = 8 << 20;
const RECEIVED_MIN: usize = 8 << 10;
const RECEIVED_PART: usize = 8;
/// Smaller chunks are copied out of what they were read into, which may be several times their size; where
/// more bodies than that come in, all are.
const CHUNK_MIN: usize = 8 << 10;
const RECEIVED_FEW: usize = 64;
static RECEIVED: AtomicUsize = AtomicUsize::new(0);
static HELD: AtomicUsize = AtomicUsize::new(0);

/// A body that comes in, counted until it is whole or given up, and what is held of it.
#[derive(Debug)]
pub struct Receiving {
    pieces: Vec<Bytes>,
    /// What came after these in small chunks.
    tail: Vec<u8>,
    held: usize,
}

impl Receiving {
    pub fn begin() -> Self {
        RECEIVED.fetch_add(1, Ordering::Relaxed);
        Self { pieces: Vec::new(), tail: Vec::new(), held: 0 }
    }

    /// Holds a chunk until more has come.
    pub fn hold(&mut self, chunk: Bytes) {
        self.held += chunk.len();
        HELD.fetch_add(chunk.len(), Ordering::Relaxed);
        if chunk.len() < CHUNK_MIN || RECEIVED.load(Ordering::Relaxed) > RECEIVED_FEW {
            self.tail.extend_from_slice(&chunk);
        } else {
            self.end_tail();
            self.pieces.push(chunk);
        }
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push(std::mem::take(&mut self.tail).into());
        }
    }

    /// When to write: at `most` while few send, earlier where a thousand do, or where others have stopped
    /// halfway.
    pub fn is_full(&self, most: usize) -> bool {
        let share = RECEIVED_BYTES / RECEIVED.load(Ordering::Relaxed).max(1);
        let is_left = HELD.load(Ordering::Relaxed) <= RECEIVED_BYTES;
        let enough = if is_left { share } else { share / RECEIVED_PART };
        self.held >= enough.max(RECEIVED_MIN).min(most)
    }

    /// What is held, to be written; counted until it is.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.end_tail();
        std::mem::take(&mut self.pieces)
    }

    pub fn written(&mut self) {
        HELD.fetch_sub(std::mem::take(&mut self.held), Ordering::Relaxed);
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.written();
        RECEIVED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The bytes of an entry on their way out.
pub enum Body {
    Bytes(Bytes),
    /// `len` is None only while an upstream that did not name a length is still sending.
    Source {
        len: Option<u64>,
        source: Box<dyn Source>,
    },
}

impl Body {
    pub fn len(&self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::Source { len, .. } => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The whole body as pieces.
    pub fn into_chunks(self) -> Chunks {
        match self {
            Self::Bytes(bytes) => once(bytes),
            Self::Source { len, source } => source.stream(0..len.unwrap_or(u64::MAX)),
        }
    }

    /// A part of the body as pieces; `range` lies within the length.
    pub fn into_range(self, range: Range<u64>) -> Chunks {
        match self {
            Self::Bytes(bytes) => {
                let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(bytes.len());
                once(bytes.slice(at(range.start)..at(range.end)))
            }
            Self::Source { source, .. } => source.stream(range),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Source { len, .. } => write!(f, "Source({len:?})"),
        }
    }
}

/// One piece, then the end.
pub fn once(bytes: Bytes) -> Chunks {
    if bytes.is_empty() {
        return Box::pin(futures_util::stream::empty());
    }
    Box::pin(futures_util::stream::once(std::future::ready(Ok(bytes))))
}

/// A body on its way in, with the length its sender announced.
pub struct Incoming {
    pub len: Option<u64>,
    pub chunks: Chunks,
}

impl Incoming {
    pub fn bytes(bytes: Bytes) -> Self {
        Self { len: Some(bytes.len() as u64), chunks: once(bytes) }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incoming({:?})", self.len)
    }
}

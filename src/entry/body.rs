//! Bodies: bytes at hand, or something that streams them; and what a client sends us.
//!
//! Files and fetches in progress stand behind `Source`; this module opens nothing itself.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;

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

/// A stream of pieces of a body.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>;

/// Something that can stream a part of a body: a file, a fetch in progress.
pub trait Source: Send + Sync {
    /// Streams `range` of the body; the end is ignored where the length is not known yet.
    fn stream(&self, range: Range<u64>) -> Chunks;
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

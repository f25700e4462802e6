//! What the Go helper, the control client and the daemon say to each other over the socket.
//!
//! A connection opens with `PREFACE`, then frames follow in both directions:
//!
//! ```text
//! u32 length of what follows | u8 type | payload            (all numbers little-endian)
//! ```
//!
//! The first frame from the client is `Hello`, the daemon's first is `Welcome` or `Refused`; all
//! three are JSON, so that versions which share nothing else can still say why they part.

use std::io;

use serde::{Deserialize, Serialize};

mod frame;

pub use frame::frame_len;

/// First bytes of a connection; no HTTP method begins like this.
pub const PREFACE: &[u8; 8] = b"LARDER1\n";

/// Changes when frames change. Ends that differ part in peace: the helper works without the daemon.
pub const PROTOCOL: u32 = 1;

/// Largest frame. Bodies travel in pieces of at most `PIECE_MAX`.
pub const FRAME_MAX: usize = 1 << 20;
pub const PIECE_MAX: usize = 256 << 10;

/// Longest name of a branch, in bytes, and most parents that a daemon hears.
const NAME_MAX: usize = 256;
const PARENTS_MAX: usize = 8;

/// Who connects, and as what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    /// larder's version, for messages only.
    pub version: String,
    /// `go` or `control`.
    pub role: String,
    pub pid: u32,
    /// Identifies the client's PID namespace: process numbers mean nothing across two.
    #[serde(default)]
    pub pid_namespace: String,
    #[serde(default)]
    pub token: Option<String>,
    #[serde(default)]
    pub namespace: Option<String>,
    #[serde(default)]
    pub trust: Option<String>,
    /// The upstream that the client was told to use, if it was told.
    #[serde(default)]
    pub upstream: Option<String>,
    #[serde(default)]
    pub read_only: bool,
    /// Groups the helpers of one build.
    #[serde(default)]
    pub session: String,
    #[serde(default)]
    pub scope: String,
    #[serde(default)]
    pub commit: String,
    #[serde(default)]
    pub branch: String,
    #[serde(default)]
    pub default_branch: String,
    /// Of the commit, if they are known by now; see `Frame::Parents`.
    #[serde(default)]
    pub parents: Vec<String>,
}

impl Hello {
    /// Cuts what is longer than any branch need be: a daemon keeps it for as long as the session.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut hello: Self = serde_json::from_slice(bytes).ok()?;
        for name in [&mut hello.branch, &mut hello.default_branch] {
            let fits = |len: &usize| name.is_char_boundary(*len);
            name.truncate((0..=NAME_MAX.min(name.len())).rfind(fits).unwrap_or(0));
        }
        hello.parents = bounded(hello.parents);
        Some(hello)
    }
}

/// The first parents; what is no object's id is none.
fn bounded(ids: Vec<String>) -> Vec<String> {
    let is_id = |id: &String| {
        matches!(id.len(), 40 | 64) && id.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    ids.into_iter().filter(is_id).take(PARENTS_MAX).collect()
}

/// The daemon's answer to `Hello`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub protocol: u32,
    pub version: String,
    pub pid: u32,
    pub pid_namespace: String,
    /// The store's directory, as the daemon sees it.
    pub store: String,
    /// What the file `nonce` in the store holds: whoever reads the same sees the same store.
    pub nonce: String,
    pub uid: u32,
    /// Realms to read in this order, in hexadecimal; the first one is written.
    pub realms: Vec<String>,
    /// Session that the daemon counts this helper under.
    pub session: String,
    /// Where HTTP is served, for clients that ask.
    pub http: Vec<String>,
    /// Something that the user should be told.
    #[serde(default)]
    pub warning: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub protocol: u32,
    pub version: String,
    pub reason: String,
}

/// What a helper has seen, told when it ends and every few seconds in between. All are totals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub gets: u64,
    /// Hits answered from index and disk without a question to the daemon.
    pub hits_index: u64,
    pub hits_native: u64,
    pub puts: u64,
    /// Milliseconds of building that hits without a question have saved.
    pub saved_ms: u64,
}

/// One answer of the helper protocol or question in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Hello(Hello),
    Welcome(Welcome),
    Refused(Refused),
    /// Is there an output for this action?
    Get {
        id: u64,
        action: [u8; 32],
        c_env: u64,
    },
    /// The output is in the store, under its digest.
    Hit {
        id: u64,
        entry: Entry,
    },
    /// The same for a client that does not see the store: `Piece`s follow, an empty one ends them.
    HitBytes {
        id: u64,
        entry: Entry,
    },
    Miss {
        id: u64,
        why: u8,
    },
    /// The output is in the store already; record the action.
    Put {
        id: u64,
        action: [u8; 32],
        entry: Entry,
    },
    /// The same from a client that does not see the store: `Piece`s follow, an empty one ends them.
    PutBytes {
        id: u64,
        action: [u8; 32],
        entry: Entry,
    },
    /// Answers both puts.
    Done {
        id: u64,
        stored: bool,
    },
    Piece {
        id: u64,
        bytes: Vec<u8>,
    },
    /// Actions answered from the index since the last such frame.
    Used {
        actions: Vec<[u8; 32]>,
    },
    Report(Report),
    /// Said by a helper right after `Welcome`, before its first question: whether it sees the
    /// daemon's store and may write there. Without it the daemon takes it that it does.
    Sees {
        store: bool,
    },
    /// Said once by a helper that has found the parents of its commit after its `Hello`, or that git
    /// names none.
    Parents {
        ids: Vec<String>,
    },
    /// Questions and answers of the control client, JSON.
    Control(String),
    ControlReply(String),
}

/// What is known of a Go output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub output: [u8; 32],
    pub size: u64,
    pub time_ns: u64,
    pub cost_ms: u32,
    pub c_env: u64,
    pub class: u8,
    /// Where it came from: see `SOURCE_*`.
    pub source: u8,
}

pub const SOURCE_BUILT: u8 = 0;
pub const SOURCE_NATIVE: u8 = 1;
pub const SOURCE_MEMORY: u8 = 2;
pub const SOURCE_DISK: u8 = 3;
pub const SOURCE_UPSTREAM: u8 = 4;
pub const SOURCE_COALESCED: u8 = 5;

const ENTRY_LEN: usize = 32 + 8 + 8 + 4 + 8 + 1 + 1;

/// The other end speaks something else, or said too much.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is over the limit")]
    TooLong(usize),
    #[error("frame type {0} is unknown or malformed")]
    Malformed(u8),
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

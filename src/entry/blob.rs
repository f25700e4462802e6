//! Blobs and the answers to lookups: what was found, where, or why not.

use std::sync::Arc;

use crate::entry::{Body, Class, Digest};
use crate::units::Timestamp;

/// Longest that building one entry is believed to have taken, in milliseconds: a machine may have slept
/// meanwhile, and whoever writes an entry may say anything.
pub const COST_MAX_MS: u32 = 600_000;

/// What is known about an entry besides its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub size: u64,
    /// SHA-256 of the bytes; for a Go action, of the output that it names.
    pub digest: Digest,
    pub stored: Timestamp,
    pub class: Class,
    /// What it took to build, in milliseconds; zero if nobody measured.
    pub cost_ms: u32,
    /// Fingerprint of the C toolchain that it was built with; zero if that does not matter.
    pub c_env: u64,
    /// Who wrote it, empty if unknown.
    pub writer: Arc<str>,
    /// The few headers that a client wants back.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
}

impl Meta {
    pub fn new(digest: Digest, size: u64, stored: Timestamp, class: Class) -> Self {
        Self {
            size,
            digest,
            stored,
            class,
            cost_ms: 0,
            c_env: 0,
            writer: "".into(),
            headers: Vec::new(),
        }
    }
}

/// An entry's bytes with what is known about them.
#[derive(Debug)]
pub struct Blob {
    pub meta: Meta,
    pub body: Body,
}

/// Where a hit came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Memory,
    Disk,
    /// A warm native GOCACHE on this machine.
    Native,
    Upstream,
    /// Somebody else's fetch, joined while it ran.
    Coalesced,
}

/// Why there is no answer. Only `Absent` may be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Everybody who could have it says that it does not exist.
    Absent,
    /// Something is broken: upstream, the disk, an entry.
    Fault,
    /// Whoever was asked took too long.
    Deadline,
    /// Upstream is known to be in trouble and was not asked.
    Breaker,
    /// Nobody upstream was asked, because there is no upstream for this entry.
    Local,
    /// A decision: the entry does not fit this machine, or asking does not pay.
    Policy,
}

impl Why {
    pub const ALL: [Self; 6] =
        [Self::Absent, Self::Fault, Self::Deadline, Self::Breaker, Self::Local, Self::Policy];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Fault => "fault",
            Self::Deadline => "deadline",
            Self::Breaker => "breaker",
            Self::Local => "local",
            Self::Policy => "policy",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|why| why.name() == name)
    }
}

/// The answer to a GET. A lookup does not fail: it hits, or says why it misses.
#[derive(Debug)]
pub enum Lookup {
    Hit(Blob, Found),
    Miss(Why),
}

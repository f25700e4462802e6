//! The cache.

use crate::units::ByteSize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Limit of the memory tier. None: a sixteenth of the cgroup's or the machine's memory,
    /// within 64 MiB and 1 GiB.
    pub memory: Option<ByteSize>,
    /// Default namespace: part of the realm of every client that names none.
    pub namespace: String,
    /// The namespace that is read besides the own one.
    pub trust: Option<String>,
    /// Nothing goes upstream.
    pub read_only: bool,
    /// What predicts; empty: repository and job.
    pub scope: String,
    /// Upstream of each frontend that does not use the first one, by the frontend's name.
    pub frontends: Vec<(String, String)>,
    pub classes: Vec<ClassRule>,
}

/// What may be done with the entries of one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassRule {
    pub class: String,
    pub share: Share,
    pub upstream: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    Upstream,
    Local,
    Off,
}

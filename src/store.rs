//! Tier 2, on disk.

use std::path::PathBuf;

use crate::units::{ByteSize, Percent};

/// A limit as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Size(ByteSize),
    Share(Percent),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub dir: PathBuf,
    /// None: half of what is free, at most 50 GiB. A share is of the file system.
    pub disk: Option<Limit>,
    /// Free space that is never used. None: 1 GiB or 5 %, whichever is less.
    pub floor: Option<Limit>,
}

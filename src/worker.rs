//! What runs without a request.

use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// An auto-started daemon ends after this long without a client.
    pub idle_exit: Duration,
}

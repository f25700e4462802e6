//! Health, metrics and status, on a listener and a runtime of their own.

use std::net::SocketAddr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// None: switched off.
    pub listen: Option<SocketAddr>,
}

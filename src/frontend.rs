//! What clients speak to.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::units::Secret;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Clone, Debug)]
pub struct Config {
    /// Data listeners named in the settings; the clients' socket is one more.
    pub listen: Vec<Listen>,
    /// Whether `listen` was written by someone; the default may give way if its port is taken.
    pub listen_is_default: bool,
    pub socket: PathBuf,
    pub tokens: Vec<Token>,
    /// Serve beyond loopback without tokens.
    pub insecure: bool,
    /// PEM files of certificate chain and key, for TCP listeners.
    pub tls: Option<(PathBuf, PathBuf)>,
    pub allow_host: Vec<String>,
    /// Users besides our own who may use the socket.
    pub allow_uid: Vec<u32>,
}

/// Who may come in, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub name: String,
    pub secret: Secret,
    /// None: the namespace that the request names.
    pub namespace: Option<String>,
    pub trust: Option<String>,
    pub write: bool,
}

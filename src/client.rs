//! The client's side of the daemon's socket: connecting, asking, and starting a daemon.
//!
//! Blocking, without a runtime: the Go helper and the control commands are short processes. What is
//! said after the handshake belongs to the callers; what the frames look like, to `wire`.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::wire::go::{Frame, Hello, PREFACE, PROTOCOL, Welcome};

mod start;

pub use start::{StartDaemon, StartError, start_daemon};

/// Where a daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host) => f.write_str(host),
        }
    }
}

/// A connection in either direction; clones share it.
#[derive(Debug)]
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
        }
    }

    /// Bounds each single read and write; None waits for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
        }
    }

    /// Ends both directions; whoever reads or writes a clone of it returns.
    pub fn shut_down(&self) {
        // Fails only where the other end has done the same.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buf),
            Self::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buf),
            Self::Tcp(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection that the daemon has accepted.
#[derive(Debug)]
pub struct Connection {
    pub reader: Stream,
    pub writer: Stream,
    pub welcome: Welcome,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no daemon at {0}")]
    Nobody(Address),
    #[error("the daemon at {address} refuses: {reason}")]
    Refused { address: Address, reason: String },
    #[error(
        "the daemon at {address} is larder {version} with protocol {protocol}, this is protocol {PROTOCOL}; restart it with `larder stop`"
    )]
    OtherVersion { address: Address, version: String, protocol: u32 },
    #[error("the daemon at {0} does not answer")]
    Timeout(Address),
    #[error("{address}: {source}")]
    Io { address: Address, source: io::Error },
}

impl ConnectError {
    fn of(address: &Address, source: io::Error) -> Self {
        let address = address.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::Nobody(address),
            // A receive timeout reads as "would block".
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Timeout(address),
            _ => Self::Io { address, source },
        }
    }
}

/// Connects and introduces itself. `timeout` bounds each step; the streams have none afterwards.
pub fn connect(
    address: &Address,
    hello: &Hello,
    timeout: Duration,
) -> Result<Connection, ConnectError> {
    let fault = |error| ConnectError::of(address, error);
    let mut stream = open(address, timeout).map_err(fault)?;
    let mut opening = PREFACE.to_vec();
    Frame::Hello(hello.clone()).encode(&mut opening);
    stream.write_all(&opening).map_err(fault)?;
    let welcome = match Frame::read(&mut stream).map_err(fault)? {
        Some(Frame::Welcome(welcome)) if welcome.protocol == PROTOCOL => welcome,
        Some(Frame::Welcome(Welcome { protocol, version, .. })) => {
            return Err(ConnectError::OtherVersion { address: address.clone(), version, protocol });
        }
        Some(Frame::Refused(refused)) if refused.protocol == PROTOCOL => {
            let reason = refused.reason;
            return Err(ConnectError::Refused { address: address.clone(), reason });
        }
        Some(Frame::Refused(refused)) => {
            let (version, protocol) = (refused.version, refused.protocol);
            return Err(ConnectError::OtherVersion { address: address.clone(), version, protocol });
        }
        Some(_) => return Err(fault(io::ErrorKind::InvalidData.into())),
        None => return Err(fault(io::ErrorKind::UnexpectedEof.into())),
    };
    stream.set_timeout(None).map_err(fault)?;
    let writer = stream.try_clone().map_err(fault)?;
    Ok(Connection { reader: stream, writer, welcome })
}

fn open(address: &Address, timeout: Duration) -> io::Result<Stream> {
    let stream = match address {
        Address::Unix(path) => Stream::Unix(open_unix(path, timeout)?),
        Address::Tcp(host) => Stream::Tcp(open_tcp(host, timeout)?),
    };
    stream.set_timeout(Some(timeout))?;
    Ok(stream)
}

/// Connecting to a socket whose daemon is stopped blocks once its queue is full, so the timeout is
/// set before.
fn open_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(Some(timeout))?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(path)?)?;
    Ok(stream)
}

fn open_tcp(host: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in host.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Why a control question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the daemon at {address} went away or said something strange: {what}")]
    Broken { address: Address, what: String },
}

/// Asks the daemon a question in JSON; `progress` sees what it says on the way to its answer.
/// `patience` bounds the wait for each thing it says.
pub fn control(
    address: &Address,
    token: Option<&str>,
    request: &Value,
    patience: Duration,
    progress: &mut dyn FnMut(&Value),
) -> Result<Value, ControlError> {
    let hello = Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        role: "control".to_owned(),
        pid: std::process::id(),
        token: token.map(str::to_owned),
        ..Hello::default()
    };
    let broken = |what: String| ControlError::Broken { address: address.clone(), what };
    let mut connection = connect(address, &hello, patience.min(Duration::from_secs(5)))?;
    connection.reader.set_timeout(Some(patience)).map_err(|e| broken(e.to_string()))?;
    let question = Frame::Control(request.to_string());
    question.write(&mut connection.writer).map_err(|e| broken(e.to_string()))?;
    loop {
        let text = match Frame::read(&mut connection.reader) {
            Ok(Some(Frame::ControlReply(text))) => text,
            Ok(Some(_)) => return Err(broken("not an answer".into())),
            Ok(None) => return Err(broken("closed without an answer".into())),
            Err(error) => return Err(ConnectError::of(address, error).into()),
        };
        let reply: Value = serde_json::from_str(&text).map_err(|e| broken(e.to_string()))?;
        if reply.get("done").and_then(Value::as_bool) == Some(true) {
            return Ok(reply);
        }
        progress(&reply);
    }
}

#[cfg(test)]
mod tests;

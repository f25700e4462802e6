//! Sockets that whoever starts us has bound already, as systemd passes them: the descriptors from 3 on,
//! announced in LISTEN_FDS to the process that LISTEN_PID names.
//!
//! What the variables say is the configuration's to read; here they are taken for sockets. None of them
//! is ours to remove: the name of a passed socket stays when the daemon ends, for the next one. Binding
//! what was not passed is `bind`'s.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;

use crate::frontend::Config;
use crate::frontend::listener::bind::BindError;

/// More are a mistake.
pub const PASSED_MAX: usize = 16;
/// The first of them, by agreement.
const FIRST: usize = 3;

/// A socket that listens.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(SocketAddr, std::net::TcpListener),
    Unix(PathBuf, std::os::unix::net::UnixListener),
}

/// Sockets that were passed and that nobody has claimed yet.
#[derive(Debug, Default)]
pub struct Passed(Vec<Socket>);

impl Passed {
    /// Takes the sockets with these names, which are for people. From now on no child inherits them, nor
    /// the variables that announce them: so this comes before any thread that may read the environment.
    pub fn take(names: &[String]) -> Result<Self, BindError> {
        if names.is_empty() {
            return Ok(Self::default());
        }
        // Looks at the variables once more; that they are meant for us was seen before.
        let mut descriptors = ListenFd::from_env();
        let one = |(at, name): (usize, &String)| {
            let wrong = |why: &dyn std::fmt::Display| BindError::Passed {
                descriptor: FIRST + at,
                name: name.clone(),
                why: why.to_string(),
            };
            let socket = socket(&mut descriptors, at).map_err(|error| wrong(&error))?;
            let is_listening = match &socket {
                Socket::Tcp(_, listener) => rustix::net::sockopt::socket_acceptconn(listener),
                Socket::Unix(_, listener) => rustix::net::sockopt::socket_acceptconn(listener),
            };
            match is_listening {
                Ok(true) => Ok(socket),
                Ok(false) => Err(wrong(&"it is a connection; write Accept=no")),
                Err(error) => Err(wrong(&io::Error::from(error))),
            }
        };
        names.iter().enumerate().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// Whoever opens a port to others says who may come in, also where somebody else has opened it.
    pub(super) fn check_exposure(&self, config: &Config) -> Result<(), BindError> {
        if config.insecure || !config.tokens.is_empty() {
            return Ok(());
        }
        let is_open = |at: &SocketAddr| !at.ip().to_canonical().is_loopback();
        let mut addresses = self.0.iter().filter_map(|socket| match socket {
            Socket::Tcp(at, _) => Some(*at),
            Socket::Unix(..) => None,
        });
        addresses.find(is_open).map_or(Ok(()), |at| Err(BindError::Open { at }))
    }

    /// The one that serves this path, if there is one.
    pub(super) fn unix(&mut self, path: &Path) -> Option<std::os::unix::net::UnixListener> {
        let is_it = |socket: &Socket| matches!(socket, Socket::Unix(at, _) if at == path);
        let at = self.0.iter().position(is_it)?;
        match self.0.swap_remove(at) {
            Socket::Unix(_, listener) => Some(listener),
            Socket::Tcp(..) => None,
        }
    }

    /// The one that serves this address, if there is one.
    pub(super) fn tcp(&mut self, wanted: SocketAddr) -> Option<std::net::TcpListener> {
        let is_it = |socket: &Socket| matches!(socket, Socket::Tcp(at, _) if covers(*at, wanted));
        let at = self.0.iter().position(is_it)?;
        match self.0.swap_remove(at) {
            Socket::Tcp(_, listener) => Some(listener),
            Socket::Unix(..) => None,
        }
    }

    /// Those that no setting names.
    pub(super) fn rest(self) -> Vec<Socket> {
        self.0
    }
}

fn socket(descriptors: &mut ListenFd, at: usize) -> io::Result<Socket> {
    if let Ok(Some(listener)) = descriptors.take_unix_listener(at) {
        let address = listener.local_addr()?;
        let path = address.as_pathname().map(Path::to_owned);
        let path = path.ok_or_else(|| io::Error::other("it has no path"))?;
        listener.set_nonblocking(true)?;
        return Ok(Socket::Unix(path, listener));
    }
    let listener = descriptors.take_tcp_listener(at)?;
    let listener = listener.ok_or_else(|| io::Error::other("it is not there"))?;
    listener.set_nonblocking(true)?;
    Ok(Socket::Tcp(listener.local_addr()?, listener))
}

/// Whether who listens at `passed` is reached at `wanted`.
fn covers(passed: SocketAddr, wanted: SocketAddr) -> bool {
    let (has, wants) = (passed.ip().to_canonical(), wanted.ip().to_canonical());
    let takes_all = match has {
        IpAddr::V4(ip) => ip.is_unspecified() && wants.is_ipv4(),
        // As Linux has it, unless it is told otherwise: both families.
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    passed.port() == wanted.port() && (has == wants || takes_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(insecure: bool) -> Config {
        Config {
            listen: Vec::new(),
            listen_is_default: false,
            socket: PathBuf::new(),
            passed: Vec::new(),
            tokens: Vec::new(),
            insecure,
            tls: None,
            allow_host: Vec::new(),
            allow_uid: Vec::new(),
        }
    }

    #[test]
    fn a_passed_port_that_others_reach_needs_tokens_as_any_other() {
        let listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let passed = |at: &str| Passed(vec![Socket::Tcp(at.parse().unwrap(), listener())]);
        for at in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(passed(at).check_exposure(&config(false)).is_ok(), "{at}");
        }
        for at in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
            let told = passed(at).check_exposure(&config(false)).unwrap_err().to_string();
            assert!(told.contains("--tokens"), "{told}");
            assert!(passed(at).check_exposure(&config(true)).is_ok(), "{at}");
        }
    }

    #[test]
    fn a_socket_for_all_addresses_serves_each_of_them() {
        let cases = [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("127.0.0.1:1", "0.0.0.0:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("[::]:1", "0.0.0.0:1", true),
            ("[::]:1", "[::1]:1", true),
            ("[::]:1", "[::1]:2", false),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", true),
        ];
        for (passed, wanted, is_served) in cases {
            let at = |text: &str| text.parse().unwrap();
            assert_eq!(covers(at(passed), at(wanted)), is_served, "{passed} for {wanted}");
        }
    }
}

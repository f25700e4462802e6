//! A blocking HTTP/1.1 client of one connection, over TCP or the socket, for clients that must know what
//! they were told: statuses, whole bodies, and whether the connection was kept.
//!
//! What programs that larder is compared with speak is `plain_http`'s, whose failures are silence.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Longer than any deadline of larder.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a server is.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

pub(crate) trait Wire: Read + Write {}
impl Wire for TcpStream {}
impl Wire for UnixStream {}

impl Way {
    pub(crate) fn connect(&self) -> io::Result<Box<dyn Wire>> {
        match self {
            Self::Tcp(addr) => {
                let stream = TcpStream::connect_timeout(addr, PATIENCE)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream))
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// What a server has said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    keep: bool,
}

/// A client. Connects when it has something to ask.
pub(crate) struct Talk {
    way: Way,
    connection: Option<BufReader<Box<dyn Wire>>>,
    /// Connections that were made so far.
    pub(crate) connections: u64,
}

impl Talk {
    pub(crate) fn new(way: Way) -> Self {
        Self { way, connection: None, connections: 0 }
    }

    /// One question; a second time on a fresh connection if the kept one was closed meanwhile.
    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        if let Some(connection) = self.connection.take()
            && let Ok(answer) = self.ask_on(connection, method, path, body)
        {
            return Ok(answer);
        }
        self.connections += 1;
        let connection = BufReader::with_capacity(64 << 10, self.way.connect()?);
        self.ask_on(connection, method, path, body)
    }

    fn ask_on(
        &mut self,
        mut connection: BufReader<Box<dyn Wire>>,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> io::Result<Answer> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        connection.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        let answer = read(&mut connection)?;
        if answer.keep {
            self.connection = Some(connection);
        }
        Ok(answer)
    }
}

fn read(from: &mut impl BufRead) -> io::Result<Answer> {
    let first = line(from)?;
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(strange)?;
    let (mut length, mut keep) = (0, true);
    loop {
        let header = line(from)?;
        let Some((name, value)) = header.split_once(':') else { break };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().map_err(|_| strange())?;
        } else if name.eq_ignore_ascii_case("connection") {
            keep = !value.eq_ignore_ascii_case("close");
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Answer { status, body, keep })
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    if line.pop() == Some('\n') { Ok(line.trim_end().to_owned()) } else { Err(strange()) }
}

fn strange() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

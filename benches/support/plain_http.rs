//! A blocking HTTP/1.1 client with one connection that stays open, for programs that larder is
//! compared with.
//!
//! Bodies have a Content-Length, in both directions; whatever else a server says is a failure, and
//! a failure is silence: the callers have misses, not errors.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

pub(crate) struct Client {
    server: String,
    connection: Option<BufReader<TcpStream>>,
}

struct Answer {
    status: u16,
    body: Vec<u8>,
    keep: bool,
}

impl Client {
    pub(crate) fn new(server: &str) -> Self {
        Self { server: server.to_owned(), connection: None }
    }

    pub(crate) fn get(&mut self, path: &str) -> Option<Vec<u8>> {
        self.request("GET", path, &[]).filter(|answer| answer.status == 200).map(|a| a.body)
    }

    pub(crate) fn put(&mut self, path: &str, body: &[u8]) {
        self.request("PUT", path, body);
    }

    /// One question; a second time on a fresh connection if the server had closed the old one.
    fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Option<Answer> {
        if let Some(connection) = self.connection.take()
            && let Ok(answer) = self.ask(connection, method, path, body)
        {
            return Some(answer);
        }
        let stream = TcpStream::connect(&self.server).ok()?;
        stream.set_nodelay(true).ok()?;
        self.ask(BufReader::with_capacity(1 << 16, stream), method, path, body).ok()
    }

    fn ask(
        &mut self,
        mut connection: BufReader<TcpStream>,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> io::Result<Answer> {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n\r\n",
            self.server
        );
        let stream = connection.get_mut();
        // In one write where it is small, as any client would.
        if length <= 1 << 16 {
            stream.write_all(&[head.as_bytes(), body].concat())?;
        } else {
            stream.write_all(head.as_bytes())?;
            stream.write_all(body)?;
        }
        let answer = read(&mut connection)?;
        if answer.keep {
            self.connection = Some(connection);
        }
        Ok(answer)
    }
}

fn read(from: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    let first = line(from)?;
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(strange)?;
    let (mut length, mut keep) = (None, true);
    loop {
        let header = line(from)?;
        let Some((name, value)) = header.split_once(':') else { break };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            keep = !value.eq_ignore_ascii_case("close");
        }
    }
    let length = if status == 204 { Some(0) } else { length };
    let mut body = vec![0; length.ok_or_else(strange)?];
    from.read_exact(&mut body)?;
    Ok(Answer { status, body, keep })
}

fn line(from: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    if line.pop() == Some('\n') { Ok(line.trim_end().to_owned()) } else { Err(strange()) }
}

fn strange() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

//! As much of HTTP/1.1 as tests need: a blocking client for one request on one connection, and
//! reading requests for a server.
//!
//! Written by hand so that a fault in the libraries that larder uses cannot hide itself.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }
}

/// A request, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The range of `length` bytes that is asked for, if it is one that can be given.
    pub(crate) fn range(&self, length: usize) -> Option<(usize, usize)> {
        let (from, to) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let last = length.checked_sub(1)?;
        let (first, last) = match (from.parse::<usize>(), to.parse::<usize>()) {
            (Ok(from), Ok(to)) => (from, to.min(last)),
            (Ok(from), Err(_)) => (from, last),
            (Err(_), Ok(tail)) => (length.saturating_sub(tail), last),
            (Err(_), Err(_)) => return None,
        };
        (first <= last).then_some((first, last + 1))
    }

    fn wants_continue(&self) -> bool {
        self.header("expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue"))
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"))
    }
}

/// Sends one request on a connection of its own and reads the answer; a body that ends early is an
/// error.
pub(crate) fn send(to: SocketAddr, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
    send_with(to, method, path, &[], body)
}

pub(crate) fn send_with(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    read_answer(&mut BufReader::new(stream), method)
}

fn read_answer(from: &mut impl BufRead, method: &str) -> io::Result<Answer> {
    let first = read_line(from)?;
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| malformed("status line"))?;
    let headers = read_headers(from)?;
    let mut body = Vec::new();
    if method != "HEAD" && status != 204 && status != 304 {
        match find(&headers, "content-length") {
            Some(length) => body = read_exactly(from, length)?,
            None => {
                from.read_to_end(&mut body)?;
            }
        }
    }
    Ok(Answer { status, headers, body })
}

/// The next request of a connection; None at its end.
pub(crate) fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    if stream.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let first = read_line(stream)?;
    let mut words = first.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Err(malformed("request line"));
    };
    let headers = read_headers(stream)?;
    let mut request =
        Request { method: method.to_owned(), path: path.to_owned(), headers, body: Vec::new() };
    if request.wants_continue() {
        stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if request.is_chunked() {
        request.body = read_chunks(stream)?;
    } else if let Some(length) = request.header("content-length") {
        request.body = read_exactly(stream, length)?;
    }
    Ok(Some(request))
}

fn read_headers(from: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let line = read_line(from)?;
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| malformed("header"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn read_chunks(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(from)?;
        let size = line.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(|_| malformed("chunk size"))?;
        if size == 0 {
            read_headers(from)?;
            return Ok(body);
        }
        body.extend(read_exactly(from, &size.to_string())?);
        read_line(from)?;
    }
}

fn read_exactly(from: &mut impl BufRead, length: &str) -> io::Result<Vec<u8>> {
    let length: usize = length.parse().map_err(|_| malformed("length"))?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed {what}"))
}

//! The helper's side of Go's cache protocol, as little of it as `cmd/go` uses, for programs that
//! larder is compared with.
//!
//! Standard library only, and trusting: it takes what `cmd/go` is known to write and nothing else.
//! larder's own side, which trusts nobody, shares no line with it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::AsFd;

/// What is announced before anything is loaded: `go` waits for it.
const ANNOUNCEMENT: &[u8] = b"{\"ID\":0,\"KnownCommands\":[\"get\",\"put\",\"close\"]}\n";
/// Longer than nearly every body, so that one read takes all that the pipe holds.
const BUFFER: usize = 1 << 20;

/// What `go` asks. Numbers and identifiers stay as they were written: they are only given back.
#[derive(Debug)]
pub(crate) enum Request {
    Get { id: String, action: String },
    Put { id: String, action: String, output: String, size: u64 },
    Close { id: String },
}

/// What `go` writes.
pub(crate) struct Input<R: Read> {
    from: BufReader<R>,
    line: Vec<u8>,
}

impl<R: Read> Input<R> {
    pub(crate) fn new(from: R) -> Self {
        Self { from: BufReader::with_capacity(BUFFER, from), line: Vec::new() }
    }

    /// Whether the next read asks the kernel, and may have to wait for `go`.
    pub(crate) fn is_drained(&self) -> bool {
        self.from.buffer().iter().all(|byte| *byte == b'\n')
    }

    /// The next request; None when `go` has closed the pipe.
    pub(crate) fn request(&mut self) -> io::Result<Option<Request>> {
        if !self.next_line()? {
            return Ok(None);
        }
        let line = str::from_utf8(&self.line).map_err(|_| malformed(&self.line))?;
        parse(line).map(Some).ok_or_else(|| malformed(&self.line))
    }

    /// The body after a put, into `body`.
    pub(crate) fn body(&mut self, size: u64, body: &mut Vec<u8>) -> io::Result<()> {
        body.clear();
        if size == 0 {
            return Ok(());
        }
        self.next_line()?;
        let text = self.line.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
        let decoded = text.and_then(|text| decode(text, body));
        decoded.filter(|()| body.len() as u64 == size).ok_or_else(|| malformed(b"a body"))
    }

    /// The next line that holds something, without its end.
    fn next_line(&mut self) -> io::Result<bool> {
        loop {
            self.line.clear();
            if self.from.read_until(b'\n', &mut self.line)? == 0 {
                return Ok(false);
            }
            if self.line.pop_if(|last| *last == b'\n').is_some() && !self.line.is_empty() {
                return Ok(true);
            }
        }
    }
}

/// What `go` reads.
pub(crate) struct Output(BufWriter<File>);

impl Output {
    /// Takes standard output, past the standard library's flush at each line, and announces.
    pub(crate) fn announce() -> io::Result<Self> {
        let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let mut output = Self(BufWriter::with_capacity(BUFFER, stdout));
        output.0.write_all(ANNOUNCEMENT)?;
        output.flush()?;
        Ok(output)
    }

    /// An answer whose fields after the ID are `fields`, with their closing brace.
    pub(crate) fn answer(&mut self, id: &str, fields: &str) -> io::Result<()> {
        for part in ["{\"ID\":", id, fields, "\n"] {
            self.0.write_all(part.as_bytes())?;
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

pub(crate) const MISS: &str = ",\"Miss\":true}";
pub(crate) const DONE: &str = "}";

fn parse(line: &str) -> Option<Request> {
    let id = number(line, "\"ID\":")?.to_owned();
    Some(match text(line, "\"Command\":\"")? {
        "get" => Request::Get { id, action: text(line, "\"ActionID\":\"")?.to_owned() },
        "put" => Request::Put {
            id,
            action: text(line, "\"ActionID\":\"")?.to_owned(),
            output: text(line, "\"OutputID\":\"")?.to_owned(),
            size: match number(line, "\"BodySize\":") {
                Some(size) => size.parse().ok()?,
                None => 0,
            },
        },
        "close" => Request::Close { id },
        _ => return None,
    })
}

/// The string after `label`. What stands in these lines never needs an escape.
fn text<'a>(line: &'a str, label: &str) -> Option<&'a str> {
    line.split_once(label)?.1.split_once('"').map(|(text, _)| text)
}

fn number<'a>(line: &'a str, label: &str) -> Option<&'a str> {
    let rest = line.split_once(label)?.1;
    rest.split_once([',', '}']).map(|(number, _)| number)
}

/// Base64 with padding, appended to `out`.
pub(crate) fn decode(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (quads, []) = text.as_chunks::<4>() else { return None };
    out.reserve(quads.len() * 3);
    for quad in quads {
        let mut bits = 0;
        let mut invalid = 0;
        for byte in quad {
            let value = VALUES[usize::from(*byte)];
            invalid |= value;
            bits = bits << 6 | u32::from(value & 63);
        }
        if invalid == INVALID {
            return None;
        }
        out.extend_from_slice(&bits.to_be_bytes()[1..]);
    }
    let padding = text.iter().rev().take(2).filter(|byte| **byte == b'=').count();
    out.truncate(out.len() - padding);
    Some(())
}

/// More than six bits, so no digits together make it.
const INVALID: u8 = 255;

const VALUES: [u8; 256] = {
    let mut values = [INVALID; 256];
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut i = 0_u8;
    while i < 64 {
        values[digits[i as usize] as usize] = i;
        i += 1;
    }
    values[b'=' as usize] = 0;
    values
};

/// An identifier in hexadecimal, as it stands in file names and URLs.
pub(crate) fn hex(identifier: &str) -> String {
    let mut bytes = Vec::with_capacity(32);
    let known = decode(identifier.as_bytes(), &mut bytes);
    known.expect("go writes identifiers in base64");
    bytes.iter().fold(String::with_capacity(64), |mut hex, byte| {
        for nibble in [byte >> 4, byte & 15] {
            hex.push(char::from_digit(u32::from(nibble), 16).expect("a nibble is a digit"));
        }
        hex
    })
}

fn malformed(line: &[u8]) -> io::Error {
    let line = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
    io::Error::new(io::ErrorKind::InvalidData, format!("go wrote what it never does: {line}"))
}

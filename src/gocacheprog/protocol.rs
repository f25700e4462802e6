//! What go writes: JSON objects between any whitespace, and after a put its body, one JSON string of
//! base64 that may be hundreds of megabytes long.
//!
//! Read through one buffer; an object must fit into it, a body is decoded in pieces and never held.
//! `json` reads the objects; what requests mean is decided elsewhere.

use std::io::{self, Read};

use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, DecodeSliceError, Engine as _};

use crate::gocacheprog::json::{self, Step};

/// Large enough that reading costs less than decoding what was read.
const BUFFER: usize = 256 << 10;
/// Longest object; go's are under 300 bytes.
const OBJECT_MAX: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) id: i64,
    pub(super) command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Get {
        action: [u8; 32],
    },
    Put {
        action: [u8; 32],
        output: [u8; 32],
        size: u64,
    },
    Close,
    /// Cannot be carried out; a body of `size` bytes follows all the same.
    Unknown {
        what: String,
        size: u64,
    },
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error("go: reading requests: {0}")]
    Io(#[from] io::Error),
    #[error("go: what was read is not a request: {0:?}")]
    Malformed(String),
}

/// Why a body is not what was announced. The input is past its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyFault {
    #[error("the body is not base64")]
    Base64,
    #[error("the body is not as long as announced")]
    Length,
}

impl BodyFault {
    /// A quote where a digit should be is the end of a body that is too short.
    const fn of(error: &DecodeSliceError) -> Self {
        match error {
            DecodeSliceError::DecodeError(DecodeError::InvalidByte(_, b'"')) => Self::Length,
            _ => Self::Base64,
        }
    }
}

/// Requests read from go.
pub(super) struct Requests<R> {
    input: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Where pieces of a body are decoded to.
    piece: Vec<u8>,
}

impl<R: Read> Requests<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, buffer: vec![0; BUFFER], start: 0, end: 0, piece: vec![0; BUFFER / 4 * 3] }
    }

    /// The next request; None at the end of the input, also in the midst of a request: go died.
    pub(super) fn next(&mut self) -> Result<Option<Request>, ProtocolError> {
        let Some(first) = self.skip_space()? else { return Ok(None) };
        if first != b'{' {
            return Err(self.malformed());
        }
        let mut scan = json::ObjectEnd::default();
        let len = loop {
            if let Some(len) = scan.find(&self.buffer[self.start..self.end]) {
                break len;
            }
            if self.end - self.start > OBJECT_MAX {
                return Err(self.malformed());
            }
            if self.fill()? == 0 {
                return Ok(None);
            }
        };
        let request = parse(&self.buffer[self.start..self.start + len]);
        let request = request.ok_or_else(|| self.malformed())?;
        self.start += len;
        Ok(Some(request))
    }

    /// Reads the body that follows a put, piece by piece, to its end whatever is wrong with it.
    pub(super) fn body(
        &mut self,
        size: u64,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<Result<(), BodyFault>, ProtocolError> {
        match self.skip_space()? {
            Some(b'"') => self.start += 1,
            Some(_) => return Err(self.malformed()),
            None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
        // An announced size that no memory holds is found out by the length of what comes.
        let mut left = size.div_ceil(3).saturating_mul(4);
        let mut decoded = 0_u64;
        while left > 0 {
            while self.end - self.start < 4 {
                if self.buffer[self.start..self.end].contains(&b'"') {
                    self.drain_string()?;
                    return Ok(Err(BodyFault::Length));
                }
                self.fill_or_end()?;
            }
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let take = (self.end - self.start).min(most) & !3;
            let text = &self.buffer[self.start..self.start + take];
            let len = match STANDARD.decode_slice(text, &mut self.piece) {
                Ok(len) => len,
                Err(error) => {
                    self.drain_string()?;
                    return Ok(Err(BodyFault::of(&error)));
                }
            };
            sink(&self.piece[..len]);
            decoded += len as u64;
            left -= take as u64;
            self.start += take;
        }
        let extra = self.drain_string()?;
        Ok(if extra > 0 || decoded != size { Err(BodyFault::Length) } else { Ok(()) })
    }

    /// Goes to the end of the string that the input is in; returns how much of it was left.
    fn drain_string(&mut self) -> Result<u64, ProtocolError> {
        let mut drained = 0;
        loop {
            let text = &self.buffer[self.start..self.end];
            match text.iter().position(|b| *b == b'"' || *b == b'\\') {
                Some(at) if text[at] == b'"' => {
                    self.start += at + 1;
                    return Ok(drained + at as u64);
                }
                // Whatever is escaped does not end the string.
                Some(at) => {
                    self.start += at + 1;
                    drained += at as u64 + 2;
                    if self.start == self.end {
                        self.fill_or_end()?;
                    }
                    self.start += 1;
                }
                None => {
                    drained += text.len() as u64;
                    self.start = self.end;
                    self.fill_or_end()?;
                }
            }
        }
    }

    /// The first byte that is not whitespace, not consumed.
    fn skip_space(&mut self) -> io::Result<Option<u8>> {
        loop {
            let text = &self.buffer[self.start..self.end];
            if let Some(at) = text.iter().position(|b| !b.is_ascii_whitespace()) {
                self.start += at;
                return Ok(Some(self.buffer[self.start]));
            }
            self.start = self.end;
            if self.fill()? == 0 {
                return Ok(None);
            }
        }
    }

    fn fill_or_end(&mut self) -> Result<(), ProtocolError> {
        match self.fill()? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => Ok(()),
        }
    }

    /// Reads more behind what is there; zero at the end of the input.
    fn fill(&mut self) -> io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(n) => {
                    self.end += n;
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn malformed(&self) -> ProtocolError {
        let rest = &self.buffer[self.start..self.end];
        ProtocolError::Malformed(String::from_utf8_lossy(&rest[..rest.len().min(80)]).into_owned())
    }
}

/// Reads one object; None if it is not JSON or a field that we need is not of its type.
fn parse(object: &[u8]) -> Option<Request> {
    let (mut id, mut size) = (0_i64, 0_i64);
    let (mut command, mut action, mut output) = (String::new(), None, None);
    let mut fields = json::Fields::new(object);
    while let Step::Field(name, value) = fields.step()? {
        if name.eq_ignore_ascii_case(b"ID") {
            id = value.integer()?;
        } else if name.eq_ignore_ascii_case(b"Command") {
            command = String::from_utf8(value.text()?.into_owned()).ok()?;
        } else if name.eq_ignore_ascii_case(b"ActionID") {
            action = id32(&value.text()?);
        } else if name.eq_ignore_ascii_case(b"OutputID") || name.eq_ignore_ascii_case(b"ObjectID") {
            // A go of the days of transition sends both; an empty one says nothing.
            output = id32(&value.text()?).or(output);
        } else if name.eq_ignore_ascii_case(b"BodySize") {
            size = value.integer()?;
        }
    }
    let size = u64::try_from(size).ok()?;
    let command = match (command.as_str(), action, output) {
        ("get", Some(action), _) => Command::Get { action },
        ("put", Some(action), Some(output)) => Command::Put { action, output, size },
        ("close", _, _) => Command::Close,
        ("get" | "put", _, _) => Command::Unknown { what: "an ID is not 32 bytes".into(), size },
        _ => Command::Unknown { what: format!("unknown command {command:?}"), size },
    };
    Some(Request { id, command })
}

fn id32(text: &[u8]) -> Option<[u8; 32]> {
    let mut out = [0; 33];
    let len = STANDARD.decode_slice(text, &mut out).ok()?;
    if len == 32 { out.first_chunk().copied() } else { None }
}

/// Reads what go might write, to its end.
#[cfg(fuzzing)]
pub fn fuzz(input: &[u8]) {
    let mut requests = Requests::new(input);
    while let Ok(Some(request)) = requests.next() {
        let mut len = 0;
        let mut sink = |piece: &[u8]| len += piece.len() as u64;
        let Command::Put { size, .. } = request.command else { continue };
        match requests.body(size, &mut sink) {
            Ok(Ok(())) => assert_eq!(len, size),
            Ok(Err(_)) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests;

//! An answer of the server, right or spoiled by a fault, and writing it at the pace that it has.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{Fault, Request, Shared};

/// An answer on its way out. What is announced and what is sent may differ: that is a fault.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    extra: String,
    announced: usize,
    pub(super) body: Vec<u8>,
    /// Pause before each byte.
    pace: Option<Duration>,
    /// The connection ends after so many bytes of head and body.
    pub(super) cut: Option<usize>,
}

impl Answer {
    pub(super) fn status(status: u16) -> Self {
        let none = Vec::new();
        Self { status, extra: String::new(), announced: 0, body: none, pace: None, cut: None }
    }

    pub(super) fn with(request: &Request, body: &[u8]) -> Self {
        let mut answer = Self::status(200);
        answer.body = body.to_vec();
        if request.header("range").is_some() {
            let Some((from, to)) = request.range(body.len()) else {
                return Self::status(416);
            };
            answer.status = 206;
            let last = to - 1;
            answer.extra = format!("Content-Range: bytes {from}-{last}/{}\r\n", body.len());
            answer.body = body[from..to].to_vec();
        }
        answer.announced = answer.body.len();
        if request.method == "HEAD" {
            answer.body.clear();
        }
        answer
    }

    /// Spoils the right answer.
    pub(super) fn spoil(mut self, fault: &Fault) -> Self {
        let half = self.body.len() / 2;
        match fault {
            Fault::Refuse | Fault::BlackHole | Fault::SlowFirstByte(_) | Fault::Mixed => {}
            Fault::Status(status) => self = Self::status(*status),
            Fault::Redirect(to) => {
                self = Self::status(302);
                self.extra = format!("Location: {to}\r\n");
            }
            Fault::Trickle(pace) => self.pace = Some(*pace),
            Fault::CloseMidBody => self.cut = Some(self.head().len().saturating_sub(1) + half),
            Fault::WrongBytes => {
                if let Some(byte) = self.body.get_mut(half) {
                    *byte ^= 1;
                }
            }
            Fault::Truncated => {
                self.body.truncate(half);
                self.announced = half;
            }
        }
        self
    }

    fn head(&self) -> String {
        let Self { status, extra, announced, .. } = self;
        // A 204 has no length; some clients insist on that.
        let length = match status {
            204 => String::new(),
            _ => format!("Content-Length: {announced}\r\n"),
        };
        format!("HTTP/1.1 {status} -\r\n{extra}{length}\r\n")
    }
}

pub(super) fn write(
    shared: &Shared,
    output: &mut TcpStream,
    method: &str,
    fault: Option<&Fault>,
    answer: &Answer,
) -> io::Result<()> {
    let mut bytes = answer.head().into_bytes();
    let head = if answer.body.is_empty() { 0 } else { bytes.len() };
    bytes.extend_from_slice(&answer.body);
    bytes.truncate(answer.cut.unwrap_or(bytes.len()));
    let (Some(pace), Some(fault)) = (answer.pace, fault) else {
        return output.write_all(&bytes);
    };
    output.write_all(&bytes[..head])?;
    for byte in &bytes[head..] {
        if !shared.hold(method, fault, pace) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        output.write_all(std::slice::from_ref(byte))?;
    }
    Ok(())
}

//! What go reads: one JSON object a line, put together by hand, from whichever thread has an answer.
//!
//! Answers gather in a buffer. The thread that reads requests flushes when it is about to block, so
//! a burst of gets costs one write; every other thread flushes what it answers.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::units::Timestamp;

/// The first thing that go must read, or it complains of waiting.
const ANNOUNCEMENT: &[u8] = b"{\"ID\":0,\"KnownCommands\":[\"get\",\"put\",\"close\"]}\n";
/// A buffer beyond this is written at once.
const BUFFER: usize = 32 << 10;

/// Tells go what we can do.
pub fn announce(stdout: &mut dyn Write) -> io::Result<()> {
    stdout.write_all(ANNOUNCEMENT)?;
    stdout.flush()
}

/// The way back to go.
pub(super) struct Answers(Mutex<Out>);

struct Out {
    /// None once it is closed or go is gone.
    to: Option<Box<dyn Write + Send>>,
    buffer: Vec<u8>,
}

impl Answers {
    pub(super) fn new(to: Box<dyn Write + Send>) -> Self {
        Self(Mutex::new(Out { to: Some(to), buffer: Vec::with_capacity(BUFFER) }))
    }

    pub(super) fn hit(&self, id: i64, output: &[u8; 32], size: u64, time: Timestamp, path: &Path) {
        self.append(|out| hit(out, id, output, size, time, path));
    }

    pub(super) fn miss(&self, id: i64) {
        self.append(|out| object(out, id, |out| out.extend_from_slice(b",\"Miss\":true")));
    }

    /// A put is done: the output is at this path.
    pub(super) fn stored(&self, id: i64, path: &Path) {
        self.append(|out| object(out, id, |out| disk_path(out, path)));
    }

    pub(super) fn error(&self, id: i64, what: &str) {
        self.append(|out| {
            object(out, id, |out| {
                out.extend_from_slice(b",\"Err\":");
                string(out, what.as_bytes());
            });
        });
    }

    /// Answers a close. It never carries an error: go would fail a build that has succeeded.
    pub(super) fn done(&self, id: i64) {
        self.append(|out| object(out, id, |_| {}));
    }

    /// Hands over what has gathered.
    pub(super) fn flush(&self) {
        self.locked().flush();
    }

    /// Closes the way back; go goes on when it reads the end.
    pub(super) fn close(&self) {
        let mut out = self.locked();
        out.flush();
        out.to = None;
    }

    /// Whether nobody reads any more.
    pub(super) fn is_closed(&self) -> bool {
        self.locked().to.is_none()
    }

    fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut out = self.locked();
        write(&mut out.buffer);
        if out.buffer.len() > BUFFER {
            out.flush();
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Out> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Out {
    fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        if let Some(to) = &mut self.to
            && to.write_all(&self.buffer).and_then(|()| to.flush()).is_err()
        {
            // go is gone; its other pipe will say so to the thread that reads.
            self.to = None;
        }
        self.buffer.clear();
    }
}

/// Input that flushes answers before it may block.
pub(super) struct Input<R> {
    pub(super) from: R,
    pub(super) answers: Arc<Answers>,
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.answers.flush();
        self.from.read(buf)
    }
}

fn object(out: &mut Vec<u8>, id: i64, fields: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b"{\"ID\":");
    // Writing into memory does not fail.
    let _ = write!(out, "{id}");
    fields(out);
    out.extend_from_slice(b"}\n");
}

fn hit(out: &mut Vec<u8>, id: i64, output: &[u8; 32], size: u64, time: Timestamp, path: &Path) {
    object(out, id, |out| {
        let mut text = [0; 44];
        let len = STANDARD.encode_slice(output, &mut text).expect("32 bytes are 44 digits");
        out.extend_from_slice(b",\"OutputID\":\"");
        out.extend_from_slice(&text[..len]);
        let _ = write!(out, "\",\"Size\":{size},\"Time\":\"");
        rfc3339(out, time);
        out.push(b'"');
        disk_path(out, path);
    });
}

fn disk_path(out: &mut Vec<u8>, path: &Path) {
    out.extend_from_slice(b",\"DiskPath\":");
    string(out, path.as_os_str().as_bytes());
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0..0x20 => {
                let _ = write!(out, "\\u{byte:04x}");
            }
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}

/// Go's RFC3339Nano in UTC: fractions of a second without trailing zeros.
fn rfc3339(out: &mut Vec<u8>, time: Timestamp) {
    let (seconds, nanos) = (time.0 / 1_000_000_000, time.0 % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 1 March of year 0, so that a leap day is the last of its year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + carry;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if nanos > 0 {
        let digits = format!("{nanos:09}");
        let _ = write!(out, ".{}", digits.trim_end_matches('0'));
    }
    out.push(b'Z');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(answer: impl FnOnce(&Answers)) -> String {
        let (mut reader, writer) = io::pipe().unwrap();
        let answers = Answers::new(Box::new(writer));
        answer(&answers);
        answers.close();
        assert!(answers.is_closed());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn answers_are_written_to_the_byte() {
        let text = lines(|answers| {
            let time = Timestamp(1_795_350_843_000_000_001);
            answers.hit(1, &[0xfb; 32], 198, time, Path::new("/s/a \"b\"\\c"));
            answers.miss(-2);
            answers.stored(3, Path::new("/s/x\n"));
            answers.error(4, "no \"room\"");
            answers.done(5);
        });
        let expected = concat!(
            "{\"ID\":1,\"OutputID\":\"+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=\",\"Size\":198,",
            "\"Time\":\"2026-11-22T12:34:03.000000001Z\",\"DiskPath\":\"/s/a \\\"b\\\"\\\\c\"}\n",
            "{\"ID\":-2,\"Miss\":true}\n",
            "{\"ID\":3,\"DiskPath\":\"/s/x\\u000a\"}\n",
            "{\"ID\":4,\"Err\":\"no \\\"room\\\"\"}\n",
            "{\"ID\":5}\n",
        );
        assert_eq!(text, expected);
        for line in text.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }

    #[test]
    fn times_are_written_as_go_writes_them() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399_000_000_000, "2000-02-28T23:59:59Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00Z"),
            (951_868_800_500_000_000, "2000-03-01T00:00:00.5Z"),
            (1_709_164_800_000_000_000, "2024-02-29T00:00:00Z"),
            (1_735_689_599_999_999_999, "2024-12-31T23:59:59.999999999Z"),
            (1_735_689_600_000_120_000, "2025-01-01T00:00:00.00012Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ];
        for (nanos, expected) in cases {
            let mut out = Vec::new();
            rfc3339(&mut out, Timestamp(nanos));
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn go_going_away_is_no_error() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let answers = Answers::new(Box::new(writer));
        answers.miss(1);
        answers.flush();
        assert!(answers.is_closed());
        answers.miss(2);
        answers.flush();
    }
}

//! Just enough JSON to read go's requests without building trees: where an object ends, and its
//! fields one after the other. Knows nothing of requests.

use std::borrow::Cow;

/// Finds the end of an object that arrives in pieces; what was looked at is not looked at again.
#[derive(Debug, Default)]
pub(super) struct ObjectEnd {
    seen: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl ObjectEnd {
    /// Length of the object at the front of `bytes`, which has grown since the last call.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(byte) = bytes.get(self.seen) {
            self.seen += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(self.seen);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// A value as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value<'a>(&'a [u8]);

impl<'a> Value<'a> {
    /// The value as an integer; null is zero, as it is for go.
    pub(super) fn integer(self) -> Option<i64> {
        match self.0 {
            b"null" => Some(0),
            digits => std::str::from_utf8(digits).ok()?.parse().ok(),
        }
    }

    /// The value as a string; null is the empty one, as it is for go.
    pub(super) fn text(self) -> Option<Cow<'a, [u8]>> {
        if self.0 == b"null" {
            return Some(Cow::Borrowed(b""));
        }
        let inner = self.0.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        if !inner.contains(&b'\\') {
            return Some(Cow::Borrowed(inner));
        }
        let text: String = serde_json::from_slice(self.0).ok()?;
        Some(Cow::Owned(text.into_bytes()))
    }
}

/// One step through an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    Field(&'a [u8], Value<'a>),
    End,
}

/// The fields of an object, in order.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    is_first: bool,
}

impl<'a> Fields<'a> {
    /// `object` runs from its opening to its closing brace.
    pub(super) fn new(object: &'a [u8]) -> Self {
        let inner = object.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}"));
        // What has no braces has no fields either, and fails at the first step.
        Self { rest: inner.unwrap_or(b"!"), is_first: true }
    }

    /// The next field; None if what is there is not JSON.
    pub(super) fn step(&mut self) -> Option<Step<'a>> {
        self.skip_space();
        if self.rest.is_empty() {
            return Some(Step::End);
        }
        if !std::mem::take(&mut self.is_first) {
            self.expect(b',')?;
            self.skip_space();
        }
        let name = self.string()?;
        self.skip_space();
        self.expect(b':')?;
        self.skip_space();
        let value = self.value()?;
        Some(Step::Field(&name[1..name.len() - 1], Value(value)))
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        (*first == byte).then_some(())
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    /// A string with its quotes.
    fn string(&mut self) -> Option<&'a [u8]> {
        if self.rest.first() != Some(&b'"') {
            return None;
        }
        let mut at = 1;
        loop {
            match self.rest.get(at)? {
                b'"' => return self.take(at + 1),
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
    }

    fn value(&mut self) -> Option<&'a [u8]> {
        match self.rest.first()? {
            b'"' => self.string(),
            // What is nested belongs to fields that we do not know; its inside is not looked at.
            b'{' | b'[' => {
                let len = ObjectEnd::default().find(self.rest)?;
                self.take(len)
            }
            _ => {
                let ends = |b: &u8| *b == b',' || b.is_ascii_whitespace();
                let len = self.rest.iter().position(ends).unwrap_or(self.rest.len());
                let word = self.take(len)?;
                let is_word = |b: &u8| b.is_ascii_alphanumeric() || b"+-.".contains(b);
                (!word.is_empty() && word.iter().all(is_word)).then_some(word)
            }
        }
    }
}

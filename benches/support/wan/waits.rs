//! Who waits for an answer: questions counted, by whether they ask or bring, and the time that some
//! were open.
//!
//! What begins with `PUT` or `POST` brings something; all else asks. A question ends with the first
//! byte of its answer, which is exact for HTTP/1.1 as long as nobody sends two at once.

use std::time::Duration;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Asks,
    Brings,
}

impl Question {
    /// By the first bytes of it.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let brings = [&b"PUT "[..], b"POST "].iter().any(|method| bytes.starts_with(method));
        if brings { Self::Brings } else { Self::Asks }
    }
}

/// Counts of a network, and how long it has been so.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// So many connections have asked and wait.
    now: u32,
    changed_at: Duration,
    any: Duration,
    sum: Duration,
    pub(super) asked: u64,
    pub(super) brought: u64,
    /// Bytes of what was brought, heads included.
    pub(super) brought_bytes: u64,
}

impl Waits {
    pub(super) fn is_any(&self) -> bool {
        self.now > 0
    }

    /// How long anybody has waited, and the same summed over connections.
    pub(super) fn totals(&self, now: Duration) -> (Duration, Duration) {
        let past = now.saturating_sub(self.changed_at);
        let any = if self.is_any() { past } else { Duration::ZERO };
        (self.any + any, self.sum + past * self.now)
    }

    pub(super) fn begin(&mut self, now: Duration, question: Question) {
        match question {
            Question::Asks => {
                self.asked += 1;
                self.set(now, self.now + 1);
            }
            Question::Brings => self.brought += 1,
        }
    }

    pub(super) fn end(&mut self, now: Duration, question: Question) {
        if question == Question::Asks {
            self.set(now, self.now - 1);
        }
    }

    fn set(&mut self, now: Duration, count: u32) {
        (self.any, self.sum) = self.totals(now);
        self.changed_at = self.changed_at.max(now);
        self.now = count;
    }
}

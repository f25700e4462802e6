//! Clients at half load: each pauses for as long as its answer took. They get and put, ask for what
//! nobody has, and hang up in the middle of bodies.
//!
//! An entry says in its first bytes which number and turn it has, and the rest follows from these, so that
//! whatever is got is checked to the last byte.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use larder::units::{Clock, Random};
use serde_json::Value;

use super::support::daemon::Daemon;
use super::support::talk::{Talk, Way};

/// Over TCP; one more comes by the socket.
const CLIENTS: u64 = 4;
/// Between two questions at least, so that a fast answer is not all there is.
const PAUSE_MIN: Duration = Duration::from_micros(200);

/// What clients have met with so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) asked: u64,
    pub(crate) hits: u64,
    pub(crate) gets: u64,
    pub(crate) puts: u64,
    pub(crate) not_stored: u64,
    pub(crate) failed: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    asked: AtomicU64,
    gets: AtomicU64,
    hits: AtomicU64,
    puts: AtomicU64,
    not_stored: AtomicU64,
    /// Without an answer.
    failed: AtomicU64,
    hung_up: AtomicU64,
}

/// Sums that outlast the samples.
#[derive(Default)]
pub(crate) struct Tally {
    last: std::cell::Cell<Counts>,
}

impl Tally {
    pub(crate) fn note(&self, counts: Counts) {
        self.last.set(counts);
    }

    /// What was done and what came of it, in one paragraph.
    pub(crate) fn words(&self, stats: &Value) -> String {
        let counts = self.last.get();
        format!(
            "{} questions, {} of {} gets hit, {} of {} puts not stored, {} without an answer; evicted {}, \
             uploaded {}, upload tries again {}, corrupt {}, faults of the disk {}",
            counts.asked,
            counts.hits,
            counts.gets,
            counts.not_stored,
            counts.puts,
            counts.failed,
            stats["disk"]["evicted_entries"],
            stats["journal"]["uploaded_entries"],
            stats["journal"]["retried"],
            stats["disk"]["corrupt"],
            stats["disk"]["faults"],
        )
    }
}

/// Clients that go on until they are ended.
pub(crate) struct Guests {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Guests {
    /// They ask for so many entries, of 18 KiB on average.
    pub(crate) fn start(daemon: &Daemon, entries: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = (0..=CLIENTS)
            .map(|client| {
                let way = match client {
                    CLIENTS => Way::Unix(daemon.socket()),
                    _ => Way::Tcp(daemon.addr()),
                };
                let shared = shared.clone();
                spawn(move || Guest::new(client, way, shared, entries).stay())
            })
            .collect();
        Self { shared, threads }
    }

    pub(crate) fn counts(&self) -> Counts {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let it = &self.shared;
        Counts {
            asked: of(&it.asked),
            hits: of(&it.hits),
            gets: of(&it.gets),
            puts: of(&it.puts),
            not_stored: of(&it.not_stored),
            failed: of(&it.failed),
        }
    }

    /// A client that has ended has seen what must not be; it has said what.
    pub(crate) fn check(&self) {
        assert!(self.threads.iter().all(|thread| !thread.is_finished()), "a client was lied to");
    }

    pub(crate) fn end(self) {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().expect("a client was not lied to");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "larder's own threads are not to be depended on")]
fn spawn(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(work)
}

struct Guest {
    talk: Talk,
    way: Way,
    random: Random,
    shared: Arc<Shared>,
    entries: u64,
    turn: u64,
}

impl Guest {
    fn new(client: u64, way: Way, shared: Arc<Shared>, entries: u64) -> Self {
        let random = Random::new(client + 1);
        Self { talk: Talk::new(way.clone()), way, random, shared, entries, turn: 0 }
    }

    fn stay(mut self) {
        let clock = Clock::system();
        while !self.shared.stop.load(Ordering::Acquire) {
            let began = clock.elapsed();
            self.turn += 1;
            let number = self.popular();
            match self.random.next_u64() % 100 {
                0..79 => self.get(number),
                79..85 => self.put(number),
                85..88 => self.get(self.entries + number),
                88..97 => self.leave_reading(number),
                _ => self.leave_sending(number),
            }
            self.shared.asked.fetch_add(1, Ordering::Relaxed);
            std::thread::park_timeout((clock.elapsed() - began).max(PAUSE_MIN));
        }
    }

    /// Some are asked for far more often than others.
    fn popular(&mut self) -> u64 {
        let mut one = || self.random.next_u64() % self.entries;
        one().min(one()).min(one())
    }

    fn get(&mut self, number: u64) {
        self.shared.gets.fetch_add(1, Ordering::Relaxed);
        match self.talk.ask("GET", &path(number), b"") {
            Ok(answer) if answer.status == 200 => {
                self.shared.hits.fetch_add(1, Ordering::Relaxed);
                check(number, &answer.body);
            }
            Ok(answer) => assert_eq!(answer.status, 404, "a get of {number}"),
            Err(_) => self.fail(),
        }
    }

    fn put(&mut self, number: u64) {
        self.shared.puts.fetch_add(1, Ordering::Relaxed);
        match self.talk.ask("PUT", &path(number), &body(number, self.turn)) {
            Ok(answer) => match answer.status {
                200 | 201 => {}
                507 => {
                    self.shared.not_stored.fetch_add(1, Ordering::Relaxed);
                }
                other => panic!("a put of {number} was answered with {other}"),
            },
            Err(_) => self.fail(),
        }
    }

    fn fail(&self) {
        self.shared.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn leave_reading(&self, number: u64) {
        let question = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", path(number));
        self.leave(question.as_bytes(), 1);
    }

    fn leave_sending(&self, number: u64) {
        let body = body(number, self.turn);
        let head = format!(
            "PUT {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            path(number),
            body.len()
        );
        self.leave(&[head.as_bytes(), &body[..body.len() / 2]].concat(), 0);
    }

    /// Sends this, reads so many bytes, and is gone.
    fn leave(&self, words: &[u8], read: usize) {
        self.shared.hung_up.fetch_add(1, Ordering::Relaxed);
        let Ok(mut wire) = self.way.connect() else { return self.fail() };
        if wire.write_all(words).is_ok() && read > 0 {
            let _ = wire.read_exact(&mut vec![0; read]);
        }
    }
}

fn path(number: u64) -> String {
    format!("/kv/soak/{number}")
}

/// Most are small; one in twenty is a file of its own.
fn len(number: u64) -> usize {
    let many = number.wrapping_mul(0x9E37_79B9) % 20;
    if many == 0 { 256 << 10 } else { 512 << (many % 6) }
}

fn body(number: u64, turn: u64) -> Vec<u8> {
    let len = len(number);
    let mut body = Vec::with_capacity(len + 8);
    body.extend_from_slice(&number.to_le_bytes());
    body.extend_from_slice(&turn.to_le_bytes());
    let mut random = Random::new(number ^ turn.rotate_left(32));
    while body.len() < len {
        body.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    body.truncate(len);
    body
}

fn check(number: u64, got: &[u8]) {
    let word = |at: usize| {
        let bytes = got.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_le_bytes)
    };
    let turn = word(8).unwrap_or_else(|| panic!("{} bytes of {number}", got.len()));
    assert_eq!(word(0), Some(number), "another entry than {number}");
    assert!(got == body(number, turn), "wrong bytes of {number}, turn {turn}");
}

//! Sends for one direction of one connection: reads here, waits for its congestion window and for
//! the link that all share.

use std::collections::VecDeque;
use std::io::Read;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::flight::{Flight, Parcel};
use super::{Link, SEGMENT, Shared, WINDOW_FIRST};

/// So much may wait at the link for one connection: long enough to bridge a thread that wakes late.
const AHEAD: Duration = Duration::from_millis(4);
/// What a receiver may hold that its socket does not take, beyond what is in flight.
const UNREAD_MAX: u64 = 1 << 20;

/// One direction of the link: who sends is served in the order of asking.
#[derive(Debug, Default)]
pub(super) struct Direction {
    /// When the link has sent all that was handed to it.
    free_at: Mutex<Duration>,
    pub(super) bytes: AtomicU64,
}

impl Direction {
    /// Takes the link for `bytes` that were there at `ready`; returns when the last has left.
    fn transmit(&self, link: Link, bytes: u64, ready: Duration) -> Duration {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut free_at = self.free_at.lock().expect("no thread panics with this lock held");
        *free_at = ready.max(*free_at) + link.transmission(bytes);
        *free_at
    }
}

/// The congestion window of one sender.
#[derive(Debug)]
pub(super) struct Window {
    size: u64,
    max: u64,
    flying: u64,
    /// What was sent, and when its acknowledgement comes.
    sent: VecDeque<(Duration, u64)>,
}

impl Window {
    pub(super) fn new(link: Link) -> Self {
        Self { size: WINDOW_FIRST, max: link.window_max(), flying: 0, sent: VecDeque::new() }
    }

    /// Takes in what was acknowledged by `now`. As each byte makes room for itself and one more, the
    /// window doubles per round trip.
    fn acknowledge(&mut self, now: Duration) {
        while let Some((at, bytes)) = self.sent.front().copied()
            && at <= now
        {
            self.sent.pop_front();
            self.flying -= bytes;
            self.size = (self.size + bytes).min(self.max);
        }
    }

    /// How much may be sent now, and otherwise when to ask again. Never slivers of a segment.
    fn room(&self) -> Result<u64, Duration> {
        let room = self.size.saturating_sub(self.flying);
        match self.sent.front() {
            Some((at, _)) if room < SEGMENT => Err(*at),
            _ => Ok(room),
        }
    }

    fn send(&mut self, bytes: u64, acknowledged_at: Duration) {
        self.flying += bytes;
        self.sent.push_back((acknowledged_at, bytes));
    }
}

/// One direction of one connection, as its sender sees it.
pub(super) struct Sender<'a> {
    pub(super) shared: &'a Shared,
    pub(super) direction: &'a Direction,
    pub(super) flight: &'a Flight,
    pub(super) window: Window,
}

impl Sender<'_> {
    /// Reads until the end and sends what it reads, nothing before `open_at`.
    pub(super) fn run(
        &mut self,
        mut from: &TcpStream,
        open_at: Duration,
        mut seen: impl FnMut(&[u8]),
    ) -> bool {
        let link = self.shared.link;
        let mut last = open_at;
        let mut buffer = vec![0; usize::try_from(link.turn()).expect("a turn is short")];
        loop {
            let Ok(n) = from.read(&mut buffer) else { return false };
            if n == 0 {
                let due = self.shared.clock.elapsed().max(last) + link.rtt / 2;
                return self.flight.hand_over(Parcel { due, bytes: Vec::new() }, u64::MAX);
            }
            seen(&buffer[..n]);
            let ready = self.shared.clock.elapsed().max(open_at);
            match self.send(&buffer[..n], ready) {
                Some(left_at) => last = left_at,
                None => return false,
            }
        }
    }

    /// Sends as the window allows; returns when the last byte has left, None if cut.
    fn send(&mut self, mut bytes: &[u8], mut ready: Duration) -> Option<Duration> {
        let Shared { link, clock, .. } = self.shared;
        let mut left_at = ready;
        while !bytes.is_empty() {
            // By the computed time: an acknowledgement counts from when it came, not from when this
            // thread woke up.
            self.window.acknowledge(ready);
            let room = match self.window.room() {
                Ok(room) => usize::try_from(room).unwrap_or(usize::MAX),
                Err(at) => {
                    ready = ready.max(at);
                    if !self.flight.sleep_until(clock, at) {
                        return None;
                    }
                    continue;
                }
            };
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            let count = now.len() as u64;
            left_at = self.direction.transmit(*link, count, ready);
            self.window.send(count, left_at + link.rtt);
            let parcel = Parcel { due: left_at + link.rtt / 2, bytes: now.to_vec() };
            let held_max = self.window.max + UNREAD_MAX;
            if !self.flight.hand_over(parcel, held_max)
                || !self.flight.sleep_until(clock, left_at.saturating_sub(AHEAD))
            {
                return None;
            }
            bytes = later;
        }
        Some(left_at)
    }
}

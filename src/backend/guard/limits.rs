//! The limits of one upstream, with the reason for each default. What applies them lies around.

use std::time::Duration;

/// Three round trips of a bad 300 ms, which TCP and TLS take; a host that drops packets takes none.
const CONNECT: Duration = Duration::from_secs(1);
/// Most entries take less to build again; it holds the connecting and a retry of it too.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// Object stores answer only once a body is replicated. No build waits for it.
const PUT_ANSWER: Duration = Duration::from_secs(10);
/// Eight rounds of questions at a bad 300 ms each, doubled.
const CONTAINS: Duration = Duration::from_secs(5);
/// Half a megabit a second; below, building again is faster for nearly every entry.
const FLOOR_BYTES_PER_S: u64 = 64 << 10;
/// Longer than a lost packet's retransmission, so that one loss does not read as a stall.
const WINDOW: Duration = Duration::from_secs(2);
/// The first byte's deadline plus what the largest small body takes at the floor: a body of a few
/// bytes must not use up the free window as well.
const SMALL_GET: Duration = Duration::from_secs(3);
/// Hides 50 ms at a thousand small entries a second; more only queues in front of the link.
const GETS_MAX: usize = 64;
/// As many as the uploader ever sends at once. They have time, and share the link with the builds' gets.
const PUTS_MAX: usize = 32;
/// A seat that is not free after this long will not be soon; the build goes on without.
const SEAT_WAIT: Duration = Duration::from_millis(500);

/// The limits of one upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// For a connection, TLS included. Whoever connects applies it.
    pub connect: Duration,
    /// From the request of a get to the head of its answer.
    pub first_byte: Duration,
    /// For a put: from the last piece that upstream took to the next, or to the answer.
    pub put_answer: Duration,
    /// For the answer to one batch of `contains`.
    pub contains: Duration,
    /// What received bodies must bring, judged over each `window` of waiting but the first.
    pub floor_bytes_per_s: u64,
    pub window: Duration,
    /// For the whole get of a small body.
    pub small_get: Duration,
    /// How many gets may be under way, bodies included; and puts.
    pub gets_max: usize,
    pub puts_max: usize,
    /// How long a request waits for one of these places.
    pub seat_wait: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connect: CONNECT,
            first_byte: FIRST_BYTE,
            put_answer: PUT_ANSWER,
            contains: CONTAINS,
            floor_bytes_per_s: FLOOR_BYTES_PER_S,
            window: WINDOW,
            small_get: SMALL_GET,
            gets_max: GETS_MAX,
            puts_max: PUTS_MAX,
            seat_wait: SEAT_WAIT,
        }
    }
}

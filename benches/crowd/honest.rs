//! Honest clients: a few, each with one question at a time and a pause after the answer; what each
//! answer took, a connection included where a new one was needed.
//!
//! They look at what they are given: wrong bytes end the bench. Who crowds in beside them is `crowd`'s.

use std::time::Duration;

use larder::units::Clock;

use super::support::daemon::Daemon;
use super::support::talk::{Talk, Way};

/// Of a body.
pub(crate) const SMALL: usize = 1 << 10;
/// Entries that are asked for again and again.
pub(crate) const HOT: usize = 64;
/// Between an answer and the next question.
const PAUSE: Duration = Duration::from_millis(2);

/// What one kind of question took.
#[derive(Default)]
pub(crate) struct Took {
    all: Vec<Duration>,
    pub(crate) failed: u64,
    /// Answers that are no fault, and not what was asked for: misses, "not stored".
    pub(crate) refused: u64,
    pub(crate) connections: u64,
}

impl Took {
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Milliseconds that so many of them stay within. A failure counts as longer than any answer.
    pub(crate) fn at(&self, share: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place")]
        let at = (share * (self.all.len() as f64 - 1.0)).max(0.0) as usize;
        self.all.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }

    fn join(mut self, other: Self) -> Self {
        self.all.extend(other.all);
        self.all.sort_unstable();
        self.failed += other.failed;
        self.refused += other.refused;
        self.connections += other.connections;
        self
    }
}

/// What honest clients have met with.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) gets: Took,
    pub(crate) puts: Took,
    /// Gets over the socket.
    pub(crate) socket: Took,
}

/// Puts what will be asked for.
pub(crate) fn prepare(daemon: &Daemon) {
    let mut talk = Talk::new(Way::Tcp(daemon.addr()));
    for number in 0..HOT {
        let put = talk.ask("PUT", &hot(number), &body(number, SMALL)).expect("larder answers");
        assert!(put.status == 201 || put.status == 200, "{put:?}");
    }
}

/// Two that get and one that puts over TCP, one that gets over the socket, for so long. `name` keeps what
/// is put here apart from what is put elsewhere.
pub(crate) fn visit(daemon: &Daemon, name: &str, time: Duration) -> Heard {
    let name = &name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let (tcp, socket) = (Way::Tcp(daemon.addr()), Way::Unix(daemon.socket()));
    std::thread::scope(|scope| {
        let get = |way: &Way| {
            let way = way.clone();
            scope.spawn(move || get(&way, time))
        };
        let (one, other, local) = (get(&tcp), get(&tcp), get(&socket));
        let put = scope.spawn(|| put(&tcp, name, time));
        let end = |client: std::thread::ScopedJoinHandle<'_, Took>| {
            Took::default().join(client.join().expect("a client ends"))
        };
        Heard { gets: end(one).join(end(other)), puts: end(put), socket: end(local) }
    })
}

fn get(way: &Way, time: Duration) -> Took {
    ask_for(way, time, |talk, number| {
        let number = number % HOT;
        let answer = talk.ask("GET", &hot(number), b"")?;
        let is_hit = answer.status == 200;
        assert!(!is_hit || answer.body == body(number, SMALL), "wrong bytes of {number}");
        Ok(is_hit)
    })
}

fn put(way: &Way, name: &str, time: Duration) -> Took {
    ask_for(way, time, |talk, number| {
        let answer = talk.ask("PUT", &path(name, number), &body(number, SMALL))?;
        Ok(answer.status == 201 || answer.status == 200)
    })
}

fn ask_for(
    way: &Way,
    time: Duration,
    mut ask: impl FnMut(&mut Talk, usize) -> std::io::Result<bool>,
) -> Took {
    let clock = Clock::system();
    let (mut talk, mut took) = (Talk::new(way.clone()), Took::default());
    for number in 0.. {
        let began = clock.elapsed();
        if began >= time {
            break;
        }
        match ask(&mut talk, number) {
            Ok(is_right) => {
                took.all.push(clock.elapsed() - began);
                took.refused += u64::from(!is_right);
            }
            Err(_) => {
                took.all.push(Duration::MAX);
                took.failed += 1;
            }
        }
        std::thread::park_timeout(PAUSE);
    }
    took.connections = talk.connections;
    took
}

fn hot(number: usize) -> String {
    path("hot", number)
}

pub(crate) fn path(name: &str, number: usize) -> String {
    format!("/kv/{name}/{number}")
}

/// Bytes that do not compress away, and differ by number.
pub(crate) fn body(number: usize, size: usize) -> Vec<u8> {
    let mut random = larder::units::Random::new(number as u64);
    let mut body = Vec::with_capacity(size + 8);
    while body.len() < size {
        body.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    body.truncate(size);
    body
}

/// Fills with so many bodies under a name, two clients at a time.
pub(crate) fn fill(daemon: &Daemon, name: &str, count: usize, size: usize) {
    std::thread::scope(|scope| {
        for first in 0..2 {
            scope.spawn(move || {
                let mut talk = Talk::new(Way::Tcp(daemon.addr()));
                for number in (first..count).step_by(2) {
                    let put = talk.ask("PUT", &path(name, number), &body(number, size));
                    let put = put.expect("larder answers");
                    assert!(put.status == 201 || put.status == 200, "{}", put.status);
                }
            });
        }
    });
}

/// Gets all of them, so that the memory tier has what it takes.
pub(crate) fn read_all(daemon: &Daemon, name: &str, count: usize, size: usize) {
    let mut talk = Talk::new(Way::Tcp(daemon.addr()));
    for number in 0..count {
        let got = talk.ask("GET", &path(name, number), b"").expect("larder answers");
        assert!(got.status == 200 && got.body == body(number, size), "{name} {number}");
    }
}

/// How many entries of a name are there, bytes and all, of so many.
pub(crate) fn count_right(addr: std::net::SocketAddr, name: &str, count: usize) -> usize {
    let mut talk = Talk::new(Way::Tcp(addr));
    let is_right = |number: &usize| {
        let answer = talk.ask("GET", &path(name, *number), b"").expect("larder answers");
        assert!(answer.status != 200 || answer.body == body(*number, SMALL), "wrong bytes");
        answer.status == 200
    };
    (0..count).filter(is_right).count()
}

/// Puts without a pause until nobody answers any more; how many were acknowledged, the first ones.
pub(crate) fn put_until_refused(addr: std::net::SocketAddr, name: &str) -> usize {
    let mut talk = Talk::new(Way::Tcp(addr));
    for number in 0.. {
        match talk.ask("PUT", &path(name, number), &body(number, SMALL)) {
            Ok(answer) if answer.status == 201 => {}
            Ok(answer) => panic!("a put was answered with {}", answer.status),
            Err(_) => return number,
        }
    }
    0
}

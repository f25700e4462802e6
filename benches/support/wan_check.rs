//! Checks the simulated network against the clock: `cargo bench --bench wan [-- --short]`.
//!
//! Prints what was measured beside what the model says, and fails where the two differ by more than
//! noise. On a busy machine run it again. That bytes stay whole is asked in `tests/clients`.

#[expect(dead_code, reason = "the totals are for other benches")]
mod wan;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use larder::units::Clock;
use wan::{Link, Wan};

const MEGABIT: u64 = 1_000_000;
const BULK: u64 = 12_000_000;

fn main() -> ExitCode {
    let runs = if std::env::args().any(|arg| arg == "--short") { 3 } else { 9 };
    let target = serve();
    let slow = Link { rtt: Duration::from_millis(50), bits_per_second: 100 * MEGABIT };
    let fast = Link { rtt: Duration::from_millis(50), bits_per_second: 1000 * MEGABIT };
    let near = Link { rtt: Duration::from_millis(1), bits_per_second: 1000 * MEGABIT };
    let mut good = true;
    eprintln!("{:44} {:>10} {:>10} {:>6}", "", "measured", "model", "ratio");
    for (name, link) in [("100 Mbit/s, 50 ms", slow), ("1 Gbit/s, 50 ms", fast)] {
        let one = median(runs, || fetch(target, link, 1, BULK));
        good &= report(&format!("12 MB, one stream, {name}"), one, model(link, BULK, 1));
        let eight = median(runs, || fetch(target, link, 8, BULK / 8));
        good &= report(&format!("12 MB, eight streams, {name}"), eight, model(link, BULK, 8));
    }
    for (name, link) in [("50 ms", slow), ("1 ms", near)] {
        let first = median(runs, || fetch(target, link, 1, 1));
        good &= report(&format!("one byte, new connection, {name}"), first, link.rtt * 2);
        let rounds = median(runs, || ping(target, link, 20));
        good &= report(&format!("20 questions in a row, {name}"), rounds, link.rtt * 21);
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What so many streams take together: connect and question, then windows that double until the
/// link is full.
fn model(link: Link, bytes: u64, streams: u64) -> Duration {
    let (mut sent, mut window, mut time) = (0, 14_600 * streams, link.rtt * 2);
    while sent + window < bytes && link.transmission(window) < link.rtt {
        sent += window;
        window *= 2;
        time += link.rtt;
    }
    time + link.transmission(bytes - sent)
}

fn report(name: &str, measured: Duration, model: Duration) -> bool {
    let ratio = measured.as_secs_f64() / model.as_secs_f64();
    let good = (0.9..1.5).contains(&ratio);
    let verdict = if good { "" } else { "  OUT OF RANGE" };
    let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1000.0);
    eprintln!("{name:44} {:>10} {:>10} {ratio:>6.3}{verdict}", ms(measured), ms(model));
    good
}

fn median(runs: usize, mut measure: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<_> = (0..runs).map(|_| measure()).collect();
    times.sort_unstable();
    times[runs / 2]
}

/// Asks for `bytes` on each of `streams` connections; the time until the last has all.
fn fetch(target: SocketAddr, link: Link, streams: usize, bytes: u64) -> Duration {
    let wan = Wan::start(target, link);
    let clock = Clock::system();
    std::thread::scope(|scope| {
        for _ in 0..streams {
            scope.spawn(|| {
                let mut stream = connect(wan.addr());
                ask(&mut stream, bytes);
            });
        }
    });
    clock.elapsed()
}

fn ping(target: SocketAddr, link: Link, questions: u32) -> Duration {
    let wan = Wan::start(target, link);
    let clock = Clock::system();
    let mut stream = connect(wan.addr());
    for _ in 0..questions {
        ask(&mut stream, 1);
    }
    clock.elapsed()
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("the simulator listens");
    stream.set_nodelay(true).expect("a socket takes options");
    stream
}

fn ask(stream: &mut TcpStream, bytes: u64) {
    stream.write_all(&bytes.to_le_bytes()).expect("the simulator carries");
    let mut left = bytes;
    let mut buffer = vec![0; 1 << 18];
    while left > 0 {
        let n = stream.read(&mut buffer).expect("the simulator carries");
        assert!(n > 0, "the stream ended {left} bytes early");
        left -= n as u64;
    }
}

/// Sends as many bytes as it is asked for, to whoever asks, until the process ends.
fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("a bound socket has an address");
    spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            spawn(move || {
                let mut asked = [0; 8];
                while stream.read_exact(&mut asked).is_ok() {
                    let bytes = u64::from_le_bytes(asked);
                    // An error is the client's leaving.
                    let _ = std::io::copy(&mut std::io::repeat(1).take(bytes), &mut stream);
                }
            });
        }
    });
    addr
}

#[expect(clippy::disallowed_methods, reason = "larder's own threads are not to be depended on")]
fn spawn(work: impl FnOnce() + Send + 'static) {
    std::thread::spawn(work);
}

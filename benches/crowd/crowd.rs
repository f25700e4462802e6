//! Those who crowd a daemon: idle connections, slow senders, slow readers, by the thousand, in a process
//! of their own with descriptors of its own and the lowest priority; and `wrk` for the busy ones.
//!
//! The process is this bench once more, with `--crowd`. It ends when its standard input does, and says
//! then what has become of its connections. Nothing here is timed: `honest` is.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use larder::units::Clock;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::honest::{HOT, SMALL, body, path};
use super::support::measure::option;

/// Between two connections that begin, so that a crowd comes within seconds and not at once.
const APART: Duration = Duration::from_micros(500);
/// From one failure of a connection to the next attempt, and from its end to the next one.
const AGAIN: Duration = Duration::from_secs(1);
/// Of what slow readers get, and of what slow senders say that they will send.
pub(crate) const LARGE: usize = 1 << 20;
/// A reader's window, so that the kernel does not take all of it at once.
const WINDOW: u32 = 8 << 10;

/// What the members of a crowd do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Every other one has asked once; the others have not said a word.
    Idle,
    /// A kind each: heads of a byte a second, bodies of 2 KiB a second, bodies that stop.
    Senders,
    /// Of large bodies, different ones, 2 KiB a second.
    Readers,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Idle, Self::Senders, Self::Readers];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Senders => "senders",
            Self::Readers => "readers",
        }
    }
}

/// A crowd as a process. Ends on drop.
pub(crate) struct Crowd {
    child: Child,
    kind: Kind,
}

impl Crowd {
    pub(crate) fn start(kind: Kind, count: usize, to: SocketAddr) -> Self {
        let program = std::env::current_exe().expect("a program knows its place");
        let child = Command::new("nice")
            .args(["-n", "19"])
            .arg(program)
            .args(["--crowd", kind.name(), "--count", &count.to_string(), "--to", &to.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this bench starts once more");
        Self { child, kind }
    }

    /// What has become of it.
    pub(crate) fn end(mut self) -> String {
        drop(self.child.stdin.take());
        let mut text = String::new();
        let told = self.child.stdout.take().map(|mut out| out.read_to_string(&mut text));
        assert!(matches!(told, Some(Ok(_))), "a crowd says what has become of it");
        let counts: Value = serde_json::from_str(&text).expect("counts");
        let count = |name: &str| counts[name].as_u64().unwrap_or(0);
        format!(
            "{}: {} open, {} opened, {} not, {} answered, {} ended by larder",
            self.kind.name(),
            count("open"),
            count("opened"),
            count("not_opened"),
            count("answered"),
            count("ended")
        )
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `wrk`: so many connections, each of which asks again as soon as it has its answer.
pub(crate) struct Busy(Child);

impl Busy {
    pub(crate) fn start(wrk: &Path, connections: usize, to: SocketAddr, time: Duration) -> Self {
        let child = Command::new("nice")
            .args(["-n", "19"])
            .arg(wrk)
            .args(["-t1", &format!("-c{connections}"), &format!("-d{}s", time.as_secs().max(1))])
            .args(["--timeout", "60s", &format!("http://{to}{}", path("hot", 0))])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("wrk starts");
        Self(child)
    }

    /// Answers per second, and what it says of errors.
    pub(crate) fn end(mut self) -> (f64, String) {
        let mut text = String::new();
        let told = self.0.stdout.take().map(|mut out| out.read_to_string(&mut text));
        let _ = self.0.wait();
        assert!(matches!(told, Some(Ok(_))), "wrk says how it went");
        let after = |label: &str| Some(text.split_once(label)?.1.lines().next()?.trim().to_owned());
        let rate = after("Requests/sec:").and_then(|rate| rate.parse().ok()).unwrap_or(0.0);
        let errors = ["Socket errors:", "Non-2xx or 3xx responses:"]
            .iter()
            .filter_map(|label| Some(format!("{} {}", label.to_lowercase(), after(label)?)));
        (rate, errors.collect::<Vec<_>>().join("; "))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // Ended already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What has become of the connections of a crowd.
#[derive(Default)]
struct Counts {
    open: AtomicU64,
    opened: AtomicU64,
    not_opened: AtomicU64,
    answered: AtomicU64,
    ended: AtomicU64,
}

/// The process of a crowd, if this is one.
pub(crate) fn run() -> bool {
    let Some(kind) = option("--crowd") else { return false };
    let kind = Kind::ALL.into_iter().find(|known| known.name() == kind).expect("a known kind");
    let count: u64 = number("--count");
    let to: SocketAddr = number("--to");
    let counts = Arc::new(Counts::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime starts");
    runtime.block_on(async {
        let mut members = tokio::task::JoinSet::new();
        for member in 0..count {
            let counts = counts.clone();
            members.spawn(async move {
                sleep(APART * u32::try_from(member).unwrap_or(u32::MAX)).await;
                loop {
                    stay(kind, member, to, &counts).await;
                    sleep(AGAIN).await;
                }
            });
        }
        // Blocks a thread of the pool until the parent closes the pipe.
        let mut nothing = [0];
        let _ = tokio::io::AsyncReadExt::read(&mut stdin(), &mut nothing).await;
    });
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let told = json!({
        "open": of(&counts.open),
        "opened": of(&counts.opened),
        "not_opened": of(&counts.not_opened),
        "answered": of(&counts.answered),
        "ended": of(&counts.ended),
    });
    let _ = write!(std::io::stdout(), "{told}");
    // Connections are cut, not ended one by one.
    runtime.shutdown_background();
    true
}

/// Standard input as the reactor knows it.
fn stdin() -> tokio::net::unix::pipe::Receiver {
    use std::os::fd::AsFd as _;
    let input = std::io::stdin().as_fd().try_clone_to_owned().expect("a pipe can be shared");
    tokio::net::unix::pipe::Receiver::from_owned_fd(input).expect("the parent gives a pipe")
}

fn number<T: std::str::FromStr>(name: &str) -> T {
    option(name).and_then(|text| text.parse().ok()).expect("a crowd is told what it is")
}

/// One connection, from its beginning to its end.
async fn stay(kind: Kind, member: u64, to: SocketAddr, counts: &Counts) {
    let count = |count: &AtomicU64| {
        count.fetch_add(1, Ordering::Relaxed);
    };
    let Ok(Ok(mut stream)) = timeout(Duration::from_secs(60), connect(kind, to)).await else {
        count(&counts.not_opened);
        return;
    };
    count(&counts.opened);
    count(&counts.open);
    let answered = match kind {
        Kind::Idle => idle(&mut stream, member).await,
        Kind::Senders => send(&mut stream, member).await,
        Kind::Readers => read(&mut stream, member).await,
    };
    count(if matches!(answered, Ok(true)) { &counts.answered } else { &counts.ended });
    counts.open.fetch_sub(1, Ordering::Relaxed);
}

async fn connect(kind: Kind, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if kind == Kind::Readers {
        socket.set_recv_buffer_size(WINDOW)?;
    }
    // Ports are many enough only if each crowd has an address of its own.
    let host = 2 + kind as u8;
    socket.bind(SocketAddr::from(([127, 0, 0, host], 0)))?;
    socket.connect(to).await
}

/// Until it is ended; whether there was an answer.
async fn idle(stream: &mut TcpStream, member: u64) -> std::io::Result<bool> {
    if member.is_multiple_of(2) {
        let question =
            format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", path("hot", turn(member, HOT)));
        stream.write_all(question.as_bytes()).await?;
    }
    let mut buffer = [0; 4 << 10];
    let mut got = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(got > SMALL),
            more => got += more,
        }
    }
}

/// Slowly, until there is an answer or an end.
async fn send(stream: &mut TcpStream, member: u64) -> std::io::Result<bool> {
    static ALL: OnceLock<Vec<u8>> = OnceLock::new();
    // The same body for all: a thousand of them need not be kept here.
    let all = ALL.get_or_init(|| {
        let head = format!(
            "PUT {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LARGE}\r\n\r\n",
            path("slow", 0)
        );
        [head.as_bytes(), &body(0, LARGE)].concat()
    });
    let head = all.len() - LARGE;
    let (at_once, piece) = match member % 3 {
        0 => (0, 1),
        1 => (head, 2 << 10),
        _ => (head + LARGE / 2, 0),
    };
    stream.write_all(&all[..at_once]).await?;
    let (mut input, mut output) = stream.split();
    let slowly = async {
        let mut at = at_once;
        while at < all.len() {
            sleep(Duration::from_secs(1)).await;
            let end = (at + piece).min(all.len());
            output.write_all(&all[at..end]).await?;
            at = end;
        }
        std::future::pending::<std::io::Result<bool>>().await
    };
    let answer = async {
        let mut first = [0; 12];
        input.read_exact(&mut first).await?;
        Ok(first.starts_with(b"HTTP/1.1 20"))
    };
    tokio::select! {
        ended = slowly => ended,
        answered = answer => answered,
    }
}

/// Slowly, to the end.
async fn read(stream: &mut TcpStream, member: u64) -> std::io::Result<bool> {
    let path = path("large", turn(member, usize::MAX));
    let question = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    let clock = Clock::system();
    let mut buffer = [0; 2 << 10];
    let mut got = 0;
    while got < LARGE {
        match stream.read(&mut buffer).await? {
            0 => return Ok(false),
            more => got += more,
        }
        // Whoever reads a minute has held the daemon up long enough; the next one comes.
        if clock.elapsed() > Duration::from_secs(60) {
            return Ok(true);
        }
        sleep(Duration::from_secs(1)).await;
    }
    Ok(true)
}

fn turn(member: u64, of: usize) -> usize {
    usize::try_from(member).unwrap_or(0) % of
}

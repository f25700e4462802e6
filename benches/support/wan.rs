//! A wide-area network in front of a loopback address: one delay and one bandwidth each way, shared
//! by all connections; a congestion window for each.
//!
//! A proxy of plain threads, because timers of an event loop are too coarse. Each connection has two
//! senders (read here, wait for window and link) and two receivers (hold until due, write there):
//!
//! ```text
//! client → sender → [window] → [link up, shared] → … rtt/2 … → receiver → target     and back
//! ```
//!
//! Time is computed, then waited for: a thread that wakes late does not make the link slower. Left
//! out on purpose: loss, jitter, the window's restart after idleness, and the bandwidth of
//! acknowledgements. The kernel completes a client's `connect` at once; its round trip is paid by the
//! first byte. A target that refuses shows as a reset after one round trip; any other reset does not
//! wait for what is under way.

#[path = "wan/flight.rs"]
mod flight;
#[path = "wan/sender.rs"]
mod sender;
#[path = "wan/waits.rs"]
mod waits;

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use larder::units::Clock;

use flight::{Flight, deliver};
use sender::{Direction, Sender, Window};
use waits::{Question, Waits};

/// What TCP begins with: ten segments.
const WINDOW_FIRST: u64 = 10 * SEGMENT;
const SEGMENT: u64 = 1460;
/// The share of the link that one turn of a connection takes: short enough to be fair, long enough
/// not to spend the machine on switching threads.
const TURN: Duration = Duration::from_micros(500);
const TURN_BYTES_MAX: u64 = 64 << 10;

/// What the network is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) rtt: Duration,
    pub(crate) bits_per_second: u64,
}

impl Link {
    /// How long the link is busy with so many bytes.
    pub(crate) fn transmission(self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 * 8.0 / self.bits_per_second as f64)
    }

    /// Twice what fits into the pipe, where TCP ends up with common settings.
    fn window_max(self) -> u64 {
        self.bytes_in(self.rtt * 2).max(WINDOW_FIRST)
    }

    fn turn(self) -> u64 {
        self.bytes_in(TURN).clamp(SEGMENT, TURN_BYTES_MAX)
    }

    #[expect(clippy::cast_possible_truncation, reason = "rounds a number of bytes")]
    fn bytes_in(self, time: Duration) -> u64 {
        (self.bits_per_second as f64 / 8.0 * time.as_secs_f64()) as u64
    }
}

/// What has passed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Connections that clients made, those that the target refused included.
    pub(crate) connections: u64,
    pub(crate) refused: u64,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    /// How long each direction was transmitting.
    pub(crate) busy_up: Duration,
    pub(crate) busy_down: Duration,
    /// Questions that ask for something, and those that bring something (see `wan/waits.rs`).
    pub(crate) asked: u64,
    pub(crate) brought: u64,
    pub(crate) brought_bytes: u64,
    /// How long at least one connection that asked has waited for the first byte of an answer.
    pub(crate) waited: Duration,
    /// The same, summed over connections.
    pub(crate) waited_sum: Duration,
}

/// A running network. Cuts everything and stops on drop.
#[derive(Debug)]
pub(crate) struct Wan {
    shared: Arc<Shared>,
    addr: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Wan {
    pub(crate) fn start(target: SocketAddr, link: Link) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            target,
            link,
            clock: Clock::system(),
            up: Direction::default(),
            down: Direction::default(),
            waits: Mutex::default(),
            connections: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            state: Mutex::default(),
            stopped: Condvar::new(),
        });
        let acceptor = spawn("wan", {
            let shared = shared.clone();
            move || accept(&shared, &listener)
        });
        Self { shared, addr, acceptor: Some(acceptor) }
    }

    /// Where clients connect to.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Bytes from clients that have entered the link.
    pub(crate) fn bytes_up(&self) -> u64 {
        self.shared.up.bytes.load(Ordering::Relaxed)
    }

    /// Bytes to clients that have entered the link.
    pub(crate) fn bytes_down(&self) -> u64 {
        self.shared.down.bytes.load(Ordering::Relaxed)
    }

    /// Whether anybody waits for an answer to what he asked.
    pub(crate) fn is_waiting(&self) -> bool {
        self.shared.waits().is_any()
    }

    pub(crate) fn totals(&self) -> Totals {
        let shared = &*self.shared;
        let waits = shared.waits();
        let (waited, waited_sum) = waits.totals(shared.clock.elapsed());
        Totals {
            connections: self.connections(),
            refused: shared.refused.load(Ordering::Relaxed),
            bytes_up: self.bytes_up(),
            bytes_down: self.bytes_down(),
            busy_up: shared.link.transmission(self.bytes_up()),
            busy_down: shared.link.transmission(self.bytes_down()),
            asked: waits.asked,
            brought: waits.brought,
            brought_bytes: waits.brought_bytes,
            waited,
            waited_sum,
        }
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.stopping = true;
        for connection in &state.open {
            connection.cut();
        }
        drop(state);
        self.shared.stopped.notify_all();
        // Wakes the acceptor, which looks at `stopping` before anything else.
        let _ = TcpStream::connect(self.addr);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    link: Link,
    clock: Clock,
    up: Direction,
    down: Direction,
    waits: Mutex<Waits>,
    connections: AtomicU64,
    refused: AtomicU64,
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopping: bool,
    open: Vec<Arc<Connection>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with this lock held")
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().expect("no thread panics with this lock held")
    }
}

/// A client's connection with the one made to the target for it.
#[derive(Debug)]
struct Connection {
    client: TcpStream,
    target: TcpStream,
    up: Flight,
    down: Flight,
    /// What was sent to which no byte has come back since.
    question: Mutex<Option<Question>>,
}

impl Connection {
    /// Ends it at once, both ways, with a reset to both sides.
    fn cut(&self) {
        for flight in [&self.up, &self.down] {
            flight.cut();
        }
        for stream in [&self.client, &self.target] {
            // Errors mean that the peer was faster. Lingering for no time makes close a reset; the
            // shutdown wakes our threads, also one that writes to a peer who does not read.
            let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// More of a question, or a new one.
    fn asks(&self, shared: &Shared, bytes: &[u8]) {
        let mut question = self.question.lock().expect("no thread panics with this lock held");
        let mut waits = shared.waits();
        let question = *question.get_or_insert_with(|| {
            let question = Question::of(bytes);
            waits.begin(shared.clock.elapsed(), question);
            question
        });
        if question == Question::Brings {
            waits.brought_bytes += bytes.len() as u64;
        }
    }

    fn answered(&self, shared: &Shared) {
        let mut question = self.question.lock().expect("no thread panics with this lock held");
        if let Some(question) = question.take() {
            shared.waits().end(shared.clock.elapsed(), question);
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    let mut carriers: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let accepted = listener.accept();
        if shared.state().stopping {
            break;
        }
        let Ok((client, _)) = accepted else { continue };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        carriers.retain(|carrier| !carrier.is_finished());
        let accepted_at = shared.clock.elapsed();
        let shared = shared.clone();
        carriers.push(spawn("wan connection", move || carry(&shared, client, accepted_at)));
    }
    for carrier in carriers {
        // A carrier that panicked has told so on stderr.
        let _ = carrier.join();
    }
}

/// One connection from its beginning to its end.
fn carry(shared: &Arc<Shared>, client: TcpStream, accepted_at: Duration) {
    let Some(connection) = open(shared, client, accepted_at) else { return };
    let (wan, it) = (&**shared, &*connection);
    let open_at = accepted_at + wan.link.rtt;
    let send = |direction, flight, from, at, seen: &dyn Fn(&[u8])| {
        let window = Window::new(wan.link);
        let mut sender = Sender { shared: wan, direction, flight, window };
        if !sender.run(from, at, seen) {
            it.cut();
        }
    };
    let receive = |flight, to, seen: &dyn Fn()| {
        if !deliver(&wan.clock, flight, to, seen) {
            it.cut();
        }
    };
    let asks = |bytes: &[u8]| it.asks(wan, bytes);
    let answers = || it.answered(wan);
    // The target learns of the connection half a round trip after its client may speak.
    let accept_at = open_at + wan.link.rtt / 2;
    std::thread::scope(|scope| {
        spawn_in(scope, "wan up", || send(&wan.up, &it.up, &it.client, open_at, &asks));
        spawn_in(scope, "wan down", || send(&wan.down, &it.down, &it.target, accept_at, &|_| {}));
        spawn_in(scope, "wan to target", || receive(&it.up, &it.target, &|| {}));
        receive(&it.down, &it.client, &answers);
    });
    it.answered(wan);
    wan.state().open.retain(|other| !Arc::ptr_eq(other, &connection));
}

/// Connects to the target. If that fails the client is told after the time it would take.
fn open(shared: &Shared, client: TcpStream, at: Duration) -> Option<Arc<Connection>> {
    // A listener that is overwhelmed or gone: both are a connection that did not come about.
    let Ok(target) = connect(&client, shared.target) else {
        shared.refused.fetch_add(1, Ordering::Relaxed);
        let left = (at + shared.link.rtt).saturating_sub(shared.clock.elapsed());
        let stays = |state: &mut State| !state.stopping;
        drop(shared.stopped.wait_timeout_while(shared.state(), left, stays));
        let _ = rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO));
        return None;
    };
    let (up, down) = (Flight::default(), Flight::default());
    let connection = Arc::new(Connection { client, target, up, down, question: Mutex::default() });
    let mut state = shared.state();
    if state.stopping {
        return None;
    }
    state.open.push(connection.clone());
    Some(connection)
}

fn connect(client: &TcpStream, target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    client.set_nodelay(true)?;
    Ok(stream)
}

#[expect(clippy::disallowed_methods, reason = "larder's own threads are not to be depended on")]
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread can be started")
}

fn spawn_in<'s>(
    scope: &'s std::thread::Scope<'s, '_>,
    name: &str,
    work: impl FnOnce() + Send + 's,
) {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn_scoped(scope, work).expect("a thread can be started");
}

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

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use larder::units::Clock;

/// What TCP begins with: ten segments.
const WINDOW_FIRST: u64 = 10 * SEGMENT;
const SEGMENT: u64 = 1460;
/// So much may wait at the link for one connection: long enough to bridge a thread that wakes late.
const AHEAD: Duration = Duration::from_millis(4);
/// The share of the link that one turn of a connection takes: short enough to be fair, long enough
/// not to spend the machine on switching threads.
const TURN: Duration = Duration::from_micros(500);
const TURN_BYTES_MAX: u64 = 64 << 10;
/// What a receiver may hold that its socket does not take, beyond what is in flight.
const UNREAD_MAX: u64 = 1 << 20;

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
    /// How long at least one connection has waited for the first byte of an answer.
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

    pub(crate) fn totals(&self) -> Totals {
        let shared = &*self.shared;
        let (waited, waited_sum) = shared.waits().totals(shared.clock.elapsed());
        Totals {
            connections: self.connections(),
            refused: shared.refused.load(Ordering::Relaxed),
            bytes_up: self.bytes_up(),
            bytes_down: self.bytes_down(),
            busy_up: shared.link.transmission(self.bytes_up()),
            busy_down: shared.link.transmission(self.bytes_down()),
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

/// One direction of the link: who sends is served in the order of asking.
#[derive(Debug, Default)]
struct Direction {
    /// When the link has sent all that was handed to it.
    free_at: Mutex<Duration>,
    bytes: AtomicU64,
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

/// Who waits for an answer, and how long that has been so.
#[derive(Debug, Default)]
struct Waits {
    now: u32,
    changed_at: Duration,
    any: Duration,
    sum: Duration,
}

impl Waits {
    fn totals(&self, now: Duration) -> (Duration, Duration) {
        let past = now.saturating_sub(self.changed_at);
        let any = if self.now > 0 { past } else { Duration::ZERO };
        (self.any + any, self.sum + past * self.now)
    }

    fn set(&mut self, now: Duration, count: u32) {
        (self.any, self.sum) = self.totals(now);
        self.changed_at = now;
        self.now = count;
    }
}

/// A client's connection with the one made to the target for it.
#[derive(Debug)]
struct Connection {
    client: TcpStream,
    target: TcpStream,
    up: Flight,
    down: Flight,
    /// Whether something was asked and no byte has come back since.
    asking: Mutex<bool>,
}

/// What one direction of a connection has under way, between its sender and its receiver.
#[derive(Debug, Default)]
struct Flight {
    state: Mutex<InFlight>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct InFlight {
    parcels: VecDeque<Parcel>,
    /// Bytes in `parcels`, and the one being written.
    held: u64,
    cut: bool,
}

/// Bytes and when they arrive. None at all mean the end of the stream.
#[derive(Debug)]
struct Parcel {
    due: Duration,
    bytes: Vec<u8>,
}

impl Connection {
    /// Ends it at once, both ways, with a reset to both sides.
    fn cut(&self) {
        for flight in [&self.up, &self.down] {
            flight.lock().cut = true;
            flight.changed.notify_all();
        }
        for stream in [&self.client, &self.target] {
            // Errors mean that the peer was faster. Lingering for no time makes close a reset; the
            // shutdown wakes our threads, also one that writes to a peer who does not read.
            let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn set_asking(&self, shared: &Shared, asking: bool) {
        let mut was = self.asking.lock().expect("no thread panics with this lock held");
        if *was != asking {
            *was = asking;
            let mut waits = shared.waits();
            let count = if asking { waits.now + 1 } else { waits.now - 1 };
            waits.set(shared.clock.elapsed(), count);
        }
    }
}

impl Flight {
    fn lock(&self) -> MutexGuard<'_, InFlight> {
        self.state.lock().expect("no thread panics with this lock held")
    }

    /// Waits until `due`; false if the connection is cut before.
    fn sleep_until(&self, clock: &Clock, due: Duration) -> bool {
        let mut state = self.lock();
        loop {
            let left = due.saturating_sub(clock.elapsed());
            if state.cut || left.is_zero() {
                return !state.cut;
            }
            state = self.changed.wait_timeout(state, left).expect("no thread panics").0;
        }
    }

    /// Hands over to the receiver; false if the connection is cut. Waits while the receiver holds
    /// too much, as TCP does when the peer does not read.
    fn hand_over(&self, parcel: Parcel, held_max: u64) -> bool {
        let waiting = |state: &mut InFlight| !state.cut && state.held > held_max;
        let mut state = self.changed.wait_while(self.lock(), waiting).expect("no thread panics");
        state.held += parcel.bytes.len() as u64;
        state.parcels.push_back(parcel);
        self.changed.notify_all();
        !state.cut
    }

    /// The next parcel, once it is due.
    fn receive(&self, clock: &Clock) -> Option<Parcel> {
        let empty = |state: &mut InFlight| !state.cut && state.parcels.is_empty();
        let mut state = self.changed.wait_while(self.lock(), empty).expect("no thread panics");
        let parcel = state.parcels.pop_front()?;
        drop(state);
        self.sleep_until(clock, parcel.due).then_some(parcel)
    }

    fn written(&self, bytes: u64) {
        self.lock().held -= bytes;
        self.changed.notify_all();
    }
}

/// The congestion window of one sender.
#[derive(Debug)]
struct Window {
    size: u64,
    max: u64,
    flying: u64,
    /// What was sent, and when its acknowledgement comes.
    sent: VecDeque<(Duration, u64)>,
}

impl Window {
    fn new(link: Link) -> Self {
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
struct Sender<'a> {
    shared: &'a Shared,
    direction: &'a Direction,
    flight: &'a Flight,
    window: Window,
}

impl Sender<'_> {
    /// Reads until the end and sends what it reads, nothing before `open_at`.
    fn run(&mut self, mut from: &TcpStream, open_at: Duration, mut seen: impl FnMut()) -> bool {
        let link = self.shared.link;
        let mut last = open_at;
        let mut buffer = vec![0; usize::try_from(link.turn()).expect("a turn is short")];
        loop {
            let Ok(n) = from.read(&mut buffer) else { return false };
            if n == 0 {
                let due = self.shared.clock.elapsed().max(last) + link.rtt / 2;
                return self.flight.hand_over(Parcel { due, bytes: Vec::new() }, u64::MAX);
            }
            seen();
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

/// Writes what arrives, until the end; false if that failed.
fn deliver(clock: &Clock, flight: &Flight, mut to: &TcpStream, mut seen: impl FnMut()) -> bool {
    loop {
        let Some(parcel) = flight.receive(clock) else { return false };
        if parcel.bytes.is_empty() {
            seen();
            return to.shutdown(Shutdown::Write).is_ok();
        }
        seen();
        if to.write_all(&parcel.bytes).is_err() {
            return false;
        }
        flight.written(parcel.bytes.len() as u64);
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
    let send = |direction, flight, from, at, seen: &dyn Fn()| {
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
    let asks = || it.set_asking(wan, true);
    let answers = || it.set_asking(wan, false);
    // The target learns of the connection half a round trip after its client may speak.
    let accept_at = open_at + wan.link.rtt / 2;
    std::thread::scope(|scope| {
        spawn_in(scope, "wan up", || send(&wan.up, &it.up, &it.client, open_at, &asks));
        spawn_in(scope, "wan down", || send(&wan.down, &it.down, &it.target, accept_at, &|| {}));
        spawn_in(scope, "wan to target", || receive(&it.up, &it.target, &|| {}));
        receive(&it.down, &it.client, &answers);
    });
    it.set_asking(wan, false);
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
    let connection = Arc::new(Connection { client, target, up, down, asking: Mutex::new(false) });
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

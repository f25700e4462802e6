//! An upstream in memory that counts what it is asked and fails as it is told.
//!
//! GET, HEAD and PUT by path, HTTP/1.1 with keep-alive, one thread per connection. It stores what
//! it is given and understands none of it; distance and bandwidth are `benches/support/wan.rs`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufReader};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use larder::units::Clock;

use super::PATIENCE;
use super::http::{self, Request};

mod answer;

use answer::Answer;

/// What is wrong with the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody listens, and connections that stood are cut.
    Refuse,
    /// Requests are read and never answered.
    BlackHole,
    /// Every request is answered with this.
    Status(u16),
    /// One byte of body at a time, this long apart; where there is no body, of the head.
    Trickle(Duration),
    /// The connection ends in the middle of the body it announced.
    CloseMidBody,
    /// A body of the right length with one bit wrong.
    WrongBytes,
    /// Half of the body, announced as if it were all.
    Truncated,
    /// A GET is answered with what stands under the next name.
    Mixed,
    /// 302 to this URL.
    Redirect(String),
    /// Silence for so long, then the right answer.
    SlowFirstByte(Duration),
}

/// The server. Stops on drop.
#[derive(Debug)]
pub(crate) struct CacheServer {
    shared: Arc<Shared>,
    addr: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    listener: TcpListener,
    state: Mutex<State>,
    /// Something in the state has changed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Arc<Vec<u8>>>,
    requests: BTreeMap<(String, String), usize>,
    authorizations: BTreeSet<String>,
    /// For one method, or for all under the empty name; a method's own wins.
    faults: BTreeMap<&'static str, Fault>,
    faulty_answers: usize,
    bytes_sent: u64,
    connections: BTreeMap<u64, TcpStream>,
    connections_ever: u64,
    stopping: bool,
}

impl CacheServer {
    pub(crate) fn start() -> Self {
        let (listener, addr) = listen();
        let shared =
            Arc::new(Shared { listener, state: Mutex::default(), changed: Condvar::new() });
        let acceptor = spawn("cache server", {
            let shared = shared.clone();
            move || accept(&shared)
        });
        Self { shared, addr, acceptor: Some(acceptor) }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Switches to `fault`, for all methods. Whoever is being kept waiting by the last fault loses
    /// their connection.
    pub(crate) fn set_fault(&self, fault: Fault) {
        self.set_fault_on("", fault);
    }

    /// The same for one method only.
    pub(crate) fn set_fault_on(&self, method: &'static str, fault: Fault) {
        self.change_faults(|faults| {
            faults.insert(method, fault);
        });
    }

    /// Everything works again.
    pub(crate) fn heal(&self) {
        self.change_faults(BTreeMap::clear);
    }

    /// How many requests were answered, or left unanswered, as a fault told. Whom the kernel
    /// refuses nobody counts.
    pub(crate) fn fault_count(&self) -> usize {
        self.shared.lock().faulty_answers
    }

    pub(crate) fn gets(&self) -> usize {
        self.shared.lock().count("GET")
    }

    pub(crate) fn heads(&self) -> usize {
        self.shared.lock().count("HEAD")
    }

    pub(crate) fn puts(&self) -> usize {
        self.shared.lock().count("PUT")
    }

    /// How often this was asked for this path.
    pub(crate) fn requests(&self, method: &str, path: &str) -> usize {
        let key = (method.to_owned(), path.to_owned());
        self.shared.lock().requests.get(&key).copied().unwrap_or(0)
    }

    /// What clients have shown to be let in.
    pub(crate) fn authorizations(&self) -> BTreeSet<String> {
        self.shared.lock().authorizations.clone()
    }

    /// Connections that clients have made so far.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.lock().connections_ever
    }

    /// Bytes of bodies sent so far, or begun to be sent.
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.shared.lock().bytes_sent
    }

    /// The paths that hold something, in order.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.shared.lock().objects.keys().cloned().collect()
    }

    pub(crate) fn object(&self, path: &str) -> Option<Vec<u8>> {
        self.shared.lock().objects.get(path).map(|body| body.to_vec())
    }

    /// Stores without a request.
    pub(crate) fn insert(&self, path: &str, body: &[u8]) {
        self.shared.lock().objects.insert(path.to_owned(), Arc::new(body.to_vec()));
        self.shared.changed.notify_all();
    }

    pub(crate) fn remove(&self, path: &str) {
        self.shared.lock().objects.remove(path);
        self.shared.changed.notify_all();
    }

    /// Counts start again at nothing; objects and faults stay.
    pub(crate) fn forget_requests(&self) {
        let mut state = self.shared.lock();
        state.requests.clear();
        state.faulty_answers = 0;
        state.bytes_sent = 0;
    }

    /// Waits until `is_so`, asked again after each change. Panics, naming `what`, when patience
    /// runs out.
    pub(crate) fn wait_until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let clock = Clock::system();
        while !is_so(self) {
            assert!(clock.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
            // `is_so` takes the lock itself, so a change can slip in before this wait: it is short.
            let state = self.shared.lock();
            drop(self.shared.changed.wait_timeout(state, Duration::from_millis(10)));
        }
    }

    /// Faults are in force when this returns: the port is open or shut as they say.
    fn change_faults(&self, change: impl FnOnce(&mut BTreeMap<&'static str, Fault>)) {
        let mut state = self.shared.lock();
        let refused = state.refuses();
        change(&mut state.faults);
        if state.refuses() && !refused {
            self.shared.close(&mut state);
        } else if refused && !state.refuses() {
            // The socket has kept its port.
            rustix::net::listen(&self.shared.listener, 1024).expect("the port is still ours");
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for CacheServer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        self.shared.close(&mut state);
        drop(state);
        self.shared.changed.notify_all();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with the lock held")
    }

    /// Shuts the port, which wakes the acceptor, and cuts all connections. The socket lives on and
    /// keeps its port, so that none but us can open it again (as Linux has it).
    fn close(&self, state: &mut State) {
        // An error means that it was shut before.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Read);
        for stream in std::mem::take(&mut state.connections).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Waits for `time`, or shorter if `fault` is lifted or the server stops; then false.
    fn hold(&self, method: &str, fault: &Fault, time: Duration) -> bool {
        let state = self.lock();
        let holds = |state: &mut State| !state.stopping && state.fault(method) == Some(fault);
        let (state, _) =
            self.changed.wait_timeout_while(state, time, holds).expect("no thread panics");
        !state.stopping && state.fault(method) == Some(fault)
    }
}

impl State {
    fn fault(&self, method: &str) -> Option<&Fault> {
        self.faults.get(method).or_else(|| self.faults.get(""))
    }

    fn refuses(&self) -> bool {
        self.faults.values().any(|fault| *fault == Fault::Refuse)
    }

    fn count(&self, method: &str) -> usize {
        self.requests.iter().filter(|((m, _), _)| m == method).map(|(_, n)| n).sum()
    }

    /// The right answer to a request: status, headers, body.
    /// What stands under the next name of the same kind, if anything does under the right one.
    fn answer_mixed(&self, request: &Request) -> Answer {
        let path = &request.path;
        let kind = path.rsplit_once('/').map_or("", |(kind, _)| kind);
        let of_kind = |name: &&String| name.rsplit_once('/').is_some_and(|(k, _)| k == kind);
        let mut others = self.objects.keys().filter(of_kind);
        let other = others.clone().find(|name| *name > path).or_else(|| others.next());
        match other.filter(|_| self.objects.contains_key(path)) {
            Some(other) => Answer::with(request, &self.objects[other]),
            None => Answer::status(404),
        }
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let path = &request.path;
        match request.method.as_str() {
            "GET" | "HEAD" => match self.objects.get(path) {
                Some(body) => Answer::with(request, body),
                None => Answer::status(404),
            },
            "PUT" => {
                let body = Arc::new(request.body.clone());
                let fresh = self.objects.insert(path.clone(), body).is_none();
                Answer::status(if fresh { 201 } else { 204 })
            }
            _ => Answer::status(405),
        }
    }
}

fn accept(shared: &Arc<Shared>) {
    let mut handlers: Vec<JoinHandle<()>> = Vec::new();
    loop {
        if let Ok((stream, _)) = shared.listener.accept() {
            handlers.retain(|handler| !handler.is_finished());
            handlers.extend(admit(shared, stream));
            continue;
        }
        // Shut: until it is opened again, or for good.
        let state = shared.lock();
        let state = shared
            .changed
            .wait_while(state, |state| !state.stopping && state.refuses())
            .expect("no thread panics with the lock held");
        if state.stopping {
            break;
        }
    }
    for handler in handlers {
        // A handler that panicked has told so on stderr; the test fails by what it then misses.
        let _ = handler.join();
    }
}

fn admit(shared: &Arc<Shared>, stream: TcpStream) -> Option<JoinHandle<()>> {
    let mut state = shared.lock();
    if state.stopping || state.refuses() {
        return None;
    }
    state.connections_ever += 1;
    let id = state.connections_ever;
    state.connections.insert(id, stream.try_clone().ok()?);
    drop(state);
    let shared = shared.clone();
    Some(spawn("cache connection", move || {
        // An error is the client's leaving, or a fault that cut the connection.
        let _ = converse(&shared, stream);
        if let Some(stream) = shared.lock().connections.remove(&id) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }))
}

fn converse(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut output = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    while let Some(request) = http::read_request(&mut input)? {
        let method = request.method.as_str();
        let mut state = shared.lock();
        *state.requests.entry((request.method.clone(), request.path.clone())).or_default() += 1;
        state.authorizations.extend(request.header("authorization").map(str::to_owned));
        let fault = state.fault(method).cloned();
        state.faulty_answers += usize::from(fault.is_some());
        let mut answer = match fault {
            Some(Fault::Mixed) if method == "GET" => state.answer_mixed(&request),
            // Who answers so has stored nothing.
            Some(Fault::Status(_) | Fault::Redirect(_) | Fault::BlackHole) => Answer::status(503),
            _ => state.answer(&request),
        };
        state.bytes_sent += answer.body.len() as u64;
        drop(state);
        shared.changed.notify_all();
        if let Some(fault) = &fault {
            answer = answer.spoil(fault);
            if !keeps_waiting(shared, method, fault) {
                return Ok(());
            }
        }
        answer::write(shared, &mut output, method, fault.as_ref(), &answer)?;
        if answer.cut.is_some() || request.header("connection") == Some("close") {
            return Ok(());
        }
    }
    Ok(())
}

/// Serves the silence that a fault asks for; whether the connection goes on after it.
fn keeps_waiting(shared: &Shared, method: &str, fault: &Fault) -> bool {
    match fault {
        Fault::BlackHole => {
            while shared.hold(method, fault, PATIENCE) {}
            false
        }
        Fault::SlowFirstByte(time) => shared.hold(method, fault, *time),
        Fault::Refuse => false,
        Fault::Status(_)
        | Fault::Trickle(_)
        | Fault::CloseMidBody
        | Fault::WrongBytes
        | Fault::Truncated
        | Fault::Mixed
        | Fault::Redirect(_) => true,
    }
}

/// Listens on a port that the socket keeps while it is shut. Linux keeps it only if it was asked for
/// by number, hence the two steps.
fn listen() -> (TcpListener, SocketAddr) {
    let free = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = free.local_addr().expect("a bound socket has an address");
    drop(free);
    // Another process can have taken it in between; then another port will do.
    TcpListener::bind(addr).map_or_else(|_| listen(), |listener| (listener, addr))
}

#[expect(clippy::disallowed_methods, reason = "larder's own threads are not to be depended on")]
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread can be started")
}

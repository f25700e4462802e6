//! Puts and their uploads: what an acknowledgement takes while a hundred thousand uploads are owed and
//! upstream is down, and how long many small entries take to a cache that is far away.
//!
//! M6: p99 of an acknowledgement ≤ 5 ms. Small entries, over the simulated network: larder's uploads,
//! over HTTP and as go's outputs, against a client that puts one after the other on one connection,
//! of which a part is measured and multiplied.

#[expect(dead_code, reason = "clients and servers that other benches use")]
#[path = "../tests/support/mod.rs"]
mod tools;

mod support {
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod daemon;
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod measure;
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod wan;
}

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use larder::entry::Digest;
use larder::units::Clock;
use support::daemon::{Daemon, command};
use support::measure::{Plan, Table, Values, say, time};
use support::wan::{Link, Totals, Wan};

/// Of a body whose acknowledgement is timed.
const SMALL: usize = 1 << 10;
/// Of an entry that travels: go's are about as long, half of them.
const ENTRY: usize = 4 << 10;
const LINK: Link = Link { rtt: Duration::from_millis(50), bits_per_second: 1_000_000_000 };
/// Clients that put at the same time.
const CLIENTS: usize = 2;

fn main() {
    let plan = Plan::read();
    let work = tempfile::tempdir().expect("a temporary directory can be made");
    say(&format!("`{}`", Plan::command("upload")));
    acknowledgements(plan, work.path());
    uploads(plan, work.path());
}

/// M6.
fn acknowledgements(plan: Plan, work: &Path) {
    let (owed, timed) = if plan.is_short() { (2_000, 500) } else { (100_000, 20_000) };
    let mut table = Table::new(
        &format!(
            "Acknowledged puts of 1 KiB over HTTP, {CLIENTS} clients at a time; target: p99 ≤ 5 ms with \
             {owed} uploads owed and upstream down"
        ),
        &["upstream", "owed before", "N", "p50, ms", "p99, ms", "longest, ms"],
    );
    let down = format!("http://{}", closed());
    let flags: [(&str, Vec<&str>); 2] = [("none", vec![]), ("down", vec!["--upstream", &down])];
    for (name, flags) in flags {
        let dir = work.join(name);
        let daemon = Daemon::start(&dir, &flags);
        let put = |from, count| put_from(daemon.addr(), from, count);
        put(0, owed);
        let before = daemon.count("journal/owed_entries");
        let mut took = put(owed, timed);
        took.sort_unstable();
        let at = |share: f64| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place")]
            let at = (share * (took.len() - 1) as f64) as usize;
            format!("{:.3}", took[at].as_secs_f64() * 1e3)
        };
        table.row([
            name.to_owned(),
            before.to_string(),
            took.len().to_string(),
            at(0.5),
            at(0.99),
            at(1.0),
        ]);
    }
    table.print();
}

/// Puts so many bodies, shared among the clients; what each acknowledgement took.
fn put_from(addr: SocketAddr, from: usize, count: usize) -> Vec<Duration> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    let mut connection = Connection::new(addr);
                    let numbers = (from..from + count).filter(|number| number % CLIENTS == client);
                    numbers.map(|number| connection.put(number, SMALL)).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client ends")).collect()
    })
}

/// Many small entries over the network.
fn uploads(plan: Plan, work: &Path) {
    let (count, alone) = if plan.is_short() { (200, 10) } else { (10_000, 200) };
    let mut table = Table::new(
        &format!(
            "{count} entries of {ENTRY} bytes to a cache {} ms and 1 Gbit/s away",
            LINK.rtt.as_millis()
        ),
        &["who", "N", "seconds", "× faster", "requests", "MB over the link"],
    );
    let central = Daemon::start(&work.join("central"), &[]);
    let wan = Wan::start(central.addr(), LINK);
    let mut connection = Connection::new(wan.addr());
    let took = time(|| {
        for number in 0..alone {
            connection.put(number, ENTRY);
        }
    });
    let one_by_one = took.as_secs_f64() * f64::from(u32::try_from(count / alone).expect("few"));
    table.row([
        format!("one after the other (of {alone}, multiplied)"),
        "1".to_owned(),
        format!("{one_by_one:.2}"),
        "1".to_owned(),
        count.to_string(),
        String::new(),
    ]);
    for (name, fill) in [
        ("larder, over HTTP", put_over_http as fn(&Daemon, usize)),
        ("larder, go's outputs", put_as_go as fn(&Daemon, usize)),
    ] {
        let runs = plan.runs(3, 1);
        let all: Vec<(f64, Totals)> =
            (0..runs).map(|run| upload(&work.join(format!("{name}-{run}")), fill, count)).collect();
        let seconds: Values = all.iter().map(|(seconds, _)| *seconds).collect();
        let totals = all[all.len() - 1].1;
        table.row([
            name.to_owned(),
            runs.to_string(),
            seconds.show(2),
            format!("{:.0}", one_by_one / seconds.median()),
            totals.brought.to_string(),
            format!("{:.1}", totals.bytes_up as f64 / 1e6),
        ]);
    }
    table.print();
}

/// Seconds from the last put to the last upload, which begins while the first are put.
fn upload(dir: &Path, fill: fn(&Daemon, usize), count: usize) -> (f64, Totals) {
    let central = Daemon::start(&dir.join("central"), &[]);
    let wan = Wan::start(central.addr(), LINK);
    let daemon = Daemon::start(&dir.join("larder"), &["--upstream", &wan.url()]);
    let took = time(|| {
        fill(&daemon, count);
        daemon.flush();
    });
    let uploaded = daemon.count("journal/uploaded_entries");
    assert_eq!(uploaded, count as u64, "everything went up, once");
    (took.as_secs_f64(), wan.totals())
}

fn put_over_http(daemon: &Daemon, count: usize) {
    let mut connection = Connection::new(daemon.addr());
    for number in 0..count {
        connection.put(number, ENTRY);
    }
}

/// As go does: a helper, puts on its input, answers on its output.
fn put_as_go(daemon: &Daemon, count: usize) {
    let dir = daemon.store().parent().expect("the store is in a directory").to_owned();
    let mut helper = command(&dir);
    helper.arg("go").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = helper.spawn().expect("larder starts");
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let stdin = child.stdin.take().expect("a pipe");
    let answers = std::thread::scope(|scope| {
        let answers = scope.spawn(move || stdout.lines().map_while(Result::ok).count());
        ask_as_go(stdin, count);
        answers.join().expect("a reader ends")
    });
    // Its first word, and one for each put.
    assert_eq!(answers, count + 1);
    assert!(child.wait().expect("a helper ends").success());
}

/// Puts, and the end of the input.
fn ask_as_go(mut stdin: ChildStdin, count: usize) {
    for number in 0..count {
        let body = body(number, ENTRY);
        let encode = |bytes: &[u8]| BASE64.encode(bytes);
        let action = encode(&Digest::of(number.to_string().as_bytes()).0);
        let output = encode(&Digest::of(&body).0);
        let (id, body) = (number + 1, encode(&body));
        let question = format!(
            "{{\"ID\":{id},\"Command\":\"put\",\"ActionID\":\"{action}\",\"OutputID\":\"{output}\",\
             \"BodySize\":{ENTRY}}}\n\"{body}\"\n"
        );
        stdin.write_all(question.as_bytes()).expect("the helper reads");
    }
}

/// A connection that stays, one question at a time.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn new(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("a server listens");
        stream.set_nodelay(true).expect("a socket takes options");
        Self(BufReader::new(stream))
    }

    /// How long the answer took.
    fn put(&mut self, number: usize, size: usize) -> Duration {
        let head = format!(
            "PUT /kv/entry/{number} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
        );
        let question = [head.as_bytes(), &body(number, size)].concat();
        let clock = Clock::system();
        self.0.get_mut().write_all(&question).expect("the server reads");
        let length = self.head();
        self.0.read_exact(&mut vec![0; length]).expect("an answer is whole");
        clock.elapsed()
    }

    /// Reads a head that says 2xx; the length of what follows.
    fn head(&mut self) -> usize {
        let (mut length, mut line) = (0, String::new());
        self.0.read_line(&mut line).expect("the server answers");
        assert!(line.starts_with("HTTP/1.1 20"), "{line}");
        loop {
            line.clear();
            self.0.read_line(&mut line).expect("a head is whole");
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            if line.trim_end().is_empty() {
                return length;
            }
        }
    }
}

/// Bytes of which half are another's, so that they shrink as go's outputs do.
fn body(number: usize, size: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(size + 64);
    let mut digest = Digest::of(number.to_string().as_bytes());
    while body.len() < size {
        body.extend_from_slice(&digest.0);
        body.extend_from_slice(&[b'a'; 32]);
        digest = Digest::of(&digest.0);
    }
    body.truncate(size);
    body
}

/// A port where nobody listens.
fn closed() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address")
}

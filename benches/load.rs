//! Hot GETs over TCP with keep-alive: larder from its memory tier, and from its disk tier, against nginx
//! from files; what is on disk is in the page cache.
//!
//! M5: at least nginx's rate, p99 no worse. `wrk` makes the load and shares the machine with who is
//! measured, so rates are shares of processor time; rounds alternate, and the processor time of an
//! answer stands beside them. A second table has the unix socket, with a small generator of our own,
//! since `wrk` knows none; a third one keeps servers and generator on cores of their own, so that its
//! p99 is the server's and not the length of the scheduler's turns.

#[expect(dead_code, reason = "clients and servers that other benches use")]
#[path = "../tests/support/mod.rs"]
mod tools;

mod support {
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod daemon;
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod measure;
}

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder::units::Clock;
use support::daemon::Daemon;
use support::measure::{Plan, Table, Values, interleave, say};
use tools::nginx::Nginx;
use tools::{http, install};

/// Names are what follows `/kv/`, and nginx's files.
const BODIES: [(&str, usize); 3] = [("1KiB", 1 << 10), ("64KiB", 64 << 10), ("1MiB", 1 << 20)];
/// In `/proc`, whatever the kernel's own clock.
const TICK_US: f64 = 10_000.0;
/// Threads of a generator; connections are shared among them.
const THREADS: usize = 2;

/// A daemon that answers from one of its tiers, and nginx.
struct Rivals {
    daemon: Daemon,
    servers: [Server; 2],
    tier: Tier,
}

/// Where larder has it from.
#[derive(Clone, Copy)]
struct Tier {
    name: &'static str,
    flags: &'static [&'static str],
    /// Grows with each answer.
    counter: &'static str,
}

const TIERS: [Tier; 2] = [
    Tier { name: "from memory", flags: &[], counter: "requests/kv/hit_memory" },
    // No entry fits into a memory tier of nothing.
    Tier { name: "from disk", flags: &["--memory", "0"], counter: "requests/kv/hit_disk" },
];

/// Who serves, and where.
struct Server {
    name: &'static str,
    addr: SocketAddr,
    pid: u32,
}

/// What one run of `wrk` has told.
#[derive(Clone, Copy, Debug)]
struct Told {
    requests: u64,
    per_second: f64,
    /// Processor time of the server, each.
    cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
}

fn main() {
    let plan = Plan::read();
    let Some(wrk) = install::wrk() else { return };
    let work = tempfile::tempdir().expect("a temporary directory can be made");
    let root = work.path().join("root");
    fs::create_dir_all(root.join("kv")).expect("a directory can be made");
    for (name, size) in BODIES {
        fs::write(root.join("kv").join(name), body(size)).expect("a file can be written");
    }
    let Some(nginx) = Nginx::start_static(&root) else { return };
    say(&format!(
        "larder and nginx (two workers, sendfile, open_file_cache, no log); \
         `wrk -t{THREADS} --latency`; `{}`",
        Plan::command("load")
    ));
    let all = TIERS.map(|tier| Rivals::start(tier, &work.path().join(tier.name), &nginx));
    let runs = plan.runs(9, 1);
    for rivals in &all {
        over_tcp(plan, runs, &Generator::shared(&wrk), rivals);
        over_both(plan, rivals);
    }
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= 2) {
        for rivals in &all {
            rivals.servers.iter().for_each(|server| keep_on_core(server.pid, "1"));
            over_tcp(plan, runs, &Generator::apart(&wrk), rivals);
        }
    }
}

impl Rivals {
    /// Everything is put, and got twice, so that each has it where it will have it from.
    fn start(tier: Tier, dir: &Path, nginx: &Nginx) -> Self {
        let daemon = Daemon::start(dir, tier.flags);
        let servers = [
            Server { name: "larder", addr: daemon.addr(), pid: daemon.pid() },
            Server { name: "nginx", addr: nginx.addr(), pid: nginx.pid },
        ];
        for (name, size) in BODIES {
            let path = format!("/kv/{name}");
            let put = http::send(daemon.addr(), "PUT", &path, &body(size)).expect("larder answers");
            assert_eq!(put.status, 201, "PUT {path}");
            for server in &servers {
                for _ in 0..2 {
                    let got = http::send(server.addr, "GET", &path, b"").expect("a server answers");
                    assert!(got.status == 200 && got.body == body(size), "{} lies", server.name);
                }
            }
        }
        Self { daemon, servers, tier }
    }
}

/// `wrk`, and how it shares the machine with who is measured.
struct Generator<'a> {
    wrk: &'a Path,
    title: &'static str,
    threads: usize,
    connections: &'static [usize],
    core: Option<&'static str>,
}

impl<'a> Generator<'a> {
    const fn shared(wrk: &'a Path) -> Self {
        let title = "Hot GET over TCP; target: rate ≥ 1 × nginx, p99 ≤ 1 × nginx";
        Self { wrk, title, threads: THREADS, connections: &[THREADS, 16], core: None }
    }

    /// On the first core, while the servers have the second.
    const fn apart(wrk: &'a Path) -> Self {
        let title = "The same, the servers on one core, `wrk` with one thread on another";
        Self { wrk, title, threads: 1, connections: &[16], core: Some("0") }
    }

    fn command(&self) -> Command {
        let Some(core) = self.core else { return Command::new(self.wrk) };
        let mut command = Command::new("taskset");
        command.args(["-c", core]).arg(self.wrk);
        command
    }
}

/// All threads of a process and of its children.
fn keep_on_core(pid: u32, core: &str) {
    for pid in std::iter::once(pid).chain(children(pid)) {
        let output =
            Command::new("taskset").args(["-a", "-c", "-p", core]).arg(pid.to_string()).output();
        if !output.is_ok_and(|output| output.status.success()) {
            say(&format!("process {pid} was not kept on core {core}: others share it"));
        }
    }
}

fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children.unwrap_or_default().split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// Bytes that do not compress away and differ from each other.
fn body(size: usize) -> Vec<u8> {
    (0..size).map(|at| u8::try_from((at * 31 + at / 251) % 256).expect("a byte")).collect()
}

fn over_tcp(plan: Plan, runs: usize, generator: &Generator<'_>, rivals: &Rivals) {
    let Rivals { daemon, servers, tier } = rivals;
    let seconds = if plan.is_short() { 1 } else { 2 };
    let mut table = Table::new(
        &format!("{}, larder {}", generator.title, tier.name),
        &[
            "body",
            "connections",
            "N",
            "larder, 1/s",
            "nginx, 1/s",
            "rate, × nginx",
            "larder CPU, µs each",
            "nginx CPU, µs each",
            "larder p50, µs",
            "nginx p50, µs",
            "larder p99, µs",
            "nginx p99, µs",
            "p99, × nginx",
            "target",
        ],
    );
    for (name, _) in BODIES {
        for connections in generator.connections {
            let mut told: [Vec<Told>; 2] = [Vec::new(), Vec::new()];
            let before = daemon.count(tier.counter);
            interleave(&[0, 1], runs, |at| {
                let url = format!("http://{}/kv/{name}", servers[*at].addr);
                let before = processor_us(servers[*at].pid);
                let mut run = load(generator, &url, *connections, seconds);
                run.cpu_us = (processor_us(servers[*at].pid) - before) / run.requests as f64;
                told[*at].push(run);
                run.per_second
            });
            let asked: u64 = told[0].iter().map(|run| run.requests).sum();
            let hits = daemon.count(tier.counter) - before;
            assert!(hits >= asked, "{hits} answers {} to {asked} requests", tier.name);
            table.row(row(name, *connections, &told));
        }
    }
    table.print();
}

fn row(name: &str, connections: usize, told: &[Vec<Told>; 2]) -> Vec<String> {
    let values = |at: usize, of: fn(&Told) -> f64| told[at].iter().map(of).collect::<Values>();
    let rates = [values(0, |run| run.per_second), values(1, |run| run.per_second)];
    let cpu = [values(0, |run| run.cpu_us), values(1, |run| run.cpu_us)];
    let p50 = [values(0, |run| run.p50_us), values(1, |run| run.p50_us)];
    let p99 = [values(0, |run| run.p99_us), values(1, |run| run.p99_us)];
    let (rate, tail) = (rates[0].over(&rates[1]), p99[0].over(&p99[1]));
    let is_met = rate.median() >= 1.0 && tail.median() <= 1.0;
    vec![
        name.to_owned(),
        connections.to_string(),
        rates[0].len().to_string(),
        rates[0].show(0),
        rates[1].show(0),
        rate.show(2),
        cpu[0].show(1),
        cpu[1].show(1),
        p50[0].show(0),
        p50[1].show(0),
        p99[0].show(0),
        p99[1].show(0),
        tail.show(2),
        if is_met { "met" } else { "missed" }.to_owned(),
    ]
}

/// One run of `wrk`; anything but answers with 200 is a panic.
fn load(generator: &Generator<'_>, url: &str, connections: usize, seconds: u32) -> Told {
    let mut command = generator.command();
    command.arg(format!("-t{}", generator.threads)).arg(format!("-c{connections}"));
    command.arg(format!("-d{seconds}s")).args(["--latency", url]).stdin(Stdio::null());
    let output = command.output().expect("wrk starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let is_clean = !text.contains("Non-2xx") && !text.contains("Socket errors");
    assert!(output.status.success() && is_clean, "{command:?}: {text}");
    let told = read(&text);
    told.unwrap_or_else(|| panic!("wrk says something else than it used to: {text}"))
}

fn read(text: &str) -> Option<Told> {
    let after = |label: &str| Some(text.split_once(label)?.1.split_whitespace().next()?.to_owned());
    let requests = text.split_once(" requests in ")?.0.rsplit([' ', '\n']).next()?;
    Some(Told {
        requests: requests.parse().ok()?,
        per_second: after("Requests/sec:")?.parse().ok()?,
        cpu_us: 0.0,
        p50_us: micros(&after(" 50%")?)?,
        p99_us: micros(&after(" 99%")?)?,
    })
}

/// What a process and its children have had of the processors. Unlike rates, this does not depend on
/// who else wants them.
fn processor_us(pid: u32) -> f64 {
    let ticks = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may hold anything: state, ten numbers, then user and system time.
        let mut numbers = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(numbers.next()?.parse::<f64>().ok()? + numbers.next()?.parse::<f64>().ok()?)
    };
    let total: f64 = std::iter::once(pid).chain(children(pid)).filter_map(ticks).sum();
    total * TICK_US
}

/// `24.00us`, `1.20ms` or `2.00s`.
fn micros(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    number.parse::<f64>().ok().map(|number| number * factor)
}

/// A way to a server for the own generator.
enum Way {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Way {
    fn connect(&self) -> Box<dyn Wire> {
        match self {
            Self::Tcp(addr) => {
                let stream = TcpStream::connect(addr).expect("a server listens");
                stream.set_nodelay(true).expect("a socket takes options");
                Box::new(stream)
            }
            Self::Unix(path) => Box::new(UnixStream::connect(path).expect("larder listens")),
        }
    }
}

trait Wire: Read + Write {}
impl Wire for TcpStream {}
impl Wire for UnixStream {}

fn over_both(plan: Plan, rivals: &Rivals) {
    let servers = &rivals.servers;
    let socket = Way::Unix(rivals.daemon.socket());
    let ways = [socket, Way::Tcp(servers[0].addr), Way::Tcp(servers[1].addr)];
    let (runs, time) = if plan.is_short() { (1, 300) } else { (9, 1000) };
    let mut table = Table::new(
        &format!(
            "Hot GET, own generator, two connections, one question at a time, larder {}",
            rivals.tier.name
        ),
        &[
            "body",
            "N",
            "larder, unix socket, 1/s",
            "larder, TCP, 1/s",
            "nginx, TCP, 1/s",
            "unix, × TCP",
        ],
    );
    for (name, size) in BODIES {
        let rates = interleave(&ways, plan.runs(runs, runs), |way| {
            generate(way, &format!("/kv/{name}"), size, Duration::from_millis(time))
        });
        let mut cells = vec![name.to_owned(), rates[0].len().to_string()];
        cells.extend(rates.iter().map(|rate| rate.show(0)));
        cells.push(rates[0].over(&rates[1]).show(2));
        table.row(cells);
    }
    table.print();
}

/// Requests per second over as many connections as there are threads.
fn generate(way: &Way, path: &str, size: usize, time: Duration) -> f64 {
    let clock = Clock::system();
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut wire = way.connect();
                let mut buffer = vec![0; 256 << 10];
                while clock.elapsed() < time {
                    ask(&mut *wire, path, size, &mut buffer);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    count.load(Ordering::Relaxed) as f64 / clock.elapsed().as_secs_f64()
}

/// One question; the body's length is known, its bytes were compared before.
fn ask(wire: &mut dyn Wire, path: &str, size: usize, buffer: &mut [u8]) {
    let question = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    wire.write_all(question.as_bytes()).expect("a server reads");
    let mut got = 0;
    let mut whole = None;
    while whole.is_none_or(|whole| got < whole) {
        // The head comes in one piece; later pieces need not be kept.
        let n = wire.read(buffer).expect("a server answers");
        assert!(n > 0, "the server hung up");
        if whole.is_none() {
            let end = buffer[..n].windows(4).position(|four| four == b"\r\n\r\n");
            assert!(buffer.starts_with(b"HTTP/1.1 200"), "not an answer");
            whole = Some(end.expect("a head is short") + 4 + size);
        }
        got += n;
    }
    assert_eq!(whole, Some(got), "more than one answer");
}

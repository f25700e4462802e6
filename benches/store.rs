//! The store with millions of entries: filled, opened again, opened after a kill and after a boot,
//! halved; and the daemon at rest upon it.
//!
//! ```text
//! cargo bench --bench store -- [--entries 1000000,10000000] [--runs N] [--short]
//! ```
//!
//! M7: the first correct hit 100 ms after the start of the process, also after SIGKILL; resident 100 MiB
//! at most beyond the memory tier. M9: 50 MiB at rest, and no wake-ups; a helper announces itself within
//! 5 ms. Filling is done in this process, since HTTP is `load`'s; everything else with the program.

#[expect(dead_code, reason = "clients and servers that other benches use")]
#[path = "../tests/support/mod.rs"]
mod tools;

mod support {
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod daemon;
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod measure;
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod proc;
}

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use larder::entry::{Class, Digest, Key, Meta, RealmId};
use larder::store::{Config, Store};
use larder::telemetry::Metrics;
use larder::units::{Clock, Timestamp};
use support::daemon::{Daemon, command};
use support::measure::{Plan, Table, Values, option, say, time};
use support::proc;
use tools::http;

/// Of a body; small ones are many.
const BODY: usize = 128;
/// What one commit brings to stable storage at the latest.
const SYNC_WITHIN: Duration = Duration::from_secs(120);
/// Entries that are put through the daemon before it is killed.
const LATE: usize = 2_000;
/// How long a daemon is left alone before it is looked at, and while its wake-ups are counted.
const REST: Duration = Duration::from_secs(20);

fn main() {
    let plan = Plan::read();
    let default = if plan.is_short() { "20000" } else { "1000000,10000000" };
    let list = option("--entries").unwrap_or_else(|| default.to_owned());
    say(&format!("bodies of {BODY} bytes; `{}`", Plan::command("store")));
    for count in list.split(',') {
        let entries = count.parse().expect("--entries takes numbers with commas between");
        let work = tempfile::tempdir().expect("a temporary directory can be made");
        let house = House::fill(work.path(), entries);
        house.starts(plan);
        house.rests(plan);
        house.halves();
    }
}

/// A store of so many entries, and the daemon's directory about it.
struct House {
    dir: PathBuf,
    entries: u32,
}

impl House {
    fn fill(dir: &Path, entries: u32) -> Self {
        let house = Self { dir: dir.to_owned(), entries };
        // It says under which number the daemon keeps what clients put over HTTP.
        let daemon = Daemon::start(dir, &[]);
        let put = http::send(daemon.addr(), "PUT", "/kv/first", b"first").expect("larder answers");
        assert_eq!(put.status, 201);
        drop(daemon);
        let before = proc::resident("self");
        let config = Config { dir: house.store(), disk: None, floor: None };
        let store = Store::open(&config, Clock::system(), Arc::new(Metrics::default()));
        let store = store.expect("a store can be opened");
        let realm = store.realms().first().expect("a realm is remembered").0;
        let took = time(|| {
            for number in 0..entries {
                put_one(&store, realm, number);
                if number % 1_000_000 == 999_999 {
                    say(&format!("{} entries are in", number + 1));
                }
            }
            assert!(store.sync(SYNC_WITHIN), "the store commits");
        });
        let memory = proc::resident("self").anonymous.saturating_sub(before.anonymous);
        let closed = time(|| store.close());
        drop(store);
        let each = |bytes: u64| bytes as f64 / f64::from(entries);
        let (segments, index) = (
            proc::bytes_under(&house.store().join("segments")),
            proc::bytes_under(&house.store().join("index")),
        );
        let mut table = Table::new(
            &format!("A store of {entries} entries, filled"),
            &[
                "entries",
                "µs a put, commits included",
                "close, s",
                "bytes an entry: segments",
                "index",
                "memory",
            ],
        );
        table.row([
            entries.to_string(),
            format!("{:.1}", took.as_secs_f64() * 1e6 / f64::from(entries)),
            format!("{:.2}", closed.as_secs_f64()),
            format!("{:.0} (body {BODY})", each(segments)),
            format!("{:.0}", each(index)),
            format!("{:.1}", each(memory)),
        ]);
        table.print();
        house
    }

    fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// M7, from the start of the process to the last byte of the first right answer.
    fn starts(&self, plan: Plan) {
        let mut table = Table::new(
            &format!(
                "{} entries: first correct hit after the start of the process; target ≤ 100 ms, resident \
                 ≤ 100 MiB",
                self.entries
            ),
            &[
                "the last process",
                "N",
                "ms",
                "ms to the socket",
                "resident, MiB",
                "of which own memory",
            ],
        );
        let runs = plan.runs(7, 1);
        for (name, case) in [
            ("ended in order", Last::Ended),
            ("ended in order, and nothing is in the page cache", Last::Forgotten),
            ("killed while clients put", Last::Killed),
            ("was of an earlier boot", Last::Booted),
        ] {
            let runs = if case == Last::Booted { runs.min(3) } else { runs };
            let runs = u32::try_from(runs).expect("few runs");
            let starts: Vec<Start> = (0..runs).map(|run| self.start_after(case, run)).collect();
            let values = |of: &dyn Fn(&Start) -> f64| starts.iter().map(of).collect::<Values>();
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            table.row([
                name.to_owned(),
                runs.to_string(),
                values(&|start| start.hit.as_secs_f64() * 1e3).show(1),
                values(&|start| start.socket.as_secs_f64() * 1e3).show(1),
                values(&|start| mib(start.resident.all)).show(1),
                values(&|start| mib(start.resident.anonymous)).show(1),
            ]);
        }
        table.print();
    }

    fn start_after(&self, case: Last, run: u32) -> Start {
        let mut key = format!("entry/{:08}", (run * 7_919 + 17) % self.entries);
        let mut wanted = body_of(&key);
        match case {
            Last::Ended => {}
            Last::Forgotten => proc::forget(&self.store()),
            Last::Booted => {
                fs::remove_file(self.store().join("index.trust"))
                    .expect("a note of the index is there");
            }
            Last::Killed => {
                let mut daemon = Daemon::start(&self.dir, &[]);
                for number in 0..LATE {
                    key = format!("late/{run}/{number}");
                    wanted = body_of(&key);
                    let put = http::send(daemon.addr(), "PUT", &format!("/kv/{key}"), &wanted);
                    assert_eq!(put.expect("larder answers").status, 201);
                }
                daemon.kill();
            }
        }
        let start = self.start(&key, &wanted);
        // What the killed one has left is cleaned up by an end in order.
        drop(Daemon::start(&self.dir, &[]));
        start
    }

    fn start(&self, key: &str, wanted: &[u8]) -> Start {
        let log = File::create(self.dir.join("start.log")).expect("a log can be made");
        let clock = Clock::system();
        let mut child = command(&self.dir)
            .args(["daemon", "--listen", "127.0.0.1:0", "--admin", "off"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("larder starts");
        let socket = self.dir.join("run").join("larder.sock");
        let mut stream = connect(&socket, &mut child);
        let to_socket = clock.elapsed();
        let question =
            format!("GET /kv/{key} HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n");
        stream.write_all(question.as_bytes()).expect("the daemon reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the daemon answers");
        let hit = clock.elapsed();
        assert!(
            answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(wanted),
            "{key} is not there"
        );
        let resident = proc::resident(&child.id().to_string());
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.expect("a child has a number");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        assert!(child.wait().expect("a child ends").success(), "the daemon ends in order");
        Start { socket: to_socket, hit, resident }
    }

    /// M9.
    fn rests(&self, plan: Plan) {
        let rest = if plan.is_short() { Duration::from_secs(3) } else { REST };
        let daemon = Daemon::start(&self.dir, &[]);
        let pid = daemon.pid().to_string();
        std::thread::park_timeout(rest);
        let (before, used) = (proc::switches(&pid), proc::ticks(&pid));
        std::thread::park_timeout(rest);
        let a_second = (proc::switches(&pid) - before) as f64 / rest.as_secs_f64();
        let used = proc::ticks(&pid) - used;
        let resident = proc::resident(&pid);
        let announced: Values =
            (0..plan.runs(21, 3)).map(|_| announce(&daemon).as_secs_f64() * 1e3).collect();
        let mut table = Table::new(
            &format!(
                "{} entries, a daemon at rest for {rest:?}; target ≤ 50 MiB resident, no wake-ups worth \
                 naming, a helper announces itself within 5 ms",
                self.entries
            ),
            &[
                "resident, MiB",
                "of which own memory",
                "wake-ups a second",
                "processor time, ms a minute",
                "helper's first word, ms",
            ],
        );
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        table.row([
            mib(resident.all),
            mib(resident.anonymous),
            format!("{a_second:.2}"),
            format!("{:.0}", used.as_secs_f64() * 60e3 / rest.as_secs_f64()),
            announced.show(1),
        ]);
        table.print();
    }

    /// A daemon that may keep half of what is there.
    fn halves(&self) {
        let used = proc::bytes_under(&self.store().join("segments"));
        let limit = used / 2;
        let daemon = Daemon::start(&self.dir, &["--disk", &limit.to_string(), "--disk-floor", "0"]);
        let entries = daemon.count("disk/entries");
        let mut last = 0;
        let took = time(|| {
            let mut quiet = 0;
            while daemon.count("disk/bytes") > limit && quiet < 600 {
                std::thread::park_timeout(Duration::from_millis(100));
                let evicted = daemon.count("disk/evicted_entries");
                quiet = if evicted == last { quiet + 1 } else { 0 };
                last = evicted;
            }
        });
        let left = daemon.count("disk/entries");
        let is_done = daemon.count("disk/bytes") <= limit;
        let mut table = Table::new(
            &format!("{} entries, the limit made half of what is used", self.entries),
            &[
                "entries before",
                "after",
                "s",
                "entries a second",
                "within the limit",
                "segments, MB",
                "index, MB",
            ],
        );
        table.row([
            entries.to_string(),
            left.to_string(),
            format!("{:.1}", took.as_secs_f64()),
            format!("{:.0}", entries.saturating_sub(left) as f64 / took.as_secs_f64()),
            if is_done { "yes" } else { "no" }.to_owned(),
            format!("{:.0}", proc::bytes_under(&self.store().join("segments")) as f64 / 1e6),
            format!("{:.0}", proc::bytes_under(&self.store().join("index")) as f64 / 1e6),
        ]);
        table.print();
    }
}

/// How the process before ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Ended,
    Forgotten,
    Killed,
    Booted,
}

struct Start {
    socket: Duration,
    hit: Duration,
    resident: proc::Resident,
}

fn put_one(store: &Store, realm: RealmId, number: u32) {
    let name = format!("entry/{number:08}");
    let key = Key::opaque(realm, &name).expect("a short name");
    let mut staged = store.stage();
    staged.write(&body_of(&name)).expect("a body can be written");
    let finished = staged.finish();
    let meta = Meta::new(finished.digest, finished.size, Timestamp(0), Class::Other);
    store.put(&key, finished, &meta, None).expect("an entry can be stored");
}

/// A body that no other key has.
fn body_of(key: &str) -> Vec<u8> {
    let digest = Digest::of(key.as_bytes());
    digest.0.iter().copied().cycle().take(BODY).collect()
}

fn connect(socket: &Path, child: &mut Child) -> UnixStream {
    let clock = Clock::system();
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return stream;
        }
        let ended = child.try_wait().expect("a child can be asked for");
        assert!(
            ended.is_none() && clock.elapsed() < Duration::from_secs(300),
            "no daemon: {ended:?}"
        );
        std::thread::park_timeout(Duration::from_micros(200));
    }
}

/// From the start of a helper to its first word.
fn announce(daemon: &Daemon) -> Duration {
    let dir = daemon.store().parent().expect("the store is in a directory").to_owned();
    let mut helper = command(&dir);
    helper.arg("go").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let clock = Clock::system();
    let mut child = helper.spawn().expect("larder starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("the helper speaks");
    let took = clock.elapsed();
    assert!(line.contains("KnownCommands"), "{line}");
    drop(child.stdin.take());
    child.wait().expect("a helper ends at the end of its input");
    took
}

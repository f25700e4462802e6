//! An hour at half load with everything that goes on in one: more entries than there is room for, an
//! upstream that fails now and then, clients that hang up, purges. What must be flat is sampled: memory,
//! descriptors, threads, disk, wake-ups.
//!
//! ```text
//! cargo bench --bench soak -- [--minutes N] [--short]
//! ```
//!
//! A table over time, then the medians of the first and the last quarter side by side. Nothing is judged
//! by time; wrong bytes, a daemon that has ended and a store with damage end the bench with an error.

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
    pub(crate) mod talk;
}

#[path = "steady/guests.rs"]
mod guests;
#[path = "steady/samples.rs"]
mod samples;

use std::process::Stdio;
use std::time::Duration;

use guests::{Guests, Tally};
use larder::units::Clock;
use samples::{Samples, mib};
use support::daemon::{Daemon, command};
use support::measure::{Plan, Table, option, say};
use support::proc;
use tools::cache_server::{CacheServer, Fault};

/// What is put, and less than a third of it as the store's limit, so that room is made all the time.
const FULL: (u64, &str) = (40_000, "192MiB");
const SHORT: (u64, &str) = (4_000, "24MiB");
const MEMORY: &str = "32MiB";
/// Rows of the table over time.
const ROWS: usize = 12;
/// Samples of each row; four rows must be a third of all.
const SAMPLES: usize = 10;
/// So often the upstream changes its mind, and the store is purged, in the whole time: the first time in
/// the middle of it.
const MOODS: u32 = 40;
const PURGES: u32 = 2;

fn main() {
    let plan = Plan::read();
    let minutes = option("--minutes").map(|n| n.parse::<f64>().expect("--minutes takes a number"));
    let default = if plan.is_short() { 0.75 } else { 60.0 };
    let time = Duration::from_secs_f64(minutes.unwrap_or(default) * 60.0);
    let work = tempfile::tempdir().expect("a temporary directory can be made");
    let server = CacheServer::start();
    let (entries, disk) = if plan.is_short() { SHORT } else { FULL };
    let flags =
        ["--upstream", &server.url(), "--disk", disk, "--disk-floor", "0", "--memory", MEMORY];
    let daemon = Daemon::start(&work.path().join("larder"), &flags);
    say(&format!(
        "{entries} entries, store of {disk}, memory tier of {MEMORY}, an upstream that fails, {:.0} s; `{}`",
        time.as_secs_f64(),
        Plan::command("soak")
    ));
    let (guests, tally) = (Guests::start(&daemon, entries), Tally::default());
    // Until the tiers are full and every kind of fault has been met with once.
    stay(&daemon, &server, time / 10, 1, &tally, &guests);
    let samples = stay(&daemon, &server, time, ROWS * SAMPLES, &tally, &guests);
    guests.end();
    samples.print(SAMPLES);
    samples.compare();
    server.heal();
    rest(&daemon, plan, &tally);
}

/// Plays upstream's moods and the purges for so long; samples taken meanwhile.
fn stay(
    daemon: &Daemon,
    server: &CacheServer,
    time: Duration,
    count: usize,
    tally: &Tally,
    guests: &Guests,
) -> Samples {
    let clock = Clock::system();
    let (mut samples, mut turn) = (Samples::begin(daemon.pid(), guests.counts()), Turns::default());
    let every = time / u32::try_from(count).expect("few samples");
    while clock.elapsed() < time {
        turn.mood(server, time, clock.elapsed());
        turn.purge(daemon, time, clock.elapsed());
        guests.check();
        let next = every * u32::try_from(samples.len() + 1).expect("few samples");
        // Moods change between samples too.
        let until = next.min(clock.elapsed() + time / (4 * MOODS)).min(time);
        std::thread::park_timeout(until.saturating_sub(clock.elapsed()));
        if clock.elapsed() >= next {
            assert!(proc::entries(&daemon.pid().to_string(), "fd") > 0, "the daemon has ended");
            let disk = proc::bytes_under(&daemon.store());
            samples.take(disk, daemon.count("journal/owed_entries"), guests.counts(), tally);
        }
    }
    samples
}

/// How far the plan of faults has come.
#[derive(Default)]
struct Turns {
    moods: u32,
    purges: u32,
}

impl Turns {
    /// Well, then something wrong, then well again.
    fn mood(&mut self, server: &CacheServer, time: Duration, now: Duration) {
        let due = (now.as_secs_f64() / time.as_secs_f64() * f64::from(MOODS)).ceil();
        if f64::from(self.moods) >= due {
            return;
        }
        let wrong = [
            Fault::Refuse,
            Fault::Status(503),
            Fault::CloseMidBody,
            Fault::BlackHole,
            Fault::SlowFirstByte(Duration::from_millis(200)),
        ];
        match self.moods % 3 {
            1 => server.set_fault(wrong[self.moods as usize / 3 % wrong.len()].clone()),
            _ => server.heal(),
        }
        self.moods += 1;
    }

    fn purge(&mut self, daemon: &Daemon, time: Duration, now: Duration) {
        let due = (now.as_secs_f64() / time.as_secs_f64() * f64::from(PURGES)).floor();
        if f64::from(self.purges) < due {
            self.purges += 1;
            run(daemon, &["purge", "--all"]);
        }
    }
}

/// A command that must end well.
fn run(daemon: &Daemon, words: &[&str]) {
    let dir = daemon.store().parent().expect("the store is in a directory").to_owned();
    let output = command(&dir).args(words).stdin(Stdio::null()).output().expect("larder starts");
    assert!(
        output.status.success(),
        "larder {} ended with {}: {}",
        words.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// When all have gone: what is owed arrives, nothing is damaged, nothing is awake.
fn rest(daemon: &Daemon, plan: Plan, tally: &Tally) {
    daemon.flush();
    run(daemon, &["verify"]);
    let pid = daemon.pid().to_string();
    let time = Duration::from_secs(if plan.is_short() { 2 } else { 60 });
    std::thread::park_timeout(time);
    let (before, clock) = (proc::switches(&pid), Clock::system());
    std::thread::park_timeout(time);
    let wakes = (proc::switches(&pid) - before) as f64 / clock.elapsed().as_secs_f64();
    let mut table = Table::new(
        "When all have gone",
        &["resident, MiB", "own memory", "descriptors", "threads", "wake-ups, 1/s", "owed"],
    );
    let now = proc::resident(&pid);
    table.row([
        format!("{:.1}", mib(now.all)),
        format!("{:.1}", mib(now.anonymous)),
        proc::entries(&pid, "fd").to_string(),
        proc::entries(&pid, "task").to_string(),
        format!("{wakes:.2}"),
        daemon.count("journal/owed_entries").to_string(),
    ]);
    table.print();
    say(&tally.words(&daemon.stats()));
}

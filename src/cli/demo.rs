//! `larder demo`: the whole story in a minute, in a temporary directory, with nothing installed.
//!
//! A central cache, a link of 50 ms, two machines: all of it real processes of this very program.
//! Here are the story and what it must come to; the parts are in `demo/`. Whatever happens, the
//! directory and the processes are gone at the end.

use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::ArgMatches;
use serde_json::json;

use super::summary::Summary;
use super::{FAILED, Failure, Outcome, out};
use crate::config::{Sources, raw};
use crate::units::{Clock, show_count};

mod conversation;
mod link;
mod machine;
mod real_go;

use conversation::{Conversation, Heard, spoil};
use link::{DelayedLink, ROUND_TRIP};
use machine::Machine;
use real_go::Go;

/// As shells tell Ctrl-C.
const INTERRUPTED: u8 = 130;
/// Lookups of unknown code while the central cache is dead: enough to see that nobody waits.
const UNKNOWN: usize = 80;

/// Why the story did not come to its end.
#[derive(Debug)]
pub(super) struct Broken(String);

/// Somebody wants it to end.
#[derive(Debug)]
struct Interrupted;

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<Interrupted> for Broken {
    fn from(_: Interrupted) -> Self {
        Self("interrupted".into())
    }
}

/// Tells the story. 1: a promise broke.
pub(super) fn demo(matches: &ArgMatches) -> Outcome {
    let sources = Sources::from_process(raw::flags_of(matches));
    let stop = Arc::new(AtomicBool::new(false));
    for signal in
        [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
    {
        // Where it cannot be registered, the signal ends us as any program.
        let _ = signal_hook::flag::register(signal, stop.clone());
    }
    let temp = sources.text("TMPDIR").unwrap_or_else(|| "/tmp".into());
    let told = TempDir::new(Path::new(&temp)).map_err(Broken::from).and_then(|dir| {
        let mut story = Story::begin(&dir.0, &stop)?;
        story.tell(sources.variable("PATH").as_deref())?;
        Ok(story.table)
    });
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::new(INTERRUPTED, "interrupted; everything is removed"));
    }
    let table = told.map_err(|Broken(problem)| Failure::new(FAILED, problem))?;
    out::print(&format!("\n{table}"));
    if !table.broken.is_empty() {
        return Err(Failure::new(FAILED, table.broken.join("\n")));
    }
    out::print("every promise held; everything is removed");
    Ok(0)
}

/// A directory that is gone with its owner.
struct TempDir(PathBuf);

impl TempDir {
    /// Its name is short, because the path of a socket must be.
    fn new(temp: &Path) -> std::io::Result<Self> {
        let dir = temp.join(format!("larder-demo-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A helper of a killed go may still be writing its last word.
        for _ in 0..50 {
            if std::fs::remove_dir_all(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What a step must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// Nothing is known yet.
    AllMisses,
    /// But for a few that were given up to save time.
    AllHits,
    /// And the central cache is not asked for any of it.
    AllHitsHere,
    /// A miss, or the truth; either is right.
    NoLie,
}

/// One line of the table.
struct Row {
    step: &'static str,
    hits: u64,
    misses: u64,
    took: Duration,
    requests: u64,
}

#[derive(Default)]
struct Table {
    rows: Vec<Row>,
    /// Promises that broke.
    broken: Vec<String>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.step.len()).max().unwrap_or(0);
        let head = ("step", "hits", "misses", "seconds", "requests over the link");
        writeln!(f, "{:width$} {:>7} {:>7} {:>8}  {}", head.0, head.1, head.2, head.3, head.4)?;
        for row in &self.rows {
            let (hits, misses) = (show_count(row.hits), show_count(row.misses));
            let (seconds, requests) = (row.took.as_secs_f64(), show_count(row.requests));
            writeln!(f, "{:width$} {hits:>7} {misses:>7} {seconds:>8.2}  {requests:>7}", row.step)?;
        }
        Ok(())
    }
}

/// The machines and what has come of them so far.
struct Story<'a> {
    a: Machine,
    b: Machine,
    central: Option<Machine>,
    table: Table,
    clock: Clock,
    stop: &'a AtomicBool,
    /// Dropped last: its connections end with the machines.
    _link: DelayedLink,
}

impl<'a> Story<'a> {
    fn begin(dir: &Path, stop: &'a AtomicBool) -> Result<Self, Broken> {
        let ms = ROUND_TRIP.as_millis();
        out::print(&format!(
            "a central cache, {ms} ms away; machines A and B; all in {}",
            dir.display()
        ));
        let central = Machine::start(dir, "central", None)?;
        let link = DelayedLink::to(central.http()?)?;
        let a = Machine::start(dir, "a", Some(link.url()))?;
        let b = Machine::start(dir, "b", Some(link.url()))?;
        let clock = Clock::system();
        let (table, central) = (Table::default(), Some(central));
        Ok(Self { a, b, central, table, clock, stop, _link: link })
    }

    fn tell(&mut self, path: Option<&std::ffi::OsStr>) -> Result<(), Broken> {
        let build = Conversation::recorded("one");
        self.build("A builds, nothing is cached", Who::A, &build, Expect::AllMisses)?;
        self.flush("A flushes its uploads")?;
        self.build("A builds again", Who::A, &build, Expect::AllHitsHere)?;
        self.build("B builds, its disk is empty", Who::B, &build, Expect::AllHits)?;
        self.build("B builds again", Who::B, &build, Expect::AllHitsHere)?;
        match Go::find(path) {
            Ok(go) => self.build_with_go(&go)?,
            Err(why) => out::print(&format!("  the real go is skipped: {why}")),
        }
        if let Some(central) = self.central.take() {
            central.kill();
            out::print("  the central cache is killed (SIGKILL)");
        }
        self.build("B builds, central is dead", Who::B, &build, Expect::AllHitsHere)?;
        let unknown = Conversation::recorded("two").first(UNKNOWN);
        self.build("B builds unknown code", Who::B, &unknown, Expect::AllMisses)?;
        let one = build.largest();
        let heard = self.build("B looks up one output", Who::B, &one, Expect::AllHitsHere)?;
        spoil(heard.paths.first().ok_or_else(|| Broken("no file to spoil".into()))?)?;
        out::print("  a byte of its file is changed on B's disk");
        self.build("B looks it up, spoilt", Who::B, &one, Expect::NoLie)?;
        self.build("B looks it up, made again", Who::B, &one, Expect::AllHits)?;
        Ok(())
    }

    fn machine(&self, who: Who) -> &Machine {
        match who {
            Who::A => &self.a,
            Who::B => &self.b,
        }
    }

    fn build(
        &mut self,
        step: &'static str,
        who: Who,
        conversation: &Conversation,
        expect: Expect,
    ) -> Result<Heard, Broken> {
        let machine = self.machine(who);
        let given_up = machine.given_up()?;
        let (before, start) = (machine.requests()?, self.clock.elapsed());
        let heard = conversation.hold(machine.helper()?, self.stop)?;
        let took = self.clock.elapsed() - start;
        let requests = machine.requests()?.since(before);
        let given_up = machine.given_up()? - given_up;
        self.go_on()?;
        let (hits, misses) = (heard.hits, heard.misses);
        if heard.lies > 0 {
            self.broke(step, format!("{} files are not what was put", heard.lies));
        }
        match expect {
            Expect::AllMisses if hits > 0 => self.broke(step, format!("{hits} unknown hits")),
            Expect::AllHitsHere if misses > 0 => self.broke(step, format!("{misses} misses")),
            // On a machine that is busy with other things, building may be sooner than waiting.
            Expect::AllHits if misses > given_up || misses > hits / 10 => {
                self.broke(step, format!("{misses} misses, {given_up} of them to save time"));
            }
            // Uploads may still go on, and a session that ends or begins reads its manifest and trails.
            Expect::AllHitsHere if requests.gets > hits / 10 => {
                self.broke(step, format!("{} requests for what is here", requests.gets));
            }
            Expect::AllMisses | Expect::AllHits | Expect::AllHitsHere | Expect::NoLie => {}
        }
        self.row(Row { step, hits, misses, took, requests: requests.all() });
        Ok(heard)
    }

    fn flush(&mut self, step: &'static str) -> Result<(), Broken> {
        let (before, start) = (self.a.requests()?, self.clock.elapsed());
        let left = self.a.flush()?;
        if left > 0 {
            self.broke(step, format!("{left} uploads are left"));
        }
        let took = self.clock.elapsed() - start;
        let requests = self.a.requests()?.since(before);
        self.row(Row { step, hits: 0, misses: 0, took, requests: requests.all() });
        self.go_on()
    }

    fn build_with_go(&mut self, go: &Go) -> Result<(), Broken> {
        out::print(&format!("  the real {} builds a small program", go.version));
        let on_a = self.go_build("A: go build", Who::A, go)?;
        self.flush("A flushes its uploads")?;
        let on_b = self.go_build("B: go build, from central", Who::B, go)?;
        if on_a != on_b {
            self.broke("go build", "the programs of A and B differ".into());
        }
        out::print(
            "  (B's misses: indexes of package directories hold for one machine, and the link)",
        );
        Ok(())
    }

    fn go_build(&mut self, step: &'static str, who: Who, go: &Go) -> Result<Vec<u8>, Broken> {
        let machine = self.machine(who);
        let (before, start) = (machine.requests()?, self.clock.elapsed());
        let program = go.build(machine, step, self.stop)?;
        let took = self.clock.elapsed() - start;
        let sum = Summary::of(&machine.ask(&json!({"op": "sessions", "id": step}))?, step);
        let requests = machine.requests()?.since(before);
        let hits = sum.hits_near + sum.hits_upstream;
        if who == Who::B && hits == 0 {
            self.broke(step, "no hits".into());
        }
        self.row(Row { step, hits, misses: sum.misses, took, requests: requests.all() });
        Ok(program)
    }

    /// Notes a line of the table and shows it at once.
    fn row(&mut self, row: Row) {
        let (hits, misses, seconds) = (row.hits, row.misses, row.took.as_secs_f64());
        out::print(&format!("{:<28} {hits:>4} hits {misses:>4} misses {seconds:>6.2} s", row.step));
        self.table.rows.push(row);
    }

    fn broke(&mut self, step: &str, what: String) {
        self.table.broken.push(format!("{step}: {what}"));
    }

    fn go_on(&self) -> Result<(), Broken> {
        if self.stop.load(Ordering::Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    A,
    B,
}

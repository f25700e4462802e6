//! Overload: what a few honest clients meet with while a daemon is crowded, how much memory it takes, and
//! what becomes of owed uploads when it is ended in the middle of it.
//!
//! ```text
//! cargo bench --bench overload -- [--minutes N] [--scenes quiet,busy,idle,slow,all,owing] [--short]
//! ```
//!
//! The daemon has one core; its clients share another, the crowd with the lowest priority and in
//! processes of its own, so that what an honest client waits for is the daemon and not the crowd's
//! turns. Targets: an honest client's p99 at most twice what it is with as much work as the daemon can
//! do (16 connections that ask without pause), resident memory at most the memory tier's limit and a
//! fixed base, plus 20 %, an acknowledgement within 5 ms with 100,000 owed, an end within 10 s.

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
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod wan;
}

#[path = "crowd/crowd.rs"]
mod crowd;
#[path = "crowd/honest.rs"]
mod honest;
#[path = "crowd/owing.rs"]
mod owing;
#[path = "crowd/watch.rs"]
mod watch;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crowd::{Busy, Crowd, Kind};
use honest::{Heard, Took};
use support::daemon::Daemon;
use support::measure::{Plan, Table, option, say};
use tools::install;
use watch::{Watch, mib};

/// What the daemon's threads and its clients' have.
const DAEMON_CORE: &str = "1";
const CLIENTS_CORE: &str = "0";
/// As much as the daemon can do: `benches/load.rs` has it fully busy with so many.
const FULL: usize = 16;

/// How many come, how long they stay, and what the daemon may take.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    idle: usize,
    busy: usize,
    senders: usize,
    readers: usize,
    memory_mib: u64,
    owed: usize,
    /// Of a scene; half of it with upstream down.
    time: Duration,
    /// Until a crowd has come, before anything is timed.
    warm: Duration,
}

impl Size {
    fn read(plan: Plan) -> Self {
        let minutes =
            option("--minutes").map(|n| n.parse::<f64>().expect("--minutes takes a number"));
        let time = |default: f64| Duration::from_secs_f64(minutes.map_or(default, |n| n * 60.0));
        if plan.is_short() {
            let warm = Duration::from_secs(3);
            let (idle, busy, senders, readers) = (1_000, 100, 150, 100);
            return Self {
                idle,
                busy,
                senders,
                readers,
                memory_mib: 100,
                owed: 2_000,
                time: time(4.0),
                warm,
            };
        }
        Self {
            idle: 10_000,
            busy: 1_000,
            senders: 1_500,
            readers: 1_000,
            memory_mib: 1_000,
            owed: 100_000,
            time: time(600.0),
            warm: Duration::from_secs(15),
        }
    }
}

/// Who comes beside the honest clients.
struct Scene {
    name: &'static str,
    /// Of those who are busy.
    busy: usize,
    kinds: &'static [Kind],
    /// What `--scenes` calls it.
    part: &'static str,
}

fn main() {
    if crowd::run() {
        return;
    }
    let plan = Plan::read();
    let Some(wrk) = install::wrk() else { return };
    raise_descriptor_limit();
    keep_on_core(std::process::id(), CLIENTS_CORE);
    let size = Size::read(plan);
    let work = tempfile::tempdir().expect("a temporary directory can be made");
    say(&format!("`{}`", Plan::command("overload")));
    let scenes = option("--scenes").unwrap_or_else(|| "quiet,busy,idle,slow,all,owing".to_owned());
    let scenes: Vec<&str> = scenes.split(',').collect();
    crowded(size, &scenes, &wrk, work.path());
    if scenes.contains(&"owing") {
        owing::measure(size, &wrk, work.path());
    }
}

fn crowded(size: Size, wanted: &[&str], wrk: &Path, work: &Path) {
    let scenes = [
        Scene { name: "nobody", busy: 0, kinds: &[], part: "quiet" },
        Scene { name: "1 ×: 16 busy", busy: FULL, kinds: &[], part: "busy" },
        Scene { name: "5 ×: busy", busy: size.busy, kinds: &[], part: "busy" },
        Scene { name: "idle", busy: 0, kinds: &[Kind::Idle], part: "idle" },
        Scene {
            name: "slow senders, slow readers",
            busy: 0,
            kinds: &[Kind::Senders, Kind::Readers],
            part: "slow",
        },
        Scene {
            name: "all",
            busy: size.busy,
            kinds: &[Kind::Idle, Kind::Senders, Kind::Readers],
            part: "all",
        },
    ];
    let scenes: Vec<_> = scenes.into_iter().filter(|scene| wanted.contains(&scene.part)).collect();
    if scenes.is_empty() {
        return;
    }
    let daemon = start(&work.join("crowded"), size, &[]);
    let base = support::proc::resident(&daemon.pid().to_string());
    honest::prepare(&daemon);
    // More than the memory tier holds, so that it is full before anything is looked at.
    let large = size.readers + usize::try_from(size.memory_mib).expect("few") / 4;
    honest::fill(&daemon, "large", large, crowd::LARGE);
    honest::read_all(&daemon, "large", large, crowd::LARGE);
    let mut report = Report::new(size, base.all);
    for scene in &scenes {
        report.play(&daemon, scene, size, wrk);
    }
    report.print();
}

/// A daemon as benches start it, on its core.
pub(crate) fn start(dir: &Path, size: Size, flags: &[&str]) -> Daemon {
    let memory = format!("{}MiB", size.memory_mib);
    let daemon = Daemon::start(dir, &[&["--memory", &memory], flags].concat());
    keep_on_core(daemon.pid(), DAEMON_CORE);
    daemon
}

/// The rows, and what they are compared with.
struct Report {
    honest: Table,
    daemon: Table,
    /// p99 of gets, puts and gets over the socket with as much work as can be done.
    full: Option<[f64; 3]>,
    limit: u64,
    told: Vec<String>,
}

impl Report {
    fn new(size: Size, base: u64) -> Self {
        let limit = (size.memory_mib << 20) + base;
        let honest = Table::new(
            &format!(
                "Four honest clients beside a crowd of {} idle, {} busy, {} slow senders, {} slow readers; \
                 target: p99 ≤ 2 × what it is at 1 ×",
                size.idle, size.busy, size.senders, size.readers
            ),
            &[
                "crowd",
                "N",
                "get p50, ms",
                "get p99, ms",
                "× at 1 ×",
                "put p50, ms",
                "put p99, ms",
                "× at 1 ×",
                "socket p50, ms",
                "socket p99, ms",
                "× at 1 ×",
                "longest, ms",
                "failed",
                "connections",
            ],
        );
        let daemon = Table::new(
            &format!(
                "The daemon meanwhile; target: resident ≤ 1.2 × ({} MiB of memory tier + {:.0} MiB at its \
                 start) = {:.0} MiB",
                size.memory_mib,
                mib(base),
                mib(limit) * 1.2
            ),
            &[
                "crowd",
                "resident at most, MiB",
                "of which own memory",
                "after, MiB",
                "descriptors",
                "threads",
                "answers to the busy, 1/s",
                "target",
            ],
        );
        Self { honest, daemon, full: None, limit, told: Vec::new() }
    }

    fn play(&mut self, daemon: &Daemon, scene: &Scene, size: Size, wrk: &Path) {
        let (watch, dropped) = (Watch::start(daemon.pid()), watch::dropped());
        let crowds = start_crowds(scene.kinds, size, daemon);
        let time = size.time + size.warm;
        let busy = (scene.busy > 0).then(|| Busy::start(wrk, scene.busy, daemon.addr(), time));
        std::thread::park_timeout(size.warm);
        let heard = honest::visit(daemon, scene.name, size.time);
        let busy = busy.map(Busy::end);
        let ended: Vec<String> = crowds.into_iter().map(Crowd::end).collect();
        let seen = watch.end();
        std::thread::park_timeout(size.warm);
        let after = support::proc::resident(&daemon.pid().to_string());
        if scene.busy == FULL {
            self.full = Some(p99(&heard));
        }
        self.honest.row(honest_row(scene.name, &heard, self.full));
        let is_met = seen.all as f64 <= self.limit as f64 * 1.2;
        self.daemon.row([
            scene.name.to_owned(),
            format!("{:.0}", mib(seen.all)),
            format!("{:.0}", mib(seen.anonymous)),
            format!("{:.0}", mib(after.all)),
            seen.descriptors.to_string(),
            seen.threads.to_string(),
            busy.as_ref().map_or(String::new(), |(rate, _)| format!("{rate:.0}")),
            if is_met { "met" } else { "missed" }.to_owned(),
        ]);
        let errors = busy.map(|(_, errors)| format!("busy: {errors}"));
        let kernel = format!("connections that the kernel dropped: {}", watch::dropped() - dropped);
        let told = ended.into_iter().chain(errors).chain([kernel, refusals(daemon)]);
        self.told.push(format!("{}: {}", scene.name, told.collect::<Vec<_>>().join("; ")));
    }

    fn print(&self) {
        self.honest.print();
        self.daemon.print();
        say("\nWhat became of the crowd, and what the daemon has counted since its start:");
        self.told.iter().for_each(|line| say(line));
    }
}

pub(crate) fn start_crowds(kinds: &[Kind], size: Size, daemon: &Daemon) -> Vec<Crowd> {
    let of = |kind: Kind| match kind {
        Kind::Idle => size.idle,
        Kind::Senders => size.senders,
        Kind::Readers => size.readers,
    };
    kinds.iter().map(|kind| Crowd::start(*kind, of(*kind), daemon.addr())).collect()
}

fn refusals(daemon: &Daemon) -> String {
    let stats = daemon.stats();
    format!(
        "larder: {} lookups, {} puts, {} missed, {} faults of the disk",
        stats["requests"]["kv"]["gets"],
        stats["requests"]["kv"]["puts"],
        stats["requests"]["kv"]["miss"]["local"],
        stats["disk"]["faults"]
    )
}

fn p99(heard: &Heard) -> [f64; 3] {
    [&heard.gets, &heard.puts, &heard.socket].map(|took| took.at(0.99))
}

fn honest_row(name: &str, heard: &Heard, full: Option<[f64; 3]>) -> Vec<String> {
    let all = [&heard.gets, &heard.puts, &heard.socket];
    let sum = |of: fn(&Took) -> u64| all.iter().map(|took| of(took)).sum::<u64>();
    let mut cells =
        vec![name.to_owned(), all.iter().map(|took| took.len()).sum::<usize>().to_string()];
    for (at, took) in all.into_iter().enumerate() {
        cells.push(format!("{:.2}", took.at(0.5)));
        cells.push(format!("{:.2}", took.at(0.99)));
        cells.push(full.map_or(String::new(), |full| format!("{:.2}", took.at(0.99) / full[at])));
    }
    let longest = all.iter().map(|took| took.at(1.0)).fold(0.0, f64::max);
    cells.push(format!("{longest:.0}"));
    cells.push((sum(|took| took.failed) + sum(|took| took.refused)).to_string());
    cells.push(sum(|took| took.connections).to_string());
    cells
}

/// All threads of a process, and those that they start.
fn keep_on_core(pid: u32, core: &str) {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return;
    }
    let mut command = Command::new("taskset");
    let output = command.args(["-a", "-c", "-p", core]).arg(pid.to_string()).output();
    if !output.is_ok_and(|output| output.status.success()) {
        say(&format!("process {pid} was not kept on core {core}: the crowd shares it"));
    }
}

/// Crowds and daemons inherit it.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("the limit that we may have can be had");
}

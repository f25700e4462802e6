//! Processor time of a build with larder, told apart, and whether any tool of go is running.
//!
//! The build: what this process has waited for (`/proc/self/stat`: children and theirs). The daemon:
//! its own line there. The helper: `times` of the shell that it is started by, as nobody else tells a
//! child of go from the compilers. All in ticks of 10 ms. `larder run` itself is counted to the build.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::wan::Wan;
use larder::units::Clock;

/// In `/proc`, whatever the kernel's own clock.
const TICK: Duration = Duration::from_millis(10);
/// How often it is looked whether go does anything: no load to speak of, and fine enough for a second.
const LOOK: Duration = Duration::from_millis(20);
/// Who is in the group of a build and does none of its work.
const IDLE: [&str; 6] = ["larder", "go", "sh", "dash", "env", "git"];

/// Of all children that have been waited for so far.
pub(crate) fn children() -> Duration {
    ticks("self", 15..17)
}

/// Of a process that runs, and of its children that have ended.
pub(crate) fn process(pid: u32) -> Duration {
    ticks(&pid.to_string(), 13..17)
}

fn ticks(pid: &str, fields: std::ops::Range<usize>) -> Duration {
    let stat = stat(pid).expect("a process that runs has a line in /proc");
    let ticks: u32 = fields.map(|at| stat.1[at - 2].parse::<u32>().expect("ticks")).sum();
    TICK * ticks
}

/// A process's name, and the fields of its line from the third on.
fn stat(pid: &str) -> Option<(String, Vec<String>)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = text.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    Some((name, after.split_whitespace().map(str::to_owned).collect()))
}

/// A helper that writes down at its end what it has used.
#[derive(Debug)]
pub(crate) struct Timed {
    file: PathBuf,
}

impl Timed {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { file: dir.join("helper-times") }
    }

    /// The assignment for `env`: the helper in a shell that waits for it.
    pub(crate) fn assignment(&self, helper: &str) -> String {
        format!("GOCACHEPROG=sh -c '{helper}; times > {}'", self.file.display())
    }

    /// The second line is of children: `0m1.230000s 0m0.040000s`.
    pub(crate) fn used(&self) -> Duration {
        let text = fs::read_to_string(&self.file).expect("the shell has written its times");
        let line = text.lines().nth(1).expect("times of children are the second line");
        let seconds = line.split_whitespace().map(|time| {
            let (minutes, seconds) = time.trim_end_matches('s').split_once('m').expect("a time");
            let [minutes, seconds] =
                [minutes, seconds].map(|part| part.parse::<f64>().expect("it"));
            minutes * 60.0 + seconds
        });
        Duration::from_secs_f64(seconds.sum())
    }
}

/// Runs `work` and adds up the time in which somebody waited for an answer of this network while no
/// tool of go (compile, asm, link …) was running in the process group whose number `work` stores.
pub(crate) fn alone<T>(wan: &Wan, work: impl FnOnce(&AtomicU32) -> T) -> (T, Duration) {
    let (stopped, group) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let clock = Clock::system();
            let (mut alone, mut last) = (Duration::ZERO, clock.elapsed());
            while !stopped.load(Ordering::Acquire) {
                std::thread::park_timeout(LOOK);
                let now = clock.elapsed();
                let group = group.load(Ordering::Relaxed);
                if group > 0 && wan.is_waiting() && !is_at_work(group) {
                    alone += now.saturating_sub(last);
                }
                last = now;
            }
            alone
        });
        let done = work(&group);
        stopped.store(true, Ordering::Release);
        (done, looking.join().expect("who only reads does not panic"))
    })
}

/// Whether a tool runs in the group. Its members come after its first, so that few lines are read.
fn is_at_work(group: u32) -> bool {
    let Ok(all) = fs::read_dir("/proc") else { return false };
    all.flatten().any(|entry| {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|pid| pid.parse().is_ok_and(|pid: u32| pid > group))
        else {
            return false;
        };
        stat(pid).is_some_and(|(name, fields)| {
            fields[0] != "Z" && fields[2] == group.to_string() && !IDLE.contains(&&*name)
        })
    })
}

/// Puts a command into a group of its own, by whose number `alone` finds it.
pub(crate) fn in_group(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
}

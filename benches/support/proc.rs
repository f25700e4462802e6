//! What the kernel tells of a process, and of files: memory, wake-ups, processor time, space; and how
//! to have it forget what it has read.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

/// In `/proc`, whatever the kernel's own clock.
const TICK: Duration = Duration::from_millis(10);

/// Bytes of a process that are in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resident {
    pub(crate) all: u64,
    /// Its own: neither the program's nor of files that are mapped.
    pub(crate) anonymous: u64,
}

pub(crate) fn resident(pid: &str) -> Resident {
    let of = |name: &str| field(&format!("/proc/{pid}/status"), name) << 10;
    Resident { all: of("VmRSS"), anonymous: of("RssAnon") }
}

/// How often its threads have gone to sleep of themselves: each was awake before.
pub(crate) fn switches(pid: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs").flatten();
    let status = |task: fs::DirEntry| task.path().join("status").display().to_string();
    tasks.map(|task| field(&status(task), "voluntary_ctxt_switches")).sum()
}

/// How many of a kind it has now: `fd`, descriptors, or `task`, threads.
pub(crate) fn entries(pid: &str, kind: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/{kind}")).map_or(0, Iterator::count)
}

/// Processor time.
pub(crate) fn ticks(pid: &str) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let (_, after) = stat.rsplit_once(')').expect("a line of /proc");
    let numbers = after.split_whitespace().skip(11).take(2);
    TICK * numbers.map(|ticks| ticks.parse::<u32>().expect("ticks")).sum()
}

/// A line `NAME: NUMBER …`; 0 where a thread has ended meanwhile.
fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Bytes on disk of what is below a directory.
pub(crate) fn bytes_under(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut sum = 0;
    each_file(dir, &mut |path| {
        sum += fs::metadata(path).map_or(0, |meta| meta.blocks() * 512);
    });
    sum
}

/// Has the kernel drop what it holds of these files, as after a boot.
pub(crate) fn forget(dir: &Path) {
    each_file(dir, &mut |path| {
        let file = File::open(path).expect("a file can be read");
        file.sync_all().expect("a file can be synced");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advice is taken");
    });
}

fn each_file(dir: &Path, work: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => each_file(&entry.path(), work),
            Ok(kind) if kind.is_file() => work(&entry.path()),
            Ok(_) | Err(_) => {}
        }
    }
}

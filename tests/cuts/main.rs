//! Power cuts, simulated. A process that uses a store is watched while it writes; from what it had
//! written and synced, the disk is made as a power cut at any moment could have left it: what was not
//! synced is there, gone, in another order or torn. Each such store must open, hold what was synced,
//! and give back nothing that was never put. Some are looked at as the process's end in that moment
//! leaves them: those must hold all that was acknowledged. Beside that: damaged files, and calls that fail.
//!
//! `LARDER_CUTS` says how many cuts are tried; `LARDER_SEED` repeats a run.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod check;
mod damage;
mod disk;
#[expect(dead_code, reason = "others lose sectors")]
#[path = "../support/failing.rs"]
mod failing;
mod faults;
mod trace;
mod workload;

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use larder::units::Random;

use disk::Disk;
use failing::Control;
use faults::{Fault, Sufferer};
use trace::Event;
use workload::{Part, Plan, Play};

/// Cuts in a plain `cargo test`; more are for those who ask.
const CUTS: u64 = 300;
/// Damages in a plain `cargo test`; LARDER_DAMAGES for more.
const DAMAGES: u64 = 60;
/// Failing disks in a plain `cargo test`; LARDER_FAULTS for more.
const FAULTS: u64 = 60;
/// Sufferers at a time: they wait for a store to try again, most of their time.
const AT_ONCE: u64 = 6;
const SEED: u64 = 20_261_126;
/// Set for the process that is watched: where it works.
const STAGE: &str = "LARDER_CUTS_STAGE";
const EVICTS: &str = "LARDER_CUTS_EVICTS";
const HAS_BUILDS: &str = "LARDER_CUTS_HAS_BUILDS";
/// Each so-many-th sync fails.
const ILL: &str = "RECORD_SYNCS_FAIL";
const PART: &str = "LARDER_CUTS_PART";

#[expect(clippy::disallowed_methods, reason = "how a test is told what to do")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn number(name: &str, default: u64) -> u64 {
    let written = variable(name);
    written.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// Not a test: what the watched process does.
#[test]
fn the_play() {
    let Some(stage) = variable(STAGE) else { return };
    let plan = Plan {
        seed: number("LARDER_SEED", SEED),
        evicts: variable(EVICTS).is_some(),
        has_builds: variable(HAS_BUILDS).is_some(),
        is_ill: variable(ILL).is_some(),
    };
    let part = match variable(PART).as_deref() {
        Some("first") => Part::First,
        Some("start") => Part::Start,
        _ => Part::Rest,
    };
    workload::play(Path::new(&stage), &plan, part);
}

/// Runs the play in processes of its own; what they did to its files.
fn watch(stage: &Path, plan: &Plan) -> Vec<Event> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuts/recorder.c");
    let (library, trace) = (stage.join("recorder.so"), stage.join("trace"));
    let root = stage.join("root");
    std::fs::create_dir(&root).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source);
    assert!(cc.status().expect("a C compiler, as the index needs too").success());
    let mut player = Command::new(std::env::current_exe().unwrap());
    player
        .args(["--exact", "the_play", "--nocapture"])
        .env("LD_PRELOAD", &library)
        .env("RECORD_ROOT", &root)
        .env("RECORD_TRACE", &trace)
        .env("LARDER_SEED", plan.seed.to_string())
        .env(STAGE, &root);
    if plan.evicts {
        player.env(EVICTS, "1");
    }
    if plan.has_builds {
        player.env(HAS_BUILDS, "1");
    }
    if plan.is_ill {
        player.env(ILL, "9");
    }
    let run = |player: &mut Command| {
        let output = player.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    for part in ["first", "start", "rest"] {
        run(player.env(PART, part));
    }
    trace::read(&std::fs::read(trace).unwrap(), root.to_str().unwrap())
}

/// In memory where that can be: what is synced there costs nothing.
fn stage() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = memory.is_dir().then(|| tempfile::tempdir_in(memory).ok()).flatten();
    made.unwrap_or_else(|| tempfile::tempdir().unwrap())
}

/// Tries `cuts` of them, spread over all moments of the play; what it said of itself.
fn try_cuts(plan: &Plan, cuts: u64) -> Vec<String> {
    let stage = stage();
    let events = watch(stage.path(), plan);
    let play = Play::of(plan, &trace::marks(&events));
    let moments = events.iter().filter(|event| event.is_of_store()).count() as u64;
    assert!(moments > 1000, "{moments} writes, syncs and renames were seen");
    let mut random = Random::new(plan.seed);
    let mut due: Vec<u64> = (0..cuts).map(|_| random.next_u64() % moments).collect();
    due.sort_unstable();
    let mut due = due.into_iter().peekable();
    let (mut disk, mut seen, mut at) = (Disk::default(), check::Seen::default(), 0);
    for event in &events {
        if let Event::Mark(text) = event {
            seen.hear(text);
            continue;
        }
        while due.next_if_eq(&at).is_some() {
            let image = stage.path().join("image");
            disk.write_as_cut(&mut random, &image);
            let what = format!("seed {}, cut before event {at}: {event:?}", plan.seed);
            check::check(&image, &play, &seen, random.next_u64().is_multiple_of(10), &what);
            std::fs::remove_dir_all(&image).unwrap();
            if random.next_u64().is_multiple_of(3) {
                disk.write_as_killed(&image);
                check::check_killed(&image, &play, &seen, &what);
                std::fs::remove_dir_all(&image).unwrap();
            }
        }
        disk.apply(event);
        at += u64::from(event.is_of_store());
    }
    let (entries, lost) = (seen.checked(), seen.lost());
    eprintln!(
        "{cuts} cuts in {moments} moments: {entries} entries looked at, {lost} of the last second lost"
    );
    trace::marks(&events).into_iter().map(str::to_owned).collect()
}

/// Not a test: what is asked of a damaged store.
#[test]
fn the_witness() {
    let (Some(image), Some(marks)) = (variable(STAGE), variable("LARDER_CUTS_MARKS")) else {
        return;
    };
    let plan = Plan { seed: number("LARDER_SEED", SEED), ..Plan::default() };
    let marks = std::fs::read_to_string(marks).unwrap();
    let marks: Vec<&str> = marks.lines().collect();
    damage::witness(Path::new(&image), &Play::of(&plan, &marks));
}

#[test]
fn whatever_a_disk_does_to_a_store_it_opens_lies_never_and_works_again() {
    let stage = stage();
    let plan = Plan { seed: number("LARDER_SEED", SEED), ..Plan::default() };
    let events = watch(stage.path(), &plan);
    let marks = stage.path().join("marks");
    std::fs::write(&marks, trace::marks(&events).join("\n")).unwrap();
    let mut random = Random::new(plan.seed);
    let tries = number("LARDER_DAMAGES", DAMAGES);
    let (mut ended, mut broken) = (0, Vec::new());
    for n in 0..tries {
        let image = stage.path().join("image");
        copy(&stage.path().join("root/store"), &image.join("store"));
        let what = damage::damage(&image.join("store"), &mut random);
        match damage::ask_witness(&image, &plan, &marks) {
            Ok(ends) => ended += ends,
            Err(said) => broken.push(format!("{n}: {what}: {said}")),
        }
        std::fs::remove_dir_all(&image).unwrap();
    }
    eprintln!("seed {}: {tries} damages, {ended} ends of a process", plan.seed);
    assert!(broken.is_empty(), "{} of {tries}: {}", broken.len(), broken.join("\n"));
}

/// Not a test: who uses a store on a disk that fails.
#[test]
fn the_sufferer() {
    let Some(stage) = variable(STAGE) else { return };
    let Some(control) = variable("FAULT_CONTROL") else { return };
    let plan = Plan { seed: number("LARDER_SEED", SEED), ..Plan::default() };
    let control = Control::open(Path::new(&control));
    Sufferer::new(plan).suffer(&Path::new(&stage).join("root"), &control);
}

#[test]
fn whatever_call_fails_what_was_acknowledged_is_there_when_the_disk_is_well() {
    let stage = stage();
    let dir = stage.path();
    let plan = Plan { seed: number("LARDER_SEED", SEED), ..Plan::default() };
    let (calls, _) = faults::run(dir, &dir.join("well"), &plan, None).unwrap();
    assert!(calls > 1000, "{calls} calls were seen");
    let tries = number("LARDER_FAULTS", FAULTS);
    let (failed, broken) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE {
            let (plan, failed, broken) = (&plan, &failed, &broken);
            scope.spawn(move || {
                for n in (first..tries).step_by(usize::try_from(AT_ONCE).unwrap()) {
                    let fault = Fault::any(&mut Random::new(plan.seed ^ n << 32), calls);
                    let stage = dir.join(n.to_string());
                    match faults::run(dir, &stage, plan, Some(&fault)) {
                        Ok((_, count)) => drop(failed.fetch_add(count, Ordering::Relaxed)),
                        Err(said) => broken.lock().unwrap().push(format!("{n}: {fault}: {said}")),
                    }
                    std::fs::remove_dir_all(stage).unwrap();
                }
            });
        }
    });
    let (failed, broken) = (failed.into_inner(), broken.into_inner().unwrap());
    eprintln!("seed {}: {tries} failing disks of {calls} calls, {failed} failed", plan.seed);
    assert!(broken.is_empty(), "{} of {tries}: {}", broken.len(), broken.join("\n"));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Cuts of each play.
fn cuts() -> u64 {
    number("LARDER_CUTS", CUTS).div_ceil(4)
}

fn plan(n: u64) -> Plan {
    Plan { seed: number("LARDER_SEED", SEED) + n, ..Plan::default() }
}

/// Files that had gone without being marked first.
fn at_once(marks: &[String]) -> u64 {
    marks.iter().filter_map(|mark| mark.strip_prefix("at-once ")?.parse::<u64>().ok()).sum()
}

#[test]
fn a_power_cut_loses_at_most_what_was_not_synced() {
    try_cuts(&plan(0), cuts());
}

#[test]
fn a_power_cut_while_room_is_made_brings_nothing_back_and_takes_nothing_that_stayed() {
    let marks = try_cuts(&Plan { evicts: true, has_builds: true, ..plan(1) }, cuts());
    assert_eq!(at_once(&marks), 0);
}

#[test]
fn a_power_cut_while_files_go_at_once_brings_nothing_back_and_takes_nothing_that_stayed() {
    let marks = try_cuts(&Plan { evicts: true, ..plan(3) }, cuts());
    assert!(at_once(&marks) > 0, "no file has gone at once");
}

/// A commit once counted though its syncs had failed: what it stood on was never synced, and eviction took
/// the older copies away.
#[test]
fn a_power_cut_after_failed_syncs_loses_at_most_what_was_not_synced() {
    try_cuts(&Plan { evicts: true, is_ill: true, ..plan(2) }, cuts());
}

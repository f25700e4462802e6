//! What falls, hangs or is missing in the midst of a build: it is green, and its output is right.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use larder::entry::Digest;
use larder::entry::action::{Frame, GoEntry};
use larder::units::Clock;
use serde_json::Value;

use super::cold::build_with_a_kill;
use super::{Machine, assert_asked, is_kept, native, native_in, number, write_module};
use crate::failing::{self, FailingDisk};
use crate::harness::{LARDER, TestDaemon, chance, kills};
use crate::support::cache_server::{CacheServer, Fault};
use crate::support::install;
use crate::support::{PATIENCE, TinyDisk, wait_for};

#[test]
fn whatever_is_wrong_upstream_the_build_is_green_and_right() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let central = CacheServer::start();
    let a = Machine::new(&go);
    let daemon = a.home.daemon(&["--upstream", &central.url()]);
    let (expected, _) = a.build(dir.path());
    daemon.flush();
    drop(daemon);
    let faults = [
        ("refused", Fault::Refuse),
        ("black hole", Fault::BlackHole),
        ("500", Fault::Status(500)),
        ("429", Fault::Status(429)),
        ("a byte a second", Fault::Trickle(Duration::from_secs(1))),
        ("closing mid-body", Fault::CloseMidBody),
        ("wrong bytes", Fault::WrongBytes),
        ("truncated", Fault::Truncated),
        ("answers mixed up", Fault::Mixed),
        ("redirecting", Fault::Redirect("http://127.0.0.1:9/".into())),
        ("full", Fault::Status(507)),
    ];
    for (what, fault) in faults {
        let b = Machine::new(&go);
        let daemon = b.home.daemon(&["--upstream", &central.url()]);
        central.set_fault(fault);
        let (program, _) = b.build(dir.path());
        assert!(program == expected, "{what}");
        assert_asked(&daemon, 0);
        assert_pays(&daemon, what);
        let report = daemon.control(&serde_json::json!({"op": "verify"}));
        assert_eq!(report["bad_entries"], 0, "{what}");
        central.heal();
        drop(daemon);
        assert_whole(&central, what);
        let c = Machine::new(&go);
        let daemon = c.home.daemon(&["--upstream", &central.url()]);
        let (program, said) = c.build(dir.path());
        assert!(program == expected, "{what}: afterwards");
        assert!(is_kept(&daemon, &said, &[]), "{what}: compiled afterwards: {said}");
        drop(daemon);
    }
}

/// Promise 9: what a build has waited is less than what its hits have saved, and a second; on a machine
/// that does many things at once timers are late.
fn assert_pays(daemon: &TestDaemon, what: &str) {
    let session = &daemon.stats()["sessions"][0];
    let seconds = |name: &str| session[name].as_f64().unwrap();
    assert!(seconds("waited_s") <= seconds("saved_s") + 2.0, "{what}: {session}");
}

/// Each action upstream leads to the output that it names.
fn assert_whole(central: &CacheServer, what: &str) {
    let content = |digest: &Digest| {
        let object = central.object(&format!("/cas/{digest}"));
        object.unwrap_or_else(|| panic!("{what}: {digest} is missing"))
    };
    let actions: Vec<_> =
        central.keys().into_iter().filter(|key| key.starts_with("/ac/")).collect();
    assert!(actions.len() > 20, "{what}: {actions:?}");
    for key in actions {
        let entry = GoEntry::decode(&central.object(&key).unwrap()).unwrap();
        let frame = match entry.frame {
            Frame::Empty => continue,
            Frame::Inline(frame) => frame,
            Frame::Stored { digest, .. } => content(&digest),
            Frame::Packed(packed) => {
                let at = usize::try_from(packed.at).unwrap();
                content(&packed.pack)[at..][..usize::try_from(packed.size).unwrap()].to_vec()
            }
        };
        let output = zstd::stream::decode_all(&frame[..]).unwrap();
        assert_eq!(Digest::of(&output), entry.digest, "{what}: {key}");
    }
}

#[test]
fn a_daemon_killed_in_mid_build_costs_nothing_but_time() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let expected = native(&go, dir.path());
    let central = CacheServer::start();
    let machine = Machine { upstream: Some(central.url()), ..Machine::new(&go) };
    let daemon = machine.home.daemon(&["--upstream", &central.url()]);
    let program = machine.home.path().join("program");
    let child = machine
        .command(dir.path(), &["build", "-o", program.to_str().unwrap(), "."])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("puts", || (number(&daemon.stats(), &["requests", "go", "puts"]) > 15).then_some(()));
    daemon.kill();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(&program).unwrap() == expected);
    // The helper may have started another daemon; it is of this home, and is asked to end.
    let _ = machine.home.larder(&["stop"]).output().unwrap();
    let daemon = wait_for("the store to be free", || {
        let free = machine.home.larder(&["stats"]).output().unwrap().status.code() == Some(4);
        free.then(|| machine.home.daemon(&["--upstream", &central.url()]))
    });
    wait_for("the spool to be adopted", || {
        let left = fs::read_dir(machine.home.store().join("spool")).unwrap().count();
        (left == 0).then_some(())
    });
    let (program, said) = machine.build(dir.path());
    assert!(program == expected);
    assert_eq!(said, "", "everything was kept");
    daemon.flush();
    let b = Machine::new(&go);
    let daemon = b.home.daemon(&["--upstream", &central.url()]);
    let (_, said) = b.build(dir.path());
    assert_eq!(said, "", "and everything arrived");
    assert_asked(&daemon, 0);
}

/// Of three builds one fills an empty upstream, two are served from there: kills amid puts, fetches, uploads
/// and prefetches, at the beginning and at the end.
#[test]
fn builds_survive_kills_at_random_points() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let mut random = chance(20_261_128);
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let clock = Clock::system();
    let expected = native(&go, dir.path());
    // A machine that is slower than anyone's patience is killed early.
    let longest_us = u64::try_from(clock.elapsed().min(PATIENCE / 2).as_micros()).unwrap();
    let mut central = CacheServer::start();
    for round in 0..kills().div_ceil(20) {
        if round % 3 == 0 {
            central = CacheServer::start();
        }
        let upstream = ["--upstream", &central.url()];
        let machine = Machine { upstream: Some(central.url()), ..Machine::new(&go) };
        let daemon = machine.home.daemon(&upstream);
        let clock = Clock::system();
        let after = Duration::from_micros(random.next_u64() % longest_us);
        build_with_a_kill(&machine, daemon, dir.path(), |_| clock.elapsed() >= after);
        let daemon = machine.home.daemon(&upstream);
        wait_for("the spool to be adopted", || {
            let left = fs::read_dir(machine.home.store().join("spool")).unwrap().count();
            (left == 0).then_some(())
        });
        let (program, said) = machine.build(dir.path());
        assert!(program == expected, "round {round}");
        assert!(is_kept(&daemon, &said, &[]), "round {round}: compiled again: {said}");
        daemon.flush();
        let report = daemon.control(&serde_json::json!({"op": "verify"}));
        assert_eq!(report["bad_entries"], 0, "round {round}: {report}");
        assert_whole(&central, &format!("round {round}"));
    }
}

#[test]
fn a_build_starts_the_daemon_that_it_needs() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let machine = Machine::new(&go);
    machine.build(dir.path());
    let stats = machine.home.larder(&["stats", "--json"]).output().unwrap();
    let stats: Value = serde_json::from_slice(&stats.stdout).unwrap();
    assert!(number(&stats, &["requests", "go", "puts"]) > 10, "{stats}");
    let (_, said) = machine.build(dir.path());
    assert_eq!(said, "");
    let stop = machine.home.larder(&["stop"]).output().unwrap();
    assert_eq!(stop.status.code(), Some(0));
}

#[test]
fn without_a_daemon_that_can_start_the_build_is_green() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let expected = native(&go, dir.path());
    let machine = Machine::new(&go);
    let program = machine.home.path().join("program");
    let output = machine
        .command(dir.path(), &["build", "-o", program.to_str().unwrap(), "."])
        // Not a directory: neither a store nor a daemon can be there.
        .env("LARDER_STORE", "/dev/null/store")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(program).unwrap() == expected);
}

#[test]
fn a_disk_that_fills_in_mid_build_is_no_fault_of_the_build() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let expected = native(&go, dir.path());
    let machine = Machine::new(&go);
    let Some(_disk) = TinyDisk::mount(&machine.home.store(), "size=8m") else { return };
    // The file system says no, and not larder's own limit.
    let daemon = machine.home.daemon(&["--disk", "1GiB", "--disk-floor", "0"]);
    for round in 0..2 {
        let program = machine.home.path().join("program");
        let output = machine
            .command(dir.path(), &["build", "-o", program.to_str().unwrap(), "."])
            .env("TMPDIR", machine.home.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(fs::read(&program).unwrap() == expected, "{round}");
        assert_asked(&daemon, 0);
    }
    let refuges = fs::read_dir(machine.home.path()).unwrap().flatten();
    let names = refuges.map(|entry| entry.file_name().to_string_lossy().into_owned());
    assert!(names.into_iter().any(|name| name.starts_with("larder-")), "the disk was never full");
    let report = daemon.control(&serde_json::json!({"op": "verify"}));
    assert_eq!(report["bad_entries"], 0, "{report}");
}

/// Daemon and helper have the same bad disk; go's own files are on another.
#[test]
fn a_store_whose_disk_fails_costs_misses_and_works_again_when_it_is_well() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let machine = Machine::new(&go);
    let disk = FailingDisk::new(machine.home.path(), &machine.home.store());
    let environment = disk.environment();
    let words = environment.map(|(name, value)| format!("{name}={}", value.display()));
    let helper = format!("env {} {LARDER} go", words.join(" "));
    let daemon = machine.home.daemon_with(&[], |command| {
        command.envs(environment);
    });
    let without_larder = tempfile::tempdir().unwrap();
    let program = machine.home.path().join("program");
    let build = |what: &str| {
        let output = machine
            .command(dir.path(), &["build", "-v", "-o", program.to_str().unwrap(), "."])
            .env("GOCACHEPROG", &helper)
            .env("TMPDIR", machine.home.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{what}: {said}");
        (fs::read(&program).unwrap(), said)
    };
    build("a disk that is well");
    let control = disk.control();
    for (number, (what, kinds, error)) in [
        ("every call: EIO", failing::ALL, failing::EIO),
        ("opens: EMFILE", failing::OPEN, failing::EMFILE),
        ("reads: EIO", failing::READ, failing::EIO),
        ("writes: ENOSPC", failing::WRITE, failing::ENOSPC),
        ("every call: EROFS", failing::ALL, failing::EROFS),
        ("syncs and renames: EIO", failing::SYNC | failing::RENAME, failing::EIO),
        ("half of each read and write", failing::READ | failing::WRITE, failing::HALF),
    ]
    .into_iter()
    .enumerate()
    {
        let source = format!("package name\n\nfunc Of() string {{ return \"{number}\" }}\n");
        fs::write(dir.path().join("name/name.go"), source).unwrap();
        let expected = native_in(without_larder.path(), &go, dir.path());
        let failed = control.failed();
        control.fail(kinds, error, 0, u64::MAX);
        let (built, _) = build(what);
        assert!(built == expected, "{what}");
        assert!(control.failed() > failed, "{what}: nothing failed");
        control.heal();
        assert_asked(&daemon, 0);
        wait_for("the store to work again", || {
            let (built, said) = build("afterwards");
            assert!(built == expected, "{what}: afterwards");
            said.is_empty().then_some(())
        });
        let report = daemon.control(&serde_json::json!({"op": "verify"}));
        assert_eq!(report["bad_entries"], 0, "{what}: {report}");
    }
}

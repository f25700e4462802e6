//! Cold machines: what an earlier build used is there before go asks for it.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use larder::manifest::trail::Trail;
use serde_json::json;

use super::{Machine, native, number, write_module};
use crate::harness::{Home, TestDaemon};
use crate::support::cache_server::{CacheServer, Fault};
use crate::support::git::{Origin, has_git};
use crate::support::{install, wait_for};

#[test]
fn a_cold_machine_fetches_what_an_earlier_build_used_before_go_asks() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let home = Home::new();
    let central = home.daemon(&[]);

    let a = Machine::new(&go);
    let daemon = a.home.daemon(&["--upstream", &central.url()]);
    let (built, _) = a.build(&origin.clone());
    daemon.flush();
    let stats = daemon.stats();
    assert_eq!(number(&stats, &["journal", "owed_entries"]), 0);
    drop(daemon);

    let b = Machine::new(&go);
    let daemon = b.home.daemon(&["--upstream", &central.url()]);
    let before = number(&central.stats(), &["requests", "ac", "gets"]);
    let (again, said) = b.build(&origin.clone());
    assert_eq!(said, "", "compiled on a cold machine");
    assert!(again == built);
    let session = &daemon.stats()["sessions"][0];
    assert!(session["prefetched"].as_u64().unwrap() > 20, "{session}");
    let asked = number(&central.stats(), &["requests", "ac", "gets"]) - before;
    assert!(asked < 20, "{asked} actions were asked for one by one: {session}");
    // Of all indexes only those of the checkout, whose files have new times, had to be made.
    let made = number(&daemon.stats(), &["requests", "go", "puts"]);
    assert!(made < 10, "{made} entries were made on a cold machine: {session}");
}

/// The packages that `-v` says were compiled.
fn compiled(said: &str) -> Vec<&str> {
    said.lines().filter(|line| !line.starts_with('#')).collect()
}

#[test]
fn ten_commits_later_a_cold_machine_compiles_only_what_changed() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    fs::create_dir(origin.path().join("other")).unwrap();
    fs::write(origin.path().join("other/other.go"), "package other\n\nconst Of = 7\n").unwrap();
    fs::write(
        origin.path().join("main.go"),
        "package main\n\nimport (\n\t\"fmt\"\n\n\t\"example.test/hello/greet\"\n\t\"example.test/hello/other\"\n)\n\nfunc main() { fmt.Println(greet.Text(), other.Of) }\n",
    )
    .unwrap();
    origin.commit();
    let home = Home::new();
    let central = home.daemon(&[]);
    let a = Machine::new(&go);
    let daemon = a.home.daemon(&["--upstream", &central.url()]);
    a.build(&origin.clone());
    daemon.flush();
    drop(daemon);
    for n in 0..10 {
        let text = format!("package name\n\nfunc Of() string {{ return \"larder {n}\" }}\n");
        fs::write(origin.path().join("name/name.go"), text).unwrap();
        origin.commit();
    }
    let work = origin.clone();
    let expected = native(&go, &work);
    let b = Machine::new(&go);
    let daemon = b.home.daemon(&["--upstream", &central.url()]);
    let (program, said) = b.build(&work);
    assert!(program == expected);
    let changed = ["example.test/hello/name", "example.test/hello/greet", "example.test/hello"];
    let compiled = compiled(&said);
    assert!(compiled.iter().all(|package| changed.contains(package)), "{compiled:?}");
    let session = &daemon.stats()["sessions"][0];
    assert!(session["prefetched"].as_u64().unwrap() > 20, "{session}");
}

#[test]
fn a_shallow_clone_starts_from_the_manifest_of_its_parent() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let central = CacheServer::start();
    let a = Machine::new(&go);
    let daemon = a.home.daemon(&["--upstream", &central.url()]);
    a.build(&origin.clone());
    daemon.flush();
    drop(daemon);
    // Nothing else leads to the parent's manifest.
    let is_trail = |key: &String| Trail::decode(&central.object(key).unwrap()).is_ok();
    let trails: Vec<String> = central.keys().into_iter().filter(is_trail).collect();
    assert!(!trails.is_empty());
    trails.iter().for_each(|key| central.remove(key));

    fs::write(origin.path().join("notes.txt"), "nothing that go reads\n").unwrap();
    let head = origin.commit();
    let work = origin.clone();
    let expected = native(&go, &work);
    let b = Machine::new(&go);
    let daemon = b.home.daemon(&["--upstream", &central.url()]);
    let (program, said) = b.build(&work);
    assert!(program == expected);
    // The program names its commit.
    assert!(compiled(&said).iter().all(|package| *package == "example.test/hello"), "{said}");
    let session = &daemon.stats()["sessions"][0];
    assert_eq!(session["commit"], *head);
    assert!(session["prefetched"].as_u64().unwrap() > 20, "{session}");
}

/// A build whose daemon is killed once `is_time`: the program, which is right whatever happens.
pub(super) fn build_with_a_kill(
    machine: &Machine<'_>,
    daemon: TestDaemon,
    work: &Path,
    is_time: impl Fn(&TestDaemon) -> bool,
) {
    let expected = native(machine.go, work);
    let program = machine.home.path().join("program");
    let child = machine
        .command(work, &["build", "-o", program.to_str().unwrap(), "."])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the time to kill", || is_time(&daemon).then_some(()));
    daemon.kill();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(&program).unwrap() == expected);
    // The helper may have started another daemon; it is of this home, and is asked to end.
    let _ = machine.home.larder(&["stop"]).output().unwrap();
    wait_for("the store to be free", || {
        let stats = machine.home.larder(&["stats"]).output().unwrap();
        (stats.status.code() == Some(4)).then_some(())
    });
}

#[test]
fn a_daemon_killed_in_mid_prefetch_costs_nothing_but_time() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let central = CacheServer::start();
    let url = central.url();
    let a = Machine::new(&go);
    let daemon = a.home.daemon(&["--upstream", &url]);
    let (expected, _) = a.build(&origin.clone());
    daemon.flush();
    drop(daemon);

    let b = Machine { upstream: Some(url.clone()), ..Machine::new(&go) };
    let daemon = b.home.daemon(&["--upstream", &url]);
    let work = origin.clone();
    central.forget_requests();
    central.set_fault_on("GET", Fault::SlowFirstByte(Duration::from_millis(100)));
    let packs: Vec<String> =
        central.keys().into_iter().filter(|key| key.starts_with("/cas/")).collect();
    build_with_a_kill(&b, daemon, &work, |_| {
        packs.iter().any(|pack| central.requests("GET", pack) > 0)
    });
    central.heal();
    let daemon = b.home.daemon(&["--upstream", &url]);
    let (program, said) = b.build(&work);
    assert!(program == expected);
    assert_eq!(said, "", "the next build hits");
    assert_eq!(daemon.control(&json!({"op": "verify"}))["bad_entries"], 0);
}

#[test]
fn what_a_killed_daemon_left_upstream_misleads_nobody() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let central = CacheServer::start();
    let url = central.url();
    let a = Machine { upstream: Some(url.clone()), ..Machine::new(&go) };
    let daemon = a.home.daemon(&["--upstream", &url]);
    build_with_a_kill(&a, daemon, &origin.clone(), |daemon| {
        number(&daemon.stats(), &["requests", "go", "puts"]) > 15
    });
    let work = origin.clone();
    let expected = native(&go, &work);
    for round in 0..2 {
        let b = Machine::new(&go);
        let daemon = b.home.daemon(&["--upstream", &url]);
        let (program, said) = b.build(&work);
        assert!(program == expected);
        daemon.flush();
        assert_eq!(daemon.control(&json!({"op": "verify"}))["bad_entries"], 0);
        assert!(round == 0 || said.is_empty(), "what B built is there for the next: {said}");
    }
}

/// What `go list` reads of the standard library is in hundreds of indexes, which hold wherever the
/// same toolchain is. They are told by how each version of go writes them, and travel whether go made
/// them just now or had them in a cache of its own.
#[test]
fn what_every_version_has_listed_of_the_toolchain_is_not_read_again_on_a_cold_machine() {
    if !has_git() {
        return;
    }
    for go in install::GO_VERSIONS.into_iter().filter_map(install::go) {
        for is_adopted in [false, true] {
            let origin = Origin::new();
            write_module(&origin.path(), false);
            origin.commit();
            let home = Home::new();
            let central = home.daemon(&[]);
            let list = |machine: &Machine<'_>, is_native: bool| {
                let mut command = machine.command(&origin.clone(), &["list", "std"]);
                if is_native {
                    command.env_remove("GOCACHEPROG");
                }
                let output = command.output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                assert!(output.stdout.split(|byte| *byte == b'\n').count() > 200);
            };
            let a = Machine::new(&go);
            let daemon = a.home.daemon(&["--upstream", &central.url()]);
            if is_adopted {
                list(&a, true);
            }
            list(&a, false);
            daemon.flush();
            let puts = number(&daemon.stats(), &["requests", "go", "puts"]);
            let what = format!("go {}, adopted: {is_adopted}, {puts} puts", go.version);
            assert!(puts > 200, "{what}");
            drop(daemon);

            let b = Machine::new(&go);
            let daemon = b.home.daemon(&["--upstream", &central.url()]);
            list(&b, false);
            let session = &daemon.stats()["sessions"][0];
            assert!(session["prefetched"].as_u64().unwrap() > 200, "{what}: {session}");
            let made = number(&daemon.stats(), &["requests", "go", "puts"]);
            assert!(made < 10, "{what}: {made} were made on a cold machine: {session}");
        }
    }
}

//! `larder run` around the real go, and go's own cache beside larder.

use super::{Machine, misses, number, walk, write_module};
use crate::support::cache_server::CacheServer;
use crate::support::git::{Origin, has_git};
use crate::support::{install, wait_for};
use std::fs;

#[test]
fn run_says_what_larder_did_and_passes_the_exit_code_on() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let machine = Machine::new(&go);
    let run = |args: &[&str]| {
        let mut larder = machine.larder(dir.path(), &["run", "--"]);
        larder.env("LARDER_UPSTREAM_TOKEN", "canary-5up3r").args(args).output().unwrap()
    };
    let go_bin = go.bin.to_str().unwrap();
    run(&[go_bin, "build", "./..."]);
    let output = run(&[go_bin, "build", "./..."]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let line = said.lines().find(|l| l.starts_with("larder: ")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains(" hits ("), "{line}");
    assert!(!line.starts_with("larder: 0 hits"), "{line}");
    assert_eq!(run(&["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(run(&["sh", "-c", "kill -9 $$"]).status.code(), Some(128 + 9));
    assert_eq!(run(&["/no/such/command"]).status.code(), Some(125));
    let environment = run(&["env"]);
    let environment = String::from_utf8_lossy(&environment.stdout).into_owned();
    assert!(environment.contains("GOCACHEPROG="), "{environment}");
    assert!(!environment.contains("canary-5up3r"), "secrets stay with larder");
    let _ = machine.home.larder(&["stop"]).output().unwrap();
    for log in walk(machine.home.path()) {
        if log.extension().is_some_and(|e| e == "log") {
            assert!(
                !fs::read_to_string(&log).unwrap().contains("canary-5up3r"),
                "{}",
                log.display()
            );
        }
    }
}

/// A build of new code was told nothing of why it took as long as without larder, once anything at all
/// had been fetched ahead.
#[test]
fn a_build_of_new_code_is_told_that_it_is_new() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let central = CacheServer::start();
    let said = |flags: &str| {
        let machine = Machine { upstream: Some(central.url()), ..Machine::new(&go) };
        let work = origin.clone();
        let mut command = machine.larder(&work, &["run", "--flush=1m", "--"]);
        command.args([go.bin.to_str().unwrap(), "build", flags, "-o", "/dev/null", "."]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let _ = machine.home.larder(&["stop"]).output().unwrap();
        said
    };
    let first = said("-gcflags=all=-N");
    assert!(first.contains("; no manifest of this repository yet"), "{first}");
    let again = said("-gcflags=all=-N");
    assert!(again.contains(" fetched ahead"), "{again}");
    assert!(!again.contains("no manifest") && !again.contains("is new"), "{again}");
    let new = said("-gcflags=all=-l");
    assert!(new.contains("; most of what missed is new: nobody has built it"), "{new}");
}

#[test]
fn a_warm_native_cache_is_read_and_never_written() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let machine = Machine::new(&go);
    let warm = go
        .command(dir.path(), machine.home.path())
        .args(["build", "-o", "/dev/null", "."])
        .output()
        .unwrap();
    assert!(warm.status.success());
    let before = walk(&machine.home.path().join("gocache")).len();
    let daemon = machine.home.daemon(&[]);
    let (_, said) = machine.build(dir.path());
    assert_eq!(said, "", "the native cache had it all");
    wait_for("the report", || {
        (number(&daemon.stats(), &["requests", "go", "hit_native"]) > 10).then_some(())
    });
    assert_eq!(walk(&machine.home.path().join("gocache")).len(), before);
    assert!(misses(&daemon) < 30);
}

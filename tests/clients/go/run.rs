//! `larder run` around the real go, and go's own cache beside larder.

use std::fs;
use std::process::Command;

use super::{Machine, misses, number, walk, write_module};
use crate::harness::LARDER;
use crate::support::install;
use crate::support::wait_for;

#[test]
fn run_says_what_larder_did_and_passes_the_exit_code_on() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let machine = Machine::new(&go);
    let run = |args: &[&str]| {
        let mut command = machine.command(dir.path(), &[]);
        let mut larder = Command::new(LARDER);
        larder.current_dir(dir.path()).env_clear();
        for (name, value) in command.get_envs() {
            if let Some(value) = value.filter(|_| name != "GOCACHEPROG") {
                larder.env(name, value);
            }
        }
        let _ = &mut command;
        larder.env("LARDER_UPSTREAM_TOKEN", "canary-5up3r").arg("run").arg("--").args(args);
        larder.output().unwrap()
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

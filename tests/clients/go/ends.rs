//! A build that is told to end: with the right exit code, and nothing left behind.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use larder::manifest;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{Machine, asked, assert_asked, is_kept, native, number, write_module};
use crate::harness::{LARDER, TestDaemon};
use crate::support::cache_server::CacheServer;
use crate::support::git::{Origin, has_git};
use crate::support::{self, install, wait_for};

/// Stands before go's tools and lets no linker run while go lives: a build that cannot end by itself,
/// however slowly this machine looks at it.
const TOOLEXEC: &str = "\
case $1 in
    */link) [ \"$2\" = -V=full ] || exec tail --pid=$PPID -f /dev/null ;;
esac
exec \"$@\"
";

/// `larder run -- go build` in a process group of its own, as from a terminal: not as from a script's
/// background, where SIGINT is ignored, and whoever is started there ignores it too.
fn run(machine: &Machine<'_>, module: &Path) -> (Command, PathBuf) {
    let program = machine.home.path().join("program");
    let go = machine.command(module, &[]);
    let mut larder = Command::new("/usr/bin/env");
    larder.args(["--default-signal=INT", LARDER]);
    larder.current_dir(module).env_clear().process_group(0);
    larder.stdin(Stdio::null()).stdout(Stdio::null());
    larder.stderr(fs::File::create(machine.home.path().join("run.log")).unwrap());
    larder.envs(go.get_envs().filter_map(|(name, value)| Some((name, value?))));
    larder.env_remove("GOCACHEPROG");
    let before_tools = machine.home.path().join("toolexec");
    support::program(&before_tools, TOOLEXEC);
    larder.args(["run", "--"]).arg(go.get_program()).args(["build", "-o"]).arg(&program);
    larder.arg(format!("-toolexec={}", before_tools.display())).arg(".");
    (larder, program)
}

/// Processes with this in their environment, and their words: those of a build, whoever their parent is
/// by now.
fn processes_with(variable: &str) -> Vec<(Pid, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environment).contains(variable) {
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
            found.extend(pid.map(|pid| (pid, String::from_utf8_lossy(&words).replace('\0', " "))));
        }
    }
    found
}

fn assert_green_afterwards(machine: &Machine<'_>, module: &Path, daemon: &TestDaemon) {
    let expected = native(machine.go, module);
    let before = asked(daemon);
    let (program, _) = machine.build(module);
    assert!(program == expected, "the next build");
    assert_asked(daemon, before);
    let (program, said) = machine.build(module);
    assert!(program == expected);
    assert_eq!(said, "", "and nothing that was put is lost");
    let report = daemon.control(&serde_json::json!({"op": "verify"}));
    assert_eq!(report["bad_entries"], 0, "{report}");
}

/// Ends a build in its midst by `end`; returns the exit code.
fn ended(machine: &Machine<'_>, module: &Path, daemon: &TestDaemon, end: fn(Pid)) -> Option<i32> {
    let (mut command, program) = run(machine, module);
    let mut child = command.spawn().unwrap();
    wait_for("puts", || (number(&daemon.stats(), &["requests", "go", "puts"]) > 15).then_some(()));
    end(Pid::from_child(&child));
    let code = child.wait().unwrap().code();
    assert!(!program.exists(), "it was still building");
    let home = format!("LARDER_SOCKET={}", machine.home.socket().display());
    // The daemon stays, by design; go, its compilers and its helper do not.
    wait_for("all others to end", || {
        let left = processes_with(&home);
        left.iter().all(|(_, words)| words.contains(" daemon ")).then_some(())
    });
    code
}

#[test]
fn an_interrupt_in_mid_build_ends_all_but_the_daemon_and_loses_nothing() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let machine = Machine::new(&go);
    let daemon = machine.home.daemon(&[]);
    let code = ended(&machine, dir.path(), &daemon, |run| {
        kill_process_group(run, Signal::INT).unwrap();
    });
    let said = fs::read_to_string(machine.home.path().join("run.log")).unwrap();
    // go hears of it and ends with 1, as it does without larder; killed by it, it would be 130.
    assert!(matches!(code, Some(1 | 130)), "{code:?}: {said}");
    assert!(!said.contains("GOCACHEPROG exited"), "{said}");
    assert!(said.contains("larder: "), "the summary is told all the same: {said}");
    assert_green_afterwards(&machine, dir.path(), &daemon);
}

#[test]
fn a_termination_of_run_in_mid_build_ends_go_too() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let machine = Machine::new(&go);
    let daemon = machine.home.daemon(&[]);
    let code = ended(&machine, dir.path(), &daemon, |run| {
        kill_process(run, Signal::TERM).unwrap();
    });
    assert_eq!(code, Some(128 + 15));
    assert_green_afterwards(&machine, dir.path(), &daemon);
}

/// A runner that is cancelled takes all with it in the midst of a build: command, go, helper, daemon.
#[test]
fn a_runner_that_is_killed_before_its_session_ends_misleads_nobody() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let central = CacheServer::start();
    let a = Machine { upstream: Some(central.url()), ..Machine::new(&go) };
    let (mut command, program) = run(&a, &origin.clone());
    let mut child = command.spawn().unwrap();
    central.wait_until("uploads", |central| central.keys().len() > 10);
    let home = format!("LARDER_SOCKET={}", a.home.socket().display());
    wait_for("nobody to be left", || {
        let left = processes_with(&home);
        for (pid, _) in &left {
            // Ended already is fine.
            let _ = kill_process(*pid, Signal::KILL);
        }
        left.is_empty().then_some(())
    });
    child.wait().unwrap();
    assert!(!program.exists(), "it was still building");
    let mut objects = central.keys().into_iter().filter_map(|key| central.object(&key));
    assert!(!objects.any(|object| manifest::is_one(&object)), "the session was not over");
    let expected = native(&go, &origin.clone());
    for may_compile in [true, false] {
        let b = Machine::new(&go);
        let daemon = b.home.daemon(&["--upstream", &central.url()]);
        let (program, said) = b.build(&origin.clone());
        assert!(program == expected);
        assert!(may_compile || is_kept(&daemon, &said, &[]), "{said}");
        daemon.flush();
        assert_eq!(daemon.control(&serde_json::json!({"op": "verify"}))["bad_entries"], 0);
    }
}

#[test]
fn the_daemon_of_an_interrupted_build_ends_when_nobody_comes() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let machine = Machine::new(&go);
    let (mut command, _) = run(&machine, dir.path());
    let mut child = command.env("LARDER_IDLE_EXIT", "1s").spawn().unwrap();
    wait_for("the daemon that run starts", || {
        let stats = machine.home.larder(&["stats"]).output().unwrap();
        stats.status.success().then_some(())
    });
    kill_process_group(Pid::from_child(&child), Signal::INT).unwrap();
    child.wait().unwrap();
    let home = format!("LARDER_SOCKET={}", machine.home.socket().display());
    wait_for("the end of all", || processes_with(&home).is_empty().then_some(()));
    assert!(!machine.home.socket().exists(), "and its socket is gone");
}

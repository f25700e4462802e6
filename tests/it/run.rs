//! `larder run` as a process among others: signals, exit codes, and nothing that is left behind.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::harness::Home;
use crate::support::cache_server::{CacheServer, Fault};
use crate::support::wait_for;

/// A shell that says where it is, and goes on until it is told something.
const SAYS_WHAT_IT_HEARS: &str = "for s in TERM HUP INT; do trap \"echo $s >> heard; exit 9\" $s; done; \
     echo > ready; while :; do sleep 0.02; done";

/// `larder run` in a process group of its own, as from a terminal: with no signal ignored, as what nohup or
/// a script's background starts has them. Returns when `script` is ready.
fn run(home: &Home, script: &str, prepare: impl FnOnce(&mut Command)) -> Child {
    let larder = home.larder(&["run", "--", "sh", "-c", script]);
    let mut command = Command::new("/usr/bin/env");
    command.arg("--default-signal=HUP,INT,TERM").arg(larder.get_program()).args(larder.get_args());
    command.env_clear().current_dir(home.path());
    command.envs(larder.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("LARDER_LISTEN", "127.0.0.1:0").env("LARDER_ADMIN", "off").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    prepare(&mut command);
    let child = command.spawn().unwrap();
    wait_for("the command", || home.path().join("ready").exists().then_some(()));
    child
}

fn heard(home: &Home) -> String {
    std::fs::read_to_string(home.path().join("heard")).unwrap_or_default()
}

fn stop(home: &Home) {
    // Nobody there is fine.
    let _ = home.larder(&["stop"]).output().unwrap();
}

#[test]
fn a_signal_to_run_alone_reaches_the_command() {
    for (signal, name) in [(Signal::TERM, "TERM\n"), (Signal::HUP, "HUP\n")] {
        let home = Home::new();
        let mut child = run(&home, SAYS_WHAT_IT_HEARS, |_| {});
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(9), "the command's own code");
        assert_eq!(heard(&home), name);
        stop(&home);
    }
}

#[test]
fn a_command_that_a_signal_kills_is_told_as_shells_do() {
    for (signal, code) in [(Signal::TERM, 128 + 15), (Signal::HUP, 128 + 1)] {
        let home = Home::new();
        let mut child = run(&home, "echo > ready; exec sleep 60", |_| {});
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        stop(&home);
    }
}

#[test]
fn an_interrupt_from_the_terminal_is_heard_once_and_told() {
    let home = Home::new();
    let mut child = run(&home, SAYS_WHAT_IT_HEARS, |_| {});
    kill_process_group(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
    assert_eq!(heard(&home), "INT\n");
    stop(&home);
}

#[test]
fn what_the_starter_ignores_stays_ignored() {
    let home = Home::new();
    let larder = home.larder(&["run", "--", "sh", "-c", "echo > ready; read line < fifo; exit 5"]);
    let mut nohup = Command::new("sh");
    let made = Command::new("mkfifo").arg(home.path().join("fifo")).status().unwrap();
    assert!(made.success());
    nohup.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(larder.get_program());
    nohup.args(larder.get_args()).env_clear().current_dir(home.path());
    nohup.envs(larder.get_envs().filter_map(|(name, value)| Some((name, value?))));
    nohup.env("LARDER_LISTEN", "127.0.0.1:0").env("LARDER_ADMIN", "off").stderr(Stdio::null());
    let mut child = nohup.process_group(0).spawn().unwrap();
    wait_for("the command", || home.path().join("ready").exists().then_some(()));
    kill_process_group(Pid::from_child(&child), Signal::HUP).unwrap();
    std::fs::write(home.path().join("fifo"), "go on\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5), "neither larder nor the command has heard");
    stop(&home);
}

/// The first run of a job starts the daemon, and closed whatever the command was to inherit: the pipes of a
/// make, a shell's log.
#[test]
fn the_command_of_a_run_that_starts_the_daemon_inherits_what_was_open() {
    let home = Home::new();
    let mut run = home.larder(&["run", "--", "sh", "-c", "echo inherited >&3"]);
    run.env("LARDER_LISTEN", "127.0.0.1:0").env("LARDER_ADMIN", "off");
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 3> log; exec \"$0\" \"$@\""]).arg(run.get_program());
    shell.args(run.get_args()).current_dir(home.path());
    for (name, value) in run.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let output = shell.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = std::fs::canonicalize(home.path().join("log")).unwrap();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "inherited\n");
    // The daemon has nothing of it.
    let status = home.larder(&["stats", "--json"]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let open = std::fs::read_dir(format!("/proc/{}/fd", status["pid"])).unwrap();
    let paths = open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    assert!(!paths.into_iter().any(|path| path == log), "the daemon holds the log");
    stop(&home);
}

/// For some seconds after its socket is gone a daemon that ends still has the store. The one that was
/// started meanwhile ended at once, no other was tried, and the build had no daemon to its end.
#[test]
fn a_build_that_begins_while_a_daemon_ends_has_the_next_one() {
    let central = CacheServer::start();
    central.set_fault(Fault::BlackHole);
    let home = Home::new();
    let mut daemon = home.daemon(&["--upstream", &central.url()]);
    assert_eq!(daemon.put("/kv/a", b"owed").status, 201);
    daemon.control(&serde_json::json!({"op": "stop"}));
    wait_for("its door to close", || (!home.socket().exists()).then_some(()));
    assert_eq!(daemon.child.try_wait().unwrap(), None, "it has ended already");
    let mut run = home.larder(&["run", "--", "true"]);
    run.env("LARDER_LISTEN", "127.0.0.1:0").env("LARDER_ADMIN", "off");
    let output = run.env("LARDER_UPSTREAM", central.url()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stats =
        wait_for("the next daemon", || daemon.try_control(&serde_json::json!({"op": "stats"})));
    assert_ne!(stats["pid"], daemon.child.id());
    assert_eq!(stats["journal"]["owed_entries"], 1);
    central.heal();
    stop(&home);
}

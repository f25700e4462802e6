//! The real go through larder: the same outputs, nothing compiled twice, green whatever happens.
//!
//! Every test asserts that larder was asked: an old go, or a wrong setting, would pass otherwise.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Home, LARDER, TestDaemon};
use crate::support::cache_server::{CacheServer, Fault};
use crate::support::install::{self, Go};
use crate::support::nginx::Nginx;
use crate::support::wait_for;

/// A machine that builds: a home with go's caches and larder's store.
struct Machine<'a> {
    go: &'a Go,
    home: Home,
    /// For daemons that helpers start: another upstream would be another realm.
    upstream: Option<String>,
}

impl<'a> Machine<'a> {
    fn new(go: &'a Go) -> Self {
        Self { go, home: Home::new(), upstream: None }
    }

    /// go in `module`, through larder.
    fn go(&self, module: &Path, args: &[&str]) -> Output {
        self.command(module, args).output().unwrap()
    }

    fn command(&self, module: &Path, args: &[&str]) -> Command {
        let mut command = self.go.command(module, self.home.path());
        command
            .args(args)
            .env("GOCACHEPROG", format!("{LARDER} go"))
            .env("LARDER_SOCKET", self.home.socket())
            .env("LARDER_STORE", self.home.store())
            .env("LARDER_LISTEN", "127.0.0.1:0")
            .env("LARDER_ADMIN", "off");
        if let Some(url) = &self.upstream {
            command.env("LARDER_UPSTREAM", url);
        }
        command
    }

    /// Builds the program and returns its bytes, and what `-v` printed.
    fn build(&self, module: &Path) -> (Vec<u8>, String) {
        let program = self.home.path().join("program");
        let output = self.go(module, &["build", "-v", "-o", program.to_str().unwrap(), "."]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        (fs::read(program).unwrap(), said)
    }
}

/// The same build without larder.
fn native(go: &Go, module: &Path) -> Vec<u8> {
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("program");
    let output = go
        .command(module, home.path())
        .args(["build", "-o", program.to_str().unwrap(), "."])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read(program).unwrap()
}

/// A program of three packages, with a test, and C if asked for.
fn write_module(dir: &Path, with_c: bool) {
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("go.mod", "module example.test/hello\n\ngo 1.24\n");
    write(
        "greet/greet.go",
        "package greet\n\nimport \"example.test/hello/name\"\n\nfunc Text() string { return \"hello, \" + name.Of() }\n",
    );
    write(
        "greet/greet_test.go",
        "package greet\n\nimport \"testing\"\n\nfunc TestText(t *testing.T) {\n\tif Text() != \"hello, larder\" {\n\t\tt.Fatal(Text())\n\t}\n}\n",
    );
    let name = if with_c {
        "package name\n\n// static int len(void) { return 6; }\nimport \"C\"\n\nfunc Of() string { return \"larderX\"[:C.len()] }\n"
    } else {
        "package name\n\nfunc Of() string { return \"larder\" }\n"
    };
    write("name/name.go", name);
    write(
        "main.go",
        "package main\n\nimport \"example.test/hello/greet\"\n\nfunc main() { println(greet.Text()) }\n",
    );
}

fn number(stats: &Value, path: &[&str]) -> u64 {
    path.iter().fold(stats, |at, key| &at[*key]).as_u64().unwrap_or(0)
}

/// Lookups that Go made of this daemon, its helpers' own answers included.
fn asked(daemon: &TestDaemon) -> u64 {
    number(&daemon.stats(), &["requests", "go", "gets"])
}

/// The helper reports what it answered itself just after go has ended.
fn assert_asked(daemon: &TestDaemon, before: u64) {
    wait_for("larder to be asked", || (asked(daemon) > before).then_some(()));
}

fn misses(daemon: &TestDaemon) -> u64 {
    let stats = daemon.stats();
    let misses = stats["requests"]["go"]["miss"].as_object().unwrap();
    misses.values().filter_map(Value::as_u64).sum()
}

#[test]
fn outputs_are_the_same_and_nothing_is_compiled_twice() {
    for version in install::GO_VERSIONS {
        let Some(go) = install::go(version) else { return };
        let dir = tempfile::tempdir().unwrap();
        write_module(dir.path(), version == install::GO_1_27);
        let expected = native(&go, dir.path());
        let central = CacheServer::start();
        let machine = Machine::new(&go);
        let daemon = machine.home.daemon(&["--upstream", &central.url()]);
        let (program, said) = machine.build(dir.path());
        assert!(program == expected, "{version}: the first build");
        assert!(said.contains("example.test/hello/greet"), "{version}: {said}");
        assert_asked(&daemon, 0);
        daemon.flush();
        let (uploads, before) = (central.puts(), asked(&daemon));
        assert!(uploads > 0);
        let (program, said) = machine.build(dir.path());
        assert!(program == expected, "{version}: the second build");
        assert_eq!(said, "", "{version}: compiled again");
        assert_asked(&daemon, before);
        daemon.flush();
        let again = central.puts() - uploads;
        assert!(again <= 2, "{version}: {again} uploads of a warm build (linking is stored anew)");
    }
}

#[test]
fn vet_test_list_and_archives_work_as_without_larder() {
    for version in [install::GO_1_24, install::GO_1_27] {
        let Some(go) = install::go(version) else { return };
        let dir = tempfile::tempdir().unwrap();
        write_module(dir.path(), false);
        let machine = Machine::new(&go);
        let daemon = machine.home.daemon(&[]);
        let ok = |args: &[&str]| {
            let output = machine.go(dir.path(), args);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{version}: {args:?}: {said}");
            String::from_utf8(output.stdout).unwrap()
        };
        ok(&["vet", "./..."]);
        assert!(!ok(&["test", "./..."]).contains("(cached)"));
        assert!(ok(&["test", "./..."]).contains("(cached)"), "{version}");
        let exports = ok(&["list", "-export", "-f", "{{.Export}}", "./..."]);
        for path in exports.lines().filter(|l| !l.is_empty()) {
            assert!(Path::new(path).is_file(), "{path} is read after go has ended");
            assert_eq!(Path::new(path).extension(), None);
        }
        let archive = dir.path().join("x.a");
        let mut archives = Vec::new();
        for _ in 0..3 {
            ok(&["build", "-o", archive.to_str().unwrap(), "./greet"]);
            archives.push(fs::read(&archive).unwrap());
        }
        assert!(archives.windows(2).all(|pair| pair[0] == pair[1]), "{version}");
        assert_asked(&daemon, 0);
    }
}

#[test]
fn the_standard_library_is_compiled_once() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let machine = Machine::new(&go);
    let daemon = machine.home.daemon(&[]);
    let cold = machine.go(dir.path(), &["build", "-v", "std"]);
    assert!(cold.status.success(), "{}", String::from_utf8_lossy(&cold.stderr));
    assert!(cold.stderr.len() > 1000);
    let before = asked(&daemon);
    let warm = machine.go(dir.path(), &["build", "-v", "std"]);
    assert!(warm.status.success());
    assert_eq!(String::from_utf8_lossy(&warm.stderr), "", "compiled again");
    assert_asked(&daemon, before + 500);
}

/// Machine A builds and flushes; machine B, empty, compiles nothing.
fn assert_travels(go: &Go, url: &str) {
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let (a, b) = (Machine::new(go), Machine::new(go));
    let daemon = a.home.daemon(&["--upstream", url]);
    let (expected, _) = a.build(dir.path());
    daemon.flush();
    drop(daemon);
    let daemon = b.home.daemon(&["--upstream", url]);
    let (program, said) = b.build(dir.path());
    assert!(program == expected, "{url}");
    assert_eq!(said, "", "{url}: compiled on an empty machine");
    let hits = number(&daemon.stats(), &["requests", "go", "hit_upstream"]);
    assert!(hits > 20, "{hits} hits from upstream");
}

#[test]
fn an_empty_machine_compiles_nothing_behind_a_larder() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let home = Home::new();
    let central = home.daemon(&[]);
    assert_travels(&go, &central.url());
}

#[test]
fn an_empty_machine_compiles_nothing_behind_nginx_with_dav() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    let Some(nginx) = Nginx::start_dav(dir.path()) else { return };
    assert_travels(&go, &nginx.url);
}

#[test]
fn an_empty_machine_compiles_nothing_behind_a_hundred_lines() {
    let Some(go) = install::go(install::GO_1_24) else { return };
    let central = CacheServer::start();
    assert_travels(&go, &central.url());
}

#[test]
fn a_pull_request_reads_what_main_built_and_cannot_change_it() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let central = CacheServer::start();
    let url = central.url();
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let (main, pr) = (Machine::new(&go), Machine::new(&go));
    let daemon = main.home.daemon(&["--upstream", &url, "--namespace", "main"]);
    let (expected, _) = main.build(dir.path());
    daemon.flush();
    let of_main: BTreeMap<String, Option<Vec<u8>>> =
        central.keys().into_iter().map(|key| (key.clone(), central.object(&key))).collect();
    let flags = ["--upstream", &url, "--namespace", "pr-7", "--trust", "main"];
    let daemon = pr.home.daemon(&flags);
    let (program, said) = pr.build(dir.path());
    assert!(program == expected);
    assert_eq!(said, "");
    fs::write(
        dir.path().join("name/name.go"),
        "package name\n\nfunc Of() string { return \"evil\" }\n",
    )
    .unwrap();
    pr.build(dir.path());
    daemon.flush();
    for (key, value) in &of_main {
        assert!(central.object(key) == *value, "{key} was changed");
    }
    let written: Vec<_> = central.keys().into_iter().filter(|k| !of_main.contains_key(k)).collect();
    assert!(written.iter().all(|key| key.starts_with("/pr-7/")), "{written:?}");
    assert!(!written.is_empty());
}

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
        let report = daemon.control(&serde_json::json!({"op": "verify"}));
        assert_eq!(report["bad_entries"], 0, "{what}");
        central.heal();
        let c = Machine::new(&go);
        drop(daemon);
        let daemon = c.home.daemon(&["--upstream", &central.url()]);
        let (program, said) = c.build(dir.path());
        assert!(program == expected, "{what}: afterwards");
        assert_eq!(said, "", "{what}: what is upstream is whole");
        drop(daemon);
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

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { out.extend(walk(&path)) } else { out.push(path) }
    }
    out
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

//! The real go through larder: the same outputs, nothing compiled twice, green whatever happens.
//!
//! Every test asserts that larder was asked: an old go, or a wrong setting, would pass otherwise.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{Home, LARDER, TestDaemon};
use crate::support::install::Go;
use crate::support::wait_for;

mod apart;
mod astray;
mod cold;
mod ends;
mod falls;
mod matrix;
mod run;
mod travels;

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

    /// larder in `module`, as this machine's go has it.
    fn larder(&self, module: &Path, args: &[&str]) -> Command {
        let go = self.command(module, &[]);
        let mut larder = Command::new(LARDER);
        larder.current_dir(module).env_clear().args(args);
        for (name, value) in go.get_envs() {
            if let Some(value) = value.filter(|_| name != "GOCACHEPROG") {
                larder.env(name, value);
            }
        }
        larder
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
    native_in(tempfile::tempdir().unwrap().path(), go, module)
}

/// With a cache of go's own in this home.
fn native_in(home: &Path, go: &Go, module: &Path) -> Vec<u8> {
    let program = home.join("program");
    let output = go
        .command(module, home)
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

/// Lookups that were not waited for: beside other work, building is quicker than an answer.
fn given_up(daemon: &TestDaemon) -> u64 {
    let stats = daemon.stats();
    ["policy", "deadline"].map(|why| number(&stats, &["requests", "go", "miss", why])).iter().sum()
}

/// Whether, beside what was to be compiled anew, no more packages were compiled than were not waited for.
fn is_kept(daemon: &TestDaemon, said: &str, anew: &[&str]) -> bool {
    let compiled = said.lines().filter(|line| !line.starts_with('#') && !anew.contains(line));
    compiled.count() as u64 <= given_up(daemon)
}

fn misses(daemon: &TestDaemon) -> u64 {
    let stats = daemon.stats();
    let misses = stats["requests"]["go"]["miss"].as_object().unwrap();
    misses.values().filter_map(Value::as_u64).sum()
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { out.extend(walk(&path)) } else { out.push(path) }
    }
    out
}

//! What go can be asked to do, with every version, with and without C: as without larder, and
//! nothing twice. What is expected is what the same go does with a cache of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use larder::entry::Digest;

use super::{Machine, asked, assert_asked, write_module};
use crate::harness::TestDaemon;
use crate::support::cache_server::CacheServer;
use crate::support::install::{self, Go};
use crate::support::skipped;

/// All that go has made, by name, as digests.
type Made = BTreeMap<String, String>;

/// One go, one setting of C, one module.
struct Cell<'a> {
    machine: Machine<'a>,
    cgo: &'static str,
    module: &'a Path,
    is_native: bool,
}

impl Cell<'_> {
    fn go(&self, args: &[&str]) -> (String, String) {
        let mut command = self.machine.command(self.module, args);
        command.env("CGO_ENABLED", self.cgo);
        if self.is_native {
            command.env_remove("GOCACHEPROG");
        }
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, said) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{self:?}: {args:?}: {said}");
        (out, said)
    }

    /// Builds the program, the archive of a package three times over, and the export data of all.
    fn make(&self) -> Made {
        let mut made = self.exports("./...");
        self.go(&["vet", "./..."]);
        for (name, package) in [("program", "."), ("x.a", "./greet")] {
            let path = self.machine.home.path().join(name);
            for round in 0..3 {
                self.go(&["build", "-o", path.to_str().unwrap(), package]);
                let digest = Digest::of(&fs::read(&path).unwrap()).to_string();
                let before = made.insert(name.to_owned(), digest.clone());
                assert!(before.is_none_or(|before| before == digest), "{self:?}: {name}, {round}");
            }
        }
        made
    }

    /// The files that `go list -export` names; they are read after go has ended.
    fn exports(&self, packages: &str) -> Made {
        let (out, _) = self.go(&["list", "-export", "-f", "{{.ImportPath}} {{.Export}}", packages]);
        let exports = out.lines().filter_map(|line| {
            let (package, file) = line.split_once(' ').filter(|(_, file)| !file.is_empty())?;
            assert_eq!(Path::new(file).extension(), None, "{self:?}: {line}");
            let bytes = fs::read(file).unwrap_or_else(|error| panic!("{self:?}: {line}: {error}"));
            Some((format!("export of {package}"), Digest::of(&bytes).to_string()))
        });
        exports.collect()
    }
}

impl std::fmt::Debug for Cell<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = if self.is_native { "native" } else { "larder" };
        write!(f, "go {} CGO_ENABLED={} {how}", self.machine.go.version, self.cgo)
    }
}

fn has_c_compiler() -> bool {
    let found = Command::new("cc").arg("--version").output().is_ok_and(|o| o.status.success());
    found || skipped::<()>("no C compiler for CGO_ENABLED=1").is_some()
}

/// A warm build compiles nothing, and sends no more than what linking stores anew: no bytes.
fn assert_warm(cell: &Cell<'_>, daemon: &TestDaemon, central: &CacheServer) {
    daemon.flush();
    let (before, questions) = (central.keys(), asked(daemon));
    let program = cell.machine.home.path().join("program");
    let (_, said) = cell.go(&["build", "-v", "-o", program.to_str().unwrap(), "."]);
    assert_eq!(said, "", "{cell:?}: compiled again");
    assert_asked(daemon, questions);
    daemon.flush();
    let new: Vec<_> = central.keys().into_iter().filter(|key| !before.contains(key)).collect();
    assert!(new.len() <= 2, "{cell:?}: uploads of a warm build: {new:?}");
    for key in new {
        let value = central.object(&key).unwrap();
        let is_empty = String::from_utf8_lossy(&value).contains("larder.empty");
        assert!(key.contains("/ac/") && is_empty, "{cell:?}: {key} is not empty");
    }
}

/// The same module on a machine with larder, on one without, and on the first again.
fn assert_same_as_native(cell: &Cell<'_>, daemon: &TestDaemon, central: &CacheServer) {
    let machine = Machine::new(cell.machine.go);
    let native = Cell { machine, cgo: cell.cgo, module: cell.module, is_native: true };
    let expected = native.make();
    assert!(expected.len() >= 5, "{expected:?}");
    assert_eq!(cell.make(), expected, "{cell:?}: the first time");
    assert_asked(daemon, 0);
    assert_warm(cell, daemon, central);
    assert_eq!(cell.make(), expected, "{cell:?}: the second time");
    assert!(!cell.go(&["test", "./..."]).0.contains("(cached)"), "{cell:?}");
    assert!(cell.go(&["test", "./..."]).0.contains("(cached)"), "{cell:?}");
}

/// What go makes of its own standard library; then of a module, for which the library is warm.
fn assert_version(go: &Go, cgo_of_std: &'static str, compares_std: bool) {
    let dir = tempfile::tempdir().unwrap();
    let central = CacheServer::start();
    let machine = Machine::new(go);
    let daemon = machine.home.daemon(&["--upstream", &central.url()]);
    write_module(dir.path(), false);
    let mut cell = Cell { machine, cgo: cgo_of_std, module: dir.path(), is_native: false };
    let (_, cold) = cell.go(&["build", "-v", "std"]);
    assert!(cold.len() > 1000, "{cell:?}: {cold}");
    let questions = asked(&daemon);
    let (_, warm) = cell.go(&["build", "-v", "std"]);
    assert_eq!(warm, "", "{cell:?}: compiled again");
    assert_asked(&daemon, questions + 500);
    if compares_std {
        let machine = Machine::new(go);
        let native = Cell { machine, cgo: cell.cgo, module: cell.module, is_native: true };
        let expected = native.exports("std");
        assert!(expected.len() > 200, "{}", expected.len());
        assert_eq!(cell.exports("std"), expected, "{cell:?}");
    }
    for cgo in ["0", "1"] {
        if cgo == "1" && !has_c_compiler() {
            continue;
        }
        write_module(dir.path(), cgo == "1");
        cell.cgo = cgo;
        assert_same_as_native(&cell, &daemon, &central);
    }
    let report = daemon.control(&serde_json::json!({"op": "verify"}));
    assert_eq!(report["bad_entries"], 0, "{report}");
}

#[test]
fn outputs_are_the_same_and_nothing_is_compiled_twice_by_the_oldest_go() {
    let Some(go) = install::go(install::GO_1_24) else { return };
    assert_version(&go, "0", true);
}

#[test]
fn outputs_are_the_same_and_nothing_is_compiled_twice_by_the_go_in_support() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    assert_version(&go, if has_c_compiler() { "1" } else { "0" }, false);
}

#[test]
fn outputs_are_the_same_and_nothing_is_compiled_twice_by_the_newest_go() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    assert_version(&go, "0", false);
}

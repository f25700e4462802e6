//! What go can be asked to do, with every version: as without larder, and nothing twice.

use std::fs;
use std::path::Path;

use super::{Machine, asked, assert_asked, native, write_module};
use crate::support::cache_server::CacheServer;
use crate::support::install;

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

//! The toolchains run, and speak to the helpers that larder is compared with.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::cache_server::CacheServer;
use crate::support::install::{self, Go};

/// A program of two packages that compiles little.
fn write_module(dir: &Path) {
    fs::create_dir_all(dir.join("greet")).unwrap();
    fs::write(dir.join("go.mod"), "module example.test/hello\n\ngo 1.24\n").unwrap();
    fs::write(dir.join("greet/greet.go"), "package greet\n\nconst Text = \"hello\"\n").unwrap();
    let main = "package main\n\nimport \"example.test/hello/greet\"\n\nfunc main() { println(greet.Text) }\n";
    fs::write(dir.join("main.go"), main).unwrap();
}

/// Builds with this helper from an empty GOCACHE, and returns what the program prints.
fn build(go: &Go, module: &Path, helper: &str) -> String {
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("hello");
    let output = go
        .command(module, home.path())
        .args(["build", "-o"])
        .arg(&program)
        .env("CGO_ENABLED", "0")
        .env("GOCACHEPROG", helper)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = Command::new(program).output().unwrap().stderr;
    String::from_utf8(printed).unwrap()
}

fn index_lines(dir: &Path) -> usize {
    fs::read_to_string(dir.join("index")).map_or(0, |index| index.lines().count())
}

/// A warm build compiles nothing of the standard library. A few entries are stored anew all the same:
/// executables do not go through the helper, so Go links again and stores that it did.
fn assert_nearly_warm(before: usize, after: usize) {
    assert!(after - before < before / 10, "{before} stored cold, {after} after the warm build");
}

#[test]
fn every_toolchain_says_its_version() {
    for version in install::GO_VERSIONS {
        let Some(go) = install::go(version) else { return };
        let home = tempfile::tempdir().unwrap();
        let output = go.command(home.path(), home.path()).arg("version").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.starts_with(&format!("go version go{}", go.version)), "{said}");
        assert!(go.goroot.join("src/fmt").is_dir(), "{}", go.goroot.display());
    }
}

#[test]
fn the_floor_helper_gives_back_what_it_was_given() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (module, cache, trace) =
        (dir.path().join("m"), dir.path().join("c"), dir.path().join("trace"));
    write_module(&module);
    let helper = install::example("floor_helper");
    let helper = format!("{} {} --trace {}", helper.display(), cache.display(), trace.display());
    assert_eq!(build(&go, &module, &helper), "hello\n");
    let stored = index_lines(&cache);
    assert!(stored > 10, "a build puts more than {stored} outputs");
    assert!(!trace.exists(), "nothing was hit in a cold build");
    assert_eq!(build(&go, &module, &helper), "hello\n");
    assert_nearly_warm(stored, index_lines(&cache));
    assert!(fs::read_to_string(trace).unwrap().lines().count() > 10);
}

#[test]
fn the_plain_helper_builds_on_another_machine_from_the_server() {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let program = install::example("plain_helper");
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("m");
    write_module(&module);
    for layout in ["", "--one-request"] {
        let server = CacheServer::start();
        let helper = |local: &str| {
            let local = dir.path().join(format!("{local}{layout}"));
            format!("{} {} {} {layout}", program.display(), server.url(), local.display())
        };
        assert_eq!(build(&go, &module, &helper("first")), "hello\n");
        let (misses, stored) = (server.gets(), server.puts());
        assert!(misses > 10 && stored > 10, "{misses} misses, {stored} stored");
        assert_eq!(build(&go, &module, &helper("second")), "hello\n");
        assert!(server.gets() > misses);
        assert_nearly_warm(stored, server.puts());
    }
}

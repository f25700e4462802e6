//! What one machine builds another does not build again, and what a pull request may change.

use std::collections::BTreeMap;
use std::fs;

use super::{Machine, given_up, number, write_module};
use crate::harness::Home;
use crate::support::cache_server::CacheServer;
use crate::support::install::{self, Go};
use crate::support::nginx::Nginx;

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
    assert!(given_up(&daemon) > 0 || said.is_empty(), "compiled: {said}");
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

//! What one machine builds another does not build again, and what a pull request may change.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Machine, given_up, is_kept, number, write_module};
use crate::harness::Home;
use crate::support::cache_server::CacheServer;
use crate::support::git::{Origin, has_git};
use crate::support::install::{self, Go};
use crate::support::nginx::Nginx;

/// Machine A builds and flushes; machine B, empty, compiles nothing.
fn assert_travels(go: &Go, url: &str) {
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    let stats = assert_arrives(go, url, dir.path());
    let hits = number(&stats, &["requests", "go", "hit_upstream"]);
    assert!(hits > 20, "{hits} hits from upstream");
    if !has_git() {
        return;
    }
    // In a repository the same comes ahead, by manifest and packs.
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let session = &assert_arrives(go, url, &origin.clone())["sessions"][0];
    assert!(session["prefetched"].as_u64().unwrap() > 20, "{url}: {session}");
}

/// What the second machine's daemon says.
fn assert_arrives(go: &Go, url: &str, work: &Path) -> Value {
    let (a, b) = (Machine::new(go), Machine::new(go));
    let daemon = a.home.daemon(&["--upstream", url]);
    let (expected, _) = a.build(work);
    daemon.flush();
    drop(daemon);
    let daemon = b.home.daemon(&["--upstream", url]);
    let (program, said) = b.build(work);
    assert!(program == expected, "{url}");
    assert_eq!(said, "", "{url}: compiled on an empty machine");
    daemon.stats()
}

/// One runner after the other builds what was built already: nothing is sent twice, not even what says
/// so.
#[test]
fn machines_that_build_one_commit_send_nothing_twice() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let central = CacheServer::start();
    for number in 1..=4 {
        central.forget_requests();
        let before = central.keys();
        let machine = Machine::new(&go);
        let daemon = machine.home.daemon(&["--upstream", &central.url()]);
        machine.build(&origin.clone());
        daemon.flush();
        let sent: Vec<_> =
            central.keys().into_iter().filter(|key| central.requests("PUT", key) > 0).collect();
        let twice = sent.iter().any(|key| key.contains("/cas/") && before.contains(key));
        assert!(!twice, "by machine {number}: {sent:?}");
        match number {
            1 => assert!(sent.len() > 20, "{sent:?}"),
            // A warm build asks for other keys than a first one; what they are is added once.
            2 => assert!(sent.len() < 10, "{sent:?}"),
            // What was not waited for is built, and may be news.
            _ => assert!(sent.is_empty() || given_up(&daemon) > 0, "by machine {number}: {sent:?}"),
        }
    }
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
    assert!(is_kept(&daemon, &said, &[]), "compiled: {said}");
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

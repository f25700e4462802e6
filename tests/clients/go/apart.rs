//! A build in a container that does not see the daemon's store: bytes cross the socket, and nothing
//! else is different.
//!
//! The container is another user, who has no rights on the store.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use super::{Machine, assert_asked, native, number, write_module};
use crate::harness::{Home, TestDaemon};
use crate::support::install::{self, Go};
use crate::support::{is_root, skipped};

/// Who has no rights on anything of ours.
const NOBODY: u32 = 65_534;

/// A daemon's home that nobody may pass through, but not into its store.
fn sidecar() -> Home {
    let home = Home::new();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o711)).unwrap();
    home
}

/// A machine of nobody's, empty, that talks to the daemon at `address`.
struct Container<'a>(Machine<'a>, String);

impl<'a> Container<'a> {
    fn new(go: &'a Go, address: &str) -> Self {
        let machine = Machine::new(go);
        std::os::unix::fs::chown(machine.home.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        Self(machine, address.to_owned())
    }

    /// The program, and what `-v` printed.
    fn build(&self, module: &Path) -> (Vec<u8>, String) {
        let program = self.0.home.path().join("program");
        let output = self
            .0
            .command(module, &["build", "-v", "-o", program.to_str().unwrap(), "."])
            .env("LARDER_DAEMON", &self.1)
            .env("LARDER_TOKEN", "s3cret")
            .env("TMPDIR", self.0.home.path())
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("larder:"), "{said}");
        (fs::read(program).unwrap(), said)
    }

    /// Outputs in the view, beside where its store would be.
    fn outputs(&self) -> usize {
        let store = self.0.home.store();
        assert!(!store.exists(), "it has no store of its own");
        super::walk(&store.with_file_name("store-view").join("files")).len()
    }
}

/// Two containers, one after the other: the second finds all that the first has built.
fn assert_bytes_cross(daemon: &TestDaemon, address: &str) {
    let Some(go) = install::go(install::GO_1_27) else { return };
    let dir = tempfile::tempdir().unwrap();
    write_module(dir.path(), false);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let expected = native(&go, dir.path());
    let first = Container::new(&go, address);
    let (program, said) = first.build(dir.path());
    assert!(program == expected, "the first build");
    assert!(said.contains("example.test/hello/greet"), "{said}");
    assert_asked(daemon, 0);
    let stats = daemon.stats();
    assert!(number(&stats, &["requests", "go", "puts"]) > 10, "{stats}");
    assert!(first.outputs() > 10);
    let second = Container::new(&go, address);
    let (program, said) = second.build(dir.path());
    assert!(program == expected, "the second build");
    assert_eq!(said, "", "compiled on an empty machine");
    let hits = daemon.stats();
    let hits = ["hit_memory", "hit_disk"].map(|key| number(&hits, &["requests", "go", key]));
    assert!(hits.iter().sum::<u64>() > 20, "{hits:?}");
    assert!(second.outputs() > 10, "what it used is in its own view");
    let report = daemon.control(&serde_json::json!({"op": "verify"}));
    assert_eq!(report["bad_entries"], 0, "{report}");
}

#[test]
fn a_container_that_does_not_see_the_store_builds_over_the_socket() {
    if !is_root() {
        return skipped::<()>("only root can become another user").unwrap_or_default();
    }
    let home = sidecar();
    let daemon = home.daemon(&["--allow-uid", &NOBODY.to_string()]);
    assert_bytes_cross(&daemon, &format!("unix:{}", home.socket().display()));
}

#[test]
fn a_container_without_a_shared_directory_builds_over_tcp_with_a_token() {
    if !is_root() {
        return skipped::<()>("only root can become another user").unwrap_or_default();
    }
    let home = sidecar();
    let text = "[[token]]\nname = \"ci\"\nsecret = \"s3cret\"\naccess = \"write\"\n";
    let daemon = home.daemon(&["--tokens", &home.private("tokens.toml", text)]);
    assert_bytes_cross(&daemon, &daemon.url());
}

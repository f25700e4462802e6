//! What tests and benches run beside larder: real clients, nginx, and a cache server that can be
//! told to fail.
//!
//! Nothing here knows larder. Included by path, so each binary has its own copy; one that uses a
//! part of it says `#[expect(dead_code, reason = "...")]` on its `mod` line.

pub(crate) mod cache_server;
pub(crate) mod git;
pub(crate) mod http;
pub(crate) mod install;
pub(crate) mod nginx;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use larder::units::Clock;

/// How long anything that is awaited may take before the test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until there is an answer: for states of other processes, which cannot wake us. Panics,
/// naming `what`, when patience runs out.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let clock = Clock::system();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(clock.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Writes a program for the shell. Another process does: a test beside this one that starts a process
/// in the moment when we have the file open for writing hands it on, and what is open for writing
/// cannot be run.
pub(crate) fn program(file: &Path, script: &str) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(file)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("sh: {e}"));
    let text = format!("#!/bin/sh\n{script}");
    let mut pipe = writer.stdin.take().expect("it is piped");
    pipe.write_all(text.as_bytes()).expect("the shell reads");
    drop(pipe);
    let status = writer.wait().expect("it was started");
    assert!(status.success(), "{}: {status}", file.display());
}

/// Says so loudly: a test that did not run must not look like one that passed. Past the harness,
/// which would swallow `eprintln!`.
pub(crate) fn skipped<T>(why: &str) -> Option<T> {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("bench");
    // If stderr is closed there is nobody to tell.
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes());
    None
}

/// Whether we may become another user, mount, and the like.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A file system of a few megabytes in memory; gone when dropped. None, said aloud, where we may
/// not mount one.
pub(crate) struct TinyDisk(std::path::PathBuf);

impl TinyDisk {
    /// `options` say how much it holds, as mount writes them: `size=16m`.
    pub(crate) fn mount(at: &Path, options: &str) -> Option<Self> {
        if !is_root() {
            return skipped("only root can mount a tiny disk");
        }
        std::fs::create_dir_all(at).expect("the test's own directory can be written");
        let options = format!("{options},mode=0700");
        let mut mount = Command::new("mount");
        let output = mount.args(["-t", "tmpfs", "-o", &options, "larder-test"]).arg(at).output();
        match output {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            _ => skipped("a tiny disk cannot be mounted here"),
        }
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // Lazily: a process that is just ending may still have a file open there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

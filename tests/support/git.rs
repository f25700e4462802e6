//! Repositories for tests, made by the git of the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Whether there is a git; says so if there is none.
pub(crate) fn has_git() -> bool {
    let found = Command::new("git").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("SKIPPED: git is not installed");
    }
    found
}

pub(crate) fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.test"])
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .expect("git can be run");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A repository, and the place where it is cloned to, anew for each machine.
pub(crate) struct Origin {
    dir: tempfile::TempDir,
}

impl Origin {
    pub(crate) fn new() -> Self {
        let origin = Self { dir: tempfile::tempdir().expect("a temporary directory can be made") };
        fs::create_dir(origin.path()).expect("a directory can be made");
        git(&origin.path(), &["init", "-q", "-b", "main"]);
        origin
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("origin")
    }

    /// Commits whatever has changed.
    pub(crate) fn commit(&self) -> String {
        git(&self.path(), &["add", "-A"]);
        git(&self.path(), &["commit", "-q", "--allow-empty", "-m", "a change"]);
        git(&self.path(), &["rev-parse", "HEAD"])
    }

    /// A fresh clone without history, always at the same path: keys hold paths.
    pub(crate) fn clone(&self) -> PathBuf {
        let work = self.dir.path().join("work");
        let _ = fs::remove_dir_all(&work);
        let url = format!("file://{}", self.path().display());
        git(self.dir.path(), &["clone", "-q", "--depth", "1", &url, "work"]);
        work
    }
}

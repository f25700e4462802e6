//! A machine with larder as a CI job uses it: nothing there at first, `larder run -- go …`, no daemon
//! before that; and what larder says of the build afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::daemon::{self, LARDER};
use crate::tools::wait_for;

/// A directory for all that larder keeps. Its daemon is killed on drop: who needs the uploads waits
/// for them first.
#[derive(Debug)]
pub(crate) struct Machine {
    dir: PathBuf,
    upstream: String,
    is_read_only: bool,
}

/// larder's own account of a build.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account {
    pub(crate) hits: u64,
    pub(crate) hits_upstream: u64,
    pub(crate) misses: u64,
    pub(crate) waited_s: f64,
    pub(crate) prefetched: u64,
    pub(crate) prefetch_used: u64,
    pub(crate) owed: u64,
}

impl Machine {
    pub(crate) fn new(dir: &Path, upstream: &str) -> Self {
        Self::with(dir, upstream, false)
    }

    /// One that leaves upstream as it is, so that the next finds the same.
    pub(crate) fn reading(dir: &Path, upstream: &str) -> Self {
        Self::with(dir, upstream, true)
    }

    fn with(dir: &Path, upstream: &str, is_read_only: bool) -> Self {
        Self { dir: dir.to_owned(), upstream: upstream.to_owned(), is_read_only }
    }

    /// `larder run FLAGS -- BEFORE go …`: the same build with larder. Starts the daemon.
    pub(crate) fn run(&self, flags: &[&str], before: &[&str], go: &Command) -> Command {
        std::fs::create_dir_all(&self.dir).expect("a directory can be made");
        let mut command = Command::new(LARDER);
        command.env_clear().arg("run").args(flags).arg("--").args(before);
        command.arg(go.get_program()).args(go.get_args());
        command.current_dir(go.get_current_dir().expect("a build has a directory"));
        command.envs(go.get_envs().filter_map(|(name, value)| Some((name, value?))));
        daemon::places(&mut command, &self.dir);
        // What larder would take from a home is in the directory as well.
        command.env("XDG_STATE_HOME", &self.dir).env("XDG_CONFIG_HOME", &self.dir);
        command.env("LARDER_UPSTREAM", &self.upstream);
        command.env("LARDER_LISTEN", "127.0.0.1:0").env("LARDER_ADMIN", "off");
        if self.is_read_only {
            command.env("LARDER_READ_ONLY", "true");
        }
        command
    }

    pub(crate) fn stats(&self) -> Value {
        daemon::try_stats(&self.dir).expect("the daemon that `larder run` has started answers")
    }

    /// Of all that this machine has built.
    pub(crate) fn account(&self) -> Account {
        let stats = self.stats();
        let mut all = Account {
            owed: stats["journal"]["owed_entries"].as_u64().unwrap_or_default(),
            ..Account::default()
        };
        for session in stats["sessions"].as_array().expect("the statistics hold sessions") {
            let count = |key: &str| session[key].as_u64().unwrap_or_default();
            all.hits += count("hits");
            all.hits_upstream += count("hits_upstream");
            all.misses += count("misses");
            all.prefetched += count("prefetched");
            all.prefetch_used += count("prefetch_used");
            all.waited_s += session["waited_s"].as_f64().unwrap_or_default();
        }
        all
    }

    /// The daemon's.
    pub(crate) fn pid(&self) -> Option<u32> {
        pid(&daemon::try_stats(&self.dir)?)
    }
}

impl Account {
    /// used / fetched; None where nothing was fetched ahead.
    pub(crate) fn precision(&self) -> Option<f64> {
        let fetched = self.prefetched as f64;
        (self.prefetched > 0).then(|| self.prefetch_used as f64 / fetched)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let raw = self.pid().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = raw.and_then(rustix::process::Pid::from_raw) {
            // An error means that it has ended.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            wait_for("the end of the daemon", || self.pid().is_none().then_some(()));
        }
    }
}

fn pid(stats: &Value) -> Option<u32> {
    stats["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
}

//! A machine of the demo: a home directory and a daemon in it, which dies with its owner.

use std::fs::{DirBuilder, File};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::Broken;
use crate::client::{self, Address};
use crate::units::Clock;

const START_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Enough for what the demo stores, so that a small disk is no hindrance.
const DISK: [&str; 4] = ["--disk", "1GiB", "--disk-floor", "16MiB"];

/// A daemon of its own, with nothing of this process's environment.
pub(super) struct Machine {
    name: &'static str,
    home: PathBuf,
    upstream: Option<String>,
    child: Child,
}

/// How many requests a machine has sent upstream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Requests {
    pub(super) gets: u64,
    pub(super) puts: u64,
}

impl Requests {
    pub(super) const fn since(self, before: Self) -> Self {
        Self { gets: self.gets - before.gets, puts: self.puts - before.puts }
    }

    pub(super) const fn all(self) -> u64 {
        self.gets + self.puts
    }
}

impl Machine {
    /// Starts it and waits until it answers. Its home is `dir/name`.
    pub(super) fn start(
        dir: &Path,
        name: &'static str,
        upstream: Option<String>,
    ) -> Result<Self, Broken> {
        let home = dir.join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(home.join("run"))?;
        // An empty file of settings, so that this machine's own do not count.
        File::create(home.join("config.toml"))?;
        let log = File::create(home.join("daemon.log"))?;
        let mut command = larder(&home, upstream.as_deref())?;
        command
            .args(["daemon", "--listen", "127.0.0.1:0", "--admin", "off"])
            .args(DISK)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn()?;
        checkout(&home)?;
        let mut machine = Self { name, home, upstream, child };
        machine.wait_until_it_answers()?;
        Ok(machine)
    }

    fn wait_until_it_answers(&mut self) -> Result<(), Broken> {
        let clock = Clock::system();
        loop {
            if self.ask(&json!({"op": "stats"})).is_ok() {
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || clock.elapsed() > START_WITHIN {
                let log = std::fs::read_to_string(self.home.join("daemon.log")).unwrap_or_default();
                let last = log.lines().last().unwrap_or("it said nothing");
                return Err(Broken(format!("the daemon of {} does not serve: {last}", self.name)));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    /// The helper that go would start here. It is told of the daemon, so it starts none itself.
    pub(super) fn helper(&self) -> Result<Command, Broken> {
        let mut command = larder(&self.home, self.upstream.as_deref())?;
        command.arg("go");
        Ok(command)
    }

    /// The variables that make larder's commands those of this machine.
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        variables(&self.home, self.upstream.as_deref())
    }

    pub(super) fn ask(&self, request: &Value) -> Result<Value, Broken> {
        let address = Address::Unix(socket(&self.home));
        client::control(&address, None, request, ANSWER_WITHIN, &mut |_| {})
            .map_err(|error| Broken(error.to_string()))
    }

    pub(super) fn stats(&self) -> Result<Value, Broken> {
        self.ask(&json!({"op": "stats"}))
    }

    /// Waits until nothing is owed; returns what is.
    pub(super) fn flush(&self) -> Result<u64, Broken> {
        let reply = self.ask(&json!({"op": "flush", "timeout_ms": 30_000}))?;
        Ok(reply["left_entries"].as_u64().unwrap_or(0))
    }

    pub(super) fn requests(&self) -> Result<Requests, Broken> {
        let stats = self.stats()?;
        let upstreams = stats["upstream"].as_object().into_iter().flatten();
        let mut sum = Requests::default();
        for (_, upstream) in upstreams {
            sum.gets += upstream["gets"].as_u64().unwrap_or(0);
            sum.puts += upstream["puts"].as_u64().unwrap_or(0);
        }
        Ok(sum)
    }

    /// Lookups so far that were answered with a miss because waiting did not pay, or no longer.
    pub(super) fn given_up(&self) -> Result<u64, Broken> {
        let stats = self.stats()?;
        let misses = &stats["requests"]["go"]["miss"];
        Ok(["policy", "deadline"].iter().filter_map(|why| misses[*why].as_u64()).sum())
    }

    /// Where it serves HTTP.
    pub(super) fn http(&self) -> Result<SocketAddr, Broken> {
        let stats = self.stats()?;
        let url = stats["listen"][0].as_str().unwrap_or_default();
        let at = url.rsplit('/').next().and_then(|at| at.parse().ok());
        at.ok_or_else(|| Broken(format!("the daemon of {} serves no TCP", self.name)))
    }

    /// SIGKILL: no farewell, as when a machine is lost.
    pub(super) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

fn socket(home: &Path) -> PathBuf {
    home.join("run/s")
}

fn variables(home: &Path, upstream: Option<&str>) -> Vec<(&'static str, String)> {
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let mut out = vec![
        ("HOME", path(home.to_owned())),
        ("TMPDIR", path(home.to_owned())),
        ("LARDER_CONFIG", path(home.join("config.toml"))),
        ("LARDER_SOCKET", path(socket(home))),
        ("LARDER_STORE", path(home.join("store"))),
        // A daemon that is named is not started by clients.
        ("LARDER_DAEMON", format!("unix:{}", path(socket(home)))),
    ];
    out.extend(upstream.map(|url| ("LARDER_UPSTREAM", url.to_owned())));
    out
}

/// This program in a process group of its own: Ctrl-C is for the demo, which ends its children.
fn larder(home: &Path, upstream: Option<&str>) -> Result<Command, Broken> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .env_clear()
        .envs(variables(home, upstream))
        .env("PATH", "/usr/bin:/bin")
        .current_dir(home)
        .process_group(0);
    Ok(command)
}

/// As much of a clone as tells which repository and commit is built here: by these, what machine A
/// has used is found by machine B.
fn checkout(home: &Path) -> std::io::Result<()> {
    let git = home.join(".git");
    std::fs::create_dir_all(&git)?;
    std::fs::write(git.join("HEAD"), "0123456789abcdef0123456789abcdef01234567\n")?;
    std::fs::write(
        git.join("config"),
        "[remote \"origin\"]\n\turl = https://example.com/demo.git\n",
    )
}

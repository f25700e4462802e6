//! A daemon as its own process on free ports, in a home of its own, and what tests ask of it.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use larder::entry::Digest;
use larder::units::Random;
use serde_json::{Value, json};

use crate::support::http::{self, Answer};
use crate::support::{PATIENCE, wait_for};

pub(crate) const LARDER: &str = env!("CARGO_BIN_EXE_larder");
/// Kills in a plain `cargo test`; `LARDER_KILLS` says how many others want.
const KILLS: u64 = 6;

#[expect(clippy::disallowed_methods, reason = "how a test is told what to do")]
pub(crate) fn kills() -> u64 {
    std::env::var("LARDER_KILLS").map_or(KILLS, |text| text.parse().unwrap())
}

/// Chance, from the seed that is a test's own, or from `LARDER_SEED`; which one it is is printed.
#[expect(clippy::disallowed_methods, reason = "how a test is told what to do")]
pub(crate) fn chance(own: u64) -> Random {
    let seed = std::env::var("LARDER_SEED").map_or(own, |text| text.parse().unwrap());
    eprintln!("seed {seed}");
    Random::new(seed)
}

/// A home directory with everything that larder keeps.
pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("run/larder.sock")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// A file that nobody else may read, as those with secrets must be; its path.
    pub(crate) fn private(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.into_os_string().into_string().unwrap()
    }

    /// larder with this home and nothing else of the test's environment.
    pub(crate) fn larder(&self, args: &[&str]) -> Command {
        let mut command = Command::new(LARDER);
        command
            .args(args)
            .env_clear()
            .env("HOME", self.path())
            .env("LARDER_SOCKET", self.socket())
            .env("LARDER_STORE", self.store())
            .env("PATH", "/usr/bin:/bin")
            .current_dir(self.path());
        command
    }

    /// A daemon with the given flags besides free ports.
    pub(crate) fn daemon(&self, flags: &[&str]) -> TestDaemon {
        self.daemon_with(flags, |_| {})
    }

    pub(crate) fn daemon_with(
        &self,
        flags: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> TestDaemon {
        let mut args = vec!["daemon"];
        for (flag, value) in [("--listen", "127.0.0.1:0"), ("--admin", "127.0.0.1:0")] {
            if !flags.contains(&flag) {
                args.extend([flag, value]);
            }
        }
        args.extend(flags);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path().join("daemon.log"))
            .unwrap();
        let mut command = self.larder(&args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        prepare(&mut command);
        let child = command.spawn().unwrap();
        let mut daemon = TestDaemon { child, socket: self.socket(), http: None };
        let stats = wait_for("the daemon", || {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}: {}", self.log());
            }
            daemon.try_control(&json!({"op": "stats"}))
        });
        daemon.http = stats["listen"][0]
            .as_str()
            .and_then(|url| url.split("://").nth(1))
            .and_then(|at| at.parse().ok());
        daemon
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("daemon.log")).unwrap_or_default()
    }
}

/// A daemon that runs; killed when dropped.
pub(crate) struct TestDaemon {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
    http: Option<SocketAddr>,
}

impl TestDaemon {
    pub(crate) fn addr(&self) -> SocketAddr {
        self.http.expect("this daemon serves TCP")
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    pub(crate) fn send(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        http::send(self.addr(), method, path, body).unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, b"")
    }

    pub(crate) fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.send("PUT", path, body)
    }

    pub(crate) fn try_control(&self, request: &Value) -> Option<Value> {
        let address = larder::client::Address::Unix(self.socket.clone());
        larder::client::control(&address, None, request, PATIENCE, &mut |_| {}).ok()
    }

    pub(crate) fn control(&self, request: &Value) -> Value {
        self.try_control(request).expect("the daemon answers")
    }

    pub(crate) fn stats(&self) -> Value {
        self.control(&json!({"op": "stats"}))
    }

    /// Waits until nothing is owed.
    pub(crate) fn flush(&self) {
        let mut before = u64::MAX;
        loop {
            let answer = self.control(&json!({"op": "flush", "timeout_ms": 30_000}));
            let left = answer["left_entries"].as_u64().unwrap();
            if left == 0 {
                return;
            }
            // There may be many, and the machine slow.
            assert!(left < before, "{answer}");
            before = left;
        }
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        // Ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn cas(body: &[u8]) -> String {
    format!("/cas/{}", Digest::of(body))
}

pub(crate) fn ac(n: u8) -> String {
    format!("/ac/{}", Digest([n; 32]))
}

/// Has `command` run with so many descriptors: a shell lowers its own limit and becomes it.
pub(crate) fn with_descriptors(command: &mut Command, limit: usize) {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(format!("ulimit -n {limit}; exec {}", words.join(" ")));
    shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(dir) = command.get_current_dir() {
        shell.current_dir(dir);
    }
    shell.stdin(Stdio::null());
    *command = shell;
}

/// Bytes that do not compress and differ by seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

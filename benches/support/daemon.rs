//! larder as benches run it: a daemon of its own in a directory of its own, and what it says of
//! itself, asked through the program as anybody would.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;

use crate::tools::wait_for;

/// The program.
pub(crate) const LARDER: &str = env!("CARGO_BIN_EXE_larder");

/// A daemon that runs. Ends on drop.
pub(crate) struct Daemon {
    child: Child,
    dir: PathBuf,
    addr: SocketAddr,
}

impl Daemon {
    /// A daemon with everything it keeps in `dir`, on free ports, with these flags besides.
    pub(crate) fn start(dir: &Path, flags: &[&str]) -> Self {
        fs::create_dir_all(dir).expect("a directory can be made");
        let log = File::create(dir.join("daemon.log")).expect("a log can be made");
        let mut child = command(dir)
            .args(["daemon", "--listen", "127.0.0.1:0", "--admin", "off"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("larder starts");
        let stats = wait_for("the daemon", || {
            if let Some(status) = child.try_wait().expect("a child can be asked for") {
                let words = fs::read_to_string(dir.join("daemon.log")).unwrap_or_default();
                panic!("the daemon ended with {status}: {words}");
            }
            try_stats(dir)
        });
        let listen = stats["listen"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let addr = listen
            .filter_map(|at| at.rsplit("://").next()?.parse().ok())
            .next()
            .unwrap_or_else(|| panic!("the daemon serves no TCP: {}", stats["listen"]));
        Self { child, dir: dir.to_owned(), addr }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket(&self.dir)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stats(&self) -> Value {
        try_stats(&self.dir).expect("the daemon answers")
    }

    /// A number of its statistics, by its path: `requests/go/gets`.
    pub(crate) fn count(&self, path: &str) -> u64 {
        let stats = self.stats();
        let pointer = format!("/{path}");
        let number = stats.pointer(&pointer).and_then(Value::as_u64);
        number.unwrap_or_else(|| panic!("the statistics hold no {path}: {stats}"))
    }

    /// Waits until nothing is owed to upstream.
    pub(crate) fn flush(&self) {
        let status = command(&self.dir)
            .args(["flush", "--timeout", "10m"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .expect("larder starts");
        assert!(status.success(), "larder flush ended with {status}");
    }

    /// Ends it without a word; nothing is left to end on drop.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn end(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        self.child.wait().expect("a child can be waited for")
    }

    /// What makes a go command use this daemon.
    pub(crate) fn apply_to(&self, go: &mut Command) {
        go.env("GOCACHEPROG", format!("{LARDER} go"));
        places(go, &self.dir);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let has_ended = matches!(self.child.try_wait(), Ok(Some(_)));
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid.filter(|_| !has_ended) {
            // An error means that it has ended.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// larder with what it keeps in `dir` and no other environment.
pub(crate) fn command(dir: &Path) -> Command {
    let mut command = Command::new(LARDER);
    command.env_clear().env("HOME", dir).env("PATH", "/usr/bin:/bin").current_dir(dir);
    places(&mut command, dir);
    command
}

/// Where larder keeps what is its own.
pub(crate) fn places(command: &mut Command, dir: &Path) {
    command.env("LARDER_SOCKET", socket(dir)).env("LARDER_STORE", dir.join("store"));
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("run").join("larder.sock")
}

/// What the daemon of this directory says; None if there is none.
pub(crate) fn try_stats(dir: &Path) -> Option<Value> {
    let output = command(dir).args(["stats", "--json"]).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| serde_json::from_slice(&output.stdout).ok()).flatten()
}

//! nginx as a plain upstream (DAV) and as the rival in serving files: its configuration, one
//! process per value, and what its log says it was asked.
//!
//! Finding or installing the program is `install`'s.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{install, wait_for};

/// A port found free can be taken before nginx binds it; so often it is tried again.
const ATTEMPTS: u32 = 5;

/// A running nginx with two workers. Stops on drop.
#[derive(Debug)]
pub(crate) struct Nginx {
    pub(crate) pid: u32,
    pub(crate) url: String,
    addr: SocketAddr,
    child: Child,
    /// Configuration, log, and its temporary files.
    dir: TempDir,
}

/// A line of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) status: u16,
}

/// What is served, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Reads, writes and deletes; every request is logged.
    Dav,
    /// Reads, as fast as nginx can; nothing is logged.
    Static,
}

impl Nginx {
    /// Serves `dir` for GET, PUT and DELETE. None if there is no nginx.
    pub(crate) fn start_dav(dir: &Path) -> Option<Self> {
        Some(Self::start(&install::nginx()?, dir, Manner::Dav))
    }

    /// Serves `dir` for GET, tuned for speed. None if there is no nginx.
    pub(crate) fn start_static(dir: &Path) -> Option<Self> {
        Some(Self::start(&install::nginx()?, dir, Manner::Static))
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What has been logged so far. A request is logged after its answer was sent, so count with
    /// `wait_for_requests`.
    pub(crate) fn requests(&self) -> Vec<Logged> {
        let text = fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default();
        text.lines().filter_map(Logged::parse).collect()
    }

    /// Waits until at least `count` requests are logged, and returns all.
    pub(crate) fn wait_for_requests(&self, count: usize) -> Vec<Logged> {
        wait_for(&format!("{count} lines in nginx's log"), || {
            Some(self.requests()).filter(|requests| requests.len() >= count)
        })
    }

    fn start(program: &Path, root: &Path, manner: Manner) -> Self {
        for _ in 0..ATTEMPTS {
            if let Some(nginx) = Self::try_start(program, root, manner) {
                return nginx;
            }
        }
        panic!("nginx found its port taken {ATTEMPTS} times in a row");
    }

    /// None if the port was taken meanwhile; any other failure is a panic with nginx's own words.
    fn try_start(program: &Path, root: &Path, manner: Manner) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let addr = free_port();
        let conf = dir.path().join("nginx.conf");
        fs::write(&conf, configuration(dir.path(), root, addr, manner)).expect("it can be written");
        let log = dir.path().join("error.log");
        let mut child = Command::new(program)
            .arg("-e")
            .arg(&log)
            .arg("-p")
            .arg(dir.path())
            .arg("-c")
            .arg(&conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("stderr")).expect("it can be made"))
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", program.display()));
        let pid_file = dir.path().join("nginx.pid");
        let ended = wait_for("nginx to listen", || {
            if let Some(status) = child.try_wait().expect("a child can be asked for") {
                return Some(Some(status));
            }
            // The file is written after the port is bound, so it is nginx that answers there.
            (pid_file.exists() && TcpStream::connect(addr).is_ok()).then_some(None)
        });
        let Some(status) = ended else {
            return Some(Self { pid: child.id(), url: format!("http://{addr}"), addr, child, dir });
        };
        let words = fs::read_to_string(&log).unwrap_or_default();
        assert!(words.contains("Address already in use"), "nginx ended with {status}: {words}");
        None
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Not SIGKILL, which would leave its workers behind. An error means that it is gone.
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

impl Logged {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (status, method, path) = (words.next()?, words.next()?, words.next()?);
        Some(Self { method: method.into(), path: path.into(), status: status.parse().ok()? })
    }
}

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address")
}

fn configuration(dir: &Path, root: &Path, addr: SocketAddr, manner: Manner) -> String {
    let root = root.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let quoted = |path: PathBuf| format!("\"{}\"", path.display());
    let mut conf = String::new();
    // Workers of root would otherwise become a user who cannot read root's temporary files.
    if rustix::process::geteuid().is_root() {
        conf.push_str("user root;\n");
    }
    let pid = quoted(dir.join("nginx.pid"));
    let _ = writeln!(conf, "daemon off; worker_processes 2; pid {pid};");
    conf.push_str("events { worker_connections 4096; }\nhttp {\n");
    conf.push_str("default_type application/octet-stream; client_max_body_size 0;\n");
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(conf, "{kind}_temp_path {};", quoted(dir.join(kind)));
    }
    conf.push_str("sendfile on; tcp_nopush on; keepalive_requests 1000000000;\n");
    let log = quoted(dir.join("access.log"));
    conf.push_str(&match manner {
        Manner::Dav => format!(
            "log_format short '$status $request_method $request_uri'; access_log {log} short;\n"
        ),
        Manner::Static => {
            "access_log off; open_file_cache max=100000 inactive=1h; open_file_cache_valid 1h;\n"
                .to_owned()
        }
    });
    let _ = writeln!(conf, "server {{ listen {addr} backlog=4096; root {};", quoted(root));
    if manner == Manner::Dav {
        conf.push_str("location / { dav_methods PUT DELETE; create_full_put_path on; }\n");
    }
    conf.push_str("}\n}\n");
    conf
}

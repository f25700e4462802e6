//! Sockets that were bound before the daemon started, as systemd passes them, without systemd: a shell
//! puts them where they belong, says so in the variables, and becomes the daemon.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Home, LARDER, TestDaemon};
use crate::support::PATIENCE;

/// What systemd keeps while daemons come and go.
struct Passed {
    unix: UnixListener,
    tcp: TcpListener,
    addr: SocketAddr,
}

impl Passed {
    fn bind(path: &Path) -> Self {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = tcp.local_addr().unwrap();
        Self { unix: UnixListener::bind(path).unwrap(), tcp, addr }
    }

    /// Has the command pass both to what it was to start; `whose` is for the shell to expand.
    fn to(&self, home: &Home, command: &mut Command, whose: &str) {
        pass(command, (self.unix.as_fd(), self.tcp.as_fd()), whose, 2);
        let mut log = std::fs::File::options();
        let log = log.create(true).append(true).open(home.path().join("daemon.log")).unwrap();
        command.stderr(log);
    }

    fn daemon(&self, home: &Home, listen: &str) -> TestDaemon {
        home.daemon_with(&["--listen", listen], |command| self.to(home, command, "$$"))
    }
}

fn pass(command: &mut Command, (first, second): (impl AsFd, impl AsFd), whose: &str, count: usize) {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(format!(
        "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID={whose} LISTEN_FDS={count} \
         LISTEN_FDNAMES=larder.socket:http; exec {}",
        words.join(" ")
    ));
    shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let share = |socket: &dyn Fn() -> std::io::Result<OwnedFd>| Stdio::from(socket().unwrap());
    shell.stdin(share(&|| first.as_fd().try_clone_to_owned()));
    shell.stdout(share(&|| second.as_fd().try_clone_to_owned()));
    *command = shell;
}

fn listens(daemon: &TestDaemon) -> Vec<String> {
    let listen = daemon.stats()["listen"].clone();
    listen.as_array().unwrap().iter().map(|at| at.as_str().unwrap().to_owned()).collect()
}

#[test]
fn sockets_that_were_passed_are_served_and_stay_for_the_next_daemon() {
    let home = Home::new();
    let passed = Passed::bind(&home.socket());
    let daemon = passed.daemon(&home, &passed.addr.to_string());
    assert_eq!(listens(&daemon), [format!("http://{}", passed.addr)], "each once");
    assert_eq!(daemon.put("/kv/a", b"a").status, 201);
    for number in [3, 4] {
        let info = format!("/proc/{}/fdinfo/{number}", daemon.child.id());
        let info = std::fs::read_to_string(info).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        assert!(flags & 0o2_000_000 != 0, "a child would inherit it: {flags:o}");
    }
    assert_eq!(daemon.terminate(), Some(0));
    assert!(home.socket().exists(), "the socket is not ours to remove");

    // Who comes between two daemons waits for the second one.
    let mut early = TcpStream::connect(passed.addr).unwrap();
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    early.write_all(b"GET /kv/a HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    drop(UnixStream::connect(home.socket()).unwrap());
    let _daemon = passed.daemon(&home, &passed.addr.to_string());
    let mut first = String::new();
    BufReader::new(early).read_line(&mut first).unwrap();
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
}

#[test]
fn sockets_that_were_passed_to_another_process_are_left_alone() {
    let home = Home::new();
    let passed = Passed::bind(&home.path().join("theirs.sock"));
    let daemon =
        home.daemon_with(&["--listen", "127.0.0.1:0"], |command| passed.to(&home, command, "1"));
    let own = format!("http://{}", daemon.addr());
    assert_eq!(listens(&daemon), [own]);
    assert_ne!(daemon.addr(), passed.addr);
    assert!(home.socket().exists());
    assert_eq!(daemon.terminate(), Some(0));
    assert!(!home.socket().exists(), "what it has bound itself it removes");
    passed.tcp.set_nonblocking(true).unwrap();
    let nobody = passed.tcp.accept().unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_passed_socket_that_no_setting_names_is_served_besides() {
    let home = Home::new();
    let path = home.path().join("other.sock");
    let passed = Passed::bind(&path);
    let daemon = passed.daemon(&home, "127.0.0.1:0");
    let own = format!("http://{}", daemon.addr());
    assert_eq!(listens(&daemon), [own, format!("http://{}", passed.addr)]);
    assert_eq!(daemon.put("/kv/a", b"a").status, 201);
    let answer = crate::support::http::send(passed.addr, "GET", "/kv/a", b"").unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"a"[..]));
    let mut over_unix = UnixStream::connect(&path).unwrap();
    over_unix.set_read_timeout(Some(PATIENCE)).unwrap();
    over_unix.write_all(b"GET /kv/a HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut first = String::new();
    BufReader::new(over_unix).read_line(&mut first).unwrap();
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    assert!(home.log().contains("no setting names"), "{}", home.log());
    daemon.terminate();
    assert!(path.exists() && !home.socket().exists());
}

#[test]
fn what_was_passed_and_cannot_be_served_is_said() {
    let home = Home::new();
    let passed = Passed::bind(&home.socket());
    let connection = TcpStream::connect(passed.addr).unwrap();
    let cases = [
        (2, connection.as_fd(), "http (descriptor 4) cannot be served: it is a connection"),
        (3, passed.tcp.as_fd(), "unknown (descriptor 5) cannot be served"),
        (17, passed.tcp.as_fd(), "LISTEN_FDS"),
    ];
    for (count, second, words) in cases {
        let mut command = home.larder(&["daemon", "--listen", "127.0.0.1:0", "--admin", "off"]);
        pass(&mut command, (passed.unix.as_fd(), second), "$$", count);
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(words), "{told}");
    }
}

/// The daemon that a build starts was once a child like any other.
#[test]
fn a_daemon_that_a_client_starts_hears_nothing_of_passed_sockets() {
    let home = Home::new();
    let passed = Passed::bind(&home.path().join("theirs.sock"));
    let mut command = home.larder(&["run", "--", "true"]);
    command.env("LARDER_ADMIN", "off").env("LARDER_LISTEN", "127.0.0.1:0");
    passed.to(&home, &mut command, "$$");
    assert!(command.status().unwrap().success());
    let output = home.larder(&["stats", "--json"]).output().unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let pid = stats["pid"].as_u64().unwrap();
    let variables = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let variables = String::from_utf8_lossy(&variables);
    assert!(variables.contains("LARDER_SOCKET") && !variables.contains("LISTEN_"), "{variables}");
    let inodes = [passed.unix.as_fd(), passed.tcp.as_fd()]
        .map(|socket| format!("socket:[{}]", rustix::fs::fstat(socket).unwrap().st_ino));
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        // One that is closed meanwhile is none of these.
        let Ok(target) = std::fs::read_link(entry.unwrap().path()) else { continue };
        assert!(!inodes.iter().any(|inode| target.as_os_str() == inode.as_str()), "{target:?}");
    }
    assert!(home.larder(&["stop"]).status().unwrap().success());
    assert!(Path::new(LARDER).exists());
}

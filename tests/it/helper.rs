//! The helper that go starts, as a process: spoken to as go does, without a go.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use larder::client::{self, Address, ConnectError};
use larder::entry::action::upstream_key;
use larder::entry::{Digest, Hasher};
use larder::wire::go::{Frame, Hello, PREFACE, PROTOCOL, Refused};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{Home, TestDaemon, noise};
use crate::support::cache_server::CacheServer;
use crate::support::{PATIENCE, is_root, skipped, wait_for};

const NOBODY: u32 = 65_534;

/// A body that is written in pieces and never held: 67 of 3 MiB, 211 MB in all.
const PIECE: usize = 3 << 20;
const PIECES: u64 = 67;

/// One helper, and go's ends of its pipes.
struct Helper {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    asked: i64,
}

impl Helper {
    fn start(home: &Home, prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = home.larder(&["go"]);
        command.env("LARDER_LISTEN", "127.0.0.1:0").env("LARDER_ADMIN", "off");
        let said = File::options().create(true).append(true).open(home.path().join("helper.log"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(said.unwrap());
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut helper = Self { child, stdin, stdout, asked: 0 };
        assert_eq!(helper.answer()["KnownCommands"], json!(["get", "put", "close"]));
        helper
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn ask(&mut self, mut request: Value) {
        self.asked += 1;
        request["ID"] = json!(self.asked);
        self.write(format!("{request}\n\n").as_bytes());
    }

    /// The file of a hit; None: a miss.
    fn get(&mut self, action: u8) -> Option<PathBuf> {
        self.ask(json!({"Command": "get", "ActionID": STANDARD.encode([action; 32])}));
        let answer = self.answer();
        assert_eq!((&answer["ID"], &answer["Err"]), (&json!(self.asked), &Value::Null));
        if answer["Miss"] == json!(true) {
            return None;
        }
        Some(answer["DiskPath"].as_str().unwrap().into())
    }

    fn put(&mut self, action: u8, body: &[u8]) -> PathBuf {
        self.announce(action, &Digest::of(body), body.len() as u64);
        self.write(format!("\"{}\"\n", STANDARD.encode(body)).as_bytes());
        self.stored()
    }

    fn announce(&mut self, action: u8, output: &Digest, size: u64) {
        let (action, output) = (STANDARD.encode([action; 32]), STANDARD.encode(output.0));
        self.ask(json!({
            "Command": "put", "ActionID": action, "OutputID": output, "BodySize": size,
        }));
    }

    fn stored(&mut self) -> PathBuf {
        let answer = self.answer();
        assert_eq!((&answer["ID"], &answer["Err"]), (&json!(self.asked), &Value::Null));
        answer["DiskPath"].as_str().unwrap().into()
    }

    /// As go ends: a close, its answer, the end of both pipes.
    fn close(mut self) {
        self.ask(json!({"Command": "close"}));
        assert_eq!(self.answer()["ID"], json!(self.asked));
        self.stdin = None;
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The piece that was made once, with its number in front: no two are the same.
fn number(piece: &mut [u8], n: u64) {
    piece[..8].copy_from_slice(&n.to_le_bytes());
}

fn large_digest(piece: &mut [u8]) -> Digest {
    let mut hasher = Hasher::default();
    for n in 0..PIECES {
        number(piece, n);
        hasher.update(piece);
    }
    hasher.finish()
}

fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Puts a large body, reads it back through another helper, and looks at what both ends held.
fn assert_passes(daemon: &TestDaemon, start: impl Fn() -> Helper) {
    let mut piece = noise(9, PIECE);
    let digest = large_digest(&mut piece);
    let idle = peak_kib(daemon.child.id());
    let mut helper = start();
    assert_eq!(helper.get(1), None);
    helper.announce(1, &digest, PIECES * PIECE as u64);
    helper.write(b"\"");
    for n in 0..PIECES {
        number(&mut piece, n);
        let text = STANDARD.encode(&piece);
        helper.write(text.as_bytes());
    }
    helper.write(b"\"\n");
    let path = helper.stored();
    assert_eq!(larder::store::file::hash(&path).unwrap().0, digest);
    let putting = peak_kib(helper.child.id());
    helper.close();
    wait_for("the put", || {
        (daemon.stats()["requests"]["go"]["puts"] == 1 && daemon.stats()["disk"]["entries"] == 2)
            .then_some(())
    });
    // On a machine that is busy with other things it may not come across in time: then it is a miss.
    let (helper, path) = wait_for("a hit", || {
        let mut helper = start();
        let path = helper.get(1)?;
        Some((helper, path))
    });
    assert_eq!(larder::store::file::hash(&path).unwrap(), (digest, PIECES * PIECE as u64));
    let getting = peak_kib(helper.child.id());
    helper.close();
    let above = peak_kib(daemon.child.id()) - idle;
    // Of the helper all that is beside the body: its code, its threads, pieces on their way.
    assert!(putting.max(getting) < 48 << 10, "the helper held {putting} and {getting} KiB");
    assert!(above < 64 << 10, "the daemon held {above} KiB above idle");
}

#[test]
fn a_large_output_passes_the_helper_in_bounded_memory() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    assert_passes(&daemon, || Helper::start(&home, |_| {}));
}

#[test]
fn a_large_output_crosses_the_socket_in_bounded_memory() {
    if !is_root() {
        return skipped::<()>("only root can become another user").unwrap_or_default();
    }
    let home = Home::new();
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let daemon = home.daemon(&["--allow-uid", &NOBODY.to_string()]);
    let address = format!("unix:{}", home.socket().display());
    assert_passes(&daemon, || {
        let theirs = tempfile::tempdir_in(home.path()).unwrap().keep();
        std::os::unix::fs::chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
        Helper::start(&home, |command| {
            command.env("LARDER_DAEMON", &address).env("LARDER_STORE", theirs.join("store"));
            command.current_dir(&theirs).env("HOME", &theirs).uid(NOBODY).gid(NOBODY);
        })
    });
}

fn stats(home: &Home) -> Option<Value> {
    let output = home.larder(&["stats", "--json"]).output().unwrap();
    output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
}

/// Kills the daemon that a helper has started.
fn kill_daemon(home: &Home) {
    let pid = stats(home).unwrap()["pid"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    wait_for("its end", || {
        home.larder(&["stats"]).output().unwrap().status.code().filter(|c| *c == 4)
    });
}

#[test]
fn a_helper_starts_the_daemon_and_outlives_it() {
    let home = Home::new();
    let mut helper = Helper::start(&home, |_| {});
    assert_eq!(helper.get(1), None);
    helper.put(1, b"to the first");
    wait_for("the first daemon to hear", || {
        stats(&home).filter(|stats| stats["requests"]["go"]["puts"] == 1)
    });
    kill_daemon(&home);
    assert_eq!(helper.get(2), None, "a miss, not an error");
    helper.put(2, b"to nobody, or to the second");
    let second = wait_for("a second daemon", || stats(&home));
    assert_eq!(second["ready"], true, "{second}");
    kill_daemon(&home);
    assert_eq!(helper.get(3), None, "and no third is started");
    let path = helper.put(3, b"to nobody");
    assert_eq!(std::fs::read(path).unwrap(), b"to nobody");
    helper.close();
    assert_eq!(stats(&home), None);
    let spool = home.store().join("spool");
    assert!(std::fs::read_dir(&spool).unwrap().count() > 0, "left for the next daemon");
    let daemon = home.daemon(&[]);
    wait_for("the spool to be adopted", || {
        (std::fs::read_dir(&spool).unwrap().count() == 0).then_some(())
    });
    let mut helper = Helper::start(&home, |_| {});
    for (action, body) in
        [(1, &b"to the first"[..]), (2, b"to nobody, or to the second"), (3, b"to nobody")]
    {
        let path = helper.get(action).unwrap_or_else(|| panic!("{action} is lost"));
        assert_eq!(std::fs::read(path).unwrap(), body);
    }
    helper.close();
    let report = daemon.control(&json!({"op": "verify"}));
    // Three actions and what they name.
    assert_eq!((&report["entries"], &report["bad_entries"]), (&json!(6), &json!(0)), "{report}");
}

#[test]
fn a_helper_of_another_protocol_is_refused_with_a_reason() {
    let home = Home::new();
    let _daemon = home.daemon(&[]);
    for protocol in [0, PROTOCOL + 1] {
        let version = "9.9.9-test".to_owned();
        let hello = Hello { protocol, version, role: "go".into(), ..Hello::default() };
        let refused = client::connect(&Address::Unix(home.socket()), &hello, PATIENCE).unwrap_err();
        let ConnectError::Refused { reason, .. } = &refused else { panic!("{refused}") };
        for part in ["9.9.9-test", env!("CARGO_PKG_VERSION"), "larder stop"] {
            assert!(reason.contains(part), "{reason}");
        }
    }
}

#[test]
fn beside_a_daemon_of_another_protocol_a_helper_answers_misses() {
    let home = Home::new();
    std::fs::create_dir_all(home.socket().parent().unwrap()).unwrap();
    let listener = UnixListener::bind(home.socket()).unwrap();
    let reason = "the daemon speaks of other things".to_owned();
    let refused = Refused { protocol: PROTOCOL + 1, version: "9.9.9-test".into(), reason };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut preface = [0; PREFACE.len()];
            stream.read_exact(&mut preface).unwrap();
            let hello = Frame::read(&mut stream).unwrap();
            assert!(matches!(hello, Some(Frame::Hello(_))), "{hello:?}");
            Frame::Refused(refused).write(&mut stream).unwrap();
        });
        let mut helper = Helper::start(&home, |_| {});
        assert_eq!(helper.get(1), None);
        let path = helper.put(1, b"output");
        assert_eq!(std::fs::read(&path).unwrap(), b"output");
        assert!(!path.starts_with(home.store()), "what it does not know it leaves alone");
        helper.close();
    });
    let said = std::fs::read_to_string(home.path().join("helper.log")).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("9.9.9-test") && said.contains("larder stop"), "{said}");
    assert!(!home.store().exists());
}

/// Settings of three upstreams: go's is the second, and of a class, if it is named, the third.
fn three_upstreams(upstreams: &[CacheServer; 3], class: &str) -> String {
    let mut text = String::new();
    for (name, upstream) in ["first", "second", "third"].iter().zip(upstreams) {
        text += &format!("[[upstream]]\nname = \"{name}\"\nurl = \"{}\"\n\n", upstream.url());
    }
    text += "[frontend.go]\nupstream = \"second\"\n\n";
    if !class.is_empty() {
        text += &format!("[class.{class}]\nupstream = \"third\"\n");
    }
    text
}

fn with_settings(home: &Home, text: &str, scope: &str) -> (TestDaemon, Helper) {
    let config = home.path().join("larder.toml");
    std::fs::write(&config, text).unwrap();
    let daemon = home.daemon(&["--config", config.to_str().unwrap()]);
    let helper = Helper::start(home, |command| {
        command.env("LARDER_CONFIG", &config).env("LARDER_SCOPE", scope);
        command.env("BUILDKITE", "true").env("BUILDKITE_COMMIT", "0a".repeat(20));
    });
    (daemon, helper)
}

const TEST_LOG: &[u8] = b"# test log\ngetenv HOME\n";

fn upstream_name(action: u8) -> String {
    format!("/ac/{}", upstream_key("", &Digest([action; 32])))
}

/// Entries of a class with an upstream of its own: there and nowhere else, and found by another
/// machine, whose lookups do not tell a class. The rest goes where go's go.
#[test]
fn each_class_of_go_entries_uses_the_upstream_that_its_settings_name() {
    let upstreams = [(); 3].map(|()| CacheServer::start());
    let [first, second, third] = &upstreams;
    let text = three_upstreams(&upstreams, "test_log");
    let bodies = [(1, &b"whatever"[..]), (2, TEST_LOG)];
    let home = Home::new();
    let (daemon, mut helper) = with_settings(&home, &text, "app");
    for (action, body) in bodies {
        assert_eq!(helper.get(action), None);
        helper.put(action, body);
    }
    helper.close();
    daemon.flush();
    let holders = |action| {
        [first, second, third].map(|central| central.object(&upstream_name(action)).is_some())
    };
    assert_eq!(holders(1), [false, true, false]);
    assert_eq!(holders(2), [false, false, true]);
    assert_eq!(first.keys(), [""; 0], "nothing is go's there");
    // By the manifest of that build, and without one.
    for scope in ["app", "another"] {
        second.forget_requests();
        third.forget_requests();
        let home = Home::new();
        let (daemon, mut helper) = with_settings(&home, &text, scope);
        if scope == "app" {
            wait_for("what the manifest lists", || {
                (daemon.stats()["sessions"][0]["prefetched"] == 2).then_some(())
            });
            let asked = second.requests("GET", &upstream_name(2));
            assert_eq!(asked, 0, "it is not looked for where it is not");
        }
        for (action, body) in bodies {
            let path = helper.get(action).unwrap_or_else(|| panic!("{scope}: {action} is lost"));
            assert_eq!(std::fs::read(path).unwrap(), body);
        }
        helper.close();
        assert_eq!(third.requests("GET", &upstream_name(2)), 1, "{scope}");
        // What that upstream loses, a new put heals.
        third.remove(&upstream_name(2));
        assert!(home.larder(&["purge", "--all"]).status().unwrap().success());
        let (daemon, mut helper) = (
            daemon,
            Helper::start(&home, |command| {
                command.env("LARDER_CONFIG", home.path().join("larder.toml"));
            }),
        );
        assert_eq!(helper.get(2), None, "{scope}");
        helper.put(2, TEST_LOG);
        helper.close();
        daemon.flush();
        assert_eq!(holders(2), [false, false, true], "{scope}");
    }
}

/// What was owed to the class's upstream found none, as the store knew the realm from before.
#[test]
fn a_class_that_is_given_an_upstream_later_uses_it() {
    let upstreams = [(); 3].map(|()| CacheServer::start());
    let home = Home::new();
    let (daemon, mut helper) = with_settings(&home, &three_upstreams(&upstreams, ""), "app");
    assert_eq!(helper.get(1), None);
    helper.close();
    assert_eq!(daemon.terminate(), Some(0));
    let (daemon, mut helper) =
        with_settings(&home, &three_upstreams(&upstreams, "test_log"), "app");
    helper.put(2, TEST_LOG);
    helper.close();
    daemon.flush();
    assert!(upstreams[2].object(&upstream_name(2)).is_some());
    assert!(upstreams[1].object(&upstream_name(2)).is_none());
}

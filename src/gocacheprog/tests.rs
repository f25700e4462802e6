//! The helper between a go that is played here and a daemon that is too, over real pipes and sockets.
//!
//! Tests wait for answers, never for time; deadlines are short where a test waits for one.

use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::*;
use crate::store::spool;
use crate::wire::go::{Frame, Hello, PREFACE, PROTOCOL, Refused, Report};

mod cases;

const REALM: RealmId = RealmId([5; 16]);

/// A helper with go's end of its pipes.
struct Bench {
    dir: tempfile::TempDir,
    stdin: Option<PipeWriter>,
    stdout: BufReader<PipeReader>,
    stderr: BufReader<PipeReader>,
    helper: JoinHandle<()>,
    next_id: i64,
}

fn config(dir: &Path) -> HelperConfig {
    HelperConfig {
        address: Address::Unix(dir.join("socket")),
        token: None,
        namespace: None,
        trust: None,
        upstream: None,
        read_only: false,
        session: "s".into(),
        scope: String::new(),
        commit: String::new(),
        branch: String::new(),
        default_branch: String::new(),
        dir: dir.to_owned(),
        git_env: GitEnv::default(),
        git_deadline: Duration::from_secs(60),
        store_dir: dir.join("store"),
        realms: vec![REALM],
        start: None,
        view_dir: dir.join("view"),
        native: None,
        temp_dir: dir.to_owned(),
        deadline: Duration::from_secs(20),
        c_inputs: c_env::CInputs::default(),
        goroot: None,
        pid: std::process::id(),
    }
}

impl Bench {
    fn start(dir: tempfile::TempDir, change: impl FnOnce(&mut HelperConfig)) -> Self {
        let mut config = config(dir.path());
        change(&mut config);
        let (stdin, to_helper) = io::pipe().unwrap();
        let (from_helper, stdout) = io::pipe().unwrap();
        let (warnings, stderr) = io::pipe().unwrap();
        let stdio = Stdio {
            stdin: Box::new(stdin),
            stdout: Box::new(stdout),
            stderr: Box::new(stderr),
            on_close: Box::new(|| {}),
        };
        let helper = tasks::thread("helper", move || run(config, stdio)).unwrap();
        Self {
            dir,
            stdin: Some(to_helper),
            stdout: BufReader::new(from_helper),
            stderr: BufReader::new(warnings),
            helper,
            next_id: 1,
        }
    }

    fn without_daemon() -> Self {
        Self::start(tempfile::tempdir().unwrap(), |_| {})
    }

    fn send(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not an answer: {line:?}"))
    }

    fn get(&mut self, action: [u8; 32]) -> Value {
        let id = self.id();
        let action = STANDARD.encode(action);
        self.send(&format!("{{\"ID\":{id},\"Command\":\"get\",\"ActionID\":\"{action}\"}}\n\n"));
        let answer = self.answer();
        assert_eq!(answer["ID"], id);
        answer
    }

    fn put(&mut self, action: [u8; 32], output: Digest, body: &[u8]) -> Value {
        let id = self.id();
        let (action, output) = (STANDARD.encode(action), STANDARD.encode(output.0));
        let head = format!(
            "{{\"ID\":{id},\"Command\":\"put\",\"ActionID\":\"{action}\",\"OutputID\":\"{output}\""
        );
        match body.len() {
            0 => self.send(&format!("{head}}}\n\n")),
            len => {
                self.send(&format!("{head},\"BodySize\":{len}}}\n\n\""));
                self.send(&STANDARD.encode(body));
                self.send("\"\n");
            }
        }
        let answer = self.answer();
        assert_eq!(answer["ID"], id);
        answer
    }

    /// Puts and checks that the path that comes back has the bytes.
    fn put_right(&mut self, action: [u8; 32], body: &[u8]) -> PathBuf {
        let answer = self.put(action, Digest::of(body), body);
        let path = PathBuf::from(answer["DiskPath"].as_str().unwrap_or_else(|| panic!("{answer}")));
        assert!(std::fs::read(&path).unwrap() == body, "the file has other bytes");
        assert_eq!(path.extension(), None);
        path
    }

    /// Closes as a build does; returns once the helper's answers have ended.
    fn close(&mut self) {
        let id = self.id();
        self.send(&format!("{{\"ID\":{id},\"Command\":\"close\"}}\n\n"));
        assert_eq!(self.answer(), serde_json::json!({"ID": id}));
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }

    /// Ends the input and waits for the helper; returns what it said to the user.
    fn end(mut self) -> (tempfile::TempDir, String) {
        self.stdin = None;
        self.helper.join().unwrap();
        let mut warnings = String::new();
        self.stderr.read_to_string(&mut warnings).unwrap();
        (self.dir, warnings)
    }

    fn id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id - 1
    }
}

/// The daemon's end of a connection after `Hello`.
struct Daemon {
    stream: UnixStream,
    store: PathBuf,
    hello: Hello,
    report: Report,
}

impl Daemon {
    fn welcome(&mut self, change: impl FnOnce(&mut Welcome)) {
        let mut welcome = Welcome {
            protocol: PROTOCOL,
            pid: std::process::id(),
            pid_namespace: self.hello.pid_namespace.clone(),
            store: self.store.to_str().unwrap().into(),
            nonce: "nonce".into(),
            realms: vec![REALM.to_string()],
            ..Welcome::default()
        };
        change(&mut welcome);
        self.say(Frame::Welcome(welcome));
    }

    fn say(&mut self, frame: Frame) {
        frame.write(&mut self.stream).unwrap();
    }

    /// The next frame; reports come when they come, and the last one is kept.
    fn hear(&mut self) -> Option<Frame> {
        loop {
            match Frame::read(&mut self.stream).ok().flatten() {
                Some(Frame::Report(report)) => self.report = report,
                other => return other,
            }
        }
    }
}

/// A directory with a store, and a daemon at its socket that talks once as it is told.
fn with_daemon<T: Send + 'static>(
    talk: impl FnOnce(&mut Daemon) -> T + Send + 'static,
) -> (tempfile::TempDir, JoinHandle<T>) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    crate::store::reader::Reader::open(&store, false).prepare().unwrap();
    std::fs::write(store.join("nonce"), "nonce").unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let thread = tasks::thread("daemon", move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut preface = [0; 8];
        stream.read_exact(&mut preface).unwrap();
        assert_eq!(&preface, PREFACE);
        let Some(Frame::Hello(hello)) = Frame::read(&mut stream).unwrap() else { panic!("hello?") };
        talk(&mut Daemon { stream, store, hello, report: Report::default() })
    });
    (dir, thread.unwrap())
}

fn spooled(dir: &tempfile::TempDir) -> Vec<spool::Spooled> {
    let list = spool::list(&dir.path().join("store/spool")).unwrap();
    list.into_iter().map(|(_, spooled)| spooled).collect()
}

fn entry(body: &[u8]) -> Entry {
    Entry {
        output: Digest::of(body).0,
        size: body.len() as u64,
        time_ns: 1_000_000_000,
        cost_ms: 0,
        c_env: 0,
        class: 0,
        source: 3,
    }
}

//! The handshake and control questions against a listener in this process; starters in a race.

use std::os::unix::net::UnixListener;

use super::*;
use crate::tasks;
use crate::wire::go::Refused;

const SOON: Duration = Duration::from_secs(20);

fn hello() -> Hello {
    Hello { protocol: PROTOCOL, role: "go".into(), ..Hello::default() }
}

/// Accepts one client, checks its opening, and goes on as told.
fn daemon(
    talk: impl FnOnce(UnixStream, Hello) + Send + 'static,
) -> (tempfile::TempDir, Address, std::thread::JoinHandle<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = tasks::thread("daemon", move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut preface = [0; 8];
        stream.read_exact(&mut preface).unwrap();
        assert_eq!(&preface, PREFACE);
        let Some(Frame::Hello(hello)) = Frame::read(&mut stream).unwrap() else {
            panic!("no hello")
        };
        talk(stream, hello);
    });
    (dir, Address::Unix(path), thread.unwrap())
}

fn outcome(frame: Frame) -> Result<Connection, ConnectError> {
    let (_dir, address, thread) = daemon(move |mut stream, _| frame.write(&mut stream).unwrap());
    let result = connect(&address, &hello(), SOON);
    thread.join().unwrap();
    result
}

#[test]
fn every_way_of_not_being_welcome_is_told_apart() {
    let welcome = Welcome { protocol: PROTOCOL, store: "/s".into(), ..Welcome::default() };
    assert_eq!(outcome(Frame::Welcome(welcome.clone())).unwrap().welcome, welcome);
    let newer = Welcome { protocol: 9, ..Welcome::default() };
    let result = outcome(Frame::Welcome(newer));
    assert!(matches!(result, Err(ConnectError::OtherVersion { protocol: 9, .. })), "{result:?}");
    let refused = Refused { protocol: PROTOCOL, reason: "no token".into(), ..Refused::default() };
    let result = outcome(Frame::Refused(refused));
    assert!(matches!(&result, Err(ConnectError::Refused { reason, .. }) if reason == "no token"));
    let result = outcome(Frame::Refused(Refused { protocol: 7, ..Refused::default() }));
    assert!(matches!(result, Err(ConnectError::OtherVersion { protocol: 7, .. })), "{result:?}");
    let nobody = Address::Unix("/nonexistent/larder.sock".into());
    assert!(matches!(connect(&nobody, &hello(), SOON), Err(ConnectError::Nobody(_))));
}

#[test]
fn a_daemon_that_says_nothing_is_a_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _listener = UnixListener::bind(&path).unwrap();
    let result = connect(&Address::Unix(path), &hello(), Duration::from_millis(20));
    assert!(matches!(result, Err(ConnectError::Timeout(_))), "{result:?}");
}

#[test]
fn control_shows_progress_and_returns_the_last_answer() {
    let (_dir, address, thread) = daemon(|mut stream, hello| {
        assert_eq!((hello.role.as_str(), hello.token.as_deref()), ("control", Some("t")));
        Frame::Welcome(Welcome { protocol: PROTOCOL, ..Welcome::default() })
            .write(&mut stream)
            .unwrap();
        let Some(Frame::Control(text)) = Frame::read(&mut stream).unwrap() else { panic!() };
        assert_eq!(text, r#"{"op":"flush"}"#);
        for reply in [r#"{"progress":{"left":2}}"#, r#"{"done":true,"left":0}"#] {
            Frame::ControlReply(reply.into()).write(&mut stream).unwrap();
        }
    });
    let mut seen = Vec::new();
    let request = serde_json::json!({"op": "flush"});
    let reply = control(&address, Some("t"), &request, SOON, &mut |progress| {
        seen.push(progress.to_string());
    });
    assert_eq!(reply.unwrap()["left"], 0);
    assert_eq!(seen, [r#"{"progress":{"left":2}}"#]);
    thread.join().unwrap();
}

#[test]
fn a_daemon_that_ends_at_once_and_a_directory_of_others_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = StartDaemon {
        exe: "/bin/sh".into(),
        args: vec!["-c".into(), "echo \"$A in $PWD\" >&2; exit 3".into()],
        env: vec![("A".into(), "only this".into())],
        log: dir.path().join("state/log"),
        socket: dir.path().join("run/s"),
    };
    let error = start_daemon(&settings, SOON).unwrap_err();
    assert!(matches!(error, StartError::Ended { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&settings.log).unwrap(), "only this in /\n");
    settings.socket = "/tmp/larder-test.sock".into();
    let error = start_daemon(&settings, SOON).unwrap_err();
    assert!(matches!(error, StartError::NotOurs { .. }), "{error}");
}

#[test]
fn of_two_starters_one_starts() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/s");
    let started = dir.path().join("started");
    // The shell stands in for a daemon; the listener is this test's, made when the shell has run.
    let settings = StartDaemon {
        exe: "/bin/sh".into(),
        args: vec!["-c".into(), format!("echo x >>{}; exec sleep 20", started.display()).into()],
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        log: dir.path().join("log"),
        socket: socket.clone(),
    };
    let starters: Vec<_> = (0..4)
        .map(|_| {
            let settings = settings.clone();
            tasks::thread("starter", move || start_daemon(&settings, SOON)).unwrap()
        })
        .collect();
    while !started.exists() {
        std::thread::yield_now();
    }
    let _listener = UnixListener::bind(&socket).unwrap();
    for starter in starters {
        starter.join().unwrap().unwrap();
    }
    assert_eq!(std::fs::read_to_string(&started).unwrap(), "x\n");
}

//! `verify`, `purge`, `flush` and `doctor` beside a daemon: what was named is what is meant.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::{Output, Stdio};

use crate::harness::Home;
use crate::support::cache_server::{CacheServer, Fault};
use crate::support::wait_for;

/// What a command printed, both streams.
fn said(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr];
    streams.map(|stream| String::from_utf8_lossy(stream).into_owned()).concat()
}

/// `purge --all --store OTHER` once emptied the store of the daemon that ran.
#[test]
fn a_store_that_is_named_is_meant_and_not_the_daemons() {
    let home = Home::new();
    let other = home.path().join("other");
    let named = other.to_str().unwrap();
    let first = home.daemon_with(&[], |command| {
        command.env("LARDER_STORE", named);
    });
    first.put("/kv/other", b"in the other store");
    assert_eq!(first.terminate(), Some(0));

    let daemon = home.daemon(&[]);
    daemon.put("/kv/ours", b"in the daemon's store");
    let larder = |args: &[&str]| home.larder(args).output().unwrap();
    let verified = larder(&["verify", "--store", named]);
    assert!(said(&verified).starts_with("1 entries"), "{verified:?}");
    let purged = larder(&["purge", "--all", "--store", named]);
    assert_eq!(said(&purged), "1 entries removed\n");
    assert_eq!(daemon.get("/kv/ours").status, 200, "the daemon's store is as it was");
    let again = larder(&["verify", "--store", named]);
    assert!(said(&again).starts_with("0 entries"), "{again:?}");

    let flushed = larder(&["flush", "--store", named]);
    assert_eq!(flushed.status.code(), Some(1));
    assert!(said(&flushed).contains("serves the store"), "{flushed:?}");
    assert!(said(&larder(&["doctor", "--store", named])).contains("serves the store"));
    let run = larder(&["run", "--store", named, "--", "true"]);
    assert_eq!(run.status.code(), Some(0));
    assert!(said(&run).contains("serves the store"), "{run:?}");
    // The same store by another name is the daemon's.
    let link = home.path().join("link");
    std::os::unix::fs::symlink(home.store(), &link).unwrap();
    let same = larder(&["purge", "--all", "--store", link.to_str().unwrap()]);
    assert_eq!(said(&same), "1 entries removed\n");
    assert_eq!(daemon.get("/kv/ours").status, 404);
}

/// What the daemon would refuse to start with, and once only it did, one fault at a time.
#[test]
fn check_config_names_every_file_that_a_daemon_would_miss() {
    let home = Home::new();
    let config = home.path().join("larder.toml");
    let text = "tls_cert = 'no.crt'\ntls_key = 'no.key'\n[[upstream]]\n\
                url = 'https://cache.example.com'\nca_file = 'no.ca'\nclient_cert = 'no.pem'\n\
                client_key = '/'\n";
    std::fs::write(&config, text).unwrap();
    let check = |config: &std::path::Path| {
        home.larder(&["check-config", "--config", config.to_str().unwrap()]).output().unwrap()
    };
    let output = check(&config);
    assert_eq!(output.status.code(), Some(2));
    for (line, file) in [(1, "no.crt"), (2, "no.key"), (5, "no.ca"), (6, "no.pem"), (7, "/ is a")] {
        let place = format!("larder.toml:{line}");
        let said = said(&output);
        let found = said.lines().any(|said| said.contains(&place) && said.contains(file));
        assert!(found, "line {line}: {said}");
    }
    // There, but of no use.
    std::fs::write(home.path().join("empty.pem"), "").unwrap();
    let text = "tls_cert = 'empty.pem'\ntls_key = 'empty.pem'\n[[upstream]]\n\
                url = 'https://cache.example.com'\nca_file = 'empty.pem'\n";
    std::fs::write(&config, text).unwrap();
    let output = check(&config);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("ca_file") && said(&output).contains("--tls-cert"),
        "{output:?}"
    );
}

/// The socket was once there before anybody listened for signals: SIGTERM ended a daemon that had
/// just been started as a kill does.
#[test]
fn a_signal_as_soon_as_the_socket_is_there_ends_a_daemon_in_order() {
    let home = Home::new();
    for _ in 0..10 {
        let mut daemon = home.larder(&["daemon", "--listen", "127.0.0.1:0", "--admin", "off"]);
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut daemon = daemon.spawn().unwrap();
        wait_for("the socket", || UnixStream::connect(home.socket()).ok());
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(daemon.wait().unwrap().code(), Some(0));
    }
}

/// What cleans a runtime directory may take the socket of a daemon that lives on. The next daemon's stood
/// at the same place, and the first one's end removed it: a daemon that nobody could reach.
#[test]
fn an_end_leaves_the_socket_that_another_daemon_has_bound_meanwhile() {
    let home = Home::new();
    let first = home.daemon(&[]);
    std::fs::remove_file(home.socket()).unwrap();
    let other = home.path().join("other store");
    let second = home.daemon(&["--store", other.to_str().unwrap()]);
    assert_eq!(first.terminate(), Some(0));
    assert!(second.try_control(&serde_json::json!({"op": "stats"})).is_some());
    assert_eq!(second.terminate(), Some(0));
    assert!(!home.socket().exists(), "its own it removes");
}

/// Ctrl-C once ended it without a word of what is left.
#[test]
fn an_interrupted_flush_says_what_is_left() {
    let central = CacheServer::start();
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    central.set_fault(Fault::Status(507));
    daemon.put("/kv/a", b"owed");
    let mut flush = home.larder(&["flush"]);
    let mut flush = flush.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(flush.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("1 uploads to go")), "it waits, and says why");
    let pid = rustix::process::Pid::from_child(&flush);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(lines.any(|line| line.contains("interrupted; 1 uploads are owed")));
    assert_eq!(flush.wait().unwrap().code(), Some(130));
    drop(daemon);
}

/// What stood at the socket's place was once removed, whatever it was.
#[test]
fn a_file_at_the_sockets_place_stays() {
    let home = Home::new();
    let file = home.path().join("precious");
    std::fs::write(&file, "precious").unwrap();
    let link = home.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for place in [&file, &link] {
        let place = place.to_str().unwrap();
        for flag in ["--socket", "--listen"] {
            let value = if flag == "--listen" { format!("unix:{place}") } else { place.to_owned() };
            let output = home.larder(&["daemon", "--admin", "off", flag, &value]).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{flag} {place}: {output:?}");
            assert!(said(&output).contains("is no socket"), "{output:?}");
        }
    }
    assert_eq!(std::fs::read(&link).unwrap(), b"precious");
}

/// A daemon without a place for its log was once none at all.
#[test]
fn a_daemon_that_cannot_keep_a_log_serves_all_the_same() {
    let home = Home::new();
    let nowhere = home.path().join("file");
    std::fs::write(&nowhere, "").unwrap();
    let mut run = home.larder(&["run", "--", "true"]);
    run.env("XDG_STATE_HOME", &nowhere).env("LARDER_LISTEN", "127.0.0.1:0");
    let output = run.env("LARDER_ADMIN", "off").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!said(&output).contains("cannot start"), "{output:?}");
    // `run` does not wait for a daemon that a busy machine starts slowly.
    let stop = || home.larder(&["stop"]).output().unwrap().status.success().then_some(());
    wait_for("the daemon to be there, and to stop", stop);
}

#[test]
fn a_flush_to_an_upstream_that_the_daemon_does_not_have_says_so() {
    let home = Home::new();
    let _daemon = home.daemon(&[]);
    let output = home.larder(&["flush", "--upstream", "http://127.0.0.1:9/x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said(&output).contains("another upstream"), "{output:?}");
}

/// A daemon that was stopped once held up `flush --timeout 2s` for fifteen seconds.
#[test]
fn a_flush_beside_a_daemon_that_hangs_says_so_and_starts_no_other() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    let pid = rustix::process::Pid::from_child(&daemon.child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let output = home.larder(&["flush", "--timeout", "100ms"]).output().unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(said(&output).contains("does not answer"), "{output:?}");
}

#[test]
fn an_output_that_cannot_be_written_is_a_failure() {
    let home = Home::new();
    for asked in ["check-config", "--help"] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = home.larder(&[asked]).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{asked}");
        assert!(said(&output).contains("cannot write to standard output"), "{output:?}");
    }
}

/// Owed uploads once belonged to a hash.
#[test]
fn a_flush_names_the_former_upstream_of_what_is_owed() {
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", "http://127.0.0.1:9/former"]);
    daemon.put("/kv/a", b"owed");
    assert_eq!(daemon.terminate(), Some(0));
    let daemon = home.daemon(&[]);
    let output = home.larder(&["flush", "--timeout", "5s"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(said(&output).contains("owed to http://127.0.0.1:9/former"), "{output:?}");
    drop(daemon);
}

/// Nothing is wrong where nobody has built yet.
#[test]
fn doctor_takes_a_daemon_that_is_yet_to_be_started_for_no_fault() {
    let home = Home::new();
    let output = home.larder(&["doctor"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(said(&output).contains("starts one"), "{output:?}");
}

/// A daemon once went on for ever, took puts into deleted files and said that the disk was full.
#[test]
fn a_daemon_whose_store_is_removed_says_so_and_ends() {
    let home = Home::new();
    let mut daemon = home.daemon(&[]);
    daemon.put("/kv/a", b"x");
    std::fs::remove_dir_all(home.store()).unwrap();
    let status = wait_for("the end", || daemon.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(5));
    assert!(home.log().contains("was removed"), "{}", home.log());
    // And the next one begins anew.
    let daemon = home.daemon(&[]);
    assert_eq!(daemon.put("/kv/a", b"y").status, 201);
}

/// Whoever had something to log ended, as did the daemon when it was told to: with a panic.
#[test]
fn a_daemon_whose_log_cannot_be_written_serves_and_ends_in_order() {
    let home = Home::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    // Nobody listens there, which is worth a line.
    let daemon = home.daemon_with(&["--upstream", "http://127.0.0.1:9"], |command| {
        command.stderr(full);
    });
    assert_eq!(daemon.put("/kv/a", b"a").status, 201);
    let flushed = daemon.control(&serde_json::json!({"op": "flush", "timeout_ms": 1500}));
    assert_eq!(flushed["left_entries"], 1, "{flushed}");
    let stats = daemon.stats();
    let panics = stats["workers"].as_array().unwrap().iter().map(|worker| &worker["panics"]);
    assert!(panics.into_iter().all(|panics| panics == 0), "{stats}");
    assert_eq!(daemon.get("/kv/a").body, b"a");
    assert_eq!(daemon.terminate(), Some(0));
}

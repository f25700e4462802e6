//! Upstream in every kind of trouble: each client gets, in time, the answer that it takes as a miss;
//! nothing false is kept or remembered; when the trouble ends, all is well.

use std::time::Duration;

use crate::harness::{Home, TestDaemon, cas, noise};
use crate::support::cache_server::{CacheServer, Fault};
use crate::support::http::{send, send_with};
use crate::support::wait_for;

fn state(daemon: &TestDaemon) -> String {
    let stats = daemon.stats();
    let upstreams = stats["upstream"].as_object().unwrap();
    upstreams.values().next().unwrap()["state"].as_str().unwrap().to_owned()
}

fn faults() -> Vec<(&'static str, Fault)> {
    vec![
        ("refused", Fault::Refuse),
        ("black hole", Fault::BlackHole),
        ("500", Fault::Status(500)),
        ("429", Fault::Status(429)),
        ("one byte a second", Fault::Trickle(Duration::from_secs(1))),
        ("closing mid-body", Fault::CloseMidBody),
        ("wrong bytes", Fault::WrongBytes),
        ("truncated", Fault::Truncated),
        ("redirect", Fault::Redirect("http://127.0.0.1:9/".into())),
        ("401", Fault::Status(401)),
    ]
}

#[test]
fn whatever_is_wrong_upstream_is_a_miss_and_nothing_false_is_kept() {
    for (what, fault) in faults() {
        let central = CacheServer::start();
        let body = noise(1, 200_000);
        central.insert(&cas(&body), &body);
        let home = Home::new();
        let daemon = home.daemon(&["--upstream", &central.url()]);
        central.set_fault(fault);
        // A body that has begun may break off, visibly; it never ends as if it were whole.
        if let Ok(answer) = send(daemon.addr(), "GET", &cas(&body), b"") {
            assert!(
                answer.status == 404 || answer.body != body && answer.body.len() < body.len(),
                "{what}: {} with {} bytes",
                answer.status,
                answer.body.len()
            );
            if answer.status == 404 {
                let why = answer.header("larder-miss").unwrap_or_default();
                assert!(["fault", "deadline", "breaker"].contains(&why), "{what}: {why}");
            }
        }
        assert_eq!(daemon.put("/kv/a", b"local").status, 201, "{what}");
        assert_eq!(daemon.get("/kv/a").body, b"local", "{what}");
        central.heal();
        wait_for(what, || {
            let answer = send(daemon.addr(), "GET", &cas(&body), b"").ok()?;
            (answer.status == 200).then(|| assert!(answer.body == body, "{what}"))
        });
        daemon.flush();
        assert_eq!(central.object("/kv/a").as_deref(), Some(&b"local"[..]), "{what}");
    }
}

#[test]
fn the_breaker_opens_and_closes() {
    let central = CacheServer::start();
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    central.set_fault(Fault::Status(500));
    wait_for("the breaker to open", || {
        daemon.get(&format!("/kv/{}", central.gets()));
        (state(&daemon) == "open").then_some(())
    });
    let before = central.gets();
    let answer = daemon.get("/kv/while-open");
    if answer.header("larder-miss") == Some("breaker") {
        assert!(central.gets() <= before + 1, "not asked while open, but for a probe");
    }
    central.heal();
    wait_for("the breaker to close", || {
        daemon.get("/kv/probe");
        (state(&daemon) == "closed").then_some(())
    });
}

#[test]
fn an_upstream_that_is_black_holed_at_the_start_stops_nobody() {
    let central = CacheServer::start();
    central.set_fault(Fault::BlackHole);
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    assert_eq!(daemon.put("/kv/a", b"a").status, 201);
    assert_eq!(daemon.get("/kv/a").body, b"a");
    assert_eq!(daemon.terminate(), Some(0), "and it ends in time, owing");
    central.heal();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    daemon.flush();
    assert_eq!(central.object("/kv/a").as_deref(), Some(&b"a"[..]));
}

#[test]
fn a_full_central_fails_nobody_and_is_told() {
    let central = CacheServer::start();
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    central.set_fault_on("PUT", Fault::Status(507));
    for n in 0..20 {
        assert_eq!(daemon.put(&format!("/kv/{n}"), b"x").status, 201);
    }
    let request = serde_json::json!({"op": "flush", "timeout_ms": 1});
    let left = daemon.control(&request);
    assert!(left["left_entries"].as_u64().unwrap() > 0, "{left}");
    central.heal();
    daemon.flush();
    assert_eq!(central.keys().len(), 20);
}

#[test]
fn a_body_too_large_for_upstream_is_given_up_and_counted() {
    let central = CacheServer::start();
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    central.set_fault_on("PUT", Fault::Status(413));
    daemon.put("/kv/a", b"x");
    daemon.flush();
    assert_eq!(daemon.stats()["journal"]["dropped"]["refused"], 1);
    assert_eq!(daemon.get("/kv/a").body, b"x");
}

#[test]
fn slow_senders_do_not_hold_up_others() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    let mut slow = Vec::new();
    for n in 0..50 {
        let mut stream = std::net::TcpStream::connect(daemon.addr()).unwrap();
        let head =
            format!("PUT /kv/slow{n} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nx");
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        slow.push(stream);
    }
    assert_eq!(daemon.put("/kv/a", b"a").status, 201);
    let range = [("range", "bytes=0-0")];
    assert_eq!(send_with(daemon.addr(), "GET", "/kv/a", &range, b"").unwrap().status, 206);
    drop(slow);
    assert_eq!(daemon.get("/kv/slow1").status, 404, "half a body is no entry");
}

/// Once all of this was "ok" and "reachable", and neither log nor flush named a cause.
#[test]
fn doctor_stats_log_and_flush_name_what_is_wrong_upstream() {
    let cases = [
        (Fault::Status(401), "answered 401"),
        (Fault::Redirect("http://127.0.0.1:9/".into()), "redirect (302)"),
        (Fault::Status(500), "answered 500"),
    ];
    for (fault, cause) in cases {
        let central = CacheServer::start();
        let home = Home::new();
        let daemon = home.daemon(&["--upstream", &central.url()]);
        let larder = |args: &[&str]| {
            let output = home.larder(args).output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap())
        };
        central.set_fault(fault);
        for n in 0..3 {
            assert_eq!(daemon.get(&format!("/kv/{n}")).status, 404);
        }
        let (code, found) = larder(&["doctor"]);
        assert!(code == Some(1) && found.contains(cause), "{code:?}: {found}");
        assert!(larder(&["stats"]).1.contains(cause));
        daemon.put("/kv/a", b"owed");
        let (code, found) = larder(&["flush", "--timeout", "500ms"]);
        assert!(code == Some(3) && found.contains(cause), "{code:?}: {found}");
        if cause == "answered 401" {
            // Nobody waits for what is denied: this was once all of the ten minutes.
            let (code, found) = larder(&["flush", "--timeout", "10m"]);
            assert!(code == Some(3) && found.contains(cause), "{code:?}: {found}");
        } else {
            // While it waits, and not only in the end.
            let waiting = home.larder(&["flush", "--timeout", "2500ms"]).output().unwrap();
            let heard = String::from_utf8_lossy(&waiting.stderr).into_owned();
            assert!(heard.contains("to go") && heard.contains(cause), "{heard}");
        }
        if state(&daemon) != "closed" {
            assert!(home.log().contains(cause), "{}", home.log());
        }
        central.heal();
        daemon.flush();
        wait_for("it to be well", || {
            daemon.get("/kv/b");
            (larder(&["doctor"]).0 == Some(0)).then_some(())
        });
    }
}

//! The README's Semantics on one daemon, sentence by sentence.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::json;

use crate::harness::{Home, ac, cas, noise};
use crate::support::http::{send, send_with};
use crate::support::wait_for;

#[test]
fn a_put_is_there_at_once_and_after_a_restart() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    let (small, large) = (noise(1, 100), noise(2, 3 << 20));
    assert_eq!(daemon.put("/kv/small", &small).status, 201);
    assert_eq!(daemon.put("/kv/large", &large).status, 201);
    assert_eq!(daemon.put(&ac(1), b"an action").status, 201);
    let check = |daemon: &crate::harness::TestDaemon| {
        assert!(daemon.get("/kv/small").body == small);
        assert!(daemon.get("/kv/large").body == large);
        assert_eq!(daemon.get(&ac(1)).body, b"an action");
    };
    check(&daemon);
    assert_eq!(daemon.put("/kv/small", b"other").status, 200, "replaced");
    assert_eq!(daemon.get("/kv/small").body, b"other");
    daemon.put("/kv/small", &small);
    assert_eq!(daemon.terminate(), Some(0));
    check(&home.daemon(&[]));
}

#[test]
fn content_that_does_not_match_its_digest_is_refused_and_not_kept() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    for len in [10, 100_000, 3 << 20] {
        let (right, wrong) = (noise(3, len), noise(4, len));
        assert_eq!(daemon.put(&cas(&right), &wrong).status, 422);
        assert_eq!(daemon.get(&cas(&right)).status, 404);
        assert_eq!(daemon.put(&cas(&right), &right).status, 201);
        assert_eq!(daemon.put(&cas(&right), &right).status, 200, "known");
        assert_eq!(daemon.put(&cas(&right), &wrong).status, 422, "checked as any");
        assert!(daemon.get(&cas(&right)).body == right);
    }
}

#[test]
fn a_cache_may_forget_it_never_lies() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    let large = noise(5, 2 << 20);
    daemon.put(&cas(&large), &large);
    daemon.put("/kv/tiny", b"tiny body of an entry");
    daemon.terminate();
    // Somebody changes a byte of everything.
    let mut changed = 0;
    for entry in walk(&home.store()) {
        let is_body = entry.to_string_lossy().contains("/files/")
            || entry.extension().is_some_and(|e| e == "seg");
        if !is_body {
            continue;
        }
        let file = std::fs::File::options().read(true).write(true).open(&entry);
        let Ok(file) = file else { continue };
        let at = file.metadata().unwrap().len() * 3 / 4;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
        changed += 1;
    }
    assert!(changed >= 2, "nothing was changed");
    let daemon = home.daemon(&[]);
    let answer = daemon.get(&cas(&large));
    assert_eq!((answer.status, answer.header("larder-miss")), (404, Some("local")));
    daemon.put(&cas(&large), &large);
    assert!(daemon.get(&cas(&large)).body == large, "a put heals");
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { out.extend(walk(&path)) } else { out.push(path) }
    }
    out
}

#[test]
fn ranges_and_heads_are_answered_from_memory_disk_and_segment() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    for len in [1000, 300_000, 5 << 20] {
        let body = noise(6, len);
        daemon.put(&cas(&body), &body);
        for _ in 0..2 {
            let range = [("range", "bytes=100-199")];
            let part = send_with(daemon.addr(), "GET", &cas(&body), &range, b"").unwrap();
            assert_eq!(part.status, 206);
            assert!(part.body == body[100..200]);
            let span = format!("bytes 100-199/{len}");
            assert_eq!(part.header("content-range"), Some(&*span));
        }
        let tail = [("range", "bytes=-7")];
        let part = send_with(daemon.addr(), "GET", &cas(&body), &tail, b"").unwrap();
        assert!(part.body == body[len - 7..]);
        let head = daemon.send("HEAD", &cas(&body), b"");
        assert_eq!((head.status, head.header("content-length")), (200, Some(&*len.to_string())));
        let beyond = [("range", "bytes=99999999-")];
        assert_eq!(send_with(daemon.addr(), "GET", &cas(&body), &beyond, b"").unwrap().status, 416);
        let bad = [("range", "lines=1-2")];
        assert_eq!(send_with(daemon.addr(), "GET", &cas(&body), &bad, b"").unwrap().status, 400);
    }
}

#[test]
fn deleting_and_purging_are_local_and_final() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    daemon.put("/kv/a", b"a");
    daemon.put("/kv/b", b"b");
    assert_eq!(daemon.send("DELETE", "/kv/a", b"").status, 204);
    assert_eq!(daemon.send("DELETE", "/kv/a", b"").status, 404);
    assert_eq!(daemon.get("/kv/a").status, 404);
    assert_eq!(daemon.control(&json!({"op": "purge"}))["removed"], 1);
    assert_eq!(daemon.get("/kv/b").status, 404, "not from memory either");
    daemon.kill();
    let daemon = home.daemon(&[]);
    assert_eq!(daemon.get("/kv/b").status, 404, "nothing purged comes back");
}

#[test]
fn namespaces_do_not_see_each_other_but_share_content() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    daemon.put(&format!("/main{}", ac(1)), b"of main");
    assert_eq!(daemon.get(&format!("/pr/7{}", ac(1))).status, 404);
    assert_eq!(daemon.get(&ac(1)).status, 404);
    assert_eq!(daemon.get(&format!("/main{}", ac(1))).body, b"of main");
    let body = noise(7, 200_000);
    daemon.put(&format!("/main{}", cas(&body)), &body);
    assert!(daemon.get(&format!("/pr/7{}", cas(&body))).body == body);
}

#[test]
fn the_empty_content_is_always_there() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    assert_eq!(daemon.get(&cas(b"")).status, 200);
    assert_eq!(
        daemon.put(&cas(b""), b"").status,
        200 + u16::from(daemon.stats()["disk"]["entries"] == 0)
    );
    assert_eq!(daemon.get(&cas(b"")).header("content-length"), Some("0"));
}

#[test]
fn a_full_disk_tier_is_said_and_breaks_nothing() {
    let home = Home::new();
    let daemon = home.daemon(&["--disk", "8MiB", "--disk-floor", "0"]);
    let mut refused = 0;
    for n in 0..16 {
        let body = noise(100 + n, 1 << 20);
        match daemon.put(&cas(&body), &body).status {
            201 => assert!(daemon.get(&cas(&body)).body == body),
            507 => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert!(refused > 0);
    assert_eq!(daemon.put("/kv/small", b"x").status, 201, "small things still fit");
    let used = daemon.stats()["disk"]["bytes"].as_u64().unwrap();
    assert!(used <= 8 << 20, "{used}");
}

#[test]
fn a_signal_lets_requests_finish_and_loses_nothing() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    for n in 0..50_u8 {
        assert_eq!(daemon.put(&ac(n), &[n; 2000]).status, 201);
    }
    let addr = daemon.addr();
    assert_eq!(daemon.terminate(), Some(0));
    assert!(send(addr, "GET", &ac(1), b"").is_err(), "nobody listens any more");
    let daemon = home.daemon(&[]);
    for n in 0..50_u8 {
        assert_eq!(daemon.get(&ac(n)).body, [n; 2000]);
    }
}

#[test]
fn health_metrics_and_status_are_answered_apart() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    daemon.put("/kv/a", b"a");
    daemon.get("/kv/a");
    daemon.get("/kv/none");
    let log = wait_for("the admin address", || {
        let log = home.log();
        log.contains("larder serves").then_some(log)
    });
    let plain: String = log.replace("\u{1b}[", "").chars().collect();
    let at = plain.split("admin=").nth(1).unwrap();
    let at = at.trim_start_matches(['"', '3', 'm']);
    let at: String = at.chars().take_while(|c| !c.is_whitespace() && *c != '"').collect();
    let admin = at.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    assert_eq!(send(admin, "GET", "/healthz", b"").unwrap().status, 200);
    assert_eq!(send(admin, "GET", "/readyz", b"").unwrap().status, 200);
    let metrics = String::from_utf8(send(admin, "GET", "/metrics", b"").unwrap().body).unwrap();
    assert!(metrics.contains("larder_puts_total{protocol=\"kv\"} 1"), "{metrics}");
    assert!(metrics.contains("larder_misses_total{protocol=\"kv\",why=\"local\"} 1"));
    let status = send(admin, "GET", "/status", b"").unwrap().body;
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["version"], 1);
    assert_eq!(status["requests"]["kv"]["hit_memory"], 1);
}

#[test]
fn a_body_of_four_gibibytes_passes_in_bounded_memory() {
    use std::io::{Read, Write};
    let home = Home::new();
    let daemon = home.daemon(&["--memory", "64MiB"]);
    let piece = noise(9, 1 << 20);
    let pieces = 4096_u64;
    let mut stream = std::net::TcpStream::connect(daemon.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let head = format!(
        "PUT /kv/huge HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        pieces << 20
    );
    stream.write_all(head.as_bytes()).unwrap();
    for _ in 0..pieces {
        stream.write_all(&piece).unwrap();
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
    let mut stream = std::net::TcpStream::connect(daemon.addr()).unwrap();
    stream
        .write_all(b"GET /kv/huge HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut got = 0_u64;
    let mut buffer = vec![0; 1 << 20];
    let mut head_len = None;
    loop {
        let n = stream.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        if head_len.is_none() {
            let at = buffer[..n].windows(4).position(|w| w == b"\r\n\r\n").unwrap();
            head_len = Some(at as u64 + 4);
        }
        got += n as u64;
    }
    assert_eq!(got - head_len.unwrap(), pieces << 20);
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let peak = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 200 << 10, "peak of {kib} KiB");
}

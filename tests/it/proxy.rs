//! larder in front of a central cache: another larder, or any server that answers GET and PUT.

use std::sync::atomic::{AtomicUsize, Ordering};

use larder::manifest::trail::{Trail, TrailRow};
use larder::manifest::trail_key;
use larder::units::Timestamp;

use crate::harness::{Home, ac, cas, noise};
use crate::support::cache_server::{CacheServer, Fault};
use crate::support::http::send_with;
use crate::support::wait_for;

#[test]
fn what_one_machine_puts_another_gets_through_any_server() {
    let central = CacheServer::start();
    let url = central.url();
    let (a, b) = (Home::new(), Home::new());
    let body = noise(1, 2 << 20);
    let first = a.daemon(&["--upstream", &url]);
    first.put(&cas(&body), &body);
    first.put(&ac(1), b"names it");
    assert_eq!(first.put("/kv/tool/key%201", b"opaque").status, 201);
    first.flush();
    assert_eq!(central.object(&cas(&body)).as_deref(), Some(&body[..]), "byte-identical");
    let second = b.daemon(&["--upstream", &url]);
    assert!(second.get(&cas(&body)).body == body);
    assert_eq!(second.get(&ac(1)).body, b"names it");
    let opaque = second.get("/kv/tool/key%201");
    assert_eq!(opaque.body, b"opaque");
    assert_eq!(opaque.header("larder-source"), Some("upstream"));
    assert_eq!(second.get("/kv/tool/key%201").header("larder-source"), Some("memory"));
}

#[test]
fn larder_behind_larder_and_a_third_behind_that() {
    let homes = [Home::new(), Home::new(), Home::new()];
    let central = homes[0].daemon(&[]);
    let url = central.url();
    let edge = homes[1].daemon(&["--upstream", &url]);
    let url = edge.url();
    let near = homes[2].daemon(&["--upstream", &url]);
    let body = noise(2, 300_000);
    near.put(&cas(&body), &body);
    near.put(&ac(2), b"value");
    near.flush();
    edge.flush();
    assert!(central.get(&cas(&body)).body == body);
    central.put("/kv/from-above", b"down");
    assert_eq!(near.get("/kv/from-above").body, b"down");
    assert_eq!(edge.get("/kv/from-above").header("larder-source"), Some("memory"));
}

#[test]
fn content_goes_up_before_the_action_that_names_it() {
    let central = CacheServer::start();
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    // Content fails at first; the action must wait for it.
    central.set_fault_on("PUT", Fault::Status(503));
    let body = noise(3, 100_000);
    daemon.put(&cas(&body), &body);
    daemon.put(&ac(3), b"names it");
    wait_for("a failed upload", || (central.fault_count() > 0).then_some(()));
    assert_eq!(central.keys(), Vec::<String>::new());
    central.heal();
    daemon.flush();
    assert_eq!(central.object(&ac(3)).as_deref(), Some(&b"names it"[..]));
    assert_eq!(central.object(&cas(&body)).as_deref(), Some(&body[..]));
    assert_eq!(central.requests("PUT", &ac(3)), 1, "sent once, after its content");
}

/// Who all ask at once. A soft limit of descriptors is often just above this.
const ASKERS: usize = 1000;

#[test]
fn one_fetch_per_key_however_many_ask() {
    let nofile = rustix::process::Resource::Nofile;
    let mut limit = rustix::process::getrlimit(nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(nofile, limit).unwrap();
    let central = CacheServer::start();
    let body = noise(4, 32 << 20);
    let path = cas(&body);
    central.insert(&path, &body);
    central.set_fault(Fault::SlowFirstByte(std::time::Duration::from_millis(300)));
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url(), "--memory", "64MiB"]);
    let addr = daemon.addr();
    let right = AtomicUsize::new(0);
    let before = resident_kib(daemon.child.id(), "VmRSS:");
    std::thread::scope(|scope| {
        let mut leader = std::net::TcpStream::connect(addr).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        std::io::Write::write_all(&mut leader, request.as_bytes()).unwrap();
        wait_for("the fetch", || (central.requests("GET", &path) > 0).then_some(()));
        for _ in 0..ASKERS {
            let (path, body, right) = (&path, &body, &right);
            std::thread::Builder::new()
                .stack_size(128 << 10)
                .spawn_scoped(scope, move || {
                    if gets(addr, path, body) {
                        right.fetch_add(1, Ordering::Relaxed);
                    }
                })
                .unwrap();
        }
        // Whose request it was leaves mid-way.
        std::io::Read::read_exact(&mut leader, &mut vec![0; 1 << 20]).unwrap();
        drop(leader);
    });
    assert_eq!(right.load(Ordering::Relaxed), ASKERS);
    assert_eq!(central.requests("GET", &path), 1);
    let peak = resident_kib(daemon.child.id(), "VmHWM:");
    assert!(peak - before < 64 << 10, "{} KiB above idle", peak - before);
}

/// Whether the answer is a hit with these bytes; they are compared as they come, and not held.
fn gets(addr: std::net::SocketAddr, path: &str, expected: &[u8]) -> bool {
    use std::io::{BufRead, Read, Write};
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut stream = std::io::BufReader::with_capacity(32 << 10, stream);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    if !line.starts_with("HTTP/1.1 200") {
        return false;
    }
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).unwrap();
    }
    let (mut buffer, mut at) = (vec![0; 32 << 10], 0);
    loop {
        let n = stream.read(&mut buffer).unwrap();
        if n == 0 {
            return at == expected.len();
        }
        if expected.get(at..at + n) != Some(&buffer[..n]) {
            return false;
        }
        at += n;
    }
}

fn resident_kib(pid: u32, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let found = status.lines().find(|l| l.starts_with(line)).unwrap();
    found.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn only_absence_is_remembered_and_only_briefly() {
    let central = CacheServer::start();
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    for _ in 0..5 {
        assert_eq!(daemon.get("/kv/a").status, 404);
    }
    assert_eq!(central.requests("GET", "/kv/a"), 1, "absent, asked once");
    central.insert("/kv/a", b"now there");
    let found = wait_for("the absence to pass", || {
        let answer = daemon.get("/kv/a");
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(found.body, b"now there");
}

#[test]
fn what_upstream_lost_a_new_put_heals() {
    let central = CacheServer::start();
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    daemon.put("/kv/a", b"one");
    daemon.flush();
    central.remove("/kv/a");
    daemon.put("/kv/a", b"two");
    daemon.flush();
    assert_eq!(central.object("/kv/a").as_deref(), Some(&b"two"[..]));
}

#[test]
fn a_read_only_daemon_sends_nothing() {
    let central = CacheServer::start();
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url(), "--read-only"]);
    assert_eq!(daemon.put("/kv/a", b"here").status, 201);
    daemon.flush();
    assert_eq!(daemon.get("/kv/a").body, b"here");
    assert_eq!(central.puts(), 0);
}

#[test]
fn a_pull_requests_realm_reads_main_and_cannot_change_it() {
    let central = CacheServer::start();
    let homes = [Home::new(), Home::new(), Home::new()];
    let url = central.url();
    let main = homes[0].daemon(&["--upstream", &url, "--namespace", "main"]);
    main.put(&ac(5), b"built by main");
    main.flush();
    let pr = homes[1].daemon(&["--upstream", &url, "--namespace", "pr-7", "--trust", "main"]);
    assert_eq!(pr.get(&ac(5)).body, b"built by main");
    // Content is asked for by each realm's own name; one that lacks it says nothing of the other.
    let body = noise(8, 5000);
    main.put(&cas(&body), &body);
    main.flush();
    assert!(pr.get(&cas(&body)).body == body);
    pr.put(&ac(5), b"built by the pull request");
    pr.put(&ac(6), b"new");
    pr.flush();
    assert_eq!(pr.get(&ac(5)).body, b"built by the pull request");
    let other = homes[2].daemon(&["--upstream", &url, "--namespace", "main"]);
    assert_eq!(other.get(&ac(5)).body, b"built by main");
    assert_eq!(other.get(&ac(6)).status, 404);
}

#[test]
fn a_part_of_content_that_turns_out_wrong_is_never_whole() {
    let central = CacheServer::start();
    let body = noise(9, 4 << 20);
    central.insert(&cas(&body), &body);
    central.set_fault(Fault::WrongBytes);
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    let range = [("range", "bytes=0-99")];
    let answer = send_with(daemon.addr(), "GET", &cas(&body), &range, b"");
    // A miss, or an answer that breaks off: never a hundred bytes that nobody has verified.
    assert!(answer.is_err() || answer.is_ok_and(|a| a.status == 404 || a.body.len() < 100));
}

#[test]
fn an_entry_whose_bytes_are_gone_here_comes_back_from_upstream() {
    let central = CacheServer::start();
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    let body = noise(10, 300_000);
    assert_eq!(daemon.put("/kv/large", &body).status, 201);
    daemon.flush();
    let hex = larder::entry::Digest::of(&body).to_string();
    std::fs::remove_file(home.store().join("files").join(&hex[..2]).join(&hex[2..])).unwrap();
    assert!(daemon.get("/kv/large").body == body);
    assert!(daemon.get("/kv/large").body == body, "and stays");
    assert_eq!(central.requests("GET", "/kv/large"), 1);
}

/// An edge has read a trail and keeps it; meanwhile a build elsewhere has written on it. Whoever
/// asks for what is new gets that, whoever does not may have the old one, and what is written
/// through the edge adds to what the central has.
#[test]
fn through_an_edge_manifests_are_new_and_lose_nothing() {
    let commits = |value: &[u8]| -> Vec<String> {
        Trail::decode(value).unwrap().rows.into_iter().map(|row| row.commit).collect()
    };
    let trail = |commits: &[&str]| {
        let row = |commit: &&str| TrailRow {
            commit: (*commit).to_owned(),
            written: Timestamp(commit.len() as u64),
            writer: "somebody".to_owned(),
            rows: 1,
            bytes: 1,
            complete: true,
            packs: Vec::new(),
        };
        let rows = commits.iter().map(row).collect();
        Trail { scope: "app".to_owned(), branch: "main".to_owned(), rows }.encode()
    };
    let (central, home) = (CacheServer::start(), Home::new());
    let key = format!("/ac/{}", trail_key("app", "main"));
    central.insert(&key, &trail(&["a"]));
    let tokens = home.private(
        "tokens.toml",
        "[[token]]\nname = \"ci\"\nsecret = \"s3cr3t-s3cr3t-s3cr3t\"\naccess = \"write\"\n",
    );
    let edge = home.daemon(&["--upstream", &central.url(), "--tokens", &tokens]);
    let send = |method, path: &str, header, body: &[u8]| {
        let headers = [("Authorization", "Bearer s3cr3t-s3cr3t-s3cr3t"), header];
        send_with(edge.addr(), method, path, &headers, body).unwrap()
    };
    let get = |path: &str| send("GET", path, ("Accept", "*/*"), b"").body;
    let fresh = |path: &str| send("GET", path, ("Cache-Control", "no-cache"), b"").body;
    assert_eq!(commits(&get(&key)), ["a"]);
    central.insert(&key, &trail(&["bb", "a"]));
    assert_eq!(commits(&get(&key)), ["a"], "it is here");
    assert_eq!(commits(&fresh(&key)), ["bb", "a"]);
    // Somebody who has read the older one writes; the edge sends both.
    assert_eq!(send("PUT", &key, ("Accept", "*/*"), &trail(&["ccc", "a"])).status, 200);
    edge.flush();
    let there = commits(&central.object(&key).unwrap());
    assert_eq!(there, ["ccc", "bb", "a"]);
    assert_eq!(commits(&fresh(&key)), ["ccc", "bb", "a"]);
    // Without the central what is here is better than nothing.
    for fault in [Fault::BlackHole, Fault::Refuse] {
        central.set_fault(fault);
        assert_eq!(commits(&fresh(&key)), ["ccc", "a"]);
    }
    // Other values say the same for ever, and are not asked for again.
    central.heal();
    let other = format!("/ac/{}", "5".repeat(64));
    central.insert(&other, b"old");
    assert_eq!(get(&other), b"old");
    central.insert(&other, b"new");
    assert_eq!(fresh(&other), b"old");
}

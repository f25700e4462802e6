//! SIGKILL while room is being made: files condemned, segments given up, what lives in them copied
//! forward. What was acknowledged reads back right or misses, and nothing false is served.
//!
//! What was used days ago goes first, so that both kinds of victims are met. Files wait before they go, but
//! not in a store that has been alone for a while, which needs longer lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder::entry::{Class, Digest, Key, Meta};
use larder::store::{Config, Limit, Store};
use larder::units::{ByteSize, Clock, Timestamp};
use serde_json::Value;

use crate::harness::{Home, TestDaemon, cas, chance, kills, noise};
use crate::support::http::{send, send_with};
use crate::support::wait_for;

/// Of what earlier rounds have filled, nothing is left.
const FILLED: usize = 2 * 180;
/// Less than what is filled in a round, and what is written over comes to more.
const DISK: &str = "8MiB";
const ARGS: [&str; 6] = ["--disk", DISK, "--disk-floor", "0", "--memory", "1MiB"];
const DAYS: u64 = 3 * 86_400;
/// Keys that are written over again and again: what is dead in segments is given up.
const KEYS: u64 = 60;
/// Lives of one store; each leaves sixty files.
const ROUNDS: u64 = 20;
/// A store that was alone for longer than this gives up files at once.
const ALONE: Duration = Duration::from_secs(16);

/// Three segments and twenty files that were last used days ago.
fn fill(home: &Home, round: u64) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    for segment in 0..3 {
        let len = |n| if n % 8 == 0 { 150_000 } else { 30_000 };
        let new = (0..60).map(|n| noise(round << 32 | segment << 16 | n, len(n)));
        let new: Vec<_> = new.collect();
        put_days_ago(home, round, &new);
        bodies.extend(new);
    }
    bodies
}

/// What was last used days ago, put by a process that has ended since.
fn put_days_ago(home: &Home, later_s: u64, bodies: &[Vec<u8>]) {
    let now = Clock::system().now();
    let clock = Clock::manual(Timestamp::from_seconds(now.0 / 1_000_000_000 - DAYS + later_s));
    let size = |mib| Some(Limit::Size(ByteSize(mib)));
    let config = Config { dir: home.store(), disk: size(1 << 30), floor: size(0) };
    // A child that another test is just starting may hold the lock for a moment.
    let store = wait_for("the store", || Store::open(&config, clock.clone(), Arc::default()).ok());
    for body in bodies {
        let mut staged = store.stage();
        staged.write(body).unwrap();
        let staged = staged.finish();
        let meta = Meta::new(staged.digest, staged.size, clock.now(), Class::Other);
        store.put(&Key::content(Digest::of(body)), staged, &meta, None).unwrap();
    }
    store.close();
}

/// The length of the n-th body of all.
type Len = fn(u64) -> usize;

/// Most are small.
fn mixed(n: u64) -> usize {
    if n.is_multiple_of(50) { 80_000 } else { 4_000 + (n % 9) as usize * 500 }
}

/// Each is a file.
fn large(n: u64) -> usize {
    80_000 + (n % 9) as usize * 5_000
}

/// A body that says which one it is: the n-th of all.
fn numbered(n: u64, len: Len) -> Vec<u8> {
    let mut body = noise(n, len(n));
    body[..8].copy_from_slice(&n.to_le_bytes());
    body
}

/// Puts over and over until the daemon is gone; what was acknowledged last under each key.
fn write_over(
    addr: std::net::SocketAddr,
    mut n: u64,
    len: Len,
    killed: &AtomicBool,
) -> Vec<(u64, u64)> {
    let mut acknowledged = Vec::new();
    loop {
        n += 1;
        match send(addr, "PUT", &format!("/kv/{}", n % KEYS), &numbered(n, len)) {
            Ok(answer) if answer.status == 507 => {}
            Ok(answer) => {
                assert!(matches!(answer.status, 200 | 201), "{}", answer.status);
                acknowledged.push((n % KEYS, n));
            }
            Err(_) if killed.load(Ordering::Acquire) => return acknowledged,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Writes over with a daemon, from the n-th body on, until its stats say that it is time to kill it; `last`
/// is what was acknowledged last.
fn write_over_and_kill(
    daemon: TestDaemon,
    (n, len): (u64, Len),
    is_time: impl Fn(&Value) -> bool,
    last: &mut [u64],
) {
    let killed = AtomicBool::new(false);
    let addr = daemon.addr();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_over(addr, n, len, &killed));
        wait_for("the time to kill", || is_time(&daemon.stats()).then_some(()));
        killed.store(true, Ordering::Release);
        daemon.kill();
        for (key, n) in writer.join().unwrap() {
            last[usize::try_from(key).unwrap()] = n;
        }
    });
}

/// How many of the old bodies are there; each is right or a miss.
fn still_there(daemon: &TestDaemon, bodies: &[Vec<u8>]) -> usize {
    let found = bodies.iter().filter(|body| {
        let answer = daemon.get(&cas(body));
        assert!(answer.status == 404 || answer.body == **body, "{}: wrong", cas(body));
        answer.status == 200
    });
    found.count()
}

/// Under each key the last acknowledged body, a later one that was under way, or a miss.
fn assert_right(daemon: &TestDaemon, len: Len, last: &[u64]) -> usize {
    let found = (0..KEYS).zip(last).filter(|(key, last)| {
        let answer = daemon.get(&format!("/kv/{key}"));
        if answer.status == 404 {
            return false;
        }
        let n = u64::from_le_bytes(answer.body[..8].try_into().unwrap());
        assert!(answer.body == numbered(n, len), "/kv/{key}: not what was put");
        assert_eq!(n % KEYS, *key, "under another key");
        assert!(n >= **last, "/kv/{key}: {n} was written over by {last}");
        true
    });
    found.count()
}

/// Nobody counts what names a pack: at a central larder each read of a part of it keeps it.
#[test]
fn a_pack_of_which_parts_are_read_outlives_those_that_nobody_reads() {
    let home = Home::new();
    let packs: Vec<_> = (0..2).map(|n| noise(n, 3 << 20)).collect();
    put_days_ago(&home, 0, &packs);
    let daemon = home.daemon(&["--disk", "8MiB", "--disk-floor", "0", "--memory", "1MiB"]);
    let part = [("Range", "bytes=4096-8191")];
    let answer = send_with(daemon.addr(), "GET", &cas(&packs[0]), &part, b"").unwrap();
    assert_eq!((answer.status, &answer.body[..]), (206, &packs[0][4096..8192]));
    // The second of these does not fit, though less is used than what begins an eviction: it was refused
    // for ever.
    for n in 0..2 {
        let put = || daemon.put(&format!("/kv/{n}"), &noise(n + 9, 1 << 20)).status;
        wait_for("room", || (put() == 201).then_some(()));
    }
    let found: Vec<u16> = packs.iter().map(|pack| daemon.get(&cas(pack)).status).collect();
    assert_eq!(found, [200, 404]);
}

/// All of it is new: a store of this size once answered 507 for hours.
#[test]
fn a_store_that_is_filled_at_once_goes_on_taking_entries() {
    let home = Home::new();
    let daemon = home.daemon(&ARGS);
    let put = |n: u64| daemon.put(&format!("/kv/{n}"), &noise(n, 40_000)).status;
    for n in 0..600 {
        wait_for("room", || (put(n) == 201).then_some(()));
    }
    let newest = daemon.get("/kv/599");
    assert!(newest.status == 200 && newest.body == noise(599, 40_000));
    // Some of the first are in memory still.
    let old = (0..300).filter(|n| daemon.get(&format!("/kv/{n}")).status == 200).count();
    assert!(old < 60, "{old} of the oldest are there");
    let disk = &daemon.stats()["disk"];
    assert!(disk["evicted_entries"].as_u64().unwrap() > 300, "{disk}");
    assert!(disk["bytes"].as_u64() <= disk["limit_bytes"].as_u64(), "{disk}");
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn kills_while_room_is_made_cost_misses_and_nothing_false() {
    let mut random = chance(20_261_123);
    let mut home = Home::new();
    let mut old: Vec<Vec<u8>> = Vec::new();
    let mut last: Vec<u64> = (0..KEYS).map(|_| 0).collect();
    let (mut evicted, mut kept) = (0, 0);
    for round in 0..kills() {
        // No life is long enough for files that wait before they go.
        if round % ROUNDS == 0 {
            home = Home::new();
            old.clear();
            last.fill(0);
        }
        old.extend(fill(&home, round));
        old.drain(..old.len().saturating_sub(FILLED));
        // Early, when much is given up at once, and late, when what was just written is.
        let puts = random.next_u64() % if round % 2 == 0 { 60 } else { 1500 };
        let is_time = |stats: &Value| stats["requests"]["kv"]["puts"].as_u64() >= Some(puts);
        write_over_and_kill(home.daemon(&ARGS), (round * 1_000_000, mixed), is_time, &mut last);
        let daemon = home.daemon(&ARGS);
        kept += assert_right(&daemon, mixed, &last);
        let there = still_there(&daemon, &old);
        evicted += old.len() - there;
        assert_eq!(daemon.terminate(), Some(0));
        let verify = home.larder(&["verify"]).output().unwrap();
        assert!(verify.status.success(), "round {round}: {verify:?}");
    }
    assert!(evicted > 0, "nothing was evicted: this test has shown nothing");
    assert!(kept > 0, "nothing was kept: this test has shown nothing");
}

/// More go there than a store that makes them wait gives up in as much time as the test has.
#[test]
fn kills_while_files_go_at_once_cost_misses_and_nothing_false() {
    let mut random = chance(20_261_129);
    let home = Home::new();
    let mut last: Vec<u64> = (0..KEYS).map(|_| 0).collect();
    for round in 0..kills().div_ceil(20) {
        let clock = Clock::system();
        let daemon = home.daemon(&ARGS);
        wait_for("a store that is alone", || (clock.elapsed() > ALONE).then_some(()));
        let files = 20 + random.next_u64() % 60;
        let is_time = |stats: &Value| stats["disk"]["evicted_entries"].as_u64() >= Some(files);
        write_over_and_kill(daemon, (round * 1_000_000, large), is_time, &mut last);
        let daemon = home.daemon(&ARGS);
        let kept = assert_right(&daemon, large, &last);
        assert!(kept > 0, "round {round}: nothing was kept");
        assert_eq!(daemon.terminate(), Some(0));
        let verify = home.larder(&["verify"]).output().unwrap();
        assert!(verify.status.success(), "round {round}: {verify:?}");
    }
}

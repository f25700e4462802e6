//! SIGKILL at bad moments: what was acknowledged is readable after the restart, and its upload is
//! owed or done.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder::units::Clock;

use crate::failing::FailingDisk;
use crate::harness::{Home, TestDaemon, ac, cas, chance, kills, noise};
use crate::support::cache_server::{CacheServer, Fault};
use crate::support::http::send;
use crate::support::wait_for;

#[test]
fn what_was_acknowledged_survives_kills_at_random_points() {
    let mut random = chance(20_261_122);
    let home = Home::new();
    let mut acknowledged: Vec<(String, Vec<u8>)> = Vec::new();
    let mut new_in_last = 0;
    for round in 0..kills() {
        let daemon = home.daemon(&[]);
        // All of the last round, and some of those before; in the end all are looked at.
        let older = acknowledged.len().saturating_sub(new_in_last);
        let some =
            (0..500.min(older)).map(|_| usize::try_from(random.next_u64() % older as u64).unwrap());
        let some: Vec<usize> = some.chain(older..acknowledged.len()).collect();
        for (path, body) in some.into_iter().map(|at| &acknowledged[at]) {
            let answer = daemon.get(path);
            assert_eq!(answer.status, 200, "round {round}: {path}");
            assert!(answer.body == *body, "round {round}: {path}");
        }
        let addr = daemon.addr();
        let killed = AtomicBool::new(false);
        let puts = 20 + random.next_u64() % 200;
        let new = std::thread::scope(|scope| {
            let killed = &killed;
            let writers: Vec<_> = (0..3_u64)
                .map(|writer| {
                    scope.spawn(move || {
                        let mut done = Vec::new();
                        for n in 0.. {
                            let id = round * 1_000_000 + writer * 100_000 + n;
                            let len = if n % 7 == 0 { 150_000 } else { 500 + (id % 900) as usize };
                            let body = noise(id, len);
                            let path = format!("/kv/{id}");
                            match send(addr, "PUT", &path, &body) {
                                Ok(answer) if answer.status == 201 => done.push((path, body)),
                                _ if killed.load(Ordering::Acquire) => break,
                                Ok(answer) => panic!("{}", answer.status),
                                Err(_) => break,
                            }
                        }
                        done
                    })
                })
                .collect();
            wait_for("puts", || {
                let stats = daemon.try_control(&serde_json::json!({"op": "stats"}))?;
                (stats["requests"]["kv"]["puts"].as_u64()? >= puts).then_some(())
            });
            killed.store(true, Ordering::Release);
            daemon.kill();
            writers.into_iter().flat_map(|w| w.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(!new.is_empty());
        new_in_last = new.len();
        acknowledged.extend(new);
    }
    let daemon = home.daemon(&[]);
    for (path, body) in &acknowledged {
        assert!(daemon.get(path).body == *body, "{path}");
    }
    let report = daemon.control(&serde_json::json!({"op": "verify"}));
    assert_eq!(report["bad_entries"], 0, "{report}");
}

/// What a killed start leaves is what the next one finds. Each is killed within the time that one takes.
#[test]
fn kills_while_it_starts_lose_nothing() {
    let mut random = chance(20_261_126);
    let home = Home::new();
    let mut acknowledged: Vec<(String, Vec<u8>)> = Vec::new();
    for round in 0..kills().div_ceil(10) {
        let clock = Clock::system();
        let daemon = home.daemon(&[]);
        let start_us = u64::try_from(clock.elapsed().as_micros()).unwrap();
        for n in 0..40 {
            let id = round * 1000 + n;
            let body = noise(id, if n % 10 == 0 { 150_000 } else { 3_000 });
            let path = format!("/kv/{id}");
            assert_eq!(daemon.put(&path, &body).status, 201);
            acknowledged.push((path, body));
        }
        daemon.kill();
        for _ in 0..10 {
            let mut child = home
                .larder(&["daemon", "--listen", "127.0.0.1:0", "--admin", "off"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let (clock, after) =
                (Clock::system(), Duration::from_micros(random.next_u64() % start_us));
            while clock.elapsed() < after {
                std::thread::yield_now();
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    let daemon = home.daemon(&[]);
    for (path, body) in &acknowledged {
        assert!(daemon.get(path).body == *body, "{path}");
    }
    let report = daemon.control(&serde_json::json!({"op": "verify"}));
    assert_eq!(report["bad_entries"], 0, "{report}");
}

#[test]
fn an_upload_interrupted_by_a_kill_is_owed_or_done() {
    let central = CacheServer::start();
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    central.set_fault_on("PUT", Fault::BlackHole);
    let mut paths = Vec::new();
    for n in 0..30_u8 {
        let body = noise(u64::from(n), 100_000);
        daemon.put(&cas(&body), &body);
        daemon.put(&ac(n), &[n; 40]);
        paths.push((cas(&body), body));
        paths.push((ac(n), vec![n; 40]));
    }
    wait_for("an upload", || (central.fault_count() > 0).then_some(()));
    daemon.kill();
    central.heal();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    daemon.flush();
    for (path, body) in paths {
        assert!(central.object(&path).as_deref() == Some(&body[..]), "{path}");
    }
}

/// What is acknowledged is upstream or owed, whatever upstream was doing when the daemon was killed. It is
/// counted while nothing can arrive any more, and by a daemon that is killed in its turn.
#[test]
fn kills_amid_uploads_leave_each_owed_or_done() {
    let mut random = chance(20_261_128);
    let (central, home) = (CacheServer::start(), Home::new());
    let upstream = ["--upstream", &central.url()];
    let moods = [
        None,
        Some(Fault::SlowFirstByte(Duration::from_millis(5))),
        Some(Fault::Status(503)),
        Some(Fault::BlackHole),
    ];
    let (mut acknowledged, mut outstanding) = (Vec::new(), Vec::new());
    let mut arrived_before_a_kill = 0;
    for round in 0..kills() {
        central.heal();
        if let Some(mood) = &moods[usize::try_from(random.next_u64() % 4).unwrap()] {
            central.set_fault_on("PUT", mood.clone());
        }
        let daemon = home.daemon(&upstream);
        let new = put_until_killed(daemon, round, Duration::from_millis(random.next_u64() % 150));
        central.set_fault(Fault::Refuse);
        acknowledged.extend_from_slice(&new);
        outstanding.extend(new);
        let before = outstanding.len();
        outstanding.retain(|id| central.object(&kv(*id).0).is_none());
        arrived_before_a_kill += before - outstanding.len();
        let daemon = home.daemon(&upstream);
        let stats = daemon.control(&serde_json::json!({"op": "stats"}));
        let (owed, missing) = (&stats["journal"]["owed_entries"], outstanding.len() as u64);
        assert!(owed.as_u64() >= Some(missing), "round {round}: {owed} are owed of {missing}");
        daemon.kill();
    }
    assert!(arrived_before_a_kill > 0, "no kill was amid uploads");
    central.heal();
    let daemon = home.daemon(&upstream);
    daemon.flush();
    for (path, body) in acknowledged.into_iter().map(kv) {
        assert!(central.object(&path).as_deref() == Some(&body[..]), "{path}");
        assert!(daemon.get(&path).body == body, "{path}");
    }
}

/// A name of its own and what is put there; some are too large for a segment.
fn kv(id: u64) -> (String, Vec<u8>) {
    (format!("/kv/{id}"), noise(id, if id.is_multiple_of(30) { 150_000 } else { 700 }))
}

/// Puts names of this round until the daemon is killed after `time`; what was acknowledged.
fn put_until_killed(daemon: TestDaemon, round: u64, time: Duration) -> Vec<u64> {
    let addr = daemon.addr();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let mut done = Vec::new();
            for id in (0..100).map(|n| round * 1000 + n) {
                let (path, body) = kv(id);
                // No answer: it was killed.
                let Ok(answer) = send(addr, "PUT", &path, &body) else { break };
                assert_eq!(answer.status, 201, "{path}");
                done.push(id);
            }
            done
        });
        wait_for("a put", || {
            let stats = daemon.try_control(&serde_json::json!({"op": "stats"}))?;
            (stats["requests"]["kv"]["puts"].as_u64()? > 0).then_some(())
        });
        let clock = Clock::system();
        wait_for("the time to kill", || (clock.elapsed() >= time).then_some(()));
        daemon.kill();
        writer.join().unwrap()
    })
}

#[test]
fn a_damaged_index_is_built_again() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    for n in 0..100_u8 {
        daemon.put(&ac(n), &[n; 3000]);
    }
    daemon.terminate();
    let index = home.store().join("index/data.mdb");
    let len = std::fs::metadata(&index).unwrap().len();
    std::fs::write(&index, vec![0x5a; usize::try_from(len).unwrap()]).unwrap();
    let daemon = home.daemon(&[]);
    for n in 0..100_u8 {
        assert_eq!(daemon.get(&ac(n)).body, [n; 3000]);
    }
}

/// A segment with a bad sector, which had to be replayed, once stopped every start.
#[test]
fn a_sector_that_cannot_be_read_costs_what_lies_there_and_no_start() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    let bodies: Vec<_> = (0..200).map(|n| noise(n, 1000)).collect();
    for (n, body) in bodies.iter().enumerate() {
        daemon.put(&format!("/kv/{n}"), body);
    }
    daemon.terminate();
    // All of the segment is to be read.
    std::fs::remove_dir_all(home.store().join("index")).unwrap();
    let disk = FailingDisk::new(home.path(), &home.store());
    disk.control().lose(100_000..100_001);
    let daemon = home.daemon_with(&[], |command| {
        command.envs(disk.environment());
    });
    assert!(disk.control().failed() > 0, "its library was not loaded");
    let mut lost = 0;
    for (n, body) in bodies.iter().enumerate() {
        let answer = daemon.get(&format!("/kv/{n}"));
        match answer.status {
            404 => lost += 1,
            status => assert!(status == 200 && answer.body == *body, "{n}: {status}"),
        }
    }
    assert!((1..8).contains(&lost), "{lost} entries were on one sector");
    assert!(home.log().contains("the disk cannot read a part of a segment"), "{}", home.log());
    let body = noise(1000, 1000);
    daemon.put("/kv/new", &body);
    assert!(daemon.get("/kv/new").body == body);
    daemon.terminate();
}

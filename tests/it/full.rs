//! A disk that fills up in the midst of a body: the file system says no, and not larder's own limit.

use crate::harness::{Home, cas, noise};
use crate::support::TinyDisk;
use crate::support::cache_server::CacheServer;
use crate::support::http::send;

/// Limits that never say no before the file system does.
const NO_LIMIT: [&str; 4] = ["--disk", "1GiB", "--disk-floor", "0"];

#[test]
fn a_disk_that_fills_in_the_midst_of_a_body_is_not_stored_and_not_an_error() {
    let home = Home::new();
    let Some(_disk) = TinyDisk::mount(&home.store(), "size=16m") else { return };
    let daemon = home.daemon(&NO_LIMIT);
    let (small, large) = (noise(1, 200_000), noise(2, 64 << 20));
    assert_eq!(daemon.put(&cas(&small), &small).status, 201);
    for path in [cas(&large), "/kv/large".to_owned()] {
        // The answer may come, and the connection end, before all of the body was sent.
        if let Ok(answer) = send(daemon.addr(), "PUT", &path, &large) {
            assert_eq!(answer.status, 507, "{path}");
        }
        assert_eq!(daemon.get(&path).status, 404, "{path}");
    }
    assert!(daemon.get(&cas(&small)).body == small, "what was there stays");
    let next = noise(3, 200_000);
    assert_eq!(daemon.put(&cas(&next), &next).status, 201, "what it had taken is free again");
    let stats = daemon.stats();
    assert!(
        stats["disk"]["faults"].as_u64().unwrap() + stats["disk"]["not_stored"].as_u64().unwrap()
            > 0,
        "{stats}"
    );
    let report = daemon.control(&serde_json::json!({"op": "verify"}));
    assert_eq!(report["bad_entries"], 0, "{report}");
}

#[test]
fn what_comes_from_upstream_onto_a_full_disk_passes_or_is_a_miss() {
    let home = Home::new();
    let Some(_disk) = TinyDisk::mount(&home.store(), "size=16m") else { return };
    let central = CacheServer::start();
    let (small, large) = (noise(4, 20_000), noise(5, 64 << 20));
    central.insert(&cas(&large), &large);
    central.insert(&cas(&small), &small);
    let mut args = vec!["--upstream"];
    let url = central.url();
    args.extend([&*url]);
    args.extend(NO_LIMIT);
    let daemon = home.daemon(&args);
    for _ in 0..3 {
        // A body that breaks off breaks off visibly, which is an error to its client; never a whole
        // one that is wrong.
        if let Ok(answer) = send(daemon.addr(), "GET", &cas(&large), b"") {
            assert!(answer.status == 404 || answer.body == large, "{}", answer.status);
        }
        assert!(daemon.get(&cas(&small)).body == small);
    }
}

#[test]
fn a_disk_that_is_full_to_the_last_byte_stops_nobody() {
    let home = Home::new();
    let Some(_disk) = TinyDisk::mount(&home.store(), "size=16m") else { return };
    let daemon = home.daemon(&NO_LIMIT);
    let body = noise(6, 5_000);
    assert_eq!(daemon.put("/kv/before", &body).status, 201);
    // Somebody else takes what is left.
    let filler = home.store().join("somebody-elses");
    let _ = std::fs::write(&filler, vec![7; 16 << 20]);
    let mut stored = Vec::new();
    for n in 0..40_u64 {
        match daemon.put(&format!("/kv/{n}"), &noise(n, 5_000)).status {
            201 => stored.push(n),
            status => assert_eq!(status, 507),
        }
    }
    assert!(daemon.get("/kv/before").body == body);
    for n in &stored {
        assert!(daemon.get(&format!("/kv/{n}")).body == noise(*n, 5_000), "{n}");
    }
    std::fs::remove_file(filler).unwrap();
    crate::support::wait_for("room to be found again", || {
        (daemon.put("/kv/after", &body).status < 300).then_some(())
    });
    assert!(daemon.get("/kv/after").body == body);
    assert_eq!(daemon.terminate(), Some(0));
    let daemon = home.daemon(&NO_LIMIT);
    assert!(daemon.get("/kv/before").body == body);
    let report = daemon.control(&serde_json::json!({"op": "verify"}));
    assert_eq!(report["bad_entries"], 0, "{report}");
}

/// Bytes were free, so nothing was given up, and nothing that is a file could be stored any more.
#[test]
fn a_disk_that_has_no_files_left_makes_room_too() {
    let home = Home::new();
    let Some(_disk) = TinyDisk::mount(&home.store(), "size=256m,nr_inodes=500") else { return };
    let daemon = home.daemon(&NO_LIMIT);
    let body = |n: u64| noise(n, 70_000);
    let clock = larder::units::Clock::system();
    let mut refused = 0;
    for n in 0..400 {
        if n == 100 {
            // What goes first must be older than the second in which that is decided.
            let until = clock.elapsed() + std::time::Duration::from_millis(1500);
            crate::support::wait_for("that", || (clock.elapsed() > until).then_some(()));
        }
        match daemon.put(&cas(&body(n)), &body(n)).status {
            201 => assert!(daemon.get(&cas(&body(n))).body == body(n), "{n}"),
            507 => refused += 1,
            status => panic!("{status}"),
        }
    }
    assert!(refused > 0, "400 files in a disk of 500 beside 270 of the store's own");
    crate::support::wait_for("room to be made", || {
        (daemon.put(&cas(&body(1000)), &body(1000)).status < 300).then_some(())
    });
    assert!(daemon.get(&cas(&body(1000))).body == body(1000));
    let report = daemon.control(&serde_json::json!({"op": "verify"}));
    assert_eq!(report["bad_entries"], 0, "{report}");
}

//! `verify`, `purge`, `flush` and `doctor` beside a daemon: what was named is what is meant.

use std::process::Output;

use crate::harness::Home;

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

//! Making room against handing out: promise 6, what a client was told is there stays there.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::entry::{Class, Digest, Key, Meta, RealmId};
use larder::store::Store;
use larder::store::evict::{Eviction, GRACE_S};
use larder::store::file::Finished;
use larder::units::ByteSize;
use shuttle::thread;

use crate::explore;
use crate::stage::{LONG, Stage, below, body, body_of, put, try_put};

const REALM: RealmId = RealmId([7; 16]);
const DAY: Duration = Duration::from_secs(24 * 3600);
const GRACE: Duration = Duration::from_secs(GRACE_S as u64 + 1);
/// Outputs of builds of long ago, more than there is room for.
const OUTPUTS: u8 = 4;
const OUTPUT: usize = 20_000;

fn action(n: u8) -> Key {
    Key::go(REALM, Digest([n; 32]))
}

/// Puts an output as a helper does: it is in place, and go is told, before the daemon is.
fn put_output(store: &Store, stage: &Stage, n: u8, tell_go: impl FnOnce()) {
    let mut output = Finished::of(body(n, OUTPUT).to_vec());
    let meta = Meta::new(output.digest, output.size, stage.clock.now(), Class::Archive);
    output.place(store.layout(), store.boot()).unwrap();
    tell_go();
    // A place for others: it is another process.
    thread::yield_now();
    store.record_go(&action(n), &meta, None).unwrap();
}

fn path_of(store: &Store, n: u8) -> std::path::PathBuf {
    store.layout().file(&Digest::of(&body(n, OUTPUT)))
}

/// A store with old outputs, of which some are condemned, and their grace is over.
fn old_store(stage: &Stage) -> (Store, Eviction) {
    let store = stage.open();
    (1..=OUTPUTS).for_each(|n| put_output(&store, stage, n, || {}));
    assert!(store.sync(LONG));
    stage.clock.advance(2 * DAY);
    let mut eviction = Eviction::new(below(1 << 40));
    assert!(store.evict_step(&mut eviction).condemned > 0);
    stage.clock.advance(GRACE);
    // A build begins.
    eviction.set_live_since(Some(stage.clock.now()), stage.clock.now());
    (store, eviction)
}

#[test]
fn a_path_that_is_handed_out_stays() {
    explore(|| {
        let stage = Arc::new(Stage::with_disk(ByteSize(30_000)));
        let (store, mut eviction) = old_store(&stage);
        let handed = Arc::new(Mutex::new(Vec::new()));
        let clients: Vec<_> = (1..=OUTPUTS)
            .map(|n| {
                let (store, stage, handed) = (store.clone(), stage.clone(), handed.clone());
                let puts = below(4) == 0;
                thread::spawn(move || {
                    let hand_out = || handed.lock().unwrap().push(n);
                    if puts {
                        put_output(&store, &stage, n, hand_out);
                    } else if store.find_go(&action(n)).is_some() {
                        hand_out();
                    } else {
                        return;
                    }
                    assert!(path_of(&store, n).exists(), "output {n} was handed out");
                })
            })
            .collect();
        let noter = {
            let store = store.clone();
            thread::spawn(move || store.flush_touches())
        };
        store.evict_step(&mut eviction);
        for client in clients {
            client.join().unwrap();
        }
        noter.join().unwrap();
        // It relies on them for hours.
        for _ in 0..3 {
            stage.clock.advance(GRACE);
            store.evict_step(&mut eviction);
        }
        for n in handed.lock().unwrap().iter() {
            assert!(path_of(&store, *n).exists(), "output {n} was handed out");
            assert!(store.find_go(&action(*n)).is_some(), "output {n} was handed out");
        }
        store.close();
        drop(store);
        // What the index says of the files is so.
        let store = stage.open();
        let files = (1..=OUTPUTS).filter(|n| path_of(&store, *n).exists()).count();
        let found = (1..=OUTPUTS).filter(|n| store.find_go(&action(*n)).is_some()).count();
        assert_eq!(found, files, "an output without its action, or the other way");
        store.close();
    });
}

/// Small entries, in segments: what was said to be there, or put, while a segment is given up.
#[test]
fn a_small_entry_that_was_said_to_be_there_stays() {
    explore(|| play_plain(60_000));
}

/// Large ones, in files, which go at once where no build goes on.
#[test]
fn a_large_entry_that_was_said_to_be_there_stays() {
    explore(|| play_plain(70_000));
}

fn play_plain(len: usize) {
    let stage = Arc::new(Stage::with_disk(ByteSize(5 * len as u64 + 10_000)));
    let store = stage.open();
    let content = move |n: u8| Key::content(Digest::of(&body(n, len)));
    (1..=5).for_each(|n| put(&store, &content(n), &body(n, len), None));
    assert!(store.sync(LONG));
    let mut eviction = Eviction::new(below(1 << 40));
    eviction.set_live_since(None, stage.clock.now());
    stage.clock.advance(2 * DAY);
    let told = Arc::new(Mutex::new(Vec::new()));
    let clients = [1, 2].map(|n| {
        let (store, told) = (store.clone(), told.clone());
        thread::spawn(move || {
            let is_there = match below(3) {
                0 => store.find(&content(n)).is_some_and(|row| store.holds(&content(n), &row)),
                1 => {
                    // Who has the bytes needs them here no more.
                    let got = body_of(&store, &content(n));
                    assert!(got.is_none_or(|got| got == body(n, len)));
                    false
                }
                // Half of the time its upload is owed anew, for which it is read again.
                _ => {
                    let owed = (below(2) == 0).then_some(REALM);
                    try_put(&store, &content(n), &body(n, len), owed)
                }
            };
            if is_there {
                told.lock().unwrap().push(n);
                assert!(store.get(&content(n)).is_some(), "content {n} is there");
            }
        })
    });
    let mut gone = 0;
    for _ in 0..3 {
        gone += store.evict_step(&mut eviction).entries;
    }
    for client in clients {
        client.join().unwrap();
    }
    gone += store.evict_step(&mut eviction).entries;
    assert!(gone > 0, "there was too much");
    for n in told.lock().unwrap().iter() {
        assert!(store.get(&content(*n)).is_some(), "content {n} is there");
    }
    store.close();
}

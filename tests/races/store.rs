//! The overlay against the commits: what was acknowledged is there at every instant, in memory or in
//! the index, and what is owed is owed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use larder::entry::{Key, RealmId};
use larder::store::Store;
use shuttle::thread;

use crate::explore;
use crate::stage::{LONG, Stage, below, body, body_of, put};

const REALM: RealmId = RealmId([7; 16]);
/// Changes that each writer makes.
const CHANGES: u8 = 4;

fn key(writer: u8) -> Key {
    Key::opaque(REALM, &format!("of writer {writer}")).unwrap()
}

/// What a writer was told last: a version, or that its entry is removed. Odd while it changes.
#[derive(Default)]
struct Told {
    epoch: Mutex<BTreeMap<u8, (u64, Option<u8>)>>,
}

impl Told {
    fn of(&self, writer: u8) -> (u64, Option<u8>) {
        self.epoch.lock().unwrap().get(&writer).copied().unwrap_or_default()
    }

    /// The change is under way: either may be seen.
    fn begin(&self, writer: u8) {
        self.epoch.lock().unwrap().entry(writer).or_default().0 += 1;
    }

    fn end(&self, writer: u8, version: Option<u8>) {
        let mut told = self.epoch.lock().unwrap();
        let told = told.entry(writer).or_default();
        *told = (told.0 + 1, version);
    }
}

#[test]
fn what_was_acknowledged_is_there_at_every_instant() {
    explore(|| {
        let stage = Stage::new();
        let store = stage.open();
        let told = Arc::new(Told::default());
        let is_over = Arc::new(AtomicBool::new(false));
        let writers = [1, 2].map(|writer| {
            let (store, told) = (store.clone(), told.clone());
            thread::spawn(move || write(&store, &told, writer))
        });
        let reader = {
            let (store, told, is_over) = (store.clone(), told.clone(), is_over.clone());
            thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    look(&store, &told, 1);
                    look(&store, &told, 2);
                    thread::yield_now();
                }
            })
        };
        let waiter = {
            let store = store.clone();
            thread::spawn(move || {
                put(&store, &key(3), b"by who waits", None);
                assert!(store.sync(LONG), "a commit");
                assert!(store.entries() > 0, "what is committed is in the index");
            })
        };
        for writer in writers {
            writer.join().unwrap();
        }
        waiter.join().unwrap();
        is_over.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        store.close();
        let count = [1, 2].iter().filter(|writer| told.of(**writer).1.is_some()).count();
        assert_eq!(store.entries(), count as u64 + 1, "the index has what was told, and no more");
        for writer in [1, 2] {
            assert_eq!(version_of(&store, writer), told.of(writer).1);
        }
    });
}

fn write(store: &Store, told: &Told, writer: u8) {
    for version in 1..=CHANGES {
        told.begin(writer);
        if below(4) == 0 {
            store.remove(&key(writer));
            told.end(writer, None);
        } else {
            put(store, &key(writer), &[writer, version], None);
            told.end(writer, Some(version));
        }
        let now = version_of(store, writer);
        assert_eq!(now, told.of(writer).1, "what writer {writer} was told last");
    }
}

fn version_of(store: &Store, writer: u8) -> Option<u8> {
    let body = body_of(store, &key(writer))?;
    assert_eq!(body[0], writer);
    Some(body[1])
}

/// Between two changes there is one truth.
fn look(store: &Store, told: &Told, writer: u8) {
    let before = told.of(writer);
    let seen = version_of(store, writer);
    if before == told.of(writer) && before.0.is_multiple_of(2) {
        assert_eq!(seen, before.1, "what writer {writer} was told last");
    }
}

/// What is owed is seen under one number, from when it is told until it is settled.
#[test]
fn what_is_owed_is_owed_at_every_instant_until_it_is_settled() {
    explore(|| {
        let stage = Stage::new();
        let store = stage.open();
        let writers = [1, 2].map(|writer| {
            let store = store.clone();
            thread::spawn(move || {
                for version in 0..2 {
                    put(&store, &key(writer), &[writer, version], Some(REALM));
                    // Nobody settles those of the second.
                    assert!(writer == 1 || store.owes(&key(writer), REALM), "it is owed");
                }
            })
        });
        let settler = {
            let store = store.clone();
            thread::spawn(move || {
                for _ in 0..3 {
                    let list = store.owed_from(0, 10);
                    let first = list.into_iter().find(|(_, owed)| owed.key == key(1));
                    let Some((number, _)) = first else { continue };
                    let is_settled = store.settle(number);
                    assert_eq!(store.owed_at(number), None, "settled or replaced: {is_settled}");
                    assert!(!store.settle(number), "settled once");
                }
            })
        };
        let watcher = {
            let store = store.clone();
            thread::spawn(move || {
                put(&store, &key(3), b"first", Some(REALM));
                let replacing = {
                    let store = store.clone();
                    thread::spawn(move || put(&store, &key(3), b"second", Some(REALM)))
                };
                for _ in 0..3 {
                    assert!(store.owed_entries() > 0, "it is counted");
                    let list = store.owed_from(0, 10);
                    let count = list.iter().filter(|(_, owed)| owed.key == key(3)).count();
                    // What was replaced while this looked may be seen as well.
                    assert!(count > 0, "it is listed: {list:?}");
                }
                replacing.join().unwrap();
                assert!(store.sync(LONG));
            })
        };
        for thread in writers.into_iter().chain([settler, watcher]) {
            thread.join().unwrap();
        }
        let list = store.owed_from(0, 10);
        assert_eq!(store.owed_entries(), list.len() as u64, "what is counted is what is listed");
        assert_eq!(store.owed_bytes(), list.iter().map(|(_, owed)| owed.size).sum::<u64>());
        for (number, owed) in &list {
            assert_eq!(store.owed_at(*number).as_ref(), Some(owed));
            assert!(store.owes(&owed.key, REALM));
        }
        store.close();
        drop(store);
        let store = stage.open();
        assert_eq!(store.owed_from(0, 10), list, "the next daemon owes the same");
        assert_eq!(store.owed_entries(), list.len() as u64);
        store.close();
    });
}

/// A commit that somebody waits for comes, or the store is closed; nobody waits for ever.
#[test]
fn whoever_waits_for_a_commit_is_told() {
    explore(|| {
        let stage = Stage::new();
        let store = stage.open();
        let waiters = [1, 2].map(|writer| {
            let store = store.clone();
            thread::spawn(move || {
                put(&store, &key(writer), &body(writer, 100), None);
                store.sync(LONG)
            })
        });
        let closer = {
            let store = store.clone();
            thread::spawn(move || {
                (0..below(20)).for_each(|_| thread::yield_now());
                store.close();
            })
        };
        let told = waiters.map(|waiter| waiter.join().unwrap());
        closer.join().unwrap();
        let told = told.iter().filter(|is_committed| **is_committed).count();
        assert!(store.entries() >= told as u64, "what was said to be committed");
        drop(store);
        let store = stage.open();
        for writer in [1, 2] {
            assert_eq!(body_of(&store, &key(writer)), Some(body(writer, 100)));
        }
        store.close();
    });
}

//! Uploads that are owed, against flushes and the daemon's end: what is owed is settled or still owed,
//! and whoever waits for the uploads is told the truth.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use larder::cache::Cache;
use larder::cache::realm::Realm;
use larder::entry::{Digest, Key};
use larder::store::Store;
use larder::worker::Workers;
use shuttle::future::{block_on, spawn, yield_now};

use crate::explore;
use crate::stage::{LONG, Stage, below, body, body_of, pass, put_in};

/// Each client puts content, then an opaque entry.
fn entries(realm: &Realm, client: u8) -> [(Key, Bytes); 2] {
    let (content, other) = (body(client, 200), body(client + 100, 50));
    let key = Key::opaque(realm.id, &format!("of client {client}")).unwrap();
    [(Key::content(Digest::of(&content)), content), (key, other)]
}

/// Time passes, a little each time that the scheduler comes by, until told to stop.
fn clock() -> (Arc<AtomicBool>, shuttle::future::JoinHandle<()>) {
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let ticking = spawn(async move {
        while !over.load(Ordering::Relaxed) {
            pass(Duration::from_millis(10));
            yield_now().await;
        }
    });
    (is_over, ticking)
}

#[test]
fn a_flush_that_says_that_nothing_is_left_has_sent_everything() {
    explore(|| block_on(flush()));
}

async fn flush() {
    let stage = Arc::new(Stage::new());
    let store = stage.open();
    let (cache, realm) = stage.cache(&store);
    let workers = Workers::start(&cache);
    let (is_over, ticking) = clock();
    let clients: Vec<_> = [1, 2]
        .map(|client| {
            let (cache, realm, workers) = (cache.clone(), realm.clone(), workers.clone());
            let stage = stage.clone();
            spawn(async move {
                for (key, body) in entries(&realm, client) {
                    put_in(&cache, &realm, &key, &body).await;
                }
                let left = workers.flush(LONG).await;
                // The other one may have put since.
                let why = format!("of client {client}, {left:?}");
                for (key, body) in entries(&realm, client) {
                    let sent = stage.central.peek(&realm.name_of(&key));
                    assert_eq!(sent, Some(body), "{why}");
                }
            })
        })
        .into();
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(workers.flush(LONG).await.left_entries, 0);
    assert_eq!(store.owed_from(0, 10), []);
    end(&cache).await;
    is_over.store(true, Ordering::Relaxed);
    ticking.await.unwrap();
}

/// As the daemon's end goes, from where the uploads have had their time.
async fn end(cache: &Cache) {
    cache.tasks().begin_shutdown();
    assert_eq!((cache.tasks().drain(LONG).await, cache.tasks().panics()), (0, 0));
    cache.store().close();
}

#[test]
fn what_is_owed_is_settled_or_owed_after_an_end_in_the_middle() {
    explore(|| block_on(end_in_the_middle()));
}

async fn end_in_the_middle() {
    let stage = Arc::new(Stage::new());
    let store = stage.open();
    let (cache, realm) = stage.cache(&store);
    let workers = Workers::start(&cache);
    let (is_over, ticking) = clock();
    let clients: Vec<_> = [1, 2]
        .map(|client| {
            let (cache, realm) = (cache.clone(), realm.clone());
            spawn(async move {
                for (key, body) in entries(&realm, client) {
                    put_in(&cache, &realm, &key, &body).await;
                }
            })
        })
        .into();
    for _ in 0..below(30) {
        yield_now().await;
    }
    // Long or short: time passes meanwhile.
    workers.drain(Duration::from_millis(below(200))).await;
    for client in clients {
        client.await.unwrap();
    }
    end(&cache).await;
    is_over.store(true, Ordering::Relaxed);
    ticking.await.unwrap();
    let dir = store.dir().to_owned();
    drop((store, cache, workers));
    let store = stage.open();
    assert_eq!(store.dir(), dir);
    check(&store, &stage, &realm);
    store.close();
}

/// What was acknowledged is here, and upstream or owed.
fn check(store: &Store, stage: &Stage, realm: &Realm) {
    for (key, body) in [1, 2].iter().flat_map(|client| entries(realm, *client)) {
        assert_eq!(body_of(store, &key), Some(body.clone()), "{key} here");
        let sent = stage.central.peek(&realm.name_of(&key));
        let is_owed = store.owes(&key, realm.id);
        assert!(is_owed || sent == Some(body), "{key} is neither owed nor upstream: {sent:?}");
    }
}

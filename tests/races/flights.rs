//! Flights: promise 5, one fetch per key, and nobody is left waiting for one that has ended.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;
use larder::cache::flight::{Arrival, End, Flights, Follower, Joined, Leader};
use larder::entry::body::Source;
use larder::entry::{Class, Digest, Key, Meta, RealmId};
use larder::units::Timestamp;
use shuttle::future::{block_on, spawn};
use shuttle::thread;

use crate::explore;
use crate::stage::{Stage, below, body, get_from};

const LENS: [usize; 3] = [10, 70_000, 150_000];
const REALM: RealmId = RealmId([7; 16]);

#[test]
fn however_many_ask_upstream_sees_one_request() {
    explore(|| block_on(ask_together()));
}

async fn ask_together() {
    let stage = Stage::new();
    let store = stage.open();
    let (cache, realm) = stage.cache(&store);
    // In a short play each order is likelier, in a long one there are more of them.
    let is_short = below(2) == 0;
    let body = body(1, if is_short { 10 } else { LENS[usize::try_from(below(3)).unwrap()] });
    let key = if below(2) == 0 {
        Key::content(Digest::of(&body))
    } else {
        Key::opaque(realm.id, "key").unwrap()
    };
    let name = realm.name_of(&key);
    stage.central.insert(name.clone(), body.clone());
    let ask = || {
        let (cache, realm, key) = (cache.clone(), realm.clone(), key.clone());
        spawn(async move { get_from(&cache, &realm, &key).await })
    };
    let mut askers = vec![ask(), ask()];
    if !is_short {
        askers.push(ask());
        // One that does not wait for its answer takes nothing with it. Told so amid something that it does
        // not wait for, it goes on there; after the end of this play, on a disk that is gone.
        ask().abort();
    }
    for asker in askers {
        let got = asker.await.unwrap();
        assert!(got.as_ref() == Ok(&body), "{:?}", got.map(|got| got.len()));
    }
    assert_eq!(get_from(&cache, &realm, &key).await, Ok(body));
    assert_eq!(stage.central.calls(&name).gets, 1, "requests for one key");
    assert_eq!((cache.tasks().drain(crate::stage::LONG).await, cache.tasks().panics()), (0, 0));
    assert!(cache.flights().is_empty());
    store.close();
}

/// What is not there is asked for once as well, and a flight that fails leaves no trace.
#[test]
fn however_many_miss_upstream_sees_one_request() {
    explore(|| block_on(miss_together()));
}

async fn miss_together() {
    let stage = Stage::new();
    let store = stage.open();
    let (cache, realm) = stage.cache(&store);
    let key = Key::opaque(realm.id, "key").unwrap();
    let ask = || {
        let (cache, realm, key) = (cache.clone(), realm.clone(), key.clone());
        spawn(async move {
            assert_eq!(get_from(&cache, &realm, &key).await, Err("absent".to_owned()));
        })
    };
    for asker in [ask(), ask()] {
        asker.await.unwrap();
    }
    assert_eq!(stage.central.calls(&realm.name_of(&key)).gets, 1, "requests for one key");
    assert_eq!((cache.tasks().drain(crate::stage::LONG).await, cache.tasks().panics()), (0, 0));
    assert!(cache.flights().is_empty());
    store.close();
}

#[test]
fn every_flight_ends_for_all_who_follow_and_there_is_one_at_a_time() {
    explore(|| {
        let sky = Arc::new(Sky {
            flights: Flights::default(),
            leaders: AtomicUsize::new(0),
            pieces: below(4),
            is_whole: below(2) == 0,
        });
        let clients: Vec<_> = (0..3)
            .map(|_| {
                let sky = sky.clone();
                thread::spawn(move || {
                    sky.client();
                    sky.client();
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        assert!(sky.flights.is_empty(), "a flight that has ended is still there");
    });
}

/// Flights of one key, one like the other.
struct Sky {
    flights: Flights,
    leaders: AtomicUsize,
    /// How many of three come.
    pieces: u64,
    /// They are what they should be.
    is_whole: bool,
}

impl Sky {
    fn client(&self) {
        let key = Key::content(Digest([1; 32]));
        let follower = match self.flights.join(REALM, &key) {
            Joined::Later(follower) => follower,
            Joined::First(leader, follower) => {
                assert_eq!(self.leaders.fetch_add(1, Ordering::Relaxed), 0, "two fetch at once");
                self.lead(leader);
                follower
            }
        };
        if let Some(other) = self.flights.under_way(REALM, &key) {
            assert_eq!(matches!(block_on(other.end()), End::Stored(_)), self.ends_well());
        }
        block_on(self.follow(follower));
    }

    fn ends_well(&self) -> bool {
        self.pieces == 3 && self.is_whole
    }

    fn lead(&self, leader: Leader) {
        let (whole, len) = (body(1, 300), 300);
        let file = Arc::new(tempfile::tempfile_in(std::env::temp_dir()).unwrap());
        if self.pieces > 0 {
            leader.begin(file.clone(), (below(2) == 0).then_some(len));
        }
        for piece in 0..self.pieces {
            // One behind, so that the last one is held back until it is looked at.
            leader.release(100 * piece);
            // A write takes its time.
            thread::yield_now();
            write(&file, &whole, 100 * piece, 100 * (piece + 1));
        }
        self.leaders.fetch_sub(1, Ordering::Relaxed);
        if self.ends_well() {
            leader.end(End::Stored(Meta::new(Digest::of(&whole), len, Timestamp(0), Class::Other)));
        }
    }

    /// A body that ends is whole; one that breaks off is a part of it.
    async fn follow(&self, follower: Follower) {
        let whole = body(1, 300);
        let source = match follower.arrival().await {
            Arrival::Streaming { source, .. } => source,
            Arrival::Ended(end) => {
                return assert_eq!(matches!(end, End::Stored(_)), self.ends_well());
            }
        };
        let mut pieces = source.stream(0..u64::MAX);
        let mut got = Vec::new();
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) => got.extend_from_slice(&piece),
                Err(error) => {
                    assert!(!self.ends_well(), "{error}");
                    return assert!(whole.starts_with(&got) && got.len() < 300);
                }
            }
        }
        assert!(self.ends_well(), "a body that ends");
        assert_eq!(got, whole, "a body that ends");
    }
}

fn write(file: &File, whole: &Bytes, from: u64, to: u64) {
    let range = usize::try_from(from).unwrap()..usize::try_from(to).unwrap();
    file.write_all_at(&whole[range], from).unwrap();
}

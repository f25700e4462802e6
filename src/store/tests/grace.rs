//! Files that are about to go: who may still use them, and for how long.

use super::*;
use crate::store::evict::{Eviction, GRACE_S};

/// A store of four large bodies, so many of which are condemned, and their grace is over.
fn with_condemned_files(bench: &Bench) -> (Store, Vec<Vec<u8>>, Eviction, u64) {
    let store = bench.open_with(ByteSize::mib(1));
    let bodies: Vec<Vec<u8>> = (0..4).map(|n| vec![n; 255_000]).collect();
    for body in &bodies {
        bench.put(&store, &content(body), body, None);
    }
    store.sync(Duration::from_secs(10));
    bench.clock.advance(Duration::from_secs(2 * 24 * 3600));
    let mut eviction = Eviction::new(1);
    let condemned = store.evict_step(&mut eviction).condemned;
    assert!(condemned > 0);
    bench.clock.advance(Duration::from_secs(u64::from(GRACE_S) + 1));
    (store, bodies, eviction, condemned)
}

/// A store that was filled within the grace of what was about to go refused nearly all that was put, for as
/// long as that went on.
#[test]
fn a_store_that_no_build_uses_gives_up_files_at_once() {
    let cases = [("nobody", 1), ("another boot", 1), ("a build", 0), ("not known", 0), ("go", 0)];
    for (name, expected) in cases {
        let bench = Bench::new();
        let store = bench.open_with(ByteSize::mib(1));
        let mut eviction = Eviction::new(1);
        if name != "not known" {
            eviction.set_live_since(None, bench.clock.now());
        }
        for n in 0..4 {
            let body = vec![n; 260_000];
            bench.put(&store, &content(&body), &body, None);
        }
        if name == "go" {
            // A helper that the daemon does not hear of finds it.
            let mut output = file::Finished::of(vec![9; 100]);
            output.place(store.layout(), store.boot()).unwrap();
            let meta = Meta::new(output.digest, output.size, bench.clock.now(), Class::Other);
            let action = Key::go(RealmId([7; 16]), Digest([1; 32]));
            store.record_go(&action, &meta, None).unwrap();
        }
        if name == "another boot" {
            for n in 0..4 {
                let key = content(&vec![n; 260_000]);
                let row = store.find(&key).unwrap();
                let stamp = Stamp { boot: row.stamp.boot + 1, ..row.stamp };
                store.inner.tail.begin().unwrap().put(key.encode(), Row { stamp, ..row });
            }
        }
        store.sync(Duration::from_secs(10));
        bench.clock.advance(Duration::from_secs(2 * 24 * 3600));
        if name == "a build" {
            eviction.set_live_since(Some(bench.clock.now()), bench.clock.now());
        }
        let done = store.evict_step(&mut eviction);
        assert_eq!((done.entries, done.condemned > 0), (expected, expected == 0), "{name}");
        let is_room = store.excess() == 0;
        assert_eq!(is_room, expected > 0, "{name}");
        assert_eq!(store.evict_step(&mut eviction).entries, 0, "{name}: one is enough");
        store.close();
    }
}

/// Between the look whether somebody uses a file, and its removal, clients were told that it is there.
#[test]
fn a_file_that_is_handed_out_as_it_is_to_go_stays() {
    let bench = Bench::new();
    let (store, bodies, mut eviction, _) = with_condemned_files(&bench);
    // A build has just ended: what is pardoned is not chosen again, and gone at once.
    eviction.set_live_since(Some(bench.clock.now()), bench.clock.now());
    eviction.set_live_since(None, bench.clock.now());
    // The evictor waits its turn, as it does behind a put.
    let change = store.inner.tail.begin().unwrap();
    let evicting = {
        let store = store.clone();
        thread("evict", move || store.evict_step(&mut eviction)).unwrap()
    };
    (0..10_000).for_each(|_| std::thread::yield_now());
    let holds = |body: &Vec<u8>| {
        let row = store.find(&content(body));
        row.is_some_and(|row| store.holds(&content(body), &row))
    };
    assert!(bodies.iter().all(holds), "all are still there");
    drop(change);
    assert_eq!(evicting.join().unwrap().entries, 0);
    assert!(bodies.iter().all(holds), "and stay");
    store.close();
}

/// A name was acknowledged, its upload owed, and its content, which was there, chosen to go: that it is used
/// was noted a minute ago, and what is owed had been looked through seconds ago.
#[test]
fn content_that_is_put_under_a_name_since_the_last_look_stays() {
    let bench = Bench::new();
    let store = bench.open_with(ByteSize::mib(4));
    let mut eviction = Eviction::new(1);
    let bodies: Vec<Vec<u8>> = (0..27).map(|n| vec![n; 148_000]).collect();
    for body in &bodies {
        bench.put(&store, &content(body), body, None);
    }
    let realm = Some(RealmId([7; 16]));
    bench.put(&store, &opaque("owed"), b"something", realm);
    store.sync(Duration::from_secs(10));
    bench.clock.advance(Duration::from_secs(60));
    assert_eq!(store.evict_step(&mut eviction).condemned, 2);
    bench.clock.advance(Duration::from_secs(1));
    for body in &bodies {
        let key = content(body);
        if store.find(&key).unwrap().condemned == 0 {
            bench.put(&store, &opaque(&format!("{}", body[0])), body, realm);
        }
    }
    store.wish(700_000);
    assert_eq!(store.evict_step(&mut eviction).condemned, 0, "all are owed");
    assert!(store.excess() > 2 * 148_000, "though more would have to go");
    store.close();
}

/// A helper's put is in place before the daemon hears of it.
#[test]
fn an_output_that_is_placed_anew_as_it_is_to_go_stays() {
    let bench = Bench::new();
    let (store, bodies, mut eviction, _) = with_condemned_files(&bench);
    for body in &bodies {
        let mut output = file::Finished::of(body.clone());
        output.place(store.layout(), store.boot()).unwrap();
    }
    assert_eq!(store.evict_step(&mut eviction).entries, 0);
    store.close();
}

/// The same where files go at once: not the one that lies there now was chosen.
#[test]
fn a_file_that_is_placed_anew_before_it_goes_at_once_stays() {
    let bench = Bench::new();
    let store = bench.open_with(ByteSize::mib(1));
    let mut eviction = Eviction::new(1);
    eviction.set_live_since(None, bench.clock.now());
    let bodies: Vec<Vec<u8>> = (0..4).map(|n| vec![n; 260_000]).collect();
    for body in &bodies {
        bench.put(&store, &content(body), body, None);
    }
    store.sync(Duration::from_secs(10));
    bench.clock.advance(Duration::from_secs(2 * 24 * 3600));
    for body in &bodies {
        let mut output = file::Finished::of(body.clone());
        output.place(store.layout(), store.boot()).unwrap();
    }
    let done = store.evict_step(&mut eviction);
    assert_eq!((done.entries, done.condemned), (0, 1));
    assert!(bodies.iter().all(|body| store.layout().file(&Digest::of(body)).exists()));
    bench.clock.advance(Duration::from_secs(u64::from(GRACE_S) + 1));
    assert_eq!(store.evict_step(&mut eviction).entries, 1, "nobody has told of it");
    store.close();
}

/// Go had moved it away while it was condemned: it counted as just used, and its bytes as there.
#[test]
fn a_condemned_file_that_is_gone_goes() {
    let bench = Bench::new();
    let (store, bodies, mut eviction, condemned) = with_condemned_files(&bench);
    for body in &bodies {
        std::fs::remove_file(store.layout().file(&Digest::of(body))).unwrap();
    }
    assert_eq!(store.evict_step(&mut eviction).entries, condemned);
    store.close();
}

//! Making room: who gives way, and who does not.

use super::*;
use crate::store::evict::{Eviction, GRACE_S};

/// A small body that says which one it is.
fn body(n: u32) -> Vec<u8> {
    [&n.to_le_bytes()[..], &[1; 30_000]].concat()
}

/// Puts small entries, one a second, and makes room as it is needed.
fn fill(bench: &Bench, store: &Store, eviction: &mut Eviction, names: std::ops::Range<u32>) {
    for n in names {
        bench.clock.advance(Duration::from_secs(1));
        bench.put(store, &opaque(&n.to_string()), &body(n), None);
        while store.excess() > 0 {
            store.evict_step(eviction);
            assert!(!eviction.is_stuck(), "at {n}");
        }
    }
}

#[test]
fn a_full_disk_tier_says_so_and_eviction_makes_room() {
    let bench = Bench::new();
    let store = bench.open_with(ByteSize::mib(4));
    let body = |n: u8| vec![n; 500_000];
    let mut stored = 0;
    for n in 0..9 {
        let mut staged = store.stage();
        staged.write(&body(n)).unwrap();
        let body = staged.finish();
        let meta = Meta::new(body.digest, body.size, bench.clock.now(), Class::Other);
        match store.put(&Key::content(body.digest), body, &meta, None) {
            Ok(_) => stored += 1,
            Err(error) => assert!(matches!(error, StoreError::Full), "{error}"),
        }
    }
    assert_eq!(stored, 8, "the ninth does not fit");
    store.sync(Duration::from_secs(10));
    let mut eviction = Eviction::new(1);
    eviction.set_live_since(Some(bench.clock.now()), bench.clock.now());
    assert_eq!(store.evict_step(&mut eviction).condemned, 0, "all of it is in use");
    assert!(eviction.is_stuck());
    bench.clock.advance(Duration::from_secs(2 * 24 * 3600));
    eviction.set_live_since(None, bench.clock.now());
    store.load(&content(&body(3)), &store.find(&content(&body(3))).unwrap());
    assert!(store.evict_step(&mut eviction).condemned > 0);
    store.sync(Duration::from_secs(10));
    bench.clock.advance(Duration::from_secs(u64::from(GRACE_S) + 1));
    let done = store.evict_step(&mut eviction);
    assert!(done.bytes > 0, "{done:?}");
    assert!(store.find(&content(&body(3))).is_some(), "what was just used stays");
    bench.put(&store, &content(b"new"), b"new", None);
    assert_eq!(body_of(&store, &content(b"new")), Some(b"new".to_vec()));
    store.close();
}

/// What upstream had taken was for ten seconds, and its segments for longer, as needed as before, while what was
/// put was refused.
#[test]
fn what_was_sent_goes_in_the_same_second() {
    for len in [60_000, 500_000] {
        let bench = Bench::new();
        let store = bench.open_with(ByteSize::mib(4));
        let count = (4 << 20) / (len + 1000);
        for n in 0..count {
            let body = vec![u8::try_from(n).unwrap(); len];
            bench.put(&store, &content(&body), &body, Some(RealmId([7; 16])));
        }
        store.sync(Duration::from_secs(10));
        let mut eviction = Eviction::new(1);
        eviction.set_live_since(None, bench.clock.now());
        bench.clock.advance(Duration::from_secs(60));
        let step = |eviction: &mut Eviction| {
            let mut done = store.evict_step(eviction);
            while eviction.is_looking() {
                done.entries += store.evict_step(eviction).entries;
            }
            done.entries
        };
        assert_eq!(step(&mut eviction), 0, "{len}: all is owed");
        assert!(eviction.is_stuck(), "{len}");
        for (number, _) in store.owed_from(0, count) {
            assert!(store.settle(number));
        }
        assert!(step(&mut eviction) > 0, "{len}: nothing is owed");
        store.close();
    }
}

#[test]
fn a_segment_given_up_keeps_what_is_hot() {
    let bench = Bench::new();
    let store = bench.open_with(ByteSize::mib(272));
    let body = |n: u32| [&n.to_le_bytes()[..], &[1; 60_000]].concat();
    let count = 2300 * 2; // nearly all that it holds
    for n in 0..count {
        bench.put(&store, &opaque(&n.to_string()), &body(n), None);
    }
    let mut eviction = Eviction::new(1);
    eviction.set_live_since(Some(bench.clock.now()), bench.clock.now());
    assert_eq!(store.evict_step(&mut eviction).bytes, 0, "everything is hot");
    store.sync(Duration::from_secs(30));
    bench.clock.advance(Duration::from_secs(24 * 3600));
    assert_eq!(body_of(&store, &opaque("5")), Some(body(5)));
    let mut eviction = Eviction::new(1);
    let mut freed = 0;
    while store.excess() > 0 {
        freed += store.evict_step(&mut eviction).bytes;
        assert!(!eviction.is_stuck());
    }
    assert!(freed > 15 << 20, "{freed}");
    store.sync(Duration::from_secs(30));
    assert!(body_of(&store, &opaque("5")) == Some(body(5)), "hot: copied forward");
    assert!(body_of(&store, &opaque("6")).is_none(), "cold: gone");
    let last = count - 1;
    assert!(body_of(&store, &opaque(&last.to_string())) == Some(body(last)));
    assert_eq!(bench.metrics.corrupt.get(), 0);
    store.close();
}

/// A store of 20 MiB once refused every new entry for hours, because all of it was new.
#[test]
fn a_store_filled_at_once_gives_up_what_was_used_longest_ago() {
    let bench = Bench::new();
    let store = bench.open_with(ByteSize::mib(8));
    fill(&bench, &store, &mut Eviction::new(1), 0..1000);
    assert!(store.used_bytes() <= 8 << 20);
    assert!(body_of(&store, &opaque("999")) == Some(body(999)), "the newest is there");
    assert!(body_of(&store, &opaque("0")).is_none(), "the oldest gave way");
    store.close();
}

/// What had been read once was taken for younger than what was never read.
#[test]
fn what_was_read_long_ago_gives_way_to_what_is_new() {
    let bench = Bench::new();
    let store = bench.open_with(ByteSize::mib(8));
    let mut eviction = Eviction::new(1);
    fill(&bench, &store, &mut eviction, 0..200);
    bench.clock.advance(Duration::from_secs(600));
    for n in 0..200 {
        assert!(body_of(&store, &opaque(&n.to_string())).is_some());
    }
    store.flush_touches();
    bench.clock.advance(Duration::from_secs(10 * 24 * 3600));
    fill(&bench, &store, &mut eviction, 200..400);
    for n in 250..400 {
        assert!(body_of(&store, &opaque(&n.to_string())).is_some(), "{n}");
    }
    store.close();
}

#[test]
fn what_is_owed_stays_though_all_else_gives_way() {
    for age in [0, 4 * 3600, 2 * 24 * 3600] {
        let bench = Bench::new();
        let store = bench.open_with(ByteSize::mib(8));
        let large = vec![7; 200_000];
        let realm = Some(RealmId([7; 16]));
        bench.put(&store, &content(&large), &large, realm);
        bench.put(&store, &opaque("owed"), &body(999), realm);
        bench.put(&store, &opaque("large"), &vec![8; 200_000], realm);
        bench.clock.advance(Duration::from_secs(age));
        fill(&bench, &store, &mut Eviction::new(1), 0..500);
        assert!(body_of(&store, &opaque("0")).is_none());
        assert!(body_of(&store, &opaque("owed")) == Some(body(999)), "copied forward");
        assert!(body_of(&store, &opaque("large")).is_some(), "after {age} s");
        assert!(body_of(&store, &content(&large)) == Some(large), "after {age} s");
        store.close();
    }
}

/// Whoever may not write upstream would have a full store for a week.
#[test]
fn what_has_been_owed_for_hours_gives_way_when_nothing_else_is_left() {
    let bench = Bench::new();
    let store = bench.open_with(ByteSize::mib(8));
    let mut eviction = Eviction::new(1);
    for n in 0..270 {
        bench.put(&store, &opaque(&n.to_string()), &body(n), Some(RealmId([7; 16])));
    }
    bench.clock.advance(Duration::from_secs(60));
    while store.evict_step(&mut eviction) != Default::default() || eviction.is_looking() {}
    assert!(eviction.is_stuck() && store.excess() > 0, "all is owed");
    bench.clock.advance(Duration::from_secs(4 * 3600));
    while store.excess() > 0 {
        store.evict_step(&mut eviction);
        assert!(!eviction.is_stuck());
    }
    store.close();
}

/// A mark of a process that had ended once kept a file for ever.
#[test]
fn what_was_condemned_before_a_restart_is_condemned_again() {
    let bench = Bench::new();
    let store = bench.open_with(ByteSize::mib(4));
    for n in 0..8 {
        let body = vec![n; 500_000];
        bench.put(&store, &content(&body), &body, None);
    }
    store.sync(Duration::from_secs(10));
    bench.clock.advance(Duration::from_secs(2 * 24 * 3600));
    let mut eviction = Eviction::new(1);
    while store.evict_step(&mut eviction).condemned > 0 {}
    assert!(eviction.waiting() > 0);
    store.close();
    drop(store);
    let store = bench.open_with(ByteSize::mib(1));
    let mut eviction = Eviction::new(2);
    while store.evict_step(&mut eviction).condemned > 0 {}
    store.sync(Duration::from_secs(10));
    bench.clock.advance(Duration::from_secs(u64::from(GRACE_S) + 1));
    store.evict_step(&mut eviction);
    assert!(store.used_bytes() < 1 << 20, "{}", store.used_bytes());
    store.close();
}

/// Who had looked an entry up, and read it when its segment was gone, was told that it is not there.
#[test]
fn an_entry_that_is_moved_before_it_is_read_is_read() {
    let bench = Bench::new();
    let store = bench.open_with(ByteSize::mib(2));
    let mut eviction = Eviction::new(1);
    bench.put(&store, &opaque("hot"), &body(1000), None);
    let before = store.find(&opaque("hot")).unwrap();
    for n in 0..150 {
        bench.clock.advance(Duration::from_secs(600));
        assert!(body_of(&store, &opaque("hot")).is_some());
        fill(&bench, &store, &mut eviction, n..n + 1);
    }
    assert_ne!(store.find(&opaque("hot")).unwrap().at, before.at, "it was moved");
    assert!(store.load(&opaque("hot"), &before).is_some());
    assert_eq!(bench.metrics.store_faults.get(), 0, "that is no fault");
    store.close();
}

/// Who had found it missing, or damaged, took out what a helper had put in its place by then.
#[test]
fn an_output_that_is_placed_anew_while_its_loss_is_judged_stays() {
    let bench = Bench::new();
    let store = bench.open();
    let body = vec![3; 200_000];
    bench.put(&store, &content(&body), &body, None);
    let (key, path) = (content(&body), store.layout().file(&Digest::of(&body)));
    let row = store.find(&key).unwrap();
    let damaged = store.stamp_of(&row);
    // Go moves it: what is put anew is another file for sure.
    std::fs::rename(&path, bench.dir.path().join("moved away")).unwrap();
    let mut output = file::Finished::of(body.clone());
    output.place(store.layout(), store.boot()).unwrap();
    for judged in [None, damaged] {
        assert!(!store.remove_judged(&key, &row, judged), "{judged:?}");
        assert!(path.exists());
    }
    assert_eq!(body_of(&store, &key), Some(body));
    std::fs::remove_file(&path).unwrap();
    assert!(store.remove_judged(&key, &row, None));
    store.close();
}

/// A lookup of a name that stands for a large body noted the use of the name alone.
#[test]
fn who_is_told_of_a_name_uses_its_content() {
    let bench = Bench::new();
    let store = bench.open();
    let body = vec![4; 200_000];
    bench.put(&store, &opaque("name"), &body, None);
    bench.clock.advance(Duration::from_secs(24 * 3600));
    let row = store.find(&opaque("name")).unwrap();
    assert!(store.holds(&opaque("name"), &row));
    store.flush_touches();
    let now = seconds(bench.clock.now());
    assert_eq!(store.find(&content(&body)).unwrap().touched, now);
    store.close();
}

/// One that could not be granted emptied the store, and kept it empty until the next start.
#[test]
fn a_wish_ends_after_a_while_and_one_that_cannot_come_true_is_none() {
    let bench = Bench::new();
    let store = bench.open_with(ByteSize::mib(4));
    for n in 0..30 {
        let body = vec![n; 100_000];
        bench.put(&store, &content(&body), &body, None);
    }
    assert_eq!(store.excess(), 0);
    store.wish(3 << 20);
    assert_eq!(store.excess(), 0, "more than half of all");
    store.wish(2 << 20);
    assert!(store.excess() > 0);
    bench.clock.advance(Duration::from_secs(61));
    assert_eq!(store.excess(), 0, "it goes on");
    store.wish(2 << 20);
    assert!(store.excess() > 0, "whoever had it comes again");
    store.close();
}

/// While files held more bytes than segments no segment was ever given up: what names outputs that are gone
/// stayed, and the index with it, until small entries took half of the disk.
#[test]
fn small_entries_that_are_older_than_all_files_give_way_first() {
    let bench = Bench::new();
    let store = bench.open_with(ByteSize::mib(8));
    let mut eviction = Eviction::new(1);
    fill(&bench, &store, &mut eviction, 0..100);
    bench.clock.advance(Duration::from_secs(30 * 24 * 3600));
    let large = |n: u8| vec![n; 400_000];
    for n in 0..40 {
        // As large files come and go, those that are old go, whatever they are.
        bench.clock.advance(Duration::from_secs(2 * 24 * 3600));
        bench.put(&store, &content(&large(n)), &large(n), None);
        store.sync(Duration::from_secs(10));
        while store.excess() > 0 {
            store.evict_step(&mut eviction);
            bench.clock.advance(Duration::from_secs(u64::from(GRACE_S) + 1));
            store.sync(Duration::from_secs(10));
        }
    }
    let there = (0..100).filter(|n| store.find(&opaque(&n.to_string())).is_some()).count();
    assert!(there < 20, "{there} of those that nobody has used for a month are there");
    let newest = (30..40).filter(|n| store.find(&content(&large(*n))).is_some()).count();
    assert_eq!(newest, 10);
    store.close();
}

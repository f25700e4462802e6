//! The store against its promises, in one process: what is put comes back, what is changed does not.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::*;
use crate::entry::{Class, Digest};
use crate::store::verify::Purge;

mod evict;
mod grace;

struct Bench {
    dir: tempfile::TempDir,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            clock: Clock::manual(Timestamp::from_seconds(1_800_000_000)),
            metrics: Arc::default(),
        }
    }

    fn open(&self) -> Store {
        self.open_with(ByteSize::gib(1))
    }

    fn open_with(&self, disk: ByteSize) -> Store {
        let config = Config {
            dir: self.dir.path().join("store"),
            disk: Some(Limit::Size(disk)),
            floor: Some(Limit::Size(ByteSize(0))),
        };
        Store::open(&config, self.clock.clone(), self.metrics.clone()).unwrap()
    }

    fn put(&self, store: &Store, key: &Key, body: &[u8], owed: Option<RealmId>) -> Put {
        let mut staged = store.stage();
        staged.write(body).unwrap();
        let body = staged.finish();
        let meta = Meta::new(body.digest, body.size, self.clock.now(), Class::Other);
        store.put(key, body, &meta, owed).unwrap()
    }
}

fn content(body: &[u8]) -> Key {
    Key::content(Digest::of(body))
}

fn opaque(name: &str) -> Key {
    Key::opaque(RealmId([7; 16]), name).unwrap()
}

fn body_of(store: &Store, key: &Key) -> Option<Vec<u8>> {
    match store.get(key)? {
        Stored::Bytes(_, bytes) => Some(bytes.to_vec()),
        Stored::File(meta, file) => {
            let mut out = vec![0; usize::try_from(meta.size).unwrap()];
            file.read_exact_at(&mut out, 0).unwrap();
            Some(out)
        }
    }
}

const LARGE: usize = 200_000;

#[test]
fn what_was_put_is_there_at_once_after_a_commit_and_after_a_restart() {
    let bench = Bench::new();
    let store = bench.open();
    let (small, large) = (b"small".to_vec(), vec![9; LARGE]);
    for (key, body) in [
        (content(&small), &small),
        (content(&large), &large),
        (opaque("a"), &small),
        (opaque("b"), &large),
    ] {
        assert_eq!(bench.put(&store, &key, body, None), Put::New);
        assert_eq!(body_of(&store, &key).as_ref(), Some(body), "{key} before the commit");
    }
    assert!(store.sync(Duration::from_secs(10)));
    assert_eq!(body_of(&store, &opaque("b")), Some(large.clone()), "after the commit");
    store.close();
    drop(store);
    let store = bench.open();
    assert_eq!(body_of(&store, &opaque("a")), Some(small), "after the restart");
    assert_eq!(body_of(&store, &content(&large)), Some(large));
    assert_eq!(bench.metrics.corrupt.get(), 0);
    store.close();
}

#[test]
fn the_index_is_built_again_from_the_segments() {
    let bench = Bench::new();
    let store = bench.open();
    bench.put(&store, &opaque("kept"), b"kept", Some(RealmId([7; 16])));
    bench.put(&store, &opaque("removed"), b"removed", None);
    store.remove(&opaque("removed"));
    store.register_realm(RealmId([7; 16]), "a realm").unwrap();
    store.close();
    let index = store.layout().index();
    drop(store);
    std::fs::remove_dir_all(index).unwrap();
    let store = bench.open();
    assert_eq!(body_of(&store, &opaque("kept")), Some(b"kept".to_vec()));
    assert_eq!(body_of(&store, &opaque("removed")), None, "what was removed stays away");
    assert_eq!(store.owed_entries(), 1);
    assert_eq!(store.realms(), [(RealmId([7; 16]), "a realm".to_owned())]);
    store.close();
}

/// Between the look whether something was put and the keeping of what was fetched lay a moment: a put that
/// fell into it was acknowledged, and replaced here and, as it was owed, upstream.
#[test]
fn what_was_put_since_a_look_is_not_replaced_by_what_was_fetched() {
    let bench = Bench::new();
    let store = bench.open();
    for (key, len) in [(opaque("small"), 3), (opaque("large"), LARGE)] {
        let body = |byte: u8| {
            let mut staged = store.stage();
            staged.write(&vec![byte; len]).unwrap();
            staged.finish()
        };
        let meta = |body: &file::Finished| {
            Meta::new(body.digest, body.size, bench.clock.now(), Class::Other)
        };
        let (old, older) = (body(1), body(2));
        let seen = store.seen(&key);
        bench.put(&store, &key, &vec![3; len], Some(RealmId([7; 16])));
        let what = meta(&old);
        let kept = store.put_fetched(&key, old, &what, seen);
        assert!(matches!(kept, Err(StoreError::Newer)), "{kept:?}");
        assert_eq!(body_of(&store, &key), Some(vec![3; len]));
        let what = meta(&older);
        store.put_fetched(&key, older, &what, store.seen(&key)).unwrap();
        assert_eq!(body_of(&store, &key), Some(vec![2; len]));
    }
    store.close();
}

/// A file that had rotted without a trace was missed by each look, and each put was told that it was there.
#[test]
fn a_file_that_was_read_as_other_bytes_goes_so_that_a_put_heals_it() {
    let bench = Bench::new();
    let store = bench.open();
    let body = vec![5; LARGE];
    let name = opaque("of large content");
    bench.put(&store, &name, &body, None);
    let row = store.find(&name).unwrap();
    let Some(Stored::File(_, rotten)) = store.get(&name) else { panic!("no file") };
    store.disown(&name, &row, &rotten);
    store.disown(&name, &row, &rotten);
    assert_eq!(body_of(&store, &name), None);
    assert_eq!(bench.metrics.corrupt.get(), 1);
    bench.put(&store, &content(&body), &body, None);
    // Who has read the old one comes late.
    store.disown(&name, &row, &rotten);
    assert_eq!(body_of(&store, &name), Some(body));
    store.close();
}

#[test]
fn changed_bytes_are_not_served_wherever_they_lie() {
    let bench = Bench::new();
    let store = bench.open();
    let large = vec![3; LARGE];
    bench.put(&store, &opaque("in a segment"), b"tiny body", None);
    bench.put(&store, &content(&large), &large, None);
    store.sync(Duration::from_secs(10));

    let row = store.find(&opaque("in a segment")).unwrap();
    let path = segment::path(&store.layout().segments(), row.at.segment);
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"X", u64::from(row.at.offset + row.len) - 12).unwrap();
    assert_eq!(body_of(&store, &opaque("in a segment")), None);

    let path = store.layout().file(&Digest::of(&large));
    std::fs::remove_file(&path).unwrap();
    let mut changed = large.clone();
    changed[5] ^= 1;
    std::fs::write(&path, &changed).unwrap();
    assert_eq!(body_of(&store, &content(&large)), None);
    assert!(!path.exists(), "the damaged file is out of the way");
    assert_eq!(bench.metrics.corrupt.get(), 2);

    bench.put(&store, &content(&large), &large, None);
    assert_eq!(body_of(&store, &content(&large)), Some(large), "a new put heals");
    store.close();
}

#[test]
fn a_touched_but_unchanged_file_is_hashed_again_and_served() {
    let bench = Bench::new();
    let store = bench.open();
    let large = vec![4; LARGE];
    bench.put(&store, &content(&large), &large, None);
    let path = store.layout().file(&Digest::of(&large));
    let before = store.find(&content(&large)).unwrap().stamp;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&path, mode).unwrap();
    assert_eq!(body_of(&store, &content(&large)), Some(large.clone()));
    assert_ne!(store.find(&content(&large)).unwrap().stamp, before, "and remembered as it is now");
    store.close();
}

#[test]
fn a_go_output_that_was_moved_away_is_a_miss_and_heals() {
    let bench = Bench::new();
    let store = bench.open();
    let body = vec![5; LARGE];
    let action = Key::go(RealmId([1; 16]), Digest::of(b"action"));
    let put = || {
        let mut staged = store.stage();
        staged.write(&body).unwrap();
        let mut finished = staged.finish();
        finished.place(store.layout(), store.boot()).unwrap();
        let meta = Meta::new(finished.digest, finished.size, bench.clock.now(), Class::Archive);
        store.record_go(&action, &meta, None).unwrap();
    };
    put();
    assert!(store.find_go(&action).is_some());
    std::fs::rename(store.layout().file(&Digest::of(&body)), bench.dir.path().join("x.a")).unwrap();
    assert!(store.find_go(&action).is_none());
    put();
    assert!(store.find_go(&action).is_some());
    store.close();
}

#[test]
fn owed_uploads_survive_in_order_and_replace_each_other() {
    let bench = Bench::new();
    let realm = RealmId([7; 16]);
    let store = bench.open();
    for name in ["a", "b", "c", "a"] {
        bench.put(&store, &opaque(name), name.as_bytes(), Some(realm));
    }
    let names = |store: &Store| -> Vec<String> {
        store.owed_from(0, 10).into_iter().map(|(_, owed)| owed.key.to_string()).collect()
    };
    assert_eq!(names(&store), ["kv/b", "kv/c", "kv/a"]);
    assert_eq!((store.owed_entries(), store.owed_bytes()), (3, 3));
    store.sync(Duration::from_secs(10));
    assert_eq!(names(&store), ["kv/b", "kv/c", "kv/a"], "after the commit too");
    let (first, _) = store.owed_from(0, 1)[0].clone();
    assert!(store.settle(first));
    assert!(!store.settle(first), "only once");
    assert_eq!(names(&store), ["kv/c", "kv/a"]);
    store.close();
    drop(store);
    let store = bench.open();
    assert_eq!(names(&store), ["kv/c", "kv/a"]);
    assert_eq!((store.owed_entries(), store.owed_bytes()), (2, 2));
    store.close();
}

#[test]
fn verify_names_each_bad_entry_and_purge_removes_what_matches() {
    let bench = Bench::new();
    let store = bench.open();
    let large = vec![8; LARGE];
    bench.put(&store, &content(&large), &large, None);
    bench.put(&store, &opaque("fine"), b"fine", None);
    assert_eq!(store.verify(false, |_| {}).bad, []);
    let path = store.layout().file(&Digest::of(&large));
    std::fs::remove_file(path).unwrap();
    let report = store.verify(true, |_| {});
    assert_eq!(report.entries, 2);
    assert_eq!(report.bad, [(content(&large), "its file is gone")]);
    assert_eq!(report.repaired, 1);
    assert_eq!(store.verify(false, |_| {}).entries, 1);

    bench.clock.advance(Duration::from_secs(100));
    bench.put(&store, &opaque("young"), b"young", None);
    let old = Purge { older_than: Some(Duration::from_secs(50)), ..Purge::default() };
    assert_eq!(store.purge(&old), 1);
    assert_eq!(body_of(&store, &opaque("fine")), None);
    assert_eq!(body_of(&store, &opaque("young")), Some(b"young".to_vec()));
    let realms = Some([RealmId([1; 16])].into());
    let other = Purge { realms, ..Purge::default() };
    assert_eq!(store.purge(&other), 0);
    store.close();
}

/// What is given up while a daemon verifies was named as damage: its row had been read before.
#[test]
fn verify_does_not_name_what_was_removed_meanwhile() {
    let bench = Bench::new();
    let store = bench.open();
    let bodies: Vec<_> = (0..3).map(|n| vec![n; LARGE]).collect();
    for body in &bodies {
        bench.put(&store, &content(body), body, None);
    }
    let report = store.verify(false, |_| {
        let removed = bodies.iter().filter(|body| store.remove(&content(body))).count();
        assert!(removed == 0 || store.sync(Duration::from_secs(30)));
    });
    assert_eq!(report.bad, []);
    store.close();
}

/// A helper goes on writing while one daemon ends and the next starts: its temporary file was
/// cleared away under its feet, and its output never became known.
#[test]
fn a_store_that_opens_leaves_bodies_that_somebody_is_writing() {
    let bench = Bench::new();
    let store = bench.open();
    let (young, old) = (store.layout().tmp().join("7-0"), store.layout().tmp().join("8-0"));
    for path in [&young, &old] {
        std::fs::write(path, "half a body").unwrap();
    }
    let an_hour_ago =
        std::fs::metadata(&old).unwrap().modified().unwrap() - Duration::from_secs(3600);
    File::options().write(true).open(&old).unwrap().set_modified(an_hour_ago).unwrap();
    store.close();
    drop(store);
    let _store = bench.open();
    assert!(young.exists() && !old.exists());
}

/// In the middle of a put nothing was owed for a moment, and a flush took that for the end.
#[test]
fn an_upload_that_is_replaced_is_owed_all_the_time() {
    let bench = Bench::new();
    let store = bench.open();
    let realm = Some(RealmId([7; 16]));
    bench.put(&store, &opaque("key"), b"0", realm);
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watching = {
        let (store, is_over) = (store.clone(), is_over.clone());
        let look = move || {
            while !is_over.load(Ordering::Relaxed) {
                assert!(store.owed_entries() > 0 && !store.owed_from(0, 1).is_empty());
            }
        };
        thread("look", look).unwrap()
    };
    for n in 0..2000_u32 {
        bench.put(&store, &opaque("key"), &n.to_le_bytes(), realm);
    }
    is_over.store(true, Ordering::Relaxed);
    watching.join().unwrap();
    store.close();
}

/// LMDB knows pages, and nothing of what stands in them: a bit of a row's size made an entry of exabytes, and
/// of the store one that is full for ever.
#[test]
fn a_bit_that_flips_in_a_row_costs_nothing_but_to_build_the_index_again() {
    let bench = Bench::new();
    let store = bench.open();
    let (large, small) = (vec![8; LARGE], b"small".to_vec());
    let puts = [(opaque("large"), &large), (opaque("small"), &small), (content(b"small"), &small)];
    for (key, body) in &puts {
        bench.put(&store, key, body, Some(RealmId([7; 16])));
    }
    let (used, path) = (store.used_bytes(), store.layout().index().join("data.mdb"));
    store.close();
    drop(store);
    let right = std::fs::read(&path).unwrap();
    for body in [&large, &small] {
        // Digest and size, as they stand in rows.
        let row = [&Digest::of(body).0[..], &(body.len() as u64).to_le_bytes()].concat();
        let mut wrong = right.clone();
        let found = (0..right.len() - row.len()).filter(|at| right[*at..].starts_with(&row));
        let found: Vec<usize> = found.collect();
        assert!(!found.is_empty());
        for at in found {
            wrong[at + row.len() - 1] ^= 1 << 3;
        }
        std::fs::write(&path, &wrong).unwrap();
        let store = bench.open();
        assert!(store.used_bytes() <= used, "{} of {used}", store.used_bytes());
        for (key, body) in &puts {
            assert_eq!(body_of(&store, key).as_ref(), Some(*body), "{key}");
        }
        assert_eq!(store.owed_entries(), 3);
        assert_eq!(store.verify(false, |_| {}).bad, []);
        store.close();
    }
}

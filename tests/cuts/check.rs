//! What a store after a power cut must hold, may hold, and must not.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder::entry::{Class, Digest, Key, Meta};
use larder::store::{Store, Stored};

use crate::workload::{Play, REALM, State, clock};

/// What the play had said of itself when the power went.
#[derive(Default)]
pub(crate) struct Seen {
    /// Acts that were acknowledged, and that a sync has covered.
    acted: usize,
    synced: usize,
    checked: Cell<u64>,
    lost: Cell<u64>,
}

impl Seen {
    pub(crate) fn hear(&mut self, mark: &str) {
        let (word, what) = mark.split_once(' ').unwrap();
        let count = || what.parse::<usize>().unwrap() + 1;
        match word {
            "acted" => self.acted = count(),
            "synced" => self.synced = count(),
            "gone" | "full" | "at-once" => {}
            other => panic!("mark {other}"),
        }
    }

    pub(crate) fn checked(&self) -> u64 {
        self.checked.get()
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost.get()
    }
}

/// Opens the store of a cut and looks at all of it; with `goes_on`, it must also work as a new one.
pub(crate) fn check(image: &Path, play: &Play, seen: &Seen, goes_on: bool, what: &str) {
    let open = || open(image, play, what);
    let mut store = open();
    // From what was synced last to the act that was under way.
    let last = (seen.acted + 1).min(play.states.len() - 1);
    let window = &play.states[seen.synced..=last];
    for name in &play.names {
        check_entry(&store, play, seen, window, name, what);
    }
    check_owed(&store, window, window, what);
    check_damage(&store, play, window, what);
    if goes_on {
        let key = Key::opaque(REALM, "after").unwrap();
        let mut staged = store.stage();
        staged.write(b"after the cut").unwrap();
        let staged = staged.finish();
        let meta = Meta::new(staged.digest, staged.size, clock().now(), Class::Other);
        if store.put(&key, staged, &meta, None).is_ok() {
            assert!(store.sync(Duration::from_secs(30)), "{what}: cannot commit");
            store.close();
            drop(store);
            store = open();
            assert_eq!(bytes(&store, &key).as_deref(), Some(&b"after the cut"[..]), "{what}");
        }
    }
    store.close();
}

fn open(image: &Path, play: &Play, what: &str) -> Store {
    let open = || Store::open(&(play.config)(image), clock(), Arc::default());
    for _ in 0..1000 {
        match open() {
            Ok(store) => return store,
            // A child that another test is just starting may hold the lock for a moment.
            Err(error) if error.to_string().contains("in use") => {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
    panic!("{what}: its lock is held")
}

/// The same of a store whose process was killed: what was acknowledged is there, and nothing is damaged.
pub(crate) fn check_killed(image: &Path, play: &Play, seen: &Seen, what: &str) {
    let store = open(image, play, what);
    let bad = store.verify(false, |_| {}).bad;
    assert!(bad.is_empty(), "{what}, killed: {bad:?}");
    let last = (seen.acted + 1).min(play.states.len() - 1);
    let window = &play.states[seen.acted..=last];
    for name in &play.names {
        let found = bytes(&store, name);
        let mut allowed = window.iter().map(|state| state.entries.get(name));
        let is_right = allowed.any(|at| at.map(|at| &play.bodies[at]) == found.as_ref());
        assert!(is_right, "{what}, killed: {name} is {:?}", found.map(|found| found.len()));
    }
    // That it was settled may have been known to the process alone: it is sent again.
    check_owed(&store, window, &play.states[seen.synced..=last], what);
    store.close();
}

fn check_entry(store: &Store, play: &Play, seen: &Seen, window: &[State], name: &Key, what: &str) {
    let allowed: BTreeSet<_> = window.iter().map(|state| state.entries.get(name)).collect();
    seen.checked.set(seen.checked.get() + 1);
    match bytes(store, name) {
        Some(found) => {
            let is_right = allowed.iter().flatten().any(|at| play.bodies[at] == found);
            assert!(is_right, "{what}: {name} is {} bytes of another time", found.len());
        }
        None => {
            // What was put over in the last second may be lost with what was put.
            assert!(
                allowed.contains(&None) || allowed.len() > 1,
                "{what}: {name} was synced and is lost"
            );
            if window.last().is_some_and(|state| state.entries.contains_key(name)) {
                seen.lost.set(seen.lost.get() + 1);
            }
        }
    }
}

/// What was not synced may be damaged, is found, and can be repaired; nothing else is damaged.
fn check_damage(store: &Store, play: &Play, window: &[State], what: &str) {
    let of = |state: &State| state.entries.values().copied().collect::<BTreeSet<usize>>();
    let certain = window.iter().map(of).reduce(|all, some| &all & &some).unwrap_or_default();
    let certain: BTreeSet<Key> =
        certain.iter().map(|at| Key::content(Digest::of(&play.bodies[at]))).collect();
    for (key, problem) in store.verify(true, |_| {}).bad {
        assert!(!certain.contains(&key), "{what}: {key} was synced, and {problem}");
    }
    let left = store.verify(false, |_| {}).bad;
    assert!(left.is_empty(), "{what}: {left:?}");
}

/// Owed is what was so in all of a window, and nothing that was not so in some state of another one.
fn check_owed(store: &Store, window: &[State], may: &[State], what: &str) {
    let owed: BTreeSet<Key> =
        store.owed_from(0, 100_000).into_iter().map(|(_, owed)| owed.key).collect();
    let of = |state: &State| state.owed.iter().cloned().collect::<BTreeSet<Key>>();
    let ever: BTreeSet<Key> = may.iter().flat_map(of).collect();
    for key in &ever {
        let always = window.iter().all(|state| state.owed.contains(key));
        assert!(!always || owed.contains(key), "{what}: the upload of {key} is forgotten");
    }
    for key in &owed {
        assert!(ever.contains(key), "{what}: the upload of {key} was settled and is owed again");
    }
}

/// Whether these bytes were ever put under the name.
pub(crate) fn is_of(play: &Play, name: &Key, found: &[u8]) -> bool {
    let mut states = play.states.iter();
    states.any(|state| state.entries.get(name).is_some_and(|at| play.bodies[at] == found))
}

pub(crate) fn bytes(store: &Store, key: &Key) -> Option<Vec<u8>> {
    read(store, key).map(Result::unwrap)
}

/// The same on a disk that may fail.
pub(crate) fn try_bytes(store: &Store, key: &Key) -> Option<Vec<u8>> {
    read(store, key)?.ok()
}

fn read(store: &Store, key: &Key) -> Option<io::Result<Vec<u8>>> {
    let read = |file: &File, len: u64| {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes)
    };
    Some(match store.get(key)? {
        Stored::Bytes(_, bytes) => Ok(bytes.to_vec()),
        Stored::File(meta, file) => read(&file, meta.size),
    })
}

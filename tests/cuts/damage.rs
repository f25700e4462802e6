//! Damage: what a disk may do to files that nobody writes. Whatever it is, a store opens, gives back
//! nothing that was never put under a name, and works again.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use larder::entry::{Class, Key, Meta};
use larder::store::Store;
use larder::units::Random;

use crate::check;
use crate::workload::{Plan, Play, REALM, clock};

/// Files of one kind: segments, bodies, or the index.
fn files(store: &Path, kind: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![store.join(kind)];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if !path.ends_with("lock.mdb") && path.metadata().unwrap().len() > 0 {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Damages something in the store, and says what.
pub(crate) fn damage(store: &Path, random: &mut Random) -> String {
    let mut below = |n: usize| usize::try_from(random.next_u64() % n as u64).unwrap();
    let kind = ["segments", "files", "index", "index"][below(4)];
    let all = files(store, kind);
    let path = &all[below(all.len())];
    let mut bytes = std::fs::read(path).unwrap();
    let name = path.strip_prefix(store).unwrap().display().to_string();
    let what = match below(5) {
        0 | 1 => {
            let count = 1 + below(4);
            for _ in 0..count {
                let at = below(bytes.len());
                bytes[at] ^= 1 << below(8);
            }
            format!("{count} bits of {name} flipped")
        }
        2 => {
            let len = below(bytes.len());
            bytes.truncate(len);
            format!("{name} cut after {len} bytes")
        }
        3 => {
            let page = 4096.min(bytes.len());
            let (from, to) = (below(bytes.len() - page + 1), below(bytes.len() - page + 1));
            let piece = bytes[from..from + page].to_vec();
            bytes[to..to + page].copy_from_slice(&piece);
            format!("{page} bytes of {name} at {to} taken from {from}")
        }
        _ => {
            let other = &all[below(all.len())];
            let theirs = std::fs::read(other).unwrap();
            let mode = std::fs::metadata(other).unwrap().permissions();
            std::fs::remove_file(other).unwrap();
            std::fs::write(other, &bytes).unwrap();
            std::fs::set_permissions(other, mode).unwrap();
            bytes = theirs;
            format!("{name} and {} swapped", other.strip_prefix(store).unwrap().display())
        }
    };
    // Bodies are not writable.
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
    what
}

/// What is asked of a damaged store, in a process of its own: an index may end one that reads it.
pub(crate) fn witness(image: &Path, play: &Play) {
    let open = || Store::open(&(play.config)(image), clock(), Arc::default()).unwrap();
    let store = open();
    for name in &play.names {
        if let Some(found) = check::bytes(&store, name) {
            let is_known = play.bodies.values().any(|body| *body == found);
            assert!(
                is_known && check::is_of(play, name, &found),
                "{name}: bytes of something else"
            );
        }
    }
    store.verify(true, |_| {});
    let left = store.verify(false, |_| {}).bad;
    assert!(left.is_empty(), "{left:?}");
    let key = Key::opaque(REALM, "after").unwrap();
    let mut staged = store.stage();
    staged.write(b"after the damage").unwrap();
    let staged = staged.finish();
    let meta = Meta::new(staged.digest, staged.size, clock().now(), Class::Other);
    store.put(&key, staged, &meta, None).unwrap();
    assert!(store.sync(Duration::from_secs(30)), "cannot commit");
    store.close();
    drop(store);
    let store = open();
    assert_eq!(check::bytes(&store, &key).as_deref(), Some(&b"after the damage"[..]));
    store.close();
}

/// Runs the witness; what it said if it fell. Starts it again where it was ended by a signal, as
/// whoever needs a daemon does.
pub(crate) fn ask_witness(image: &Path, plan: &Plan, marks: &Path) -> Result<u32, String> {
    for ends in 0..3 {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_witness", "--nocapture"])
            .env(crate::STAGE, image)
            .env("LARDER_CUTS_MARKS", marks)
            .env("LARDER_SEED", plan.seed.to_string())
            .output()
            .unwrap();
        if output.status.success() {
            return Ok(ends);
        }
        if output.status.signal().is_none() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
    }
    Err("it was ended by a signal three times".to_owned())
}

//! Builds by go as a daemon sees them: a session of a commit, lookups one after the other, outputs that
//! take their time where nobody has them. `world` says when, and what must be true in the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use larder::cache::Cache;
use larder::cache::realm::Realm;
use larder::cache::session::{Opening, Session};
use larder::entry::{Class, Digest, Lookup, Meta};
use tokio::time::{Instant, sleep};

/// Packages of the program; each commit changes one of them, and all that come after it use it.
const PACKAGES: u64 = 16;
const LENS: [usize; 5] = [0, 700, 9_000, 70_000, 250_000];
/// What a build may wait beyond what its hits have saved.
const GRACE: Duration = Duration::from_secs(1);

/// What go asks for, and what a compiler makes of it.
pub(crate) struct Package {
    pub(crate) action: Digest,
    output: Vec<u8>,
    cost: Duration,
}

/// The packages of a commit.
pub(crate) fn packages(commit: u64) -> Vec<Package> {
    let changed = |package: u64| (0..=commit).filter(|c| c % PACKAGES <= package).max();
    (0..PACKAGES)
        .map(|number| {
            let name = format!("package {number} of {:?}", changed(number));
            let len = LENS[usize::try_from(number).unwrap() % LENS.len()];
            Package {
                action: Digest::of(name.as_bytes()),
                output: name.bytes().cycle().take(len).collect(),
                cost: Duration::from_millis(40 + number * 30),
            }
        })
        .collect()
}

/// One build, to its end, on a machine that has `own` already. `place` says where in the run this is.
pub(crate) async fn build(
    cache: &Cache,
    realm: &Arc<Realm>,
    own: &mut BTreeSet<Digest>,
    (commit, branch): (u64, &str),
    place: &str,
) -> String {
    let opening = Opening {
        is_derived: false,
        id: place,
        realm: realm.id,
        scope: "app",
        commit: &format!("c{commit}"),
        branch,
        default_branch: "main",
        parents: &[format!("c{}", commit.saturating_sub(1))],
    };
    let session = cache.open_session(realm, &opening);
    session.helper_came();
    let (mut hits, mut saved, mut waited) = (0, Duration::ZERO, Duration::ZERO);
    for package in packages(commit) {
        let began = Instant::now();
        let lookup = cache.get_go(realm, Some(&session), &package.action, 0).await;
        let took = began.elapsed();
        waited += took;
        if own.contains(&package.action) {
            assert!(matches!(lookup, Lookup::Hit(..)), "{place}: what was built here is gone");
            assert_eq!(took, Duration::ZERO, "{place}: what is here was waited for");
        }
        if has(cache, &package, lookup, place) {
            (hits, saved) = (hits + 1, saved + package.cost);
        } else {
            sleep(package.cost).await;
            compile(cache, realm, &session, &package);
        }
        own.insert(package.action);
    }
    assert!(waited <= saved + GRACE, "{place}: a build waited {waited:?} and saved {saved:?}");
    session.helper_left(cache.clock().now());
    cache.sessions().tell();
    format!("builds c{commit} of {branch}: {hits} hits, waited {waited:?}")
}

/// Whether it is a hit; what hits is right.
pub(crate) fn has(cache: &Cache, package: &Package, lookup: Lookup, place: &str) -> bool {
    let Lookup::Hit(blob, _) = lookup else { return false };
    let file = cache.store().layout().file(&blob.meta.digest);
    let there = std::fs::read(file).unwrap();
    assert!(there == package.output, "{place}: a false output of {}", package.action);
    true
}

/// As a helper does whose go has built it.
fn compile(cache: &Cache, realm: &Realm, session: &Session, package: &Package) {
    let digest = Digest::of(&package.output);
    let file = cache.store().layout().file(&digest);
    if !file.exists() {
        std::fs::write(file, &package.output).unwrap();
    }
    let size = package.output.len() as u64;
    let mut meta = Meta::new(digest, size, cache.clock().now(), Class::Archive);
    meta.cost_ms = u32::try_from(package.cost.as_millis()).unwrap();
    cache.put_go(realm, &package.action, meta.clone(), true).unwrap();
    session.used(package.action);
    cache.learn_built(realm, session, &package.action, &meta);
}

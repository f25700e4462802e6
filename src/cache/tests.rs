//! What a request may do itself, and what it must leave to others.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;

use super::*;
use crate::backend::memory::MemoryBackend;
use crate::entry::Incoming;
use crate::store::{self, Limit};

fn cache(dir: &std::path::Path) -> Cache {
    cache_before(dir, Arc::new(MemoryBackend::new()))
}

fn cache_before(dir: &std::path::Path, backend: Arc<MemoryBackend>) -> Cache {
    let (metrics, clock) = (Arc::new(Metrics::default()), Clock::system());
    let store = store::Config {
        dir: dir.join("store"),
        disk: Some(Limit::Size(ByteSize(1 << 30))),
        floor: Some(Limit::Size(ByteSize(0))),
    };
    let store = Store::open(&store, clock.clone(), metrics.clone()).unwrap();
    let config = Config { memory: Some(ByteSize(1 << 20)), ..Config::default() };
    let upstream =
        Upstream { name: "main".into(), url: "http://main".into(), backend, writes: false };
    Cache::new(config, store, vec![upstream], Tasks::new(), metrics, clock)
}

/// After a boot, or once somebody has touched it, a file is hashed again before it is believed. A
/// request that did so itself kept all others waiting that its thread serves.
#[tokio::test]
async fn a_large_file_is_not_hashed_by_the_request_that_asks_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    let realm = cache.realms().resolve(realm::Wanted::default()).unwrap();
    let body = Bytes::from(vec![7; 8 << 20]);
    let key = Key::content(Digest::of(&body));
    let put = |body: Bytes| cache.put(Protocol::Cas, &realm, &key, Incoming::bytes(body), |_| {});
    put(body.clone()).await.unwrap();
    let touch = || {
        let path = cache.store().layout().file(&Digest::of(&body));
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    };
    touch();
    let mut asked = Box::pin(cache.contains(&realm, &key));
    let at_once = (&mut asked).now_or_never();
    assert_eq!(at_once, None, "it hashed before it let others go on");
    assert_eq!(asked.await, Ok(Some(8 << 20)));
    touch();
    assert_eq!(put(body.clone()).await.unwrap(), PutDone::Known);
}

#[tokio::test]
async fn a_value_is_read_in_parts_whatever_its_length() {
    const KIB: usize = 1 << 10;
    let dir = tempfile::tempdir().unwrap();
    let backend = Arc::new(MemoryBackend::new());
    let cache = cache_before(dir.path(), backend.clone());
    let upstream = cache.realms().upstreams()[0].clone();
    let name = Name { namespace: "".into(), space: crate::backend::Space::Ac, id: "x".into() };
    let read = async |limit| cache.read_in_parts(&upstream, &name, limit, 12).await;
    assert_eq!(read(1 << 20).await, Ok(None));
    // Around the ends of parts, of the first and of the second round.
    let round = 12 * 13 * KIB;
    let lens =
        [1, 13 * KIB - 1, 13 * KIB, 13 * KIB + 1, round, round + 1, 3 * round, 3 * round + 7];
    for len in lens {
        let value: Vec<u8> =
            b"of a length that divides none of them".iter().copied().cycle().take(len).collect();
        backend.insert(name.clone(), value.clone());
        let before = backend.calls(&name).gets;
        assert!(read(1 << 20).await == Ok(Some(value.clone())), "{len}");
        let gets = backend.calls(&name).gets - before;
        assert_eq!(gets <= 12, len < round, "{gets} questions for {len} bytes");
    }
    backend.forget_ranges();
    assert_eq!(read(1 << 20).await.unwrap().unwrap().len(), 3 * round + 7);
}

/// Whoever had looked here before a flight ended, and joined after, began another.
#[tokio::test]
async fn what_a_flight_has_just_brought_is_not_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Arc::new(MemoryBackend::new());
    let cache = cache_before(dir.path(), backend.clone());
    let realm = cache.realms().resolve(realm::Wanted::default()).unwrap();
    let key = Key::opaque(realm.id, "key").unwrap();
    backend.insert(realm.name_of(&key), "body");
    // Both have looked here, and found nothing.
    for _ in 0..2 {
        let lookup = cache.upstream(&realm, &key).await;
        assert!(matches!(lookup, Lookup::Hit(..)), "{lookup:?}");
    }
    assert_eq!(backend.calls(&realm.name_of(&key)).gets, 1);
}

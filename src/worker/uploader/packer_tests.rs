//! Packs against upstreams that do not take them.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::backend::memory::MemoryBackend;
use crate::backend::{Backend, BackendError, Fetched, FetchedPart, Name, Space, Upload};
use crate::entry::Digest;
use crate::entry::action::{Frame, GoEntry, upstream_key};
use crate::worker::uploader::bench::{Bench, name, noise, until, upstream};
use crate::worker::uploader::packer::LINGER;
use crate::worker::{Flushed, Workers};

const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn an_upstream_that_takes_no_large_bodies_is_sent_smaller_packs_then_none() {
    let outputs: Vec<Vec<u8>> = (0..40).map(|n| noise(100_000 + n)).collect();
    // The largest body that is taken, and whether frames are to be found in packs then.
    for (body_max, is_packed) in [(1_100_000_u64, true), (200_000, false)] {
        let bench = Bench::new();
        let backend = Narrow { inner: bench.backend.clone(), body_max };
        let cache = bench.cache_of(&bench.open(), vec![upstream("main", Arc::new(backend))]);
        bench.put_outputs(&cache, &outputs);
        let workers = Workers::start(&cache);
        assert_eq!(workers.flush(MINUTE).await, Flushed::default());
        for output in &outputs {
            let key = upstream_key("team", &Digest::of(&Digest::of(output).0)).to_string();
            let value = bench.backend.peek(&name(Space::Ac, &key)).unwrap();
            let entry = GoEntry::decode(&value).unwrap();
            assert_eq!(matches!(entry.frame, Frame::Packed(_)), is_packed, "{body_max}");
        }
        bench.close(&cache).await;
    }
}

/// Attempts that wait for their packs took all places before a pack of small frames was full, and each
/// time nothing went up for four seconds.
#[tokio::test(start_paused = true)]
async fn small_frames_that_take_all_places_do_not_wait_for_more() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let outputs: Vec<Vec<u8>> = (0..1000).map(|n| noise(20_000 + n)).collect();
    bench.put_outputs(&cache, &outputs);
    let began = tokio::time::Instant::now();
    let workers = Workers::start(&cache);
    until(|| cache.store().owed_entries() == 0).await;
    let took = began.elapsed();
    assert!(took < 2 * LINGER, "{took:?}: only the last pack may wait to be filled");
    drop(workers);
    bench.close(&cache).await;
}

/// Takes no body over a size.
struct Narrow {
    inner: Arc<MemoryBackend>,
    body_max: u64,
}

impl Backend for Narrow {
    fn get<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<Option<Fetched>, BackendError>> {
        self.inner.get(name)
    }
    fn get_part<'a>(
        &'a self,
        name: &'a Name,
        part: std::ops::Range<u64>,
    ) -> BoxFuture<'a, Result<Option<FetchedPart>, BackendError>> {
        self.inner.get_part(name, part)
    }
    fn put<'a>(&'a self, name: &'a Name, body: Upload) -> BoxFuture<'a, Result<(), BackendError>> {
        if body.len > self.body_max {
            return Box::pin(async { Err(BackendError::TooLarge) });
        }
        self.inner.put(name, body)
    }
    fn contains<'a>(&'a self, names: &'a [Name]) -> BoxFuture<'a, Result<Vec<bool>, BackendError>> {
        self.inner.contains(names)
    }
}

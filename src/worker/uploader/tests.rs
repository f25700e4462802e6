//! Uploads against the promises: everything owed arrives, in order, or is told to be left.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::bench::{Bench, name, noise, until, upstream};
use crate::backend::memory::{Call, Fault, MemoryBackend};
use crate::backend::{Backend, BackendError, Fetched, FetchedPart, Name, Space, Upload};
use crate::cache::Cache;
use crate::entry::action::{Frame, GoEntry, upstream_key};
use crate::entry::{Digest, Key};
use crate::telemetry::metrics::Dropped;
use crate::worker::uploader::journal::Journal;
use crate::worker::{Flushed, WorkerStatus, Workers};

mod single;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

fn dropped(cache: &Cache, why: Dropped) -> u64 {
    cache.metrics().dropped[why as usize].get()
}

fn uploader(workers: &Workers) -> WorkerStatus {
    workers.status().into_iter().find(|worker| worker.name == "uploader").unwrap()
}

fn why(flushed: &Flushed) -> &str {
    flushed.why.as_deref().unwrap_or_default()
}

fn is_down() -> BackendError {
    BackendError::Connect("refused".into())
}

#[tokio::test(start_paused = true)]
async fn content_arrives_before_the_action_that_names_it_even_when_it_fails_first() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let content = name(Space::Cas, &Digest::of(b"output").to_string());
    let (backend, needed) = (bench.backend.clone(), content.clone());
    let (failures, early) = (AtomicUsize::new(3), Arc::new(AtomicUsize::new(0)));
    let too_early = early.clone();
    bench.backend.fault_by(move |call, name| {
        if name.space == Space::Ac && backend.peek(&needed).is_none() {
            too_early.fetch_add(1, Ordering::Relaxed);
        }
        let fails = call == Call::Put
            && *name == needed
            && failures
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok();
        fails.then_some(Fault::Error(|| BackendError::Status(500)))
    });
    assert_eq!(bench.put_content(&cache, b"output").await, content);
    let action = bench.put_action(&cache, "a", b"names output").await;
    let other = bench.put_opaque(&cache, "o", b"o").await;
    let workers = Workers::start(&cache);
    until(|| bench.backend.peek(&other).is_some()).await;
    assert!(bench.backend.peek(&action).is_none(), "nothing else is held back");
    assert_eq!(workers.flush(10 * MINUTE).await, Flushed::default());
    assert_eq!(early.load(Ordering::Relaxed), 0);
    assert!(bench.backend.peek(&action).is_some());
    assert_eq!(bench.backend.calls(&content).puts, 4);
    assert_eq!(cache.metrics().upload_retries.get(), 3);
    assert_eq!(cache.metrics().uploaded_entries.get(), 3);
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn the_newest_bytes_of_an_entry_are_what_stays_upstream() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let workers = Workers::start(&cache);
    bench.backend.fault_next(Fault::Delay(MINUTE));
    let name = bench.put_opaque(&cache, "o", b"old").await;
    until(|| bench.backend.calls(&name).puts == 1).await;
    bench.put_opaque(&cache, "o", b"new").await;
    assert_eq!(workers.flush(10 * MINUTE).await, Flushed::default());
    assert_eq!(bench.backend.peek(&name).unwrap(), "new");
    assert_eq!(bench.backend.calls(&name).puts, 2);
    for (body, puts) in [("old", 3), ("old", 4), ("new", 5)] {
        bench.put_opaque(&cache, "o", body.as_bytes()).await;
        assert_eq!(workers.flush(MINUTE).await, Flushed::default());
        assert_eq!(bench.backend.peek(&name).unwrap(), body);
        assert_eq!(bench.backend.calls(&name).puts, puts, "after {body}");
    }
    // What upstream has confirmed counts no longer once other bytes are on their way.
    bench.backend.fault_next(Fault::Delay(MINUTE));
    bench.put_opaque(&cache, "o", b"other").await;
    until(|| bench.backend.calls(&name).puts == 6).await;
    bench.put_opaque(&cache, "o", b"new").await;
    assert_eq!(workers.flush(10 * MINUTE).await, Flushed::default());
    assert_eq!(bench.backend.peek(&name).unwrap(), "new");
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_everything_arrives_without_being_asked_for() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let workers = Workers::start(&cache);
    bench.backend.fault_always(Fault::Error(is_down));
    let mut names = Vec::new();
    for n in 0..40_u32 {
        names.push(bench.put_content(&cache, &n.to_le_bytes()).await);
        names.push(bench.put_action(&cache, &n.to_string(), b"a").await);
    }
    let flushed = workers.flush(MINUTE).await;
    assert_eq!((flushed.left_entries, flushed.left_bytes), (80, 200));
    assert!(why(&flushed).contains("upstream `main`: cannot connect: refused"), "{flushed:?}");
    let attempts = bench.backend.calls_total().puts;
    assert!(attempts < 80, "{attempts} attempts at an upstream that is down");
    bench.backend.heal();
    until(|| cache.store().owed_entries() == 0).await;
    assert!(names.iter().all(|name| bench.backend.peek(name).is_some()));
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn an_upstream_in_trouble_stops_no_other() {
    let bench = Bench::new();
    let second = Arc::new(MemoryBackend::new());
    let upstreams = vec![upstream("main", bench.backend.clone()), upstream("b", second.clone())];
    let cache = bench.cache_of(&bench.open(), upstreams);
    bench.backend.fault_always(Fault::Hang);
    let workers = Workers::start(&cache);
    for n in 0..20_u32 {
        bench.put_content(&cache, &n.to_le_bytes()).await;
    }
    let wanted =
        crate::cache::realm::Wanted { namespace: "team", trust: None, upstream: Some("b") };
    let realm = cache.realms().resolve(wanted).unwrap();
    let key = Key::opaque(realm.id, "o").unwrap();
    bench.put(&cache, &realm, &key, b"body").await;
    until(|| second.peek(&name(Space::Kv, "o")).is_some()).await;
    let flushed = workers.flush(MINUTE).await;
    assert_eq!((flushed.left_entries, why(&flushed)), (20, "the time was too short"));
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn what_upstream_will_never_take_is_dropped_and_counted() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let refused = bench.put_opaque(&cache, "large", b"large").await;
    let taken = bench.put_opaque(&cache, "small", b"small").await;
    let never = refused.clone();
    bench.backend.fault_by(move |_, name| {
        (*name == never).then_some(Fault::Error(|| BackendError::TooLarge))
    });
    let workers = Workers::start(&cache);
    assert_eq!(workers.flush(MINUTE).await, Flushed::default());
    assert_eq!(bench.backend.calls(&refused).puts, 1);
    assert!(bench.backend.peek(&taken).is_some());
    assert_eq!(dropped(&cache, Dropped::Refused), 1);
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_takes_no_writes_is_owed_still_and_a_flush_says_so_at_once() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    bench.backend.fault_always(Fault::Error(|| BackendError::ReadOnly));
    for n in 0..40_u32 {
        bench.put_content(&cache, &n.to_le_bytes()).await;
    }
    let workers = Workers::start(&cache);
    let asked = tokio::time::Instant::now();
    let flushed = workers.flush(MINUTE).await;
    assert!(asked.elapsed() < MINUTE);
    assert_eq!((flushed.left_entries, dropped(&cache, Dropped::Refused)), (40, 0));
    assert!(why(&flushed).contains("read-only"), "{flushed:?}");
    assert!(bench.backend.calls_total().puts <= 8);
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn uploads_outlive_the_process_and_wait_for_their_upstream() {
    let bench = Bench::new();
    let store = bench.open();
    let cache = bench.cache(&store);
    let small = bench.put_opaque(&cache, "small", b"small").await;
    let large = bench.put_content(&cache, &vec![3; 300_000]).await;
    bench.close(&cache).await;
    drop((cache, store));

    // Not configured any more, then read-only, then as before.
    let mut read_only = upstream("main", bench.backend.clone());
    read_only.writes = false;
    let cases = [
        (vec![], 2, "which is no upstream of this daemon"),
        (vec![read_only], 2, "upstream `main` is read-only (2 owed)"),
        (vec![upstream("main", bench.backend.clone())], 0, ""),
    ];
    for (upstreams, left, reason) in cases {
        let store = bench.open();
        let cache = bench.cache_of(&store, upstreams);
        let workers = Workers::start(&cache);
        let asked = tokio::time::Instant::now();
        let flushed = workers.flush(MINUTE).await;
        assert!(asked.elapsed() < MINUTE, "there is nothing to wait for");
        assert_eq!(flushed.left_entries, left);
        assert!(why(&flushed).contains(reason), "{flushed:?}");
        bench.close(&cache).await;
    }
    assert_eq!(bench.backend.peek(&small).unwrap(), "small");
    assert_eq!(bench.backend.peek(&large).unwrap(), vec![3; 300_000]);
}

#[tokio::test(start_paused = true)]
async fn go_entries_arrive_as_others_read_them() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let outputs = [
        vec![],
        b"small".to_vec(),
        vec![5; 1 << 20],
        noise(300_000),
        noise(20_000),
        noise(16_000),
        noise(2 << 20),
    ];
    bench.put_outputs(&cache, &outputs);
    let workers = Workers::start(&cache);
    assert_eq!(workers.flush(MINUTE).await, Flushed::default());
    for output in &outputs {
        let digest = Digest::of(output);
        let key = upstream_key("team", &Digest::of(&digest.0));
        let value = bench.backend.peek(&name(Space::Ac, &key.to_string())).unwrap();
        let entry = GoEntry::decode(&value).unwrap();
        assert_eq!((entry.digest, entry.size), (digest, output.len() as u64));
        let frame = match entry.frame {
            Frame::Empty => {
                assert!(output.is_empty());
                continue;
            }
            Frame::Inline(frame) => frame,
            Frame::Stored { digest, size } => {
                let frame = bench.backend.peek(&name(Space::Cas, &digest.to_string())).unwrap();
                assert_eq!((frame.len() as u64, Digest::of(&frame)), (size, digest));
                frame.to_vec()
            }
            Frame::Packed(packed) => {
                let name = name(Space::Cas, &packed.pack.to_string());
                let pack = bench.backend.peek(&name).unwrap();
                assert_eq!((pack.len() as u64, Digest::of(&pack)), (packed.pack_size, packed.pack));
                let at = usize::try_from(packed.at).unwrap();
                let frame = &pack[at..][..usize::try_from(packed.size).unwrap()];
                assert_eq!(Digest::of(frame), packed.digest);
                frame.to_vec()
            }
        };
        assert_eq!(&zstd::bulk::decompress(&frame, output.len()).unwrap(), output);
    }
    assert_eq!(bench.backend.names().len(), 9, "two frames share a pack, one stands alone");
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_wakes_it_while_nothing_is_owed() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let workers = Workers::start(&cache);
    bench.put_opaque(&cache, "o", b"body").await;
    assert_eq!(workers.flush(MINUTE).await, Flushed::default());
    // Lets what the flush has woken fall asleep again.
    tokio::time::sleep(MINUTE).await;
    let before = uploader(&workers);
    tokio::time::sleep(DAY).await;
    assert_eq!(uploader(&workers), before);
    assert_eq!(before.state, "idle");
    bench.close(&cache).await;
}

/// Panics in its first put.
struct Panicking {
    inner: Arc<MemoryBackend>,
    has_panicked: AtomicBool,
}

impl Backend for Panicking {
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
        assert!(self.has_panicked.swap(true, Ordering::Relaxed), "a panic on purpose");
        self.inner.put(name, body)
    }
    fn contains<'a>(&'a self, names: &'a [Name]) -> BoxFuture<'a, Result<Vec<bool>, BackendError>> {
        self.inner.contains(names)
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_counted_and_the_uploads_go_on() {
    let bench = Bench::new();
    let backend = Panicking { inner: bench.backend.clone(), has_panicked: AtomicBool::new(false) };
    let cache = bench.cache_of(&bench.open(), vec![upstream("main", Arc::new(backend))]);
    let workers = Workers::start(&cache);
    let names =
        [bench.put_opaque(&cache, "a", b"a").await, bench.put_opaque(&cache, "b", b"b").await];
    until(|| cache.store().owed_entries() == 0).await;
    assert!(names.iter().all(|name| bench.backend.peek(name).is_some()));
    assert_eq!((cache.metrics().panics.get(), uploader(&workers).panics), (1, 1));
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn upstream_is_asked_once_for_many_contents_and_sent_what_it_lacks() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let mut names = Vec::new();
    for n in 0..20_u8 {
        names.push(bench.put_content(&cache, &vec![n; 70_000]).await);
    }
    for name in &names[..15] {
        bench.backend.insert(name.clone(), "already there");
    }
    let workers = Workers::start(&cache);
    assert_eq!(workers.flush(MINUTE).await, Flushed::default());
    let calls = bench.backend.calls_total();
    assert_eq!((calls.contains, calls.puts), (20, 5));
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn before_the_machine_goes_the_smallest_are_sent_first_and_the_rest_is_kept() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let calls = seen.clone();
    bench.backend.fault_by(move |_, name| {
        calls.lock().unwrap().push(name.id.clone());
        Some(Fault::Hang)
    });
    for id in ["eeeee", "dddd", "ccc", "bb", "a"] {
        bench.put_opaque(&cache, id, id.as_bytes()).await;
    }
    let workers = Workers::start(&cache);
    let left = workers.drain(MINUTE).await;
    assert_eq!((left.left_entries, left.left_bytes), (5, 15));
    let mut sent_first = std::mem::take(&mut *seen.lock().unwrap());
    sent_first.sort();
    assert_eq!(sent_first, ["a", "bb", "ccc", "dddd"]);
    assert_eq!(uploader(&workers).state, "stopped");
    assert_eq!(workers.flush(MINUTE).await.left_entries, 5, "nobody waits for what has ended");
    bench.backend.heal();
    assert_eq!(Workers::start(&cache).drain(MINUTE).await, Flushed::default());
    assert_eq!(bench.backend.names().len(), 5);
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_or_a_week_old_is_given_up() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    bench.put_opaque(&cache, "old", b"old").await;
    bench.clock.advance(8 * DAY);
    bench.put_content(&cache, &vec![1; 300_000]).await;
    std::fs::remove_file(cache.store().layout().file(&Digest::of(&vec![1; 300_000]))).unwrap();
    let kept = bench.put_opaque(&cache, "kept", b"kept").await;
    let workers = Workers::start(&cache);
    assert_eq!(workers.flush(MINUTE).await, Flushed::default());
    assert_eq!(bench.backend.names(), [kept]);
    assert_eq!((dropped(&cache, Dropped::Expired), dropped(&cache, Dropped::Gone)), (1, 1));
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_is_too_long_gives_up_its_oldest_opaque_entries() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    bench.put_content(&cache, b"content").await;
    for n in 0..10 {
        bench.put_opaque(&cache, &n.to_string(), b"body").await;
    }
    let mut journal = Journal::with_limit(6);
    journal.refill(&cache, &mut [], super::Order::Oldest, tokio::time::Instant::now());
    assert_eq!((cache.store().owed_entries(), dropped(&cache, Dropped::Full)), (6, 5));
    let left = cache.store().owed_from(0, 100);
    let left: Vec<String> = left.iter().map(|(_, owed)| owed.key.to_string()).collect();
    let content = format!("cas/{}", Digest::of(b"content"));
    assert_eq!(left, [&content, "kv/5", "kv/6", "kv/7", "kv/8", "kv/9"]);
    bench.close(&cache).await;
}

//! A machine that starts cold finds what another has used, and fetches no more than it should.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::backend::memory::{Call, Fault, MemoryBackend};
use crate::backend::{Name, Space};
use crate::cache::forecast::Forecast;
use crate::cache::realm::Wanted;
use crate::manifest::Place;
use crate::worker::Flushed;
use crate::worker::prefetcher::{STREAMS_MAX, Width};
use crate::worker::uploader::bench::until;

mod aims;
mod damage;
mod hostile;
mod learns;
mod order;
pub(in crate::worker) mod support;
mod waits;

use support::{
    MINUTE, Machine, Output, content_gets, manifest_name, manifest_of, output, outputs, trail_name,
};

/// 40 MiB that do not compress, in five packs.
fn many() -> Vec<Output> {
    (0..320).map(|n| output(n, 128 << 10)).collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_session_used_is_there_before_another_machine_asks() {
    let backend = Arc::new(MemoryBackend::new());
    let mut built = outputs(0, 150);
    built.push(output(900, 0));
    // The same output under another action: fetched once.
    built.push(Output { action: output(901, 0).action, body: built[7].body.clone() });
    let a = Machine::new(&backend);
    let session = a.begin("c1");
    a.build(&a.realm(), &session, &built);
    a.end(&session);
    until(|| backend.peek(&trail_name("team")).is_some()).await;
    a.close().await;

    let manifest = manifest_of(&backend, "c1");
    let listed: Vec<_> = manifest.rows.iter().map(|row| row.action).collect();
    let used: Vec<_> = built.iter().map(|output| output.action).collect();
    assert!(listed == used, "rows are in the order of first use");
    assert!(manifest.rows.iter().all(|row| row.place != Place::Ask));
    assert!(manifest.rows.iter().all(|row| row.cost_ms == 200));

    let before = backend.calls_total().gets;
    let b = Machine::new(&backend);
    let session = b.begin("c1");
    let forecast = b.settled(&session).await;
    assert_eq!(forecast.lists(), built.len());
    assert_eq!(forecast.fetched.load(Ordering::Relaxed), 151, "all but the empty one");
    assert_eq!(b.hits(Some(&session), &built[..100]).await, 100);
    assert_eq!(forecast.used.load(Ordering::Relaxed), 100);
    assert_eq!(b.hits(Some(&session), &built).await, built.len());
    assert_eq!(forecast.used.load(Ordering::Relaxed), 151);
    let asked = backend.calls_total().gets - before;
    // A manifest is asked for in twelve parts.
    assert!(asked <= 18, "{asked} questions for {} entries", built.len());
    assert_eq!((session.hits_near.get(), session.misses.get()), (252, 0));
    b.close().await;
}

#[test]
fn the_first_requests_are_many_and_later_ones_as_many_as_the_link_carries() {
    const MIB: u64 = 1 << 20;
    let has_room = |requests, mib, (more, more_mib), bytes_per_ms| {
        let of = |requests, mib| Width { requests, bytes: mib * MIB, memory: mib * MIB };
        of(requests, mib).has_room_for(of(more, more_mib), bytes_per_ms)
    };
    assert!(has_room(15, 20, (1, 2), 0.0), "nothing is known yet");
    assert!(!has_room(16, 0, (1, 0), 0.0));
    // 10 Mbit/s bring half a megabyte in the time.
    assert!(!has_room(4, 1, (1, 1), 1250.0));
    assert!(
        has_room(3, 1, (1, 1), 1250.0),
        "one that waits for its answer leaves the link to others"
    );
    // 1 Gbit/s.
    assert!(has_room(15, 30, (1, 2), 125_000.0));
    // Frames stand in memory until they are whole.
    assert!(!has_room(5, 30, (1, 8), 0.0));
    assert!(has_room(0, 0, (1, 64), 0.0), "one may be as large as it is");
    // What is asked for one by one goes to the disk.
    let alone = Width { requests: 8, bytes: 200 * MIB, memory: 0 };
    assert!(Width { requests: 1, bytes: MIB, memory: MIB }.has_room_for(alone, 0.0));
    assert!(alone.has_room_for(Width { requests: 1, bytes: MIB, memory: MIB }, 0.0));
    // Eight that are asked for one by one are eight.
    assert!(has_room(8, 0, (8, 0), 0.0) && !has_room(16, 0, (8, 0), 0.0));
}

/// What is used last by the manifest may be needed first: it waited for all that stood before it.
#[tokio::test(start_paused = true)]
async fn what_a_build_waits_for_overtakes_what_nobody_asked_for() {
    let backend = Arc::new(MemoryBackend::new());
    let built = many();
    let a = Machine::new(&backend);
    a.build_commit("c1", &built).await;
    a.close().await;

    let slow = Fault::Trickle { piece: 8 << 10, every: Duration::from_millis(10) };
    backend.fault_by(move |call, name| {
        (call == Call::Get && name.space == Space::Cas).then(|| slow.clone())
    });
    let b = Machine::new(&backend);
    let session = b.begin("c1");
    let forecast = session.forecast.clone().unwrap();
    forecast.told().await;
    let last = built.last().unwrap();
    // It may be given up before it is there: what is waited for is told all the same.
    let _ = b.get(&b.realm(), Some(&session), last).await;
    until(|| b.cache.has_go(b.realm().id, &last.action)).await;
    let arrived = forecast.arrived_bytes.load(Ordering::Relaxed) >> 20;
    assert!(arrived <= 20, "{arrived} MiB of 40 had come before");
    backend.heal();
    let forecast = b.settled(&session).await;
    assert_eq!(forecast.fetched.load(Ordering::Relaxed), built.len() as u64);
    b.close().await;
}

/// Each part of a pack was cut out of the whole, which came again for the next part. Now what was
/// asked for at first may come twice, and no more.
#[tokio::test(start_paused = true)]
async fn an_upstream_without_ranges_is_asked_for_whole_packs() {
    let backend = Arc::new(MemoryBackend::new());
    let built = many();
    let a = Machine::new(&backend);
    a.build_commit("c1", &built).await;
    a.close().await;

    backend.forget_ranges();
    let before = content_gets(&backend);
    let b = Machine::new(&backend);
    let session = b.begin("c1");
    let forecast = b.settled(&session).await;
    assert_eq!(forecast.fetched.load(Ordering::Relaxed), built.len() as u64);
    let gets = content_gets(&backend) - before;
    assert!(gets <= STREAMS_MAX as u64 + 6, "{gets} requests for 5 packs");
    assert_eq!(b.hits(Some(&session), &built).await, built.len());
    b.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_smaller_than_the_manifest_ends_the_prefetch_and_nothing_else() {
    let backend = Arc::new(MemoryBackend::new());
    let built = many();
    let a = Machine::new(&backend);
    a.build_commit("c1", &built).await;
    a.close().await;

    let before = content_gets(&backend);
    let b = Machine::with_disk(&backend, 8 << 20);
    let own: Vec<Output> = (1000..1016).map(|n| output(n, 128 << 10)).collect();
    let session = b.begin_in(&b.realm(), "c1", &[]);
    b.build(&b.realm(), &session, &own);
    let forecast = b.settled(&session).await;
    let fetched = forecast.fetched.load(Ordering::Relaxed);
    let gets = content_gets(&backend) - before;
    assert!((30..64).contains(&fetched), "{fetched} fetched into 8 MiB");
    assert!(gets <= 20, "{gets} requests for 8 MiB");
    assert!(b.cache.store().used_bytes() <= 9 << 20);
    assert_eq!(b.hits(Some(&session), &own).await, own.len(), "what is in use is not evicted");
    let hits = b.hits(Some(&session), &built).await;
    assert!(hits as u64 >= fetched, "{hits} hits");
    b.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_prefetch_ends_with_the_last_helper() {
    let backend = Arc::new(MemoryBackend::new());
    let built = many();
    let a = Machine::new(&backend);
    a.build_commit("c1", &built).await;
    a.close().await;

    let before = content_gets(&backend);
    backend.fault_by(|call, name| {
        let is_pack = call == Call::Get && name.space == Space::Cas;
        is_pack.then_some(Fault::Delay(Duration::from_secs(1)))
    });
    let b = Machine::new(&backend);
    let session = b.begin_in(&b.realm(), "c1", &["c0"]);
    session.helper_came();
    until(|| content_gets(&backend) > before).await;
    b.end(&session);
    until(|| content_gets(&backend) - before > STREAMS_MAX as u64).await;
    b.end(&session);
    // Nobody has followed.
    b.bench.clock.advance(Duration::from_secs(11));
    let gets = content_gets(&backend) - before;
    let forecast = b.settled(&session).await;
    tokio::time::sleep(MINUTE).await;
    assert_eq!(content_gets(&backend) - before, gets, "fetched for nobody");
    assert!(forecast.fetched.load(Ordering::Relaxed) < built.len() as u64);
    assert!(b.cache.flights().is_empty());
    backend.heal();
    assert_eq!(b.hits(None, &built).await, built.len(), "what was left is asked for");
    b.close().await;
}

/// The second command of a session, and a build that followed another closely, found the prefetch
/// ended with the first and asked for all that was left one by one.
#[tokio::test(start_paused = true)]
async fn a_prefetch_goes_on_with_the_next_helper() {
    let backend = Arc::new(MemoryBackend::new());
    let built = many();
    let a = Machine::new(&backend);
    a.build_commit("c1", &built).await;
    a.close().await;

    backend.fault_by(|call, name| {
        let is_pack = call == Call::Get && name.space == Space::Cas;
        is_pack.then_some(Fault::Delay(Duration::from_secs(1)))
    });
    for is_same_session in [true, false] {
        let b = Machine::new(&backend);
        let before = content_gets(&backend);
        let realm = b.realm();
        let session = b.begin_as("s", &realm, "c1", &["c0"]);
        until(|| content_gets(&backend) > before).await;
        b.end(&session);
        let fetched = |forecast: &Forecast| forecast.fetched.load(Ordering::Relaxed);
        if is_same_session {
            // So long after that it has been cut short.
            b.bench.clock.advance(Duration::from_secs(11));
            assert!(fetched(&*b.settled(&session).await) < 100);
        }
        let id = if is_same_session { "s" } else { "t" };
        let next = b.begin_as(id, &realm, "c1", &["c0"]);
        let forecast = b.settled(&next).await;
        assert_eq!(fetched(&forecast), built.len() as u64, "same session: {is_same_session}");
        let asked = backend.calls_total().gets;
        assert_eq!(b.hits(Some(&next), &built).await, built.len());
        assert_eq!(backend.calls_total().gets, asked);
        assert_eq!(forecast.used.load(Ordering::Relaxed), built.len() as u64);
        b.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pull_requests_session_uses_mains_manifest_and_cannot_change_it() {
    let backend = Arc::new(MemoryBackend::new());
    let built = outputs(0, 30);
    let a = Machine::new(&backend);
    let main = a.bench.realm(&a.cache, "main");
    let session = a.begin_in(&main, "c1", &[]);
    a.build(&main, &session, &built);
    a.end(&session);
    assert_eq!(a.workers.flush(MINUTE).await, Flushed::default());
    a.close().await;
    let of_main = |backend: &MemoryBackend| -> Vec<(Name, bytes::Bytes)> {
        let names = backend.names().into_iter().filter(|name| &*name.namespace == "main");
        names.map(|name| (name.clone(), backend.peek(&name).unwrap())).collect()
    };
    let before = of_main(&backend);
    assert!(before.iter().any(|(name, _)| *name == manifest_name("main", "c1")));

    let p = Machine::new(&backend);
    let pr = p.realm_that_trusts("pr", "main");
    let session = p.begin_in(&pr, "c1", &[]);
    let forecast = p.settled(&session).await;
    assert_eq!(forecast.fetched.load(Ordering::Relaxed), 30, "main's manifest serves it");
    assert!(p.get(&pr, Some(&session), &built[0]).await);
    let mut evil = outputs(500, 30);
    for (evil, good) in evil.iter_mut().zip(&built) {
        evil.action = good.action;
    }
    p.build(&pr, &session, &evil);
    assert!(p.get(&pr, Some(&session), &evil[0]).await, "its own word counts for itself");
    p.end(&session);
    assert_eq!(p.workers.flush(MINUTE).await, Flushed::default());
    assert!(backend.peek(&manifest_name("pr", "c1")).is_some());
    assert!(of_main(&backend) == before, "main's names were written");
    let main = p.cache.realms().resolve(Wanted { namespace: "main", ..Wanted::default() }).unwrap();
    for good in &built {
        assert!(p.get(&main, None, good).await, "on the same machine");
    }
    p.close().await;

    for trust in [None, Some("pr2")] {
        let c = Machine::new(&backend);
        let wanted = Wanted { namespace: "main", trust, ..Wanted::default() };
        let main = c.cache.realms().resolve(wanted).unwrap();
        let session = c.begin_in(&main, "c1", &[]);
        c.settled(&session).await;
        for good in &built {
            assert!(c.get(&main, Some(&session), good).await);
        }
        c.close().await;
    }
}

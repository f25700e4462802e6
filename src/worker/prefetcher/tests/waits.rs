//! What a build waits for the network, whatever upstream does: promise 9.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::support::{Machine, Output, output, outputs, timed};
use crate::backend::memory::{Call, Fault, MemoryBackend};
use crate::backend::{BackendError, Space};
use crate::cache::session::Session;

/// One get after the other, as the slowest go asks: how many hit, and how long it took.
async fn ask_all(machine: &Machine, session: &Session, built: &[Output]) -> (usize, u64) {
    let clock = machine.bench.clock.clone();
    let before = clock.elapsed();
    let hits = timed(&clock, machine.hits(Some(session), built)).await;
    let took = clock.elapsed().checked_sub(before).unwrap();
    (hits, u64::try_from(took.as_millis()).unwrap())
}

fn assert_pays(what: &str, session: &Session, took: u64) {
    let (waited, saved) = (session.waited_ms.get(), session.saved_ms.get());
    assert!(waited <= 1000 + saved, "{what}: waited {waited} ms, saved {saved} ms");
    // Reading and unpacking take none of the paused clock's time; a tick is a millisecond.
    assert!(took <= waited + 100, "{what}: took {took} ms, of which {waited} ms are known");
}

#[tokio::test(start_paused = true)]
async fn it_pays_for_itself() {
    for delay in [1, 20, 100, 3_000] {
        let backend = Arc::new(MemoryBackend::new());
        backend.fault_always(Fault::Delay(Duration::from_millis(delay)));
        let machine = Machine::new(&backend);
        let session = machine.begin_in(&machine.realm(), "c1", &["c0"]);
        let built: Vec<Output> = (0..500).map(|n| output(n, 10)).collect();
        let (hits, took) = ask_all(&machine, &session, &built).await;
        assert_eq!(hits, 0);
        assert!(session.waited_ms.get() <= 1000, "{delay}: {} ms", session.waited_ms.get());
        assert_pays("an empty upstream", &session, took);
        backend.heal();
        machine.end(&session);
        machine.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_fails_in_the_middle_of_a_prefetch_delays_nobody_for_long() {
    let origin = Arc::new(MemoryBackend::new());
    let built: Vec<Output> = (0..160).map(|n| output(n, 128 << 10)).collect();
    let a = Machine::new(&origin);
    a.build_commit("c1", &built).await;
    a.close().await;
    let every = Duration::from_millis(100);
    let faults = [
        Fault::Error(|| BackendError::Connect("refused".into())),
        Fault::Hang,
        Fault::HangAfter(100_000),
        Fault::Truncate(150_000),
        Fault::Corrupt,
        Fault::Trickle { piece: 1000, every },
    ];
    for fault in faults {
        for after in [0, 2, 4] {
            let backend = super::support::copy_of(&origin);
            let (gets, what) = (AtomicU64::new(0), format!("{fault:?} after {after}"));
            let fault = fault.clone();
            backend.fault_by(move |call, name| {
                let is_pack = call == Call::Get && name.space == Space::Cas;
                let is_late = gets.fetch_add(u64::from(is_pack), Ordering::Relaxed) >= after;
                let is_dead = gets.load(Ordering::Relaxed) > after;
                (is_pack && is_late || is_dead).then(|| fault.clone())
            });
            let b = Machine::new(&backend);
            let session = b.begin_in(&b.realm(), "c1", &["c0"]);
            let (_, took) = ask_all(&b, &session, &built).await;
            assert_pays(&what, &session, took);
            backend.heal();
            b.end(&session);
            b.cache.tasks().begin_shutdown();
            b.cache.store().close();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_never_comes_is_waited_for_within_the_clock() {
    for fault in [Fault::Hang, Fault::Delay(Duration::from_secs(5))] {
        let backend = Arc::new(MemoryBackend::new());
        let built = outputs(0, 50);
        backend.fault_always(fault.clone());
        let machine = Machine::new(&backend);
        let session = machine.begin("c1");
        let (hits, took) = ask_all(&machine, &session, &built).await;
        assert_eq!(hits, 0);
        assert_pays(&format!("{fault:?}"), &session, took);
        backend.heal();
        machine.cache.tasks().begin_shutdown();
        machine.cache.store().close();
    }
}

//! What is written down of sessions: nothing partial hides what is fuller, and only who may write
//! does.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::BackendError;
use crate::backend::memory::{Call, Fault, MemoryBackend};
use crate::entry::Digest;
use crate::worker::Flushed;
use crate::worker::prefetcher::tests::support::{
    MINUTE, Machine, Output, SCOPE, contents, manifest_name, manifest_of, output, outputs,
    scope_trail_name, trail_name, trail_of,
};
use crate::worker::uploader::bench::{Bench, until, upstream};

mod growth;

fn actions_of(backend: &MemoryBackend, commit: &str) -> Vec<Digest> {
    manifest_of(backend, commit).rows.iter().map(|row| row.action).collect()
}

#[tokio::test(start_paused = true)]
async fn a_second_session_of_a_commit_adds_to_its_manifest_and_takes_nothing() {
    let backend = Arc::new(MemoryBackend::new());
    let built = outputs(0, 50);
    let a = Machine::new(&backend);
    a.build_commit("c1", &built).await;
    let row = trail_of(&backend).rows[0].clone();
    // There is nothing to tell by whether that was all of it.
    assert!(!row.complete && row.rows == 50, "{row:?}");
    // On the same machine, which has forgotten nothing, and on a cold one.
    let same = a.begin("c1");
    assert_eq!(a.hits(Some(&same), &built[10..13]).await, 3);
    a.end(&same);
    assert_eq!(a.workers.flush(MINUTE).await, Flushed::default());
    assert_eq!(actions_of(&backend, "c1").len(), 50);
    let b = Machine::new(&backend);
    let session = b.begin("c1");
    b.settled(&session).await;
    assert_eq!(b.hits(Some(&session), &built[20..23]).await, 3);
    b.build(&b.realm(), &session, &outputs(100, 2));
    b.end(&session);
    assert_eq!(b.workers.flush(MINUTE).await, Flushed::default());
    let actions = actions_of(&backend, "c1");
    assert_eq!(actions.len(), 52);
    assert!(built.iter().all(|output| actions.contains(&output.action)));
    let trail = trail_of(&backend);
    assert_eq!(trail.rows.len(), 1);
    assert!(trail.rows[0].complete && trail.rows[0].rows == 52);
    a.close().await;
    b.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_partial_manifest_does_not_hide_the_best_of_the_trail() {
    let backend = Arc::new(MemoryBackend::new());
    let a = Machine::new(&backend);
    a.build_commit("c1", &outputs(0, 50)).await;
    a.bench.clock.advance(MINUTE);
    a.build_commit("c2", &outputs(100, 3)).await;
    assert_eq!(actions_of(&backend, "c2").len(), 3);
    let trail = trail_of(&backend);
    assert_eq!(trail.rows.len(), 2);
    assert_eq!(
        trail.best(a.cache.clock().now()).unwrap().commit,
        "c1",
        "three entries are not all of a build"
    );
    for (commit, listed) in [("c1", 50), ("c2", 53), ("c3", 53)] {
        let b = Machine::new(&backend);
        let session = b.begin(commit);
        let forecast = b.settled(&session).await;
        assert_eq!(forecast.lists(), listed, "{commit}");
        b.close().await;
    }
    a.close().await;
}

/// Rows of one time stood in the order of their commits: after one machine whose clock is ahead, which
/// build is the newest was up to chance.
#[tokio::test(start_paused = true)]
async fn the_latest_session_stands_first_after_one_of_a_clock_that_is_ahead() {
    let backend = Arc::new(MemoryBackend::new());
    let a = Machine::new(&backend);
    a.bench.clock.advance(Duration::from_secs(10 * 365 * 24 * 3600));
    a.build_commit("c2", &outputs(0, 20)).await;
    a.close().await;
    let b = Machine::new(&backend);
    for commit in ["c3", "c1", "c4", "c0"] {
        b.build_commit(commit, &outputs(0, 20)).await;
    }
    b.close().await;
    let trail = trail_of(&backend);
    let commits: Vec<_> = trail.rows.iter().map(|row| row.commit.as_str()).collect();
    assert_eq!(commits, ["c0", "c4", "c1", "c3", "c2"]);
}

/// Under the key of a branch without a name, an older larder would take it for that branch's.
#[tokio::test(start_paused = true)]
async fn the_trail_of_the_scope_has_a_key_of_its_own_and_its_faults_hold_nothing_up() {
    let backend = Arc::new(MemoryBackend::new());
    let name = scope_trail_name("team");
    assert_ne!(name.id, crate::manifest::trail_key(SCOPE, "").to_string());
    let a = Machine::new(&backend);
    a.build_commit("c1", &outputs(0, 20)).await;
    assert!(backend.peek(&name).is_some());
    for (number, call) in [Call::Get, Call::Put].into_iter().enumerate() {
        let at = name.clone();
        backend.fault_by(move |called, name| {
            let fault = Fault::Error(|| BackendError::Denied(403));
            (called == call && *name == at).then_some(fault)
        });
        let commit = format!("c{}", number + 2);
        a.build_commit(&commit, &outputs(100, 20)).await;
        assert_eq!(actions_of(&backend, &commit).len(), 20, "{call:?}");
        assert_eq!(trail_of(&backend).rows[0].commit, commit, "{call:?}");
    }
    a.close().await;
}

/// Both read before either writes. What the second wrote over, the first finds missing and adds.
#[tokio::test(start_paused = true)]
async fn two_writers_at_once_lose_nothing() {
    for (of_a, of_b) in [("ca", "cb"), ("c1", "c1")] {
        let backend = Arc::new(MemoryBackend::new());
        let first = Machine::new(&backend);
        first.build_commit("c0", &outputs(0, 20)).await;
        first.close().await;
        backend.fault_by(move |call, name| {
            let is_slow = [trail_name("team"), manifest_name("team", "c1")].contains(name);
            (call == Call::Get && is_slow).then_some(Fault::Delay(Duration::from_secs(5)))
        });
        let (a, b) = (Machine::new(&backend), Machine::new(&backend));
        let (session_a, session_b) = (a.begin(of_a), b.begin(of_b));
        a.build(&a.realm(), &session_a, &outputs(100, 20));
        b.build(&b.realm(), &session_b, &outputs(200, 20));
        a.end(&session_a);
        b.end(&session_b);
        let (flushed_a, flushed_b) =
            tokio::join!(a.workers.flush(10 * MINUTE), b.workers.flush(10 * MINUTE));
        assert_eq!((flushed_a, flushed_b), (Flushed::default(), Flushed::default()));
        backend.heal();
        for (commit, built) in [(of_a, outputs(100, 20)), (of_b, outputs(200, 20))] {
            let there = actions_of(&backend, commit);
            assert!(built.iter().all(|output| there.contains(&output.action)), "{commit}");
        }
        let trail = trail_of(&backend);
        for commit in ["c0", of_a, of_b] {
            assert!(trail.rows.iter().any(|row| row.commit == commit), "{commit}: {trail:?}");
        }
        a.close().await;
        b.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_may_not_write_writes_no_manifest() {
    for (is_read_only, upstream_writes) in [(true, true), (false, false)] {
        let backend = Arc::new(MemoryBackend::new());
        let mut bench = Bench::new();
        bench.backend = backend.clone();
        let mut up = upstream("main", backend.clone());
        up.writes = upstream_writes;
        let cache = bench.cache_as(&bench.open(), vec![up], is_read_only);
        let machine = Machine::of(bench, cache);
        let session = machine.begin("c1");
        machine.build(&machine.realm(), &session, &outputs(0, 5));
        machine.end(&session);
        until(|| session.unwritten().is_none()).await;
        machine.workers.flush(MINUTE).await;
        assert_eq!(backend.calls_total().puts, 0);
        assert!(backend.names().is_empty());
        machine.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_written_is_written_later() {
    let backend = Arc::new(MemoryBackend::new());
    let machine = Machine::new(&backend);
    let manifest = manifest_name("team", "c1");
    let name = manifest.clone();
    backend.fault_by(move |call, asked| {
        let fails = call == Call::Put && *asked == name;
        fails.then_some(Fault::Error(|| BackendError::Status(500)))
    });
    let session = machine.begin("c1");
    machine.build(&machine.realm(), &session, &outputs(0, 5));
    machine.end(&session);
    until(|| backend.calls(&manifest).puts >= 2).await;
    assert!(backend.peek(&trail_name("team")).is_none(), "a trail that names no manifest");
    backend.heal();
    until(|| backend.peek(&trail_name("team")).is_some()).await;
    assert_eq!(actions_of(&backend, "c1").len(), 5);
    machine.close().await;
}

/// Upstream forgets all content of the commit; another machine builds it and sends it anew.
async fn lose_packs_and_build_again(backend: &Arc<MemoryBackend>, built: &[Output]) {
    for name in backend.names() {
        if name.space == crate::backend::Space::Cas {
            backend.remove(&name);
        }
    }
    let b = Machine::new(backend);
    let session = b.begin("c1");
    b.settled(&session).await;
    // In another order, or it would be the same pack.
    let again: Vec<_> = built.iter().rev().cloned().collect();
    b.build(&b.realm(), &session, &again);
    b.end(&session);
    assert_eq!(b.workers.flush(MINUTE).await, Flushed::default());
    b.close().await;
}

/// A manifest of as many rows as before was not written again, and so went on naming packs that
/// upstream had lost, though a build had sent their frames anew.
#[tokio::test(start_paused = true)]
async fn a_manifest_whose_packs_are_gone_is_written_again() {
    let backend = Arc::new(MemoryBackend::new());
    let built = outputs(0, 40);
    let a = Machine::new(&backend);
    a.build_commit("c1", &built).await;
    a.close().await;
    let packs = |backend: &MemoryBackend| -> Vec<_> {
        manifest_of(backend, "c1").packs.iter().map(|pack| pack.digest).collect()
    };
    let lost = packs(&backend);
    lose_packs_and_build_again(&backend, &built).await;
    let now = packs(&backend);
    assert!(!now.is_empty() && now.iter().all(|pack| !lost.contains(pack)), "{lost:?} {now:?}");
    let c = Machine::new(&backend);
    let session = c.begin("c1");
    let forecast = c.settled(&session).await;
    let fetched = forecast.fetched.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(fetched, built.len() as u64);
    c.close().await;
}

/// A build whose places came from an older manifest wrote them over those of a build that had sent the
/// frames again.
#[tokio::test(start_paused = true)]
async fn what_was_read_of_places_does_not_go_over_what_was_sent() {
    let backend = Arc::new(MemoryBackend::new());
    let built = outputs(0, 40);
    let a = Machine::new(&backend);
    a.build_commit("c1", &built).await;
    a.close().await;
    let reader = Machine::new(&backend);
    let reading = reader.begin("c1");
    reader.settled(&reading).await;
    assert_eq!(reader.hits(Some(&reading), &built).await, 40);
    lose_packs_and_build_again(&backend, &built).await;
    let packs = || manifest_of(&backend, "c1").packs;
    let sent = packs();
    reader.build(&reader.realm(), &reading, &outputs(100, 2));
    reader.end(&reading);
    assert_eq!(reader.workers.flush(MINUTE).await, Flushed::default());
    reader.close().await;
    let manifest = manifest_of(&backend, "c1");
    assert_eq!(manifest.rows.len(), 42, "and what it has built is added");
    for row in manifest.rows.iter().filter(|row| built.iter().any(|b| b.action == row.action)) {
        let crate::manifest::Place::Pack { pack, .. } = row.place else { panic!("{row:?}") };
        assert!(sent.contains(&packs()[pack as usize]), "{row:?}");
    }
}

/// A token that only reads once had packs sent for ever, and the pauses of all uploads cut short.
#[tokio::test(start_paused = true)]
async fn who_is_denied_gives_a_manifest_up() {
    let backend = Arc::new(MemoryBackend::new());
    let machine = Machine::new(&backend);
    backend.fault_by(|call, _| {
        let denied = || BackendError::Denied(403);
        (call == Call::Put).then_some(Fault::Error(denied))
    });
    let session = machine.begin("c1");
    machine.build(&machine.realm(), &session, &outputs(0, 5));
    machine.end(&session);
    until(|| session.unwritten().is_none()).await;
    assert!(backend.names().is_empty());
    machine.close().await;
}

/// A flush once spent all its time on uploads that could not succeed, and the next machine knew of
/// nothing.
#[tokio::test(start_paused = true)]
async fn an_upload_that_fails_does_not_keep_a_flush_from_writing_the_manifest() {
    let backend = Arc::new(MemoryBackend::new());
    let machine = Machine::new(&backend);
    let built = outputs(0, 5);
    let realm = machine.realm();
    let bad = realm.name_of(&crate::entry::Key::go(realm.id, built[2].action));
    backend.fault_by(move |call, asked| {
        let fails = call == Call::Put && *asked == bad;
        fails.then_some(Fault::Error(|| BackendError::Status(500)))
    });
    let session = machine.begin("c1");
    machine.build(&realm, &session, &built);
    let left = machine.workers.flush(MINUTE).await;
    assert_eq!(left.left_entries, 1, "{left:?}");
    assert_eq!(actions_of(&backend, "c1").len(), 5);
    machine.end(&session);
    machine.close().await;
}

/// A machine that had the outputs did not ask for the packs of its parents' manifests, and named them in
/// each new one, though upstream had let go of them: no cold machine found anything there again.
#[tokio::test(start_paused = true)]
async fn packs_that_are_gone_are_not_named_by_who_does_not_need_them() {
    let backend = Arc::new(MemoryBackend::new());
    let built: Vec<Output> = (0..6).map(|n| output(n, 60 << 10)).collect();
    let a = Machine::new(&backend);
    a.build_commit("c1", &built).await;
    a.close().await;
    let warm = Machine::new(&backend);
    let session = warm.begin("c1");
    warm.settled(&session).await;
    assert_eq!(warm.hits(Some(&session), &built).await, built.len());
    let packs = contents(&backend);
    assert!(!packs.is_empty());
    packs.iter().for_each(|pack| drop(backend.remove(pack)));
    warm.end(&session);

    let next = warm.begin_in(&warm.realm(), "c2", &["c1"]);
    warm.settled(&next).await;
    assert_eq!(warm.hits(Some(&next), &built).await, built.len());
    warm.end(&next);
    assert_eq!(warm.workers.flush(MINUTE).await, Flushed::default());
    warm.close().await;
    assert_eq!(actions_of(&backend, "c2").len(), built.len());
    let cold = Machine::new(&backend);
    let session = cold.begin("c2");
    let forecast = cold.settled(&session).await;
    let fetched = forecast.fetched.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(fetched, built.len() as u64);
    cold.close().await;
}

/// Somebody who had read the trail before a commit was built whole wrote it back: the commit had a row,
/// and so the smaller one stayed.
#[tokio::test(start_paused = true)]
async fn a_commits_row_that_was_put_back_to_an_older_one_is_written_again() {
    let backend = Arc::new(MemoryBackend::new());
    let a = Machine::new(&backend);
    let built = outputs(0, 30);
    a.build_commit("c1", &built[..3]).await;
    let before = backend.peek(&trail_name("team")).unwrap();
    a.build_commit("c1", &built).await;
    assert_eq!(trail_of(&backend).rows[0].rows, 30);
    backend.insert(trail_name("team"), before);
    assert_eq!(trail_of(&backend).rows[0].rows, 3);
    let again = a.begin("c1");
    assert_eq!(a.hits(Some(&again), &built[..3]).await, 3);
    a.end(&again);
    assert_eq!(a.workers.flush(MINUTE).await, Flushed::default());
    assert_eq!(trail_of(&backend).rows[0].rows, 30);
    a.close().await;
}

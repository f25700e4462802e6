//! What lookups and builds teach the policy about an upstream, and what a bad moment does not teach.

use std::sync::Arc;

use super::support::{Machine, Output, contents, output, outputs};
use crate::backend::BackendError;
use crate::backend::memory::{Fault, MemoryBackend};
use crate::cache::forecast::Phase;
use crate::cache::policy::group::subkey;
use crate::cache::policy::statistics::{Kind, Statistics};
use crate::worker::uploader::bench::until;

const COST_MS: u32 = 200;

/// An upstream with these outputs and no manifest, and a machine that has none of them.
async fn without_a_manifest(built: &[Output]) -> Machine {
    let backend = Arc::new(MemoryBackend::new());
    let a = Machine::new(&backend);
    a.build_commit("c1", built).await;
    a.close().await;
    for name in backend.names() {
        if backend.peek(&name).is_some_and(|value| crate::manifest::is_one(&value)) {
            backend.remove(&name);
        }
    }
    Machine::new(&backend)
}

/// Only builds told what building costs: a machine that began with hits took every key for worthless.
#[tokio::test(start_paused = true)]
async fn hits_from_upstream_tell_what_a_key_is_worth() {
    let built: Vec<_> = (0..5).map(|n| output(n, 3000)).collect();
    let b = without_a_manifest(&built).await;
    let session = b.begin("c1");
    b.settled(&session).await;
    let typical = || b.cache.statistics_of("main").typical_cost_ms(b.cache.clock().now());
    assert_eq!(typical(), 0);
    assert_eq!(b.hits(Some(&session), &built).await, 5);
    assert_eq!(typical(), COST_MS);
    // What is here has not been asked for.
    assert_eq!(b.hits(Some(&session), &built).await, 5);
    b.end(&session);
    b.close().await;
}

/// What an action has printed was decided about as listed, and counted as a question into the blue.
#[tokio::test(start_paused = true)]
async fn what_an_action_has_printed_is_a_question_about_what_is_listed() {
    let built = [output(0, 3000)];
    let b = without_a_manifest(&built).await;
    let session = b.begin("c1");
    b.settled(&session).await;
    let now = b.cache.clock().now();
    let answers = |s: &Statistics| {
        [Kind::Listed, Kind::NoManifest].map(|kind| s.estimate(kind, now).answers > 0.5)
    };
    assert_eq!(b.hits(Some(&session), &built).await, 1);
    let before = b.cache.statistics_of("main");
    assert_eq!(answers(&before), [false, true]);
    let printed = Output { action: subkey(&built[0].action, "stdout"), body: Vec::new() };
    assert_eq!(b.hits(Some(&session), &[printed]).await, 0);
    let after = b.cache.statistics_of("main");
    assert_eq!(answers(&after), [true, true]);
    let same = |s: &Statistics| s.estimate(Kind::NoManifest, now).answers;
    assert!((same(&before) - same(&after)).abs() < 0.1);
    b.end(&session);
    b.close().await;
}

/// An action is there, and its pack has been removed: that counted as a hit, so each such key was asked
/// for in vain, with two requests.
#[tokio::test(start_paused = true)]
async fn an_action_whose_frame_is_gone_counts_as_absent() {
    let built: Vec<_> = (0..5).map(|n| output(n, 30_000)).collect();
    let b = without_a_manifest(&built).await;
    for pack in contents(&b.bench.backend) {
        b.bench.backend.remove(&pack);
    }
    let session = b.begin("c1");
    b.settled(&session).await;
    assert_eq!(b.hits(Some(&session), &built).await, 0);
    let of_new = b.cache.statistics_of("main").estimate(Kind::NoManifest, b.cache.clock().now());
    assert!(of_new.answers > 0.5 && of_new.hit_rate < 0.3, "{of_new:?}");
    b.end(&session);
    b.close().await;
}

/// Upstream began anew just as a build did: nothing was known of the build then, and all of it was asked
/// for one by one, however long it went on.
#[tokio::test(start_paused = true)]
async fn a_bad_moment_at_its_start_does_not_cost_a_build_all_that_is_known_of_it() {
    let backend = Arc::new(MemoryBackend::new());
    let built = outputs(0, 30);
    let a = Machine::new(&backend);
    a.build_commit("c1", &built).await;
    a.close().await;
    backend.fault_always(Fault::Error(|| BackendError::Status(503)));
    let b = Machine::new(&backend);
    let session = b.begin_in(&b.realm(), "c1", &["c0"]);
    let forecast = session.forecast.clone().unwrap();
    forecast.finished().await;
    assert_eq!(forecast.phase(), Phase::Nothing);
    backend.heal();
    until(|| forecast.phase() == Phase::Known).await;
    b.settled(&session).await;
    assert_eq!(b.hits(Some(&session), &built).await, built.len());
    let asked = backend.calls_total().gets;
    assert_eq!(b.hits(Some(&session), &built).await, built.len());
    assert_eq!(backend.calls_total().gets, asked);
    b.end(&session);
    b.close().await;
}

//! Who asks for what: commands before the checkout, pull requests, builds of several repositories.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::backend::Space;
use crate::backend::memory::{Call, Fault, MemoryBackend};
use crate::cache::forecast::{Aim, Forecast, Phase};
use crate::cache::session::Opening;
use crate::entry::{Class, Meta};
use crate::manifest::trail::Trail;
use crate::worker::Flushed;
use crate::worker::prefetcher::sources::PARENTS_WAIT;
use crate::worker::prefetcher::tests::support::{
    MINUTE, Machine, Output, SCOPE, contents, copy_of, manifest_name, output, outputs, timed,
    trail_name,
};
use crate::worker::uploader::bench::until;

/// What `larder prefetch` asks for where nothing is checked out.
async fn before_the_checkout(machine: &Machine, commit: &str, branch: &str) -> Arc<Forecast> {
    let forecast = machine.cache.forecast(Aim {
        realm: machine.realm(),
        scope: SCOPE.into(),
        commit: commit.into(),
        branch: branch.into(),
        default_branch: "".into(),
    });
    forecast.want();
    forecast.finished().await;
    forecast.unwant();
    forecast
}

fn remove_trails(backend: &MemoryBackend) {
    for name in backend.names() {
        if backend.peek(&name).is_some_and(|value| Trail::decode(&value).is_ok()) {
            backend.remove(&name);
        }
    }
}

/// The forecast of the command, which knew of nothing, was once that of the build too, and parents that
/// the build named were heard by nobody: without the command it would have been warm.
#[tokio::test(start_paused = true)]
async fn a_command_before_the_checkout_does_not_blind_the_build() {
    let backend = Arc::new(MemoryBackend::new());
    let built = outputs(0, 30);
    let a = Machine::new(&backend);
    a.build_commit("parent", &built).await;
    a.close().await;
    remove_trails(&backend);
    for branch in ["", "main"] {
        let b = Machine::new(&backend);
        let before = before_the_checkout(&b, "child", branch).await;
        assert_eq!(before.phase(), Phase::Nothing, "{branch}");
        let session = b.begin_in(&b.realm(), "child", &["parent"]);
        let forecast = session.forecast.clone().unwrap();
        until(|| forecast.phase() == Phase::Known).await;
        b.settled(&session).await;
        assert_eq!(forecast.fetched.load(Ordering::Relaxed), 30, "{branch}");
        assert_eq!(b.hits(Some(&session), &built).await, 30, "{branch}");
        b.end(&session);
        // It is the build that says on which branch it was.
        until(|| backend.peek(&trail_name("team")).is_some()).await;
        b.workers.flush(MINUTE).await;
        remove_trails(&backend);
        backend.remove(&manifest_name("team", "child"));
        b.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_known_default_branch_the_usual_ones_are_asked_for() {
    let backend = Arc::new(MemoryBackend::new());
    let built = outputs(0, 30);
    let a = Machine::new(&backend);
    a.build_commit("c1", &built).await;
    a.close().await;
    let b = Machine::new(&backend);
    let forecast = before_the_checkout(&b, "of a feature", "feature").await;
    assert_eq!(forecast.phase(), Phase::Known);
    assert_eq!(forecast.fetched.load(Ordering::Relaxed), 30);
    b.close().await;
}

/// Whether a commit without parents was built whole nobody can tell, and parents that there are not were
/// waited for once.
#[tokio::test(start_paused = true)]
async fn a_commit_without_parents_is_not_waited_for() {
    let backend = Arc::new(MemoryBackend::new());
    let built = outputs(0, 30);
    let a = Machine::new(&backend);
    a.build_commit("first", &built).await;
    a.close().await;
    let b = Machine::new(&backend);
    let session = b.begin("first");
    session.parents_are(&[]);
    let forecast = session.forecast.clone().unwrap();
    tokio::time::timeout(PARENTS_WAIT / 2, forecast.told()).await.unwrap();
    assert_eq!(forecast.lists(), 30);
    b.end(&session);
    b.close().await;
    // Where git of one helper would not say, another's may.
    remove_trails(&backend);
    let b = Machine::new(&backend);
    let session = b.begin("second");
    session.parents_are(&[]);
    let forecast = session.forecast.clone().unwrap();
    forecast.told().await;
    assert_eq!(forecast.phase(), Phase::Nothing);
    session.parents_are(&["first".to_owned()]);
    until(|| forecast.phase() == Phase::Known).await;
    assert_eq!(forecast.lists(), 30);
    b.end(&session);
    b.close().await;
}

/// Builds `outputs` on a branch of a scope whose default branch is main.
async fn build_on(machine: &Machine, branch: &str, commit: &str, outputs: &[Output]) {
    let opening = Opening {
        id: commit,
        is_derived: false,
        realm: machine.realm().id,
        scope: SCOPE,
        commit,
        branch,
        default_branch: "main",
        parents: &[],
    };
    let session = machine.cache.open_session(&machine.realm(), &opening);
    session.helper_came();
    // What is expected counts for whether the build is taken for whole.
    session.forecast.clone().unwrap().told().await;
    machine.build(&machine.realm(), &session, outputs);
    machine.end(&session);
    assert_eq!(machine.workers.flush(MINUTE).await, Flushed::default());
    machine.bench.clock.advance(MINUTE);
}

/// A branch without a trail, whose default branch had none either, once began with nothing.
#[tokio::test(start_paused = true)]
async fn where_neither_branch_has_a_trail_that_of_the_scope_is_followed() {
    let backend = Arc::new(MemoryBackend::new());
    let (feature, main) = (outputs(0, 30), outputs(100, 20));
    let a = Machine::new(&backend);
    build_on(&a, "feature", "f1", &feature).await;
    for branch in ["main", "another", ""] {
        let b = Machine::new(&backend);
        let forecast = before_the_checkout(&b, "new", branch).await;
        assert_eq!(forecast.phase(), Phase::Known, "{branch}");
        assert_eq!(forecast.fetched.load(Ordering::Relaxed), 30, "{branch}");
        b.close().await;
    }
    // One that is known to be whole goes before what other branches did since.
    build_on(&a, "main", "m1", &main).await;
    build_on(&a, "main", "m2", &main).await;
    build_on(&a, "feature", "f2", &feature).await;
    build_on(&a, "feature", "f3", &feature).await;
    for (branch, listed) in [("main", 20), ("another", 20), ("feature", 30)] {
        let b = Machine::new(&backend);
        let forecast = before_the_checkout(&b, "new", branch).await;
        assert_eq!(forecast.lists(), listed, "{branch}");
        b.close().await;
    }
    a.close().await;
}

/// A command before the checkout knows neither parents nor branch; what it found by the scope's trail is
/// a guess, and was once the build's forecast too.
#[tokio::test(start_paused = true)]
async fn a_command_that_went_by_the_scopes_trail_does_not_blind_the_build() {
    let backend = Arc::new(MemoryBackend::new());
    let (built, others) = (outputs(0, 30), outputs(500, 60));
    let a = Machine::new(&backend);
    build_on(&a, "main", "parent", &built).await;
    build_on(&a, "feature", "f1", &others).await;
    a.close().await;
    backend.remove(&trail_name("team"));
    let b = Machine::new(&backend);
    let before = before_the_checkout(&b, "child", "").await;
    assert_eq!((before.phase(), before.lists()), (Phase::Known, 90));
    let session = b.begin_in(&b.realm(), "child", &["parent"]);
    b.settled(&session).await;
    assert_eq!(b.hits(Some(&session), &built).await, 30);
    b.close().await;
}

/// In the namespace of pull requests, the scope's trail names what others of them have built.
#[tokio::test(start_paused = true)]
async fn a_pull_request_goes_by_main_and_not_by_other_pull_requests() {
    let backend = Arc::new(MemoryBackend::new());
    let a = Machine::new(&backend);
    let pr = a.realm_that_trusts("pr", "main");
    let session = a.begin_in(&pr, "p1", &[]);
    a.build(&pr, &session, &outputs(0, 30));
    a.end(&session);
    assert_eq!(a.workers.flush(MINUTE).await, Flushed::default());
    a.close().await;
    backend.remove(&trail_name("pr"));
    let b = Machine::new(&backend);
    let session = b.begin_in(&b.realm_that_trusts("pr", "main"), "p2", &["c0"]);
    let forecast = session.forecast.clone().unwrap();
    forecast.told().await;
    assert_eq!(forecast.lists(), 0);
    b.end(&session);
    b.close().await;
}

/// A pull request's lookup once asked its own namespace first, and waited for that, though the entry
/// was on its way from main; later still where it came just between being looked for here and being
/// joined, seen in one run of three of all tests.
#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_from_main_is_not_asked_for_in_the_own_namespace() {
    let backend = Arc::new(MemoryBackend::new());
    let built: Vec<_> = (0..12).map(|n| output(n, 60_000)).collect();
    let a = Machine::new(&backend);
    let main = a.bench.realm(&a.cache, "main");
    let session = a.begin_in(&main, "c1", &[]);
    a.build(&main, &session, &built);
    a.end(&session);
    assert_eq!(a.workers.flush(MINUTE).await, Flushed::default());
    a.close().await;
    // What is foretold is known at once, and comes later.
    let slow = std::time::Duration::from_millis(100);
    backend.fault_by(move |call, name| {
        (call == Call::Get && name.space == Space::Cas).then_some(Fault::Delay(slow))
    });
    let p = Machine::new(&backend);
    let pr = p.realm_that_trusts("pr", "main");
    let session = p.begin_in(&pr, "c1", &[]);
    let forecast = session.forecast.clone().unwrap();
    forecast.told().await;
    backend.fault_always(Fault::Delay(slow));
    assert!(!p.cache.flights().is_empty(), "nothing is on its way");
    for output in &built {
        // Whether it is waited for is policy's business.
        p.get(&pr, Some(&session), output).await;
    }
    p.settled(&session).await;
    for output in &built {
        assert!(p.get(&pr, Some(&session), output).await);
    }
    let own = |action| pr.name_of(&crate::entry::Key::go(pr.id, action));
    let asked: u64 = built.iter().map(|output| backend.calls(&own(output.action)).gets).sum();
    assert_eq!(asked, 0, "of actions that came from main");
    p.close().await;
}

/// Each lookup of a pull request without a manifest once asked its own namespace and then main: two
/// round trips, and a miss for each hit, so that soon nothing was asked any more.
#[tokio::test(start_paused = true)]
async fn a_pull_request_asks_both_namespaces_at_once_and_counts_one_answer() {
    let backend = Arc::new(MemoryBackend::new());
    // What the session's clock permits before any hit has saved anything.
    let built: Vec<_> = (0..20).map(|n| output(n, 3000)).collect();
    let a = Machine::new(&backend);
    let main = a.bench.realm(&a.cache, "main");
    let session = a.begin_in(&main, "c1", &[]);
    a.build(&main, &session, &built);
    a.end(&session);
    assert_eq!(a.workers.flush(MINUTE).await, Flushed::default());
    a.close().await;
    for name in backend.names() {
        if backend.peek(&name).is_some_and(|value| crate::manifest::is_one(&value)) {
            backend.remove(&name);
        }
    }
    let delay = std::time::Duration::from_millis(40);
    backend.fault_always(Fault::Delay(delay));
    let p = Machine::new(&backend);
    let pr = p.realm_that_trusts("pr", "main");
    let session = p.begin_in(&pr, "c1", &["c0"]);
    session.forecast.clone().unwrap().told().await;
    let clock = p.bench.clock.clone();
    let before = clock.elapsed();
    let asking = async {
        let mut hits = 0;
        for output in &built {
            hits += usize::from(p.get(&pr, Some(&session), output).await);
        }
        hits
    };
    let hits = timed(&clock, asking).await;
    assert_eq!(hits, built.len());
    let took = clock.elapsed().checked_sub(before).unwrap();
    assert!(took < delay * 20 * 3 / 2, "{took:?} for 20 answers of {delay:?}");
    backend.heal();
    p.end(&session);
    p.close().await;
}

/// The actions of Go, but no manifests and trails.
fn actions(backend: &MemoryBackend) -> Vec<crate::backend::Name> {
    let is_action = |value: &[u8]| !crate::manifest::is_one(value);
    let names = backend.names().into_iter().filter(|name| name.space == Space::Ac);
    names.filter(|name| backend.peek(name).is_some_and(|value| is_action(&value))).collect()
}

/// What a manifest lists may be built all the same, where that is quicker: it was sent once more.
#[tokio::test(start_paused = true)]
async fn what_is_built_though_upstream_has_it_is_not_sent_again_and_what_it_has_lost_is() {
    let origin = Arc::new(MemoryBackend::new());
    let built: Vec<_> = (0..12).map(|n| output(n, 90_000)).collect();
    let a = Machine::new(&origin);
    a.build_commit("c1", &built).await;
    a.close().await;
    type Harm = fn(&MemoryBackend);
    let harms: [(&str, Harm); 4] = [
        ("nothing", |_| {}),
        ("lost contents", |b| contents(b).iter().for_each(|name| drop(b.remove(name)))),
        ("lost actions", |b| actions(b).iter().for_each(|name| drop(b.remove(name)))),
        ("damaged actions", |b| {
            actions(b).into_iter().for_each(|name| b.insert(name, "no action"))
        }),
    ];
    for (what, harm) in harms {
        let backend = copy_of(&origin);
        // Nothing comes ahead, and nothing is waited for.
        backend.fault_by(|call, name| {
            (call == Call::Get && name.space == Space::Cas).then_some(Fault::Truncate(10))
        });
        let b = Machine::new(&backend);
        let session = b.begin("c1");
        b.settled(&session).await;
        backend.heal();
        harm(&backend);
        let puts = backend.calls_total().puts;
        for output in &built {
            let size = output.body.len() as u64;
            let meta = Meta::new(output.digest(), size, b.cache.clock().now(), Class::Archive);
            b.cache.learn_built(&b.realm(), &session, &output.action, &meta);
        }
        b.build(&b.realm(), &session, &built);
        assert_eq!(b.workers.flush(MINUTE).await, Flushed::default());
        let sent = backend.calls_total().puts - puts;
        // Manifest and trail are written in any case.
        assert_eq!(sent > 2, what != "nothing", "{what}: {sent} puts");
        let c = Machine::new(&backend);
        let session = c.begin("c1");
        c.settled(&session).await;
        assert_eq!(c.hits(Some(&session), &built).await, built.len(), "{what}");
        c.close().await;
        b.close().await;
    }
}

/// One `larder run` may build several repositories: what the second used was once written into the
/// first one's manifest, and the second had none.
#[tokio::test(start_paused = true)]
async fn repositories_that_one_command_builds_are_remembered_apart() {
    let backend = Arc::new(MemoryBackend::new());
    let machine = Machine::new(&backend);
    let (first, second) = (outputs(0, 10), outputs(100, 20));
    for (commit, built) in [("c1", &first), ("c2", &second)] {
        let session = machine.begin_as("one run", &machine.realm(), commit, &[]);
        machine.build(&machine.realm(), &session, built);
        machine.end(&session);
    }
    assert_eq!(machine.workers.flush(MINUTE).await, Flushed::default());
    for (commit, built) in [("c1", &first), ("c2", &second)] {
        let manifest = crate::worker::prefetcher::tests::support::manifest_of(&backend, commit);
        assert_eq!(manifest.rows.len(), built.len(), "{commit}");
    }
    machine.close().await;
}

/// Go commands of a shell were each a session of their own, with a second of waiting for each.
#[tokio::test(start_paused = true)]
async fn commands_that_follow_closely_are_one_session_and_later_ones_another() {
    let machine = Machine::new(&Arc::new(MemoryBackend::new()));
    let opening = Opening {
        id: "app@c1",
        is_derived: true,
        realm: machine.realm().id,
        scope: SCOPE,
        commit: "c1",
        branch: "main",
        default_branch: "main",
        parents: &[],
    };
    let come = || {
        let session = machine.cache.open_session(&machine.realm(), &opening);
        session.helper_came();
        session
    };
    let (first, beside) = (come(), come());
    assert!(Arc::ptr_eq(&first, &beside));
    machine.end(&first);
    machine.end(&beside);
    machine.bench.clock.advance(std::time::Duration::from_secs(5));
    let next = come();
    assert!(Arc::ptr_eq(&first, &next));
    machine.end(&next);
    machine.bench.clock.advance(std::time::Duration::from_secs(30));
    let later = come();
    assert!(!Arc::ptr_eq(&first, &later));
    machine.end(&later);
    machine.close().await;
}

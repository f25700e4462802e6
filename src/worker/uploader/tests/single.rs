//! Single entries that do not get through, and what becomes of the others.

use super::*;
use crate::entry::Lookup;
use crate::telemetry::metrics::Protocol;

/// Upstream says of this name that nothing is written there.
fn write_never(bench: &Bench, name: &Name) {
    let never = name.clone();
    bench.backend.fault_by(move |call, name| {
        (call == Call::Put && *name == never).then_some(Fault::Error(|| BackendError::ReadOnly))
    });
}

/// A moment's error of the disk once counted as "it is gone", and its upload was dropped.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_for_a_while_is_owed_still() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let body = noise(100_000);
    let name = bench.put_content(&cache, &body).await;
    let file = cache.store().layout().file(&Digest::of(&body));
    let aside = file.with_extension("aside");
    std::fs::rename(&file, &aside).unwrap();
    // It can be looked at, and not be read.
    std::fs::create_dir(&file).unwrap();
    let workers = Workers::start(&cache);
    for _ in 0..10 {
        assert_eq!(workers.flush(MINUTE).await.left_entries, 1);
    }
    assert_eq!((dropped(&cache, Dropped::Corrupt), dropped(&cache, Dropped::Gone)), (0, 0));
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
    assert_eq!(workers.flush(10 * MINUTE).await, Flushed::default());
    assert_eq!(bench.backend.peek(&name).unwrap(), body);
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn what_can_never_be_read_is_given_up() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let body = noise(100_000);
    bench.put_content(&cache, &body).await;
    let file = cache.store().layout().file(&Digest::of(&body));
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let _workers = Workers::start(&cache);
    until(|| cache.store().owed_entries() == 0).await;
    assert_eq!(dropped(&cache, Dropped::Corrupt), 1);
    bench.close(&cache).await;
}

/// An upload that was replaced while it waited took the newer one's mark away as it went, and a third put
/// was sent beside that one: the older bytes could arrive last.
#[tokio::test(start_paused = true)]
async fn however_often_a_name_is_put_one_upload_of_it_is_under_way() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let workers = Workers::start(&cache);
    bench.backend.fault_always(Fault::Error(is_down));
    let name = bench.put_opaque(&cache, "o", b"first").await;
    until(|| bench.backend.calls(&name).puts > 0).await;
    bench.put_opaque(&cache, "o", b"second").await;
    bench.backend.heal();
    bench.backend.fault_by(|call, _| (call == Call::Put).then_some(Fault::Delay(MINUTE / 10)));
    let before = bench.backend.calls(&name).puts;
    until(|| bench.backend.calls(&name).puts > before).await;
    bench.put_opaque(&cache, "o", b"third").await;
    tokio::time::sleep(MINUTE / 20).await;
    assert_eq!(bench.backend.calls(&name).puts, before + 1);
    assert_eq!(workers.flush(10 * MINUTE).await, Flushed::default());
    assert_eq!(bench.backend.peek(&name).unwrap(), "third");
    bench.close(&cache).await;
}

/// A DAV server says 405 to a name that is a collection of its, and took part in nothing for an hour.
#[tokio::test(start_paused = true)]
async fn a_name_that_upstream_takes_no_writes_for_stops_no_other() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let never = bench.put_opaque(&cache, "a", b"a").await;
    write_never(&bench, &never);
    let workers = Workers::start(&cache);
    until(|| bench.backend.calls(&never).puts > 0).await;
    for n in 0..20 {
        bench.put_opaque(&cache, &format!("other-{n}"), b"b").await;
    }
    let began = tokio::time::Instant::now();
    until(|| cache.store().owed_entries() == 1).await;
    assert!(began.elapsed() < 2 * MINUTE, "{:?}", began.elapsed());
    drop(workers);
    bench.close(&cache).await;
}

/// The oldest went first, whatever upstream had said of it before.
#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_denied_does_not_keep_another_from_being_sent() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    bench.backend.fault_by(|_, name| {
        let denied = Fault::Error(|| BackendError::Denied(403));
        (&*name.namespace == "denied").then_some(denied)
    });
    let denied = bench.realm(&cache, "denied");
    for n in 0..2000 {
        let key = Key::opaque(denied.id, &n.to_string()).unwrap();
        bench.put(&cache, &denied, &key, b"denied").await;
    }
    let workers = Workers::start(&cache);
    for n in 0..20 {
        bench.put_opaque(&cache, &n.to_string(), b"fine").await;
    }
    let began = tokio::time::Instant::now();
    until(|| cache.store().owed_entries() == 2000).await;
    assert!(began.elapsed() < 10 * MINUTE, "{:?}", began.elapsed());
    drop(workers);
    bench.close(&cache).await;
}

/// Whoever found the action upstream looked for the content in vain.
#[tokio::test(start_paused = true)]
async fn an_action_that_names_what_upstream_does_not_take_is_not_sent() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let (large, small) = (noise(100_000), noise(1000));
    let refused = bench.put_content(&cache, &large).await;
    bench.put_content(&cache, &small).await;
    let never = refused.clone();
    bench.backend.fault_by(move |_, name| {
        (*name == never).then_some(Fault::Error(|| BackendError::TooLarge))
    });
    let names = |body: &[u8]| format!("\x0a\x40{}\x10\x05", Digest::of(body)).into_bytes();
    let lacking = bench.put_action(&cache, "lacking", &names(&large)).await;
    let whole = bench.put_action(&cache, "whole", &names(&small)).await;
    let workers = Workers::start(&cache);
    assert_eq!(workers.flush(MINUTE).await, Flushed::default());
    assert_eq!(bench.backend.calls(&lacking).puts, 0);
    assert!(bench.backend.peek(&whole).is_some());
    assert_eq!(dropped(&cache, Dropped::Refused), 2);
    // Once upstream takes it, both go.
    bench.backend.heal();
    bench.put_content(&cache, &large).await;
    bench.put_action(&cache, "lacking", &names(&large)).await;
    assert_eq!(workers.flush(MINUTE).await, Flushed::default());
    assert!(bench.backend.peek(&refused).is_some() && bench.backend.peek(&lacking).is_some());
    bench.close(&cache).await;
}

#[tokio::test(start_paused = true)]
async fn an_output_that_go_has_moved_away_is_gone_at_once() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let output = noise(1000);
    bench.put_outputs(&cache, std::slice::from_ref(&output));
    std::fs::remove_file(cache.store().layout().file(&Digest::of(&output))).unwrap();
    let workers = Workers::start(&cache);
    assert_eq!(workers.flush(MINUTE).await, Flushed::default());
    assert_eq!(dropped(&cache, Dropped::Gone), 1);
    bench.close(&cache).await;
}

/// Alone it said three times that nothing is written there, and all that came later waited for an hour.
#[tokio::test(start_paused = true)]
async fn a_name_that_is_none_keeps_nobody_waiting_though_it_is_all_that_is_owed() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let never = bench.put_opaque(&cache, "a", b"a").await;
    write_never(&bench, &never);
    let workers = Workers::start(&cache);
    let began = tokio::time::Instant::now();
    assert_eq!(workers.flush(MINUTE).await.left_entries, 1);
    assert!(began.elapsed() < MINUTE, "a flush says so at once");
    until(|| bench.backend.calls(&never).puts > 5).await;
    let other = bench.put_opaque(&cache, "b", b"b").await;
    let began = tokio::time::Instant::now();
    until(|| bench.backend.peek(&other).is_some()).await;
    assert!(began.elapsed() < 2 * MINUTE, "{:?}", began.elapsed());
    bench.close(&cache).await;
}

/// Contents that upstream had lost the bytes of were asked about, found there, and never sent again.
#[tokio::test(start_paused = true)]
async fn content_that_came_with_other_bytes_is_sent_whatever_upstream_says_it_has() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let realm = bench.realm(&cache, "team");
    let bodies: Vec<_> = (0..8_u8).map(|n| [&noise(70_000)[..], &[n]].concat()).collect();
    let mut names = Vec::new();
    for body in &bodies {
        let key = Key::content(Digest::of(body));
        bench.backend.insert(realm.name_of(&key), &b"cut by a crash"[..]);
        names.push(realm.name_of(&key));
        let lookup = cache.get(Protocol::Cas, &realm, &key).await;
        assert!(matches!(lookup, Lookup::Miss(_)), "{lookup:?}");
        bench.put_content(&cache, body).await;
    }
    let workers = Workers::start(&cache);
    assert_eq!(workers.flush(10 * MINUTE).await, Flushed::default());
    for (name, body) in names.iter().zip(&bodies) {
        assert_eq!(bench.backend.peek(name).unwrap(), body[..]);
    }
    bench.close(&cache).await;
}

/// What this machine had sent of a name within the hour was taken for what upstream has, whatever others had
/// put there since: a value that was put back stayed away.
#[tokio::test(start_paused = true)]
async fn the_last_put_of_a_name_arrives_though_this_machine_has_sent_the_same_before() {
    let bench = Bench::new();
    let cache = bench.cache(&bench.open());
    let workers = Workers::start(&cache);
    let name = bench.put_opaque(&cache, "latest", b"v1").await;
    assert_eq!(workers.flush(MINUTE).await, Flushed::default());
    bench.backend.insert(name.clone(), &b"v2 of another machine"[..]);
    bench.put_opaque(&cache, "latest", b"v1").await;
    assert_eq!(workers.flush(MINUTE).await, Flushed::default());
    assert_eq!(bench.backend.peek(&name).unwrap(), "v1");
    bench.close(&cache).await;
}

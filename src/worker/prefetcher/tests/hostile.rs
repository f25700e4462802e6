//! Manifests that are whole and lie: they cost fetches in vain, within limits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::support::{
    MINUTE, Machine, Output, SCOPE, copy_of, manifest_name, manifest_of, outputs, timed,
};
use crate::backend::Space;
use crate::backend::memory::{Call, Fault, MemoryBackend};
use crate::entry::{Class, Digest};
use crate::manifest::pack::PackWriter;
use crate::manifest::{Manifest, PackRef, Place, ROWS_MAX, Row};
use crate::units::Timestamp;
use crate::worker::uploader::bench::{name, until};

fn row(number: u64, size: u64, place: Place) -> Row {
    Row {
        action: Digest::of(&number.to_le_bytes()),
        output: Digest::of(&(number ^ u64::MAX).to_le_bytes()),
        size,
        class: Class::Archive,
        cost_ms: 200,
        c_env: 0,
        stored: Timestamp::from_seconds(1_800_000_000),
        place,
    }
}

fn manifest(packs: Vec<PackRef>, rows: Vec<Row>) -> Manifest {
    Manifest { scope: SCOPE.into(), commit: "c1".into(), packs, rows, ..Manifest::default() }
}

/// A cold machine that believes `manifest`: hits among `built`, and the machine's store is tidy.
async fn hits(
    backend: &Arc<MemoryBackend>,
    manifest: &Manifest,
    disk: u64,
    built: &[Output],
) -> usize {
    backend.insert(manifest_name("team", "c1"), manifest.encode());
    let b = Machine::with_disk(backend, disk);
    let session = b.begin_in(&b.realm(), "c1", &["c0"]);
    b.settled(&session).await;
    let hits = b.hits(None, built).await;
    let left = std::fs::read_dir(b.cache.store().layout().tmp()).unwrap().count();
    assert_eq!(left, 0, "files are left half written");
    assert!(b.cache.store().used_bytes() < 8 << 20);
    b.close().await;
    hits
}

#[tokio::test(start_paused = true)]
async fn rows_that_lie_cost_single_questions() {
    let built = outputs(0, 12);
    let backend = Arc::new(MemoryBackend::new());
    let a = Machine::new(&backend);
    a.build_commit("c1", &built).await;
    a.close().await;
    let truth = manifest_of(&backend, "c1");
    let nowhere = PackRef { digest: Digest::of(b"nowhere"), size: 1 << 20 };
    type Lie = fn(usize, &mut Row);
    let lies: [(&str, Lie); 8] = [
        ("another output", |n, row| row.output = Digest::of(n.to_string().as_bytes())),
        ("a shorter output", |_, row| row.size = 1),
        ("a longer output", |_, row| row.size += 1),
        ("an endless output", |_, row| row.size = u64::MAX),
        ("beyond the pack", |_, row| {
            row.place = Place::Pack { pack: 0, offset: (1 << 20) - 9, len: 9 };
        }),
        ("all in one place", |_, row| row.place = Place::Pack { pack: 0, offset: 60, len: 9 }),
        ("alone and nowhere", |n, row| {
            row.place =
                Place::Frame { digest: Digest::of(n.to_string().as_bytes()), size: u64::MAX };
        }),
        ("only the action knows", |_, row| row.place = Place::Ask),
    ];
    for (what, lie) in lies {
        let mut said = truth.clone();
        for pack in &mut said.packs {
            pack.size = 1 << 20;
        }
        said.rows.iter_mut().enumerate().for_each(|(n, row)| lie(n, row));
        assert_eq!(hits(&copy_of(&backend), &said, 1 << 30, &built).await, built.len(), "{what}");
    }
    let mut said = truth;
    said.packs.fill(nowhere);
    assert_eq!(hits(&copy_of(&backend), &said, 1 << 30, &built).await, built.len(), "no pack");
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_unpacks_to_more_than_it_should_is_not_taken() {
    let zeros = std::io::Read::take(std::io::repeat(0), 1 << 30);
    let bomb = zstd::stream::encode_all(zeros, 1).unwrap();
    assert!(bomb.len() < 1 << 20);
    for (size, disk) in [(1 << 10, 1 << 30), (1 << 30, 64 << 20), (u64::MAX, 64 << 20)] {
        let backend = Arc::new(MemoryBackend::new());
        let mut writer = PackWriter::new();
        let slot = writer.push(Digest::EMPTY, size, &bomb).unwrap();
        let pack = writer.finish();
        let packs = vec![PackRef { digest: Digest::of(&pack), size: pack.len() as u64 }];
        backend.insert(name(Space::Cas, &Digest::of(&pack).to_string()), pack);
        let rows = vec![row(0, size, slot.in_pack(0)), row(1, size, slot.in_pack(0))];
        let built = outputs(0, 2);
        assert_eq!(hits(&backend, &manifest(packs, rows), disk, &built).await, 0);
    }
}

/// Every row whose place nobody knew became a question at once.
#[tokio::test(start_paused = true)]
async fn as_many_rows_as_there_may_be_are_not_asked_for_at_once() {
    let backend = Arc::new(MemoryBackend::new());
    let rows = (0..ROWS_MAX as u64).map(|n| row(n, 100_000, Place::Ask)).collect();
    backend.insert(manifest_name("team", "c1"), manifest(Vec::new(), rows).encode());
    let manifest_name = manifest_name("team", "c1");
    backend.fault_by(move |call, name| {
        let is_action = call == Call::Get && *name != manifest_name;
        is_action.then_some(Fault::Delay(Duration::from_secs(1)))
    });
    let b = Machine::new(&backend);
    let session = b.begin_in(&b.realm(), "c1", &["c0"]);
    let forecast = session.forecast.clone().unwrap();
    until(|| forecast.lists() == ROWS_MAX).await;
    let unknown = &outputs(0, 1)[0];
    let clock = b.bench.clock.clone();
    assert!(!timed(&clock, b.get(&b.realm(), Some(&session), unknown)).await);
    assert!(session.waited_ms.get() <= 1000, "{}", session.waited_ms.get());
    let asked = backend.calls_total().gets;
    assert!(asked < 200, "{asked} questions in the first moment");
    b.end(&session);
    b.settled(&session).await;
    let asked = backend.calls_total().gets;
    tokio::time::sleep(MINUTE).await;
    assert_eq!(backend.calls_total().gets, asked, "asked for nobody");
    assert_eq!(forecast.fetched.load(Ordering::Relaxed), 0);
    b.close().await;
}

/// A frame that stands alone was held in memory, however large.
#[tokio::test(start_paused = true)]
async fn a_large_frame_that_stands_alone_is_not_held_in_memory() {
    let backend = Arc::new(MemoryBackend::new());
    let body = vec![7_u8; 64 << 20];
    let at = Digest::of(b"a large frame");
    backend.insert(name(Space::Cas, &at.to_string()), body.clone());
    let rows = vec![row(0, 1 << 30, Place::Frame { digest: at, size: body.len() as u64 })];
    backend.insert(manifest_name("team", "c1"), manifest(Vec::new(), rows).encode());
    let b = Machine::new(&backend);
    let session = b.begin_in(&b.realm(), "c1", &["c0"]);
    b.settled(&session).await;
    assert_eq!(backend.calls(&name(Space::Cas, &at.to_string())).gets, 0);
    b.close().await;
}

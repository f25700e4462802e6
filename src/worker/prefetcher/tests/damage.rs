//! What is upstream is missing, cut, flipped or of another time: that costs single fetches or misses.

use std::sync::Arc;

use bytes::Bytes;

use super::support::{
    MINUTE, Machine, Output, contents, copy_of, manifest_name, manifest_of, output, outputs,
    trail_name,
};
use crate::backend::Name;
use crate::backend::memory::MemoryBackend;
use crate::cache::session::Session;
use crate::entry::{Class, Meta};
use crate::worker::Flushed;

/// What machine A left of one commit.
async fn upstream_of(built: &[Output]) -> Arc<MemoryBackend> {
    let backend = Arc::new(MemoryBackend::new());
    let a = Machine::new(&backend);
    a.build_commit("c1", built).await;
    a.close().await;
    backend
}

/// A cold machine: hits of a build of `commit`.
async fn hits(backend: &Arc<MemoryBackend>, commit: &str, built: &[Output]) -> usize {
    let b = Machine::new(backend);
    let session = b.begin_in(&b.realm(), commit, &["c0"]);
    b.settled(&session).await;
    let hits = b.hits(None, built).await;
    b.close().await;
    hits
}

/// Frames of small outputs travel in their actions too, those of large ones only in packs.
fn large_and_small() -> Vec<Output> {
    let mut built = outputs(0, 6);
    built.extend((100..106).map(|n| output(n, 100 << 10)));
    built
}

fn flipped(bytes: &Bytes, at: usize) -> Bytes {
    let mut bytes = bytes.to_vec();
    let len = bytes.len();
    bytes[at % len] ^= 1 << (at % 8);
    bytes.into()
}

/// A dozen lengths, the shortest and the longest among them.
fn cuts(bytes: &Bytes) -> Vec<Bytes> {
    let step = (bytes.len() / 9).max(1);
    let mut lengths: Vec<usize> = (0..bytes.len()).step_by(step).collect();
    lengths.extend([1, 8, 9, bytes.len() - 1]);
    lengths.into_iter().map(|len| bytes.slice(..len)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_manifest_or_trail_that_is_damaged_costs_single_questions() {
    let built = outputs(0, 12);
    let backend = upstream_of(&built).await;
    for (name, commit) in [(manifest_name("team", "c1"), "c1"), (trail_name("team"), "c2")] {
        let whole = backend.peek(&name).unwrap();
        let mut versions: Vec<Option<Bytes>> = cuts(&whole).into_iter().map(Some).collect();
        versions.extend((0..8).map(|n| Some(flipped(&whole, n * whole.len() / 8 + n))));
        versions.push(None);
        versions.push(Some([&whole[..], b"more"].concat().into()));
        versions.push(Some(vec![0xff; 1 << 20].into()));
        let mut newer = whole.to_vec();
        newer[8] = 2;
        versions.push(Some(newer.into()));
        for (at, version) in versions.into_iter().enumerate() {
            let copy = copy_of(&backend);
            match version {
                Some(bytes) => copy.insert(name.clone(), bytes),
                None => drop(copy.remove(&name)),
            }
            assert_eq!(hits(&copy, commit, &built).await, built.len(), "{name} {at}");
        }
    }
}

async fn with_packs(
    backend: &Arc<MemoryBackend>,
    built: &[Output],
    change: impl Fn(&MemoryBackend, &Name, Bytes),
) -> usize {
    let copy = copy_of(backend);
    for pack in contents(backend) {
        change(&copy, &pack, backend.peek(&pack).unwrap());
    }
    hits(&copy, "c1", built).await
}

#[tokio::test(start_paused = true)]
async fn a_pack_that_is_damaged_costs_misses_and_no_wrong_byte() {
    let built = large_and_small();
    let backend = upstream_of(&built).await;
    let packs = contents(&backend);
    let len = packs.iter().map(|pack| backend.peek(pack).unwrap().len()).max().unwrap();
    assert!(len > 20_000, "frames are in packs");
    for cut in (0..len).step_by(len / 10) {
        with_packs(&backend, &built, |copy, pack, bytes| {
            copy.insert(pack.clone(), bytes.slice(..cut.min(bytes.len())));
        })
        .await;
    }
    for at in 0..10 {
        let hits = with_packs(&backend, &built, |copy, pack, bytes| {
            copy.insert(pack.clone(), flipped(&bytes, at * len / 10 + at));
        });
        assert!(hits.await >= built.len() - packs.len(), "a bit costs one entry of its pack");
    }
    let gone = with_packs(&backend, &built, |copy, pack, _| drop(copy.remove(pack)));
    gone.await;
}

/// A frame that went bad upstream was named by every action and manifest for good: who had built its
/// output anew found it "standing" upstream and sent no other.
#[tokio::test(start_paused = true)]
async fn a_frame_that_went_bad_upstream_is_replaced_by_the_next_build() {
    let built = large_and_small();
    for is_flipped in [true, false] {
        let backend = upstream_of(&built).await;
        for row in manifest_of(&backend, "c1").packs {
            let name = crate::worker::uploader::bench::name(
                crate::backend::Space::Cas,
                &row.digest.to_string(),
            );
            let bytes = backend.peek(&name).unwrap();
            let bad: Vec<u8> = bytes.iter().map(|byte| byte ^ 0x55).collect();
            backend.insert(name, if is_flipped { bad } else { bytes[..20].to_vec() });
        }
        let b = Machine::new(&backend);
        let session = b.begin_in(&b.realm(), "c1", &["c0"]);
        b.settled(&session).await;
        let missing = built.len() - b.hits(None, &built).await;
        assert!(missing > 0, "nothing was damaged");
        b.build(&b.realm(), &session, &built);
        b.end(&session);
        assert_eq!(b.workers.flush(MINUTE).await, Flushed::default());
        b.close().await;
        assert_eq!(hits(&backend, "c1", &built).await, built.len(), "flipped: {is_flipped}");
    }
}

/// An output whose frame is too large for packs, built here although a manifest lists it.
async fn build_listed(b: &Machine, session: &Session, large: &Output) {
    let built = std::slice::from_ref(large);
    assert_eq!(b.hits(None, built).await, 0, "it could be had");
    let size = large.body.len() as u64;
    let meta = Meta::new(large.digest(), size, b.cache.clock().now(), Class::Archive);
    b.cache.learn_built(&b.realm(), session, &large.action, &meta);
    b.build(&b.realm(), session, built);
    b.end(session);
    assert_eq!(b.workers.flush(MINUTE).await, Flushed::default());
}

/// Who built what a manifest lists asks whether upstream has it, and sends nothing if so. A frame
/// that is there, and bad, was kept for good.
#[tokio::test(start_paused = true)]
async fn a_bad_frame_that_stands_alone_is_replaced_by_who_built_what_is_listed() {
    let large = output(1, 2 << 20);
    for damage in [|b: &Bytes| flipped(b, 1 << 20), |b: &Bytes| b.slice(..20)] {
        let backend = upstream_of(std::slice::from_ref(&large)).await;
        let [name] = &contents(&backend)[..] else { panic!("one frame, in no pack") };
        backend.insert(name.clone(), damage(&backend.peek(name).unwrap()));
        let b = Machine::new(&backend);
        let session = b.begin_in(&b.realm(), "c1", &["c0"]);
        b.settled(&session).await;
        build_listed(&b, &session, &large).await;
        b.close().await;
        assert_eq!(hits(&backend, "c1", std::slice::from_ref(&large)).await, 1);
    }
}

/// A machine whose disk was full took every frame that it had no room for to be bad, and sent it again.
#[tokio::test(start_paused = true)]
async fn a_frame_for_which_there_is_no_room_here_is_not_taken_to_be_bad() {
    let large = output(1, 2 << 20);
    let backend = upstream_of(std::slice::from_ref(&large)).await;
    let [name] = &contents(&backend)[..] else { panic!("one frame, in no pack") };
    let b = Machine::with_disk(&backend, 1 << 20);
    let realm = b.realm();
    let session = b.begin_in(&realm, "c1", &["c0"]);
    // First what comes ahead, then a question of its own.
    b.settled(&session).await;
    assert!(!b.cache.frames().is_spoiled(realm.id, &large.digest()));
    build_listed(&b, &session, &large).await;
    assert!(!b.cache.frames().is_spoiled(realm.id, &large.digest()));
    b.close().await;
    assert_eq!(backend.calls(name).puts, 1, "sent by who built it first");
}

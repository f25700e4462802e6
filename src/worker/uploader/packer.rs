//! Frames on their way into packs: those of attempts that run at the same time travel together.
//!
//! One task for each realm gathers frames until a pack is full, or nobody wants to wait for more;
//! the attempts wait until their pack has arrived. Nothing is settled here, and what is lost with
//! the process is still owed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::backend::{BackendError, Name, Space, Upload};
use crate::cache::Cache;
use crate::cache::frames::Standing;
use crate::cache::realm::{Realm, Upstream};
use crate::entry::action::Packed;
use crate::entry::{Digest, RealmId};
use crate::manifest::pack::{FRAME_MAX, PACK_TARGET, PackWriter, Slot};
use crate::worker::uploader::Uploads;

/// A pack that is not full waits so long for more, unless somebody waits for the uploads.
const LINGER: Duration = Duration::from_secs(4);
/// Then a pause of this length is enough, and also when nobody else can board.
const HURRY: Duration = Duration::from_millis(30);
/// Frames that wait for their packs.
pub(super) const WAITING_MAX: usize = 192;
/// Packs of one realm on their way at once.
const SENDING_MAX: usize = 2;
/// An upstream that takes no packs is given smaller ones down to this size, then none.
const TARGET_MIN: u64 = 256 << 10;

/// What is in a pack for somebody who waits.
struct Passenger {
    output: Digest,
    size: u64,
    digest: Digest,
    frame: Bytes,
    arrived: oneshot::Sender<Result<Packed, BackendError>>,
}

/// The packs that are being filled.
#[derive(Default)]
pub(super) struct Packer {
    lines: Mutex<HashMap<RealmId, mpsc::Sender<Passenger>>>,
    /// By realm, once an upstream has refused a pack for its size. Zero: it takes none.
    targets: Mutex<HashMap<RealmId, u64>>,
}

impl Packer {
    /// Whether a frame travels in a pack of this realm.
    pub(super) fn takes(&self, realm: RealmId, frame: &Bytes) -> bool {
        frame.len() as u64 <= FRAME_MAX.min(self.target(realm))
    }

    /// Sends a frame, with its digest, together with others; returns when upstream has it.
    pub(super) async fn send(
        self: &Arc<Self>,
        route: &Route,
        output: (Digest, u64),
        (digest, frame): (Digest, Bytes),
    ) -> Result<Packed, BackendError> {
        let (arrived, arrival) = oneshot::channel();
        let passenger = Passenger { output: output.0, size: output.1, digest, frame, arrived };
        let gone = || BackendError::Broken("the pack was given up".to_owned());
        self.line(route).send(passenger).await.map_err(|_| gone())?;
        arrival.await.map_err(|_| gone())?
    }

    fn line(self: &Arc<Self>, route: &Route) -> mpsc::Sender<Passenger> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(&route.realm.id)
            && !line.is_closed()
        {
            return line.clone();
        }
        let (line, boarding) = mpsc::channel(WAITING_MAX);
        let task = gather(self.clone(), route.clone(), boarding);
        route.cache.tasks().spawn("fill packs", task);
        lines.insert(route.realm.id, line.clone());
        line
    }

    fn target(&self, realm: RealmId) -> u64 {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.get(&realm).copied().unwrap_or(PACK_TARGET)
    }

    /// Upstream takes no body of this length.
    fn shrink(&self, realm: RealmId, len: u64) {
        // An older pack may be refused after a smaller one was: the target never grows.
        let next = (self.target(realm) / 2).min(len / 2);
        let next = if next >= TARGET_MIN { next } else { 0 };
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).insert(realm, next);
        tracing::info!(%realm, next, "upstream takes no packs of this size; trying smaller ones");
    }
}

/// Where packs of one realm go.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) cache: Cache,
    pub(super) realm: Arc<Realm>,
    pub(super) upstream: Upstream,
    pub(super) uploads: Arc<Uploads>,
    /// Attempts to this upstream that wait for a pack, of whichever realm.
    pub(super) boarded: Arc<AtomicUsize>,
}

/// A pack with those who wait for it.
struct Full {
    bytes: Bytes,
    passengers: Vec<(Passenger, Slot)>,
}

/// Fills packs until nobody can send frames any more.
async fn gather(packer: Arc<Packer>, route: Route, mut boarding: mpsc::Receiver<Passenger>) {
    let sending = Arc::new(Semaphore::new(SENDING_MAX));
    let mut shutdown = route.cache.tasks().shutdown_signal();
    loop {
        let full = tokio::select! {
            biased;
            full = fill(&packer, &route, &mut boarding) => full,
            () = shutdown.wait() => return,
        };
        let Some(full) = full else { return };
        let turn = sending.clone().acquire_owned().await.expect("it is never closed");
        let (packer, route) = (packer.clone(), route.clone());
        let tasks = route.cache.tasks().clone();
        tasks.spawn("send a pack", async move {
            send(&packer, &route, full).await;
            drop(turn);
        });
    }
}

/// One pack: full, or as full as it gets before those in it have waited long enough.
async fn fill(
    packer: &Packer,
    route: &Route,
    boarding: &mut mpsc::Receiver<Passenger>,
) -> Option<Full> {
    let mut writer = PackWriter::new();
    let mut passengers = Vec::new();
    let mut hurried = route.uploads.hurried();
    let mut begun = Instant::now();
    let mut last = begun;
    while writer.len() < packer.target(route.realm.id).max(1) {
        let is_awaited = *hurried.borrow_and_update();
        // Small frames take all places before they fill a pack, and then nothing else goes up.
        let is_crowded = route.boarded.load(Ordering::Relaxed) >= WAITING_MAX;
        let due = if is_awaited || is_crowded { last + HURRY } else { begun + LINGER };
        tokio::select! {
            biased;
            next = boarding.recv() => {
                let Some(passenger) = next else { break };
                last = Instant::now();
                if passengers.is_empty() {
                    begun = last;
                }
                // One that finds no room learns that its pack was given up, and tries again.
                if let Ok(slot) = writer.push(passenger.output, passenger.size, &passenger.frame) {
                    passengers.push((passenger, slot));
                }
            }
            () = sleep_until(due), if !passengers.is_empty() => break,
            Ok(()) = hurried.changed() => {}
        }
    }
    (!passengers.is_empty()).then(|| Full { bytes: writer.finish().into(), passengers })
}

async fn send(packer: &Packer, route: &Route, full: Full) {
    let pack = Digest::of(&full.bytes);
    let pack_size = full.bytes.len() as u64;
    let name =
        Name { namespace: route.realm.namespace.clone(), space: Space::Cas, id: pack.to_string() };
    let sent = route.upstream.backend.put(&name, Upload::bytes(full.bytes)).await;
    if matches!(sent, Err(BackendError::TooLarge)) {
        packer.shrink(route.realm.id, pack_size);
    } else if sent.is_ok() {
        route.cache.metrics().uploaded_bytes.add(pack_size);
    }
    for (passenger, slot) in full.passengers {
        let answer = match &sent {
            Ok(()) => {
                let packed = Packed {
                    digest: passenger.digest,
                    size: u64::from(slot.len),
                    pack,
                    pack_size,
                    at: slot.offset,
                };
                let standing = Standing::Packed(packed);
                route.cache.frames().insert(route.realm.id, passenger.output, standing);
                Ok(packed)
            }
            Err(error) => Err(again(error)),
        };
        // An attempt that has gone away tries again, and finds where its frame stands.
        let _ = passenger.arrived.send(answer);
    }
}

/// What a refusal of the whole pack means to one who was in it.
fn again(error: &BackendError) -> BackendError {
    match error {
        // A smaller pack may pass.
        BackendError::TooLarge => BackendError::Busy,
        other => other.clone(),
    }
}

#[cfg(test)]
#[path = "packer_tests.rs"]
mod tests;

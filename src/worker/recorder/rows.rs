//! The rows of a session's manifest, and the packs for frames that stand in none.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::backend::{BackendError, Name, Space, Upload};
use crate::cache::forecast::{Forecast, Phase};
use crate::cache::frames::{KNOWN_FOR, Standing};
use crate::cache::realm::{Realm, Upstream};
use crate::cache::{Cache, Share, policy};
use crate::entry::action::Packed;
use crate::entry::{Digest, Key};
use crate::manifest::pack::{FRAME_MAX, PACK_TARGET, PackWriter, Slot};
use crate::manifest::{Manifest, PackRef, Place, Row};
use crate::store::record;

/// So many frames whose place is unknown are worth reading manifests once more.
const UNKNOWN_MANY: usize = 32;
/// Outputs larger than this are not packed for a manifest's sake: their frames hardly ever fit.
const OUTPUT_MAX: u64 = 8 * FRAME_MAX;

/// A session's manifest, and the rows of it whose place is known from other manifests alone.
pub(super) struct Gathered {
    pub(super) manifest: Manifest,
    pub(super) hearsay: HashSet<Digest>,
}

/// What was used, with where it stands; packs what stands nowhere yet.
pub(super) async fn gather(
    cache: &Cache,
    forecast: &Arc<Forecast>,
    upstream: &Upstream,
    used: &[Digest],
) -> Result<Gathered, BackendError> {
    let (worker, aim) = (cache.clone(), forecast.aim.clone());
    let actions = used.to_vec();
    let found = cache.tasks().blocking("gather rows", move || {
        let keep = |action: &Digest| {
            let find = |realm: &Realm| worker.store().find(&Key::go(realm.id, *action));
            let realms = std::iter::once(&aim.realm).chain(&aim.realm.elsewhere);
            let row = realms.map(|realm| find(realm)).find_map(|row| row)?;
            let share = policy::share(row.class, &worker.config().classes);
            let is_sent = policy::is_worth_a_place(row.size, row.cost_ms);
            (share == Share::Upstream && is_sent).then_some((*action, row))
        };
        actions.iter().filter_map(keep).collect::<Vec<_>>()
    });
    let found: Vec<(Digest, record::Row)> = found.await.unwrap_or_default();
    let realm = &forecast.aim.realm;
    let is_forgotten = forecast.phase() != Phase::Known || forecast.age() > KNOWN_FOR;
    let unknown = found.iter().filter(|(_, row)| stands_nowhere(cache, realm, row));
    if is_forgotten && unknown.count() > UNKNOWN_MANY {
        // A daemon forgets where frames stand; manifests do not.
        crate::worker::prefetcher::learn_places(cache, forecast).await;
    }
    if forget_lost(cache, realm, upstream, &found).await {
        // Somebody may have sent their frames anew, and said where.
        crate::worker::prefetcher::learn_places(cache, forecast).await;
        forget_lost(cache, realm, upstream, &found).await;
    }
    pack_missing(cache, realm, upstream, &found).await?;
    let mut manifest = Manifest {
        scope: forecast.aim.scope.to_string(),
        commit: forecast.aim.commit.to_string(),
        written: cache.clock().now(),
        writer: cache.writer_name(),
        ..Manifest::default()
    };
    let (mut numbers, mut hearsay) = (HashMap::new(), HashSet::new());
    for (action, row) in found {
        if is_hearsay(cache, realm, &row) {
            hearsay.insert(action);
        }
        let place = place(cache, realm, &row, &mut manifest.packs, &mut numbers);
        manifest.rows.push(Row {
            action,
            output: row.digest,
            size: row.size,
            class: row.class,
            cost_ms: row.cost_ms,
            c_env: row.c_env,
            stored: row.stored,
            place,
        });
    }
    Ok(Gathered { manifest, hearsay })
}

/// Whether a frame's place was read in a manifest, and nobody here has sent it or seen its action.
fn is_hearsay(cache: &Cache, realm: &Realm, row: &record::Row) -> bool {
    match cache.frames().get(realm.id, &row.digest) {
        Some(Standing::Packed(packed)) => packed.digest == Digest::EMPTY,
        Some(Standing::Alone { .. }) | None => false,
    }
}

fn place(
    cache: &Cache,
    realm: &Realm,
    row: &record::Row,
    packs: &mut Vec<PackRef>,
    numbers: &mut HashMap<Digest, u32>,
) -> Place {
    if row.size == 0 {
        return Place::Empty;
    }
    if stands_elsewhere(cache, realm, row) {
        return Place::Ask;
    }
    match cache.frames().get(realm.id, &row.digest) {
        Some(Standing::Packed(packed)) => {
            let number = *numbers.entry(packed.pack).or_insert_with(|| {
                packs.push(PackRef { digest: packed.pack, size: packed.pack_size });
                u32::try_from(packs.len() - 1).unwrap_or(u32::MAX)
            });
            let len = u32::try_from(packed.size).unwrap_or(u32::MAX);
            Place::Pack { pack: number, offset: packed.at, len }
        }
        Some(Standing::Alone { digest, size }) => Place::Frame { digest, size },
        None => Place::Ask,
    }
}

/// Whether a row's class has an upstream of its own: then it is asked for there, by its action.
fn stands_elsewhere(cache: &Cache, realm: &Realm, row: &record::Row) -> bool {
    realm.elsewhere_at(policy::upstream_of(row.class, &cache.config().classes)).is_some()
}

/// Whether an output's frame is to be packed, as far as is known here.
fn stands_nowhere(cache: &Cache, realm: &Realm, row: &record::Row) -> bool {
    row.size > 0
        && row.size <= OUTPUT_MAX
        && !stands_elsewhere(cache, realm, row)
        && cache.frames().get(realm.id, &row.digest).is_none()
}

/// Packs that are known from manifests alone may be gone: upstream lets go of old ones, and whoever has
/// the outputs does not ask for them. What stood in those stands nowhere. Whether there were any.
async fn forget_lost(
    cache: &Cache,
    realm: &Realm,
    upstream: &Upstream,
    found: &[(Digest, record::Row)],
) -> bool {
    let mut packs: HashMap<Digest, Vec<Digest>> = HashMap::new();
    for (_, row) in found {
        if let Some(Standing::Packed(packed)) = cache.frames().get(realm.id, &row.digest)
            && packed.digest == Digest::EMPTY
            && !cache.confirmed().contains(realm.id, &Key::content(packed.pack), &packed.pack)
        {
            packs.entry(packed.pack).or_default().push(row.digest);
        }
    }
    let packs: Vec<_> = packs.into_iter().collect();
    let names: Vec<_> = packs.iter().map(|(pack, _)| realm.name_of(&Key::content(*pack))).collect();
    if names.is_empty() {
        return false;
    }
    // Where upstream does not say, they stand where they are said to.
    let Ok(there) = upstream.backend.contains(&names).await else { return false };
    for ((pack, outputs), is_there) in packs.iter().zip(&there) {
        if *is_there {
            cache.confirm(realm, &Key::content(*pack), *pack);
        } else {
            outputs.iter().for_each(|output| cache.frames().remove(realm.id, output));
        }
    }
    there.contains(&false)
}

/// Sends the frames that stand in no pack, in order of first use.
async fn pack_missing(
    cache: &Cache,
    realm: &Arc<Realm>,
    upstream: &Upstream,
    found: &[(Digest, record::Row)],
) -> Result<(), BackendError> {
    let mut missing: Vec<record::Row> = Vec::new();
    let mut seen = HashSet::new();
    for (_, row) in found {
        if stands_nowhere(cache, realm, row) && seen.insert(row.digest) {
            missing.push(*row);
        }
    }
    let mut rest = missing.into_iter();
    loop {
        let worker = cache.clone();
        let filled = cache.tasks().polite("fill a pack", move || {
            let filled = fill(&worker, &mut rest);
            (filled, rest)
        });
        let Some((filled, left)) = filled.await else { return Ok(()) };
        rest = left;
        let Some((bytes, slots)) = filled else { return Ok(()) };
        send(cache, realm, upstream, bytes, slots).await?;
    }
}

/// A pack, with its outputs and where they are.
type Filled = (Vec<u8>, Vec<Sent>);

/// An output, its frame's digest, and where in the pack it is.
type Sent = (Digest, Digest, Slot);

/// The next pack; None when nothing is left.
fn fill(cache: &Cache, rows: &mut impl Iterator<Item = record::Row>) -> Option<Filled> {
    let mut writer = PackWriter::new();
    let mut slots = Vec::new();
    for row in rows {
        // Gone or changed meanwhile, or too large after all: its action knows where it is.
        if let Some(frame) = cache.frame_of(&row)
            && let Ok(slot) = writer.push(row.digest, row.size, &frame)
        {
            slots.push((row.digest, Digest::of(&frame), slot));
        }
        if writer.len() >= PACK_TARGET {
            break;
        }
    }
    (!slots.is_empty()).then(|| (writer.finish(), slots))
}

async fn send(
    cache: &Cache,
    realm: &Arc<Realm>,
    upstream: &Upstream,
    bytes: Vec<u8>,
    slots: Vec<Sent>,
) -> Result<(), BackendError> {
    let (pack, pack_size) = (Digest::of(&bytes), bytes.len() as u64);
    let name = Name { namespace: realm.namespace.clone(), space: Space::Cas, id: pack.to_string() };
    match upstream.backend.put(&name, Upload::bytes(bytes.into())).await {
        Ok(()) => {}
        // Then these are asked for one by one.
        Err(BackendError::TooLarge) => return Ok(()),
        Err(error) => return Err(error),
    }
    cache.metrics().uploaded_bytes.add(pack_size);
    for (output, digest, slot) in slots {
        let size = u64::from(slot.len);
        let packed = Packed { digest, size, pack, pack_size, at: slot.offset };
        cache.frames().insert(realm.id, output, Standing::Packed(packed));
    }
    Ok(())
}

//! Fetches what a build will need before it asks, in the order in which earlier builds used it.
//!
//! For each forecast: the manifests are read (`sources`), what is not here yet is planned (`plan`)
//! and becomes flights that requests join, then it is fetched in a few streams (`stream`), what a build
//! waits for before the rest (`queue`). It stops
//! with the last session that wants it, and goes on with the next helper. Nothing here is awaited by a
//! request but its flights.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::cache::Cache;
use crate::cache::ahead::Expected;
use crate::cache::forecast::{Forecast, Listed, Phase};
use crate::entry::Digest;
use crate::tasks::Shutdown;
use crate::units::show_count;
use crate::worker::desk::Desk;
use crate::worker::prefetcher::plan::{Plan, Unit};
use crate::worker::prefetcher::queue::Queue;
use crate::worker::prefetcher::stream::Keeping;
use crate::worker::prefetcher::turns::Turns;

mod plan;
mod queue;
mod sources;
mod stream;
mod turns;

pub(in crate::worker) use sources::{name_of_manifest, name_of_scope_trail, name_of_trail};

/// Units under way at once. At first many, because the link is unknown and each connection slow; then
/// as many as bring what arrives in `AHEAD_MS`: few enough that what is needed first comes first.
const STREAMS_MAX: usize = 16;
const STREAMS_MIN: usize = 4;
const AHEAD_MS: f64 = 400.0;
/// How often it is looked whether anybody still wants what nothing is known of.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Where upstream could not say what it has, it is asked again so much later, and then ever later: for
/// two minutes, as one that refuses for good is asked in vain.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(64);
/// How long room is waited for that is being made, and how often it is looked for.
const ROOM_WAIT: Duration = Duration::from_secs(1);
const ROOM_LOOK: Duration = Duration::from_millis(20);
/// Frames that are under way at once; each stands in memory until it is whole.
const UNDER_WAY_MAX: u64 = 32 << 20;
/// Frames that are being unpacked, so that what arrives faster waits where it costs no memory.
const UNPACKING_MAX: usize = 3;

pub(super) async fn run(cache: Cache, desk: Arc<Desk>) {
    let mut shutdown = cache.tasks().shutdown_signal();
    let turns = Arc::new(Turns::new(UNPACKING_MAX));
    loop {
        desk.woke();
        desk.set_state("idle");
        let forecast = tokio::select! {
            biased;
            forecast = cache.forecasts().next() => forecast,
            () = shutdown.wait() => return,
        };
        cache.tasks().spawn("prefetch", follow(cache.clone(), forecast, turns.clone()));
    }
}

/// One forecast, from its manifests to its end.
async fn follow(cache: Cache, forecast: Arc<Forecast>, turns: Arc<Turns>) {
    let mut shutdown = cache.tasks().shutdown_signal();
    let _told = Told(forecast.clone());
    let mut pause = AGAIN_FIRST;
    loop {
        let knew_parents = forecast.has_parents();
        forecast.was_refused.store(false, Ordering::Relaxed);
        let is_cut = tokio::select! {
            biased;
            is_cut = fulfil(&cache, &forecast, &turns) => is_cut,
            () = shutdown.wait() => false,
        };
        forecast.finish();
        if is_cut {
            forecast.cut_short();
        }
        // Whoever came just before that could not know of it.
        if forecast.is_wanted() && forecast.resume() {
            continue;
        }
        if forecast.phase() != Phase::Nothing {
            return;
        }
        // One bad moment at its start does not cost a build all that is known of it.
        if forecast.was_refused.load(Ordering::Relaxed) && pause <= AGAIN_MOST {
            if !is_wanted_after(&forecast, pause, &mut shutdown).await {
                return;
            }
            pause *= 2;
            forecast.try_again();
            continue;
        }
        // Parents that were named while the manifests were read may have come too late for that.
        if knew_parents || !hears_of_parents(&forecast, &mut shutdown).await {
            return;
        }
        forecast.look_again();
    }
}

/// Whether somebody wants it still when so much time has passed.
async fn is_wanted_after(forecast: &Forecast, pause: Duration, shutdown: &mut Shutdown) -> bool {
    // Parents that are named only now are worth a look at once.
    let is_named = async {
        if forecast.has_parents() {
            sleep(pause).await;
        } else {
            drop(forecast.parents(pause, true).await);
        }
    };
    tokio::select! {
        () = is_named => forecast.is_wanted(),
        () = shutdown.wait() => false,
    }
}

/// However its worker ends, also by a panic: nobody waits for manifests that nobody reads.
struct Told(Arc<Forecast>);

impl Drop for Told {
    fn drop(&mut self) {
        if self.0.phase() == Phase::Loading {
            self.0.nothing();
        } else if std::thread::panicking() {
            self.0.finish();
        }
    }
}

/// Waits for the parents of a commit of which nothing is known, for as long as somebody wants it: a
/// command may have asked before the sources were there.
async fn hears_of_parents(forecast: &Forecast, shutdown: &mut Shutdown) -> bool {
    while forecast.is_wanted() {
        tokio::select! {
            biased;
            parents = forecast.parents(LOOK_EVERY, true) => {
                if !parents.is_empty() {
                    return true;
                }
            }
            () = shutdown.wait() => return false,
        }
    }
    false
}

/// Whether it ended because nobody wants it any more.
async fn fulfil(cache: &Cache, forecast: &Arc<Forecast>, turns: &Arc<Turns>) -> bool {
    let found = sources::read(cache, forecast).await;
    if found.is_empty() {
        forecast.nothing();
        return false;
    }
    for (realm, manifest) in &found {
        sources::remember_frames(cache, realm.id, manifest);
    }
    let (worker, seen) = (cache.clone(), forecast.clone());
    let planned = cache.tasks().blocking("plan", move || {
        let realms: Vec<_> = found.into_iter().collect();
        announce(&worker, &seen, plan::make(&worker, realms))
    });
    let Some(units) = planned.await else {
        forecast.nothing();
        return false;
    };
    fetch_all(cache, forecast, turns, units).await
}

/// Learns once more from the manifests where frames stand.
pub(in crate::worker) async fn learn_places(cache: &Cache, forecast: &Forecast) {
    for (realm, manifest) in &sources::read(cache, forecast).await {
        sources::remember_frames(cache, realm.id, manifest);
    }
}

/// Lists everything, then records what needs no fetching. What remains is to be fetched.
fn announce(cache: &Cache, forecast: &Forecast, plan: Plan) -> Vec<Unit> {
    let mut listed: HashMap<Digest, Listed> = HashMap::new();
    for (action, entry) in plan.listed {
        listed.entry(action).or_insert(entry);
    }
    forecast.list(listed);
    for (realm, expected) in plan.known {
        cache.record_ahead(realm, forecast, expected, false);
    }
    plan.units
}

/// Held until what was fetched is kept.
type End = mpsc::Sender<Infallible>;

/// Fetches in order of first use, a few at a time, while somebody wants it and there is room;
/// returns when all of it is kept. Whether something is left because nobody does.
async fn fetch_all(
    cache: &Cache,
    forecast: &Arc<Forecast>,
    turns: &Arc<Turns>,
    units: Vec<Unit>,
) -> bool {
    let total = units.len();
    forecast.fetching();
    let (end, mut ends) = mpsc::channel(1);
    let keeping = Keeping { turns: turns.clone(), end };
    let mut queue = Queue::new(units);
    let order = stream::Order::begin(turns);
    let mut flying = FuturesUnordered::new();
    // Parts of objects that come whole or not at all.
    let mut returned: Vec<Unit> = Vec::new();
    // Outputs that are on their way take room too; frames take the link.
    let (mut coming, mut width) = (0, Width::default());
    let mut patience = ROOM_WAIT;
    loop {
        queue.overtake(&forecast.overtaking.take());
        while returned.is_empty() && forecast.is_wanted() {
            let Some((unit, is_urgent)) = queue.front() else { break };
            let (size, more) = (unit.size(), Width::of(unit));
            // What a build waits for does not wait for room on the link.
            let bytes_per_ms = if is_urgent { 0.0 } else { forecast.bytes_per_ms() };
            if !width.has_room_for(more, bytes_per_ms) {
                break;
            }
            let needed = size.saturating_add(coming);
            let room = find_room(cache, needed, !flying.is_empty(), &mut patience);
            let Some(has_room) = room.await else { break };
            let Some(mut unit) = queue.pop_front() else { break };
            if has_room {
                coming += size;
                width.add(more);
                order.settle(&mut unit.parts, is_urgent);
                let fetching =
                    stream::fetch(cache.clone(), forecast.clone(), unit, keeping.clone());
                flying.push(fetching.map(move |unit| (unit, size, more)));
            } else {
                leave(forecast, &unit);
            }
        }
        forecast.under_way_bytes.store(width.bytes, Ordering::Relaxed);
        let landed = tokio::select! {
            biased;
            landed = flying.next() => landed,
            () = forecast.overtaking.named(), if !flying.is_empty() => continue,
        };
        let Some((unit, size, less)) = landed else {
            if returned.is_empty() {
                break;
            }
            // All parts that were asked for are back: none is asked for twice.
            queue.return_whole(std::mem::take(&mut returned));
            continue;
        };
        coming -= size;
        width.take(less);
        returned.extend(unit);
    }
    // Whoever needs what is left asks for it.
    let is_cut = !queue.is_empty();
    queue.into_units().for_each(|unit| leave(forecast, &unit));
    drop(keeping);
    // Nobody sends: it is over when all who could have ended.
    while ends.recv().await.is_some() {}
    tracing::debug!(
        units = total,
        fetched = %show_count(forecast.fetched.load(Ordering::Relaxed)),
        "prefetch ended"
    );
    is_cut
}

/// Whether the disk has room for so much, or finds some within what is left of the patience. None: it is
/// to be asked again when something has landed.
async fn find_room(
    cache: &Cache,
    bytes: u64,
    is_flying: bool,
    patience: &mut Duration,
) -> Option<bool> {
    // Asking makes room.
    while !cache.has_room(bytes) {
        if is_flying {
            return None;
        }
        if patience.is_zero() {
            return Some(false);
        }
        *patience = patience.saturating_sub(ROOM_LOOK);
        sleep(ROOM_LOOK).await;
    }
    Some(true)
}

/// What is under way: requests, the bytes that they bring, and those of them that stand in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Width {
    requests: usize,
    bytes: u64,
    memory: u64,
}

impl Width {
    fn of(unit: &Unit) -> Self {
        // Whatever a manifest says: the sums must hold it.
        let bytes = unit.link_bytes().min(1 << 40);
        // What is asked for by itself goes to the disk as it comes.
        let memory = if unit.name.is_some() { bytes } else { 0 };
        Self { requests: unit.requests(), bytes, memory }
    }

    const fn add(&mut self, more: Self) {
        self.requests += more.requests;
        self.bytes += more.bytes;
        self.memory += more.memory;
    }

    const fn take(&mut self, less: Self) {
        self.requests -= less.requests;
        self.bytes -= less.bytes;
        self.memory -= less.memory;
    }

    /// Whether so much more may be under way, on a link that carries so many bytes, if that is known.
    fn has_room_for(self, more: Self, bytes_per_ms: f64) -> bool {
        let is_enough = bytes_per_ms > 0.0 && self.bytes as f64 > bytes_per_ms * AHEAD_MS;
        let most = if is_enough { STREAMS_MIN } else { STREAMS_MAX };
        let fits = self.memory.saturating_add(more.memory) <= UNDER_WAY_MAX;
        self.requests == 0 || self.requests < most && fits
    }
}

fn leave(forecast: &Forecast, unit: &Unit) {
    // Nobody waits behind it any more.
    forecast.skipped_bytes.fetch_add(unit.link_bytes(), Ordering::Relaxed);
    unit.expected().for_each(|expected| forecast.left(&expected.row.action));
}

impl Unit {
    fn actions(&self) -> impl Iterator<Item = &Digest> {
        self.expected().map(|expected| &expected.row.action)
    }

    fn expected(&self) -> impl Iterator<Item = &Expected> {
        self.parts.iter().flat_map(|part| &part.expected)
    }
}

#[cfg(test)]
pub(in crate::worker) mod tests;

//! Writes down what builds have used, so that the next machine can fetch it before it asks.
//!
//! When a session has ended, or somebody waits for its uploads: the rows of its manifest are
//! gathered (`rows`), frames that stand in no pack are packed, manifest and trail are read, merged
//! and written. Packs go first, so that a manifest never names what is not there. What could not be
//! written is tried again; what is lost with the process costs the next machine its head start.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{join, join3};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::backend::{BackendError, Name, Upload};
use crate::cache::Cache;
use crate::cache::forecast::{Aim, Forecast};
use crate::cache::realm::Upstream;
use crate::cache::session::Session;
use crate::entry::Digest;
use crate::manifest::trail::{self, Trail, TrailRow};
use crate::manifest::{self, FormatError, Manifest};
use crate::units::{Timestamp, show_count};
use crate::worker::desk::Desk;
use crate::worker::prefetcher::{name_of_manifest, name_of_scope_trail, name_of_trail};
use crate::worker::uploader::Uploads;

mod rows;

use rows::Gathered;

/// Helpers of one build come and go: what follows this quickly is written together.
const QUIET: Duration = Duration::from_millis(300);
/// Uploads of a session are given so long before its manifest is tried.
const UPLOADS_WAIT: Duration = Duration::from_secs(120);
/// What could not be written is tried again after so long, then after twice that, up to the most.
const AGAIN: Duration = Duration::from_secs(30);
const AGAIN_MAX: Duration = Duration::from_secs(900);
/// What somebody else has written over is written again so often.
const ROUNDS_MAX: usize = 4;
/// And looked at after no longer than this.
const ROUND_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A build that used so much of what the fullest known one did has built everything.
const COMPLETE: f64 = 0.8;

/// See the module. One writes at a time.
#[derive(Debug)]
pub(super) struct Recorder {
    turn: Semaphore,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { turn: Semaphore::new(1) }
    }
}

pub(super) async fn run(
    cache: Cache,
    recorder: Arc<Recorder>,
    uploads: Arc<Uploads>,
    desk: Arc<Desk>,
) {
    let mut shutdown = cache.tasks().shutdown_signal();
    let mut is_left = false;
    let mut again = AGAIN;
    loop {
        desk.woke();
        desk.set_state(if is_left { "waiting for upstream" } else { "idle" });
        let is_news = tokio::select! {
            biased;
            () = cache.sessions().told() => true,
            () = sleep(again), if is_left => false,
            () = shutdown.wait() => return,
        };
        // Uploads have pauses of their own, which only somebody who waits may cut short.
        if is_news {
            sleep(QUIET).await;
            again = AGAIN;
        } else {
            again = (again * 2).min(AGAIN_MAX);
        }
        desk.set_state("writing manifests");
        if is_news && cache.sessions().list().iter().any(|session| is_due(session, false)) {
            let request = uploads.request();
            cache.wake_uploader();
            tokio::select! {
                biased;
                () = uploads.settled(request, cache.store(), UPLOADS_WAIT) => {}
                () = shutdown.wait() => return,
            }
        }
        is_left = !recorder.write(&cache, false).await;
        let worker = cache.clone();
        cache.tasks().blocking("keep statistics", move || worker.save_statistics()).await;
    }
}

/// Whether a session has something to write.
fn is_due(session: &Session, is_asked: bool) -> bool {
    let may_write = session.forecast.is_some() && session.may_write();
    may_write && (is_asked || !session.is_live()) && session.unwritten().is_some()
}

impl Recorder {
    /// Writes what ended sessions have used, or all if somebody asks; false if something is left.
    pub(super) async fn write(&self, cache: &Cache, is_asked: bool) -> bool {
        let _turn = self.turn.acquire().await.expect("it is never closed");
        let mut is_done = true;
        for session in cache.sessions().list() {
            if !is_due(&session, is_asked) {
                continue;
            }
            if let (Some(forecast), Some(used)) = (&session.forecast, session.unwritten()) {
                match write_one(cache, &session, forecast, &used).await {
                    Ok(()) => session.written(used.len()),
                    Err(error) if is_final(&error) => {
                        tracing::info!(%error, "upstream: no manifest is written for this build");
                        session.written(used.len());
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a manifest was not written");
                        is_done = false;
                    }
                }
            }
        }
        is_done
    }

    /// As `write`, for somebody who waits no longer than `within`.
    pub(super) async fn write_within(&self, cache: &Cache, within: Duration) {
        // What is not written then is lost at worst, and costs a head start.
        let _ = tokio::time::timeout(within, self.write(cache, true)).await;
    }
}

/// Whether asking again would have the same answer.
const fn is_final(error: &BackendError) -> bool {
    matches!(error, BackendError::Denied(_)) || !error.may_pass()
}

async fn write_one(
    cache: &Cache,
    session: &Session,
    forecast: &Arc<Forecast>,
    used: &[Digest],
) -> Result<(), BackendError> {
    let realm = &forecast.aim.realm;
    let Some(upstream) = realm.writes_to().filter(|_| !cache.config().read_only) else {
        return Ok(());
    };
    let began = Instant::now();
    // A command before the checkout may have known less of what is built than the build does.
    let aim = Aim { branch: session.branch.clone(), ..forecast.aim.clone() };
    let gathered = rows::gather(cache, forecast, upstream, used).await?;
    if gathered.manifest.rows.is_empty() {
        return Ok(());
    }
    let rows = gathered.manifest.rows.len();
    let mut has_news: fn(&Manifest, &Manifest) -> bool = Manifest::has_news_for;
    for _ in 0..ROUNDS_MAX {
        let round = Instant::now();
        let expected = forecast.fullest.load(Ordering::Relaxed);
        if !add(cache, &aim, expected, upstream, &gathered, has_news).await? {
            break;
        }
        // Where frames are, each of two writers may go on to say differently, and both be right.
        has_news = Manifest::has_actions_for;
        // Who has read before this was written, and writes over it, has done so by then: unless its
        // way is longer than ours.
        sleep(round.elapsed().min(ROUND_PAUSE_MAX)).await;
    }
    cache.forecasts().forget(forecast);
    tracing::info!(
        scope = %forecast.aim.scope,
        commit = %forecast.aim.commit,
        rows = %show_count(rows as u64),
        ms = began.elapsed().as_millis(),
        "manifest written"
    );
    Ok(())
}

/// Writes what upstream does not have yet into its manifest and its trails; false if there is
/// nothing to write.
async fn add(
    cache: &Cache,
    aim: &Aim,
    expected: usize,
    upstream: &Upstream,
    gathered: &Gathered,
    has_news: fn(&Manifest, &Manifest) -> bool,
) -> Result<bool, BackendError> {
    let head = name_of_manifest(&aim.realm, &aim.scope, &aim.commit);
    let branch = name_of_trail(&aim.realm, &aim.scope, &aim.branch);
    let scope = name_of_scope_trail(&aim.realm, &aim.scope);
    let (there, trail, of_scope) = join3(
        read(cache, upstream, &head, manifest::SIZE_MAX, Manifest::decode),
        read_trail(cache, upstream, &branch, (&aim.scope, &aim.branch)),
        read_trail(cache, upstream, &scope, (&aim.scope, trail::ALL_BRANCHES)),
    )
    .await;
    let there = there?.filter(|there| there.is_of(&aim.scope, &aim.commit));
    let trail = trail?;
    let mut manifest = gathered.manifest.clone();
    if let Some(there) = &there {
        // What is only known from an older one of theirs does not go over a newer one.
        manifest.take_places(there, |row| gathered.hearsay.contains(&row.action));
    }
    let is_told = there.as_ref().is_some_and(|there| !has_news(&manifest, there));
    // Who writes over a trail that he has read before puts an older row of this commit back.
    let is_known = there.as_ref().map(TrailRow::of).is_none_or(|now| {
        let is_as_full = |row: &TrailRow| row.rows >= now.rows && row.complete >= now.complete;
        trail.rows.iter().any(|row| row.commit == *aim.commit && is_as_full(row))
    });
    if is_told && is_known {
        return Ok(false);
    }
    let mut merged = match there {
        Some(there) => manifest.merge(there),
        None => manifest,
    };
    let now = cache.clock().now();
    merged.complete |= is_complete(&merged, &trail, expected, now);
    let row = TrailRow::of(&merged);
    put(upstream, &head, merged.encode()).await?;
    // A hint for builds that have no other: neither a fault nor another version's holds anything up.
    let hint = async {
        if let Ok(of_scope) = of_scope {
            let _ = add_to_trail(upstream, &scope, row.clone(), of_scope, now).await;
        }
    };
    let (added, ()) = join(add_to_trail(upstream, &branch, row.clone(), trail, now), hint).await;
    added?;
    cache.metrics().manifests_written.inc();
    Ok(true)
}

/// A trail that there is not has no rows.
async fn read_trail(
    cache: &Cache,
    upstream: &Upstream,
    name: &Name,
    (scope, branch): (&str, &str),
) -> Result<Trail, BackendError> {
    let trail = read(cache, upstream, name, trail::SIZE_MAX, Trail::decode).await?;
    let trail = trail.filter(|trail| trail.is_of(scope, branch));
    let (scope, branch) = (scope.to_owned(), branch.to_owned());
    Ok(trail.unwrap_or(Trail { scope, branch, rows: Vec::new() }))
}

async fn add_to_trail(
    upstream: &Upstream,
    name: &Name,
    mut row: TrailRow,
    trail: Trail,
    now: Timestamp,
) -> Result<(), BackendError> {
    // The newest stands first, whatever the clocks of other writers say; of two at one time the commit
    // would decide.
    let after = |first: &TrailRow| Timestamp(first.written.0.saturating_add(1));
    row.written = trail.rows.first().map_or(row.written, |first| row.written.max(after(first)));
    let news = Trail { rows: vec![row], ..trail.clone() };
    put(upstream, name, news.merge(trail, now).encode()).await
}

/// What stands there now. Only what is absent or damaged may be written over: a fault hides what is
/// there, and another version is somebody else's.
async fn read<T>(
    cache: &Cache,
    upstream: &Upstream,
    name: &Name,
    limit: usize,
    decode: fn(&[u8]) -> Result<T, FormatError>,
) -> Result<Option<T>, BackendError> {
    let value = cache.read_value(upstream, name, limit as u64).await;
    let Some(bytes) = value.map_err(BackendError::Unsure)? else { return Ok(None) };
    match decode(&bytes) {
        Ok(there) => Ok(Some(there)),
        Err(FormatError::Version(version)) => {
            tracing::info!(%name, version, "upstream: what stands there is of another version");
            Err(BackendError::ReadOnly)
        }
        Err(_) => Ok(None),
    }
}

async fn put(upstream: &Upstream, name: &Name, bytes: Vec<u8>) -> Result<(), BackendError> {
    upstream.backend.put(name, Upload::bytes(bytes.into())).await
}

/// Whether a build has used about as much as was expected of it, and as the fullest one that the trail
/// knows. Where there is nothing to compare it with, it may have broken off.
fn is_complete(manifest: &Manifest, trail: &Trail, expected: usize, now: Timestamp) -> bool {
    let row = TrailRow::of(manifest);
    let fullest = trail.current(now).map(|other| other.rows).max().unwrap_or(0);
    let is_enough = |rows: u32| f64::from(rows) >= expected as f64 * COMPLETE;
    expected.max(fullest as usize) > 0
        && (is_enough(row.rows) || is_enough(fullest))
        && trail.current(now).all(|other| !row.is_part_of(other))
}

#[cfg(test)]
mod tests;

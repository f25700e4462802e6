//! Writes down what builds have used, so that the next machine can fetch it before it asks.
//!
//! When a session has ended, or somebody waits for its uploads: the rows of its manifest are
//! gathered (`rows`), frames that stand in no pack are packed, manifest and trail are read, merged
//! and written. Packs go first, so that a manifest never names what is not there. What could not be
//! written is tried again; what is lost with the process costs the next machine its head start.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::backend::{BackendError, Name, Upload};
use crate::cache::Cache;
use crate::cache::forecast::Forecast;
use crate::cache::realm::Upstream;
use crate::cache::session::Session;
use crate::entry::Digest;
use crate::manifest::trail::{self, Trail, TrailRow};
use crate::manifest::{self, FormatError, Manifest};
use crate::units::show_count;
use crate::worker::desk::Desk;
use crate::worker::prefetcher::{name_of_manifest, name_of_trail};
use crate::worker::uploader::Uploads;

mod rows;

use rows::Gathered;

/// Helpers of one build come and go: what follows this quickly is written together.
const QUIET: Duration = Duration::from_millis(300);
/// Uploads of a session are given so long before its manifest is tried.
const UPLOADS_WAIT: Duration = Duration::from_secs(120);
/// What could not be written is tried again after so long.
const AGAIN: Duration = Duration::from_secs(30);
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
    loop {
        desk.woke();
        desk.set_state(if is_left { "waiting for upstream" } else { "idle" });
        tokio::select! {
            () = cache.sessions().told() => sleep(QUIET).await,
            () = sleep(AGAIN), if is_left => {}
            () = shutdown.wait() => return,
        }
        desk.set_state("writing manifests");
        if cache.sessions().list().iter().any(|session| is_due(session, false)) {
            let request = uploads.request();
            cache.wake_uploader();
            tokio::select! {
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
                match write_one(cache, forecast, &used).await {
                    Ok(()) => session.written(used.len()),
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

async fn write_one(
    cache: &Cache,
    forecast: &Arc<Forecast>,
    used: &[Digest],
) -> Result<(), BackendError> {
    let realm = &forecast.aim.realm;
    let Some(upstream) = realm.writes_to().filter(|_| !cache.config().read_only) else {
        return Ok(());
    };
    let began = Instant::now();
    let gathered = rows::gather(cache, forecast, upstream, used).await?;
    if gathered.manifest.rows.is_empty() {
        return Ok(());
    }
    let rows = gathered.manifest.rows.len();
    let mut has_news: fn(&Manifest, &Manifest) -> bool = Manifest::has_news_for;
    for _ in 0..ROUNDS_MAX {
        let round = Instant::now();
        if !add(cache, forecast, upstream, &gathered, has_news).await? {
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

/// Writes what upstream does not have yet into its manifest and its trail; false if there is
/// nothing to write.
async fn add(
    cache: &Cache,
    forecast: &Arc<Forecast>,
    upstream: &Upstream,
    gathered: &Gathered,
    has_news: fn(&Manifest, &Manifest) -> bool,
) -> Result<bool, BackendError> {
    let aim = &forecast.aim;
    let head = name_of_manifest(&aim.realm, &aim.scope, &aim.commit);
    let branch = name_of_trail(&aim.realm, &aim.scope, &aim.branch);
    let (there, trail) = join(
        read(cache, upstream, &head, manifest::SIZE_MAX, Manifest::decode),
        read(cache, upstream, &branch, trail::SIZE_MAX, Trail::decode),
    )
    .await;
    let (there, trail) = (there?, trail?);
    let trail = trail.unwrap_or_else(|| Trail {
        scope: aim.scope.to_string(),
        branch: aim.branch.to_string(),
        rows: Vec::new(),
    });
    let mut manifest = gathered.manifest.clone();
    if let Some(there) = &there {
        // What is only known from an older one of theirs does not go over a newer one.
        manifest.take_places(there, |row| gathered.hearsay.contains(&row.action));
    }
    let is_told = there.as_ref().is_some_and(|there| !has_news(&manifest, there));
    let is_known = trail.rows.iter().any(|row| row.commit == *aim.commit);
    if is_told && is_known {
        return Ok(false);
    }
    let mut merged = match there {
        Some(there) => manifest.merge(there),
        None => manifest,
    };
    merged.complete |= is_complete(&merged, &trail);
    let row = row_of(&merged);
    put(upstream, &head, merged.encode()).await?;
    let news = Trail { rows: vec![row], ..trail.clone() };
    put(upstream, &branch, news.merge(trail).encode()).await?;
    cache.metrics().manifests_written.inc();
    Ok(true)
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
            Err(BackendError::Broken(format!("{name} is of version {version}, which is not ours")))
        }
        Err(_) => Ok(None),
    }
}

async fn put(upstream: &Upstream, name: &Name, bytes: Vec<u8>) -> Result<(), BackendError> {
    upstream.backend.put(name, Upload::bytes(bytes.into())).await
}

/// Whether a build has used about as much as the fullest one that the trail knows.
fn is_complete(manifest: &Manifest, trail: &Trail) -> bool {
    let fullest = trail.rows.iter().map(|row| row.rows).max().unwrap_or(0);
    manifest.rows.len() as f64 >= f64::from(fullest) * COMPLETE
}

fn row_of(manifest: &Manifest) -> TrailRow {
    TrailRow {
        commit: manifest.commit.clone(),
        written: manifest.written,
        writer: manifest.writer.clone(),
        rows: u32::try_from(manifest.rows.len()).unwrap_or(u32::MAX),
        bytes: manifest.bytes_by_pack().iter().sum(),
        complete: manifest.complete,
        packs: manifest.packs.clone(),
    }
}

#[cfg(test)]
mod tests;

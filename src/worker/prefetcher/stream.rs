//! One request of a plan: its frames are cut out of the stream as it arrives, unpacked and kept.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;

use crate::backend::{BackendError, Fetched};
use crate::cache::Cache;
use crate::cache::forecast::Forecast;
use crate::worker::prefetcher::End;
use crate::worker::prefetcher::plan::{Part, Unit};
use crate::worker::prefetcher::turns::Turns;

/// Transfers that last less say nothing about bandwidth.
const MEASURED_FROM: u64 = 256 << 10;

/// What it takes to keep a frame.
#[derive(Clone)]
pub(super) struct Keeping {
    /// At unpacking, shared by all streams: what was used first goes first, whichever stream brings it.
    pub(super) turns: Arc<Turns>,
    /// Held until it is kept.
    pub(super) end: End,
}

/// In which order a build's frames are unpacked, among themselves and with those of others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    /// Turns that had been taken when it began: whoever comes later stands behind as many.
    before: u64,
}

impl Order {
    pub(super) fn begin(turns: &Turns) -> Self {
        Self { before: turns.taken() }
    }

    /// Frames are cut out of a stream one after the other, so that each is needed as soon as those behind
    /// it; what a build waits for is needed first of all.
    pub(super) fn settle(self, parts: &mut [Part], is_urgent: bool) {
        let mut least = if is_urgent { 0 } else { usize::MAX };
        for part in parts.iter_mut().rev() {
            least = least.min(part.first);
            part.turn = self.before.saturating_add(least as u64);
        }
    }
}

/// Fetches a unit; what does not come is left to those who need it. A unit comes back that is a part
/// of an object whose upstream would send all of it.
pub(super) async fn fetch(
    cache: Cache,
    forecast: Arc<Forecast>,
    unit: Unit,
    keeping: Keeping,
) -> Option<Unit> {
    let Some(name) = &unit.name else {
        let expected = unit.parts.into_iter().flat_map(|part| part.expected);
        join_all(expected.map(|expected| cache.ask_ahead(&unit.realm, &forecast, expected))).await;
        return None;
    };
    let upstream = unit.realm.upstream.clone()?;
    let began = cache.clock().elapsed();
    let start = unit.part.as_ref().map_or(0, |part| part.start);
    let fetched = match unit.part.clone() {
        Some(part) => match upstream.backend.get_part(name, part).await {
            Ok(Some(found)) if found.is_whole && start > 0 => return Some(unit),
            found => found.map(|found| found.map(|found| found.fetched)),
        },
        None => upstream.backend.get(name).await,
    };
    let headed = cache.clock().elapsed();
    let got = receive(&cache, &forecast, unit, start, fetched, &keeping).await;
    let took = cache.clock().elapsed().saturating_sub(headed);
    if got >= MEASURED_FROM && took > Duration::ZERO {
        cache.learn_transfer(&upstream, got, took.min(alone(&forecast, got)));
    }
    tracing::trace!(got, ms = (headed - began).as_millis(), "a unit came");
    None
}

/// How long so many bytes would take if nothing else came: many streams share the link.
fn alone(forecast: &Forecast, bytes: u64) -> Duration {
    let together = forecast.bytes_per_ms();
    if together > 0.0 {
        Duration::from_secs_f64(bytes as f64 / together / 1000.0)
    } else {
        Duration::MAX
    }
}

/// Cuts frames out of what arrives; how many bytes that were.
async fn receive(
    cache: &Cache,
    forecast: &Arc<Forecast>,
    unit: Unit,
    start: u64,
    fetched: Result<Option<Fetched>, BackendError>,
    keeping: &Keeping,
) -> u64 {
    let realm = unit.realm.id;
    let mut parts: VecDeque<Part> = unit.parts.into();
    let mut chunks = match fetched {
        Ok(Some(fetched)) => fetched.chunks,
        Ok(None) | Err(_) => {
            leave(cache, forecast, realm, parts, fetched.is_ok());
            return 0;
        }
    };
    let mut at = start;
    let mut frame: Vec<Bytes> = Vec::new();
    // What follows the last frame is nobody's.
    while !parts.is_empty()
        && let Some(Ok(mut chunk)) = chunks.next().await
    {
        while let Some(part) = parts.front() {
            let end = at + chunk.len() as u64;
            let skip = part.at.start.saturating_sub(at).min(chunk.len() as u64);
            let take = part.at.end.min(end).saturating_sub(at);
            let (skip, take) =
                (usize::try_from(skip).unwrap_or(0), usize::try_from(take).unwrap_or(0));
            if take > skip {
                frame.push(chunk.slice(skip..take));
            }
            if part.at.end > end {
                break;
            }
            let rest = chunk.split_off(take);
            at += take as u64;
            chunk = rest;
            if let Some(part) = parts.pop_front() {
                forecast.arrived_bytes.fetch_add(part.at.end - part.at.start, Ordering::Relaxed);
                let frame = std::mem::take(&mut frame);
                keep(cache, forecast, realm, part, frame, keeping.clone()).await;
            }
        }
        at += chunk.len() as u64;
    }
    leave(cache, forecast, realm, parts, false);
    at - start
}

/// Unpacks a frame on a thread of its own, in its turn.
async fn keep(
    cache: &Cache,
    forecast: &Arc<Forecast>,
    realm: crate::entry::RealmId,
    part: Part,
    frame: Vec<Bytes>,
    Keeping { turns, end }: Keeping,
) {
    let turn = turns.take(part.turn).await;
    let (worker, forecast) = (cache.clone(), forecast.clone());
    let keeping = async move {
        let work = {
            let worker = worker.clone();
            move || worker.keep_ahead(realm, &forecast, part.expected, &frame)
        };
        worker.tasks().blocking("unpack", work).await;
        drop((turn, end));
    };
    cache.tasks().spawn("unpack", keeping);
}

/// What did not come is asked for by those who need it.
fn leave(
    cache: &Cache,
    forecast: &Forecast,
    realm: crate::entry::RealmId,
    parts: VecDeque<Part>,
    is_gone: bool,
) {
    // Nobody waits behind it any more.
    let bytes = parts.iter().map(|part| part.at.end - part.at.start);
    forecast.skipped_bytes.fetch_add(bytes.fold(0, u64::saturating_add), Ordering::Relaxed);
    for expected in parts.into_iter().flat_map(|part| part.expected) {
        forecast.left(&expected.row.action);
        if is_gone {
            // Upstream has lost it: a build of it must be sent again.
            cache.frames().remove(realm, &expected.row.output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(firsts: &[usize]) -> Vec<Part> {
        let part = |first: &usize| Part {
            at: 0..1,
            expected: Vec::new(),
            first: *first,
            turn: 0,
            before: 0,
        };
        firsts.iter().map(part).collect()
    }

    /// A frame that is needed late once held up those behind it in its stream.
    #[test]
    fn a_frame_is_needed_as_soon_as_those_behind_it_and_what_a_build_waits_for_first() {
        let order = Order { before: 100 };
        let cases: [(&[usize], bool, &[u64]); 4] = [
            (&[0, 1, 2], false, &[100, 101, 102]),
            (&[900, 3, 4], false, &[103, 103, 104]),
            (&[7, 900, 5, 6], false, &[105, 105, 105, 106]),
            (&[900, 3], true, &[100, 100]),
        ];
        for (firsts, is_urgent, expected) in cases {
            let mut parts = parts(firsts);
            order.settle(&mut parts, is_urgent);
            let turns: Vec<u64> = parts.iter().map(|part| part.turn).collect();
            assert_eq!(turns, expected, "{firsts:?}");
        }
    }
}

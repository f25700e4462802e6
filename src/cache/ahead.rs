//! What is fetched ahead of a build: outputs that manifests name, kept before anybody asks for them.
//!
//! Each is a flight from the moment that it is planned, so that whoever asks joins it. A worker
//! plans and fetches; here are the steps that touch the tiers.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use zstd::bulk::Decompressor;

use crate::backend::Name;
use crate::cache::flight::{End, Joined, Leader};
use crate::cache::forecast::Forecast;
use crate::cache::realm::{Realm, Upstream};
use crate::cache::unpack::Unpacking;
use crate::cache::{Cache, policy};
use crate::entry::{Digest, Key, Meta, RealmId, Why};
use crate::manifest::{self, Row};
use crate::store::file::Finished;
use crate::store::record::Place;

/// Outputs up to this size are unpacked in memory and written as a whole; few at a time.
const AT_ONCE_MAX: u64 = 8 << 20;

/// An entry that is on its way. Dropping it tells whoever waits for it to ask.
#[derive(Debug)]
pub struct Expected {
    pub row: Row,
    leader: Leader,
}

impl Expected {
    fn meta(&self) -> Meta {
        let row = &self.row;
        let mut meta = Meta::new(row.output, row.size, row.stored, row.class);
        meta.cost_ms = row.cost_ms;
        meta.c_env = row.c_env;
        meta
    }
}

impl Cache {
    /// Whether the action's output is in place. Blocks.
    pub fn has_go(&self, realm: RealmId, action: &Digest) -> bool {
        self.inner.store.find_go(&Key::go(realm, *action)).is_some()
    }

    /// The realm whose upstream has this row, where that is another than the manifest's.
    pub fn elsewhere_of<'a>(&self, realm: &'a Realm, row: &Row) -> Option<&'a Arc<Realm>> {
        // An empty output needs nobody's bytes, and a frame's place is one in the manifest's realm.
        let is_asked = row.place == manifest::Place::Ask;
        let name = policy::upstream_of(row.class, &self.inner.config.classes);
        realm.elsewhere_at(name.filter(|_| is_asked))
    }

    /// Whether an output is in place under its digest, whoever it was for. Blocks.
    pub fn has_output(&self, output: &Digest) -> bool {
        let key = Key::content(*output);
        self.inner
            .store
            .find(&key)
            .is_some_and(|row| row.place == Place::File && self.inner.store.is_sound(&key, &row))
    }

    /// Begins the flight of an entry; None if somebody fetches it already.
    pub fn expect(&self, realm: RealmId, row: Row) -> Option<Expected> {
        match self.inner.flights.join(realm, &Key::go(realm, row.action)) {
            Joined::First(leader, _) => Some(Expected { row, leader }),
            Joined::Later(_) => None,
        }
    }

    /// Asks for what is expected as a single question of its own; returns when it is answered.
    pub async fn ask_ahead(&self, realm: &Realm, forecast: &Forecast, expected: Expected) {
        let Some(upstream) = realm.upstream.clone() else { return };
        let (action, bytes) = (expected.row.action, expected.row.size);
        let key = Key::go(realm.id, action);
        let name = realm.name_of(&key);
        let question = policy::statistics::Kind::Listed;
        self.clone().fly(expected.leader, upstream, realm.id, name, key.clone(), question).await;
        if self.inner.store.find_go(&key).is_some() {
            forecast.brought(bytes);
            forecast.arrived(&action, true);
        } else {
            forecast.left(&action);
        }
    }

    /// Unpacks a frame and keeps its output for all entries that name it; false if the frame is not
    /// what they say, or there is no room. Blocks.
    pub fn keep_ahead(
        &self,
        realm: RealmId,
        forecast: &Forecast,
        expected: Vec<Expected>,
        frame: &[Bytes],
    ) -> bool {
        let Some((output, size)) = expected.first().map(|e| (e.row.output, e.row.size)) else {
            return true;
        };
        // Where there is no room for it, the frame may be sound all the same.
        let finished = self.has_room(size).then(|| self.unpack_ahead(&output, size, frame));
        if matches!(finished, Some(None)) {
            // Nobody shall rely on this frame: a build of the output is sent again.
            self.inner.frames.spoil(realm, &output);
        }
        let place = |mut finished: Finished| self.inner.store.place(&mut finished).is_ok();
        let kept = finished.flatten().is_some_and(place);
        if kept {
            forecast.brought(frame.iter().map(|piece| piece.len() as u64).sum());
            self.record_ahead(realm, forecast, expected, true);
        } else {
            expected.iter().for_each(|e| forecast.left(&e.row.action));
        }
        kept
    }

    fn unpack_ahead(&self, output: &Digest, size: u64, frame: &[Bytes]) -> Option<Finished> {
        let finished = if size <= AT_ONCE_MAX {
            // Never more than the row says: there is no room for it.
            let output = decompress(&whole(frame), usize::try_from(size).ok()?);
            Finished::of(output.ok()?)
        } else {
            let mut unpacking = Unpacking::new(self.inner.store.stage(), size).ok()?;
            let fed = frame.iter().try_for_each(|piece| unpacking.feed(piece));
            fed.and_then(|()| unpacking.finish()).ok()?
        };
        if finished.digest != *output || finished.size != size {
            self.inner.metrics.corrupt.inc();
            tracing::warn!(%output, "upstream: a frame that is not what the manifest says was not taken");
            return None;
        }
        Some(finished)
    }

    /// Records entries whose output is in place. Blocks.
    pub fn record_ahead(
        &self,
        realm: RealmId,
        forecast: &Forecast,
        expected: Vec<Expected>,
        is_fetched: bool,
    ) {
        for entry in expected {
            let key = Key::go(realm, entry.row.action);
            let meta = entry.meta();
            let seen = self.inner.store.seen(&key);
            if let Some(row) = self.inner.store.find_go(&key) {
                // Put here while it was fetched: theirs was acknowledged, and is newer.
                forecast.arrived(&entry.row.action, false);
                entry.leader.end(End::Stored(row.meta()));
                continue;
            }
            match self.inner.store.record_fetched(&key, &meta, seen) {
                Ok(()) => {
                    forecast.arrived(&entry.row.action, is_fetched);
                    self.inner.absent.remove(realm, &key);
                    entry.leader.end(End::Stored(meta));
                }
                Err(error) => {
                    tracing::debug!(%key, %error, "fetched ahead but not kept");
                    forecast.left(&entry.row.action);
                }
            }
        }
    }

    /// The output that is empty, in place as a file. Blocks.
    pub fn place_empty(&self) -> bool {
        self.has_output(&Digest::EMPTY)
            || self.inner.store.place(&mut self.inner.store.stage().finish()).is_ok()
    }

    /// A small value as it is now at its source: no tier, here or on the way, may answer with an
    /// older one.
    pub async fn read_value(
        &self,
        upstream: &Upstream,
        name: &Name,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, Why> {
        match self.fetch_fresh(upstream, name, limit).await {
            Ok(value) => Ok(Some(value)),
            Err(End::Failed(Why::Absent)) => Ok(None),
            Err(End::Failed(why)) => Err(why),
            Err(End::Stored(_) | End::Held(..)) => Err(Why::Fault),
        }
    }
}

/// What is in a frame, if that is no more than `size`, by this thread's own decompressor.
fn decompress(frame: &[u8], size: usize) -> std::io::Result<Vec<u8>> {
    thread_local! {
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }
    DECOMPRESSOR.with_borrow_mut(|own| {
        let decompressor = match own {
            Some(decompressor) => decompressor,
            None => own.insert(Decompressor::new()?),
        };
        decompressor.decompress(frame, size)
    })
}

/// The pieces in one.
fn whole(frame: &[Bytes]) -> Cow<'_, [u8]> {
    match frame {
        [piece] => Cow::Borrowed(piece),
        pieces => Cow::Owned(pieces.concat()),
    }
}

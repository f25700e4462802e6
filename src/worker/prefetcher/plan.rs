//! What is fetched, in which order: entries that are not here, by where their frames stand.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use crate::backend::{Name, Space};
use crate::cache::Cache;
use crate::cache::ahead::Expected;
use crate::cache::forecast::Listed;
use crate::cache::realm::Realm;
use crate::entry::{Digest, RealmId};
use crate::manifest::{Manifest, Place, Row};

/// Frames in one pack that lie this near to each other come in one request.
const GAP_MAX: u64 = 256 << 10;
/// A request for a part of a pack asks for no more. The first ones are short: connections that have
/// just been made are slow, and many at once fill the link sooner than few.
const SPAN_MAX: u64 = 2 << 20;
const SPAN_FIRST: u64 = 512 << 10;
/// So many bytes are asked for shortly.
const FIRST_BYTES: u64 = 8 << 20;

/// A frame that stands alone is held in memory up to this length; what is longer streams to disk
/// when its entry is asked for.
const ALONE_MAX: u64 = 8 << 20;
/// Entries that are asked for by themselves at once, for each stream.
const ASKED_MAX: usize = 8;

/// One frame, for all entries whose output it holds.
pub(super) struct Part {
    /// Within the object upstream.
    pub(super) at: Range<u64>,
    pub(super) expected: Vec<Expected>,
    /// Row of the manifest that needs it first.
    pub(super) first: usize,
    /// When it is unpacked: see `stream::Order`.
    pub(super) turn: u64,
    /// Bytes that are needed sooner.
    pub(super) before: u64,
}

impl Part {
    /// Of a frame whose place nobody says, as far as its output tells.
    fn expected_bytes(&self) -> u64 {
        self.expected.first().map_or(0, |expected| frame_bytes(&expected.row))
    }
}

/// What one request brings.
pub(super) struct Unit {
    pub(super) realm: Arc<Realm>,
    /// None: each entry is asked for by itself.
    pub(super) name: Option<Name>,
    /// None: the whole object.
    pub(super) part: Option<Range<u64>>,
    /// In order of where they are.
    pub(super) parts: Vec<Part>,
}

impl Unit {
    fn first(&self) -> usize {
        self.parts.iter().map(|part| part.first).min().unwrap_or(usize::MAX)
    }

    /// Requests that it takes.
    pub(super) fn requests(&self) -> usize {
        if self.name.is_some() { 1 } else { self.parts.len() }
    }

    /// What comes over the link for it: of an object that comes whole, all up to its last frame.
    pub(super) fn link_bytes(&self) -> u64 {
        match (&self.name, &self.part) {
            (Some(_), Some(part)) => part.end.saturating_sub(part.start),
            (Some(_), None) => self.parts.iter().map(|part| part.at.end).max().unwrap_or(0),
            (None, _) => {
                self.parts.iter().map(|part| part.expected_bytes()).fold(0, u64::saturating_add)
            }
        }
    }

    /// Of the outputs that it brings.
    pub(super) fn size(&self) -> u64 {
        let first = |part: &Part| part.expected.first().map_or(0, |expected| expected.row.size);
        self.parts.iter().map(first).fold(0, u64::saturating_add)
    }
}

#[derive(Default)]
pub(super) struct Plan {
    pub(super) listed: Vec<(Digest, Listed)>,
    /// Entries whose outputs are here, or empty.
    pub(super) known: Vec<(RealmId, Vec<Expected>)>,
    pub(super) units: Vec<Unit>,
}

/// Plans for the manifests of some realms, nearest first. Blocks: it looks at what is here.
pub(super) fn make(cache: &Cache, manifests: Vec<(Arc<Realm>, Manifest)>) -> Plan {
    let mut plan = Plan::default();
    let mut before = 0;
    for (realm, manifest) in manifests {
        one_realm(cache, &realm, &manifest, &mut plan, &mut before);
    }
    plan.units.sort_by_key(Unit::first);
    plan
}

fn one_realm(
    cache: &Cache,
    realm: &Arc<Realm>,
    manifest: &Manifest,
    plan: &mut Plan,
    before: &mut u64,
) {
    let mut wanted = Wanted::default();
    let mut elsewhere: HashMap<RealmId, (Arc<Realm>, Wanted)> = HashMap::new();
    let mut known = Vec::new();
    let has_empty = cache.place_empty();
    for (first, row) in manifest.rows.iter().enumerate() {
        let frame_bytes = frame_bytes(row);
        let listed = Listed::new(row.cost_ms, frame_bytes, *before);
        let other = cache.elsewhere_of(realm, row);
        let is_there = |realm: &Realm| cache.has_go(realm.id, &row.action);
        if is_there(realm) || other.is_some_and(|other| is_there(other)) {
            plan.listed.push((row.action, listed.there()));
            continue;
        }
        plan.listed.push((row.action, listed));
        if let Some(other) = other {
            if let Some(expected) = cache.expect(other.id, *row) {
                let (_, wanted) =
                    elsewhere.entry(other.id).or_insert_with(|| (other.clone(), Wanted::default()));
                wanted.add(manifest, expected, first, *before);
            }
            continue;
        }
        let Some(expected) = cache.expect(realm.id, *row) else { continue };
        let is_here = row.place == Place::Empty && has_empty || cache.has_output(&row.output);
        if is_here {
            known.push(expected);
        } else if wanted.add(manifest, expected, first, *before) {
            // Single questions come beside the streams.
            let streamed = if row.place == Place::Ask { 0 } else { frame_bytes };
            *before = before.saturating_add(streamed);
        }
    }
    plan.known.push((realm.id, known));
    wanted.into_units(realm, &mut plan.units);
    for (realm, wanted) in elsewhere.into_values() {
        wanted.into_units(&realm, &mut plan.units);
    }
}

const fn frame_bytes(row: &Row) -> u64 {
    match row.place {
        Place::Empty => 0,
        Place::Pack { len, .. } => len as u64,
        Place::Frame { size, .. } => size,
        // Nobody says; frames are about a quarter of what they hold.
        Place::Ask => row.size / 4,
    }
}

/// Frames by the object that they are in.
#[derive(Default)]
struct Wanted {
    /// Parts by pack, and the part of each output.
    packs: HashMap<Digest, Vec<Part>>,
    alone: Vec<(Digest, Part)>,
    asked: Vec<Part>,
    outputs: HashMap<Digest, Slot>,
}

#[derive(Clone, Copy)]
enum Slot {
    Pack(Digest, usize),
    Alone(usize),
}

impl Wanted {
    /// False if the frame is on its way for another entry.
    fn add(&mut self, manifest: &Manifest, expected: Expected, first: usize, before: u64) -> bool {
        let row = expected.row;
        match self.outputs.get(&row.output) {
            Some(Slot::Pack(pack, at)) => {
                if let Some(part) = self.packs.get_mut(pack).and_then(|parts| parts.get_mut(*at)) {
                    part.expected.push(expected);
                }
                return false;
            }
            Some(Slot::Alone(at)) => {
                self.alone[*at].1.expected.push(expected);
                return false;
            }
            None => {}
        }
        let part = |at, expected| Part { at, expected: vec![expected], first, turn: 0, before };
        match row.place {
            Place::Pack { pack, offset, len } => {
                let pack = manifest.packs.get(pack as usize).map(|pack| pack.digest);
                let Some(pack) = pack else { return false };
                let parts = self.packs.entry(pack).or_default();
                self.outputs.insert(row.output, Slot::Pack(pack, parts.len()));
                parts.push(part(offset..offset + u64::from(len), expected));
            }
            Place::Frame { digest, size } if size <= ALONE_MAX => {
                self.outputs.insert(row.output, Slot::Alone(self.alone.len()));
                self.alone.push((digest, part(0..size, expected)));
            }
            Place::Empty | Place::Ask | Place::Frame { .. } => {
                self.asked.push(part(0..0, expected))
            }
        }
        true
    }

    fn into_units(self, realm: &Arc<Realm>, units: &mut Vec<Unit>) {
        let in_cas = |digest: &Digest| Name {
            namespace: realm.namespace.clone(),
            space: Space::Cas,
            id: digest.to_string(),
        };
        for (pack, parts) in self.packs {
            for parts in spans(parts) {
                let from = parts.first().map_or(0, |part| part.at.start);
                let to = parts.last().map_or(0, |part| part.at.end);
                let (realm, name) = (realm.clone(), Some(in_cas(&pack)));
                units.push(Unit { realm, name, part: Some(from..to), parts });
            }
        }
        for (digest, part) in self.alone {
            let (realm, name) = (realm.clone(), Some(in_cas(&digest)));
            units.push(Unit { realm, name, part: None, parts: vec![part] });
        }
        let mut asked = self.asked.into_iter().peekable();
        while asked.peek().is_some() {
            let parts = asked.by_ref().take(ASKED_MAX).collect();
            units.push(Unit { realm: realm.clone(), name: None, part: None, parts });
        }
    }
}

/// Cuts what is wanted of a pack into requests.
fn spans(mut parts: Vec<Part>) -> Vec<Vec<Part>> {
    parts.sort_by_key(|part| part.at.start);
    let mut spans: Vec<Vec<Part>> = Vec::new();
    for part in parts {
        let fits = spans.last().is_some_and(|span| {
            let from = span.first().map_or(0, |first| first.at.start);
            let to = span.last().map_or(0, |last| last.at.end);
            let is_early = span.first().is_some_and(|first| first.before < FIRST_BYTES);
            let most = if is_early { SPAN_FIRST } else { SPAN_MAX };
            part.at.start >= to && part.at.start - to <= GAP_MAX && part.at.end - from <= most
        });
        match spans.last_mut() {
            Some(span) if fits => span.push(part),
            _ => spans.push(vec![part]),
        }
    }
    spans
}

/// What waits, and what came back because its upstream knows no ranges: from there, one request for
/// each object, which brings all that is wanted of it. In order of first use.
pub(super) fn whole(returned: Vec<Unit>, waiting: impl IntoIterator<Item = Unit>) -> Vec<Unit> {
    let without_ranges: HashSet<RealmId> = returned.iter().map(|unit| unit.realm.id).collect();
    let mut merged: Vec<Unit> = Vec::new();
    let mut places: HashMap<(RealmId, Name), usize> = HashMap::new();
    for mut unit in returned.into_iter().chain(waiting) {
        let place = unit.name.clone().map(|name| (unit.realm.id, name));
        if without_ranges.contains(&unit.realm.id)
            && unit.part.take().is_some()
            && let Some(place) = place
        {
            if let Some(at) = places.get(&place) {
                merged[*at].parts.append(&mut unit.parts);
                continue;
            }
            places.insert(place, merged.len());
        }
        merged.push(unit);
    }
    for unit in &mut merged {
        unit.parts.sort_by_key(|part| part.at.start);
    }
    merged.sort_by_key(Unit::first);
    merged
}

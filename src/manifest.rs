//! What a session used, so that the next one starts warm: manifests, trails and packs, as bytes.
//!
//! - A **manifest** lists what one session used, in order of first use: each action, its output, and
//!   where the output's zstd frame is. One per (scope, commit); `encoding` has its bytes.
//! - A **trail** names the last sessions of a (scope, branch): what each covers, which packs it
//!   needs. One more names those of the scope, for builds that nothing else tells of. It is read,
//!   merged and written: what others write meanwhile is lost until they look again; `trail`.
//! - A **pack** is many frames in one object, in the order in which a build wants them; `pack`.
//!
//! Only formats live here: pure functions from values to bytes and back, and how two values merge.
//! Nothing is fetched, stored, compressed or timed; whoever calls does that. Reading is bounded by the
//! limits named here, never panics, and takes room only for what the input can hold.
//!
//! **Trust.** A manifest says what an action's output is, as an action's value does, so it is believed
//! only from where an action would be. The bytes of a frame are believed from nobody: unpacked within
//! the row's `size`, compared with the row's `output`.
//!
//! **Who deletes.** Nothing here counts references to a pack. In a bucket, packs go by its lifecycle
//! rules, by last access or by age; a central larder drops them by its own eviction, where each ranged
//! read of a pack touches it. A manifest may outlive its packs: a missing pack costs single fetches
//! of what its rows name, never a wrong answer and never an error.

mod encoding;
mod fields;
pub mod pack;
pub mod trail;

use std::collections::{HashMap, HashSet};

use crate::entry::{Class, Digest, Hasher};
use crate::units::Timestamp;

/// Most rows of a manifest.
pub const ROWS_MAX: usize = 200_000;
/// Most packs that a manifest names.
pub const PACKS_MAX: usize = 4_096;
/// Longest text (scope, branch, commit, writer), in bytes; what is longer is cut when written.
pub const TEXT_MAX: usize = 1_024;
/// Longest encoding of a manifest: what an action's value may be. The limits above hold it.
pub const SIZE_MAX: usize = 32 << 20;

/// What one session used, in order of first use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Repository and job; predicts, never grants.
    pub scope: String,
    pub commit: String,
    pub written: Timestamp,
    pub writer: String,
    /// The build is known to have succeeded, or to have covered what it was predicted to use.
    pub complete: bool,
    pub packs: Vec<PackRef>,
    pub rows: Vec<Row>,
}

/// A pack, by what it is stored under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackRef {
    pub digest: Digest,
    /// Of the whole pack, at most `pack::PACK_MAX`.
    pub size: u64,
}

/// One action that was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub action: Digest,
    pub output: Digest,
    /// Of the output.
    pub size: u64,
    pub class: Class,
    pub cost_ms: u32,
    /// Fingerprint of the C toolchain; zero if it does not matter.
    pub c_env: u64,
    pub stored: Timestamp,
    pub place: Place,
}

/// Where an output's frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: the output is empty.
    Empty,
    /// In a pack of the manifest: its number there, and where in it the frame's own bytes are.
    Pack { pack: u32, offset: u64, len: u32 },
    /// Alone, as content of this digest and size.
    Frame { digest: Digest, size: u64 },
    /// Only the action knows.
    Ask,
}

/// Why a manifest or a trail was not read. The reader goes on as if there were none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("not what was asked for, or not written by larder")]
    Magic,
    #[error("of version {0}, which this larder does not know")]
    Version(u8),
    #[error("the bytes are not those that were written")]
    Checksum,
    #[error("it ends before all that it announces")]
    Short,
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    #[error("{count} {what}, where {max} is the most")]
    TooMany { what: &'static str, count: u64, max: u64 },
    #[error("a number is out of range, or written longer than it must be")]
    Number,
    #[error("a text is not UTF-8")]
    Text,
    #[error("flags that this version does not have: {0:#04x}")]
    Flags(u8),
    #[error("number {0} names nothing")]
    Index(u64),
    #[error("a row's place contradicts its size or its pack")]
    Place,
    #[error("two rows of one commit")]
    Twice,
}

/// Under which key the manifest of a commit stands.
pub fn manifest_key(scope: &str, commit: &str) -> Digest {
    key_of("larder manifest 1", scope, commit)
}

/// Under which key the trail of a branch stands.
pub fn trail_key(scope: &str, branch: &str) -> Digest {
    key_of("larder trail 1", scope, branch)
}

/// Under which key the trail of a scope stands, whatever the branch.
pub fn scope_trail_key(scope: &str) -> Digest {
    key_of("larder scope trail 1", scope, trail::ALL_BRANCHES)
}

/// The SHA-256 of the parts, each after its length as a u64, least byte first, so that no two sets of
/// parts join.
fn key_of(what: &str, scope: &str, name: &str) -> Digest {
    let mut hasher = Hasher::default();
    for part in [what, scope, name] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finish()
}

impl Manifest {
    /// Its own rows, then those of `other` whose action it lacks, with the packs they are in.
    ///
    /// It stays its own: scope, commit and writer. It is complete if either is, as new as the newer,
    /// and within the limits: what is beyond `ROWS_MAX` is left out, what is in a pack beyond
    /// `PACKS_MAX` is to be asked for.
    pub fn merge(mut self, other: Self) -> Self {
        self.complete |= other.complete;
        self.written = self.written.max(other.written);
        let mut known = HashSet::with_capacity(self.rows.len());
        self.rows.retain(|row| known.insert(row.action));
        self.rows.truncate(ROWS_MAX);
        let mut numbers = HashMap::with_capacity(self.packs.len());
        for (pack, number) in self.packs.iter().zip(0..) {
            numbers.entry(*pack).or_insert(number);
        }
        for row in other.rows {
            if self.rows.len() >= ROWS_MAX {
                break;
            }
            if known.insert(row.action) {
                let place = row.place.renumbered(|number| {
                    let pack = other.packs.get(number as usize)?;
                    number_of(*pack, &mut self.packs, &mut numbers)
                });
                self.rows.push(Row { place, ..row });
            }
        }
        self
    }

    /// Whether it is the one that was asked for.
    pub fn is_of(&self, scope: &str, commit: &str) -> bool {
        (self.scope.as_str(), self.commit.as_str()) == (fields::cut(scope), fields::cut(commit))
    }

    /// Whether it tells what `other` does not: an action, or another place for one.
    pub fn has_news_for(&self, other: &Self) -> bool {
        let known: HashMap<Digest, _> =
            other.rows.iter().map(|row| (row.action, other.standing(row))).collect();
        self.rows.iter().any(|row| {
            let is_news = known.get(&row.action).is_none_or(|there| *there != self.standing(row));
            is_news && (row.place != Place::Ask || !known.contains_key(&row.action))
        })
    }

    /// Has `other` say where the frames of some rows are, as far as it knows.
    pub fn take_places(&mut self, other: &Self, of: impl Fn(&Row) -> bool) {
        let there: HashMap<Digest, Place> =
            other.rows.iter().map(|row| (row.action, row.place)).collect();
        let mut numbers: HashMap<PackRef, u32> = self.packs.iter().copied().zip(0..).collect();
        for row in self.rows.iter_mut().filter(|row| of(row)) {
            if let Some(place) = there.get(&row.action).filter(|place| **place != Place::Ask) {
                row.place = place.renumbered(|number| {
                    let pack = other.packs.get(number as usize)?;
                    number_of(*pack, &mut self.packs, &mut numbers)
                });
            }
        }
    }

    /// Whether it lists an action that `other` does not.
    pub fn has_actions_for(&self, other: &Self) -> bool {
        let known: HashSet<Digest> = other.rows.iter().map(|row| row.action).collect();
        self.rows.iter().any(|row| !known.contains(&row.action))
    }

    /// Where a row's frame is, whatever number its pack has here.
    fn standing(&self, row: &Row) -> (Place, Option<PackRef>) {
        match row.place {
            Place::Pack { pack, .. } => {
                (row.place.renumbered(|_| Some(0)), self.packs.get(pack as usize).copied())
            }
            place => (place, None),
        }
    }

    /// How many bytes of each pack its rows use, in the order of `packs`: a pack that is mostly
    /// dead is better read in ranges. A frame that several rows share counts once.
    pub fn bytes_by_pack(&self) -> Vec<u64> {
        let mut out = vec![0_u64; self.packs.len()];
        let mut seen = HashSet::new();
        for row in &self.rows {
            if let Place::Pack { pack, offset, len } = row.place
                && let Some(sum) = out.get_mut(pack as usize)
                && seen.insert((pack, offset))
            {
                *sum = sum.saturating_add(u64::from(len));
            }
        }
        out
    }
}

/// The pack's number among `packs`, where it is added if there is room.
fn number_of(
    pack: PackRef,
    packs: &mut Vec<PackRef>,
    numbers: &mut HashMap<PackRef, u32>,
) -> Option<u32> {
    if let Some(number) = numbers.get(&pack) {
        return Some(*number);
    }
    let number = u32::try_from(packs.len()).ok().filter(|_| packs.len() < PACKS_MAX)?;
    packs.push(pack);
    numbers.insert(pack, number);
    Some(number)
}

impl Row {
    /// The place as it can be true: an empty output is nowhere else, a frame in a pack lies within
    /// it and is of a length that travels. Whatever else is said, only the action knows.
    fn sound_place(&self, packs: &[PackRef]) -> Place {
        if self.size == 0 && self.output == Digest::EMPTY {
            return Place::Empty;
        }
        match self.place {
            Place::Empty => Place::Ask,
            Place::Pack { pack, offset, len } => {
                let end = offset.checked_add(u64::from(len));
                let size = packs.get(pack as usize).map(|pack| pack.size);
                let travels = (1..=pack::FRAME_MAX).contains(&u64::from(len));
                if travels && end.is_some() && end <= size { self.place } else { Place::Ask }
            }
            place => place,
        }
    }
}

impl Place {
    /// The same place where packs have other numbers.
    fn renumbered(self, number: impl FnOnce(u32) -> Option<u32>) -> Self {
        match self {
            Self::Pack { pack, offset, len } => {
                number(pack).map_or(Self::Ask, |pack| Self::Pack { pack, offset, len })
            }
            place => place,
        }
    }
}

/// Two values of one key in one: what both tell, `ours` first. None if they are not both manifests,
/// or both trails, that say the same of themselves.
pub fn union(ours: &[u8], theirs: &[u8], now: Timestamp) -> Option<Vec<u8>> {
    if let (Ok(ours), Ok(theirs)) = (Manifest::decode(ours), Manifest::decode(theirs)) {
        let is_one = (&ours.scope, &ours.commit) == (&theirs.scope, &theirs.commit);
        return is_one.then(|| ours.merge(theirs).encode());
    }
    let (ours, theirs) = (trail::Trail::decode(ours).ok()?, trail::Trail::decode(theirs).ok()?);
    let is_one = (&ours.scope, &ours.branch) == (&theirs.scope, &theirs.branch);
    is_one.then(|| ours.merge(theirs, now).encode())
}

/// Whether a value is a manifest or a trail of another version, which is not ours to write over.
pub fn is_of_another_version(value: &[u8]) -> bool {
    let is_version = |error| matches!(error, FormatError::Version(_));
    Manifest::decode(value).is_err_and(is_version)
        || trail::Trail::decode(value).is_err_and(is_version)
}

/// Whether a value means to be a manifest or a trail, sound or not.
pub fn is_one(value: &[u8]) -> bool {
    value.starts_with(encoding::MAGIC) || value.starts_with(trail::MAGIC)
}

/// With a checksum that is right, as who forges a manifest would write it.
#[cfg(fuzzing)]
pub fn sealed(bytes: Vec<u8>) -> Vec<u8> {
    fields::seal(bytes)
}

#[cfg(test)]
mod tests;

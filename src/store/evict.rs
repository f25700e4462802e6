//! Making room: files by sampling, segments whole. The worker calls `evict_step` until nothing is
//! in excess; every step is short.
//!
//! A file is first condemned in the index, then removed once a helper has had time to report that
//! it uses it. A helper that meets a condemned row asks the daemon, which pardons it by a touch.
//! What stays is decided in `needs`; `segments` gives up the small entries.

use std::collections::HashMap;
use std::io;

use crate::entry::Key;
use crate::store::record::{EntryMeta, Place, Row};
use crate::store::{Store, seconds};
use crate::units::{Random, Timestamp};

mod needs;

mod segments;

use needs::{Level, Needs, Owed};

/// Longer than a helper takes to report what it used.
pub const GRACE_S: u32 = 15;
/// Go may read a path that it was given for a day.
const GO_DAY_S: u32 = 24 * 3600;
/// Files looked at to find one victim.
const SAMPLE: usize = 24;
/// Victims condemned in one step.
const VICTIMS: usize = 64;

/// What a step gave up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    pub entries: u64,
    pub bytes: u64,
    /// Files condemned, to be removed when their grace is over.
    pub condemned: u64,
}

/// What an evictor remembers between steps.
#[derive(Debug)]
pub struct Eviction {
    random: Random,
    condemned: HashMap<Vec<u8>, u32>,
    /// Segments that were found too hot to give up, when, and at which level.
    too_hot: HashMap<u32, (u32, Level)>,
    /// What builds use that go on now was used since then.
    live_since: Option<u32>,
    owed: Owed,
    /// Nothing could be given up though something had to be.
    is_stuck: bool,
}

impl Eviction {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            condemned: HashMap::new(),
            too_hot: HashMap::new(),
            live_since: None,
            owed: Owed::default(),
            is_stuck: false,
        }
    }

    /// Since when the builds that go on now have been using entries; None if none goes on.
    pub fn set_live_since(&mut self, since: Option<Timestamp>) {
        self.live_since = since.map(seconds);
    }

    /// Whether the last step found nothing to give up, though something had to be: all is used by
    /// builds that go on, or owed upstream.
    pub const fn is_stuck(&self) -> bool {
        self.is_stuck
    }

    pub fn waiting(&self) -> usize {
        self.condemned.len()
    }
}

impl Store {
    /// Bytes that must be given up now.
    pub fn excess(&self) -> u64 {
        self.inner.space.excess(self.used_bytes())
    }

    /// One step: remove what was condemned and is still untouched; condemn more files or give up a
    /// segment while there is an excess.
    pub fn evict_step(&self, eviction: &mut Eviction) -> Evicted {
        let mut done = self.remove_condemned(eviction);
        let excess = self.excess();
        let pending: u64 = eviction
            .condemned
            .keys()
            .filter_map(|key| self.find_encoded(key))
            .map(|row| row.size)
            .sum();
        eviction.is_stuck = false;
        if excess > pending + done.bytes {
            let chosen = self.choose_victims(eviction, excess - pending, &mut done);
            eviction.is_stuck = !chosen && pending == 0 && done == Evicted::default();
        }
        self.inner.metrics.evicted_entries.add(done.entries);
        self.inner.metrics.evicted_bytes.add(done.bytes);
        done
    }

    /// Gives up what is least needed; false if all is needed.
    fn choose_victims(&self, eviction: &mut Eviction, excess: u64, done: &mut Evicted) -> bool {
        let files = self.inner.tail.file_bytes.load(std::sync::atomic::Ordering::Relaxed);
        let segments = self.used_bytes() - files;
        // Whichever holds more gives first; the other follows if that yields nothing.
        let by_segment = segments > files;
        Level::ALL.into_iter().any(|level| {
            let needs = self.needs(eviction, level);
            by_segment && self.evict_segment(eviction, &needs, done)
                || self.condemn_files(eviction, &needs, excess, done) > 0
                || !by_segment && self.evict_segment(eviction, &needs, done)
        })
    }

    fn needs(&self, eviction: &mut Eviction, level: Level) -> Needs {
        let now = seconds(self.inner.clock.now());
        let owed = match level {
            Level::Day | Level::Hours => None,
            Level::Live => eviction.owed.look(self, now),
        };
        Needs { level, now, live_since: eviction.live_since, owed }
    }

    /// Removes condemned files whose grace is over, if nobody used them since.
    fn remove_condemned(&self, eviction: &mut Eviction) -> Evicted {
        let now = seconds(self.inner.clock.now());
        let mut done = Evicted::default();
        self.flush_touches();
        eviction.condemned.retain(|key, since| {
            if now.saturating_sub(*since) < GRACE_S {
                return true;
            }
            let Some(row) = self.find_encoded(key) else { return false };
            let touched = self.touched(key, &row);
            if touched >= *since || row.condemned == 0 {
                self.pardon(key, row);
            } else if let Some(key) = Key::decode(key) {
                self.remove_row(&key, &row);
                done.entries += 1;
                done.bytes += row.size;
            }
            false
        });
        done
    }

    fn pardon(&self, key: &[u8], row: Row) {
        if let Ok(mut change) = self.inner.tail.begin() {
            let now = seconds(self.inner.clock.now());
            change.put(key.to_vec(), Row { condemned: 0, touched: now, ..row });
        }
    }

    /// Marks the least recently used of sampled files, as many as cover the excess.
    fn condemn_files(
        &self,
        eviction: &mut Eviction,
        needs: &Needs,
        excess: u64,
        done: &mut Evicted,
    ) -> u64 {
        let mut freed = 0;
        for _ in 0..VICTIMS {
            if freed >= excess {
                break;
            }
            let Some((key, row)) = self.coldest_file(eviction, needs) else { break };
            let Ok(mut change) = self.inner.tail.begin() else { break };
            // Under the lock: a touch or a put in between takes it off the list.
            if self.find_encoded(&key) != Some(row) {
                continue;
            }
            change.put(key.clone(), Row { condemned: needs.now.max(1), ..row });
            drop(change);
            freed += row.size;
            done.condemned += 1;
            eviction.condemned.insert(key, needs.now);
        }
        freed
    }

    /// The least recently used of some files that are not needed.
    fn coldest_file(&self, eviction: &mut Eviction, needs: &Needs) -> Option<(Vec<u8>, Row)> {
        let mut seed = [0; 32];
        for part in seed.chunks_exact_mut(8) {
            part.copy_from_slice(&eviction.random.next_u64().to_le_bytes());
        }
        let reading = self.inner.index.read().ok()?;
        reading
            .sample_files(seed, SAMPLE)
            .ok()?
            .into_iter()
            // The overlay knows better: removals, new rows, touches just written.
            .filter_map(|(key, _)| self.find_encoded(&key).map(|row| (key, row)))
            .filter(|(key, row)| {
                row.place == Place::File
                    && row.condemned == 0
                    && !eviction.condemned.contains_key(key)
                    && !needs.spare(self.touched(key, row), &row.digest)
            })
            .min_by_key(|(key, row)| self.touched(key, row))
    }

    /// When an entry was last used, as far as it is known; after an unclean stop nothing is older
    /// than the start.
    fn touched(&self, key: &[u8], row: &Row) -> u32 {
        let noted = self
            .inner
            .touches
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .keys
            .get(key)
            .copied()
            .unwrap_or(0);
        row.touched.max(noted).max(self.inner.fresh_since)
    }

    /// Removes files that no row names, left by helpers that were killed between placing an output
    /// and telling of it; looks at one of 256 directories a call.
    pub fn sweep_orphans(&self, directory: u8) -> io::Result<u64> {
        let dir = self.inner.layout.files().join(format!("{directory:02x}"));
        let now = self.inner.clock.now();
        let mut removed = 0;
        self.inner.layout.clear_tmp()?;
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = format!("{directory:02x}{}", entry.file_name().to_string_lossy());
            let meta = entry.metadata()?;
            let age = meta
                .modified()
                .ok()
                .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok())
                .map_or(0, |at| now.seconds().saturating_sub(at.as_secs()));
            if age < u64::from(GO_DAY_S) {
                continue;
            }
            let known = crate::entry::Digest::from_hex(&name)
                .is_some_and(|digest| self.find(&Key::content(digest)).is_some());
            if !known {
                std::fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Who wrote an entry, if its record says so.
    pub fn writer_of(&self, key: &Key, row: &Row) -> Option<std::sync::Arc<str>> {
        row.has_more.then(|| self.entry_meta(key, row)).flatten().map(|entry| entry.meta.writer)
    }

    /// Decodes what an entry's record says besides its row.
    pub(super) fn entry_meta(&self, key: &Key, row: &Row) -> Option<EntryMeta> {
        EntryMeta::decode(&self.read_record(key, row)?.meta)
    }
}

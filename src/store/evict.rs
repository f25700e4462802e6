//! Making room: files by sampling, segments whole. The worker calls `evict_step` until nothing is
//! in excess; every step is short.
//!
//! A file is first condemned in the index, then removed once a helper has had time to report that
//! it uses it. A helper that meets a condemned row asks the daemon, which pardons it by a touch.
//! Segments are given up coldest first; what is live and hot in them is copied forward.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;

use crate::entry::{Key, Kind};
use crate::store::record::{EntryMeta, Place, Row};
use crate::store::segment::{self, Position, Record, Tag};
use crate::store::tail::Append;
use crate::store::{Store, seconds};
use crate::units::Random;

/// Longer than a helper takes to report what it used.
pub const GRACE_S: u32 = 15;
/// Go may read a path that it was given for a day.
const GO_DAY_S: u32 = 24 * 3600;
/// Under pressure files stay this long: longer than builds take, and what content is promised.
const PRESSURE_S: u32 = CONTENT_S;
/// Content named by an answer stays this long.
const CONTENT_S: u32 = 3 * 3600;
/// Files looked at to find one victim.
const SAMPLE: usize = 24;
/// Victims condemned in one step.
const VICTIMS: usize = 64;
/// A segment's records that were used within this time are copied forward.
const HOT_S: u32 = CONTENT_S;
/// A segment found too hot is not looked at again for this long.
const TOO_HOT_S: u32 = 60;

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
    /// Segments that were found too hot to give up, and when.
    too_hot: HashMap<u32, u32>,
}

impl Eviction {
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), condemned: HashMap::new(), too_hot: HashMap::new() }
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
        if excess > pending + done.bytes {
            self.choose_victims(eviction, excess - pending, &mut done);
        }
        self.inner.metrics.evicted_entries.add(done.entries);
        self.inner.metrics.evicted_bytes.add(done.bytes);
        done
    }

    fn choose_victims(&self, eviction: &mut Eviction, excess: u64, done: &mut Evicted) {
        let files = self.inner.tail.file_bytes.load(std::sync::atomic::Ordering::Relaxed);
        let segments = self.used_bytes() - files;
        // Whichever holds more gives first; the other follows if that yields nothing.
        let by_segment = segments > files;
        if by_segment && self.evict_segment(eviction, done) {
            return;
        }
        let freed = self.condemn_files(eviction, excess, done);
        if freed == 0 && !by_segment {
            self.evict_segment(eviction, done);
        }
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
    fn condemn_files(&self, eviction: &mut Eviction, excess: u64, done: &mut Evicted) -> u64 {
        let now = seconds(self.inner.clock.now());
        let mut freed = 0;
        // Under pressure the day shrinks to what a live session may still read.
        for keep in [GO_DAY_S, PRESSURE_S] {
            for _ in 0..VICTIMS {
                if freed >= excess {
                    return freed;
                }
                let Some((key, row)) = self.coldest_file(eviction) else { break };
                if now.saturating_sub(self.touched(&key, &row)) < keep {
                    break;
                }
                let Ok(mut change) = self.inner.tail.begin() else { return freed };
                // Under the lock: a touch or a put in between takes it off the list.
                if self.find_encoded(&key) != Some(row) {
                    continue;
                }
                change.put(key.clone(), Row { condemned: now.max(1), ..row });
                drop(change);
                freed += row.size;
                done.condemned += 1;
                eviction.condemned.insert(key, now);
            }
            if freed > 0 {
                break;
            }
        }
        freed
    }

    fn coldest_file(&self, eviction: &mut Eviction) -> Option<(Vec<u8>, Row)> {
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

    /// Gives up the coldest segment; false if there is none to give.
    fn evict_segment(&self, eviction: &mut Eviction, done: &mut Evicted) -> bool {
        let now = seconds(self.inner.clock.now());
        eviction.too_hot.retain(|_, at| now.saturating_sub(*at) < TOO_HOT_S);
        let Some(number) = self.coldest_segment(&eviction.too_hot) else { return false };
        match self.give_up(number) {
            Ok(Some(evicted)) => {
                done.entries += evicted.entries;
                done.bytes += evicted.bytes;
                true
            }
            Ok(None) => {
                eviction.too_hot.insert(number, now);
                false
            }
            Err(error) => {
                eviction.too_hot.insert(number, now);
                self.fault("evict a segment", &error);
                false
            }
        }
    }

    fn coldest_segment(&self, not: &HashMap<u32, u32>) -> Option<u32> {
        let current = self.inner.tail.current_segment();
        let touched: HashMap<u32, u32> =
            self.inner.index.read().ok()?.segments().ok()?.into_iter().collect();
        segment::list(&self.inner.layout.segments())
            .ok()?
            .into_iter()
            .filter(|number| *number < current && !not.contains_key(number))
            .min_by_key(|number| (touched.get(number).copied().unwrap_or(0), *number))
    }

    /// Copies what is live and hot forward, forgets the rest, removes the file. None if so much is
    /// hot that copying would cost more than it frees.
    fn give_up(&self, number: u32) -> io::Result<Option<Evicted>> {
        let path = segment::path(&self.inner.layout.segments(), number);
        let file = std::fs::File::open(&path)?;
        let size = file.metadata()?.len();
        let mut hot = 0;
        segment::scan(&file, 0, |offset, len, record| {
            let at = Position { segment: number, offset };
            let live = self.find_encoded(&record.key).filter(|row| row.at == at);
            if live.is_some_and(|row| self.is_worth_keeping(&record.key, &row)) {
                hot += u64::from(len);
            }
        })?;
        if hot > size / 4 * 3 {
            return Ok(None);
        }
        let is_oldest =
            segment::list(&self.inner.layout.segments())?.first().is_none_or(|n| *n == number);
        let mut evicted = Evicted::default();
        let mut failed = None;
        let mut copied = 0;
        segment::scan(&file, 0, |offset, len, record| {
            if failed.is_some() {
                return;
            }
            let at = Position { segment: number, offset };
            match self.keep_or_forget(at, &record, is_oldest) {
                Ok(ControlFlow::Continue(())) => copied += u64::from(len),
                Ok(ControlFlow::Break(forgot)) => evicted.entries += u64::from(forgot),
                Err(error) => failed = Some(error),
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        // The copies must be safe before the originals go.
        if !self.inner.tail.flush(std::time::Duration::from_secs(30)) {
            return Err(io::Error::other("the copies could not be committed"));
        }
        std::fs::remove_file(&path)?;
        self.inner.tail.segment_bytes.fetch_sub(size, std::sync::atomic::Ordering::Relaxed);
        self.inner
            .open_segments
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .remove(&number);
        if let Ok(mut change) = self.inner.tail.begin() {
            change.segment_gone(number);
        }
        evicted.bytes = size.saturating_sub(copied);
        Ok(Some(evicted))
    }

    /// `Continue`: the record was copied forward. `Break`: it was dropped, and whether an entry
    /// went with it.
    fn keep_or_forget(
        &self,
        at: Position,
        record: &Record,
        is_oldest: bool,
    ) -> io::Result<ControlFlow<bool>> {
        let keep = match record.tag {
            Tag::Realm => true,
            // A mark is needed as long as an older segment may hold what it removes.
            Tag::Removal => !is_oldest && self.find_encoded(&record.key).is_none(),
            Tag::Entry => {
                let live = self.find_encoded(&record.key).filter(|row| row.at == at);
                let Some(row) = live else { return Ok(ControlFlow::Break(false)) };
                if !self.is_worth_keeping(&record.key, &row) {
                    let mut change = self.inner.tail.begin()?;
                    let still = self.find_encoded(&record.key).is_some_and(|row| row.at == at);
                    if still {
                        change.remove(record.key.clone(), Some(at));
                    }
                    return Ok(ControlFlow::Break(still));
                }
                true
            }
        };
        if !keep {
            return Ok(ControlFlow::Break(false));
        }
        let mut change = self.inner.tail.begin()?;
        // Under the lock: it may have been put anew since it was looked at.
        let current = self.find_encoded(&record.key);
        match record.tag {
            Tag::Entry if current.is_none_or(|row| row.at != at) => {
                return Ok(ControlFlow::Break(false));
            }
            Tag::Removal if current.is_some() => return Ok(ControlFlow::Break(false)),
            Tag::Entry | Tag::Removal | Tag::Realm => {}
        }
        let copy =
            Append { tag: record.tag, key: &record.key, meta: &record.meta, body: &record.body };
        let (to, len) = change.append(&copy)?;
        if record.tag == Tag::Entry
            && let Some(row) = self.find_encoded(&record.key)
        {
            change.put(record.key.clone(), Row { at: to, len, ..row });
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Rows of files stay while the file does; small bodies while they are hot or owed; what only
    /// names content stays while the content does.
    fn is_worth_keeping(&self, key: &[u8], row: &Row) -> bool {
        let now = seconds(self.inner.clock.now());
        match row.place {
            Place::File => true,
            Place::Inline => now.saturating_sub(self.touched(key, row)) < HOT_S,
            Place::Elsewhere => {
                let content = Key::content(row.digest).encode();
                let is_go = key.first() == Some(&(Kind::Go as u8));
                self.find_encoded(&content).is_some()
                    && (is_go || now.saturating_sub(self.touched(key, row)) < GO_DAY_S)
            }
        }
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

//! Segments given up whole, coldest first; what is live and hot in them is copied forward.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;

use super::needs::{Level, Needs};
use super::{Evicted, Eviction};
use crate::entry::{Key, Kind};
use crate::store::Store;
use crate::store::record::{EntryMeta, Place, Row};
use crate::store::segment::{self, Position, Record, Tag};
use crate::store::tail::Append;

/// What was found out about a segment counts for this long; that it must stay, a second longer for
/// each segment there is, so that a store that is full is not read through all the time.
const JUDGED_FOR_S: u32 = 20;
/// Later than all that was used.
pub(super) const NEVER: u32 = u32::MAX;
/// The coldest segments, of which the one with the least that is needed goes.
const LOOKED_AT: usize = 4;

/// What may be done about a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judged {
    at: u32,
    /// The mildest level at which most of it may go. None: too much of it is needed.
    level: Option<Level>,
}

impl Judged {
    pub(super) const fn may_go(&self) -> bool {
        self.level.is_some()
    }
}

/// Where room may be found among the segments.
pub(super) enum Coldest {
    /// At this level, by giving up this segment.
    At(Level, u32),
    /// Not among the first; there are more to look at.
    More,
    /// Nowhere.
    Nowhere,
}

impl Store {
    /// Looks at some of the coldest segments that were not looked at lately, and not used since `before`.
    pub(super) fn coldest_segment(
        &self,
        eviction: &mut Eviction,
        needs: &Needs,
        before: u32,
    ) -> Coldest {
        let open = self.open_to_look(eviction, needs, before);
        if open.is_empty() {
            return Coldest::Nowhere;
        }
        let mut best: Option<(Level, u32)> = None;
        for number in open.into_iter().take(LOOKED_AT) {
            let judged = match eviction.judged.get(&number) {
                Some(judged) => *judged,
                None => self.judge(number, needs),
            };
            eviction.judged.insert(number, judged);
            if let Some(level) = judged.level
                && best.is_none_or(|(mildest, _)| level < mildest)
            {
                best = Some((level, number));
            }
        }
        best.map_or(Coldest::More, |(level, number)| Coldest::At(level, number))
    }

    /// Gives up a segment that was used before all files that are found to give way, beside these: what names
    /// outputs that are gone is used no more, and is nothing that files could give up. Bytes that it freed.
    pub(super) fn evict_older_segment(
        &self,
        eviction: &mut Eviction,
        needs: &Needs,
        done: &mut Evicted,
    ) -> u64 {
        let had = done.bytes;
        if self.has_segment_before(eviction, needs, NEVER)
            && let Some((key, row)) = self.coldest_file(eviction, needs, Level::Last)
            && let before = self.touched(&key, &row)
            && let Coldest::At(level, number) = self.coldest_segment(eviction, needs, before)
            && level <= Level::Hours
        {
            self.evict_segment(eviction, needs, (level, number), done);
        }
        done.bytes - had
    }

    fn has_segment_before(&self, eviction: &mut Eviction, needs: &Needs, before: u32) -> bool {
        !self.open_to_look(eviction, needs, before).is_empty()
    }

    /// Segments that were not found to be needed lately, coldest first. Of one of which nobody knows when it
    /// was used it cannot be said that it was `before` something.
    fn open_to_look(&self, eviction: &mut Eviction, needs: &Needs, before: u32) -> Vec<u32> {
        let candidates = self.closed_segments().unwrap_or_default();
        let longer = u32::try_from(candidates.len()).unwrap_or(u32::MAX);
        eviction.judged.retain(|_, judged| {
            let longer = if judged.level.is_none() { longer } else { 0 };
            needs.now >= judged.at && needs.now - judged.at < JUDGED_FOR_S.saturating_add(longer)
        });
        let is_open = |number: &u32| eviction.judged.get(number).is_none_or(|j| j.level.is_some());
        let known_before = |touched: u32| {
            before == NEVER || touched > 0 && touched.max(self.inner.fresh_since) < before
        };
        let open = candidates
            .into_iter()
            .filter(|(touched, number)| known_before(*touched) && is_open(number));
        open.map(|(_, number)| number).collect()
    }

    /// Those that are not written to any more, each behind when it was last written or read, coldest first.
    fn closed_segments(&self) -> Option<Vec<(u32, u32)>> {
        let current = self.inner.tail.current_segment();
        let touched: HashMap<u32, u32> =
            self.inner.index.read().ok()?.segments().ok()?.into_iter().collect();
        let mut list = segment::list(&self.inner.layout.segments()).ok()?;
        list.retain(|number| *number < current);
        let when = |number: u32| (touched.get(&number).copied().unwrap_or(0), number);
        let mut list: Vec<_> = list.into_iter().map(when).collect();
        list.sort_unstable();
        Some(list)
    }

    /// If so much is needed that copying would cost more than it frees, it stays.
    fn judge(&self, number: u32, needs: &Needs) -> Judged {
        let mut kept = Level::ALL.map(|level| (level, 0));
        let path = segment::path(&self.inner.layout.segments(), number);
        let scanned = std::fs::File::open(&path).and_then(|file| {
            segment::scan((&file, number), &self.inner.seal, 0, |offset, len, record| {
                let at = Position { segment: number, offset };
                let live = self.find_encoded(&record.key).filter(|row| row.at == at);
                let Some(row) = live else { return };
                for (level, bytes) in &mut kept {
                    if self.is_worth_keeping(needs, *level, &record.key, &row) {
                        *bytes += u64::from(len);
                    }
                }
            })?;
            Ok(file.metadata()?.len())
        });
        let level = match scanned {
            Ok(size) => kept.into_iter().find(|(_, bytes)| *bytes <= size / 4 * 3),
            Err(error) => {
                self.fault("read a segment that is to go", &error);
                None
            }
        };
        Judged { at: needs.now, level: level.map(|(level, _)| level) }
    }

    /// Gives up what is in a segment and not needed; false, and said, if that fails.
    pub(super) fn evict_segment(
        &self,
        eviction: &mut Eviction,
        needs: &Needs,
        (level, number): (Level, u32),
        done: &mut Evicted,
    ) -> bool {
        match self.give_up(number, needs, level) {
            Ok(evicted) => {
                eviction.judged.remove(&number);
                done.entries += evicted.entries;
                done.bytes += evicted.bytes;
                true
            }
            Err(error) => {
                eviction.judged.insert(number, Judged { at: needs.now, level: None });
                self.fault("evict a segment", &error);
                false
            }
        }
    }

    /// Copies what is live and needed forward, forgets the rest, removes the file.
    fn give_up(&self, number: u32, needs: &Needs, level: Level) -> io::Result<Evicted> {
        let path = segment::path(&self.inner.layout.segments(), number);
        let file = std::fs::File::open(&path)?;
        let size = file.metadata()?.len();
        let is_oldest =
            segment::list(&self.inner.layout.segments())?.first().is_none_or(|n| *n == number);
        let mut evicted = Evicted::default();
        let faults = self.index_faults();
        let mut failed = None;
        let mut copied = 0;
        segment::scan((&file, number), &self.inner.seal, 0, |offset, len, record| {
            if failed.is_some() {
                return;
            }
            let at = Position { segment: number, offset };
            match self.keep_or_forget((needs, level), at, &record, (is_oldest, faults)) {
                Ok(ControlFlow::Continue(())) => copied += u64::from(len),
                Ok(ControlFlow::Break(forgot)) => evicted.entries += u64::from(forgot),
                Err(error) => failed = Some(error),
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        self.check_index(faults)?;
        // The copies must be safe before the originals go.
        if !self.inner.tail.flush(std::time::Duration::from_secs(30)) {
            return Err(io::Error::other("the copies could not be committed"));
        }
        self.check_index(faults)?;
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
        Ok(evicted)
    }

    /// `Continue`: the record was copied forward. `Break`: it was dropped, and whether an entry
    /// went with it.
    fn keep_or_forget(
        &self,
        (needs, level): (&Needs, Level),
        at: Position,
        record: &Record,
        (is_oldest, faults): (bool, u64),
    ) -> io::Result<ControlFlow<bool>> {
        let keep = match record.tag {
            Tag::Realm => true,
            // A mark is needed as long as an older segment may hold what it removes.
            Tag::Removal => !is_oldest && self.find_encoded(&record.key).is_none(),
            Tag::Entry => {
                let live = self.find_encoded(&record.key).filter(|row| row.at == at);
                let Some(row) = live else { return Ok(ControlFlow::Break(false)) };
                let noted = self.touches().of(&record.key);
                if !self.is_worth_keeping(needs, level, &record.key, &row) {
                    let mut change = self.inner.tail.begin()?;
                    let now = self.find_encoded(&record.key);
                    self.check_index(faults)?;
                    // Held until it is gone: see `touch`.
                    let touches = self.touches();
                    match now.filter(|now| now.at == at) {
                        None => return Ok(ControlFlow::Break(false)),
                        Some(now) if now == row && touches.of(&record.key) == noted => {
                            change.remove(record.key.clone(), Some(at));
                            return Ok(ControlFlow::Break(true));
                        }
                        // Used since it was looked at.
                        Some(_) => {}
                    }
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
        self.check_index(faults)?;
        match record.tag {
            Tag::Entry if current.is_none_or(|row| row.at != at) => {
                return Ok(ControlFlow::Break(false));
            }
            Tag::Removal if current.is_some() => return Ok(ControlFlow::Break(false)),
            Tag::Entry | Tag::Removal | Tag::Realm => {}
        }
        let meta = self.meta_now(record);
        let copy = Append { tag: record.tag, key: &record.key, meta: &meta, body: &record.body };
        let (to, len) = change.append(&copy)?;
        self.note_segment(&mut change, to);
        if record.tag == Tag::Entry
            && let Some(row) = self.find_encoded(&record.key)
        {
            change.put(record.key.clone(), Row { at: to, len, ..row });
        }
        Ok(ControlFlow::Continue(()))
    }

    /// An error if a look into the index has failed since: what was not found may be there.
    fn check_index(&self, faults: u64) -> io::Result<()> {
        let is_sound = self.index_faults() == faults;
        is_sound.then_some(()).ok_or_else(|| io::Error::other("the index could not be read"))
    }

    /// What a record says of itself, without an upload that has been done since: a replay of the copy
    /// would owe it again.
    fn meta_now(&self, record: &Record) -> Vec<u8> {
        let entry = (record.tag == Tag::Entry).then(|| EntryMeta::decode(&record.meta)).flatten();
        let key = Key::decode(&record.key);
        match (entry, key) {
            (Some(mut entry), Some(key))
                if entry.owed.is_some_and(|realm| !self.owes(&key, realm)) =>
            {
                entry.owed = None;
                entry.encode()
            }
            _ => record.meta.clone(),
        }
    }

    /// Rows of files stay while the file does; small bodies while they are needed; what only names
    /// content stays while the content does.
    fn is_worth_keeping(&self, needs: &Needs, level: Level, key: &[u8], row: &Row) -> bool {
        let touched = || self.touched(key, row);
        match row.place {
            Place::File => true,
            Place::Inline => needs.spare_inline(level, touched(), &row.digest),
            Place::Elsewhere => {
                let content = Key::content(row.digest).encode();
                let is_go = key.first() == Some(&(Kind::Go as u8));
                self.find_encoded(&content).is_some()
                    && (is_go || needs.spare_name(level, touched(), &row.digest))
            }
        }
    }
}

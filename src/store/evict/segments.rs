//! Segments given up whole, coldest first; what is live and hot in them is copied forward.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;

use super::needs::{Level, Needs};
use super::{Evicted, Eviction, GO_DAY_S};
use crate::entry::{Key, Kind};
use crate::store::record::{Place, Row};
use crate::store::segment::{self, Position, Record, Tag};
use crate::store::tail::Append;
use crate::store::{Store, seconds};

/// A segment found too hot is not looked at again for this long.
const TOO_HOT_S: u32 = 60;

impl Store {
    /// Gives up the coldest segment; false if there is none to give.
    pub(super) fn evict_segment(
        &self,
        eviction: &mut Eviction,
        needs: &Needs,
        done: &mut Evicted,
    ) -> bool {
        let now = seconds(self.inner.clock.now());
        eviction.too_hot.retain(|_, (at, _)| now.saturating_sub(*at) < TOO_HOT_S);
        let Some(number) = self.coldest_segment(&eviction.too_hot, needs.level) else {
            return false;
        };
        match self.give_up(number, needs) {
            Ok(Some(evicted)) => {
                done.entries += evicted.entries;
                done.bytes += evicted.bytes;
                true
            }
            Ok(None) => {
                eviction.too_hot.insert(number, (now, needs.level));
                false
            }
            Err(error) => {
                eviction.too_hot.insert(number, (now, needs.level));
                self.fault("evict a segment", &error);
                false
            }
        }
    }

    fn coldest_segment(&self, too_hot: &HashMap<u32, (u32, Level)>, level: Level) -> Option<u32> {
        let current = self.inner.tail.current_segment();
        let touched: HashMap<u32, u32> =
            self.inner.index.read().ok()?.segments().ok()?.into_iter().collect();
        segment::list(&self.inner.layout.segments())
            .ok()?
            .into_iter()
            .filter(|number| *number < current)
            .filter(|number| too_hot.get(number).is_none_or(|(_, found)| *found < level))
            .min_by_key(|number| (touched.get(number).copied().unwrap_or(0), *number))
    }

    /// Copies what is live and hot forward, forgets the rest, removes the file. None if so much is
    /// hot that copying would cost more than it frees.
    fn give_up(&self, number: u32, needs: &Needs) -> io::Result<Option<Evicted>> {
        let path = segment::path(&self.inner.layout.segments(), number);
        let file = std::fs::File::open(&path)?;
        let size = file.metadata()?.len();
        let mut hot = 0;
        segment::scan(&file, 0, |offset, len, record| {
            let at = Position { segment: number, offset };
            let live = self.find_encoded(&record.key).filter(|row| row.at == at);
            if live.is_some_and(|row| self.is_worth_keeping(needs, &record.key, &row)) {
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
            match self.keep_or_forget(needs, at, &record, is_oldest) {
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
        needs: &Needs,
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
                if !self.is_worth_keeping(needs, &record.key, &row) {
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

    /// Rows of files stay while the file does; small bodies while they are needed; what only names
    /// content stays while the content does.
    fn is_worth_keeping(&self, needs: &Needs, key: &[u8], row: &Row) -> bool {
        let now = seconds(self.inner.clock.now());
        match row.place {
            Place::File => true,
            Place::Inline => needs.spare_inline(self.touched(key, row), &row.digest),
            Place::Elsewhere => {
                let content = Key::content(row.digest).encode();
                let is_go = key.first() == Some(&(Kind::Go as u8));
                self.find_encoded(&content).is_some()
                    && (is_go || now.saturating_sub(self.touched(key, row)) < GO_DAY_S)
            }
        }
    }
}

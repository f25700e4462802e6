//! Making room: files by sampling, segments whole. The worker calls `evict_step` until nothing is
//! in excess; every step is short.
//!
//! A file is first condemned in the index, then removed once a helper has had time to report that
//! it uses it; where there can be none, it is removed at once. A helper that meets a condemned row asks
//! the daemon, which pardons it by a touch.
//! What stays is decided in `needs`; `files` gives up the large entries, `segments` the small ones.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::entry::{Digest, Key};
use crate::store::record::{EntryMeta, Row};
use crate::store::{Store, layout, seconds};
use crate::units::{Random, Timestamp};

mod files;
mod needs;
mod segments;

use files::Condemned;
use needs::{Level, Needs, Owed};
use segments::{Coldest, Judged, NEVER};

/// Longer than a helper takes to report what it used.
pub const GRACE_S: u32 = 15;
/// For so long room is made for what somebody has put or asked for. What a build uses gives none.
const WISH_S: u64 = 60;
/// Go may read a path that it was given for a day.
const GO_DAY_S: u32 = 24 * 3600;
/// So often files are looked at before it is said that none may go.
const SAMPLES_AT_LAST: usize = 10;

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
    /// Files that are about to go.
    condemned: HashMap<Vec<u8>, Condemned>,
    judged: HashMap<u32, Judged>,
    /// What builds use that go on now was used since then.
    live_since: Option<u32>,
    /// Since when no build goes on, as far as this process knows.
    alone_since: Option<u32>,
    owed: Owed,
    state: State,
}

/// What the last step has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing had to be given up, or something was.
    Well,
    /// Nothing was found yet, and there is more to look at.
    Looking,
    /// Nothing could be given up though something had to be.
    Stuck,
}

impl Eviction {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            condemned: HashMap::new(),
            judged: HashMap::new(),
            live_since: None,
            alone_since: None,
            owed: Owed::default(),
            state: State::Well,
        }
    }

    /// Since when the builds that go on now have been using entries; None if none goes on. To be told before
    /// each step, and in between: a store has to be alone for a while.
    pub fn set_live_since(&mut self, since: Option<Timestamp>, now: Timestamp) {
        self.live_since = since.map(seconds);
        self.watch_for_builds(seconds(now));
    }

    fn watch_for_builds(&mut self, now: u32) {
        self.alone_since = match self.live_since {
            Some(_) => None,
            None => self.alone_since.or(Some(now)),
        };
    }

    /// Whether no build goes on, nor one that had the daemon before this one.
    fn is_alone(&self, now: u32) -> bool {
        self.alone_since.is_some_and(|since| now.saturating_sub(since) >= GRACE_S)
    }

    /// Whether the last step found nothing to give up, though something had to be: all is used by
    /// builds that go on, or owed upstream.
    pub fn is_stuck(&self) -> bool {
        self.state == State::Stuck
    }

    /// Whether the next step may find what the last one did not.
    pub fn is_looking(&self) -> bool {
        self.state == State::Looking
    }

    pub fn waiting(&self) -> usize {
        self.condemned.len()
    }
}

impl Store {
    /// Bytes that must be given up now. A wish is forgotten once there is room for it, or cannot be, or
    /// after a while: whoever had it comes again, or does not.
    pub fn excess(&self) -> u64 {
        let (used, wish) = (self.used_bytes(), &self.inner.wish);
        let wished = wish.load(Ordering::Relaxed);
        let space = &self.inner.space;
        let now = self.inner.clock.now().seconds();
        let is_old = || now > self.inner.wished.load(Ordering::Relaxed);
        if wished > 0
            && (is_old() || space.has_room(used, wished, 0) || !space.could_have_room(used, wished))
        {
            // A larger one that has come meanwhile stays.
            let _ = wish.compare_exchange(wished, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        let in_files = self.inner.tail.file_bytes.load(Ordering::Relaxed);
        space.excess(used, in_files, wish.load(Ordering::Relaxed))
    }

    /// Whether nothing but files must go: the bytes would be there.
    fn wants_files_alone(&self) -> bool {
        let wish = self.inner.wish.load(Ordering::Relaxed);
        self.inner.space.excess(self.used_bytes(), 0, wish) == 0
    }

    /// Room for so many bytes is wanted, and there is none. For more than half of all, none is made.
    pub fn wish(&self, size: u64) {
        if size <= self.limit_bytes() / 2
            && self.inner.space.could_have_room(self.used_bytes(), size)
        {
            let until = self.inner.clock.now().seconds().saturating_add(WISH_S);
            self.inner.wished.store(until, Ordering::Relaxed);
            self.inner.wish.fetch_max(size, Ordering::Relaxed);
        }
    }

    /// One step: remove what was condemned and is still untouched; condemn more files or give up a
    /// segment while there is an excess.
    pub fn evict_step(&self, eviction: &mut Eviction) -> Evicted {
        let mut done = self.remove_condemned(eviction);
        let excess = self.excess();
        let pending: u64 = eviction.condemned.values().map(|victim| victim.size).sum();
        eviction.state = State::Well;
        if excess > pending + done.bytes {
            eviction.state = self.choose_victims(eviction, excess - pending, &mut done);
            if eviction.state == State::Stuck && (pending > 0 || done != Evicted::default()) {
                eviction.state = State::Well;
            }
        }
        self.inner.metrics.evicted_entries.add(done.entries);
        self.inner.metrics.evicted_bytes.add(done.bytes);
        done
    }

    /// Gives up what is least needed.
    fn choose_victims(&self, eviction: &mut Eviction, excess: u64, done: &mut Evicted) -> State {
        let files = self.inner.tail.file_bytes.load(Ordering::Relaxed);
        let segments = self.used_bytes().saturating_sub(files);
        // Whichever holds more gives first; the other follows if that yields nothing.
        let files_alone = self.wants_files_alone();
        let by_segment = segments > files && !files_alone;
        let needs = self.needs(eviction);
        let mut excess = excess;
        if !by_segment && !files_alone {
            let freed = self.evict_older_segment(eviction, &needs, done);
            excess = excess.saturating_sub(freed);
            if freed > 0 && excess == 0 {
                return State::Well;
            }
        }
        let mut coldest =
            if by_segment { Some(self.coldest_segment(eviction, &needs, NEVER)) } else { None };
        for level in Level::ALL {
            let tries = if level == Level::Last { SAMPLES_AT_LAST } else { 1 };
            if !by_segment && self.give_up_files(eviction, (&needs, level), tries, excess, done) {
                return State::Well;
            }
            if files_alone {
                continue;
            }
            let coldest =
                coldest.get_or_insert_with(|| self.coldest_segment(eviction, &needs, NEVER));
            if let Coldest::At(at, number) = *coldest
                && at <= level
                && self.evict_segment(eviction, &needs, (level, number), done)
            {
                return State::Well;
            }
            if by_segment && self.give_up_files(eviction, (&needs, level), tries, excess, done) {
                return State::Well;
            }
            // Milder ways are looked for in all segments first.
            if matches!(coldest, Coldest::More) {
                return State::Looking;
            }
        }
        State::Stuck
    }

    fn needs(&self, eviction: &mut Eviction) -> Needs {
        let now = seconds(self.inner.clock.now());
        if eviction.owed.is_less_than_seen(self) {
            // Segments had to stay for what was owed.
            eviction.judged.retain(|_, judged| judged.may_go());
        }
        let owed = eviction.owed.look(self, now);
        let is_beyond = self.used_bytes() > self.limit_bytes();
        Needs { now, live_since: eviction.live_since, owed, is_beyond }
    }

    /// When an entry was last used, as far as it is known; after an unclean stop nothing is older
    /// than the start.
    fn touched(&self, key: &[u8], row: &Row) -> u32 {
        let noted = self.touches().of(key).unwrap_or(0);
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
            let is_removed = match Digest::from_hex(&name) {
                Some(digest) => self.remove_orphan(&digest, &entry.path(), &meta)?,
                None => std::fs::remove_file(entry.path()).map(|()| true)?,
            };
            removed += u64::from(is_removed);
        }
        Ok(removed)
    }

    /// Removes a file that no row names, if it is still the one that was looked at.
    fn remove_orphan(&self, digest: &Digest, path: &Path, seen: &Metadata) -> io::Result<bool> {
        let (content, boot) = (Key::content(*digest), self.inner.boot);
        let is_unknown = || {
            let faults = self.index_faults();
            self.find(&content).is_none() && self.index_faults() == faults
        };
        if !is_unknown() {
            return Ok(false);
        }
        let aside = self.inner.layout.tmp().join(format!("out-{digest}"));
        {
            // A put has its file in place before it tells of it: once it has told, or placed another one, it
            // stays; and if it tells later, it finds under this lock that its file has gone.
            let Ok(_change) = self.inner.tail.begin() else { return Ok(false) };
            let now = std::fs::symlink_metadata(path)?;
            if layout::stamp(&now, boot) != layout::stamp(seen, boot) || !is_unknown() {
                return Ok(false);
            }
            std::fs::rename(path, &aside)?;
        }
        std::fs::remove_file(aside)?;
        Ok(true)
    }

    /// Lets go of what helpers hold of the index that were killed as they read: its pages would never be
    /// used again, and it would grow with each commit.
    pub fn clear_stale_readers(&self) {
        self.inner.index.clear_stale_readers();
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

//! Files given up by sampling: condemned in the index, then removed, or pardoned if somebody used them; at
//! once, where nobody can use them that this process does not hear of.
//! Which of them may go is decided in `needs`.

use super::needs::{Level, Needs};
use super::{Evicted, Eviction, GRACE_S};
use crate::entry::Kind;
use crate::store::record::{Place, Row, Stamp};
use crate::store::{Store, seconds};

/// What is about to go waits so long for a commit that says so.
const UNSEEN_S: u32 = 60;
/// Files looked at to find one victim.
const SAMPLE: usize = 24;
/// Victims of one step.
const VICTIMS: usize = 64;

/// A file that is about to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Condemned {
    since: u32,
    /// Since when helpers may know.
    seen: u32,
    /// Of the change that says so.
    sequence: u64,
    pub(super) size: u64,
    /// What was in its place then.
    stamp: Option<Stamp>,
}

impl Store {
    /// Removes condemned files whose grace is over, if nobody used them since. Grace is for helpers, which
    /// read the index themselves and tell later what they used.
    pub(super) fn remove_condemned(&self, eviction: &mut Eviction) -> Evicted {
        let now = seconds(self.inner.clock.now());
        let mut done = Evicted::default();
        self.flush_touches();
        let live_since = eviction.live_since;
        let needs = Needs { now, live_since, owed: None, is_beyond: false };
        eviction.watch_for_builds(now);
        eviction.condemned.retain(|key, victim| {
            // Helpers see what the index has, and hand out what that does not say is about to go. But an
            // index that cannot be written for want of room must not keep room from being made.
            if live_since.is_some()
                && !self.inner.tail.has_committed(victim.sequence)
                && now.saturating_sub(victim.since) < UNSEEN_S
            {
                victim.seen = now;
            }
            if now.saturating_sub(victim.seen) < GRACE_S {
                return true;
            }
            if let Some(row) = self.remove_unused(key, victim, &needs) {
                done.entries += 1;
                done.bytes += row.size;
            }
            false
        });
        done
    }

    /// Whether this process knows of each use at once: no build goes on, and the index has nothing that a
    /// helper could find which this process does not hear of. Files need no grace then.
    fn knows_all_uses(&self, eviction: &Eviction, now: u32) -> bool {
        eviction.is_alone(now) && !self.may_have_go()
    }

    /// Removes a condemned file, or pardons it if somebody has used it since; what is gone.
    fn remove_unused(&self, key: &[u8], victim: &Condemned, needs: &Needs) -> Option<Row> {
        let mut change = self.inner.tail.begin().ok()?;
        let row = self.find_encoded(key)?;
        // Held until it is gone: see `touch`.
        let touches = self.touches();
        let noted = touches.of(key);
        let touched = row.touched.max(noted.unwrap_or(0)).max(self.inner.fresh_since);
        // Notes were written down just now: one that is there is of a use since, whatever the clock says. A
        // build may have begun, and used it, while it was chosen.
        let is_used = noted.is_some()
            || touched >= victim.since
            || row.condemned == 0
            || needs.is_live(touched);
        // A helper that puts it anew has it in place before it tells of it.
        let is_new = self.stamp_of(&row).is_some_and(|now| Some(now) != victim.stamp);
        if is_used || is_new {
            change.put(key.to_vec(), Row { condemned: 0, touched: needs.now, ..row });
            return None;
        }
        let file = self.take_out(&mut change, key, &row);
        drop((touches, change));
        self.discard(file);
        Some(row)
    }

    /// Whether the index has an action of go, by which a helper without a session finds its output.
    fn may_have_go(&self) -> bool {
        let go = [Kind::Go as u8];
        let mut found = false;
        let looked = self.inner.index.read().and_then(|reading| {
            reading.visit(&go, |key, _| {
                found = key.first() == go.first();
                std::ops::ControlFlow::Break(())
            })
        });
        found || looked.is_err()
    }

    /// Removes a file that was chosen, unless it is used in this moment, or another one lies in its place.
    fn remove_at_once(&self, key: &[u8], chosen: &Row) -> Option<()> {
        let mut change = self.inner.tail.begin().ok()?;
        // Held until it is gone: see `touch`.
        let touches = self.touches();
        let is_unused = self.find_encoded(key) == Some(*chosen) && touches.of(key).is_none();
        if !is_unused || !self.lies_as_recorded(chosen) {
            return None;
        }
        let file = self.take_out(&mut change, key, chosen);
        drop((touches, change));
        self.discard(file);
        Some(())
    }

    /// Whether no other file has taken its place. That the machine was started anew makes none another one.
    fn lies_as_recorded(&self, row: &Row) -> bool {
        self.stamp_of(row).is_none_or(|now| now == Stamp { boot: now.boot, ..row.stamp })
    }

    /// Gives up the least recently used of sampled files, as many as cover the excess: at once, or by a mark,
    /// for those who may be using them. False if none was found in `tries` samples.
    pub(super) fn give_up_files(
        &self,
        eviction: &mut Eviction,
        (needs, level): (&Needs, Level),
        tries: usize,
        excess: u64,
        done: &mut Evicted,
    ) -> bool {
        let (mut freed, mut failed) = (0, 0);
        let at_once = self.knows_all_uses(eviction, needs.now);
        for _ in 0..VICTIMS {
            if freed >= excess {
                break;
            }
            let Some((key, row)) = self.coldest_file(eviction, needs, level) else {
                failed += 1;
                if freed > 0 || failed >= tries {
                    break;
                }
                continue;
            };
            // A file that nobody has told of waits, and is not chosen for ever.
            if !at_once || !self.lies_as_recorded(&row) {
                if self.condemn(eviction, key, &row, needs.now).is_some() {
                    done.condemned += 1;
                    freed += row.size;
                }
            } else if self.remove_at_once(&key, &row).is_some() {
                done.entries += 1;
                done.bytes += row.size;
                freed += row.size;
            }
        }
        freed > 0
    }

    /// Marks a file that was chosen as one that is about to go.
    fn condemn(&self, eviction: &mut Eviction, key: Vec<u8>, row: &Row, now: u32) -> Option<()> {
        let mut change = self.inner.tail.begin().ok()?;
        // Under the lock: a touch or a put in between takes it off the list.
        if self.find_encoded(&key) != Some(*row) {
            return None;
        }
        change.put(key.clone(), Row { condemned: now.max(1), ..*row });
        let sequence = change.sequence();
        drop(change);
        let (size, stamp) = (row.size, self.stamp_of(row));
        let victim = Condemned { since: now, seen: now, sequence, size, stamp };
        eviction.condemned.insert(key, victim);
        Some(())
    }

    /// The least recently used of some files that may go.
    pub(super) fn coldest_file(
        &self,
        eviction: &mut Eviction,
        needs: &Needs,
        level: Level,
    ) -> Option<(Vec<u8>, Row)> {
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
                // One that was condemned by a process that has ended is as good as any.
                row.place == Place::File
                    && !eviction.condemned.contains_key(key)
                    && !needs.spare(level, self.touched(key, row), &row.digest)
            })
            .min_by_key(|(key, row)| self.touched(key, row))
    }
}

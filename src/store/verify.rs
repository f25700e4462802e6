//! Reading everything again: `verify` names each entry that does not hold, `purge` removes by
//! realm, age or writer. Both walk the index in short reads, so that the daemon goes on beside them.

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use crate::entry::{Digest, Key, Kind, RealmId};
use crate::store::file;
use crate::store::record::{Place, Row};
use crate::store::{Store, seconds};

/// Keys read from the index at a time; a long read transaction would keep its old pages alive.
const BATCH: usize = 1024;
/// Of an entry that is not taken out for it.
const UNREADABLE: &str = "its bytes cannot be read now";

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    pub entries: u64,
    pub bytes: u64,
    /// Each bad entry with what is wrong.
    pub bad: Vec<(Key, &'static str)>,
    pub repaired: u64,
}

/// Which entries to purge. An entry must match everything that is given.
#[derive(Clone, Debug, Default)]
pub struct Purge {
    pub older_than: Option<Duration>,
    pub realms: Option<HashSet<RealmId>>,
    pub writer: Option<String>,
}

impl Store {
    /// Reads and hashes every entry; `progress` hears of each. With `repair`, bad ones are removed.
    pub fn verify(&self, repair: bool, mut progress: impl FnMut(&Verified)) -> Verified {
        let mut report = Verified::default();
        self.each(|store, key, row| {
            report.entries += 1;
            // What only names content has no bytes of its own.
            if row.place != Place::Elsewhere {
                report.bytes += row.size;
            }
            let judged = (row.place == Place::File).then(|| store.stamp_of(row));
            if let Some(problem) = store.problem(key, row) {
                report.bad.push((key.clone(), problem));
                // What cannot be read now may be read in a moment.
                if repair && problem != UNREADABLE {
                    // Not what was put in its place while it was read.
                    let is_out = match judged {
                        Some(judged) => store.remove_judged(key, row, judged),
                        None => store.remove_row(key, row),
                    };
                    report.repaired += u64::from(is_out);
                }
            }
            progress(&report);
        });
        report
    }

    /// What is wrong with an entry. A name without content is a miss, not damage.
    fn problem(&self, key: &Key, row: &Row) -> Option<&'static str> {
        match row.place {
            Place::Elsewhere => None,
            Place::Inline => match self.peek(key, row) {
                // To make room it may have been copied to another segment, and its old one removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let is_there = self.find(key).is_some_and(|now| now.at == row.at);
                    is_there.then_some("its segment is gone")
                }
                Err(error) if file::may_pass(&error) => Some(UNREADABLE),
                Err(_) => self.peek(key, row).is_err().then_some("its segment cannot be read"),
                Ok(None) => Some("its record in the segment is damaged"),
                Ok(Some(body)) if Digest::of(&body) != row.digest => Some("its bytes were changed"),
                Ok(Some(_)) => None,
            },
            Place::File => match file::hash(&self.inner.layout.file(&row.digest)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // It may have been given up since its row was read. Whoever does that holds the lock.
                    let _change = self.inner.tail.begin();
                    let is_there = self.find(key).is_some_and(|now| now.at == row.at);
                    is_there.then_some("its file is gone")
                }
                Err(error) if file::may_pass(&error) => Some(UNREADABLE),
                // A sector that is bad stays bad.
                Err(_) => {
                    let again = file::hash(&self.inner.layout.file(&row.digest));
                    again.is_err().then_some("its file cannot be read")
                }
                Ok((digest, size)) if digest != row.digest || size != row.size => {
                    Some("its file was changed")
                }
                Ok(_) => None,
            },
        }
    }

    /// The body of a small entry, without counting damage. None: that is no record of it.
    fn peek(&self, key: &Key, row: &Row) -> io::Result<Option<Vec<u8>>> {
        let file = self.segment(row.at.segment)?;
        let record = super::segment::read(&file, &self.inner.seal, row.at, row.len)?;
        Ok(record.ok().filter(|record| record.key == key.encode()).map(|record| record.body))
    }

    /// Removes what matches and returns how many. What is owed upstream goes too: it was purged.
    pub fn purge(&self, what: &Purge) -> u64 {
        let now = seconds(self.inner.clock.now());
        let mut removed = 0;
        self.each(|store, key, _| {
            let is_meant = |row: &Row| {
                let stored = seconds(row.stored);
                let old = what
                    .older_than
                    .is_none_or(|age| u64::from(now.saturating_sub(stored)) >= age.as_secs());
                // Content belongs to no realm: it goes when nothing is asked of the realm.
                let realm = what.realms.as_ref().is_none_or(|realms| realms.contains(&key.realm));
                let writer = what.writer.as_ref().is_none_or(|writer| {
                    store.entry_meta(key, row).is_some_and(|e| *e.meta.writer == **writer)
                });
                old && realm && writer
            };
            removed += u64::from(store.remove_if(key, is_meant));
        });
        removed
    }

    /// Visits every entry, newest state first known to the overlay included.
    fn each(&self, mut visit: impl FnMut(&Self, &Key, &Row)) {
        // What is only acknowledged is committed first, so that the index has everything.
        self.sync(Duration::from_secs(10));
        let mut from = vec![Kind::Content as u8];
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            let read = self.inner.index.read().and_then(|reading| {
                reading.visit(&from, |key, row| {
                    batch.push((key.to_vec(), row));
                    if batch.len() < BATCH {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                })
            });
            if let Err(error) = read {
                self.fault("read the index", &error);
                return;
            }
            let Some((last, _)) = batch.last() else { return };
            from.clone_from(last);
            from.push(0);
            for (encoded, row) in batch {
                let row = self.inner.tail.row(&encoded).unwrap_or(Some(row));
                if let (Some(key), Some(row)) = (Key::decode(&encoded), row) {
                    visit(self, &key, &row);
                }
            }
        }
    }
}

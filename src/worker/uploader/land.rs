//! What follows from an attempt that is over: settled, given up, or tried again.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use crate::backend::BackendError;
use crate::entry::{Digest, Kind, RealmId};
use crate::telemetry::metrics::Dropped;
use crate::worker::uploader::attempt::{Outcome, Sent};
use crate::worker::uploader::health::{Blame, News, blame};
use crate::worker::uploader::journal::drop_owed;
use crate::worker::uploader::lane::Lane;
use crate::worker::uploader::{Landed, Uploader, What};

/// An entry that could not be read for so long does not come back, and holds up actions behind it. A disk
/// that fails, or too many open files, may last for minutes.
const UNREADABLE_FOR: Duration = Duration::from_secs(3600);

impl Uploader {
    /// Whatever else is over by now.
    pub(super) fn land_others(&mut self) {
        while let Some(Some(landed)) = self.flying.next().now_or_never() {
            self.land(landed);
        }
    }

    pub(super) fn land(&mut self, landed: Landed) {
        let Landed { lane, epoch, what } = landed;
        match what {
            What::Question(numbers, Ok(answer)) => self.answered(lane, epoch, &numbers, answer),
            What::Question(numbers, Err(panic)) => {
                self.desk.panicked(&self.cache, panic.as_ref());
                self.lanes[lane].answered(&numbers);
            }
            What::Attempt(number, Ok(outcome)) => self.came_to(lane, epoch, number, outcome),
            What::Attempt(number, Err(panic)) => {
                self.desk.panicked(&self.cache, panic.as_ref());
                self.lanes[lane].postpone(number, Instant::now());
            }
        }
    }

    fn came_to(&mut self, at: usize, epoch: u64, number: u64, outcome: Outcome) {
        match outcome {
            Outcome::Sent(sent) => self.sent(at, number, &sent),
            Outcome::Known => self.settle(at, number),
            Outcome::Replaced => self.lanes[at].remove(number),
            Outcome::Gone => self.give_up(at, number, Dropped::Gone),
            Outcome::Unreadable => {
                if self.lanes[at].postpone_unreadable(number, Instant::now()) >= UNREADABLE_FOR {
                    self.give_up(at, number, Dropped::Corrupt);
                }
            }
            Outcome::Lacks(content) => {
                tracing::warn!(%content, "an action is given up: upstream lacks what it names");
                self.give_up(at, number, Dropped::Refused);
            }
            Outcome::Failed(error) => self.failed(at, epoch, number, &error),
        }
    }

    fn give_up(&mut self, at: usize, number: u64, why: Dropped) {
        if let Some((realm, content)) = self.content_of(at, number) {
            self.lacking.insert(realm, content);
        }
        drop_owed(&self.cache, number, why);
        self.lanes[at].remove(number);
    }

    fn content_of(&self, at: usize, number: u64) -> Option<(RealmId, Digest)> {
        let owed = &self.lanes[at].get(number)?.owed;
        let content = owed.key.expected().filter(|_| owed.key.kind == Kind::Content)?;
        Some((owed.realm, content))
    }

    fn sent(&mut self, at: usize, number: u64, sent: &Sent) {
        self.cache.metrics().uploaded_entries.inc();
        self.cache.metrics().uploaded_bytes.add(sent.bytes);
        self.lanes[at].permit(number);
        let news = self.lanes[at].health.success(sent.took);
        tell(&self.lanes[at], None, news);
        // Only what is still owed under this number is what was sent. A confirmation of what was
        // replaced meanwhile would keep it from being sent once more:
        //   attempt reads A · put B is owed · A lands and is confirmed · B is sent ·
        //   put A: "confirmed", so not owed, and upstream keeps B.
        let Some(owed) = self.cache.store().owed_at(number) else {
            return self.settle(at, number);
        };
        if let Some(realm) = self.cache.realms().by_id(owed.realm) {
            self.cache.confirm(&realm, &owed.key, sent.digest);
        }
        self.settle(at, number);
    }

    /// Upstream has it. Where the journal cannot be written it stays, and is found confirmed.
    fn settle(&mut self, at: usize, number: u64) {
        if let Some((realm, content)) = self.content_of(at, number) {
            self.lacking.remove(realm, content);
        }
        if self.cache.store().settle(number) || self.cache.store().is_settled(number) {
            self.lanes[at].remove(number);
        } else {
            self.lanes[at].postpone(number, Instant::now());
        }
    }

    fn failed(&mut self, at: usize, epoch: u64, number: u64, error: &BackendError) {
        let now = Instant::now();
        let is_read_only = matches!(error, BackendError::ReadOnly);
        if !error.may_pass() && !is_read_only {
            let key = self.lanes[at].get(number).map(|job| job.owed.key.clone());
            let key = key.map(|key| key.to_string()).unwrap_or_default();
            tracing::warn!(%key, %error, "an upload is refused and given up");
            return self.give_up(at, number, Dropped::Refused);
        }
        if is_read_only {
            self.lanes[at].health.note_unwritable(number);
        }
        if matches!(error, BackendError::Denied(_)) {
            self.lanes[at].deny(number);
        }
        match blame(error) {
            Blame::Upstream => self.lanes[at].land(number),
            Blame::Both | Blame::Entry | Blame::Load => self.lanes[at].postpone(number, now),
        }
        let news = self.lanes[at].health.failure(error, epoch, now);
        tell(&self.lanes[at], Some(error), news);
    }

    fn answered(
        &mut self,
        at: usize,
        epoch: u64,
        numbers: &[u64],
        answer: Result<Vec<bool>, BackendError>,
    ) {
        self.lanes[at].answered(numbers);
        match answer {
            Ok(there) => {
                for (number, is_there) in numbers.iter().zip(there) {
                    if is_there && !self.is_spoiled(at, *number) {
                        self.confirmed(at, *number);
                    }
                }
            }
            // Then they are sent unasked.
            Err(error) => {
                let news = self.lanes[at].health.failure(&error, epoch, Instant::now());
                tell(&self.lanes[at], Some(&error), news);
            }
        }
    }

    /// Whether a content came from there as other bytes: then it is sent, there or not.
    fn is_spoiled(&self, at: usize, number: u64) -> bool {
        let owed = self.lanes[at].get(number).map(|job| &job.owed);
        owed.is_some_and(|owed| {
            let content = owed.key.expected();
            content.is_some_and(|content| self.cache.frames().is_spoiled(owed.realm, &content))
        })
    }

    /// Upstream says that it has a content.
    fn confirmed(&mut self, at: usize, number: u64) {
        let Some(job) = self.lanes[at].get(number) else { return };
        let key = job.owed.key.clone();
        if let Some(realm) = self.cache.realms().by_id(job.owed.realm)
            && let Some(digest) = key.expected()
        {
            self.cache.confirm(&realm, &key, digest);
        }
        self.settle(at, number);
    }
}

/// One line for each change of state.
fn tell(lane: &Lane, error: Option<&BackendError>, news: News) {
    let upstream = &*lane.upstream;
    match (news, error) {
        (News::Trouble, Some(BackendError::ReadOnly)) => tracing::warn!(
            upstream,
            "upstream takes no uploads; they wait here: set `write = false` for it, or let it write"
        ),
        (News::Trouble, Some(error)) => {
            tracing::warn!(upstream, %error, "uploads do not get through; they wait here");
        }
        (News::Well, _) => tracing::info!(upstream, "uploads get through again"),
        (News::Trouble | News::None, _) => {}
    }
}

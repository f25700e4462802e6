//! Reads the journal into the lanes of its upstreams; drops what is too old or too much.
//!
//! What cannot be sent to anybody stays in the journal and is counted by its reason.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use crate::cache::Cache;
use crate::entry::{Kind, RealmId};
use crate::store::index::Owed;
use crate::telemetry::metrics::Dropped;
use crate::units::{Timestamp, show_count};
use crate::worker::uploader::lane::{Lane, Order};

/// Uploads read at once, and how often before somebody else has a turn.
const PAGE: usize = 512;
const PAGES_MAX: usize = 16;
/// Nobody's build profits from it after so long.
const EXPIRES_AFTER_S: u64 = 7 * 24 * 3600;
/// Uploads owed at most: about 200 MB of index.
const OWED_MAX: u64 = 1_000_000;
/// Reasons told apart.
const STUCK_MAX: usize = 16;

/// Why an upload cannot be sent to anybody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stuck {
    /// Its realm's upstream, as far as it is known.
    NoUpstream(RealmId, Arc<str>),
    ReadOnly(Arc<str>),
    NoUploads,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUpstream(realm, url) if url.is_empty() => {
                write!(f, "the upstream of realm {realm} is not configured")
            }
            Self::NoUpstream(_, url) => write!(
                f,
                "they are owed to {url}, which is no upstream of this daemon: name it again to send \
                 them, or `larder purge` them"
            ),
            Self::ReadOnly(upstream) => write!(f, "upstream `{upstream}` is read-only"),
            Self::NoUploads => f.write_str("this daemon is set to upload nothing"),
        }
    }
}

/// The part of the journal that belongs to no lane, as far as it was read.
pub(super) struct Journal {
    cursor: u64,
    is_caught_up: bool,
    stuck: BTreeMap<Stuck, u64>,
    owed_max: u64,
    /// Opaque entries before this number were dropped already.
    trimmed: u64,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            cursor: 0,
            is_caught_up: false,
            stuck: BTreeMap::new(),
            owed_max: OWED_MAX,
            trimmed: 0,
        }
    }
}

impl Journal {
    #[cfg(test)]
    pub(super) fn with_limit(owed_max: u64) -> Self {
        Self { owed_max, ..Self::default() }
    }

    /// Something was appended.
    pub(super) const fn has_news(&mut self) {
        self.is_caught_up = false;
    }

    pub(super) fn start_again(&mut self) {
        self.cursor = 0;
        self.is_caught_up = false;
        self.stuck.clear();
    }

    pub(super) fn has_stuck(&self) -> bool {
        !self.stuck.is_empty()
    }

    pub(super) const fn is_caught_up(&self) -> bool {
        self.is_caught_up
    }

    pub(super) fn reasons(&self) -> impl Iterator<Item = String> {
        self.stuck.iter().map(|(why, n)| format!("{why} ({} owed)", show_count(*n)))
    }

    /// Reads a part; true if there is more to read now.
    pub(super) fn refill(
        &mut self,
        cache: &Cache,
        lanes: &mut [Lane],
        order: Order,
        now: Instant,
    ) -> bool {
        let mut has_more = self.trim(cache, lanes);
        for lane in lanes {
            has_more |= fill(cache, lane, order, now);
        }
        has_more | self.count_stuck(cache)
    }

    fn count_stuck(&mut self, cache: &Cache) -> bool {
        let mut pages = 0;
        while !self.is_caught_up && pages < PAGES_MAX {
            pages += 1;
            let page = cache.store().owed_from(self.cursor, PAGE);
            self.is_caught_up = page.len() < PAGE;
            for (number, owed) in page {
                self.cursor = number + 1;
                let Err(stuck) = upstream_of(cache, &owed) else { continue };
                if is_expired(&owed, cache.clock().now()) {
                    drop_owed(cache, number, Dropped::Expired);
                } else if self.stuck.len() < STUCK_MAX || self.stuck.contains_key(&stuck) {
                    *self.stuck.entry(stuck).or_default() += 1;
                }
            }
        }
        !self.is_caught_up
    }

    /// Drops the oldest opaque entries of a journal that is too long: what they hold is a tool's
    /// own, and no action depends on it.
    fn trim(&mut self, cache: &Cache, lanes: &mut [Lane]) -> bool {
        let mut over = cache.store().owed_entries().saturating_sub(self.owed_max);
        for _ in 0..PAGES_MAX {
            let page = if over > 0 { cache.store().owed_from(self.trimmed, PAGE) } else { vec![] };
            if page.is_empty() {
                return false;
            }
            for (number, owed) in page {
                if over == 0 {
                    break;
                }
                self.trimmed = number + 1;
                let is_busy = lanes.iter().any(|lane| lane.is_busy(number));
                if owed.key.kind == Kind::Opaque && !is_busy {
                    drop_owed(cache, number, Dropped::Full);
                    lanes.iter_mut().for_each(|lane| lane.remove(number));
                    over -= 1;
                }
            }
        }
        over > 0
    }
}

/// Reads what is owed to a lane's upstream; true if there is more to read now.
fn fill(cache: &Cache, lane: &mut Lane, order: Order, now: Instant) -> bool {
    for _ in 0..PAGES_MAX {
        if !lane.wants_more(order, now) {
            return false;
        }
        let page = cache.store().owed_from(lane.cursor, PAGE);
        lane.is_caught_up = page.len() < PAGE;
        for (number, owed) in page {
            lane.cursor = number + 1;
            if upstream_of(cache, &owed).is_ok_and(|name| name == lane.upstream) {
                lane.insert(number, owed);
            }
        }
    }
    lane.wants_more(order, now)
}

/// The name of the upstream that is owed this.
fn upstream_of(cache: &Cache, owed: &Owed) -> Result<Arc<str>, Stuck> {
    if cache.config().read_only {
        return Err(Stuck::NoUploads);
    }
    let realm = cache.realms().by_id(owed.realm).ok_or_else(|| no_upstream(cache, owed.realm))?;
    match (realm.writes_to(), &realm.upstream) {
        (Some(upstream), _) => Ok(upstream.name.clone()),
        (None, Some(upstream)) => Err(Stuck::ReadOnly(upstream.name.clone())),
        (None, None) => Err(no_upstream(cache, owed.realm)),
    }
}

fn no_upstream(cache: &Cache, realm: RealmId) -> Stuck {
    Stuck::NoUpstream(realm, cache.realms().former_upstream(realm).unwrap_or_default())
}

pub(super) fn is_expired(owed: &Owed, now: Timestamp) -> bool {
    now.seconds().saturating_sub(u64::from(owed.since)) > EXPIRES_AFTER_S
}

/// Gives an upload up; what was replaced meanwhile stays owed under its new number.
pub(super) fn drop_owed(cache: &Cache, number: u64, why: Dropped) {
    if cache.store().settle(number) {
        cache.metrics().drop_upload(why);
        tracing::debug!(number, why = why.name(), "upload given up");
    }
}

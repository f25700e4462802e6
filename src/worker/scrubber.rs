//! Tidies the store: takes over what helpers left without a daemon, removes files that no row names.
//!
//! How both are done is the cache's and the store's business; here is only when.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use crate::cache::Cache;
use crate::units::{Random, show_count};
use crate::worker::desk::Desk;

/// Between two looks at the spool's time of change.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// One of 256 directories: all of them in two days.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// A change this recent may be followed by another one with the same time.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

pub(super) async fn run(cache: Cache, desk: Arc<Desk>) {
    let mut shutdown = cache.tasks().shutdown_signal();
    let mut spool = Spool::default();
    let mut swept = Instant::now();
    // Daemons that live for an hour must reach every directory too.
    let mut directory = Random::new(cache.clock().now().0).next_u64().to_le_bytes()[0];
    loop {
        desk.woke();
        let path = cache.store().layout().spool();
        let changed = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        if spool.has_news(changed, cache.clock().now().seconds()) {
            adopt(&cache, &desk).await;
        }
        cache.sessions().release_old();
        if swept.elapsed() >= SWEEP_EVERY {
            swept = Instant::now();
            sweep(&cache, &desk, directory).await;
            directory = directory.wrapping_add(1);
            // What could not be adopted is tried again.
            spool = Spool::default();
        }
        desk.set_state("idle");
        tokio::select! {
            () = shutdown.wait() => return,
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

async fn adopt(cache: &Cache, desk: &Desk) {
    desk.set_state("adopting what helpers left");
    let worker = cache.clone();
    match cache.tasks().blocking("adopt the spool", move || worker.adopt_spool()).await {
        Some(Ok(0)) | None => {}
        Some(Ok(adopted)) => {
            tracing::info!(entries = %show_count(adopted), "adopted what helpers left");
        }
        Some(Err(error)) => tracing::warn!(%error, "cannot adopt what helpers left"),
    }
}

async fn sweep(cache: &Cache, desk: &Desk, directory: u8) {
    desk.set_state("looking for files that nobody names");
    let store = cache.store().clone();
    match cache.tasks().polite("sweep", move || store.sweep_orphans(directory)).await {
        Some(Ok(0)) | None => {}
        Some(Ok(removed)) => {
            tracing::info!(files = %show_count(removed), "removed files that nobody names");
        }
        Some(Err(error)) => tracing::warn!(%error, "cannot look for files that nobody names"),
    }
}

/// When the spool was last seen to change.
#[derive(Debug, Default)]
struct Spool {
    seen: Option<SystemTime>,
}

impl Spool {
    /// Whether something may have been added since the last look. The time is taken before the
    /// spool is read: what comes in between changes it once more.
    fn has_news(&mut self, changed: Option<SystemTime>, now_s: u64) -> bool {
        let Some(changed) = changed else { return false };
        if self.seen == Some(changed) {
            return false;
        }
        let since = changed.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let is_settled = since + SETTLED_AFTER < Duration::from_secs(now_s);
        self.seen = is_settled.then_some(changed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Class, Digest, Key, Meta};
    use crate::store::spool::Spooled;
    use crate::worker::uploader::bench::{Bench, until};

    #[test]
    fn the_spool_is_read_when_it_changed_and_while_it_may_change_unseen() {
        let at = |s| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(s));
        let mut spool = Spool::default();
        let cases = [
            (at(100), 200, true),
            (at(100), 230, false),
            (at(231), 232, true),
            (at(231), 262, true),
            (at(231), 292, false),
            (None, 322, false),
        ];
        for (changed, now_s, expected) in cases {
            assert_eq!(spool.has_news(changed, now_s), expected, "{changed:?} at {now_s}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_helper_left_is_adopted() {
        let bench = Bench::new();
        let cache = bench.cache(&bench.open());
        let output = vec![7; 5000];
        let digest = Digest::of(&output);
        std::fs::write(cache.store().layout().file(&digest), &output).unwrap();
        let meta = Meta::new(digest, 5000, bench.clock.now(), Class::Archive);
        let action = Key::go(bench.realm(&cache, "team").id, Digest::of(b"action"));
        let spool = cache.store().layout().spool();
        Spooled { action: action.clone(), meta }.write(&spool).unwrap();
        let running = run(cache.clone(), Desk::new("scrubber"));
        let is_adopted = until(|| std::fs::read_dir(&spool).unwrap().count() == 0);
        tokio::select! {
            () = running => panic!("it ended"),
            () = is_adopted => {}
        }
        assert!(cache.store().find_go(&action).is_some());
        assert_eq!(cache.store().owed_entries(), 1);
        bench.close(&cache).await;
    }
}

//! Makes room on disk, writes down what was used, and notices if the store is taken away. What is given up is the store's decision.
//!
//! Its look at the free space, every ten seconds, is the one thing that wakes an idle daemon often.
//! While room is being made it looks each second, and as often as puts want it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cache::Cache;
use crate::store::evict::Eviction;
use crate::units::{ByteSize, show_count};
use crate::worker::desk::Desk;

/// Space may also go to others: one statvfs tells.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// While something waits for its grace to end.
const STEP_EVERY: Duration = Duration::from_secs(1);
/// A store that puts fill is looked at no more often than this.
const WISHES_EVERY: Duration = Duration::from_millis(100);
/// What was used since may be forgotten by a crash; then everything counts as fresh.
const TOUCHES_EVERY: Duration = Duration::from_secs(60);
/// Steps in one go: the blocking thread is given back now and then.
const STEPS_MAX: usize = 1000;

pub(super) async fn run(cache: Cache, desk: Arc<Desk>) {
    let mut shutdown = cache.tasks().shutdown_signal();
    let mut eviction = Eviction::new(cache.clock().now().0);
    let mut touches_flushed = Instant::now();
    let (mut is_full, mut was_full) = (false, false);
    loop {
        desk.woke();
        if cache.store().is_lost() {
            desk.set_state("the store was removed, or its index is damaged");
            cache.lose_store();
            return;
        }
        if touches_flushed.elapsed() >= TOUCHES_EVERY {
            touches_flushed = Instant::now();
            let store = cache.store().clone();
            let tidy = move || {
                store.flush_touches();
                store.clear_stale_readers();
            };
            let _ = cache.tasks().blocking("write touches", tidy).await;
        }
        // Told of at each look: a store that no build uses gives up files at once.
        eviction.set_live_since(cache.sessions().live_since(), cache.clock().now());
        let is_needed = cache.store().excess() > 0 || eviction.waiting() > 0;
        if is_needed {
            desk.set_state("making room");
            let (room_for, seed) = (cache.clone(), cache.clock().now().0);
            let step = move || {
                make_room(&room_for, &mut eviction);
                eviction
            };
            // After a panic, which was counted, what was condemned is forgotten and found again.
            let done = cache.tasks().blocking("evict", step).await;
            eviction = done.unwrap_or_else(|| Eviction::new(seed));
        }
        let excess = cache.store().excess();
        is_full = excess > 0 && (is_full || eviction.is_stuck());
        if is_full != was_full {
            was_full = is_full;
            tell(&cache, is_full);
        }
        desk.set_state(match eviction.waiting() {
            0 if is_full => "full: all is in use or owed".to_owned(),
            0 => "idle".to_owned(),
            waiting => format!("{} files are about to go", show_count(waiting as u64)),
        });
        let wanted = async {
            // Many puts are one wish.
            sleep(WISHES_EVERY).await;
            cache.room_wanted().await;
        };
        tokio::select! {
            () = shutdown.wait() => return,
            () = sleep(next_look(excess, eviction.waiting(), eviction.is_stuck())) => {}
            () = wanted, if !eviction.is_stuck() => {}
            () = fewer_owed(&cache), if excess > 0 && eviction.is_stuck() => {}
        }
    }
}

/// Returns when uploads have made some of what was owed free to go.
async fn fewer_owed(cache: &Cache) {
    let before = cache.store().owed_entries();
    while cache.store().owed_entries() >= before {
        sleep(STEP_EVERY).await;
    }
}

/// Says that the store has become full of what must stay, or that it is so no longer.
fn tell(cache: &Cache, is_full: bool) {
    let store = cache.store();
    if is_full {
        tracing::warn!(
            used = %ByteSize(store.used_bytes()),
            limit = %ByteSize(store.limit_bytes()),
            free = %ByteSize(store.free_bytes()),
            owed = store.owed_entries(),
            "store: full of what builds use that go on, or what is owed upstream; what does not fit \
             is not stored: give it a larger --disk, or free space"
        );
    } else {
        tracing::info!("store: there is room again");
    }
}

const fn next_look(excess: u64, waiting: usize, is_stuck: bool) -> Duration {
    // What all is needed now will not be free in a second.
    if waiting > 0 || excess > 0 && !is_stuck { STEP_EVERY } else { LOOK_EVERY }
}

/// Steps until nothing is in excess, or a step changes nothing.
fn make_room(cache: &Cache, eviction: &mut Eviction) {
    let store = cache.store();
    for _ in 0..STEPS_MAX {
        // Builds begin while room is made.
        eviction.set_live_since(cache.sessions().live_since(), cache.clock().now());
        let done = store.evict_step(eviction);
        let is_idle = done.entries == 0 && done.bytes == 0 && done.condemned == 0;
        if is_idle && !eviction.is_looking() || store.excess() == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::uploader::bench::{Bench, until};

    #[test]
    fn it_looks_often_only_while_there_is_something_to_do() {
        assert_eq!(next_look(0, 0, false), LOOK_EVERY);
        assert_eq!(next_look(1, 0, false), STEP_EVERY);
        assert_eq!(next_look(0, 1, false), STEP_EVERY);
        assert_eq!(next_look(1, 0, true), LOOK_EVERY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_store_finds_room_again() {
        let bench = Bench::with_disk(2 << 20);
        let cache = bench.cache(&bench.open());
        for n in 0..20_u8 {
            bench.put_content(&cache, &vec![n; 100 << 10]).await;
        }
        assert!(cache.store().excess() > 0);
        cache.store().sync(Duration::from_secs(10));
        bench.clock.advance(Duration::from_secs(2 * 86_400));
        let desk = Desk::new("evictor");
        let running = run(cache.clone(), desk.clone());
        let has_room = until(|| {
            // The grace of what is condemned passes with the clock.
            bench.clock.advance(Duration::from_secs(1));
            // Counted by the worker, once its thread has made room.
            cache.store().excess() == 0 && cache.metrics().evicted_entries.get() > 0
        });
        tokio::select! {
            () = running => panic!("it ended"),
            () = has_room => {}
        }
        bench.close(&cache).await;
    }
}

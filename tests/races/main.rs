//! Interleavings, explored: the cache, its store and its uploader run under a scheduler that chooses, at
//! each lock, atomic, wait and spawn, who goes on. What is told to somebody must be so in every order.
//!
//! Built with `--cfg shuttle`, and run by its name:
//!
//! ```text
//! RUSTFLAGS='--cfg shuttle' cargo test --test races --target-dir target/races
//! ```
//!
//! `LARDER_SCHEDULES` says how many orders each test tries: half of them at random, half with few
//! changes of who goes first. `LARDER_SEED` repeats a run: what is printed of a failure.
//!
//! Not here: sockets, hyper and the daemon's own start and stop, which belong to tokio's reactor. Where
//! those come in, the tests call what they call. Files, index and moka are real, and act at once. All
//! atomics count as sequentially consistent: what a weaker order would permit is not tried.

#![cfg(shuttle)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod flights;
mod journal;
mod room;
mod stage;
mod store;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// Orders tried of each test; LARDER_SCHEDULES for more.
const SCHEDULES: u64 = 2000;
const SEED: u64 = 20_261_126;
/// Orders from one seed: so many are tried again to see one of them.
const BATCH: u64 = 100;
/// Changes of who goes first, where they are few.
const CHANGES: usize = 4;
/// Longer than any play: one that goes on and on fails.
const STEPS_MAX: usize = 200_000;
/// The index and the file system want more than a scheduler's tasks usually have.
const STACK: usize = 1 << 20;

#[expect(clippy::disallowed_methods, reason = "how a test is told what to do")]
fn number(name: &str, default: u64) -> u64 {
    let written = std::env::var(name).ok();
    written.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// Plays it in many orders.
fn explore(play: fn()) {
    let (seed, schedules) = (number("LARDER_SEED", SEED), number("LARDER_SCHEDULES", SCHEDULES));
    // Sleeps and deadlines are tokio's: its clock stands still but for those who move it.
    let runtime = stage::runtime();
    let _entered = runtime.enter();
    let half = usize::try_from(BATCH / 2).unwrap();
    let mut played = 0;
    for seed in (seed..).take(usize::try_from(schedules.div_ceil(BATCH)).unwrap()) {
        let both = || {
            Runner::new(RandomScheduler::new_from_seed(seed, half), config()).run(play)
                + Runner::new(PctScheduler::new_from_seed(seed, CHANGES, half), config()).run(play)
        };
        match catch_unwind(AssertUnwindSafe(both)) {
            Ok(count) => played += count,
            Err(panic) => {
                eprintln!("LARDER_SEED={seed} LARDER_SCHEDULES={BATCH} plays this again");
                resume_unwind(panic);
            }
        }
    }
    eprintln!("{played} orders from seed {seed}");
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    config
}

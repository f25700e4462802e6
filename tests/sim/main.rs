//! A simulation: daemons' caches and workers, whole, before one central cache, over links that delay,
//! break off, lose answers, and part. Time is the runtime's and stands still until nobody has anything
//! to do, so that hours pass in milliseconds; chance comes from a seed, so that a run can be repeated.
//!
//! `LARDER_SIMS` says how many seeds are tried, `LARDER_SEED` which is the first. Sockets, helpers and
//! kills are not here: `tests/it` has them, in real time.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod builds;
mod link;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use world::World;

/// Seeds in a plain `cargo test`.
const SIMS: u64 = 80;
const SEED: u64 = 20_261_126;

#[expect(clippy::disallowed_methods, reason = "how a test is told what to do")]
fn number(name: &str, default: u64) -> u64 {
    let written = std::env::var(name).ok();
    written.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// One run, on a clock of its own; what happened, line by line.
fn simulate(seed: u64) -> Vec<String> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(World::new(seed).live())
}

#[test]
fn whatever_links_do_nothing_false_is_read_nothing_is_lost_and_no_put_waits() {
    let first = number("LARDER_SEED", SEED);
    let count = number("LARDER_SIMS", SIMS);
    let next = AtomicU64::new(first);
    let some = || {
        let seeds = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        seeds
            .take_while(|seed| *seed < first + count)
            .map(|seed| simulate(seed).len())
            .sum::<usize>()
    };
    let lines: usize = std::thread::scope(|scope| {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads: Vec<_> = (0..processors).map(|_| scope.spawn(some)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    eprintln!("seeds {first} to {}: {lines} things happened", first + count - 1);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let first = number("LARDER_SEED", SEED);
    for seed in first..first + number("LARDER_SIMS", SIMS) / 10 {
        // Beside each other: what two daemons share without knowing it shows here.
        let (once, again) = std::thread::scope(|scope| {
            let beside = scope.spawn(|| simulate(seed));
            (simulate(seed), beside.join().unwrap())
        });
        let differ = once.iter().zip(&again).position(|(a, b)| a != b);
        assert_eq!(differ.map(|at| (&once[at], &again[at])), None, "seed {seed}");
        assert_eq!(once.len(), again.len(), "seed {seed}");
    }
}

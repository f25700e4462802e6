//! `larder stats`, `stop` and `flush`: questions to the daemon. 4: there is none.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use clap::ArgMatches;
use serde_json::{Value, json};

use super::{FAILED, Failure, LEFT, Outcome, client_of, duration_of, link, out, stats as words};
use crate::config::ClientConfig;
use crate::store::index::Index;
use crate::store::layout::{self, Layout, is_in_use};
use crate::tasks;
use crate::units::{ByteSize, Clock, show_count};

const FLUSH_WITHIN: Duration = Duration::from_secs(600);
/// What the daemon may take to answer beyond the time that it was given.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_AT_LEAST: Duration = Duration::from_secs(1);

/// What an ending daemon may take: it goes on uploading for a moment.
const END_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(super) fn stats(matches: &ArgMatches) -> Outcome {
    let (_, config) = client_of(matches)?;
    let status = link::ask(&config, "stats")?;
    if matches.get_flag("json") {
        out::print_json(&status);
    } else {
        words::lines(&status).iter().for_each(|line| out::print(line));
    }
    Ok(0)
}

pub(super) fn stop(matches: &ArgMatches) -> Outcome {
    let (_, config) = client_of(matches)?;
    let reply = link::ask(&config, "stop")?;
    let pid = reply["pid"].as_u64().unwrap_or(0);
    let is_over = reply["store"].as_str().is_none_or(|store| has_let_go(Path::new(store), pid));
    if matches.get_flag("json") {
        out::print_json(&reply);
    } else if is_over {
        out::print("the daemon has ended; uploads that are still owed stay in its journal");
    } else {
        out::print("the daemon was told to end, and is not done yet: its disk is slow");
    }
    Ok(if is_over { 0 } else { LEFT })
}

/// Whether the daemon has let go of its store, so that the next one can have it, or has it already.
fn has_let_go(store: &Path, pid: u64) -> bool {
    let clock = Clock::system();
    while is_in_use(store) && layout::holder(store).map(u64::from) == Some(pid) {
        if clock.elapsed() > END_WITHIN {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    true
}

/// Waits until nothing is owed. 3: something is left.
pub(super) fn flush(matches: &ArgMatches) -> Outcome {
    let (_, config) = client_of(matches)?;
    let within = duration_of(matches, "timeout")?.unwrap_or(FLUSH_WITHIN);
    if config.named_store().is_some()
        && let Ok(status) = link::ask_within(&config, "stats", answer_within(within))
        && let Some(served) = link::other_store(&config, &status)
    {
        return Err(Failure::new(FAILED, link::say_other_store(&config, &served)));
    }
    let reply = match flush_by_daemon(&config, within) {
        Err(failure) if link::is_free(&config, &failure) => flush_without(&config, within)?,
        other => other?,
    };
    let left = reply["left_entries"].as_u64().unwrap_or(0);
    if matches.get_flag("json") {
        out::print_json(&reply);
    } else if left == 0 {
        out::print("no uploads are owed");
    } else {
        let size = ByteSize(reply["left_bytes"].as_u64().unwrap_or(0));
        let why = reply["why"].as_str().unwrap_or("the time is over");
        out::print(&format!("{} uploads are owed, {size}: {why}", show_count(left)));
    }
    Ok(if left == 0 { 0 } else { LEFT })
}

/// Whoever gave little time does not want to wait long for a daemon that says nothing.
fn answer_within(within: Duration) -> Duration {
    within.clamp(ANSWER_AT_LEAST, ANSWER_WITHIN)
}

fn flush_by_daemon(config: &ClientConfig, within: Duration) -> Result<Value, Failure> {
    let timeout_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    let request = json!({ "op": "flush", "timeout_ms": timeout_ms, "upstream": config.upstream });
    let mut progress = out::Progress::new();
    let mut told = String::new();
    let interrupted = interruptions();
    link::question(config, &request, within.saturating_add(answer_within(within)), &mut |reply| {
        let left = reply["progress"]["left"].as_u64();
        let signal = interrupted.load(Ordering::Relaxed);
        if signal > 0 {
            let left = show_count(left.unwrap_or(0));
            out::say(&format!("interrupted; {left} uploads are owed, and the daemon goes on"));
            std::process::exit(i32::try_from(128 + signal).unwrap_or(1));
        }
        let Some(left) = left.filter(|left| *left > 0) else { return };
        let trouble = reply["progress"]["why"].as_str();
        let why = trouble.map(|why| format!(": {why}")).unwrap_or_default();
        let line = format!("{} uploads to go{why}", show_count(left));
        progress.show(&line);
        // A log has it once; a terminal has it in front of the user's eyes.
        if !progress.is_shown() && !why.is_empty() && why != told {
            out::say(&line);
            told = why;
        }
    })
}

/// The number of the signal that has come, or zero: who waits is told what is left before the end.
fn interruptions() -> Arc<AtomicUsize> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let (heard, is_second) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let ours = |(signal, _): &(i32, usize)| !tasks::is_ignored(*signal);
    for (signal, number) in [(SIGHUP, 1), (SIGINT, 2), (SIGTERM, 15)].into_iter().filter(ours) {
        // Whoever is not heard, because the daemon hangs, asks twice. An error: then it ends us at once.
        let end = is_second.clone();
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, end);
        let _ = signal_hook::flag::register(signal, is_second.clone());
        let _ = signal_hook::flag::register_usize(signal, heard.clone(), number);
    }
    heard
}

/// Starts a daemon on the store if it owes something.
fn flush_without(config: &ClientConfig, within: Duration) -> Result<Value, Failure> {
    let owed = owed(config);
    if owed == Some(0) {
        return Ok(json!({ "left_entries": 0, "left_bytes": 0, "why": null }));
    }
    match link::ensure(config, link::START_PATIENCE) {
        Ok(_) => flush_by_daemon(config, within),
        Err(problem) => Err(Failure::new(LEFT, format!("uploads may be owed: {problem}"))),
    }
}

/// How many uploads the store owes, where that is certain without opening it.
fn owed(config: &ClientConfig) -> Option<u64> {
    let layout = Layout::new(&config.store);
    if !layout.index().exists() {
        return Some(0);
    }
    let index = Index::open_to_read(&layout).ok()?;
    let reading = index.read().ok()?;
    // After an unclean stop, what the index does not know yet may owe more.
    let is_clean = reading.covered().ok()?.is_some_and(|covered| covered.clean);
    is_clean.then(|| reading.owed_entries().ok()).flatten()
}

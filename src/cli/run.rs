//! `larder run`: a command with the cache's environment, and one line about it at the end.
//!
//! The exit code is the command's. Nothing that larder cannot do keeps the command from running.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use clap::ArgMatches;
use serde_json::json;

use super::go::SESSION;
use super::summary::Summary;
use super::{Failure, Outcome, USAGE, client_of, duration_of, env, link, out};
use crate::config::{self, ClientConfig};
use crate::units::Clock;

mod child;

/// larder itself could not start the command.
const NOT_STARTED: u8 = 125;
/// Helpers report for a moment after go has ended.
const REPORT_WAIT: Duration = Duration::from_secs(2);
const REPORT_LOOK: Duration = Duration::from_millis(20);
/// What the daemon may take to answer beyond the time that it was given.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Runs the command and tells what the cache has done for it.
pub(super) fn run(matches: &ArgMatches) -> Outcome {
    let mut words = matches.get_many::<OsString>("command").into_iter().flatten();
    let first = words.next().map(|word| word.to_string_lossy().into_owned());
    if let Some(flag) = first.filter(|word| word.starts_with('-')) {
        let problem = format!("run: no such flag `{flag}`; write `larder run [flags] -- CMD`");
        return Err(Failure::new(USAGE, problem));
    }
    let flush = duration_of(matches, "flush")?;
    let (sources, config) = match client_of(matches) {
        Ok(found) => found,
        Err(failure) => return run_without(matches, &failure),
    };
    let clock = Clock::system();
    let session = format!("run-{}-{:x}", std::process::id(), clock.now().0);
    let mut command = command_of(matches, &config, &session);
    match link::ensure(&config, link::BUILD_PATIENCE) {
        Err(problem) => {
            out::say(&format!("{problem}; the command runs with what this machine has"));
        }
        Ok(status) => {
            let other = status.and_then(|status| link::other_store(&config, &status));
            if let Some(served) = other {
                out::say(&link::say_other_store(&config, &served));
            }
        }
    }
    let code = code_of(child::wait_for(&mut command)?);
    if let Some(within) = flush {
        wait_for_uploads(&config, within);
    }
    let Some(summary) = summary_of(&config, &session, &clock) else {
        out::say("no daemon answers, so there is no summary; `larder doctor` says why");
        return Ok(code);
    };
    out::say(&summary.line());
    if summary.owed > 0 && flush.is_none() && sources.variable("CI").is_some() {
        out::say(
            "uploads are owed: where this machine ends with the job, `larder run --flush` waits \
             for them",
        );
    }
    if let Some(file) = matches.get_one::<String>("summary") {
        let text = format!("{:#}\n", summary.json(&session, code));
        if let Err(error) = std::fs::write(file, text) {
            out::say(&format!("--summary: cannot write {file}: {error}"));
        }
    }
    Ok(code)
}

/// A setting that is wrong, or a machine without a home, costs the cache and not the build.
fn run_without(matches: &ArgMatches, failure: &Failure) -> Outcome {
    out::say(&failure.problem);
    out::say("the command runs without the cache");
    let mut command = plain_command(matches);
    for secret in config::secret_names() {
        command.env_remove(secret);
    }
    Ok(code_of(child::wait_for(&mut command)?))
}

fn plain_command(matches: &ArgMatches) -> Command {
    let mut words = matches.get_many::<OsString>("command").into_iter().flatten();
    let mut command = Command::new(words.next().map_or_else(OsString::new, OsString::clone));
    command.args(words);
    command
}

fn command_of(matches: &ArgMatches, config: &ClientConfig, session: &str) -> Command {
    let mut command = plain_command(matches);
    // What flags have told us reaches the helpers as environment.
    let ours = config.child_env().into_iter();
    command.envs(ours.filter(|(name, _)| name.to_string_lossy().starts_with("LARDER_")));
    for secret in config::secret_names() {
        command.env_remove(secret);
    }
    command.env(SESSION, session);
    match env::gocacheprog() {
        Ok(value) => {
            command.env("GOCACHEPROG", value);
        }
        Err(problem) => out::say(&problem),
    }
    command
}

/// As shells tell it: 128 and the signal for a command that was killed.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(NOT_STARTED)
}

fn wait_for_uploads(config: &ClientConfig, within: Duration) {
    let timeout_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    let request = json!({ "op": "flush", "timeout_ms": timeout_ms });
    match link::question(config, &request, within.saturating_add(ANSWER_WITHIN), &mut |_| {}) {
        Err(failure) => out::say(&format!("uploads were not waited for: {}", failure.problem)),
        Ok(reply) => {
            if let Some(why) = reply["why"].as_str() {
                out::say(&format!("uploads stay owed: {why}"));
            }
        }
    }
}

/// What the session has come to once its helpers have told all. None: nobody answers.
fn summary_of(config: &ClientConfig, session: &str, clock: &Clock) -> Option<Summary> {
    let until = clock.elapsed() + REPORT_WAIT;
    let request = json!({ "op": "sessions", "id": session });
    loop {
        let reply = link::question(config, &request, link::BUILD_PATIENCE, &mut |_| {}).ok()?;
        let summary = Summary::of(&reply, session);
        if !summary.is_open || clock.elapsed() > until {
            return Some(summary);
        }
        std::thread::sleep(REPORT_LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_command_is_told_as_shells_do() {
        for (raw, code) in [(0, 0), (3 << 8, 3), (255 << 8, 255), (9, 137), (2, 130)] {
            assert_eq!(code_of(ExitStatus::from_raw(raw)), code, "{raw}");
        }
    }
}

//! `larder prefetch`: what a commit's build will need, fetched before there is a build.
//!
//! A runner calls it while the sources are still being checked out. Here: what is to be fetched, and
//! what came of it, in words. The daemon does the rest, with or without somebody who waits.

use std::path::Path;
use std::time::Duration;

use clap::ArgMatches;
use serde_json::{Value, json};

use super::summary::megabytes;
use super::{Failure, LEFT, NO_DAEMON, Outcome, USAGE, client_of, duration_of, go, link, out};
use crate::config::{ClientConfig, Sources};
use crate::git::{self, GitEnv, Identity};
use crate::units::{show_count, show_duration};

const WITHIN: Duration = Duration::from_secs(600);
/// What the daemon may take to answer beyond the time that it was given.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Starts fetching; with `--wait` says what has come. 3: nothing is known, or not all has come.
pub(super) fn prefetch(matches: &ArgMatches) -> Outcome {
    let (sources, config) = client_of(matches)?;
    let within = duration_of(matches, "timeout")?.unwrap_or(WITHIN);
    let identity = identity(&sources, &config)?;
    let is_awaited = matches.get_flag("wait");
    let request = request(&sources, &config, &identity, is_awaited.then_some(within));
    link::ensure(&config, link::START_PATIENCE)
        .map_err(|problem| Failure::new(NO_DAEMON, problem))?;
    let mut progress = out::Progress::new();
    let patience = if is_awaited { within } else { Duration::ZERO };
    let patience = patience.saturating_add(ANSWER_WITHIN);
    let reply = link::question(&config, &request, patience, &mut |reply| {
        progress.show(&step(&reply["progress"]));
    })?;
    drop(progress);
    if matches.get_flag("json") {
        out::print_json(&reply);
    }
    match outcome(&reply, &identity) {
        Ok(line) => {
            if !matches.get_flag("json") {
                out::print(&line);
            }
            Ok(0)
        }
        Err(problem) => Err(Failure::new(LEFT, problem)),
    }
}

/// What is to be fetched for; the helper of the build will say the same.
fn identity(sources: &Sources, config: &ClientConfig) -> Result<Identity, Failure> {
    let identity = go::identity(sources, config);
    let missing = match (identity.scope.is_empty(), identity.commit.is_empty()) {
        (false, false) => return Ok(identity),
        (true, false) => "of which repository; name it with --scope (LARDER_SCOPE)",
        (false, true) => "for which commit; name it with --commit (LARDER_COMMIT)",
        (true, true) => {
            "of which repository and for which commit; name them with --scope (LARDER_SCOPE) and \
             --commit (LARDER_COMMIT)"
        }
    };
    let problem =
        format!("nothing says what to fetch: {missing}, or run this inside a git checkout");
    Err(Failure::new(USAGE, problem))
}

fn request(
    sources: &Sources,
    config: &ClientConfig,
    identity: &Identity,
    within: Option<Duration>,
) -> Value {
    let git_env = GitEnv::gather(&|name| sources.variable(name));
    // None where the commit is not here yet.
    let parents = git::parents(Path::new("."), &identity.commit, &git_env, git::PATIENCE);
    json!({
        "op": "prefetch",
        "namespace": Some(&config.namespace).filter(|name| !name.is_empty()),
        "trust": config.trust,
        "upstream": config.upstream,
        "scope": identity.scope,
        "commit": identity.commit,
        "branch": identity.branch,
        "default_branch": identity.default_branch,
        "parents": parents,
        "wait_ms": within.map(|within| u64::try_from(within.as_millis()).unwrap_or(u64::MAX)),
    })
}

fn step(progress: &Value) -> String {
    match progress["listed"].as_u64().unwrap_or(0) {
        0 => "reading manifests".to_owned(),
        listed => format!(
            "{} of {} entries fetched, {}",
            show_count(number(&progress["fetched"])),
            show_count(listed),
            megabytes(number(&progress["bytes"])),
        ),
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// The line for people, or why there was nothing to fetch or not all has come.
fn outcome(reply: &Value, identity: &Identity) -> Result<String, String> {
    let short: String = identity.commit.chars().take(12).collect();
    let what = format!("{} at {short}", identity.scope);
    if let Some(why) = reply["why"].as_str() {
        return Err(format!("nothing is known of {what}: {why}"));
    }
    let (listed, fetched) = (number(&reply["listed"]), number(&reply["fetched"]));
    let left = number(&reply["left"]);
    let took = Duration::from_millis(number(&reply["took_ms"]));
    let came = format!(
        "{} entries fetched, {}, {}",
        show_count(fetched),
        megabytes(number(&reply["bytes"])),
        show_duration(took),
    );
    match reply["state"].as_str() {
        Some("fetched") => {
            let mut line = came;
            let here = listed.saturating_sub(fetched + left);
            for (count, words) in [(here, "needed no fetching"), (left, "did not come")] {
                if count > 0 {
                    line.push_str(&format!("; {} {words}", show_count(count)));
                }
            }
            Ok(line)
        }
        Some("fetching") if reply["late"] == true => {
            Err(format!("{came}; the daemon goes on with what is left of {what}"))
        }
        _ => Ok(format!("the daemon fetches what it knows of {what}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_is_one_line() {
        let identity =
            Identity { scope: "app".into(), commit: "c0ffee".repeat(7), ..Identity::default() };
        let full = json!({
            "state": "fetched", "listed": 1_500, "fetched": 1_312, "left": 3,
            "bytes": 35_200_000, "took_ms": 1_240,
        });
        let line = "1,312 entries fetched, 35 MB, 1.2 s; 185 needed no fetching; 3 did not come";
        assert_eq!(outcome(&full, &identity).unwrap(), line);
        let all = json!({"state": "fetched", "listed": 2, "fetched": 2, "bytes": 1, "took_ms": 1});
        assert_eq!(outcome(&all, &identity).unwrap(), "2 entries fetched, 0 MB, 0.0 s");
        let taken = outcome(&json!({"state": "fetching"}), &identity).unwrap();
        assert_eq!(taken, "the daemon fetches what it knows of app at c0ffeec0ffee");
        let late = outcome(&json!({"state": "fetching", "late": true}), &identity).unwrap_err();
        assert!(late.ends_with("goes on with what is left of app at c0ffeec0ffee"), "{late}");
        let nothing = outcome(&json!({"why": "no manifest"}), &identity).unwrap_err();
        assert_eq!(nothing, "nothing is known of app at c0ffeec0ffee: no manifest");
        assert_eq!(step(&json!({})), "reading manifests");
        let progress = json!({"listed": 9, "fetched": 4, "bytes": 1_000_000});
        assert_eq!(step(&progress), "4 of 9 entries fetched, 1.0 MB");
    }
}

//! `larder verify` and `larder purge`: through the daemon where one runs, else on the store itself.

use std::sync::Arc;
use std::time::Duration;

use clap::ArgMatches;
use serde_json::{Value, json};

use super::stats::{number, text};
use super::{FAILED, Failure, Outcome, STORE_IN_USE, USAGE, client_of, duration_of, link, out};
use crate::config::ClientConfig;
use crate::daemon;
use crate::store::verify::Verified;
use crate::store::{self, Store};
use crate::telemetry::Metrics;
use crate::units::{ByteSize, Clock, show_count};

/// Reading a whole store takes as long as it takes; between two words of the daemon, not this long.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Bad entries that are named; their number is always told.
const NAMED_MAX: usize = 20;
/// How often progress is shown, in entries.
const SHOW_EVERY: u64 = 256;

/// Reads every entry. 1: something bad is left.
pub(super) fn verify(matches: &ArgMatches) -> Outcome {
    let (_, config) = client_of(matches)?;
    let repair = matches.get_flag("repair");
    let mut progress = out::Progress::new();
    let mut show = |entries: u64, bytes: u64| {
        progress.show(&format!("{} entries, {}", show_count(entries), ByteSize(bytes)));
    };
    let request = json!({ "op": "verify", "repair": repair });
    let reply = by_daemon_or(&config, &request, &mut show, |store, show| {
        let report = store.verify(repair, |so_far| {
            if so_far.entries.is_multiple_of(SHOW_EVERY) {
                show(so_far.entries, so_far.bytes);
            }
        });
        Ok(verified_json(&report))
    })?;
    drop(progress);
    let (bad, repaired) = (number(&reply["bad_entries"]), number(&reply["repaired"]));
    if matches.get_flag("json") {
        out::print_json(&reply);
    } else {
        for entry in reply["bad"].as_array().into_iter().flatten().take(NAMED_MAX) {
            out::print(&format!("{}: {}", text(&entry["key"]), text(&entry["problem"])));
        }
        out::print(&format!(
            "{} entries, {}: {} bad, {} removed",
            show_count(number(&reply["entries"])),
            ByteSize(number(&reply["bytes"])),
            show_count(bad),
            show_count(repaired),
        ));
    }
    Ok(if bad > repaired { FAILED } else { 0 })
}

fn verified_json(report: &Verified) -> Value {
    let name = |(key, problem): &(_, &'static str)| entry_json(key, problem);
    json!({
        "entries": report.entries,
        "bytes": report.bytes,
        "bad_entries": report.bad.len(),
        "bad": report.bad.iter().map(name).collect::<Vec<_>>(),
        "repaired": report.repaired,
    })
}

fn entry_json(key: &impl ToString, problem: &str) -> Value {
    json!({ "key": key.to_string(), "problem": problem })
}

/// Removes entries here; upstream keeps its own.
pub(super) fn purge(matches: &ArgMatches) -> Outcome {
    let (_, config) = client_of(matches)?;
    let older_than = duration_of(matches, "older-than")?;
    let realm = matches.get_one::<String>("realm").cloned();
    let writer = matches.get_one::<String>("writer").cloned();
    let mut request = json!({ "op": "purge" });
    if let Some(age) = older_than {
        request["older_than_s"] = age.as_secs().into();
    }
    for (name, value) in [("realm", &realm), ("writer", &writer)] {
        if let Some(value) = value {
            request[name] = value.as_str().into();
        }
    }
    let reply = by_daemon_or(&config, &request, &mut |_, _| {}, |store, _| {
        Ok(json!({ "removed": daemon::purge(store, &request)? }))
    })?;
    if matches.get_flag("json") {
        out::print_json(&reply);
    } else {
        out::print(&format!("{} entries removed", show_count(number(&reply["removed"]))));
    }
    Ok(0)
}

/// What the daemon answers, else what `directly` does with the opened store.
fn by_daemon_or(
    config: &ClientConfig,
    request: &Value,
    show: &mut dyn FnMut(u64, u64),
    directly: impl FnOnce(&Store, &mut dyn FnMut(u64, u64)) -> Result<Value, String>,
) -> Result<Value, Failure> {
    if is_of_daemon(config)? {
        let asked = link::question(config, request, PATIENCE, &mut |reply| {
            let progress = &reply["progress"];
            show(number(&progress["entries"]), number(&progress["bytes"]));
        });
        match asked {
            // Settings that name a daemon mean its store, not the one here.
            Err(failure) if link::is_free(config, &failure) => {}
            other => return other,
        }
    }
    let settings = store::Config { dir: config.store.clone(), disk: None, floor: None };
    let store = Store::open(&settings, Clock::system(), Arc::new(Metrics::default()))
        .map_err(|error| Failure::new(STORE_IN_USE, error))?;
    let value = directly(&store, show);
    store.close();
    value.map_err(|error| Failure::new(FAILED, error))
}

/// Whether the daemon has the store that is meant. Where one is named it must say so: what cannot be
/// told must not cost another one's entries.
fn is_of_daemon(config: &ClientConfig) -> Result<bool, Failure> {
    if config.named_store().is_none() {
        return Ok(true);
    }
    let status = match link::ask(config, "stats") {
        Err(failure) if link::is_free(config, &failure) => return Ok(false),
        other => other?,
    };
    match link::other_store(config, &status) {
        None => Ok(true),
        // Both were named, and they are not of each other.
        Some(served) if config.daemon.is_some() => {
            Err(Failure::new(USAGE, link::say_other_store(config, &served)))
        }
        Some(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(dir: &std::path::Path) -> ClientConfig {
        let flag = |name: &str, path: &str| (name.to_owned(), dir.join(path).display().to_string());
        let flags = vec![flag("store", "store"), flag("socket", "nobody.sock")];
        let env = vec![("HOME".into(), dir.into())];
        let sources = crate::config::Sources { flags, env, config_file: None };
        ClientConfig::load(&sources).unwrap()
    }

    #[test]
    fn without_a_daemon_the_store_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let config = client(dir.path());
        let request = json!({ "op": "purge" });
        let reply = by_daemon_or(&config, &request, &mut |_, _| {}, |store, _| {
            store
                .register_realm(crate::entry::RealmId([1; 16]), r#"{"namespace":"pr/17"}"#)
                .unwrap();
            let named = daemon::purge(store, &json!({ "realm": "pr/17" }))?;
            Ok(json!([named, daemon::purge(store, &request)?]))
        });
        assert_eq!(reply.unwrap(), json!([0, 0]));
    }

    #[test]
    fn a_store_in_use_has_a_code_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let config = client(dir.path());
        let settings = store::Config { dir: config.store.clone(), disk: None, floor: None };
        let store = Store::open(&settings, Clock::system(), Arc::default()).unwrap();
        let nothing = json!({ "op": "purge" });
        let reply = by_daemon_or(&config, &nothing, &mut |_, _| {}, |_, _| Ok(Value::Null));
        assert_eq!(reply.unwrap_err().code, STORE_IN_USE);
        store.close();
    }
}

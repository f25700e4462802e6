//! `larder doctor`: gathers what can be known without changing anything, and prints what it means.
//! What it means is decided in `checks` and `go`, without I/O.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use clap::ArgMatches;
use serde_json::{Value, json};

use super::{FAILED, Failure, Outcome, USAGE, client_of, link, out};
use crate::config::ClientConfig;

mod checks;

mod go;

use checks::{Check, State};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Looks at daemon, socket, store and upstreams; with a tool, at that tool. 1: something is wrong.
pub(super) fn doctor(matches: &ArgMatches) -> Outcome {
    let tool = matches.get_one::<String>("tool").map(String::as_str);
    if let Some(tool) = tool.filter(|tool| *tool != "go") {
        return Err(Failure::new(USAGE, format!("doctor knows nothing of `{tool}`; known: go")));
    }
    let (_, config) = client_of(matches)?;
    let status = link::ask(&config, "stats");
    let is_ours = config.daemon.is_none();
    let found = match &status {
        // Whoever needs one starts it.
        Err(failure) if link::is_free(&config, failure) => checks::no_daemon(),
        other => checks::daemon(other.as_ref().map_err(|failure| &failure.problem), VERSION),
    };
    let mut found = vec![found];
    if is_ours {
        found.extend(socket(&config));
    }
    let served = status.as_ref().ok().and_then(|status| status["store"].as_str());
    let place = served.filter(|_| is_ours).map_or(config.store.as_path(), Path::new);
    found.push(store(place));
    if let Ok(status) = &status {
        if let Some(served) = link::other_store(&config, status) {
            let said = link::say_other_store(&config, &served);
            found.push(Check::new("store", State::Note, said));
        }
        found.extend(checks::space(status));
        found.extend(checks::upstreams(status, config.upstream.is_some()));
    }
    if tool == Some("go") {
        found.extend(look_at_go());
        if let Ok(status) = &status {
            found.push(go::hits(status));
        }
    }
    let is_well = found.iter().all(|check| check.state != State::Bad);
    if matches.get_flag("json") {
        let list: Vec<Value> = found.iter().map(Check::json).collect();
        out::print_json(&json!({ "ok": is_well, "checks": list }));
    } else {
        found.iter().for_each(|check| out::print(&check.line()));
    }
    Ok(if is_well { 0 } else { FAILED })
}

fn socket(config: &ClientConfig) -> Option<Check> {
    let meta = std::fs::symlink_metadata(&config.socket).ok()?;
    let dir = std::fs::metadata(config.socket.parent()?).ok()?;
    let uid = rustix::process::geteuid().as_raw();
    let path = config.socket.display().to_string();
    Some(checks::socket(&path, (meta.uid(), meta.mode()), (dir.uid(), dir.mode()), uid))
}

fn store(store: &Path) -> Check {
    // Before its first use the store is not there; what counts is where it would be.
    let place = store.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let path = store.display().to_string();
    let can_write = is_writable(place);
    let is_remote = mount_kind(place).is_some_and(|kind| checks::is_remote(&kind));
    checks::store(&path, can_write, is_remote)
}

fn is_writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

/// The kind of the file system that a directory is on. None where the system does not tell.
fn mount_kind(dir: &Path) -> Option<String> {
    let dir = std::fs::canonicalize(dir).ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        Some((fields.nth(1)?.to_owned(), fields.next()?.to_owned()))
    });
    let holding = fields.filter(|(at, _)| dir.starts_with(at));
    // Of two mounts at one place the later one is seen.
    holding.max_by_key(|(at, _)| at.len()).map(|(_, kind)| kind)
}

fn look_at_go() -> Vec<Check> {
    let asked = ["GOVERSION", "GOCACHEPROG", "GOFLAGS", "GOCACHE"];
    let output = match Command::new("go").args(["env", "-json"]).args(asked).output() {
        Err(error) => return vec![go::missing(&error.to_string())],
        Ok(output) => output,
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return vec![go::missing(said.lines().next().unwrap_or("`go env` fails"))];
    }
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let text = |key: &str| told[key].as_str().unwrap_or_default();
    let cache = text("GOCACHE");
    let place = Path::new(cache).ancestors().find(|path| path.is_dir());
    vec![
        go::version(text("GOVERSION")),
        go::program(text("GOCACHEPROG")),
        go::flags(text("GOFLAGS")),
        go::cache(cache, place.is_some_and(is_writable)),
    ]
}

//! `larder go`: puts together what the helper is told. Whatever is wrong with the settings, the
//! build goes on: faults are printed, and defaults count.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::{Failure, Outcome, link, out};
use crate::config::{ClientConfig, Sources, raw};
use crate::git::{self, GitEnv, Identity};
use crate::gocacheprog::c_env::CInputs;
use crate::gocacheprog::{self, HelperConfig, Stdio};

/// Names the session that helpers belong to; set by `larder run`.
pub(super) const SESSION: &str = "LARDER_SESSION";

/// Whether go calls, and no person who asks for help.
pub(super) fn is_helper(args: &[OsString]) -> bool {
    let is_help = |arg: &OsString| arg == "-h" || arg == "--help";
    args.get(1).is_some_and(|name| name == "go") && !args.iter().any(is_help)
}

/// Answers go until it ends.
pub(super) fn run(args: &[OsString]) -> Outcome {
    let mut stdio = Stdio::take().map_err(|error| Failure::new(super::FAILED, error))?;
    // A go that is gone already needs no answers.
    let told = gocacheprog::announce(&mut *stdio.stdout);
    told.map_err(|error| Failure::new(super::FAILED, format!("cannot speak to go: {error}")))?;
    let (sources, is_right) = sources(args);
    match settings(&sources, is_right) {
        Some((config, is_right)) => gocacheprog::run(helper(&sources, &config, is_right), stdio),
        None => return Err(Failure::new(super::FAILED, "no directory can be used as a store")),
    }
    Ok(0)
}

/// The sources, and whether the command line could be read.
fn sources(args: &[OsString]) -> (Sources, bool) {
    match super::tree().try_get_matches_from(args) {
        Ok(matches) => {
            let flags = matches.subcommand().map(|(_, matches)| raw::flags_of(matches));
            (Sources::from_process(flags.unwrap_or_default()), true)
        }
        Err(error) => {
            let text = error.to_string();
            let problem = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            out::say(&format!("{problem}; its settings are left out of this build"));
            (Sources::from_process(Vec::new()), false)
        }
    }
}

fn settings(sources: &Sources, is_right: bool) -> Option<(ClientConfig, bool)> {
    match ClientConfig::load(sources) {
        Ok(config) => Some((config, is_right)),
        Err(faults) => {
            for fault in faults.iter() {
                out::say(&format!("{fault}; this build goes on without the cache"));
            }
            Some((ClientConfig::defaults(sources).ok()?, false))
        }
    }
}

fn helper(sources: &Sources, config: &ClientConfig, is_right: bool) -> HelperConfig {
    let identity = identity(sources, config);
    let upstream = config.upstream.as_deref();
    HelperConfig {
        address: link::address(config),
        token: config.token.clone(),
        namespace: Some(config.namespace.clone()).filter(|name| !name.is_empty()),
        trust: config.trust.clone(),
        upstream: config.upstream.clone(),
        read_only: config.read_only,
        session: sources.text(SESSION).unwrap_or_default(),
        scope: identity.scope,
        commit: identity.commit,
        branch: identity.branch,
        default_branch: identity.default_branch,
        dir: PathBuf::from("."),
        git_env: GitEnv::gather(&|name| sources.variable(name)),
        git_deadline: git::PATIENCE,
        realms: gocacheprog::realms(upstream, &config.namespace, config.trust.as_deref()),
        // With settings that are wrong it would not start either.
        start: link::starting(config).filter(|_| is_right),
        view_dir: beside(&config.store, "-view"),
        store_dir: config.store.clone(),
        native: native_dir(&|name| sources.variable(name), cfg!(target_os = "macos")),
        temp_dir: sources.variable("TMPDIR").map_or_else(|| "/tmp".into(), PathBuf::from),
        deadline: gocacheprog::DEADLINE,
        c_inputs: CInputs {
            cc: sources.variable("CC"),
            path: sources.variable("PATH").unwrap_or_default(),
        },
        // go sets it for all that it starts.
        goroot: sources.variable("GOROOT").map(PathBuf::from),
        pid: std::process::id(),
    }
}

/// What is built here: as the settings say, else git, else the CI system.
pub(super) fn identity(sources: &Sources, config: &ClientConfig) -> Identity {
    let mut identity = git::identify(Path::new("."), &|name| sources.text(name));
    for (said, known) in
        [(&config.scope, &mut identity.scope), (&config.commit, &mut identity.commit)]
    {
        if !said.is_empty() {
            known.clone_from(said);
        }
    }
    identity
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or(OsStr::new("larder")).to_owned();
    name.push(ending);
    path.with_file_name(name)
}

/// Where go keeps its own cache.
pub(super) fn native_dir(
    variable: &dyn Fn(&str) -> Option<OsString>,
    is_macos: bool,
) -> Option<PathBuf> {
    let dir = match variable("GOCACHE") {
        Some(dir) if dir == "off" => return None,
        Some(dir) => PathBuf::from(dir),
        None if is_macos => Path::new(&variable("HOME")?).join("Library/Caches/go-build"),
        None => match variable("XDG_CACHE_HOME") {
            Some(base) => Path::new(&base).join("go-build"),
            None => Path::new(&variable("HOME")?).join(".cache/go-build"),
        },
    };
    dir.is_absolute().then_some(dir)
}

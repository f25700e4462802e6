//! How the command line reaches a daemon: its address, questions to it, and starting one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Failure, NO_DAEMON};
use crate::client::{self, Address, ConnectError, ControlError, StartDaemon};
use crate::config::{ClientConfig, Daemon};

/// An answer that needs no work is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A build does not wait longer for a daemon that may hang.
pub(super) const BUILD_PATIENCE: Duration = Duration::from_secs(3);
/// A daemon that opens a large store after a crash, or waits for one that is ending, may take its time.
pub(super) const START_PATIENCE: Duration = Duration::from_secs(10);

/// Where the daemon is.
pub(super) fn address(config: &ClientConfig) -> Address {
    match &config.daemon {
        None => Address::Unix(config.socket.clone()),
        Some(Daemon::Unix(path)) => Address::Unix(path.clone()),
        Some(Daemon::Http(url)) => {
            let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            let host = rest.split('/').next().unwrap_or(rest);
            // An address in brackets has colons of its own.
            let has_port = host.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
            Address::Tcp(if has_port { host.to_owned() } else { format!("{host}:80") })
        }
    }
}

/// How to start a daemon behind the socket. None if settings name a daemon: that one is meant.
pub(super) fn starting(config: &ClientConfig) -> Option<StartDaemon> {
    if config.daemon.is_some() {
        return None;
    }
    Some(StartDaemon {
        exe: std::env::current_exe().ok()?,
        args: vec!["daemon".into(), "--detached".into()],
        env: config.child_env(),
        log: config.daemon_log.clone(),
        socket: config.socket.clone(),
    })
}

/// Starts a daemon if none runs, which may take so long; says why there is none in the end. What one says
/// that ran before.
pub(super) fn ensure(config: &ClientConfig, within: Duration) -> Result<Option<Value>, String> {
    match ask_within(config, "stats", BUILD_PATIENCE) {
        Ok(status) => return Ok(Some(status)),
        Err(failure) if is_free(config, &failure) => {}
        Err(failure) => return Err(failure.problem),
    }
    match starting(config) {
        Some(settings) => client::start_daemon(&settings, within)
            .map(|()| None)
            .map_err(|error| error.to_string()),
        None => {
            Err("no daemon runs, and larder does not know its own path to start one".to_owned())
        }
    }
}

/// The store of the daemon that says `status`, where flags or variables name another one.
///
/// A daemon elsewhere that is asked over HTTP may have paths of its own.
pub(super) fn other_store(config: &ClientConfig, status: &Value) -> Option<PathBuf> {
    let is_here = !matches!(config.daemon, Some(Daemon::Http(_)));
    let named = config.named_store().filter(|_| is_here)?;
    let served = PathBuf::from(status["store"].as_str()?);
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    (real(named) != real(&served)).then_some(served)
}

/// That a daemon's store is not the one that was named, and what to do.
pub(super) fn say_other_store(config: &ClientConfig, served: &Path) -> String {
    format!(
        "the daemon that runs serves the store {}, not {}: `larder stop` ends it, --socket names \
         another one",
        served.display(),
        config.store.display(),
    )
}

/// A question that needs no more than the name of its operation.
pub(super) fn ask(config: &ClientConfig, operation: &str) -> Result<Value, Failure> {
    ask_within(config, operation, PATIENCE)
}

pub(super) fn ask_within(
    config: &ClientConfig,
    operation: &str,
    patience: Duration,
) -> Result<Value, Failure> {
    question(config, &json!({ "op": operation }), patience, &mut |_| {})
}

/// Whether a question failed because nobody is where this client would start a daemon.
pub(super) fn is_free(config: &ClientConfig, failure: &Failure) -> bool {
    config.daemon.is_none() && failure.is_nobody
}

/// Asks the daemon; that there is none is a failure with the code for it.
pub(super) fn question(
    config: &ClientConfig,
    request: &Value,
    patience: Duration,
    progress: &mut dyn FnMut(&Value),
) -> Result<Value, Failure> {
    let address = address(config);
    if let Address::Tcp(address) = &address {
        return Err(Failure::new(
            NO_DAEMON,
            format!(
                "the daemon at {address} serves builds over TCP and answers no questions: ask on its own \
                 machine; for builds set GOCACHEPROG=\"larder go\", without `larder run`"
            ),
        ));
    }
    let token = config.token.as_ref().map(|token| token.reveal());
    let reply = client::control(&address, token, request, patience, progress)
        .map_err(|error| failure(&error))?;
    match reply["error"].as_str() {
        Some(error) => Err(Failure::new(super::FAILED, error)),
        None => Ok(reply),
    }
}

fn failure(error: &ControlError) -> Failure {
    let code = match error {
        ControlError::Connect(_) => NO_DAEMON,
        ControlError::Broken { .. } => super::FAILED,
    };
    let hint = match error {
        ControlError::Connect(ConnectError::Nobody(_)) => "; start one with `larder daemon`",
        ControlError::Connect(_) | ControlError::Broken { .. } => "",
    };
    let is_nobody = matches!(error, ControlError::Connect(ConnectError::Nobody(_)));
    Failure { is_nobody, ..Failure::new(code, format!("{error}{hint}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_port() {
        let cases = [
            ("http://127.0.0.1:7878", "127.0.0.1:7878"),
            ("http://cache.example.com/x", "cache.example.com:80"),
            ("http://[::1]", "[::1]:80"),
            ("http://[::1]:7878", "[::1]:7878"),
        ];
        let env = vec![("HOME".into(), "/nonexistent".into())];
        for (url, host) in cases {
            let flags = vec![("daemon".to_owned(), url.to_owned())];
            let sources = crate::config::Sources { flags, env: env.clone(), config_file: None };
            let config = ClientConfig::load(&sources).unwrap();
            assert_eq!(address(&config), Address::Tcp(host.to_owned()), "{url}");
            assert!(starting(&config).is_none());
        }
    }
}

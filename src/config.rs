//! Configuration: what may be written (`table`, `raw`, `file`) and what it means (`Config`).
//!
//! The only module that reads the environment. Everything that is wrong is reported at once, each
//! fault with its place and a right example. Nothing is opened, bound or started here, except that
//! files of settings and secrets are read.
//!
//! The stronger of two places wins: a flag, then the environment, then the file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::telemetry::log;
use crate::units::Secret;
use crate::{admin, backend, cache, frontend, store, worker};

// In reading order: what may be written, where it was written, what it means.
pub mod table;

pub mod raw;

mod file;

mod values;

mod meaning;

mod upstream;

mod tokens;

// What all of them use.
pub mod faults;

mod paths;

// What is told of the result.
mod explain;

pub use faults::{Fault, Faults, Origin};

use meaning::Reading;

/// All places where settings are written.
#[derive(Clone, Default)]
pub struct Sources {
    /// Names without dashes, with their values.
    pub flags: Vec<(String, String)>,
    pub env: Vec<(OsString, OsString)>,
    /// What `--config` names.
    pub config_file: Option<PathBuf>,
}

impl Sources {
    /// The sources of this process, given its flags as `raw::flags_of` reads them.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn from_process(flags: Vec<(String, String)>) -> Self {
        let (files, flags): (Vec<_>, Vec<_>) =
            flags.into_iter().partition(|(name, _)| name == "config");
        let config_file = files.into_iter().next_back().map(|(_, path)| path.into());
        Self { flags, env: std::env::vars_os().collect(), config_file }
    }

    /// A variable of somebody else's, for those who must know what other tools were told. An empty
    /// one counts as unset.
    pub fn variable(&self, name: &str) -> Option<OsString> {
        let found = self.env.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    }

    /// The same as text; None as well if it is not UTF-8.
    pub fn text(&self, name: &str) -> Option<String> {
        self.variable(name)?.into_string().ok()
    }

    /// These sources without a word of larder's own, and with a home.
    fn silent(&self) -> Self {
        let is_kept = |name: &OsString| !name.to_string_lossy().starts_with("LARDER_");
        let mut env: Vec<_> = self.env.iter().filter(|(name, _)| is_kept(name)).cloned().collect();
        // No file is there, so none is read.
        env.retain(|(name, _)| name != "XDG_CONFIG_HOME");
        env.push(("XDG_CONFIG_HOME".into(), NOWHERE.into()));
        if self.variable("HOME").is_none() {
            let uid = rustix::process::getuid().as_raw();
            env.push(("HOME".into(), format!("/tmp/larder-{uid}").into()));
        }
        Self { flags: Vec::new(), env, config_file: None }
    }
}

/// A directory that nobody makes.
const NOWHERE: &str = "/nonexistent/larder";

/// What every component is to do.
#[derive(Clone, Debug)]
pub struct Config {
    pub store: store::Config,
    pub cache: cache::Config,
    pub worker: worker::Config,
    pub frontend: frontend::Config,
    pub admin: admin::Config,
    /// Of a daemon in the foreground; one that a client started logs to `client.daemon_log`.
    pub log: log::Config,
    /// The first one serves whatever names none.
    pub upstreams: Vec<backend::Config>,
    pub client: ClientConfig,
    lines: Vec<explain::Line>,
}

/// What a client is to do: find or start the daemon, and say what it wants.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub socket: PathBuf,
    /// The daemon, where it is not the one behind `socket`.
    pub daemon: Option<Daemon>,
    pub namespace: String,
    pub trust: Option<String>,
    /// URL of the upstream of Go's entries, if one is named anywhere.
    pub upstream: Option<String>,
    pub read_only: bool,
    /// Empty: repository and job.
    pub scope: String,
    /// Empty: what is checked out, else what CI says.
    pub commit: String,
    pub store: PathBuf,
    /// What is presented to a daemon beyond the socket.
    pub token: Option<Secret>,
    pub log: log::Config,
    /// The log of a daemon that a client starts.
    pub daemon_log: PathBuf,
    /// The file that was read, if there was one.
    pub config_file: Option<PathBuf>,
    child_env: explain::ChildEnv,
}

/// A daemon's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Daemon {
    Unix(PathBuf),
    /// `http://…` or `https://…`, without credentials and trailing slash.
    Http(String),
}

/// Whether files of secrets are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Secrets {
    Read,
    Leave,
}

const LISTEN: frontend::Listen = frontend::Listen::Tcp(loopback(7878));
const ADMIN: std::net::SocketAddr = loopback(7879);
const IDLE_EXIT: Duration = Duration::from_secs(30 * 60);

const fn loopback(port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

impl Config {
    /// Reads everything that a daemon needs, secrets included.
    pub fn load(sources: &Sources) -> Result<Self, Faults> {
        load(sources, Path::new(paths::SYSTEM_CONFIG), Secrets::Read)
    }

    /// One line a setting: what counts and where it was written. Secrets are hidden.
    pub fn explain(&self) -> Vec<String> {
        explain::as_text(&self.lines)
    }

    /// The same for programs.
    pub fn explain_json(&self) -> serde_json::Value {
        explain::as_json(&self.lines)
    }

    /// See `ClientConfig::child_env`.
    pub fn child_env(&self) -> Vec<(OsString, OsString)> {
        self.client.child_env()
    }
}

impl ClientConfig {
    /// Reads what a client needs. Files of secrets stay closed: they are the daemon's, and a client
    /// of another user could not open them.
    pub fn load(sources: &Sources) -> Result<Self, Faults> {
        load(sources, Path::new(paths::SYSTEM_CONFIG), Secrets::Leave).map(|config| config.client)
    }

    /// What a client goes on with when its settings are wrong: none of them count, and no file is
    /// read. A build must not end because of us.
    pub fn defaults(sources: &Sources) -> Result<Self, Faults> {
        let config = load(&sources.silent(), Path::new(NOWHERE), Secrets::Leave);
        config.map(|config| config.client)
    }

    /// The store, if a flag or a variable names it: then another one is not meant.
    pub fn named_store(&self) -> Option<&Path> {
        self.child_env.is_told("LARDER_STORE").then_some(&self.store)
    }

    /// The whole environment of a daemon that this client starts.
    pub fn child_env(&self) -> Vec<(OsString, OsString)> {
        self.child_env.variables()
    }
}

/// Variables that no command run by larder may inherit.
pub const fn secret_names() -> &'static [&'static str] {
    &table::SECRET_VARIABLES
}

fn load(sources: &Sources, system_config: &Path, secrets: Secrets) -> Result<Config, Faults> {
    let env = raw::Environment::of(sources.env.iter().cloned());
    let places = paths::Places {
        env: &env,
        system: paths::System::OURS,
        uid: rustix::process::getuid().as_raw(),
    };
    let mut faults = Faults::default();
    let raw = raw::gather(sources, &env, &places, system_config, &mut faults);
    let resolved = std::collections::BTreeMap::new();
    let mut reading = Reading { raw: &raw, env: &env, places: &places, faults, resolved };
    let config = read(&mut reading, secrets);
    reading.faults.or(config)
}

/// None only where a fault says why. Values that are wrong are replaced by anything: with a fault
/// noted, nobody will see them.
fn read(reading: &mut Reading<'_>, secrets: Secrets) -> Option<Config> {
    let mut sections = upstream::sections(reading);
    let upstreams = upstream::read(reading, &mut sections, secrets);
    let (tokens, token_sections) = tokens::read(reading, secrets);
    let frontend = read_frontend(reading, tokens);
    if secrets == Secrets::Read {
        reading.check_files(reading.settings(), &["tls-cert", "tls-key"]);
    }
    let dir = reading.store();
    let disk = reading.one("disk", values::disk);
    let floor = reading.one("disk-floor", values::limit);
    let cache = read_cache(reading, &upstreams);
    let idle_exit = reading.one("idle-exit", values::idle).unwrap_or(IDLE_EXIT);
    let admin = reading.one("admin", values::admin);
    let log = log::Config {
        filter: reading.one("log", values::log_filter).unwrap_or_else(|| "info".to_owned()),
        format: reading.one("log-format", values::log_format).unwrap_or(log::Format::Text),
        file: None,
    };
    let daemon = reading.daemon();
    let commit = reading.one("commit", values::commit).unwrap_or_default();
    let token = reading.secret_variable(table::CLIENT_TOKEN);
    // Everything has been looked at, so that no fault hides another.
    let (frontend, dir) = (frontend?, dir?);
    let client = ClientConfig {
        socket: frontend.socket.clone(),
        daemon,
        namespace: cache.namespace.clone(),
        trust: cache.trust.clone(),
        upstream: upstreams.of_frontend("go", &cache.frontends).map(|up| up.url.clone()),
        read_only: cache.read_only,
        scope: cache.scope.clone(),
        commit,
        store: dir.clone(),
        token,
        log: log.clone(),
        daemon_log: reading.places.daemon_log(),
        config_file: reading.raw.file.clone(),
        child_env: explain::ChildEnv::of(reading, upstreams.token.as_ref()),
    };
    Some(Config {
        store: store::Config { dir, disk, floor },
        cache,
        worker: worker::Config { idle_exit },
        admin: admin::Config {
            listen: admin.unwrap_or(Some(ADMIN)),
            listen_is_default: admin.is_none(),
            allow_host: frontend.allow_host.clone(),
        },
        frontend,
        log,
        upstreams: upstreams.configs,
        client,
        lines: explain::lines(reading, &sections, &token_sections),
    })
}

fn read_frontend(
    reading: &mut Reading<'_>,
    tokens: Vec<frontend::Token>,
) -> Option<frontend::Config> {
    let listen = reading.listen();
    let insecure = reading.switch(reading.settings(), "insecure").unwrap_or(false);
    reading.check_exposure(insecure);
    let tls = reading.pair(reading.settings(), "tls-cert", "tls-key");
    if let Some((cert, key)) = &tls {
        reading.resolved.insert("tls-cert", cert.into());
        reading.resolved.insert("tls-key", key.into());
    }
    let allow_host = reading.list("allow-host", |_, word| values::host(&word.text));
    let allow_uid = reading.list("allow-uid", |_, word| values::uid(&word.text));
    let socket = reading.socket();
    Some(frontend::Config {
        listen_is_default: listen.is_none(),
        listen: listen.unwrap_or_else(|| vec![LISTEN]),
        socket: socket?,
        passed: reading.passed(),
        tokens,
        insecure,
        tls,
        allow_host: allow_host.unwrap_or_default(),
        allow_uid: allow_uid.unwrap_or_default(),
    })
}

fn read_cache(reading: &mut Reading<'_>, upstreams: &upstream::Upstreams) -> cache::Config {
    let namespace = reading.one("namespace", values::namespace).unwrap_or_default();
    let trust = reading.one("trust", values::namespace).filter(|name| !name.is_empty());
    cache::Config {
        memory: reading.one("memory", values::size),
        namespace,
        trust,
        read_only: reading.switch(reading.settings(), "read-only").unwrap_or(false),
        scope: reading.one("scope", values::scope).unwrap_or_default(),
        frontends: upstreams.frontends(reading),
        classes: upstreams.classes(reading),
    }
}

#[cfg(test)]
mod tests;

//! What may be written: every setting once, with the words that help, faults and tests show.
//!
//! Flags, environment variables and TOML keys are all derived from these rows. What a value means
//! is not said here; `meaning` and its neighbours parse.

use std::fmt;

/// How often a setting may be given, and of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One value.
    One,
    /// One value that must not be empty: a file or directory.
    Path,
    /// Several: a repeated flag, commas, or a TOML array.
    List,
    /// Several, but TOML writes them as tables of their own.
    Tables,
    /// On or off; the flag takes no value.
    Switch,
}

/// One thing that may be written.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// As the flag is spelled; the TOML key has `_` for `-`.
    pub name: &'static str,
    /// What stands for the value in `--help`.
    pub value: &'static str,
    pub help: &'static str,
    /// The default as people read it.
    pub default: &'static str,
    /// A value that is right; of a list, one item.
    pub example: &'static str,
    pub kind: Kind,
}

impl Setting {
    pub fn key(&self) -> String {
        self.name.replace('-', "_")
    }

    pub fn variable(&self) -> String {
        format!("LARDER_{}", self.key().to_ascii_uppercase())
    }

    /// A right line of TOML.
    pub fn toml_example(&self) -> String {
        let (key, example) = (self.key(), self.example);
        match self.kind {
            Kind::One | Kind::Path => format!("{key} = \"{example}\""),
            Kind::List => format!("{key} = [\"{example}\"]"),
            Kind::Switch => format!("{key} = {example}"),
            Kind::Tables => format!("[[{key}]] and below it url = \"{example}\""),
        }
    }
}

const fn row(
    name: &'static str,
    value: &'static str,
    kind: Kind,
    default: &'static str,
    example: &'static str,
    help: &'static str,
) -> Setting {
    Setting { name, value, help, default, example, kind }
}

/// Everything that has a flag, in the order in which `--help` and the example file show it.
#[rustfmt::skip]
pub static SETTINGS: [Setting; 23] = [
    row("listen", "ADDR|unix:PATH", Kind::List, "127.0.0.1:7878", "127.0.0.1:7878",
        "Where build tools reach the cache; the socket is served besides"),
    row("admin", "ADDR|off", Kind::One, "127.0.0.1:7879", "127.0.0.1:7879",
        "Where health, metrics and status are served"),
    row("socket", "PATH", Kind::Path, "$XDG_RUNTIME_DIR/larder/larder.sock", "/run/larder/larder.sock",
        "The socket between clients and the daemon"),
    row("daemon", "unix:PATH|URL", Kind::One, "the socket", "http://127.0.0.1:7878",
        "The daemon that clients talk to, where it is not behind the socket"),
    row("store", "DIR", Kind::Path, "$XDG_CACHE_HOME/larder", "/var/cache/larder",
        "The directory that keeps entries on disk"),
    row("disk", "SIZE|SHARE", Kind::One, "half of what is free beside it, at most 50 GiB", "50GiB",
        "Most that the store may take, as a size or a share of the file system"),
    row("disk-floor", "SIZE|SHARE", Kind::One, "1 GiB or 5 %, whichever is less", "1GiB",
        "Free space that is never used"),
    row("memory", "SIZE", Kind::One, "a sixteenth of memory, within 64 MiB and 1 GiB", "256MiB",
        "Most that entries may take in memory"),
    row("upstream", "URL", Kind::Tables, "none", "https://cache.example.com/prefix",
        "The central cache; replaces every [[upstream]] of the file"),
    row("namespace", "NAME", Kind::One, "none", "team/project",
        "The part of upstream that is read and written"),
    row("trust", "NAME", Kind::One, "none", "main",
        "The namespace that is read besides the own one"),
    row("read-only", "", Kind::Switch, "false", "true",
        "Send nothing upstream; the local store still works"),
    row("scope", "NAME", Kind::One, "repository and job", "larder/test",
        "What past builds are remembered under, to fetch ahead"),
    row("commit", "ID", Kind::One, "what is checked out, else what CI says", "0123456789abcdef0123456789abcdef01234567",
        "What is built, whatever git or CI says"),
    row("tokens", "FILE", Kind::Path, "none", "/etc/larder/tokens.toml",
        "File of the tokens that let clients in"),
    row("insecure", "", Kind::Switch, "false", "true",
        "Serve beyond loopback without tokens"),
    row("tls-cert", "FILE", Kind::Path, "none", "/etc/larder/tls.crt",
        "Certificate chain (PEM) for TCP listeners; needs --tls-key"),
    row("tls-key", "FILE", Kind::Path, "none", "/etc/larder/tls.key",
        "Private key (PEM) of --tls-cert"),
    row("allow-host", "NAME", Kind::List, "none", "cache.example.com",
        "Host names that requests may be for, besides IP addresses and localhost"),
    row("allow-uid", "UID", Kind::List, "none", "1000",
        "Users besides the daemon's own who may use the socket"),
    row("idle-exit", "DURATION", Kind::One, "30m", "30m",
        "How long an auto-started daemon stays without a client; 0 is for ever"),
    row("log", "FILTER", Kind::One, "info", "info",
        "What is logged: error, warn, info, debug, or a filter such as larder::store=debug"),
    row("log-format", "text|json", Kind::One, "text", "text",
        "How log lines are written"),
];

/// The keys of `[[upstream]]`.
#[rustfmt::skip]
pub static UPSTREAM: [Setting; 9] = [
    row("name", "NAME", Kind::One, "the host of its URL", "central",
        "What status, metrics and other tables call it"),
    row("url", "URL", Kind::One, "none", "https://cache.example.com/prefix",
        "Where it is; never with a secret in it"),
    row("token-file", "FILE", Kind::Path, "none", "/run/secrets/larder",
        "File of the bearer token"),
    row("user-file", "FILE", Kind::Path, "none", "/run/secrets/larder-user",
        "File of `user:password` for basic authentication"),
    row("ca-file", "FILE", Kind::Path, "the system's", "/etc/larder/ca.crt",
        "Certificates (PEM) that are trusted instead of the system's"),
    row("client-cert", "FILE", Kind::Path, "none", "/etc/larder/client.crt",
        "Certificate (PEM) that larder shows; needs client_key"),
    row("client-key", "FILE", Kind::Path, "none", "/etc/larder/client.key",
        "Private key (PEM) of client_cert"),
    row("write", "", Kind::Switch, "true", "true",
        "Whether uploads go there"),
    row("write-method", "PUT|POST", Kind::One, "PUT", "PUT",
        "The HTTP method of uploads"),
];

/// The keys of `[frontend.NAME]`.
#[rustfmt::skip]
pub static FRONTEND: [Setting; 1] = [
    row("upstream", "NAME", Kind::One, "the first", "central",
        "The upstream that this protocol uses"),
];

/// The keys of `[class.NAME]`.
#[rustfmt::skip]
pub static CLASS: [Setting; 2] = [
    row("share", "upstream|local|off", Kind::One, "upstream", "local",
        "How far entries of this class travel"),
    row("upstream", "NAME", Kind::One, "the frontend's", "central",
        "The upstream that this class uses"),
];

/// The keys of `[[token]]` in the file that `tokens` names.
#[rustfmt::skip]
pub static TOKEN: [Setting; 5] = [
    row("name", "NAME", Kind::One, "none", "ci-main",
        "What the log calls its holder"),
    row("secret", "TEXT", Kind::One, "none", "what openssl rand -hex 32 prints",
        "What the holder presents"),
    row("namespace", "NAME", Kind::One, "what the request names", "team/project",
        "The namespace that the holder is confined to"),
    row("trust", "NAME", Kind::One, "none", "main",
        "The namespace that the holder reads besides"),
    row("access", "read|write", Kind::One, "read", "write",
        "What the holder may do"),
];

/// The protocols that may be given an upstream of their own.
pub const FRONTENDS: [&str; 11] = [
    "bazel",
    "ccache",
    "crsh",
    "go",
    "gradle",
    "kv",
    "maven",
    "nx",
    "reapi",
    "sccache",
    "turborepo",
];

/// The bearer token of the first upstream.
pub const UPSTREAM_TOKEN: &str = "LARDER_UPSTREAM_TOKEN";
/// What clients present to a daemon beyond the socket.
pub const CLIENT_TOKEN: &str = "LARDER_TOKEN";
/// The configuration file, where `--config` does not name one.
pub const CONFIG_FILE: &str = "LARDER_CONFIG";

/// Variables that hold secrets. No command that larder runs inherits them.
pub const SECRET_VARIABLES: [&str; 2] = [UPSTREAM_TOKEN, CLIENT_TOKEN];

/// The row of a setting that has a flag.
pub fn setting(name: &str) -> &'static Setting {
    row_of(&SETTINGS, name)
}

/// The row called `name`. Names are written in the source, never by a user.
pub(super) fn row_of(rows: &'static [Setting], name: &str) -> &'static Setting {
    rows.iter().find(|row| row.name == name).expect("the table has a row for every name in use")
}

/// Why a TOML key is not known, as the end of the sentence "unknown key `x`…".
pub(super) struct Unknown<'a>(pub &'a str, pub &'static [Setting]);

impl fmt::Display for Unknown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(key, rows) = *self;
        write!(f, "unknown key {}", super::faults::quoted(key))?;
        let known: Vec<String> = rows.iter().map(Setting::key).collect();
        let dashless = key.replace('-', "_");
        if known.contains(&dashless) {
            return write!(f, "; in a file keys are written with `_`: `{dashless}`");
        }
        if let Some(near) = super::faults::nearest(key, known.iter().map(String::as_str)) {
            return write!(f, "; did you mean `{near}`?");
        }
        let is_top = std::ptr::eq(rows.as_ptr(), SETTINGS.as_ptr());
        if !is_top && SETTINGS.iter().any(|row| row.key() == key) {
            return write!(f, " in this table; it belongs above the first `[…]` of the file");
        }
        if is_top && UPSTREAM.iter().any(|row| row.key() == key) {
            return write!(f, " here; it belongs below an `[[upstream]]`");
        }
        write!(f, "; known are {}", known.join(", "))
    }
}

//! What the settings mean, where it takes more than the value: paths, lists, pairs, and settings
//! that depend on each other.
//!
//! A fault is noted at the word's own place and reading goes on. Upstreams and tokens, which have
//! tables of their own, are next door; so is how single values are written (`values`).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::faults::{Faults, Origin, quoted};
use super::file::{Word, Written};
use super::paths::Places;
use super::raw::{Environment, Raw, absolute};
use super::table::{self, Kind, SETTINGS, Setting};
use super::values::{address, bearer, socket_fits};
use super::{Daemon, upstream};
use crate::frontend::Listen;
use crate::frontend::listener::PASSED_MAX;
use crate::units::Secret;

/// Written keys, together with the rows that describe them.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) rows: &'static [Setting],
    pub(super) keys: &'a BTreeMap<&'static str, Written>,
}

impl<'a> Keys<'a> {
    pub(super) fn word(&self, name: &str) -> Option<(&'static Setting, &'a Word)> {
        Some((table::row_of(self.rows, name), self.keys.get(name)?.words.first()?))
    }
}

/// One reading of what was written.
pub(super) struct Reading<'a> {
    pub(super) raw: &'a Raw,
    pub(super) env: &'a Environment,
    pub(super) places: &'a Places<'a>,
    pub(super) faults: Faults,
    /// Values that differ from what was written: paths from the root, defaults that were computed.
    pub(super) resolved: BTreeMap<&'static str, OsString>,
}

impl<'a> Reading<'a> {
    pub(super) const fn settings(&self) -> Keys<'a> {
        Keys { rows: &SETTINGS, keys: &self.raw.settings }
    }

    /// The value of a key, or None if it was not written or is wrong.
    pub(super) fn value<T>(
        &mut self,
        keys: Keys<'_>,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (row, word) = keys.word(name)?;
        self.parse(row, word, parse)
    }

    pub(super) fn one<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.value(self.settings(), name, parse)
    }

    fn parse<T>(
        &mut self,
        row: &Setting,
        word: &Word,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match parse(&word.text) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.wrong(row, &word.origin, problem);
                None
            }
        }
    }

    pub(super) fn wrong(&mut self, row: &Setting, place: &Origin, problem: impl Display) {
        self.faults.add_with(place, problem, format!("`{}`", example(row, place)));
    }

    pub(super) fn switch(&mut self, keys: Keys<'_>, name: &str) -> Option<bool> {
        self.value(keys, name, |text| match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(true),
            "0" | "false" | "no" | "off" => Ok(false),
            _ => Err(format!("{} is neither `true` nor `false`", quoted(text))),
        })
    }

    pub(super) fn list<T>(
        &mut self,
        name: &str,
        mut parse: impl FnMut(&mut Self, &Word) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let raw = self.raw;
        let mut items = Vec::new();
        for word in &raw.settings.get(name)?.words {
            match parse(self, word) {
                Ok(item) => items.push(item),
                Err(problem) => self.wrong(table::setting(name), &word.origin, problem),
            }
        }
        Some(items)
    }

    /// A path from the root: relative ones count from the file that they stand in.
    fn resolve(&self, text: &str, origin: &Origin) -> Result<PathBuf, String> {
        if text.is_empty() {
            return Err("a path cannot be empty".to_owned());
        }
        let path = match text.strip_prefix("~/") {
            None => PathBuf::from(text),
            Some(rest) => match self.env.home() {
                Some(home) => home.join(rest),
                None => return Err(format!("{} needs HOME, which is not set", quoted(text))),
            },
        };
        let base = match origin {
            Origin::File { path, .. } => path.parent().unwrap_or(Path::new("/")),
            Origin::Default | Origin::Flag(_) | Origin::Variable(_) => Path::new(""),
        };
        Ok(absolute(&base.join(path)))
    }

    pub(super) fn path(&mut self, keys: Keys<'_>, name: &str) -> Option<PathBuf> {
        let (row, word) = keys.word(name)?;
        match self.resolve(&word.text, &word.origin) {
            Ok(path) => Some(path),
            Err(problem) => {
                self.wrong(row, &word.origin, problem);
                None
            }
        }
    }

    /// Notes a fault where a file is named that cannot be opened.
    pub(super) fn check_files(&mut self, keys: Keys<'_>, names: &[&str]) {
        for name in names {
            let Some((_, word)) = keys.word(name) else { continue };
            // A path that means nothing has its fault already.
            let Ok(path) = self.resolve(&word.text, &word.origin) else { continue };
            let opened = std::fs::File::open(&path).and_then(|file| file.metadata());
            let problem = match opened {
                Ok(meta) if meta.is_dir() => "is a directory".to_owned(),
                Ok(_) => continue,
                Err(error) => format!("cannot be read: {error}"),
            };
            self.faults.add(&word.origin, format!("{} {problem}", path.display()));
        }
    }

    /// A path among the settings, or its default.
    pub(super) fn setting_path(
        &mut self,
        name: &'static str,
        default: Option<PathBuf>,
    ) -> Option<PathBuf> {
        let path = match self.settings().word(name) {
            Some(_) => self.path(self.settings(), name),
            None => default,
        };
        if let Some(path) = &path {
            self.resolved.insert(name, path.clone().into());
        }
        path
    }

    /// Two files of which neither is of use alone.
    pub(super) fn pair(
        &mut self,
        keys: Keys<'_>,
        first: &'static str,
        second: &'static str,
    ) -> Option<(PathBuf, PathBuf)> {
        let paths = (self.path(keys, first), self.path(keys, second));
        let alone = match (keys.word(first), keys.word(second)) {
            (Some((_, word)), None) => Some((word, first, second)),
            (None, Some((_, word))) => Some((word, second, first)),
            (Some(_), Some(_)) | (None, None) => None,
        };
        if let Some((word, given, missing)) = alone {
            let row = table::row_of(keys.rows, missing);
            let problem = format!(
                "{} needs {}",
                spelled(given, &word.origin),
                spelled(missing, &word.origin)
            );
            self.wrong(row, &word.origin, problem);
        }
        paths.0.zip(paths.1)
    }

    pub(super) fn store(&mut self) -> Option<PathBuf> {
        let dir = self.setting_path("store", self.places.store());
        if dir.is_none() && self.settings().word("store").is_none() {
            self.faults.add_with(
                &Origin::Default,
                "the store has no place, because neither HOME nor XDG_CACHE_HOME is set",
                format!("`{}`", example(table::setting("store"), &Origin::Flag("store"))),
            );
        }
        dir
    }

    pub(super) fn socket(&mut self) -> Option<PathBuf> {
        let path = self.setting_path("socket", Some(self.places.socket()))?;
        let origin = self.origin("socket");
        if let Err(problem) = socket_fits(&path) {
            let place = if origin == Origin::Default { Origin::Flag("socket") } else { origin };
            self.wrong(table::setting("socket"), &place, problem);
        }
        Some(path)
    }

    pub(super) fn origin(&self, name: &str) -> Origin {
        self.raw.settings.get(name).map_or(Origin::Default, |written| written.origin.clone())
    }

    pub(super) fn listen(&mut self) -> Option<Vec<Listen>> {
        let listen =
            self.list("listen", |reading, word| match word.text.strip_prefix("unix:") {
                Some(path) => {
                    let path = reading.resolve(path, &word.origin)?;
                    socket_fits(&path)?;
                    Ok(Listen::Unix(path))
                }
                None => address(&word.text).map(Listen::Tcp),
            })?;
        let mut text = OsString::new();
        for (i, listen) in listen.iter().enumerate() {
            text.push(if i > 0 { "," } else { "" });
            match listen {
                Listen::Tcp(address) => text.push(address.to_string()),
                Listen::Unix(path) => {
                    text.push("unix:");
                    text.push(path);
                }
            }
        }
        self.resolved.insert("listen", text);
        Some(listen)
    }

    /// The sockets that were bound for this process, by name. Variables that mean another process, as a
    /// child inherits them, mean nothing.
    pub(super) fn passed(&mut self) -> Vec<String> {
        let text = |name: &str| self.env.get(name).and_then(|value| value.to_str());
        let is_ours =
            text("LISTEN_PID").and_then(|pid| pid.parse().ok()) == Some(std::process::id());
        let Some(written) = text("LISTEN_FDS").filter(|_| is_ours) else { return Vec::new() };
        let count = written.parse().ok().filter(|count| *count <= PASSED_MAX);
        let Some(count) = count else {
            let problem = format!("{} is no number of sockets up to {PASSED_MAX}", quoted(written));
            self.faults.add(&Origin::Variable("LISTEN_FDS".to_owned()), problem);
            return Vec::new();
        };
        let mut names = text("LISTEN_FDNAMES").into_iter().flat_map(|names| names.split(':'));
        (0..count).map(|_| names.next().unwrap_or("unknown").to_owned()).collect()
    }

    /// Whoever opens a port to others says who may come in, or that everybody may.
    pub(super) fn check_exposure(&mut self, is_insecure: bool) {
        let raw = self.raw;
        if is_insecure || raw.settings.contains_key("tokens") {
            return;
        }
        for word in raw.settings.get("listen").into_iter().flat_map(|written| &written.words) {
            let is_open =
                address(&word.text).is_ok_and(|address| !address.ip().to_canonical().is_loopback());
            if is_open {
                let way_out = |name| example(table::setting(name), &word.origin);
                let problem = format!(
                    "{} lets other machines in, and nothing says which: name those that may come \
                     in with `{}`, or let everybody in with `{}`",
                    quoted(&word.text),
                    way_out("tokens"),
                    way_out("insecure"),
                );
                self.faults.add(&word.origin, problem);
            }
        }
    }

    pub(super) fn daemon(&mut self) -> Option<Daemon> {
        let (row, word) = self.settings().word("daemon")?;
        let daemon = match word.text.strip_prefix("unix:") {
            Some(path) => self.resolve(path, &word.origin).map(Daemon::Unix),
            None => plain_url(&word.text).map(Daemon::Http),
        };
        match daemon {
            Ok(daemon) => {
                let text = match &daemon {
                    Daemon::Http(url) => url.into(),
                    Daemon::Unix(path) => {
                        let mut text = OsString::from("unix:");
                        text.push(path);
                        text
                    }
                };
                self.resolved.insert("daemon", text);
                Some(daemon)
            }
            Err(problem) => {
                self.wrong(row, &word.origin, problem);
                None
            }
        }
    }

    /// A secret that is a variable's whole value.
    pub(super) fn secret_variable(&mut self, name: &str) -> Option<Secret> {
        let word = self.env.text(name, &mut self.faults)?;
        match bearer(&word.text) {
            Ok(secret) => Some(secret),
            Err(problem) => {
                self.faults.add(&word.origin, problem);
                None
            }
        }
    }
}

/// A setting as it is called where it stands.
fn spelled(name: &str, place: &Origin) -> String {
    match place {
        Origin::File { .. } => format!("`{}`", name.replace('-', "_")),
        Origin::Variable(_) => {
            format!("`LARDER_{}`", name.replace('-', "_").to_ascii_uppercase())
        }
        Origin::Default | Origin::Flag(_) => format!("`--{name}`"),
    }
}

/// A right value of a setting, spelled as at `place`.
fn example(row: &Setting, place: &Origin) -> String {
    let is_setting = SETTINGS.iter().any(|setting| std::ptr::eq(setting, row));
    let row = match place {
        // The one key of a table that can be written elsewhere is an upstream's URL.
        Origin::Default | Origin::Flag(_) | Origin::Variable(_) if !is_setting => {
            table::setting("upstream")
        }
        Origin::Default | Origin::Flag(_) | Origin::Variable(_) | Origin::File { .. } => row,
    };
    match place {
        Origin::File { .. } => row.toml_example(),
        Origin::Variable(_) => format!("{}={}", row.variable(), row.example),
        Origin::Default | Origin::Flag(_) if row.kind == Kind::Switch => format!("--{}", row.name),
        Origin::Default | Origin::Flag(_) => format!("--{} {}", row.name, row.example),
    }
}

/// Where a daemon is reached over TCP. Nothing encrypts that way, so whoever writes `https`, and would
/// send a token along, is told so.
fn plain_url(text: &str) -> Result<String, String> {
    let url = upstream::url(text)?;
    match url.split_once("://") {
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => Err(format!(
            "a token would go to {} in clear text: nothing encrypts the connection to a daemon, \
             which is for `http://` where the network is trusted",
            quoted(text)
        )),
        _ => Ok(url),
    }
}

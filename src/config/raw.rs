//! What was written: flags, environment and file brought together, the strongest one kept.
//!
//! Every word knows where it stands. Nothing is parsed here beyond splitting lists; that is
//! `meaning`. The flags that clap accepts are made here too, from the same table.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};

use super::Sources;
use super::faults::{Faults, Origin, nearest, quoted};
use super::file::{self, File, Section, Word, Written};
use super::paths::Places;
use super::table::{self, Kind, SETTINGS, Setting};

/// The environment. Never printed: it holds secrets.
#[derive(Clone, Default)]
pub(super) struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Empty variables count as unset: CI systems make them of secrets that do not exist.
    pub(super) fn of(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        Self(variables.filter(|(_, value)| !value.is_empty()).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    pub(super) fn home(&self) -> Option<PathBuf> {
        self.get("HOME").map(PathBuf::from)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// A variable of ours as text; one that is not UTF-8 is a fault.
    pub(super) fn text(&self, name: &str, faults: &mut Faults) -> Option<Word> {
        let origin = Origin::Variable(name.to_owned());
        match self.get(name)?.to_str() {
            Some(text) => Some(Word { text: text.to_owned(), origin }),
            None => {
                faults.add(&origin, "this is not UTF-8");
                None
            }
        }
    }
}

/// Everything that was written, with the stronger place in front of the weaker one.
#[derive(Default)]
pub(super) struct Raw {
    pub settings: BTreeMap<&'static str, Written>,
    pub upstreams: Vec<Section>,
    pub frontends: Vec<Section>,
    pub classes: Vec<Section>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

/// Reads all sources. What is wrong with one of them does not hide the others' faults.
pub(super) fn gather(
    sources: &Sources,
    env: &Environment,
    places: &Places<'_>,
    system_config: &Path,
    faults: &mut Faults,
) -> Raw {
    let mut raw = Raw::default();
    if let Some((path, bytes)) = find_file(sources, env, places, system_config, faults) {
        let File { settings, upstreams, frontends, classes } = file::read(&path, &bytes, faults);
        raw = Raw { settings, upstreams, frontends, classes, file: Some(path) };
    }
    for row in &SETTINGS {
        if let Some(word) = env.text(&row.variable(), faults) {
            raw.settings.insert(row.name, split(row, [word.text.as_str()], &word.origin));
        }
    }
    look_for_typos(env, faults);
    let mut flags: BTreeMap<&'static str, Vec<&str>> = BTreeMap::new();
    // An empty flag is as good as none, like a variable: what `run` is told reaches its helpers and its
    // daemon as variables.
    for (name, text) in sources.flags.iter().filter(|(_, text)| !text.is_empty()) {
        match SETTINGS.iter().find(|row| row.name == name) {
            Some(row) => flags.entry(row.name).or_default().push(text),
            None => faults.add(&Origin::Default, format!("unknown flag {}", quoted(name))),
        }
    }
    for (name, texts) in flags {
        let row = table::setting(name);
        raw.settings.insert(name, split(row, texts, &Origin::Flag(name)));
    }
    raw
}

/// The words of what was written as flags or in a variable.
fn split<'a>(row: &Setting, texts: impl IntoIterator<Item = &'a str>, origin: &Origin) -> Written {
    let word = |text: &str| Word { text: text.to_owned(), origin: origin.clone() };
    let texts = texts.into_iter();
    let words = match row.kind {
        Kind::List | Kind::Tables => texts
            .flat_map(|text| text.split(','))
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .map(word)
            .collect(),
        // Of a flag given twice the last one counts, as with most programs.
        Kind::One | Kind::Path | Kind::Switch => texts.last().map(word).into_iter().collect(),
    };
    Written { words, origin: origin.clone() }
}

/// A variable that is almost one of ours is a slip. Others beginning with `LARDER_` are not: where a
/// Kubernetes service is called larder, every pod has a `LARDER_PORT` and more.
fn look_for_typos(env: &Environment, faults: &mut Faults) {
    let mut known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
    known.extend(table::SECRET_VARIABLES.map(str::to_owned));
    known.push(table::CONFIG_FILE.to_owned());
    let tail = |name: &str| name["LARDER_".len()..].to_owned();
    let tails: Vec<String> = known.iter().map(|name| tail(name)).collect();
    for (name, _) in env.iter() {
        let Some(name) = name.to_str().filter(|name| name.starts_with("LARDER_")) else { continue };
        if known.iter().any(|known| known == name) {
            continue;
        }
        if let Some(near) = nearest(&tail(name), tails.iter().map(String::as_str)) {
            let problem = format!("unknown variable; did you mean `LARDER_{near}`?");
            faults.add(&Origin::Variable(name.to_owned()), problem);
        }
    }
}

/// The one file that counts: the named one, else the user's, else the machine's.
fn find_file(
    sources: &Sources,
    env: &Environment,
    places: &Places<'_>,
    system_config: &Path,
    faults: &mut Faults,
) -> Option<(PathBuf, Vec<u8>)> {
    let flag = sources.config_file.as_ref().filter(|path| !path.as_os_str().is_empty());
    let named = match (flag, env.get(table::CONFIG_FILE)) {
        (Some(path), _) => Some((path.clone(), Origin::Flag("config"))),
        (None, Some(path)) => {
            Some((PathBuf::from(path), Origin::Variable(table::CONFIG_FILE.to_owned())))
        }
        (None, None) => None,
    };
    if let Some((path, origin)) = named {
        return match file::bytes_of(&path) {
            Ok((bytes, _)) => Some((absolute(&path), bytes)),
            Err(error) => {
                faults.add(&origin, format!("cannot read {}: {error}", path.display()));
                None
            }
        };
    }
    for path in places.user_config().into_iter().chain([system_config.to_owned()]) {
        match file::bytes_of(&path) {
            Ok((bytes, _)) => return Some((path, bytes)),
            Err(error) if is_missing(&error) => {}
            Err(error) => {
                faults.add(&Origin::Default, format!("cannot read {}: {error}", path.display()));
                return None;
            }
        }
    }
    None
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The path from the root. A directory that is gone leaves it as it was written.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The flags called `names`, and `--config`, for a subcommand.
pub fn args(names: &[&str]) -> Vec<Arg> {
    let settings = names.iter().map(|name| arg(table::setting(name)));
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help("Configuration file [default: the user's, else /etc/larder/config.toml]");
    settings.chain([config]).collect()
}

fn arg(row: &'static Setting) -> Arg {
    let arg = Arg::new(row.name).long(row.name);
    let help = match row.kind {
        Kind::Switch => row.help.to_owned(),
        Kind::One | Kind::Path | Kind::List | Kind::Tables => {
            format!("{} [default: {}]", row.help, row.default)
        }
    };
    let arg = arg.help(help);
    match row.kind {
        Kind::Switch => arg.action(ArgAction::SetTrue),
        Kind::List | Kind::Tables => arg.value_name(row.value).action(ArgAction::Append),
        Kind::One | Kind::Path => arg.value_name(row.value).action(ArgAction::Set),
    }
}

/// The settings that were given on the command line, by name; `config` is among them.
pub fn flags_of(matches: &ArgMatches) -> Vec<(String, String)> {
    let mut flags = Vec::new();
    let rows = SETTINGS.iter().map(|row| (row.name, row.kind)).chain([("config", Kind::Path)]);
    for (name, kind) in rows {
        // A subcommand has some of the flags; asking for another one is an error to clap.
        let is_given = matches.try_contains_id(name).unwrap_or(false)
            && matches.value_source(name) == Some(ValueSource::CommandLine);
        if !is_given {
            continue;
        }
        if kind == Kind::Switch {
            flags.push((name.to_owned(), "true".to_owned()));
            continue;
        }
        for text in matches.get_many::<String>(name).into_iter().flatten() {
            flags.push((name.to_owned(), text.clone()));
        }
    }
    flags
}

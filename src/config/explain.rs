//! What counts and where it comes from, for people (`check-config`) and for a daemon to be started.
//!
//! Secrets are shown as `<secret>`; only `child_env` carries them, to a process of ours.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;

use serde_json::{Value, json};

use super::faults::Origin;
use super::file::{Section, Written};
use super::meaning::Reading;
use super::raw::absolute;
use super::table::{CLIENT_TOKEN, CONFIG_FILE, Kind, SETTINGS, UPSTREAM_TOKEN};
use crate::units::Secret;

/// One setting with its value and place.
#[derive(Clone, Debug)]
pub(super) struct Line {
    key: String,
    value: Value,
    origin: Origin,
}

const HIDDEN: &str = "<secret>";

/// The lines of all settings, upstreams, rules and tokens.
pub(super) fn lines(reading: &Reading<'_>, upstreams: &[Section], tokens: &[Section]) -> Vec<Line> {
    let mut lines = Vec::new();
    for row in SETTINGS.iter().filter(|row| row.kind != Kind::Tables) {
        let written = reading.raw.settings.get(row.name);
        let value = match (reading.resolved.get(row.name), written) {
            (Some(text), _) if row.kind == Kind::List => {
                text.to_string_lossy().split(',').filter(|text| !text.is_empty()).collect()
            }
            (Some(text), _) => text.to_string_lossy().into(),
            (None, Some(written)) => value_of(row.kind, written),
            (None, None) => row.default.into(),
        };
        lines.push(Line { key: row.key(), value, origin: reading.origin(row.name) });
    }
    let has_token = reading.env.get(UPSTREAM_TOKEN).is_some();
    for (i, section) in upstreams.iter().enumerate() {
        let prefix = format!("upstream.{}", section.name);
        let is_first = i == 0 && has_token;
        let is_shown = |key: &str| !(is_first && ["token-file", "user-file"].contains(&key));
        push_section(&mut lines, &prefix, section, is_shown);
        if is_first {
            lines.push(secret(format!("{prefix}.token"), UPSTREAM_TOKEN));
        }
    }
    for (kind, sections) in [("frontend", &reading.raw.frontends), ("class", &reading.raw.classes)]
    {
        for section in sections {
            push_section(&mut lines, &format!("{kind}.{}", section.name), section, |_| true);
        }
    }
    for section in tokens {
        let name = section.get("name").map_or("", |word| word.text.as_str());
        push_section(&mut lines, &format!("token.{name}"), section, |key| key != "name");
    }
    if reading.env.get(CLIENT_TOKEN).is_some() {
        lines.push(secret("token".to_owned(), CLIENT_TOKEN));
    }
    lines
}

fn secret(key: String, variable: &str) -> Line {
    Line { key, value: HIDDEN.into(), origin: Origin::Variable(variable.to_owned()) }
}

fn push_section(
    lines: &mut Vec<Line>,
    prefix: &str,
    section: &Section,
    is_shown: impl Fn(&str) -> bool,
) {
    for (name, written) in section.keys.iter().filter(|(name, _)| is_shown(name)) {
        let value = match *name {
            "secret" => HIDDEN.into(),
            _ => value_of(Kind::One, written),
        };
        let key = format!("{prefix}.{}", name.replace('-', "_"));
        lines.push(Line { key, value, origin: written.origin.clone() });
    }
}

fn value_of(kind: Kind, written: &Written) -> Value {
    let mut texts = written.words.iter().map(|word| word.text.as_str());
    match kind {
        Kind::List | Kind::Tables => texts.collect(),
        Kind::One | Kind::Path | Kind::Switch => texts.next().unwrap_or_default().into(),
    }
}

/// `key = value   (from ORIGIN)`.
pub(super) fn as_text(lines: &[Line]) -> Vec<String> {
    let show = |line: &Line| {
        let value = match &line.value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match line.origin {
            Origin::Default => format!("{} = {value}   (default)", line.key),
            Origin::Flag(_) | Origin::Variable(_) | Origin::File { .. } => {
                format!("{} = {value}   (from {})", line.key, line.origin)
            }
        }
    };
    lines.iter().map(show).collect()
}

pub(super) fn as_json(lines: &[Line]) -> Value {
    let settings: serde_json::Map<String, Value> = lines
        .iter()
        .map(|line| {
            let from = line.origin.to_string();
            (line.key.clone(), json!({ "value": line.value, "from": from }))
        })
        .collect();
    json!({ "version": 1, "settings": settings })
}

/// The environment of a daemon that a client starts. Holds secrets, so it is never printed.
#[derive(Clone, Default)]
pub(super) struct ChildEnv(BTreeMap<OsString, OsString>);

impl ChildEnv {
    /// What the client was told by flags and environment, as environment: paths from the root,
    /// because the daemon lives in another directory. The file is read again by the daemon itself.
    pub(super) fn of(reading: &Reading<'_>, upstream_token: Option<&Secret>) -> Self {
        let mut child = BTreeMap::new();
        let kept = reading.env.iter().filter(|(name, _)| is_passed_on(name));
        for (name, value) in kept {
            child.insert(name.to_owned(), value.to_owned());
        }
        for row in &SETTINGS {
            let Some(written) = reading.raw.settings.get(row.name) else { continue };
            if matches!(written.origin, Origin::File { .. } | Origin::Default) {
                continue;
            }
            let texts: Vec<&str> = written.words.iter().map(|word| word.text.as_str()).collect();
            let resolved = reading.resolved.get(row.name).cloned();
            let value = resolved.unwrap_or_else(|| texts.join(",").into());
            child.insert(row.variable().into(), value);
        }
        if let Some(token) = upstream_token {
            child.insert(UPSTREAM_TOKEN.into(), token.reveal().into());
        }
        child.remove(OsStr::new(CONFIG_FILE));
        if let Some(file) = &reading.raw.file {
            child.insert(CONFIG_FILE.into(), absolute(file).into());
        }
        Self(child)
    }

    pub(super) fn variables(&self) -> Vec<(OsString, OsString)> {
        self.0.clone().into_iter().collect()
    }
}

impl ChildEnv {
    pub(super) fn is_told(&self, variable: &str) -> bool {
        self.0.contains_key(OsStr::new(variable))
    }
}

impl fmt::Debug for ChildEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Only what larder itself looks at: a daemon outlives the job whose other variables it would keep.
/// The client's own token is not for the daemon.
fn is_passed_on(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let is_ours = name.starts_with("LARDER_") && name != CLIENT_TOKEN && name != UPSTREAM_TOKEN;
    is_ours || name.starts_with("XDG_") || ["HOME", "PATH", "TMPDIR"].contains(&name)
}

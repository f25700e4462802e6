//! The file of tokens that let clients in.
//!
//! Its faults name the place, never the secret. Comparing tokens with what a client presents is the
//! frontend's.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Secrets;
use super::faults::quoted;
use super::file::{self, Section};
use super::meaning::{Keys, Reading};
use super::table::{self, TOKEN};
use super::values::{bearer, namespace};
use crate::frontend::Token;

/// The tokens, and the tables they were written in.
pub(super) fn read(reading: &mut Reading<'_>, secrets: Secrets) -> (Vec<Token>, Vec<Section>) {
    let none = (Vec::new(), Vec::new());
    let Some(path) = reading.setting_path("tokens", None) else { return none };
    if secrets == Secrets::Leave {
        return none;
    }
    let Some(bytes) = open(reading, &path) else { return none };
    let sections = file::read_tokens(&path, &bytes, &mut reading.faults);
    if sections.is_empty() {
        let place = reading.origin("tokens");
        let problem = format!("{} has no `[[token]]`, so nobody could come in", path.display());
        reading.faults.add(&place, problem);
    }
    let mut tokens: Vec<Token> = Vec::new();
    for section in &sections {
        if let Some(token) = one(reading, section, &tokens) {
            tokens.push(token);
        }
    }
    (tokens, sections)
}

fn open(reading: &mut Reading<'_>, path: &Path) -> Option<Vec<u8>> {
    let place = reading.origin("tokens");
    let us = rustix::process::geteuid().as_raw();
    match file::bytes_of(path) {
        Ok((_, meta)) if is_for_others(meta.uid(), meta.mode(), us) => {
            let mode = meta.mode() & 0o777;
            let problem = format!(
                "{} has mode {mode:04o}, so that others can use it: run `chmod 600` on it",
                path.display()
            );
            reading.faults.add(&place, problem);
            None
        }
        Ok((bytes, _)) => Some(bytes),
        Err(error) => {
            reading.faults.add(&place, format!("cannot read {}: {error}", path.display()));
            None
        }
    }
}

/// A group may read what belongs to somebody else: as one of that group, we read it. Kubernetes hands
/// secrets to programs that are not root in that way.
const fn is_for_others(owner: u32, mode: u32, us: u32) -> bool {
    mode & if owner == us { 0o077 } else { 0o037 } != 0
}

fn one(reading: &mut Reading<'_>, section: &Section, others: &[Token]) -> Option<Token> {
    let keys = Keys { rows: &TOKEN, keys: &section.keys };
    for name in ["name", "secret"] {
        if keys.word(name).is_none() {
            let problem = format!("this token has no `{name}`");
            reading.wrong(table::row_of(&TOKEN, name), &section.origin, problem);
        }
    }
    let name = reading.value(keys, "name", |text| {
        let is_right = !text.trim().is_empty() && !text.contains(char::is_control);
        if !is_right {
            return Err(format!("{} is not a name", quoted(text)));
        }
        match others.iter().any(|other| other.name == text) {
            true => Err(format!("two tokens are named {}", quoted(text))),
            false => Ok(text.to_owned()),
        }
    });
    let secret = reading.value(keys, "secret", |text| {
        let secret = bearer(text)?;
        match others.iter().find(|other| other.secret == secret) {
            Some(other) => Err(format!("this is the secret of {} as well", quoted(&other.name))),
            None => Ok(secret),
        }
    });
    let namespace_of = |reading: &mut Reading<'_>, key| reading.value(keys, key, namespace);
    let own = namespace_of(reading, "namespace");
    let trust = namespace_of(reading, "trust").filter(|name| !name.is_empty());
    let write = reading.value(keys, "access", |text| match text {
        "read" => Ok(false),
        "write" => Ok(true),
        _ => Err(format!("{} is neither `read` nor `write`", quoted(text))),
    });
    Some(Token {
        name: name?,
        secret: secret?,
        namespace: own,
        trust,
        write: write.unwrap_or(false),
    })
}

#[cfg(test)]
mod tests {
    use super::is_for_others;

    #[test]
    fn a_group_may_read_a_secret_that_is_somebody_elses_and_do_no_more() {
        for (owner, mode, is_open) in [
            (7, 0o100_600, false),
            (7, 0o100_640, true),
            (7, 0o100_604, true),
            (0, 0o100_440, false),
            (0, 0o100_640, false),
            (0, 0o100_660, true),
            (0, 0o100_444, true),
        ] {
            assert_eq!(is_for_others(owner, mode, 7), is_open, "{owner} {mode:o}");
        }
    }
}

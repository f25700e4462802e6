//! What is wrong with a configuration: where, what, and what would be right.
//!
//! Faults are collected, never thrown one by one: who mends a file wants to mend it once. No fault
//! repeats a text that may hold a secret; that is up to who reports it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Default,
    Flag(&'static str),
    Variable(String),
    File { path: Arc<Path>, line: usize },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Variable(name) => f.write_str(name),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub place: Origin,
    pub problem: String,
    /// What would be right, in the spelling of the place.
    pub example: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            // Nothing was written, so there is no place to point at.
            Origin::Default => f.write_str(&self.problem)?,
            place => write!(f, "{place}: {}", self.problem)?,
        }
        match &self.example {
            Some(example) => write!(f, "; write for example {example}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong, one line each, in the order of flags, environment, file lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }

    pub const fn len(&self) -> usize {
        self.0.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, place: &Origin, problem: impl fmt::Display) {
        self.push(place, problem.to_string(), None);
    }

    pub(super) fn add_with(&mut self, place: &Origin, problem: impl fmt::Display, example: String) {
        self.push(place, problem.to_string(), Some(example));
    }

    fn push(&mut self, place: &Origin, problem: String, example: Option<String>) {
        self.0.push(Fault { place: place.clone(), problem, example });
    }

    /// `value` if nothing was wrong, else the faults in order.
    pub(super) fn or<T>(mut self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => {
                self.0.sort_by(|a, b| a.place.cmp(&b.place));
                Err(self)
            }
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// The lines of a file, to turn an offset into a number people can go to.
pub(super) struct Lines {
    path: Arc<Path>,
    starts: Vec<usize>,
}

impl Lines {
    pub(super) fn of(path: &Path, text: &[u8]) -> Self {
        let newlines = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let starts = std::iter::once(0).chain(newlines.map(|(at, _)| at + 1)).collect();
        Self { path: PathBuf::from(path).into(), starts }
    }

    pub(super) fn at(&self, offset: usize) -> Origin {
        let line = self.starts.partition_point(|start| *start <= offset);
        Origin::File { path: Arc::clone(&self.path), line }
    }
}

/// Longest text that a fault repeats.
const QUOTED_MAX: usize = 80;

/// A text as a fault may repeat it: on one line, not endless, unable to command a terminal.
pub(super) fn quoted(text: &str) -> String {
    // A URL with a user in it has a password in it, whatever place it was written in.
    if text.contains("://") && text.contains('@') {
        return "`<hidden>`".to_owned();
    }
    let mut out = String::from("`");
    for c in text.chars().take(QUOTED_MAX) {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    if text.chars().nth(QUOTED_MAX).is_some() {
        out.push('…');
    }
    out.push('`');
    out
}

/// The one of `known` that was probably meant, if any is near enough.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words than any of ours are not worth the square of their length.
    if word.len() > 64 {
        return None;
    }
    let word: Vec<char> = word.to_lowercase().chars().collect();
    known
        .map(|name| (distance(&word, &name.to_lowercase().chars().collect::<Vec<_>>()), name))
        .filter(|(far, name)| *far <= (name.len() / 3).clamp(1, 3))
        .min_by_key(|(far, _)| *far)
        .map(|(_, name)| name)
}

/// Edits between two words; two neighbours exchanged count as one.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            if i == 0 || j == 0 {
                rows[i][j] = i + j;
                continue;
            }
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_find_what_was_meant() {
        let known = ["memory", "disk", "disk_floor", "log"];
        let cases = [
            ("memmory", Some("memory")),
            ("MEMROY", Some("memory")),
            ("dsik", Some("disk")),
            ("disc_floor", Some("disk_floor")),
            ("lgo", Some("log")),
            ("banana", None),
            ("", None),
        ];
        for (word, meant) in cases {
            assert_eq!(nearest(word, known.into_iter()), meant, "{word}");
        }
    }

    #[test]
    fn what_a_fault_repeats_stays_on_its_line() {
        assert_eq!(quoted("a\nb\x1b[1m"), "`a\\nb\\u{1b}[1m`");
        assert_eq!(quoted(&"x".repeat(100)).chars().count(), 83);
    }

    #[test]
    fn offsets_become_lines() {
        let lines = Lines::of(Path::new("f"), b"a\nbc\n\nd");
        let at = |offset| lines.at(offset).to_string();
        assert_eq!(
            [at(0), at(1), at(2), at(5), at(6), at(99)].join(" "),
            "f:1 f:1 f:2 f:3 f:4 f:4"
        );
    }
}

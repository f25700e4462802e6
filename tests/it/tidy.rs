//! The house in order: arrows that never turn back, every file says what lives there, tests wait for
//! states, every promise of the README and every metric is what the code says.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may use. A line that is longer than it must be is a line to shorten.
const ARROWS: &[(&str, &str)] = &[
    ("units", ""),
    ("wire", "units"),
    ("telemetry", "units"),
    ("tasks", "telemetry"),
    ("entry", "units"),
    ("git", "units"),
    ("gocache", "entry units"),
    ("manifest", "entry units"),
    ("backend", "entry wire tasks telemetry units"),
    ("store", "entry tasks telemetry units"),
    ("cache", "store backend manifest entry wire tasks telemetry units"),
    ("worker", "cache store backend manifest entry tasks telemetry units"),
    ("frontend", "cache entry wire tasks telemetry units store"),
    ("admin", "worker cache tasks telemetry units"),
    ("client", "wire units"),
    ("gocacheprog", "client store gocache git entry wire tasks units"),
    ("config", "frontend admin worker cache store backend git entry telemetry units"),
    ("daemon", "config admin frontend worker cache store backend entry wire tasks telemetry units"),
    ("cli", "daemon config client gocacheprog gocache git store entry wire tasks telemetry units"),
    ("main", "cli"),
    ("fuzzing", "config gocacheprog frontend manifest store entry wire"),
];

/// Longest file and function that pass without a question.
const FILE_MAX: usize = 400;
const FUNCTION_MAX: usize = 75;

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                out.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    let mut out = Vec::new();
    walk(&root().join("src"), &mut out);
    out.sort();
    out
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn room(path: &Path) -> String {
    let name = path.components().nth(1).unwrap().as_os_str().to_string_lossy();
    name.trim_end_matches(".rs").to_owned()
}

/// The part of a file that is not its unit tests. Only tests that stand in the file end it: a
/// `#[cfg(test)] mod tests;` among the modules at its top once hid all that followed from every rule.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap()
}

#[test]
fn arrows_follow_the_data_and_never_turn_back() {
    let allowed: BTreeMap<&str, Vec<&str>> =
        ARROWS.iter().map(|(room, to)| (*room, to.split_whitespace().collect())).collect();
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let from = room(&path);
        if from == "lib" || is_of_tests(&path) {
            continue;
        }
        let to = allowed.get(from.as_str()).unwrap_or_else(|| panic!("no line for {from}"));
        let used = code(&text).split("crate::").skip(1).flat_map(first_names);
        for used in used {
            // `pub(in crate::…)` and prose like `crate::…` name nothing.
            if !used.is_empty() && used != from && !to.contains(&used.as_str()) {
                wrong.push(format!("{}: {from} -> {used}", path.display()));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "arrows that turn back:\n{}", wrong.join("\n"));
}

fn is_of_tests(path: &Path) -> bool {
    path.ends_with("tests.rs") || path.components().any(|c| c.as_os_str() == "tests")
}

/// The first name after `crate::`, or the first ones of `crate::{…}`.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect()
    };
    match rest.strip_prefix('{') {
        Some(group) => group.split('}').next().unwrap().split(',').map(name).collect(),
        None => vec![name(rest)],
    }
}

#[test]
fn no_two_rooms_use_each_other() {
    for (a, to) in ARROWS {
        for b in to.split_whitespace() {
            let back = ARROWS.iter().find(|(room, _)| *room == b).unwrap().1;
            assert!(!back.split_whitespace().any(|r| r == *a), "{a} <-> {b}");
        }
    }
}

/// What `tests/races` explores. A lock of std's there is one that no interleaving is tried at, and that
/// stops the exploration when it is held.
#[test]
fn what_is_explored_takes_its_locks_from_the_seam() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let is_explored = room(&path) == "store" && !is_of_tests(&path)
            || ["cache/flight.rs", "uploader/uploads.rs"].iter().any(|p| path.ends_with(p));
        let is_lock = |line: &str| {
            let word = |name: &str| line.split(|c: char| !c.is_alphanumeric()).any(|w| w == name);
            line.starts_with("use std::sync::")
                && ["Mutex", "RwLock", "Condvar"].into_iter().any(word)
                || line.starts_with("use tokio::sync::")
                || line.contains("std::thread::")
        };
        let lines = code(&text).lines().filter(|line| is_explored && is_lock(line));
        wrong.extend(lines.map(|line| format!("{}: {line}", path.display())));
    }
    assert!(wrong.is_empty(), "locks that are not of tasks::sync:\n{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_lives_there_and_fits() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if !text.starts_with("//!") {
            wrong.push(format!("{} does not say what lives there", path.display()));
        }
        let lines = code(&text).lines().count();
        if lines > FILE_MAX {
            wrong.push(format!("{} has {lines} lines", path.display()));
        }
        for (name, len) in functions(code(&text)) {
            if len > FUNCTION_MAX {
                wrong.push(format!("{}: {name} has {len} lines", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Names and lengths of functions, by indentation.
/// What belongs to the process and not to a daemon in it: names of files, the memory that all bodies take,
/// tools that a thread keeps, what a command has printed.
const OF_THE_PROCESS: &[&str] = &[
    "COMPRESSOR",
    "DECOMPRESSOR",
    "HELD",
    "IS_LOST",
    "NEXT_NAME",
    "OWN_NUMBER",
    "PIECES",
    "PLACES",
    "RECEIVED",
    "STREAMS",
];

/// Turns at unpacking were the process's once: simulations beside each other waited for one another's, and
/// one seed gave two traces.
#[test]
fn what_changes_belongs_to_a_daemon() {
    let mut wrong = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| !is_of_tests(path)) {
        for line in code(text).lines() {
            let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub"));
            let (Some("static"), Some(name), Some(kind)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let name = name.trim_end_matches(':');
            let is_table = kind.starts_with('[');
            if !is_table && !OF_THE_PROCESS.contains(&name) {
                wrong.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
}

fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let head = body.trim_start_matches("pub(super) ").trim_start_matches("pub(crate) ");
        let head = head.trim_start_matches("pub ").trim_start_matches("const ");
        let head = head.trim_start_matches("async ");
        let Some(rest) = head.strip_prefix("fn ") else { continue };
        let indent = line.len() - body.len();
        let end = format!("{}}}", " ".repeat(indent));
        if let Some(len) = lines[i..].iter().position(|l| *l == end) {
            let name: String =
                rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            out.push((name, len + 1));
        }
    }
    out
}

#[test]
fn the_readme_lists_every_metric_and_no_other() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for row in larder::telemetry::metrics::CATALOGUE {
        let line = format!("| `{}` | {} | {} | {} |", row.name, row.kind, row.labels, row.meaning);
        assert!(readme.contains(&line), "the README lacks:\n{line}");
    }
    let listed = readme.lines().filter(|l| l.starts_with("| `larder_")).count();
    assert_eq!(listed, larder::telemetry::metrics::CATALOGUE.len());
}

#[test]
fn the_readme_names_tests_that_exist() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let named = readme.split('`').filter_map(|word| word.split_once(".rs::"));
    let mut count = 0;
    for (file, test) in named {
        let text = fs::read_to_string(root().join(format!("{file}.rs"))).unwrap();
        assert!(text.contains(&format!("fn {test}(")), "{file}.rs has no {test}");
        count += 1;
    }
    assert!(count > 20, "promises without tests: {count} are named");
}

#[test]
fn tests_wait_for_states_and_not_for_moments() {
    for dir in ["tests", "src"] {
        for entry in walk_all(&root().join(dir)) {
            let text = fs::read_to_string(&entry).unwrap();
            let sleeps = ["thread", "time"].map(|module| format!("{module}::sleep("));
            let is_test = dir == "tests";
            if is_test && sleeps.iter().any(|s| text.contains(s)) {
                panic!("{} sleeps", entry.display());
            }
            assert!(
                !text.contains(&format!("#[{}", "ignore")),
                "{} ignores a test",
                entry.display()
            );
        }
    }
}

fn walk_all(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            out.extend(walk_all(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    out
}

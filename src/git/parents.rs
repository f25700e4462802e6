//! The parents that a commit names, as the git program reads them from the raw object.
//!
//! The object may be loose, packed or a delta, in a shallow clone or behind alternates: git knows.
//! It is asked in a process of its own that gets little time and little environment, reaches no
//! network, and is killed with all it has started. Whatever goes wrong, no parents are known.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};

use super::{Checkout, object_id};
use crate::units::Clock;

/// What git gets to answer when nothing else is said; it takes a hundredth of that.
pub const PATIENCE: Duration = Duration::from_millis(200);
/// How much of an object is read: parents stand at its beginning.
const OBJECT_MAX: usize = 64 << 10;
const PARENTS_MAX: usize = 8;

/// What git finds itself, its libraries and its owner's settings by. Nothing that leads it to
/// another repository, and no secret of ours.
const PASSED: [&str; 9] = [
    "PATH",
    "HOME",
    "XDG_CONFIG_HOME",
    // Whose checkouts root trusts under sudo.
    "SUDO_UID",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
    "LD_LIBRARY_PATH",
    "DEVELOPER_DIR",
];

const SET: [(&str, &str); 5] = [
    ("GIT_OPTIONAL_LOCKS", "0"),
    ("GIT_TERMINAL_PROMPT", "0"),
    // The commit as it was made.
    ("GIT_NO_REPLACE_OBJECTS", "1"),
    // A partial clone fetches what it lacks: newer ones heed the first, all heed the second.
    ("GIT_NO_LAZY_FETCH", "1"),
    ("GIT_ALLOW_PROTOCOL", "none"),
];

/// The part of the environment that git is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitEnv(Vec<(&'static str, OsString)>);

impl GitEnv {
    pub fn gather(variable: &dyn Fn(&str) -> Option<OsString>) -> Self {
        Self(PASSED.iter().filter_map(|name| Some((*name, variable(name)?))).collect())
    }

    /// The git program. Directories relative to where we are do not count: a repository could hold
    /// a `git` of its own.
    fn program(&self) -> Option<PathBuf> {
        let (_, path) = self.0.iter().find(|(name, _)| *name == "PATH")?;
        let absolute = std::env::split_paths(path).filter(|dir| dir.is_absolute());
        absolute.map(|dir| dir.join("git")).find(|file| {
            file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
    }
}

/// The commits that `commit`, which the checkout around `dir` holds, was made from; the first is
/// the one that others were merged into. Takes a process, which has `patience` to answer.
pub fn parents(dir: &Path, commit: &str, env: &GitEnv, patience: Duration) -> Vec<String> {
    ask(dir, commit, env, patience).unwrap_or_default()
}

pub(super) fn ask(
    dir: &Path,
    commit: &str,
    env: &GitEnv,
    patience: Duration,
) -> Option<Vec<String>> {
    let clock = Clock::system();
    let commit = object_id(commit)?;
    let checkout = Checkout::find(dir)?;
    let mut git = Command::new(env.program()?);
    git.arg("-C").arg(checkout.root()).args(["cat-file", "commit", &commit]);
    git.env_clear().envs(env.0.iter().map(|(name, value)| (name, value))).envs(SET);
    git.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // Of its own, so that it can be ended with all that it started.
    let mut child = git.process_group(0).spawn().ok()?;
    let object = child.stdout.take().and_then(|pipe| head(pipe, &clock, patience));
    end(&mut child);
    Some(parse(&object?))
}

/// The object's beginning, parents included; None if it is not here in time.
fn head(mut pipe: ChildStdout, clock: &Clock, patience: Duration) -> Option<Vec<u8>> {
    let mut object = Vec::new();
    let mut piece = [0; 4096];
    // The author comes after the parents, in every commit.
    while object.len() < OBJECT_MAX && !holds(&object, b"\nauthor ") {
        let left = patience.checked_sub(clock.elapsed()).filter(|left| !left.is_zero())?;
        let left = Timespec::try_from(left).ok()?;
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&left)) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
        }
        match pipe.read(&mut piece).ok()? {
            0 => break,
            len => object.extend_from_slice(&piece[..len]),
        }
    }
    Some(object)
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn end(child: &mut Child) {
    // Not waited for yet, so that the number is still its own. One that has ended cannot be killed.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
}

/// The parents in a raw commit. A line without an end was cut off and says nothing.
fn parse(object: &[u8]) -> Vec<String> {
    let lines = object.split_inclusive(|byte| *byte == b'\n');
    let text = |line| std::str::from_utf8(line).ok();
    let mut lines = lines.filter_map(text).filter_map(|line| line.strip_suffix('\n'));
    if !lines.next().is_some_and(|first| first.starts_with("tree ")) {
        return Vec::new();
    }
    lines.map_while(|line| object_id(line.strip_prefix("parent ")?)).take(PARENTS_MAX).collect()
}

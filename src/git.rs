//! What a directory's repository and the CI system say of a build: which repository, which commit,
//! which branch.
//!
//! Reads a few small files under `.git` and never fails: what cannot be read is not known. Only
//! `parents` runs a process, as objects are not read here. These answers predict and label; nothing
//! is granted because of them, so that a repository may say what it likes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};

mod ci;
mod parents;

pub use ci::{Ci, ci};
pub use parents::{GitEnv, PATIENCE, parents};

/// Longest file that is read whole; those of git's own making are far shorter.
const FILE_MAX: u64 = 1 << 20;
/// How much of `packed-refs` is looked through.
const PACKED_MAX: u64 = 64 << 20;
/// Where the branches of the remote called origin are.
const ORIGIN: &str = "refs/remotes/origin/";
/// Symbolic references that lead to each other.
const HOPS_MAX: usize = 5;
/// Longest name that is made of what a repository or a CI system says.
const NAME_MAX: usize = 256;

/// What a build is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Repository, and job where a CI system names one. Empty: not known.
    pub scope: String,
    /// In hexadecimal. Empty: not known. What it was made from takes longer to know: `parents`.
    pub commit: String,
    /// Empty: not known, or none.
    pub branch: String,
    /// What the branch goes into some day, which may be itself. Empty: not known.
    pub default_branch: String,
}

/// What is built in `dir`, where `variable` reads the environment.
pub fn identify(dir: &Path, variable: &dyn Fn(&str) -> Option<String>) -> Identity {
    let ci = ci(variable);
    let checkout = Checkout::find(dir);
    let checkout = checkout.as_ref();
    let repository = ci.repository.or_else(|| checkout.and_then(Checkout::scope));
    let scope = ci::joined(repository, ':', ci.job).and_then(|scope| name(&scope));
    // What is checked out is what is built; a job may have gone elsewhere after its first checkout.
    let commit = checkout.and_then(Checkout::commit);
    // Whoever has checked out another commit builds none of the branch that was pushed, but may build the
    // change that was asked about.
    let is_other = commit.is_some() && ci.commit.is_some() && commit != ci.commit;
    let said = ci.branch.filter(|_| ci.is_change || ci.is_forks || !is_other);
    let commit = commit.or(ci.commit);
    let checked_out = checkout.and_then(Checkout::branch).filter(|_| !ci.is_forks);
    let branch = checked_out.or(said);
    // Where a change goes is known to who builds it; the repository knows where most go.
    let default_branch = ci.default_branch.or_else(|| checkout.and_then(Checkout::default_branch));
    Identity {
        scope: scope.unwrap_or_default(),
        commit: commit.unwrap_or_default(),
        branch: branch.unwrap_or_default(),
        default_branch: default_branch.unwrap_or_default(),
    }
}

/// A working tree and the places of its repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkout {
    root: PathBuf,
    /// Of this working tree: HEAD.
    git: PathBuf,
    /// Shared by all working trees: references, configuration.
    common: PathBuf,
}

impl Checkout {
    /// The working tree that `dir` is in.
    pub fn find(dir: &Path) -> Option<Self> {
        let dir = std::path::absolute(dir).ok()?;
        dir.ancestors().find_map(Self::at)
    }

    fn at(root: &Path) -> Option<Self> {
        let dot = root.join(".git");
        let git = if dot.is_dir() {
            dot
        } else {
            // A worktree's or a submodule's: the file names the directory.
            let text = read(&dot)?;
            root.join(text.trim().strip_prefix("gitdir:")?.trim())
        };
        // Whatever is called `.git` but has no HEAD is none; git goes on upwards as well.
        if !git.join("HEAD").is_file() {
            return None;
        }
        let common = match read(&git.join("commondir")) {
            Some(text) => git.join(text.trim()),
            None => git.clone(),
        };
        Some(Self { root: root.to_owned(), git, common })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The commit that is checked out.
    pub fn commit(&self) -> Option<String> {
        let mut text = read(&self.git.join("HEAD"))?;
        for _ in 0..HOPS_MAX {
            let Some(name) = text.strip_prefix("ref:") else { return object_id(&text) };
            let name = name.trim().to_owned();
            match self.reference(&name) {
                Some(next) => text = next,
                None => return self.packed(&name),
            }
        }
        None
    }

    /// The branch that is checked out; None on a detached HEAD.
    pub fn branch(&self) -> Option<String> {
        branch_of(&read(&self.git.join("HEAD"))?, "refs/heads/")
    }

    /// The branch that the remote called origin builds on, as of the clone; else the one of the
    /// usual names that it has.
    pub fn default_branch(&self) -> Option<String> {
        let head = self.reference("refs/remotes/origin/HEAD");
        head.and_then(|head| branch_of(&head, ORIGIN)).or_else(|| {
            let usual = ["main", "master"].into_iter();
            let known = |branch: &&str| self.holds(&format!("{ORIGIN}{branch}"));
            usual.filter(known).map(str::to_owned).next()
        })
    }

    /// Where origin is, or the first remote if none is called so. Without credentials.
    pub fn remote_url(&self) -> Option<String> {
        let config = read(&self.common.join("config"))?;
        remote_of(&config).map(|url| without_credentials(&url))
    }

    /// `host/path` of the remote, else the name of the directory.
    pub fn scope(&self) -> Option<String> {
        let from_remote = self.remote_url().and_then(|url| scope_of_url(&url));
        from_remote.or_else(|| name(self.root.file_name()?.to_str()?))
    }

    /// What a loose reference holds.
    fn reference(&self, reference: &str) -> Option<String> {
        let path = Path::new(reference);
        // A HEAD that names `../../secret` would have us read anything.
        let is_inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !is_inside || !reference.starts_with("refs/") {
            return None;
        }
        read(&self.git.join(path)).or_else(|| read(&self.common.join(path)))
    }

    fn holds(&self, reference: &str) -> bool {
        self.reference(reference).or_else(|| self.packed(reference)).is_some()
    }

    fn packed(&self, reference: &str) -> Option<String> {
        let file = File::open(self.common.join("packed-refs")).ok()?;
        let mut lines = BufReader::new(file.take(PACKED_MAX));
        let mut line = Vec::new();
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line).ok()? == 0 {
                return None;
            }
            let Ok(text) = std::str::from_utf8(&line) else { continue };
            if let Some((id, name)) = text.trim_end().split_once(' ')
                && name == reference
            {
                return object_id(id);
            }
        }
    }
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    let mut file = File::open(path).ok()?.take(FILE_MAX);
    file.read_to_string(&mut text).ok()?;
    Some(text)
}

/// A whole object id, SHA-1 or SHA-256.
pub fn object_id(text: &str) -> Option<String> {
    let id = text.trim();
    let is_id = matches!(id.len(), 40 | 64) && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| id.to_ascii_lowercase())
}

fn branch_of(text: &str, prefix: &str) -> Option<String> {
    let reference = text.strip_prefix("ref:")?.trim_matches(|c: char| c.is_ascii_whitespace());
    branch_name(reference.strip_prefix(prefix)?)
}

/// Of a branch, or a reference to one.
fn branch_said(text: &str) -> Option<String> {
    branch_name(text.strip_prefix("refs/heads/").unwrap_or(text))
}

/// None where it is not as it is said: a name that looks like another one's would be taken for it. No branch
/// begins with a dot; where HEAD says so (`.invalid`), references are kept elsewhere.
fn branch_name(text: &str) -> Option<String> {
    name(text).filter(|name| name == text && !name.starts_with('.'))
}

/// A name that fits on a line and into a log.
fn name(text: &str) -> Option<String> {
    let clean: String = text.trim().chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
    (!clean.is_empty()).then_some(clean)
}

/// The URL of origin in a repository's configuration, else the first one. Files that it includes
/// are not followed.
fn remote_of(config: &str) -> Option<String> {
    let mut section = String::new();
    let mut first = None;
    for line in config.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line.split(']').next().unwrap_or_default()[1..].to_owned();
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let is_remote = section.starts_with("remote \"") && key.trim().eq_ignore_ascii_case("url");
        if !is_remote {
            continue;
        }
        let url = value.trim().trim_matches('"').to_owned();
        if section == "remote \"origin\"" {
            return Some(url);
        }
        first = first.or(Some(url));
    }
    first
}

/// A URL less its user, password, query and fragment.
fn without_credentials(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        None => url.to_owned(),
        Some((scheme, rest)) => {
            let (authority, path) = match rest.find('/') {
                Some(at) => rest.split_at(at),
                None => (rest, ""),
            };
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
    }
}

/// `host/path`, the same however a repository is reached.
fn scope_of_url(url: &str) -> Option<String> {
    let url = without_credentials(url);
    let (host, path) = match url.split_once("://") {
        Some(("file", path)) => ("", path),
        Some((_, rest)) => rest.split_once('/')?,
        // `git@host:path`; a colon after a slash is part of a local path.
        None => match url.split_once(':') {
            Some((host, path)) if !host.contains('/') => (host, path),
            _ => ("", url.as_str()),
        },
    };
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path).trim_end_matches('/');
    let host = host.rsplit('@').next().unwrap_or_default();
    // Ports differ between the ways to reach one host.
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host).to_ascii_lowercase();
    if path.is_empty() {
        return None;
    }
    if host.is_empty() {
        return name(path.rsplit('/').next()?);
    }
    name(&format!("{host}/{path}"))
}

#[cfg(test)]
pub(crate) mod tests;

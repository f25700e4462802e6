//! What CI systems say of the build in the environment. One table; the environment is passed in. One file
//! is read, where a system says only there whose branch it builds.

use std::path::Path;

use super::{branch_said, name, object_id, read, scope_of_url};

/// What a CI system says. None where it says nothing, or is none that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ci {
    pub repository: Option<String>,
    /// The same from commit to commit and from branch to branch; another one for each part of a
    /// job that is run in parallel.
    pub job: Option<String>,
    pub commit: Option<String>,
    /// That of the change, where a pull request is built.
    pub branch: Option<String>,
    /// It is a change's, and not one that was pushed to.
    pub is_change: bool,
    /// The change is a fork's: whatever is checked out, its branches are none of ours.
    pub is_forks: bool,
    /// The branch that the change is to go into, else the one that the repository builds on.
    pub default_branch: Option<String>,
}

type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One CI system: the variable that tells it, and how to read the rest.
struct System {
    mark: &'static str,
    repository: fn(Variable<'_>) -> Option<String>,
    job: fn(Variable<'_>) -> Option<String>,
    /// Which of the parallel parts of a job it is, and of how many.
    part: Option<[&'static str; 2]>,
    commit: &'static str,
    branch: fn(Variable<'_>) -> Option<String>,
    is_forks: fn(Variable<'_>) -> bool,
    /// Set where a change is built; `false` is not.
    change: &'static str,
    /// The first that is set counts.
    default_branch: &'static [&'static str],
}

const SYSTEMS: [System; 5] = [
    System {
        mark: "GITHUB_REPOSITORY",
        repository: |variable| hosted(variable, "GITHUB_SERVER_URL", "GITHUB_REPOSITORY"),
        // Jobs of two workflows may have one name. What leg of a matrix it is, is not said.
        job: |variable| joined(variable("GITHUB_WORKFLOW"), '/', variable("GITHUB_JOB")),
        part: None,
        commit: "GITHUB_SHA",
        branch: |variable| {
            // A fork's branches may be called as ours: its change is `12/merge`, unless the reference says
            // where else the build was begun.
            let reference = variable("GITHUB_REF").unwrap_or_default();
            let change = reference.strip_prefix("refs/pull/").map(str::to_owned);
            if is_github_fork(variable) {
                return change;
            }
            let is_tag = variable("GITHUB_REF_TYPE").is_some_and(|kind| kind == "tag");
            let is_pushed = !is_tag && !is_elsewhere(variable);
            let pushed = || variable("GITHUB_REF_NAME").filter(|_| is_pushed);
            variable("GITHUB_HEAD_REF").or(change).or_else(pushed)
        },
        is_forks: is_github_fork,
        change: "GITHUB_HEAD_REF",
        default_branch: &["GITHUB_BASE_REF"],
    },
    System {
        mark: "CI_PROJECT_PATH",
        // A merge request from a fork may be built by the fork's own runners: it is of the project that
        // it goes into.
        repository: |variable| {
            let target = hosted(variable, "CI_SERVER_URL", "CI_MERGE_REQUEST_PROJECT_PATH");
            target.or_else(|| hosted(variable, "CI_SERVER_URL", "CI_PROJECT_PATH"))
        },
        job: |variable| variable("CI_JOB_NAME"),
        part: Some(["CI_NODE_INDEX", "CI_NODE_TOTAL"]),
        commit: "CI_COMMIT_SHA",
        branch: |variable| {
            let change = if is_gitlab_fork(variable) {
                // `refs/merge-requests/12/head`: a fork's branches may be called as ours.
                variable("CI_MERGE_REQUEST_REF_PATH")
            } else {
                variable("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME")
            };
            change.or_else(|| variable("CI_COMMIT_BRANCH"))
        },
        is_forks: is_gitlab_fork,
        change: "CI_MERGE_REQUEST_IID",
        default_branch: &["CI_MERGE_REQUEST_TARGET_BRANCH_NAME", "CI_DEFAULT_BRANCH"],
    },
    System {
        mark: "BUILDKITE",
        repository: |variable| {
            let from_url = variable("BUILDKITE_REPO").and_then(|url| scope_of_url(&url));
            from_url.or_else(|| variable("BUILDKITE_PIPELINE_SLUG"))
        },
        job: |variable| variable("BUILDKITE_STEP_KEY").or_else(|| variable("BUILDKITE_LABEL")),
        part: Some(["BUILDKITE_PARALLEL_JOB", "BUILDKITE_PARALLEL_JOB_COUNT"]),
        commit: "BUILDKITE_COMMIT",
        branch: buildkite_branch,
        is_forks: is_buildkite_fork,
        change: "BUILDKITE_PULL_REQUEST",
        default_branch: &[
            "BUILDKITE_PULL_REQUEST_BASE_BRANCH",
            "BUILDKITE_PIPELINE_DEFAULT_BRANCH",
        ],
    },
    System {
        mark: "CIRCLECI",
        repository: |variable| {
            let from_url = variable("CIRCLE_REPOSITORY_URL").and_then(|url| scope_of_url(&url));
            from_url.or_else(|| variable("CIRCLE_PROJECT_REPONAME"))
        },
        job: |variable| variable("CIRCLE_JOB"),
        part: Some(["CIRCLE_NODE_INDEX", "CIRCLE_NODE_TOTAL"]),
        commit: "CIRCLE_SHA1",
        branch: |variable| variable("CIRCLE_BRANCH"),
        // Its branch is `pull/12`.
        is_forks: |variable| variable("CIRCLE_PR_USERNAME").is_some(),
        change: "CIRCLE_PULL_REQUEST",
        default_branch: &[],
    },
    System {
        mark: "JENKINS_URL",
        repository: |variable| variable("GIT_URL").and_then(|url| scope_of_url(&url)),
        job: |variable| joined(jenkins_job(variable), '/', variable("STAGE_NAME")),
        part: None,
        commit: "GIT_COMMIT",
        branch: jenkins_branch,
        is_forks: |variable| variable("CHANGE_FORK").is_some(),
        change: "CHANGE_BRANCH",
        default_branch: &["CHANGE_TARGET"],
    },
];

/// Reads the environment that `variable` gives; empty variables count as unset.
pub fn ci(variable: Variable<'_>) -> Ci {
    let get = |wanted: &str| variable(wanted).filter(|value| !value.is_empty());
    let Some(system) = SYSTEMS.iter().find(|system| get(system.mark).is_some()) else {
        return Ci::default();
    };
    let default_branch = system.default_branch.iter().find_map(|name| get(name));
    Ci {
        repository: (system.repository)(&get).and_then(|repository| name(&repository)),
        job: part_of_job(system, &get).and_then(|job| name(&job)),
        // Buildkite says `HEAD` where it does not know yet.
        commit: get(system.commit).and_then(|commit| object_id(&commit)),
        branch: (system.branch)(&get).and_then(|branch| branch_said(&branch)),
        is_forks: (system.is_forks)(&get),
        is_change: get(system.change).is_some_and(|change| change != "false"),
        default_branch: default_branch.and_then(|branch| branch_said(&branch)),
    }
}

/// Whether a merge request comes from another project than the one that it goes into.
fn is_gitlab_fork(variable: Variable<'_>) -> bool {
    let source = variable("CI_MERGE_REQUEST_SOURCE_PROJECT_PATH");
    source.is_some() && source != variable("CI_MERGE_REQUEST_PROJECT_PATH")
}

/// Whether what is built may be of another repository: a pull request, or what an event asks for that is not of
/// the reference that it names. Only the event that began the build says so; what cannot be read may be a fork's.
fn is_github_fork(variable: Variable<'_>) -> bool {
    /// What is named of each kind of event.
    #[derive(serde::Deserialize)]
    struct Event {
        pull_request: Option<Change>,
        workflow_run: Option<Run>,
    }
    #[derive(serde::Deserialize)]
    struct Change {
        head: Side,
    }
    #[derive(serde::Deserialize)]
    struct Side {
        /// None: the fork is no more.
        repo: Option<Repository>,
    }
    #[derive(serde::Deserialize)]
    struct Run {
        head_repository: Option<Repository>,
    }
    #[derive(serde::Deserialize)]
    struct Repository {
        full_name: String,
    }
    if variable("GITHUB_HEAD_REF").is_none() && !is_elsewhere(variable) {
        return false;
    }
    let text = variable("GITHUB_EVENT_PATH").and_then(|path| read(Path::new(&path)));
    let event = text.and_then(|text| serde_json::from_str::<Event>(&text).ok());
    let from = event.and_then(|event| match (event.pull_request, event.workflow_run) {
        (Some(change), _) => change.head.repo,
        (None, run) => run?.head_repository,
    });
    from.is_none_or(|from| Some(from.full_name) != variable("GITHUB_REPOSITORY"))
}

/// Events that build what their reference names. Others say the default branch, and jobs build what they like.
const OF_THEIR_REFERENCE: [&str; 7] =
    ["push", "merge_group", "create", "release", "schedule", "workflow_dispatch", "deployment"];

fn is_elsewhere(variable: Variable<'_>) -> bool {
    variable("GITHUB_EVENT_NAME").is_some_and(|event| !OF_THEIR_REFERENCE.contains(&&*event))
}

/// Whether a pull request is built whose branch is of another repository, however its address is written. Ours
/// may be a mirror's, with a path that ends in the original's; anything else may be anybody's.
fn is_buildkite_fork(variable: Variable<'_>) -> bool {
    let path = |name| {
        let scope = variable(name).and_then(|url| scope_of_url(&url))?.to_ascii_lowercase();
        Some(scope.split_once('/').map_or(scope.clone(), |(_, path)| path.to_owned()))
    };
    let ends = |long: &str, short: &str| format!("/{long}").ends_with(&format!("/{short}"));
    // `owner:branch` is a fork's, and no branch of git's is called so.
    variable("BUILDKITE_BRANCH").is_some_and(|branch| branch.contains(':'))
        || path("BUILDKITE_PULL_REQUEST_REPO").is_some_and(|from| {
            let is_mirrored = |ours: &str| from.contains('/') && ends(ours, &from);
            path("BUILDKITE_REPO").is_none_or(|ours| ours != from && !is_mirrored(&ours))
        })
}

fn buildkite_branch(variable: Variable<'_>) -> Option<String> {
    // A tag is called a branch too.
    let branch = variable("BUILDKITE_BRANCH")
        .filter(|name| variable("BUILDKITE_TAG").as_ref() != Some(name))?;
    if branch.contains(':') || !is_buildkite_fork(variable) {
        return Some(branch);
    }
    // The pipeline was told not to name the owner, so that it may be called as one of ours.
    let number = variable("BUILDKITE_PULL_REQUEST")?.parse::<u64>().ok()?;
    Some(format!("pull/{number}"))
}

/// Both with `between` between them, or the only one.
pub(super) fn joined(a: Option<String>, between: char, b: Option<String>) -> Option<String> {
    match (a, b) {
        (Some(a), Some(b)) => Some(format!("{a}{between}{b}")),
        (only, None) | (None, only) => only,
    }
}

/// The job, with the number of its part where it has several.
fn part_of_job(system: &System, variable: Variable<'_>) -> Option<String> {
    let job = (system.job)(variable);
    let Some([index, total]) = system.part.map(|names| names.map(variable)) else { return job };
    let (Some(index), Some(total)) = (index, total) else { return job };
    // GitLab's job names end like this already.
    let is_named = job.as_ref().is_some_and(|job| job.ends_with(&format!("{index}/{total}")));
    let is_part = total != "1" && !is_named;
    joined(job, '#', is_part.then_some(index))
}

/// The job's name; that of a multibranch one less the branch, which is its last part.
fn jenkins_job(variable: Variable<'_>) -> Option<String> {
    let job = variable("JOB_NAME")?;
    let whole = match (job.rsplit_once('/'), variable("BRANCH_NAME")) {
        (Some((whole, last)), Some(branch)) if is_encoded(last, &branch) => whole.to_owned(),
        _ => return Some(job),
    };
    Some(whole)
}

/// Whether `text` is `plain` with some of its bytes written as `%2F`.
fn is_encoded(text: &str, plain: &str) -> bool {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = hex.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|_| *first == b'%') {
            Some(byte) => {
                decoded.push(byte);
                rest = &after[2..];
            }
            None => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    decoded == plain.as_bytes()
}

fn jenkins_branch(variable: Variable<'_>) -> Option<String> {
    // A fork's branches may be called as ours: its change is `PR-12`.
    let is_forks = variable("CHANGE_FORK").is_some();
    if let Some(change) = variable("CHANGE_BRANCH").filter(|_| !is_forks) {
        return Some(change);
    }
    if variable("TAG_NAME").is_some() {
        return None;
    }
    let checked_out = || {
        let name = variable("GIT_BRANCH")?;
        Some(name.strip_prefix("origin/").unwrap_or(&name).to_owned())
    };
    variable("BRANCH_NAME").or_else(checked_out)
}

/// `host/path` from the variables that hold a server's URL and a path on it.
fn hosted(variable: Variable<'_>, server: &str, path: &str) -> Option<String> {
    let path = variable(path)?;
    let from_url = variable(server).and_then(|server| scope_of_url(&format!("{server}/{path}")));
    Some(from_url.unwrap_or(path))
}

//! What CI systems say of the build in the environment. One table; the environment is passed in.

use super::{name, object_id, scope_of_url};

/// What a CI system says. None where it says nothing, or is none that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ci {
    /// `repository:job`.
    pub scope: Option<String>,
    pub commit: Option<String>,
}

type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One CI system: the variable that tells it, and how to read the rest.
struct System {
    mark: &'static str,
    repository: fn(Variable<'_>) -> Option<String>,
    job: &'static [&'static str],
    commit: &'static str,
}

const SYSTEMS: [System; 5] = [
    System {
        mark: "GITHUB_REPOSITORY",
        repository: |variable| hosted(variable, "GITHUB_SERVER_URL", "GITHUB_REPOSITORY"),
        job: &["GITHUB_JOB"],
        commit: "GITHUB_SHA",
    },
    System {
        mark: "CI_PROJECT_PATH",
        repository: |variable| hosted(variable, "CI_SERVER_URL", "CI_PROJECT_PATH"),
        job: &["CI_JOB_NAME"],
        commit: "CI_COMMIT_SHA",
    },
    System {
        mark: "BUILDKITE",
        repository: |variable| {
            let from_url = variable("BUILDKITE_REPO").and_then(|url| scope_of_url(&url));
            from_url.or_else(|| variable("BUILDKITE_PIPELINE_SLUG"))
        },
        job: &["BUILDKITE_STEP_KEY", "BUILDKITE_LABEL"],
        commit: "BUILDKITE_COMMIT",
    },
    System {
        mark: "CIRCLECI",
        repository: |variable| {
            let from_url = variable("CIRCLE_REPOSITORY_URL").and_then(|url| scope_of_url(&url));
            from_url.or_else(|| variable("CIRCLE_PROJECT_REPONAME"))
        },
        job: &["CIRCLE_JOB"],
        commit: "CIRCLE_SHA1",
    },
    System {
        mark: "JENKINS_URL",
        repository: |variable| variable("GIT_URL").and_then(|url| scope_of_url(&url)),
        job: &["JOB_NAME"],
        commit: "GIT_COMMIT",
    },
];

/// Reads the environment that `variable` gives; empty variables count as unset.
pub fn ci(variable: Variable<'_>) -> Ci {
    let get = |wanted: &str| variable(wanted).filter(|value| !value.is_empty());
    let Some(system) = SYSTEMS.iter().find(|system| get(system.mark).is_some()) else {
        return Ci::default();
    };
    let job = system.job.iter().find_map(|job| get(job));
    let scope = match ((system.repository)(&get), job) {
        (Some(repository), Some(job)) => name(&format!("{repository}:{job}")),
        (Some(only), None) | (None, Some(only)) => name(&only),
        (None, None) => None,
    };
    // Buildkite says `HEAD` where it does not know yet.
    let commit = get(system.commit).and_then(|commit| object_id(&commit));
    Ci { scope, commit }
}

/// `host/path` from the variables that hold a server's URL and a path on it.
fn hosted(variable: Variable<'_>, server: &str, path: &str) -> Option<String> {
    let path = variable(path)?;
    let from_url = variable(server).and_then(|server| scope_of_url(&format!("{server}/{path}")));
    Some(from_url.unwrap_or(path))
}

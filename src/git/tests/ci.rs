//! What CI systems set, as tables of the real variables.

use super::super::ci;
use super::variables;

const ID: &str = "0123456789abcdef0123456789abcdef01234567";

/// A build as a CI system describes it, and what is to be read from that.
struct Case {
    name: &'static str,
    set: &'static [(&'static str, &'static str)],
    repository: &'static str,
    job: &'static str,
    commit: &'static str,
    branch: &'static str,
    default_branch: &'static str,
}

const NOTHING: Case = Case {
    name: "nothing",
    set: &[],
    repository: "",
    job: "",
    commit: "",
    branch: "",
    default_branch: "",
};

#[track_caller]
fn check(cases: &[Case]) {
    for case in cases {
        let found = ci(&variables(case.set));
        let found = [found.repository, found.job, found.commit, found.branch, found.default_branch];
        let expected = [case.repository, case.job, case.commit, case.branch, case.default_branch];
        assert_eq!(found.map(Option::unwrap_or_default), expected, "{}", case.name);
    }
}

#[test]
fn github() {
    check(&[
        Case {
            name: "push to a branch",
            set: &[
                ("GITHUB_REPOSITORY", "team/app"),
                ("GITHUB_SERVER_URL", "https://github.com"),
                ("GITHUB_WORKFLOW", "CI"),
                ("GITHUB_JOB", "test"),
                ("GITHUB_SHA", ID),
                ("GITHUB_REF", "refs/heads/feature/x"),
                ("GITHUB_REF_NAME", "feature/x"),
                ("GITHUB_REF_TYPE", "branch"),
                ("GITHUB_HEAD_REF", ""),
                ("GITHUB_BASE_REF", ""),
            ],
            repository: "github.com/team/app",
            job: "CI/test",
            commit: ID,
            branch: "feature/x",
            default_branch: "",
        },
        Case {
            name: "pull request whose event cannot be read",
            set: &[
                ("GITHUB_EVENT_PATH", "/nowhere/event.json"),
                ("GITHUB_REPOSITORY", "team/app"),
                ("GITHUB_SERVER_URL", "https://github.com"),
                ("GITHUB_WORKFLOW", ".github/workflows/ci.yml"),
                ("GITHUB_JOB", "test"),
                ("GITHUB_SHA", ID),
                ("GITHUB_REF", "refs/pull/12/merge"),
                ("GITHUB_REF_NAME", "12/merge"),
                ("GITHUB_REF_TYPE", "branch"),
                ("GITHUB_HEAD_REF", "feature/x"),
                ("GITHUB_BASE_REF", "release"),
            ],
            repository: "github.com/team/app",
            job: ".github/workflows/ci.yml/test",
            commit: ID,
            branch: "12/merge",
            default_branch: "release",
        },
    ]);
}

#[test]
fn github_without_a_branch() {
    check(&[
        Case {
            name: "after another workflow, which may have been a fork's",
            set: &[
                ("GITHUB_REPOSITORY", "team/app"),
                ("GITHUB_EVENT_NAME", "workflow_run"),
                ("GITHUB_REF_NAME", "main"),
                ("GITHUB_REF_TYPE", "branch"),
            ],
            repository: "team/app",
            ..NOTHING
        },
        Case {
            name: "tag",
            set: &[
                ("GITHUB_REPOSITORY", "team/app"),
                ("GITHUB_JOB", ""),
                ("GITHUB_REF_NAME", "v1.2"),
                ("GITHUB_REF_TYPE", "tag"),
            ],
            repository: "team/app",
            ..NOTHING
        },
    ]);
}

/// A fork's pull request from its `main` into `release` once counted as a build of our `main`.
#[test]
fn a_forks_branch_is_none_of_ours_whatever_it_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("event.json");
    let from = |repository: &str, reference: &str| {
        let head = format!(r#"{{"ref":"main","repo":{repository}}}"#);
        let event =
            format!(r#"{{"action":"opened","pull_request":{{"number":12,"head":{head}}}}}"#);
        std::fs::write(&file, event).unwrap();
        let set = [
            ("GITHUB_REPOSITORY", "team/app"),
            ("GITHUB_REF", reference),
            ("GITHUB_HEAD_REF", "main"),
            ("GITHUB_BASE_REF", "release"),
            ("GITHUB_EVENT_PATH", file.to_str().unwrap()),
        ];
        ci(&variables(&set)).branch
    };
    let stranger = r#"{"id":2,"full_name":"stranger/app","fork":true}"#;
    assert_eq!(
        from(r#"{"id":1,"full_name":"team/app"}"#, "refs/pull/12/merge").as_deref(),
        Some("main")
    );
    assert_eq!(from(stranger, "refs/pull/12/merge").as_deref(), Some("12/merge"));
    assert_eq!(from("null", "refs/pull/12/merge").as_deref(), Some("12/merge"));
    // What `pull_request_target` says: the default branch, the target before 2025-12.
    assert_eq!(from(stranger, "refs/heads/main"), None);
    assert_eq!(from(stranger, "refs/heads/release"), None);

    // Nor where it is checked out by its name.
    let checkout = dir.path().join("app");
    std::fs::create_dir_all(checkout.join(".git")).unwrap();
    std::fs::write(checkout.join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
    let set = [
        ("CI_PROJECT_PATH", "team/app"),
        ("CI_MERGE_REQUEST_PROJECT_PATH", "team/app"),
        ("CI_MERGE_REQUEST_SOURCE_PROJECT_PATH", "stranger/app"),
        ("CI_MERGE_REQUEST_REF_PATH", "refs/merge-requests/12/head"),
    ];
    let branch = |set| super::super::identify(&checkout, &variables(set)).branch;
    assert_eq!(branch(&set), "refs/merge-requests/12/head");
    assert_eq!(branch(&set[..1]), "main");
}

#[test]
fn gitlab() {
    check(&[
        Case {
            name: "branch",
            set: &[
                ("CI_PROJECT_PATH", "team/sub/app"),
                ("CI_SERVER_URL", "https://gitlab.example.com"),
                ("CI_JOB_NAME", "unit tests"),
                ("CI_NODE_TOTAL", "1"),
                ("CI_COMMIT_SHA", ID),
                ("CI_COMMIT_BRANCH", "feature/x"),
                ("CI_DEFAULT_BRANCH", "trunk"),
            ],
            repository: "gitlab.example.com/team/sub/app",
            job: "unit tests",
            commit: ID,
            branch: "feature/x",
            default_branch: "trunk",
        },
        Case {
            name: "merge request, in parallel",
            set: &[
                ("CI_PROJECT_PATH", "team/app"),
                ("CI_JOB_NAME", "unit tests 2/3"),
                ("CI_NODE_INDEX", "2"),
                ("CI_NODE_TOTAL", "3"),
                ("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", "feature/x"),
                ("CI_MERGE_REQUEST_TARGET_BRANCH_NAME", "release"),
                ("CI_DEFAULT_BRANCH", "trunk"),
            ],
            repository: "team/app",
            job: "unit tests 2/3",
            branch: "feature/x",
            default_branch: "release",
            ..NOTHING
        },
        Case {
            name: "merge request of a fork's main branch, by the fork's runner",
            set: &[
                ("CI_PROJECT_PATH", "somebody/app"),
                ("CI_SERVER_URL", "https://gitlab.example.com"),
                ("CI_JOB_NAME", "unit tests"),
                ("CI_MERGE_REQUEST_PROJECT_PATH", "team/app"),
                ("CI_MERGE_REQUEST_SOURCE_PROJECT_PATH", "somebody/app"),
                ("CI_MERGE_REQUEST_REF_PATH", "refs/merge-requests/12/head"),
                ("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", "main"),
                ("CI_MERGE_REQUEST_TARGET_BRANCH_NAME", "main"),
            ],
            repository: "gitlab.example.com/team/app",
            job: "unit tests",
            branch: "refs/merge-requests/12/head",
            default_branch: "main",
            ..NOTHING
        },
        Case {
            name: "matrix",
            set: &[
                ("CI_PROJECT_PATH", "team/app"),
                ("CI_JOB_NAME", "unit: [linux, arm64]"),
                ("CI_NODE_INDEX", "2"),
                ("CI_NODE_TOTAL", "4"),
                ("CI_COMMIT_TAG", "v1.2"),
                ("CI_COMMIT_REF_NAME", "v1.2"),
            ],
            repository: "team/app",
            job: "unit: [linux, arm64]#2",
            ..NOTHING
        },
    ]);
}

#[test]
fn buildkite() {
    check(&[
        Case {
            name: "branch that is not resolved yet",
            set: &[
                ("BUILDKITE", "true"),
                ("BUILDKITE_REPO", "git@github.com:team/app.git"),
                ("BUILDKITE_LABEL", "build"),
                ("BUILDKITE_COMMIT", "HEAD"),
                ("BUILDKITE_BRANCH", "feature/x"),
                ("BUILDKITE_PULL_REQUEST_BASE_BRANCH", ""),
                ("BUILDKITE_PIPELINE_DEFAULT_BRANCH", "trunk"),
                ("BUILDKITE_TAG", ""),
            ],
            repository: "github.com/team/app",
            job: "build",
            branch: "feature/x",
            default_branch: "trunk",
            ..NOTHING
        },
        Case {
            name: "pull request, in parallel",
            set: &[
                ("BUILDKITE", "true"),
                ("BUILDKITE_PIPELINE_SLUG", "app"),
                ("BUILDKITE_STEP_KEY", "test"),
                ("BUILDKITE_LABEL", ":go: test"),
                ("BUILDKITE_PARALLEL_JOB", "0"),
                ("BUILDKITE_PARALLEL_JOB_COUNT", "4"),
                ("BUILDKITE_COMMIT", ID),
                ("BUILDKITE_BRANCH", "fork:feature/x"),
                ("BUILDKITE_PULL_REQUEST_BASE_BRANCH", "release"),
                ("BUILDKITE_PIPELINE_DEFAULT_BRANCH", "trunk"),
            ],
            repository: "app",
            job: "test#0",
            commit: ID,
            branch: "fork:feature/x",
            default_branch: "release",
        },
        Case {
            name: "tag",
            set: &[
                ("BUILDKITE", "true"),
                ("BUILDKITE_BRANCH", "v1.2"),
                ("BUILDKITE_TAG", "v1.2"),
                ("BUILDKITE_PIPELINE_DEFAULT_BRANCH", "trunk"),
            ],
            default_branch: "trunk",
            ..NOTHING
        },
    ]);
}

#[test]
fn circleci() {
    check(&[
        Case {
            name: "branch",
            set: &[
                ("CIRCLECI", "true"),
                ("CIRCLE_REPOSITORY_URL", "https://github.com/team/app"),
                ("CIRCLE_JOB", "test"),
                ("CIRCLE_NODE_INDEX", "0"),
                ("CIRCLE_NODE_TOTAL", "1"),
                ("CIRCLE_SHA1", ID),
                ("CIRCLE_BRANCH", "feature/x"),
            ],
            repository: "github.com/team/app",
            job: "test",
            commit: ID,
            branch: "feature/x",
            ..NOTHING
        },
        Case {
            name: "in parallel",
            set: &[
                ("CIRCLECI", "true"),
                ("CIRCLE_PROJECT_REPONAME", "app"),
                ("CIRCLE_JOB", "test"),
                ("CIRCLE_NODE_INDEX", "0"),
                ("CIRCLE_NODE_TOTAL", "2"),
            ],
            repository: "app",
            job: "test#0",
            ..NOTHING
        },
    ]);
}

#[test]
fn jenkins() {
    check(&[
        Case {
            name: "multibranch",
            set: &[
                ("JENKINS_URL", "https://ci"),
                ("GIT_URL", "https://git.example.com/team/app.git"),
                ("JOB_NAME", "team/app/feature%2Fx"),
                ("STAGE_NAME", "Unit tests"),
                ("BRANCH_NAME", "feature/x"),
                ("GIT_BRANCH", "feature/x"),
                ("GIT_COMMIT", ID),
            ],
            repository: "git.example.com/team/app",
            job: "team/app/Unit tests",
            commit: ID,
            branch: "feature/x",
            ..NOTHING
        },
        Case {
            name: "multibranch, pull request",
            set: &[
                ("JENKINS_URL", "https://ci"),
                ("JOB_NAME", "team/app/PR-12"),
                ("BRANCH_NAME", "PR-12"),
                ("CHANGE_BRANCH", "feature/x"),
                ("CHANGE_TARGET", "main"),
            ],
            job: "team/app",
            branch: "feature/x",
            default_branch: "main",
            ..NOTHING
        },
        Case {
            name: "multibranch, tag",
            set: &[
                ("JENKINS_URL", "https://ci"),
                ("JOB_NAME", "app/v1%2E2%"),
                ("BRANCH_NAME", "v1.2%"),
                ("TAG_NAME", "v1.2%"),
            ],
            job: "app",
            ..NOTHING
        },
        Case {
            name: "of one branch",
            set: &[
                ("JENKINS_URL", "https://ci"),
                ("JOB_NAME", "folder/main"),
                ("GIT_BRANCH", "origin/main"),
            ],
            job: "folder/main",
            branch: "main",
            ..NOTHING
        },
        Case {
            name: "of one branch, with a parameter that looks like one of many",
            set: &[("JENKINS_URL", "https://ci"), ("JOB_NAME", "folder/app"), ("BRANCH_NAME", "x")],
            job: "folder/app",
            branch: "x",
            ..NOTHING
        },
    ]);
}

#[test]
fn others_are_not_known() {
    check(&[
        NOTHING,
        Case { name: "no Jenkins", set: &[("JOB_NAME", "x"), ("GIT_COMMIT", ID)], ..NOTHING },
        Case { name: "empty mark", set: &[("CIRCLECI", ""), ("CIRCLE_JOB", "x")], ..NOTHING },
        Case {
            name: "hostile branch",
            set: &[("CIRCLECI", "true"), ("CIRCLE_BRANCH", "\n\u{1b}")],
            ..NOTHING
        },
    ]);
}

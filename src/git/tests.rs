//! Repositories made by the git program, addresses as people write them, and what CI systems set.

use std::process::Command;

use super::*;

/// Runs git in `dir`; None, said aloud, where there is no git.
fn git(dir: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"])
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: this test needs the git program");
        return None;
    };
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[test]
fn repositories_are_read_as_git_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("main");
    let Some(_) = git(dir.path(), &["init", "-q", "-b", "trunk", "main"]) else { return };
    assert_eq!(Checkout::find(&main).unwrap().commit(), None, "a branch without a commit");
    git(&main, &["commit", "-q", "--allow-empty", "-m", "one"]);
    let first = git(&main, &["rev-parse", "HEAD"]);
    let below = main.join("a/b");
    std::fs::create_dir_all(&below).unwrap();
    let checkout = Checkout::find(&below).unwrap();
    assert_eq!(checkout.root(), main);
    assert_eq!(checkout.commit(), first);
    assert_eq!(checkout.branch().as_deref(), Some("trunk"));
    assert_eq!(checkout.scope().as_deref(), Some("main"));
    git(&main, &["pack-refs", "--all"]);
    assert_eq!(checkout.commit(), first, "packed");
    git(&main, &["worktree", "add", "-q", "-b", "side", "../side"]);
    let side = dir.path().join("side");
    git(&side, &["commit", "-q", "--allow-empty", "-m", "two"]);
    let second = git(&side, &["rev-parse", "HEAD"]);
    let worktree = Checkout::find(&side).unwrap();
    assert_eq!((worktree.commit(), worktree.branch().as_deref()), (second, Some("side")));
    assert_eq!(checkout.commit(), first);
    git(&main, &["remote", "add", "origin", "https://me:secret@Example.com:8443/team/app.git"]);
    assert_eq!(worktree.scope().as_deref(), Some("example.com/team/app"));
    assert!(!worktree.remote_url().unwrap().contains("secret"));
    git(&main, &["checkout", "-q", "--detach"]);
    assert_eq!((checkout.commit(), checkout.branch()), (first, None));
}

#[test]
fn a_clone_knows_the_default_branch() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_) = git(dir.path(), &["init", "-q", "-b", "trunk", "a"]) else { return };
    git(&dir.path().join("a"), &["commit", "-q", "--allow-empty", "-m", "one"]);
    git(dir.path(), &["clone", "-q", "a", "b"]);
    let clone = Checkout::find(&dir.path().join("b")).unwrap();
    assert_eq!(clone.default_branch().as_deref(), Some("trunk"));
    assert_eq!(clone.scope().as_deref(), Some("a"));
}

#[test]
fn a_hostile_repository_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let git = dir.path().join(".git");
    std::fs::create_dir(&git).unwrap();
    let id = "a".repeat(40);
    std::fs::write(dir.path().join("secret"), &id).unwrap();
    for head in ["ref: ../secret", "ref: refs/../../secret", "ref: /etc/passwd", "", "ref:", "\0"] {
        std::fs::write(git.join("HEAD"), head).unwrap();
        assert_eq!(Checkout::find(dir.path()).unwrap().commit(), None, "{head}");
    }
    std::fs::create_dir(git.join("refs")).unwrap();
    std::fs::write(git.join("refs/loop"), "ref: refs/loop").unwrap();
    std::fs::write(git.join("HEAD"), "ref: refs/loop").unwrap();
    assert_eq!(Checkout::find(dir.path()).unwrap().commit(), None);
    std::fs::write(git.join("config"), "[\nurl = x\n[remote\nurl=y\n[remote \"u\"\nurl\n").unwrap();
    assert_eq!(Checkout::find(dir.path()).unwrap().remote_url(), None);
}

#[test]
fn one_repository_has_one_scope_however_it_is_reached() {
    let cases = [
        ("https://github.com/team/app.git", Some("github.com/team/app")),
        ("https://token@github.com/team/app", Some("github.com/team/app")),
        ("https://me:pw@GitHub.com/team/app/", Some("github.com/team/app")),
        ("git@github.com:team/app.git", Some("github.com/team/app")),
        ("ssh://git@github.com:2222/team/app.git", Some("github.com/team/app")),
        ("https://github.com/team/app.git?private_token=x", Some("github.com/team/app")),
        ("/srv/git/app.git", Some("app")),
        ("../app", Some("app")),
        ("file:///srv/git/app.git", Some("app")),
        ("https://github.com", None),
        ("", None),
    ];
    for (url, scope) in cases {
        assert_eq!(scope_of_url(url).as_deref(), scope, "{url}");
    }
}

#[test]
fn ci_systems_are_known_by_their_variables() {
    let id = "0123456789abcdef0123456789abcdef01234567";
    type Case<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>, Option<&'a str>);
    let cases: [Case<'_>; 8] = [
        (
            &[
                ("GITHUB_REPOSITORY", "team/app"),
                ("GITHUB_SERVER_URL", "https://github.com"),
                ("GITHUB_JOB", "test"),
                ("GITHUB_SHA", id),
            ],
            Some("github.com/team/app:test"),
            Some(id),
        ),
        (&[("GITHUB_REPOSITORY", "team/app"), ("GITHUB_JOB", "")], Some("team/app"), None),
        (
            &[
                ("CI_PROJECT_PATH", "team/sub/app"),
                ("CI_SERVER_URL", "https://gitlab.example.com"),
                ("CI_JOB_NAME", "unit tests"),
                ("CI_COMMIT_SHA", id),
            ],
            Some("gitlab.example.com/team/sub/app:unit tests"),
            Some(id),
        ),
        (
            &[
                ("BUILDKITE", "true"),
                ("BUILDKITE_REPO", "git@github.com:team/app.git"),
                ("BUILDKITE_LABEL", "build"),
                ("BUILDKITE_COMMIT", "HEAD"),
            ],
            Some("github.com/team/app:build"),
            None,
        ),
        (
            &[
                ("CIRCLECI", "true"),
                ("CIRCLE_REPOSITORY_URL", "https://github.com/team/app"),
                ("CIRCLE_JOB", "test"),
                ("CIRCLE_SHA1", id),
            ],
            Some("github.com/team/app:test"),
            Some(id),
        ),
        (
            &[("JENKINS_URL", "https://ci"), ("JOB_NAME", "app/main"), ("GIT_COMMIT", id)],
            Some("app/main"),
            Some(id),
        ),
        (&[("JOB_NAME", "not jenkins"), ("GIT_COMMIT", id)], None, None),
        (&[], None, None),
    ];
    for (variables, scope, commit) in cases {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let found = ci(&variable);
        assert_eq!(
            (found.scope.as_deref(), found.commit.as_deref()),
            (scope, commit),
            "{variables:?}"
        );
    }
}

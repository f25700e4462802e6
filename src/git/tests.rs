//! Repositories made by the git program, addresses as people write them, and what CI systems set.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

mod ci;
mod parents;

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

/// Writes a program for the shell. Another process does: a test beside this one that starts a process
/// in the moment when we have the file open for writing hands it on, and what is open for writing
/// cannot be run.
pub(crate) fn program(file: &Path, script: &str) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(file)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let text = format!("#!/bin/sh\n{script}\n");
    writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
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
fn the_default_branch_is_what_the_clone_says_or_the_usual_name() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_) = git(dir.path(), &["init", "-q", "-b", "trunk", "a"]) else { return };
    let a = dir.path().join("a");
    assert_eq!(Checkout::find(&a).unwrap().default_branch(), None, "no remote");
    git(&a, &["commit", "-q", "--allow-empty", "-m", "one"]);
    git(&a, &["branch", "master"]);
    git(dir.path(), &["clone", "-q", "a", "b"]);
    let b = dir.path().join("b");
    let clone = Checkout::find(&b).unwrap();
    assert_eq!(clone.default_branch().as_deref(), Some("trunk"));
    assert_eq!(clone.scope().as_deref(), Some("a"));
    git(&b, &["remote", "set-head", "origin", "--delete"]);
    assert_eq!(clone.default_branch().as_deref(), Some("master"), "loose");
    git(&b, &["pack-refs", "--all"]);
    assert_eq!(clone.default_branch().as_deref(), Some("master"), "packed");
    git(&b, &["update-ref", "refs/remotes/origin/main", "HEAD"]);
    assert_eq!(clone.default_branch().as_deref(), Some("main"));
}

#[test]
fn what_is_checked_out_goes_before_what_ci_says_and_a_change_knows_where_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_) = git(dir.path(), &["init", "-q", "-b", "trunk", "app"]) else { return };
    let app = dir.path().join("app");
    git(&app, &["commit", "-q", "--allow-empty", "-m", "one"]);
    git(&app, &["update-ref", "refs/remotes/origin/main", "HEAD"]);
    let id = git(&app, &["rev-parse", "HEAD"]).unwrap();
    let other = "0123456789abcdef0123456789abcdef01234567";
    let set = [
        ("JENKINS_URL", "https://ci"),
        ("JOB_NAME", "team/app/PR-7"),
        ("BRANCH_NAME", "PR-7"),
        ("CHANGE_BRANCH", "feature/x"),
        ("CHANGE_TARGET", "release"),
        ("GIT_COMMIT", other),
    ];
    let jenkins = variables(&set);
    let identity = |variable: &dyn Fn(&str) -> Option<String>| {
        let Identity { scope, commit, branch, default_branch } = identify(&app, variable);
        (scope, commit, branch, default_branch)
    };
    let expected = |scope: &str, branch: &str, default_branch: &str| {
        (scope.to_owned(), id.clone(), branch.to_owned(), default_branch.to_owned())
    };
    assert_eq!(identity(&|_| None), expected("app", "trunk", "main"));
    assert_eq!(identity(&jenkins), expected("app:team/app", "trunk", "release"));
    git(&app, &["checkout", "-q", "--detach"]);
    assert_eq!(identity(&|_| None), expected("app", "", "main"));
    assert_eq!(identity(&jenkins), expected("app:team/app", "feature/x", "release"));
    let nowhere = identify(dir.path(), &jenkins);
    assert_eq!((nowhere.scope.as_str(), nowhere.commit.as_str()), ("team/app", other));
    assert_eq!(identify(dir.path(), &|_| None), Identity::default());
}

/// `larder prefetch` looks before the checkout where the build will write after it.
#[test]
fn ci_systems_name_one_scope_before_and_after_the_checkout() {
    let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let git = after.path().join(".git");
    std::fs::create_dir(&git).unwrap();
    std::fs::write(git.join("HEAD"), "a".repeat(40)).unwrap();
    let config = "[remote \"origin\"]\n\turl = https://mirror.example.com/elsewhere.git\n";
    std::fs::write(git.join("config"), config).unwrap();
    let url = "git@git.example.com:team/app.git";
    let systems: [&[(&str, &str)]; 5] = [
        &[("GITHUB_REPOSITORY", "team/app"), ("GITHUB_WORKFLOW", "CI"), ("GITHUB_JOB", "test")],
        &[("CI_PROJECT_PATH", "team/app"), ("CI_JOB_NAME", "unit tests")],
        &[("BUILDKITE", "true"), ("BUILDKITE_REPO", url), ("BUILDKITE_STEP_KEY", "test")],
        &[("CIRCLECI", "true"), ("CIRCLE_REPOSITORY_URL", url), ("CIRCLE_JOB", "test")],
        &[("JENKINS_URL", "https://ci"), ("GIT_URL", url), ("JOB_NAME", "team/app")],
    ];
    for set in systems {
        let scope = |dir: &tempfile::TempDir| identify(dir.path(), &variables(set)).scope;
        assert!(scope(&before).contains("team/app:"), "{set:?}: {}", scope(&before));
        assert_eq!(scope(&before), scope(&after), "{set:?}");
    }
}

/// A fork's `main` on Buildkite once counted as ours, and where it was checked out by that name.
#[test]
fn a_forks_branch_that_is_checked_out_by_its_name_is_none_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(".git")).unwrap();
    std::fs::write(dir.path().join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
    let branch = |set: &[(&str, &str)]| identify(dir.path(), &variables(set)).branch;
    let circle = [("CIRCLECI", "true"), ("CIRCLE_BRANCH", "pull/12")];
    assert_eq!(branch(&circle), "main");
    let forks = [&circle[..], &[("CIRCLE_PR_USERNAME", "stranger")]].concat();
    assert_eq!(branch(&forks), "pull/12");
    let buildkite = |from| {
        [
            ("BUILDKITE", "true"),
            ("BUILDKITE_REPO", "git@github.com-deploy:team/app.git"),
            ("BUILDKITE_BRANCH", "main"),
            ("BUILDKITE_PULL_REQUEST", "12"),
            ("BUILDKITE_PULL_REQUEST_REPO", from),
        ]
    };
    assert_eq!(branch(&buildkite("https://github.com/Team/app")), "main");
    assert_eq!(branch(&buildkite("https://github.com/stranger/app.git")), "pull/12");
    let mut forks = buildkite("https://github.com/stranger/app.git");
    forks[3].1 = "false";
    assert_eq!(branch(&forks), "");
    forks[2].1 = "stranger:main";
    assert_eq!(branch(&forks), "stranger:main");
    assert_eq!(branch(&forks[..3]), "stranger:main");
    let mut mirrored = buildkite("https://github.com/team/app");
    mirrored[1].1 = "https://proxy.example.com/git/team/app.git";
    assert_eq!(branch(&mirrored), "main");
    // What ends like ours is anybody's, and so is what ends like a mirror that names no owner.
    assert_eq!(branch(&buildkite("https://github.com/stranger/team/app")), "pull/12");
    mirrored[1].1 = "/srv/git/team/app.git";
    assert_eq!(branch(&mirrored), "pull/12");
    // On GitHub, what follows a workflow or a comment is begun on the default branch.
    let event = dir.path().join("event.json");
    let after = |name, says: &str| {
        std::fs::write(&event, says).unwrap();
        branch(&[
            ("GITHUB_REPOSITORY", "team/app"),
            ("GITHUB_REF", "refs/heads/main"),
            ("GITHUB_EVENT_NAME", name),
            ("GITHUB_EVENT_PATH", event.to_str().unwrap()),
        ])
    };
    let run = |of| format!(r#"{{"workflow_run":{{"head_repository":{{"full_name":"{of}"}}}}}}"#);
    assert_eq!(after("workflow_run", &run("team/app")), "main");
    assert_eq!(after("workflow_run", &run("stranger/app")), "");
    for event in ["issue_comment", "repository_dispatch", "check_run"] {
        assert_eq!(after(event, r#"{"issue":{}}"#), "", "{event}");
    }
    let review = |of| format!(r#"{{"pull_request":{{"head":{{"repo":{{"full_name":"{of}"}}}}}}}}"#);
    assert_eq!(after("pull_request_review", &review("team/app")), "main");
    assert_eq!(after("pull_request_review", &review("stranger/app")), "");
    assert_eq!(after("push", r#"{"ref":"refs/heads/main"}"#), "main");
}

#[test]
fn references_that_are_kept_elsewhere_are_not_known() {
    let dir = tempfile::tempdir().unwrap();
    let git = dir.path().join(".git");
    std::fs::create_dir(&git).unwrap();
    std::fs::write(git.join("HEAD"), "ref: refs/heads/.invalid\n").unwrap();
    let checkout = Checkout::find(dir.path()).unwrap();
    assert_eq!((checkout.branch(), checkout.commit()), (None, None));
}

/// An environment of these variables.
fn variables<'a>(known: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
    |name| known.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
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

/// A job that was begun on main checked out a change's commit, and led main's trail astray.
#[test]
fn the_branch_that_was_pushed_is_not_that_of_another_commit() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_) = git(dir.path(), &["init", "-q", "-b", "side", "a"]) else { return };
    let a = dir.path().join("a");
    git(&a, &["commit", "-q", "--allow-empty", "-m", "one"]);
    git(&a, &["checkout", "-q", "--detach"]);
    let commit = git(&a, &["rev-parse", "HEAD"]).unwrap();
    let other = "1".repeat(40);
    let branch = |sha: &str, head: &str| {
        let variable = |name: &str| {
            let value = match name {
                "GITHUB_REPOSITORY" => "team/app",
                "GITHUB_EVENT_NAME" => "workflow_dispatch",
                "GITHUB_REF_NAME" => "main",
                "GITHUB_SHA" => sha,
                "GITHUB_HEAD_REF" => head,
                _ => return None,
            };
            Some(value.to_owned())
        };
        identify(&a, &variable).branch
    };
    assert_eq!(branch(&commit, ""), "main");
    assert_eq!(branch(&other, ""), "");
    // What the event says of a fork cannot be read here, so that the change has no branch of ours.
    assert_eq!(branch(&other, "main"), "");
}

/// Cleaned of what does not fit into a log they were called `main`.
#[test]
fn a_branch_whose_name_only_looks_like_another_one_is_none() {
    for name in ["main\u{a0}", "\u{3000}main", "ma\u{85}in", &"m".repeat(300)] {
        assert_eq!(
            branch_of(&format!("ref: refs/heads/{name}\n"), "refs/heads/"),
            None,
            "{name:?}"
        );
        assert_eq!(branch_said(name), None, "{name:?}");
    }
    let twice = branch_of("ref: refs/heads/refs/heads/main\n", "refs/heads/");
    assert_eq!(twice.as_deref(), Some("refs/heads/main"));
    assert_eq!(branch_said("refs/heads/main").as_deref(), Some("main"));
}

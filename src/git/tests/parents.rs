//! Parents of commits in repositories made by the git program, and what happens when it is none.

use std::ffi::OsString;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::time::Duration;

use super::super::parents::ask;
use super::*;
use crate::tasks;
use crate::units::Clock;

/// Longer than any machine takes, so that what is answered does not depend on the machine.
const LONG: Duration = Duration::from_secs(60);

/// The environment of git under test: our PATH, and no settings of the machine's.
fn env_with(path: Option<&OsString>) -> GitEnv {
    #[expect(clippy::disallowed_methods, reason = "where this machine has its git")]
    let ours = std::env::var_os("PATH");
    GitEnv::gather(&|name| match name {
        "PATH" => path.cloned().or_else(|| ours.clone()),
        "GIT_CONFIG_GLOBAL" | "GIT_CONFIG_SYSTEM" => Some("/dev/null".into()),
        _ => None,
    })
}

fn parents_in(dir: &Path) -> Vec<String> {
    let commit = Checkout::find(dir).unwrap().commit().unwrap();
    ask(dir, &commit, &env_with(None), LONG).unwrap_or_default()
}

/// A repository whose HEAD is the merge of a feature into main; and both, main first.
fn merged(dir: &Path) -> Option<(PathBuf, Vec<String>)> {
    git(dir, &["init", "-q", "-b", "main", "app"])?;
    let app = dir.join("app");
    let commit = |message| {
        git(&app, &["commit", "-q", "--allow-empty", "-m", message]);
        git(&app, &["rev-parse", "HEAD"]).unwrap()
    };
    commit("root");
    git(&app, &["checkout", "-q", "-b", "feature"]);
    let feature = commit("feature");
    git(&app, &["checkout", "-q", "main"]);
    let main = commit("main");
    git(&app, &["merge", "-q", "--no-ff", "-m", "merge", "feature"]);
    Some((app, vec![main, feature]))
}

#[test]
fn both_parents_of_a_merge_are_known_from_a_clone_of_depth_one() {
    let dir = tempfile::tempdir().unwrap();
    let Some((app, parents)) = merged(dir.path()) else { return };
    assert_eq!(parents_in(&app), parents, "loose");
    git(&app, &["gc", "-q"]);
    assert_eq!(parents_in(&app), parents, "in a pack");
    let url = format!("file://{}", app.display());
    git(dir.path(), &["clone", "-q", "--depth", "1", &url, "shallow"]);
    let shallow = dir.path().join("shallow");
    assert_eq!(git(&shallow, &["rev-list", "--count", "HEAD"]).as_deref(), Some("1"));
    assert_eq!(git(&shallow, &["log", "-1", "--format=%P"]).as_deref(), Some(""), "git log");
    assert_eq!(parents_in(&shallow), parents, "shallow");
    git(&shallow, &["checkout", "-q", "--detach"]);
    std::fs::create_dir(shallow.join("below")).unwrap();
    assert_eq!(parents_in(&shallow.join("below")), parents, "detached, from below");
    git(&app, &["worktree", "add", "-q", "-b", "side", "../side"]);
    assert_eq!(parents_in(&dir.path().join("side")), parents, "worktree");
}

#[test]
fn parents_are_those_that_the_commit_was_made_with() {
    let dir = tempfile::tempdir().unwrap();
    let Some((app, parents)) = merged(dir.path()) else { return };
    let root = git(&app, &["rev-list", "--max-parents=0", "HEAD"]).unwrap();
    assert_eq!(ask(&app, &root, &env_with(None), LONG), Some(Vec::new()), "a first commit");
    git(&app, &["replace", "--graft", "HEAD", &root]);
    assert_eq!(git(&app, &["log", "-1", "--format=%P"]), Some(root), "git log");
    assert_eq!(parents_in(&app), parents, "replaced");
}

#[test]
fn however_much_a_commit_says_its_parents_come_first() {
    let dir = tempfile::tempdir().unwrap();
    let Some((app, parents)) = merged(dir.path()) else { return };
    let message = dir.path().join("message");
    std::fs::write(&message, "parent of all\n\nparent 0\n".repeat(200_000)).unwrap();
    git(&app, &["commit", "-q", "--amend", "-F", message.to_str().unwrap()]);
    assert_eq!(parents_in(&app), parents);
    let mut args = vec!["commit-tree", "HEAD^{tree}", "-m", "octopus"];
    let made: Vec<String> = (0..20)
        .map(|n| git(&app, &["commit-tree", "HEAD^{tree}", "-m", &n.to_string()]).unwrap())
        .collect();
    args.extend(made.iter().flat_map(|id| ["-p", id]));
    let octopus = git(&app, &args).unwrap();
    assert_eq!(ask(&app, &octopus, &env_with(None), LONG).unwrap(), made[..8]);
}

#[test]
fn a_commit_that_is_not_there_is_not_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let Some((app, _)) = merged(dir.path()) else { return };
    let marker = dir.path().join("fetched");
    let url = format!("ext::touch {}", marker.display());
    git(&app, &["remote", "add", "origin", &url]);
    for (key, value) in [
        ("core.repositoryFormatVersion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.promisor", "true"),
        ("protocol.ext.allow", "always"),
    ] {
        git(&app, &["config", key, value]);
    }
    let missing = "0123456789abcdef0123456789abcdef01234567";
    assert_eq!(ask(&app, missing, &env_with(None), LONG), Some(Vec::new()));
    assert!(!marker.exists());
    let status = Command::new("git")
        .current_dir(&app)
        .args(["cat-file", "commit", missing])
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success() && marker.exists(), "the same without our care");
}

#[test]
fn where_git_knows_nothing_no_parents_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let Some((app, parents)) = merged(dir.path()) else { return };
    let id = &parents[0];
    let env = env_with(None);
    assert_eq!(ask(dir.path(), id, &env, LONG), None, "no repository");
    for commit in ["", "HEAD", "--batch", "abc"] {
        assert_eq!(ask(&app, commit, &env, LONG), None, "{commit}");
    }
    let blob = git(&app, &["hash-object", "-w", ".git/HEAD"]).unwrap();
    assert_eq!(ask(&app, &blob, &env, LONG), Some(Vec::new()), "no commit");
    assert_eq!(ask(&app, id, &GitEnv::default(), LONG), None, "no PATH");
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    for path in [empty.into_os_string(), "".into(), ".:bin".into()] {
        assert_eq!(ask(&app, id, &env_with(Some(&path)), LONG), None, "{}", path.display());
    }
}

#[test]
fn a_checkout_of_somebody_else_has_no_parents() {
    let dir = tempfile::tempdir().unwrap();
    let Some((app, _)) = merged(dir.path()) else { return };
    let nobody = Some(65534);
    if [&app, &app.join(".git")].iter().any(|path| chown(path, nobody, nobody).is_err()) {
        eprintln!("SKIPPED: only root gives files away");
        return;
    }
    assert_eq!(parents_in(&app), Vec::<String>::new());
}

/// A directory for PATH with a `git` that is this script.
fn fake(dir: &Path, script: &str) -> OsString {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    program(&bin.join("git"), script);
    bin.into_os_string()
}

#[test]
fn a_git_that_hangs_is_ended_with_all_that_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let Some((app, parents)) = merged(dir.path()) else { return };
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let shown = fifo.display();
    let said = format!("printf 'tree x\\nparent {}\\n'", parents[0]);
    let path = fake(dir.path(), &format!("{said}\n/bin/sleep 60 > {shown} &\nwait"));
    let held = fifo.clone();
    let reader = tasks::thread("reader", move || std::fs::read(held)).unwrap();
    let clock = Clock::system();
    assert_eq!(super::super::parents(&app, &parents[0], &env_with(Some(&path)), PATIENCE), [""; 0]);
    let took = clock.elapsed();
    // Where the script had no time to open it, the reader waits for a first writer; where it had,
    // perhaps nobody reads any more.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
    drop(File::options().write(true).custom_flags(flags).open(&fifo));
    reader.join().unwrap().unwrap();
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(clock.elapsed() < Duration::from_secs(40), "it was left behind");
}

#[test]
fn what_is_no_commit_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some((app, parents)) = merged(dir.path()) else { return };
    let id = &parents[0];
    let cases = [
        ("exit 128", 0),
        ("env | /bin/sed 's/^/parent /'", 0),
        (&format!("printf 'tree x\\nparent {id}\\nparent {id}'"), 1),
        (&format!("printf 'tree x\\nparent {id}\\nparent ../x\\nparent {id}\\n'"), 1),
        (&format!("printf 'parent {id}\\n'"), 0),
        ("printf 'tree x\\n'; while :; do echo 0123456789 || exit; done", 0),
        (&format!("test -z \"$GIT_DIR$LARDER_TOKEN\" && printf 'tree x\\nparent {id}\\n'"), 1),
    ];
    for (script, count) in cases {
        let path = fake(dir.path(), script);
        let found = ask(&app, id, &env_with(Some(&path)), LONG);
        assert_eq!(found, Some(vec![id.clone(); count]), "{script}");
    }
}

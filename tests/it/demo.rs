//! `larder demo`, as somebody runs it who has nothing but larder.

use std::process::Stdio;

use crate::harness::Home;

#[test]
fn the_demo_tells_its_story_and_leaves_nothing_behind() {
    let home = Home::new();
    let (temp, empty) = (home.path().join("t"), home.path().join("bin"));
    std::fs::create_dir(&temp).unwrap();
    std::fs::create_dir(&empty).unwrap();
    let mut command = home.larder(&["demo"]);
    command.env("TMPDIR", &temp).env("PATH", &empty).stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let problems = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{problems}");
    assert!(said.contains("the real go is skipped: there is no go on the PATH"), "{said}");
    assert!(said.contains("requests over the link"), "{said}");
    assert!(said.contains("every promise held"), "{said}");
    assert_eq!(std::fs::read_dir(&temp).unwrap().count(), 0, "{said}");
    // Its machines have stores and sockets of their own.
    assert!(!home.store().exists() && !home.socket().exists());
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let home = Home::new();
    let temp = home.path().join("t");
    std::fs::create_dir(&temp).unwrap();
    let mut command = home.larder(&["demo"]);
    command.env("TMPDIR", &temp).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let machine_a =
        || std::fs::read_dir(&temp).unwrap().flatten().any(|d| d.path().join("a/store").exists());
    crate::support::wait_for("the demo's machine A", || machine_a().then_some(()));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(&temp).unwrap().count(), 0);
}

//! `larder prefetch`: what is known of a commit comes before a build asks for it, and what is not
//! known is said.

use std::process::Output;

use larder::client::{self, Address, Connection};
use larder::entry::{Class, Digest};
use larder::manifest::pack::PackWriter;
use larder::manifest::{Manifest, PackRef, Row, manifest_key};
use larder::units::Timestamp;
use larder::wire::go::{Frame, Hello, PROTOCOL};
use serde_json::Value;

use crate::harness::{Home, TestDaemon, noise};
use crate::support::{PATIENCE, wait_for};

const SCOPE: &str = "example.com/app:build";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";
const ENTRIES: u8 = 40;

fn prefetch(home: &Home, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = home.larder(&["prefetch"]);
    command.args(args).env("LARDER_LISTEN", "127.0.0.1:0").env("LARDER_ADMIN", "off");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn stop(home: &Home) {
    // Nobody there is fine.
    let _ = home.larder(&["stop"]).output().unwrap();
}

fn body(n: u8) -> Vec<u8> {
    noise(n.into(), 2_000)
}

/// What a build of the commit has left in the central cache: a pack, and a manifest that names it.
fn leave_manifest(central: &TestDaemon) {
    let mut writer = PackWriter::new();
    let mut rows = Vec::new();
    for n in 1..=ENTRIES {
        let output = Digest::of(&body(n));
        let frame = zstd::bulk::compress(&body(n), 3).unwrap();
        let place = writer.push(output, 2_000, &frame).unwrap().in_pack(0);
        let (action, stored) = (Digest([n; 32]), Timestamp(1));
        let (class, cost_ms, c_env) = (Class::Archive, 500, 0);
        rows.push(Row { action, output, size: 2_000, class, cost_ms, c_env, stored, place });
    }
    let pack = writer.finish();
    let digest = Digest::of(&pack);
    let manifest = Manifest {
        scope: SCOPE.to_owned(),
        commit: COMMIT.to_owned(),
        complete: true,
        packs: vec![PackRef { digest, size: pack.len() as u64 }],
        rows,
        ..Manifest::default()
    };
    assert_eq!(central.put(&format!("/cas/{digest}"), &pack).status, 201);
    let key = manifest_key(SCOPE, COMMIT);
    assert_eq!(central.put(&format!("/ac/{key}"), &manifest.encode()).status, 201);
}

/// Comes in as the helper of a build of the commit.
fn begin_build(home: &Home) -> Connection {
    let hello = Hello {
        protocol: PROTOCOL,
        role: "go".into(),
        session: "a build".into(),
        scope: SCOPE.into(),
        commit: COMMIT.into(),
        ..Hello::default()
    };
    client::connect(&Address::Unix(home.socket()), &hello, PATIENCE).unwrap()
}

fn assert_hits(build: &mut Connection) {
    for action in 1..=ENTRIES {
        let get = Frame::Get { id: action.into(), action: [action; 32], c_env: 0 };
        get.write(&mut build.writer).unwrap();
        let answer = Frame::read(&mut build.reader).unwrap();
        let Some(Frame::Hit { entry, .. }) = answer else { panic!("{action}: {answer:?}") };
        assert_eq!(entry.output, Digest::of(&body(action)).0);
    }
}

#[test]
fn what_a_commit_needs_is_there_before_its_build() {
    let (far, near) = (Home::new(), Home::new());
    let central = far.daemon(&[]);
    leave_manifest(&central);
    let url = central.url();
    let aim = ["--upstream", &url, "--scope", SCOPE, "--commit", COMMIT, "--wait"];
    let (code, said, problems) = prefetch(&near, &aim);
    assert_eq!((code, &*problems), (Some(0), ""), "it starts a daemon: {said}");
    assert!(said.starts_with("40 entries fetched, 0.1 MB, "), "{said}");
    central.kill();
    assert_hits(&mut begin_build(&near));
    stop(&near);
}

#[test]
fn a_prefetch_that_nobody_waits_for_is_seen_through() {
    let (far, near) = (Home::new(), Home::new());
    let central = far.daemon(&[]);
    leave_manifest(&central);
    let url = central.url();
    let daemon = near.daemon(&["--upstream", &url]);
    let (code, said, problems) =
        prefetch(&near, &["--upstream", &url, "--scope", SCOPE, "--commit", COMMIT]);
    assert_eq!((code, &*problems), (Some(0), ""), "{said}");
    assert!(said.contains("example.com/app:build at 0123456789ab"), "{said}");
    // Each action and the output that it names, and the empty output, which is always there then.
    wait_for("all entries", || (daemon.stats()["disk"]["entries"] == 81).then_some(()));
}

#[test]
fn a_build_and_a_prefetch_of_one_commit_share_what_comes() {
    let (far, near) = (Home::new(), Home::new());
    let central = far.daemon(&[]);
    leave_manifest(&central);
    let url = central.url();
    let daemon = near.daemon(&["--upstream", &url]);
    let mut build = begin_build(&near);
    let aim = ["--upstream", &url, "--scope", SCOPE, "--commit", COMMIT, "--wait", "--json"];
    let (code, told, problems) = prefetch(&near, &aim);
    assert_eq!((code, &*problems), (Some(0), ""), "{told}");
    let told: Value = serde_json::from_str(&told).unwrap();
    let counts = ["version", "listed", "fetched", "left"].map(|key| told[key].clone());
    assert_eq!(counts, [1, 40, 40, 0].map(Value::from), "{told}");
    assert_hits(&mut build);
    let stats = daemon.stats();
    let session = &stats["sessions"][0];
    let counts = ["hits", "misses", "prefetched", "prefetch_used"].map(|key| session[key].clone());
    assert_eq!(counts, [40, 0, 40, 40].map(Value::from), "{session}");
    assert_eq!(session["forecast"], "known", "{session}");
}

#[test]
fn a_prefetch_that_knows_nothing_says_so() {
    let (far, near) = (Home::new(), Home::new());
    let central = far.daemon(&[]);
    let url = central.url();
    let aim = ["--scope", SCOPE, "--wait"];
    let upstream = ["--commit", COMMIT, "--upstream", &url];
    let (code, said, problem) = prefetch(&near, &[&aim[..], &upstream].concat());
    assert_eq!((code, &*said), (Some(3), ""), "{problem}");
    assert_eq!(problem.lines().count(), 1, "{problem}");
    assert!(problem.contains("no manifest of this commit"), "{problem}");
    central.kill();
    let other = ["--commit", OTHER, "--upstream", &url];
    let (code, _, problem) = prefetch(&near, &[&aim[..], &other].concat());
    assert_eq!(code, Some(3), "{problem}");
    assert!(problem.contains("did not answer"), "{problem}");
    stop(&near);
    let (code, _, problem) = prefetch(&near, &[&aim[..], &["--commit", COMMIT]].concat());
    assert_eq!(code, Some(3), "{problem}");
    assert!(problem.contains("--upstream"), "{problem}");
    let elsewhere = format!("unix:{}", near.path().join("nobody.sock").display());
    let nobody = ["--commit", COMMIT, "--daemon", &elsewhere];
    let (code, _, problem) = prefetch(&near, &[&aim[..], &nobody].concat());
    assert_eq!(code, Some(4), "{problem}");
    stop(&near);
}

#[test]
fn a_prefetch_that_is_not_told_what_for_says_what_is_missing() {
    let home = Home::new();
    let cases: [(&[&str], &[&str]); 7] = [
        (&[], &["--scope", "LARDER_SCOPE", "--commit", "git checkout"]),
        (&["--scope", SCOPE], &["for which commit; name it with --commit (LARDER_COMMIT)"]),
        (&["--commit", COMMIT], &["--scope (LARDER_SCOPE)"]),
        (&["--scope", SCOPE, "--commit", "0123456"], &["`0123456` is not a whole commit id"]),
        (&["--scope", SCOPE, "--commit", COMMIT, "--wait", "--timeout", "x"], &["--timeout"]),
        (&["--timeout", "3s"], &["--wait"]),
        (&["banana"], &["banana"]),
    ];
    for (args, parts) in cases {
        let (code, said, problem) = prefetch(&home, args);
        assert_eq!((code, &*said), (Some(2), ""), "{args:?}: {problem}");
        for part in parts {
            assert!(problem.contains(part), "{args:?}: {problem}");
        }
    }
    assert!(!home.socket().exists(), "no daemon was started for them");
}

//! Cold machines that are led astray by what stands upstream beside the entries, and pull requests.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use larder::entry::{Class, Digest};
use larder::manifest::trail::Trail;
use larder::manifest::{self, Manifest, PackRef, Place, Row};
use larder::units::Timestamp;
use serde_json::json;

use super::{Machine, assert_asked, is_kept, native, number, write_module};
use crate::harness::TestDaemon;
use crate::support::cache_server::{CacheServer, Fault};
use crate::support::git::{Origin, git, has_git};
use crate::support::install;

/// What stands upstream, by key.
type Objects = BTreeMap<String, Vec<u8>>;

fn objects(central: &CacheServer) -> Objects {
    let object = |key: String| central.object(&key).map(|object| (key, object));
    central.keys().into_iter().filter_map(object).collect()
}

/// Changes each object that `which` names; those of which nothing is left go.
fn change(objects: &mut Objects, which: fn(&str, &[u8]) -> bool, act: impl Fn(&mut Vec<u8>)) {
    let mut changed = 0;
    for (key, object) in objects.iter_mut() {
        if which(key, object) {
            act(object);
            changed += 1;
        }
    }
    assert!(changed > 0, "nothing to change");
    objects.retain(|_, object| !object.is_empty());
}

fn is_manifest(_: &str, object: &[u8]) -> bool {
    Manifest::decode(object).is_ok()
}

fn is_trail(_: &str, object: &[u8]) -> bool {
    Trail::decode(object).is_ok()
}

fn is_manifest_or_trail(_: &str, object: &[u8]) -> bool {
    manifest::is_one(object)
}

fn is_content(key: &str, _: &[u8]) -> bool {
    key.starts_with("/cas/")
}

fn flip(object: &mut [u8]) {
    let middle = object.len() / 2;
    object[middle] ^= 0x40;
}

/// A manifest that is whole, and says something else.
fn forge(object: &mut Vec<u8>, lie: impl Fn(&mut Manifest)) {
    let mut manifest = Manifest::decode(object).unwrap();
    lie(&mut manifest);
    *object = manifest.encode();
}

/// Ten thousand entries that there are not, before those that there are.
fn swell(manifest: &mut Manifest) {
    let nowhere = u32::try_from(manifest.packs.len()).unwrap();
    manifest.packs.push(PackRef { digest: Digest::of(b"nowhere"), size: 16 << 20 });
    let row = |number: u32| Row {
        action: Digest::of(&number.to_le_bytes()),
        output: Digest::of(&number.to_be_bytes()),
        size: 1 << 40,
        class: Class::Archive,
        cost_ms: u32::MAX,
        c_env: 0,
        stored: Timestamp::from_seconds(1),
        place: Place::Pack { pack: nowhere, offset: u64::from(number), len: 1000 },
    };
    let rows = std::mem::take(&mut manifest.rows);
    manifest.rows = (0..10_000).map(row).chain(rows).collect();
}

/// A frame of a gigabyte of nothing, where each of the outputs is said to be.
fn place_bombs(all: &mut Objects) {
    let bomb = zstd::bulk::compress(&vec![0; 1 << 30], 1).unwrap();
    let (digest, size) = (Digest::of(&bomb), bomb.len() as u64);
    change(all, is_manifest, |object| {
        forge(object, |manifest| {
            manifest.rows.iter_mut().for_each(|row| row.place = Place::Frame { digest, size });
        });
    });
    all.insert(format!("/cas/{digest}"), bomb);
}

/// A whole trail whose sessions lie elsewhere, and have more than there is.
fn forge_trail(object: &mut Vec<u8>) {
    let mut trail = Trail::decode(object).unwrap();
    for (row, commit) in trail.rows.iter_mut().zip(["../../../etc/passwd", "/", "a\nb", ""]) {
        commit.clone_into(&mut row.commit);
        row.writer = "../..".repeat(300);
        row.rows = u32::MAX;
        row.bytes = u64::MAX;
        row.complete = true;
        row.packs = vec![PackRef { digest: Digest::of(b"nowhere"), size: 16 << 20 }];
    }
    *object = trail.encode();
}

/// A whole one by its seal, which announces more rows than there are atoms.
fn announce(object: &mut Vec<u8>) {
    let mut forged = b"LRDTRAIL\x01\0\0".to_vec();
    forged.extend([0xff; 9]);
    forged.push(1);
    let seal = Digest::of(&forged);
    forged.extend_from_slice(&seal.0[..16]);
    *object = forged;
}

#[test]
fn a_manifest_trail_or_pack_that_is_not_right_never_makes_a_build_wrong() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let central = CacheServer::start();
    let url = central.url();
    let a = Machine::new(&go);
    let daemon = a.home.daemon(&["--upstream", &url]);
    let (expected, _) = a.build(&origin.clone());
    daemon.flush();
    drop(daemon);
    let sound = objects(&central);

    type Harm = fn(&mut Objects);
    // With what is said of each: whether all entries can still be had, one by one.
    let harms: [(&str, bool, Harm); 10] = [
        ("no manifest", true, |all| change(all, is_manifest_or_trail, Vec::clear)),
        ("a damaged manifest", true, |all| change(all, is_manifest_or_trail, |o| flip(o))),
        ("half a manifest", true, |all| {
            change(all, is_manifest_or_trail, |o| o.truncate(o.len() / 2));
        }),
        ("a newer manifest", true, |all| change(all, is_manifest_or_trail, |o| o[8] = 9)),
        ("other digests", true, |all| {
            change(all, is_manifest, |o| {
                forge(o, |m| m.rows.iter_mut().for_each(|row| row.output.0[0] ^= 1));
            });
        }),
        ("endless outputs", true, |all| {
            change(all, is_manifest, |o| {
                forge(o, |m| m.rows.iter_mut().for_each(|row| row.size = u64::MAX));
            });
        }),
        ("ten thousand entries more", true, |all| change(all, is_manifest, |o| forge(o, swell))),
        ("bombs", true, place_bombs),
        ("no pack", false, |all| change(all, is_content, Vec::clear)),
        ("damaged packs", false, |all| change(all, is_content, |o| flip(o))),
    ];
    for (what, has_all, harm) in harms {
        let mut all = sound.clone();
        harm(&mut all);
        central.keys().iter().for_each(|key| central.remove(key));
        all.iter().for_each(|(key, object)| central.insert(key, object));
        let b = Machine::new(&go);
        let daemon = b.home.daemon(&["--upstream", &url]);
        let (program, said) = b.build(&origin.clone());
        assert!(program == expected, "{what}");
        assert!(!has_all || is_kept(&daemon, &said, &[]), "{what}: compiled: {said}");
        assert_eq!(daemon.control(&json!({"op": "verify"}))["bad_entries"], 0, "{what}");
        if has_all {
            continue;
        }
        // What was compiled again heals what upstream has lost.
        daemon.flush();
        drop(daemon);
        let c = Machine::new(&go);
        let daemon = c.home.daemon(&["--upstream", &url]);
        let (program, said) = c.build(&origin.clone());
        assert!(program == expected, "{what}: afterwards");
        assert!(is_kept(&daemon, &said, &[]), "{what}: compiled afterwards: {said}");
    }
}

/// Two commits after the last build, a clone of depth 1 has nothing but the trails to go by.
#[test]
fn a_trail_that_is_not_right_costs_single_questions() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let central = CacheServer::start();
    let a = Machine::new(&go);
    let daemon = a.home.daemon(&["--upstream", &central.url()]);
    a.build(&origin.clone());
    daemon.flush();
    drop(daemon);
    for number in 0..2 {
        fs::write(origin.path().join("notes.txt"), number.to_string()).unwrap();
        origin.commit();
    }
    let expected = native(&go, &origin.clone());
    let sound = objects(&central);
    type Harm = fn(&mut Vec<u8>);
    let harms: [(&str, bool, Harm); 6] = [
        ("sound", true, |_| {}),
        ("none", false, Vec::clear),
        ("damaged", false, |object| flip(object)),
        ("newer", false, |object| object[8] = 9),
        ("of elsewhere", false, forge_trail),
        ("endless", false, announce),
    ];
    for (what, is_sound, harm) in harms {
        let mut all = sound.clone();
        change(&mut all, is_trail, harm);
        central.keys().iter().for_each(|key| central.remove(key));
        all.iter().for_each(|(key, object)| central.insert(key, object));
        let b = Machine::new(&go);
        let daemon = b.home.daemon(&["--upstream", &central.url()]);
        let (program, said) = b.build(&origin.clone());
        assert!(program == expected, "{what}");
        // The program names its commit.
        assert!(is_kept(&daemon, &said, &["example.test/hello"]), "{what}: compiled: {said}");
        assert_eq!(prefetched(&daemon) > 20, is_sound, "{what}: {}", daemon.stats()["sessions"]);
        assert_eq!(daemon.control(&json!({"op": "verify"}))["bad_entries"], 0, "{what}");
    }
}

/// A clone of depth 1 of a merge that has no name, as CI systems check pull requests out.
#[test]
fn a_pull_request_starts_from_what_main_built_while_it_is_still_on_its_way() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let central = CacheServer::start();
    let url = central.url();
    let main = Machine::new(&go);
    let daemon = main.home.daemon(&["--upstream", &url, "--namespace", "main"]);
    main.build(&origin.clone());
    daemon.flush();
    drop(daemon);
    let of_main = objects(&central);

    git(&origin.path(), &["checkout", "-q", "-b", "feature"]);
    let text = "package name\n\nfunc Of() string { return \"feature\" }\n";
    fs::write(origin.path().join("name/name.go"), text).unwrap();
    origin.commit();
    git(&origin.path(), &["checkout", "-q", "-b", "merged", "main"]);
    git(&origin.path(), &["merge", "-q", "--no-ff", "-m", "a merge", "feature"]);
    let work = origin.clone();
    git(&work, &["checkout", "-q", "--detach"]);
    git(&work, &["branch", "-q", "-D", "merged"]);
    let expected = native(&go, &work);

    let pr = Machine::new(&go);
    let flags = ["--upstream", &url, "--namespace", "pr-7", "--trust", "main"];
    let daemon = pr.home.daemon(&flags);
    central.set_fault_on("GET", Fault::SlowFirstByte(Duration::from_millis(60)));
    let (program, said) = pr.build(&work);
    central.heal();
    assert!(program == expected);
    let changed = ["example.test/hello/name", "example.test/hello/greet", "example.test/hello"];
    assert!(is_kept(&daemon, &said, &changed), "{said}");
    assert!(prefetched(&daemon) > 20, "{}", daemon.stats()["sessions"]);
    daemon.flush();
    for (key, value) in &of_main {
        assert!(central.object(key).as_ref() == Some(value), "{key} was changed");
    }
    let written = objects(&central).into_keys().filter(|key| !of_main.contains_key(key));
    assert!(written.collect::<Vec<_>>().iter().all(|key| key.starts_with("/pr-7/")));

    // The same commit, once it is merged: main builds itself what only the pull request has built.
    let main = Machine::new(&go);
    let daemon = main.home.daemon(&["--upstream", &url, "--namespace", "main"]);
    let (program, said) = main.build(&work);
    assert!(program == expected);
    let is_built = |package: &&str| said.lines().any(|line| line == *package);
    assert!(changed.iter().all(is_built), "believed: {said}");
    assert_asked(&daemon, 0);
}

fn prefetched(daemon: &TestDaemon) -> u64 {
    number(&daemon.stats()["sessions"][0], &["prefetched"])
}

/// The limit of the disk holds less than the manifest lists.
#[test]
fn a_disk_below_the_manifest_costs_misses_and_no_more_room() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let central = CacheServer::start();
    let url = central.url();
    let a = Machine::new(&go);
    let daemon = a.home.daemon(&["--upstream", &url]);
    let (expected, _) = a.build(&origin.clone());
    daemon.flush();
    drop(daemon);
    let b = Machine::new(&go);
    let daemon = b.home.daemon(&["--upstream", &url, "--disk", "12MiB"]);
    let (program, _) = b.build(&origin.clone());
    assert!(program == expected);
    assert!(prefetched(&daemon) > 0, "{}", daemon.stats()["sessions"]);
    let manifests = objects(&central).into_values();
    let mut listed = manifests.filter_map(|object| Manifest::decode(&object).ok());
    let listed = listed.next().unwrap();
    let sizes: BTreeMap<Digest, u64> = listed.rows.iter().map(|r| (r.output, r.size)).collect();
    let bytes: u64 = sizes.values().sum();
    assert!(bytes > 12 << 20, "{bytes} bytes would fit");
    let count = listed.rows.iter().filter(|row| row.size > 0).count();
    assert!(prefetched(&daemon) < count as u64, "all of it was fetched");
    // What go has put itself may lie beyond the limit for a while.
    assert_eq!(daemon.control(&json!({"op": "verify"}))["bad_entries"], 0);
}

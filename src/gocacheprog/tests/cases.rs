//! The promises, one test each.

use super::*;

const A: [u8; 32] = [1; 32];
const B: [u8; 32] = [2; 32];

#[test]
fn without_a_daemon_go_builds_and_the_next_daemon_finds_what_it_built() {
    let mut go = Bench::without_daemon();
    assert_eq!(go.get(A)["Miss"], true);
    go.put_right(A, b"true");
    go.put_right(B, b"");
    go.close();
    let (dir, warnings) = go.end();
    assert_eq!(warnings, "");
    let mut spooled = spooled(&dir);
    spooled.sort_by_key(|s| s.meta.size);
    assert_eq!(spooled.len(), 2);
    assert_eq!(spooled[1].meta.class, Class::Probe);
    assert_eq!(spooled[1].action, crate::entry::Key::go(REALM, Digest(A)));
}

#[test]
fn go_that_leaves_without_a_close_has_all_its_answers() {
    let mut go = Bench::without_daemon();
    go.put_right(A, b"x");
    go.send("{\"ID\":9,\"Command\":\"get\",\"ActionID\":\"");
    go.end();
}

#[test]
fn a_wrong_put_is_an_error_and_the_next_request_is_heard() {
    let mut go = Bench::without_daemon();
    let answer = go.put(A, Digest::of(b"other"), b"bytes");
    assert!(answer["Err"].as_str().unwrap().contains("digest"), "{answer}");
    let answer = go.put(A, Digest::of(b"x"), b"");
    assert!(answer["Err"].is_string(), "{answer}");
    go.put_right(A, b"right");
    go.close();
    let (_, warnings) = go.end();
    assert_eq!(warnings.lines().count(), 1, "{warnings}");
}

#[test]
fn what_is_not_a_request_ends_the_helper_with_one_line() {
    let mut go = Bench::without_daemon();
    go.send("hello\n");
    let mut rest = String::new();
    go.stdout.read_to_string(&mut rest).unwrap();
    let (_, warnings) = go.end();
    assert_eq!((rest.as_str(), warnings.lines().count()), ("", 1));
}

#[test]
fn a_large_body_passes_through_in_pieces() {
    let body: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
    let mut go = Bench::without_daemon();
    go.put_right(A, &body);
    go.put_right(B, b"and the next");
    go.close();
    go.end();
}

#[test]
fn a_full_store_is_no_fault_of_the_build() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("store")).unwrap();
    std::fs::write(dir.path().join("store/tmp"), "a file where a directory should be").unwrap();
    let mut go = Bench::start(dir, |_| {});
    let large = vec![7; 700_000];
    for (action, body) in [(A, &b"small"[..]), (B, &large), ([3; 32], b"")] {
        let path = go.put_right(action, body);
        assert!(path.to_str().unwrap().contains("larder-"), "{}", path.display());
    }
    go.close();
    go.end();
}

#[test]
fn the_daemon_answers_what_the_index_does_not_and_hears_of_puts() {
    let (dir, daemon) = with_daemon(|daemon| {
        let body = b"from the daemon";
        let path = crate::store::layout::Layout::new(&daemon.store).file(&Digest::of(body));
        std::fs::write(path, body).unwrap();
        daemon.welcome(|welcome| welcome.warning = Some("careful".into()));
        assert_eq!(daemon.hear(), Some(Frame::Sees { store: true }));
        let Some(Frame::Get { id, action: A, .. }) = daemon.hear() else { panic!("no get") };
        daemon.say(Frame::Hit { id, entry: entry(body) });
        let Some(Frame::Get { id, action: B, .. }) = daemon.hear() else { panic!("no get") };
        daemon.say(Frame::Miss { id, why: 0 });
        let Some(Frame::Put { id, action: B, entry }) = daemon.hear() else { panic!("no put") };
        assert_eq!((entry.output, entry.source), (Digest::of(b"built").0, SOURCE_BUILT));
        daemon.say(Frame::Done { id, stored: true });
        assert_eq!(daemon.hear(), None);
        assert_eq!((daemon.report.gets, daemon.report.puts), (2, 1));
    });
    let mut go = Bench::start(dir, |_| {});
    let hit = go.get(A);
    assert_eq!(hit["Time"], "1970-01-01T00:00:01Z");
    assert_eq!(std::fs::read(hit["DiskPath"].as_str().unwrap()).unwrap(), b"from the daemon");
    assert_eq!(go.get(B)["Miss"], true);
    go.put_right(B, b"built");
    go.close();
    daemon.join().unwrap();
    let (dir, warnings) = go.end();
    assert_eq!(warnings, "larder: careful\n");
    assert_eq!(spooled(&dir), []);
}

#[test]
fn a_hit_whose_file_is_gone_is_a_miss() {
    let (dir, daemon) = with_daemon(|daemon| {
        daemon.welcome(|_| {});
        daemon.hear();
        let Some(Frame::Get { id, .. }) = daemon.hear() else { panic!("no get") };
        daemon.say(Frame::Hit { id, entry: entry(b"moved away by go build -o") });
        while daemon.hear().is_some() {}
    });
    let mut go = Bench::start(dir, |_| {});
    assert_eq!(go.get(A)["Miss"], true);
    go.end();
    daemon.join().unwrap();
}

#[test]
fn a_daemon_that_falls_in_the_midst_of_a_build_costs_misses_and_nothing_else() {
    let (dir, daemon) = with_daemon(|daemon| {
        daemon.welcome(|_| {});
        daemon.hear();
        assert!(matches!(daemon.hear(), Some(Frame::Put { .. })));
        assert!(matches!(daemon.hear(), Some(Frame::Get { .. })));
    });
    let mut go = Bench::start(dir, |_| {});
    go.put_right(A, b"not confirmed");
    assert_eq!(go.get(B)["Miss"], true);
    daemon.join().unwrap();
    go.put_right(B, b"afterwards");
    go.close();
    let (dir, warnings) = go.end();
    assert_eq!(warnings, "");
    assert_eq!(spooled(&dir).len(), 2);
}

#[test]
fn go_goes_on_before_the_daemon_has_confirmed() {
    let (tell, told) = std::sync::mpsc::channel();
    let (dir, daemon) = with_daemon(move |daemon| {
        daemon.welcome(|_| {});
        daemon.hear();
        let Some(Frame::Put { id, .. }) = daemon.hear() else { panic!("no put") };
        told.recv().unwrap();
        daemon.say(Frame::Done { id, stored: true });
        while daemon.hear().is_some() {}
    });
    let mut go = Bench::start(dir, |_| {});
    go.put_right(A, b"x");
    go.close();
    tell.send(()).unwrap();
    daemon.join().unwrap();
    let (dir, _) = go.end();
    assert_eq!(spooled(&dir), []);
}

#[test]
fn a_hung_daemon_is_a_miss_by_the_deadline() {
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let (dir, daemon) = with_daemon(move |daemon| {
        daemon.welcome(|_| {});
        told.recv().unwrap();
    });
    let mut go = Bench::start(dir, |config| config.deadline = Duration::from_millis(30));
    for n in 0..20 {
        assert_eq!(go.get([n; 32])["Miss"], true);
    }
    tell.send(()).unwrap();
    daemon.join().unwrap();
    go.close();
    go.end();
}

#[test]
fn beside_a_daemon_of_another_version_its_store_is_left_alone() {
    for reply in [
        Frame::Welcome(Welcome { protocol: 99, ..Welcome::default() }),
        Frame::Refused(Refused {
            protocol: PROTOCOL,
            reason: "no token".into(),
            ..Refused::default()
        }),
    ] {
        let (dir, daemon) = with_daemon(move |daemon| daemon.say(reply));
        let mut go = Bench::start(dir, |_| {});
        assert_eq!(go.get(A)["Miss"], true);
        let path = go.put_right(A, b"x");
        assert!(path.starts_with(go.dir.path().join("view")), "{}", path.display());
        go.close();
        daemon.join().unwrap();
        let (dir, warnings) = go.end();
        assert_eq!(warnings.lines().count(), 1, "{warnings}");
        assert_eq!(spooled(&dir), []);
    }
}

#[test]
fn what_cannot_be_seen_crosses_the_socket_and_proves_itself() {
    let body: Vec<u8> = (0..600_000_u32).map(|n| (n % 241).to_le_bytes()[0]).collect();
    let sent = body.clone();
    let (dir, daemon) = with_daemon(move |daemon| {
        daemon.welcome(|welcome| welcome.nonce = "of another store".into());
        assert_eq!(daemon.hear(), Some(Frame::Sees { store: false }));
        for is_right in [true, false] {
            let Some(Frame::Get { id, .. }) = daemon.hear() else { panic!("no get") };
            daemon.say(Frame::HitBytes { id, entry: entry(&sent) });
            let mut bytes = sent.clone();
            bytes[0] ^= u8::from(!is_right);
            for piece in bytes.chunks(256 << 10).chain([&[][..]]) {
                daemon.say(Frame::Piece { id, bytes: piece.to_vec() });
            }
        }
        let Some(Frame::PutBytes { id, action: B, entry }) = daemon.hear() else { panic!("put?") };
        let mut bytes = Vec::new();
        loop {
            let Some(Frame::Piece { bytes: piece, .. }) = daemon.hear() else { panic!("piece?") };
            if piece.is_empty() {
                break;
            }
            bytes.extend(piece);
        }
        assert_eq!(Digest::of(&bytes).0, entry.output);
        daemon.say(Frame::Done { id, stored: true });
        while daemon.hear().is_some() {}
    });
    let mut go = Bench::start(dir, |_| {});
    let hit = go.get(A);
    let path = PathBuf::from(hit["DiskPath"].as_str().unwrap());
    assert!(path.starts_with(go.dir.path().join("view")));
    assert!(std::fs::read(&path).unwrap() == body);
    assert_eq!(go.get(B)["Miss"], true, "wrong bytes are not handed on");
    go.put_right(B, &body[..500_000]);
    go.close();
    go.end();
    daemon.join().unwrap();
}

#[test]
fn a_native_cache_is_read_verified_and_shared() {
    let dir = tempfile::tempdir().unwrap();
    let native = dir.path().join("native");
    for first in 0..=255_u8 {
        std::fs::create_dir_all(native.join(format!("{first:02x}"))).unwrap();
    }
    for (action, bytes, output) in [(A, b"good", b"good"), (B, b"evil", b"nice")] {
        let (id, output) = (Digest(action).to_string(), Digest::of(output).to_string());
        let line = format!("v1 {id} {output} {:>20} {:>20}\n", 4, 2_000_000_000);
        std::fs::write(native.join(&id[..2]).join(format!("{id}-a")), line).unwrap();
        std::fs::write(native.join(&output[..2]).join(format!("{output}-d")), bytes).unwrap();
    }
    let mut go = Bench::start(dir, |config| config.native = Some(native));
    let hit = go.get(A);
    let path = PathBuf::from(hit["DiskPath"].as_str().unwrap());
    assert!(path.starts_with(go.dir.path().join("store")), "{}", path.display());
    assert_eq!(std::fs::read(path).unwrap(), b"good");
    assert_eq!(hit["Time"], "1970-01-01T00:00:02Z");
    assert_eq!(go.get(B)["Miss"], true);
    go.close();
    let (dir, _) = go.end();
    assert_eq!(spooled(&dir).len(), 1);
}

#[test]
fn a_warm_get_needs_no_daemon() {
    use crate::entry::{Key, Meta};
    use crate::store::{Config, Store};
    use crate::units::{ByteSize, Timestamp};
    let dir = tempfile::tempdir().unwrap();
    let config = Config { dir: dir.path().join("store"), disk: None, floor: None };
    let config = Config { disk: Some(crate::store::Limit::Size(ByteSize::gib(1))), ..config };
    let store = Store::open(&config, Clock::system(), Arc::default()).unwrap();
    for (action, c_env) in [(A, 0), (B, 0xbad)] {
        let mut staged = store.stage();
        staged.write(&action).unwrap();
        let mut body = staged.finish();
        let mut meta = Meta::new(body.digest, body.size, Timestamp(0), Class::Other);
        meta.c_env = c_env;
        store.place(&mut body).unwrap();
        store.record_go(&Key::go(REALM, Digest(action)), &meta, None).unwrap();
    }
    store.close();
    drop(store);
    let mut go = Bench::start(dir, |_| {});
    let hit = go.get(A);
    assert_eq!(std::fs::read(hit["DiskPath"].as_str().unwrap()).unwrap(), A);
    assert_eq!(go.get(B)["Miss"], true, "built with another C environment");
    go.close();
    go.end();
}

#[test]
fn nobody_waits_for_git_and_the_daemon_hears_what_it_says() {
    let id = "0123456789abcdef0123456789abcdef01234567";
    let (tell, told) = std::sync::mpsc::channel();
    let (dir, daemon) = with_daemon(move |daemon| {
        assert_eq!((daemon.hello.commit.as_str(), daemon.hello.branch.as_str()), (id, "feature"));
        assert_eq!((daemon.hello.default_branch.as_str(), daemon.hello.parents.len()), ("main", 0));
        daemon.welcome(|_| {});
        assert_eq!(daemon.hear(), Some(Frame::Sees { store: true }));
        let Some(Frame::Get { id: asked, .. }) = daemon.hear() else { panic!("no get") };
        daemon.say(Frame::Miss { id: asked, why: 0 });
        // Only now does git get to answer.
        let Some(Frame::Put { id: put, .. }) = daemon.hear() else { panic!("no put") };
        daemon.say(Frame::Done { id: put, stored: true });
        std::fs::write(daemon.store.join("go on"), "").unwrap();
        assert_eq!(daemon.hear(), Some(Frame::Parents { ids: vec![id.to_owned()] }));
        tell.send(()).unwrap();
        daemon.hear()
    });
    let root = dir.path().to_owned();
    std::fs::create_dir(root.join(".git")).unwrap();
    std::fs::write(root.join(".git/HEAD"), id).unwrap();
    let script = format!(
        "until test -e '{}'; do /bin/sleep 0.01; done\nprintf 'tree x\\nparent {id}\\n'",
        root.join("store/go on").display()
    );
    crate::git::tests::program(&root.join("git"), &script);
    let mut go = Bench::start(dir, |config| {
        config.commit = id.into();
        config.branch = "feature".into();
        config.default_branch = "main".into();
        let path = root.into_os_string();
        config.git_env = GitEnv::gather(&|name| (name == "PATH").then(|| path.clone()));
    });
    assert_eq!(go.get(A)["Miss"], true);
    go.put_right(A, b"built");
    told.recv().unwrap();
    go.close();
    assert_eq!(daemon.join().unwrap(), None);
    go.end();
}

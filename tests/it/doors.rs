//! The doors of a daemon: TLS on its listener, and other users at its socket.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use larder::units::Clock;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::harness::{Home, TestDaemon, ac, noise, with_descriptors};
use crate::support::cache_server::CacheServer;
use crate::support::{PATIENCE, is_root, skipped};

/// Who has no rights on anything of ours.
const NOBODY: u32 = 65_534;

/// A daemon that speaks TLS, as its file says, and the certificate to believe.
fn with_tls(home: &Home) -> (TestDaemon, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (home.path().join("tls.crt"), home.path().join("tls.key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let config = home.path().join("larder.toml");
    let text = format!("tls_cert = {cert:?}\ntls_key = {key:?}\n");
    std::fs::write(&config, text).unwrap();
    let daemon = home.daemon(&["--config", config.to_str().unwrap()]);
    (daemon, made.cert.der().clone())
}

/// One request over TLS; the answer as it came, head and body.
fn send_tls(
    daemon: &TestDaemon,
    trusted: &CertificateDer<'static>,
    method: &str,
    body: &[u8],
) -> std::io::Result<Vec<u8>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(daemon.addr())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(connection, stream);
    let head = format!(
        "{method} /kv/over/tls HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // An end without a farewell, after the whole answer.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && !answer.is_empty() => {}
        result => drop(result?),
    }
    Ok(answer)
}

#[test]
fn over_tls_a_put_is_got_by_who_trusts_the_certificate() {
    let home = Home::new();
    let (daemon, trusted) = with_tls(&home);
    let listen = daemon.stats()["listen"][0].as_str().unwrap().to_owned();
    assert!(listen.starts_with("https://"), "{listen}");
    let body = noise(1, 3 << 20);
    let put = send_tls(&daemon, &trusted, "PUT", &body).unwrap();
    assert!(put.starts_with(b"HTTP/1.1 201"), "{}", String::from_utf8_lossy(&put));
    let got = send_tls(&daemon, &trusted, "GET", b"").unwrap();
    assert!(got.starts_with(b"HTTP/1.1 200"));
    assert!(got.ends_with(&body));
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    send_tls(&daemon, other.cert.der(), "GET", b"").expect_err("not the one that is trusted");
}

#[test]
fn plain_text_at_the_door_of_tls_is_an_error_and_not_a_hang() {
    let home = Home::new();
    let (daemon, trusted) = with_tls(&home);
    let clock = Clock::system();
    for words in [&b"GET /kv/a HTTP/1.1\r\nhost: localhost\r\n\r\n"[..], b"LARDER1\n{}"] {
        let mut stream = TcpStream::connect(daemon.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(words).unwrap();
        let mut answer = Vec::new();
        // Cut, or a TLS alert; in no case HTTP, and in no case silence.
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        }
        assert!(!answer.starts_with(b"HTTP") && answer.len() < 20, "{answer:?}");
    }
    assert!(clock.elapsed() < PATIENCE / 2, "{:?}", clock.elapsed());
    let put = send_tls(&daemon, &trusted, "PUT", b"still there").unwrap();
    assert!(put.starts_with(b"HTTP/1.1 201"));
}

/// `larder stats` as nobody.
fn asked_by_nobody(home: &Home) -> Output {
    home.larder(&["stats", "--json"]).uid(NOBODY).gid(NOBODY).output().unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

/// Whether nobody can run larder at all: it lies where cargo put it.
fn may_become_nobody(home: &Home) -> bool {
    set_mode(home.path(), 0o755);
    if !is_root() {
        return skipped::<()>("only root can become another user").is_some();
    }
    match home.larder(&["--version"]).uid(NOBODY).gid(NOBODY).output() {
        Ok(output) if output.status.success() => true,
        _ => skipped::<()>("another user cannot run what cargo has built").is_some(),
    }
}

#[test]
fn another_user_is_turned_away_from_the_socket() {
    let home = Home::new();
    if !may_become_nobody(&home) {
        return;
    }
    let daemon = home.daemon(&[]);
    let dir = home.socket().parent().unwrap().to_owned();
    assert_eq!((mode(&dir), mode(&home.socket())), (0o700, 0o600));
    assert_eq!(asked_by_nobody(&home).status.code(), Some(4), "by the modes");
    assert!(!home.log().contains("turned away"));
    // Behind the modes, the daemon itself looks at who comes.
    set_mode(&dir, 0o755);
    set_mode(&home.socket(), 0o666);
    let output = asked_by_nobody(&home);
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "nothing is told");
    assert!(home.log().contains("turned away"), "{}", home.log());
    assert!(daemon.try_control(&serde_json::json!({"op": "stats"})).is_some(), "we still may");
}

#[test]
fn a_user_that_is_allowed_uses_the_socket_and_no_other_does() {
    let home = Home::new();
    if !may_become_nobody(&home) {
        return;
    }
    let daemon = home.daemon(&["--allow-uid", "65533"]);
    assert_eq!(asked_by_nobody(&home).status.code(), Some(4), "another one is allowed");
    assert!(home.log().contains("turned away"), "{}", home.log());
    daemon.terminate();
    let dir = home.socket().parent().unwrap().to_owned();
    std::fs::remove_dir_all(&dir).unwrap();
    let _daemon = home.daemon(&["--allow-uid", &NOBODY.to_string()]);
    assert_eq!(mode(&dir), 0o711, "through, but not into it");
    let output = asked_by_nobody(&home);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(mode(&home.store()) & 0o077 == 0, "the store is none of theirs");
}

#[test]
fn a_directory_that_is_there_is_not_opened_for_others() {
    let home = Home::new();
    let dir = home.socket().parent().unwrap().to_owned();
    std::fs::create_dir(&dir).unwrap();
    set_mode(&dir, 0o700);
    let _daemon = home.daemon(&["--allow-uid", &NOBODY.to_string()]);
    assert_eq!(mode(&dir), 0o700);
    assert!(home.log().contains("chmod o+x"), "{}", home.log());
}

/// A manifest says which output answers a lookup, as an action does: who may not write one may not
/// write the other.
#[test]
fn what_go_believes_is_not_written_over_tcp_without_a_token() {
    let central = CacheServer::start();
    let home = Home::new();
    let daemon = home.daemon(&["--upstream", &central.url()]);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for name in ["go_entry_v1.bin", "manifest_v1.bin", "trail_v1.bin"] {
        let value = std::fs::read(fixtures.join(name)).unwrap();
        assert_eq!(daemon.put(&ac(7), &value).status, 403, "{name}");
        assert_eq!(daemon.get(&ac(7)).status, 404, "{name}");
    }
    assert_eq!(daemon.put(&ac(7), b"any other tool's").status, 201);
}

#[test]
fn each_protocol_uses_the_upstream_that_its_settings_name() {
    let (first, second) = (CacheServer::start(), CacheServer::start());
    let home = Home::new();
    let config = home.path().join("larder.toml");
    let text = format!(
        "[[upstream]]\nname = \"first\"\nurl = \"{}\"\n\n[[upstream]]\nname = \"second\"\nurl = \"{}\"\n\n\
         [frontend.kv]\nupstream = \"second\"\n",
        first.url(),
        second.url()
    );
    std::fs::write(&config, text).unwrap();
    let daemon = home.daemon(&["--config", config.to_str().unwrap()]);
    assert_eq!(daemon.put("/kv/tool/a", b"opaque").status, 201);
    assert_eq!(daemon.put(&ac(1), b"action").status, 201);
    daemon.flush();
    assert!(first.object("/kv/tool/a").is_none() && second.object("/kv/tool/a").is_some());
    assert!(first.object(&ac(1)).is_some() && second.object(&ac(1)).is_none());
    assert_eq!(daemon.get("/kv/tool/a").body, b"opaque");
}

/// Connections once took the descriptors that the store needs, and idle ones kept all others out.
#[test]
fn with_few_descriptors_everybody_has_an_answer_sooner_or_later() {
    let home = Home::new();
    let daemon = home.daemon_with(&[], |command| with_descriptors(command, 64));
    // Each has sent a request and does not hang up.
    let mut all: Vec<TcpStream> = (0..300)
        .map(|n| {
            let mut stream = TcpStream::connect(daemon.addr()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let head =
                format!("PUT /kv/{n} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx");
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    for (n, stream) in all.iter_mut().enumerate() {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap_or_else(|error| panic!("{n}: {error}"));
        assert_eq!(&answer, b"HTTP/1.1 201", "{n}");
    }
    let stats = daemon.stats();
    assert_eq!(stats["disk"]["faults"], 0, "{}", home.log());
}

//! nginx serves, stores and counts as benches and tests need it.

use crate::support::http::send;
use crate::support::nginx::{Logged, Nginx};
use crate::support::{install, wait_for};

#[test]
fn what_was_put_is_got_and_every_request_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let Some(nginx) = Nginx::start_dav(dir.path()) else { return };
    let body = vec![7; 100_000];
    assert_eq!(nginx.url, format!("http://{}", nginx.addr()));
    assert_eq!(send(nginx.addr(), "GET", "/ac/aa/1", b"").unwrap().status, 404);
    assert_eq!(send(nginx.addr(), "PUT", "/ac/aa/1", &body).unwrap().status, 201);
    assert_eq!(send(nginx.addr(), "PUT", "/ac/aa/1", &body).unwrap().status, 204);
    assert_eq!(send(nginx.addr(), "GET", "/ac/aa/1", b"").unwrap().body, body);
    assert_eq!(std::fs::read(dir.path().join("ac/aa/1")).unwrap(), body);
    let expected = [("GET", 404), ("PUT", 201), ("PUT", 204), ("GET", 200)];
    let mut seen = nginx.wait_for_requests(expected.len());
    // Two workers write the log, so its order is not that of the requests.
    let mut expected = expected.map(|(method, status)| Logged {
        method: method.to_owned(),
        path: "/ac/aa/1".to_owned(),
        status,
    });
    seen.sort_by(|a, b| (&a.method, a.status).cmp(&(&b.method, b.status)));
    expected.sort_by(|a, b| (&a.method, a.status).cmp(&(&b.method, b.status)));
    assert_eq!(seen, expected);
}

#[test]
fn the_static_server_only_reads() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("k"), b"value").unwrap();
    let Some(nginx) = Nginx::start_static(dir.path()) else { return };
    assert_eq!(send(nginx.addr(), "GET", "/k", b"").unwrap().body, b"value");
    assert_eq!(send(nginx.addr(), "PUT", "/k", b"other").unwrap().status, 405);
    assert_eq!(nginx.requests(), []);
}

#[test]
fn nothing_listens_after_it_was_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let Some(nginx) = Nginx::start_dav(dir.path()) else { return };
    let addr = nginx.addr();
    drop(nginx);
    wait_for("the port to close", || send(addr, "GET", "/", b"").is_err().then_some(()));
}

#[test]
fn the_load_generator_says_its_version() {
    let Some(wrk) = install::wrk() else { return };
    let output = std::process::Command::new(wrk).arg("-v").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("wrk "));
}

//! The cache server stores, counts, and fails in each of the ways it offers.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::cache_server::{CacheServer, Fault};
use crate::support::http::{send, send_with};

const BODY: &[u8] = b"0123456789";

fn server_with_body() -> CacheServer {
    let server = CacheServer::start();
    server.insert("/k", BODY);
    server
}

#[test]
fn what_was_put_is_got_and_counted_by_method_and_path() {
    let server = CacheServer::start();
    assert_eq!(send(server.addr(), "GET", "/a", b"").unwrap().status, 404);
    assert_eq!(send(server.addr(), "PUT", "/a", BODY).unwrap().status, 201);
    assert_eq!(send(server.addr(), "PUT", "/a", BODY).unwrap().status, 204);
    assert_eq!(send(server.addr(), "GET", "/a", b"").unwrap().body, BODY);
    let head = send(server.addr(), "HEAD", "/a", b"").unwrap();
    assert_eq!((head.header("content-length"), head.body.len()), (Some("10"), 0));
    assert_eq!((server.gets(), server.heads(), server.puts()), (2, 1, 2));
    assert_eq!(server.requests("GET", "/a"), 2);
    assert_eq!(server.requests("GET", "/b"), 0);
    assert_eq!((server.keys(), server.object("/a")), (vec!["/a".to_owned()], Some(BODY.to_vec())));
    assert_eq!((server.connections(), server.fault_count()), (5, 0));
    assert_eq!(server.bytes_sent(), 10);
    server.forget_requests();
    server.remove("/a");
    assert_eq!((server.gets(), server.keys().len()), (0, 0));
}

#[test]
fn a_connection_serves_many_requests_and_every_kind_of_body() {
    let server = CacheServer::start();
    let mut stream = TcpStream::connect(server.addr()).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut expect = |sent: &[u8], answer: &[u8]| {
        stream.write_all(sent).unwrap();
        let mut got = vec![0; answer.len()];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(answer));
    };
    let created: &[u8] = b"HTTP/1.1 201 -\r\nContent-Length: 0\r\n\r\n";
    let chunked =
        "PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n";
    expect(chunked.as_bytes(), created);
    expect(
        b"PUT /e HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    );
    expect(b"abc", created);
    expect(b"GET /c HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 -\r\nContent-Length: 6\r\n\r\nhello!");
    assert_eq!(server.object("/e"), Some(b"abc".to_vec()));
    assert_eq!(server.connections(), 1);
}

#[test]
fn what_clients_show_to_be_let_in_is_kept() {
    let server = server_with_body();
    assert!(server.authorizations().is_empty());
    let shown = [("authorization", "Bearer abc")];
    send_with(server.addr(), "GET", "/a", &shown, b"").unwrap();
    assert!(server.authorizations().iter().eq(["Bearer abc"]));
}

#[test]
fn ranges_are_answered_in_part() {
    let server = server_with_body();
    for (range, status, body) in [
        ("bytes=2-4", 206, &BODY[2..5]),
        ("bytes=8-", 206, &BODY[8..]),
        ("bytes=-3", 206, &BODY[7..]),
        ("bytes=5-99", 206, &BODY[5..]),
        ("bytes=10-", 416, b""),
    ] {
        let answer = send_with(server.addr(), "GET", "/k", &[("Range", range)], b"").unwrap();
        assert_eq!((answer.status, &answer.body[..]), (status, body), "{range}");
    }
}

#[test]
fn a_refusing_server_keeps_its_port_and_comes_back_on_it() {
    let server = server_with_body();
    for _ in 0..3 {
        assert_eq!(send(server.addr(), "GET", "/k", b"").unwrap().body, BODY);
        let mut standing = TcpStream::connect(server.addr()).unwrap();
        server.set_fault(Fault::Refuse);
        let refused = TcpStream::connect(server.addr()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let cut = standing.read(&mut [0; 1]);
        assert!(matches!(cut, Ok(0) | Err(_)), "a connection that stood is cut");
        server.heal();
    }
    assert_eq!(send(server.addr(), "GET", "/k", b"").unwrap().body, BODY);
}

#[test]
fn a_black_hole_swallows_until_it_is_lifted() {
    let server = server_with_body();
    server.set_fault(Fault::BlackHole);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| send(server.addr(), "GET", "/k", b""));
        server.wait_until("the request", |server| server.fault_count() == 1);
        assert!(!client.is_finished());
        server.heal();
        assert!(client.join().unwrap().is_err(), "what was swallowed is not answered later");
    });
    assert_eq!(send(server.addr(), "GET", "/k", b"").unwrap().body, BODY);
}

#[test]
fn answers_are_wrong_in_the_way_that_was_asked_for() {
    let server = server_with_body();
    let ask = |fault: Fault| {
        server.set_fault(fault);
        send(server.addr(), "GET", "/k", b"")
    };
    for status in [500, 429, 507] {
        assert_eq!(ask(Fault::Status(status)).unwrap().status, status);
    }
    let redirect = ask(Fault::Redirect("http://192.0.2.1/".to_owned())).unwrap();
    assert_eq!((redirect.status, redirect.header("location")), (302, Some("http://192.0.2.1/")));
    assert_eq!(ask(Fault::Truncated).unwrap().body, &BODY[..5]);
    let wrong = ask(Fault::WrongBytes).unwrap().body;
    assert_eq!((wrong.len(), wrong == BODY), (BODY.len(), false));
    let closed = ask(Fault::CloseMidBody).unwrap_err();
    assert_eq!(closed.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(ask(Fault::Trickle(Duration::from_millis(1))).unwrap().body, BODY);
    assert_eq!(ask(Fault::SlowFirstByte(Duration::from_millis(1))).unwrap().body, BODY);
    assert_eq!(server.fault_count(), 9);
}

#[test]
fn a_fault_can_be_of_one_method_only_and_stores_nothing() {
    let server = server_with_body();
    server.set_fault_on("PUT", Fault::Status(507));
    assert_eq!(send(server.addr(), "PUT", "/new", BODY).unwrap().status, 507);
    assert_eq!(send(server.addr(), "GET", "/k", b"").unwrap().body, BODY);
    assert_eq!(server.keys(), ["/k"]);
    server.heal();
    assert_eq!(send(server.addr(), "PUT", "/new", BODY).unwrap().status, 201);
}

#[test]
fn stopping_waits_for_nobody() {
    let server = server_with_body();
    let mut stream = TcpStream::connect(server.addr()).unwrap();
    server.set_fault(Fault::Trickle(Duration::from_secs(3600)));
    stream.write_all(b"GET /k HTTP/1.1\r\n\r\n").unwrap();
    server.wait_until("the request", |server| server.gets() == 1);
    drop(server);
    let mut rest = Vec::new();
    assert!(stream.read_to_end(&mut rest).is_err() || !rest.ends_with(BODY));
}

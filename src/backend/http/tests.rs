//! The HTTP backend against a server that misbehaves on purpose, over real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::net::TcpListener;
use tokio::sync::Barrier;

use super::fault_server::{Act, FaultServer, answer};
use super::*;
use crate::backend::{Space, guard};
use crate::telemetry::Metrics;
use crate::units::Secret;

pub(super) fn config(url: String) -> Config {
    Config {
        name: "central".into(),
        url,
        credentials: Credentials::None,
        ca_file: None,
        client_cert: None,
        write: true,
        write_method: WriteMethod::Put,
        guard: guard::Config::default(),
    }
}

pub(super) fn kv(id: &str) -> Name {
    Name { namespace: "".into(), space: Space::Kv, id: id.into() }
}

fn client_of(server: &FaultServer) -> HttpBackend {
    HttpBackend::new(&config(format!("http://{}/prefix/", server.addr))).unwrap()
}

pub(super) async fn read(fetched: Fetched) -> Result<Vec<u8>, BodyError> {
    fetched
        .chunks
        .try_fold(Vec::new(), |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        })
        .await
}

/// What a get came to, as text that tables can hold.
async fn show_get(backend: &dyn Backend, name: &Name) -> String {
    match backend.get(name).await {
        Ok(None) => "absent".into(),
        Ok(Some(fetched)) => match read(fetched).await {
            Ok(bytes) => format!("found {}", String::from_utf8_lossy(&bytes)),
            Err(error) => format!("broke off: {error:?}"),
        },
        Err(error) => format!("{error:?}"),
    }
}

#[tokio::test]
async fn every_status_of_a_get_has_one_meaning() {
    let cases = [
        ("200 OK", "", "found body"),
        ("200 OK", "Content-Encoding: identity\r\n", "found body"),
        ("404 Not Found", "", "absent"),
        ("410 Gone", "", "absent"),
        ("404 Not Found", "Larder-Miss: absent\r\n", "absent"),
        ("404 Not Found", "Larder-Miss: local\r\n", "absent"),
        ("404 Not Found", "Larder-Miss: fault\r\n", "Unsure(Fault)"),
        ("404 Not Found", "Larder-Miss: deadline\r\n", "Unsure(Deadline)"),
        ("404 Not Found", "Larder-Miss: breaker\r\n", "Unsure(Breaker)"),
        ("404 Not Found", "Larder-Miss: a word of tomorrow\r\n", "Unsure(Fault)"),
        ("301 Moved Permanently", "Location: /elsewhere\r\n", "Redirect(301)"),
        ("307 Temporary Redirect", "Location: /elsewhere\r\n", "Redirect(307)"),
        ("401 Unauthorized", "", "Denied(401)"),
        ("403 Forbidden", "", "Denied(403)"),
        ("413 Content Too Large", "", "TooLarge"),
        ("429 Too Many Requests", "", "Status(429)"),
        ("500 Internal Server Error", "", "Status(500)"),
        ("503 Service Unavailable", "", "Status(503)"),
        ("507 Insufficient Storage", "", "Full"),
        ("206 Partial Content", "", "Status(206)"),
    ];
    for (status, headers, meaning) in cases {
        let said = answer(status, headers, b"body");
        let server = FaultServer::start(move |_| Act::Say(said.clone())).await;
        let shown = show_get(&client_of(&server), &kv("x")).await;
        assert_eq!(shown, meaning, "{status} {headers}");
        assert_eq!(server.seen().len(), 1, "{status}: asked once, no redirect followed");
    }
    let server =
        FaultServer::start(|_| Act::Say(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())).await;
    assert_eq!(show_get(&client_of(&server), &kv("x")).await, "absent");
}

#[tokio::test]
async fn every_status_of_a_put_has_one_meaning() {
    let cases = [
        ("200 OK", "Ok(())"),
        ("201 Created", "Ok(())"),
        ("202 Accepted", "Ok(())"),
        ("302 Found", "Err(Redirect(302))"),
        ("401 Unauthorized", "Err(Denied(401))"),
        ("404 Not Found", "Err(Status(404))"),
        ("405 Method Not Allowed", "Err(ReadOnly)"),
        ("409 Conflict", "Err(Status(409))"),
        ("413 Content Too Large", "Err(TooLarge)"),
        ("501 Not Implemented", "Err(ReadOnly)"),
        ("507 Insufficient Storage", "Err(Full)"),
    ];
    for (status, meaning) in cases {
        let said = answer(status, "", b"page");
        let server = FaultServer::start(move |_| Act::Say(said.clone())).await;
        let put = client_of(&server).put(&kv("x"), Upload::bytes(Bytes::from("body"))).await;
        assert_eq!(format!("{put:?}"), meaning, "{status}");
    }
    let server =
        FaultServer::start(|_| Act::Say(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())).await;
    client_of(&server).put(&kv("x"), Upload::bytes(Bytes::from("body"))).await.unwrap();
}

#[test]
fn names_become_urls_that_mean_the_same_name_again() {
    let cases = [
        ("", Space::Ac, "00ff", Some("http://h/p/ac/00ff")),
        ("team", Space::Cas, "00ff", Some("http://h/p/team/cas/00ff")),
        ("a/b", Space::Kv, "x/y", Some("http://h/p/a/b/kv/x/y")),
        ("", Space::Kv, "a b+c?d#e%f", Some("http://h/p/kv/a%20b%2Bc%3Fd%23e%25f")),
        ("", Space::Kv, "ü\\\"~._-", Some("http://h/p/kv/%C3%BC%5C%22~._-")),
        ("", Space::Kv, "a//b/", Some("http://h/p/kv/a//b/")),
        ("", Space::Kv, "...", Some("http://h/p/kv/...")),
        ("", Space::Kv, "a/../b", None),
        ("", Space::Kv, ".", None),
        ("..", Space::Kv, "x", None),
    ];
    for (namespace, space, id, expected) in cases {
        let name = Name { namespace: namespace.into(), space, id: id.into() };
        let url = url_of("http://h/p", &name).ok();
        assert_eq!(url.as_deref(), expected, "{name}");
        if let Some(url) = url {
            assert_eq!(Url::parse(&url).unwrap().as_str(), url, "sent as it is written");
        }
    }
}

#[tokio::test]
async fn requests_say_what_they_must_and_nothing_that_changes_bytes() {
    let server = FaultServer::start(|_| Act::Say(answer("200 OK", "", b""))).await;
    let mut config = config(format!("http://{}/prefix/", server.addr));
    let bearer = Credentials::Bearer(Secret::new("t0ken".into()));
    let basic = Credentials::Basic { user: "me".into(), password: Secret::new("pw".into()) };
    config.credentials = bearer;
    let backend = HttpBackend::new(&config).unwrap();
    backend.get(&kv("a b")).await.unwrap();
    config.credentials = basic;
    config.write_method = WriteMethod::Post;
    let backend = HttpBackend::new(&config).unwrap();
    backend.put(&kv("x"), Upload::bytes(Bytes::from("body"))).await.unwrap();
    backend.put(&kv("empty"), Upload::bytes(Bytes::new())).await.unwrap();

    let seen = server.seen();
    let [get, put, empty] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!((get.method.as_str(), get.path.as_str()), ("GET", "/prefix/kv/a%20b"));
    assert_eq!(get.header("accept-encoding"), None);
    assert_eq!(get.header("authorization"), Some("Bearer t0ken"));
    assert_eq!(get.header("user-agent"), Some(concat!("larder/", env!("CARGO_PKG_VERSION"))));
    assert_eq!((put.method.as_str(), put.body.as_slice()), ("POST", b"body".as_slice()));
    assert_eq!(put.header("authorization"), Some("Basic bWU6cHc="));
    assert_eq!(put.header("content-type"), Some("application/octet-stream"));
    assert_eq!(put.header("content-length"), Some("4"));
    assert_eq!(empty.header("content-length"), Some("0"));
    assert_eq!(server.panics(), 0);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_never_taken_for_whole() {
    const ENDLESS: &str = "Broken(\"upstream does not say where the body ends\")";
    let cases = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour", "broke off: Truncated { got: 4 }"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n",
            "broke off: Truncated { got: 4 }",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n\r\n",
            "found four",
        ),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfour", ENDLESS),
        // It goes before a length.
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 9\r\n\r\nfour", ENDLESS),
        (
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nfour",
            "Broken(\"upstream encoded the body (\\\"gzip\\\"), which changes its bytes\")",
        ),
    ];
    for (said, meaning) in cases {
        let server = FaultServer::start(|_| Act::SayAndClose(said.into())).await;
        let shown = show_get(&client_of(&server), &kv("x")).await;
        assert_eq!(shown, meaning, "{said:?}");
    }
}

#[tokio::test]
async fn what_is_not_http_is_trouble_and_no_absence() {
    for said in ["", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 2"] {
        let server = FaultServer::start(|_| Act::SayAndClose(said.into())).await;
        let error = client_of(&server).get(&kv("x")).await.err().expect("an error");
        assert!(error.is_trouble(), "{said:?}: {error}");
    }
}

#[tokio::test]
async fn a_connection_is_used_again_after_hits_misses_and_small_error_pages() {
    let server = FaultServer::start(|request| {
        Act::Say(match request.path.rsplit('/').next() {
            Some("hit") => answer("200 OK", "", b"body"),
            Some("missed") => answer("404 Not Found", "", &[b'x'; 500]),
            _ => answer("500 Internal Server Error", "", &[b'x'; 60 << 10]),
        })
    })
    .await;
    let backend = client_of(&server);
    for id in ["hit", "missed", "failed", "hit", "missed", "failed", "hit"] {
        show_get(&backend, &kv(id)).await;
    }
    assert_eq!((server.seen().len(), server.connections()), (7, 1));
}

#[tokio::test]
async fn a_large_error_page_costs_its_connection_and_is_not_read() {
    let server = FaultServer::start(|request| {
        Act::Say(if request.path.ends_with("large") {
            answer("404 Not Found", "", &vec![b'x'; 1 << 20])
        } else {
            answer("200 OK", "", b"body")
        })
    })
    .await;
    let backend = client_of(&server);
    assert_eq!(show_get(&backend, &kv("large")).await, "absent");
    assert_eq!(show_get(&backend, &kv("x")).await, "found body");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn an_error_page_that_never_ends_does_not_hold_up_its_status() {
    let server = FaultServer::start(|_| {
        Act::SayAndHold(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nfour".to_vec())
    })
    .await;
    assert_eq!(show_get(&client_of(&server), &kv("x")).await, "absent");
}

#[tokio::test]
async fn an_upload_whose_source_fails_is_never_whole_upstream() {
    fn broken(pieces: Vec<Result<Bytes, BodyError>>) -> Upload {
        let pieces = std::sync::Mutex::new(Some(pieces));
        let open = move || -> Chunks {
            Box::pin(stream::iter(pieces.lock().unwrap().take().expect("opened once")))
        };
        Upload { len: 8, open: Arc::new(open) }
    }
    let four = || Ok(Bytes::from("four"));
    let cases = [
        ("ends early", vec![four()]),
        ("goes on", vec![four(), four(), four()]),
        ("goes on within a piece", vec![four(), Ok(Bytes::from("fivefive"))]),
        ("breaks", vec![four(), Err(BodyError::Corrupt)]),
        ("proves corrupt after its last byte", vec![four(), four(), Err(BodyError::Corrupt)]),
    ];
    for (what, pieces) in cases {
        let server = FaultServer::start(|_| Act::Say(answer("201 Created", "", b""))).await;
        let put = client_of(&server).put(&kv("x"), broken(pieces)).await;
        assert!(put.is_err(), "{what}");
        let seen = server.ended(1).await;
        assert!(seen.iter().all(|request| !request.is_whole), "{what}: {seen:?}");
    }
    let server = FaultServer::start(|_| Act::Say(answer("201 Created", "", b""))).await;
    client_of(&server).put(&kv("x"), broken(vec![four(), four()])).await.unwrap();
    assert_eq!(server.seen()[0].body, b"fourfour");
}

#[tokio::test]
async fn a_refused_connection_is_an_error_that_names_no_url_and_no_secret() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let mut config = config(format!("http://{addr}/prefix"));
    config.credentials = Credentials::Bearer(Secret::new("t0ken".into()));
    let backend = HttpBackend::new(&config).unwrap();
    let error = backend.get(&kv("x")).await.err().expect("nobody is there");
    let text = format!("{error} {error:?}");
    assert!(matches!(error, BackendError::Connect(_)), "{text}");
    assert!(!text.contains("prefix") && !text.contains("t0ken"), "{text}");
}

#[tokio::test]
async fn contains_asks_eight_at_a_time_and_answers_in_order() {
    let at_once = Arc::new(Barrier::new(HEADS_AT_ONCE));
    let server = FaultServer::start(move |request| {
        assert_eq!(request.method, "HEAD");
        let there = request.path.ends_with(['0', '2', '4', '6', '8']);
        let status = if there { "200 OK" } else { "404 Not Found" };
        let said = format!("HTTP/1.1 {status}\r\nContent-Length: 7\r\n\r\n").into_bytes();
        Act::SayTogether(at_once.clone(), said)
    })
    .await;
    let names: Vec<Name> = (0..24).map(|n| kv(&n.to_string())).collect();
    let found = client_of(&server).contains(&names).await.unwrap();
    assert_eq!(found, (0..24).map(|n| n % 2 == 0).collect::<Vec<_>>());
    assert_eq!(server.connections(), HEADS_AT_ONCE);
    assert_eq!(server.panics(), 0);
}

#[tokio::test]
async fn contains_without_head_tells_nothing_and_never_guesses_from_a_fault() {
    let cases = [
        ("405 Method Not Allowed", "", "Ok([false])"),
        ("404 Not Found", "Larder-Miss: fault\r\n", "Err(Unsure(Fault))"),
        ("500 Internal Server Error", "", "Err(Status(500))"),
    ];
    for (status, headers, meaning) in cases {
        let said = answer(status, headers, b"");
        let server = FaultServer::start(move |_| Act::Say(said.clone())).await;
        let found = client_of(&server).contains(&[kv("x")]).await;
        assert_eq!(format!("{found:?}"), meaning, "{status}");
    }
}

#[tokio::test]
async fn read_only_sends_nothing() {
    let server = FaultServer::start(|_| Act::Say(answer("201 Created", "", b""))).await;
    let mut config = config(format!("http://{}", server.addr));
    config.write = false;
    let backend = HttpBackend::new(&config).unwrap();
    let put = backend.put(&kv("x"), Upload::bytes(Bytes::from("body"))).await;
    assert!(matches!(put, Err(BackendError::ReadOnly)));
    assert_eq!(server.connections(), 0);
}

/// Longer than any test machine is busy.
const LONG: Duration = Duration::from_secs(60);

/// The chain as it is built for users, but with this time for an answer.
fn guarded(server: &FaultServer, metrics: &Metrics, answer: Duration) -> Arc<dyn Backend> {
    let mut config = config(format!("http://{}", server.addr));
    config.guard.connect = LONG;
    config.guard.first_byte = answer;
    config.guard.put_answer = answer;
    config.guard.window = Duration::from_millis(40);
    config.guard.small_get = LONG;
    crate::backend::build(&config, metrics, 1).unwrap()
}

#[tokio::test]
async fn a_black_hole_is_a_deadline() {
    let server = FaultServer::start(|_| Act::SayAndHold(Vec::new())).await;
    let backend = guarded(&server, &Metrics::default(), Duration::from_millis(50));
    let shown = show_get(backend.as_ref(), &kv("x")).await;
    assert_eq!(shown, "Deadline { phase: \"answer\", limit_ms: 50 }");
    let put = backend.put(&kv("x"), Upload::bytes(Bytes::from("body"))).await;
    assert!(matches!(put, Err(BackendError::Deadline { .. })), "{put:?}");
}

#[tokio::test]
async fn a_body_that_drips_is_given_up() {
    let server = FaultServer::start(|_| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n".to_vec();
        Act::Drip(head, vec![b'x'; 100_000], Duration::from_millis(5))
    })
    .await;
    let shown = show_get(guarded(&server, &Metrics::default(), LONG).as_ref(), &kv("x")).await;
    assert!(shown.starts_with("broke off: Stalled"), "{shown}");
}

#[tokio::test]
async fn after_five_troubles_upstream_is_left_alone() {
    let turn = AtomicUsize::new(0);
    let server = FaultServer::start(move |_| match turn.fetch_add(1, Ordering::Relaxed) % 4 {
        0 => Act::Say(answer("500 Internal Server Error", "", b"")),
        1 => Act::Say(answer("429 Too Many Requests", "", b"")),
        2 => Act::SayAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour".to_vec()),
        _ => Act::SayAndClose(Vec::new()),
    })
    .await;
    let metrics = Metrics::default();
    let backend = guarded(&server, &metrics, LONG);
    for _ in 0..5 {
        assert_ne!(show_get(backend.as_ref(), &kv("x")).await, "BreakerOpen");
    }
    for _ in 0..20 {
        assert_eq!(show_get(backend.as_ref(), &kv("x")).await, "BreakerOpen");
    }
    let upstream = metrics.upstream("central");
    assert_eq!((upstream.state(), upstream.breaker_opened.get()), ("open", 1));
    assert_eq!((upstream.gets.get(), upstream.failures.get()), (5, 5));
    assert_eq!(server.seen().len(), 5);
}

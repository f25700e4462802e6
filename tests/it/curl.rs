//! What anyone tries first with curl, and what anyone gets wrong first.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use larder::client::{self, Address};
use larder::wire::go::{Hello, PROTOCOL};

use crate::harness::{Home, TestDaemon, ac, cas};
use crate::support::PATIENCE;
use crate::support::http::send_with;

fn raw(daemon: &TestDaemon, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(daemon.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The daemon may answer and close before it has read everything.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn malformed_keys_and_paths_are_told_apart_from_misses() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    for path in ["/cas/abc", "/ac/zz", "/kv/a/../b", "/kv/%2e%2e/b", "/kv/a%2fb", "/kv/a%00"] {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        assert!(raw(&daemon, request.as_bytes()).starts_with("HTTP/1.1 400"), "{path}");
    }
    let miss = daemon.get(&ac(1));
    assert_eq!((miss.status, miss.header("content-length")), (404, Some("0")));
    assert_eq!(miss.header("larder-miss"), Some("local"), "there is nobody to ask");
    assert_eq!(daemon.get("/").status, 400);
    assert_eq!(daemon.get("/nothing/here").status, 404);
    assert_eq!(daemon.send("OPTIONS", "/kv/a", b"").status, 405);
}

#[test]
fn a_huge_header_is_refused_and_the_daemon_goes_on() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    let request =
        format!("GET /kv/a HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    assert!(raw(&daemon, request.as_bytes()).starts_with("HTTP/1.1 431"));
    assert_eq!(daemon.put("/kv/a", b"a").status, 201);
}

#[test]
fn two_lengths_or_a_length_and_chunks_are_refused() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    let two = b"PUT /kv/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab";
    assert!(raw(&daemon, two).starts_with("HTTP/1.1 400"));
    assert_eq!(daemon.get("/kv/a").status, 404);
}

#[test]
fn foreign_hosts_and_web_pages_are_turned_away() {
    let home = Home::new();
    let daemon = home.daemon(&["--allow-host", "cache.example.com"]);
    let with = |headers: &[(&str, &str)]| {
        send_with(daemon.addr(), "PUT", "/kv/a", headers, b"x").unwrap().status
    };
    assert_eq!(with(&[("host", "evil.example.com")]), 421);
    assert_eq!(with(&[("host", "cache.example.com")]), 201);
    assert_eq!(with(&[("origin", "http://localhost")]), 403);
    assert_eq!(with(&[("sec-fetch-site", "cross-site")]), 403);
    assert_eq!(with(&[("origin", "null")]), 403);
}

#[test]
fn tokens_say_who_may_read_and_who_may_write() {
    let home = Home::new();
    let tokens = home.private(
        "tokens.toml",
        "[[token]]\nname = \"ci\"\nsecret = \"s3cret-ci\"\nnamespace = \"main\"\naccess = \"write\"\n\
         [[token]]\nname = \"pr\"\nsecret = \"s3cret-pr\"\nnamespace = \"pr\"\ntrust = \"main\"\naccess = \"write\"\n\
         [[token]]\nname = \"dev\"\nsecret = \"s3cret-dev\"\nnamespace = \"main\"\naccess = \"read\"\n",
    );
    let daemon = home.daemon(&["--tokens", &tokens]);
    let ask = |token: &str, method: &str, path: &str| {
        let value = format!("Bearer {token}");
        let headers: &[(&str, &str)] =
            if token.is_empty() { &[] } else { &[("authorization", &value)] };
        send_with(daemon.addr(), method, path, headers, b"body").unwrap().status
    };
    assert_eq!(ask("", "GET", &ac(1)), 401);
    assert_eq!(ask("wrong", "GET", &ac(1)), 401);
    assert_eq!(ask("s3cret-ci", "PUT", &ac(1)), 201);
    assert_eq!(ask("s3cret-dev", "GET", &ac(1)), 200);
    assert_eq!(ask("s3cret-dev", "PUT", &ac(2)), 403);
    assert_eq!(ask("s3cret-pr", "GET", &ac(1)), 200, "reads what it trusts");
    assert_eq!(ask("s3cret-pr", "PUT", &ac(1)), 201, "writes its own");
    assert_eq!(ask("s3cret-pr", "PUT", &format!("/main{}", ac(3))), 403);
    assert_eq!(ask("s3cret-ci", "GET", &format!("/pr{}", ac(1))), 403);
    assert_eq!(ask("s3cret-ci", "GET", &ac(1)), 200);
    // Content is one for all namespaces: whoever is confined to one took it from the others.
    assert_eq!(ask("s3cret-ci", "PUT", &cas(b"body")), 201);
    assert_eq!(ask("s3cret-pr", "DELETE", &cas(b"body")), 403);
    assert_eq!(ask("s3cret-ci", "GET", &cas(b"body")), 200);
    let basic = [("authorization", "Basic dTpzM2NyZXQtY2k=")];
    assert_eq!(send_with(daemon.addr(), "GET", &ac(1), &basic, b"").unwrap().status, 200);
    assert!(!home.log().contains("s3cret"), "no secret in the log");
}

/// A large body whose sender was turned away ended in a reset, and why was lost.
#[test]
fn whoever_is_turned_away_hears_why_however_much_he_sends() {
    let home = Home::new();
    let secret = "s3cret-dev";
    let tokens = home.private(
        "tokens.toml",
        &format!("[[token]]\nname = \"dev\"\nsecret = \"{secret}\"\naccess = \"read\"\n"),
    );
    let daemon = home.daemon(&["--tokens", &tokens]);
    let reader = format!("Bearer {secret}");
    let reader = [("authorization", reader.as_str())];
    let body = vec![7; 16 << 20];
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| {
        send_with(daemon.addr(), method, path, headers, &body).unwrap().status
    };
    assert_eq!(ask("PUT", "/kv/a", &reader), 403);
    assert_eq!(ask("PUT", "/kv/a", &[]), 401);
    assert_eq!(ask("PUT", "/kv/a", &[("host", "elsewhere.example")]), 421);
    assert_eq!(ask("PUT", "/kv/a/../b", &reader), 400);
    assert_eq!(ask("PATCH", "/kv/a", &reader), 405);

    assert_eq!(daemon.terminate(), Some(0));
    let open = home.daemon(&[]);
    let large = vec![7; 33 << 20];
    let told = send_with(open.addr(), "PUT", &ac(1), &[], &large).unwrap();
    assert_eq!(told.status, 413);
}

/// What is left of a body is no question of its own.
#[test]
fn after_a_body_that_nobody_wanted_a_connection_goes_on() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    let mut stream = TcpStream::connect(daemon.addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = vec![b'x'; 16 << 20];
    let head = format!(
        "PUT /kv/a/../b HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    stream
        .write_all(b"GET /kv/a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let statuses: Vec<&str> =
        answers.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")).collect();
    assert_eq!(statuses, ["400 Bad Request", "404 Not Found"], "{answers}");
}

/// A helper said whom it trusts, and read what its token does not let it.
#[test]
fn a_helper_reads_what_its_token_trusts_and_no_other() {
    let home = Home::new();
    let token = |name: &str, rest: &str| {
        format!(
            "[[token]]\nname = \"{name}\"\nsecret = \"s3cret-{name}\"\naccess = \"write\"\n{rest}"
        )
    };
    let (apart, trusting) = ("namespace = \"pr\"\n", "namespace = \"pr\"\ntrust = \"main\"\n");
    let text = token("free", "") + &token("apart", apart) + &token("trusting", trusting);
    let tokens = home.private("tokens.toml", &text);
    let daemon = home.daemon(&["--tokens", &tokens]);
    let realms = |token: &str, trust: Option<&str>| {
        let hello = Hello {
            protocol: PROTOCOL,
            role: "go".into(),
            token: Some(format!("s3cret-{token}")),
            namespace: Some("mine".into()),
            trust: trust.map(str::to_owned),
            ..Hello::default()
        };
        let address = Address::Tcp(daemon.addr().to_string());
        client::connect(&address, &hello, PATIENCE).unwrap().welcome.realms
    };
    assert_eq!(realms("apart", None).len(), 1);
    assert_eq!(realms("apart", Some("main")), realms("apart", None));
    assert_eq!(realms("trusting", Some("other")), realms("trusting", None));
    assert_eq!(realms("trusting", None).len(), 2);
    assert_eq!(realms("free", Some("main")).len(), 2);
}

#[test]
fn a_second_daemon_on_the_store_is_told_who_has_it() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    let other = home.path().join("other.sock");
    let output = home
        .larder(&["daemon", "--listen", "127.0.0.1:0", "--admin", "off", "--socket"])
        .arg(other)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&daemon.child.id().to_string()), "{text}");
    assert!(text.contains("--store"), "{text}");
}

#[test]
fn a_port_taken_by_someone_else_is_an_error_if_it_was_asked_for() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let output = home.larder(&["daemon", "--admin", "off", "--listen", &at]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&at) && text.contains("--listen"), "{text}");
}

#[test]
fn every_fault_of_a_configuration_is_named_with_its_place() {
    let home = Home::new();
    let path = home.path().join("config.toml");
    std::fs::write(&path, "memmory = \"1GiB\"\ndisk = \"lots\"\n[[upstream]]\nurl = 3\n").unwrap();
    let output = home.larder(&["check-config", "--config"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    for place in ["config.toml:1", "config.toml:2", "config.toml:4"] {
        assert!(text.contains(place), "{place} in {text}");
    }
    assert!(text.contains("memory"), "{text}");
    let good = home.larder(&["check-config"]).output().unwrap();
    assert_eq!(good.status.code(), Some(0));
    assert_eq!(home.larder(&["daemon", "--no-such-flag"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn curl_over_the_socket_needs_no_host_and_no_token() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    let mut stream = std::os::unix::net::UnixStream::connect(&daemon.socket).unwrap();
    stream
        .write_all(b"GET /kv/none HTTP/1.1\r\nhost: anything.at.all\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

#[test]
fn http2_with_prior_knowledge_is_spoken_on_the_same_port() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    let body = crate::harness::noise(1, 3 << 20);
    let url = daemon.url();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let got = runtime.block_on(async {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
        let path = format!("{url}{}", cas(&body));
        let put = client.put(&path).body(body.clone()).send().await.unwrap();
        assert_eq!((put.status().as_u16(), put.version()), (201, reqwest::Version::HTTP_2));
        client.get(&path).send().await.unwrap().bytes().await.unwrap()
    });
    assert!(got == body);
}

#[test]
fn a_command_runs_even_where_larder_cannot() {
    let home = Home::new();
    let no_home = home
        .larder(&["run", "--", "echo", "ran"])
        .env_remove("HOME")
        .env_remove("LARDER_STORE")
        .env_remove("LARDER_SOCKET")
        .output()
        .unwrap();
    assert_eq!(no_home.status.code(), Some(0));
    assert_eq!(no_home.stdout, b"ran\n");
    assert!(String::from_utf8_lossy(&no_home.stderr).contains("without the cache"));
    let wrong_flag = home.larder(&["run", "--no-such-flag", "--", "echo"]).output().unwrap();
    assert_eq!(wrong_flag.status.code(), Some(2));
}

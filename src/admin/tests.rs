//! The keys that scripts read, who is admitted, what a browser is shown, and a real listener.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::*;
use crate::cache;
use crate::telemetry::Metrics;
use crate::units::Clock;

/// Every key of the contract; `*` is any name.
const KEYS: &[&str] = &[
    "version",
    "uptime_s",
    "store",
    "listen",
    "requests.go.gets",
    "requests.kv.puts",
    "requests.cas.hit_memory",
    "requests.ac.hit_disk",
    "requests.go.hit_native",
    "requests.go.hit_upstream",
    "requests.go.coalesced",
    "requests.go.miss.absent",
    "requests.go.miss.fault",
    "requests.go.miss.deadline",
    "requests.go.miss.breaker",
    "requests.go.miss.local",
    "requests.go.miss.policy",
    "memory.entries",
    "memory.bytes",
    "memory.limit_bytes",
    "disk.entries",
    "disk.bytes",
    "disk.limit_bytes",
    "disk.free_bytes",
    "disk.evicted_entries",
    "disk.evicted_bytes",
    "disk.corrupt",
    "disk.full",
    "journal.owed_entries",
    "journal.owed_bytes",
    "journal.uploaded_entries",
    "journal.uploaded_bytes",
    "journal.retried",
    "journal.oldest_s",
    "journal.dropped.refused",
    "journal.dropped.gone",
    "journal.dropped.expired",
    "journal.dropped.full",
    "journal.dropped.corrupt",
    "upstream.central.state",
    "upstream.central.gets",
    "upstream.central.puts",
    "upstream.central.bytes_in",
    "upstream.central.bytes_out",
    "upstream.central.latency_ms.p50",
    "upstream.central.latency_ms.p99",
    "upstream.central.bandwidth_mbit",
    "sessions.0.id",
    "sessions.0.realm",
    "sessions.0.scope",
    "sessions.0.commit",
    "sessions.0.started",
    "sessions.0.ended",
    "sessions.0.hits",
    "sessions.0.misses",
    "sessions.0.bytes_in",
    "sessions.0.saved_s",
    "sessions.0.waited_s",
    "sessions.0.prefetched",
    "sessions.0.prefetch_used",
    "sessions.0.forecast",
];

struct Setup {
    _dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
    sources: Sources,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (clock, metrics) = (Clock::system(), Arc::new(Metrics::default()));
    let config = crate::store::Config { dir: dir.path().join("store"), disk: None, floor: None };
    let store = crate::store::Store::open(&config, clock.clone(), metrics.clone()).unwrap();
    metrics.upstream("central").gets.add(3);
    let tasks = Tasks::on(runtime.handle().clone());
    let cache = Cache::new(cache::Config::default(), store, Vec::new(), tasks, metrics, clock);
    let realm = cache.realms().resolve(cache::realm::Wanted::default()).unwrap();
    let opening = cache::session::Opening {
        is_derived: false,
        id: "s1",
        realm: realm.id,
        scope: "<script>alert('x')</script>",
        commit: "c0ffee",
        branch: "main",
        default_branch: "main",
        parents: &[],
    };
    let session = cache.sessions().open(&opening, || None);
    session.hits_near.inc();
    session.bytes_in.add(10);
    session.saved_ms.add(1500);
    session.waited_ms.add(20);
    let workers = Workers::start(&cache);
    let sources = Sources {
        cache,
        workers,
        listen: vec!["127.0.0.1:7878".to_owned()],
        ready: Arc::new(AtomicBool::new(true)),
    };
    Setup { _dir: dir, _runtime: runtime, sources }
}

fn find<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, key| match value {
        Value::Array(items) => items.get(key.parse::<usize>().ok()?),
        other => other.get(key),
    })
}

#[test]
fn status_has_every_key_of_the_contract() {
    let setup = setup();
    let status = status::collect(&setup.sources);
    for key in KEYS {
        assert!(find(&status, key).is_some(), "{key} is missing");
    }
    assert_eq!(status["version"], 1);
    assert_eq!(status["sessions"][0]["saved_s"], 1.5);
    assert_eq!(status["sessions"][0]["hits"], 1);
    assert_eq!(status["upstream"]["central"]["gets"], 3);
    assert_eq!(status::sessions(&setup.sources.cache, Some("other")), json!([]));
}

#[test]
fn the_page_escapes_what_clients_name() {
    let setup = setup();
    let page = page::render(&status::collect(&setup.sources));
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
    assert!(!page.contains("<script"));
    assert_eq!(page::escape("<a href=\"&\">'"), "&lt;a href=&quot;&amp;&quot;&gt;&#39;");
}

#[test]
fn only_known_hosts_are_served() {
    let allowed = ["Cache.example.com".to_owned()];
    let cases = [
        ("127.0.0.1:7879", true),
        ("127.0.0.1", true),
        ("[::1]:7879", true),
        ("localhost:7879", true),
        ("LOCALHOST.", true),
        ("cache.example.com:80", true),
        ("evil.example.com", false),
        ("127.0.0.1.evil.example.com:7879", false),
        ("", false),
    ];
    for (host, known) in cases {
        assert_eq!(is_known_host(host, &allowed), known, "{host}");
    }
}

fn ask(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{head}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const fn config_at(listen: Option<SocketAddr>) -> Config {
    Config { listen, listen_is_default: false, allow_host: Vec::new() }
}

#[test]
fn the_listener_answers_and_ends() {
    let setup = setup();
    let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let admin = Admin::bind(&config_at(listen)).unwrap().unwrap();
    let address = admin.local_addr().unwrap();
    let ready = setup.sources.ready.clone();
    let handle = admin.serve(setup.sources.clone()).unwrap();
    let host = "Host: localhost";
    let cases = [
        (format!("GET /healthz HTTP/1.1\r\n{host}"), "200", "\r\n\r\nok"),
        (format!("GET /readyz HTTP/1.1\r\n{host}"), "200", "ok"),
        (format!("GET /status HTTP/1.1\r\n{host}"), "200", "\"version\": 1"),
        (format!("GET /metrics HTTP/1.1\r\n{host}"), "200", "larder_uptime_seconds "),
        (format!("GET / HTTP/1.1\r\n{host}"), "200", "<h1>larder"),
        (format!("GET /nothing HTTP/1.1\r\n{host}"), "404", ""),
        (format!("POST /status HTTP/1.1\r\n{host}"), "405", "allow: GET, HEAD"),
        (format!("GET /status HTTP/1.1\r\n{host}\r\nOrigin: null"), "403", ""),
        ("GET /status HTTP/1.1\r\nHost: evil.example.com".to_owned(), "421", "--allow-host"),
    ];
    for (head, status, part) in cases {
        let answer = ask(address, &head);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
        assert!(answer.contains(part), "{head}: {answer}");
    }
    let answer = ask(address, &format!("HEAD /status HTTP/1.1\r\n{host}"));
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    ready.store(false, Ordering::Relaxed);
    assert!(ask(address, &format!("GET /readyz HTTP/1.1\r\n{host}")).starts_with("HTTP/1.1 503 "));
    drop(handle);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn switched_off_binds_nothing() {
    assert!(Admin::bind(&config_at(None)).unwrap().is_none());
}

/// A second daemon on a machine, of another user or for another store, never started.
#[test]
fn a_default_port_that_is_taken_gives_way() {
    let other = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let config = config_at(other.local_addr().ok());
    assert_eq!(Admin::bind(&config).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert!(Admin::bind(&Config { listen_is_default: true, ..config }).unwrap().is_none());
}

//! TLS towards upstream: who is believed, and who we say we are.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::fault_server::{Act, FaultServer, answer};
use super::tests::{config, kv, read};
use super::*;
use crate::tasks::Tasks;

/// An authority, and PEM files of it and of who it vouches for.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), cert.pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key), root: cert.der().clone() }
    }

    fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn leaf(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn client_files(&self) -> (PathBuf, PathBuf) {
        let (cert, key) = self.leaf();
        let paths = (self.dir.path().join("client.pem"), self.dir.path().join("client.key"));
        std::fs::write(&paths.0, cert.pem()).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }

    /// A server's side; with `clients`, only who that authority vouches for may come in.
    fn acceptor(&self, clients: Option<&Self>, protocols: &[&[u8]]) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.root.clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let (cert, key) = self.leaf();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut tls = builder.with_single_cert(vec![cert.der().clone()], key).unwrap();
        tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        TlsAcceptor::from(Arc::new(tls))
    }
}

fn https(port: u16) -> Config {
    config(format!("https://localhost:{port}"))
}

#[tokio::test]
async fn only_who_the_ca_file_vouches_for_is_believed() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = FaultServer::start_tls(Some(ours.acceptor(None, &[b"http/1.1"])), |_| {
        Act::Say(answer("200 OK", "", b"body"))
    })
    .await;
    let get = async |ca_file: Option<PathBuf>| {
        let config = Config { ca_file, ..https(server.addr.port()) };
        let backend = HttpBackend::new(&config).map_err(|error| error.to_string())?;
        match backend.get(&kv("x")).await {
            Ok(found) => Ok(read(found.expect("is there")).await.unwrap()),
            Err(error) => Err(error.to_string()),
        }
    };
    assert_eq!(get(Some(ours.ca_file())).await.unwrap(), b"body");
    let refused = get(Some(theirs.ca_file())).await.unwrap_err();
    assert!(refused.starts_with("cannot connect: invalid peer certificate"), "{refused}");
    // Without a ca_file the platform's authorities are asked, where there are any.
    get(None).await.unwrap_err();
    assert_eq!(server.seen().len(), 1, "nobody else has sent a request");
}

/// What `openssl req -x509` makes was refused as `CaUsedAsEndEntity`, which helped nobody.
#[tokio::test]
async fn a_server_that_shows_an_authority_as_its_own_is_refused_in_words() {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("self.pem");
    std::fs::write(&ca_file, cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let server =
        FaultServer::start_tls(Some(acceptor), |_| Act::Say(answer("200 OK", "", b""))).await;
    let config = Config { ca_file: Some(ca_file), ..https(server.addr.port()) };
    let refused = HttpBackend::new(&config).unwrap().get(&kv("x")).await.err().unwrap();
    assert!(refused.to_string().contains("CA:TRUE"), "{refused}");
}

#[tokio::test]
async fn a_server_that_demands_a_client_certificate_gets_ours() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let acceptor = servers.acceptor(Some(&clients), &[b"http/1.1"]);
    let server =
        FaultServer::start_tls(Some(acceptor), |_| Act::Say(answer("404 Not Found", "", b"")))
            .await;
    let get = async |client_cert| {
        let ca_file = Some(servers.ca_file());
        let config = Config { ca_file, client_cert, ..https(server.addr.port()) };
        HttpBackend::new(&config).unwrap().get(&kv("x")).await
    };
    assert!(matches!(get(Some(clients.client_files())).await, Ok(None)));
    let stranger = get(Some(servers.client_files())).await.err().expect("not theirs");
    assert!(stranger.is_trouble(), "{stranger}");
    let nobody = get(None).await.err().expect("a certificate was demanded");
    assert!(nobody.is_trouble(), "{nobody}");
    assert_eq!(server.seen().len(), 1);
}

#[derive(Clone)]
struct Spawner(Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, future: F) {
        self.0.spawn("http/2 request", future);
    }
}

#[tokio::test]
async fn over_tls_http2_is_spoken_and_bodies_arrive_whole() {
    let authority = Authority::new();
    let acceptor = authority.acceptor(None, &[b"h2"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tasks = Tasks::new();
    let spawner = Spawner(tasks.clone());
    tasks.spawn("http/2 server", async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = TokioIo::new(acceptor.accept(stream).await.unwrap());
        // Gives back what was put, reversed, so that a get's body is seen to come from the put.
        let kept = Arc::new(std::sync::Mutex::new(Bytes::new()));
        let service = hyper::service::service_fn(move |request: http::Request<_>| {
            let kept = kept.clone();
            async move {
                if request.method() == Method::PUT {
                    let body: hyper::body::Incoming = request.into_body();
                    let mut bytes = body.collect().await.unwrap().to_bytes().to_vec();
                    bytes.reverse();
                    *kept.lock().unwrap() = bytes.into();
                    return Ok::<_, Infallible>(http::Response::new(Full::default()));
                }
                let bytes = kept.lock().unwrap().clone();
                Ok(http::Response::new(Full::new(bytes)))
            }
        });
        let builder = hyper::server::conn::http2::Builder::new(spawner);
        // Ends with the client's connection, in whatever way.
        let _ = builder.serve_connection(stream, service).await;
    });
    let config = Config { ca_file: Some(authority.ca_file()), ..https(port) };
    let backend = HttpBackend::new(&config).unwrap();
    let body: Vec<u8> = (0..3_u32 << 20).map(|n| n.to_le_bytes()[0]).collect();
    backend.put(&kv("x"), Upload::bytes(body.clone().into())).await.unwrap();
    let fetched = backend.get(&kv("x")).await.unwrap().expect("was put");
    assert_eq!(fetched.len, Some(3 << 20));
    assert!(read(fetched).await.unwrap().iter().eq(body.iter().rev()));
    assert_eq!(tasks.panics(), 0);
}

/// More than is read before anybody asks for it, so that the connection stays in use.
const PART: usize = 4 << 20;

/// A server that answers any part with the first one, and notes what each connection speaks.
async fn serve_parts(listener: TcpListener, acceptor: TlsAcceptor, spoken: Spoken, tasks: Tasks) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        // A client that offers nothing of ours is turned away.
        let Ok(stream) = acceptor.accept(stream).await else {
            spoken.lock().unwrap().push("turned away");
            continue;
        };
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        spoken.lock().unwrap().push(if is_h2 { "h2" } else { "http/1.1" });
        let service = hyper::service::service_fn(|request: http::Request<_>| async move {
            let _: hyper::body::Incoming = request.into_body();
            let answer = http::Response::builder().status(206);
            let answer = answer.header("Content-Range", format!("bytes 0-{}/*", PART - 1));
            Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(vec![7; PART]))).unwrap())
        });
        let (stream, spawner) = (TokioIo::new(stream), Spawner(tasks.clone()));
        tasks.spawn("connection", async move {
            // Ends with the client's connection, in whatever way.
            let _ = if is_h2 {
                hyper::server::conn::http2::Builder::new(spawner)
                    .serve_connection(stream, service)
                    .await
            } else {
                hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await
            };
        });
    }
}

type Spoken = Arc<std::sync::Mutex<Vec<&'static str>>>;

/// All streams of HTTP/2 share one connection, which brings many packs no sooner than one.
#[tokio::test]
async fn parts_have_connections_of_their_own_where_upstream_takes_them() {
    // Once turned away is enough.
    let cases: [(&[&[u8]], &[&str]); 2] =
        [(&[b"h2", b"http/1.1"], &["http/1.1"; 3]), (&[b"h2"], &["turned away", "h2"])];
    for (protocols, expected) in cases {
        let authority = Authority::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tasks, spoken) = (Tasks::new(), Spoken::default());
        let acceptor = authority.acceptor(None, protocols);
        let server = serve_parts(listener, acceptor, spoken.clone(), tasks.clone());
        tasks.spawn("server", server);
        let config = Config { ca_file: Some(authority.ca_file()), ..https(port) };
        let backend = HttpBackend::new(&config).unwrap();
        let part = async || {
            let part = backend.get_part(&kv("x"), 0..PART as u64).await;
            part.unwrap().expect("is there").fetched
        };
        let parts = [part().await, part().await, part().await];
        for part in parts {
            assert_eq!(read(part).await.unwrap().len(), PART);
        }
        let spoken = spoken.lock().unwrap().clone();
        assert_eq!(spoken, expected, "what each connection speaks");
        assert_eq!(tasks.panics(), 0);
    }
}

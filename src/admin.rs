//! Health, metrics and status, on a listener, a thread and a runtime of their own, so that they
//! answer when the data path is stuck.
//!
//! Reads what others count and changes nothing. What `/status` says is `status`; how the page shows
//! it, `page`. What clients of the cache speak to is `frontend`.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::cache::Cache;
use crate::tasks::{self, Tasks};
use crate::worker::Workers;

pub mod status;

mod page;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// None: switched off.
    pub listen: Option<SocketAddr>,
    /// Nobody has asked for this address: where it is taken, another daemon has it.
    pub listen_is_default: bool,
    /// Host names that requests may be for, besides IP addresses and localhost.
    pub allow_host: Vec<String>,
}

/// Where the numbers come from. Cheap to clone.
#[derive(Clone)]
pub struct Sources {
    pub cache: Cache,
    pub workers: Workers,
    /// Where clients are served, as people write addresses.
    pub listen: Vec<String>,
    /// False before the listeners are up and while draining.
    pub ready: Arc<AtomicBool>,
}

/// Connections served at once; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 32;
/// A client that does not finish its request, or its connection, is let go.
const HEADER_WAIT: Duration = Duration::from_secs(10);
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// Numbers that come from a stuck file system are not waited for longer.
const COLLECT_WAIT: Duration = Duration::from_secs(5);
/// How long the thread is given to end.
const STOP_WAIT: Duration = Duration::from_secs(1);
const STOP_LOOK: Duration = Duration::from_millis(2);

/// A bound listener that nobody serves yet.
#[derive(Debug)]
pub struct Admin {
    listener: std::net::TcpListener,
    allow_host: Arc<[String]>,
}

/// Serves until dropped.
#[derive(Debug)]
pub struct AdminHandle {
    tasks: Tasks,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Binds, so that a port in use is known before anything starts. None: switched off, or the
    /// default port is taken.
    pub fn bind(config: &Config) -> io::Result<Option<Self>> {
        let Some(listen) = config.listen else { return Ok(None) };
        let listener = match std::net::TcpListener::bind(listen) {
            Ok(listener) => listener,
            Err(error) if config.listen_is_default && error.kind() == ErrorKind::AddrInUse => {
                let port = listen.port();
                tracing::warn!(
                    "port {port} is taken; no /status here (choose a port with --admin)"
                );
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        listener.set_nonblocking(true)?;
        Ok(Some(Self { listener, allow_host: config.allow_host.clone().into() }))
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub fn serve(self, sources: Sources) -> io::Result<AdminHandle> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Two, so that one stuck collection does not hold back the next.
            .max_blocking_threads(2)
            .build()?;
        let tasks = Tasks::on(runtime.handle().clone());
        let server =
            Arc::new(Server { sources, tasks: tasks.clone(), allow_host: self.allow_host });
        let thread = tasks::thread("larder-admin", move || {
            if let Err(error) = runtime.block_on(accept(self.listener, server)) {
                tracing::error!(%error, "the admin listener has ended");
            }
            // Dropping the runtime would wait for a collection that is stuck.
            runtime.shutdown_background();
        })?;
        Ok(AdminHandle { tasks, thread: Some(thread) })
    }
}

impl Drop for AdminHandle {
    fn drop(&mut self) {
        self.tasks.begin_shutdown();
        let Some(thread) = self.thread.take() else { return };
        let mut waited = Duration::ZERO;
        while !thread.is_finished() && waited < STOP_WAIT {
            std::thread::sleep(STOP_LOOK);
            waited += STOP_LOOK;
        }
        if thread.is_finished() {
            // A panic there was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

struct Server {
    sources: Sources,
    tasks: Tasks,
    allow_host: Arc<[String]>,
}

async fn accept(listener: std::net::TcpListener, server: Arc<Server>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut shutdown = server.tasks.shutdown_signal();
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let seat = seats.clone().acquire_owned().await.map_err(io::Error::other)?;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.wait() => return Ok(()),
        };
        match accepted {
            Ok((stream, _)) => {
                let server = server.clone();
                server.tasks.clone().spawn("admin connection", async move {
                    serve_connection(stream, server).await;
                    drop(seat);
                });
            }
            // Mostly out of descriptors; without a pause this would turn in circles.
            Err(error) => {
                tracing::warn!(%error, "admin: cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, server: Arc<Server>) {
    let service = hyper::service::service_fn(|request| {
        let server = server.clone();
        async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_WAIT)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off is of no interest here.
    let _ = tokio::time::timeout(CONNECTION_MAX, connection).await;
}

type Answer = Response<Full<Bytes>>;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let authority = request.uri().authority().map(http::uri::Authority::as_str);
        if let Err((status, why)) = admit(request.headers(), authority, &self.allow_host) {
            return text(status, why);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.sources.ready.load(Ordering::Relaxed) => text(StatusCode::OK, "ok\n"),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            "/metrics" => {
                let show = |s: &Sources| s.cache.metrics().render(&status::gauges(s));
                self.collected(METRICS, show).await
            }
            "/status" => self.collected(JSON, |s| format!("{:#}\n", status::collect(s))).await,
            "/" => self.collected(HTML, |s| page::render(&status::collect(s))).await,
            _ => text(StatusCode::NOT_FOUND, "there are / /status /metrics /healthz /readyz\n"),
        }
    }

    /// Collects off the reactor: `/healthz` goes on answering when the store's disk hangs.
    async fn collected(
        &self,
        kind: &'static str,
        collect: impl FnOnce(&Sources) -> String + Send + 'static,
    ) -> Answer {
        let sources = self.sources.clone();
        let collecting = self.tasks.blocking("admin status", move || collect(&sources));
        match tokio::time::timeout(COLLECT_WAIT, collecting).await {
            Ok(Some(body)) => answer(StatusCode::OK, kind, body.into()),
            Ok(None) => text(StatusCode::INTERNAL_SERVER_ERROR, "collecting failed; see the log\n"),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer\n"),
        }
    }
}

/// Whether a request is one of an operator's, and not of a web page that resolves its own name to
/// this machine, or that asks across origins.
fn admit(
    headers: &HeaderMap,
    authority: Option<&str>,
    allowed: &[String],
) -> Result<(), (StatusCode, &'static str)> {
    if headers.contains_key(header::ORIGIN) {
        return Err((StatusCode::FORBIDDEN, "requests of web pages are not served\n"));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).or(authority);
    if host.is_some_and(|host| is_known_host(host, allowed)) {
        return Ok(());
    }
    let why = "this host name is not served; use an IP address, or name it with --allow-host\n";
    Err((StatusCode::MISDIRECTED_REQUEST, why))
}

fn is_known_host(host: &str, allowed: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || allowed.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn text(status: StatusCode, body: &'static str) -> Answer {
    answer(status, TEXT, Bytes::from_static(body.as_bytes()))
}

fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let fixed = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
    ];
    for (name, value) in fixed {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

#[cfg(test)]
mod tests;

//! Sockets: binding them, accepting, looking at a connection's first bytes, closing in good order.
//!
//! One task a connection. A connection that opens with larder's preface is a helper's; everything
//! else is HTTP.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use crate::frontend::{Config, Frontend, Listen, go, http};
use crate::tasks::Shutdown;
use crate::wire::go::PREFACE;

/// From the first byte of a connection to knowing what it speaks, TLS included.
const PREFACE_WITHIN: Duration = Duration::from_secs(10);
/// For a request's head, and between two requests of a connection.
const IDLE_WITHIN: Duration = Duration::from_secs(60);
/// More connections than this are closed at once.
const CONNECTIONS_MAX: usize = 16_384;
/// When descriptors run out, accepting rests this long.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// A request's head, and what is buffered of an answer to a slow reader.
const BUFFER: usize = 64 << 10;
/// A round trip of 100 ms at 1 Gbit/s needs 12 MiB in flight.
const H2_WINDOW: u32 = 16 << 20;
const H2_STREAMS: u32 = 200;
const H2_HEADERS: u32 = 16 << 10;
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Why a listener cannot be had. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {at}: {source}; stop what is there or choose another with --listen")]
    Tcp { at: SocketAddr, source: io::Error },
    #[error("cannot listen on {path}: {source}; choose another with --socket")]
    Unix { path: PathBuf, source: io::Error },
    #[error(
        "another larder answers on {0}; stop it with `larder stop` or choose another socket with --socket"
    )]
    Taken(PathBuf),
    #[error("{dir} belongs to user {owner}; choose another socket with --socket")]
    NotOurs { dir: PathBuf, owner: u32 },
    #[error("tls: {0}")]
    Tls(String),
}

/// A bound listener.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// Removes the socket's name when the listener goes.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Everything bound, before anything is served.
pub struct Bound {
    pub listeners: Vec<Listener>,
    pub tls: Option<TlsAcceptor>,
    /// Where HTTP is served over TCP.
    pub http: Vec<String>,
}

/// Binds every listener. The default port may be somebody else's: then the socket serves alone.
pub async fn bind(config: &Config) -> Result<Bound, BindError> {
    let tls = config.tls.as_ref().map(|(cert, key)| tls_acceptor(cert, key)).transpose()?;
    let mut bound = Bound { listeners: vec![bind_unix(&config.socket)?], tls, http: Vec::new() };
    for listen in &config.listen {
        match listen {
            Listen::Unix(path) if *path == config.socket => {}
            Listen::Unix(path) => bound.listeners.push(bind_unix(path)?),
            Listen::Tcp(at) => match TcpListener::bind(at).await {
                Ok(listener) => {
                    if let Ok(at) = listener.local_addr() {
                        let scheme = if bound.tls.is_some() { "https" } else { "http" };
                        bound.http.push(format!("{scheme}://{at}"));
                    }
                    bound.listeners.push(Listener::Tcp(listener));
                }
                Err(source)
                    if config.listen_is_default && source.kind() == io::ErrorKind::AddrInUse =>
                {
                    tracing::warn!(
                        "port {} is taken; serving on the socket alone (choose a port with --listen)",
                        at.port()
                    );
                }
                Err(source) => return Err(BindError::Tcp { at: *at, source }),
            },
        }
    }
    Ok(bound)
}

fn bind_unix(path: &Path) -> Result<Listener, BindError> {
    let io = |source| BindError::Unix { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(io)?;
        let owner = std::fs::metadata(dir).map_err(io)?.uid();
        let uid = rustix::process::geteuid().as_raw();
        // In a directory of somebody else, the socket could be swapped under our clients' feet.
        if owner != uid && owner != 0 {
            return Err(BindError::NotOurs { dir: dir.to_owned(), owner });
        }
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(BindError::Taken(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(io)?;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, private).map_err(io)?;
    Ok(Listener::Unix(listener, SocketFile(path.to_owned())))
}

fn tls_acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, BindError> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let fault = |path: &Path, error: &dyn std::fmt::Display| {
        BindError::Tls(format!(
            "{}: {error}; give PEM files with --tls-cert and --tls-key",
            path.display()
        ))
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fault(cert, &error))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| fault(key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(cert, &error))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| fault(cert, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub enum Peer {
    Tcp(SocketAddr),
    /// A user of this machine who may use the socket.
    Unix,
}

impl Frontend {
    /// Accepts on every listener until the shutdown.
    pub fn serve(&self, bound: Bound, shutdown: &Shutdown) {
        for listener in bound.listeners {
            let (frontend, tls, shutdown) = (self.clone(), bound.tls.clone(), shutdown.clone());
            let tasks = self.inner.cache.tasks().clone();
            tasks.spawn("accept", async move {
                match listener {
                    Listener::Tcp(listener) => frontend.accept_tcp(listener, tls, shutdown).await,
                    Listener::Unix(listener, file) => {
                        frontend.accept_unix(listener, shutdown).await;
                        drop(file);
                    }
                }
            });
        }
    }

    async fn accept_tcp(
        &self,
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        mut shutdown: Shutdown,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.wait() => return,
            };
            match accepted {
                Ok((stream, peer)) => self.welcome_tcp(stream, peer, tls.clone(), &shutdown),
                Err(error) => rest(&error).await,
            }
        }
    }

    fn welcome_tcp(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<TlsAcceptor>,
        shutdown: &Shutdown,
    ) {
        // Answers are written whole; waiting to fill a segment only adds a round trip.
        let _ = stream.set_nodelay(true);
        let (frontend, shutdown) = (self.clone(), shutdown.clone());
        self.connection(async move {
            let peer = Peer::Tcp(peer);
            match tls {
                None => frontend.speak(stream, peer, shutdown).await,
                Some(tls) => match tokio::time::timeout(PREFACE_WITHIN, tls.accept(stream)).await {
                    Ok(Ok(stream)) => frontend.speak(stream, peer, shutdown).await,
                    Ok(Err(error)) => tracing::debug!(%error, "tls: handshake failed"),
                    Err(_) => tracing::debug!("tls: no handshake in time"),
                },
            }
        });
    }

    async fn accept_unix(&self, listener: UnixListener, mut shutdown: Shutdown) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.wait() => return,
            };
            match accepted {
                Ok((stream, _)) if self.may_use_socket(&stream) => {
                    let (frontend, shutdown) = (self.clone(), shutdown.clone());
                    self.connection(
                        async move { frontend.speak(stream, Peer::Unix, shutdown).await },
                    );
                }
                Ok(_) => self.inner.cache.metrics().connections_refused.inc(),
                Err(error) => rest(&error).await,
            }
        }
    }

    fn may_use_socket(&self, stream: &UnixStream) -> bool {
        let own = rustix::process::geteuid().as_raw();
        let Ok(peer) = stream.peer_cred() else { return false };
        let allowed = peer.uid() == own || self.inner.config.allow_uid.contains(&peer.uid());
        if !allowed {
            tracing::warn!(
                uid = peer.uid(),
                "a user who may not use the socket was turned away (allow with --allow-uid)"
            );
        }
        allowed
    }

    /// Runs a connection as a task, counted for as long as it lives.
    fn connection(&self, work: impl Future<Output = ()> + Send + 'static) {
        let metrics = self.inner.cache.metrics();
        if self.inner.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            self.inner.connections.fetch_sub(1, Ordering::Relaxed);
            metrics.connections_refused.inc();
            return;
        }
        metrics.connections.inc();
        let guard = Connected(self.clone());
        self.inner.cache.tasks().spawn("connection", async move {
            let _open = guard;
            work.await;
        });
    }

    /// Finds out what a connection speaks, then speaks it.
    async fn speak<S>(&self, stream: S, peer: Peer, mut shutdown: Shutdown)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let opened = tokio::select! {
            opened = tokio::time::timeout(PREFACE_WITHIN, Opened::read(stream)) => opened,
            () = shutdown.wait() => return,
        };
        let Ok(Ok(opened)) = opened else { return };
        match opened.speaks {
            Speaks::Larder => go::serve(self.clone(), opened.stream, peer, shutdown).await,
            Speaks::Http2 => self.http2(opened.stream, peer, shutdown).await,
            Speaks::Http1 => self.http1(opened.stream, peer, shutdown).await,
        }
    }

    async fn http1<S>(&self, stream: Rewound<S>, peer: Peer, mut shutdown: Shutdown)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = http::Service::new(self.clone(), peer);
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_WITHIN)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = shutdown.wait() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended");
        }
    }

    async fn http2<S>(&self, stream: Rewound<S>, peer: Peer, mut shutdown: Shutdown)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = http::Service::new(self.clone(), peer);
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_WINDOW)
            .initial_connection_window_size(H2_WINDOW * 2)
            .max_concurrent_streams(H2_STREAMS)
            .max_header_list_size(H2_HEADERS)
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = shutdown.wait() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended");
        }
    }
}

/// An open connection; says when it goes.
struct Connected(Frontend);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.seen();
        self.0.inner.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn rest(error: &io::Error) {
    tracing::warn!(%error, "cannot accept; resting");
    tokio::time::sleep(ACCEPT_REST).await;
}

enum Speaks {
    Larder,
    Http1,
    Http2,
}

/// A connection whose first bytes were read.
struct Opened<S> {
    speaks: Speaks,
    stream: Rewound<S>,
}

impl<S: AsyncRead + Unpin> Opened<S> {
    async fn read(mut stream: S) -> io::Result<Self> {
        let mut first = BytesMut::with_capacity(BUFFER);
        loop {
            if stream.read_buf(&mut first).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let is = |preface: &[u8]| preface.starts_with(&first[..first.len().min(preface.len())]);
            let whole = |preface: &[u8]| first.len() >= preface.len();
            let speaks = match (is(PREFACE), is(H2_PREFACE)) {
                (true, _) if whole(PREFACE) => {
                    first.advance(PREFACE.len());
                    Speaks::Larder
                }
                (_, true) if whole(H2_PREFACE) => Speaks::Http2,
                (false, false) => Speaks::Http1,
                _ => continue,
            };
            return Ok(Self { speaks, stream: Rewound { first: first.freeze(), stream } });
        }
    }
}

/// A stream whose first bytes are read again.
pub(super) struct Rewound<S> {
    first: Bytes,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let take = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first.split_to(take));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

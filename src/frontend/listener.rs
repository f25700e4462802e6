//! Sockets: binding them, accepting, looking at a connection's first bytes, closing in good order.
//!
//! One task a connection, on one of the lanes. A connection that opens with larder's preface is a
//! helper's; everything else is HTTP.

use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::frontend::{Frontend, go};
use crate::tasks::{Shutdown, Tasks};
use preface::{Opened, Speaks};

mod activity;
mod bind;
mod drive;
mod passed;
mod patient;
mod preface;

pub use bind::{BindError, Bound, Listener, bind, tls};
pub use passed::{PASSED_MAX, Passed};

/// For a handshake of TLS.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Until it is known what a connection speaks, for a request's head, and between two requests.
const IDLE_WITHIN: Duration = Duration::from_secs(60);
/// More connections than this are not accepted before others have gone.
const CONNECTIONS_MAX: usize = 16_384;
/// Of the descriptors that the process may have, the store and upstream keep so many, or half of few; and
/// at least as many as are open before anybody comes, and these.
const KEPT_BACK: u64 = 512;
const KEPT_BACK_MIN: u64 = 16;
/// However few descriptors there are: those who come take turns.
const PLACES_MIN: usize = 8;
/// So many come in by the socket though others have taken all places: builds, and `larder stop`.
const PLACES_OF_USERS: usize = 32;
/// Where less than one place of so many is left, or than a quarter of a few, a connection is for one
/// request, and idles no longer than `IDLE_IN_CROWD`: those who come take turns in what is left. Earlier,
/// and clients that do nothing but keep connections would open them again and again.
const LEFT_IN_CROWD: usize = 8;
const FEW_PLACES: usize = 64;
const IDLE_IN_CROWD: Duration = Duration::from_secs(2);
/// That accepting rests is said again after so long.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// When descriptors run out, accepting rests this long.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// A request's head, and what is buffered of an answer to a slow reader.
const BUFFER: usize = 64 << 10;
/// The same for those who come when so many are there: a thousand slow readers are not to hold 64 MiB.
const BUFFER_IN_CROWD: usize = 16 << 10;
const CROWD: usize = 128;
/// What tells protocols apart fits many times over; the rest of a head goes where HTTP reads it.
const FIRST: usize = 4 << 10;
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Who is at the other end.
#[derive(Clone, Debug)]
pub enum Peer {
    Tcp(SocketAddr),
    /// A user of this machine who may use the socket.
    Unix,
}

/// A connection's circumstances.
pub(super) struct Visit {
    pub(super) peer: Peer,
    /// Where it runs, and what is done for it alone.
    pub(super) lane: Tasks,
    pub(super) shutdown: Shutdown,
}

/// A machine that is gone without a word, as a virtual one that was killed is, is found out after two minutes:
/// the session of its helper would keep what it has used from making room for ever.
fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(stream, 4)
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
                        frontend.accept_unix(&listener, shutdown).await;
                        // The name first: what is bound keeps its inode from another's socket.
                        drop(file);
                        drop(listener);
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
                accepted = self.accept(places(), || listener.accept()) => accepted,
                () = shutdown.wait() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Answers are written whole; waiting to fill a segment only adds a round trip.
                    let _ = stream.set_nodelay(true);
                    let _ = keep_alive(&stream);
                    // An error: it is gone already.
                    let Ok(stream) = stream.into_std() else { continue };
                    self.welcome_tcp(stream, peer, tls.clone(), shutdown.clone());
                }
                Err(error) => self.rest(&error).await,
            }
        }
    }

    /// The next one to come, once there is a place: until then the kernel keeps those who wait.
    async fn accept<T, F: Future<Output = io::Result<T>>>(
        &self,
        places: usize,
        accept: impl Fn() -> F,
    ) -> io::Result<T> {
        while self.inner.connections.load(Ordering::Relaxed) >= places {
            // One may go between the look and the wait.
            let _ = timeout(ACCEPT_REST, self.inner.place.notified()).await;
        }
        accept().await
    }

    async fn rest(&self, error: &io::Error) {
        let now = self.inner.cache.clock().elapsed();
        let last = Duration::from_millis(self.inner.rest_told_ms.load(Ordering::Relaxed));
        if last.is_zero() || now.saturating_sub(last) >= TELL_EVERY {
            let ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1);
            self.inner.rest_told_ms.store(ms, Ordering::Relaxed);
            tracing::warn!(%error, "cannot accept; resting");
        }
        tokio::time::sleep(ACCEPT_REST).await;
    }

    fn welcome_tcp(
        &self,
        stream: std::net::TcpStream,
        peer: SocketAddr,
        tls: Option<TlsAcceptor>,
        shutdown: Shutdown,
    ) {
        self.connection(Peer::Tcp(peer), shutdown, |frontend, visit| async move {
            let Ok(stream) = TcpStream::from_std(stream) else { return };
            match tls {
                None => frontend.speak(stream, visit).await,
                Some(tls) => match frontend.shake_hands(&tls, stream).boxed().await {
                    Ok(Ok(stream)) => frontend.speak(stream, visit).boxed().await,
                    Ok(Err(error)) => tracing::debug!(%error, "tls: handshake failed"),
                    Err(_) => tracing::debug!("tls: no handshake in time"),
                },
            }
        });
    }

    async fn shake_hands(
        &self,
        tls: &TlsAcceptor,
        stream: TcpStream,
    ) -> Result<io::Result<TlsStream<TcpStream>>, Elapsed> {
        timeout(HANDSHAKE_WITHIN.min(self.patience()), tls.accept(stream)).await
    }

    async fn accept_unix(&self, listener: &UnixListener, mut shutdown: Shutdown) {
        loop {
            let accepted = tokio::select! {
                accepted = self.accept(places() + PLACES_OF_USERS, || listener.accept()) => accepted,
                () = shutdown.wait() => return,
            };
            match accepted {
                Ok((stream, _)) if self.may_use_socket(&stream) => {
                    let Ok(stream) = stream.into_std() else { continue };
                    self.connection(Peer::Unix, shutdown.clone(), |frontend, visit| async move {
                        let Ok(stream) = UnixStream::from_std(stream) else { return };
                        frontend.speak(stream, visit).await;
                    });
                }
                Ok(_) => self.inner.cache.metrics().connections_refused.inc(),
                Err(error) => self.rest(&error).await,
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

    /// Runs a connection as a task of the quietest lane, counted for as long as it lives.
    /// A socket belongs to the runtime in which it was made, so `work` makes it there.
    fn connection<W>(
        &self,
        peer: Peer,
        shutdown: Shutdown,
        work: impl FnOnce(Self, Visit) -> W + Send + 'static,
    ) where
        W: Future<Output = ()> + Send,
    {
        self.inner.connections.fetch_add(1, Ordering::Relaxed);
        self.inner.cache.metrics().connections.inc();
        let guard = Connected(self.clone());
        let lane = match peer {
            Peer::Tcp(_) => self.inner.lanes.enter(),
            Peer::Unix => self.inner.socket_lanes.enter(),
        };
        let visit = Visit { peer, lane: lane.tasks.clone(), shutdown };
        lane.tasks.clone().spawn("connection", async move {
            // Boxed, or each future around it makes room for it twice.
            let work = Box::pin(work(guard.0.clone(), visit));
            work.await;
            drop((guard, lane));
        });
    }

    /// Finds out what a connection speaks, then speaks it.
    async fn speak<S>(&self, stream: S, mut visit: Visit)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let opened = tokio::select! {
            opened = timeout(self.patience(), Opened::read(stream)) => opened,
            () = visit.shutdown.wait() => return,
        };
        let Ok(Ok(opened)) = opened else { return };
        // Boxed, so that no connection takes as much room as the most demanding protocol.
        match opened.speaks {
            Speaks::Larder => go::serve(self.clone(), opened.stream, visit).boxed().await,
            Speaks::Http2 => self.http2(opened.stream, visit).boxed().await,
            Speaks::Http1 => self.http1(opened.stream, visit).boxed().await,
        }
    }

    fn is_crowded(&self) -> bool {
        let left = places().saturating_sub(self.inner.connections.load(Ordering::Relaxed));
        left < places().div_ceil(LEFT_IN_CROWD).max(places().min(FEW_PLACES) / 4)
    }

    /// How long a connection may say nothing.
    fn patience(&self) -> Duration {
        if self.is_crowded() { IDLE_IN_CROWD } else { IDLE_WITHIN }
    }

    fn buffer(&self) -> usize {
        let connections = self.inner.connections.load(Ordering::Relaxed);
        if connections > CROWD { BUFFER_IN_CROWD } else { BUFFER }
    }
}

/// An open connection; says when it goes.
struct Connected(Frontend);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.seen();
        self.0.inner.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.inner.place.notify_waiters();
    }
}

/// How many connections may be open at once.
fn places() -> usize {
    static PLACES: OnceLock<usize> = OnceLock::new();
    *PLACES.get_or_init(|| {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let most = limit.map_or(u64::MAX, |limit| {
            let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
            let users = (limit / 8).min(PLACES_OF_USERS as u64);
            let least = open + users + KEPT_BACK_MIN;
            limit.saturating_sub(KEPT_BACK.min(limit / 2).max(least))
        });
        usize::try_from(most).unwrap_or(usize::MAX).clamp(PLACES_MIN, CONNECTIONS_MAX)
    })
}

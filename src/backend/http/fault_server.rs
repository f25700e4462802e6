//! A server for tests that says exactly the bytes it is told to, and hangs up when it is told to.
//!
//! It reads requests just well enough to find their ends, and remembers them.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio_rustls::TlsAcceptor;

use crate::tasks::Tasks;

/// What the server does about one request.
#[derive(Clone)]
pub(super) enum Act {
    /// Answers, and takes the next request of the connection.
    Say(Vec<u8>),
    SayAndClose(Vec<u8>),
    /// Answers and then falls silent; with no bytes, a black hole.
    SayAndHold(Vec<u8>),
    /// Says the first part, then the second byte by byte.
    Drip(Vec<u8>, Vec<u8>, Duration),
    /// Answers once as many requests as the barrier wants are waiting.
    SayTogether(Arc<Barrier>, Vec<u8>),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    /// Lower-case names.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// The body is as long as announced.
    pub(super) is_whole: bool,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

type Respond = dyn Fn(&Request) -> Act + Send + Sync;

pub(super) struct FaultServer {
    pub(super) addr: SocketAddr,
    shared: Arc<Shared>,
    tasks: Tasks,
}

struct Shared {
    respond: Box<Respond>,
    connections: AtomicUsize,
    ended: AtomicUsize,
    seen: Mutex<Vec<Request>>,
    /// Woken after every end of a connection.
    news: tokio::sync::Notify,
}

impl FaultServer {
    pub(super) async fn start(respond: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        Self::start_tls(None, respond).await
    }

    pub(super) async fn start_tls(
        acceptor: Option<TlsAcceptor>,
        respond: impl Fn(&Request) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let tasks = Tasks::new();
        let shared = Arc::new(Shared {
            respond: Box::new(respond),
            connections: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            seen: Mutex::default(),
            news: tokio::sync::Notify::new(),
        });
        let (owner, serving) = (tasks.clone(), shared.clone());
        tasks.spawn("fault server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::Relaxed);
                let (serving, acceptor) = (serving.clone(), acceptor.clone());
                owner.spawn("fault connection", async move {
                    match acceptor {
                        None => serving.serve(stream).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serving.serve(stream).await;
                            }
                        }
                    }
                    serving.ended.fetch_add(1, Ordering::Relaxed);
                    serving.news.notify_waiters();
                });
            }
        });
        Self { addr, shared, tasks }
    }

    pub(super) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    pub(super) fn seen(&self) -> Vec<Request> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Waits until so many connections have ended, then tells what they brought.
    pub(super) async fn ended(&self, count: usize) -> Vec<Request> {
        loop {
            let mut news = pin!(self.shared.news.notified());
            // Else an end between the look and the wait would go unnoticed.
            news.as_mut().enable();
            if self.shared.ended.load(Ordering::Relaxed) >= count {
                return self.seen();
            }
            news.await;
        }
    }

    pub(super) fn panics(&self) -> u64 {
        self.tasks.panics()
    }
}

impl Shared {
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        while let Some(request) = read_request(&mut stream).await {
            let act = (self.respond)(&request);
            let is_whole = request.is_whole;
            self.seen.lock().unwrap().push(request);
            if !is_whole || !perform(act, &mut stream).await {
                return;
            }
        }
    }
}

/// Returns whether the connection goes on.
async fn perform(act: Act, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> bool {
    let (bytes, goes_on) = match act {
        Act::Say(bytes) => (bytes, true),
        Act::SayAndClose(bytes) => (bytes, false),
        Act::SayAndHold(bytes) => {
            let _ = stream.write_all(&bytes).await;
            // Until the client hangs up.
            let _ = stream.read(&mut [0]).await;
            return false;
        }
        Act::Drip(head, body, every) => {
            let _ = stream.write_all(&head).await;
            for byte in body {
                let _ = stream.flush().await;
                tokio::time::sleep(every).await;
                if stream.write_all(&[byte]).await.is_err() {
                    return false;
                }
            }
            (Vec::new(), true)
        }
        Act::SayTogether(barrier, bytes) => {
            barrier.wait().await;
            (bytes, true)
        }
    };
    let written = stream.write_all(&bytes).await.is_ok() && stream.flush().await.is_ok();
    if !goes_on {
        let _ = stream.shutdown().await;
    }
    written && goes_on
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let mut request = Request {
        method: first.next()?.to_owned(),
        path: first.next()?.to_owned(),
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
        ..Request::default()
    };
    let len = request.header("content-length").map_or(0, |len| len.parse().unwrap());
    let mut body = bytes.split_off(head_end);
    while body.len() < len {
        if stream.read_buf(&mut body).await.unwrap_or(0) == 0 {
            break;
        }
    }
    request.is_whole = body.len() == len;
    request.body = body;
    Some(request)
}

/// An answer with its length.
pub(super) fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len())
        .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

//! HTTP on a connection, which hyper drives from the first question to the last answer. One that idles is
//! kept without hyper's buffers until something comes, or closed.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::HttpService;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use crate::frontend::listener::Visit;
use crate::frontend::listener::activity::{Activity, Watched};
use crate::frontend::listener::patient::Patient;
use crate::frontend::listener::preface::Rewound;
use crate::frontend::{Frontend, http};
use crate::tasks::{Shutdown, Tasks};

/// Nothing was asked for so long, and what hyper holds for the next question is given back.
const QUIET: Duration = Duration::from_secs(1);
/// Where there is an answer under way, it is looked again after so long.
const LATER: Duration = QUIET.saturating_mul(8);
/// Answers are under way, none of them moves, and nothing comes: longer than anybody waits for anything.
const UNMOVED_WITHIN: Duration = Duration::from_secs(600);
/// To say that a connection ends, where TLS wants that said.
const FAREWELL: Duration = Duration::from_secs(1);
/// A round trip of 100 ms at 1 Gbit/s needs 12 MiB in flight.
const H2_WINDOW: u32 = 16 << 20;
const H2_STREAMS: u32 = 200;
const H2_HEADERS: u32 = 16 << 10;

type Failure = Box<dyn std::error::Error + Send + Sync>;
/// A connection as hyper has it.
type Driven<S, V> = http1::Connection<TokioIo<Patient<Rewound<S>>>, V>;

impl Frontend {
    pub(super) async fn http1<S>(&self, mut stream: Rewound<S>, visit: Visit)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Visit { peer, mut shutdown, .. } = visit;
        let service = Watched::new(http::Service::new(self.clone(), peer));
        let activity = service.activity();
        loop {
            let connection = http1::Builder::new()
                .keep_alive(!self.is_crowded())
                // Counted here: hyper counts while the end of an answer waits for a slow reader.
                .header_read_timeout(None)
                .max_buf_size(self.buffer())
                .serve_connection(
                    TokioIo::new(Patient::new(stream, Arc::clone(activity))),
                    service.clone(),
                );
            // Boxed, so that what hyper holds goes with it.
            let served = until_idle(connection, activity, self.patience(), &mut shutdown);
            let idle = served.boxed().await;
            let Some(idle) = idle else { return };
            stream = idle;
            if !self.wait(&mut stream, &mut shutdown).await {
                let _ = timeout(FAREWELL, stream.shutdown()).await;
                return;
            }
        }
    }

    /// Waits for the next question of one that idles; false: there is none.
    async fn wait<S>(&self, stream: &mut Rewound<S>, shutdown: &mut Shutdown) -> bool
    where
        S: AsyncRead + Unpin,
    {
        if stream.is_unread() {
            return true;
        }
        tokio::select! {
            more = timeout(self.patience() - QUIET, stream.more()) => matches!(more, Ok(Ok(()))),
            () = shutdown.wait() => false,
        }
    }

    pub(super) async fn http2<S>(&self, stream: Rewound<S>, visit: Visit)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Visit { peer, mut shutdown, .. } = visit;
        let service = Watched::new(http::Service::new(self.clone(), peer));
        let activity = Arc::clone(service.activity());
        let connection = http2::Builder::new(Streams(self.inner.cache.tasks().clone()))
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_WINDOW)
            .initial_connection_window_size(H2_WINDOW * 2)
            .max_concurrent_streams(H2_STREAMS)
            .max_send_buf_size(self.buffer())
            .max_header_list_size(H2_HEADERS)
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .serve_connection(TokioIo::new(Patient::new(stream, Arc::clone(&activity))), service);
        until_ended(connection, &activity, || self.patience(), &mut shutdown).await;
    }
}

/// Serves until the connection ends, and asks it to when nothing was asked for so long.
async fn until_ended<S, V>(
    connection: http2::Connection<TokioIo<Patient<Rewound<S>>>, V, Streams>,
    activity: &Activity,
    patience: impl Fn() -> Duration,
    shutdown: &mut Shutdown,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    V: HttpService<Incoming, Future: Send + 'static>,
    V::ResBody: Body<Data: Send, Error: Into<Failure>> + Send + 'static,
{
    tokio::pin!(connection);
    let (mut seen, mut is_ending) = (activity.quiet(), false);
    let (mut moved, mut since) = (activity.moved(), Instant::now());
    loop {
        let is_told = is_ending;
        tokio::select! {
            result = connection.as_mut() => return ended(result),
            () = shutdown.wait(), if !is_ending => is_ending = true,
            () = tokio::time::sleep(patience()) => {
                let quiet = activity.quiet();
                if quiet.is_some() && quiet == seen {
                    if is_told {
                        // It knows, and does not go.
                        return;
                    }
                    is_ending = true;
                }
                seen = quiet;
                if activity.moved() != moved {
                    (moved, since) = (activity.moved(), Instant::now());
                }
                // Of one stream that takes nothing the socket does not tell.
                if since.elapsed() >= UNMOVED_WITHIN && quiet.is_none() {
                    tracing::debug!("connection ended: nobody takes the answers");
                    return;
                }
            }
        }
        if is_ending && !is_told {
            connection.as_mut().graceful_shutdown();
        }
    }
}

/// Serves until the connection ends, or until it idles: then as it is without hyper. Half a question that
/// was there before counts as its first one, so that nobody gets more time for it by being slow.
async fn until_idle<S, V>(
    mut connection: Driven<S, V>,
    activity: &Activity,
    patience: Duration,
    shutdown: &mut Shutdown,
) -> Option<Rewound<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    V: HttpService<Incoming, Future: Unpin, ResBody: Body<Error: Into<Failure>> + 'static> + Unpin,
{
    let (first, mut is_ending) = (activity.begun(), false);
    // What was seen last, and for how long.
    let (mut seen, mut calm) = (None, Duration::ZERO);
    loop {
        let rest = if activity.quiet().is_some() { QUIET } else { LATER };
        tokio::select! {
            result = &mut connection => {
                ended(result);
                return None;
            }
            () = shutdown.wait(), if !is_ending => {
                is_ending = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            () = tokio::time::sleep(rest) => {
                let quiet = activity.quiet();
                // For the whole time: an answer of this moment may leave a body behind that is not read.
                let is_calm = quiet.is_some() && quiet == seen;
                calm = if is_calm { calm + rest } else { Duration::ZERO };
                seen = quiet;
                if calm >= patience {
                    tracing::debug!("connection ended: half a question");
                    return None;
                }
                if is_calm && !is_ending && quiet != Some(first) {
                    is_ending = true;
                    if is_let_go(&mut connection) {
                        return Some(taken(connection));
                    }
                }
            }
        }
    }
}

/// Between two messages hyper lets go at once, and writes and closes nothing; else it ends with the answer.
fn is_let_go<S, V>(connection: &mut Driven<S, V>) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
    V: HttpService<Incoming, Future: Unpin, ResBody: Body<Error: Into<Failure>> + 'static> + Unpin,
{
    Pin::new(&mut *connection).graceful_shutdown();
    let left = std::future::poll_fn(|context| connection.poll_without_shutdown(context));
    matches!(left.now_or_never(), Some(Ok(())))
}

/// The connection without hyper, and with what has come of the next question.
fn taken<S, V>(connection: Driven<S, V>) -> Rewound<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
    V: HttpService<Incoming, Future: Unpin, ResBody: Body<Error: Into<Failure>> + 'static> + Unpin,
{
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner().into_inner();
    stream.unread(parts.read_buf);
    stream
}

fn ended(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

/// The streams of an HTTP/2 connection, which may be all that another machine asks: they have every
/// processor, while the connection itself stays in its lane.
#[derive(Clone)]
struct Streams(Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0.spawn("stream", stream);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures_util::future::BoxFuture;
    use futures_util::stream::BoxStream;
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::body::Frame;
    use hyper::service::{Service, service_fn};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    type Question = hyper::Request<Incoming>;
    type Answer = hyper::Response<StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>>;

    /// An answer that takes so long comes in a moment at which it is looked.
    const LONG: Duration = QUIET.saturating_add(LATER);
    const LARGE: usize = 1000;

    /// Answers with a large body: at once, after a long time, or with a body that takes a long time.
    fn service() -> Watched<
        impl Service<Question, Response = Answer, Error = Infallible, Future: Send + Unpin> + Clone,
    > {
        Watched::new(service_fn(|question: Question| -> BoxFuture<'static, _> {
            let path = question.uri().path().to_owned();
            let is = move |what: &str| path.ends_with(what);
            Box::pin(async move {
                if is("late") {
                    tokio::time::sleep(LONG).await;
                }
                drop(question);
                let body = futures_util::stream::once(async move {
                    if is("slow") {
                        tokio::time::sleep(LONG).await;
                    }
                    Ok(Frame::data(Bytes::from_static(&[b'x'; LARGE])))
                });
                Ok(hyper::Response::new(StreamBody::new(Box::pin(body) as BoxStream<'_, _>)))
            })
        }))
    }

    async fn served<V, B>(
        stream: Rewound<DuplexStream>,
        service: &Watched<V>,
    ) -> Option<Rewound<DuplexStream>>
    where
        Watched<V>: HttpService<Incoming, ResBody = B, Future: Unpin> + Clone + Unpin,
        <Watched<V> as HttpService<Incoming>>::Error: Into<Failure>,
        B: Body<Error: Into<Failure>> + 'static,
    {
        let activity = service.activity();
        let io = TokioIo::new(Patient::new(stream, Arc::clone(activity)));
        let connection = http1::Builder::new().serve_connection(io, service.clone());
        until_idle(connection, activity, LONG / 2, &mut Tasks::new().shutdown_signal()).await
    }

    /// A whole answer, its first bytes taken after a time.
    async fn answer(other: &mut DuplexStream, after: Duration) {
        tokio::time::sleep(after).await;
        let mut got = Vec::new();
        while !got.ends_with(b"x\r\n0\r\n\r\n") {
            assert_ne!(other.read_buf(&mut got).await.unwrap(), 0, "closed");
        }
        assert!(got.starts_with(b"HTTP/1.1 200 OK"), "{:?}", String::from_utf8_lossy(&got));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_idles_is_taken_from_hyper_and_answered_when_it_asks_again() {
        let (stream, mut other) = tokio::io::duplex(64);
        let (service, mut stream) = (service(), Rewound::new(stream));
        let no_time = Duration::ZERO;
        for (path, after) in [("", no_time), ("late", no_time), ("slow", no_time), ("", LONG)] {
            // The first bytes come while it idles.
            other.write_all(b"GET /").await.unwrap();
            stream.more().await.unwrap();
            let rest = format!("{path} HTTP/1.1\r\nhost: a\r\n\r\n");
            let asked = async {
                other.write_all(rest.as_bytes()).await.unwrap();
                answer(&mut other, after).await;
            };
            let (idle, ()) = tokio::join!(served(stream, &service), asked);
            stream = idle.expect("it idles");
            assert!(!stream.is_unread());
        }
    }

    /// Who sends heads slowly has no more time for them because it was answered before.
    #[tokio::test(start_paused = true)]
    async fn half_a_question_is_kept_and_its_rest_waited_for_once() {
        let (stream, mut other) = tokio::io::duplex(64);
        let service = service();
        let asked = async {
            other.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            answer(&mut other, Duration::ZERO).await;
            other.write_all(b"GET / HT").await.unwrap();
        };
        let (idle, ()) = tokio::join!(served(Rewound::new(stream), &service), asked);
        let stream = idle.expect("it idles");
        assert!(stream.is_unread());
        let begin = Instant::now();
        assert!(served(stream, &service).await.is_none(), "it waits again and again");
        assert!(begin.elapsed() >= LONG / 2);
        assert_eq!(other.read(&mut [0; 8]).await.unwrap(), 0, "it is closed");
    }

    /// Its rest would be read as the next question.
    #[tokio::test(start_paused = true)]
    async fn one_whose_body_was_not_read_is_closed() {
        let (stream, mut other) = tokio::io::duplex(256);
        let service = service();
        let asked = async {
            let head = b"PUT /late HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n";
            other.write_all(head).await.unwrap();
            answer(&mut other, Duration::ZERO).await;
            let _ = other.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        };
        let (idle, ()) = tokio::join!(served(Rewound::new(stream), &service), asked);
        assert!(idle.is_none());
        assert_eq!(service.activity().begun(), 1);
    }

    /// It once stayed for as long as the other end liked, whatever the crowd.
    #[tokio::test(start_paused = true)]
    async fn http2_is_ended_when_it_idles_and_not_while_an_answer_is_under_way() {
        let (stream, other) = tokio::io::duplex(64 << 10);
        let (service, tasks) = (service(), Tasks::new());
        let activity = Arc::clone(service.activity());
        let io = TokioIo::new(Patient::new(Rewound::new(stream), Arc::clone(&activity)));
        let connection = http2::Builder::new(Streams(tasks.clone())).serve_connection(io, service);
        let mut shutdown = tasks.shutdown_signal();
        let served = until_ended(connection, &activity, || LONG / 3, &mut shutdown);
        let asked = async {
            let client = hyper::client::conn::http2::Builder::new(Streams(tasks.clone()));
            let (mut ask, other) = client.handshake(TokioIo::new(other)).await.unwrap();
            tasks.spawn("client", async move { ended(other.await) });
            for path in ["/late", "/slow", "/"] {
                let question = hyper::Request::get(format!("http://a{path}"));
                let question = question.body(http_body_util::Empty::<Bytes>::new()).unwrap();
                let answer = ask.send_request(question).await.unwrap();
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body.len(), LARGE);
            }
            ask
        };
        let (_still_there, ()) = tokio::join!(asked, served);
        assert_eq!(activity.begun(), 3);
    }

    /// It answers whether it is there, and takes no answer: it kept its place for ever.
    #[tokio::test(start_paused = true)]
    async fn http2_that_takes_nothing_is_closed_in_the_end() {
        let (stream, other) = tokio::io::duplex(64 << 10);
        let (service, tasks) = (service(), Tasks::new());
        let activity = Arc::clone(service.activity());
        let io = TokioIo::new(Patient::new(Rewound::new(stream), Arc::clone(&activity)));
        let connection = http2::Builder::new(Streams(tasks.clone()))
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .serve_connection(io, service);
        let mut shutdown = tasks.shutdown_signal();
        let served = until_ended(connection, &activity, || LONG, &mut shutdown);
        let asked = async {
            let mut client = hyper::client::conn::http2::Builder::new(Streams(tasks.clone()));
            client.initial_stream_window_size(0);
            let (mut ask, other) = client.handshake(TokioIo::new(other)).await.unwrap();
            tasks.spawn("client", async move { ended(other.await) });
            let question = hyper::Request::get("http://a/");
            let question = question.body(http_body_util::Empty::<Bytes>::new()).unwrap();
            let answer = ask.send_request(question).await.unwrap();
            (ask, answer)
        };
        let begin = Instant::now();
        let (_still_there, ()) = tokio::join!(asked, served);
        assert!(begin.elapsed() >= UNMOVED_WITHIN);
    }
}

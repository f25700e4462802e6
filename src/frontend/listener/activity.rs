//! What goes on on a connection of HTTP, as far as it tells whether it idles: questions that have no whole
//! answer yet, and answers that the other end does not take. Nothing here reads or writes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use http::Response;
use hyper::body::{Body, Frame, SizeHint};
use hyper::service::Service;

/// One for each connection.
#[derive(Default)]
pub(super) struct Activity {
    begun: AtomicU64,
    moved: AtomicU64,
    open: AtomicUsize,
    is_stuck: AtomicBool,
}

impl Activity {
    /// How many questions there were.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// How many questions there were, where each has its whole answer, and that is on its way.
    pub(super) fn quiet(&self) -> Option<u64> {
        let is_busy =
            self.open.load(Ordering::Relaxed) > 0 || self.is_stuck.load(Ordering::Relaxed);
        (!is_busy).then(|| self.begun())
    }

    /// Counts what moves: questions, pieces of answers that are taken, pieces of bodies that come.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    pub(super) fn moves(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Something waits to be written, or no longer.
    pub(super) fn stuck(&self, is_stuck: bool) {
        self.is_stuck.store(is_stuck, Ordering::Relaxed);
    }
}

/// A question that has no whole answer yet.
struct Open(Arc<Activity>);

impl Open {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.begun.fetch_add(1, Ordering::Relaxed);
        activity.moves();
        activity.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A service of which is known how much it has to do.
#[derive(Clone)]
pub(super) struct Watched<V> {
    service: V,
    activity: Arc<Activity>,
}

impl<V> Watched<V> {
    pub(super) fn new(service: V) -> Self {
        Self { service, activity: Arc::default() }
    }

    pub(super) const fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

impl<V, Q, B> Service<Q> for Watched<V>
where
    V: Service<Q, Response = Response<B>>,
    V::Future: Unpin,
{
    type Response = Response<Held<B>>;
    type Error = V::Error;
    type Future = Answering<V::Future>;

    fn call(&self, question: Q) -> Self::Future {
        let open = Some(Open::begin(&self.activity));
        Answering { answer: self.service.call(question), open }
    }
}

pub(super) struct Answering<F> {
    answer: F,
    open: Option<Open>,
}

impl<F, B, E> Future for Answering<F>
where
    F: Future<Output = Result<Response<B>, E>> + Unpin,
{
    type Output = Result<Response<Held<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        let open = self.open.take();
        Poll::Ready(answer.map(|answer| answer.map(|body| Held { body, open })))
    }
}

/// The body of an answer, which is not whole before this is dropped.
pub(super) struct Held<B> {
    body: B,
    open: Option<Open>,
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let (Poll::Ready(Some(_)), Some(open)) = (&frame, &self.open) {
            open.0.moves();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

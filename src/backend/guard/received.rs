//! A body on its way from upstream, watched to its end: its pace, its ticket, its seat.
//!
//! Cancel-safe: a consumer that goes away drops all three, and nothing counts against upstream.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use crate::backend::Fetched;
use crate::backend::guard::breaker::Outcome;
use crate::backend::guard::progress::{Floor, SHARING_MAX};
use crate::backend::guard::{Leave, SMALL_BODY_BYTES};
use crate::entry::BodyError;
use crate::telemetry::metrics::Upstream;

/// A probe that has brought this much need not end before others may ask: a large body would
/// keep everybody out while it is doing well.
const PROBE_PROOF_BYTES: u64 = 256 << 10;
/// Below, a body tells about latency, not about bandwidth.
const MEASURED_FROM_BYTES: u64 = 256 << 10;

pub(super) struct Received {
    inner: Fetched,
    leave: Leave,
    /// Held until the body ends: what is limited is transfers, not questions.
    _seat: OwnedSemaphorePermit,
    floor: Floor,
    /// How long a small body may be waited for, if it has the link to itself.
    patience: Option<Duration>,
    /// How long it was. Pauses of whoever reads it are not upstream's.
    waited: Duration,
    first_byte: Instant,
    got: u64,
    /// Since when upstream has been waited for, and what ends the wait.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
    is_done: bool,
}

impl Received {
    /// `asked` is when the request was made.
    pub(super) fn new(
        inner: Fetched,
        leave: Leave,
        seat: OwnedSemaphorePermit,
        asked: Instant,
    ) -> Self {
        let config = leave.config();
        let is_small = inner.len.is_some_and(|len| len <= SMALL_BODY_BYTES);
        let mut this = Self {
            floor: Floor::new(config.floor_bytes_per_s, config.window),
            patience: is_small.then_some(config.small_get),
            waited: asked.elapsed(),
            first_byte: Instant::now(),
            got: 0,
            waiting: None,
            is_done: false,
            _seat: seat,
            inner,
            leave,
        };
        if this.inner.len == Some(0) {
            // Nobody needs to read what is empty.
            this.on_end();
        }
        this
    }

    fn on_piece(&mut self, piece: Bytes) -> Result<Bytes, BodyError> {
        let sharing = self.sharing();
        let waited = self.stop_waiting();
        let size = piece.len() as u64;
        self.got += size;
        self.leave.upstream().bytes_in.add(size);
        let pace = self.floor.advance(waited, size, sharing);
        if self.inner.len.is_some_and(|len| self.got >= len) {
            // Whoever counts bytes does not come back for the end.
            self.on_end();
        } else if pace.is_err() {
            return Err(self.on_stall());
        }
        if self.got >= PROBE_PROOF_BYTES {
            self.leave.prove();
        }
        Ok(piece)
    }

    /// How many bodies wait for upstream's bytes, itself among them.
    fn sharing(&self) -> u64 {
        self.leave.waiting().load(Ordering::Relaxed).max(1) as u64
    }

    /// How long it has been waiting.
    fn stop_waiting(&mut self) -> Duration {
        let Some((since, _)) = self.waiting.take() else { return Duration::ZERO };
        self.leave.waiting().fetch_sub(1, Ordering::Relaxed);
        let waited = since.elapsed();
        self.waited += waited;
        waited
    }

    /// How much longer a small body may be waited for, in all the longer as it shares the link with
    /// others.
    fn patience(&self) -> Option<Duration> {
        let others = (self.sharing() - 1).min(SHARING_MAX);
        let share = self.inner.len.unwrap_or(0).saturating_mul(others);
        let floor = self.leave.config().floor_bytes_per_s.max(1);
        let more = Duration::from_millis(share.saturating_mul(1000) / floor);
        self.patience.map(|patience| (patience + more).saturating_sub(self.waited))
    }

    fn on_end(&mut self) {
        self.stop_waiting();
        self.leave.good();
        let took = self.first_byte.elapsed().as_secs_f64();
        if self.got >= MEASURED_FROM_BYTES && took > 0.0 && !self.is_done {
            measure(self.leave.upstream(), self.got as f64 * 8.0 / took);
        }
        self.is_done = true;
    }

    fn on_stall(&mut self) -> BodyError {
        let waited = self.first_byte.elapsed();
        let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        let error = BodyError::Stalled { waited_ms };
        self.on_trouble(&error);
        error
    }

    fn on_trouble(&mut self, error: &BodyError) {
        self.stop_waiting();
        self.leave.upstream().failures.inc();
        self.leave.errors().bad(error);
        self.leave.settle(Outcome::Trouble);
        self.is_done = true;
    }

    /// Upstream has nothing for us now. Ready: it has had long enough.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        loop {
            let now = Instant::now();
            if self.waiting.is_none() {
                self.leave.waiting().fetch_add(1, Ordering::Relaxed);
                let left = self.floor.left();
                let left = self.patience().map_or(left, |patience| left.min(patience));
                self.waiting = Some((now, Box::pin(tokio::time::sleep_until(now + left))));
            }
            let timer = self.waiting.as_mut().map(|(_, timer)| timer.as_mut());
            if timer.is_none_or(|timer| timer.poll(cx).is_pending()) {
                return Poll::Pending;
            }
            let (sharing, patience) = (self.sharing(), self.patience());
            let waited = self.stop_waiting();
            let is_late = patience.is_some_and(|patience| waited >= patience);
            if self.floor.advance(waited, 0, sharing).is_err() || is_late {
                return Poll::Ready(self.on_stall());
            }
        }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.stop_waiting();
        // Whoever goes away has had enough, or too little to say anything about upstream.
        if !self.is_done && self.got >= SMALL_BODY_BYTES {
            self.leave.settle(Outcome::Good);
        }
    }
}

impl Stream for Received {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.is_done {
            return Poll::Ready(None);
        }
        match this.inner.chunks.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(piece))) => Poll::Ready(Some(this.on_piece(piece))),
            Poll::Ready(Some(Err(error))) => {
                this.on_trouble(&error);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.on_end();
                Poll::Ready(None)
            }
            Poll::Pending => this.poll_patience(cx).map(|error| Some(Err(error))),
        }
    }
}

/// Smooths over about four bodies. Two that end at once may lose one measurement, not the value.
fn measure(upstream: &Upstream, bits_per_s: f64) {
    let before = upstream.bandwidth_bits.get();
    let smooth = if before == 0 { bits_per_s } else { before as f64 * 0.75 + bits_per_s * 0.25 };
    #[expect(clippy::cast_possible_truncation, reason = "a float beyond 64 bits saturates")]
    upstream.bandwidth_bits.set(smooth as u64);
}

//! Whether a transfer makes progress: a floor for what is received, a due time for what is sent.
//!
//! Only time spent waiting for upstream counts; a consumer may take as long as it likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::backend::Upload;
use crate::entry::Chunks;
use crate::telemetry::metrics;

/// As many as a prefetch has under way at most.
pub(super) const SHARING_MAX: u64 = 16;

/// A window of waiting ended with too few bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooSlow;

/// Judges received bytes window by window. Pure.
#[derive(Clone, Debug)]
pub(super) struct Floor {
    window: Duration,
    /// What every window but the first must bring.
    least: u64,
    waited: Duration,
    got: u64,
    /// The most bodies that have shared the link within the window.
    sharing: u64,
    is_first: bool,
}

impl Floor {
    pub(super) fn new(bytes_per_s: u64, window: Duration) -> Self {
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let least = bytes_per_s.saturating_mul(window_ms) / 1000;
        Self { window, least, waited: Duration::ZERO, got: 0, sharing: 1, is_first: true }
    }

    /// How much more waiting ends the window.
    pub(super) fn left(&self) -> Duration {
        self.window.saturating_sub(self.waited)
    }

    /// Counts `waited`, and the `bytes` that came at its end. So many bodies share the link with it,
    /// itself among them: a slow link that carries many is not a stalled one. But what each of very
    /// many gets is too little for anybody, so no more than `SHARING_MAX` count.
    pub(super) fn advance(
        &mut self,
        waited: Duration,
        bytes: u64,
        sharing: u64,
    ) -> Result<(), TooSlow> {
        self.waited += waited;
        self.got += bytes;
        self.sharing = self.sharing.max(sharing.min(SHARING_MAX));
        if self.waited < self.window {
            return Ok(());
        }
        // TCP starts slowly and upstream may still be reading its disk: the first window is free.
        let is_slow = !self.is_first && self.got < self.least / self.sharing;
        self.waited = Duration::ZERO;
        self.got = 0;
        self.sharing = 1;
        self.is_first = false;
        if is_slow { Err(TooSlow) } else { Ok(()) }
    }
}

/// Watches an upload from the side of its source: whether upstream still takes pieces.
#[derive(Debug)]
pub(super) struct Sending {
    started: Instant,
    /// When the last piece was taken, in milliseconds since `started`.
    moved_ms: AtomicU64,
    /// The source has not given us the next piece, or has broken: not upstream's fault.
    is_ours: AtomicBool,
    taken: AtomicU64,
    proof: Notify,
}

/// What upstream has taken of a body that shows that it lives: more than any socket holds. A probe's body
/// may take hours, and all others wait for what it tells.
const PROOF_BYTES: u64 = 6 << 20;

impl Sending {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            moved_ms: AtomicU64::new(0),
            is_ours: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            proof: Notify::new(),
        })
    }

    /// The same body, with each piece noticed as it is taken.
    pub(super) fn watch(
        self: &Arc<Self>,
        body: Upload,
        upstream: &Arc<metrics::Upstream>,
    ) -> Upload {
        let (sending, upstream) = (self.clone(), upstream.clone());
        let open = move || -> Chunks {
            let (sending, upstream) = (sending.clone(), upstream.clone());
            // Once more from its beginning.
            sending.taken.store(0, Ordering::Relaxed);
            let mut pieces = (body.open)();
            Box::pin(futures_util::stream::poll_fn(move |cx| {
                let polled = pieces.poll_next_unpin(cx);
                let is_ours = matches!(polled, Poll::Pending | Poll::Ready(Some(Err(_))));
                sending.is_ours.store(is_ours, Ordering::Relaxed);
                sending.touch();
                if let Poll::Ready(Some(Ok(piece))) = &polled {
                    upstream.bytes_out.add(piece.len() as u64);
                    sending.take(piece.len() as u64);
                }
                polled
            }))
        };
        Upload { len: body.len, open: Arc::new(open) }
    }

    fn take(&self, bytes: u64) {
        let before = self.taken.fetch_add(bytes, Ordering::Relaxed);
        if before < PROOF_BYTES && before + bytes >= PROOF_BYTES {
            self.proof.notify_one();
        }
    }

    /// Waits for the answer as long as upstream moves; `proven` is told when it has shown that it lives. None:
    /// it has not moved for as long as it may `rest`, or it is past the end.
    pub(super) async fn answer<T>(
        &self,
        mut putting: impl Future<Output = T> + Unpin,
        rest: Duration,
        end: Instant,
        mut proven: impl FnMut(),
    ) -> Option<T> {
        loop {
            let due = self.due(rest).min(end);
            tokio::select! {
                biased;
                answer = &mut putting => return Some(answer),
                () = self.proof.notified() => proven(),
                // It may have taken a piece since.
                () = sleep_until(due) => if self.due(rest).min(end) <= due {
                    return None;
                },
            }
        }
    }

    fn touch(&self) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(ms, Ordering::Relaxed);
    }

    pub(super) fn is_ours(&self) -> bool {
        self.is_ours.load(Ordering::Relaxed)
    }

    /// Whether upstream, which has not answered, takes what is left of a body of `len` bytes.
    pub(super) fn is_moving(&self, len: u64, rest: Duration) -> bool {
        self.taken.load(Ordering::Relaxed) < len && self.due(rest) > Instant::now()
    }

    /// When upstream must have moved again, or answered, if it may rest for `rest`.
    fn due(&self, rest: Duration) -> Instant {
        self.started + Duration::from_millis(self.moved_ms.load(Ordering::Relaxed)) + rest
    }

    /// When all must be over, if a transfer at the floor's pace may take `rest` besides. Nobody waits
    /// for it, and others may have the link: so it is the pace of the last of many that share it.
    pub(super) fn end(&self, len: u64, bytes_per_s: u64, rest: Duration) -> Instant {
        self.started + rest + Duration::from_secs(len / (bytes_per_s / SHARING_MAX).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_judges_every_window_but_the_first() {
        const S: Duration = Duration::from_secs(1);
        const KIB: u64 = 1 << 10;
        // Seconds waited, bytes that came then, and who shared the link; 64 KiB/s, windows of 2 s.
        type Steps = &'static [(u32, u64, u64)];
        let cases: [(&str, Steps, bool); 12] = [
            ("nothing in the first window", &[(1, 0, 1), (1, 0, 1)], true),
            ("nothing in the second", &[(2, 0, 1), (1, 0, 1), (1, 0, 1)], false),
            ("one byte a second", &[(1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)], false),
            ("just the floor", &[(2, 0, 1), (1, 64 * KIB, 1), (1, 64 * KIB, 1)], true),
            ("a byte below it", &[(2, 0, 1), (1, 64 * KIB, 1), (1, 64 * KIB - 1, 1)], false),
            ("all at the end of the window", &[(2, 0, 1), (2, 128 * KIB, 1)], true),
            ("no waiting, few bytes", &[(2, 0, 1), (0, 1, 1), (0, 1, 1), (0, 1, 1)], true),
            ("a sixteenth of it among sixteen", &[(2, 0, 16), (2, 8 * KIB, 16)], true),
            ("less among sixteen", &[(2, 0, 16), (2, 8 * KIB - 1, 16)], false),
            ("less among many", &[(2, 0, 64), (2, 8 * KIB - 1, 64)], false),
            (
                "the last of four that ended within the window",
                &[(2, 0, 4), (1, 32 * KIB, 4), (1, 1, 1)],
                true,
            ),
            (
                "the same, but for a window alone",
                &[(2, 0, 4), (1, 0, 4), (1, 32 * KIB, 1), (2, 1, 1)],
                false,
            ),
        ];
        for (what, steps, passes) in cases {
            let mut floor = Floor::new(64 * KIB, 2 * S);
            let result: Result<Vec<()>, TooSlow> = steps
                .iter()
                .map(|(waited, bytes, sharing)| floor.advance(S * *waited, *bytes, *sharing))
                .collect();
            assert_eq!(result.is_ok(), passes, "{what}");
        }
    }

    /// Who had taken a small body and never answered was said to be moving still.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_was_taken_whole_moves_no_more() {
        let (sending, rest) = (Sending::new(), Duration::from_secs(10));
        let body = sending.watch(Upload::bytes("body".into()), &Arc::default());
        let mut pieces = (body.open)();
        assert!(sending.is_moving(4, rest));
        while pieces.next().await.is_some() {}
        assert!(!sending.is_moving(4, rest));
    }
}

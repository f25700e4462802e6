//! HTTP in: ranges, and bodies that must keep moving, and may go on when nobody wants them.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, EXPECT, IF_RANGE, RANGE};
use http::request::Parts;
use http::{HeaderMap, Version};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::time::{Instant, timeout};

use crate::entry::{BodyError, Incoming};
use crate::tasks::{Shutdown, Tasks};

/// A sender that sends nothing for this long is given up.
const STALLED_AFTER: Duration = Duration::from_secs(30);
/// Over this long a sender must have sent at least so much.
const PACE_OVER: Duration = Duration::from_secs(60);
const PACE_BYTES: u64 = 64 << 10;

/// After an answer a sender may go on for so long, and be silent for so long.
const REST_WITHIN: Duration = Duration::from_secs(30);
const REST_PAUSE: Duration = Duration::from_secs(5);

/// A request's body, which is on its way. What is left of it when it is dropped is read and thrown away:
/// whoever sends all before he reads hears the answer, and no reset.
pub(super) struct Coming {
    /// None: it has come, or nothing more will.
    body: Option<hyper::body::Incoming>,
    /// What reads the rest; None: nobody has to.
    tasks: Option<Tasks>,
}

impl Coming {
    pub(super) fn new(parts: &Parts, body: hyper::body::Incoming, tasks: &Tasks) -> Self {
        // Over HTTP/2 a sender is told to stop, and who waits to be told to go on has sent nothing yet.
        let goes_on = !body.is_end_stream()
            && parts.version <= Version::HTTP_11
            && !parts.headers.contains_key(EXPECT);
        Self { body: Some(body), tasks: goes_on.then(|| tasks.clone()) }
    }

    /// Its bytes, with their announced length.
    pub(super) fn pieces(self) -> Incoming {
        let len = self.body.as_ref().and_then(|body| body.size_hint().exact());
        let state = (self, 0_u64, Instant::now(), 0_u64);
        let chunks =
            futures_util::stream::try_unfold(state, |(mut body, got, since, before)| async move {
                let Some(data) = body.next().await? else { return Ok(None) };
                let got = got + data.len() as u64;
                let (mut since, mut before) = (since, before);
                if since.elapsed() > PACE_OVER {
                    if got - before < PACE_BYTES {
                        body.give_up();
                        return Err(BodyError::Stalled { waited_ms: 60_000 });
                    }
                    (since, before) = (Instant::now(), got);
                }
                Ok(Some((data, (body, got, since, before))))
            });
        Incoming { len, chunks: Box::pin(chunks) }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        while let Some(body) = &mut self.body {
            let frame = timeout(STALLED_AFTER, body.frame()).await;
            if !matches!(frame, Ok(Some(Ok(_)))) {
                self.give_up();
            }
            let frame = frame.map_err(|_| BodyError::Stalled { waited_ms: 30_000 })?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| BodyError::Broken(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    fn give_up(&mut self) {
        self.body = None;
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        let (Some(body), Some(tasks)) = (self.body.take(), self.tasks.take()) else { return };
        if !body.is_end_stream() {
            tasks.spawn("rest of a body", throw_away(body, tasks.shutdown_signal()));
        }
    }
}

/// Reads to the end, or until the sender has had his time.
async fn throw_away(mut body: hyper::body::Incoming, mut shutdown: Shutdown) {
    let all = async { while let Ok(Some(Ok(_))) = timeout(REST_PAUSE, body.frame()).await {} };
    tokio::select! {
        // The time being over is the other way to end.
        _ = timeout(REST_WITHIN, all) => {}
        () = shutdown.wait() => {}
    }
}

/// Whether a client has asked that the source be looked at.
pub(super) fn wants_no_old(headers: &HeaderMap) -> bool {
    let words = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    words
        .flat_map(|words| words.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("no-cache"))
}

/// Whether a body was announced with two lengths, or one that is no number.
pub(super) fn has_bad_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let first = lengths.next();
    lengths.next().is_some()
        || first.is_some_and(|len| len.to_str().ok().and_then(|t| t.parse::<u64>().ok()).is_none())
}

/// What part of a body is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Range(Range<u64>),
    Unsatisfiable,
    Malformed,
}

/// Reads a `Range` header against a body of `len` bytes. Several ranges get the whole body, which a
/// server is free to send.
pub(super) fn part(headers: &HeaderMap, len: u64) -> Part {
    let Some(header) = headers.get(RANGE) else { return Part::Whole };
    // Nothing here has a validator that could match one: then the standard wants the whole.
    if headers.contains_key(IF_RANGE) {
        return Part::Whole;
    }
    let split = header.to_str().ok().and_then(|text| text.trim().split_once('='));
    let Some((_, spec)) = split.filter(|(unit, _)| unit.eq_ignore_ascii_case("bytes")) else {
        return Part::Malformed;
    };
    if spec.contains(',') {
        return Part::Whole;
    }
    let Some((from, to)) = spec.split_once('-') else { return Part::Malformed };
    let number = |text: &str| {
        let text = text.trim();
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (number(from), number(to), from.trim().is_empty(), to.trim().is_empty()) {
        (Some(from), None, _, true) if from < len => Part::Range(from..len),
        (Some(from), Some(to), ..) if from <= to && from < len => {
            Part::Range(from..to.saturating_add(1).min(len))
        }
        (None, Some(last), true, _) if last > 0 && len > 0 => {
            Part::Range(len.saturating_sub(last)..len)
        }
        (Some(from), Some(to), ..) if from > to => Part::Malformed,
        (Some(_), None, _, false) => Part::Malformed,
        (Some(_), ..) | (None, Some(_), true, _) => Part::Unsatisfiable,
        _ => Part::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let cases = [
            ("bytes=0-", Part::Range(0..100)),
            ("bytes=10-19", Part::Range(10..20)),
            ("bytes=90-1000", Part::Range(90..100)),
            ("bytes=-10", Part::Range(90..100)),
            ("bytes=-1000", Part::Range(0..100)),
            ("bytes=99-", Part::Range(99..100)),
            ("bytes=100-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=0-1,5-6", Part::Whole),
            ("bytes=20-10", Part::Malformed),
            ("bytes=x-", Part::Malformed),
            ("bytes=-", Part::Malformed),
            ("bytes=+1-2", Part::Malformed),
            ("lines=1-2", Part::Malformed),
            ("bytes 1-2", Part::Malformed),
            ("bytes=0-0-0", Part::Malformed),
            ("bytes=0-1;x", Part::Malformed),
            ("BYTES=10-19", Part::Range(10..20)),
        ];
        for (text, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, text.parse().unwrap());
            assert_eq!(part(&headers, 100), expected, "{text}");
        }
        assert_eq!(part(&HeaderMap::new(), 100), Part::Whole);
    }
}

//! HTTP out: what lookups and puts came to, as status, headers and body. The only HTTP status codes
//! for clients stand here.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};

use crate::cache::{PutDone, PutError};
use crate::entry::{Blob, BodyError, Chunks, Found, Why};
use crate::frontend::access::Denied;
use crate::frontend::request::{Part, part};
use crate::frontend::route::RouteError;

const MISS: HeaderName = HeaderName::from_static("larder-miss");
const SOURCE: HeaderName = HeaderName::from_static("larder-source");

/// A body on its way out.
pub(super) enum Outgoing {
    Bytes(Option<Bytes>),
    /// With the length that was announced, if it was.
    Chunks(Chunks, Option<u64>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Chunks(chunks, left) => {
                let next = chunks.as_mut().poll_next(context);
                if let (Poll::Ready(Some(Ok(piece))), Some(left)) = (&next, left) {
                    *left = left.saturating_sub(piece.len() as u64);
                }
                next.map(|piece| piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Bytes(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Chunks(_, Some(left)) => SizeHint::with_exact(*left),
            Self::Chunks(_, None) => SizeHint::default(),
        }
    }
}

pub(super) type Answer = Response<Outgoing>;

fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Outgoing::Bytes(None));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    answer
}

/// A status with a line for people.
fn text(status: StatusCode, line: impl Into<String>) -> Answer {
    let mut line = line.into();
    line.push('\n');
    let mut answer = Response::new(Outgoing::Bytes(Some(line.into())));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    answer
}

/// An entry, or the part of it that was asked for.
pub(super) fn hit(method: &Method, headers: &HeaderMap, blob: Blob, found: Found) -> Answer {
    let Some(len) = blob.body.len() else { return streaming(method, blob, found) };
    let (status, range) = match part(headers, len) {
        Part::Whole => (StatusCode::OK, None),
        Part::Range(range) => (StatusCode::PARTIAL_CONTENT, Some(range)),
        Part::Unsatisfiable => return unsatisfiable(len),
        Part::Malformed => {
            return text(
                StatusCode::BAD_REQUEST,
                "malformed range: write for example `bytes=0-99`",
            );
        }
    };
    let sent = range.as_ref().map_or(len, |range| range.end - range.start);
    let stored = blob.meta.headers;
    let body = match (method == Method::HEAD, range.clone(), blob.body) {
        (true, ..) => Outgoing::Bytes(None),
        (_, None, crate::entry::Body::Bytes(bytes)) if bytes.is_empty() => Outgoing::Bytes(None),
        (_, None, crate::entry::Body::Bytes(bytes)) => Outgoing::Bytes(Some(bytes)),
        (_, None, body) => Outgoing::Chunks(body.into_chunks(), Some(sent)),
        (_, Some(range), body) => Outgoing::Chunks(body.into_range(range), Some(sent)),
    };
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let out = answer.headers_mut();
    describe(out, found);
    out.insert(CONTENT_LENGTH, HeaderValue::from(sent));
    out.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(range) = range {
        out.insert(CONTENT_RANGE, content_range(&range, len));
    }
    for (name, value) in stored {
        if let (Ok(name), Ok(value)) =
            (HeaderName::try_from(&*name), HeaderValue::try_from(&*value))
        {
            out.insert(name, value);
        }
    }
    answer
}

/// A body whose length its upstream did not name.
fn streaming(method: &Method, blob: Blob, found: Found) -> Answer {
    let body = if method == Method::HEAD {
        Outgoing::Bytes(None)
    } else {
        Outgoing::Chunks(blob.body.into_chunks(), None)
    };
    let mut answer = Response::new(body);
    describe(answer.headers_mut(), found);
    answer
}

fn describe(headers: &mut HeaderMap, found: Found) {
    let source = match found {
        Found::Memory => "memory",
        Found::Disk => "disk",
        Found::Native => "native",
        Found::Upstream => "upstream",
        Found::Coalesced => "coalesced",
    };
    headers.insert(SOURCE, HeaderValue::from_static(source));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
}

fn content_range(range: &Range<u64>, len: u64) -> HeaderValue {
    let text = format!("bytes {}-{}/{len}", range.start, range.end - 1);
    HeaderValue::try_from(text).expect("numbers are visible ASCII")
}

fn unsatisfiable(len: u64) -> Answer {
    let mut answer = text(StatusCode::RANGE_NOT_SATISFIABLE, "the range lies beyond the entry");
    let value = HeaderValue::try_from(format!("bytes */{len}"));
    answer.headers_mut().insert(CONTENT_RANGE, value.expect("numbers are visible ASCII"));
    answer
}

/// A HEAD that hit without a body at hand.
pub(super) fn there(len: Option<u64>) -> Answer {
    let mut answer = Response::new(Outgoing::Bytes(None));
    if let Some(len) = len {
        answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(len));
    }
    answer.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer
}

/// A miss, and whether it may be remembered.
pub(super) fn miss(why: Why) -> Answer {
    let mut answer = empty(StatusCode::NOT_FOUND);
    let word = match why {
        Why::Absent => "absent",
        Why::Fault => "fault",
        Why::Deadline => "deadline",
        Why::Breaker => "breaker",
        Why::Local | Why::Policy => "local",
    };
    answer.headers_mut().insert(MISS, HeaderValue::from_static(word));
    answer
}

pub(super) fn put(done: Result<PutDone, PutError>) -> Answer {
    match done {
        Ok(PutDone::New) => empty(StatusCode::CREATED),
        Ok(PutDone::Replaced | PutDone::Known) => empty(StatusCode::OK),
        Err(error @ PutError::Mismatch { .. }) => {
            text(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
        }
        Err(error @ PutError::TooLarge { .. }) => {
            text(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
        }
        Err(error @ (PutError::Client(_) | PutError::Short { .. })) => {
            text(StatusCode::BAD_REQUEST, error.to_string())
        }
        Err(error @ PutError::NotStored(_)) => {
            text(StatusCode::INSUFFICIENT_STORAGE, error.to_string())
        }
    }
}

pub(super) fn deleted(was_there: bool) -> Answer {
    empty(if was_there { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND })
}

pub(super) fn denied(why: Denied) -> Answer {
    match why {
        Denied::Host => text(
            StatusCode::MISDIRECTED_REQUEST,
            "this name is not served here; allow it with --allow-host",
        ),
        Denied::Browser => text(StatusCode::FORBIDDEN, "web pages may not use this cache"),
        Denied::NotAllowed => text(StatusCode::FORBIDDEN, "the token does not allow this"),
        Denied::Namespace => text(
            StatusCode::BAD_REQUEST,
            "malformed namespace: letters, digits, `.`, `_`, `-`, separated by slashes",
        ),
        Denied::NoToken => {
            let mut answer = text(StatusCode::UNAUTHORIZED, "a token is needed");
            let basic = HeaderValue::from_static("Basic realm=\"larder\", Bearer");
            answer.headers_mut().insert(WWW_AUTHENTICATE, basic);
            answer
        }
    }
}

/// Go's entries are believed by every reader of the upstream, so not everybody may write them.
pub(super) fn go_entry_refused() -> Answer {
    text(StatusCode::FORBIDDEN, "Go entries are written over the socket or with a token")
}

pub(super) fn malformed(error: RouteError) -> Answer {
    match error {
        RouteError::Unknown => text(StatusCode::NOT_FOUND, error.to_string()),
        RouteError::Path | RouteError::Digest | RouteError::Name => {
            text(StatusCode::BAD_REQUEST, error.to_string())
        }
    }
}

pub(super) fn bad_length() -> Answer {
    text(StatusCode::BAD_REQUEST, "malformed Content-Length")
}

pub(super) fn wrong_method() -> Answer {
    let mut answer =
        text(StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD, PUT, POST and DELETE are served");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, PUT, POST, DELETE"));
    answer
}

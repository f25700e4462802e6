//! Bodies on their way to upstream: exactly as long as they were announced, or broken off.

use futures_util::{StreamExt, stream};

use crate::backend::Upload;
use crate::entry::{BodyError, Chunks};

pub(super) fn to_send(body: &Upload) -> reqwest::Body {
    if body.len == 0 {
        return reqwest::Body::from(Vec::new());
    }
    reqwest::Body::wrap_stream(exactly(body.len, (body.open)()))
}

/// The pieces of a body that is `len` long, or an error before the last of them.
///
/// The source is asked for its end before the last piece leaves: whatever it finds wrong only
/// then, a digest above all, still breaks the request, and upstream stores nothing.
fn exactly(len: u64, pieces: Chunks) -> Chunks {
    Box::pin(stream::unfold(Some((pieces, 0_u64)), move |state| async move {
        let (mut pieces, got) = state?;
        let piece = match pieces.next().await {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Some((Err(error), None)),
            None if got < len => return Some((Err(BodyError::Truncated { got }), None)),
            None => return None,
        };
        let got = got + piece.len() as u64;
        let next = if got == len { pieces.next().await } else { None };
        match next {
            Some(Err(error)) => Some((Err(error), None)),
            None if got <= len => Some((Ok(piece), Some((pieces, got)))),
            Some(Ok(_)) | None => Some((Err(BodyError::TooLarge { limit: len }), None)),
        }
    }))
}

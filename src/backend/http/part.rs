//! Parts of bodies, as a server that knows ranges answers them.

use std::ops::Range;

use http::header::CONTENT_RANGE;
use reqwest::Response;

use crate::backend::{BackendError, Fetched};

/// The part, if it is the one that was asked for.
pub(super) fn answered(response: Response, part: &Range<u64>) -> Result<Fetched, BackendError> {
    let said = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    if said.and_then(first_and_last) != Some((part.start, part.end - 1)) {
        return Err(BackendError::Broken(
            "upstream sent another part than it was asked for".to_owned(),
        ));
    }
    let fetched = super::fetched(response)?;
    if fetched.len.is_some_and(|len| len != part.end - part.start) {
        return Err(BackendError::Broken("upstream sent a part of another length".to_owned()));
    }
    Ok(fetched)
}

/// What there is of the part: less where the value ends within it.
pub(super) fn answered_up_to(
    response: Response,
    part: &Range<u64>,
) -> Result<Fetched, BackendError> {
    let said = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    match said.and_then(first_and_last) {
        Some((first, last)) if first == part.start && (first..part.end).contains(&last) => {
            answered(response, &(first..last + 1))
        }
        _ => answered(response, part),
    }
}

/// `bytes 5-9/200` or `bytes 5-9/*`.
fn first_and_last(text: &str) -> Option<(u64, u64)> {
    let (range, _) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_range_that_was_asked_for_is_taken() {
        assert_eq!(first_and_last("bytes 5-9/200"), Some((5, 9)));
        assert_eq!(first_and_last("bytes 5-9/*"), Some((5, 9)));
        for bad in ["bytes */200", "5-9/200", "bytes 5-9", "bytes x-9/1", ""] {
            assert_eq!(first_and_last(bad), None, "{bad}");
        }
    }
}

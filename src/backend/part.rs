//! A part of a body, cut out of the whole: for upstreams that know no ranges.

use std::ops::Range;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::backend::Fetched;
use crate::entry::{BodyError, Chunks};

/// The part of a whole body; None if that is shorter.
pub(super) fn cut(whole: Fetched, part: Range<u64>) -> Option<Fetched> {
    if whole.len.is_some_and(|len| len < part.end) {
        return None;
    }
    let len = part.end - part.start;
    Some(Fetched { len: Some(len), chunks: cut_chunks(whole.chunks, part) })
}

fn cut_chunks(chunks: Chunks, part: Range<u64>) -> Chunks {
    let start = (Some(chunks), 0_u64);
    Box::pin(stream::unfold(start, move |(chunks, mut at)| {
        let part = part.clone();
        async move {
            let mut chunks = chunks?;
            while at < part.end {
                let piece = match chunks.next().await {
                    Some(Ok(piece)) => piece,
                    Some(Err(error)) => return Some((Err(error), (None, at))),
                    None => {
                        let got = at.saturating_sub(part.start);
                        return Some((Err(BodyError::Truncated { got }), (None, at)));
                    }
                };
                let begin = at;
                at += piece.len() as u64;
                let wanted = within(&piece, begin, &part);
                if !wanted.is_empty() {
                    return Some((Ok(wanted), (Some(chunks), at)));
                }
            }
            None
        }
    }))
}

/// What of a piece that begins at `begin` lies in the part.
fn within(piece: &Bytes, begin: u64, part: &Range<u64>) -> Bytes {
    let end = begin + piece.len() as u64;
    let from = part.start.clamp(begin, end) - begin;
    let to = part.end.clamp(begin, end) - begin;
    // Both are within a piece that is in memory.
    piece.slice(usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt;

    fn pieces(sizes: &[usize]) -> (Vec<u8>, Chunks) {
        let whole: Vec<u8> =
            (0..sizes.iter().sum()).map(|n: usize| u8::try_from(n).unwrap()).collect();
        let mut rest = Bytes::from(whole.clone());
        let cut: Vec<_> = sizes.iter().map(|size| Ok(rest.split_to(*size))).collect();
        (whole, Box::pin(stream::iter(cut)))
    }

    #[tokio::test]
    async fn a_part_of_a_whole_body_is_cut_out_of_any_pieces() {
        for sizes in [&[10][..], &[1; 10], &[3, 3, 4], &[9, 1]] {
            for start in 0..10 {
                for end in start + 1..=10 {
                    let (whole, chunks) = pieces(sizes);
                    let got: Vec<Bytes> =
                        cut_chunks(chunks, start as u64..end as u64).try_collect().await.unwrap();
                    assert_eq!(got.concat(), whole[start..end], "{sizes:?} {start}..{end}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_ends_within_the_part_is_truncated() {
        let (_, chunks) = pieces(&[4, 4]);
        let got: Result<Vec<Bytes>, BodyError> = cut_chunks(chunks, 2..10).try_collect().await;
        assert!(matches!(got, Err(BodyError::Truncated { got: 6 })), "{got:?}");
        let (_, chunks) = pieces(&[4, 4]);
        assert!(cut(Fetched { len: Some(8), chunks }, 2..10).is_none());
    }
}

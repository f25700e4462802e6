//! Answers to a helper's lookups, and the outputs for one that does not see the store.

use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use tokio::sync::mpsc;

use crate::entry::{Body, Digest, Found, Lookup, Meta, Why};
use crate::frontend::Frontend;
use crate::frontend::go::hello::Guest;
use crate::wire::go::{self as wire, Entry, Frame, PIECE_MAX};

/// Answers a lookup. What comes back is for a helper that does not see the store: the entry that it
/// was asked for, to be sent.
pub(super) async fn look_up(
    frontend: &Frontend,
    guest: &Guest,
    answers: &mpsc::Sender<Frame>,
    id: u64,
    action: Digest,
    c_env: u64,
) -> Option<(Entry, Body)> {
    let cache = &frontend.inner.cache;
    let lookup = cache.get_go(&guest.realm, guest.session.as_deref(), &action, c_env).await;
    let answer = match lookup {
        Lookup::Miss(why) => Frame::Miss { id, why: why_number(why) },
        Lookup::Hit(blob, found) => {
            let entry = entry_of(&blob.meta, found);
            if guest.sees_store.load(Ordering::Relaxed) {
                Frame::Hit { id, entry }
            } else {
                match cache.output(&blob.meta.digest).await {
                    Some(body) => return Some((entry, body)),
                    None => Frame::Miss { id, why: why_number(Why::Fault) },
                }
            }
        }
    };
    // Who has left needs no answer.
    let _ = answers.send(answer).await;
    None
}

pub(super) async fn send_output(outputs: &mpsc::Sender<Frame>, id: u64, entry: Entry, body: Body) {
    if outputs.send(Frame::HitBytes { id, entry }).await.is_err() {
        return;
    }
    let mut chunks = body.into_chunks();
    while let Some(Ok(chunk)) = chunks.next().await {
        for piece in chunk.chunks(PIECE_MAX) {
            // Copied when there is room, so that no more copies are held than are queued.
            let Ok(room) = outputs.reserve().await else { return };
            room.send(Frame::Piece { id, bytes: piece.to_vec() });
        }
    }
    // A body that broke off ends here too: its digest does not match, and the helper misses.
    let _ = outputs.send(Frame::Piece { id, bytes: Vec::new() }).await;
}

pub(super) fn why_number(why: Why) -> u8 {
    Why::ALL.iter().position(|w| *w == why).and_then(|n| u8::try_from(n).ok()).unwrap_or(0)
}

pub(super) fn entry_of(meta: &Meta, found: Found) -> Entry {
    Entry {
        output: meta.digest.0,
        size: meta.size,
        time_ns: meta.stored.0,
        cost_ms: meta.cost_ms,
        c_env: meta.c_env,
        class: meta.class as u8,
        source: match found {
            Found::Memory => wire::SOURCE_MEMORY,
            Found::Disk => wire::SOURCE_DISK,
            Found::Native => wire::SOURCE_NATIVE,
            Found::Upstream => wire::SOURCE_UPSTREAM,
            Found::Coalesced => wire::SOURCE_COALESCED,
        },
    }
}

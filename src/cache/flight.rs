//! Flights: one fetch per key, however many ask. Its task lives on when clients leave; everyone
//! reads what it writes, as it arrives, from the same staged file.
//!
//! The last piece is held back until the body is verified, so that a body which ends was whole.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use crate::entry::body::{Source, Streaming};
use crate::entry::{BodyError, Chunks, Key, Meta, RealmId, Why};
use crate::tasks::sync::{Mutex, watch};

/// What followers read at a time, at most: it was written a moment ago, and comes a piece at a time.
const PIECE_MAX: u64 = 32 << 10;

/// How a fetch ended.
#[derive(Clone, Debug)]
pub enum End {
    /// Verified and kept; the store has it.
    Stored(Meta),
    /// Verified, but there was no room to keep it.
    Held(Meta, Bytes),
    Failed(Why),
}

/// How far a fetch is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The staged file, once a body worth streaming arrives.
    pub file: Option<Arc<File>>,
    pub len: Option<u64>,
    /// Bytes that followers may have.
    pub released: u64,
    pub end: Option<End>,
}

type Flying = HashMap<(RealmId, Key), watch::Receiver<Progress>>;

/// The fetches under way.
#[derive(Clone, Debug, Default)]
pub struct Flights {
    flying: Arc<Mutex<Flying>>,
}

/// The leader's end of a flight. Dropping it without an end fails the flight.
#[derive(Debug)]
pub struct Leader {
    id: (RealmId, Key),
    progress: watch::Sender<Progress>,
    flights: Flights,
}

/// A client's end of a flight.
#[derive(Clone, Debug)]
pub struct Follower {
    progress: watch::Receiver<Progress>,
}

/// Whether a client has begun the fetch or joined it.
#[derive(Debug)]
pub enum Joined {
    /// The first to ask: whoever gets the leader must see the fetch through, in a task of its own.
    First(Leader, Follower),
    Later(Follower),
}

impl Flights {
    pub fn join(&self, realm: RealmId, key: &Key) -> Joined {
        let id = (realm, key.clone());
        let mut flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        match flying.entry(id.clone()) {
            Entry::Occupied(entry) => Joined::Later(Follower { progress: entry.get().clone() }),
            Entry::Vacant(entry) => {
                let (progress, follower) = watch::channel(Progress::default());
                entry.insert(follower.clone());
                let leader = Leader { id, progress, flights: self.clone() };
                Joined::First(leader, Follower { progress: follower })
            }
        }
    }

    /// The fetch of a key, if somebody has begun it.
    pub fn under_way(&self, realm: RealmId, key: &Key) -> Option<Follower> {
        let flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = flying.get(&(realm, key.clone()))?;
        Some(Follower { progress: progress.clone() })
    }

    pub fn len(&self) -> usize {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Leader {
    /// Lets followers stream from a file.
    pub fn begin(&self, file: Arc<File>, len: Option<u64>) {
        self.progress.send_modify(|progress| {
            progress.file = Some(file);
            progress.len = len;
        });
    }

    /// Followers may have the first `bytes` bytes.
    pub fn release(&self, bytes: u64) {
        self.progress.send_modify(|progress| progress.released = bytes);
    }

    /// Ends the flight. The store or the memory tier has the blob by now, so that whoever asks next
    /// finds it there.
    pub fn end(self, end: End) {
        self.progress.send_modify(|progress| progress.end = Some(end));
    }

    pub fn has_followers(&self) -> bool {
        self.progress.receiver_count() > 1
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.progress.send_if_modified(|progress| {
            let open = progress.end.is_none();
            if open {
                progress.end = Some(End::Failed(Why::Fault));
            }
            open
        });
        self.flights.flying.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// What a follower has to work with.
#[derive(Debug)]
pub enum Arrival {
    Ended(End),
    /// The body is arriving: stream it.
    Streaming {
        len: Option<u64>,
        source: FlightSource,
    },
}

impl Follower {
    /// Waits until the body arrives, or the fetch ends. Cancel-safe: a client that leaves here
    /// takes nothing with it.
    pub async fn arrival(mut self) -> Arrival {
        let ready = |p: &Progress| p.end.is_some() || p.file.is_some();
        let progress = match self.progress.wait_for(ready).await {
            Ok(progress) => progress.clone(),
            Err(_) => return Arrival::Ended(End::Failed(Why::Fault)),
        };
        match (progress.end, progress.file) {
            (Some(end), _) => Arrival::Ended(end),
            (None, Some(file)) => Arrival::Streaming {
                len: progress.len,
                source: FlightSource { file, progress: self.progress },
            },
            (None, None) => Arrival::Ended(End::Failed(Why::Fault)),
        }
    }

    /// Waits for the end alone.
    pub async fn end(mut self) -> End {
        match self.progress.wait_for(|p| p.end.is_some()).await {
            Ok(progress) => progress.end.clone().unwrap_or(End::Failed(Why::Fault)),
            Err(_) => End::Failed(Why::Fault),
        }
    }
}

/// A body that is still arriving.
#[derive(Clone, Debug)]
pub struct FlightSource {
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
}

impl Source for FlightSource {
    fn stream(&self, range: Range<u64>) -> Chunks {
        // A part that ends before the body does has no piece that is held back: it waits for the end.
        let to_the_end = self.progress.borrow().len.is_none_or(|len| range.end >= len);
        let state = (self.clone(), range, Streaming::begin());
        let next = move |(mut source, range, streaming): (Self, Range<u64>, Streaming)| async move {
            if range.start >= range.end {
                return Ok(None);
            }
            let readable = source.readable_past(range.start, to_the_end).await?;
            let Some(until) = readable else { return Ok(None) };
            let piece = streaming.piece(PIECE_MAX.min(until.min(range.end) - range.start));
            let to = range.start + piece.room();
            let bytes = read(&source.file, range.start, to)?;
            Ok(Some((piece.hold(bytes), (source, to..range.end, streaming))))
        };
        Box::pin(futures_util::stream::try_unfold(state, next))
    }
}

impl FlightSource {
    /// How far the file can be read, once that is past `at`; None at the verified end.
    async fn readable_past(
        &mut self,
        at: u64,
        while_arriving: bool,
    ) -> Result<Option<u64>, BodyError> {
        let ready = |p: &Progress| p.end.is_some() || while_arriving && p.released > at;
        let progress = self.progress.wait_for(ready).await;
        let progress = progress.map_err(|_| BodyError::Broken("the fetch is gone".into()))?;
        let until = match &progress.end {
            None => progress.released,
            Some(End::Stored(meta) | End::Held(meta, _)) => meta.size,
            Some(End::Failed(_)) => return Err(BodyError::Truncated { got: progress.released }),
        };
        Ok((until > at).then_some(until))
    }
}

/// What was just written is in the page cache: reading it here costs less than a thread's wake-up.
fn read(file: &File, from: u64, to: u64) -> Result<Vec<u8>, BodyError> {
    let mut piece = vec![0; usize::try_from(to - from).unwrap_or(0)];
    file.read_exact_at(&mut piece, from).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BodyError::Truncated { got: from },
        _ => BodyError::Broken(error.to_string()),
    })?;
    Ok(piece)
}

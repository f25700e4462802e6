//! An upstream in the process's own memory, with faults on demand: for tests, benches and the demo.
//!
//! It has no limit and forgets at exit; nothing that serves users is configured with it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::sleep;

use crate::backend::part;
use crate::backend::{Backend, BackendError, Fetched, FetchedPart, Name, Upload};
use crate::entry::{BodyError, Chunks};

/// How bodies are cut, as a socket would.
const PIECE: usize = 64 << 10;

/// What goes wrong with one call. What applies to bodies changes only gets.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is answered, but later.
    Delay(Duration),
    Error(fn() -> BackendError),
    /// There is never an answer.
    Hang,
    /// The body breaks off after so many bytes.
    Truncate(usize),
    /// Nothing more comes after so many bytes of the body.
    HangAfter(usize),
    /// A bit of the body's first byte is flipped.
    Corrupt,
    /// The body comes in pieces of `piece` bytes, one `every` so often.
    Trickle {
        piece: usize,
        every: Duration,
    },
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Get,
    Put,
    Contains,
}

/// How often a name was asked for and stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub gets: u64,
    pub puts: u64,
    /// In how many calls of `contains` it was named.
    pub contains: u64,
}

/// Decides what goes wrong with a call; `contains` is asked once, with its first name.
pub type Rule = dyn Fn(Call, &Name) -> Option<Fault> + Send + Sync;

#[derive(Default)]
pub struct MemoryBackend {
    state: Mutex<State>,
    is_without_ranges: AtomicBool,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Name, Bytes>,
    calls: BTreeMap<Name, Calls>,
    /// For the next calls, one each, before the rule is asked.
    next: VecDeque<Fault>,
    rule: Option<Arc<Rule>>,
}

impl MemoryBackend {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next call that has no fault waiting for it yet gets this one.
    pub fn fault_next(&self, fault: Fault) {
        self.state().next.push_back(fault);
    }

    /// Every call gets this fault, until another rule or `heal`.
    pub fn fault_always(&self, fault: Fault) {
        self.fault_by(move |_, _| Some(fault.clone()));
    }

    pub fn fault_by(&self, rule: impl Fn(Call, &Name) -> Option<Fault> + Send + Sync + 'static) {
        self.state().rule = Some(Arc::new(rule));
    }

    /// From now on, whoever asks for a part gets the whole.
    pub fn forget_ranges(&self) {
        self.is_without_ranges.store(true, Ordering::Relaxed);
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        let mut state = self.state();
        state.next.clear();
        state.rule = None;
    }

    /// Stores without a call.
    pub fn insert(&self, name: Name, bytes: impl Into<Bytes>) {
        self.state().entries.insert(name, bytes.into());
    }

    /// What is stored, without a call.
    pub fn peek(&self, name: &Name) -> Option<Bytes> {
        self.state().entries.get(name).cloned()
    }

    /// Forgets, as a store that evicts does.
    pub fn remove(&self, name: &Name) -> Option<Bytes> {
        self.state().entries.remove(name)
    }

    pub fn names(&self) -> Vec<Name> {
        self.state().entries.keys().cloned().collect()
    }

    pub fn calls(&self, name: &Name) -> Calls {
        self.state().calls.get(name).copied().unwrap_or_default()
    }

    /// Calls for all names.
    pub fn calls_total(&self) -> Calls {
        let mut total = Calls::default();
        for calls in self.state().calls.values() {
            total.gets += calls.gets;
            total.puts += calls.puts;
            total.contains += calls.contains;
        }
        total
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault_of(&self, call: Call, name: &Name) -> Option<Fault> {
        let mut state = self.state();
        if let Some(fault) = state.next.pop_front() {
            return Some(fault);
        }
        let rule = state.rule.clone();
        // A rule may look at this backend.
        drop(state);
        rule.and_then(|rule| rule(call, name))
    }

    fn count(&self, name: &Name, count: impl FnOnce(&mut Calls)) {
        count(self.state().calls.entry(name.clone()).or_default());
    }

    async fn fetch(&self, name: &Name) -> Result<Option<Fetched>, BackendError> {
        self.count(name, |calls| calls.gets += 1);
        let fault = self.fault_of(Call::Get, name);
        before_answer(fault.as_ref()).await?;
        let Some(bytes) = self.peek(name) else { return Ok(None) };
        Ok(Some(Fetched { len: Some(bytes.len() as u64), chunks: pieces(bytes, fault) }))
    }

    async fn store(&self, name: &Name, body: Upload) -> Result<(), BackendError> {
        self.count(name, |calls| calls.puts += 1);
        before_answer(self.fault_of(Call::Put, name).as_ref()).await?;
        let mut bytes = BytesMut::new();
        let mut pieces = (body.open)();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| BackendError::Broken(error.to_string()))?;
            bytes.extend_from_slice(&piece);
        }
        if bytes.len() as u64 != body.len {
            return Err(BackendError::Broken("the body has another length than it says".into()));
        }
        self.insert(name.clone(), bytes);
        Ok(())
    }

    async fn check(&self, names: &[Name]) -> Result<Vec<bool>, BackendError> {
        for name in names {
            self.count(name, |calls| calls.contains += 1);
        }
        if let Some(first) = names.first() {
            before_answer(self.fault_of(Call::Contains, first).as_ref()).await?;
        }
        let state = self.state();
        Ok(names.iter().map(|name| state.entries.contains_key(name)).collect())
    }
}

impl Backend for MemoryBackend {
    fn get<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<Option<Fetched>, BackendError>> {
        self.fetch(name).boxed()
    }

    fn get_part<'a>(
        &'a self,
        name: &'a Name,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Option<FetchedPart>, BackendError>> {
        async move {
            let fetched = self.fetch(name).await?;
            Ok(if self.is_without_ranges.load(Ordering::Relaxed) {
                fetched.map(FetchedPart::whole)
            } else {
                let part = fetched.and_then(|whole| part::cut(whole, range));
                part.map(|fetched| FetchedPart { is_whole: false, fetched })
            })
        }
        .boxed()
    }

    fn get_fresh_part<'a>(
        &'a self,
        name: &'a Name,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Option<FetchedPart>, BackendError>> {
        async move {
            let Some(fetched) = self.fetch(name).await? else { return Ok(None) };
            if self.is_without_ranges.load(Ordering::Relaxed) {
                return Ok(Some(FetchedPart::whole(fetched)));
            }
            let end = fetched.len.unwrap_or(range.end).min(range.end);
            let part = (range.start < end).then(|| part::cut(fetched, range.start..end)).flatten();
            Ok(part.map(|fetched| FetchedPart { is_whole: false, fetched }))
        }
        .boxed()
    }

    fn put<'a>(&'a self, name: &'a Name, body: Upload) -> BoxFuture<'a, Result<(), BackendError>> {
        self.store(name, body).boxed()
    }

    fn contains<'a>(&'a self, names: &'a [Name]) -> BoxFuture<'a, Result<Vec<bool>, BackendError>> {
        self.check(names).boxed()
    }
}

async fn before_answer(fault: Option<&Fault>) -> Result<(), BackendError> {
    match fault {
        Some(Fault::Delay(time)) => sleep(*time).await,
        Some(Fault::Error(make)) => return Err(make()),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Truncate(_) | Fault::HangAfter(_) | Fault::Corrupt | Fault::Trickle { .. })
        | None => {}
    }
    Ok(())
}

/// The body as it arrives under `fault`.
fn pieces(bytes: Bytes, fault: Option<Fault>) -> Chunks {
    let len = bytes.len();
    match fault {
        Some(Fault::Truncate(after)) => {
            let got = after.min(len);
            let end = stream::once(async move { Err(BodyError::Truncated { got: got as u64 }) });
            Box::pin(cut(bytes.slice(..got), PIECE).chain(end))
        }
        Some(Fault::HangAfter(after)) => {
            Box::pin(cut(bytes.slice(..after.min(len)), PIECE).chain(stream::pending()))
        }
        Some(Fault::Corrupt) => {
            let mut changed = BytesMut::from(bytes.as_ref());
            if let Some(first) = changed.first_mut() {
                *first ^= 1;
            }
            Box::pin(cut(changed.freeze(), PIECE))
        }
        Some(Fault::Trickle { piece, every }) => {
            Box::pin(cut(bytes, piece.max(1)).then(move |piece| async move {
                sleep(every).await;
                piece
            }))
        }
        Some(Fault::Delay(_) | Fault::Error(_) | Fault::Hang) | None => Box::pin(cut(bytes, PIECE)),
    }
}

fn cut(
    mut bytes: Bytes,
    piece: usize,
) -> impl futures_util::Stream<Item = Result<Bytes, BodyError>> + Send {
    stream::iter(std::iter::from_fn(move || {
        let next = bytes.split_to(piece.min(bytes.len()));
        (!next.is_empty()).then_some(Ok(next))
    }))
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;
    use crate::backend::Space;

    fn name(id: &str) -> Name {
        Name { namespace: "team".into(), space: Space::Cas, id: id.into() }
    }

    async fn get(backend: &MemoryBackend, id: &str) -> Result<Option<Vec<u8>>, String> {
        let name = name(id);
        let found = backend.get(&name).await.map_err(|error| format!("{error:?}"))?;
        let Some(found) = found else { return Ok(None) };
        let pieces: Result<Vec<Bytes>, BodyError> = found.chunks.try_collect().await;
        pieces.map(|pieces| Some(pieces.concat())).map_err(|error| format!("{error:?}"))
    }

    #[tokio::test]
    async fn what_was_put_is_found_and_every_call_is_counted() {
        let backend = MemoryBackend::new();
        let body = vec![3; 200_000];
        assert_eq!(get(&backend, "a").await, Ok(None));
        backend.put(&name("a"), Upload::bytes(body.clone().into())).await.unwrap();
        assert_eq!(get(&backend, "a").await, Ok(Some(body)));
        let there = backend.contains(&[name("b"), name("a")]).await.unwrap();
        assert_eq!(there, [false, true]);
        assert_eq!(backend.calls(&name("a")), Calls { gets: 2, puts: 1, contains: 1 });
        assert_eq!(backend.calls_total(), Calls { gets: 2, puts: 1, contains: 2 });
        assert_eq!(backend.names(), [name("a")]);
        assert!(backend.remove(&name("a")).is_some());
        assert_eq!(get(&backend, "a").await, Ok(None));
    }

    #[tokio::test(start_paused = true)]
    async fn each_fault_is_what_it_says() {
        let day = Duration::from_secs(86_400);
        let second = Duration::from_secs(1);
        let cases = [
            (Fault::Delay(day), Ok(Some(b"body".to_vec()))),
            (Fault::Error(|| BackendError::Full), Err("Full".to_owned())),
            (Fault::Truncate(3), Err("Truncated { got: 3 }".to_owned())),
            (Fault::Truncate(9), Err("Truncated { got: 4 }".to_owned())),
            (Fault::Corrupt, Ok(Some(b"cody".to_vec()))),
            (Fault::Trickle { piece: 3, every: second }, Ok(Some(b"body".to_vec()))),
        ];
        let backend = MemoryBackend::new();
        backend.insert(name("a"), "body");
        for (fault, expected) in cases {
            backend.fault_next(fault.clone());
            assert_eq!(get(&backend, "a").await, expected, "{fault:?}");
            assert_eq!(get(&backend, "a").await, Ok(Some(b"body".to_vec())), "once only");
        }
        for fault in [Fault::Hang, Fault::HangAfter(3)] {
            backend.fault_always(fault.clone());
            let got = tokio::time::timeout(day, get(&backend, "a")).await;
            assert!(got.is_err(), "{fault:?}: {got:?}");
        }
        backend.heal();
        assert_eq!(get(&backend, "a").await, Ok(Some(b"body".to_vec())));
    }

    #[tokio::test]
    async fn a_body_of_another_length_is_not_stored() {
        let backend = MemoryBackend::new();
        let body = Upload { len: 9, ..Upload::bytes(Bytes::from("body")) };
        assert!(matches!(backend.put(&name("a"), body).await, Err(BackendError::Broken(_))));
        assert_eq!(backend.peek(&name("a")), None);
    }
}

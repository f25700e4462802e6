//! A link to the central cache, and what it does to those who use it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use larder::backend::memory::MemoryBackend;
use larder::backend::{Backend, BackendError, Fetched, FetchedPart, Name, Space, Upload};
use larder::entry::{BodyError, Digest};
use larder::units::Random;
use tokio::time::sleep;

/// How a link behaves, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// Seconds where there were milliseconds.
    Slow,
    /// Nothing arrives, and nobody is told.
    Parted,
    Refusing,
    /// Each call may fail in a way of its own.
    Flaky,
    /// The central cache takes nothing more.
    Full,
}

impl Mood {
    pub(crate) const ALL: [Self; 6] =
        [Self::Well, Self::Slow, Self::Parted, Self::Refusing, Self::Flaky, Self::Full];
}

/// What befalls one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Well,
    /// It never arrives.
    Lost,
    Status(u16),
    /// It breaks off after this share, in 256ths.
    BreaksOff(u8),
    /// A put is done, and its answer does not arrive.
    AnswerLost,
    Damaged,
}

/// One daemon's way to the central cache.
pub(crate) struct Link {
    central: Arc<MemoryBackend>,
    seed: u64,
    state: Mutex<State>,
}

struct State {
    mood: Mood,
    /// How often something was drawn for a name.
    drawn: BTreeMap<String, u64>,
}

impl Link {
    pub(crate) fn new(central: &Arc<MemoryBackend>, seed: u64) -> Self {
        let state = State { mood: Mood::Well, drawn: BTreeMap::new() };
        Self { central: central.clone(), seed, state: Mutex::new(state) }
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.state().mood = mood;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How long a call is under way, and what becomes of it. Chance goes by name: of calls that come at
    /// the same time, none has another's fate because it was the first.
    fn draw(&self, name: &str) -> (Duration, Fate) {
        let mut state = self.state();
        let drawn = state.drawn.entry(name.to_owned()).or_default();
        *drawn += 1;
        let digest = Digest::of(format!("{} {drawn} {name}", self.seed).as_bytes());
        let mut random = Random::new(u64::from_le_bytes(*digest.0.first_chunk().unwrap()));
        let (mood, chance, late) = (state.mood, random.next_u64(), random.next_u64());
        let near = Duration::from_millis(5 + late % 60);
        match mood {
            Mood::Well | Mood::Full => (near, Fate::Well),
            Mood::Slow => (Duration::from_millis(late % 6000), Fate::Well),
            Mood::Parted => (near, Fate::Lost),
            Mood::Refusing => (Duration::from_millis(1), Fate::Status(0)),
            Mood::Flaky => {
                let share = u8::try_from(late >> 32 & 0xff).unwrap();
                let fate = match chance % 8 {
                    0 => Fate::Lost,
                    1 => Fate::Status(500),
                    2 => Fate::Status(429),
                    3 => Fate::BreaksOff(share),
                    4 => Fate::AnswerLost,
                    5 => Fate::Damaged,
                    _ => Fate::Well,
                };
                (near, fate)
            }
        }
    }

    /// Until the call has arrived; what befalls it then.
    async fn travel(&self, name: &str) -> Result<Fate, BackendError> {
        let (takes, fate) = self.draw(name);
        sleep(takes).await;
        match fate {
            Fate::Lost => std::future::pending().await,
            Fate::Status(0) => Err(BackendError::Connect("refused".into())),
            Fate::Status(code) => Err(BackendError::Status(code)),
            fate => Ok(fate),
        }
    }

    async fn bring(&self, name: &Name) -> Result<Option<Fetched>, BackendError> {
        let fate = self.travel(&name.to_string()).await?;
        let Some(fetched) = self.central.get(name).await? else { return Ok(None) };
        let (takes, _) = self.draw(&name.to_string());
        let len = fetched.len.unwrap();
        let late = fetched.chunks.then(move |piece| async move {
            sleep(takes / 4).await;
            piece
        });
        Ok(Some(match fate {
            Fate::BreaksOff(share) => {
                let got = len * u64::from(share) / 256;
                let whole = collect(late).await;
                let part = whole.slice(..usize::try_from(got).unwrap());
                let end = stream::once(async move { Err(BodyError::Truncated { got }) });
                let chunks = stream::once(async move { Ok(part) }).chain(end).boxed();
                Fetched { len: Some(len), chunks }
            }
            // Under a name of its own nobody can tell.
            Fate::Damaged if name.space == Space::Cas && len > 0 => {
                let mut whole = collect(late).await.to_vec();
                whole[0] ^= 1;
                Fetched { len: Some(len), chunks: stream::iter([Ok(whole.into())]).boxed() }
            }
            _ => Fetched { len: Some(len), chunks: late.boxed() },
        }))
    }
}

async fn collect(
    pieces: impl stream::Stream<Item = Result<bytes::Bytes, BodyError>>,
) -> bytes::Bytes {
    let pieces: Vec<_> = pieces.collect().await;
    let pieces: Vec<bytes::Bytes> = pieces.into_iter().map(Result::unwrap).collect();
    pieces.concat().into()
}

impl Backend for Link {
    fn get<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<Option<Fetched>, BackendError>> {
        self.bring(name).boxed()
    }

    fn get_part<'a>(
        &'a self,
        name: &'a Name,
        _part: Range<u64>,
    ) -> BoxFuture<'a, Result<Option<FetchedPart>, BackendError>> {
        // A store that knows no ranges.
        async move { Ok(self.bring(name).await?.map(FetchedPart::whole)) }.boxed()
    }

    fn put<'a>(&'a self, name: &'a Name, body: Upload) -> BoxFuture<'a, Result<(), BackendError>> {
        async move {
            let fate = self.travel(&name.to_string()).await?;
            if self.state().mood == Mood::Full {
                return Err(BackendError::Full);
            }
            if let Fate::BreaksOff(_) = fate {
                return Err(BackendError::Broken("reset".into()));
            }
            self.central.put(name, body).await?;
            if fate == Fate::AnswerLost {
                std::future::pending::<()>().await;
            }
            Ok(())
        }
        .boxed()
    }

    fn contains<'a>(&'a self, names: &'a [Name]) -> BoxFuture<'a, Result<Vec<bool>, BackendError>> {
        async move {
            self.travel("contains").await?;
            self.central.contains(names).await
        }
        .boxed()
    }
}

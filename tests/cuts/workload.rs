//! The play: what a store is asked to do, the same for the same seed, and what it then must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder::entry::{Class, Digest, Key, Meta, RealmId};
use larder::store::evict::Eviction;
use larder::store::record::Place;
use larder::store::{Config, Limit, Store, StoreError};
use larder::units::{ByteSize, Clock, Random, Timestamp};

pub(crate) const REALM: RealmId = RealmId([7; 16]);
/// Acts in a play.
const ACTS: usize = 400;
/// After so many the process is killed, and another one goes on.
const KILLED: usize = 100;
const UNSYNCED: usize = 20;
/// Names that are put again and again.
pub(crate) const NAMES: u64 = 40;
const BEGIN: Timestamp = Timestamp(1_800_000_000 * 1_000_000_000);
const WAIT: Duration = Duration::from_secs(30);

/// Which play.
#[derive(Clone, Copy, Default)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) evicts: bool,
    /// Builds go on, so that files wait before they go.
    pub(crate) has_builds: bool,
    /// Some syncs fail.
    pub(crate) is_ill: bool,
}

impl Plan {
    pub(crate) fn config(&self, dir: &Path) -> Config {
        let size = |bytes| Some(Limit::Size(ByteSize(bytes)));
        let disk = size(if self.evicts { 3 << 20 } else { 1 << 30 });
        Config { dir: dir.join("store"), disk, floor: size(0) }
    }
}

pub(crate) fn clock() -> Clock {
    Clock::manual(BEGIN)
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Put {
        name: u64,
        len: usize,
        is_owed: bool,
    },
    PutContent {
        len: usize,
        is_owed: bool,
    },
    /// Under a name, what an earlier act has put as content.
    PutSame {
        name: u64,
        of: usize,
        len: usize,
    },
    /// As a file, as Go needs it, what an earlier act has put as content in a segment.
    Place {
        of: usize,
        len: usize,
    },
    /// As a helper does that does not see the index: a file of its own in the place of one that an earlier
    /// act has put. It is killed before it tells of it.
    Over {
        of: usize,
        len: usize,
    },
    Remove {
        name: u64,
    },
    Settle,
    Sync,
    MakeRoom,
}

impl Act {
    /// The act whose body this one stores.
    pub(crate) const fn body_of(self, at: usize) -> usize {
        match self {
            Self::PutSame { of, .. } | Self::Place { of, .. } => of,
            _ => at,
        }
    }
}

pub(crate) fn acts(plan: &Plan) -> Vec<Act> {
    let mut random = Random::new(plan.seed);
    let mut below = |n: u64| random.next_u64() % n;
    let (mut put, mut small) = (None, None);
    let mut act = |at: usize| {
        let len = match below(5) {
            0 => 65_537 + below(60_000),
            1 => below(60_000),
            _ => below(3000),
        };
        let len = usize::try_from(len).unwrap();
        let is_owed = below(3) == 0;
        match below(20) {
            0..8 => Act::Put { name: below(NAMES), len, is_owed },
            8..10 => {
                small = Some((at, len.min(60_000)));
                Act::PutContent { len: len.min(60_000), is_owed }
            }
            10 => {
                // What is small has no file.
                let len = 65_537 + len;
                put = Some((at, len));
                Act::PutContent { len, is_owed }
            }
            11 => match put.take() {
                Some((of, len)) if below(3) == 0 => Act::Over { of, len },
                Some((of, len)) => Act::PutSame { name: below(NAMES), of, len },
                None => Act::PutContent { len, is_owed },
            },
            12 => match small.take() {
                Some((of, len)) => Act::Place { of, len },
                None => Act::Remove { name: below(NAMES) },
            },
            13 => Act::Remove { name: below(NAMES) },
            14 | 15 => Act::Settle,
            16 => Act::Sync,
            _ if plan.evicts => Act::MakeRoom,
            _ => Act::Sync,
        }
    };
    let mut all: Vec<Act> = (0..ACTS).map(&mut act).collect();
    // What comes last before the kill is put, and not synced; nothing is settled that was not synced.
    for (at, act) in all.iter_mut().enumerate().take(KILLED).skip(KILLED - UNSYNCED) {
        if !matches!(act, Act::Put { .. } | Act::PutContent { .. } | Act::PutSame { .. }) {
            *act = Act::PutContent { len: 70_000 * (at % 2), is_owed: at % 3 == 0 };
        }
    }
    all[KILLED - UNSYNCED] = Act::Sync;
    all
}

/// The body that the n-th act puts.
fn body(at: usize, len: usize) -> Vec<u8> {
    let mut random = Random::new(at as u64);
    let mut body: Vec<u8> = (at as u64).to_le_bytes().to_vec();
    while body.len() < len {
        body.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    body
}

pub(crate) fn opaque(name: u64) -> Key {
    Key::opaque(REALM, &format!("n{name}")).unwrap()
}

/// Who plays: a process that is killed, one that is killed as it starts, and one that does the rest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    First,
    Start,
    Rest,
}

/// Does it, and says of each act when it is acknowledged.
pub(crate) fn play(root: &Path, plan: &Plan, part: Part) {
    let marks = root.join(crate::trace::MARKS);
    let mut marks = File::options().create(true).append(true).open(marks).unwrap();
    let clock = clock();
    if part == Part::First {
        std::fs::create_dir(root.join("store")).unwrap();
    }
    // What fails once may not fail twice.
    let open = || {
        let open = || Store::open(&plan.config(root), clock.clone(), Arc::default());
        open().or_else(|_| open()).unwrap()
    };
    let mut store = open();
    if part == Part::Start {
        std::process::exit(0);
    }
    let mut eviction = Eviction::new(plan.seed);
    // Nobody else is there, from the first step on.
    eviction.set_live_since(None, clock.now());
    clock.advance(Duration::from_secs(20));
    let mut names: BTreeSet<Key> = (0..NAMES).map(opaque).collect();
    for (at, act) in acts(plan).into_iter().enumerate() {
        if (at < KILLED) != (part == Part::First) {
            if part == Part::First {
                // Neither closed nor dropped.
                std::process::exit(0);
            }
            names.extend(put_of(at, act).map(|(key, ..)| key));
            continue;
        }
        // One line is one write.
        let mut say = |word: &str, what: &str| {
            marks.write_all(format!("{word} {what}").as_bytes()).unwrap();
        };
        if let Some((key, body, is_owed)) = put_of(at, act) {
            names.insert(key.clone());
            match keep(&store, act, &key, &body, is_owed.then_some(REALM)) {
                Err(StoreError::Full) => say("full", &at.to_string()),
                // One that is not stored is as it was.
                Err(_) if plan.is_ill => say("full", &at.to_string()),
                other => other.unwrap(),
            }
        }
        match act {
            Act::Over { of, len } => {
                let mut staged = store.stage_shared();
                staged.write(&body(of, len)).unwrap();
                staged.finish().place(store.layout(), 0).unwrap();
            }
            Act::Remove { name } => drop(store.remove(&opaque(name))),
            Act::Settle => {
                if let Some((number, _)) = store.owed_from(0, 1).first() {
                    assert!(store.settle(*number));
                }
            }
            Act::Sync => assert!(store.sync(WAIT)),
            Act::MakeRoom => {
                clock.advance(Duration::from_secs(20));
                if plan.has_builds {
                    // One has just ended.
                    eviction.set_live_since(Some(clock.now()), clock.now());
                    eviction.set_live_since(None, clock.now());
                }
                let files: Vec<&Key> =
                    names.iter().filter(|name| is_unmarked(&store, name)).collect();
                store.evict_step(&mut eviction);
                let at_once = files.into_iter().filter(|name| is_gone(&store, name)).count();
                say("at-once", &at_once.to_string());
                for name in names.iter().filter(|name| is_gone(&store, name)) {
                    say("gone", &name.to_string());
                }
            }
            _ => {}
        }
        say("acted", &at.to_string());
        if matches!(act, Act::Sync) {
            say("synced", &at.to_string());
        }
        if at == ACTS / 2 {
            // An orderly end and a new start are moments too.
            store.close();
            drop(store);
            store = open();
        }
    }
    store.close();
}

fn is_gone(store: &Store, key: &Key) -> bool {
    store.find(key).is_none_or(|row| {
        row.place == Place::Elsewhere && store.find(&Key::content(row.digest)).is_none()
    })
}

/// A file of which nothing says that it is about to go.
fn is_unmarked(store: &Store, key: &Key) -> bool {
    store.find(key).is_some_and(|row| row.place == Place::File && row.condemned == 0)
}

/// Keeps a body as the act does.
pub(crate) fn keep(
    store: &Store,
    act: Act,
    key: &Key,
    body: &[u8],
    owed: Option<RealmId>,
) -> Result<(), StoreError> {
    let mut staged = store.stage();
    staged.write(body)?;
    let mut staged = staged.finish();
    if let Act::Place { .. } = act {
        return store.place(&mut staged);
    }
    let meta = Meta::new(staged.digest, staged.size, BEGIN, Class::Other);
    store.put(key, staged, &meta, owed).map(drop)
}

/// What an act keeps: name, body, whether it is owed upstream.
pub(crate) fn put_of(at: usize, act: Act) -> Option<(Key, Vec<u8>, bool)> {
    match act {
        Act::Put { name, len, is_owed } => Some((opaque(name), body(at, len), is_owed)),
        Act::PutContent { len, is_owed } => {
            let body = body(at, len);
            Some((Key::content(Digest::of(&body)), body, is_owed))
        }
        Act::PutSame { name, of, len } => Some((opaque(name), body(of, len), false)),
        Act::Place { of, len } => {
            let body = body(of, len);
            Some((Key::content(Digest::of(&body)), body, false))
        }
        _ => None,
    }
}

/// What a store holds after some acts.
#[derive(Clone, Default)]
pub(crate) struct State {
    /// The act whose body is under a name.
    pub(crate) entries: BTreeMap<Key, usize>,
    /// Oldest first.
    pub(crate) owed: Vec<Key>,
}

/// The whole play as it should have gone.
pub(crate) struct Play {
    pub(crate) config: Box<dyn Fn(&Path) -> Config>,
    /// Before the first act, and after each.
    pub(crate) states: Vec<State>,
    pub(crate) bodies: BTreeMap<usize, Vec<u8>>,
    /// Every name that was ever put.
    pub(crate) names: BTreeSet<Key>,
}

impl Play {
    /// `marks` say which puts were refused, as a full store may, and what room was made of.
    pub(crate) fn of(plan: &Plan, marks: &[&str]) -> Self {
        let refused: BTreeSet<usize> =
            marks.iter().filter_map(|mark| mark.strip_prefix("full ")?.parse().ok()).collect();
        let gone = gone_in(marks);
        let copy = *plan;
        let mut play = Self {
            config: Box::new(move |dir| copy.config(dir)),
            states: vec![State::default()],
            bodies: BTreeMap::new(),
            names: BTreeSet::new(),
        };
        for (at, act) in acts(plan).into_iter().enumerate() {
            let mut state = play.states[at].clone();
            let kept = put_of(at, act).filter(|_| !refused.contains(&at));
            if let Some((key, body, is_owed)) = kept {
                let of = act.body_of(at);
                state.entries.insert(key.clone(), of);
                if let Act::PutSame { .. } = act {
                    // It may have made room for others meanwhile, and is put with its name.
                    state.entries.insert(Key::content(Digest::of(&body)), of);
                }
                if is_owed {
                    state.owed.retain(|owed| *owed != key);
                    state.owed.push(key.clone());
                }
                play.bodies.insert(of, body);
                play.names.insert(key);
            }
            match act {
                Act::Remove { name } => drop(state.entries.remove(&opaque(name))),
                Act::MakeRoom => {
                    let gone = gone.get(&at);
                    state
                        .entries
                        .retain(|key, _| gone.is_none_or(|g| !g.contains(&key.to_string())));
                }
                Act::Settle if !state.owed.is_empty() => drop(state.owed.remove(0)),
                _ => {}
            }
            play.states.push(state);
        }
        play
    }
}

/// The names that were gone after an act.
fn gone_in(marks: &[&str]) -> BTreeMap<usize, BTreeSet<String>> {
    let mut gone: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    let mut at = 0;
    for mark in marks {
        match mark.split_once(' ').unwrap() {
            ("acted", act) => at = act.parse::<usize>().unwrap() + 1,
            ("gone", name) => drop(gone.entry(at).or_default().insert(name.to_owned())),
            _ => {}
        }
    }
    gone
}

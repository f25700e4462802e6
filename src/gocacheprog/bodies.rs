//! Taking in the body of a put: decode, hash and write at the speed of the file system, because go
//! cannot send anything else meanwhile; and a way out when the disk is full.

use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::entry::{Class, Digest, Hasher};
use crate::gocacheprog::places::{Places, Refuge};
use crate::gocacheprog::protocol::{BodyFault, ProtocolError, Requests};
use crate::store::file::Staged;
use crate::tasks;
use crate::units::Clock;

/// Bodies up to this stay in memory until they are complete.
const HEAD_MAX: usize = 256 << 10;
/// Bodies above this are hashed by a second thread.
const HASH_APART: u64 = 1 << 20;
/// Pieces between the two threads.
const PIECES_MAX: usize = 4;

/// An output that has arrived as announced.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) path: PathBuf,
    pub(super) class: Class,
    /// Whether it is where the daemon looks; otherwise nobody needs to hear of it.
    pub(super) is_placed: bool,
}

/// Why there is no file to name.
#[derive(Debug, thiserror::Error)]
pub(super) enum PutError {
    #[error(transparent)]
    Body(#[from] BodyFault),
    #[error("the output does not have the digest that go gave it")]
    Digest,
    #[error("no room for the output in store or refuge: {0}")]
    Disk(#[from] io::Error),
}

/// Where outputs can go.
pub(super) struct Shelves<'a> {
    pub(super) places: &'a Places,
    pub(super) refuge: &'a Refuge,
    pub(super) clock: &'a Clock,
}

/// Reads the body of a put to its end, whatever happens, and puts it in place.
pub(super) fn receive<R: Read>(
    requests: &mut Requests<R>,
    shelves: &Shelves<'_>,
    output: &Digest,
    size: u64,
) -> Result<Result<Arrived, PutError>, ProtocolError> {
    if size == 0 {
        return Ok(empty(shelves, output));
    }
    let is_there = shelves.places.reader.has_output(output, size);
    let mut intake = Intake::new(shelves, is_there);
    let mut hashing = Hashing::new(size);
    let body = requests.body(size, &mut |piece| {
        hashing.update(piece);
        intake.write(piece);
    })?;
    let digest = hashing.finish();
    Ok(match body {
        Err(fault) => Err(fault.into()),
        Ok(()) if digest != *output => Err(PutError::Digest),
        Ok(()) => intake.finish(output, size),
    })
}

/// The commonest output of all has no body, but go wants a file all the same.
fn empty(shelves: &Shelves<'_>, output: &Digest) -> Result<Arrived, PutError> {
    if *output != Digest::EMPTY {
        return Err(PutError::Digest);
    }
    let class = Class::Stdout;
    let placed = match shelves.places.present(output, 0) {
        Some(path) => Ok(path),
        None => shelves.places.place_bytes(output, b""),
    };
    match placed {
        Ok(path) => Ok(Arrived { path, class, is_placed: true }),
        Err(_) => {
            let (file, path) = open_refuge(shelves)?;
            settle(file, &path, output).map(|path| Arrived { path, class, is_placed: false })
        }
    }
}

/// A body on its way to wherever there is room.
struct Intake<'a> {
    shelves: &'a Shelves<'a>,
    written: u64,
    state: State,
}

enum State {
    /// The same output is in place already.
    There,
    Head(Vec<u8>),
    Store(Staged),
    Refuge(File, PathBuf),
    Lost(io::Error),
}

impl<'a> Intake<'a> {
    fn new(shelves: &'a Shelves<'a>, is_there: bool) -> Self {
        let state = if is_there { State::There } else { State::Head(Vec::new()) };
        Self { shelves, written: 0, state }
    }

    fn write(&mut self, piece: &[u8]) {
        let state = std::mem::replace(&mut self.state, State::There);
        self.state = match state {
            State::Head(mut head) => {
                head.extend_from_slice(piece);
                if head.len() > HEAD_MAX { self.spill(head) } else { State::Head(head) }
            }
            State::Store(mut staged) => match staged.write_unhashed(piece) {
                Ok(()) => State::Store(staged),
                Err(error) => self.rescue(&staged, error, piece),
            },
            State::Refuge(mut file, path) => match file.write_all(piece) {
                Ok(()) => State::Refuge(file, path),
                Err(error) => lose(&path, error),
            },
            State::There | State::Lost(_) => state,
        };
        self.written += piece.len() as u64;
    }

    /// The body is too large for memory.
    fn spill(&self, head: Vec<u8>) -> State {
        let mut staged = self.shelves.places.reader.stage();
        match staged.write_unhashed(&head) {
            Ok(()) => State::Store(staged),
            Err(_) => to_refuge(self.shelves, |file| file.write_all(&head)),
        }
    }

    /// The store has no more room: what it took goes to the refuge, and the rest after it.
    fn rescue(&self, staged: &Staged, error: io::Error, piece: &[u8]) -> State {
        let Some(source) = staged.file() else { return State::Lost(error) };
        to_refuge(self.shelves, |file| {
            copy(&source, self.written, file)?;
            file.write_all(piece)
        })
    }

    fn finish(self, output: &Digest, size: u64) -> Result<Arrived, PutError> {
        let places = self.shelves.places;
        match self.state {
            State::There => {
                let path = places.reader.path(output);
                Ok(Arrived { class: class_of(&path, size), path, is_placed: true })
            }
            State::Head(head) => {
                let class = Class::of(&mut Cursor::new(&head), size);
                match places.place_bytes(output, &head) {
                    Ok(path) => Ok(Arrived { path, class, is_placed: true }),
                    Err(_) => to_refuge(self.shelves, |f| f.write_all(&head)).settle(output, size),
                }
            }
            State::Store(staged) => {
                // Kept so that the bytes are at hand even if their temporary name is not: a daemon
                // that starts empties the directory of what is being written.
                let source = staged.file();
                let mut finished = staged.finish_hashed(*output, size);
                match places.place(&mut finished) {
                    Ok(path) => Ok(Arrived { class: class_of(&path, size), path, is_placed: true }),
                    Err(error) => match source {
                        Some(source) => to_refuge(self.shelves, |file| copy(&source, size, file))
                            .settle(output, size),
                        None => Err(error.into()),
                    },
                }
            }
            state @ (State::Refuge(..) | State::Lost(_)) => state.settle(output, size),
        }
    }
}

impl State {
    /// Ends a body that went to the refuge.
    fn settle(self, output: &Digest, size: u64) -> Result<Arrived, PutError> {
        match self {
            Self::Refuge(file, path) => {
                let path = settle(file, &path, output)?;
                Ok(Arrived { class: class_of(&path, size), path, is_placed: false })
            }
            Self::Lost(error) => Err(error.into()),
            Self::There | Self::Head(_) | Self::Store(_) => {
                unreachable!("only what went to the refuge ends there")
            }
        }
    }
}

fn to_refuge(shelves: &Shelves<'_>, write: impl FnOnce(&mut File) -> io::Result<()>) -> State {
    let (mut file, path) = match open_refuge(shelves) {
        Ok(opened) => opened,
        Err(error) => return State::Lost(error),
    };
    match write(&mut file) {
        Ok(()) => State::Refuge(file, path),
        Err(error) => lose(&path, error),
    }
}

/// Half an output is of no use, and takes room.
fn lose(path: &Path, error: io::Error) -> State {
    let _ = std::fs::remove_file(path);
    State::Lost(error)
}

fn open_refuge(shelves: &Shelves<'_>) -> io::Result<(File, PathBuf)> {
    // One body arrives at a time, so one name is enough.
    let path = shelves.refuge.dir(shelves.clock)?.join("arriving");
    Ok((File::create(&path)?, path))
}

fn settle(file: File, path: &Path, output: &Digest) -> Result<PathBuf, PutError> {
    drop(file);
    let target = path.with_file_name(output.to_string());
    std::fs::rename(path, &target)?;
    Ok(target)
}

fn copy(source: &File, len: u64, to: &mut File) -> io::Result<()> {
    let mut piece = vec![0; HEAD_MAX];
    let mut at = 0;
    while at < len {
        let most = usize::try_from(len - at).unwrap_or(HEAD_MAX).min(HEAD_MAX);
        source.read_exact_at(&mut piece[..most], at)?;
        to.write_all(&piece[..most])?;
        at += most as u64;
    }
    Ok(())
}

/// An output that cannot be opened again is of no known class.
pub(super) fn class_of(path: &Path, size: u64) -> Class {
    File::open(path).map_or(Class::Other, |mut file| Class::of(&mut file, size))
}

/// Hashing beside the decoding, or in line with it where a thread would cost more than it saves.
enum Hashing {
    Inline(Hasher),
    Apart { to: SyncSender<Vec<u8>>, back: Receiver<Vec<u8>>, thread: JoinHandle<Digest> },
}

impl Hashing {
    fn new(size: u64) -> Self {
        if size <= HASH_APART {
            return Self::Inline(Hasher::default());
        }
        let (to, pieces) = sync_channel::<Vec<u8>>(PIECES_MAX);
        let (give_back, back) = sync_channel(PIECES_MAX + 2);
        let thread = tasks::thread("hash", move || {
            let mut hasher = Hasher::default();
            for piece in pieces {
                hasher.update(&piece);
                // Nobody wants it back after the last one.
                let _ = give_back.try_send(piece);
            }
            hasher.finish()
        });
        match thread {
            Ok(thread) => Self::Apart { to, back, thread },
            // No more threads: slower, but right.
            Err(_) => Self::Inline(Hasher::default()),
        }
    }

    fn update(&mut self, piece: &[u8]) {
        match self {
            Self::Inline(hasher) => hasher.update(piece),
            Self::Apart { to, back, .. } => {
                let mut copy = back.try_recv().unwrap_or_default();
                copy.clear();
                copy.extend_from_slice(piece);
                // A thread that panicked shows when it is joined.
                let _ = to.send(copy);
            }
        }
    }

    fn finish(self) -> Digest {
        match self {
            Self::Inline(hasher) => hasher.finish(),
            Self::Apart { to, thread, .. } => {
                drop(to);
                // Without a digest nothing matches, and nothing is kept.
                thread.join().unwrap_or(Digest([0; 32]))
            }
        }
    }
}

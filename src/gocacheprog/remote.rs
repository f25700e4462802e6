//! The daemon as the helper knows it: finding or starting it, writing to it, reading its answers,
//! and going on without it.
//!
//! One thread connects and reads, one writes, one watches deadlines. None of them is the one that
//! reads go's requests, so a daemon that hangs never holds up a warm get or a put.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::client::{self, ConnectError, Connection, Stream};
use crate::entry::{Class, Digest, Meta};
use crate::gocacheprog::Helper;
use crate::gocacheprog::places::{Places, Sharing, pid_namespace};
use crate::gocacheprog::questions::{Outgoing, Unacked};
use crate::store::file::Staged;
use crate::tasks;
use crate::units::Timestamp;
use crate::wire::go::{Entry, Frame, Hello, PIECE_MAX, PROTOCOL};

/// A handshake is one exchange with a process on this machine, or near it.
const HELLO_MAX: Duration = Duration::from_secs(2);
/// How long the first misses of a build wait for a daemon that is being started.
pub(super) const START_MAX: Duration = Duration::from_secs(3);
/// Rest between two attempts to find the daemon again.
const AGAIN: Duration = Duration::from_secs(2);
/// Daemons that one helper starts: one at first, one for the case that it falls.
const STARTS_MAX: u32 = 2;
/// How often the daemon hears what was used.
const NEWS_EVERY: Duration = Duration::from_secs(5);

/// Keeps a connection for as long as the helper lives.
pub(super) fn keep_connected(helper: &Arc<Helper>) {
    let mut hello = hello(helper);
    let mut starts_left = if helper.config.start.is_some() { STARTS_MAX } else { 0 };
    loop {
        hello.parents = helper.parents.for_hello();
        match client::connect(&helper.config.address, &hello, HELLO_MAX) {
            Ok(connection) => {
                helper.welcomed(&connection.welcome);
                talk(helper, connection);
                helper.lost();
            }
            Err(ConnectError::Nobody(_)) if starts_left > 0 => {
                helper.found(|config| Places::alone(config, true));
                starts_left -= 1;
                if start(helper) {
                    continue;
                }
                // One that was ending may be gone when it is tried again.
                helper.lost();
            }
            Err(error @ (ConnectError::OtherVersion { .. } | ConnectError::Refused { .. })) => {
                helper.warn(&format!("{error}; going on without it"));
                helper.found(Places::apart);
                helper.lost();
                return;
            }
            Err(error) => {
                let is_nobody_there = matches!(error, ConnectError::Nobody(_));
                helper.found(|config| Places::alone(config, is_nobody_there));
                helper.lost();
            }
        }
        if helper.questions.rest(AGAIN) {
            return;
        }
    }
}

fn start(helper: &Helper) -> bool {
    let Some(settings) = &helper.config.start else { return false };
    match client::start_daemon(settings, START_MAX) {
        Ok(()) => true,
        Err(error) => {
            helper.warn(&format!("{error}; going on without it"));
            false
        }
    }
}

fn hello(helper: &Helper) -> Hello {
    let config = &helper.config;
    Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        role: "go".to_owned(),
        pid: config.pid,
        pid_namespace: pid_namespace("self"),
        token: config.token.as_ref().map(|token| token.reveal().to_owned()),
        namespace: config.namespace.clone(),
        trust: config.trust.clone(),
        upstream: config.upstream.clone(),
        read_only: config.read_only,
        session: config.session.clone(),
        scope: config.scope.clone(),
        commit: config.commit.clone(),
        branch: config.branch.clone(),
        default_branch: config.default_branch.clone(),
        parents: Vec::new(),
    }
}

/// Reads answers until the connection ends.
fn talk(helper: &Arc<Helper>, connection: Connection) {
    let Connection { reader, mut writer, .. } = connection;
    let Ok(ender) = reader.try_clone() else { return };
    let sees = helper.places().is_some_and(|places| places.sharing == Sharing::Store);
    if (Frame::Sees { store: sees }).write(&mut writer).is_err() {
        return;
    }
    helper.connected(ender);
    helper.parents.tell(&helper.questions);
    let shared = helper.clone();
    let Ok(thread) = tasks::thread("to daemon", move || write(&shared, &mut writer)) else {
        return;
    };
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let mut arriving = HashMap::new();
    while let Ok(Some(frame)) = Frame::read(&mut reader) {
        helper.questions.heard(helper.clock.elapsed());
        answer(helper, frame, &mut arriving);
    }
    helper.lost();
    helper.disconnect();
    // It has no connection to write to any more.
    let _ = thread.join();
}

/// Outputs that are on their way here, by the question that they answer.
type Arriving = HashMap<u64, (Entry, Staged)>;

fn answer(helper: &Helper, frame: Frame, arriving: &mut Arriving) {
    match frame {
        Frame::Hit { id, entry } => hit(helper, id, &entry),
        Frame::HitBytes { id, entry } => {
            if let Some(places) = helper.places().filter(|_| helper.questions.is_asked(id)) {
                arriving.insert(id, (entry, places.reader.stage()));
            }
        }
        Frame::Piece { id, bytes } if bytes.is_empty() => {
            if let Some((entry, staged)) = arriving.remove(&id) {
                arrived(helper, id, &entry, staged);
            }
        }
        Frame::Piece { id, bytes } => {
            let is_lost = match arriving.get_mut(&id) {
                Some((entry, staged)) => {
                    staged.len() + bytes.len() as u64 > entry.size || staged.write(&bytes).is_err()
                }
                None => false,
            };
            if is_lost || !helper.questions.is_asked(id) {
                arriving.remove(&id);
                miss(helper, id);
            }
        }
        Frame::Miss { id, .. } => miss(helper, id),
        Frame::Done { id, .. } => helper.questions.acked(id),
        // A daemon has no more to say to a helper; what it says too much is not our fault.
        _ => {}
    }
}

/// The daemon says that the output is in the store; what go gets is what is there.
fn hit(helper: &Helper, id: u64, entry: &Entry) {
    let path = helper.places().and_then(|p| p.present(&Digest(entry.output), entry.size));
    match (path, helper.questions.take(id)) {
        (Some(path), Some(question)) => tell_hit(helper, question.id, entry, &path),
        (None, Some(question)) => helper.miss(question.id, question.action),
        (_, None) => {}
    }
    helper.answers.flush();
}

/// All of an output has come over the socket. What does not prove itself is not handed on.
fn arrived(helper: &Helper, id: u64, entry: &Entry, staged: Staged) {
    let mut finished = staged.finish();
    let is_right = finished.digest.0 == entry.output && finished.size == entry.size;
    let placed =
        helper.places().filter(|_| is_right).and_then(|places| places.place(&mut finished).ok());
    let Some(path) = placed else { return miss(helper, id) };
    if let Some(question) = helper.questions.take(id) {
        tell_hit(helper, question.id, entry, &path);
        helper.answers.flush();
    }
}

fn tell_hit(helper: &Helper, id: i64, entry: &Entry, path: &Path) {
    helper.answers.hit(id, &entry.output, entry.size, Timestamp(entry.time_ns), path);
}

fn miss(helper: &Helper, id: u64) {
    if let Some(question) = helper.questions.take(id) {
        helper.miss(question.id, question.action);
        helper.answers.flush();
    }
}

/// Writes what there is to write. Small frames go between the pieces of large bodies.
fn write(helper: &Helper, writer: &mut Stream) {
    let mut body: Option<(u64, File)> = None;
    let mut piece = vec![0; PIECE_MAX];
    loop {
        let result = match helper.questions.next_outgoing(body.is_some()) {
            Outgoing::End => return,
            Outgoing::Frames(bytes) => writer.write_all(&bytes),
            Outgoing::Body(put) => match put.body.as_ref().map(File::open) {
                Some(Ok(file)) => {
                    let Unacked { id, action, entry, .. } = put;
                    body = Some((id, file));
                    Frame::PutBytes { id, action, entry }.write(writer)
                }
                // Gone before it was sent: the daemon never hears of it.
                _ => {
                    helper.questions.acked(put.id);
                    Ok(())
                }
            },
            Outgoing::Nothing => {
                let Some((id, mut file)) = body.take() else { continue };
                // What cannot be read ends the body early, and the daemon refuses what is short.
                let len = file.read(&mut piece).unwrap_or(0);
                let result = Frame::Piece { id, bytes: piece[..len].to_vec() }.write(writer);
                if len > 0 {
                    body = Some((id, file));
                }
                result
            }
        };
        if result.is_err() {
            // The thread that reads sees the same end, and cleans up.
            writer.shut_down();
            return;
        }
    }
}

/// Answers questions whose time is up, and tells the daemon every few seconds what was used.
pub(super) fn keep_time(helper: &Helper) {
    let mut tick = helper.clock.elapsed() + NEWS_EVERY;
    loop {
        let now = helper.clock.elapsed();
        for question in helper.questions.expired(now) {
            helper.miss(question.id, question.action);
        }
        helper.answers.flush();
        if now >= tick {
            tick = now + NEWS_EVERY;
            helper.account.tell(|news| helper.questions.say(news));
        }
        if !helper.questions.wait_for_deadline(now, tick) {
            return;
        }
    }
}

/// Leaves puts for the next daemon, if they are where it will look.
pub(super) fn spool(places: &Places, puts: &[Unacked]) {
    let Some(realm) = places.realms.first().filter(|_| places.sharing == Sharing::Store) else {
        return;
    };
    for put in puts {
        let entry = &put.entry;
        let class = Class::from_u8(entry.class);
        let stored = Timestamp(entry.time_ns);
        let meta = Meta {
            cost_ms: entry.cost_ms,
            c_env: entry.c_env,
            ..Meta::new(Digest(entry.output), entry.size, stored, class)
        };
        // A put that cannot be spooled is forgotten: it is built again some day.
        let _ = places.reader.spool(*realm, Digest(put.action), meta);
    }
}

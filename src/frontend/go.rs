//! The daemon's side of Go's helper and of the control client: frames in, frames out.
//!
//! Lookups run side by side and are answered in any order; puts are recorded as they come.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};

use crate::cache::GoPut;
use crate::entry::{BodyError, Class, Digest, Incoming, Key, Meta};
use crate::frontend::Frontend;
use crate::frontend::listener::Visit;
use crate::tasks::Tasks;
use crate::telemetry::metrics::Protocol;
use crate::units::Timestamp;
use crate::wire::go::{self as wire, Entry, Frame, PIECE_MAX, Report};

mod answers;
mod hello;

use answers::{look_up, send_output};
use hello::{Guest, refused};

const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Lookups of one helper at a time: go asks no more than it has processors.
const LOOKUPS_MAX: usize = 256;
/// Answers that wait for a helper to read them.
const ANSWERS_MAX: usize = 1024;
/// Pieces of outputs that wait for a helper to read them, all its outputs together.
const PIECES_UNREAD_MAX: usize = 8;
/// Pieces of a body that wait to be stored.
const PIECES_MAX: usize = 16;
/// Bodies that a helper may send at the same time.
const BODIES_MAX: usize = 64;

/// Speaks with one helper until it leaves.
pub(super) async fn serve<S>(frontend: Frontend, stream: S, visit: Visit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Visit { peer, lane, mut shutdown } = visit;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let hello = tokio::time::timeout(HELLO_WITHIN, read_frame(&mut reader)).await;
    let Ok(Ok(Some(Frame::Hello(hello)))) = hello else { return };
    let guest = match frontend.greet(&hello, &peer) {
        Ok(guest) => guest,
        Err(reason) => {
            let _ = write_frame(&mut writer, &Frame::Refused(refused(reason))).await;
            return;
        }
    };
    let (answers, queue) = mpsc::channel(ANSWERS_MAX);
    let (outputs, pieces) = mpsc::channel(PIECES_UNREAD_MAX);
    let welcome = Frame::Welcome(guest.welcome.clone());
    let mut conversation = Conversation {
        frontend,
        lane,
        guest: Arc::new(guest),
        answers,
        outputs,
        lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
        bodies: HashMap::new(),
        reported: Report::default(),
    };
    // Who is welcome reads the index: files that it sees there must be known to be in use by then.
    conversation.open();
    if write_frame(&mut writer, &welcome).await.is_err() {
        return;
    }
    conversation.lane.spawn("answers", write_all(writer, queue, pieces));
    loop {
        let frame = tokio::select! {
            frame = read_frame(&mut reader) => frame,
            () = shutdown.wait() => break,
        };
        match frame {
            Ok(Some(frame)) => {
                if !conversation.hear(frame).await {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "helper: the conversation broke off");
                break;
            }
        }
    }
}

/// One helper's frames.
struct Conversation {
    frontend: Frontend,
    lane: Tasks,
    guest: Arc<Guest>,
    answers: mpsc::Sender<Frame>,
    /// Apart from the answers, which overtake them: outputs for a helper that does not see the store.
    outputs: mpsc::Sender<Frame>,
    lookups: Arc<Semaphore>,
    /// Bodies that are being sent, by the put's number.
    bodies: HashMap<u64, mpsc::Sender<Result<Bytes, BodyError>>>,
    reported: Report,
}

/// However it ends, by a panic too: a session that nobody leaves would be live for ever, and nothing
/// that it has used would make room.
impl Drop for Conversation {
    fn drop(&mut self) {
        if let Some(session) = &self.guest.session {
            session.helper_left(self.frontend.inner.cache.clock().now());
            self.frontend.inner.cache.sessions().tell();
        }
    }
}

impl Conversation {
    fn open(&self) {
        if let Some(session) = &self.guest.session {
            session.helper_came();
            if let Some(forecast) = &session.forecast {
                // After that: a prefetch that is being cut short just now may not have seen us.
                self.frontend.inner.cache.forecasts().resume(forecast);
            }
        }
    }

    /// Deals with a frame; false ends the conversation.
    async fn hear(&mut self, frame: Frame) -> bool {
        match frame {
            Frame::Get { id, action, c_env } => self.get(id, Digest(action), c_env).await,
            Frame::Put { id, action, entry } => self.put(id, Digest(action), &entry).await,
            Frame::PutBytes { id, action, entry } => self.put_bytes(id, Digest(action), &entry),
            Frame::Piece { id, bytes } => {
                self.piece(id, bytes).await;
                true
            }
            Frame::Used { actions } => {
                self.used(&actions);
                true
            }
            Frame::Report(report) => {
                self.report(report);
                true
            }
            Frame::Sees { store } => {
                let sees = store && self.guest.is_local;
                self.guest.sees_store.store(sees, Ordering::Relaxed);
                true
            }
            Frame::Parents { ids } => {
                if let Some(session) = &self.guest.session {
                    session.parents_are(&ids);
                }
                true
            }
            Frame::Control(text) => self.control(&text),
            // Everything else is ours to say.
            Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Refused(_)
            | Frame::Hit { .. }
            | Frame::HitBytes { .. }
            | Frame::Miss { .. }
            | Frame::Done { .. }
            | Frame::ControlReply(_) => false,
        }
    }

    async fn get(&self, id: u64, action: Digest, c_env: u64) -> bool {
        let Ok(permit) = self.lookups.clone().acquire_owned().await else { return false };
        let (frontend, guest) = (self.frontend.clone(), self.guest.clone());
        let (answers, outputs) = (self.answers.clone(), self.outputs.clone());
        self.lane.spawn("lookup", async move {
            let blob = look_up(&frontend, &guest, &answers, id, action, c_env).await;
            if let Some((entry, body)) = blob {
                send_output(&outputs, id, entry, body).await;
            }
            drop(permit);
        });
        true
    }

    async fn put(&self, id: u64, action: Digest, entry: &Entry) -> bool {
        let meta = meta_of(entry);
        let cache = &self.frontend.inner.cache;
        let may_upload = !self.guest.hello.read_only;
        let stored = self.guest.writes
            && self.guest.is_local
            && match cache.put_go(&self.guest.realm, &action, meta.clone(), may_upload) {
                Ok(GoPut::Recorded | GoPut::Off) => true,
                Err(error) => {
                    tracing::debug!(%action, %error, "helper: a put was not recorded");
                    cache.metrics().not_stored.inc();
                    false
                }
            };
        count_put(&self.frontend, &self.guest, &action, &meta);
        self.answers.send(Frame::Done { id, stored }).await.is_ok()
    }

    fn put_bytes(&mut self, id: u64, action: Digest, entry: &Entry) -> bool {
        if self.bodies.len() >= BODIES_MAX {
            self.bodies.retain(|_, body| !body.is_closed());
            if self.bodies.len() >= BODIES_MAX {
                return false;
            }
        }
        let (body, pieces) = mpsc::channel(PIECES_MAX);
        self.bodies.insert(id, body);
        let (frontend, guest, answers) =
            (self.frontend.clone(), self.guest.clone(), self.answers.clone());
        let (meta, size) = (meta_of(entry), entry.size);
        let tasks = self.frontend.inner.cache.tasks().clone();
        tasks.spawn("store", async move {
            let chunks = futures_util::stream::unfold(pieces, |mut pieces| async move {
                pieces.recv().await.map(|piece| (piece, pieces))
            });
            let body = Incoming { len: Some(size), chunks: Box::pin(chunks) };
            let cache = &frontend.inner.cache;
            let upload = !guest.hello.read_only;
            let stored = guest.writes
                && cache
                    .put_go_bytes(&guest.realm, &action, meta.clone(), body, upload)
                    .await
                    .is_ok();
            count_put(&frontend, &guest, &action, &meta);
            // A helper that left does not hear it.
            let _ = answers.send(Frame::Done { id, stored }).await;
        });
        true
    }

    async fn piece(&mut self, id: u64, bytes: Vec<u8>) {
        if bytes.is_empty() {
            self.bodies.remove(&id);
        } else if let Some(body) = self.bodies.get(&id) {
            // A body that is no longer wanted is read and forgotten.
            let _ = body.send(Ok(bytes.into())).await;
        }
    }

    /// Touches what the helper has answered from the index.
    fn used(&self, actions: &[[u8; 32]]) {
        let store = self.frontend.inner.cache.store();
        for action in actions {
            for realm in self.guest.realm.go_chain() {
                let key = Key::go(realm.id, Digest(*action));
                let Some(row) = store.find(&key) else { continue };
                store.touch(&key, &row);
                if let Some(session) = &self.guest.session {
                    session.used(Digest(*action));
                }
                let content = Key::content(row.digest);
                if let Some(row) = store.find(&content) {
                    store.touch(&content, &row);
                }
                break;
            }
        }
    }

    fn report(&mut self, report: Report) {
        let counters = self.frontend.inner.cache.metrics().of(Protocol::Go);
        let index = report.hits_index.saturating_sub(self.reported.hits_index);
        let native = report.hits_native.saturating_sub(self.reported.hits_native);
        counters.gets.add(index + native);
        counters.hit_disk.add(index);
        counters.hit_native.add(native);
        if let Some(session) = &self.guest.session {
            session.add(&self.reported, &report);
        }
        self.reported = report;
    }

    /// Control is for those who may use the socket.
    fn control(&self, text: &str) -> bool {
        if !self.guest.is_local {
            return false;
        }
        let Ok(request) = serde_json::from_str(text) else { return false };
        let (frontend, answers) = (self.frontend.clone(), self.answers.clone());
        let tasks = self.frontend.inner.cache.tasks().clone();
        tasks.spawn("control", async move {
            let sender = answers.clone();
            let progress = move |value: serde_json::Value| {
                // Whoever reads too slowly misses a step of the progress, nothing else.
                let _ = sender.try_send(Frame::ControlReply(value.to_string()));
            };
            let reply = frontend.inner.control.call(request, &progress).await;
            let _ = answers.send(Frame::ControlReply(reply.to_string())).await;
        });
        true
    }
}

fn meta_of(entry: &Entry) -> Meta {
    let mut meta = Meta::new(
        Digest(entry.output),
        entry.size,
        Timestamp(entry.time_ns),
        Class::from_u8(entry.class),
    );
    meta.cost_ms = entry.cost_ms;
    meta.c_env = entry.c_env;
    meta
}

async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Frame>> {
    let mut len = [0; 4];
    match from.read_exact(&mut len).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut bytes = vec![0; wire::frame_len(len)?];
    from.read_exact(&mut bytes).await?;
    Ok(Some(Frame::decode(&bytes)?))
}

async fn write_frame(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(256);
    frame.encode(&mut bytes);
    to.write_all(&bytes).await
}

/// Counts what was built, and learns from it.
fn count_put(frontend: &Frontend, guest: &Guest, action: &Digest, meta: &Meta) {
    let Some(session) = &guest.session else { return };
    session.puts.inc();
    session.used(*action);
    frontend.inner.cache.learn_built(&guest.realm, session, action, meta);
}

/// Writes answers as they come, together where several wait, and pieces of outputs between them.
async fn write_all(
    mut to: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Frame>,
    mut pieces: mpsc::Receiver<Frame>,
) {
    let mut bytes = Vec::with_capacity(4096);
    loop {
        let frame = tokio::select! {
            biased;
            Some(frame) = queue.recv() => frame,
            Some(frame) = pieces.recv() => frame,
            else => return,
        };
        bytes.clear();
        frame.encode(&mut bytes);
        while bytes.len() < PIECE_MAX
            && let Ok(frame) = queue.try_recv()
        {
            frame.encode(&mut bytes);
        }
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

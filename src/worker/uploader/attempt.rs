//! One attempt at one upload: from the store to the backend. Nothing is settled here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::backend::{Backend, BackendError, Upload};
use crate::cache::frames::Standing;
use crate::cache::realm::{Realm, Upstream};
use crate::cache::{Cache, GO_VALUE_MAX, Outgoing};
use crate::entry::action::{Frame, GoEntry, Packed};
use crate::entry::body::Source;
use crate::entry::{Digest, Id, Key, Kind};
use crate::manifest;
use crate::store::Stored;
use crate::store::file::FileSource;
use crate::store::index::Owed;
use crate::worker::uploader::Uploads;
use crate::worker::uploader::lacking::Lacking;
use crate::worker::uploader::packer::{Packer, Route};

/// Compressing must not take the cores that the build runs on.
const PACKS_MAX: usize = 2;
/// Outputs and frames in memory at once. A larger one is packed when no other is.
const PACKED_BYTES_MAX: u32 = 256 << 20;
/// How long a larger body takes says more about its size.
const TIMED_SIZE_MAX: u64 = 64 << 10;

/// What an attempt came to.
#[derive(Debug)]
pub(super) enum Outcome {
    Sent(Sent),
    /// Upstream has confirmed it lately.
    Known,
    /// There is nothing to send any more.
    Gone,
    /// A newer upload has taken its place.
    Replaced,
    /// It is there, but this machine cannot read it now.
    Unreadable,
    /// An action that names content which upstream does not take.
    Lacks(Digest),
    Failed(BackendError),
}

#[derive(Debug)]
pub(super) struct Sent {
    /// Of the entry, as confirmations name it.
    pub(super) digest: Digest,
    pub(super) bytes: u64,
    /// For the last body, if it was small.
    pub(super) took: Option<Duration>,
}

/// Limits that all attempts share.
pub(super) struct Packing {
    turns: Semaphore,
    bytes: Semaphore,
    packer: Arc<Packer>,
}

impl Default for Packing {
    fn default() -> Self {
        Self {
            turns: Semaphore::new(PACKS_MAX),
            bytes: Semaphore::new(PACKED_BYTES_MAX as usize),
            packer: Arc::default(),
        }
    }
}

/// What an attempt needs. Owned by it, so that many run at once.
pub(super) struct Attempt {
    pub(super) cache: Cache,
    pub(super) realm: Arc<Realm>,
    pub(super) upstream: Upstream,
    pub(super) packing: Arc<Packing>,
    pub(super) lacking: Arc<Lacking>,
    pub(super) uploads: Arc<Uploads>,
    /// Attempts of this lane that wait for their packs: they take nobody's place.
    pub(super) boarded: Arc<AtomicUsize>,
    pub(super) number: u64,
    pub(super) owed: Owed,
}

impl Attempt {
    pub(super) async fn run(self) -> Outcome {
        let key = &self.owed.key;
        let store = self.cache.store();
        let digest = match key.expected() {
            Some(digest) => digest,
            // Content is the same under any number; others would be sent twice.
            None if store.is_settled(self.number) => return Outcome::Replaced,
            None => match store.find(key) {
                Some(row) => row.digest,
                None => return self.missing().await,
            },
        };
        if key.has_one_value() && self.cache.confirmed().contains(self.realm.id, key, &digest) {
            return Outcome::Known;
        }
        if self.is_there_already(&digest).await {
            self.cache.confirm(&self.realm, key, digest);
            return Outcome::Known;
        }
        // What upstream holds is uncertain from here on: a put of what it held before is owed.
        self.cache.confirmed().remove(self.realm.id, key);
        if let Some(content) = self.lacks().await {
            return Outcome::Lacks(content);
        }
        let sent = match key.kind {
            Kind::Go => self.send_go().await,
            Kind::Content | Kind::Action | Kind::Opaque => self.send_body().await,
        };
        match sent {
            Ok(Some(sent)) => Outcome::Sent(sent),
            Ok(None) => self.missing().await,
            Err(error) => Outcome::Failed(error),
        }
    }

    /// Whether upstream has an entry that was built here although a manifest lists it, as building was
    /// quicker than to wait: its action, which must lead to this output, and the frame that it names.
    /// What upstream has lost or spoiled is sent.
    async fn is_there_already(&self, output: &Digest) -> bool {
        let Id::Digest(action) = self.owed.key.id else { return false };
        if self.owed.key.kind != Kind::Go
            || !self.cache.frames().is_built_though_listed(self.realm.id, &action)
        {
            return false;
        }
        // Who reads a realm reads the one that it trusts.
        let is_sound = |realm: &&Realm| !self.cache.frames().is_spoiled(realm.id, output);
        for realm in self.realm.chain().filter(is_sound) {
            let name = realm.name_of(&Key::go(realm.id, action));
            let value = self.cache.read_value(&self.upstream, &name, GO_VALUE_MAX).await;
            let Ok(Some(value)) = value else { continue };
            let Ok(entry) = GoEntry::decode(&value) else { continue };
            if entry.action != action || entry.digest != *output {
                continue;
            }
            let frame = match entry.frame {
                Frame::Empty | Frame::Inline(_) => return true,
                Frame::Stored { digest, .. } => digest,
                Frame::Packed(packed) => packed.pack,
            };
            let names = [realm.name_of(&Key::content(frame))];
            if self.upstream.backend.contains(&names).await.is_ok_and(|there| there == [true]) {
                return true;
            }
        }
        false
    }

    /// Content that an action names and that was given up.
    async fn lacks(&self) -> Option<Digest> {
        if self.owed.key.kind != Kind::Action || self.lacking.is_empty() {
            return None;
        }
        let (store, key) = (self.cache.store().clone(), self.owed.key.clone());
        let (lacking, realm) = (self.lacking.clone(), self.realm.id);
        // Larger ones are files, and no actions.
        let look = move || match store.get(&key)? {
            Stored::Bytes(_, bytes) => lacking.named_in(realm, &bytes),
            Stored::File(..) => None,
        };
        let named =
            self.cache.tasks().blocking("look what an action names", look).await.flatten()?;
        // Somebody else may have sent it, and upstream has said so.
        let has = self.cache.confirmed().contains(self.realm.id, &Key::content(named), &named);
        if has {
            self.lacking.remove(self.realm.id, named);
        }
        (!has).then_some(named)
    }

    /// Nothing could be read: because it is gone, or because the disk says no.
    async fn missing(&self) -> Outcome {
        let (store, key) = (self.cache.store().clone(), self.owed.key.clone());
        match self.cache.tasks().blocking("look for an upload", move || store.is_gone(&key)).await {
            Some(true) => Outcome::Gone,
            Some(false) | None => Outcome::Unreadable,
        }
    }

    async fn send_body(&self) -> Result<Option<Sent>, BackendError> {
        let (store, key) = (self.cache.store().clone(), self.owed.key.clone());
        let tasks = self.cache.tasks();
        let stored = tasks.blocking("read an upload", move || store.get(&key)).await.flatten();
        let (digest, upload) = match stored {
            None => return Ok(None),
            Some(Stored::Bytes(meta, bytes)) => (meta.digest, Upload::bytes(bytes)),
            Some(Stored::File(meta, file)) => {
                let source = FileSource { file, tasks: tasks.clone() };
                let len = meta.size;
                (meta.digest, Upload { len, open: Arc::new(move || source.stream(0..len)) })
            }
        };
        let Some(upload) = self.with_others(upload).await? else {
            return Ok(Some(Sent { digest, bytes: 0, took: None }));
        };
        let bytes = upload.len;
        let took = self.put(&self.owed.key, upload).await?;
        Ok(Some(Sent { digest, bytes, took }))
    }

    /// A manifest or trail goes up together with what others have written on it meanwhile. None: what
    /// is there is of another version, and not ours to write over.
    async fn with_others(&self, upload: Upload) -> Result<Option<Upload>, BackendError> {
        if self.owed.key.kind != Kind::Action || upload.len > manifest::SIZE_MAX as u64 {
            return Ok(Some(upload));
        }
        let mut body = (upload.open)();
        let mut ours = Vec::new();
        while let Some(piece) = body.next().await {
            // Then sending it fails in the same way.
            let Ok(piece) = piece else { return Ok(Some(upload)) };
            ours.extend_from_slice(&piece);
            if !manifest::is_one(&ours) {
                return Ok(Some(upload));
            }
        }
        let (name, limit) = (self.realm.name_of(&self.owed.key), manifest::SIZE_MAX as u64);
        let theirs = self.cache.read_value(&self.upstream, &name, limit).await;
        let Some(theirs) = theirs.map_err(BackendError::Unsure)? else { return Ok(Some(upload)) };
        let now = self.cache.clock().now();
        let work = move || {
            let is_other = manifest::is_of_another_version(&theirs);
            (!is_other).then(|| manifest::union(&ours, &theirs, now))
        };
        let merged = self.cache.tasks().blocking("merge a manifest", work).await.flatten();
        Ok(merged.map(|union| union.map_or(upload, |union| Upload::bytes(union.into()))))
    }

    /// The frame first, if it stands apart; then the action that names it.
    async fn send_go(&self) -> Result<Option<Sent>, BackendError> {
        let Some(packed) = self.pack().await else { return Ok(None) };
        let mut entry = packed.entry;
        let mut bytes = 0;
        if let Some(frame) = packed.frame {
            (entry.frame, bytes) = self.send_frame(&entry, frame).await?;
        }
        let value = entry.encode();
        bytes += value.len() as u64;
        let took = self.put(&self.owed.key, Upload::bytes(value.into())).await?;
        Ok(Some(Sent { digest: entry.digest, bytes, took }))
    }

    async fn pack(&self) -> Option<Outgoing> {
        // The output and its frame.
        let cost = u32::try_from(self.owed.size.saturating_mul(2)).unwrap_or(u32::MAX);
        let cost = cost.clamp(1, PACKED_BYTES_MAX);
        let _bytes = self.packing.bytes.acquire_many(cost).await.expect("it is never closed");
        let _turn = self.packing.turns.acquire().await.expect("it is never closed");
        let (cache, key) = (self.cache.clone(), self.owed.key.clone());
        let tasks = self.cache.tasks();
        // Looked up at the common priority: locks are held for it.
        let look = move || cache.outgoing(&key);
        let (row, outgoing) = tasks.blocking("look for an output", look).await.flatten()?;
        let cache = self.cache.clone();
        tasks.polite("pack an output", move || cache.pack(&row, outgoing)).await.flatten()
    }

    /// Sends a frame, in a pack or alone, unless upstream has it; where it stands then, and what
    /// was sent here for it.
    async fn send_frame(
        &self,
        entry: &GoEntry,
        frame: Bytes,
    ) -> Result<(Frame, u64), BackendError> {
        let stored = entry.frame.clone();
        let Frame::Stored { digest, size } = stored else { return Ok((stored, 0)) };
        match self.cache.frames().get(self.realm.id, &entry.digest) {
            // A manifest says where it stood once, and does not tell frames of one output apart.
            Some(Standing::Packed(packed)) if self.is_there(&packed).await? => {
                return Ok((Frame::Packed(Packed { digest, ..packed }), 0));
            }
            Some(Standing::Packed(_)) => {
                self.cache.frames().remove(self.realm.id, &entry.digest);
            }
            Some(Standing::Alone { .. }) | None => {}
        }
        let packer = &self.packing.packer;
        if packer.takes(self.realm.id, &frame) {
            let _boarded = Boarded::new(self);
            let route = Route {
                cache: self.cache.clone(),
                realm: self.realm.clone(),
                upstream: self.upstream.clone(),
                uploads: self.uploads.clone(),
                boarded: self.boarded.clone(),
            };
            let output = (entry.digest, entry.size);
            let packed = packer.send(&route, output, (digest, frame)).await?;
            return Ok((Frame::Packed(packed), 0));
        }
        let key = Key::content(digest);
        let mut bytes = 0;
        if !self.cache.confirmed().contains(self.realm.id, &key, &digest) {
            bytes = size;
            self.put(&key, Upload::bytes(frame)).await?;
            self.cache.confirm(&self.realm, &key, digest);
        }
        self.cache.frames().insert(self.realm.id, entry.digest, Standing::Alone { digest, size });
        Ok((stored, bytes))
    }

    /// Whether upstream has this pack: known if it was sent from here or read, else asked.
    async fn is_there(&self, packed: &Packed) -> Result<bool, BackendError> {
        if packed.digest != Digest::EMPTY {
            return Ok(true);
        }
        let key = Key::content(packed.pack);
        if self.cache.confirmed().contains(self.realm.id, &key, &packed.pack) {
            return Ok(true);
        }
        let names = [self.realm.name_of(&key)];
        let is_there = match self.upstream.backend.contains(&names).await {
            Ok(there) => there == [true],
            // Object stores say so of what is not there to whom may not list them.
            Err(BackendError::Denied(_)) => false,
            Err(error) => return Err(error),
        };
        if is_there {
            self.cache.confirm(&self.realm, &key, packed.pack);
        }
        Ok(is_there)
    }

    /// Sends one body; how long that took, if it was small.
    async fn put(&self, key: &Key, upload: Upload) -> Result<Option<Duration>, BackendError> {
        let is_timed = upload.len <= TIMED_SIZE_MAX;
        let started = Instant::now();
        let backend: &dyn Backend = &*self.upstream.backend;
        backend.put(&self.realm.name_of(key), upload).await?;
        Ok(is_timed.then(|| started.elapsed()))
    }
}

/// An attempt that waits for its pack, as long as this lives.
struct Boarded<'a>(&'a Attempt);

impl<'a> Boarded<'a> {
    fn new(attempt: &'a Attempt) -> Self {
        attempt.boarded.fetch_add(1, Ordering::Relaxed);
        // There is a place for another.
        attempt.cache.wake_uploader();
        Self(attempt)
    }
}

impl Drop for Boarded<'_> {
    fn drop(&mut self) {
        self.0.boarded.fetch_sub(1, Ordering::Relaxed);
    }
}

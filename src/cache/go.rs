//! Go's entries: an action that names an output, which lies in the store as a file.
//!
//! The helper in another process writes outputs itself; here its puts are recorded, its misses are
//! looked up upstream, and outputs are read back for clients that do not see the store.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::realm::Realm;
use crate::cache::session::Session;
use crate::cache::{Cache, Share, policy};
use crate::entry::{Blob, Body, Digest, Found, Incoming, Key, Lookup, Meta, Why};
use crate::store::file::FileSource;
use crate::store::record::Row;
use crate::store::spool::{self, Spooled};
use crate::store::{StoreError, Stored};
use crate::telemetry::metrics::Protocol;

/// What a helper's put came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoPut {
    Recorded,
    /// The class is switched off: nothing was recorded.
    Off,
}

/// What helpers left is on the disk after so long, or taken over once more by the next start.
const ADOPTED_WITHIN: Duration = Duration::from_secs(10);

impl Cache {
    /// The output of an action, in place as a file of the store. With a session, upstream is asked
    /// only as long as that is expected to pay.
    pub async fn get_go(
        &self,
        realm: &Realm,
        session: Option<&Session>,
        action: &Digest,
        c_env: u64,
    ) -> Lookup {
        self.inner.metrics.of(Protocol::Go).gets.inc();
        let lookup = match self.local_go(realm, action).await {
            Some(blob) => Lookup::Hit(blob, Found::Disk),
            None => self.ask_for(realm, session, action).await,
        };
        let lookup = fitting(lookup, c_env);
        if let Some(session) = session {
            session.count(action, &lookup);
            if let Lookup::Hit(blob, found) = &lookup {
                session.used(*action);
                if matches!(found, Found::Upstream | Found::Coalesced) {
                    self.learn_saved(realm, &blob.meta);
                }
            }
        }
        self.count(Protocol::Go, &lookup);
        lookup
    }

    /// Makes sure that the output is there, unchanged; hashing it again may take a while.
    pub(super) async fn go_blob(&self, key: &Key, row: &Row) -> Option<Blob> {
        let (store, key) = (self.inner.store.clone(), key.clone());
        let work = move || store.find_go(&key);
        let row = if row.size <= super::READ_HERE_MAX {
            work()
        } else {
            self.inner.tasks.blocking("look at an output", work).await.flatten()
        }?;
        Some(Blob { meta: row.meta(), body: Body::Bytes(bytes::Bytes::new()) })
    }

    /// Records a put whose output the helper has placed already.
    pub fn put_go(
        &self,
        realm: &Realm,
        action: &Digest,
        meta: Meta,
        may_upload: bool,
    ) -> Result<GoPut, StoreError> {
        self.inner.metrics.of(Protocol::Go).puts.inc();
        let share = policy::share(meta.class, &self.inner.config.classes);
        if share == Share::Off {
            return Ok(GoPut::Off);
        }
        let key = Key::go(realm.id, *action);
        let mut meta = meta;
        if meta.writer.is_empty() {
            meta.writer = self.writer();
        }
        let own = policy::upstream_of(meta.class, &self.inner.config.classes);
        let to = realm.elsewhere_at(own).map_or(realm, |elsewhere| elsewhere);
        let owed = self.inner.realms.remember(to)
            && may_upload
            && share == Share::Upstream
            && policy::is_worth_a_place(meta.size, meta.cost_ms)
            && !self.inner.config.read_only
            && to.writes_to().is_some()
            && !self.inner.confirmed.contains(to.id, &key, &meta.digest);
        self.inner.store.record_go(&key, &meta, owed.then_some(to.id))?;
        self.want_room();
        self.inner.absent.remove(realm.id, &key);
        if owed {
            self.inner.owed.notify_one();
        }
        Ok(GoPut::Recorded)
    }

    /// Stores an output that came over the socket, then records the action.
    pub async fn put_go_bytes(
        &self,
        realm: &Realm,
        action: &Digest,
        meta: Meta,
        body: Incoming,
        may_upload: bool,
    ) -> Result<GoPut, super::PutError> {
        use super::PutError;
        let expected = meta.digest;
        let received = self.receive(body, policy::BODY_MAX).await?;
        let mut finished = received.map_err(|(error, _)| {
            self.want_room();
            PutError::NotStored(error)
        })?;
        if finished.digest != expected {
            return Err(PutError::Mismatch { expected, got: finished.digest });
        }
        let content = Key::content(expected);
        let there = self.inner.store.find(&content);
        let known = there.is_some_and(|row| {
            row.place == crate::store::record::Place::File
                && self.inner.store.is_sound(&content, &row)
        });
        if !known {
            self.inner.store.place(&mut finished).map_err(PutError::NotStored)?;
        }
        self.put_go(realm, action, meta, may_upload).map_err(PutError::NotStored)
    }

    /// An output's bytes, for clients that do not see the store.
    pub async fn output(&self, digest: &Digest) -> Option<Body> {
        let (store, key) = (self.inner.store.clone(), Key::content(*digest));
        let stored = self.inner.tasks.blocking("open an output", move || store.get(&key)).await;
        match stored.flatten()? {
            Stored::Bytes(_, bytes) => Some(Body::Bytes(bytes)),
            Stored::File(meta, file) => {
                let source = Box::new(FileSource { file, tasks: self.inner.tasks.clone() });
                Some(Body::Source { len: Some(meta.size), source })
            }
        }
    }

    /// The name that this machine signs its entries with.
    pub(super) fn writer(&self) -> Arc<str> {
        let name = rustix::system::uname();
        name.nodename().to_string_lossy().into()
    }

    pub fn writer_name(&self) -> String {
        self.writer().to_string()
    }

    /// Takes over what helpers left while no daemon was there; returns how many. Blocks.
    pub fn adopt_spool(&self) -> std::io::Result<u64> {
        let (mut adopted, mut done) = (0, Vec::new());
        for (path, Spooled { action, meta }) in spool::list(&self.inner.store.layout().spool())? {
            let output = self.inner.store.layout().file(&meta.digest);
            let whole = match crate::store::file::hash(&output) {
                Ok((digest, size)) => digest == meta.digest && size == meta.size,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
                // Another start may be able to.
                Err(_) => continue,
            };
            if whole && let Some(id) = super::action_of(&action) {
                let known = self.inner.realms.by_id(action.realm);
                let recorded = match known {
                    Some(realm) => self.put_go(&realm, &id, meta, true).map(drop),
                    // Written for settings that this daemon does not have: kept, not sent.
                    None => self.inner.store.record_go(&action, &meta, None),
                };
                if recorded.is_err() {
                    continue;
                }
                adopted += 1;
            }
            done.push(path);
        }
        // A power cut must not take the notes and leave nothing of what they say.
        if adopted == 0 || self.inner.store.sync(ADOPTED_WITHIN) {
            for path in done {
                std::fs::remove_file(path)?;
            }
        }
        Ok(adopted)
    }
}

/// A hit, unless it was built with another C toolchain than the client's.
fn fitting(lookup: Lookup, c_env: u64) -> Lookup {
    match lookup {
        Lookup::Hit(blob, _) if !policy::c_env_fits(blob.meta.c_env, c_env) => {
            Lookup::Miss(Why::Policy)
        }
        lookup => lookup,
    }
}

//! What this machine has: memory, then disk.

use std::fs::File;

use bytes::Bytes;

use crate::cache::{Cache, READ_HERE_MAX, memory};
use crate::entry::{Blob, Body, Digest, Found, Key, Meta};
use crate::store::Stored;
use crate::store::file::FileSource;
use crate::store::record::Row;

impl Cache {
    /// What this machine has: memory, then disk.
    pub(super) async fn local(&self, key: &Key) -> Option<(Blob, Found)> {
        let kept = self.inner.memory.get(key);
        if let Some((meta, bytes)) = &kept
            && let Some(bytes) = self.inner.memory.lend(bytes.clone())
        {
            let blob = Blob { meta: meta.clone(), body: Body::Bytes(bytes) };
            return Some((blob, Found::Memory));
        }
        if let Some(row) = self.inner.store.find(key)
            && let Some(blob) = self.load(key, &row).await
        {
            return Some((blob, Found::Disk));
        }
        // Enough is lent, and there is no file: a limit is no reason to miss.
        let (meta, bytes) = kept?;
        Some((Blob { meta, body: Body::Bytes(bytes) }, Found::Memory))
    }

    /// Reads an entry; small ones here, larger ones on a thread that may wait for the disk.
    pub(super) async fn load(&self, key: &Key, row: &Row) -> Option<Blob> {
        let is_small = row.size <= memory::ENTRY_MAX;
        let room = is_small.then(|| self.inner.memory.room(row.size)).flatten();
        let read = {
            let (store, key, row) = (self.inner.store.clone(), key.clone(), *row);
            // With the room for it, which is taken though the client has gone.
            move || {
                let (meta, file) = match store.load(&key, &row)? {
                    Stored::File(meta, file) if room.is_some() => (meta, file),
                    stored => return Some((stored, room)),
                };
                let bytes = read_whole(&meta, &file)?;
                if Digest::of(&bytes) == meta.digest {
                    return Some((Stored::Bytes(meta, bytes), room));
                }
                // The file was vouched for by its stamp; what goes into memory is served for long, so it
                // is looked at once more. Nobody seems to have touched it: a put must not be told that
                // it is there.
                store.disown(&key, &row, &file);
                None
            }
        };
        let stored = if row.size <= READ_HERE_MAX {
            read()
        } else {
            self.inner.tasks.blocking("read an entry", read).await.flatten()
        };
        let (stored, room) = stored?;
        match stored {
            Stored::Bytes(meta, bytes) => {
                self.inner.memory.offer(key, &meta, &bytes);
                if self.inner.store.find(key).is_none_or(|now| now.digest != row.digest) {
                    // Replaced or removed while it was read: what is newer must be what is kept.
                    self.inner.memory.remove(key);
                }
                let bytes = match room {
                    Some(room) => room.lend(bytes),
                    // One of the few that have no file.
                    None => bytes,
                };
                Some(Blob { meta, body: Body::Bytes(bytes) })
            }
            Stored::File(meta, file) => {
                let source = Box::new(FileSource { file, tasks: self.inner.tasks.clone() });
                let len = Some(meta.size);
                Some(Blob { meta, body: Body::Source { len, source } })
            }
        }
    }
}

/// A small file's bytes, so that the memory tier can keep them.
fn read_whole(meta: &Meta, file: &File) -> Option<Bytes> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; usize::try_from(meta.size).ok()?];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes.into())
}

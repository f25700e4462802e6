//! The store as another process uses it: Go's helper answers warm gets from the index and a stat,
//! and places outputs itself, without a hop to the daemon.

use std::io;
use std::path::{Path, PathBuf};

use crate::entry::{Digest, Key, Meta, RealmId};
use crate::store::file::Staged;
use crate::store::index::{Index, IndexError};
use crate::store::layout::{self, Layout};
use crate::store::record::{Place, Row};
use crate::store::spool::Spooled;

/// A store opened from outside the daemon.
pub struct Reader {
    layout: Layout,
    /// None where the index cannot or must not be read: the daemon is asked instead.
    index: Option<Index>,
    boot: u64,
}

/// An output that is in place and unchanged.
#[derive(Clone, Copy, Debug)]
pub struct GoHit {
    pub row: Row,
    /// Last noted use, so that the daemon need not be told of every one.
    pub touched: u32,
}

impl Reader {
    /// Whether the store in `dir` is the one that holds this nonce.
    pub fn sees(dir: &Path, nonce: &str) -> bool {
        std::fs::read_to_string(Layout::new(dir).nonce()).is_ok_and(|text| text == nonce)
    }

    /// Opens the store; `with_index` only in the daemon's PID namespace, because LMDB's table of
    /// readers knows processes by their numbers.
    pub fn open(dir: &Path, with_index: bool) -> Self {
        let layout = Layout::new(dir);
        let index = with_index.then(|| Index::open_to_read(&layout).ok()).flatten();
        Self { layout, index, boot: layout::boot() }
    }

    pub const fn has_index(&self) -> bool {
        self.index.is_some()
    }

    /// Opens the index if it was not there before.
    pub fn retry_index(&mut self) {
        if self.index.is_none() {
            self.index = Index::open_to_read(&self.layout).ok();
        }
    }

    /// The output of an action, nearest realm first; None means that the daemon knows more.
    pub fn go(&self, realms: &[RealmId], action: &Digest) -> Option<GoHit> {
        let reading = self.index.as_ref()?.read().ok()?;
        for realm in realms {
            let row = match reading.row(&Key::go(*realm, *action).encode()) {
                Ok(Some(row)) => row,
                Ok(None) => continue,
                Err(_) => return None,
            };
            let content = reading.row(&Key::content(row.digest).encode()).ok().flatten()?;
            if content.place != Place::File || content.condemned != 0 || content.size != row.size {
                return None;
            }
            let file = std::fs::metadata(self.layout.file(&row.digest)).ok()?;
            let unchanged =
                file.len() == row.size && layout::stamp(&file, self.boot) == content.stamp;
            return unchanged.then_some(GoHit { row, touched: row.touched.min(content.touched) });
        }
        None
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.layout.file(digest)
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub const fn boot(&self) -> u64 {
        self.boot
    }

    /// Whether an output is in place and known to be unchanged, so that it need not be written.
    pub fn has_output(&self, digest: &Digest, size: u64) -> bool {
        let Some(Ok(reading)) = self.index.as_ref().map(Index::read) else { return false };
        let Ok(Some(row)) = reading.row(&Key::content(*digest).encode()) else { return false };
        row.place == Place::File
            && row.condemned == 0
            && std::fs::metadata(self.layout.file(digest)).is_ok_and(|file| {
                file.len() == size && layout::stamp(&file, self.boot) == row.stamp
            })
    }

    /// An output on its way in; small ones stay in memory until they are placed.
    pub fn stage(&self) -> Staged {
        Staged::new(&self.layout, 256 << 10)
    }

    /// Leaves a put for the next daemon.
    pub fn spool(&self, realm: RealmId, action: Digest, meta: Meta) -> io::Result<()> {
        Spooled { action: Key::go(realm, action), meta }.write(&self.layout.spool())
    }

    /// Makes the directories that placing and spooling need, where no daemon has been yet.
    pub fn prepare(&self) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.layout.dir)?;
        builder.create(self.layout.tmp())?;
        builder.create(self.layout.spool())?;
        builder.create(self.layout.files())?;
        for first in 0..=255_u8 {
            builder.create(self.layout.files().join(format!("{first:02x}")))?;
        }
        Ok(())
    }
}

impl From<IndexError> for io::Error {
    fn from(error: IndexError) -> Self {
        Self::other(error)
    }
}

//! The index: LMDB tables from keys to rows, owed uploads, realms, and how far segments are covered.
//!
//! One process writes, in `commit`; any process on the machine reads without a hop. What is not
//! committed yet is not seen here: the overlay in `tail` holds it.
//!
//! Tables: `entries` key → row; `owed` number → owed upload; `owed_keys` key in its realm → number;
//! `realms` id → text; `segments` number → last touch; `meta` name → value. Values have checksums.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use heed::{Env, EnvFlags, EnvOpenOptions, RwTxn, WithoutTls};

use crate::entry::{Key, RealmId};
use crate::store::index::table::Table;
use crate::store::layout::Layout;
use crate::store::record::{Cursor, Row};
use crate::store::segment::Position;
use crate::store::trust;
use crate::tasks::sync::{AtomicBool, RwLock};

mod reading;
pub mod sound;
mod table;

pub use reading::Reading;

/// Address space reserved for the index; the file grows only as it is used.
#[cfg(target_pointer_width = "64")]
const MAP_SIZE: usize = 64 << 30;
#[cfg(not(target_pointer_width = "64"))]
const MAP_SIZE: usize = 1 << 30;

/// Helpers that read at the same time; a slot costs 64 bytes.
const READERS_MAX: u32 = 2048;

/// An upload that is owed to a realm's upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owed {
    pub realm: RealmId,
    pub key: Key,
    pub size: u64,
    /// Seconds since 1970.
    pub since: u32,
}

impl Owed {
    /// What makes two owed uploads the same: the key, in the realm that it is owed to.
    pub fn identity(&self) -> Vec<u8> {
        let mut bytes = self.key.encode();
        bytes[1..17].copy_from_slice(&self.realm.0);
        bytes
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.realm.0.to_vec();
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.since.to_le_bytes());
        out.extend_from_slice(&self.key.encode());
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let realm = RealmId(cursor.take()?);
        let size = cursor.u64()?;
        let since = cursor.u32()?;
        Some(Self { realm, size, since, key: Key::decode(cursor.0)? })
    }
}

/// A change of the index. Applied in the order in which it was made.
#[derive(Clone, Debug)]
pub enum Op {
    Put {
        key: Vec<u8>,
        row: Row,
    },
    /// With a position: only if the entry is still there.
    Remove {
        key: Vec<u8>,
        at: Option<Position>,
    },
    Owe {
        number: u64,
        owed: Owed,
    },
    Settle {
        number: u64,
    },
    Realm {
        id: RealmId,
        text: String,
    },
    SegmentTouched {
        segment: u32,
        at: u32,
    },
    SegmentGone {
        segment: u32,
    },
}

/// What a commit covers besides its operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Covered {
    /// Records before this position are in the index.
    pub position: Position,
    /// The number that the next owed upload gets.
    pub next_number: u64,
    pub owed_bytes: u64,
    /// Bytes of all files (segments are counted by their own sizes).
    pub file_bytes: u64,
    /// The last stop was orderly.
    pub clean: bool,
}

impl Covered {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(33);
        out.extend_from_slice(&self.position.segment.to_le_bytes());
        out.extend_from_slice(&self.position.offset.to_le_bytes());
        for n in [self.next_number, self.owed_bytes, self.file_bytes] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.push(u8::from(self.clean));
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        Some(Self {
            position: Position { segment: cursor.u32()?, offset: cursor.u32()? },
            next_number: cursor.u64()?,
            owed_bytes: cursor.u64()?,
            file_bytes: cursor.u64()?,
            clean: cursor.u8()? != 0,
        })
    }
}

/// Not `covered`, as before values had checksums: whoever reads them without finds nothing covered.
const COVERED: &[u8] = b"covered 2";

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("index: {0}")]
    Lmdb(#[from] heed::Error),
    #[error("index: {0}")]
    Io(#[from] io::Error),
    #[error("the index is not there yet")]
    Missing,
    #[error("the index is closed")]
    Closed,
}

impl IndexError {
    /// Whether the index itself is damaged, so that it must be built again from the segments.
    pub const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Lmdb(heed::Error::Mdb(
                heed::MdbError::Corrupted
                    | heed::MdbError::Invalid
                    | heed::MdbError::PageNotFound
                    | heed::MdbError::VersionMismatch
                    | heed::MdbError::Panic
            ))
        )
    }
}

impl IndexError {
    /// Whether LMDB has given the index up, as it does for good when a write of its head fails.
    const fn is_closed(&self) -> bool {
        matches!(self, Self::Closed | Self::Lmdb(heed::Error::Mdb(heed::MdbError::Panic)))
    }
}

/// The index. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Index {
    /// None for a moment, or for as long as a disk fails: LMDB gives an index up for good when it
    /// cannot tell what stands on disk.
    opened: Arc<RwLock<Option<Opened>>>,
    layout: Layout,
    /// Opening it again has found damage, which only a start mends.
    is_lost: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Opened {
    env: Env<WithoutTls>,
    tables: Tables,
}

#[derive(Clone, Copy)]
struct Tables {
    entries: Table,
    owed: Table,
    owed_keys: Table,
    realms: Table,
    segments: Table,
    meta: Table,
}

impl Opened {
    /// For writing, making what is not there.
    fn to_write(layout: &Layout) -> Result<Self, IndexError> {
        std::fs::create_dir_all(layout.index())?;
        let env = open_env(&layout.index(), EnvFlags::empty())?;
        // Slots of helpers that were killed would keep old pages from being used again.
        env.clear_stale_readers()?;
        let mut txn = env.write_txn()?;
        let tables = Tables::of(|name| Ok(Table(env.create_database(&mut txn, Some(name))?)))?;
        txn.commit()?;
        Ok(Self { env, tables })
    }

    fn to_read(layout: &Layout) -> Result<Self, IndexError> {
        let env = open_env(&layout.index(), EnvFlags::READ_ONLY)?;
        let txn = env.read_txn()?;
        let tables = Tables::of(|name| {
            env.open_database(&txn, Some(name))?.map(Table).ok_or(IndexError::Missing)
        })?;
        txn.commit()?;
        Ok(Self { env, tables })
    }
}

impl Tables {
    fn of(mut table: impl FnMut(&str) -> Result<Table, IndexError>) -> Result<Self, IndexError> {
        Ok(Self {
            entries: table("entries")?,
            owed: table("owed")?,
            owed_keys: table("owed_keys")?,
            realms: table("realms")?,
            segments: table("segments")?,
            meta: table("meta")?,
        })
    }
}

impl Index {
    fn new(opened: Opened, layout: &Layout) -> Self {
        Self {
            opened: Arc::new(RwLock::new(Some(opened))),
            layout: layout.clone(),
            is_lost: Arc::default(),
        }
    }

    /// Opens for writing, making what is not there.
    pub fn open(layout: &Layout) -> Result<Self, IndexError> {
        Ok(Self::new(Opened::to_write(layout)?, layout))
    }

    /// Opens for reading, from a process that is not the daemon.
    pub fn open_to_read(layout: &Layout) -> Result<Self, IndexError> {
        // What nobody vouches for could end this process.
        if !trust::is_sound(layout) {
            return Err(IndexError::Missing);
        }
        Ok(Self::new(Opened::to_read(layout)?, layout))
    }

    pub fn read(&self) -> Result<Reading, IndexError> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.as_ref().ok_or(IndexError::Closed)?;
        Ok(Reading { tables: opened.tables, txn: opened.env.clone().static_read_txn()? })
    }

    /// Applies the operations and what they cover, durably when this returns. An index that LMDB has
    /// given up is opened again.
    pub fn commit(&self, ops: &[Op], covered: &Covered) -> Result<(), IndexError> {
        match self.try_commit(ops, covered) {
            // The error that makes LMDB give up is the disk's.
            Err(error) if error.is_closed() || self.is_given_up() => {
                self.open_again()?;
                self.try_commit(ops, covered)
            }
            other => other,
        }
    }

    fn is_given_up(&self) -> bool {
        self.read().is_err_and(|error| error.is_closed())
    }

    fn try_commit(&self, ops: &[Op], covered: &Covered) -> Result<(), IndexError> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let Opened { env, tables } = opened.as_ref().ok_or(IndexError::Closed)?;
        let mut txn = env.write_txn()?;
        for op in ops {
            tables.apply(&mut txn, op)?;
        }
        tables.meta.put(&mut txn, COVERED, &covered.encode())?;
        txn.commit()?;
        Ok(())
    }

    /// Nobody vouches for what a failed write has left: it is read through first.
    fn open_again(&self) -> Result<(), IndexError> {
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(Opened { env, .. }) = opened.take() {
            env.prepare_for_closing();
        }
        trust::note_nothing(&self.layout);
        if let Err(error) = sound::check(&self.layout.index().join("data.mdb")) {
            self.is_lost.store(error.is_damage(), Ordering::Relaxed);
            return Err(io::Error::other(error).into());
        }
        // Fails while somebody still reads, and is tried again.
        *opened = Some(Opened::to_write(&self.layout)?);
        self.is_lost.store(false, Ordering::Relaxed);
        tracing::info!("store: the index was given up, and is open again");
        Ok(trust::note_open(&self.layout, 0)?)
    }

    /// Whether the index can only be built again, by another start.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// Drops every slot of a reader that no longer lives.
    pub fn clear_stale_readers(&self) {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = &*opened {
            // Failing leaves the slots to the next attempt.
            let _ = opened.env.clear_stale_readers();
        }
    }
}

impl Tables {
    fn apply(&self, txn: &mut RwTxn<'_>, op: &Op) -> Result<(), IndexError> {
        match op {
            Op::Put { key, row } => self.entries.put(txn, key, &row.encode())?,
            Op::Remove { key, at } => {
                let there = self.entries.get(txn, key)?.and_then(Row::decode);
                if at.is_none_or(|at| there.is_none_or(|row| row.at == at)) {
                    self.entries.delete(txn, key)?;
                }
            }
            Op::Owe { number, owed } => self.owe(txn, *number, owed)?,
            Op::Settle { number } => self.settle(txn, *number)?,
            Op::Realm { id, text } => self.realms.put(txn, &id.0, text.as_bytes())?,
            Op::SegmentTouched { segment, at } => {
                self.segments.put(txn, &segment.to_be_bytes(), &at.to_le_bytes())?;
            }
            Op::SegmentGone { segment } => {
                self.segments.delete(txn, &segment.to_be_bytes())?;
            }
        }
        Ok(())
    }

    /// A newer upload of the same key takes the place of an older one.
    fn owe(&self, txn: &mut RwTxn<'_>, number: u64, owed: &Owed) -> Result<(), IndexError> {
        let identity = owed.identity();
        let older = self.owed_keys.get(txn, &identity)?.map(<[u8]>::to_vec);
        if let Some(older) = older {
            self.owed.delete(txn, &older)?;
        }
        self.owed.put(txn, &number.to_be_bytes(), &owed.encode())?;
        self.owed_keys.put(txn, &identity, &number.to_be_bytes())?;
        Ok(())
    }

    fn settle(&self, txn: &mut RwTxn<'_>, number: u64) -> Result<(), IndexError> {
        let number = number.to_be_bytes();
        let Some(owed) = self.owed.get(txn, &number)?.and_then(Owed::decode) else {
            return Ok(());
        };
        let identity = owed.identity();
        self.owed.delete(txn, &number)?;
        if self.owed_keys.get(txn, &identity)? == Some(&number) {
            self.owed_keys.delete(txn, &identity)?;
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "LMDB maps its file; the store's lock keeps other writers out")]
fn open_env(dir: &Path, flags: EnvFlags) -> Result<Env<WithoutTls>, heed::Error> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(MAP_SIZE).max_dbs(8).max_readers(READERS_MAX);
    // SAFETY: the file is changed by LMDB alone: the directory is ours, mode 0700, on a local file
    // system (checked when the store is opened), and one daemon holds the store's lock.
    unsafe { options.flags(flags).open(dir) }
}

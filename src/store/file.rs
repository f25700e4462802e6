//! Bodies as files: staging under a temporary name, hashing while writing, placing by digest,
//! streaming out. Used by the daemon and, for Go's outputs, by the helper's process.
//!
//! A file is never written in place: readers hold paths and maps of it.

use std::fs::File;
use std::hash::{BuildHasher, Hasher as _, RandomState};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::entry::body::{Source, Streaming};
use crate::entry::{BodyError, Chunks, Digest, Hasher};
use crate::store::layout::{Layout, stamp};
use crate::store::record::Stamp;
use crate::tasks::Tasks;

/// Pieces in which a file is streamed: large enough that a piece costs more than asking for it.
const PIECE_MAX: u64 = 512 << 10;

static NEXT_NAME: AtomicU64 = AtomicU64::new(0);

/// A body on its way to disk. Dropping it discards what was written.
#[derive(Debug)]
pub struct Staged {
    layout: Layout,
    hasher: Hasher,
    /// Bytes so far, until they are more than `inline_max`.
    held: Vec<u8>,
    inline_max: usize,
    file: Option<(TempPath, Arc<File>)>,
}

/// A temporary name; the file behind it goes when this is dropped, unless it has moved.
#[derive(Debug)]
struct TempPath(Option<PathBuf>);

impl TempPath {
    fn rename(mut self, to: &Path) -> io::Result<()> {
        if let Some(path) = &self.0 {
            std::fs::rename(path, to)?;
        }
        self.0 = None;
        Ok(())
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Gone with the directory: that is fine.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A complete body, hashed, not placed yet.
#[derive(Debug)]
pub struct Finished {
    pub digest: Digest,
    pub size: u64,
    bytes: Vec<u8>,
    file: Option<(TempPath, Arc<File>)>,
}

impl Staged {
    /// Bodies up to `inline_max` bytes stay in memory until they are placed.
    pub fn new(layout: &Layout, inline_max: usize) -> Self {
        Self {
            layout: layout.clone(),
            hasher: Hasher::default(),
            held: Vec::new(),
            inline_max,
            file: None,
        }
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.write_unhashed(bytes)
    }

    /// Writes bytes that somebody else hashes; `finish_hashed` takes the result.
    pub fn write_unhashed(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            if self.held.len() + bytes.len() <= self.inline_max {
                self.held.extend_from_slice(bytes);
                return Ok(());
            }
            let (path, file) = create_temp(&self.layout.tmp())?;
            (&*file).write_all(&std::mem::take(&mut self.held))?;
            self.file = Some((path, file));
        }
        match &self.file {
            Some((_, file)) => (&**file).write_all(bytes),
            None => Ok(()),
        }
    }

    pub const fn len(&self) -> u64 {
        self.hasher.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file being written, for those who read along. None while the body is held in memory.
    pub fn file(&self) -> Option<Arc<File>> {
        self.file.as_ref().map(|(_, file)| file.clone())
    }

    /// Whether it would still be in memory, and not a file, with so many more bytes.
    pub fn holds(&self, more: u64) -> bool {
        self.file.is_none() && self.held.len() as u64 + more <= self.inline_max as u64
    }

    /// Gives the body up; what is known of its digest stays.
    pub fn into_hasher(self) -> Hasher {
        self.hasher
    }

    pub fn finish(self) -> Finished {
        let size = self.hasher.len();
        let digest = self.hasher.clone().finish();
        self.finish_hashed(digest, size)
    }

    pub fn finish_hashed(self, digest: Digest, size: u64) -> Finished {
        Finished { digest, size, bytes: self.held, file: self.file }
    }
}

impl Finished {
    /// A body that is here as a whole; hashes it.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self { digest: Digest::of(&bytes), size: bytes.len() as u64, bytes, file: None }
    }

    /// The body, if it was small enough to be held in memory.
    pub fn inline(&self) -> Option<&[u8]> {
        self.file.is_none().then_some(&self.bytes)
    }

    pub fn into_inline(self) -> Vec<u8> {
        self.bytes
    }

    /// Puts the body in place under its digest. The path is complete when it appears; one that was there may
    /// have been acknowledged long ago, and a power cut must not leave less than it was.
    pub fn place(&mut self, layout: &Layout, boot: u64) -> io::Result<(PathBuf, Stamp)> {
        let is_there = layout.file(&self.digest).try_exists().unwrap_or(true);
        self.place_as(layout, boot, is_there)
    }

    /// The same where nothing has to last.
    pub fn place_in_view(&mut self, layout: &Layout, boot: u64) -> io::Result<(PathBuf, Stamp)> {
        self.place_as(layout, boot, false)
    }

    fn place_as(
        &mut self,
        layout: &Layout,
        boot: u64,
        is_synced: bool,
    ) -> io::Result<(PathBuf, Stamp)> {
        let target = layout.file(&self.digest);
        let (temp, file) = match self.file.take() {
            Some(staged) => staged,
            None => {
                // Where it is to be: a move to another directory waits for all others of the file
                // system, and one directory for all new files is a lock for all writers.
                let beside = target.parent().unwrap_or(&target);
                let (path, file) = create_temp(beside)?;
                (&*file).write_all(&self.bytes)?;
                (path, file)
            }
        };
        if is_synced {
            file.sync_data()?;
        }
        temp.rename(&target)?;
        Ok((target, stamp(&file.metadata()?, boot)))
    }
}

/// Puts a synced copy in a file's place, for one that could not be synced. An error: it is as it was. False:
/// it cannot be read any more, and nothing helps.
pub(super) fn renew(path: &Path) -> io::Result<bool> {
    let mut from = match File::open(path) {
        Err(error) if !may_pass(&error) => return Ok(false),
        other => other?,
    };
    let (temp, file) = create_temp(path.parent().unwrap_or(path))?;
    let mut piece = vec![0; 1 << 20];
    loop {
        match from.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => (&*file).write_all(&piece[..n])?,
            Err(error) if !may_pass(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    file.sync_data()?;
    temp.rename(path)?;
    // Its new name, too.
    file.sync_all()?;
    Ok(true)
}

/// Of this process and no other: their own numbers are the same in each container.
pub fn own_number() -> u64 {
    static OWN_NUMBER: OnceLock<u64> = OnceLock::new();
    *OWN_NUMBER.get_or_init(|| RandomState::new().build_hasher().finish())
}

/// Whether who could not read may be able to in a moment: nothing is wrong with what is there.
pub(super) fn may_pass(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::INTR,
        Errno::AGAIN,
        Errno::ACCESS,
        Errno::PERM,
        Errno::NOSPC,
    ];
    passing.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// No name of a digest, so that the sweep of orphans knows it if its writer dies.
fn create_temp(dir: &Path) -> io::Result<(TempPath, Arc<File>)> {
    let name = NEXT_NAME.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("{}-{:x}-{name}", std::process::id(), own_number()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o444).open(&path)?;
    Ok((TempPath(Some(path)), Arc::new(file)))
}

/// Hashes a whole file.
pub fn hash(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::default();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            n => hasher.update(&piece[..n]),
        }
    }
    let size = hasher.len();
    Ok((hasher.finish(), size))
}

/// A file as the source of a body.
#[derive(Debug, Clone)]
pub struct FileSource {
    pub file: Arc<File>,
    pub tasks: Tasks,
}

impl Source for FileSource {
    fn stream(&self, range: Range<u64>) -> Chunks {
        type State = (Arc<File>, Tasks, Range<u64>, Streaming);
        let state = (self.file.clone(), self.tasks.clone(), range, Streaming::begin());
        let next = |(file, tasks, range, streaming): State| async move {
            if range.start >= range.end {
                return Ok(None);
            }
            let piece = streaming.piece(PIECE_MAX.min(range.end - range.start));
            let (source, at, len) = (file.clone(), range.start, piece.room());
            let bytes = tasks
                .blocking("read file", move || Ok(piece.hold(read_piece(&source, at, len)?)))
                .await
                .unwrap_or_else(|| Err(BodyError::Broken("reading panicked".into())))?;
            Ok(Some((bytes, (file, tasks, at + len..range.end, streaming))))
        };
        Box::pin(futures_util::stream::try_unfold(state, next))
    }
}

fn read_piece(file: &File, at: u64, len: u64) -> Result<Vec<u8>, BodyError> {
    let mut piece = vec![0; usize::try_from(len).unwrap_or(0)];
    match file.read_exact_at(&mut piece, at) {
        Ok(()) => Ok(piece),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(BodyError::Truncated { got: at })
        }
        Err(error) => Err(BodyError::Broken(error.to_string())),
    }
}

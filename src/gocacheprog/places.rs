//! Where outputs are: the daemon's store where we see it, a view of our own where we do not, and a
//! refuge for the case that neither can be written.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use crate::entry::{Digest, RealmId};
use crate::gocacheprog::HelperConfig;
use crate::store::file::{Finished, own_number};
use crate::store::layout::{self, Layout};
use crate::store::reader::Reader;
use crate::units::{Clock, Timestamp};
use crate::wire::go::Welcome;

/// Above this a view loses its old files.
const VIEW_BYTES_MAX: u64 = 2 << 30;
/// What is younger stays: go hands out paths that others read long after a build.
const VIEW_AGE_MIN: Duration = Duration::from_secs(2 * 86_400);
/// A view is looked through no more often than this, and no further than so many files.
const TRIM_EVERY: Duration = Duration::from_secs(3_600);
const TRIM_FILES_MAX: usize = 200_000;
/// Refuges of helpers that ended this long ago are removed.
const REFUGE_AGE_MAX: Duration = Duration::from_secs(86_400);

/// The realms of a client that no daemon has told any: what it is told to write, and what it trusts.
/// The daemon makes the same ones of the same words.
pub fn realms(upstream: Option<&str>, namespace: &str, trust: Option<&str>) -> Vec<RealmId> {
    let upstream = upstream.unwrap_or_default();
    let trust = trust.filter(|trust| *trust != namespace);
    let own = RealmId::of(upstream, namespace, trust);
    std::iter::once(own).chain(trust.map(|trust| RealmId::of(upstream, trust, None))).collect()
}

/// How outputs get to the daemon, if they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// By being in its store; what it does not learn now is spooled there.
    Store,
    /// Over the socket.
    Bytes,
    /// Not at all: its store may be laid out in ways that we do not know.
    Nothing,
}

/// The directory in use and what may be done with it.
pub(super) struct Places {
    pub(super) reader: Arc<Reader>,
    pub(super) sharing: Sharing,
    /// Read in this order; the first one is written.
    pub(super) realms: Vec<RealmId>,
}

impl Places {
    /// As a daemon's welcome says. The index that `before` has open is kept: LMDB wants a directory
    /// opened no more than once in a process.
    pub(super) fn welcomed(
        config: &HelperConfig,
        welcome: &Welcome,
        before: Option<&Self>,
    ) -> Self {
        let store = Path::new(&welcome.store);
        let realms = welcome.realms.iter().filter_map(|text| RealmId::from_hex(text)).collect();
        if !Reader::sees(store, &welcome.nonce) || !is_writable(store) {
            return Self { reader: view(config), sharing: Sharing::Bytes, realms };
        }
        let same = before.filter(|b| b.reader.layout().dir == store && b.reader.has_index());
        let reader = match same {
            Some(before) => before.reader.clone(),
            None => {
                let with_index = welcome.pid_namespace == pid_namespace("self");
                Arc::new(Reader::open(store, with_index))
            }
        };
        Self { reader, sharing: Sharing::Store, realms }
    }

    /// Without a daemon: the store that the next one will use. The index is read if nobody writes
    /// it (`is_nobody_there`) or whoever does is in our PID namespace.
    pub(super) fn alone(config: &HelperConfig, is_nobody_there: bool) -> Self {
        let layout = Layout::new(&config.store_dir);
        if !layout.is_of_this_format() {
            return Self::apart(config);
        }
        let with_index = is_nobody_there || holder_is_near(&layout);
        let reader = Arc::new(Reader::open(&config.store_dir, with_index));
        prepare(&reader);
        Self { reader, sharing: Sharing::Store, realms: config.realms.clone() }
    }

    /// Beside a daemon that we cannot talk to.
    pub(super) fn apart(config: &HelperConfig) -> Self {
        Self { reader: view(config), sharing: Sharing::Nothing, realms: Vec::new() }
    }

    /// The path of an output that is in place, as far as its length tells.
    pub(super) fn present(&self, output: &Digest, size: u64) -> Option<PathBuf> {
        let path = self.reader.path(output);
        std::fs::metadata(&path).is_ok_and(|meta| meta.len() == size).then_some(path)
    }

    /// Puts a small output in place; the caller has hashed it.
    pub(super) fn place_bytes(&self, output: &Digest, bytes: &[u8]) -> io::Result<PathBuf> {
        let mut staged = self.reader.stage();
        staged.write_unhashed(bytes)?;
        let mut finished = staged.finish_hashed(*output, bytes.len() as u64);
        self.place(&mut finished)
    }

    /// Puts an output in place; what is in a view need not last.
    pub(super) fn place(&self, finished: &mut Finished) -> io::Result<PathBuf> {
        let (layout, boot) = (self.reader.layout(), self.reader.boot());
        let placed = match self.sharing {
            Sharing::Store => finished.place(layout, boot),
            Sharing::Bytes | Sharing::Nothing => finished.place_in_view(layout, boot),
        };
        placed.map(|(path, _)| path)
    }

    /// Keeps a view from growing without end. Quick, and only now and then.
    pub(super) fn trim(&self, clock: &Clock) {
        if self.sharing == Sharing::Store {
            return;
        }
        let marker = self.reader.layout().dir.join("trimmed");
        if age(&marker, clock).is_some_and(|age| age < TRIM_EVERY) {
            return;
        }
        // Without the marker the next helper looks again, which is no harm.
        let _ = std::fs::write(&marker, "");
        trim_files(&self.reader.layout().files(), VIEW_BYTES_MAX, clock);
    }
}

fn view(config: &HelperConfig) -> Arc<Reader> {
    let reader = Reader::open(&config.view_dir, false);
    prepare(&reader);
    Arc::new(reader)
}

/// Makes the directories unless they are there. A failure shows when the first output is placed,
/// and leads to the refuge.
fn prepare(reader: &Reader) {
    let layout = reader.layout();
    let is_complete =
        layout.tmp().is_dir() && layout.spool().is_dir() && layout.files().join("ff").is_dir();
    if !is_complete {
        let _ = reader.prepare();
    }
}

fn is_writable(store: &Path) -> bool {
    let layout = Layout::new(store);
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    [layout.tmp(), layout.files(), layout.spool()]
        .iter()
        .all(|dir| rustix::fs::access(dir, access).is_ok())
}

/// The PID namespace of a process, empty where there are none.
pub(super) fn pid_namespace(process: &str) -> String {
    let link = std::fs::read_link(format!("/proc/{process}/ns/pid"));
    link.map(|link| link.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether the process that holds the store's lock is one that we can see.
fn holder_is_near(layout: &Layout) -> bool {
    let Some(pid) = layout::holder(&layout.dir) else { return false };
    let ours = pid_namespace("self");
    !ours.is_empty() && pid_namespace(&pid.to_string()) == ours
}

fn age(path: &Path, clock: &Clock) -> Option<Duration> {
    let modified = std::fs::symlink_metadata(path).ok()?.modified().ok()?;
    let since = modified.duration_since(UNIX_EPOCH).ok()?;
    Some(clock.now().since(Timestamp::from_seconds(since.as_secs())))
}

fn trim_files(files: &Path, most: u64, clock: &Clock) {
    let dirs = std::fs::read_dir(files).into_iter().flatten().flatten();
    let entries =
        dirs.flat_map(|dir| std::fs::read_dir(dir.path()).into_iter().flatten().flatten());
    let mut found: Vec<_> = entries
        .take(TRIM_FILES_MAX)
        .filter_map(|entry| {
            let path = entry.path();
            Some((age(&path, clock)?, entry.metadata().ok()?.len(), path))
        })
        .collect();
    found.sort_by_key(|(age, ..)| std::cmp::Reverse(*age));
    let mut total: u64 = found.iter().map(|(_, size, _)| size).sum();
    for (age, size, path) in found {
        if total <= most || age < VIEW_AGE_MIN {
            return;
        }
        if std::fs::remove_file(path).is_ok() {
            total -= size;
        }
    }
}

/// A directory for outputs when the store cannot take them: the disk is full, or not ours.
///
/// Its helper does not remove it: `go list -export` prints paths that others read after go has
/// ended. A later helper that needs a refuge removes those a day old.
pub(super) struct Refuge {
    temp_dir: PathBuf,
    pid: u32,
    made: Mutex<Option<PathBuf>>,
}

impl Refuge {
    pub(super) fn new(temp_dir: &Path, pid: u32) -> Self {
        Self { temp_dir: temp_dir.to_owned(), pid, made: Mutex::new(None) }
    }

    pub(super) fn dir(&self, clock: &Clock) -> io::Result<PathBuf> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dir) = &*made {
            return Ok(dir.clone());
        }
        let uid = rustix::process::geteuid().as_raw();
        let prefix = format!("larder-{uid}-");
        self.remove_old(&prefix, uid, clock);
        let dir = self.temp_dir.join(format!("{prefix}{}-{:x}", self.pid, own_number()));
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            // Left by an earlier process of the same number; anybody else's is not used.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let meta = std::fs::symlink_metadata(&dir)?;
                if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o077 != 0 {
                    return Err(error);
                }
            }
            result => result?,
        }
        *made = Some(dir.clone());
        Ok(dir)
    }

    fn remove_old(&self, prefix: &str, uid: u32, clock: &Clock) {
        for entry in std::fs::read_dir(&self.temp_dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
            let number = number.and_then(|rest| rest.split('-').next());
            if number.is_none_or(|number| number.parse::<u32>().is_err()) {
                continue;
            }
            let is_ours = entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == uid);
            if is_ours && age(&entry.path(), clock).is_some_and(|age| age > REFUGE_AGE_MAX) {
                // Another helper may be doing the same.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_loses_its_oldest_files_but_never_young_ones() {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("files");
        std::fs::create_dir_all(files.join("ab")).unwrap();
        let clock = Clock::manual(Timestamp::from_seconds(2_000_000_000));
        for (name, days) in [("old", 9), ("older", 19), ("young", 1)] {
            let path = files.join("ab").join(name);
            std::fs::write(&path, [0; 10]).unwrap();
            let at = UNIX_EPOCH + Duration::from_secs(2_000_000_000 - days * 86_400);
            std::fs::File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
        }
        trim_files(&files, 30, &clock);
        assert!(files.join("ab/older").exists(), "within the limit nothing goes");
        trim_files(&files, 25, &clock);
        assert!(!files.join("ab/older").exists() && files.join("ab/old").exists());
        trim_files(&files, 0, &clock);
        assert!(!files.join("ab/old").exists() && files.join("ab/young").exists());
    }

    #[test]
    fn a_refuge_is_private_and_outlives_its_helper_by_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let made = Refuge::new(dir.path(), 41).dir(&clock).unwrap();
        assert_eq!(std::fs::metadata(&made).unwrap().mode() & 0o777, 0o700);
        Refuge::new(dir.path(), 42).dir(&clock).unwrap();
        assert!(made.exists());
        let later = Clock::manual(Timestamp(clock.now().0 + 2 * 86_400 * 1_000_000_000));
        Refuge::new(dir.path(), 43).dir(&later).unwrap();
        assert!(!made.exists());
    }
}

//! The store's directory: names, the lock, the format's version, who may own it, and which file
//! systems can hold it.
//!
//! ```text
//! format      version of everything below
//! lock        held by the one daemon; its process number inside
//! nonce       random text: whoever reads the same sees the same store
//! seal        random text that nobody is told: records bear its mark
//! index.trust whether the index may be mapped
//! index/      LMDB            segments/   records          files/ab/…  bodies, by digest
//! tmp/        what is being written; emptied at start      spool/      helpers' puts without a daemon
//! ```

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::entry::Digest;
use crate::store::record::Stamp;
use crate::store::segment::Seal;

/// A body that is being written grows more often than this.
const TMP_FOR: Duration = Duration::from_secs(600);
/// In the lock's file, behind the process, when that takes nothing in any more.
const ENDING: &str = "ending";
const FORMAT: &str = "larder store 2\n";

/// Why a store cannot be opened. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error(
        "store {dir}: {source}; check the path, its permissions and free space, or name another with --store"
    )]
    Io { dir: PathBuf, source: io::Error },
    #[error(
        "store {dir} is in use by another larder (process {pid}); stop it with `larder stop`, or name another store with --store"
    )]
    InUse { dir: PathBuf, pid: String, is_ending: bool },
    #[error("store {dir} belongs to user {owner}, not to {uid}; name another with --store")]
    NotOurs { dir: PathBuf, owner: u32, uid: u32 },
    #[error(
        "store {dir} was written by another version (`{found}`); move it aside or name another with --store"
    )]
    Format { dir: PathBuf, found: String },
    #[error(
        "store {dir} is on {kind}, which cannot hold the index safely; name a local directory with --store"
    )]
    FileSystem { dir: PathBuf, kind: &'static str },
}

/// Paths within a store.
#[derive(Clone, Debug)]
pub struct Layout {
    pub dir: PathBuf,
}

impl Layout {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }
    pub fn index(&self) -> PathBuf {
        self.dir.join("index")
    }
    pub fn segments(&self) -> PathBuf {
        self.dir.join("segments")
    }
    pub fn files(&self) -> PathBuf {
        self.dir.join("files")
    }
    pub fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }
    pub fn spool(&self) -> PathBuf {
        self.dir.join("spool")
    }
    pub fn notes(&self) -> PathBuf {
        self.dir.join("notes")
    }
    /// Whether the index may be mapped.
    pub fn trust(&self) -> PathBuf {
        self.dir.join("index.trust")
    }
    pub fn nonce(&self) -> PathBuf {
        self.dir.join("nonce")
    }

    /// What this store marks its records with; made if it is not there, and then no record is one.
    pub fn seal(&self) -> io::Result<Seal> {
        let path = self.dir.join("seal");
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.bytes().all(|byte| byte == 0) => return Ok(Seal::new(&text)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {}
        }
        let text = noise()?;
        write_whole(&path, &text)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(Seal::new(&text))
    }

    /// Where the body with this digest is, a pure function of the digest, without an extension.
    pub fn file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        let mut path = self.dir.join("files");
        path.push(&hex[..2]);
        path.push(&hex[2..]);
        path
    }

    /// Whether what is in the directory, if anything, is laid out as this version does it.
    pub fn is_of_this_format(&self) -> bool {
        match std::fs::read_to_string(self.dir.join("format")) {
            Ok(text) => text == FORMAT,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Makes or checks the directory and takes the lock. The lock lives as long as the file.
    pub fn open(&self) -> Result<File, LayoutError> {
        let io = |source| LayoutError::Io { dir: self.dir.clone(), source };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.dir).map_err(io)?;
        self.check_owner()?;
        check_file_system(&self.dir)?;
        let lock = self.lock()?;
        self.check_format()?;
        for dir in [self.index(), self.segments(), self.files(), self.spool()] {
            builder.create(dir).map_err(io)?;
        }
        for first in 0..=255_u8 {
            builder.create(self.files().join(format!("{first:02x}"))).map_err(io)?;
        }
        builder.create(self.tmp()).map_err(io)?;
        self.clear_tmp().map_err(io)?;
        Ok(lock)
    }

    /// Removes what nobody has written to for a while: it was never acknowledged. What is younger may
    /// be on its way: helpers go on writing while daemons come and go.
    pub fn clear_tmp(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(self.tmp())? {
            let entry = entry?;
            // Renamed or removed meanwhile: that is its writer's business.
            let Ok(meta) = entry.metadata() else { continue };
            let age = meta.modified().ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > TMP_FOR) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    fn check_owner(&self) -> Result<(), LayoutError> {
        let io = |source| LayoutError::Io { dir: self.dir.clone(), source };
        let meta = std::fs::metadata(&self.dir).map_err(io)?;
        let uid = rustix::process::geteuid().as_raw();
        if meta.uid() != uid {
            return Err(LayoutError::NotOurs { dir: self.dir.clone(), owner: meta.uid(), uid });
        }
        if meta.permissions().mode() & 0o077 != 0 {
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(&self.dir, private).map_err(io)?;
        }
        Ok(())
    }

    fn lock(&self) -> Result<File, LayoutError> {
        let io = |source| LayoutError::Io { dir: self.dir.clone(), source };
        let path = self.dir.join("lock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        let how = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        if rustix::fs::flock(&file, how).is_err() {
            let mut text = String::new();
            // What cannot be read is not known.
            let _ = file.read_to_string(&mut text);
            let mut words = text.split_whitespace();
            let pid = words.next().unwrap_or("unknown").to_owned();
            let is_ending = words.next() == Some(ENDING);
            return Err(LayoutError::InUse { dir: self.dir.clone(), pid, is_ending });
        }
        file.set_len(0).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(file)
    }

    /// Tells who finds the store in use that it is so for a moment only. The lock must be ours.
    pub fn note_ending(&self) {
        let lock = File::options().append(true).open(self.dir.join("lock"));
        // They would not wait for it.
        let _ = lock.and_then(|mut lock| writeln!(lock, "{ENDING}"));
    }

    fn check_format(&self) -> Result<(), LayoutError> {
        let io = |source| LayoutError::Io { dir: self.dir.clone(), source };
        let path = self.dir.join("format");
        match std::fs::read_to_string(&path) {
            Ok(text) if text == FORMAT => Ok(()),
            Ok(text) if !text.bytes().all(|byte| byte == 0) => {
                let found = text.chars().take(40).collect::<String>().trim().to_owned();
                Err(LayoutError::Format { dir: self.dir.clone(), found })
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(error)),
            // New, or the power went before what was written here was on the disk.
            Ok(_) | Err(_) => {
                let sync = || File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io);
                noise().and_then(|text| write_whole(&self.nonce(), &text)).map_err(io)?;
                // Nobody looks for what a store needs where the format is.
                sync()?;
                write_whole(&path, FORMAT).map_err(io)?;
                sync()
            }
        }
    }
}

/// Text that nobody can guess.
fn noise() -> io::Result<String> {
    let mut noise = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut noise)?;
    Ok(Digest(noise).to_string())
}

/// Writes a small file so that a power cut leaves it as it was, or whole.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(beside, path)
}

/// File systems on which shared memory maps of one file are not one file.
#[cfg(target_os = "linux")]
fn check_file_system(dir: &Path) -> Result<(), LayoutError> {
    let io = |source| LayoutError::Io { dir: dir.to_owned(), source };
    let kind = match rustix::fs::statfs(dir).map_err(|e| io(e.into()))?.f_type {
        0x6969 => "NFS",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB",
        0x0102_1997 => "9p",
        0x00c3_6400 => "Ceph",
        0x6573_5546 => "FUSE",
        _ => return Ok(()),
    };
    Err(LayoutError::FileSystem { dir: dir.to_owned(), kind })
}

#[cfg(not(target_os = "linux"))]
fn check_file_system(_dir: &Path) -> Result<(), LayoutError> {
    Ok(())
}

/// Whether a daemon holds the store in this directory.
pub fn is_in_use(dir: &Path) -> bool {
    let how = rustix::fs::FlockOperation::NonBlockingLockShared;
    File::open(dir.join("lock")).is_ok_and(|file| rustix::fs::flock(&file, how).is_err())
}

/// The process that holds the store in this directory, or was the last one that did.
pub fn holder(dir: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(dir.join("lock")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// This boot of the machine, as a number that another boot does not share.
pub fn boot() -> u64 {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digest = Digest::of(&id);
    u64::from_le_bytes(digest.0[..8].try_into().expect("a digest has 32 bytes"))
}

/// The stamp of a file as it is now.
pub fn stamp(meta: &std::fs::Metadata, boot: u64) -> Stamp {
    let nanos = |seconds: i64, nanos: i64| {
        seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos).cast_unsigned()
    };
    Stamp {
        inode: meta.ino(),
        mtime: nanos(meta.mtime(), meta.mtime_nsec()),
        ctime: nanos(meta.ctime(), meta.ctime_nsec()),
        boot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_on_the_store_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("store"));
        let held = layout.open().unwrap();
        let text = layout.open().unwrap_err().to_string();
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        assert!(text.contains("larder stop"), "{text}");
        drop(held);
        layout.open().unwrap();
    }

    #[test]
    fn a_store_of_another_version_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("format"), "larder store 9\n").unwrap();
        let error = Layout::new(dir.path()).open().unwrap_err();
        assert!(matches!(error, LayoutError::Format { .. }), "{error}");
    }

    #[test]
    fn a_path_has_no_extension_and_follows_from_the_digest() {
        let path = Layout::new(Path::new("/s")).file(&Digest::EMPTY);
        assert!(path.starts_with("/s/files/e3/"));
        assert_eq!(path.extension(), None);
    }
}

//! Starting a daemon where none runs: one at a time, and nothing of the starter's leaks into it.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::units::Clock;

/// How long to rest between two looks at the socket.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How a daemon is started.
#[derive(Clone, Debug)]
pub struct StartDaemon {
    pub exe: PathBuf,
    pub args: Vec<OsString>,
    /// All of the daemon's environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where its standard error goes.
    pub log: PathBuf,
    /// Where it will listen.
    pub socket: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot start a daemon: {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "cannot start a daemon: {path} belongs to or can be written by others; name another with --socket"
    )]
    NotOurs { path: PathBuf },
    #[error("the daemon ended at once; see {log}")]
    Ended { log: PathBuf },
    #[error("the daemon did not answer at {socket} in time; see {log}")]
    Late { socket: PathBuf, log: PathBuf },
}

/// Starts a daemon unless one answers at the socket; returns when one does. Of two starters at
/// once one starts it and the other waits: the lock beside the socket is taken before.
pub fn start_daemon(settings: &StartDaemon, within: Duration) -> Result<(), StartError> {
    let clock = Clock::system();
    let late = || StartError::Late { socket: settings.socket.clone(), log: settings.log.clone() };
    prepare_dir(&settings.socket)?;
    let lock_path = settings.socket.with_extension("starting");
    let lock = private_file(&lock_path)
        .map_err(|source| StartError::Io { path: lock_path.clone(), source })?;
    while rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        if clock.elapsed() > within {
            return Err(late());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    if answers(&settings.socket) {
        return Ok(());
    }
    let mut child = spawn(settings)?;
    loop {
        let ended = matches!(child.try_wait(), Ok(Some(_)));
        if answers(&settings.socket) {
            return Ok(());
        }
        if ended {
            return Err(StartError::Ended { log: settings.log.clone() });
        }
        if clock.elapsed() > within {
            return Err(late());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

fn private_file(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o600).open(path)
}

/// Whoever can write in the socket's directory can stand in for the daemon: it must be ours alone.
fn prepare_dir(socket: &Path) -> Result<(), StartError> {
    let dir = socket.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let io = |source| StartError::Io { path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    let meta = std::fs::symlink_metadata(dir).map_err(io)?;
    let is_ours = meta.uid() == rustix::process::geteuid().as_raw();
    if !meta.is_dir() || !is_ours || meta.permissions().mode() & 0o022 != 0 {
        return Err(StartError::NotOurs { path: dir.to_owned() });
    }
    Ok(())
}

/// The daemon begins a session of its own; until then it is a child like any other.
fn spawn(settings: &StartDaemon) -> Result<Child, StartError> {
    if let Some(dir) = settings.log.parent() {
        // What comes of it is seen when the file is opened.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    }
    // Nobody needs to go without a cache for want of a place for its log.
    let log = private_file(&settings.log).map_or_else(|_| Stdio::null(), Stdio::from);
    Command::new(&settings.exe)
        .args(&settings.args)
        .env_clear()
        .envs(settings.env.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|source| StartError::Io { path: settings.exe.clone(), source })
}

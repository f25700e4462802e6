//! The log: where it goes, how errors are printed.
//!
//! ERROR: someone must act. WARN: we degraded. INFO: start, stop, state changes. DEBUG: a request.
//! Never a body, a token, or a URL with credentials.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::EnvFilter;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// As tracing's filters are written: `info`, `larder::store=debug`.
    pub filter: String,
    pub format: Format,
    /// None is stderr.
    pub file: Option<PathBuf>,
}

/// A log that has grown past this is moved aside, one generation kept.
const ROTATE_BYTES: u64 = 8 << 20;

/// Starts logging. Says what is wrong with the filter or the file.
pub fn start(config: &Config) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| {
        format!("log filter `{}`: {error}; write for example `info`", config.filter)
    })?;
    // A line that cannot be written is lost. The library would say so on stderr, which ends whoever
    // logs where that cannot be written either: a full disk, a terminal that is gone.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    let result = match &config.file {
        None => {
            let builder = builder.with_writer(io::stderr).with_ansi(is_terminal());
            match config.format {
                Format::Text => builder.try_init(),
                Format::Json => builder.json().try_init(),
            }
        }
        Some(path) => {
            let file = Rotating::open(path, ROTATE_BYTES)
                .map_err(|error| format!("log {}: {error}", path.display()))?;
            let builder = builder.with_writer(Arc::new(file)).with_ansi(false);
            match config.format {
                Format::Text => builder.try_init(),
                Format::Json => builder.json().try_init(),
            }
        }
    };
    // Another subscriber is there only in tests, where it may stay.
    drop(result);
    Ok(())
}

/// Whether a log can be written there.
pub fn can_write(path: &Path) -> bool {
    open(path).is_ok()
}

fn is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stderr())
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    File::options().append(true).create(true).open(path)
}

/// A log file that never grows without end: the line that is too much moves it aside.
struct Rotating {
    path: PathBuf,
    most: u64,
    now: Mutex<Growing>,
}

struct Growing {
    file: File,
    len: u64,
}

impl Rotating {
    fn open(path: &Path, most: u64) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), most, now: Mutex::new(Growing::open(path)?) })
    }
}

impl Growing {
    fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        Ok(Self { len: file.metadata()?.len(), file })
    }

    /// Another process with the same log may have moved it: then a new one is there already.
    fn rotate(&mut self, path: &Path) {
        let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let ours = self.file.metadata().map(id).ok();
        if ours.is_some() && ours == std::fs::metadata(path).map(id).ok() {
            // Failing leaves it where it is, and growing.
            let _ = std::fs::rename(path, path.with_extension("log.1"));
        }
        match Self::open(path) {
            Ok(new) => *self = new,
            // Tried again after as much again.
            Err(_) => self.len = 0,
        }
    }
}

impl Write for &Rotating {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.len >= self.most {
            now.rotate(&self.path);
        }
        let written = now.file.write(line)?;
        now.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Logs that a task panicked; the task is gone, the process goes on.
pub fn panicked(task: &str, panic: &(dyn std::any::Any + Send)) {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(task, panic = text, "a task panicked; please report this");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was moved aside at starts alone: the log of a daemon in constant use had no limit.
    #[test]
    fn a_log_does_not_grow_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new").join("daemon.log");
        let len = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
        let aside = path.with_extension("log.1");
        let line = |log: &Rotating, n: usize| {
            let mut log: &Rotating = log;
            writeln!(log, "line {n:04}").unwrap();
        };
        let first = Rotating::open(&path, 100).unwrap();
        (0..95).for_each(|n| line(&first, n));
        assert_eq!((len(&path), len(&aside)), (50, 100));
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("line 0094\n"));
        // Another process writes the same one, and moves it aside first.
        let second = Rotating::open(&path, 100).unwrap();
        (0..6).for_each(|n| line(&second, n));
        (10..20).for_each(|n| line(&first, n));
        let both = std::fs::read_to_string(&path).unwrap();
        assert!(both.starts_with("line 0005\nline 0015\n") && both.ends_with("0019\n"), "{both}");
    }
}

//! The log: where it goes, how errors are printed.
//!
//! ERROR: someone must act. WARN: we degraded. INFO: start, stop, state changes. DEBUG: a request.
//! Never a body, a token, or a URL with credentials.

use std::error::Error;
use std::path::{Path, PathBuf};

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

/// A log that has grown past this is moved aside at start, one generation kept.
const ROTATE_BYTES: u64 = 8 << 20;

/// Starts logging. Says what is wrong with the filter or the file.
pub fn start(config: &Config) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| {
        format!("log filter `{}`: {error}; write for example `info`", config.filter)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    let result = match &config.file {
        None => {
            let builder = builder.with_writer(std::io::stderr).with_ansi(is_terminal());
            match config.format {
                Format::Text => builder.try_init(),
                Format::Json => builder.json().try_init(),
            }
        }
        Some(path) => {
            let file = open(path).map_err(|error| format!("log {}: {error}", path.display()))?;
            let builder = builder.with_writer(file).with_ansi(false);
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
    std::io::IsTerminal::is_terminal(&std::io::stderr())
}

fn open(path: &Path) -> std::io::Result<std::fs::File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() > ROTATE_BYTES) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    std::fs::File::options().append(true).create(true).open(path)
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

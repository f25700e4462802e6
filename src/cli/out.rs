//! Printing. The only place of the command line that writes to standard output and error.
//!
//! A reader that goes away (`larder stats | head -1`) is no fault: what is left is not printed. A
//! full disk is one.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

/// Something could not be printed that somebody may wait for.
static IS_LOST: AtomicBool = AtomicBool::new(false);

/// Prints a line for whoever asked.
pub(super) fn print(line: &str) {
    let mut stdout = std::io::stdout().lock();
    printed(writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
}

/// Takes note of what came of printing.
pub(super) fn printed(outcome: std::io::Result<()>) {
    match outcome {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            if !IS_LOST.swap(true, Ordering::Relaxed) {
                say(&format!("cannot write to standard output: {error}"));
            }
        }
        Ok(()) | Err(_) => {}
    }
}

pub(super) fn is_lost() -> bool {
    IS_LOST.load(Ordering::Relaxed)
}

/// Prints an object for programs; each has a version.
pub(super) fn print_json(value: &Value) {
    let mut value = value.clone();
    if let Value::Object(object) = &mut value {
        object.entry("version").or_insert_with(|| 1.into());
        // How answers travel is not the reader's business.
        object.remove("done");
    }
    print(&format!("{value:#}"));
}

/// Tells people something beside a command's output.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "larder: {line}");
}

/// Tells people what they may do next, to be copied.
pub(super) fn hint(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// How far something is, on one line that is written over; for terminals only.
pub(super) struct Progress {
    is_terminal: bool,
    is_dirty: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), is_dirty: false }
    }

    pub(super) const fn is_shown(&self) -> bool {
        self.is_terminal
    }

    pub(super) fn show(&mut self, line: &str) {
        if self.is_terminal {
            self.is_dirty = true;
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K{line}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_dirty {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

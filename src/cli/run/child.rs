//! The command that `larder run` runs: signals on their way to it, and how it ended.
//!
//! A terminal's Ctrl-C reaches it without us, as it is in our process group. What is sent to us
//! alone, as supervisors and CI runners do, is passed on.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::NOT_STARTED;
use crate::cli::{Failure, out};
use crate::tasks;

/// What we outlive while the command runs, to tell how it ended; and whether it is passed on.
const SIGNALS: [(Signal, bool); 4] =
    [(Signal::INT, false), (Signal::QUIT, false), (Signal::TERM, true), (Signal::HUP, true)];

/// Where signals go.
#[derive(Clone, Copy, Debug)]
enum To {
    Command(Pid),
    /// The command has ended; what is left is ours, and a signal ends it.
    Ourselves,
}

/// Runs the command to its end.
pub(super) fn wait_for(command: &mut Command) -> Result<ExitStatus, Failure> {
    let heard: Vec<_> = SIGNALS
        .into_iter()
        .filter(|(signal, _)| !tasks::is_ignored(signal.as_raw()))
        .filter_map(|(signal, passed_on)| Bell::hang(signal, passed_on).ok())
        .map(Arc::new)
        .collect();
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound => "no such program, here or in PATH".to_owned(),
            _ => error.to_string(),
        };
        Failure::new(NOT_STARTED, format!("cannot run `{program}`: {why}"))
    };
    let mut child = command.spawn().map_err(failed)?;
    let to = Arc::new(Mutex::new(To::Command(Pid::from_child(&child))));
    for bell in &heard {
        let (bell, to) = (bell.clone(), to.clone());
        // Without the thread the signal is lost, and the command runs on.
        let _ = tasks::thread("signal", move || bell.answer(&to));
    }
    wait_unreaped(&child);
    // Until it is reaped its number is nobody else's; from here on nothing is sent there.
    let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
    *to = To::Ourselves;
    for bell in &heard {
        // What the command died of was meant for it.
        while bell.has_rung() {}
    }
    drop(to);
    child.wait().map_err(failed)
}

/// Rings for each signal that comes. A handler, unlike an ignored signal, does not outlive the exec
/// of the command.
struct Bell {
    signal: Signal,
    passed_on: bool,
    pipe: UnixStream,
}

impl Bell {
    fn hang(signal: Signal, passed_on: bool) -> std::io::Result<Self> {
        let (rope, pipe) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(signal.as_raw(), rope)?;
        Ok(Self { signal, passed_on, pipe })
    }

    fn has_rung(&self) -> bool {
        (&self.pipe).read(&mut [0]).is_ok_and(|len| len > 0)
    }

    fn answer(&self, to: &Mutex<To>) {
        loop {
            let mut poll = [PollFd::new(&self.pipe, PollFlags::IN)];
            if rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, None)).is_err() {
                return;
            }
            let to = to.lock().unwrap_or_else(PoisonError::into_inner);
            match *to {
                _ if !self.has_rung() => {}
                To::Command(pid) if self.passed_on => {
                    // It may be about to end, which is what was wanted.
                    let _ = rustix::process::kill_process(pid, self.signal);
                }
                To::Command(_) => {}
                To::Ourselves => {
                    out::say(
                        "interrupted; what is owed stays owed, and the daemon goes on with it",
                    );
                    std::process::exit(128 + self.signal.as_raw());
                }
            }
        }
    }
}

/// Returns when the command has ended; an error shows again when it is reaped.
fn wait_unreaped(child: &Child) {
    let id = WaitId::Pid(Pid::from_child(child));
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let _ = rustix::io::retry_on_intr(|| rustix::process::waitid(id.clone(), options));
}

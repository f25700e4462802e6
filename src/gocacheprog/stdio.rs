//! What ties a helper to the process that it runs in: go's pipes, and the signals that are meant for go.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The helper's ends of go's pipes.
pub struct Stdio {
    pub stdin: Box<dyn Read + Send>,
    /// Closed by dropping it.
    pub stdout: Box<dyn Write + Send>,
    pub stderr: Box<dyn Write + Send>,
    /// Run when go has been given all its answers: lets go of what else is go's.
    pub on_close: Box<dyn FnOnce() + Send>,
}

impl Stdio {
    /// This process's own. Afterwards its standard output leads nowhere: what is printed there by
    /// mistake cannot break the protocol.
    pub fn take() -> io::Result<Self> {
        use std::os::fd::AsFd;
        let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(Self {
            stdin: Box::new(stdin),
            stdout: Box::new(stdout),
            stderr: Box::new(io::stderr()),
            // `go build | tee` waits until nobody holds the pipe that was go's standard error.
            on_close: Box::new(move || {
                let _ = rustix::stdio::dup2_stdin(&null);
                let _ = rustix::stdio::dup2_stderr(&null);
            }),
        })
    }
}

/// A terminal's Ctrl-C reaches us too, but go handles it and still wants answers; a terminal that
/// closes takes go with it, which shows at the end of our input. Being told to go makes us quick.
pub(super) fn ignore_signals() -> Arc<AtomicBool> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let terminated = Arc::new(AtomicBool::new(false));
    for (signal, flag) in
        [(SIGINT, Arc::default()), (SIGHUP, Arc::default()), (SIGTERM, terminated.clone())]
    {
        // A signal that cannot be caught acts as it always did.
        let _ = signal_hook::flag::register(signal, flag);
    }
    terminated
}

//! The floor: the fastest helper that Go's cache protocol allows.
//!
//! `floor_helper DIR [--trace FILE]` answers every get from memory, loaded from `DIR/index` at its
//! start, and writes every put into `DIR`. One thread, no network, no check of anything. What a build
//! takes with it is what the protocol itself costs, and what larder is compared with. The trace gets a
//! line for each hit: the action, then the fields of the answer.

mod go_protocol;
mod local_dir;

use std::io;
use std::path::PathBuf;

use go_protocol::{DONE, Input, MISS, Output, Request};
use local_dir::LocalDir;

fn main() -> io::Result<()> {
    let mut output = Output::announce()?;
    let mut args = std::env::args_os().skip(1);
    let (Some(dir), flag, trace) = (args.next(), args.next(), args.next()) else {
        return Err(usage());
    };
    if flag.is_some_and(|flag| flag != "--trace" || trace.is_none()) {
        return Err(usage());
    }
    let mut local = LocalDir::open(dir.as_ref(), trace.map(PathBuf::from))?;
    serve(&mut local, &mut output)?;
    local.save()?;
    // Go waits until the pipe closes, which is at exit.
    output.flush()
}

/// Answers until `go` closes the cache, or the pipe as `go list` does.
fn serve(local: &mut LocalDir, output: &mut Output) -> io::Result<()> {
    let mut input = Input::new(io::stdin().lock());
    let mut body = Vec::new();
    loop {
        if input.is_drained() {
            output.flush()?;
        }
        match input.request()? {
            None => return Ok(()),
            Some(Request::Close { id }) => return output.answer(&id, DONE),
            Some(Request::Get { id, action }) => {
                output.answer(&id, local.get(&action).unwrap_or(MISS))?;
            }
            Some(Request::Put { id, action, output: digest, size }) => {
                input.body(size, &mut body)?;
                local_dir::write_output(&local.path(&digest), &body, "")?;
                let time = local.now().to_owned();
                output.answer(&id, &local.put(&action, &digest, size, &time))?;
            }
        }
    }
}

fn usage() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "usage: floor_helper DIR [--trace FILE]")
}

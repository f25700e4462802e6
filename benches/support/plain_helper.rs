//! What most remote helpers for Go do: ask a server for every key that is not on disk, and wait.
//!
//! `plain_helper URL DIR [--in-flight N] [--one-request]` works like the floor helper, but a local
//! miss is asked of the server, N (16) at a time over as many connections that stay open: first
//! `/ac/ACTION`, which holds `OUTPUT SIZE TIME`, then `/cas/OUTPUT`. With `--one-request` the bytes
//! follow that line at once, under `/ac/` alone. A put is answered when it is on disk and is
//! uploaded beside; the end waits for uploads. Bytes travel uncompressed.

#[expect(dead_code, reason = "the floor helper uses the rest")]
mod go_protocol;
mod local_dir;
mod plain_http;

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use go_protocol::{DONE, Input, MISS, Output, Request, hex};
use local_dir::{LocalDir, write_output};
use plain_http::Client;

const USAGE: &str = "usage: plain_helper http://HOST:PORT DIR [--in-flight N] [--one-request]";

/// How an entry lies on the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Action and output apart, so two requests for a hit.
    Apart,
    Together,
}

struct Settings {
    /// The server's `HOST:PORT`.
    server: String,
    dir: PathBuf,
    in_flight: usize,
    layout: Layout,
}

/// What all threads use.
struct Shared {
    local: Mutex<LocalDir>,
    output: Mutex<Output>,
    server: String,
    layout: Layout,
}

/// Something to be done at the server.
enum Job {
    Fetch { id: String, action: String },
    Upload { action: String, output: String, size: u64 },
}

fn main() -> io::Result<()> {
    let output = Output::announce()?;
    let settings =
        Settings::read().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, USAGE))?;
    let shared = Arc::new(Shared {
        local: Mutex::new(LocalDir::open(&settings.dir, None)?),
        output: Mutex::new(output),
        server: settings.server,
        layout: settings.layout,
    });
    // Apart, so that no question waits behind uploads.
    let (fetches, fetchers) = pool(&shared, "fetch", settings.in_flight)?;
    let (uploads, uploaders) = pool(&shared, "upload", settings.in_flight)?;
    let closed_by = serve(&shared, &fetches, &uploads)?;
    drop((fetches, uploads));
    for worker in fetchers.into_iter().chain(uploaders) {
        worker.join().map_err(|_| io::Error::other("a worker panicked"))??;
    }
    shared.local().save()?;
    if let Some(id) = closed_by {
        shared.answer(&id, DONE)?;
    }
    Ok(())
}

/// Takes requests until `go` closes the cache, or the pipe; the ID that is owed an answer then.
fn serve(
    shared: &Shared,
    fetches: &Sender<Job>,
    uploads: &Sender<Job>,
) -> io::Result<Option<String>> {
    let gone = |_| io::Error::other("all workers have ended");
    let mut input = Input::new(io::stdin().lock());
    let mut body = Vec::new();
    loop {
        match input.request()? {
            None => return Ok(None),
            Some(Request::Close { id }) => return Ok(Some(id)),
            Some(Request::Get { id, action }) => {
                let known = shared.local().get(&action).map(str::to_owned);
                match known {
                    Some(fields) => shared.answer(&id, &fields)?,
                    None => fetches.send(Job::Fetch { id, action }).map_err(gone)?,
                }
            }
            Some(Request::Put { id, action, output, size }) => {
                input.body(size, &mut body)?;
                let path = shared.local().path(&output);
                write_output(&path, &body, "put")?;
                let time = shared.local().now().to_owned();
                let fields = shared.local().put(&action, &output, size, &time);
                shared.answer(&id, &fields)?;
                uploads.send(Job::Upload { action, output, size }).map_err(gone)?;
            }
        }
    }
}

type Pool = (Sender<Job>, Vec<JoinHandle<io::Result<()>>>);

#[expect(clippy::disallowed_methods, reason = "this program stands in for others than larder")]
fn pool(shared: &Arc<Shared>, name: &str, size: usize) -> io::Result<Pool> {
    let (sender, receiver) = channel();
    let receiver = Arc::new(Mutex::new(receiver));
    let mut workers = Vec::new();
    for i in 0..size {
        let (shared, receiver) = (shared.clone(), receiver.clone());
        let thread = std::thread::Builder::new().name(format!("{name} {i}"));
        workers.push(thread.spawn(move || work(&shared, &receiver))?);
    }
    Ok((sender, workers))
}

/// Does jobs until there are no more. Only what concerns `go` is an error: a fault of the server is
/// a miss.
fn work(shared: &Shared, jobs: &Mutex<Receiver<Job>>) -> io::Result<()> {
    let mut client = Client::new(&shared.server);
    loop {
        let job = jobs.lock().expect("no thread panics with this lock held").recv();
        match job {
            Err(_) => return Ok(()),
            Ok(Job::Fetch { id, action }) => match fetch(shared, &mut client, &action) {
                Some(fields) => shared.answer(&id, &fields)?,
                None => shared.answer(&id, MISS)?,
            },
            Ok(Job::Upload { action, output, size }) => {
                upload(shared, &mut client, &action, &output, size)?;
            }
        }
    }
}

/// Asks the server; the fields of the answer, or None for a miss of whatever kind.
fn fetch(shared: &Shared, client: &mut Client, action: &str) -> Option<String> {
    let answer = client.get(&format!("/ac/{}", hex(action)))?;
    let end = answer.iter().position(|byte| *byte == b'\n')?;
    let line = str::from_utf8(&answer[..end]).ok()?;
    let mut words = line.split(' ');
    let (output, size, time) = (words.next()?, words.next()?, words.next()?);
    let size: u64 = size.parse().ok()?;
    let fetched;
    let bytes = match shared.layout {
        Layout::Together => &answer[end + 1..],
        Layout::Apart if size == 0 => &[],
        Layout::Apart => {
            fetched = client.get(&format!("/cas/{}", hex(output)))?;
            &fetched[..]
        }
    };
    if bytes.len() as u64 != size {
        return None;
    }
    let path = shared.local().path(output);
    write_output(&path, bytes, &hex(action)).ok()?;
    let mut local = shared.local();
    local.put(action, output, size, time);
    local.get(action).map(str::to_owned)
}

/// Tells the server. Whether it takes it is its own affair.
fn upload(
    shared: &Shared,
    client: &mut Client,
    action: &str,
    output: &str,
    size: u64,
) -> io::Result<()> {
    let (path, time) = {
        let local = shared.local();
        (local.path(output), local.now().to_owned())
    };
    let bytes = std::fs::read(path)?;
    let mut entry = format!("{output} {size} {time}\n").into_bytes();
    match shared.layout {
        Layout::Together => entry.extend_from_slice(&bytes),
        // First the bytes: an action must never be seen without them.
        Layout::Apart if size > 0 => client.put(&format!("/cas/{}", hex(output)), &bytes),
        Layout::Apart => {}
    }
    client.put(&format!("/ac/{}", hex(action)), &entry);
    Ok(())
}

impl Shared {
    fn local(&self) -> MutexGuard<'_, LocalDir> {
        self.local.lock().expect("no thread panics with this lock held")
    }

    fn answer(&self, id: &str, fields: &str) -> io::Result<()> {
        let mut output = self.output.lock().expect("no thread panics with this lock held");
        output.answer(id, fields)?;
        output.flush()
    }
}

impl Settings {
    fn read() -> Option<Self> {
        let mut args = std::env::args().skip(1);
        let server = args.next()?.strip_prefix("http://")?.trim_end_matches('/').to_owned();
        let dir = PathBuf::from(args.next()?);
        let mut settings = Self { server, dir, in_flight: 16, layout: Layout::Apart };
        while let Some(flag) = args.next() {
            match flag.as_str() {
                "--in-flight" => settings.in_flight = args.next()?.parse().ok()?,
                "--one-request" => settings.layout = Layout::Together,
                _ => return None,
            }
        }
        (settings.in_flight > 0).then_some(settings)
    }
}

//! The program that go talks to (GOCACHEPROG): answers warm gets from the store's index, asks the
//! daemon for the rest, puts outputs in place itself, and outlives every fault of the others.
//!
//! Another process than the daemon, with threads and blocking I/O: one reads go's requests, three
//! deal with the daemon (`remote`). go dies if this process ends early, writes one wrong byte or
//! keeps its pipes open, so whatever happens the answer is a miss, or a file placed here.
//!
//! It must not be able to reach the cache: it uses the store's outside (`store::reader`) only.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::{Address, StartDaemon, Stream};
use crate::entry::{Class, Digest, RealmId};
use crate::git::GitEnv;
use crate::gocache::Native;
use crate::tasks;
use crate::units::{Clock, Secret};
use crate::wire::go::{Entry, SOURCE_BUILT, SOURCE_NATIVE, Welcome};

mod account;
mod answers;
mod bodies;
pub mod c_env;
mod json;
mod native;
mod parents;
mod places;
mod protocol;
mod questions;
mod remote;
mod stdio;
#[cfg(test)]
mod tests;
mod toolchain;

use account::Account;
pub use answers::announce;
use answers::{Answers, Input};
use bodies::{Arrived, Shelves};
use parents::Parents;
pub use places::realms;
use places::{Places, Refuge, Sharing};
#[cfg(fuzzing)]
pub use protocol::fuzz;
use protocol::{Command, ProtocolError, Requests};
use questions::{Link, Questions, Unacked};
pub use stdio::Stdio;

/// How long the first request waits to hear who is there; a daemon that runs answers in well under
/// a millisecond.
const FIRST_WORD_MAX: Duration = Duration::from_millis(250);
/// How long puts may take to be confirmed once go has gone on.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// The same when somebody wants this process gone.
const SETTLE_MAX_TERMINATED: Duration = Duration::from_millis(500);

/// What a question may take when nothing else is said: longer than any deadline of the daemon's.
pub const DEADLINE: Duration = Duration::from_secs(12);

/// Everything that the helper is told; it reads no environment itself.
#[derive(Clone, Debug)]
pub struct HelperConfig {
    pub address: Address,
    pub token: Option<Secret>,
    pub namespace: Option<String>,
    pub trust: Option<String>,
    pub upstream: Option<String>,
    pub read_only: bool,
    pub session: String,
    pub scope: String,
    pub commit: String,
    pub branch: String,
    pub default_branch: String,
    /// Whose checkout holds the commit, and what git is given to look into it.
    pub dir: PathBuf,
    pub git_env: GitEnv,
    pub git_deadline: Duration,
    /// The store that is used when no daemon says another.
    pub store_dir: PathBuf,
    /// Realms that are read, in this order, when no daemon says others; the first is written.
    pub realms: Vec<RealmId>,
    /// How to start a daemon, if it is to be started.
    pub start: Option<StartDaemon>,
    /// Where outputs are when the daemon's store cannot be seen.
    pub view_dir: PathBuf,
    /// Go's own cache, if it is to be read.
    pub native: Option<PathBuf>,
    /// Under which the refuge is made when the store takes no more.
    pub temp_dir: PathBuf,
    pub deadline: Duration,
    pub c_inputs: c_env::CInputs,
    pub goroot: Option<PathBuf>,
    pub pid: u32,
}

/// What the threads of a helper share.
struct Helper {
    config: HelperConfig,
    clock: Clock,
    answers: Arc<Answers>,
    questions: Questions,
    account: Account,
    parents: Parents,
    refuge: Refuge,
    native: Option<Native>,
    /// None until the first word from or about the daemon.
    places: Mutex<Option<Arc<Places>>>,
    connection: Mutex<Option<Stream>>,
    /// Held until what a lost connection leaves is where the next daemon finds it.
    losing: Mutex<()>,
    stderr: Mutex<Box<dyn Write + Send>>,
    warned: AtomicBool,
    c_env: OnceLock<u64>,
}

/// Speaks with go until it ends. Go must have been told what we can do (`announce`) before.
pub fn run(config: HelperConfig, stdio: Stdio) {
    let terminated = stdio::ignore_signals();
    let Stdio { stdin, stdout, stderr, on_close } = stdio;
    let helper = Arc::new(Helper {
        answers: Arc::new(Answers::new(stdout)),
        questions: Questions::new(Link::Coming { until: remote::START_MAX }),
        account: Account::default(),
        parents: Parents::default(),
        refuge: Refuge::new(&config.temp_dir, config.pid),
        native: config.native.as_deref().and_then(Native::open),
        places: Mutex::new(None),
        connection: Mutex::new(None),
        losing: Mutex::new(()),
        stderr: Mutex::new(stderr),
        warned: AtomicBool::new(false),
        c_env: OnceLock::new(),
        clock: Clock::system(),
        config,
    });
    parents::look(&helper);
    let (timing, connecting) = (helper.clone(), helper.clone());
    let timer = tasks::thread("deadlines", move || remote::keep_time(&timing));
    let connect = || tasks::thread("from daemon", move || remote::keep_connected(&connecting));
    // Where nobody watches deadlines, nothing may be asked. The connecting thread is not joined: it
    // may be in the midst of starting a daemon, and go's end is not to wait for it.
    if timer.is_err() || connect().is_err() {
        helper.found(|config| Places::alone(config, false));
        helper.lost();
    }
    serve(&helper, stdin);
    helper.answers.close();
    on_close();
    helper.finish(&terminated);
    // Its panic has been printed, and go has what it needs.
    let _ = timer.map(JoinHandle::join);
}

/// Answers requests until go closes, leaves, or makes no sense.
fn serve(helper: &Helper, stdin: Box<dyn Read + Send>) {
    let mut requests = Requests::new(Input { from: stdin, answers: helper.answers.clone() });
    loop {
        let result = match requests.next() {
            Ok(Some(request)) => helper.carry_out(&mut requests, request.id, request.command),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        match result {
            Ok(Next::Request) if !helper.answers.is_closed() => {}
            Ok(_) => return,
            // go died in the midst of a request, which it has told its user about.
            Err(ProtocolError::Io(_)) => return,
            Err(error @ ProtocolError::Malformed(_)) => return helper.warn(&error.to_string()),
        }
    }
}

/// How it goes on after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Request,
    End,
}

impl Helper {
    fn carry_out<R: Read>(
        &self,
        requests: &mut Requests<R>,
        id: i64,
        command: Command,
    ) -> Result<Next, ProtocolError> {
        match command {
            Command::Get { action } => self.get(id, action),
            Command::Put { action, output, size } => {
                self.put(requests, id, action, Digest(output), size)?;
            }
            Command::Close => {
                self.answers.done(id);
                return Ok(Next::End);
            }
            Command::Unknown { what, size } => {
                if size > 0 {
                    // The answer is an error either way.
                    let _ = requests.body(size, &mut |_| {})?;
                }
                self.answers.error(id, &what);
            }
        }
        Ok(Next::Request)
    }

    /// Nearest first: index, go's own cache, the daemon. Only the last one may take time, and it
    /// does so while other requests are read.
    fn get(&self, id: i64, action: [u8; 32]) {
        self.account.get();
        let places = self.known_places();
        let digest = Digest(action);
        if let Some(hit) = places.reader.go(&places.realms, &digest) {
            let row = &hit.row;
            if row.c_env != 0 && row.c_env != self.c_env() {
                return self.miss(id, action);
            }
            let path = places.reader.path(&row.digest);
            self.answers.hit(id, &row.digest.0, row.size, row.stored, &path);
            self.account.hit_index(action, row);
            return;
        }
        if let Some(native) = &self.native
            && let Some(adopted) = native::adopt(native, &places, &digest)
        {
            let known = &adopted.known;
            self.answers.hit(id, &known.output.0, known.size, known.time, &adopted.path);
            self.account.hit_native();
            let class = self.refined(adopted.class(), &adopted.path);
            let mut entry = self.entry(known.output, known.size, class, SOURCE_NATIVE);
            entry.time_ns = known.time.0;
            return self.share(&places, id, action, entry, adopted.path);
        }
        let now = self.clock.elapsed();
        if !self.questions.ask(id, action, self.c_env(), now, self.config.deadline) {
            self.miss(id, action);
        }
    }

    /// go is answered as soon as the output is in place; the daemon hears of it afterwards.
    fn put<R: Read>(
        &self,
        requests: &mut Requests<R>,
        id: i64,
        action: [u8; 32],
        output: Digest,
        size: u64,
    ) -> Result<(), ProtocolError> {
        let places = self.known_places();
        // What it cost ends where the body begins: taking that in is our time, not the build's.
        let cost_ms = self.account.built(&action, self.clock.elapsed());
        let shelves = Shelves { places: &places, refuge: &self.refuge, clock: &self.clock };
        match bodies::receive(requests, &shelves, &output, size)? {
            Ok(Arrived { path, class, is_placed }) => {
                self.answers.stored(id, &path);
                if is_placed {
                    let class = self.refined(class, &path);
                    let mut entry = self.entry(output, size, class, SOURCE_BUILT);
                    entry.cost_ms = cost_ms;
                    self.share(&places, id, action, entry, path);
                }
            }
            Err(error) => {
                self.warn(&format!("put of {output}: {error}"));
                self.answers.error(id, &error.to_string());
            }
        }
        Ok(())
    }

    fn refined(&self, class: Class, output: &Path) -> Class {
        toolchain::refined(class, output, self.config.goroot.as_deref(), self.clock.now())
    }

    fn entry(&self, output: Digest, size: u64, class: Class, source: u8) -> Entry {
        Entry {
            output: output.0,
            size,
            time_ns: self.clock.now().0,
            cost_ms: 0,
            c_env: if class.is_c_bound() { self.c_env() } else { 0 },
            class: class as u8,
            source,
        }
    }

    /// Tells the daemon of an output that is in place, or leaves word for the next one.
    fn share(&self, places: &Places, id: i64, action: [u8; 32], entry: Entry, path: PathBuf) {
        let body = match places.sharing {
            Sharing::Store => None,
            Sharing::Bytes => Some(path),
            Sharing::Nothing => return,
        };
        let put = Unacked { id: id.cast_unsigned(), action, entry, body };
        if let Err(put) = self.questions.tell(put) {
            remote::spool(places, &[*put]);
        }
    }

    fn miss(&self, id: i64, action: [u8; 32]) {
        self.account.missed(action, self.clock.elapsed());
        self.answers.miss(id);
    }

    fn c_env(&self) -> u64 {
        *self.c_env.get_or_init(|| c_env::fingerprint(&c_env::gather(&self.config.c_inputs)))
    }

    fn places(&self) -> Option<Arc<Places>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where outputs are; waits for the first word about that, but not for long.
    fn known_places(&self) -> Arc<Places> {
        if let Some(places) = self.places() {
            return places;
        }
        self.questions.wait_for_word(FIRST_WORD_MAX, || self.places().is_some());
        self.found(|config| Places::alone(config, false))
    }

    /// Uses these places unless some are known already.
    fn found(&self, places: impl FnOnce(&HelperConfig) -> Places) -> Arc<Places> {
        let mut known = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.get_or_insert_with(|| Arc::new(places(&self.config))).clone();
        drop(known);
        self.questions.word();
        found
    }

    fn welcomed(&self, welcome: &Welcome) {
        let mut known = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Arc::new(Places::welcomed(&self.config, welcome, known.as_deref())));
        drop(known);
        self.questions.word();
        if let Some(warning) = &welcome.warning {
            self.warn(warning);
        }
    }

    fn connected(&self, ender: Stream) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(ender);
        self.questions.up(self.clock.elapsed());
    }

    fn disconnect(&self) {
        if let Some(stream) = &*self.connection.lock().unwrap_or_else(PoisonError::into_inner) {
            stream.shut_down();
        }
    }

    /// Nobody answers what is still open: go builds, and the next daemon finds the puts.
    fn lost(&self) {
        // The process ends with the last of these: what another one has taken must be put down first.
        let _losing = self.losing.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = self.questions.down();
        for question in lost.questions {
            self.miss(question.id, question.action);
        }
        self.answers.flush();
        if let Some(places) = self.places() {
            remote::spool(&places, &lost.puts);
        }
    }

    /// Says one thing to the user, once: a helper runs for every go command.
    fn warn(&self, what: &str) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            let stderr = &mut *self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writeln!(stderr, "larder: {what}");
        }
    }

    /// go has all it needs and goes on; what is left is for the daemon.
    fn finish(&self, terminated: &AtomicBool) {
        self.account.tell(|news| self.questions.say(news));
        let mut left = SETTLE_MAX;
        while !left.is_zero() {
            let step = left.min(SETTLE_MAX_TERMINATED);
            let is_late = self.questions.wait_settled(step);
            left -= step;
            if !is_late || terminated.load(Ordering::SeqCst) {
                break;
            }
        }
        self.questions.end();
        self.lost();
        self.disconnect();
        if let Some(places) = self.places() {
            places.trim(&self.clock);
        }
        // A git that hangs is not left behind.
        self.questions.wait_for_word(self.config.git_deadline, || self.parents.is_settled());
    }
}

//! The daemon: settings → store → backends → cache → workers → frontends → admin.
//!
//! Everything is opened and bound before anything is served, so that what is wrong is said at
//! once. Then it serves until a signal, a `stop`, or long idleness, and drains in good order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::admin::{self, Admin, AdminHandle};
use crate::backend;
use crate::cache::Cache;
use crate::config::Config;
use crate::daemon::control::Controls;
use crate::frontend::listener::{self, BindError, Passed};
use crate::frontend::{Control, Frontend};
use crate::store::{OpenError, Store};
use crate::tasks::{self, Tasks};
use crate::telemetry::{Metrics, log};
use crate::units::{Clock, show_count};
use crate::worker::Workers;

mod control;
mod heap;
mod opening;
mod prefetch;
mod purge;

pub use purge::purge;

/// Requests under way when the signal comes may finish within this.
const FINISH_WITHIN: Duration = Duration::from_secs(1);
/// Uploads go on for this long after a signal; the rest stays in the journal.
const UPLOAD_WITHIN: Duration = Duration::from_secs(5);
/// Telling of the end, and closing the store, where the disk is slow.
const NOTE_WITHIN: Duration = Duration::from_secs(1);
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
/// Calls of the disk, and pieces of work, that are under way at once; others wait in a queue. What each of
/// them holds is short, so that more threads than a disk has a use for would be stacks and nothing else.
const BLOCKING_THREADS_MAX: usize = 128;
/// How often an auto-started daemon looks whether anybody still needs it.
const IDLE_LOOK_MAX: Duration = Duration::from_secs(30);

/// How the daemon was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// By a client, in the background: it ends when nobody needs it.
    pub detached: bool,
}

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error("the store {} was removed, or its index damaged, while it was in use", .0.display())]
    Gone(std::path::PathBuf),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Upstream(#[from] backend::BuildError),
    #[error("admin: {0}; choose another address with --admin, or `--admin off`")]
    Admin(std::io::Error),
    #[error("{0}")]
    Log(String),
    #[error("cannot start: {0}")]
    System(std::io::Error),
}

impl StartError {
    /// The process's exit code, as scripts rely on it.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Store(_) | Self::Gone(_) => 5,
            Self::Bind(_) | Self::Upstream(_) | Self::Admin(_) | Self::Log(_) => 2,
            Self::System(_) => 1,
        }
    }
}

/// Runs the daemon until it is told to end; `ready` sees it once it serves.
pub fn run(
    config: Config,
    options: Options,
    ready: impl FnOnce(&Daemon),
) -> Result<(), StartError> {
    // First, before there are other threads.
    heap::keep();
    let passed = Passed::take(&config.frontend.passed)?;
    log::start(&config.log).map_err(StartError::Log)?;
    opening::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("larder")
        .build()
        .map_err(StartError::System)?;
    let result = runtime.block_on(async {
        // Whoever sees the socket may send a signal.
        let mut signals = Signals::new();
        let daemon = tokio::select! {
            started = Daemon::start(config, passed, options) => started?,
            name = signals.recv() => {
                tracing::info!("{name}: ending before the start is done");
                return Ok(());
            }
        };
        daemon.announce();
        ready(&daemon);
        let told = daemon.until_told(&mut signals, options).await;
        daemon.stop().await;
        told
    });
    // Blocking work that a dead disk holds up must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

/// What would keep a daemon with these settings from starting, without starting one: certificates
/// and keys that are of no use.
pub fn check(config: &Config) -> Vec<String> {
    let metrics = Metrics::default();
    let upstreams = config.upstreams.iter().filter_map(|upstream| {
        backend::build(upstream, &metrics, 0).err().map(|error| error.to_string())
    });
    let tls = listener::tls(&config.frontend).err().map(|error| error.to_string());
    upstreams.chain(tls).collect()
}

/// A running daemon.
pub struct Daemon {
    cache: Cache,
    workers: Workers,
    frontend: Frontend,
    tasks: Tasks,
    /// Owns no task: only tells connections that no new requests are taken.
    doors: Tasks,
    stopping: watch::Sender<bool>,
    ready: Arc<AtomicBool>,
    admin: Option<AdminHandle>,
    admin_at: Option<std::net::SocketAddr>,
    http: Vec<String>,
    socket: std::path::PathBuf,
    idle_exit: Duration,
}

impl Daemon {
    /// Opens, binds and serves. Run inside a runtime.
    pub async fn start(
        config: Config,
        passed: Passed,
        options: Options,
    ) -> Result<Self, StartError> {
        let clock = Clock::system();
        let metrics = Arc::new(Metrics::default());
        let tasks = Tasks::new();
        let store = opening::open_store(&tasks, &config, &clock, &metrics, options).await?;
        match Self::start_on(&store, config, passed, &clock, metrics, tasks).await {
            Ok(daemon) => Ok(daemon),
            Err(error) => {
                store.close();
                Err(error)
            }
        }
    }

    async fn start_on(
        store: &Store,
        config: Config,
        passed: Passed,
        clock: &Clock,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    ) -> Result<Self, StartError> {
        let upstreams = opening::build_upstreams(&config, &metrics, clock)?;
        let cache = Cache::new(
            config.cache,
            store.clone(),
            upstreams,
            tasks.clone(),
            metrics,
            clock.clone(),
        );
        let bound = listener::bind(&config.frontend, passed).await?;
        let admin = Admin::bind(&config.admin).map_err(StartError::Admin)?;
        let admin_at = admin.as_ref().and_then(|admin| admin.local_addr().ok());
        let workers = Workers::start(&cache);
        let ready = Arc::new(AtomicBool::new(false));
        let stopping = watch::Sender::new(false);
        let http = bound.http.clone();
        let sources = admin::Sources {
            cache: cache.clone(),
            workers: workers.clone(),
            listen: http.clone(),
            ready: ready.clone(),
        };
        let control: Arc<dyn Control> = Arc::new(Controls::new(sources.clone(), stopping.clone()));
        let socket = config.frontend.socket.clone();
        let frontend = Frontend::new(cache.clone(), config.frontend, control, http.clone())
            .map_err(StartError::System)?;
        let doors = Tasks::new();
        frontend.serve(bound, &doors.shutdown_signal());
        let admin =
            admin.map(|admin| admin.serve(sources)).transpose().map_err(StartError::Admin)?;
        ready.store(true, Ordering::Release);
        Ok(Self {
            cache,
            workers,
            frontend,
            tasks,
            doors,
            stopping,
            ready,
            admin,
            admin_at,
            http,
            socket,
            idle_exit: config.worker.idle_exit,
        })
    }

    pub const fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Where HTTP is served over TCP.
    pub fn http(&self) -> &[String] {
        &self.http
    }

    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    pub const fn admin_at(&self) -> Option<std::net::SocketAddr> {
        self.admin_at
    }

    fn announce(&self) {
        let store = self.cache.store();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            socket = %self.socket.display(),
            http = self.http.join(" "),
            admin = self.admin_at.map(|at| at.to_string()).unwrap_or_else(|| "off".into()),
            store = %store.dir().display(),
            entries = store.entries(),
            owed = store.owed_entries(),
            "larder serves"
        );
    }

    /// Waits for a signal, a `stop`, or idleness. An error if there is nothing left to serve.
    async fn until_told(&self, signals: &mut Signals, options: Options) -> Result<(), StartError> {
        let mut told = self.stopping.subscribe();
        tokio::select! {
            name = signals.recv() => tracing::info!("{name}: ending"),
            _ = told.wait_for(|told| *told) => tracing::info!("told to stop: ending"),
            () = self.until_idle(), if options.detached => tracing::info!("nobody here: ending"),
            () = self.cache.store_lost() => {
                let dir = self.cache.store().dir().to_owned();
                tracing::error!(dir = %dir.display(), "the store was removed or damaged: ending");
                return Err(StartError::Gone(dir));
            }
        }
        Ok(())
    }

    /// Returns when nobody has been here for long, after trying to upload what is owed.
    async fn until_idle(&self) {
        let look = (self.idle_exit / 4).min(IDLE_LOOK_MAX);
        loop {
            tokio::time::sleep(look).await;
            if self.is_in_use() {
                continue;
            }
            if self.cache.store().owed_entries() > 0 {
                self.workers.flush(Duration::from_secs(60)).await;
            }
            // Somebody may have come and gone meanwhile.
            if !self.is_in_use() {
                return;
            }
        }
    }

    /// Whether somebody is here, was lately, or has something fetched.
    fn is_in_use(&self) -> bool {
        let (connections, since) = self.frontend.idle();
        connections > 0 || since < self.idle_exit || self.cache.forecasts().any_wanted()
    }

    /// Ends in good order: no new requests, those under way finish, uploads go on for a moment,
    /// the rest stays in the journal.
    pub async fn stop(mut self) {
        self.ready.store(false, Ordering::Release);
        let layout = self.cache.store().layout().clone();
        let note = self.tasks.blocking("note the end", move || layout.note_ending());
        // A disk that hangs must not hold up the end.
        let _ = tokio::time::timeout(NOTE_WITHIN, note).await;
        self.doors.begin_shutdown();
        let left = self.workers.drain(UPLOAD_WITHIN).await;
        self.tasks.begin_shutdown();
        if left.left_entries > 0 {
            tracing::info!(
                "{} uploads are owed and stay in the journal",
                show_count(left.left_entries)
            );
        }
        let alive = self.tasks.drain(FINISH_WITHIN).await;
        if alive > 0 {
            tracing::debug!(alive, "tasks were cut off");
        }
        let store = self.cache.store().clone();
        // Joining the committing thread blocks; it has a last commit to make. On a disk that hangs it is
        // left to the next start, as after a kill.
        let closing = self.tasks.blocking("close the store", move || store.close());
        if tokio::time::timeout(CLOSE_WITHIN, closing).await.is_err() {
            tracing::warn!("the store was not closed in time; the next start reads its log");
        }
        drop(self.admin.take());
        tracing::info!("ended");
    }
}

/// The signals that end a daemon. Where the system gives none there is still `stop`.
struct Signals {
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
    /// The terminal is closed.
    hang_up: Option<Signal>,
}

impl Signals {
    fn new() -> Self {
        let listen = |kind: SignalKind| {
            let is_ours = !tasks::is_ignored(kind.as_raw_value());
            is_ours.then(|| signal(kind).ok()).flatten()
        };
        Self {
            terminate: listen(SignalKind::terminate()),
            interrupt: listen(SignalKind::interrupt()),
            hang_up: listen(SignalKind::hangup()),
        }
    }

    /// The name of the next one.
    async fn recv(&mut self) -> &'static str {
        let next = async |signal: &mut Option<Signal>| match signal {
            Some(signal) => signal.recv().await,
            None => std::future::pending().await,
        };
        tokio::select! {
            _ = next(&mut self.terminate) => "SIGTERM",
            _ = next(&mut self.interrupt) => "SIGINT",
            _ = next(&mut self.hang_up) => "SIGHUP",
        }
    }
}

//! The contenders of the cold runner: what each finds when it comes, and one build with it.
//!
//! Everything that a build is checked for is here; rounds and tables are the bench's.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use larder::entry::Digest;
use larder::units::Clock;

use super::builds::{self, Builder};
use super::daemon::Daemon;
use super::module::Module;
use super::stream::{self, Streams};
use super::wan::{Link, Wan};
use crate::tools::install::{self, Go};

const BUILD: [&str; 2] = ["build", "./..."];
/// Numbers of the streams.
const FRAMES: u8 = 0;
const TARBALL: u8 = 1;
/// Of the frames and of the tarball.
const ZSTD_LEVEL: i32 = 3;

/// A contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Native,
    Floor,
    /// No build: the stream that is part of the bound.
    Stream,
    Plain,
    Tarball,
    Larder,
}

impl Row {
    pub(crate) const ALL: [Self; 6] =
        [Self::Native, Self::Floor, Self::Stream, Self::Plain, Self::Tarball, Self::Larder];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native GOCACHE, warm",
            Self::Floor => "floor helper, warm",
            Self::Stream => "stream",
            Self::Plain => "plain helper",
            Self::Tarball => "tarball of GOCACHE",
            Self::Larder => "larder",
        }
    }
}

/// What one build took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Far {
    pub(crate) took: Duration,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
}

impl Far {
    /// A build that nothing far away has to do with.
    fn of(build: &mut dyn FnMut() -> Duration) -> Self {
        Self { took: build(), ..Self::default() }
    }
}

/// The machine that comes anew each time.
pub(crate) struct Runner<'a> {
    go: &'a Go,
    work: PathBuf,
    module: &'a Module,
    helpers: [PathBuf; 2],
    /// What the binary must be, and who has shown that his is.
    binary: RefCell<(Option<Digest>, Vec<String>)>,
}

/// What lies far away, and what it was made from.
pub(crate) struct Central {
    daemon: Daemon,
    streams: Streams,
    frames_len: u64,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(go: &'a Go, work: &Path, module: &'a Module) -> Self {
        let helpers = ["floor_helper", "plain_helper"].map(install::example);
        let binary = RefCell::default();
        Self { go, work: work.to_owned(), module, helpers, binary }
    }

    /// Seconds of a build with an empty cache of go's own. The cache of the last one is what all
    /// others are made of.
    pub(crate) fn build_without_cache(&self) -> f64 {
        let native = self.fresh("native");
        self.timed("native", native.go(&BUILD), Far::of).took.as_secs_f64()
    }

    /// One build by a contender, or the stream.
    pub(crate) fn build(&self, row: Row, central: &Central, link: Link) -> Far {
        match row {
            Row::Native => self.native(),
            Row::Floor => self.floor(),
            Row::Stream => central.stream(link),
            Row::Plain => self.plain(central, link),
            Row::Tarball => self.tarball(central, link),
            Row::Larder => self.larder(central, link),
        }
    }

    /// A fresh clone at the place where all build, and the named home as it is.
    fn clone(&self, home: &str) -> Builder<'a> {
        let src = self.work.join("src");
        self.module.clone_to(&src);
        Builder { go: self.go, src, home: self.work.join(home) }
    }

    /// The same with an empty home.
    fn fresh(&self, home: &str) -> Builder<'a> {
        let builder = self.clone(home);
        if builder.home.exists() {
            fs::remove_dir_all(&builder.home).expect("a home can be removed");
        }
        builder
    }

    /// Builds, then checks the binary against that of the others, the first time. `around` measures
    /// the build alone.
    fn timed(
        &self,
        name: &str,
        mut command: Command,
        around: impl FnOnce(&mut dyn FnMut() -> Duration) -> Far,
    ) -> Far {
        let far = around(&mut || builds::run(&mut command));
        let (expected, seen) = &mut *self.binary.borrow_mut();
        if !seen.iter().any(|seen| seen == name) {
            seen.push(name.to_owned());
            let mut again = Command::new(command.get_program());
            again.env_clear().arg("build");
            again.current_dir(command.get_current_dir().expect("a build has a directory"));
            again.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
            let binary = builds::binary(again, &self.work.join("app"));
            assert_eq!(*expected.get_or_insert(binary), binary, "{name} gives another binary");
        }
        far
    }

    fn native(&self) -> Far {
        self.timed("native", self.clone("native").go(&BUILD), Far::of)
    }

    fn floor(&self) -> Far {
        let builder = self.clone("floor");
        let mut command = builder.go(&BUILD);
        command.env("GOCACHEPROG", self.floor_command(None));
        self.timed("floor", command, Far::of)
    }

    fn floor_command(&self, trace: Option<&Path>) -> String {
        let dir = self.work.join("floor").join("cache");
        let trace = trace.map(|path| format!(" --trace {}", path.display())).unwrap_or_default();
        format!("{} {}{trace}", self.helpers[0].display(), dir.display())
    }

    /// Asks the far larder as any server of bytes.
    fn plain(&self, central: &Central, link: Link) -> Far {
        let builder = self.fresh("plain");
        let wan = Wan::start(central.daemon.addr(), link);
        let dir = builder.home.join("cache");
        let helper = format!("{} {} {}", self.helpers[1].display(), wan.url(), dir.display());
        let mut command = builder.go(&BUILD);
        command.env("GOCACHEPROG", helper);
        self.timed("plain", command, |build| central.counting(&wan, build))
    }

    /// Fetches and unpacks go's own cache, then builds with it. tar and zstd are the system's.
    fn tarball(&self, central: &Central, link: Link) -> Far {
        let builder = self.fresh("tarball");
        fs::create_dir_all(&builder.home).expect("a home can be made");
        let wan = Wan::start(central.streams.addr(), link);
        let clock = Clock::system();
        let mut unpacking = Command::new("tar")
            .args(["-x", "--use-compress-program=zstd -d", "-C"])
            .arg(&builder.home)
            .stdin(Stdio::piped())
            .spawn()
            .expect("tar starts");
        let mut pipe = unpacking.stdin.take().expect("its input is a pipe");
        stream::fetch(wan.addr(), TARBALL, &mut pipe);
        drop(pipe);
        let status = unpacking.wait().expect("a child can be waited for");
        assert!(status.success(), "tar with zstd ended with {status} (Debian: zstd)");
        let unpacked = clock.elapsed();
        let bytes = wan.bytes_down() + wan.bytes_up();
        self.timed("tarball", builder.go(&BUILD), |build| Far {
            took: unpacked + build(),
            requests: 1,
            bytes,
        })
    }

    /// The daemon runs already when the build begins, with nothing in its store.
    fn larder(&self, central: &Central, link: Link) -> Far {
        let builder = self.fresh("larder");
        let wan = Wan::start(central.daemon.addr(), link);
        let daemon = Daemon::start(&builder.home.join("larder"), &["--upstream", &wan.url()]);
        let mut command = builder.go(&BUILD);
        daemon.apply_to(&mut command);
        let far = self.timed("larder", command, |build| central.counting(&wan, build));
        assert!(daemon.count("requests/go/hit_upstream") > 0, "larder fetched nothing");
        far
    }
}

impl Central {
    /// Builds once more with larder, which uploads; makes everything else from go's own cache as the
    /// build without one has left it.
    pub(crate) fn fill(runner: &Runner<'_>) -> Self {
        let native = runner.clone("native");
        let daemon = Daemon::start(&runner.work.join("central"), &[]);
        let url = format!("http://{}", daemon.addr());
        let first = runner.fresh("first");
        let machine = Daemon::start(&first.home.join("larder"), &["--upstream", &url]);
        let mut command = first.go(&BUILD);
        machine.apply_to(&mut command);
        builds::run(&mut command);
        machine.flush();
        builds::fill_server(&native.gocache(), daemon.addr());
        builds::fill_floor(&native.gocache(), &runner.work.join("floor").join("cache"));
        let frames = frames(runner);
        let frames_len = frames.len() as u64;
        let streams = Streams::serve(vec![frames, tarball(&native.home)]);
        Self { daemon, streams, frames_len }
    }

    pub(crate) fn frames_len(&self) -> u64 {
        self.frames_len
    }

    fn stream(&self, link: Link) -> Far {
        let wan = Wan::start(self.streams.addr(), link);
        let clock = Clock::system();
        let got = stream::fetch(wan.addr(), FRAMES, &mut std::io::sink());
        assert_eq!(got, self.frames_len, "the stream is whole");
        Far { took: clock.elapsed(), requests: 1, bytes: got }
    }

    /// Counts what a build asks for here, and what the network carries for it.
    fn counting(&self, wan: &Wan, build: &mut dyn FnMut() -> Duration) -> Far {
        let before = self.requests();
        let took = build();
        let requests = self.requests() - before;
        assert!(requests > 0, "nobody asked the far cache");
        Far { took, requests, bytes: wan.bytes_down() + wan.bytes_up() }
    }

    fn requests(&self) -> u64 {
        let stats = self.daemon.stats();
        let count = |protocol: &str, what: &str| stats["requests"][protocol][what].as_u64();
        let counts = ["kv", "cas", "ac"].into_iter().flat_map(|protocol| {
            ["gets", "puts"].map(|what| count(protocol, what).expect("the statistics hold it"))
        });
        counts.sum()
    }
}

/// The outputs that a build uses, each as a frame of its own.
fn frames(runner: &Runner<'_>) -> Vec<u8> {
    let trace = runner.work.join("trace");
    let mut command = runner.clone("floor").go(&BUILD);
    command.env("GOCACHEPROG", runner.floor_command(Some(&trace)));
    builds::run(&mut command);
    let mut frames = Vec::new();
    for path in builds::outputs_used(&trace) {
        let output = fs::read(path).expect("an output can be read");
        frames.extend(zstd::bulk::compress(&output, ZSTD_LEVEL).expect("bytes can be compressed"));
    }
    frames
}

/// Go's own cache as a CI system would keep it.
fn tarball(home: &Path) -> Vec<u8> {
    let output = Command::new("tar")
        .args(["-c", &format!("--use-compress-program=zstd -{ZSTD_LEVEL}"), "-C"])
        .arg(home)
        .arg("gocache")
        .stdin(Stdio::null())
        .output()
        .expect("tar starts");
    assert!(output.status.success(), "tar with zstd failed (Debian: apt-get install -y zstd)");
    output.stdout
}

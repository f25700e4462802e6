//! The contenders of the cold runner: what each finds when it comes, and one build with it.
//!
//! Everything that a build is checked for is here; rounds and tables are the bench's, what lies far
//! away is `central`'s.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use larder::entry::Digest;
use larder::units::Clock;

use super::builds::{self, Builder};
use super::central::{Central, FIVE, TARBALL};
use super::machine::{Account, Machine};
use super::measure::Scale;
use super::module::{MAIN, Module, set_aside};
use super::stream;
use super::wan::{Link, Wan};
use super::what::What;
use crate::tools::install::{self, Go};

/// A contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Native,
    Floor,
    /// No build: the stream that is part of the bound.
    Stream,
    Plain,
    Tarball,
    /// Of a cache that holds five times what the build uses.
    TarballOfFive,
    Larder,
    /// Of another scope, for which upstream has entries and no manifest.
    LarderUnlisted,
}

impl Row {
    pub(crate) const ALL: [Self; 8] = [
        Self::Native,
        Self::Floor,
        Self::Stream,
        Self::Plain,
        Self::Tarball,
        Self::TarballOfFive,
        Self::Larder,
        Self::LarderUnlisted,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native GOCACHE, warm",
            Self::Floor => "floor helper, warm",
            Self::Stream => "stream",
            Self::Plain => "plain helper",
            Self::Tarball => "tarball of GOCACHE",
            Self::TarballOfFive => "tarball, 5 × what is used",
            Self::Larder => "larder",
            Self::LarderUnlisted => "no manifest, larder",
        }
    }
}

/// What one build took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Far {
    pub(crate) took: Duration,
    /// All questions that the network has seen.
    pub(crate) requests: u64,
    /// Both ways.
    pub(crate) bytes: u64,
    /// How long anybody waited for an answer, as the network saw it.
    pub(crate) open: Duration,
    /// What larder says.
    pub(crate) account: Option<Account>,
}

impl Far {
    /// A build that nothing far away has to do with.
    fn of(build: &mut dyn FnMut() -> Duration) -> Self {
        Self { took: build(), ..Self::default() }
    }

    /// A build that asks through this network, which nobody has used before.
    pub(crate) fn through(wan: &Wan, build: &mut dyn FnMut() -> Duration) -> Self {
        let took = build();
        let totals = wan.totals();
        let requests = totals.asked + totals.brought;
        let bytes = totals.bytes_up + totals.bytes_down;
        Self { took, requests, bytes, open: totals.waited, account: None }
    }
}

/// The machine that comes anew each time.
pub(crate) struct Runner<'a> {
    go: &'a Go,
    pub(crate) work: PathBuf,
    pub(crate) module: &'a Module,
    what: What,
    args: Vec<&'static str>,
    helpers: [PathBuf; 2],
    /// What one file of the build must be, and who has shown that his is.
    binary: RefCell<(Option<Digest>, Vec<String>)>,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(
        go: &'a Go,
        work: &Path,
        module: &'a Module,
        what: What,
        scale: Scale,
    ) -> Self {
        fs::create_dir_all(work).expect("a directory can be made");
        let helpers = ["floor_helper", "plain_helper"].map(install::example);
        let (work, binary) = (work.to_owned(), RefCell::default());
        Self { go, work, module, what, args: what.args(scale), helpers, binary }
    }

    /// Seconds of a build with an empty cache of go's own. The cache of the last one is what all
    /// others are made of.
    pub(crate) fn build_without_cache(&self) -> f64 {
        let native = self.fresh("native", MAIN);
        self.timed("native", &native, &|go| go, Far::of).took.as_secs_f64()
    }

    /// One build by a contender, or the stream.
    pub(crate) fn build(&self, row: Row, central: &Central, link: Link) -> Far {
        match row {
            Row::Native => self.timed("native", &self.clone("native", MAIN), &|go| go, Far::of),
            Row::Floor => self.floor(),
            Row::Stream => central.stream(link),
            Row::Plain => self.plain(central, link),
            Row::Tarball => self.tarball("tarball", TARBALL, central, link),
            Row::TarballOfFive => self.tarball("tarball of five", FIVE, central, link),
            Row::Larder => self.larder(&[], central, link),
            Row::LarderUnlisted => self.larder(&["--scope=another"], central, link),
        }
    }

    /// A fresh clone at the place where all build, and the named home as it is.
    pub(crate) fn clone(&self, home: &str, branch: &str) -> Builder<'a> {
        let src = self.work.join("src");
        self.module.clone_to(&src, branch);
        Builder { go: self.go, src, home: self.work.join(home) }
    }

    /// The same with an empty home.
    pub(crate) fn fresh(&self, home: &str, branch: &str) -> Builder<'a> {
        let builder = self.clone(home, branch);
        set_aside(&builder.home);
        fs::create_dir_all(&builder.home).expect("a home can be made");
        builder
    }

    /// The build.
    pub(crate) fn go(&self, builder: &Builder<'_>) -> Command {
        self.go_with(builder, &self.args)
    }

    /// go with other words. Tests are run again if they see another HOME, so that all have one.
    fn go_with(&self, builder: &Builder<'_>, args: &[&str]) -> Command {
        let mut command = builder.go(args);
        let user = self.work.join("user");
        command.env("GOPATH", user.join("gopath")).env("HOME", user);
        command
    }

    /// Builds, then checks a file of it against that of the others, the first time. `with` gives go
    /// its cache; `around` measures the build alone.
    fn timed(
        &self,
        name: &str,
        builder: &Builder<'_>,
        with: &dyn Fn(Command) -> Command,
        around: impl FnOnce(&mut dyn FnMut() -> Duration) -> Far,
    ) -> Far {
        let mut command = with(self.go(builder));
        let far = around(&mut || builds::run(&mut command));
        let (expected, seen) = &mut *self.binary.borrow_mut();
        if !seen.iter().any(|seen| seen == name) {
            seen.push(name.to_owned());
            let mut one = self.go_with(builder, &[]);
            let to = self.work.join("app");
            self.what.make_one(&mut one, &to);
            let binary = builds::made(with(one), &to);
            assert_eq!(*expected.get_or_insert(binary), binary, "{name} gives another binary");
        }
        far
    }

    fn floor(&self) -> Far {
        let helper = self.floor_command(None);
        let with = |mut go: Command| {
            go.env("GOCACHEPROG", &helper);
            go
        };
        self.timed("floor", &self.clone("floor", MAIN), &with, Far::of)
    }

    pub(crate) fn floor_command(&self, trace: Option<&Path>) -> String {
        let dir = self.work.join("floor").join("cache");
        let trace = trace.map(|path| format!(" --trace {}", path.display())).unwrap_or_default();
        format!("{} {}{trace}", self.helpers[0].display(), dir.display())
    }

    /// Asks the far larder as any server of bytes.
    fn plain(&self, central: &Central, link: Link) -> Far {
        let builder = self.fresh("plain", MAIN);
        let wan = Wan::start(central.addr(), link);
        let dir = builder.home.join("cache");
        let helper = format!("{} {} {}", self.helpers[1].display(), wan.url(), dir.display());
        let with = |mut go: Command| {
            go.env("GOCACHEPROG", &helper);
            go
        };
        self.timed("plain", &builder, &with, |build| Far::through(&wan, build))
    }

    /// Fetches and unpacks go's own cache, then builds with it. tar and zstd are the system's.
    fn tarball(&self, name: &str, number: u8, central: &Central, link: Link) -> Far {
        let builder = self.fresh("tarball", MAIN);
        let wan = Wan::start(central.streams(), link);
        let clock = Clock::system();
        let mut unpacking = Command::new("tar")
            .args(["-x", "--use-compress-program=zstd -d", "-C"])
            .arg(&builder.home)
            .stdin(Stdio::piped())
            .spawn()
            .expect("tar starts");
        let mut pipe = unpacking.stdin.take().expect("its input is a pipe");
        stream::fetch(wan.addr(), number, &mut pipe);
        drop(pipe);
        let status = unpacking.wait().expect("a child can be waited for");
        assert!(status.success(), "tar with zstd ended with {status} (Debian: zstd)");
        let unpacked = clock.elapsed();
        self.timed(name, &builder, &|go| go, |build| {
            let far = Far::through(&wan, build);
            Far { took: unpacked + far.took, ..far }
        })
    }

    /// `larder run` with nothing in its store and no daemon yet. What it tells others by its scope stays
    /// here, if that is not the one that they have.
    fn larder(&self, flags: &[&str], central: &Central, link: Link) -> Far {
        let builder = self.fresh("larder", MAIN);
        let wan = Wan::start(central.addr(), link);
        let of = if flags.is_empty() { Machine::new } else { Machine::reading };
        let machine = of(&builder.home.join("larder"), &wan.url());
        let with = |go: Command| machine.run(flags, &[], &go);
        let name = format!("larder{}", flags.concat());
        self.timed(&name, &builder, &with, |build| {
            let far = Far::through(&wan, build);
            let account = machine.account();
            assert!(far.requests > 0 && account.hits > 0, "larder fetched nothing");
            Far { account: Some(account), ..far }
        })
    }
}

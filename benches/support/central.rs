//! What lies far away from a cold machine: a larder that has seen the build, go's own cache in one
//! file, the frames of the bound; and how they are made.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use larder::units::Clock;

use super::builds;
use super::daemon::Daemon;
use super::machine::Machine;
use super::module::MAIN;
use super::runner::{Far, Runner};
use super::stream::{self, Streams};
use super::wan::{Link, Wan};

/// Numbers of the streams.
const FRAMES: u8 = 0;
pub(crate) const TARBALL: u8 = 1;
pub(crate) const FIVE: u8 = 2;
/// Of the frames and of the tarballs.
const ZSTD_LEVEL: i32 = 3;
/// What the bytes of each other build differ by from those of ours. Any bijection of bytes compresses
/// as well as they do, and finds nothing of them in the same window.
const OTHERS: [u8; 4] = [0x11, 0x22, 0x44, 0x88];

/// What was filled once, for all builds of a kind.
pub(crate) struct Central {
    daemon: Daemon,
    streams: Streams,
    frames_len: u64,
}

impl Central {
    /// Builds once more with larder, which uploads; makes everything else from go's own cache as the
    /// build without one has left it.
    pub(crate) fn fill(runner: &Runner<'_>) -> Self {
        let native = runner.clone("native", MAIN);
        let daemon = Daemon::start(&runner.work.join("central"), &[]);
        let first = runner.fresh("first", MAIN);
        let url = format!("http://{}", daemon.addr());
        let machine = Machine::new(&first.home.join("larder"), &url);
        builds::run(&mut machine.run(&["--flush=10m"], &[], &runner.go(&first)));
        let owed = machine.account().owed;
        assert_eq!(owed, 0, "not everything was uploaded");
        builds::fill_server(&native.gocache(), daemon.addr());
        let frames = frames(runner, &native.gocache());
        let frames_len = fs::metadata(&frames).expect("the frames are there").len();
        let work = &runner.work;
        let junk = others(&native.gocache(), &work.join("junk"));
        let tarballs = [work.join("tarball.zst"), work.join("five.zst")];
        tar(&[&native.home], &tarballs[0]);
        tar(&[&native.home, &junk], &tarballs[1]);
        fs::remove_dir_all(junk).expect("a directory can be removed");
        let [one, five] = tarballs;
        Self { daemon, streams: Streams::serve(vec![frames, one, five]), frames_len }
    }

    /// The far larder.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.daemon.addr()
    }

    pub(crate) fn streams(&self) -> SocketAddr {
        self.streams.addr()
    }

    pub(crate) fn frames_len(&self) -> u64 {
        self.frames_len
    }

    pub(crate) fn stream(&self, link: Link) -> Far {
        fetch_frames(&self.streams, self.frames_len, link)
    }
}

/// Fetches the frames, which must be the first of the streams.
pub(crate) fn fetch_frames(streams: &Streams, len: u64, link: Link) -> Far {
    let wan = Wan::start(streams.addr(), link);
    let clock = Clock::system();
    Far::through(&wan, &mut || {
        let got = stream::fetch(wan.addr(), FRAMES, &mut std::io::sink());
        assert_eq!(got, len, "the stream is whole");
        clock.elapsed()
    })
}

/// Gives the floor helper what is in go's own cache, builds with it, and writes the outputs that the
/// build uses to a file, each as a frame of its own.
pub(crate) fn frames(runner: &Runner<'_>, gocache: &Path) -> PathBuf {
    let builder = runner.clone("floor", MAIN);
    builds::fill_floor(gocache, &builder.home.join("cache"));
    let trace = runner.work.join("trace");
    let mut command = runner.go(&builder);
    command.env("GOCACHEPROG", runner.floor_command(Some(&trace)));
    builds::run(&mut command);
    let frames: Vec<u8> =
        builds::outputs_used(&trace).iter().flat_map(|path| frame(path)).collect();
    let to = runner.work.join("frames");
    fs::write(&to, frames).expect("a file can be written");
    to
}

/// A file as larder would send it.
pub(crate) fn frame(path: &Path) -> Vec<u8> {
    let output = fs::read(path).expect("an output can be read");
    zstd::bulk::compress(&output, ZSTD_LEVEL).expect("bytes can be compressed")
}

/// Four more builds' caches, as large and as dense as this one, with no file in common.
fn others(gocache: &Path, to: &Path) -> PathBuf {
    for (turn, other) in (1..).zip(OTHERS) {
        for dir in (0..=255).map(|first| gocache.join(format!("{first:02x}"))) {
            for file in fs::read_dir(dir).into_iter().flatten() {
                let path = file.expect("a directory can be listed").path();
                let name = path.file_name().and_then(|name| name.to_str()).expect("names are text");
                let (hex, kind) = name.split_at(name.len() - 2);
                let (last, first) = hex.split_at(turn * 7);
                let dir = to.join("gocache").join(&first[..2]);
                let mut bytes = fs::read(&path).expect("an entry can be read");
                bytes.iter_mut().for_each(|byte| *byte ^= other);
                fs::create_dir_all(&dir).expect("a directory can be made");
                fs::write(dir.join(format!("{first}{last}{kind}")), bytes).expect("it is written");
            }
        }
    }
    to.to_owned()
}

/// The `gocache` in these homes, as a CI system would keep it.
fn tar(homes: &[&Path], to: &Path) {
    let mut command = Command::new("tar");
    command.args(["-c", &format!("--use-compress-program=zstd -{ZSTD_LEVEL}"), "-f"]).arg(to);
    for home in homes {
        command.arg("-C").arg(home).arg("gocache");
    }
    let status = command.stdin(Stdio::null()).status().expect("tar starts");
    assert!(status.success(), "tar with zstd failed (Debian: apt-get install -y zstd)");
}

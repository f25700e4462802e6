//! Runs go for the benches, with one cache or another, and fills caches from what a native build
//! has left, so that not every contender has to compile everything first.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use larder::entry::Digest;
use larder::units::Clock;

use crate::tools::http;
use crate::tools::install::Go;

/// Any will do: no build looks at the age of an output.
const TIME: &str = "2026-01-01T00:00:00Z";

/// One way to build: a directory of sources, a home, and what else go is told.
pub(crate) struct Builder<'a> {
    pub(crate) go: &'a Go,
    pub(crate) src: PathBuf,
    pub(crate) home: PathBuf,
}

impl Builder<'_> {
    /// go as all contenders run it, with its own cache unless more is said.
    pub(crate) fn go(&self, args: &[&str]) -> Command {
        fs::create_dir_all(&self.home).expect("a home can be made");
        let mut command = self.go.command(&self.src, &self.home);
        // Asking git for the state of the clone is the same for all, and only adds noise.
        command.env("GOFLAGS", "-mod=mod -buildvcs=false").args(args);
        command
    }

    /// Where go keeps its own cache.
    pub(crate) fn gocache(&self) -> PathBuf {
        self.home.join("gocache")
    }
}

/// Runs a build to its end; one that fails is a panic with go's words.
pub(crate) fn run(command: &mut Command) -> Duration {
    run_with(command, |_| ())
}

/// The same; `started` learns the number of the process.
pub(crate) fn run_with(command: &mut Command, started: impl FnOnce(u32)) -> Duration {
    let clock = Clock::system();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("go starts");
    started(child.id());
    let output = child.wait_with_output().expect("a child can be waited for");
    let took = clock.elapsed();
    // Tests that fail say so on the one, compilers on the other.
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{command:?} failed: {said}");
    took
}

/// The digest of the binary that a build of the module makes.
pub(crate) fn binary(mut build: Command, to: &Path) -> Digest {
    build.arg("-o").arg(to).arg("./cmd/app");
    made(build, to)
}

/// The digest of what this makes at `to`.
pub(crate) fn made(mut build: Command, to: &Path) -> Digest {
    run(&mut build);
    let digest = Digest::of(&fs::read(to).expect("the binary is there"));
    fs::remove_file(to).expect("the binary can be removed");
    digest
}

/// An entry of go's own cache.
struct Native {
    action: Vec<u8>,
    output: Vec<u8>,
    size: u64,
    path: PathBuf,
}

/// All entries of go's own cache in `gocache`.
fn natives(gocache: &Path) -> Vec<Native> {
    let mut all = Vec::new();
    for first in 0..=255_u8 {
        let Ok(dir) = fs::read_dir(gocache.join(format!("{first:02x}"))) else { continue };
        for file in dir {
            let path = file.expect("a directory can be listed").path();
            if path.to_string_lossy().ends_with("-a") {
                all.extend(native(gocache, &path));
            }
        }
    }
    assert!(!all.is_empty(), "{} holds no entries", gocache.display());
    all
}

/// Reads `v1 ACTION OUTPUT SIZE TIME`; None if the output is gone.
fn native(gocache: &Path, path: &Path) -> Option<Native> {
    let text = fs::read_to_string(path).ok()?;
    let mut words = text.split_whitespace().skip(1);
    let (action, output, size) = (words.next()?, words.next()?, words.next()?);
    let bytes = |hex: &str| Digest::from_hex(hex).map(|digest| digest.0.to_vec());
    let path = gocache.join(&output[..2]).join(format!("{output}-d"));
    let entry = Native {
        action: bytes(action)?,
        output: bytes(output)?,
        size: size.parse().ok()?,
        path: path.clone(),
    };
    path.is_file().then_some(entry)
}

/// Makes a directory for the floor helper from go's own cache.
pub(crate) fn fill_floor(gocache: &Path, dir: &Path) {
    fs::create_dir_all(dir).expect("a directory can be made");
    let mut index = String::new();
    for entry in natives(gocache) {
        let (action, output) = (STANDARD.encode(&entry.action), STANDARD.encode(&entry.output));
        index += &format!("{action} {output} {} {TIME}\n", entry.size);
        let to = dir.join(larder::entry::digest::hex(&entry.output));
        fs::copy(&entry.path, to).expect("an output can be copied");
    }
    fs::write(dir.join("index"), index).expect("the index can be written");
}

/// Uploads go's own cache to a server as the plain helper has it.
pub(crate) fn fill_server(gocache: &Path, server: SocketAddr) {
    let mut known = BTreeSet::new();
    let hex = larder::entry::digest::hex;
    let put = |path: &str, body: &[u8]| {
        let answer = http::send(server, "PUT", path, body).expect("the server answers");
        assert!(answer.status < 300, "PUT {path}: {}", answer.status);
    };
    for entry in natives(gocache) {
        if known.insert(entry.output.clone()) {
            let body = fs::read(&entry.path).expect("an output can be read");
            put(&format!("/cas/{}", hex(&entry.output)), &body);
        }
        let text = format!("{} {} {TIME}", STANDARD.encode(&entry.output), entry.size);
        put(&format!("/ac/{}", hex(&entry.action)), text.as_bytes());
    }
}

/// The outputs in go's own cache.
pub(crate) fn outputs(gocache: &Path) -> BTreeSet<PathBuf> {
    natives(gocache).into_iter().map(|entry| entry.path).collect()
}

/// The distinct outputs that a build has used, by the trace of the floor helper.
pub(crate) fn outputs_used(trace: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(trace).expect("the helper wrote a trace");
    let path = |line: &str| Some(line.split_once("\"DiskPath\":\"")?.1.split_once('"')?.0.into());
    let mut seen = BTreeSet::new();
    text.lines().filter_map(path).filter(|path: &PathBuf| seen.insert(path.clone())).collect()
}

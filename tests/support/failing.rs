//! A disk that fails, for processes that are started so: `failing.c` is loaded before them, and numbers
//! that they share with the test say which of their calls fail, and how.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Kinds of calls, as `failing.c` numbers them.
pub(crate) const OPEN: u64 = 1;
pub(crate) const READ: u64 = 2;
pub(crate) const WRITE: u64 = 4;
pub(crate) const RENAME: u64 = 8;
pub(crate) const SYNC: u64 = 16;
pub(crate) const ALL: u64 = 127;

/// Reads and writes do half of what they were asked for.
pub(crate) const HALF: u64 = 0;
pub(crate) const EIO: u64 = 5;
pub(crate) const EMFILE: u64 = 24;
pub(crate) const ENOSPC: u64 = 28;
pub(crate) const EROFS: u64 = 30;

const COUNT: u64 = 0;
const FROM: u64 = 1;
const TO: u64 = 2;
const KINDS: u64 = 3;
const ERROR: u64 = 4;
const FAILED: u64 = 5;
const LOST_FROM: u64 = 6;
const LOST_TO: u64 = 7;

/// The calls below one directory, of all processes that were told of it.
pub(crate) struct FailingDisk {
    library: PathBuf,
    root: PathBuf,
    numbers: PathBuf,
}

impl FailingDisk {
    /// Nothing fails yet. What it needs itself is kept in `dir`, which is not below `root`.
    pub(crate) fn new(dir: &Path, root: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/failing.c");
        let library = dir.join("failing.so");
        if !library.exists() {
            let mut cc = Command::new("cc");
            cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source);
            assert!(cc.status().expect("a C compiler, as the index needs too").success());
        }
        let disk = Self { library, root: root.to_owned(), numbers: root.with_extension("calls") };
        std::fs::write(&disk.numbers, [0; 64]).expect("a test's directory can be written");
        disk
    }

    /// What makes a process use it.
    pub(crate) fn environment(&self) -> [(&'static str, &Path); 3] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAULT_ROOT", &self.root),
            ("FAULT_CONTROL", &self.numbers),
        ]
    }

    pub(crate) fn control(&self) -> Control {
        Control::open(&self.numbers)
    }
}

/// The numbers.
pub(crate) struct Control(File);

impl Control {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path);
        Self(file.expect("the numbers are there"))
    }

    fn number(&self, place: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, place * 8).expect("the numbers can be read");
        u64::from_le_bytes(bytes)
    }

    fn set(&self, place: u64, number: u64) {
        self.0.write_all_at(&number.to_le_bytes(), place * 8).expect("the numbers can be written");
    }

    pub(crate) fn calls(&self) -> u64 {
        self.number(COUNT)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.number(FAILED)
    }

    /// Calls of these kinds fail, from the one with number `from` on, so many calls long.
    pub(crate) fn fail(&self, kinds: u64, error: u64, from: u64, length: u64) {
        self.set(KINDS, kinds);
        self.set(ERROR, error);
        self.set(FROM, from);
        self.set(TO, from.saturating_add(length));
    }

    /// What these bytes of each segment are on can never be read again.
    pub(crate) fn lose(&self, bytes: std::ops::Range<u64>) {
        self.set(LOST_FROM, bytes.start);
        self.set(LOST_TO, bytes.end);
    }

    /// From now on nothing fails, but for what is lost.
    pub(crate) fn heal(&self) {
        self.set(TO, 0);
    }
}

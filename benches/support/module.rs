//! A Go module of the benches' own: many small packages that use each other and much of the
//! standard library, in a git repository to be cloned.
//!
//! The same text every time. Building it is `builds`'.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use super::measure::Scale;

/// What a package may import; each takes a few in turn.
const COMMON: [&str; 12] = [
    "bufio",
    "bytes",
    "cmp",
    "context",
    "encoding/hex",
    "errors",
    "fmt",
    "io",
    "maps",
    "path",
    "time",
    "unicode/utf8",
];
const HEAVY: [&str; 36] = [
    "archive/tar",
    "archive/zip",
    "compress/flate",
    "compress/gzip",
    "crypto/ecdsa",
    "crypto/ed25519",
    "crypto/rsa",
    "crypto/sha256",
    "crypto/tls",
    "crypto/x509",
    "database/sql",
    "encoding/asn1",
    "encoding/base64",
    "encoding/csv",
    "encoding/gob",
    "encoding/json",
    "encoding/xml",
    "expvar",
    "go/ast",
    "go/format",
    "go/parser",
    "go/types",
    "html/template",
    "image/jpeg",
    "image/png",
    "index/suffixarray",
    "log/slog",
    "math/big",
    "mime/multipart",
    "net",
    "net/http",
    "net/http/httptest",
    "net/rpc",
    "os/exec",
    "regexp",
    "text/template",
];
/// Types in a package, which is what makes its archive as large as usual.
const TYPES: usize = 12;

/// The branch that the repository begins with.
pub(crate) const MAIN: &str = "main";
/// The first of the packages that nearly all others use.
pub(crate) const DEEP: usize = 0;

/// A repository with the module in it.
#[derive(Debug)]
pub(crate) struct Module {
    dir: PathBuf,
    pub(crate) packages: usize,
}

impl Module {
    /// Writes the module to `dir` and commits it.
    pub(crate) fn write(dir: &Path, scale: Scale) -> Self {
        let (packages, heavy): (usize, &[&str]) = match scale {
            Scale::Full => (150, &HEAVY),
            Scale::Short => (30, &[]),
        };
        let std: Vec<&str> = COMMON.iter().chain(heavy).copied().collect();
        put(&dir.join("go.mod"), "module example.com/bench\n\ngo 1.24\n");
        let mut main = String::from("package main\n\nimport (\n");
        for number in 0..packages {
            put(&dir.join(format!("p{number:03}/p.go")), &package(number, &std));
            let _ = writeln!(main, "\t\"example.com/bench/p{number:03}\"");
        }
        main.push_str(")\n\nfunc main() {\n\tsum := 0\n");
        for number in 0..packages {
            let _ = writeln!(main, "\tsum += p{number:03}.Total({number})");
        }
        main.push_str("\tprintln(sum)\n}\n");
        put(&dir.join("cmd/app/main.go"), &main);
        let first = ["init", "-q", "-b", MAIN];
        for args in [&first[..], &["add", "-A"], &["commit", "-q", "-m", "All of it"]] {
            git(dir, args);
        }
        Self { dir: dir.to_owned(), packages }
    }

    /// A fresh clone of a branch at `to`, whatever was there before.
    pub(crate) fn clone_to(&self, to: &Path, branch: &str) {
        set_aside(to);
        let [from, to] = [&self.dir, to].map(|path| path.to_str().expect("a path is text"));
        git(Path::new("/"), &["clone", "-q", "--branch", branch, from, to]);
    }

    /// Goes on with another branch, made of this one if it is new.
    pub(crate) fn switch(&self, branch: &str) {
        let is_old = self.dir.join(".git/refs/heads").join(branch).is_file();
        let create = if is_old { &[][..] } else { &["-c"] };
        git(&self.dir, &[&["switch", "-q"], create, &[branch]].concat());
    }

    /// The package that the edit of this number is in: mostly one that few others use, now and then
    /// one in the middle, seldom one that nearly all use.
    pub(crate) fn edited(&self, number: usize) -> usize {
        match (number % 10, number % 4) {
            (0, _) => DEEP + number / 10 % 3,
            (_, 0) => self.packages / 2 + number % 5,
            _ => self.packages - 1 - number * 3 % (self.packages / 10),
        }
    }

    /// Commits an edit of one package that all who use it notice.
    pub(crate) fn edit(&self, package: usize, number: usize) {
        let path = self.dir.join(format!("p{package:03}/p.go"));
        let mut text = fs::read_to_string(&path).expect("a package can be read");
        let _ = write!(text, "\nfunc Edit{number}(n int) int {{\n\treturn n*{number} + 1\n}}\n");
        put(&path, &text);
        git(&self.dir, &["commit", "-q", "-a", "-m", &format!("Edit {number}")]);
    }
}

/// The text of one package: imports by turns, two packages before it, types with methods.
fn package(number: usize, std: &[&str]) -> String {
    let mut text = format!("package p{number:03}\n\nimport (\n\t\"sort\"\n\t\"strconv\"\n");
    text.push_str("\t\"strings\"\n");
    for turn in 0..4 {
        let _ = writeln!(text, "\t_ \"{}\"", std[(number * 4 + turn) % std.len()]);
    }
    let before: Vec<usize> = [1, 7].iter().filter_map(|back| number.checked_sub(*back)).collect();
    for other in &before {
        let _ = writeln!(text, "\n\t\"example.com/bench/p{other:03}\"");
    }
    text.push_str(")\n");
    for kind in 0..TYPES {
        let _ = write!(
            text,
            "
type T{kind} struct {{
	Name  string
	Sizes map[string]int
	Next  *T{kind}
}}

func (t *T{kind}) Names() []string {{
	var names []string
	for at := t; at != nil; at = at.Next {{
		for name, size := range at.Sizes {{
			names = append(names, strings.ToUpper(name)+strconv.Itoa(size+{number}))
		}}
	}}
	sort.Slice(names, func(i, j int) bool {{ return names[i] < names[j] }})
	return names
}}
"
        );
    }
    text.push_str("\nfunc Total(n int) int {\n\tsum := n\n");
    for kind in 0..TYPES {
        let _ = writeln!(text, "\tsum += len((&T{kind}{{Name: \"{number}\"}}).Names())");
    }
    for other in &before {
        let _ = writeln!(text, "\tsum += len(strconv.Itoa(p{other:03}.Total(0)))");
    }
    text.push_str("\treturn sum\n}\n");
    text
}

fn put(path: &Path, text: &str) {
    let parent = path.parent().expect("a file lies in a directory");
    fs::create_dir_all(parent).and_then(|()| fs::write(path, text)).expect("it can be written");
}

fn git(dir: &Path, args: &[&str]) {
    let output = Command::new("git")
        .args(["-c", "user.name=bench", "-c", "user.email=bench@example.com"])
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .stdin(Stdio::null())
        .output()
        .expect("git is installed (Debian: apt-get install -y git)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?} failed: {said}");
}

/// Out of the way of the next round, and there until the bench ends: ext4 takes no inode that was
/// freed in the last minutes, and looks long for others, which machines that are new need not.
pub(crate) fn set_aside(dir: &Path) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if dir.exists() {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside = format!("{name}.{}", NEXT.fetch_add(1, Ordering::Relaxed));
        fs::rename(dir, dir.with_file_name(aside)).expect("a directory can be moved");
    }
}

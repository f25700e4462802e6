//! Which index entries are of the toolchain's own packages: their keys are made of paths and times of
//! files that came out of an image or an archive, and so hold on every machine that has the same.
//!
//! How an index looks: cmd/go/internal/modindex, `go index v2`. What cannot be read is left as it is.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};
use std::time::Duration;

use crate::entry::Class;
use crate::units::Timestamp;

/// The largest index of one package that is looked into; the toolchain's largest have some 60 KiB.
const INDEX_MAX: u64 = 1 << 20;
/// A toolchain with younger files may have been unpacked by this very job, at a time that no other
/// machine's copy has.
const AGE_MIN: Duration = Duration::from_secs(86_400);
/// Times before 1990 are no one's: whoever made the files has set all of them alike.
const EPOCH: u64 = 631_152_000;
/// A toolchain that go has fetched for itself lies in the module cache, with the times of that.
const FETCHED: &str = "golang.org/toolchain@";
/// More files than a package has, and longer texts than are looked at.
const FILES_MAX: usize = 10_000;
const TEXT_MAX: usize = 4096;
/// Where the toolchain's modules begin, below its root.
const MODULES: [&str; 2] = ["src", "src/cmd"];
const MAGIC: &[u8] = b"go index v2\n";

/// The class of an output in place, now that its path and the toolchain's root are known.
pub(super) fn refined(class: Class, output: &Path, root: Option<&Path>, now: Timestamp) -> Class {
    let (Class::PackageIndex, Some(root)) = (class, root) else { return class };
    if root.to_str().is_none_or(|root| root.contains(FETCHED)) {
        return class;
    }
    let holds_elsewhere = || {
        let mut bytes = Vec::new();
        File::open(output).ok()?.take(INDEX_MAX).read_to_end(&mut bytes).ok()?;
        let package = Package::read(&bytes)?;
        let mut dirs = MODULES.iter().map(|module| root.join(module).join(package.dir));
        Some(dirs.any(|dir| package.is_of(&dir, now)))
    };
    if holds_elsewhere() == Some(true) { Class::ToolchainIndex } else { class }
}

/// What an index says of its package.
#[derive(Debug, PartialEq, Eq)]
struct Package<'a> {
    /// Below its module's directory.
    dir: &'a str,
    /// Its Go files.
    files: BTreeSet<&'a str>,
}

impl<'a> Package<'a> {
    fn read(index: &'a [u8]) -> Option<Self> {
        let index = Index::open(index)?;
        let header = MAGIC.len() + 8;
        let (dir, at) = (index.text(header)?, index.number(header + 4)?);
        let is_below = |part| matches!(part, Component::Normal(_));
        if dir.is_empty() || !Path::new(dir).components().all(is_below) {
            return None;
        }
        let count = index.number(at.checked_add(8)?).filter(|count| *count <= FILES_MAX)?;
        let offsets = at.checked_add(12)?;
        let mut files = BTreeSet::new();
        for n in 0..count {
            let file = index.number(offsets.checked_add(n.checked_mul(4)?)?)?;
            // After two errors and a synopsis.
            let name = index.text(file.checked_add(12)?)?;
            if is_go(name) {
                files.insert(name);
            }
        }
        Some(Self { dir, files })
    }

    /// Whether this directory has the package's files, and none that is too young.
    fn is_of(&self, dir: &Path, now: Timestamp) -> bool {
        let Ok(entries) = fs::read_dir(dir) else { return false };
        let mut seen = 0;
        for entry in entries {
            let Ok((entry, meta)) = entry.and_then(|entry| entry.metadata().map(|m| (entry, m)))
            else {
                return false;
            };
            if meta.is_dir() {
                continue;
            }
            let written = u64::try_from(meta.mtime()).unwrap_or(0);
            if written < EPOCH || now.since(Timestamp::from_seconds(written)) < AGE_MIN {
                return false;
            }
            let name = entry.file_name();
            if name.to_str().is_some_and(is_go) {
                if !self.files.contains(name.to_str().unwrap_or_default()) {
                    return false;
                }
                seen += 1;
            }
        }
        seen > 0 && seen == self.files.len()
    }
}

/// Go's own rule for what may be a source file.
fn is_go(name: &str) -> bool {
    name.ends_with(".go") && !name.starts_with(['_', '.'])
}

/// Numbers, and texts in a table at the end.
struct Index<'a> {
    bytes: &'a [u8],
    texts: &'a [u8],
}

impl<'a> Index<'a> {
    /// Of one package: after the magic line the offset of the texts and the number of packages.
    fn open(bytes: &'a [u8]) -> Option<Self> {
        bytes.starts_with(MAGIC).then_some(())?;
        let index = Self { bytes, texts: &[] };
        let texts = bytes.get(index.number(MAGIC.len())?..)?;
        (index.number(MAGIC.len() + 4)? == 1).then_some(Self { bytes, texts })
    }

    fn number(&self, at: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    }

    /// The text that the number at `at` refers to: its length as a varint, then its bytes.
    fn text(&self, at: usize) -> Option<&'a str> {
        let mut rest = self.texts.get(self.number(at)?..)?;
        let (mut len, mut shift) = (0_usize, 0);
        loop {
            let (byte, after) = rest.split_first()?;
            rest = after;
            len |= usize::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
        }
        let text = rest.get(..len).filter(|text| text.len() <= TEXT_MAX)?;
        std::str::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);

    /// As go writes it, as far as it is read here.
    fn index(dir: &str, files: &[&str]) -> Vec<u8> {
        fn refer(texts: &mut Vec<u8>, text: &str) -> u32 {
            let at = texts.len();
            let mut len = text.len();
            while len >= 0x80 {
                texts.push(u8::try_from(len & 0x7f | 0x80).unwrap());
                len >>= 7;
            }
            texts.push(u8::try_from(len).unwrap());
            texts.extend(text.bytes());
            u32::try_from(at).unwrap()
        }
        let mut texts = vec![0];
        let count = u32::try_from(files.len()).unwrap();
        let dir = refer(&mut texts, dir);
        let mut numbers = vec![1, dir, 28, 0, dir, count];
        numbers.extend((0..count).map(|n| 28 + 12 + 4 * count + 16 * n));
        for name in files {
            numbers.extend([0, 0, 0, refer(&mut texts, name)]);
        }
        let mut out = MAGIC.to_vec();
        out.extend(u32::try_from(16 + 4 * numbers.len()).unwrap().to_le_bytes());
        out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        out.extend(texts);
        out.push(0xff);
        out
    }

    /// A toolchain with some packages, as an archive from long ago has it.
    fn toolchain() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in [
            "src/fmt/doc.go",
            "src/fmt/print.go",
            "src/fmt/_old.go",
            "src/fmt/x.s",
            "src/cmd/go/main.go",
        ] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            written(&path, NOW.seconds() - 90_000);
        }
        root
    }

    fn written(path: &Path, seconds: u64) {
        let time: SystemTime = UNIX_EPOCH + Duration::from_secs(seconds);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    fn class_of(root: &Path, index: &[u8]) -> Class {
        let output = root.join("output");
        fs::write(&output, index).unwrap();
        refined(Class::PackageIndex, &output, Some(root), NOW)
    }

    #[test]
    fn indexes_of_the_toolchains_packages_are_told_from_a_checkouts() {
        let root = toolchain();
        let long = "long".repeat(50) + ".go";
        let cases: [(&str, &[&str], Class); 8] = [
            ("fmt", &["doc.go", "print.go", "x.s"], Class::ToolchainIndex),
            ("go", &["main.go"], Class::ToolchainIndex),
            ("cmd/go", &["main.go"], Class::ToolchainIndex),
            ("fmt", &["doc.go"], Class::PackageIndex),
            ("fmt", &["doc.go", "print.go", long.as_str()], Class::PackageIndex),
            ("fmt/", &[], Class::PackageIndex),
            ("name", &["name.go"], Class::PackageIndex),
            ("", &["main.go"], Class::PackageIndex),
        ];
        for (dir, files, class) in cases {
            assert_eq!(class_of(root.path(), &index(dir, files)), class, "{dir} {files:?}");
        }
        let long = "long/".repeat(50);
        let bytes = index(&long, &["a.go"]);
        assert_eq!(Package::read(&bytes).unwrap().dir, long);
    }

    /// What was unpacked by this very job has times that no other machine's copy has.
    #[test]
    fn a_toolchain_of_today_is_no_images() {
        let root = toolchain();
        let fmt = index("fmt", &["doc.go", "print.go"]);
        for (age, class) in [
            (86_401, Class::ToolchainIndex),
            (86_399, Class::PackageIndex),
            (0, Class::PackageIndex),
        ] {
            written(&root.path().join("src/fmt/x.s"), NOW.seconds() - age);
            assert_eq!(class_of(root.path(), &fmt), class, "{age} s");
        }
        written(&root.path().join("src/fmt/x.s"), NOW.seconds() + 60);
        assert_eq!(class_of(root.path(), &fmt), Class::PackageIndex, "from the future");
        written(&root.path().join("src/fmt/x.s"), 1);
        assert_eq!(class_of(root.path(), &fmt), Class::PackageIndex, "times that say nothing");
        // One that go has fetched for itself.
        let fetched = root.path().join("mod/golang.org/toolchain@v0.0.1-go1.26.6.linux-amd64");
        fs::create_dir_all(&fetched).unwrap();
        written(&root.path().join("src/fmt/x.s"), NOW.seconds() - 90_000);
        assert_eq!(class_of(root.path(), &fmt), Class::ToolchainIndex);
        fs::rename(root.path().join("src"), fetched.join("src")).unwrap();
        assert_eq!(class_of(&fetched, &fmt), Class::PackageIndex, "in the module cache");
    }

    #[test]
    fn what_leads_out_of_the_toolchain_or_is_cut_short_is_left_as_it_is() {
        let root = toolchain();
        let outside = root.path().join("src/fmt");
        let root = root.path().join("src/cmd");
        fs::create_dir_all(root.join("src")).unwrap();
        for dir in ["../../fmt", outside.to_str().unwrap(), "./../../fmt"] {
            let bytes = index(dir, &["doc.go", "print.go"]);
            assert_eq!(class_of(&root, &bytes), Class::PackageIndex, "{dir}");
        }
        let whole = index("fmt", &["doc.go", "print.go"]);
        for len in 0..whole.len() {
            // The end of the last text is not read.
            let read = Package::read(&whole[..len]);
            assert!(read.is_none() || len == whole.len() - 1, "{len}: {read:?}");
        }
        for at in MAGIC.len()..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            // Nonsense is none, or another package; never a panic.
            let _ = Package::read(&bytes);
        }
        assert_eq!(
            refined(Class::PackageIndex, &root.join("none"), Some(&root), NOW),
            Class::PackageIndex
        );
        assert_eq!(refined(Class::Archive, &root.join("none"), Some(&root), NOW), Class::Archive);
        assert_eq!(
            refined(Class::PackageIndex, &root.join("none"), None, NOW),
            Class::PackageIndex
        );
    }
}

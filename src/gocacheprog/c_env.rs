//! A fingerprint of this machine's C environment, for entries with C in them: go's keys name neither
//! headers nor libraries, so such an entry holds only where these are the same.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::entry::Hasher;

/// What the caller's environment says about C.
#[derive(Clone, Debug, Default)]
pub struct CInputs {
    /// `CC`, if it is set: a compiler and perhaps flags.
    pub cc: Option<OsString>,
    pub path: OsString,
}

/// What the fingerprint is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CFacts {
    pub os_release: Vec<u8>,
    /// The C library's path and size.
    pub libc: Option<(PathBuf, u64)>,
    /// The compiler's file name, after links, and its size.
    pub compiler: Option<(OsString, u64)>,
    /// `CC` as written: flags in it change what is compiled.
    pub cc: OsString,
}

const LIBC: [&str; 10] = [
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/aarch64-linux-gnu/libc.so.6",
    "/lib/arm-linux-gnueabihf/libc.so.6",
    "/lib/riscv64-linux-gnu/libc.so.6",
    "/lib/powerpc64le-linux-gnu/libc.so.6",
    "/lib/s390x-linux-gnu/libc.so.6",
    "/lib64/libc.so.6",
    "/lib/libc.so.6",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
];

/// Looks at this machine. A few calls of stat: cheap, but only done where it matters.
pub fn gather(inputs: &CInputs) -> CFacts {
    let os_release = ["/etc/os-release", "/usr/lib/os-release"]
        .iter()
        .find_map(|path| std::fs::read(path).ok())
        .unwrap_or_default();
    let libc = LIBC.iter().find_map(|path| {
        std::fs::metadata(path).ok().map(|meta| (PathBuf::from(path), meta.len()))
    });
    CFacts {
        os_release,
        libc,
        compiler: compiler(inputs),
        cc: inputs.cc.clone().unwrap_or_default(),
    }
}

fn compiler(inputs: &CInputs) -> Option<(OsString, u64)> {
    let written = inputs.cc.as_deref().and_then(first_word);
    let names: Vec<&OsStr> = match written {
        Some(name) => vec![name],
        None => vec![OsStr::new("gcc"), OsStr::new("cc"), OsStr::new("clang")],
    };
    names.into_iter().find_map(|name| {
        let path = std::fs::canonicalize(on_path(name, &inputs.path)?).ok()?;
        let size = std::fs::metadata(&path).ok()?.len();
        Some((path.file_name()?.to_owned(), size))
    })
}

fn first_word(text: &OsStr) -> Option<&OsStr> {
    let mut words = text.as_bytes().split(u8::is_ascii_whitespace);
    words.find(|word| !word.is_empty()).map(OsStr::from_bytes)
}

fn on_path(name: &OsStr, path: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name));
    }
    path.as_bytes()
        .split(|b| *b == b':')
        .filter(|dir| !dir.is_empty())
        .map(|dir| Path::new(OsStr::from_bytes(dir)).join(name))
        .find(|candidate| candidate.is_file())
}

/// The fingerprint; never zero, which stands for "does not matter".
pub fn fingerprint(facts: &CFacts) -> u64 {
    let mut hasher = Hasher::default();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(b"larder c 1");
    part(&facts.os_release);
    if let Some((path, size)) = &facts.libc {
        part(path.as_os_str().as_bytes());
        part(&size.to_le_bytes());
    }
    part(b"compiler");
    if let Some((name, size)) = &facts.compiler {
        part(name.as_bytes());
        part(&size.to_le_bytes());
    }
    part(facts.cc.as_bytes());
    let digest = hasher.finish();
    let head: [u8; 8] = digest.0[..8].try_into().expect("a digest has 32 bytes");
    u64::from_le_bytes(head).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> CFacts {
        CFacts {
            os_release: b"ID=debian\n".to_vec(),
            libc: Some(("/lib64/libc.so.6".into(), 7)),
            compiler: Some(("gcc-12".into(), 9)),
            cc: OsString::new(),
        }
    }

    #[test]
    fn every_fact_counts_and_the_same_facts_agree() {
        let base = fingerprint(&facts());
        assert_eq!(base, fingerprint(&facts()));
        let others = [
            CFacts { os_release: b"ID=alpine\n".to_vec(), ..facts() },
            CFacts { libc: None, ..facts() },
            CFacts { libc: Some(("/lib64/libc.so.6".into(), 8)), ..facts() },
            CFacts { compiler: Some(("gcc-13".into(), 9)), ..facts() },
            CFacts { compiler: None, ..facts() },
            CFacts { cc: "gcc -m32".into(), ..facts() },
        ];
        for other in others {
            assert_ne!(base, fingerprint(&other), "{other:?}");
        }
        assert_ne!(fingerprint(&CFacts::default()), 0);
    }

    #[test]
    fn the_compiler_is_found_as_the_shell_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("real-cc-9"), "12345").unwrap();
        std::os::unix::fs::symlink("real-cc-9", dir.path().join("mycc")).unwrap();
        let mut path = OsString::from("/nonexistent::");
        path.push(dir.path());
        let by_name = CInputs { cc: Some("  mycc -m32".into()), path: path.clone() };
        assert_eq!(gather(&by_name).compiler, Some(("real-cc-9".into(), 5)));
        let missing = CInputs { cc: Some("nothing-like-it".into()), path };
        assert_eq!(gather(&missing).compiler, None);
        let full = dir.path().join("mycc").into_os_string();
        let by_path = CInputs { cc: Some(full), path: OsString::new() };
        assert_eq!(gather(&by_path).compiler, Some(("real-cc-9".into(), 5)));
    }
}

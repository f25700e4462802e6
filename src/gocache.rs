//! Go's own cache directory, read: what a native build has left there is as good as ours.
//!
//! ```text
//! xx/ACTION-a   v1 ACTION OUTPUT SIZE NANOSECONDS\n    hexadecimal; numbers in 20 columns, 175 bytes
//! xx/OUTPUT-d   the output
//! ```
//!
//! Nothing is verified here: whoever copies an output hashes it. Nothing is ever written here either,
//! and what is read is not marked as used, so go's own trimming goes on as if we were not there.

use std::path::{Path, PathBuf};

use crate::entry::Digest;
use crate::units::Timestamp;

const ENTRY_LEN: usize = 2 + 1 + 64 + 1 + 64 + 1 + 20 + 1 + 20 + 1;

/// A GOCACHE directory.
#[derive(Clone, Debug)]
pub struct Native {
    dir: PathBuf,
}

/// What go knows of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub output: Digest,
    pub size: u64,
    pub time: Timestamp,
}

impl Native {
    /// The cache in `dir`, if there is one.
    pub fn open(dir: &Path) -> Option<Self> {
        // Go makes all 256 directories at once; under GOCACHEPROG they are there, but empty.
        dir.join("00").is_dir().then(|| Self { dir: dir.to_owned() })
    }

    pub fn lookup(&self, action: &Digest) -> Option<Known> {
        parse(&std::fs::read(self.path(action, 'a')).ok()?, action)
    }

    /// Where an output is, if it is there.
    pub fn data_path(&self, output: &Digest) -> PathBuf {
        self.path(output, 'd')
    }

    fn path(&self, id: &Digest, kind: char) -> PathBuf {
        let hex = id.to_string();
        self.dir.join(&hex[..2]).join(format!("{hex}-{kind}"))
    }
}

/// Reads an entry as strictly as go does.
fn parse(entry: &[u8], action: &Digest) -> Option<Known> {
    if entry.len() != ENTRY_LEN {
        return None;
    }
    let line = std::str::from_utf8(entry).ok()?.strip_suffix('\n')?;
    let rest = line.strip_prefix("v1 ")?;
    let (id, rest) = rest.split_at_checked(64)?;
    let (output, rest) = rest.strip_prefix(' ')?.split_at_checked(64)?;
    let (size, time) = rest.strip_prefix(' ')?.split_at_checked(20)?;
    let number = |text: &str| text.trim_start_matches(' ').parse::<u64>().ok();
    (Digest::from_hex(id)? == *action).then_some(())?;
    Some(Known {
        output: Digest::from_hex(output)?,
        size: number(size)?,
        time: Timestamp(number(time.strip_prefix(' ')?)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ACTION: Digest = Digest([0xab; 32]);
    const OUTPUT: Digest = Digest([0x01; 32]);

    fn fixture() -> Vec<u8> {
        let mut entry = b"v1 ".to_vec();
        entry.extend_from_slice("ab".repeat(32).as_bytes());
        entry.push(b' ');
        entry.extend_from_slice("01".repeat(32).as_bytes());
        entry.extend_from_slice(b"                 1234");
        entry.extend_from_slice(b"  1700000000000000042\n");
        entry
    }

    #[test]
    fn an_entry_that_go_wrote_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Native::open(dir.path()).is_none());
        for name in ["00", "ab"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let path = dir.path().join("ab").join(format!("{}-a", "ab".repeat(32)));
        std::fs::write(path, fixture()).unwrap();
        let native = Native::open(dir.path()).unwrap();
        let time = Timestamp(1_700_000_000_000_000_042);
        assert_eq!(native.lookup(&ACTION), Some(Known { output: OUTPUT, size: 1234, time }));
        assert_eq!(native.lookup(&OUTPUT), None);
        assert!(native.data_path(&OUTPUT).ends_with(format!("01/{}-d", "01".repeat(32))));
    }

    #[test]
    fn an_entry_of_another_action_or_length_is_none() {
        let entry = fixture();
        assert_eq!(entry.len(), 175);
        assert!(parse(&entry, &ACTION).is_some());
        assert_eq!(parse(&entry, &OUTPUT), None);
        assert_eq!(parse(&entry[..174], &ACTION), None);
        let negative = String::from_utf8(entry).unwrap().replace(" 1234", "-1234");
        assert_eq!(parse(negative.as_bytes(), &ACTION), None);
    }

    proptest! {
        #[test]
        fn any_damage_is_read_or_refused(at in 0_usize..175, byte: u8) {
            let mut entry = fixture();
            entry[at] = byte;
            let _ = parse(&entry, &ACTION);
        }
    }
}

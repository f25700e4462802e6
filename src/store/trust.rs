//! Whether the index on disk may be mapped as it is, or must be read through first.
//!
//! What this machine has written since it was started is in its memory, and is what LMDB wrote. After
//! a boot, a copy or a change by somebody else it may be anything. A note beside the index says which:
//!
//! ```text
//! 2 open BOOT INODE ENDS               a daemon has it; ENDS: that died with it since it was sound
//! 2 closed BOOT INODE MTIME SIZE       as the last daemon left it
//! ```
//!
//! The number is the index's version: one of another version is read through, found to be none of ours, and
//! built again.

use std::io;
use std::os::unix::fs::MetadataExt;

use crate::store::layout::{self, Layout};

/// A daemon that has died twice in a row may have died of the index.
const ENDS_MAX: u64 = 1;

/// Since 2, values have checksums.
const VERSION: &str = "2";

/// How the index stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    Open { ends: u64 },
    Closed,
}

/// What the note says of the index that is there. None: nothing that holds for it.
fn read(layout: &Layout) -> Option<Note> {
    let text = std::fs::read_to_string(layout.trust()).ok()?;
    let index = std::fs::metadata(layout.index().join("data.mdb")).ok()?;
    let mut words = text.split_whitespace();
    let state = words.next().filter(|version| *version == VERSION).and_then(|_| words.next())?;
    let numbers = words.map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?;
    match (state, &numbers[..]) {
        ("open", [boot, inode, ends]) if (*boot, *inode) == (layout::boot(), index.ino()) => {
            Some(Note::Open { ends: *ends })
        }
        ("closed", closed) if closed == state_of(&index) => Some(Note::Closed),
        _ => None,
    }
}

fn state_of(index: &std::fs::Metadata) -> [u64; 4] {
    let stamp = layout::stamp(index, layout::boot());
    [stamp.boot, stamp.inode, stamp.mtime, index.len()]
}

/// Whether a process that only reads may map it.
pub(super) fn is_sound(layout: &Layout) -> bool {
    read(layout).is_some()
}

/// Whether the daemon may open it without looking, and how many have died with it since.
pub(super) fn is_known(layout: &Layout) -> Option<u64> {
    match read(layout)? {
        Note::Closed => Some(0),
        Note::Open { ends } => (ends < ENDS_MAX).then_some(ends + 1),
    }
}

pub(super) fn note_open(layout: &Layout, ends: u64) -> io::Result<()> {
    let index = std::fs::metadata(layout.index().join("data.mdb"))?;
    write(layout, &format!("{VERSION} open {} {} {ends}\n", layout::boot(), index.ino()))
}

/// Nobody vouches for it any more.
pub(super) fn note_nothing(layout: &Layout) {
    // One that cannot be removed tells of a store that cannot be written: nothing has changed there.
    let _ = std::fs::remove_file(layout.trust());
}

pub(super) fn note_closed(layout: &Layout) -> io::Result<()> {
    let index = std::fs::metadata(layout.index().join("data.mdb"))?;
    let words = state_of(&index).map(|number| number.to_string());
    write(layout, &format!("{VERSION} closed {}\n", words.join(" ")))
}

/// Whoever reads sees the old or the new; a power cut makes both void.
fn write(layout: &Layout, text: &str) -> io::Result<()> {
    let beside = layout.trust().with_extension("new");
    std::fs::write(&beside, text)?;
    std::fs::rename(beside, layout.trust())
}

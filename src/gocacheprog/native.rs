//! A laptop's warm native cache as a source: a local miss is copied from there, verified, and told to
//! the daemon as if it had been built.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use crate::entry::Digest;
use crate::gocache::{Known, Native};
use crate::gocacheprog::bodies::class_of;
use crate::gocacheprog::places::Places;

/// An output that is in place here now.
#[derive(Debug)]
pub(super) struct Adopted {
    pub(super) known: Known,
    pub(super) path: PathBuf,
}

/// Copies the output of an action, if the native cache has it and its bytes are right.
pub(super) fn adopt(native: &Native, places: &Places, action: &Digest) -> Option<Adopted> {
    let known = native.lookup(action)?;
    if places.reader.has_output(&known.output, known.size) {
        return Some(Adopted { known, path: places.reader.path(&known.output) });
    }
    let file = File::open(native.data_path(&known.output)).ok()?;
    if file.metadata().ok()?.len() != known.size {
        return None;
    }
    let mut staged = places.reader.stage();
    // One byte more than announced shows that the file has grown meanwhile.
    let mut source = file.take(known.size + 1);
    let mut piece = vec![0; 256 << 10];
    loop {
        match source.read(&mut piece).ok()? {
            0 => break,
            len => staged.write(&piece[..len]).ok()?,
        }
    }
    let mut finished = staged.finish();
    if finished.digest != known.output || finished.size != known.size {
        return None;
    }
    let path = places.place(&mut finished).ok()?;
    Some(Adopted { known, path })
}

impl Adopted {
    pub(super) fn class(&self) -> crate::entry::Class {
        class_of(&self.path, self.known.size)
    }
}

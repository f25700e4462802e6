//! Small files that a daemon leaves for the next one. Nothing depends on them: what is lost or
//! damaged is learned again, and whoever writes a note checks what it reads.

use std::io::Read;

use crate::store::Store;

const NOTE_MAX: u64 = 64 << 10;

impl Store {
    /// What was kept under a name of our own making.
    pub fn note(&self, name: &str) -> Option<Vec<u8>> {
        let file = std::fs::File::open(self.inner.layout.notes().join(name)).ok()?;
        let mut bytes = Vec::new();
        file.take(NOTE_MAX).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    pub fn keep_note(&self, name: &str, bytes: &[u8]) {
        let dir = self.inner.layout.notes();
        let (new, place) = (dir.join(format!("{name}.new")), dir.join(name));
        let kept = std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(&new, bytes))
            .and_then(|()| std::fs::rename(&new, &place));
        if let Err(error) = kept {
            tracing::debug!(%error, name, "store: a note was not kept");
        }
    }
}

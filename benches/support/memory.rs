//! Memory as a machine has it that has been up for long: full of pages of files.
//!
//! A fresh virtual machine has to ask its host for each page that it uses for the first time, which may
//! take longer than whatever is written there. Measured on one, all that writes files looks alike.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// Reads a file of holes in `dir` that is as large as free memory. Nothing is gained where `dir` is in memory
/// itself, or where this process may not have all of it. The kernel takes its pages again for
/// whatever is written next; the file must stay until then.
pub(crate) fn fill(dir: &Path) {
    let Some(free) = free_bytes() else { return };
    let path = dir.join("holes");
    let file = File::options().create_new(true).read(true).write(true).open(path);
    let mut file = file.expect("a file can be made");
    file.set_len(free).expect("a file can have holes");
    let mut piece = vec![0; 1 << 20];
    while file.read(&mut piece).expect("a file can be read") > 0 {}
}

/// As Linux says it.
fn free_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemFree:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

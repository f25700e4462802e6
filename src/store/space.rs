//! How much the store may hold: its limit, and the free space that it leaves alone.

use std::io;
use std::path::PathBuf;

use crate::store::segment::{INLINE_BODY_MAX, SEGMENT_MAX};
use crate::store::{Config, Limit};
use crate::units::{ByteSize, Percent};

/// Where nobody set a limit: half of what is free beside the store, up to this.
const DEFAULT_MAX: ByteSize = ByteSize::gib(50);
/// Where nobody set a floor: this or a twentieth of the file system, whichever is less.
const FLOOR_MAX: ByteSize = ByteSize::gib(1);
const FLOOR_SHARE: Percent = Percent(5);

/// Files that the file system must be able to hold besides; of one that holds few, a share of all.
const FILES_MIN: u64 = 256;
/// That share, and the one of the store's files that goes at a time where few are left.
const FILES_SHARE: u64 = 20;

/// Shorter segments would be too many files.
const SEGMENT_MIN: u64 = 128 << 10;

/// See the module.
#[derive(Debug)]
pub struct Space {
    dir: PathBuf,
    limit: u64,
    floor: u64,
}

/// What a file system has, for those who may not use the reserve.
struct FileSystem {
    size: u64,
    free: u64,
    /// Files that can be made, and how many are left alone: none where they are not counted.
    files: u64,
    files_min: u64,
}

fn file_system(dir: &PathBuf) -> io::Result<FileSystem> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(FileSystem {
        size: stat.f_blocks.saturating_mul(stat.f_frsize),
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        files: stat.f_favail,
        files_min: FILES_MIN.min(stat.f_files / FILES_SHARE),
    })
}

const fn default_limit(free: u64, own: u64) -> u64 {
    let (half, most) = (free.saturating_add(own) / 2, DEFAULT_MAX.bytes());
    if half < most { half } else { most }
}

impl Space {
    /// `own`: what the store holds already. Of a limit that nobody set that is a part, or a store would
    /// give up half of itself at each start.
    pub fn new(config: &Config, own: u64) -> io::Result<Self> {
        let FileSystem { size, free, .. } = file_system(&config.dir)?;
        let resolve = |limit: Limit| match limit {
            Limit::Size(bytes) => bytes.bytes(),
            Limit::Share(share) => share.of(size),
        };
        let limit = config.disk.map_or_else(|| default_limit(free, own), resolve);
        let floor =
            config.floor.map_or_else(|| FLOOR_SHARE.of(size).min(FLOOR_MAX.bytes()), resolve);
        Ok(Self { dir: config.dir.clone(), limit, floor })
    }

    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes after which a new segment is begun: segments are given up whole, so that of a small
    /// store each is a small part.
    pub fn segment_max(&self) -> u64 {
        (self.limit / 16).clamp(SEGMENT_MIN, SEGMENT_MAX)
    }

    pub fn free(&self) -> u64 {
        file_system(&self.dir).map_or(0, |now| now.free)
    }

    /// Whether `more` bytes fit, with `used` bytes in the store. Of those, `placed` ones lie in the file
    /// system already.
    pub fn has_room(&self, used: u64, more: u64, placed: u64) -> bool {
        used.saturating_add(more) <= self.limit
            && file_system(&self.dir).is_ok_and(|now| {
                // What is small may become a file too: for that, and for the store's own, half is kept. What
                // is placed has its file.
                let is_small = more <= INLINE_BODY_MAX as u64;
                let least = if is_small { now.files_min / 2 } else { now.files_min };
                (placed > 0 || now.files >= least)
                    && now.free.saturating_add(placed) >= self.floor.saturating_add(more)
            })
    }

    /// Whether `more` bytes could ever fit, were the `used` ones all given up.
    pub fn could_have_room(&self, used: u64, more: u64) -> bool {
        let free = self.free().saturating_add(used);
        more <= self.limit && free >= self.floor.saturating_add(more)
    }

    /// Bytes to give up so that new entries find room again: a twentieth of the limit is kept free,
    /// and the floor; and so that `wish` more bytes find room. Where files run out, a part of what
    /// is `in_files`.
    pub fn excess(&self, used: u64, in_files: u64, wish: u64) -> u64 {
        let high = self.limit - self.limit / 20;
        let over_limit = if used > high { used - (self.limit - self.limit / 10) } else { 0 };
        let over_limit = over_limit.max(used.saturating_add(wish).saturating_sub(self.limit));
        let now = file_system(&self.dir).ok();
        let free = now.as_ref().map_or(0, |now| now.free);
        let wanted = self.floor.saturating_add(wish.max(self.floor / 8));
        let under_floor = wanted.saturating_sub(free);
        // Before there are too few.
        let is_short = now.is_some_and(|now| now.files < 2 * now.files_min);
        let for_files = if is_short { in_files / FILES_SHARE } else { 0 };
        over_limit.max(under_floor.min(used)).max(for_files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(disk: u64, floor: u64) -> Space {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            dir: dir.path().into(),
            disk: Some(Limit::Size(ByteSize(disk))),
            floor: Some(Limit::Size(ByteSize(floor))),
        };
        Space::new(&config, 0).map(|space| Space { dir: "/".into(), ..space }).unwrap()
    }

    #[test]
    fn the_limit_is_never_passed() {
        let space = space(1000, 0);
        assert!(space.has_room(900, 100, 0));
        assert!(!space.has_room(900, 101, 100));
        assert!(!space.has_room(u64::MAX, 1, 0));
    }

    #[test]
    fn eviction_begins_before_the_limit_and_makes_room() {
        let space = space(1000, 0);
        assert_eq!(space.excess(950, 0, 0), 0);
        assert_eq!(space.excess(951, 0, 0), 51);
    }

    #[test]
    fn room_is_made_for_what_is_larger_than_what_is_kept_free() {
        let space = space(1000, 0);
        assert_eq!(space.excess(900, 0, 100), 0);
        assert_eq!(space.excess(900, 0, 130), 30);
        assert_eq!(space.excess(951, 0, 52), 51);
    }

    #[test]
    fn the_floor_of_free_space_is_left_alone() {
        let space = space(1000, u64::MAX / 2);
        assert!(!space.has_room(0, 1, 0));
        assert_eq!(space.excess(500, 0, 0), 500);
    }

    #[test]
    fn what_could_never_fit_is_no_reason_to_make_room() {
        let space = space(1000, 0);
        assert!(space.could_have_room(1000, 1000));
        assert!(!space.could_have_room(1000, 1001));
        let floor = space.free() * 2;
        let under = Space { floor, ..space };
        assert!(!under.could_have_room(1000, 1));
    }

    /// Half of what was free beside it was the limit: a store that had grown to half of the disk was to be
    /// a quarter of it at the next start.
    #[test]
    fn a_store_that_has_grown_keeps_its_limit() {
        let gib = |n| ByteSize::gib(n).bytes();
        assert_eq!(default_limit(gib(60), 0), gib(30));
        assert_eq!(default_limit(gib(32), gib(28)), gib(30));
        assert_eq!(default_limit(gib(500), 0), gib(50));
    }

    /// A body in a file of its own was asked room for once more.
    #[test]
    fn what_lies_on_the_disk_already_needs_no_free_space() {
        let floor = space(1 << 40, 0).free().saturating_sub(1 << 30);
        let space = Space { floor, ..space(1 << 40, 0) };
        let more = 4 << 30;
        assert!(!space.has_room(0, more, 0));
        assert!(space.has_room(0, more, more));
        assert!(!space.has_room(1 << 40, more, more), "the limit is the limit");
    }
}

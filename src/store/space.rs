//! How much the store may hold: its limit, and the free space that it leaves alone.

use std::io;
use std::path::PathBuf;

use crate::store::segment::SEGMENT_MAX;
use crate::store::{Config, Limit};
use crate::units::{ByteSize, Percent};

/// Where nobody set a limit: half of what is free, up to this.
const DEFAULT_MAX: ByteSize = ByteSize::gib(50);
/// Where nobody set a floor: this or a twentieth of the file system, whichever is less.
const FLOOR_MAX: ByteSize = ByteSize::gib(1);
const FLOOR_SHARE: Percent = Percent(5);

/// Shorter segments would be too many files.
const SEGMENT_MIN: u64 = 128 << 10;

/// See the module.
#[derive(Debug)]
pub struct Space {
    dir: PathBuf,
    limit: u64,
    floor: u64,
}

/// Size and free space of the file system, for those who may not use the reserve.
fn file_system(dir: &PathBuf) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

impl Space {
    pub fn new(config: &Config) -> io::Result<Self> {
        let (size, free) = file_system(&config.dir)?;
        let resolve = |limit: Limit| match limit {
            Limit::Size(bytes) => bytes.bytes(),
            Limit::Share(share) => share.of(size),
        };
        let limit = config.disk.map_or_else(|| (free / 2).min(DEFAULT_MAX.bytes()), resolve);
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
        file_system(&self.dir).map_or(0, |(_, free)| free)
    }

    /// Whether `more` bytes fit, with `used` bytes in the store. Small ones always ask for a page.
    pub fn has_room(&self, used: u64, more: u64) -> bool {
        used.saturating_add(more) <= self.limit && self.free() >= self.floor.saturating_add(more)
    }

    /// Bytes to give up so that new entries find room again: a twentieth of the limit is kept free,
    /// and the floor; and so that `wish` more bytes find room.
    pub fn excess(&self, used: u64, wish: u64) -> u64 {
        let high = self.limit - self.limit / 20;
        let over_limit = if used > high { used - (self.limit - self.limit / 10) } else { 0 };
        let over_limit = over_limit.max(used.saturating_add(wish).saturating_sub(self.limit));
        let free = self.free();
        let wanted = self.floor.saturating_add(wish.max(self.floor / 8));
        let under_floor = wanted.saturating_sub(free);
        over_limit.max(under_floor.min(used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(disk: u64, floor: u64) -> Space {
        let dir = tempfile::tempdir().unwrap();
        Space::new(&Config {
            dir: dir.path().into(),
            disk: Some(Limit::Size(ByteSize(disk))),
            floor: Some(Limit::Size(ByteSize(floor))),
        })
        .map(|space| Space { dir: "/".into(), ..space })
        .unwrap()
    }

    #[test]
    fn the_limit_is_never_passed() {
        let space = space(1000, 0);
        assert!(space.has_room(900, 100));
        assert!(!space.has_room(900, 101));
        assert!(!space.has_room(u64::MAX, 1));
    }

    #[test]
    fn eviction_begins_before_the_limit_and_makes_room() {
        let space = space(1000, 0);
        assert_eq!(space.excess(950, 0), 0);
        assert_eq!(space.excess(951, 0), 51);
    }

    #[test]
    fn room_is_made_for_what_is_larger_than_what_is_kept_free() {
        let space = space(1000, 0);
        assert_eq!(space.excess(900, 100), 0);
        assert_eq!(space.excess(900, 130), 30);
        assert_eq!(space.excess(951, 52), 51);
    }

    #[test]
    fn the_floor_of_free_space_is_left_alone() {
        let space = space(1000, u64::MAX / 2);
        assert!(!space.has_room(0, 1));
        assert_eq!(space.excess(500, 0), 500);
    }
}

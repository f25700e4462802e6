//! Reading on where a disk has sectors that it cannot give any more: what lies there is lost, and not the
//! start. Only for who reads a segment to learn what is in it; who gives one up must know all of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::tasks::sync;
use crate::units::Clock;

/// What a disk gives or fails to give as a whole, at most.
const SECTOR: u64 = 4096;
/// A fault passes if one of so many rounds reads what the others could not, or one within this time.
const ROUNDS: usize = 30;
const PATIENCE: Duration = Duration::from_secs(10);
/// Where none of so many can be read it is not the sectors.
const MANY: usize = 8;
const PAUSE: Duration = Duration::from_millis(100);
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// A file, and what of it was found to be lost.
pub(super) struct Sectors<'a> {
    file: &'a File,
    /// Another file of the same disk: while that cannot be read either, nothing is known of a sector.
    control: &'a File,
    clock: &'a Clock,
    /// Their numbers.
    lost: BTreeSet<u64>,
}

impl<'a> Sectors<'a> {
    pub(super) const fn new(file: &'a File, control: &'a File, clock: &'a Clock) -> Self {
        Self { file, control, clock, lost: BTreeSet::new() }
    }

    /// Fills `bytes` from `at`. Sectors that are lost are zeros, which is no record.
    pub(super) fn read(&mut self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let (file, control, clock) = (self.file, self.control, self.clock);
        let before = self.lost.len();
        let began = clock.elapsed();
        let waited = || clock.elapsed().saturating_sub(began);
        let read = |bytes: &mut [u8], at: u64| file.read_exact_at(bytes, at);
        read_by(bytes, at, &mut self.lost, (read, waited), || {
            // From the disk, and not from what is kept of it.
            let _ = rustix::fs::fadvise(control, 0, None, rustix::fs::Advice::DontNeed);
            control.read_exact_at(&mut [0], 0)?;
            sync::sleep(PAUSE);
            Ok(())
        })?;
        if self.lost.len() > before {
            tracing::error!(
                at,
                sectors = self.lost.len() - before,
                "store: the disk cannot read a part of a segment; what the index did not know of it is lost"
            );
        }
        Ok(())
    }
}

/// `pause` fails where the whole disk does.
fn read_by(
    bytes: &mut [u8],
    at: u64,
    lost: &mut BTreeSet<u64>,
    (mut read, waited): (impl FnMut(&mut [u8], u64) -> io::Result<()>, impl Fn() -> Duration),
    mut pause: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let error = match read(bytes, at) {
        Err(error) if error.raw_os_error() == Some(EIO) => error,
        other => return other,
    };
    let end = at + bytes.len() as u64;
    let mut missing: Vec<u64> = (at / SECTOR..end.div_ceil(SECTOR)).collect();
    missing.retain(|sector| !lost.contains(sector));
    let (all, mut idle) = (missing.len(), 0);
    loop {
        let before = missing.len();
        for sector in std::mem::take(&mut missing) {
            match read(part(bytes, at, sector), at.max(sector * SECTOR)) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(EIO) => missing.push(sector),
                Err(error) => return Err(error),
            }
        }
        if missing.len() >= MANY && missing.len() == all {
            return Err(error);
        }
        idle = if missing.len() < before { 0 } else { idle + 1 };
        if missing.is_empty() {
            break;
        }
        pause()?;
        if idle >= ROUNDS || idle > 0 && waited() > PATIENCE {
            break;
        }
    }
    lost.extend(missing);
    for sector in lost.range(at / SECTOR..end.div_ceil(SECTOR)) {
        part(bytes, at, *sector).fill(0);
    }
    Ok(())
}

/// What of a sector is in `bytes`, which begin at `at`.
fn part(bytes: &mut [u8], at: u64, sector: u64) -> &mut [u8] {
    let place = |offset: u64| {
        usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len())
    };
    let (from, to) = (place(sector * SECTOR), place((sector + 1) * SECTOR));
    &mut bytes[from..to]
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: usize = 5000;

    fn soon() -> Duration {
        Duration::ZERO
    }

    /// Each sector has other bytes, and none is zero.
    fn on_disk() -> Vec<u8> {
        (1..=255_u8).cycle().take(11 * 4096 + 100).collect()
    }

    /// Reads of what is on the disk from `AT` on, of which those fail that `fails` says, by the number of the
    /// call and the sector; what is lost.
    fn read_where(fails: impl Fn(usize, usize) -> bool) -> (io::Result<Vec<u64>>, Vec<u8>) {
        let on_disk = on_disk();
        let mut bytes = vec![9; on_disk.len() - AT];
        let (mut calls, mut lost) = (0, BTreeSet::new());
        let read = |bytes: &mut [u8], at: u64| {
            calls += 1;
            let from = usize::try_from(at).unwrap();
            let mut sectors = from / 4096..=(from + bytes.len() - 1) / 4096;
            if sectors.any(|sector| fails(calls, sector)) {
                bytes.fill(7);
                return Err(io::Error::from_raw_os_error(EIO));
            }
            bytes.copy_from_slice(&on_disk[from..from + bytes.len()]);
            Ok(())
        };
        let result = read_by(&mut bytes, AT as u64, &mut lost, (read, soon), || Ok(()));
        (result.map(|()| lost.into_iter().collect()), bytes)
    }

    #[test]
    fn what_a_disk_cannot_give_is_zeros_and_the_rest_is_read() {
        let bad = [1, 3, 11];
        let (lost, bytes) = read_where(|_, sector| bad.contains(&sector));
        assert_eq!(lost.unwrap(), [1, 3, 11]);
        let mut expected = on_disk();
        for sector in bad {
            let end = expected.len().min((sector + 1) * 4096);
            expected[sector * 4096..end].fill(0);
        }
        assert!(bytes == expected[AT..]);
    }

    #[test]
    fn a_fault_that_passes_loses_nothing() {
        for until in [2, 13, 40] {
            let (lost, bytes) = read_where(|call, sector| {
                call == 1 || call < until && sector % 3 == 1 || call < until + 20 && sector == 7
            });
            assert!(lost.unwrap().is_empty(), "{until}");
            assert!(bytes == on_disk()[AT..]);
        }
    }

    #[test]
    fn what_is_lost_is_not_waited_for_again() {
        let mut lost = BTreeSet::from([1]);
        let (mut bytes, mut rounds) = ([9; 8192], 0);
        let read = |bytes: &mut [u8], at: u64| {
            bytes.fill(5);
            if at / SECTOR == 1 || (at + bytes.len() as u64).div_ceil(SECTOR) > 2 {
                return Err(io::Error::from_raw_os_error(EIO));
            }
            Ok(())
        };
        let pause = || {
            rounds += 1;
            Ok(())
        };
        let late = || PATIENCE + PAUSE;
        read_by(&mut bytes, 4096, &mut lost, (read, late), pause).unwrap();
        assert_eq!((lost, rounds), (BTreeSet::from([1, 2]), 1));
        assert_eq!(bytes, [0; 8192]);
    }

    /// It is not the sector's fault, and what cannot be told apart is not given up.
    #[test]
    fn a_disk_that_gives_nothing_is_an_error() {
        let broken = || io::Error::from_raw_os_error(EIO);
        let mut lost = BTreeSet::new();
        let fails = |_: &mut [u8], _: u64| Err(broken());
        let error = read_by(&mut [0; 100], 0, &mut lost, (fails, soon), || Err(broken()));
        assert_eq!(error.unwrap_err().raw_os_error(), Some(EIO));
        let error = read_by(&mut [0; 8 * 4096], 0, &mut lost, (fails, soon), || Ok(()));
        assert_eq!(error.unwrap_err().raw_os_error(), Some(EIO));
        let denied = |_: &mut [u8], _: u64| Err(io::Error::from_raw_os_error(13));
        let error = read_by(&mut [0; 100], 0, &mut lost, (denied, soon), || Ok(()));
        assert_eq!(error.unwrap_err().raw_os_error(), Some(13));
        assert!(lost.is_empty());
    }
}

//! Reading on where a disk has sectors that it cannot give any more: what lies there is lost, and not the
//! start. Only for who reads a segment to learn what is in it; who gives one up must know all of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// What a disk gives or fails to give as a whole, at most.
const SECTOR: usize = 4096;
/// A fault that passes is over when one of so many rounds reads what the others could not.
const ROUNDS: usize = 30;
const PAUSE: Duration = Duration::from_millis(100);
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Fills `bytes` from `at`. Sectors that cannot be read though others can are zeros, which is no record.
pub(super) fn read(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    let lost = read_by(bytes, at, PAUSE, |bytes, at| file.read_exact_at(bytes, at))?;
    if lost > 0 {
        tracing::error!(
            at,
            bytes = lost,
            "store: the disk cannot read a part of a segment; what the index did not know of it is lost"
        );
    }
    Ok(())
}

/// How many bytes of it are lost. Nothing is given up where nothing can be read: that is the whole disk.
fn read_by(
    bytes: &mut [u8],
    at: u64,
    pause: Duration,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<usize> {
    let Err(error) = read(bytes, at) else { return Ok(0) };
    if error.raw_os_error() != Some(EIO) {
        return Err(error);
    }
    let mut missing: Vec<usize> = (0..bytes.len()).step_by(SECTOR).collect();
    let all = missing.len();
    let mut idle = 0;
    while !missing.is_empty() && idle < ROUNDS {
        let before = missing.len();
        let mut failed = None;
        missing.retain(|from| {
            let end = bytes.len().min(from + SECTOR);
            let sector = &mut bytes[*from..end];
            read(sector, at + *from as u64).map_err(|error| failed = Some(error)).is_err()
        });
        if missing.len() == all {
            return Err(failed.unwrap_or(error));
        }
        idle = if missing.len() < before { 0 } else { idle + 1 };
        if !missing.is_empty() {
            std::thread::sleep(pause);
        }
    }
    let mut lost = 0;
    for from in missing {
        let end = bytes.len().min(from + SECTOR);
        bytes[from..end].fill(0);
        lost += end - from;
    }
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 10 * SECTOR + 100;

    /// Each sector has other bytes, and none is zero.
    fn on_disk() -> Vec<u8> {
        (1..=255_u8).cycle().take(SIZE).collect()
    }

    /// Reads of `on_disk`, of which those fail that `fails` says, by the number of the call and the sector.
    fn read_where(
        on_disk: &[u8],
        fails: impl Fn(usize, usize) -> bool,
    ) -> (io::Result<usize>, Vec<u8>) {
        let mut bytes = vec![9; on_disk.len() - SECTOR];
        let mut calls = 0;
        let result = read_by(&mut bytes, SECTOR as u64, Duration::ZERO, |bytes, at| {
            calls += 1;
            let from = usize::try_from(at).unwrap();
            let mut sectors = from / SECTOR..=(from + bytes.len() - 1) / SECTOR;
            if sectors.any(|sector| fails(calls, sector)) {
                bytes.fill(7);
                return Err(io::Error::from_raw_os_error(EIO));
            }
            bytes.copy_from_slice(&on_disk[from..from + bytes.len()]);
            Ok(())
        });
        (result, bytes)
    }

    #[test]
    fn what_a_disk_cannot_give_is_zeros_and_the_rest_is_read() {
        let on_disk = on_disk();
        let (lost, bytes) = read_where(&on_disk, |_, sector| sector == 3 || sector == 10);
        assert_eq!(lost.unwrap(), SECTOR + 100);
        let mut expected = on_disk[SECTOR..].to_vec();
        expected[2 * SECTOR..3 * SECTOR].fill(0);
        expected[9 * SECTOR..].fill(0);
        assert!(bytes == expected);
    }

    #[test]
    fn a_fault_that_passes_loses_nothing() {
        let on_disk = on_disk();
        for until in [2, 13, 40] {
            let (lost, bytes) = read_where(&on_disk, |call, sector| {
                call == 1 || call < until && sector == 4 || call < until + 20 && sector == 7
            });
            assert_eq!(lost.unwrap(), 0);
            assert!(bytes == on_disk[SECTOR..]);
        }
    }

    #[test]
    fn a_disk_that_gives_nothing_is_an_error() {
        let (lost, _) = read_where(&[1; SIZE], |_, _| true);
        assert_eq!(lost.unwrap_err().raw_os_error(), Some(EIO));
        let mut bytes = [0; SECTOR];
        let denied = |_: &mut [u8], _| Err(io::Error::from_raw_os_error(13));
        let lost = read_by(&mut bytes, 0, Duration::ZERO, denied);
        assert_eq!(lost.unwrap_err().raw_os_error(), Some(13));
    }
}

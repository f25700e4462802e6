//! Bytes under way in one direction of one connection: put in by its sender, taken out by its
//! receiver when they are due.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use larder::units::Clock;

/// What one direction of a connection has under way, between its sender and its receiver.
#[derive(Debug, Default)]
pub(super) struct Flight {
    state: Mutex<InFlight>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct InFlight {
    parcels: VecDeque<Parcel>,
    /// Bytes in `parcels`, and the one being written.
    held: u64,
    cut: bool,
}

/// Bytes and when they arrive. None at all mean the end of the stream.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) due: Duration,
    pub(super) bytes: Vec<u8>,
}

impl Flight {
    /// Nothing arrives any more.
    pub(super) fn cut(&self) {
        self.lock().cut = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, InFlight> {
        self.state.lock().expect("no thread panics with this lock held")
    }

    /// Waits until `due`; false if the connection is cut before.
    pub(super) fn sleep_until(&self, clock: &Clock, due: Duration) -> bool {
        let mut state = self.lock();
        loop {
            let left = due.saturating_sub(clock.elapsed());
            if state.cut || left.is_zero() {
                return !state.cut;
            }
            state = self.changed.wait_timeout(state, left).expect("no thread panics").0;
        }
    }

    /// Hands over to the receiver; false if the connection is cut. Waits while the receiver holds
    /// too much, as TCP does when the peer does not read.
    pub(super) fn hand_over(&self, parcel: Parcel, held_max: u64) -> bool {
        let waiting = |state: &mut InFlight| !state.cut && state.held > held_max;
        let mut state = self.changed.wait_while(self.lock(), waiting).expect("no thread panics");
        state.held += parcel.bytes.len() as u64;
        state.parcels.push_back(parcel);
        self.changed.notify_all();
        !state.cut
    }

    /// The next parcel, once it is due.
    fn receive(&self, clock: &Clock) -> Option<Parcel> {
        let empty = |state: &mut InFlight| !state.cut && state.parcels.is_empty();
        let mut state = self.changed.wait_while(self.lock(), empty).expect("no thread panics");
        let parcel = state.parcels.pop_front()?;
        drop(state);
        self.sleep_until(clock, parcel.due).then_some(parcel)
    }

    fn written(&self, bytes: u64) {
        self.lock().held -= bytes;
        self.changed.notify_all();
    }
}

/// Writes what arrives, until the end; false if that failed.
pub(super) fn deliver(
    clock: &Clock,
    flight: &Flight,
    mut to: &TcpStream,
    mut seen: impl FnMut(),
) -> bool {
    loop {
        let Some(parcel) = flight.receive(clock) else { return false };
        if parcel.bytes.is_empty() {
            seen();
            return to.shutdown(Shutdown::Write).is_ok();
        }
        seen();
        if to.write_all(&parcel.bytes).is_err() {
            return false;
        }
        flight.written(parcel.bytes.len() as u64);
    }
}

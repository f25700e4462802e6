//! Two counters over the last ten seconds, for the breaker and the retry budget.
//!
//! Pure: the time comes in.

use std::time::Duration;

/// Long enough to see twenty requests of a slow build, short enough to forget an outage.
const SLOTS: usize = 10;
const SPAN_S: u64 = SLOTS as u64;

/// What was counted lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) all: u64,
    /// How many of `all` were what one looks out for.
    pub(super) marked: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    /// One for each second, by the second's last digit; the second tells whether it is current.
    slots: [(u64, Counts); SLOTS],
}

impl Window {
    pub(super) fn add(&mut self, now: Duration, all: u64, marked: u64) {
        let second = now.as_secs();
        let index = usize::try_from(second % SPAN_S).expect("less than ten");
        let slot = &mut self.slots[index];
        if slot.0 != second {
            *slot = (second, Counts::default());
        }
        slot.1.all += all;
        slot.1.marked += marked;
    }

    pub(super) fn sum(&self, now: Duration) -> Counts {
        let second = now.as_secs();
        let mut sum = Counts::default();
        for (at, counts) in &self.slots {
            if at + SPAN_S > second {
                sum.all += counts.all;
                sum.marked += counts.marked;
            }
        }
        sum
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ten_seconds_old_is_forgotten() {
        let mut window = Window::default();
        window.add(Duration::from_secs(1), 1, 1);
        window.add(Duration::from_secs(5), 2, 0);
        let cases = [(5, 3, 1), (10, 3, 1), (11, 2, 0), (14, 2, 0), (15, 0, 0), (99, 0, 0)];
        for (at, all, marked) in cases {
            let sum = window.sum(Duration::from_secs(at));
            assert_eq!(sum, Counts { all, marked }, "after {at} s");
        }
        window.add(Duration::from_secs(11), 1, 1);
        let sum = window.sum(Duration::from_secs(11));
        assert_eq!(sum, Counts { all: 3, marked: 1 }, "a slot is used again");
    }
}

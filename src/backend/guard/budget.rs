//! How many retries are allowed: a share of the requests, so that retries never make an outage
//! worse.
//!
//! Pure: the time comes in.

use std::time::Duration;

use crate::backend::guard::window::Window;

/// Google's SRE book and gRPC arrived at a tenth: an outage then costs upstream 10 % more at most.
const SHARE_PERCENT: u64 = 10;
/// What a quiet daemon may retry in ten seconds, where a tenth would be nothing.
const ALWAYS: u64 = 3;

#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    /// All: requests. Marked: retries.
    window: Window,
}

impl Budget {
    pub(super) fn count_request(&mut self, now: Duration) {
        self.window.add(now, 1, 0);
    }

    /// Takes one retry out of the budget, if there is one left.
    pub(super) fn take_retry(&mut self, now: Duration) -> bool {
        let counts = self.window.sum(now);
        let may = counts.marked < ALWAYS.max(counts.all * SHARE_PERCENT / 100);
        if may {
            self.window.add(now, 0, 1);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_tenth_of_the_requests_and_three_at_least() {
        let cases = [(0, 3), (10, 3), (39, 3), (40, 4), (200, 20)];
        for (requests, retries) in cases {
            let mut budget = Budget::default();
            let now = Duration::from_secs(7);
            for _ in 0..requests {
                budget.count_request(now);
            }
            let taken = (0..1000).filter(|_| budget.take_retry(now)).count();
            assert_eq!(taken, retries, "{requests} requests");
            let later = now + Duration::from_secs(10);
            assert!(budget.take_retry(later), "ten seconds later there is a new budget");
        }
    }
}

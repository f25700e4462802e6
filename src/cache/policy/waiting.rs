//! The clock of a session's waiting. It runs while at least one of its questions waits: whatever a build
//! does one after the other is delayed by no more than that.
//!
//! So each question may take all that is left of the session's time, and together they take no more, as
//! long as none outlives its deadline. Pure: times are passed in, from any beginning.

use std::time::Duration;

#[derive(Clone, Copy, Debug, Default)]
pub struct Waiting {
    /// Questions that wait now.
    questions: u32,
    /// Since when at least one does.
    since: Duration,
    /// Less than a millisecond that was waited and is not told yet.
    rest: Duration,
}

impl Waiting {
    pub const fn begin(&mut self, now: Duration) {
        if self.questions == 0 {
            self.since = now;
        }
        self.questions += 1;
    }

    /// One of them waits no longer; the milliseconds that count from now on, if it was the last.
    pub fn end(&mut self, now: Duration) -> u64 {
        self.questions = self.questions.saturating_sub(1);
        if self.questions > 0 {
            return 0;
        }
        let waited = self.rest + now.saturating_sub(self.since);
        self.rest = Duration::from_nanos(u64::from(waited.subsec_nanos() % 1_000_000));
        whole_ms(waited)
    }

    /// What is being waited and does not count yet.
    pub fn open_ms(&self, now: Duration) -> u64 {
        let open = || self.rest + now.saturating_sub(self.since);
        if self.questions == 0 { 0 } else { whole_ms(open()) }
    }
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_once_however_many_wait_and_loses_no_part_of_a_millisecond() {
        let us = Duration::from_micros;
        let mut waiting = Waiting::default();
        waiting.begin(us(10_000));
        waiting.begin(us(15_000));
        assert_eq!(waiting.open_ms(us(20_000)), 10);
        assert_eq!(waiting.end(us(30_000)), 0, "another one waits");
        assert_eq!(waiting.end(us(40_700)), 30);
        assert_eq!(waiting.open_ms(us(50_000)), 0);
        waiting.begin(us(60_000));
        assert_eq!(waiting.open_ms(us(60_700)), 1, "0.7 and 0.7");
        assert_eq!(waiting.end(us(60_700)), 1);
        // A clock that another core is ahead of takes nothing back.
        waiting.begin(us(70_000));
        assert_eq!(waiting.end(us(69_000)), 0);
    }
}

//! The breaker: decides whether upstream is asked at all.
//!
//! Pure: time comes in, tickets go out and come back. It knows no metrics, logs nothing and holds
//! no lock; the guard does. Closed → open on trouble → half open after a wait, with one probe →
//! closed if the probe does well, else open again for twice as long.

use std::time::Duration;

use crate::backend::guard::window::Window;
use crate::units::Random;

/// A share is judged only over this many requests; below, one unlucky request would weigh too much.
const JUDGED_FROM: u64 = 20;
/// Bazel's count of failures tripped healthy builds; half of everything is no accident.
const TROUBLE_PERCENT: u64 = 50;
/// A dead upstream is known after five requests, long before twenty have waited out a deadline.
const CONSECUTIVE: u32 = 5;
/// A restarted server is back in use within a second or two.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// An upstream that is gone for the day costs one waiting request every half minute.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// So that many machines do not return to a recovering upstream at the same moment.
const JITTER: f64 = 0.2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Closed,
    HalfOpen { probe: Option<Asks> },
    Open { until: Duration },
}

/// Who asks. A build waits for a get, and nobody for a put, whose body may take long: so no get waits
/// for what a put as the probe tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    Get,
    Put,
}

/// Leave to ask upstream once. Goes back with what came of it, whatever that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    is_probe: bool,
    /// Which stretch between two changes of state it belongs to: what a request from before the
    /// outage tells says nothing about the time after.
    era: u64,
}

/// What came of a request, as far as it tells about upstream's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Good,
    Trouble,
    /// Given up by us before it could be told.
    Unknown,
}

#[derive(Clone, Debug)]
pub(super) struct Breaker {
    state: State,
    era: u64,
    /// Marked: trouble.
    window: Window,
    consecutive: u32,
    /// How often it has opened since it was last closed.
    openings: u32,
    random: Random,
}

impl Breaker {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: State::Closed,
            era: 0,
            window: Window::default(),
            consecutive: 0,
            openings: 0,
            random: Random::new(seed),
        }
    }

    pub(super) const fn state(&self) -> State {
        self.state
    }

    /// Whether `ask` would refuse now.
    pub(super) fn is_refusing(&self, who: Asks, now: Duration) -> bool {
        match self.state {
            State::Closed | State::HalfOpen { probe: None } => false,
            State::HalfOpen { probe: Some(probe) } => probe == Asks::Get || who == Asks::Put,
            State::Open { until } => now < until,
        }
    }

    pub(super) fn ask(&mut self, who: Asks, now: Duration) -> Option<Ticket> {
        if self.is_refusing(who, now) {
            return None;
        }
        let is_probe = self.state != State::Closed;
        if is_probe {
            if let State::HalfOpen { probe: Some(_) } = self.state {
                // What the put tells comes too late to count.
                self.start_era();
            }
            self.state = State::HalfOpen { probe: Some(who) };
        }
        Some(Ticket { is_probe, era: self.era })
    }

    pub(super) fn settle(&mut self, ticket: Ticket, outcome: Outcome, now: Duration) {
        if ticket.era != self.era {
            return;
        }
        match (ticket.is_probe, outcome) {
            (true, Outcome::Good) => self.close(),
            (true, Outcome::Trouble) => self.open(now),
            (true, Outcome::Unknown) => self.state = State::HalfOpen { probe: None },
            (false, Outcome::Good) => {
                self.consecutive = 0;
                self.window.add(now, 1, 0);
            }
            (false, Outcome::Trouble) => self.count_trouble(now),
            (false, Outcome::Unknown) => {}
        }
    }

    /// A probe has shown enough before its end: it closes the breaker and goes on as any request.
    pub(super) fn prove(&mut self, ticket: Ticket) -> Ticket {
        if ticket.is_probe && ticket.era == self.era {
            self.close();
            return Ticket { is_probe: false, era: self.era };
        }
        ticket
    }

    fn count_trouble(&mut self, now: Duration) {
        self.consecutive += 1;
        self.window.add(now, 1, 1);
        let counts = self.window.sum(now);
        let is_mostly_trouble =
            counts.all >= JUDGED_FROM && counts.marked * 100 >= counts.all * TROUBLE_PERCENT;
        if self.consecutive >= CONSECUTIVE || is_mostly_trouble {
            self.open(now);
        }
    }

    fn open(&mut self, now: Duration) {
        let wait = FIRST_WAIT.saturating_mul(1 << self.openings.min(16)).min(LONGEST_WAIT);
        let jitter = JITTER.mul_add(self.random.next_share() * 2.0 - 1.0, 1.0);
        self.state = State::Open { until: now + wait.mul_f64(jitter) };
        self.openings = self.openings.saturating_add(1);
        self.start_era();
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.openings = 0;
        self.start_era();
    }

    fn start_era(&mut self) {
        self.era += 1;
        self.consecutive = 0;
        self.window.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// One request after another, `.` good, `x` trouble, `?` given up; spaced by `every`.
    fn run(breaker: &mut Breaker, start: Duration, every: Duration, requests: &str) -> Duration {
        let mut now = start;
        for request in requests.chars() {
            let ticket = breaker.ask(Asks::Get, now).expect("closed");
            let outcome = match request {
                '.' => Outcome::Good,
                'x' => Outcome::Trouble,
                _ => Outcome::Unknown,
            };
            breaker.settle(ticket, outcome, now);
            now += every;
        }
        now
    }

    fn opened(now: Duration) -> (Breaker, Duration) {
        let mut breaker = Breaker::new(3);
        run(&mut breaker, now, Duration::ZERO, "xxxxx");
        let State::Open { until } = breaker.state() else { panic!("{:?}", breaker.state()) };
        (breaker, until)
    }

    #[test]
    fn it_opens_on_half_of_twenty_or_five_in_a_row() {
        let cases = [
            ("xxxx", 0, false),
            ("xxxxx", 0, true),
            ("xxxx.xxxx", 0, false),
            ("xx??x?xx", 0, true),
            // Nineteen requests are too few to be judged by share, twenty are enough.
            (".x.x.x.x.x.x.x.x.x.", 0, false),
            (".x.x.x.x.x.x.x.x.x.x", 0, true),
            ("..x..x..x..x..x..x..x..x..x", 0, false),
            // The same, too slow to have twenty of them within ten seconds.
            (".x.x.x.x.x.x.x.x.x.x.x.x", 1000, false),
            ("xxxxx", 5000, true),
        ];
        for (requests, every_ms, opens) in cases {
            let mut breaker = Breaker::new(1);
            run(&mut breaker, ms(100), ms(every_ms), requests);
            let is_open = matches!(breaker.state(), State::Open { .. });
            assert_eq!(is_open, opens, "{requests} every {every_ms} ms");
        }
    }

    #[test]
    fn waits_double_from_one_second_to_thirty_with_a_fifth_of_jitter() {
        for seed in 0..50 {
            let mut breaker = Breaker::new(seed);
            run(&mut breaker, ms(0), ms(0), "xxxxx");
            let mut now = ms(0);
            for seconds in [1, 2, 4, 8, 16, 30, 30, 30] {
                let State::Open { until } = breaker.state() else { panic!("not open") };
                let range = ms(seconds * 800)..=ms(seconds * 1200);
                assert!(range.contains(&(until - now)), "{seconds} s: {:?}", until - now);
                now = until;
                let probe = breaker.ask(Asks::Get, now).expect("a probe");
                breaker.settle(probe, Outcome::Trouble, now);
            }
        }
    }

    #[test]
    fn while_open_nobody_asks_then_one_does() {
        let (mut breaker, until) = opened(ms(0));
        assert_eq!(breaker.ask(Asks::Get, until - ms(1)), None);
        let probe = breaker.ask(Asks::Get, until).expect("a probe");
        assert_eq!(breaker.ask(Asks::Get, until), None, "one probe at a time");
        assert_eq!(breaker.state(), State::HalfOpen { probe: Some(Asks::Get) });
        breaker.settle(probe, Outcome::Good, until);
        assert_eq!(breaker.state(), State::Closed);
        assert!(breaker.ask(Asks::Get, until).is_some());
    }

    #[test]
    fn an_abandoned_probe_leaves_its_place_to_the_next() {
        let (mut breaker, until) = opened(ms(0));
        let probe = breaker.ask(Asks::Get, until).expect("a probe");
        breaker.settle(probe, Outcome::Unknown, until);
        assert!(!breaker.is_refusing(Asks::Get, until));
        let next = breaker.ask(Asks::Get, until).expect("the next probe");
        assert!(breaker.is_refusing(Asks::Get, until));
        breaker.settle(next, Outcome::Good, until);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn requests_from_before_the_outage_do_not_count_after_it() {
        let mut breaker = Breaker::new(1);
        let old = breaker.ask(Asks::Get, ms(0)).expect("closed");
        run(&mut breaker, ms(0), ms(0), "xxxxx");
        let before = breaker.state();
        breaker.settle(old, Outcome::Good, ms(1));
        breaker.settle(old, Outcome::Trouble, ms(1));
        assert_eq!(breaker.state(), before);
    }

    #[test]
    fn a_proven_probe_closes_and_then_counts_as_any_request() {
        let (mut breaker, until) = opened(ms(0));
        let probe = breaker.ask(Asks::Get, until).expect("a probe");
        let proven = breaker.prove(probe);
        assert_eq!(breaker.state(), State::Closed);
        run(&mut breaker, until, ms(0), "xxxx");
        breaker.settle(proven, Outcome::Trouble, until);
        assert!(matches!(breaker.state(), State::Open { .. }), "it was the fifth in a row");
    }

    #[test]
    fn no_get_waits_for_a_put_that_probes() {
        let (mut breaker, until) = opened(ms(0));
        let put = breaker.ask(Asks::Put, until).expect("a probe");
        assert_eq!(breaker.ask(Asks::Put, until), None);
        let get = breaker.ask(Asks::Get, until).expect("in its place");
        assert_eq!((breaker.ask(Asks::Get, until), breaker.ask(Asks::Put, until)), (None, None));
        for outcome in [Outcome::Good, Outcome::Trouble, Outcome::Unknown] {
            breaker.settle(put, outcome, until);
            assert_eq!(breaker.state(), State::HalfOpen { probe: Some(Asks::Get) });
        }
        breaker.settle(get, Outcome::Good, until);
        assert_eq!(breaker.state(), State::Closed);
    }
}

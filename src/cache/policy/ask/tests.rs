//! The cases of `decide` by name, and what holds whatever happens.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::cache::policy::waiting::Waiting;

/// 20 ms away, a gigabit wide, has all it is asked for.
const NEAR: Upstream = Upstream {
    latency_ms: 20.0,
    bandwidth_bytes_per_ms: 125_000.0,
    hit_rate: 1.0,
    answers: 64.0,
    samples: 15,
    declined: 1,
};
const NOBODY: Upstream =
    Upstream { latency_ms: 0.0, bandwidth_bytes_per_ms: 0.0, hit_rate: 0.5, samples: 0, ..NEAR };
const FRESH: Account = Account { waited_ms: 0, saved_ms: 0 };
const RICH: Account = Account { saved_ms: 3_600_000, ..FRESH };
const PACKAGE: Known = Known::Listed { cost_ms: 400, frame_bytes: 125_000 };

struct Case {
    known: Known,
    upstream: Upstream,
    account: Account,
    speed: f64,
    typical_cost_ms: u32,
}

const BASE: Case =
    Case { known: PACKAGE, upstream: NEAR, account: RICH, speed: 1.0, typical_cost_ms: 200 };

fn coming(cost_ms: u32, eta_ms: u64) -> Known {
    Known::Coming { cost_ms, frame_bytes: 125_000, eta_ms: Some(eta_ms) }
}

const fn ask(most_ms: u64) -> Decision {
    Decision::Ask { most_ms }
}

const fn wait(most_ms: u64) -> Decision {
    Decision::Wait { most_ms }
}

fn check(cases: Vec<(&str, Case, Decision)>) {
    for (name, case, expected) in cases {
        let Case { known, upstream, account, speed, typical_cost_ms } = case;
        let got = decide(&known, &upstream, &account, speed, typical_cost_ms);
        assert_eq!(got, expected, "{name}");
    }
}

#[test]
fn what_is_listed_is_asked_for_if_that_is_faster_than_building() {
    let listed = |cost_ms, frame_bytes| Known::Listed { cost_ms, frame_bytes };
    let slow = |speed| Case { known: listed(15, 125_000), speed, ..BASE };
    let rate = |hit_rate| Case { upstream: Upstream { hit_rate, ..NEAR }, ..BASE };
    check(vec![
        ("a package", BASE, ask(400)),
        ("costs less than a round trip", Case { known: listed(15, 0), ..BASE }, Decision::Build),
        ("costs a little more", Case { known: listed(22, 100), ..BASE }, ask(81)),
        ("a machine three times slower", slow(3.0), ask(164)),
        ("a machine three times faster", slow(0.33), Decision::Build),
        ("slower by a number that is none", slow(f64::NAN), Decision::Build),
        (
            "a body slower than the build",
            Case { known: listed(400, 125_000_000), ..BASE },
            Decision::Build,
        ),
        (
            "a large body that is worth it",
            Case { known: listed(4_000, 125_000_000), ..BASE },
            ask(4_160),
        ),
        (
            "nobody may wait longer",
            Case { known: listed(90_000, 500_000_000), ..BASE },
            ask(10_000),
        ),
        (
            "longer than anybody may wait",
            Case { known: listed(90_000, 2_000_000_000), ..BASE },
            Decision::Build,
        ),
        ("cost not measured, as typical", Case { known: listed(0, 0), ..BASE }, ask(200)),
        (
            "nor is anything typical",
            Case { known: listed(0, 0), typical_cost_ms: 0, ..BASE },
            ask(200),
        ),
        (
            "typical is too little",
            Case { known: listed(0, 0), typical_cost_ms: 9, ..BASE },
            Decision::Build,
        ),
        ("upstream lost most of it", rate(0.04), Decision::Build),
        ("and half of it", rate(0.5), ask(400)),
        ("a rate that is none", rate(f64::NAN), Decision::Build),
        (
            "noise on a near upstream",
            Case { known: listed(5, 1000), upstream: Upstream { latency_ms: 1.0, ..NEAR }, ..BASE },
            ask(25),
        ),
    ]);
}

#[test]
fn the_clock_cuts_every_deadline() {
    let left = |left: u64| Account { waited_ms: 1000 - left, ..FRESH };
    let with = |account| Case { account, ..BASE };
    let little = |ms| Case {
        known: Known::Listed { cost_ms: 45, frame_bytes: 100 },
        account: left(ms),
        ..BASE
    };
    let spent = Account { waited_ms: 5_000, saved_ms: 4_000 };
    let probing = Upstream { declined: 64, ..NEAR };
    check(vec![
        ("a fresh session", with(FRESH), ask(400)),
        ("the rest of the second", with(left(50)), ask(50)),
        ("less than a question takes", with(left(20)), Decision::Build),
        ("what pays little, with half of it left", little(500), ask(81)),
        ("what pays little, with a tenth", little(100), Decision::Build),
        ("nothing", with(left(0)), Decision::Build),
        ("all saved is spent", with(spent), Decision::Build),
        ("a probe needs no time", Case { upstream: probing, ..with(spent) }, Decision::Probe),
        ("coming, but no time", Case { known: coming(400, 30), ..with(left(20)) }, Decision::Build),
        ("coming in what is left", Case { known: coming(400, 15), ..with(left(20)) }, wait(20)),
    ]);
}

#[test]
fn what_is_coming_is_waited_for_as_long_as_it_is_worth() {
    let known = |known| Case { known, ..BASE };
    let large = Known::Coming { cost_ms: 900, frame_bytes: 30_000_000, eta_ms: Some(300) };
    let unknown = Known::Coming { cost_ms: 400, frame_bytes: 125_000, eta_ms: None };
    check(vec![
        ("soon", known(coming(400, 30)), wait(400)),
        ("at once", known(coming(400, 0)), wait(400)),
        ("a little later than asking", known(coming(400, 50)), wait(400)),
        ("much later than asking", known(coming(400, 300)), wait(1_200)),
        ("later, as it is large", known(large), wait(1_200)),
        (
            "later than building",
            Case { upstream: NOBODY, ..known(coming(400, 500)) },
            Decision::Build,
        ),
        (
            "soon, of an upstream nobody knows",
            Case { upstream: Upstream { hit_rate: 0.95, ..NOBODY }, ..known(coming(400, 30)) },
            wait(400),
        ),
        ("cheaper than its coming", known(coming(20, 30)), Decision::Build),
        ("nobody knows when", known(unknown), wait(400)),
        (
            "no probes for it",
            Case { upstream: Upstream { declined: 0, ..NEAR }, ..known(coming(10, 30)) },
            Decision::Build,
        ),
    ]);
}

#[test]
fn what_nobody_knows_is_asked_for_as_long_as_the_second_lasts() {
    let with = |known, upstream, account| Case { known, upstream, account, ..BASE };
    let rate = |hit_rate, declined| Upstream { hit_rate, declined, ..NEAR };
    let little = |declined| Upstream { answers: 6.0, ..rate(0.01, declined) };
    let nobody = |declined| Upstream { declined, hit_rate: 0.05, ..NOBODY };
    let late = Account { waited_ms: 900, ..FRESH };
    let none = Known::NoManifest;
    check(vec![
        ("the first question of all", with(none, NOBODY, FRESH), ask(500)),
        ("a listed one", with(PACKAGE, NOBODY, FRESH), ask(500)),
        ("the last one of all", with(none, NOBODY, late), ask(100)),
        (
            "worth no question to anybody",
            Case { typical_cost_ms: 4, ..with(none, NOBODY, FRESH) },
            Decision::Build,
        ),
        ("a good upstream, no manifest", with(none, rate(0.5, 1), RICH), ask(349)),
        ("an empty upstream", with(none, rate(0.01, 1), RICH), Decision::Build),
        ("an empty upstream, now and then", with(none, rate(0.01, 128), RICH), Decision::Probe),
        ("an upstream of which little is known", with(none, little(8), RICH), Decision::Probe),
        ("the next question to it", with(none, little(9), RICH), Decision::Build),
        ("unlisted, little known", with(Known::Unlisted, little(8), RICH), Decision::Build),
        ("unlisted", with(Known::Unlisted, rate(0.05, 1), RICH), Decision::Build),
        (
            "unlisted and very expensive",
            Case { typical_cost_ms: 900, ..with(Known::Unlisted, rate(0.05, 1), RICH) },
            ask(349),
        ),
        ("unlisted, but samples overrule", with(Known::Unlisted, rate(0.5, 1), RICH), ask(349)),
        ("unlisted, nobody knows", with(Known::Unlisted, nobody(1), RICH), Decision::Build),
        ("unlisted, and nobody knows yet", with(Known::Unlisted, nobody(0), RICH), Decision::Probe),
        ("black hole", with(none, Upstream { latency_ms: 2000.0, ..NEAR }, RICH), Decision::Build),
        (
            "a latency that is none",
            with(none, Upstream { latency_ms: f64::NAN, ..NEAR }, RICH),
            Decision::Build,
        ),
        (
            "a trickle",
            with(PACKAGE, Upstream { bandwidth_bytes_per_ms: 1.0, ..NEAR }, RICH),
            Decision::Build,
        ),
    ]);
}

fn any_known() -> impl Strategy<Value = Known> {
    prop_oneof![
        (any::<u32>(), any::<u64>(), any::<Option<u64>>()).prop_map(
            |(cost_ms, frame_bytes, eta_ms)| Known::Coming { cost_ms, frame_bytes, eta_ms }
        ),
        (0..20_000_u32, 0..500_u64).prop_map(|(cost_ms, eta_ms)| coming(cost_ms, eta_ms)),
        (any::<u32>(), any::<u64>())
            .prop_map(|(cost_ms, frame_bytes)| Known::Listed { cost_ms, frame_bytes }),
        (0..20_000_u32, 0..1_000_000_u64)
            .prop_map(|(cost_ms, frame_bytes)| Known::Listed { cost_ms, frame_bytes }),
        Just(Known::Unlisted),
        Just(Known::NoManifest),
    ]
}

fn any_upstream() -> impl Strategy<Value = Upstream> {
    let wild = (any::<f64>(), any::<f64>(), any::<f64>(), any::<f64>(), any::<u32>(), any::<u32>());
    let sound = (0.0..500.0, 0.0..100_000.0, 0.0..1.0, 0.0..90.0, 0..16_u32, any::<u32>());
    prop_oneof![wild.boxed(), sound.boxed()].prop_map(|fields| {
        let (latency_ms, bandwidth_bytes_per_ms, hit_rate, answers, samples, declined) = fields;
        Upstream { latency_ms, bandwidth_bytes_per_ms, hit_rate, answers, samples, declined }
    })
}

/// What becomes of a question that waits: how much of its deadline it takes, and what it saves.
fn any_outcome() -> impl Strategy<Value = (f64, Option<u16>)> {
    prop_oneof![
        // Silence.
        Just((1.0, None)),
        (0.0..=1.0, any::<Option<u16>>()),
    ]
}

/// Most questions of a build are asked at once.
fn any_pause() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(0), 0..2_000_u64, 0..20_000_000_u64].prop_map(Duration::from_micros)
}

/// A session whose questions wait side by side.
#[derive(Default)]
struct Played {
    now: Duration,
    waiting: Waiting,
    waited_ms: u64,
    saved_ms: u64,
    /// When each question that waits will have ended, and what it saves then.
    ends: Vec<(Duration, u16)>,
}

impl Played {
    fn account(&self) -> Account {
        let waited_ms = self.waited_ms + self.waiting.open_ms(self.now);
        Account { waited_ms, saved_ms: self.saved_ms }
    }

    /// To this time, or as far as there is anything to come.
    fn go_on(&mut self, until: Duration) -> Result<(), TestCaseError> {
        self.ends.sort();
        let due = self.ends.iter().filter(|(end, _)| *end <= until).count();
        for (end, saved) in self.ends.drain(..due).collect::<Vec<_>>() {
            self.now = end;
            self.waited_ms += self.waiting.end(end);
            let account = self.account();
            prop_assert!(account.waited_ms <= account.saved_ms + GRACE_MS, "{account:?}");
            self.saved_ms += u64::from(saved);
        }
        if until < Duration::MAX {
            self.now = until;
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_decision_exceeds_what_is_left(
        known in any_known(),
        upstream in any_upstream(),
        sums in any::<(u64, u64)>(),
        speed in any::<f64>(),
        typical in any::<u32>(),
    ) {
        let (waited_ms, saved_ms) = sums;
        for account in [Account { waited_ms, saved_ms }, FRESH, RICH] {
            let most_ms = decide(&known, &upstream, &account, speed, typical).most_ms();
            prop_assert!(most_ms <= 10_000);
            prop_assert!(most_ms <= account.left_ms());
        }
    }

    /// Whatever is asked and however it ends, one after the other or at once: by the session's own clock.
    #[test]
    fn the_sum_of_all_waits_stays_below_what_was_saved_and_a_second(
        steps in prop::collection::vec(
            (any_known(), any_upstream(), any_outcome(), any_pause(), 0.1..10.0), 1..400
        )
    ) {
        let mut session = Played::default();
        for (known, upstream, (share, saved), pause, speed) in steps {
            let decision = decide(&known, &upstream, &session.account(), speed, 200);
            if decision.most_ms() > 0 {
                session.waiting.begin(session.now);
                let takes = Duration::from_millis(decision.most_ms()).mul_f64(share);
                session.ends.push((session.now + takes, saved.unwrap_or_default()));
            }
            session.go_on(session.now + pause)?;
        }
        session.go_on(Duration::MAX)?;
        prop_assert!(session.ends.is_empty());
    }
}

//! The cases of `decide` by name, and what holds whatever happens.

use proptest::prelude::*;

use super::*;

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
const FRESH: Account = Account { waited_ms: 0, saved_ms: 0, promised_ms: 0 };
const RICH: Account = Account { saved_ms: 3_600_000, ..FRESH };
const PACKAGE: Known = Known::Listed { cost_ms: 400, frame_bytes: 125_000 };

struct Case {
    known: Known,
    upstream: Upstream,
    account: Account,
    in_flight: u32,
    speed: f64,
    typical_cost_ms: u32,
}

const BASE: Case = Case {
    known: PACKAGE,
    upstream: NEAR,
    account: RICH,
    in_flight: 0,
    speed: 1.0,
    typical_cost_ms: 200,
};

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
        let Case { known, upstream, account, in_flight, speed, typical_cost_ms } = case;
        let got = decide(&known, &upstream, &account, in_flight, speed, typical_cost_ms);
        assert_eq!(got, expected, "{name}");
    }
}

#[test]
fn what_is_listed_is_asked_for_if_that_is_faster_than_building() {
    let listed = |cost_ms, frame_bytes| Known::Listed { cost_ms, frame_bytes };
    let slow = |speed| Case { known: listed(15, 125_000), speed, ..BASE };
    let rate = |hit_rate| Case { upstream: Upstream { hit_rate, ..NEAR }, ..BASE };
    check(vec![
        ("a package", BASE, ask(84)),
        ("costs less than a round trip", Case { known: listed(15, 0), ..BASE }, Decision::Build),
        ("costs a little more", Case { known: listed(22, 100), ..BASE }, ask(81)),
        ("a machine three times slower", slow(3.0), ask(84)),
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
            ask(4_080),
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
        ("cost not measured, as typical", Case { known: listed(0, 0), ..BASE }, ask(80)),
        (
            "nor is anything typical",
            Case { known: listed(0, 0), typical_cost_ms: 0, ..BASE },
            ask(80),
        ),
        (
            "typical is too little",
            Case { known: listed(0, 0), typical_cost_ms: 9, ..BASE },
            Decision::Build,
        ),
        ("upstream lost most of it", rate(0.04), Decision::Build),
        ("and half of it", rate(0.5), ask(84)),
        ("a rate that is none", rate(f64::NAN), Decision::Build),
        (
            "noise on a near upstream",
            Case { upstream: Upstream { latency_ms: 1.0, ..NEAR }, ..BASE },
            ask(25),
        ),
    ]);
}

#[test]
fn the_clock_cuts_every_deadline() {
    let left = |left: u64| Account { waited_ms: 1000 - left, ..FRESH };
    let with = |account| Case { account, ..BASE };
    let among = |in_flight, account| Case { in_flight, account, ..BASE };
    let spent = Account { waited_ms: 5_000, saved_ms: 4_000, promised_ms: 0 };
    let promised = Account { promised_ms: 985, ..FRESH };
    let probing = Upstream { declined: 64, ..NEAR };
    check(vec![
        ("a fresh session", with(FRESH), ask(84)),
        ("the rest of the second", with(left(50)), ask(50)),
        ("less than a question takes", with(left(20)), Decision::Build),
        ("nothing", with(left(0)), Decision::Build),
        ("all saved is spent", with(spent), Decision::Build),
        ("all is promised to others", with(promised), Decision::Build),
        ("fair among four", among(3, left(200)), ask(50)),
        ("too many for what is left", among(100, FRESH), Decision::Build),
        ("many, and enough", among(100, RICH), ask(84)),
        ("as many as can be", among(u32::MAX, RICH), Decision::Build),
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

#[test]
fn questions_that_are_promised_time_have_it_taken_off() {
    let mut account = FRESH;
    account.promise(ask(300));
    account.promise(Decision::Probe);
    assert_eq!(account.left_ms(), 700);
    account.settle(ask(300), 20);
    assert_eq!(account, Account { waited_ms: 20, saved_ms: 0, promised_ms: 0 });
    account.settle(ask(300), 2_000);
    assert_eq!(account.left_ms(), 0);
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

proptest! {
    #[test]
    fn no_decision_exceeds_what_is_left(
        known in any_known(),
        upstream in any_upstream(),
        sums in any::<(u64, u64, u64)>(),
        in_flight in any::<u32>(),
        speed in any::<f64>(),
        typical in any::<u32>(),
    ) {
        let (waited_ms, saved_ms, promised_ms) = sums;
        for account in [Account { waited_ms, saved_ms, promised_ms }, FRESH, RICH] {
            let decision = decide(&known, &upstream, &account, in_flight, speed, typical);
            let most_ms = decision.most_ms();
            prop_assert!(most_ms <= 10_000);
            prop_assert!(most_ms.saturating_mul(u64::from(in_flight) + 1) <= account.left_ms());
        }
    }

    /// Whatever is asked and however it ends, in any order and over any number of lanes.
    #[test]
    fn the_sum_of_all_waits_stays_below_what_was_saved_and_a_second(
        steps in prop::collection::vec(
            (any_known(), any_upstream(), any_outcome(), 0..16_usize, 0.1..10.0), 1..400
        )
    ) {
        let mut account = Account::default();
        let mut waiting: Vec<(Decision, (f64, Option<u16>))> = Vec::new();
        for (known, upstream, outcome, settled, speed) in steps {
            let in_flight = u32::try_from(waiting.len()).unwrap();
            let decision = decide(&known, &upstream, &account, in_flight, speed, 200);
            account.promise(decision);
            if decision.most_ms() > 0 {
                waiting.push((decision, outcome));
            }
            let together = account.waited_ms + account.promised_ms;
            prop_assert!(together <= account.saved_ms + GRACE_MS);
            while waiting.len() > settled {
                let (decision, (share, saved)) = waiting.remove(settled / 2);
                account.settle(decision, whole_ms(decision.most_ms() as f64 * share));
                account.saved_ms += u64::from(saved.unwrap_or_default());
            }
        }
        for (decision, _) in waiting {
            account.settle(decision, decision.most_ms());
        }
        prop_assert_eq!(account.promised_ms, 0);
        prop_assert!(account.waited_ms <= account.saved_ms + GRACE_MS);
    }
}

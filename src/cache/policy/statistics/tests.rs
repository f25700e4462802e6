//! What is learnt, how it fades, and that it survives being written down.

use proptest::prelude::*;

use super::format::ENCODED_MAX;
use super::*;

fn at_hour(hours: u64) -> Timestamp {
    Timestamp::from_seconds(1_700_000_000 + hours * 3600)
}

const NOON: u64 = 0;

/// A key where it does not matter which.
fn any_key() -> Digest {
    Digest::of(b"any")
}

#[test]
fn nothing_is_known_at_first() {
    let statistics = Statistics::default();
    for (kind, prior) in [(Kind::Listed, 0.95), (Kind::Unlisted, 0.05), (Kind::NoManifest, 0.5)] {
        let upstream = statistics.estimate(kind, at_hour(NOON));
        assert_eq!((upstream.samples, upstream.declined), (0, 0));
        assert!((upstream.hit_rate - prior).abs() < 1e-9, "{kind:?}");
    }
    assert_eq!(statistics.typical_cost_ms(at_hour(NOON)), 0);
    assert!((statistics.speed(at_hour(NOON)) - 1.0).abs() < 1e-9);
}

#[test]
fn real_answers_overrule_what_is_assumed() {
    let mut statistics = Statistics::default();
    for _ in 0..100 {
        statistics.observe_answer(&any_key(), Kind::Unlisted, true, 20.0, at_hour(NOON));
        statistics.observe_answer(&any_key(), Kind::NoManifest, false, 20.0, at_hour(NOON));
    }
    let rate = |kind| statistics.estimate(kind, at_hour(NOON)).hit_rate;
    assert!(rate(Kind::Unlisted) > 0.9);
    assert!(rate(Kind::NoManifest) < 0.05);
    assert!(rate(Kind::Listed) > 0.9, "it was not asked about those");
    assert_eq!(statistics.estimate(Kind::Listed, at_hour(NOON)).samples, 15, "latency is for all");
}

#[test]
fn an_outlier_moves_neither_latency_nor_bandwidth() {
    let mut statistics = Statistics::default();
    for n in 0..40_u32 {
        let is_odd = n % 5 == 0;
        let latency = if is_odd { 1900.0 } else { 21.0 };
        statistics.observe_answer(&any_key(), Kind::Listed, true, latency, at_hour(NOON));
        statistics.observe_transfer(1 << 20, if is_odd { 4000.0 } else { 10.0 }, at_hour(NOON));
        statistics.observe_transfer(100, 0.0, at_hour(NOON));
    }
    let upstream = statistics.estimate(Kind::Listed, at_hour(NOON));
    assert!((upstream.latency_ms - 21.0).abs() < 1e-3);
    assert!((upstream.bandwidth_bytes_per_ms - 104_857.6).abs() < 1.0);
}

#[test]
fn a_trickle_is_seen_however_little_came() {
    let mut statistics = Statistics::default();
    statistics.observe_transfer(4000, 4000.0, at_hour(NOON));
    let upstream = statistics.estimate(Kind::Listed, at_hour(NOON));
    assert!((upstream.bandwidth_bytes_per_ms - 1.0).abs() < 1e-6);
}

#[test]
fn a_fault_is_no_hit_and_never_makes_upstream_look_fast() {
    let mut statistics = Statistics::default();
    for _ in 0..15 {
        statistics.observe_answer(&any_key(), Kind::Listed, true, 50.0, at_hour(NOON));
    }
    for _ in 0..15 {
        statistics.observe_fault(Kind::Listed, 1.0, at_hour(NOON));
    }
    let upstream = statistics.estimate(Kind::Listed, at_hour(NOON));
    assert!((upstream.latency_ms - 50.0).abs() < 1e-3);
    assert!(upstream.hit_rate < 0.6);
    for _ in 0..15 {
        statistics.observe_fault(Kind::Listed, 2000.0, at_hour(NOON));
    }
    assert!(statistics.estimate(Kind::Listed, at_hour(NOON)).latency_ms > 1999.0);
}

#[test]
fn what_was_learnt_fades_with_age() {
    let mut statistics = Statistics::default();
    for _ in 0..100 {
        statistics.observe_answer(&any_key(), Kind::NoManifest, false, 300.0, at_hour(0));
        statistics.observe_built(&any_key(), 900, false, false, at_hour(0));
        statistics.observe_speed(400, 100, at_hour(0));
    }
    let rate = |hours| statistics.estimate(Kind::NoManifest, at_hour(hours)).hit_rate;
    assert!(rate(0) < 0.05 && rate(12) < 0.15 && rate(48) > 0.4 && rate(1000) > 0.499);
    let samples = |hours| statistics.estimate(Kind::NoManifest, at_hour(hours)).samples;
    assert_eq!([samples(0), samples(6), samples(12), samples(1000)], [15, 8, 4, 0]);
    assert_eq!(statistics.typical_cost_ms(at_hour(1)), 900);
    assert_eq!(statistics.typical_cost_ms(at_hour(1000)), 0);
    assert!(statistics.speed(at_hour(0)) > 3.0);
    assert!(statistics.speed(at_hour(1000)) < 1.01);
    let mut later = statistics.clone();
    later.observe_answer(&any_key(), Kind::NoManifest, true, 10.0, at_hour(1000));
    assert!(later.estimate(Kind::NoManifest, at_hour(1000)).hit_rate > 0.5);
    assert_eq!(later.estimate(Kind::NoManifest, at_hour(1000)).samples, 1);
}

#[test]
fn a_clock_that_goes_back_ages_nothing() {
    let mut statistics = Statistics::default();
    statistics.observe_answer(&any_key(), Kind::Listed, true, 10.0, at_hour(1000));
    statistics.observe_answer(&any_key(), Kind::Listed, true, 10.0, at_hour(0));
    assert_eq!(statistics.estimate(Kind::Listed, at_hour(0)).samples, 2);
}

#[test]
fn a_machine_is_compared_by_the_same_keys_and_in_bounds() {
    let mut statistics = Statistics::default();
    statistics.observe_speed(19, 1000, at_hour(NOON));
    assert!((statistics.speed(at_hour(NOON)) - 1.0).abs() < 1e-9, "too short to tell");
    for _ in 0..200 {
        statistics.observe_speed(50, 100, at_hour(NOON));
    }
    let speed = statistics.speed(at_hour(NOON));
    assert!((0.45..0.6).contains(&speed), "{speed}");
    for _ in 0..10_000 {
        statistics.observe_speed(u32::MAX, 20, at_hour(NOON));
    }
    assert!(statistics.speed(at_hour(NOON)) <= SPEED_MOST);
}

#[test]
fn only_what_was_declined_is_counted() {
    let mut statistics = Statistics::default();
    for decision in [
        Decision::Build,
        Decision::Probe,
        Decision::Ask { most_ms: 9 },
        Decision::Wait { most_ms: 9 },
    ] {
        statistics.observe_decision(Kind::Unlisted, decision);
    }
    assert_eq!(statistics.estimate(Kind::Unlisted, at_hour(NOON)).declined, 2);
    assert_eq!(statistics.estimate(Kind::Listed, at_hour(NOON)).declined, 0);
}

#[test]
fn the_format_stays() {
    let mut statistics = Statistics::default();
    statistics.observe_answer(&any_key(), Kind::Listed, true, 20.0, Timestamp(0x0102));
    let bytes = statistics.encode();
    assert_eq!(bytes[..9], [1, 2, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[9..17], [0, 0, 0x80, 0x3f, 0, 0, 0x80, 0x3f]);
    assert_eq!(bytes[61..], [1, 0, 0, 0xa0, 0x41, 0]);
    let mut other = bytes.clone();
    other[0] = 2;
    assert_eq!(Statistics::decode(&other), None);
    for len in 0..bytes.len() {
        assert_eq!(Statistics::decode(&bytes[..len]), None);
    }
    assert_eq!(Statistics::decode(&[&bytes[..], &[0]].concat()), None);
}

#[test]
fn what_is_bound_to_the_machine_says_nothing_of_upstream() {
    let now = at_hour(NOON);
    let mut statistics = Statistics::default();
    for number in 0..20_u8 {
        let key = Digest::of(&[number]);
        statistics.observe_answer(&key, Kind::NoManifest, false, 20.0, now);
        statistics.observe_built(&key, 1, true, true, now);
    }
    let rate = |statistics: &Statistics, kind| statistics.estimate(kind, now).hit_rate;
    assert!(rate(&statistics, Kind::NoManifest) < 0.05, "the next one is bound, too");
    assert!(rate(&statistics, Kind::Listed) > 0.9);
    assert_eq!(statistics.typical_cost_ms(now), 0, "nor of what others cost");
    for _ in 0..3 {
        statistics.observe_built(&any_key(), 300, false, false, now);
    }
    assert!(rate(&statistics, Kind::NoManifest) > 0.35, "until others come");
    for _ in 0..10 {
        statistics.observe_saved(300, now);
    }
    assert!(rate(&statistics, Kind::NoManifest) > 0.49);
    assert_eq!(statistics.typical_cost_ms(now), 300);
}

#[test]
fn what_a_hit_has_saved_is_what_building_takes_here() {
    let now = at_hour(NOON);
    let mut statistics = Statistics::default();
    for _ in 0..200 {
        statistics.observe_speed(900, 300, now);
    }
    let speed = statistics.speed(now);
    assert!(speed > 2.5, "{speed}");
    for _ in 0..10 {
        statistics.observe_saved(100, now);
    }
    assert!((f64::from(statistics.typical_cost_ms(now)) - 100.0 * speed).abs() < 1.0);
}

/// A probe's answer comes after its key was built, and was counted as any other: eight index entries, and
/// an upstream that had had everything seemed to have every third key.
#[test]
fn what_is_bound_to_the_machine_says_nothing_of_upstream_when_it_is_built_before_the_answer() {
    let now = at_hour(NOON);
    let (mut early, mut late) = (Statistics::default(), Statistics::default());
    for statistics in [&mut early, &mut late] {
        for _ in 0..4 {
            statistics.observe_answer(&any_key(), Kind::NoManifest, true, 20.0, now);
        }
    }
    for number in 0..20_u8 {
        let key = Digest::of(&[number]);
        early.observe_answer(&key, Kind::NoManifest, false, 20.0, now);
        early.observe_built(&key, 1, true, true, now);
        late.observe_built(&key, 1, true, true, now);
        late.observe_answer(&key, Kind::NoManifest, false, 20.0, now);
    }
    // Building has taught both of what costs nothing; a package shows what is left of the hits.
    for statistics in [&mut early, &mut late] {
        for _ in 0..20 {
            statistics.observe_built(&any_key(), 300, false, false, now);
        }
        let rate = statistics.estimate(Kind::NoManifest, now).hit_rate;
        assert!(rate > 0.7, "{rate}");
    }
    // Another key's absence counts, and so does that of one which others could have built.
    for number in 20..60_u8 {
        let key = Digest::of(&[number]);
        if number % 2 == 0 {
            late.observe_built(&key, 300, false, true, now);
        }
        late.observe_answer(&key, Kind::NoManifest, false, 20.0, now);
    }
    assert!(late.estimate(Kind::NoManifest, now).hit_rate < 0.2);
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Listed), Just(Kind::Unlisted), Just(Kind::NoManifest)]
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        events in prop::collection::vec((0..5_u8, any_kind(), any::<f64>(), any::<u32>()), 0..300)
    ) {
        let mut statistics = Statistics::default();
        for (event, kind, ms, number) in events {
            let now = Timestamp::from_seconds(u64::from(number) * 8);
            let key = Digest::of(&(number % 4).to_le_bytes());
            match event {
                0 => statistics.observe_answer(&key, kind, number % 2 == 0, ms, now),
                1 => statistics.observe_fault(kind, ms, now),
                2 => statistics.observe_transfer(u64::from(number), ms, now),
                3 => statistics.observe_built(&key, number, number % 3 == 0, number % 5 == 0, now),
                _ => statistics.observe_speed(number, number.rotate_left(9), now),
            }
        }
        let bytes = statistics.encode();
        prop_assert!(bytes.len() <= ENCODED_MAX);
        let read = Statistics::decode(&bytes);
        prop_assert!(read.is_some());
        // Once written, numbers are as short as the format has them.
        prop_assert_eq!(read.unwrap_or_default().encode(), bytes);
        for kind in [Kind::Listed, Kind::Unlisted, Kind::NoManifest] {
            let upstream = statistics.estimate(kind, Timestamp(0));
            prop_assert!((0.0..=1.0).contains(&upstream.hit_rate));
            prop_assert!(upstream.latency_ms.is_finite() && upstream.latency_ms >= 0.0);
        }
    }

    #[test]
    fn no_bytes_are_too_strange_to_read(mut bytes in prop::collection::vec(any::<u8>(), 0..250)) {
        let _ = Statistics::decode(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        if let Some(read) = Statistics::decode(&bytes) {
            let upstream = read.estimate(Kind::Listed, Timestamp(u64::MAX));
            prop_assert!((0.0..=1.0).contains(&upstream.hit_rate));
        }
    }
}

/// Beside each package go puts keys that it has not asked for. They counted as cheap ones, so that
/// packages were taken for half as worth asking for as they are.
#[test]
fn what_is_put_without_a_question_says_nothing_of_what_is_asked_for() {
    let now = at_hour(NOON);
    let mut statistics = Statistics::default();
    for _ in 0..20 {
        statistics.observe_built(&any_key(), 300, false, false, now);
        statistics.observe_built(&any_key(), 0, false, false, now);
    }
    assert!(statistics.estimate(Kind::NoManifest, now).hit_rate > 0.49);
    assert_eq!(statistics.typical_cost_ms(now), 300);
}

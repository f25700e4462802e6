//! Trails: what is written reads back, merges lose nothing that fits, damage is refused.

use super::*;
use crate::entry::Digest;
use crate::manifest::fields::SEAL_LEN as SEAL;
use crate::manifest::tests::damage::{any_damage, any_pack};
use proptest::prelude::*;

prop_compose! {
    fn any_row()(
        commit in prop_oneof!["[a-f]", "[0-9a-f]{40}"], written in prop_oneof![0_u64..5, any::<u64>()],
        writer in "[a-zäöü]{0,9}", rows in prop_oneof![0_u32..3, any::<u32>()], bytes: u64, complete: bool,
        packs in prop::collection::vec(any_pack(), 0..5),
    ) -> TrailRow {
        TrailRow { commit, written: Timestamp(written), writer, rows, bytes, complete, packs }
    }
}

/// Rows as they come, in no order.
fn any_loose() -> impl Strategy<Value = Trail> {
    ("[a-z/]{0,9}", "[a-zäöü]{0,9}", prop::collection::vec(any_row(), 0..12))
        .prop_map(|(scope, branch, rows)| Trail { scope, branch, rows })
}

fn any_trail() -> impl Strategy<Value = Trail> {
    any_loose().prop_map(settled)
}

fn settled(trail: Trail) -> Trail {
    trail.merge(Trail::default(), NOW)
}

proptest! {
    #[test]
    fn a_written_trail_reads_back(trail in any_trail()) {
        prop_assert_eq!(Trail::decode(&trail.encode()), Ok(trail));
    }

    #[test]
    fn a_trail_is_settled_when_it_is_written(trail in any_loose()) {
        prop_assert_eq!(Trail::decode(&trail.encode()), Ok(settled(trail)));
    }

    #[test]
    fn reading_a_trail_from_anything_never_panics(bytes: Vec<u8>) {
        prop_assert!(Trail::decode(&bytes).is_err());
        let headed = [b"LRDTRAIL\x01", &bytes[..]].concat();
        prop_assert!(Trail::decode(&headed).is_err());
        let _ = Trail::decode(&seal(headed));
    }

    #[test]
    fn a_damaged_trail_is_refused(trail in any_trail(), damage in any_damage()) {
        if let Ok(read) = Trail::decode(&damage.to(&trail.encode())) {
            prop_assert_eq!(read, trail);
        }
    }

    #[test]
    fn whatever_is_read_can_be_written(trail in any_trail(), damage in any_damage()) {
        if let Ok(read) = Trail::decode(&damage.beneath_the_seal(&trail.encode())) {
            prop_assert_eq!(Trail::decode(&read.encode()), Ok(settled(read)));
        }
    }

    #[test]
    fn merging_keeps_the_fuller_of_a_commit_and_all_others(a in any_trail(), b in any_trail()) {
        let merged = a.clone().merge(b.clone(), NOW);
        prop_assert_eq!(&merged.rows, &b.clone().merge(a.clone(), NOW).rows);
        prop_assert_eq!(merged.clone().merge(b.clone(), NOW), merged.clone());
        prop_assert_eq!(merged.clone().merge(merged.clone(), NOW), merged.clone());
        prop_assert_eq!((&merged.scope, &merged.branch), (&a.scope, &a.branch));
        prop_assert!(merged.rows.is_sorted_by(|newer, older| newer.written >= older.written));
        for row in a.rows.iter().chain(&b.rows) {
            let kept: Vec<_> = merged.rows.iter().filter(|kept| kept.commit == row.commit).collect();
            prop_assert_eq!(kept.len(), 1);
            let fullness = |row: &TrailRow| (row.complete, row.rows, row.written);
            prop_assert!(fullness(kept[0]) >= fullness(row));
            prop_assert!(a.rows.contains(kept[0]) || b.rows.contains(kept[0]));
        }
    }
}

/// Later than all that is written here.
const NOW: Timestamp = Timestamp(u64::MAX);

fn row(n: u32) -> TrailRow {
    TrailRow { commit: n.to_string(), written: Timestamp(n.into()), ..TrailRow::default() }
}

fn of(rows: impl IntoIterator<Item = TrailRow>) -> Trail {
    Trail { rows: rows.into_iter().collect(), ..Trail::default() }
}

#[test]
fn the_newest_sixty_four_stay() {
    let merged = of((0..60).map(row)).merge(of((50..110).map(row)), NOW);
    let commits: Vec<_> = merged.rows.iter().map(|row| row.written.0).collect();
    assert_eq!(commits, (46..110).rev().collect::<Vec<_>>());
    assert_eq!(Trail::decode(&of((0..110).map(row)).encode()), Ok(merged));
}

#[test]
fn the_best_is_the_newest_complete_or_the_fullest_of_the_newest() {
    assert_eq!(of([]).best(NOW), None);
    let mut trail = settled(of((0..20).map(row)));
    assert_eq!(trail.best(NOW), Some(&row(19)), "of equals the newest");
    trail.rows[8].rows = 100;
    trail.rows[7].rows = 10;
    assert_eq!(trail.best(NOW), Some(&trail.rows[8]), "the others are of a part of the build");
    trail.rows[7].rows = 80;
    assert_eq!(trail.best(NOW), Some(&trail.rows[7]), "about as much, and newer");
    trail.rows[12].complete = true;
    trail.rows[15].complete = true;
    assert_eq!(trail.best(NOW), Some(&trail.rows[12]));
}

/// A first build has nothing to be called complete by, and whoever tests one package for an afternoon
/// writes many small rows after it.
#[test]
fn many_builds_of_a_part_neither_hide_nor_push_out_the_one_of_all() {
    for complete in [false, true] {
        let full = TrailRow { rows: 1000, complete, ..row(0) };
        let mut trail = of([full.clone()]);
        for n in 1..100 {
            trail = of([TrailRow { rows: 20, ..row(n) }]).merge(trail, NOW);
            assert_eq!(trail.best(NOW), Some(&full), "after {n}");
            trail = Trail::decode(&trail.encode()).unwrap();
            assert_eq!(trail.best(NOW), Some(&full), "after {n}");
        }
        assert_eq!(trail.rows.len(), ROWS_MAX);
        // Once there is a newer one of all, the old one goes its way.
        trail = of([TrailRow { rows: 1000, complete, ..row(100) }]).merge(trail, NOW);
        trail = of([TrailRow { rows: 20, ..row(101) }]).merge(trail, NOW);
        assert!(!trail.rows.contains(&full));
    }
}

/// What a first build puts it names under two keys each, and those after it ask for one.
#[test]
fn fewer_entries_of_as_many_bytes_are_no_part() {
    let first = TrailRow { rows: 1900, bytes: 37_000, ..row(0) };
    let next = TrailRow { rows: 1100, bytes: 36_900, ..row(1) };
    assert!(!next.is_part_of(&first));
    assert!(TrailRow { bytes: 20_000, ..next.clone() }.is_part_of(&first));
    let nine = (1..10).map(|n| TrailRow { rows: 1100, bytes: 36_900, ..row(n) });
    let trail = of([first]).merge(of(nine), NOW);
    assert_eq!(trail.best(NOW).unwrap().rows, 1100, "{trail:?}");
}

#[test]
fn what_is_built_may_become_less_for_good() {
    for complete in [false, true] {
        let full = TrailRow { rows: 1000, complete, ..row(0) };
        let less = |n: u32| TrailRow {
            rows: 20,
            written: Timestamp(u64::from(n) * LEADS_NS / 10),
            ..row(n)
        };
        let trail = of([full.clone()]).merge(of((1..=10).map(less)), NOW);
        assert_eq!(trail.best(NOW), Some(&full));
        let trail = trail.merge(of([less(11)]), NOW);
        assert_eq!(trail.best(NOW), Some(&less(11)));
        let many = trail.merge(of((12..80).map(less)), NOW);
        assert!(!many.rows.contains(&full));
    }
}

/// What nobody has built after for a month is no older than it was.
#[test]
fn the_newest_few_are_followed_however_old_they_are() {
    let full = TrailRow { rows: 1000, complete: true, ..row(0) };
    let later = |n: u32| TrailRow { rows: 20, written: Timestamp(3 * LEADS_NS), ..row(n) };
    let few = of([full.clone()]).merge(of((1..).take(NEWEST - 1).map(later)), NOW);
    assert_eq!(few.best(NOW), Some(&full));
    let more = few.merge(of([later(99)]), NOW);
    assert_eq!(more.best(NOW).unwrap().rows, 20);
}

/// A machine whose clock was a month ahead had everybody forget what was built before.
#[test]
fn a_clock_that_is_ahead_hides_nothing() {
    let full = TrailRow { rows: 1000, complete: true, ..row(0) };
    let ahead = |n: u32| {
        let written = Timestamp(3 * LEADS_NS + u64::from(n));
        of([TrailRow { rows: 20, written, ..row(n) }])
    };
    let mut trail = of([full.clone()]);
    for n in 1..100 {
        trail = Trail::decode(&ahead(n).merge(trail, Timestamp(1000)).encode()).unwrap();
        // Nor does a clock that is behind.
        for now in [0, 1000] {
            assert_eq!(trail.best(Timestamp(now)), Some(&full), "{n}");
        }
    }
    assert_eq!(trail.rows.len(), ROWS_MAX);
    let later = trail.best(NOW).unwrap();
    assert_eq!(later.rows, 20, "a month later it is old");
}

/// The one that a commit's edits have made far too full is the best of all for two weeks.
#[test]
fn what_the_best_may_hide_is_read_beside_it() {
    let edited = TrailRow { rows: 5000, complete: true, ..row(5) };
    let whole = |n: u32| TrailRow { rows: 500, ..row(n) };
    let part = |n: u32| TrailRow { rows: 3, ..row(n) };
    let said =
        |rows: &[&TrailRow]| rows.iter().map(|row| &*row.commit).collect::<Vec<_>>().join(" ");
    let check = |rows: &[TrailRow], expected: [&str; 3]| {
        let trail = settled(of(rows.iter().cloned()));
        let best = trail.best(NOW).unwrap();
        let beside = trail.beside(best, NOW);
        let found = [said(&beside.newer), best.commit.clone(), said(&beside.older)];
        assert_eq!(found, expected, "{rows:?}");
    };
    let fuller = |n: u32, rows: u32| TrailRow { rows, ..whole(n) };
    check(&[whole(4), edited.clone(), whole(6), whole(7)], ["7", "5", "4"]);
    check(&[fuller(4, 501), edited.clone(), whole(6), part(7), part(8)], ["8 6", "5", "4"]);
    // It was edited once more; and so was another.
    check(&[whole(3), part(4), edited.clone()], ["", "5", "4 3"]);
    check(&[fuller(3, 4500), whole(4), edited.clone()], ["", "5", "4"]);
    check(&[edited.clone(), fuller(7, 3000), whole(8), part(9)], ["9 8 7", "5", ""]);
    let again = TrailRow { complete: true, ..fuller(8, 4500) };
    check(&[edited.clone(), whole(6), part(7), again], ["", "8", "7 6"]);
    // More small ones than are looked at first.
    let many: Vec<_> = (8..30).map(part).chain([edited.clone(), whole(6)]).collect();
    check(&many, ["29 6", "5", ""]);
    // Nothing is hidden by one like the others, and nothing by the only one.
    let complete = |n: u32| TrailRow { complete: true, ..whole(n) };
    check(&[part(1), complete(2), fuller(3, 520), complete(4)], ["", "4", "1"]);
    check(&[complete(2), whole(3)], ["3", "2", ""]);
    check(&[complete(2), complete(3), complete(4), part(5)], ["5", "4", ""]);
    check(std::slice::from_ref(&edited), ["", "5", ""]);
    // By one of another branch: all of it is nearer.
    let own = settled(of([whole(1), whole(2), part(3)]));
    assert_eq!(said(&own.beside(&edited, NOW).newer), "3 2");
    assert!(Trail::default().beside(&edited, NOW).newer.is_empty());
}

#[test]
fn packs_beyond_the_limits_are_not_written() {
    let pack = |n: usize| PackRef { digest: Digest([0; 32]), size: n as u64 };
    let long = PackRef { size: PACK_MAX + 1, ..pack(0) };
    let packs = |from: usize, n: usize| (from..from + n).map(pack).collect::<Vec<_>>();
    let mut many = packs(0, ROW_PACKS_MAX + 7);
    many.insert(0, long);
    let read = Trail::decode(&of([TrailRow { packs: many, ..row(1) }]).encode()).unwrap();
    assert_eq!(read.rows[0].packs, packs(0, ROW_PACKS_MAX));

    let rows = (0_u32..10).map(|n| {
        let from = (9 - n as usize) * ROW_PACKS_MAX;
        TrailRow { packs: packs(from, ROW_PACKS_MAX), ..row(n) }
    });
    let oldest = TrailRow { packs: packs(0, 3), ..row(0) };
    let rows: Vec<_> = rows.skip(1).chain([oldest]).collect();
    let bytes = of(rows).encode();
    let read = Trail::decode(&bytes).unwrap();
    let kept: usize = read.rows[..8].iter().map(|row| row.packs.len()).sum();
    assert_eq!(kept, PACKS_MAX);
    assert!(read.rows[8].packs.is_empty(), "of the oldest nothing is left");
    assert_eq!(read.rows[9].packs, packs(0, 3), "but what others have as well");
    assert!(bytes.len() <= SIZE_MAX);
}

#[test]
fn packs_that_sessions_share_are_written_once() {
    let pack = |n: u8| PackRef { digest: Digest([n; 32]), size: 9 << 20 };
    let packs: Vec<_> = (0..8).map(pack).collect();
    let len = |n| of((0..n).map(|n| TrailRow { packs: packs.clone(), ..row(n) })).encode().len();
    assert!(len(64) < len(1) + 63 * 20, "{} and {}", len(64), len(1));
}

#[test]
fn a_header_that_announces_too_much_takes_no_room() {
    let read = |count| {
        let mut out = b"LRDTRAIL\x01\0\0".to_vec();
        put_varint(count, &mut out);
        Trail::decode(&seal(out))
    };
    assert!(read(0).is_ok());
    let max = ROWS_MAX as u64;
    let too_many = FormatError::TooMany { what: "sessions", count: 1 << 32, max };
    assert_eq!(read(1 << 32), Err(too_many));
    assert_eq!(read(max), Err(FormatError::Short));
    let mut packs = b"LRDTRAIL\x01\0\0\x01\0\x01a\0\0\0\0".to_vec();
    put_varint(1 << 32, &mut packs);
    assert!(
        matches!(Trail::decode(&seal(packs)), Err(FormatError::TooMany { count, .. }) if count == 1 << 32)
    );
}

#[test]
fn two_rows_of_a_commit_and_a_number_of_nothing_are_refused() {
    let bytes = of([row(1), row(2)]).encode();
    let mut twice = bytes[..bytes.len() - SEAL].to_vec();
    let at = twice.iter().rposition(|byte| *byte == b'1').unwrap();
    twice[at] = b'2';
    assert_eq!(Trail::decode(&seal(twice)), Err(FormatError::Twice));
    let nothing = b"LRDTRAIL\x01\0\0\x01\0\x01a\0\0\0\0\x01\x01".to_vec();
    assert_eq!(Trail::decode(&seal(nothing)), Err(FormatError::Index(1)));
}

fn golden() -> Trail {
    let pack = |name: &[u8], size| PackRef { digest: Digest::of(name), size };
    let commit = |n: &str| n.repeat(40);
    let written = |seconds: u64| Timestamp(1_700_000_000_123_456_789 + seconds * 1_000_000_000);
    Trail {
        scope: "example.com/m build".into(),
        branch: "main".into(),
        rows: vec![
            TrailRow {
                commit: commit("b"),
                written: written(3600),
                writer: "ci-runner-7".into(),
                rows: 3400,
                bytes: 400 << 20,
                complete: true,
                packs: vec![pack(b"one", 8 << 20), pack(b"two", 1234)],
            },
            TrailRow {
                commit: commit("a"),
                written: written(0),
                writer: String::new(),
                rows: 12,
                bytes: 0,
                complete: false,
                packs: vec![pack(b"one", 8 << 20), pack(b"three", 16 << 20)],
            },
        ],
    }
}

/// Golden bytes: what every later version must go on reading, and this one writing.
#[test]
fn the_bytes_never_change() {
    let bytes = include_bytes!("../../../tests/fixtures/trail_v1.bin");
    assert_eq!(Trail::decode(bytes), Ok(golden()));
    assert_eq!(golden().encode(), bytes);
}

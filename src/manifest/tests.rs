//! Manifests: what is written reads back, what is damaged is refused, hostile counts take no room.

pub(super) mod damage;

use super::*;
use crate::manifest::encoding::{ROW_LEN_MAX, ROW_LEN_MIN};
use crate::manifest::fields::{SEAL_LEN, put_varint, seal};
use crate::manifest::pack::{FRAME_GAP, FRAME_MAX, PACK_MAX};
use crate::manifest::tests::damage::{any_damage, any_pack};
use crate::units::Random;
use proptest::prelude::*;
use proptest::sample::Index;

fn any_place(packs: Vec<PackRef>) -> BoxedStrategy<Place> {
    let alone = (any::<[u8; 32]>(), any::<u64>())
        .prop_map(|(digest, size)| Place::Frame { digest: Digest(digest), size });
    if packs.is_empty() {
        return prop_oneof![Just(Place::Empty), Just(Place::Ask), alone].boxed();
    }
    let packed = (any::<Index>(), any::<Index>(), any::<Index>()).prop_map(move |(n, len, at)| {
        let n = n.index(packs.len());
        let size = usize::try_from(packs[n].size).unwrap();
        let len = 1 + len.index(size.min(usize::try_from(FRAME_MAX).unwrap()));
        let offset = at.index(size - len + 1) as u64;
        let short = |n| u32::try_from(n).unwrap();
        Place::Pack { pack: short(n), offset, len: short(len) }
    });
    prop_oneof![Just(Place::Empty), Just(Place::Ask), alone, packed].boxed()
}

prop_compose! {
    fn any_row(packs: Vec<PackRef>)(
        action in prop_oneof![(0_u8..9).prop_map(|n| [n; 32]), any::<[u8; 32]>()],
        output: [u8; 32], size in 1_u64.., class in 0_u8..14, cost_ms in prop_oneof![Just(0), any::<u32>()],
        c_env in prop_oneof![Just(0), Just(7), any::<u64>()], stored: u64, place in any_place(packs),
    ) -> Row {
        let empty = place == Place::Empty;
        Row {
            action: Digest(action),
            output: if empty { Digest::EMPTY } else { Digest(output) },
            size: if empty { 0 } else { size },
            class: Class::from_u8(class),
            cost_ms,
            c_env,
            stored: Timestamp(stored),
            place,
        }
    }
}

fn any_manifest() -> impl Strategy<Value = Manifest> {
    let packs = prop::collection::vec(any_pack(), 0..5);
    let rows = packs
        .prop_flat_map(|packs| (Just(packs.clone()), prop::collection::vec(any_row(packs), 0..20)));
    (("[a-zäöü/]{0,20}", "[0-9a-f]{0,40}", "[ -~]{0,9}"), any::<u64>(), any::<bool>(), rows)
        .prop_map(|((scope, commit, writer), written, complete, (packs, rows))| Manifest {
            scope,
            commit,
            written: Timestamp(written),
            writer,
            complete,
            packs,
            rows,
        })
}

/// What a row says but for its place's number: the pack itself.
fn told(manifest: &Manifest, row: &Row) -> (Row, Option<PackRef>) {
    match row.place {
        Place::Pack { pack, offset, len } => {
            let place = Place::Pack { pack: 0, offset, len };
            (Row { place, ..*row }, Some(manifest.packs[pack as usize]))
        }
        _ => (*row, None),
    }
}

proptest! {
    #[test]
    fn a_written_manifest_reads_back(manifest in any_manifest()) {
        prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }

    #[test]
    fn reading_a_manifest_from_anything_never_panics(bytes: Vec<u8>, flags: u8) {
        prop_assert!(Manifest::decode(&bytes).is_err());
        let headed = [b"LRDMANIF\x01", &[flags][..], &bytes].concat();
        prop_assert!(Manifest::decode(&headed).is_err());
        let _ = Manifest::decode(&seal(headed));
    }

    #[test]
    fn a_damaged_manifest_is_refused(manifest in any_manifest(), damage in any_damage()) {
        let damaged = damage.to(&manifest.encode());
        if let Ok(read) = Manifest::decode(&damaged) {
            prop_assert_eq!(read, manifest);
        }
    }

    #[test]
    fn whatever_is_read_can_be_written(manifest in any_manifest(), damage in any_damage()) {
        let damaged = damage.beneath_the_seal(&manifest.encode());
        if let Ok(read) = Manifest::decode(&damaged) {
            prop_assert_eq!(Manifest::decode(&read.encode()), Ok(read));
        }
    }

    #[test]
    fn merging_keeps_its_own_and_adds_what_it_lacks(a in any_manifest(), b in any_manifest()) {
        let merged = a.clone().merge(b.clone());
        prop_assert_eq!(merged.clone().merge(b.clone()), merged.clone());
        prop_assert_eq!(merged.clone().merge(merged.clone()), merged.clone());
        prop_assert_eq!((&merged.scope, &merged.commit, &merged.writer), (&a.scope, &a.commit, &a.writer));
        prop_assert_eq!(merged.complete, a.complete || b.complete);
        prop_assert_eq!(merged.written, a.written.max(b.written));
        let mut expected = Vec::new();
        let mut seen = HashSet::new();
        for (manifest, row) in
            a.rows.iter().map(|row| (&a, row)).chain(b.rows.iter().map(|row| (&b, row)))
        {
            if seen.insert(row.action) {
                expected.push(told(manifest, row));
            }
        }
        let found: Vec<_> = merged.rows.iter().map(|row| told(&merged, row)).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(Manifest::decode(&merged.encode()), Ok(merged));
    }

    #[test]
    fn keys_never_join(a in "[a-z/]{0,6}", b in "[a-z/]{0,6}", c in "[a-z/]{0,6}", d in "[a-z/]{0,6}") {
        prop_assert_eq!(manifest_key(&a, &b) == manifest_key(&c, &d), (&a, &b) == (&c, &d));
        prop_assert_eq!(trail_key(&a, &b) == trail_key(&c, &d), (&a, &b) == (&c, &d));
        prop_assert_ne!(manifest_key(&a, &b), trail_key(&c, &d));
    }
}

const MIB: PackRef = PackRef { digest: Digest([9; 32]), size: 1 << 20 };

fn row(n: u32, place: Place) -> Row {
    let empty = place == Place::Empty;
    Row {
        action: Digest::of(&n.to_le_bytes()),
        output: if empty { Digest::EMPTY } else { Digest::of(b"output") },
        size: if empty { 0 } else { 6 },
        class: Class::Archive,
        cost_ms: 0,
        c_env: 0,
        stored: Timestamp(0),
        place,
    }
}

fn with(packs: Vec<PackRef>, rows: Vec<Row>) -> Manifest {
    Manifest { packs, rows, ..Manifest::default() }
}

#[test]
fn what_cannot_be_true_is_written_as_a_question() {
    let pack = |pack, offset, len| Place::Pack { pack, offset, len };
    let wrong = [
        row(0, pack(1, 0, 1)),
        row(0, pack(u32::MAX, 0, 1)),
        row(0, pack(0, 0, 0)),
        row(0, pack(0, 1, 1 << 20)),
        row(0, pack(0, u64::MAX, 1)),
        row(0, pack(0, 0, (1 << 20) + 1)),
        Row { size: 1, ..row(0, Place::Empty) },
        Row { output: MIB.digest, ..row(0, Place::Empty) },
    ];
    for row in wrong {
        let read = Manifest::decode(&with(vec![MIB], vec![row]).encode()).unwrap();
        assert_eq!(read.rows, [Row { place: Place::Ask, ..row }]);
    }
    let empty = Row { place: Place::Ask, ..row(0, Place::Empty) };
    let read = Manifest::decode(&with(vec![], vec![empty]).encode()).unwrap();
    assert_eq!(read.rows, [row(0, Place::Empty)]);
    let whole = with(vec![MIB], vec![row(0, pack(0, 0, 1 << 20))]);
    assert_eq!(Manifest::decode(&whole.encode()), Ok(whole));
}

#[test]
fn what_is_beyond_the_limits_is_not_written() {
    let long = PackRef { size: PACK_MAX + 1, ..MIB };
    let at = |pack| Place::Pack { pack, offset: 0, len: 1 };
    let read =
        Manifest::decode(&with(vec![long, MIB], vec![row(0, at(0)), row(1, at(1))]).encode());
    assert_eq!(read.unwrap(), with(vec![MIB], vec![row(0, Place::Ask), row(1, at(0))]));

    let packs = vec![MIB; PACKS_MAX + 1];
    let last = u32::try_from(PACKS_MAX).unwrap();
    let read =
        Manifest::decode(&with(packs, vec![row(0, at(last)), row(1, at(last - 1))]).encode());
    let read = read.unwrap();
    assert_eq!(read.packs.len(), PACKS_MAX);
    assert_eq!(read.rows, [row(0, Place::Ask), row(1, at(last - 1))]);

    let many = with(vec![], vec![row(0, Place::Empty); ROWS_MAX + 1]);
    assert_eq!(Manifest::decode(&many.encode()).unwrap().rows.len(), ROWS_MAX);
}

#[test]
fn merging_stays_within_the_limits() {
    let rows = |from: u32, n: usize| (from..).take(n).map(|n| row(n, Place::Ask)).collect();
    let (a, b) = (with(vec![], rows(0, ROWS_MAX - 1)), with(vec![], rows(1 << 20, 5)));
    assert_eq!(a.merge(b).rows.len(), ROWS_MAX);

    let pack = |n: u64| PackRef { digest: Digest([0; 32]), size: n };
    let at = |pack| Place::Pack { pack, offset: 0, len: 1 };
    let full = with((0..PACKS_MAX as u64).map(pack).collect(), vec![]);
    let more = with(vec![pack(7), MIB], vec![row(0, at(0)), row(1, at(1)), row(2, at(9))]);
    let merged = full.clone().merge(more);
    assert_eq!(merged.packs, full.packs);
    assert_eq!(merged.rows, [row(0, at(7)), row(1, Place::Ask), row(2, Place::Ask)]);
}

#[test]
fn bytes_that_rows_share_count_once() {
    let other = PackRef { digest: Digest([1; 32]), ..MIB };
    let at = |pack, offset, len| Place::Pack { pack, offset, len };
    let places =
        [at(1, 53, 10), at(1, 53, 10), Place::Ask, at(1, 107, 5), at(0, 53, 1), at(7, 0, 1)];
    let rows = places.into_iter().zip(0..).map(|(place, n)| row(n, place)).collect();
    assert_eq!(with(vec![other, MIB, MIB], rows).bytes_by_pack(), [1, 15, 0]);
}

/// A header that announces these counts, and nothing behind it.
fn announcing(packs: u64, rows: Option<u64>) -> Vec<u8> {
    let mut out = b"LRDMANIF\x01\0\0\0".to_vec();
    out.extend_from_slice(&[0; 9]);
    put_varint(packs, &mut out);
    if let Some(rows) = rows {
        put_varint(rows, &mut out);
    }
    seal(out)
}

#[test]
fn a_header_that_announces_too_much_takes_no_room() {
    let too_many =
        |what, count, max: usize| Err(FormatError::TooMany { what, count, max: max as u64 });
    let read = |bytes: Vec<u8>| {
        assert!(bytes.len() <= 48);
        Manifest::decode(&bytes)
    };
    assert!(read(announcing(0, Some(0))).is_ok());
    assert_eq!(read(announcing(0, Some(1 << 32))), too_many("rows", 1 << 32, ROWS_MAX));
    assert_eq!(read(announcing(0, Some(u64::MAX))), too_many("rows", u64::MAX, ROWS_MAX));
    assert_eq!(read(announcing(1 << 32, None)), too_many("packs", 1 << 32, PACKS_MAX));
    // Within the limits, but more than the bytes can hold.
    assert_eq!(read(announcing(0, Some(ROWS_MAX as u64))), Err(FormatError::Short));
    assert_eq!(read(announcing(0, Some(1))), Err(FormatError::Short));
    assert_eq!(read(announcing(PACKS_MAX as u64, Some(0))), Err(FormatError::Short));
}

#[test]
fn each_fault_is_named() {
    let bytes = golden().encode();
    let decode = |at: usize, byte: u8| {
        let mut body = bytes[..bytes.len() - SEAL_LEN].to_vec();
        body[at] = byte;
        Manifest::decode(&seal(body))
    };
    assert_eq!(decode(0, b'X'), Err(FormatError::Magic));
    assert_eq!(decode(8, 2), Err(FormatError::Version(2)));
    assert_eq!(decode(9, 0x81), Err(FormatError::Flags(0x81)));
    assert_eq!(decode(11, 0xff), Err(FormatError::Text));
    let mut more = bytes[..bytes.len() - SEAL_LEN].to_vec();
    more.push(0);
    assert_eq!(Manifest::decode(&seal(more)), Err(FormatError::Trailing(1)));
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(Manifest::decode(&flipped), Err(FormatError::Checksum));
    assert_eq!(Manifest::decode(&bytes[..20]), Err(FormatError::Short));
    assert!(matches!(
        Manifest::decode(&vec![0; SIZE_MAX + 1]),
        Err(FormatError::TooMany { what: "bytes", .. })
    ));
}

#[test]
fn the_shortest_and_the_longest_row_are_as_long_as_is_said() {
    let head = with(vec![], vec![]).encode().len();
    let len = |row: Row| with(vec![], vec![row]).encode().len() - head;
    assert_eq!(len(row(0, Place::Empty)), ROW_LEN_MIN);
    let longest = Row {
        size: u64::MAX,
        cost_ms: u32::MAX,
        c_env: u64::MAX,
        stored: Timestamp(1 << 63),
        ..row(0, Place::Frame { digest: Digest::EMPTY, size: u64::MAX })
    };
    // Two bytes less: its c_env is the first.
    assert_eq!(len(longest), ROW_LEN_MAX - 2);
}

/// A session as builds have it: a third of the entries empty, packs in their order, a few frames
/// alone, times of the builds that stored them.
#[test]
fn a_row_takes_little_more_than_its_digests() {
    let mut random = Random::new(1);
    let mut below = |n: u64| random.next_u64() % n;
    let (mut digests, mut rows) = (0, Vec::new());
    let mut stored = 1_700_000_000_000_000_000;
    let mut offset = pack::FIRST_FRAME;
    for n in 0..3_400 {
        stored += below(40_000_000);
        let place = match n % 30 {
            0..10 => Place::Empty,
            29 => Place::Frame { digest: Digest::of(b"frame"), size: 2_000_000 + below(1 << 22) },
            _ => {
                let len = u32::try_from(2_000 + below(60_000)).unwrap();
                let place = Place::Pack { pack: n / 300, offset, len };
                offset += u64::from(len) + FRAME_GAP;
                place
            }
        };
        if n % 300 == 299 {
            offset = pack::FIRST_FRAME;
        }
        digests += match place {
            Place::Empty => 32,
            Place::Frame { .. } => 96,
            _ => 64,
        };
        let cost_ms = u32::try_from(below(3_000)).unwrap();
        let size = if place == Place::Empty { 0 } else { 10_000 + below(300_000) };
        rows.push(Row { cost_ms, size, stored: Timestamp(stored), ..row(n, place) });
    }
    let pack = PackRef { digest: Digest::EMPTY, size: PACK_MAX };
    let manifest = Manifest { written: Timestamp(stored), ..with(vec![pack; 12], rows) };
    let bytes = manifest.encode();
    assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
    let per_row = |n: usize| n / manifest.rows.len();
    assert_eq!((per_row(bytes.len()), per_row(digests)), (66, 54));
}

fn golden() -> Manifest {
    let other = PackRef { digest: Digest::of(b"another pack"), size: 1234 };
    let packed = |pack, offset, len| Place::Pack { pack, offset, len };
    let alone = Place::Frame { digest: Digest::of(b"a frame"), size: 3 << 20 };
    let stored = |seconds: u64| Timestamp::from_seconds(1_700_000_000 + seconds);
    Manifest {
        scope: "example.com/m build".into(),
        commit: "0123456789abcdef0123456789abcdef01234567".into(),
        written: Timestamp(1_700_000_000_123_456_789),
        writer: "ci-runner-7".into(),
        complete: true,
        packs: vec![MIB, other],
        rows: vec![
            Row { cost_ms: 1500, stored: stored(1), ..row(0, packed(0, 53, 1000)) },
            Row { class: Class::Stdout, stored: stored(2), ..row(1, Place::Empty) },
            Row { class: Class::CgoArchive, c_env: 0xfeed, ..row(2, packed(0, 1097, 200)) },
            Row {
                class: Class::Cgo,
                c_env: 0xfeed,
                stored: stored(0),
                ..row(3, packed(1, 600, 634))
            },
            Row { size: 9 << 20, cost_ms: 1, c_env: 7, ..row(4, alone) },
            Row { class: Class::Sources, cost_ms: u32::MAX, ..row(5, Place::Ask) },
        ],
    }
}

/// Golden bytes: what every later version must go on reading, and this one writing.
#[test]
fn the_bytes_and_the_keys_never_change() {
    let bytes = include_bytes!("../../tests/fixtures/manifest_v1.bin");
    assert_eq!(Manifest::decode(bytes), Ok(golden()));
    assert_eq!(golden().encode(), bytes);
    assert_eq!(
        manifest_key("scope", "commit").to_string(),
        "af2159302774c2b04b8f6e1832ad58c72c1923e5194f517b71a4bedce7ada51a"
    );
    assert_eq!(
        trail_key("scope", "branch").to_string(),
        "58d43e8d6222eba24706c47970527fa4b0eb6af9e0a3ef8655587027957ba78e"
    );
}

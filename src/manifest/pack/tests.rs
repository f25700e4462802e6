//! Packs: the same frames however the bytes come, those before a cut, none that is too long.

use super::*;
use crate::manifest::tests::damage::any_damage;
use proptest::prelude::*;

type Frames = Vec<(Digest, u64, Vec<u8>)>;

fn any_frames() -> impl Strategy<Value = Frames> {
    let frame = prop::collection::vec(any::<u8>(), 1..300);
    prop::collection::vec((any::<[u8; 32]>().prop_map(Digest), any::<u64>(), frame), 0..9)
}

fn packed(frames: &Frames) -> (Vec<u8>, Vec<Slot>) {
    let mut writer = PackWriter::new();
    let slots =
        frames.iter().map(|(d, size, frame)| writer.push(*d, *size, frame).unwrap()).collect();
    assert_eq!(writer.is_empty(), frames.is_empty());
    let len = writer.len();
    let bytes = writer.finish();
    assert_eq!(bytes.len() as u64, len);
    (bytes, slots)
}

/// Feeds pieces of these lengths, in turn, asking for all frames after each.
fn read(bytes: &[u8], size: u64, pieces: &[usize]) -> (Vec<PackFrame>, Result<(), PackError>) {
    let mut reader = PackReader::new(size);
    let mut out = Vec::new();
    let mut rest = bytes;
    for len in pieces.iter().cycle() {
        let (piece, later) = rest.split_at((*len).min(rest.len()));
        reader.feed(piece);
        rest = later;
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => out.push(frame),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(reader.next_frame(), Err(error), "the first error stays");
                    return (out, reader.finish());
                }
            }
        }
        if rest.is_empty() {
            break;
        }
    }
    (out, reader.finish())
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same_frames(
        frames in any_frames(), pieces in prop::collection::vec(1_usize..200, 1..9),
    ) {
        let (bytes, slots) = packed(&frames);
        let (read, end) = read(&bytes, bytes.len() as u64, &pieces);
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(read.len(), frames.len());
        for ((frame, slot), (output, size, content)) in read.iter().zip(&slots).zip(&frames) {
            prop_assert_eq!((frame.offset, frame.output, frame.size), (slot.offset, *output, *size));
            prop_assert_eq!(&frame.bytes[..], &content[..]);
            let at = usize::try_from(slot.offset).unwrap();
            prop_assert_eq!(&bytes[at..at + slot.len as usize], &content[..]);
        }
    }

    #[test]
    fn a_pack_that_is_cut_gives_what_came_before(
        frames in any_frames(), cut: prop::sample::Index, pieces in prop::collection::vec(1_usize..200, 1..9),
    ) {
        let (bytes, slots) = packed(&frames);
        let at = cut.index(bytes.len());
        let whole = slots.iter().filter(|slot| slot.offset + u64::from(slot.len) <= at as u64).count();
        let size = bytes.len() as u64;
        let (frames, end) = read(&bytes[..at], size, &pieces);
        prop_assert_eq!(frames.len(), whole);
        prop_assert_eq!(end, Err(PackError::Short { at: at as u64, size }));
        // Known to be as short as this, it fails where its frames do; unless it ends with one.
        let (frames, end) = read(&bytes[..at], at as u64, &pieces);
        prop_assert_eq!(frames.len(), whole);
        let between = at == PACK_HEAD
            || slots.iter().any(|slot| slot.offset + u64::from(slot.len) == at as u64);
        prop_assert_eq!(end.is_ok(), between);
    }

    #[test]
    fn reading_a_pack_from_anything_never_panics(
        bytes: Vec<u8>, frames in any_frames(), damage in any_damage(), size in 0_u64..3000,
        pieces in prop::collection::vec(1_usize..200, 1..9),
    ) {
        let headed = [b"LRDPACKS\x01", &bytes[..]].concat();
        let damaged = damage.to(&packed(&frames).0);
        for bytes in [bytes, headed, damaged] {
            for size in [size, bytes.len() as u64] {
                let (frames, end) = read(&bytes, size, &pieces);
                for frame in &frames {
                    let at = usize::try_from(frame.offset).unwrap();
                    prop_assert_eq!(&bytes[at..at + frame.bytes.len()], &frame.bytes[..]);
                }
                if end.is_ok() {
                    let total: usize = frames.iter().map(|f| f.bytes.len() + FRAME_HEAD).sum();
                    prop_assert_eq!((PACK_HEAD + total) as u64, size);
                }
            }
        }
    }
}

#[test]
fn frames_that_are_too_long_do_not_travel() {
    let most = usize::try_from(FRAME_MAX).unwrap();
    let mut writer = PackWriter::new();
    for len in [0, most + 1] {
        let pushed = writer.push(Digest::EMPTY, 1, &vec![0; len]);
        assert_eq!(pushed, Err(PackError::Frame(len)));
    }
    assert!(writer.is_empty());
    writer.push(Digest::EMPTY, 1, &vec![0; most]).unwrap();
    let bytes = writer.finish();
    let (frames, end) = read(&bytes, bytes.len() as u64, &[1 << 16]);
    assert_eq!((frames.len(), end), (1, Ok(())));

    for len in [0, FRAME_MAX + 1, u64::from(u32::MAX)] {
        let len = u32::try_from(len).unwrap();
        let mut bytes = bytes.clone();
        bytes[PACK_HEAD + 32..PACK_HEAD + 36].copy_from_slice(&len.to_le_bytes());
        let (frames, end) = read(&bytes[..PACK_HEAD + FRAME_HEAD], PACK_MAX, &[7]);
        assert_eq!((frames.len(), end), (0, Err(PackError::Frame(len as usize))));
    }
}

#[test]
fn a_full_pack_takes_no_more() {
    let frame = vec![0; usize::try_from(FRAME_MAX).unwrap()];
    let mut writer = PackWriter::new();
    let mut count = 0;
    while writer.push(Digest::EMPTY, 1, &frame).is_ok() {
        count += 1;
    }
    assert_eq!(count, 15);
    assert_eq!(writer.push(Digest::EMPTY, 1, &frame), Err(PackError::Full));
    let rest = usize::try_from(PACK_MAX - writer.len()).unwrap() - FRAME_HEAD;
    assert_eq!(writer.push(Digest::EMPTY, 1, &frame[..=rest]), Err(PackError::Full));
    writer.push(Digest::EMPTY, 1, &frame[..rest]).unwrap();
    let bytes = writer.finish();
    assert_eq!(bytes.len() as u64, PACK_MAX);
    let (frames, end) = read(&bytes, PACK_MAX, &[100_000]);
    assert_eq!((frames.len(), end), (16, Ok(())));
}

#[test]
fn each_fault_is_named() {
    let (bytes, _) = packed(&vec![(Digest::EMPTY, 1, vec![7; 10])]);
    let size = bytes.len() as u64;
    let end = |bytes: &[u8], size| read(bytes, size, &[5]).1;
    assert_eq!(end(&bytes, PACK_MAX + 1), Err(PackError::Size(PACK_MAX + 1)));
    assert_eq!(end(b"LRDMANIF\x01", size), Err(PackError::Magic));
    assert_eq!(end(b"LRDPACKS\x02", size), Err(PackError::Version(2)));
    assert_eq!(end(&bytes, size - 1), Err(PackError::Past { at: 53, size: size - 1 }));
    assert_eq!(end(&bytes, 5), Err(PackError::Past { at: 0, size: 5 }));
    assert_eq!(end(&bytes, size + 1), Err(PackError::Past { at: size, size: size + 1 }));
    assert_eq!(end(&[&bytes[..], b"x"].concat(), size), Err(PackError::Trailing));
    assert_eq!(end(&[], size), Err(PackError::Short { at: 0, size }));
}

#[test]
fn a_reader_that_is_asked_holds_one_frame_and_a_piece() {
    let frame = vec![0; 1 << 16];
    let (bytes, _) = packed(&vec![(Digest::EMPTY, 1, frame); 100]);
    let mut reader = PackReader::new(bytes.len() as u64);
    let mut most = 0;
    for piece in bytes.chunks(1 << 14) {
        reader.feed(piece);
        while reader.next_frame().unwrap().is_some() {}
        most = most.max(reader.held.capacity());
    }
    assert_eq!(reader.finish(), Ok(()));
    assert!(most <= 4 * (1 << 16), "{most}");
}

/// Golden bytes: what every later version must go on reading, and this one writing.
#[test]
fn the_bytes_never_change() {
    let golden: Frames = vec![
        (Digest::of(b"one"), 3, b"frame of one".to_vec()),
        (Digest::of(b"two"), u64::MAX, vec![0xff]),
    ];
    let bytes = include_bytes!("../../../tests/fixtures/pack_v1.bin");
    let (written, slots) = packed(&golden);
    assert_eq!(written, bytes);
    assert_eq!(slots[0], Slot { offset: FIRST_FRAME, len: 12 });
    assert_eq!(slots[1], Slot { offset: FIRST_FRAME + 12 + FRAME_GAP, len: 1 });
    assert_eq!(slots[1].in_pack(3), Place::Pack { pack: 3, offset: 109, len: 1 });
    let (frames, end) = read(bytes, bytes.len() as u64, &[9]);
    assert_eq!(end, Ok(()));
    let frames: Frames = frames.into_iter().map(|f| (f.output, f.size, f.bytes.to_vec())).collect();
    assert_eq!(frames, golden);
}

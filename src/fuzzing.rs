//! One function a parser, for `fuzz/`: built with `--cfg fuzzing` alone. What is read must not panic,
//! and what was read and is written again must be read as the same.
//!
//! What the inputs are made of, and how long is looked for them, is `fuzz/`'s.

use std::path::PathBuf;

use crate::entry::Key;
use crate::entry::action::GoEntry;
use crate::manifest::pack::PackReader;
use crate::manifest::trail::Trail;
use crate::manifest::{self, Manifest};
use crate::store::index::Owed;
use crate::store::record::{EntryMeta, Row};
use crate::store::segment;
use crate::store::spool::Spooled;
use crate::wire::go::Frame;

/// What go writes to its helper.
pub fn helper(input: &[u8]) {
    crate::gocacheprog::fuzz(input);
}

/// Frames on the socket.
pub fn wire(input: &[u8]) {
    let mut rest = input;
    while let Ok(Some(frame)) = Frame::read(&mut rest) {
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert_eq!(Frame::read(&mut &again[..]).ok().flatten(), Some(frame));
    }
    let _ = Frame::decode(input);
}

/// Paths and headers of requests.
pub fn http(input: &[u8]) {
    crate::frontend::fuzz(input);
}

/// What the store reads back.
pub fn records(input: &[u8]) {
    // Whatever mark it bears.
    let mark =
        input.get(20..24).and_then(|mark| mark.try_into().ok()).map_or(0, u32::from_le_bytes);
    if let Ok((record, len)) = segment::decode(input, || mark) {
        assert!(len as usize <= input.len());
        let mut again = Vec::new();
        let parts = (&record.key[..], &record.meta[..], &record.body[..]);
        segment::encode(record.tag, parts, mark, &mut again);
        assert!(segment::decode(&again, || mark).is_ok_and(|(same, _)| same == record));
    }
    if let Some(row) = Row::decode(input) {
        assert_eq!(Row::decode(&row.encode()), Some(row));
    }
    if let Some(entry) = EntryMeta::decode(input) {
        assert_eq!(EntryMeta::decode(&entry.encode()), Some(entry));
    }
    if let Some(owed) = Owed::decode(input) {
        assert_eq!(Owed::decode(&owed.encode()), Some(owed));
    }
    if let Some(key) = Key::decode(input) {
        assert_eq!(Key::decode(&key.encode()), Some(key));
    }
    if let Some(spooled) = std::str::from_utf8(input).ok().and_then(Spooled::parse) {
        let again = Spooled::parse(&spooled.file_name());
        assert!(again.is_some_and(|again| again.meta == spooled.meta));
    }
}

/// The value of a Go entry.
pub fn entries(input: &[u8]) {
    if let Ok(entry) = GoEntry::decode(input) {
        let again = GoEntry::decode(&entry.encode());
        assert!(
            again.is_ok_and(|again| again.digest == entry.digest && again.frame == entry.frame)
        );
    }
}

/// Manifests and trails, as they came and with a checksum that is right; packs in two pieces.
pub fn manifests(input: &[u8]) {
    for bytes in [input.to_vec(), manifest::sealed(input.to_vec())] {
        if let Ok(manifest) = Manifest::decode(&bytes) {
            let again = Manifest::decode(&manifest.encode());
            assert!(again.is_ok_and(|again| again.rows.len() == manifest.rows.len()));
        }
        if let Ok(trail) = Trail::decode(&bytes) {
            assert!(Trail::decode(&trail.encode()).is_ok());
        }
    }
    let mut reader = PackReader::new(input.len() as u64);
    let (first, second) = input.split_at(input.len() / 2);
    for piece in [first, second] {
        reader.feed(piece);
        while let Ok(Some(frame)) = reader.next_frame() {
            assert!(frame.bytes.len() <= input.len());
        }
    }
    let _ = reader.finish();
}

/// The configuration file.
pub fn settings(input: &[u8]) {
    let memory = PathBuf::from("/dev/shm");
    let dir = if memory.is_dir() { memory } else { "/tmp".into() };
    let file = dir.join(format!("larder-fuzz-{}.toml", std::process::id()));
    std::fs::write(&file, input).expect("a file can be written");
    let sources = crate::config::Sources {
        flags: Vec::new(),
        env: vec![("HOME".into(), "/nonexistent".into())],
        config_file: Some(file),
    };
    match crate::config::Config::load(&sources) {
        Ok(config) => assert!(!config.explain().is_empty()),
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
}

//! What the recorder wrote down, as events.

use std::collections::HashMap;

/// Something that was done to the files of the play. Paths are relative to its root.
#[derive(Clone)]
pub(crate) enum Event {
    Open {
        fd: u32,
        path: String,
        is_synced: bool,
        is_made: bool,
        is_emptied: bool,
    },
    Write {
        fd: u32,
        at: u64,
        data: Vec<u8>,
    },
    Truncate {
        fd: u32,
        len: u64,
    },
    Sync {
        fd: u32,
    },
    SyncFailed {
        fd: u32,
    },
    Rename {
        from: String,
        to: String,
    },
    Unlink {
        path: String,
    },
    MakeDir {
        path: String,
    },
    /// A line that the play has said of itself.
    Mark(String),
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open { path, .. } => write!(f, "open {path}"),
            Self::Write { fd, at, data } => write!(f, "write {} bytes at {at} to {fd}", data.len()),
            Self::Truncate { fd, len } => write!(f, "set length of {fd} to {len}"),
            Self::Sync { fd } => write!(f, "sync {fd}"),
            Self::SyncFailed { fd } => write!(f, "failed sync {fd}"),
            Self::Rename { from, to } => write!(f, "rename {from} to {to}"),
            Self::Unlink { path } => write!(f, "unlink {path}"),
            Self::MakeDir { path } => write!(f, "make {path}/"),
            Self::Mark(text) => write!(f, "mark {text}"),
        }
    }
}

impl Event {
    pub(crate) const fn is_of_store(&self) -> bool {
        !matches!(self, Self::Mark(_))
    }
}

/// The file that the play says its marks to.
pub(crate) const MARKS: &str = "marks";

pub(crate) fn read(bytes: &[u8], root: &str) -> Vec<Event> {
    let mut events = Vec::new();
    let mut paths: HashMap<u32, String> = HashMap::new();
    let relative = |bytes: &[u8]| {
        let path = String::from_utf8(bytes.to_vec()).unwrap();
        path.strip_prefix(root).unwrap().trim_start_matches('/').to_owned()
    };
    let mut rest = bytes;
    while let Some((head, tail)) = rest.split_at_checked(17) {
        let fd = u32::from_le_bytes(head[1..5].try_into().unwrap());
        let number = u64::from_le_bytes(head[5..13].try_into().unwrap());
        let len = u32::from_le_bytes(head[13..17].try_into().unwrap());
        let (data, next) = tail.split_at(usize::try_from(len).unwrap());
        rest = next;
        let is_mark = paths.get(&fd).is_some_and(|path| path == MARKS);
        events.push(match head[0] {
            1 => {
                let path = relative(data);
                paths.insert(fd, path.clone());
                if path == MARKS {
                    continue;
                }
                let has = |bit: u64| number & bit != 0;
                Event::Open { fd, path, is_synced: has(1), is_made: has(2), is_emptied: has(4) }
            }
            2 if is_mark => Event::Mark(String::from_utf8(data.to_vec()).unwrap()),
            2 => Event::Write { fd, at: number, data: data.to_vec() },
            3 => Event::Truncate { fd, len: number },
            4 => Event::Sync { fd },
            5 => {
                let zero = data.iter().position(|byte| *byte == 0).unwrap();
                Event::Rename { from: relative(&data[..zero]), to: relative(&data[zero + 1..]) }
            }
            6 => Event::Unlink { path: relative(data) },
            7 => Event::MakeDir { path: relative(data) },
            8 => Event::SyncFailed { fd },
            other => panic!("operation {other} in the trace"),
        });
    }
    assert!(rest.is_empty(), "the trace ends in the midst of an operation");
    events
}

pub(crate) fn marks(events: &[Event]) -> Vec<&str> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Mark(text) => Some(text.as_str()),
            _ => None,
        })
        .collect()
}

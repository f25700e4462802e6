//! How a frame is written and read: four bytes of length, one of type, the payload.

use std::io::{self, Read, Write};

use serde::Serialize;

use crate::wire::go::{ENTRY_LEN, Entry, FRAME_MAX, Frame, FrameError, Hello, bounded};

impl Frame {
    const fn tag(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Welcome(_) => 2,
            Self::Refused(_) => 3,
            Self::Get { .. } => 10,
            Self::Hit { .. } => 11,
            Self::HitBytes { .. } => 12,
            Self::Miss { .. } => 13,
            Self::Put { .. } => 14,
            Self::PutBytes { .. } => 15,
            Self::Done { .. } => 16,
            Self::Piece { .. } => 17,
            Self::Used { .. } => 18,
            Self::Report(_) => 19,
            Self::Control(_) => 20,
            Self::ControlReply(_) => 21,
            Self::Sees { .. } => 22,
            Self::Parents { .. } => 23,
        }
    }

    /// Appends the frame, with its length, to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.push(self.tag());
        match self {
            Self::Hello(hello) => put_json(out, hello),
            Self::Welcome(welcome) => put_json(out, welcome),
            Self::Refused(refused) => put_json(out, refused),
            Self::Report(report) => put_json(out, report),
            Self::Parents { ids } => put_json(out, ids),
            Self::Control(text) | Self::ControlReply(text) => {
                out.extend_from_slice(text.as_bytes())
            }
            Self::Get { id, action, c_env } => {
                out.extend_from_slice(&id.to_le_bytes());
                out.extend_from_slice(action);
                out.extend_from_slice(&c_env.to_le_bytes());
            }
            Self::Hit { id, entry } | Self::HitBytes { id, entry } => {
                out.extend_from_slice(&id.to_le_bytes());
                entry.encode(out);
            }
            Self::Miss { id, why } => {
                out.extend_from_slice(&id.to_le_bytes());
                out.push(*why);
            }
            Self::Put { id, action, entry } | Self::PutBytes { id, action, entry } => {
                out.extend_from_slice(&id.to_le_bytes());
                out.extend_from_slice(action);
                entry.encode(out);
            }
            Self::Done { id, stored } => {
                out.extend_from_slice(&id.to_le_bytes());
                out.push(u8::from(*stored));
            }
            Self::Piece { id, bytes } => {
                out.extend_from_slice(&id.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Self::Sees { store } => out.push(u8::from(*store)),
            Self::Used { actions } => {
                for action in actions {
                    out.extend_from_slice(action);
                }
            }
        }
        let len = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// Reads what `encode` wrote after the length.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let (&tag, rest) = bytes.split_first().ok_or(FrameError::Malformed(0))?;
        Self::decode_payload(tag, rest).ok_or(FrameError::Malformed(tag))
    }

    fn decode_payload(tag: u8, rest: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(rest);
        let frame = match tag {
            1 => return Hello::decode(rest).map(Self::Hello),
            2 => return serde_json::from_slice(rest).ok().map(Self::Welcome),
            3 => return serde_json::from_slice(rest).ok().map(Self::Refused),
            19 => return serde_json::from_slice(rest).ok().map(Self::Report),
            20 => return String::from_utf8(rest.to_vec()).ok().map(Self::Control),
            21 => return String::from_utf8(rest.to_vec()).ok().map(Self::ControlReply),
            10 => Self::Get { id: cursor.u64()?, action: cursor.id()?, c_env: cursor.u64()? },
            11 => Self::Hit { id: cursor.u64()?, entry: cursor.entry()? },
            12 => Self::HitBytes { id: cursor.u64()?, entry: cursor.entry()? },
            13 => Self::Miss { id: cursor.u64()?, why: cursor.u8()? },
            14 => Self::Put { id: cursor.u64()?, action: cursor.id()?, entry: cursor.entry()? },
            15 => {
                Self::PutBytes { id: cursor.u64()?, action: cursor.id()?, entry: cursor.entry()? }
            }
            16 => Self::Done { id: cursor.u64()?, stored: cursor.u8()? != 0 },
            17 => {
                let id = cursor.u64()?;
                return Some(Self::Piece { id, bytes: cursor.0.to_vec() });
            }
            18 => {
                let (actions, rest) = rest.as_chunks::<32>();
                return rest.is_empty().then(|| Self::Used { actions: actions.to_vec() });
            }
            23 => {
                let ids = serde_json::from_slice(rest).ok()?;
                return Some(Self::Parents { ids: bounded(ids) });
            }
            22 => Self::Sees { store: cursor.u8()? != 0 },
            _ => return None,
        };
        cursor.0.is_empty().then_some(frame)
    }

    /// Writes the frame at once; the helper's and the control client's way.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut out = Vec::with_capacity(128);
        self.encode(&mut out);
        to.write_all(&out)
    }

    /// Reads one frame; None at the end of the connection.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut len = [0; 4];
        match from.read_exact(&mut len) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let len = frame_len(len)?;
        let mut bytes = vec![0; len];
        from.read_exact(&mut bytes)?;
        Ok(Some(Self::decode(&bytes)?))
    }
}

/// The length that four bytes announce, if it is within the limit.
pub fn frame_len(bytes: [u8; 4]) -> Result<usize, FrameError> {
    let len = usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX);
    if len == 0 || len > FRAME_MAX { Err(FrameError::TooLong(len)) } else { Ok(len) }
}

fn put_json(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("plain structs serialize into memory");
}

impl Entry {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.output);
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.time_ns.to_le_bytes());
        out.extend_from_slice(&self.cost_ms.to_le_bytes());
        out.extend_from_slice(&self.c_env.to_le_bytes());
        out.push(self.class);
        out.push(self.source);
    }
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[b]| b)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    fn id(&mut self) -> Option<[u8; 32]> {
        self.take()
    }
    fn entry(&mut self) -> Option<Entry> {
        if self.0.len() < ENTRY_LEN {
            return None;
        }
        Some(Entry {
            output: self.take()?,
            size: self.u64()?,
            time_ns: self.u64()?,
            cost_ms: self.take().map(u32::from_le_bytes)?,
            c_env: self.u64()?,
            class: self.u8()?,
            source: self.u8()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::go::Report;
    use proptest::prelude::*;

    fn any_entry() -> impl Strategy<Value = Entry> {
        (any::<[u8; 32]>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u64>(), any::<u8>())
            .prop_map(|(output, size, time_ns, cost_ms, c_env, class)| Entry {
                output,
                size,
                time_ns,
                cost_ms,
                c_env,
                class,
                source: class % 6,
            })
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let id = any::<u64>();
        let action = any::<[u8; 32]>();
        prop_oneof![
            (id, action, any::<u64>()).prop_map(|(id, action, c_env)| Frame::Get {
                id,
                action,
                c_env
            }),
            (id, any_entry()).prop_map(|(id, entry)| Frame::Hit { id, entry }),
            (id, any_entry()).prop_map(|(id, entry)| Frame::HitBytes { id, entry }),
            (id, any::<u8>()).prop_map(|(id, why)| Frame::Miss { id, why }),
            (id, action, any_entry()).prop_map(|(id, action, entry)| Frame::Put {
                id,
                action,
                entry
            }),
            (id, action, any_entry()).prop_map(|(id, action, entry)| Frame::PutBytes {
                id,
                action,
                entry
            }),
            (id, any::<bool>()).prop_map(|(id, stored)| Frame::Done { id, stored }),
            (id, any::<Vec<u8>>()).prop_map(|(id, bytes)| Frame::Piece { id, bytes }),
            prop::collection::vec(any::<[u8; 32]>(), 0..9)
                .prop_map(|actions| Frame::Used { actions }),
            any::<bool>().prop_map(|store| Frame::Sees { store }),
            prop::collection::vec("[0-9a-f]{40}", 0..9).prop_map(|ids| Frame::Parents { ids }),
            ".{0,80}".prop_map(Frame::Control),
            ".{0,80}".prop_map(Frame::ControlReply),
            ".{0,20}".prop_map(|session| Frame::Hello(Hello { session, ..Hello::default() })),
            (any::<u64>(), any::<u64>()).prop_map(|(gets, puts)| Frame::Report(Report {
                gets,
                puts,
                ..Report::default()
            })),
        ]
    }

    proptest! {
        #[test]
        fn a_written_frame_reads_back(frame in any_frame()) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            prop_assert_eq!(Frame::read(&mut &bytes[..]).unwrap(), Some(frame));
        }

        #[test]
        fn reading_a_frame_from_anything_never_panics(bytes: Vec<u8>) {
            let _ = Frame::decode(&bytes);
            let _ = Frame::read(&mut &bytes[..]);
        }
    }

    #[test]
    fn what_a_hello_says_too_much_is_cut() {
        let id = "a".repeat(40);
        let mut parents = vec!["../x".to_owned(), "a".repeat(41), String::new()];
        parents.extend(vec![id.clone(); 20]);
        let branch = "é".repeat(400);
        let hello = Hello { branch: format!("x{branch}"), parents, ..Hello::default() };
        let mut bytes = Vec::new();
        Frame::Hello(hello).encode(&mut bytes);
        Frame::Parents { ids: vec![id.clone(); 9] }.encode(&mut bytes);
        let mut bytes = &bytes[..];
        let Ok(Some(Frame::Hello(heard))) = Frame::read(&mut bytes) else { panic!("hello?") };
        assert_eq!(heard.branch.len(), 255);
        assert_eq!(heard.parents, vec![id.clone(); 8]);
        assert_eq!(Frame::read(&mut bytes).unwrap(), Some(Frame::Parents { ids: vec![id; 8] }));
    }

    #[test]
    fn a_hello_of_before_branches_is_understood() {
        let json = br#"{"protocol":1,"version":"0","role":"go","pid":1}"#;
        let bytes = [&[1], &json[..]].concat();
        let Ok(Frame::Hello(hello)) = Frame::decode(&bytes) else { panic!("hello?") };
        assert_eq!((hello.branch.as_str(), hello.parents.len()), ("", 0));
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_it_is_read() {
        let mut bytes = (u32::try_from(FRAME_MAX).unwrap() + 1).to_le_bytes().to_vec();
        bytes.push(17);
        assert!(Frame::read(&mut &bytes[..]).is_err());
    }
}

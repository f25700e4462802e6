//! How a Go entry is written upstream: an `ActionResult` that names a zstd frame, and the key
//! under which it stands. The same bytes on every kind of upstream, so that a bucket can move.
//!
//! Compressing and transferring happen elsewhere; here are only the encodings.

use std::sync::Arc;

use prost::Message;

use crate::entry::digest::hex;
use crate::entry::{Class, Digest};
use crate::units::Timestamp;

/// Frames up to this size travel inside the action's value, and once more in a manifest's pack: they
/// are 2 % of the bytes of `std`, where those up to 64 KiB would be 12 %.
pub const INLINE_FRAME_MAX: usize = 16 << 10;

/// Version of this encoding; another one is a miss.
const VERSION: &str = "1";
const OUTPUT_PATH: &str = "o";
const EMPTY_MARK: &str = "larder.empty";
/// Where the frame is if it does not stand alone. A reader that knows no packs finds no frame under
/// its own digest, and misses.
const PACK: &str = "larder.pack";
const PACK_AT: &str = "larder.at";
/// Longest frame in a pack, and longest pack.
const PACKED_MAX: u64 = 1 << 20;
const PACK_MAX: u64 = 16 << 20;

/// A Go entry as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoEntry {
    /// Go's ActionID: an upstream that mixes up its answers is noticed by it.
    pub action: Digest,
    /// SHA-256 of the output.
    pub digest: Digest,
    pub size: u64,
    pub class: Class,
    /// Fingerprint of the C toolchain; zero if it does not matter.
    pub c_env: u64,
    pub writer: Arc<str>,
    /// Go's `Time`.
    pub stored: Timestamp,
    pub cost_ms: u32,
    pub frame: Frame,
}

/// Where the output's zstd frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The output is empty.
    Empty,
    Inline(Vec<u8>),
    /// Alone in the CAS.
    Stored {
        digest: Digest,
        size: u64,
    },
    /// Among others in a pack, which is in the CAS.
    Packed(Packed),
}

/// A frame in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Of the frame.
    pub digest: Digest,
    pub size: u64,
    pub pack: Digest,
    pub pack_size: u64,
    /// Where in the pack the frame begins.
    pub at: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ProtoDigest {
    #[prost(string, tag = "1")]
    hash: String,
    #[prost(int64, tag = "2")]
    size_bytes: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Property {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProperties {
    #[prost(message, repeated, tag = "1")]
    properties: Vec<Property>,
}

#[derive(Clone, PartialEq, Message)]
struct OutputFile {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(message, optional, tag = "2")]
    digest: Option<ProtoDigest>,
    #[prost(bytes = "vec", tag = "5")]
    contents: Vec<u8>,
    #[prost(message, optional, tag = "7")]
    node_properties: Option<NodeProperties>,
}

#[derive(Clone, PartialEq, Message)]
struct ProtoTimestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct ExecutionMetadata {
    #[prost(string, tag = "1")]
    worker: String,
    #[prost(message, optional, tag = "3")]
    worker_start_timestamp: Option<ProtoTimestamp>,
    #[prost(message, optional, tag = "4")]
    worker_completed_timestamp: Option<ProtoTimestamp>,
}

#[derive(Clone, PartialEq, Message)]
struct ActionResult {
    #[prost(message, repeated, tag = "2")]
    output_files: Vec<OutputFile>,
    #[prost(bytes = "vec", tag = "5")]
    stdout_raw: Vec<u8>,
    #[prost(message, optional, tag = "9")]
    execution_metadata: Option<ExecutionMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct Command {
    #[prost(string, repeated, tag = "1")]
    arguments: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Action {
    #[prost(message, optional, tag = "1")]
    command_digest: Option<ProtoDigest>,
    #[prost(message, optional, tag = "2")]
    input_root_digest: Option<ProtoDigest>,
    #[prost(bytes = "vec", tag = "9")]
    salt: Vec<u8>,
}

impl ProtoDigest {
    fn of(bytes: &[u8]) -> Self {
        Self::from_parts(Digest::of(bytes), bytes.len() as u64)
    }

    fn from_parts(digest: Digest, size: u64) -> Self {
        Self { hash: digest.to_string(), size_bytes: i64::try_from(size).unwrap_or(i64::MAX) }
    }
}

/// The constant command behind every Go action.
pub fn command_bytes() -> Vec<u8> {
    Command { arguments: vec!["larder".into(), "go".into()] }.encode_to_vec()
}

/// The action whose digest is the key upstream.
pub fn action_bytes(namespace: &str, action: &Digest) -> Vec<u8> {
    let mut salt = namespace.as_bytes().to_vec();
    salt.push(0);
    salt.extend_from_slice(&action.0);
    Action {
        command_digest: Some(ProtoDigest::of(&command_bytes())),
        input_root_digest: Some(ProtoDigest::of(b"")),
        salt,
    }
    .encode_to_vec()
}

/// Under which key a Go action stands upstream.
pub fn upstream_key(namespace: &str, action: &Digest) -> Digest {
    Digest::of(&action_bytes(namespace, action))
}

/// Why an action's value was not taken. The reader treats each as a miss.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("not an ActionResult: {0}")]
    Proto(String),
    #[error("not written by larder, or by a version this one does not know")]
    Foreign,
    #[error("the property `{0}` is missing or wrong")]
    Property(&'static str),
}

impl GoEntry {
    /// The value to write upstream.
    pub fn encode(&self) -> Vec<u8> {
        let properties = self.properties();
        let mut result = ActionResult {
            output_files: Vec::new(),
            stdout_raw: Vec::new(),
            execution_metadata: Some(self.execution_metadata()),
        };
        let (digest, contents) = match &self.frame {
            Frame::Empty => {
                result.stdout_raw = empty_text(&properties).into_bytes();
                return result.encode_to_vec();
            }
            Frame::Inline(frame) => (ProtoDigest::of(frame), frame.clone()),
            Frame::Stored { digest, size } | Frame::Packed(Packed { digest, size, .. }) => {
                (ProtoDigest::from_parts(*digest, *size), Vec::new())
            }
        };
        result.output_files.push(OutputFile {
            path: OUTPUT_PATH.into(),
            digest: Some(digest),
            contents,
            node_properties: Some(NodeProperties { properties }),
        });
        result.encode_to_vec()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let result =
            ActionResult::decode(bytes).map_err(|error| DecodeError::Proto(error.to_string()))?;
        let (properties, frame) = match result.output_files.first() {
            None => (empty_properties(&result.stdout_raw)?, Frame::Empty),
            Some(file) => (
                file.node_properties.as_ref().map(|p| p.properties.clone()).unwrap_or_default(),
                decode_frame(file)?,
            ),
        };
        let get = |name: &str| {
            properties.iter().find(|p| p.name == name).map_or("", |p| p.value.as_str())
        };
        if get("larder.v") != VERSION {
            return Err(DecodeError::Foreign);
        }
        let action = Digest::from_hex(get("action")).ok_or(DecodeError::Property("action"))?;
        let digest = Digest::from_hex(get("digest")).ok_or(DecodeError::Property("digest"))?;
        let size = get("size").parse().map_err(|_| DecodeError::Property("size"))?;
        if (frame == Frame::Empty) != (size == 0) || (size == 0) != (digest == Digest::EMPTY) {
            return Err(DecodeError::Property("size"));
        }
        let metadata = result.execution_metadata.unwrap_or_default();
        let done = timestamp(metadata.worker_completed_timestamp.as_ref());
        let started = timestamp(metadata.worker_start_timestamp.as_ref());
        Ok(Self {
            action,
            digest,
            size,
            class: Class::from_name(get("class")).unwrap_or(Class::Other),
            c_env: u64::from_str_radix(get("c_env"), 16).unwrap_or(0),
            writer: get("writer").into(),
            stored: done,
            cost_ms: u32::try_from(done.since(started).as_millis()).unwrap_or(u32::MAX),
            frame,
        })
    }

    fn properties(&self) -> Vec<Property> {
        let mut out = Vec::with_capacity(9);
        let mut push = |name: &str, value: String| {
            out.push(Property { name: name.into(), value });
        };
        push("larder.v", VERSION.into());
        push("action", self.action.to_string());
        push("digest", self.digest.to_string());
        push("size", self.size.to_string());
        push("class", self.class.name().into());
        if self.c_env != 0 {
            push("c_env", hex(&self.c_env.to_be_bytes()));
        }
        push("writer", self.writer.replace('\n', " "));
        if let Frame::Packed(packed) = &self.frame {
            push(PACK, format!("{}/{}", packed.pack, packed.pack_size));
            push(PACK_AT, packed.at.to_string());
        }
        out
    }

    fn execution_metadata(&self) -> ExecutionMetadata {
        let started = Timestamp(self.stored.0.saturating_sub(u64::from(self.cost_ms) * 1_000_000));
        ExecutionMetadata {
            worker: concat!("larder/", env!("CARGO_PKG_VERSION")).into(),
            worker_start_timestamp: Some(proto_timestamp(started)),
            worker_completed_timestamp: Some(proto_timestamp(self.stored)),
        }
    }
}

fn decode_frame(file: &OutputFile) -> Result<Frame, DecodeError> {
    let named = file.digest.as_ref().ok_or(DecodeError::Property("frame digest"))?;
    let digest = Digest::from_hex(&named.hash).ok_or(DecodeError::Property("frame digest"))?;
    let size = u64::try_from(named.size_bytes).map_err(|_| DecodeError::Property("frame size"))?;
    if file.contents.is_empty() {
        let packed =
            file.node_properties.as_ref().and_then(|p| packed(digest, size, &p.properties));
        return Ok(packed.map_or(Frame::Stored { digest, size }, Frame::Packed));
    }
    if Digest::of(&file.contents) != digest {
        return Err(DecodeError::Property("contents"));
    }
    Ok(Frame::Inline(file.contents.clone()))
}

fn packed(digest: Digest, size: u64, properties: &[Property]) -> Option<Packed> {
    let get = |name: &str| properties.iter().find(|p| p.name == name).map(|p| p.value.as_str());
    let (pack, pack_size) = get(PACK)?.split_once('/')?;
    let (pack, pack_size) = (Digest::from_hex(pack)?, pack_size.parse().ok()?);
    let at = get(PACK_AT)?.parse::<u64>().ok()?;
    let is_within = size <= PACKED_MAX
        && pack_size <= PACK_MAX
        && at.checked_add(size).is_some_and(|end| end <= pack_size);
    is_within.then_some(Packed { digest, size, pack, pack_size, at })
}

/// An empty output has no output file that could carry properties, so its stdout does, a line each.
fn empty_text(properties: &[Property]) -> String {
    let mut text = format!("{EMPTY_MARK}\n");
    for property in properties {
        text.push_str(&format!("{}={}\n", property.name, property.value));
    }
    text
}

fn empty_properties(stdout: &[u8]) -> Result<Vec<Property>, DecodeError> {
    let text = std::str::from_utf8(stdout).map_err(|_| DecodeError::Foreign)?;
    let mut lines = text.lines();
    if lines.next() != Some(EMPTY_MARK) {
        return Err(DecodeError::Foreign);
    }
    Ok(lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| Property { name: name.into(), value: value.into() })
        .collect())
}

fn proto_timestamp(at: Timestamp) -> ProtoTimestamp {
    ProtoTimestamp {
        seconds: i64::try_from(at.seconds()).unwrap_or(i64::MAX),
        nanos: i32::try_from(at.0 % 1_000_000_000).unwrap_or(0),
    }
}

fn timestamp(at: Option<&ProtoTimestamp>) -> Timestamp {
    let Some(at) = at else { return Timestamp(0) };
    let seconds = u64::try_from(at.seconds).unwrap_or(0);
    let nanos = u64::try_from(at.nanos).unwrap_or(0).min(999_999_999);
    Timestamp(Timestamp::from_seconds(seconds).0.saturating_add(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(frame: Frame) -> GoEntry {
        let empty = frame == Frame::Empty;
        GoEntry {
            action: Digest::of(b"action"),
            digest: if empty { Digest::EMPTY } else { Digest::of(b"output") },
            size: if empty { 0 } else { 6 },
            class: Class::Archive,
            c_env: 0xfeed,
            writer: "ci-runner-7".into(),
            stored: Timestamp(1_700_000_000_123_456_789),
            cost_ms: 1500,
            frame,
        }
    }

    proptest! {
        #[test]
        fn a_written_entry_reads_back(
            frame in prop_oneof![
                Just(Frame::Empty),
                prop::collection::vec(any::<u8>(), 1..200).prop_map(Frame::Inline),
                (any::<[u8; 32]>(), 0_u64..1 << 40)
                    .prop_map(|(d, size)| Frame::Stored { digest: Digest(d), size }),
                (any::<[u8; 32]>(), any::<[u8; 32]>(), 0_u64..1 << 20, 0_u64..15 << 20).prop_map(
                    |(digest, pack, size, at)| Frame::Packed(Packed {
                        digest: Digest(digest),
                        size,
                        pack: Digest(pack),
                        pack_size: at + size,
                        at,
                    })
                ),
            ],
            cost_ms in 0_u32..1 << 30,
            c_env: u64,
            writer in "[ -~]{0,40}",
        ) {
            let entry = GoEntry { cost_ms, c_env, writer: writer.into(), ..entry(frame) };
            prop_assert_eq!(GoEntry::decode(&entry.encode()), Ok(entry));
        }

        #[test]
        fn reading_an_entry_from_anything_never_panics(bytes: Vec<u8>) {
            let _ = GoEntry::decode(&bytes);
        }
    }

    #[test]
    fn a_changed_inline_frame_is_refused() {
        let mut bytes = entry(Frame::Inline(b"frame bytes".to_vec())).encode();
        let at = bytes.windows(11).position(|w| w == b"frame bytes").unwrap();
        bytes[at] ^= 1;
        assert_eq!(GoEntry::decode(&bytes), Err(DecodeError::Property("contents")));
    }

    #[test]
    fn another_tools_action_result_is_foreign() {
        assert_eq!(GoEntry::decode(b""), Err(DecodeError::Foreign));
    }

    /// Golden bytes: what every later version must go on writing and reading.
    #[test]
    fn the_key_and_the_value_upstream_never_change() {
        assert_eq!(hex(&command_bytes()), "0a066c61726465720a02676f");
        assert_eq!(
            upstream_key("main", &Digest::of(b"action")).to_string(),
            Digest::of(&action_bytes("main", &Digest::of(b"action"))).to_string()
        );
        assert_ne!(
            upstream_key("main", &Digest::EMPTY),
            upstream_key("", &Digest::EMPTY),
            "the namespace is part of the key"
        );
        let golden = include_bytes!("../../tests/fixtures/go_entry_v1.bin");
        let again = GoEntry::decode(golden).unwrap();
        assert_eq!(again, entry(Frame::Inline(b"frame bytes".to_vec())));
    }
}

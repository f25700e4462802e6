//! Keys: realm, kind and id. How a key is written in records and in the index, byte by byte.
//!
//! Parsing what clients send belongs to the frontends; here a key is already right.

use std::fmt;
use std::sync::Arc;

use crate::entry::digest::{Digest, Hasher, decode_hex, hex};

/// Upstream, namespace and trust, as sixteen bytes: part of every key but content's.
///
/// Content proves itself, so it belongs to no realm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RealmId(pub [u8; 16]);

impl RealmId {
    /// Where content lives.
    pub const NONE: Self = Self([0; 16]);

    /// The realm of these settings. Two settings that differ in anything never share a realm.
    pub fn of(upstream: &str, namespace: &str, trust: Option<&str>) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(b"larder realm 1");
        for part in [Some(upstream), Some(namespace), trust] {
            let text = part.unwrap_or_default();
            hasher.update(&[u8::from(part.is_some())]);
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finish().0[..16]);
        Self(id)
    }

    pub fn from_hex(text: &str) -> Option<Self> {
        let mut id = [0; 16];
        decode_hex(text, &mut id).then_some(Self(id))
    }
}

impl fmt::Display for RealmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for RealmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a key's bytes are. The numbers are written to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The id is the SHA-256 of the bytes.
    Content = 1,
    /// Small, names content, may change.
    Action = 2,
    /// Any tool's own key to bytes.
    Opaque = 3,
    /// A Go action: names one output by its digest; written upstream as an `Action`.
    Go = 4,
}

impl Kind {
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Content),
            2 => Some(Self::Action),
            3 => Some(Self::Opaque),
            4 => Some(Self::Go),
            _ => None,
        }
    }
}

/// What is named, within a realm and kind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Id {
    Digest(Digest),
    Name(Arc<str>),
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => write!(f, "{digest}"),
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

/// The name of one entry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: Kind,
    pub realm: RealmId,
    pub id: Id,
}

/// Longest name of an opaque entry: what the index can hold as a key, less kind and realm.
pub const NAME_MAX: usize = 480;

const HEAD: usize = 1 + 16;

impl Key {
    pub const fn content(digest: Digest) -> Self {
        Self { kind: Kind::Content, realm: RealmId::NONE, id: Id::Digest(digest) }
    }

    pub const fn action(realm: RealmId, digest: Digest) -> Self {
        Self { kind: Kind::Action, realm, id: Id::Digest(digest) }
    }

    pub const fn go(realm: RealmId, action: Digest) -> Self {
        Self { kind: Kind::Go, realm, id: Id::Digest(action) }
    }

    /// None if the name is empty or longer than `NAME_MAX`.
    pub fn opaque(realm: RealmId, name: &str) -> Option<Self> {
        (1..=NAME_MAX).contains(&name.len()).then(|| Self {
            kind: Kind::Opaque,
            realm,
            id: Id::Name(name.into()),
        })
    }

    /// The digest that the bytes behind this key must have, if the key says so.
    pub const fn expected(&self) -> Option<Digest> {
        match (self.kind, &self.id) {
            (Kind::Content, Id::Digest(digest)) => Some(*digest),
            _ => None,
        }
    }

    /// Whether it has one value, whoever puts it: what upstream had of it lately it has now. A name may
    /// have been put elsewhere since.
    pub const fn has_one_value(&self) -> bool {
        matches!(self.kind, Kind::Go | Kind::Content)
    }

    /// The same id in another realm; content has none to change.
    pub fn in_realm(&self, realm: RealmId) -> Self {
        match self.kind {
            Kind::Content => self.clone(),
            Kind::Action | Kind::Opaque | Kind::Go => Self { realm, ..self.clone() },
        }
    }

    /// Kind, realm, id: how a key is written in records and sorted in the index.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + 32);
        out.push(self.kind as u8);
        out.extend_from_slice(&self.realm.0);
        match &self.id {
            Id::Digest(digest) => out.extend_from_slice(&digest.0),
            Id::Name(name) => out.extend_from_slice(name.as_bytes()),
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let kind = Kind::from_u8(head[0])?;
        let realm = RealmId(head[1..].try_into().ok()?);
        let id = match kind {
            Kind::Opaque => {
                let name = std::str::from_utf8(rest).ok()?;
                if !(1..=NAME_MAX).contains(&name.len()) {
                    return None;
                }
                Id::Name(name.into())
            }
            Kind::Content if realm != RealmId::NONE => return None,
            Kind::Content | Kind::Action | Kind::Go => Id::Digest(Digest(rest.try_into().ok()?)),
        };
        Some(Self { kind, realm, id })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Content => "cas",
            Kind::Action => "ac",
            Kind::Opaque => "kv",
            Kind::Go => "go",
        };
        write!(f, "{kind}/{:?}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_key() -> impl Strategy<Value = Key> {
        (any::<[u8; 16]>(), any::<[u8; 32]>(), "[ -~]{1,480}", 0_u8..4).prop_map(
            |(realm, id, name, which)| match which {
                0 => Key::content(Digest(id)),
                1 => Key::action(RealmId(realm), Digest(id)),
                2 => Key::go(RealmId(realm), Digest(id)),
                _ => Key::opaque(RealmId(realm), &name).expect("the name fits"),
            },
        )
    }

    proptest! {
        #[test]
        fn a_written_key_reads_back(key in any_key()) {
            prop_assert_eq!(Key::decode(&key.encode()), Some(key));
        }

        #[test]
        fn reading_a_key_from_anything_never_panics(bytes: Vec<u8>) {
            if let Some(key) = Key::decode(&bytes) {
                prop_assert_eq!(key.encode(), bytes);
            }
        }

        #[test]
        fn realms_never_join(a in "[a-z/]{0,8}", b in "[a-z/]{0,8}", c in "[a-z/]{0,8}", d in "[a-z/]{0,8}") {
            if (&a, &b) != (&c, &d) {
                prop_assert_ne!(RealmId::of(&a, &b, None), RealmId::of(&c, &d, None));
            }
            prop_assert_ne!(RealmId::of(&a, &b, Some(&c)), RealmId::of(&a, &b, None));
        }
    }

    #[test]
    fn names_have_a_limit() {
        assert!(Key::opaque(RealmId::NONE, "").is_none());
        assert!(Key::opaque(RealmId::NONE, &"x".repeat(NAME_MAX + 1)).is_none());
        assert!(Key::opaque(RealmId::NONE, &"x".repeat(NAME_MAX)).unwrap().encode().len() <= 511);
    }
}

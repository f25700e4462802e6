//! What happens to bytes on their way, by accident or by intent; and the packs that tests name.

use proptest::prelude::*;
use proptest::sample::Index;

use crate::entry::Digest;
use crate::manifest::PackRef;
use crate::manifest::fields::{SEAL_LEN, seal};
use crate::manifest::pack::PACK_MAX;

/// Something that happens to bytes on their way.
#[derive(Clone, Debug)]
pub(in crate::manifest) enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Remove(Index, Index),
    Splice(Index, Vec<u8>),
    Swap(Index, u8),
}

impl Damage {
    pub(in crate::manifest) fn to(&self, bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        let len = bytes.len();
        match self {
            Self::Flip(at, bit) => out[at.index(len)] ^= 1 << (bit % 8),
            Self::Swap(at, byte) => out[at.index(len)] = *byte,
            Self::Cut(at) => out.truncate(at.index(len)),
            Self::Remove(a, b) => {
                let (a, b) = (a.index(len), b.index(len));
                out.drain(a.min(b)..a.max(b));
            }
            Self::Splice(at, more) => {
                let at = at.index(len);
                out.splice(at..at, more.iter().copied());
            }
        }
        out
    }

    /// The same to what is sealed, sealed again: as a writer that means harm would.
    pub(in crate::manifest) fn beneath_the_seal(&self, bytes: &[u8]) -> Vec<u8> {
        seal(self.to(&bytes[..bytes.len() - SEAL_LEN]))
    }
}

pub(in crate::manifest) fn any_damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Swap(at, byte)),
        any::<Index>().prop_map(Damage::Cut),
        any::<(Index, Index)>().prop_map(|(a, b)| Damage::Remove(a, b)),
        any::<(Index, Vec<u8>)>().prop_map(|(at, more)| Damage::Splice(at, more)),
    ]
}

/// One of few packs, so that two values may share some.
pub(in crate::manifest) fn any_pack() -> impl Strategy<Value = PackRef> {
    (0_u8..12).prop_map(|n| PackRef {
        digest: Digest([n; 32]),
        size: 1 + (PACK_MAX - 1) / u64::from(n + 1),
    })
}

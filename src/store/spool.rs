//! What a helper leaves for the next daemon when none is there: empty files whose names say it all.
//!
//! `ACTION-OUTPUT-SIZE-TIME-COST-CENV-CLASS-REALM`, in hexadecimal. The output itself is in place
//! already. Names are made by the helper, read and removed by the daemon.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::entry::digest::{decode_hex, hex};
use crate::entry::{Class, Digest, Key, Meta, RealmId};
use crate::units::Timestamp;

/// A put that no daemon has recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spooled {
    pub action: Key,
    pub meta: Meta,
}

impl Spooled {
    pub fn file_name(&self) -> String {
        let id = match &self.action.id {
            crate::entry::Id::Digest(digest) => digest.to_string(),
            crate::entry::Id::Name(_) => unreachable!("Go actions are named by digests"),
        };
        let m = &self.meta;
        format!(
            "{id}-{}-{:x}-{:x}-{:x}-{:x}-{:x}-{}",
            m.digest,
            m.size,
            m.stored.0,
            m.cost_ms,
            m.c_env,
            m.class as u8,
            hex(&self.action.realm.0)
        )
    }

    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let action = Digest::from_hex(parts.next()?)?;
        let digest = Digest::from_hex(parts.next()?)?;
        let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
        let (size, time, cost, c_env, class) =
            (number()?, number()?, number()?, number()?, number()?);
        let mut realm = [0; 16];
        if !decode_hex(parts.next()?, &mut realm) || parts.next().is_some() {
            return None;
        }
        let class = Class::from_u8(u8::try_from(class).ok()?);
        let mut meta = Meta::new(digest, size, Timestamp(time), class);
        meta.cost_ms = u32::try_from(cost).ok()?;
        meta.c_env = c_env;
        Some(Self { action: Key::go(RealmId(realm), action), meta })
    }

    pub fn write(&self, spool: &Path) -> io::Result<()> {
        File::create(spool.join(self.file_name())).map(drop)
    }
}

/// The names in the spool, each with what it says; names that say nothing are left alone.
pub fn list(spool: &Path) -> io::Result<Vec<(std::path::PathBuf, Spooled)>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(spool)? {
        let entry = entry?;
        if let Some(spooled) = entry.file_name().to_str().and_then(Spooled::parse) {
            out.push((entry.path(), spooled));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_written_name_reads_back(
            action: [u8; 32], output: [u8; 32], realm: [u8; 16], size: u64, time: u64, cost: u32,
            c_env: u64, class in 0_u8..14,
        ) {
            let mut meta = Meta::new(Digest(output), size, Timestamp(time), Class::from_u8(class));
            meta.cost_ms = cost;
            meta.c_env = c_env;
            let spooled = Spooled { action: Key::go(RealmId(realm), Digest(action)), meta };
            let name = spooled.file_name();
            prop_assert!(name.len() <= 255, "file systems take no longer names");
            prop_assert_eq!(Spooled::parse(&name), Some(spooled));
        }

        #[test]
        fn reading_a_name_from_anything_never_panics(name in "[0-9a-f-]{0,300}") {
            let _ = Spooled::parse(&name);
        }
    }
}

//! One consistent look at the index.

use heed::{RoTxn, WithoutTls};

use crate::entry::{Key, Kind, RealmId};
use crate::store::index::{COVERED, Covered, IndexError, Owed, Tables};
use crate::store::record::{Place, Row};

/// A consistent view of the index.
pub struct Reading {
    pub(super) tables: Tables,
    pub(super) txn: RoTxn<'static, WithoutTls>,
}

impl Reading {
    pub fn row(&self, key: &[u8]) -> Result<Option<Row>, IndexError> {
        Ok(self.tables.entries.get(&self.txn, key)?.and_then(Row::decode))
    }

    pub fn covered(&self) -> Result<Option<Covered>, IndexError> {
        Ok(self.tables.meta.get(&self.txn, COVERED)?.and_then(Covered::decode))
    }

    pub fn entries(&self) -> Result<u64, IndexError> {
        Ok(self.tables.entries.len(&self.txn)?)
    }

    pub fn owed_entries(&self) -> Result<u64, IndexError> {
        Ok(self.tables.owed.len(&self.txn)?)
    }

    /// The oldest owed uploads from `number` on.
    pub fn owed(&self, number: u64, most: usize) -> Result<Vec<(u64, Owed)>, IndexError> {
        let from = number.to_be_bytes();
        let mut out = Vec::new();
        for item in self.tables.owed.range(&self.txn, &from)?.take(most) {
            let (number, owed) = item?;
            if let (Ok(number), Some(owed)) = (number.try_into(), Owed::decode(owed)) {
                out.push((u64::from_be_bytes(number), owed));
            }
        }
        Ok(out)
    }

    pub fn owed_number(&self, identity: &[u8]) -> Result<Option<u64>, IndexError> {
        let number = self.tables.owed_keys.get(&self.txn, identity)?;
        Ok(number.and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes))
    }

    /// What a realm stands for.
    pub fn realm(&self, id: RealmId) -> Result<Option<String>, IndexError> {
        let text = self.tables.realms.get(&self.txn, &id.0)?;
        Ok(text.and_then(|text| std::str::from_utf8(text).ok()).map(str::to_owned))
    }

    pub fn realms(&self) -> Result<Vec<(RealmId, String)>, IndexError> {
        let mut out = Vec::new();
        for item in self.tables.realms.range(&self.txn, &[])? {
            let (id, text) = item?;
            if let (Ok(id), Ok(text)) = (id.try_into(), std::str::from_utf8(text)) {
                out.push((RealmId(id), text.to_owned()));
            }
        }
        Ok(out)
    }

    /// When each segment was last used, as far as it was noted.
    pub fn segments(&self) -> Result<Vec<(u32, u32)>, IndexError> {
        let mut out = Vec::new();
        for item in self.tables.segments.range(&self.txn, &[])? {
            let (segment, at) = item?;
            if let (Ok(segment), Ok(at)) = (segment.try_into(), at.try_into()) {
                out.push((u32::from_be_bytes(segment), u32::from_le_bytes(at)));
            }
        }
        Ok(out)
    }

    /// Visits entries in key order from `from` on until the visitor says stop.
    pub fn visit(
        &self,
        from: &[u8],
        mut visit: impl FnMut(&[u8], Row) -> std::ops::ControlFlow<()>,
    ) -> Result<(), IndexError> {
        for item in self.tables.entries.range(&self.txn, from)? {
            let (key, row) = item?;
            if let Some(row) = Row::decode(row)
                && visit(key, row).is_break()
            {
                break;
            }
        }
        Ok(())
    }

    /// Up to `most` files, beginning at a place in the key space that `seed` chooses.
    pub fn sample_files(
        &self,
        seed: [u8; 32],
        most: usize,
    ) -> Result<Vec<(Vec<u8>, Row)>, IndexError> {
        let mut out = Vec::with_capacity(most);
        let mut looked = 0;
        let mut collect = |key: &[u8], row: Row| {
            if key[0] != Kind::Content as u8 {
                return std::ops::ControlFlow::Break(());
            }
            looked += 1;
            if row.place == Place::File {
                out.push((key.to_vec(), row));
            }
            let enough = out.len() >= most || looked >= most * 64;
            if enough {
                std::ops::ControlFlow::Break(())
            } else {
                std::ops::ControlFlow::Continue(())
            }
        };
        self.visit(&Key::content(crate::entry::Digest(seed)).encode(), &mut collect)?;
        if out.len() < most {
            self.visit(&Key::content(crate::entry::Digest([0; 32])).encode(), |key, row| {
                if out.len() >= most || key[0] != Kind::Content as u8 || looked >= most * 128 {
                    return std::ops::ControlFlow::Break(());
                }
                looked += 1;
                if row.place == Place::File && !out.iter().any(|(seen, _)| seen == key) {
                    out.push((key.to_vec(), row));
                }
                std::ops::ControlFlow::Continue(())
            })?;
        }
        Ok(out)
    }
}

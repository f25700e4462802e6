//! Whether a file is an index that LMDB can follow: each page where the file says, used once, keys in
//! order; and whether each value is what was put there. LMDB trusts its file, and maps it: a page number
//! that leads astray ends the process that reads, be it the daemon or go's helper. Read here with plain
//! reads, nothing mapped.
//!
//! ```text
//! page    u64 number | u16 pad | u16 flags | u16 lower, u16 upper (overflow: u32 pages) | u16 per node
//! node    u16 lo, u16 hi | u16 flags | u16 length of key | key | data
//!         of a leaf: lo, hi the length of the data; flag 1: the data is the number of an overflow page
//!         of a branch: lo, hi, flags the number of the page below; the first has no key
//! meta    u32 magic | u32 version | 8 | u64 size of map | tree of free pages | tree of names
//!         u64 last page | u64 transaction            (two of them, the younger counts)
//! tree    u32 pad (size of a page) | u16 flags | u16 depth | 3 × u64 pages | u64 entries | u64 root
//! ```
//!
//! As `mdb.c` of LMDB 0.9 writes it on machines with 64 bits, little-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::table;

const MAGIC: u32 = 0xbeef_c0de;
const VERSION: u32 = 1;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const OVERFLOW: u16 = 4;
const META: u16 = 8;
const BIG: u16 = 1;
const SUBTREE: u16 = 2;
const PAGE_HEAD: usize = 16;
const NODE_HEAD: usize = 8;
const TREE: usize = 48;
const NO_PAGE: u64 = u64::MAX;
/// Flags of a tree: as larder makes them, and of the free pages, whose keys are numbers.
const INTEGER_KEYS: u16 = 8;
const FIXED_MAP: u16 = 1;
const DUPLICATES: u16 = 4 | 16 | 32 | 64;
/// Deeper than any tree that fits a disk.
const DEPTH_MAX: u16 = 32;

/// What is wrong, for the log.
#[derive(Debug, thiserror::Error)]
pub enum Unsound {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("page {page}: {problem}")]
    Page { page: u64, problem: &'static str },
}

impl Unsound {
    /// Whether the file is at fault, and not who wanted to read it.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Page { .. } => true,
            // A bad sector, or a file that ends too early.
            Self::Io(error) => {
                error.kind() == io::ErrorKind::UnexpectedEof || error.raw_os_error() == Some(EIO)
            }
        }
    }
}

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

type Checked<T> = Result<T, Unsound>;

/// Reads all of it. A file that is not there is sound.
pub fn check(path: &Path) -> Checked<()> {
    if cfg!(not(all(target_pointer_width = "64", target_endian = "little"))) {
        return Ok(());
    }
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if file.metadata()?.len() == 0 {
        return Ok(());
    }
    let mut head = [0; PAGE_HEAD + 16 + 8 + 2 * TREE + 16];
    file.read_exact_at(&mut head, 0)?;
    let page_size = usize::try_from(number(&head[PAGE_HEAD + 24..], 4)).unwrap_or(0);
    if !page_size.is_power_of_two() || !(512..=65_536).contains(&page_size) {
        return Err(Unsound::Page { page: 0, problem: "no such size of pages" });
    }
    let mut index = Sound { file, page_size, pages: 2, used: Vec::new() };
    let (first, second) = (index.meta(0)?, index.meta(1)?);
    let meta = if first.transaction >= second.transaction { first } else { second };
    index.pages = meta.pages;
    index.used = vec![0; usize::try_from(meta.pages / 8 + 1).unwrap_or(0)];
    index.take(0, 1)?;
    index.take(1, 1)?;
    index.tree(&meta.names, Kind::Names)?;
    index.tree(&meta.free, Kind::Free)
}

/// A number of up to eight bytes.
fn number(bytes: &[u8], len: usize) -> u64 {
    let mut whole = [0; 8];
    whole[..len].copy_from_slice(&bytes[..len]);
    u64::from_le_bytes(whole)
}

fn short(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

struct Meta {
    free: Tree,
    names: Tree,
    pages: u64,
    transaction: u64,
}

/// What is known of a tree before its pages are looked at.
struct Tree {
    flags: u16,
    depth: u16,
    entries: u64,
    root: u64,
}

impl Tree {
    fn of(bytes: &[u8]) -> Self {
        Self {
            flags: short(&bytes[4..]),
            depth: short(&bytes[6..]),
            entries: number(&bytes[32..], 8),
            root: number(&bytes[40..], 8),
        }
    }
}

/// What the entries of a tree are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Trees by name.
    Names,
    /// Free pages by transaction.
    Free,
    /// Ours.
    Entries,
}

/// The keys that a page may hold: from the first on, before the second.
#[derive(Clone, Copy)]
struct Bounds<'a>(Option<&'a [u8]>, Option<&'a [u8]>);

impl Kind {
    fn is_before(self, a: &[u8], b: &[u8]) -> bool {
        match self {
            Self::Free => number(a, 8) < number(b, 8),
            Self::Names | Self::Entries => a < b,
        }
    }

    fn holds(self, bounds: Bounds<'_>, key: &[u8]) -> bool {
        bounds.0.is_none_or(|first| !self.is_before(key, first))
            && bounds.1.is_none_or(|end| self.is_before(key, end))
    }
}

struct Sound {
    file: File,
    page_size: usize,
    pages: u64,
    /// A bit a page.
    used: Vec<u8>,
}

impl Sound {
    fn meta(&self, page: u64) -> Checked<Meta> {
        let bytes = self.read(page)?;
        let body = &bytes[PAGE_HEAD..];
        let wrong = |problem| Err(Unsound::Page { page, problem });
        if short(&bytes[10..]) != META
            || number(body, 4) != u64::from(MAGIC)
            || number(&body[4..], 4) != u64::from(VERSION)
        {
            return wrong("not the head of an index");
        }
        if number(&body[24..], 4) != self.page_size as u64 {
            return wrong("another size of pages");
        }
        let (free, names) = (Tree::of(&body[24..]), Tree::of(&body[24 + TREE..]));
        if free.flags & (FIXED_MAP | DUPLICATES) != 0 || free.flags & INTEGER_KEYS == 0 {
            return wrong("flags that larder does not use");
        }
        let last = number(&body[24 + 2 * TREE..], 8);
        let most = super::MAP_SIZE as u64 / self.page_size as u64;
        let pages = last.checked_add(1).filter(|pages| (2..=most).contains(pages));
        let Some(pages) = pages else { return wrong("more pages than there may be") };
        Ok(Meta { free, names, pages, transaction: number(&body[32 + 2 * TREE..], 8) })
    }

    fn read(&self, page: u64) -> Checked<Vec<u8>> {
        let mut bytes = vec![0; self.page_size];
        let at = page.checked_mul(self.page_size as u64);
        let at = at.ok_or(Unsound::Page { page, problem: "beyond the end" })?;
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Marks pages as used.
    fn take(&mut self, page: u64, count: u64) -> Checked<()> {
        let end = page.checked_add(count).filter(|end| *end <= self.pages);
        let Some(end) = end else { return Err(Unsound::Page { page, problem: "beyond the end" }) };
        for page in page..end {
            let bit = 1_u8 << (page % 8);
            let byte = usize::try_from(page / 8).ok().and_then(|at| self.used.get_mut(at));
            match byte {
                Some(byte) if *byte & bit == 0 => *byte |= bit,
                _ => return Err(Unsound::Page { page, problem: "used twice" }),
            }
        }
        Ok(())
    }

    fn tree(&mut self, tree: &Tree, kind: Kind) -> Checked<()> {
        let wrong = |problem| Err(Unsound::Page { page: tree.root, problem });
        if tree.root == NO_PAGE {
            return if tree.entries == 0 { Ok(()) } else { wrong("a tree without a root") };
        }
        if kind != Kind::Free && tree.flags != 0 {
            return wrong("flags that larder does not use");
        }
        if !(1..=DEPTH_MAX).contains(&tree.depth) {
            return wrong("no such depth");
        }
        let mut entries = 0;
        self.page(tree.root, tree.depth, kind, Bounds(None, None), &mut entries)?;
        if entries == tree.entries { Ok(()) } else { wrong("another number of entries") }
    }

    fn page(
        &mut self,
        page: u64,
        depth: u16,
        kind: Kind,
        bounds: Bounds<'_>,
        entries: &mut u64,
    ) -> Checked<()> {
        self.take(page, 1)?;
        let bytes = self.read(page)?;
        let wrong = |problem| Unsound::Page { page, problem };
        let nodes =
            nodes_of(&bytes, page, if depth == 1 { LEAF } else { BRANCH }).map_err(wrong)?;
        if depth == 1 {
            *entries += nodes.len() as u64;
            return self.leaf(page, &nodes, kind, bounds);
        }
        if nodes.len() < 2 && kind != Kind::Free {
            return Err(wrong("a branch to nowhere"));
        }
        for (at, node) in nodes.iter().enumerate() {
            let first = if at == 0 { bounds.0 } else { Some(node.key(kind).map_err(wrong)?) };
            let next = nodes.get(at + 1).map(|next| next.key(kind)).transpose().map_err(wrong)?;
            if at > 0 && !first.is_some_and(|key| kind.holds(bounds, key)) {
                return Err(wrong("keys out of order"));
            }
            let within = Bounds(first, next.or(bounds.1));
            self.page(node.below(), depth - 1, kind, within, entries)?;
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        page: u64,
        nodes: &[Node<'_>],
        kind: Kind,
        bounds: Bounds<'_>,
    ) -> Checked<()> {
        let wrong = |problem| Unsound::Page { page, problem };
        let mut before: Option<&[u8]> = None;
        for node in nodes {
            let key = node.key(kind).map_err(wrong)?;
            let is_next = before.is_none_or(|before| kind.is_before(before, key));
            if !is_next || !kind.holds(bounds, key) {
                return Err(wrong("keys out of order"));
            }
            before = Some(key);
            let inline = node.data().map_err(wrong)?;
            let apart = match node.flags() {
                BIG => Some(self.overflow(number(inline, 8), node.data_len())?),
                _ => None,
            };
            let data = apart.as_deref().unwrap_or(inline);
            match (kind, node.flags()) {
                (Kind::Names, SUBTREE) if data.len() == TREE => {
                    self.tree(&Tree::of(data), Kind::Entries)?;
                }
                (Kind::Free, 0 | BIG) => self.free_pages(page, data)?,
                (Kind::Entries, 0 | BIG) if !table::is_whole(key, data) => {
                    return Err(wrong("an entry that nobody has written so"));
                }
                (Kind::Entries, 0 | BIG) => {}
                _ => return Err(wrong("an entry of another kind")),
            }
        }
        Ok(())
    }

    fn overflow(&mut self, page: u64, len: usize) -> Checked<Vec<u8>> {
        let wrong = |problem| Unsound::Page { page, problem };
        let needed = (PAGE_HEAD - 1 + len) / self.page_size + 1;
        let head = self.read(page)?;
        // Data that became shorter keeps its pages.
        let count = number(&head[12..], 4);
        let is_whole = count >= needed as u64 && number(&head, 8) == page;
        if short(&head[10..]) != OVERFLOW || !is_whole {
            return Err(wrong("not where data goes on"));
        }
        self.take(page, count)?;
        let mut data = vec![0; len];
        let at = page * self.page_size as u64 + PAGE_HEAD as u64;
        self.file.read_exact_at(&mut data, at)?;
        Ok(data)
    }

    /// A page that is free and in use would be written over.
    fn free_pages(&mut self, page: u64, data: &[u8]) -> Checked<()> {
        let wrong = |problem| Unsound::Page { page, problem };
        let mut numbers = data.chunks_exact(8).map(|bytes| number(bytes, 8));
        let count = numbers.next().ok_or_else(|| wrong("an empty list"))?;
        if count != numbers.len() as u64 {
            return Err(wrong("another number of free pages"));
        }
        let mut before = u64::MAX;
        for free in numbers {
            if free >= before {
                return Err(wrong("free pages out of order"));
            }
            before = free;
            self.take(free, 1)?;
        }
        Ok(())
    }
}

/// A node, at least its head within the page.
struct Node<'a> {
    bytes: &'a [u8],
}

impl<'a> Node<'a> {
    fn flags(&self) -> u16 {
        short(&self.bytes[4..])
    }

    fn below(&self) -> u64 {
        number(self.bytes, 6)
    }

    fn data_len(&self) -> usize {
        usize::try_from(number(self.bytes, 4)).unwrap_or(usize::MAX)
    }

    fn key(&self, kind: Kind) -> Result<&'a [u8], &'static str> {
        let len = usize::from(short(&self.bytes[6..]));
        let key = self.bytes.get(NODE_HEAD..NODE_HEAD + len).ok_or("a key beyond its page")?;
        let is_right = if kind == Kind::Free { len == 8 } else { (1..=511).contains(&len) };
        if is_right { Ok(key) } else { Err("a key of no such length") }
    }

    /// The data, or the number of the page that has it.
    fn data(&self) -> Result<&'a [u8], &'static str> {
        let from = NODE_HEAD + usize::from(short(&self.bytes[6..]));
        let len = if self.flags() == BIG { 8 } else { self.data_len() };
        let data = from.checked_add(len).and_then(|end| self.bytes.get(from..end));
        data.ok_or("data beyond its page")
    }
}

fn nodes_of(bytes: &[u8], page: u64, flags: u16) -> Result<Vec<Node<'_>>, &'static str> {
    if number(bytes, 8) != page || short(&bytes[10..]) != flags {
        return Err("another page than was looked for");
    }
    let (lower, upper) = (usize::from(short(&bytes[12..])), usize::from(short(&bytes[14..])));
    // The largest pages end where two bytes begin anew.
    let upper = if upper == 0 { 1 << 16 } else { upper };
    if lower < PAGE_HEAD + 2 || lower % 2 != 0 || lower > upper || upper > bytes.len() {
        return Err("no such layout");
    }
    let node = |pointer: &[u8]| {
        let at = usize::from(short(pointer));
        let is_within = at >= upper && at % 2 == 0 && at + NODE_HEAD <= bytes.len();
        is_within.then(|| Node { bytes: &bytes[at..] })
    };
    let nodes = bytes[PAGE_HEAD..lower].chunks_exact(2).map(node);
    nodes.collect::<Option<Vec<_>>>().ok_or("a node beyond its page")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::entry::{Class, Digest, Key, Meta, RealmId};
    use crate::store::{Config, Limit, Store};
    use crate::units::{ByteSize, Clock, Random, Timestamp};

    /// A store that has been through much, closed.
    fn store(dir: &Path) -> std::path::PathBuf {
        let size = |bytes| Some(Limit::Size(ByteSize(bytes)));
        let config = Config { dir: dir.join("store"), disk: size(1 << 30), floor: size(0) };
        let store = Store::open(&config, Clock::system(), Arc::default()).unwrap();
        let mut random = Random::new(1);
        let mut below = |n: usize| usize::try_from(random.next_u64() % n as u64).unwrap();
        for n in 0..12_000_u64 {
            let name = format!("{}/{}", below(9000), "x".repeat(below(200)));
            let key = Key::opaque(RealmId([3; 16]), &name).unwrap();
            if n % 5 == 0 {
                store.remove(&key);
            }
            let mut staged = store.stage();
            staged.write(&n.to_le_bytes()).unwrap();
            let staged = staged.finish();
            let meta = Meta::new(Digest::of(&n.to_le_bytes()), 8, Timestamp(0), Class::Other);
            store.put(&key, staged, &meta, (n % 3 == 0).then_some(RealmId([3; 16]))).unwrap();
            if n % 1500 == 0 {
                assert!(store.sync(Duration::from_secs(30)));
                for (number, _) in store.owed_from(0, 100) {
                    store.settle(number);
                }
            }
        }
        store.close();
        dir.join("store/index/data.mdb")
    }

    #[test]
    fn what_the_index_writes_is_sound_and_what_is_damaged_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = store(dir.path());
        check(&path).unwrap();
        let right = std::fs::read(&path).unwrap();
        let mut random = Random::new(2);
        let mut below = |n: usize| usize::try_from(random.next_u64() % n as u64).unwrap();
        let damaged = dir.path().join("damaged");
        for len in [right.len() / 2, 4096, 100] {
            std::fs::write(&damaged, &right[..len]).unwrap();
            assert!(check(&damaged).is_err(), "cut after {len}");
        }
        let mut found = 0;
        for _ in 0..300 {
            // The heads of pages, where what leads elsewhere stands.
            let page = below(right.len() / 4096);
            let mut bytes = right.clone();
            bytes[page * 4096 + below(200)] ^= 1 << below(8);
            std::fs::write(&damaged, &bytes).unwrap();
            found += u64::from(check(&damaged).is_err());
        }
        assert!(found > 10, "{found} of 300; what is free does not count");
        std::fs::write(&damaged, b"").unwrap();
        check(&damaged).unwrap();
        check(&dir.path().join("nothing")).unwrap();
    }
}

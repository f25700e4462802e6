//! A disk as a kill leaves it, or as a power cut may: of each file what was synced, and of what came after any part.
//!
//! Taken for granted, as journaling file systems give it: a synced file has a name, the last that it
//! was given; sectors of 512 bytes are written whole or not at all; directories stay. After a failed sync
//! the system takes what was to be synced for written, as Linux does: only what is written again is synced.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use larder::units::Random;

use crate::trace::Event;

const SECTOR: usize = 512;

#[derive(Clone)]
enum Change {
    Write { at: usize, data: Vec<u8> },
    Truncate(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Truncate(len) => bytes.resize(*len, 0),
            Self::Write { at, data } => {
                let end = at + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(data);
            }
        }
    }

    /// Some sectors of it.
    fn apply_torn(&self, bytes: &mut Vec<u8>, random: &mut Random) {
        let Self::Write { at, data } = self else { return self.apply(bytes) };
        let mut from = 0;
        while from < data.len() {
            let to = (from + SECTOR - (at + from) % SECTOR).min(data.len());
            if random.next_u64().is_multiple_of(2) {
                let part = Self::Write { at: at + from, data: data[from..to].to_vec() };
                part.apply(bytes);
            }
            from = to;
        }
    }
}

#[derive(Default)]
struct File {
    synced: Vec<u8>,
    pending: Vec<Change>,
    /// No sync covers these any more.
    failed: Vec<Change>,
    /// As a process sees it.
    live: Vec<u8>,
}

/// A change of names that no sync has covered.
#[derive(Clone)]
enum Naming {
    Link { path: String, id: usize },
    Rename { from: String, to: String, id: usize },
    Unlink { path: String, id: usize },
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        let mut remove = |path: &String, id: usize| {
            if names.get(path) == Some(&id) {
                names.remove(path);
            }
        };
        match self {
            Self::Link { path, id } => drop(names.insert(path.clone(), *id)),
            Self::Unlink { path, id } => remove(path, *id),
            Self::Rename { from, to, id } => {
                remove(from, *id);
                names.insert(to.clone(), *id);
            }
        }
    }

    const fn id(&self) -> usize {
        match self {
            Self::Link { id, .. } | Self::Rename { id, .. } | Self::Unlink { id, .. } => *id,
        }
    }

    fn target(&self) -> &str {
        match self {
            Self::Link { path, .. } | Self::Unlink { path, .. } => path,
            Self::Rename { to, .. } => to,
        }
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Disk {
    files: Vec<File>,
    /// Names as a process sees them, and as they are certain to be found.
    live: BTreeMap<String, usize>,
    synced: BTreeMap<String, usize>,
    namings: Vec<Naming>,
    dirs: HashSet<String>,
    open: HashMap<u32, Opened>,
}

enum Opened {
    File { id: usize, is_synced: bool },
    Dir(String),
}

impl Disk {
    pub(crate) fn apply(&mut self, event: &Event) {
        match event {
            Event::Open { fd, path, is_synced, is_made, is_emptied } => {
                if self.dirs.contains(path) || path.is_empty() {
                    self.open.insert(*fd, Opened::Dir(path.clone()));
                    return;
                }
                let id = match self.live.get(path) {
                    Some(id) => *id,
                    None => {
                        assert!(*is_made, "{path} was there before it was made");
                        self.files.push(File::default());
                        let id = self.files.len() - 1;
                        self.name(Naming::Link { path: path.clone(), id });
                        id
                    }
                };
                if *is_emptied {
                    self.change(id, Change::Truncate(0), *is_synced);
                }
                self.open.insert(*fd, Opened::File { id, is_synced: *is_synced });
            }
            Event::Write { fd, at, data } => {
                let at = usize::try_from(*at).unwrap();
                self.change_open(*fd, Change::Write { at, data: data.clone() });
            }
            Event::Truncate { fd, len } => {
                self.change_open(*fd, Change::Truncate(usize::try_from(*len).unwrap()));
            }
            Event::Sync { fd } => self.sync(*fd),
            Event::SyncFailed { fd } => {
                if let Opened::File { id, .. } = self.open[fd] {
                    let file = &mut self.files[id];
                    file.failed.append(&mut file.pending);
                }
            }
            Event::Rename { from, to } => {
                let id = self.live[from];
                self.name(Naming::Rename { from: from.clone(), to: to.clone(), id });
            }
            Event::Unlink { path } => {
                let id = self.live[path];
                self.name(Naming::Unlink { path: path.clone(), id });
            }
            Event::MakeDir { path } => drop(self.dirs.insert(path.clone())),
            Event::Mark(_) => {}
        }
    }

    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.live);
        self.namings.push(naming);
    }

    fn change_open(&mut self, fd: u32, change: Change) {
        match self.open[&fd] {
            Opened::File { id, is_synced } => self.change(id, change, is_synced),
            Opened::Dir(_) => panic!("a directory was written to"),
        }
    }

    fn change(&mut self, id: usize, change: Change, is_synced: bool) {
        let file = &mut self.files[id];
        change.apply(&mut file.live);
        if is_synced {
            // Alone: what was written before and not synced may still be lost.
            change.apply(&mut file.synced);
        }
        file.pending.push(change);
    }

    fn sync(&mut self, fd: u32) {
        match &self.open[&fd] {
            Opened::File { id, .. } => self.settle(*id),
            Opened::Dir(dir) => {
                let dir = dir.clone();
                let is_in = |naming: &Naming| {
                    naming.target().rsplit_once('/').map_or("", |(parent, _)| parent) == dir
                };
                self.settle_names(is_in);
            }
        }
    }

    fn settle(&mut self, id: usize) {
        let file = &mut self.files[id];
        for change in file.pending.drain(..) {
            change.apply(&mut file.synced);
        }
        self.settle_names(|naming| naming.id() == id);
    }

    fn settle_names(&mut self, is_synced: impl Fn(&Naming) -> bool) {
        let (now, mut later) = (std::mem::take(&mut self.namings), Vec::new());
        for naming in now {
            if is_synced(&naming) {
                naming.apply(&mut self.synced);
                // An older, unsynced owner of the name cannot come after.
                later.retain(|older: &Naming| older.target() != naming.target());
            } else {
                later.push(naming);
            }
        }
        self.namings = later;
    }

    /// Writes a disk into `dir` as the end of the process now leaves it.
    pub(crate) fn write_as_killed(&self, dir: &Path) {
        for (path, id) in &self.live {
            write(dir, path, &self.files[*id].live);
        }
    }

    /// Writes a disk into `dir` as a power cut now may leave it.
    pub(crate) fn write_as_cut(&self, random: &mut Random, dir: &Path) {
        let mut names = self.synced.clone();
        for naming in some_of(&self.namings, random) {
            naming.apply(&mut names);
        }
        for (path, id) in &names {
            let file = &self.files[*id];
            let mut bytes = file.synced.clone();
            let is_torn = random.next_u64().is_multiple_of(3);
            let unsure = some_of(&file.failed, random).into_iter();
            for change in unsure.chain(some_of(&file.pending, random)) {
                if is_torn {
                    change.apply_torn(&mut bytes, random);
                } else {
                    change.apply(&mut bytes);
                }
            }
            write(dir, path, &bytes);
        }
        std::fs::create_dir_all(dir.join("store")).unwrap();
    }
}

fn write(dir: &Path, path: &str, bytes: &[u8]) {
    // Whoever opens the index first makes its lock anew.
    if path.ends_with("lock.mdb") {
        return;
    }
    let path = dir.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// None, all, the first few, or any of the changes, in their order.
fn some_of<'a, T>(all: &'a [T], random: &mut Random) -> Vec<&'a T> {
    let len = all.len() as u64;
    match random.next_u64() % 4 {
        0 => Vec::new(),
        1 => all.iter().collect(),
        2 => {
            let few = random.next_u64() % (len + 1);
            all.iter().take(usize::try_from(few).unwrap()).collect()
        }
        _ => all.iter().filter(|_| random.next_u64().is_multiple_of(2)).collect(),
    }
}

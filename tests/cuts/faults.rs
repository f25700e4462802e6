//! A disk that fails: calls of the store return errors, or do half. Whatever fails, and how often, what
//! was acknowledged is right or a miss meanwhile, and there again when the disk is well.
//!
//! A call is found by its number, so that a run counts its calls first. The process that suffers judges
//! itself; here: what it does and what it must find.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use larder::entry::Key;
use larder::store::Store;
use larder::units::Random;

use crate::check;
use crate::failing::{self, Control, FailingDisk};
use crate::workload::{self, Act, NAMES, Plan, clock};

const KINDS: [(&str, u64); 6] = [
    ("opens", failing::OPEN),
    ("reads", failing::READ),
    ("writes", failing::WRITE),
    ("renames", failing::RENAME),
    ("syncs", failing::SYNC),
    ("all", failing::ALL),
];
/// What calls return; the last is none of the kernel's.
const ERRORS: [(&str, u64); 8] = [
    ("EIO", failing::EIO),
    ("EMFILE", failing::EMFILE),
    ("ENOSPC", failing::ENOSPC),
    ("EROFS", failing::EROFS),
    ("EACCES", 13),
    ("EINTR", 4),
    ("ENOMEM", 12),
    ("half is done", failing::HALF),
];
/// How many calls in a row; the last is for as long as it suffers.
const LENGTHS: [u64; 5] = [1, 3, 20, 300, u64::MAX];
/// Until everything must be well after the disk is.
const RECOVERY: Duration = Duration::from_secs(30);
/// What is waited for a commit that may be failing.
const GLANCE: Duration = Duration::from_millis(20);

/// What fails in one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: (&'static str, u64),
    pub(crate) error: (&'static str, u64),
    pub(crate) from: u64,
    pub(crate) length: u64,
}

impl Fault {
    pub(crate) fn any(random: &mut Random, calls: u64) -> Self {
        let mut below = |n: usize| usize::try_from(random.next_u64() % n as u64).unwrap();
        let length = LENGTHS[below(LENGTHS.len())];
        let fault = Self {
            kind: KINDS[below(KINDS.len())],
            error: ERRORS[below(ERRORS.len())],
            from: below(usize::try_from(calls).unwrap()) as u64,
            length,
        };
        // The kernel does not interrupt for ever.
        if fault.error.0 == "EINTR" { Self { length: length.min(3), ..fault } } else { fault }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, error, from, length } = self;
        match *length {
            u64::MAX => write!(f, "{} from call {from} on: {}", kind.0, error.0),
            length => write!(f, "{} of {length} calls from {from} on: {}", kind.0, error.0),
        }
    }
}

/// What a name may be found to hold.
#[derive(Default)]
struct Held {
    /// The act whose put was acknowledged.
    sure: Option<usize>,
    /// Acts that failed after that, or may not have been undone.
    maybe: BTreeSet<usize>,
}

/// The play, on a disk that fails.
pub(crate) struct Sufferer {
    plan: Plan,
    held: BTreeMap<Key, Held>,
    owed: BTreeSet<Key>,
    bodies: BTreeMap<usize, Vec<u8>>,
}

impl Sufferer {
    pub(crate) fn new(plan: Plan) -> Self {
        let (held, owed, bodies) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { plan, held, owed, bodies }
    }

    /// All of it; panics at the first wrong thing.
    pub(crate) fn suffer(mut self, root: &Path, control: &Control) {
        let mut store = self.open(root, control);
        let acts = workload::acts(&self.plan);
        let middle = acts.len() / 2;
        for (at, act) in acts.into_iter().enumerate() {
            if at == middle {
                store.close();
                drop(store);
                store = self.open(root, control);
            }
            self.act(&store, at, act);
            // Another one each time.
            let name = workload::opaque(at as u64 * 7 % NAMES);
            self.look(&store, &name, false, "meanwhile");
        }
        control.heal();
        assert!(store.sync(RECOVERY), "the store cannot commit though nothing fails any more");
        self.look_at_all(&store, "after the faults");
        store.verify(true, |_| {});
        store.close();
        drop(store);
        let store = self.open(root, control);
        self.look_at_all(&store, "after a restart");
        let left = store.verify(false, |_| {}).bad;
        assert!(left.is_empty(), "{left:?}");
        let owed: BTreeSet<Key> =
            store.owed_from(0, 100_000).into_iter().map(|(_, owed)| owed.key).collect();
        let forgotten: Vec<&Key> = self.owed.difference(&owed).collect();
        assert!(forgotten.is_empty(), "uploads are forgotten: {forgotten:?}");
        store.close();
    }

    /// A store that cannot be opened says so, and opens when the disk is well.
    fn open(&self, root: &Path, control: &Control) -> Store {
        let open = || Store::open(&self.plan.config(root), clock(), Arc::default());
        open().unwrap_or_else(|error| {
            assert!(!error.to_string().is_empty());
            control.heal();
            open().unwrap_or_else(|error| panic!("nothing fails any more: {error}"))
        })
    }

    fn act(&mut self, store: &Store, at: usize, act: Act) {
        self.put(store, at, act);
        match act {
            Act::Remove { name } => {
                let name = workload::opaque(name);
                store.remove(&name);
                let held = self.held.entry(name).or_default();
                held.maybe.extend(held.sure.take());
            }
            Act::Settle => {
                if let Some((number, owed)) = store.owed_from(0, 1).first() {
                    store.settle(*number);
                    self.owed.remove(&owed.key);
                }
            }
            Act::Sync | Act::MakeRoom => drop(store.sync(GLANCE)),
            _ => {}
        }
    }

    fn put(&mut self, store: &Store, at: usize, act: Act) {
        let Some((key, body, is_owed)) = workload::put_of(at, act) else { return };
        let at = act.body_of(at);
        self.bodies.insert(at, body.clone());
        let held = self.held.entry(key.clone()).or_default();
        match workload::keep(store, act, &key, &body, is_owed.then_some(workload::REALM)) {
            Ok(()) => {
                *held = Held { sure: Some(at), maybe: BTreeSet::new() };
                if is_owed {
                    self.owed.insert(key);
                }
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                held.maybe.insert(at);
            }
        }
    }

    /// Whether a name holds what it may; a miss is right while calls fail.
    fn look(&self, store: &Store, name: &Key, must_hold: bool, when: &str) {
        let Some(held) = self.held.get(name) else { return };
        match check::try_bytes(store, name) {
            Some(found) => {
                let mut allowed = held.sure.iter().chain(&held.maybe);
                let is_right = allowed.any(|at| self.bodies[at] == found);
                assert!(is_right, "{when}: {name} holds {} bytes of something else", found.len());
            }
            None => {
                let is_lost = must_hold && held.sure.is_some() && held.maybe.is_empty();
                assert!(!is_lost, "{when}: {name} was acknowledged and is lost");
            }
        }
    }

    fn look_at_all(&self, store: &Store, when: &str) {
        for name in self.held.keys() {
            self.look(store, name, true, when);
        }
    }
}

/// Runs the sufferer in a process of its own; its calls and failures, or what it said as it fell.
pub(crate) fn run(
    dir: &Path,
    stage: &Path,
    plan: &Plan,
    fault: Option<&Fault>,
) -> Result<(u64, u64), String> {
    let store = stage.join("root/store");
    std::fs::create_dir_all(&store).unwrap();
    let disk = FailingDisk::new(dir, &store);
    let control = disk.control();
    if let Some(fault) = fault {
        control.fail(fault.kind.1, fault.error.1, fault.from, fault.length);
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_sufferer", "--nocapture"])
        .envs(disk.environment())
        .env("LARDER_SEED", plan.seed.to_string())
        .env(crate::STAGE, stage)
        .output()
        .unwrap();
    if output.status.success() {
        return Ok((control.calls(), control.failed()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {said}", output.status))
}

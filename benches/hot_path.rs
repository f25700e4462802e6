//! What the steps of a hit and of a put cost, in one process, each beside the system calls that it
//! cannot do without.
//!
//! Bounds: a body from disk is `open` and `read` of a file of that size; an answer to go is a `stat`
//! of the output; a put is one `write` of its bytes to a file that is open. Nothing else of the
//! daemon runs here: sockets are `load`'s.

mod support {
    pub(crate) mod measure;
}

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use larder::cache::memory::Memory;
use larder::entry::{Class, Digest, Key, Meta, RealmId};
use larder::store::reader::Reader;
use larder::store::record::Row;
use larder::store::segment::{self, Tag};
use larder::store::{Config, Store, Stored};
use larder::telemetry::Metrics;
use larder::units::{Clock, Timestamp};
use support::measure::{Plan, Table, Values, interleave, say, time};

const KIB: usize = 1 << 10;
/// What larder keeps in a segment, and what it keeps in a file.
const SMALL: usize = KIB;
const INLINE: usize = 64 * KIB;
const LARGE: usize = 256 * KIB;
/// Enough for the index to have levels.
const ENTRIES: u32 = 20_000;
const REALM: RealmId = RealmId([7; 16]);

/// A step and its bound, each doing itself so many times.
struct Pair<'a> {
    name: &'a str,
    bound_name: &'a str,
    times: u32,
    step: Box<dyn FnMut(u32) + 'a>,
    bound: Option<Box<dyn FnMut(u32) + 'a>>,
}

fn main() {
    let plan = Plan::read();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    say(&format!("`{}`", Plan::command("hot_path")));
    let mut table = Table::new(
        "Steps in one process, µs each",
        &["step", "N × times", "µs", "bound", "bound, µs", "× bound"],
    );
    let scene = Scene::fill(dir.path());
    lookups(plan, &mut table, &scene);
    puts(plan, &mut table, &scene);
    // One process must not open an index twice.
    let (store, go) = (scene.store.dir().to_owned(), scene.go_output);
    scene.store.close();
    drop(scene.store);
    helpers_get(plan, &mut table, &store, &go);
    table.print();
}

/// A store with entries of all sizes, and plain files with the same bytes.
struct Scene {
    store: Store,
    small: Key,
    inline: Key,
    large: Key,
    go_output: Digest,
    plain: std::path::PathBuf,
}

impl Scene {
    fn fill(dir: &Path) -> Self {
        let config = Config { dir: dir.join("store"), disk: None, floor: None };
        let store = Store::open(&config, Clock::system(), Arc::new(Metrics::default()));
        let store = store.expect("a store can be opened");
        for number in 0..ENTRIES {
            put(&store, &name("filler", number), b"filler", None);
        }
        let key = |size: usize| name(&format!("body-{size}"), 0);
        let plain = dir.join("plain");
        fs::create_dir(&plain).expect("a directory can be made");
        for size in [SMALL, INLINE, LARGE] {
            put(&store, &key(size), &body(size), None);
            fs::write(plain.join(size.to_string()), body(size)).expect("a file can be written");
        }
        // As the helper does it: the output is placed as a file, then recorded.
        let mut staged = store.stage_shared();
        staged.write(&body(LARGE)).expect("a body can be written");
        let mut finished = staged.finish();
        let meta = Meta::new(finished.digest, finished.size, Timestamp(0), Class::Other);
        store.place(&mut finished).expect("an output can be placed");
        for number in 0..ENTRIES {
            let key = Key::go(REALM, action(number));
            store.record_go(&key, &meta, None).expect("an action can be recorded");
        }
        assert!(store.sync(std::time::Duration::from_secs(60)), "the store commits");
        Self {
            store,
            small: key(SMALL),
            inline: key(INLINE),
            large: key(LARGE),
            go_output: meta.digest,
            plain,
        }
    }
}

fn name(what: &str, number: u32) -> Key {
    Key::opaque(REALM, &format!("{what}/{number:08}")).expect("a short name")
}

fn action(number: u32) -> Digest {
    Digest::of(&number.to_le_bytes())
}

fn body(size: usize) -> Vec<u8> {
    (0..size).map(|at| u8::try_from((at * 31 + at / 251) % 256).expect("a byte")).collect()
}

fn put(store: &Store, key: &Key, body: &[u8], owed: Option<RealmId>) {
    let mut staged = store.stage();
    staged.write(body).expect("a body can be written");
    let finished = staged.finish();
    let meta = Meta::new(finished.digest, finished.size, Timestamp(0), Class::Other);
    store.put(key, finished, &meta, owed).expect("an entry can be stored");
}

/// Reads a body through the store, to its last byte.
fn get(store: &Store, key: &Key, size: usize, buffer: &mut Vec<u8>) {
    match store.get(key).expect("the entry is there") {
        Stored::Bytes(_, bytes) => assert_eq!(bytes.len(), size),
        Stored::File(_, file) => {
            buffer.clear();
            (&*file).read_to_end(buffer).expect("a file can be read");
            assert_eq!(buffer.len(), size);
        }
    }
}

fn open_and_read(path: &Path, buffer: &mut [u8]) {
    let mut file = File::open(path).expect("the file is there");
    file.read_exact(buffer).expect("the file is as long as it was");
}

fn lookups(plan: Plan, table: &mut Table, scene: &Scene) {
    let key = Key::go(REALM, action(0));
    report(
        plan,
        table,
        Pair::free("key, encoded", 200_000, |_| {
            black_box(black_box(&key).encode());
        }),
    );
    let row = scene.store.find(&scene.large).expect("the entry is there").encode();
    report(
        plan,
        table,
        Pair::free("row of the index, decoded", 200_000, |_| {
            black_box(Row::decode(black_box(&row)));
        }),
    );
    let mut record = Vec::new();
    segment::encode(Tag::Entry, (&key.encode(), &[0; 64], &body(SMALL)), 0, &mut record);
    report(
        plan,
        table,
        Pair::free("record of 1 KiB, decoded", 50_000, |_| {
            segment::decode(black_box(&record), || 0).expect("the record is whole");
        }),
    );
    let memory = Memory::new(64 << 20);
    let meta = Meta::new(Digest::EMPTY, 0, Timestamp(0), Class::Other);
    memory.offer(&scene.small, &meta, &Bytes::from(body(SMALL)));
    report(
        plan,
        table,
        Pair::free("get from memory", 100_000, |_| {
            black_box(memory.get(black_box(&scene.small)).expect("it is in memory"));
        }),
    );
    report(
        plan,
        table,
        Pair::free("find in the index", 20_000, |at| {
            black_box(scene.store.find(&name("filler", at % ENTRIES)).expect("the entry is there"));
        }),
    );
    for (what, key, size) in [
        ("get of 1 KiB from a segment", &scene.small, SMALL),
        ("get of 64 KiB from a segment", &scene.inline, INLINE),
        ("get of 256 KiB from a file", &scene.large, LARGE),
    ] {
        let (mut ours, mut plain) = (Vec::with_capacity(size), vec![0; size]);
        let path = scene.plain.join(size.to_string());
        report(
            plan,
            table,
            Pair {
                name: what,
                bound_name: "open and read of a file",
                times: 2_000,
                step: Box::new(|_| get(&scene.store, key, size, &mut ours)),
                bound: Some(Box::new(|_| open_and_read(&path, &mut plain))),
            },
        );
    }
}

fn puts(plan: Plan, table: &mut Table, scene: &Scene) {
    let open = || {
        let path = scene.plain.join("appended");
        File::options().create(true).append(true).open(path).expect("a file can be made")
    };
    for (number, (what, size, owed)) in [
        ("put of 1 KiB, acknowledged", SMALL, None),
        ("put of 64 KiB, acknowledged", INLINE, None),
        ("put of 1 KiB, its upload owed", SMALL, Some(REALM)),
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = body(size);
        let mut file = open();
        let mut next = 0;
        report(
            plan,
            table,
            Pair {
                name: what,
                bound_name: "append of the same bytes",
                times: if size == SMALL { 2_000 } else { 500 },
                step: Box::new(|_| {
                    next += 1;
                    put(&scene.store, &name(&format!("put-{number}"), next), &bytes, owed);
                }),
                bound: Some(Box::new(|_| {
                    file.write_all(&bytes).expect("a file can be appended to")
                })),
            },
        );
    }
    let bytes = body(INLINE);
    report(
        plan,
        table,
        Pair::free("of that, hashing 64 KiB", 2_000, |_| {
            black_box(Digest::of(black_box(&bytes)));
        }),
    );
}

/// What a warm get costs the helper of go, besides speaking with go.
fn helpers_get(plan: Plan, table: &mut Table, store: &Path, output: &Digest) {
    let reader = Reader::open(store, true);
    assert!(reader.has_index(), "the index can be read from outside");
    let path = reader.path(output);
    report(
        plan,
        table,
        Pair {
            name: "helper's get: index and stat",
            bound_name: "stat of the output",
            times: 10_000,
            step: Box::new(|at| {
                let hit = reader.go(&[REALM], &action(at % ENTRIES));
                black_box(hit.expect("the action is there"));
            }),
            bound: Some(Box::new(|_| {
                black_box(fs::metadata(&path).expect("the output is there"));
            })),
        },
    );
}

impl<'a> Pair<'a> {
    /// A step without system calls: nothing bounds it but the processor.
    fn free(name: &'a str, times: u32, step: impl FnMut(u32) + 'a) -> Self {
        Self { name, bound_name: "", times, step: Box::new(step), bound: None }
    }
}

fn report(plan: Plan, table: &mut Table, mut pair: Pair<'_>) {
    let micros = |work: &mut dyn FnMut(u32)| {
        let took = time(|| (0..pair.times).for_each(&mut *work));
        took.as_secs_f64() * 1e6 / f64::from(pair.times)
    };
    let runs = plan.runs(15, 3);
    let sides = if pair.bound.is_some() { &[false, true][..] } else { &[false] };
    let values = interleave(sides, runs, |is_bound| match (&mut pair.bound, is_bound) {
        (Some(bound), true) => micros(bound),
        _ => micros(&mut pair.step),
    });
    let bound = values.get(1);
    table.row([
        pair.name.to_owned(),
        format!("{runs} × {}", pair.times),
        values[0].show(2),
        pair.bound_name.to_owned(),
        bound.map(|bound| bound.show(2)).unwrap_or_default(),
        bound.map(|bound: &Values| values[0].over(bound).show(2)).unwrap_or_default(),
    ]);
}

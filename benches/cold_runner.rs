//! A cold machine: a fresh clone, an empty home, and a cache that is far away.
//!
//! ```text
//! cargo bench --bench cold_runner -- [--what module,std,stdcmd,test,nothing,history]
//!     [--rtt 50,20,5,100] [--mbit 1000,100] [--rows none,larder,…] [--runs N] [--long] [--short]
//! ```
//!
//! `module`, `std`, `stdcmd`, `test`: what is built (M3, `cold/links.rs`). Rows: no cache at all, go's
//! own cache and the floor helper that are warm already, a plain helper, a tarball of go's own cache,
//! one that holds five times as much, and larder with another larder far away. The bound is computed,
//! not built: the floor helper's warm build, then one stream of the outputs that the build uses, each
//! as a zstd frame of level 3, through the same simulated network, and two round trips to learn of
//! them. `--rows` leaves out rows that do not begin with one of its words. Machines stay on disk until all
//! links are measured: some 3 GB a round of stdcmd with all tarballs. `nothing`: nothing can be gained
//! (M4, `cold/nothing.rs`). `history`: commit after commit (M10, `cold/history.rs`), 20 of them, with
//! `--long` 200. Without `--what`: module, stdcmd and nothing; with `--short` the module alone, and all
//! smaller.

#[expect(dead_code, reason = "clients and servers that other benches use")]
#[path = "../tests/support/mod.rs"]
mod tools;

mod support {
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod builds;
    pub(crate) mod central;
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod daemon;
    pub(crate) mod machine;
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod measure;
    pub(crate) mod memory;
    pub(crate) mod module;
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod proc;
    pub(crate) mod runner;
    pub(crate) mod stream;
    pub(crate) mod usage;
    pub(crate) mod wan;
    pub(crate) mod what;
}

mod cold {
    pub(crate) mod history;
    pub(crate) mod links;
    pub(crate) mod nothing;
}

use std::time::Duration;

use support::measure::{Plan, flag, option, say};
use support::memory;
use support::module::Module;
use support::runner::Runner;
use support::wan::Link;
use support::what::What;
use tools::install;

/// What the command line asks for.
struct Options {
    plan: Plan,
    what: Vec<String>,
    rtts: Vec<u64>,
    mbits: Vec<u64>,
    /// Beginnings of their names; None: all.
    rows: Option<Vec<String>>,
    is_long: bool,
}

impl Options {
    fn read() -> Self {
        let plan = Plan::read();
        let list = |name: &str, full: &str, short: &str| -> Vec<String> {
            let default = if plan.is_short() { short } else { full };
            let words = option(name).unwrap_or_else(|| default.to_owned());
            words.split(',').map(str::to_owned).collect()
        };
        let numbers = |name: &str, full: &str, short: &str| -> Vec<u64> {
            let number = |word: &String| word.parse().ok().filter(|number| *number > 0);
            let words = list(name, full, short);
            let numbers = words.iter().map(number).collect::<Option<_>>();
            numbers.unwrap_or_else(|| panic!("{name} takes numbers with commas between"))
        };
        Self {
            plan,
            what: list("--what", "module,stdcmd,nothing", "module"),
            rtts: numbers("--rtt", "50,20,5,100", "50"),
            mbits: numbers("--mbit", "1000,100", "1000"),
            rows: option("--rows").map(|words| words.split(',').map(str::to_owned).collect()),
            is_long: flag("--long"),
        }
    }

    fn has_row(&self, name: &str) -> bool {
        self.rows.as_ref().is_none_or(|rows| rows.iter().any(|row| name.starts_with(row.as_str())))
    }

    fn links(&self) -> impl Iterator<Item = Link> {
        self.mbits.iter().flat_map(|mbit| {
            self.rtts.iter().map(move |rtt| Link {
                rtt: Duration::from_millis(*rtt),
                bits_per_second: mbit * 1_000_000,
            })
        })
    }

    /// The first, where one is enough.
    fn link(&self) -> Link {
        self.links().next().expect("a list has a first")
    }
}

/// `50 ms, 1000 Mbit/s`.
fn show_link(link: Link) -> String {
    format!("{} ms, {} Mbit/s", link.rtt.as_millis(), link.bits_per_second / 1_000_000)
}

fn main() {
    let options = Options::read();
    let Some(go) = install::go(install::GO_1_26) else { return };
    let work = tempfile::tempdir().expect("a temporary directory can be made");
    let scale = options.plan.scale;
    say(&format!("go {}; `{}`", go.version, Plan::command("cold_runner")));
    if !options.plan.is_short() {
        memory::fill(work.path());
    }
    for name in &options.what {
        let work = work.path().join(name);
        let module = Module::write(&work.join("origin"), scale);
        let known = What::ALL.iter().find(|(known, _)| known == name);
        let what = known.map_or(What::Module, |(_, what)| *what);
        let runner = Runner::new(&go, &work, &module, what, scale);
        match (known, &**name) {
            (Some(_), _) => cold::links::measure(&options, &runner, &what.title(&module, scale)),
            (None, "nothing") => cold::nothing::measure(&options, &runner),
            (None, "history") => cold::history::measure(&options, &runner),
            (None, other) => panic!("--what knows no {other}"),
        }
        // Gigabytes, and nobody looks at them again.
        std::fs::remove_dir_all(&work).expect("a directory can be removed");
    }
}

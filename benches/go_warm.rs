//! Warm builds with real go: its own cache, the floor helper and larder, in turns.
//!
//! M1: larder takes at most 1.05 × what the floor helper does. M2: `go build std cmd` takes at most
//! 1.05 × what go's own cache does. Each contender has a home of its own, all build the same sources.
//! Every measured build with larder is checked to be larder's: it was asked, no file was added to its
//! store, and the binary it gives is go's own.

#[expect(dead_code, reason = "clients and servers that other benches use")]
#[path = "../tests/support/mod.rs"]
mod tools;

mod support {
    #[expect(dead_code, reason = "the cold runner uses the rest")]
    pub(crate) mod builds;
    #[expect(dead_code, reason = "the cold runner uses the rest")]
    pub(crate) mod daemon;
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod measure;
    #[expect(dead_code, reason = "the cold runner uses the rest")]
    pub(crate) mod module;
}

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::builds::{self, Builder};
use support::daemon::Daemon;
use support::measure::{Plan, Table, Values, interleave, say};
use support::module::{self, Module};
use tools::{install, wait_for};

/// What may be slower than the bound: M1 and M2.
const BOUND: f64 = 1.05;

/// Where outputs come from.
enum Cache {
    Native,
    Floor(String),
    Larder(Box<Daemon>),
}

struct Contender<'a> {
    name: &'static str,
    builder: Builder<'a>,
    cache: Cache,
}

fn main() {
    let plan = Plan::read();
    let Some(go) = install::go(install::GO_1_26) else { return };
    let work = tempfile::tempdir().expect("a temporary directory can be made");
    let module = Module::write(&work.path().join("origin"), plan.scale);
    let src = work.path().join("src");
    module.clone_to(&src, module::MAIN);
    let module_name = format!("a module of {} packages", module.packages);
    // Each with what it builds and the contender that it is judged by.
    let mut builds = vec![(&*module_name, vec!["build", "./..."], "floor helper")];
    if !plan.is_short() {
        builds.push(("std", vec!["build", "std"], "floor helper"));
        builds.push(("std cmd", vec!["build", "std", "cmd"], "native GOCACHE"));
    }
    let all: Vec<&str> = builds.iter().flat_map(|(_, args, _)| &args[1..]).copied().collect();
    let contenders = contenders(&go, work.path(), &src, &[&["build"], &all[..]].concat());
    compare_binaries(&contenders, work.path());
    say(&format!("go {}; `{}`", go.version, Plan::command("go_warm")));
    let title = format!("Warm builds; target: larder ≤ {BOUND} × what it is judged by");
    let mut table = Table::new(
        &title,
        &[
            "warm build",
            "cache",
            "N",
            "seconds",
            "× native",
            "× floor",
            "µs a get over native",
            "target",
        ],
    );
    for (name, args, bound) in &builds {
        measure(&mut table, &contenders, name, args, bound, plan.runs(15, 3));
    }
    table.print();
}

/// Fills all caches with what building `everything` needs. Compiles once: the others are filled from
/// go's own cache, larder by reading it.
fn contenders<'a>(
    go: &'a install::Go,
    work: &Path,
    src: &Path,
    everything: &[&str],
) -> Vec<Contender<'a>> {
    let builder = |name: &str| {
        let home = work.join(name);
        Builder { go, src: src.to_owned(), home }
    };
    let native = builder("native");
    builds::run(&mut native.go(everything));
    let floor = builder("floor");
    builds::fill_floor(&native.gocache(), &floor.home.join("cache"));
    let helper = install::example("floor_helper");
    let command = format!("{} {}", helper.display(), floor.home.join("cache").display());
    let larder = builder("larder");
    let daemon = Daemon::start(&larder.home.join("larder"), &[]);
    let mut filling = larder.go(everything);
    daemon.apply_to(&mut filling);
    builds::run(filling.env("GOCACHE", native.gocache()));
    let contenders = vec![
        Contender { name: "native GOCACHE", builder: native, cache: Cache::Native },
        Contender { name: "floor helper", builder: floor, cache: Cache::Floor(command) },
        Contender { name: "larder", builder: larder, cache: Cache::Larder(Box::new(daemon)) },
    ];
    for contender in contenders.iter().chain(&contenders) {
        builds::run(&mut contender.command(everything));
    }
    contenders
}

impl Contender<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.builder.go(args);
        match &self.cache {
            Cache::Native => {}
            Cache::Floor(helper) => {
                command.env("GOCACHEPROG", helper);
            }
            Cache::Larder(daemon) => daemon.apply_to(&mut command),
        }
        command
    }

    /// Seconds of one build. With larder: counts what it was asked, and checks that it had all.
    fn build(&self, args: &[&str], gets: &mut Values) -> f64 {
        let Cache::Larder(daemon) = &self.cache else {
            return builds::run(&mut self.command(args)).as_secs_f64();
        };
        let files = files_in(&daemon.store().join("files"));
        let before = daemon.count("requests/go/gets");
        let took = builds::run(&mut self.command(args));
        // The helper's last report may come after go has ended.
        let asked = wait_for("larder to have been asked", || {
            daemon.count("requests/go/gets").checked_sub(before).filter(|gets| *gets > 0)
        });
        gets.push(asked as f64);
        let added = files_in(&daemon.store().join("files")) - files;
        assert_eq!(added, 0, "a warm build stored {added} new outputs");
        took.as_secs_f64()
    }
}

/// All contenders must give the same binary, or speed means nothing.
fn compare_binaries(contenders: &[Contender<'_>], work: &Path) {
    let binary = |contender: &Contender<'_>| {
        builds::binary(contender.command(&["build"]), &work.join("app"))
    };
    let expected = binary(&contenders[0]);
    for contender in &contenders[1..] {
        assert_eq!(binary(contender), expected, "{} gives another binary", contender.name);
    }
}

fn measure(
    table: &mut Table,
    contenders: &[Contender<'_>],
    name: &str,
    args: &[&str],
    bound: &str,
    runs: usize,
) {
    let mut gets = Values::default();
    let times = interleave(contenders, runs, |contender| contender.build(args, &mut gets));
    let gets = gets.median();
    let at = |name: &str| contenders.iter().position(|c| c.name == name).expect("a contender");
    let (native, floor) = (&times[at("native GOCACHE")], &times[at("floor helper")]);
    for (contender, times) in contenders.iter().zip(&times) {
        let over = (times.median() - native.median()) * 1e6 / gets;
        let target = match &contender.cache {
            Cache::Larder(_) => {
                let judge = if bound == contenders[0].name { native } else { floor };
                let ratio = times.over(judge);
                let verdict = if ratio.median() <= BOUND { "met" } else { "missed" };
                format!("{:.3} × {bound}: {verdict}", ratio.median())
            }
            Cache::Native | Cache::Floor(_) => String::new(),
        };
        table.row([
            format!("{name} ({gets:.0} gets)"),
            contender.name.to_owned(),
            runs.to_string(),
            times.show(3),
            times.over(native).show(3),
            times.over(floor).show(3),
            format!("{over:.0}"),
            target,
        ]);
    }
}

/// How many files lie in the directories of `dir`.
fn files_in(dir: &Path) -> usize {
    let list = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
    list(dir.to_owned()).map(|inner| list(inner.path()).count()).sum()
}

//! M10: commit after commit, each built by a fresh machine that uploads; then machines that come to
//! what these have left.
//!
//! Upstream's bytes are what the network has seen of requests that bring something, heads included.
//! Against them: every distinct output of all commits once, as a zstd frame of level 3, taken from a
//! cache of go's own that has built all of them, less the indexes that hold for one checkout.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::links::far_cells;
use crate::support::builds;
use crate::support::central::{fetch_frames, frame, frames};
use crate::support::daemon::Daemon;
use crate::support::machine::Machine;
use crate::support::measure::{Table, Values, interleave, say};
use crate::support::module::{DEEP, MAIN};
use crate::support::runner::{Far, Runner};
use crate::support::stream::Streams;
use crate::support::wan::{Link, Totals, Wan};
use crate::{Options, show_link};

/// A branch on which the package that all others use is another.
const OTHER: &str = "other";
/// Commits between the last manifest and the machine that comes later.
const LATER: usize = 10;

/// A machine that comes to what others have left.
struct Case<'a> {
    name: &'a str,
    branch: &'a str,
    /// Whose cache of go's own holds what upstream does.
    known: &'a str,
    upstream: &'a Daemon,
}

/// What all cases are compared with.
struct Terms {
    link: Link,
    runs: usize,
    alone: Values,
    streams: Streams,
    frames_len: u64,
}

pub(crate) fn measure(options: &Options, runner: &Runner<'_>) {
    let (short, long) = (options.plan.is_short(), options.is_long);
    let commits = if long {
        200
    } else if short {
        3
    } else {
        20
    };
    let link = options.link();
    let central = Daemon::start(&runner.work.join("central"), &[]);
    grow(runner, &central, link, commits);
    let native = runner.clone("native", MAIN);
    let frames = frames(runner, &native.gocache());
    let frames_len = fs::metadata(&frames).expect("the frames are there").len();
    let runs = options.plan.runs(5, 1);
    let alone: Values = (0..runs.min(3)).map(|_| build_native(runner, "alone", true)).collect();
    let streams = Streams::serve(vec![frames]);
    let terms = Terms { link, runs, alone, streams, frames_len };
    let mut table = Table::new(
        &format!(
            "A fresh machine after {commits} commits, {}; no cache {} s; bound = go's own cache \
             with all that upstream has, {:.0} MB of frames in one stream, 2 round trips",
            show_link(link),
            terms.alone.show(2),
            frames_len as f64 / 1e6
        ),
        &[
            "machine",
            "N",
            "seconds",
            "bound, s",
            "× bound",
            "× none",
            "requests",
            "MB over the link",
            "s somebody waited (network)",
            "s go waited (larder)",
            "used / fetched",
            "hits",
            "misses",
        ],
    );
    let case = |name, branch, known, upstream| Case { name, branch, known, upstream };
    fresh_machine(runner, &terms, &case("the last commit", MAIN, "native", &central), &mut table);
    runner.module.switch(OTHER);
    runner.module.edit(DEEP, commits);
    let name = "another branch, deepest package edited; manifests of the default branch";
    fresh_machine(runner, &terms, &case(name, OTHER, "native", &central), &mut table);
    let other = Daemon::start(&runner.work.join("other"), &[]);
    build_on(runner, &other, link, OTHER);
    builds::run(&mut runner.go(&runner.clone("native other", OTHER)));
    runner.module.switch(MAIN);
    let name = "the default branch; only the manifest of that other branch";
    fresh_machine(runner, &terms, &case(name, MAIN, "native other", &other), &mut table);
    for number in commits..commits + LATER {
        runner.module.edit(runner.module.packages - 1 - number % LATER, number);
    }
    let name = "ten commits after the newest manifest, in packages that few others use";
    fresh_machine(runner, &terms, &case(name, MAIN, "native", &central), &mut table);
    runner.module.edit(DEEP, commits + LATER);
    let name = "one more, in the package that nearly all use";
    fresh_machine(runner, &terms, &case(name, MAIN, "native", &central), &mut table);
    table.print();
}

/// Commits and builds, on a fresh machine each time; prints what upstream was sent.
fn grow(runner: &Runner<'_>, central: &Daemon, link: Link, commits: usize) {
    let mut all = Vec::new();
    for number in 0..commits {
        if number > 0 {
            runner.module.edit(runner.module.edited(number), number);
        }
        all.push(build_on(runner, central, link, MAIN));
        build_native(runner, "native", false);
        if number % 20 == 19 {
            say(&format!("{} commits are built", number + 1));
        }
    }
    let native = runner.clone("native", MAIN);
    let outputs = builds::outputs(&native.gocache()).into_iter();
    let shared = outputs.filter(|path| !is_index_of_checkout(path));
    let lens = shared.map(|path| frame(&path).len() as u64).sum();
    let (sent, distinct): (u64, u64) =
        (all.iter().map(|(_, totals)| totals.brought_bytes).sum(), lens);
    let mut table = Table::new(
        &format!(
            "{commits} commits of a module of {} packages, each by a fresh machine with `larder run \
             --flush`, {}; target: sent ≤ 1.3 × distinct",
            runner.module.packages,
            show_link(link)
        ),
        &[
            "commits",
            "MB sent",
            "MB of distinct outputs, zstd -3",
            "sent / distinct",
            "s a commit, flush included",
            "asked a commit",
            "brought a commit",
            "left to upload",
            "used / fetched",
        ],
    );
    let fars: Vec<Far> = all.iter().map(|(far, _)| *far).collect();
    let values = |of: &dyn Fn(&(Far, Totals)) -> f64| all.iter().map(of).collect::<Values>();
    let owed: u64 = fars.iter().filter_map(|far| far.account).map(|account| account.owed).sum();
    let [.., precision] = far_cells(&fars);
    table.row([
        commits.to_string(),
        format!("{:.1}", sent as f64 / 1e6),
        format!("{:.1}", distinct as f64 / 1e6),
        format!("{:.2}", sent as f64 / distinct as f64),
        values(&|(far, _)| far.took.as_secs_f64()).show(2),
        values(&|(_, totals)| totals.asked as f64).show(0),
        values(&|(_, totals)| totals.brought as f64).show(0),
        owed.to_string(),
        precision,
    ]);
    table.print();
}

/// An index of the module's own packages, which holds for one checkout and is sent to nobody.
fn is_index_of_checkout(path: &Path) -> bool {
    let output = fs::read(path).expect("an output can be read");
    let module = b"example.com/bench/";
    output.starts_with(b"go index") && output.windows(module.len()).any(|part| part == module)
}

/// A fresh machine builds the tip of a branch and waits for its uploads.
fn build_on(runner: &Runner<'_>, central: &Daemon, link: Link, branch: &str) -> (Far, Totals) {
    let builder = runner.fresh("machine", branch);
    let wan = Wan::start(central.addr(), link);
    let machine = Machine::new(&builder.home.join("larder"), &wan.url());
    let mut command = machine.run(&["--flush=60s"], &[], &runner.go(&builder));
    let far = Far::through(&wan, &mut || builds::run(&mut command));
    (Far { account: Some(machine.account()), ..far }, wan.totals())
}

/// Seconds of a build of the default branch with go's own cache in this home, or an empty one.
fn build_native(runner: &Runner<'_>, home: &str, is_fresh: bool) -> f64 {
    let get = if is_fresh { Runner::fresh } else { Runner::clone };
    builds::run(&mut runner.go(&get(runner, home, MAIN))).as_secs_f64()
}

/// A machine that leaves upstream as it is, and its bound, in turns.
fn fresh_machine(runner: &Runner<'_>, terms: &Terms, case: &Case<'_>, table: &mut Table) {
    let mut fars = Vec::new();
    let measured = interleave(&[false, true], terms.runs, |is_larder| {
        if !*is_larder {
            return bound(runner, terms, case);
        }
        let builder = runner.fresh("machine", case.branch);
        let wan = Wan::start(case.upstream.addr(), terms.link);
        let machine = Machine::reading(&builder.home.join("larder"), &wan.url());
        let mut command = machine.run(&[], &[], &runner.go(&builder));
        let far = Far::through(&wan, &mut || builds::run(&mut command));
        fars.push(Far { account: Some(machine.account()), ..far });
        far.took.as_secs_f64()
    });
    let (bound, seconds) = (&measured[0], &measured[1]);
    let accounts = || fars.iter().filter_map(|far| far.account);
    let hits: Values = accounts().map(|account| account.hits as f64).collect();
    let misses: Values = accounts().map(|account| account.misses as f64).collect();
    let first = [
        case.name.to_owned(),
        fars.len().to_string(),
        seconds.show(2),
        bound.show(2),
        seconds.over(bound).show(2),
        format!("{:.2}", seconds.median() / terms.alone.median()),
    ];
    let last = [format!("{:.0}", hits.median()), format!("{:.0}", misses.median())];
    table.row(first.into_iter().chain(far_cells(&fars)).chain(last));
}

/// Seconds of a build that finds all that upstream has in a cache of go's own, and of fetching it.
/// The stream is that of the last commit, in every case.
fn bound(runner: &Runner<'_>, terms: &Terms, case: &Case<'_>) -> f64 {
    let builder = runner.fresh("bound", case.branch);
    copy(&runner.work.join(case.known).join("gocache"), &builder.home);
    let build = builds::run(&mut runner.go(&builder));
    let stream = fetch_frames(&terms.streams, terms.frames_len, terms.link);
    (build + stream.took + terms.link.rtt * 2).as_secs_f64()
}

fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    let status = command.arg("-a").args([from, to]).stdin(Stdio::null()).status();
    assert!(status.expect("cp starts").success(), "a directory can be copied");
}

//! A cold machine: a fresh clone, an empty home, and a cache that is 50 ms and 1 Gbit/s away.
//!
//! Rows: no cache at all, go's own cache and the floor helper that are warm already, a plain helper, a
//! tarball of go's own cache, and larder with another larder far away. The bound (M3) is computed, not
//! built: the floor helper's warm build, then one stream of the outputs that the build uses, each as a
//! zstd frame of level 3, through the same simulated network, and two round trips to learn of them.

#[expect(dead_code, reason = "clients and servers that other benches use")]
#[path = "../tests/support/mod.rs"]
mod tools;

mod support {
    pub(crate) mod builds;
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod daemon;
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod measure;
    pub(crate) mod module;
    pub(crate) mod runner;
    pub(crate) mod stream;
    #[expect(dead_code, reason = "other benches use the rest")]
    pub(crate) mod wan;
}

use std::time::Duration;

use support::measure::{Plan, Table, Values, interleave, say};
use support::module::Module;
use support::runner::{Central, Far, Row, Runner};
use support::wan::Link;
use tools::install;

const GIGABIT: u64 = 1_000_000_000;
/// A contender that has built for so long at one link is not asked again.
const ENOUGH: Duration = Duration::from_secs(60);

fn main() {
    let plan = Plan::read();
    let Some(go) = install::go(install::GO_1_26) else { return };
    let work = tempfile::tempdir().expect("a temporary directory can be made");
    let module = Module::write(&work.path().join("origin"), plan.scale);
    let runner = Runner::new(&go, work.path(), &module);
    say(&format!(
        "go {}; `go build ./...` of {} packages and the standard library they need; `{}`",
        go.version,
        module.packages,
        plan.command("cold_runner")
    ));
    let mut alone: Values = (1..plan.runs(3, 1)).map(|_| runner.build_without_cache()).collect();
    alone.push(runner.build_without_cache());
    let central = Central::fill(&runner);
    let rtts: &[u64] = if plan.is_short() { &[50] } else { &[50, 20, 5] };
    for rtt in rtts {
        let link = Link { rtt: Duration::from_millis(*rtt), bits_per_second: GIGABIT };
        measure(plan, &runner, &central, &alone, link);
    }
}

fn measure(plan: Plan, runner: &Runner<'_>, central: &Central, alone: &Values, link: Link) {
    let mut spent = [Duration::ZERO; Row::ALL.len()];
    let mut all: Vec<Vec<Far>> = vec![Vec::new(); Row::ALL.len()];
    let places: Vec<usize> = (0..Row::ALL.len()).collect();
    interleave(&places, plan.runs(9, 1), |at| {
        if spent[*at] < ENOUGH {
            let far = runner.build(Row::ALL[*at], central, link);
            spent[*at] += far.took;
            all[*at].push(far);
        }
        0.0
    });
    let seconds = |at: usize| all[at].iter().map(|far| far.took.as_secs_f64()).collect::<Values>();
    let (warm, stream) = (seconds(Row::Floor as usize), seconds(Row::Stream as usize));
    let bound = warm.median() + stream.median() + 2.0 * link.rtt.as_secs_f64();
    let mut table = Table::new(
        &format!(
            "Cold runner, {} ms, 1 Gbit/s; bound {bound:.2} s = {:.2} s warm with the floor helper + \
             {:.2} s for {:.0} MB of zstd frames in one stream + 2 round trips",
            link.rtt.as_millis(),
            warm.median(),
            stream.median(),
            central.frames_len() as f64 / 1e6
        ),
        &["cache", "N", "seconds", "× bound", "requests", "MB over the link"],
    );
    let ratio = |seconds: &Values| format!("{:.2}", seconds.median() / bound);
    let none = || "0".to_owned();
    let runs = alone.len().to_string();
    table.row(["none".to_owned(), runs, alone.show(2), ratio(alone), none(), none()]);
    for row in Row::ALL.into_iter().filter(|row| *row != Row::Stream) {
        let (fars, seconds) = (&all[row as usize], seconds(row as usize));
        let median =
            |of: fn(&Far) -> u64| fars.iter().map(|far| of(far) as f64).collect::<Values>();
        table.row([
            row.name().to_owned(),
            fars.len().to_string(),
            seconds.show(2),
            ratio(&seconds),
            format!("{:.0}", median(|far| far.requests).median()),
            format!("{:.1}", median(|far| far.bytes).median() / 1e6),
        ]);
    }
    table.print();
}

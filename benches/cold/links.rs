//! M3: one build by every contender, at each of the links.

use std::time::Duration;

use crate::support::central::Central;
use crate::support::machine::Account;
use crate::support::measure::{Table, Values, interleave, say};
use crate::support::runner::{Far, Row, Runner};
use crate::support::wan::Link;
use crate::{Options, show_link};

/// A contender that has built for so long at one link is not asked again.
const ENOUGH: Duration = Duration::from_secs(60);

/// Fills what is far away, then measures at one link after the other.
pub(crate) fn measure(options: &Options, runner: &Runner<'_>, title: &str) {
    say(&format!("\n{title}"));
    // Once at least: it fills go's own cache, which others begin with.
    let runs = if options.has_row("none") { options.plan.runs(3, 1) } else { 1 };
    let alone: Values = (0..runs).map(|_| runner.build_without_cache()).collect();
    let central = Central::fill(runner);
    for link in options.links() {
        at(options, runner, &central, &alone, link);
    }
}

fn at(options: &Options, runner: &Runner<'_>, central: &Central, alone: &Values, link: Link) {
    let mut spent = [Duration::ZERO; Row::ALL.len()];
    let mut all: Vec<Vec<Far>> = vec![Vec::new(); Row::ALL.len()];
    // The bound is made of two of them.
    let is_wanted =
        |row: &Row| matches!(row, Row::Floor | Row::Stream) || options.has_row(row.name());
    let places: Vec<usize> = (0..Row::ALL.len()).filter(|at| is_wanted(&Row::ALL[*at])).collect();
    interleave(&places, options.plan.runs(9, 1), |at| {
        if spent[*at] < ENOUGH {
            let far = runner.build(Row::ALL[*at], central, link);
            spent[*at] += far.took;
            all[*at].push(far);
        }
        0.0
    });
    let seconds =
        |row: Row| all[row as usize].iter().map(|far| far.took.as_secs_f64()).collect::<Values>();
    let (warm, stream) = (seconds(Row::Floor).median(), seconds(Row::Stream).median());
    let bound = warm + stream + 2.0 * link.rtt.as_secs_f64();
    let title = format!(
        "Cold runner, {}; bound {bound:.2} s = {warm:.2} s warm with the floor helper + {stream:.2} s \
         for {:.0} MB of zstd frames in one stream + 2 round trips",
        show_link(link),
        central.frames_len() as f64 / 1e6
    );
    let mut table = Table::new(
        &title,
        &[
            "cache",
            "N",
            "seconds",
            "× bound",
            "× none",
            "requests",
            "MB over the link",
            "s somebody waited (network)",
            "s go waited (larder)",
            "used / fetched",
        ],
    );
    let ratios = |seconds: &Values| {
        [bound, alone.median()].map(|other| format!("{:.2}", seconds.median() / other))
    };
    let rest = ["0", "0", "", "", ""].map(str::to_owned);
    let runs = alone.len().to_string();
    if options.has_row("none") {
        let first = ["none".to_owned(), runs, alone.show(2)];
        table.row(first.into_iter().chain(ratios(alone)).chain(rest));
    }
    for row in Row::ALL.into_iter().filter(|row| *row != Row::Stream && is_wanted(row)) {
        let (fars, seconds) = (&all[row as usize], seconds(row));
        let first = [row.name().to_owned(), fars.len().to_string(), seconds.show(2)];
        table.row(first.into_iter().chain(ratios(&seconds)).chain(far_cells(fars)));
    }
    table.print();
}

/// Requests, megabytes, waiting by the network's and by larder's account, precision.
pub(crate) fn far_cells(fars: &[Far]) -> [String; 5] {
    let values = |of: &dyn Fn(&Far) -> f64| fars.iter().map(of).collect::<Values>();
    let accounts: Vec<Account> = fars.iter().filter_map(|far| far.account).collect();
    let told = |of: &dyn Fn(&Account) -> Option<f64>| {
        let all: Vec<f64> = accounts.iter().filter_map(of).collect();
        if all.is_empty() { String::new() } else { all.into_iter().collect::<Values>().show(2) }
    };
    let requests = values(&|far| far.requests as f64).median();
    let open = values(&|far| far.open.as_secs_f64());
    [
        format!("{requests:.0}"),
        format!("{:.1}", values(&|far| far.bytes as f64 / 1e6).median()),
        if requests > 0.0 { open.show(2) } else { String::new() },
        told(&|account| Some(account.waited_s)),
        told(&Account::precision),
    ]
}

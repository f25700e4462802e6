//! M4: builds that gain nothing, or whose upstream is broken, against builds without larder.
//!
//! In each round every contender builds the same new code, made new by a flag of the compiler that
//! says what it would do anyway. Time that go waited is told three ways: by larder; by the network, as
//! time in which something was asked and unanswered (which work in the background is part of); and,
//! between these, the part of it in which no tool of go was running.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::builds;
use crate::support::daemon::{Daemon, LARDER};
use crate::support::machine::{Account, Machine};
use crate::support::measure::{Table, Values, interleave, say};
use crate::support::module::MAIN;
use crate::support::proc;
use crate::support::runner::Runner;
use crate::support::usage::{self, Timed};
use crate::support::wan::{Link, Totals, Wan};
use crate::tools::cache_server::{CacheServer, Fault};
use crate::{Options, show_link};

/// What a compiler's profile samples by itself; others are as good and make other keys.
const PROFILE_RATE: usize = 512 << 10;

/// What larder finds upstream.
enum Upstream {
    /// No larder.
    None,
    /// A larder without anything.
    Empty,
    /// A larder that knows other code.
    Other(Daemon),
    Dead,
    Broken(Fault),
}

/// What a build took.
#[derive(Default)]
struct Taken {
    took: Duration,
    /// Processor time of all that was started for the build.
    build: Duration,
    /// Of helper and daemon until the build has ended.
    larder: Duration,
    /// Of the network's simulator and the central cache, which have these processors too.
    beyond: Duration,
    alone: Duration,
    totals: Totals,
    account: Account,
}

pub(crate) fn measure(options: &Options, runner: &Runner<'_>) {
    let link = options.link();
    say(&format!("\nNothing to gain: the module of {} packages", runner.module.packages));
    let trickle = Fault::Trickle(Duration::from_secs(1));
    let contenders = [
        ("none", Upstream::None),
        ("empty", Upstream::Empty),
        ("has other code", Upstream::Other(other_code(runner))),
        ("dead", Upstream::Dead),
        ("black-holed", Upstream::Broken(Fault::BlackHole)),
        ("one byte a second", Upstream::Broken(trickle)),
        ("500 to everything", Upstream::Broken(Fault::Status(500))),
    ];
    let wanted = |name: &str| name == "none" || options.has_row(name);
    let contenders: Vec<_> = contenders.into_iter().filter(|(name, _)| wanted(name)).collect();
    let mut all: Vec<Vec<Taken>> = contenders.iter().map(|_| Vec::new()).collect();
    let places: Vec<usize> = (0..contenders.len()).collect();
    interleave(&places, options.plan.runs(9, 1), |at| {
        // The first code is what the others know.
        let code = all[*at].len() + 1;
        all[*at].push(build(runner, &contenders[*at].1, link, code));
        0.0
    });
    let names: Vec<&str> = contenders.iter().map(|(name, _)| *name).collect();
    print(&names, &all, link);
}

/// An upstream that has seen this build with other code.
fn other_code(runner: &Runner<'_>) -> Daemon {
    let daemon = Daemon::start(&runner.work.join("other"), &[]);
    let builder = runner.fresh("nothing", MAIN);
    let url = format!("http://{}", daemon.addr());
    let machine = Machine::new(&builder.home.join("larder"), &url);
    let mut go = runner.go(&builder);
    go.env("GOFLAGS", flags(0));
    builds::run(&mut machine.run(&["--flush=10m"], &[], &go));
    assert_eq!(machine.account().owed, 0, "not everything was uploaded");
    daemon
}

/// GOFLAGS that make all keys of the compiler new. With flags it does not know, go no longer lets the
/// compiler use several processors, unless they say so themselves.
fn flags(code: usize) -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let rate = PROFILE_RATE + code;
    format!("-mod=mod -buildvcs=false '-gcflags=all=-c={processors} -memprofilerate={rate}'")
}

fn build(runner: &Runner<'_>, upstream: &Upstream, link: Link, code: usize) -> Taken {
    let (mut server, mut empty) = (None, None);
    let target = match upstream {
        Upstream::None => return build_without(runner, code),
        Upstream::Empty => {
            let dir = runner.work.join("empty");
            if dir.exists() {
                std::fs::remove_dir_all(&dir).expect("a directory can be removed");
            }
            empty.insert(Daemon::start(&dir, &[])).addr()
        }
        Upstream::Other(daemon) => daemon.addr(),
        Upstream::Dead => closed(),
        Upstream::Broken(fault) => {
            let server = server.insert(CacheServer::start());
            server.set_fault(fault.clone());
            server.addr()
        }
    };
    let builder = runner.fresh("nothing", MAIN);
    let mut go = runner.go(&builder);
    go.env("GOFLAGS", flags(code));
    let wan = Wan::start(target, link);
    let machine = Machine::new(&builder.home.join("larder"), &wan.url());
    let helper = Timed::new(&builder.home);
    let before = ["/usr/bin/env", &helper.assignment(&format!("{LARDER} go"))];
    let mut command = machine.run(&[], &before, &go);
    usage::in_group(&mut command);
    let central = match upstream {
        Upstream::Other(daemon) => Some(daemon.pid()),
        _ => empty.as_ref().map(Daemon::pid),
    };
    let beyond = || {
        let pids = [Some(std::process::id()), central].into_iter().flatten();
        pids.map(|pid| proc::ticks(&pid.to_string())).sum::<Duration>()
    };
    let (started, others) = (usage::children(), beyond());
    let (took, alone) = usage::alone(&wan, |group| {
        builds::run_with(&mut command, |pid| group.store(pid, Ordering::Relaxed))
    });
    let totals = wan.totals();
    let (build, beyond) = (usage::children() - started, beyond() - others);
    let pid = machine.pid().expect("the daemon that `larder run` has started answers");
    let larder = helper.used() + usage::process(pid);
    let account = machine.account();
    assert!(account.hits + account.misses > 0, "go did not ask larder");
    Taken { took, build, larder, beyond, alone, totals, account }
}

fn build_without(runner: &Runner<'_>, code: usize) -> Taken {
    let builder = runner.fresh("nothing", MAIN);
    let mut go = runner.go(&builder);
    go.env("GOFLAGS", flags(code));
    let started = usage::children();
    let took = builds::run(&mut go);
    Taken { took, build: usage::children() - started, ..Taken::default() }
}

/// A port where nobody listens.
fn closed() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address")
}

fn print(names: &[&str], all: &[Vec<Taken>], link: Link) {
    let title = format!(
        "Nothing to gain, {}; target: larder's own account of waiting ≤ 1 s, checked against the \
         network's; processor time of helper and daemon ≤ 2 % of the build's without larder; wall \
         ≤ 1.02 × none or + 1 s",
        show_link(link)
    );
    let mut table = Table::new(
        &title,
        &[
            "upstream",
            "N",
            "seconds",
            "× none",
            "s more",
            "s go waited (larder)",
            "s waiting, no tool at work",
            "s something was asked (network)",
            "summed over connections",
            "asked",
            "brought",
            "hits",
            "processor s, helper + daemon",
            "% of the build's",
            "of build and helper",
            "of network and central cache",
        ],
    );
    let values = |at: usize, of: &dyn Fn(&Taken) -> f64| all[at].iter().map(of).collect::<Values>();
    let seconds = |at| values(at, &|taken| taken.took.as_secs_f64());
    let none = seconds(0);
    let build = values(0, &|taken| taken.build.as_secs_f64());
    let percent = values(0, &|taken| taken.build.as_secs_f64() / 100.0);
    for (at, name) in names.iter().enumerate() {
        let show = |digits: usize, of: &dyn Fn(&Taken) -> f64| values(at, of).show(digits);
        let count = |of: &dyn Fn(&Taken) -> u64| {
            format!("{:.0}", values(at, &|taken| of(taken) as f64).median())
        };
        let pairs = all[at].iter().zip(&all[0]);
        let more = pairs.map(|(with, none)| with.took.as_secs_f64() - none.took.as_secs_f64());
        let larder = values(at, &|taken| taken.larder.as_secs_f64());
        let share = larder.over(&percent);
        let mut cells = vec![(*name).to_owned(), all[at].len().to_string(), seconds(at).show(2)];
        if at > 0 {
            cells.extend([
                seconds(at).over(&none).show(3),
                more.collect::<Values>().show(2),
                show(2, &|taken| taken.account.waited_s),
                show(2, &|taken| taken.alone.as_secs_f64()),
                show(2, &|taken| taken.totals.waited.as_secs_f64()),
                show(2, &|taken| taken.totals.waited_sum.as_secs_f64()),
                count(&|taken| taken.totals.asked),
                count(&|taken| taken.totals.brought),
                count(&|taken| taken.account.hits),
                larder.show(2),
                share.show(1),
                show(2, &|taken| taken.build.as_secs_f64()),
                show(2, &|taken| taken.beyond.as_secs_f64()),
            ]);
        }
        cells.resize(16, String::new());
        table.row(cells);
    }
    table.print();
    let (cpu, wall) = (build.median(), none.median());
    say(&format!("Without larder the build takes {cpu:.2} s of processor time in {wall:.2} s."));
}

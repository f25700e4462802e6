//! Uploads at 1 MiB/s with very many owed, then no upstream at all, then the end in the middle of a
//! crowd: what acknowledgements take, how long the end takes, and what is owed after it.

use std::path::Path;
use std::time::Duration;

use larder::units::Clock;

use super::crowd::{Busy, Kind};
use super::honest::{self, Heard};
use super::support::daemon::Daemon;
use super::support::measure::{Table, say};
use super::support::wan::{Link, Wan};
use super::tools::cache_server::{CacheServer, Fault};
use super::watch::{Watch, mib};
use super::{Size, start, start_crowds};

/// 1 MiB/s.
const LINK: Link = Link { rtt: Duration::from_millis(10), bits_per_second: 8 << 20 };
/// Large enough that a link like this has not sent a hundred thousand of them within a scene.
const ENTRY: usize = 8 << 10;
/// Clients put on while the daemon ends.
const LATE: &str = "late";

pub(crate) fn measure(size: Size, wrk: &Path, work: &Path) {
    let server = CacheServer::start();
    let wan = Wan::start(server.addr(), LINK);
    let dir = work.join("owing");
    let (url, half) = (wan.url(), size.time / 2);
    let flags = ["--upstream", url.as_str()];
    let daemon = start(&dir, size, &flags);
    honest::prepare(&daemon);
    let mut table = Table::new(
        &format!(
            "Owed uploads of {ENTRY} bytes over 1 MiB/s; target: an acknowledgement (put) p99 ≤ 5 ms"
        ),
        &[
            "upstream",
            "owed before",
            "owed after",
            "N",
            "put p50, ms",
            "put p99, ms",
            "get p99, ms",
            "longest put, ms",
            "resident at most, MiB",
            "uploaded, KiB/s",
        ],
    );
    let mut stay = |name: &str, time: Duration| {
        let watch = Watch::start(daemon.pid());
        let (before, sent) = (owed(&daemon), wan.bytes_up());
        let heard = honest::visit(&daemon, name, time);
        let rate = (wan.bytes_up() - sent) as f64 / 1024.0 / time.as_secs_f64();
        table.row(row(name, (before, owed(&daemon)), &heard, mib(watch.end().all), rate));
    };
    stay("1 MiB a second, little owed", size.warm);
    honest::fill(&daemon, "owed", size.owed, ENTRY);
    stay("1 MiB a second", half);
    server.set_fault(Fault::Refuse);
    stay("down", size.time);
    table.print();
    end_in_the_middle(daemon, size, wrk, (&dir, &flags));
}

fn owed(daemon: &Daemon) -> u64 {
    daemon.count("journal/owed_entries")
}

fn row(name: &str, owed: (u64, u64), heard: &Heard, resident: f64, rate: f64) -> Vec<String> {
    let puts = &heard.puts;
    vec![
        name.to_owned(),
        owed.0.to_string(),
        owed.1.to_string(),
        puts.len().to_string(),
        format!("{:.2}", puts.at(0.5)),
        format!("{:.2}", puts.at(0.99)),
        format!("{:.2}", heard.gets.at(0.99)),
        format!("{:.1}", puts.at(1.0)),
        format!("{resident:.0}"),
        format!("{rate:.0}"),
    ]
}

/// With the crowd at its door, one client that puts on, and no upstream.
fn end_in_the_middle(daemon: Daemon, size: Size, wrk: &Path, (dir, flags): (&Path, &[&str])) {
    let (addr, warm) = (daemon.addr(), size.warm);
    let kinds = [Kind::Idle, Kind::Senders, Kind::Readers];
    let crowds = start_crowds(&kinds, size, &daemon);
    let busy = Busy::start(wrk, size.busy, addr, warm * 4);
    std::thread::park_timeout(warm);
    let before = owed(&daemon);
    let (took, acknowledged) = std::thread::scope(|scope| {
        let putting = scope.spawn(|| honest::put_until_refused(addr, LATE));
        std::thread::park_timeout(warm / 3);
        let clock = Clock::system();
        let status = daemon.end();
        let took = clock.elapsed();
        assert!(status.success(), "the daemon ended with {status}");
        (took, putting.join().expect("a client ends"))
    });
    drop((crowds, busy));
    let daemon = start(dir, size, flags);
    let after = owed(&daemon);
    let right = honest::count_right(daemon.addr(), LATE, acknowledged);
    let mut table = Table::new(
        "SIGTERM in the middle of all of it, upstream down; target: ended within 10 s, all is owed",
        &[
            "ended after, s",
            "owed before",
            "acknowledged since",
            "of which are there",
            "owed after the restart",
            "target",
        ],
    );
    let is_kept = after >= before + acknowledged as u64 && right == acknowledged;
    let is_met = is_kept && took <= Duration::from_secs(10);
    table.row([
        format!("{:.1}", took.as_secs_f64()),
        before.to_string(),
        acknowledged.to_string(),
        right.to_string(),
        after.to_string(),
        if is_met { "met" } else { "missed" }.to_owned(),
    ]);
    table.print();
    if !is_kept {
        say("uploads that were owed are owed no more: larder forgets what it has promised");
        std::process::exit(1);
    }
}

//! What a daemon takes, sampled over time: a row for each stretch, and the first quarter against the last.

use std::time::Duration;

use larder::units::Clock;

use super::guests::{Counts, Tally};
use super::support::measure::{Table, Values};
use super::support::proc;

/// One look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    at: Duration,
    resident: u64,
    anonymous: u64,
    descriptors: usize,
    threads: usize,
    disk: u64,
    owed: u64,
    /// Since the sample before.
    asked: f64,
    hits: f64,
    stored: f64,
    switches: f64,
    cpu: f64,
}

/// What is compared: its name, its value, digits.
type Column = (&'static str, fn(&Sample) -> f64, usize);

const COLUMNS: [Column; 11] = [
    ("resident, MiB", |it| mib(it.resident), 1),
    ("own memory, MiB", |it| mib(it.anonymous), 1),
    ("descriptors", |it| it.descriptors as f64, 0),
    ("threads", |it| it.threads as f64, 0),
    ("disk, MiB", |it| mib(it.disk), 1),
    ("owed", |it| it.owed as f64, 0),
    ("questions, 1/s", |it| it.asked, 0),
    ("hits of gets, %", |it| it.hits * 100.0, 0),
    ("puts stored, %", |it| it.stored * 100.0, 1),
    ("wake-ups a question", |it| it.switches, 2),
    ("processor, %", |it| it.cpu * 100.0, 0),
];

pub(crate) struct Samples {
    pid: String,
    clock: Clock,
    all: Vec<Sample>,
    /// At the last sample: time, wake-ups, processor time, what clients had met with.
    last: (Duration, u64, Duration, Counts),
}

impl Samples {
    pub(crate) fn begin(pid: u32, counts: Counts) -> Self {
        let (pid, clock) = (pid.to_string(), Clock::system());
        let last = (clock.elapsed(), proc::switches(&pid), proc::ticks(&pid), counts);
        Self { pid, clock, all: Vec::new(), last }
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn take(&mut self, disk: u64, owed: u64, counts: Counts, tally: &Tally) {
        let pid = &self.pid;
        let now = (self.clock.elapsed(), proc::switches(pid), proc::ticks(pid), counts);
        let (then, switches, ticks, before) = self.last;
        let seconds = (now.0 - then).as_secs_f64();
        let resident = proc::resident(pid);
        let asked = (counts.asked - before.asked).max(1) as f64;
        let gets = (counts.gets - before.gets).max(1) as f64;
        let puts = (counts.puts - before.puts).max(1) as f64;
        self.all.push(Sample {
            at: now.0,
            resident: resident.all,
            anonymous: resident.anonymous,
            descriptors: proc::entries(pid, "fd"),
            threads: proc::entries(pid, "task"),
            disk,
            owed,
            asked: asked / seconds,
            hits: (counts.hits - before.hits) as f64 / gets,
            stored: 1.0 - (counts.not_stored - before.not_stored) as f64 / puts,
            // Threads that have ended take theirs with them.
            switches: now.1.saturating_sub(switches) as f64 / asked,
            cpu: (now.2 - ticks).as_secs_f64() / seconds,
        });
        self.last = now;
        tally.note(counts);
    }

    /// Medians of each stretch of so many samples.
    pub(crate) fn print(&self, each: usize) {
        let names: Vec<&str> = ["until, s"].into_iter().chain(COLUMNS.map(|it| it.0)).collect();
        let mut table = Table::new("Over time, medians", &names);
        for stretch in self.all.chunks(each) {
            let at = stretch.last().map_or(0.0, |last| last.at.as_secs_f64());
            let cells = COLUMNS.map(|(_, of, digits)| {
                let values: Values = stretch.iter().map(of).collect();
                format!("{:.digits$}", values.median())
            });
            table.row([format!("{at:.0}")].into_iter().chain(cells));
        }
        table.print();
    }

    /// Flat is what the last quarter has no more of than the first one.
    pub(crate) fn compare(&self) {
        let quarter = (self.all.len() / 4).max(1);
        let (first, last) = (&self.all[..quarter], &self.all[self.all.len() - quarter..]);
        let mut table = Table::new(
            "The first quarter's median against the last one's",
            &["what", "first [quartiles]", "last [quartiles]", "last / first", "most of all"],
        );
        for (name, of, digits) in COLUMNS {
            let values = |samples: &[Sample]| samples.iter().map(of).collect::<Values>();
            let most = self.all.iter().map(of).fold(0.0, f64::max);
            let (before, after) = (values(first), values(last));
            table.row([
                name.to_owned(),
                before.show(digits),
                after.show(digits),
                format!("{:.2}", after.median() / before.median()),
                format!("{most:.digits$}"),
            ]);
        }
        table.print();
    }
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

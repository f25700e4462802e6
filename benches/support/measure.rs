//! How benches repeat, sum up and print: rounds in which every contender has its turn, medians with
//! quartiles, ratios within a round, tables in Markdown.
//!
//! Nothing here judges a number: a slow machine is no fault of the code. What is measured is in the
//! benches.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use larder::units::Clock;

/// How much a bench does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Everything, as often as figures need it.
    Full,
    /// Once or twice: whether it still runs.
    Short,
}

/// The command line of a bench.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) scale: Scale,
    runs: Option<usize>,
}

impl Plan {
    /// Reads `--short` and `--runs N`; cargo adds words of its own.
    pub(crate) fn read() -> Self {
        let runs = option("--runs").map(|count| {
            let count = count.parse().ok();
            count.filter(|count| *count > 0).expect("--runs takes a number from 1")
        });
        Self { scale: if flag("--short") { Scale::Short } else { Scale::Full }, runs }
    }

    pub(crate) fn is_short(self) -> bool {
        self.scale == Scale::Short
    }

    /// How often something is measured: as asked for, else by scale.
    pub(crate) fn runs(self, full: usize, short: usize) -> usize {
        self.runs.unwrap_or(if self.is_short() { short } else { full })
    }

    /// The command that makes these tables again.
    pub(crate) fn command(bench: &str) -> String {
        let words: Vec<String> =
            std::env::args().skip(1).filter(|word| word != "--bench").collect();
        let dashes = if words.is_empty() { "" } else { " -- " };
        format!("cargo bench --bench {bench}{dashes}{}", words.join(" "))
    }
}

/// Whether the command line has this word.
pub(crate) fn flag(name: &str) -> bool {
    std::env::args().any(|word| word == name)
}

/// The word after this one on the command line.
pub(crate) fn option(name: &str) -> Option<String> {
    let mut words = std::env::args().skip_while(|word| word != name);
    words.next().map(|name| words.next().unwrap_or_else(|| panic!("{name} takes a value")))
}

/// Values of one kind, in the order in which they were measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values(Vec<f64>);

impl Values {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// This over the other, round by round. One that was measured once serves for all rounds.
    pub(crate) fn over(&self, other: &Self) -> Self {
        if self.len() == other.len() {
            return Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect());
        }
        let bound = other.median();
        Self(self.0.iter().map(|a| a / bound).collect())
    }

    /// Median and quartiles: `0.42 [0.40, 0.45]`.
    pub(crate) fn show(&self, digits: usize) -> String {
        let (low, high) = (self.quantile(0.25), self.quantile(0.75));
        format!("{:.digits$} [{low:.digits$}, {high:.digits$}]", self.median())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a short list"
    )]
    fn quantile(&self, share: f64) -> f64 {
        assert!(!self.0.is_empty(), "nothing was measured");
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = share * (sorted.len() - 1) as f64;
        let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        below + (above - below) * at.fract()
    }
}

impl FromIterator<f64> for Values {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// How long `work` takes.
pub(crate) fn time(work: impl FnOnce()) -> Duration {
    let clock = Clock::system();
    work();
    clock.elapsed()
}

/// Measures every contender `runs` times, each round in another order, so that none always follows
/// the same one.
pub(crate) fn interleave<T>(
    contenders: &[T],
    runs: usize,
    mut measure: impl FnMut(&T) -> f64,
) -> Vec<Values> {
    let mut all = vec![Values::default(); contenders.len()];
    for round in 0..runs {
        for turn in 0..contenders.len() {
            let at = (turn + round) % contenders.len();
            all[at].push(measure(&contenders[at]));
        }
    }
    all
}

/// A table in Markdown.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        let head = columns.iter().map(|name| (*name).to_owned()).collect();
        Self { title: title.to_owned(), rows: vec![head] }
    }

    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(cells.len(), self.rows[0].len(), "a row has a cell for each column");
        self.rows.push(cells);
    }

    pub(crate) fn print(&self) {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or_default().max(3)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        let mut text = format!("\n{} (load {})\n\n", self.title, load());
        for (number, row) in self.rows.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(text, "| {cell:width$} ");
            }
            text.push_str("|\n");
            if number == 0 {
                for width in &widths {
                    let _ = write!(text, "|{}", "-".repeat(width + 2));
                }
                text.push_str("|\n");
            }
        }
        say(&text);
    }
}

/// Prints a paragraph to whoever reads the tables.
pub(crate) fn say(text: &str) {
    // Nobody reads what cannot be written.
    let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end_matches('\n'));
}

/// What else the machine is doing, as it says of itself.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().filter(|load| !load.is_empty()).unwrap_or("unknown").to_owned()
}

//! Quantities as people write them (sizes, durations, shares), secrets, the clock, and back-off.
//!
//! Nothing here knows about caches. Everything else may use it; it uses nothing.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A number of bytes. Parses `64MiB`, `1 GiB`, `10G`, `512k`, `4096`; powers of two throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

impl ByteSize {
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        for (shift, name) in units {
            let unit = 1_u64 << shift;
            if self.0 >= unit {
                return if self.0.is_multiple_of(unit) {
                    write!(f, "{} {name}", self.0 / unit)
                } else {
                    write!(f, "{:.1} {name}", self.0 as f64 / unit as f64)
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// Why a quantity could not be read; says what was written and what would be right.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{written}` is not {what}; write for example {example}")]
pub struct ParseError {
    pub written: String,
    pub what: &'static str,
    pub example: &'static str,
}

impl FromStr for ByteSize {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let bad =
            || ParseError { written: s.to_owned(), what: "a size", example: "`50GiB` or `512MiB`" };
        let text = s.trim().to_ascii_lowercase();
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let shift = match unit.trim() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(bad()),
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(1 << shift).map(Self).ok_or_else(bad);
        }
        let part: f64 = number.parse().map_err(|_| bad())?;
        let bytes = part * (1_u64 << shift) as f64;
        if !(0.0..9e18).contains(&bytes) {
            return Err(bad());
        }
        #[expect(clippy::cast_possible_truncation, reason = "the range was checked above")]
        Ok(Self(bytes as u64))
    }
}

/// A share of something, 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub u8);

impl Percent {
    pub const fn of(self, whole: u64) -> u64 {
        whole / 100 * self.0 as u64 + whole % 100 * self.0 as u64 / 100
    }
}

impl FromStr for Percent {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        s.trim()
            .strip_suffix('%')
            .and_then(|n| n.trim().parse::<u8>().ok())
            .filter(|n| *n <= 100)
            .map(Self)
            .ok_or_else(|| ParseError {
                written: s.to_owned(),
                what: "a percentage",
                example: "`5%`",
            })
    }
}

/// Reads `30s`, `5m`, `1h30m`, `250ms`, `2d`; a bare number is seconds.
pub fn parse_duration(s: &str) -> Result<Duration, ParseError> {
    let bad =
        || ParseError { written: s.to_owned(), what: "a duration", example: "`30s` or `1h30m`" };
    let mut rest = s.trim();
    if rest.is_empty() {
        return Err(bad());
    }
    if let Ok(seconds) = rest.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit_ms: u64 = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let part = number.checked_mul(unit_ms).ok_or_else(bad)?;
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(bad)?;
        rest = rest[letters..].trim_start();
    }
    Ok(total)
}

/// A duration for people: `0.3 s`, `41 s`, `2 m 5 s`, `3 h 1 m`.
pub fn show_duration(d: Duration) -> String {
    let seconds = d.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", d.as_secs_f64()),
        10..120 => format!("{seconds} s"),
        120..7200 => format!("{} m {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Groups digits by three, for the lines people read: `1,024`.
pub fn show_count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A moment, in nanoseconds since 1970; what formats store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    pub const fn seconds(self) -> u64 {
        self.0 / 1_000_000_000
    }
    pub const fn from_seconds(s: u64) -> Self {
        Self(s.saturating_mul(1_000_000_000))
    }
    /// Time from `earlier` to `self`, zero when the clock went backwards.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The clock everything is given, so that tests can hold it still.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    System(Instant),
    Manual(AtomicU64),
    Runtime(Timestamp, tokio::time::Instant),
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
    pub fn system() -> Self {
        Self(Arc::new(Source::System(Instant::now())))
    }

    /// A clock that moves only by `advance`.
    pub fn manual(start: Timestamp) -> Self {
        Self(Arc::new(Source::Manual(AtomicU64::new(start.0))))
    }

    /// A clock that follows the runtime's, which a simulation pauses and moves.
    pub fn of_runtime(start: Timestamp) -> Self {
        Self(Arc::new(Source::Runtime(start, tokio::time::Instant::now())))
    }

    /// Wall-clock time; may jump.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
    #[expect(clippy::cast_possible_truncation, reason = "64 bits of nanoseconds last until 2554")]
    pub fn now(&self) -> Timestamp {
        match &*self.0 {
            Source::System(_) => Timestamp(
                SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64,
            ),
            Source::Manual(at) => Timestamp(at.load(Ordering::Relaxed)),
            Source::Runtime(start, since) => {
                Timestamp(start.0.saturating_add(since.elapsed().as_nanos() as u64))
            }
        }
    }

    /// Time since this clock was made; never goes backwards.
    pub fn elapsed(&self) -> Duration {
        match &*self.0 {
            Source::System(start) => start.elapsed(),
            Source::Manual(at) => Duration::from_nanos(at.load(Ordering::Relaxed)),
            Source::Runtime(_, since) => since.elapsed(),
        }
    }

    /// Moves a manual clock; a system clock stays as it is.
    #[expect(clippy::cast_possible_truncation, reason = "tests advance by less than 584 years")]
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(at) = &*self.0 {
            at.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
        }
    }
}

/// Delays that double from `first` to `most`, with full jitter from a seed.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    attempt: u32,
    random: Random,
}

impl Backoff {
    pub const fn new(first: Duration, most: Duration, seed: u64) -> Self {
        Self { first, most, attempt: 0, random: Random::new(seed) }
    }

    /// The next delay: uniform between a tenth of the current ceiling and the ceiling.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling = self.first.saturating_mul(1 << self.attempt.min(20)).min(self.most);
        self.attempt = self.attempt.saturating_add(1);
        let floor = ceiling / 10;
        floor + (ceiling - floor).mul_f64(self.random.next_share())
    }

    pub const fn attempts(&self) -> u32 {
        self.attempt
    }

    pub const fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// A secret: never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// A small generator for jitter and sampling (SplitMix64); never for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in 0..1.
    pub fn next_share(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases = [
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("1 GiB", 1 << 30),
            ("10g", 10 << 30),
            ("1.5k", 1536),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "x", "12 parsecs", "-1", "99999999999T", "1.5.2k"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert_eq!(ByteSize::gib(50).to_string(), "50 GiB");
        assert_eq!(ByteSize(1536).to_string(), "1.5 KiB");
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        let cases = [("30s", 30_000), ("1h30m", 5_400_000), ("250ms", 250), ("5", 5_000)];
        for (text, ms) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "5x", "5m3", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_never_overflow() {
        assert_eq!(Percent(5).of(1000), 50);
        assert_eq!(Percent(100).of(u64::MAX), u64::MAX);
        assert!("101%".parse::<Percent>().is_err());
    }

    #[test]
    fn backoff_doubles_to_its_ceiling_and_stays_jittered() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1), 7);
        let delays: Vec<_> = (0..8).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] <= Duration::from_millis(100));
        assert!(delays.iter().all(|d| *d <= Duration::from_secs(1)));
        assert!(delays.windows(2).any(|w| w[0] != w[1]));
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!(show_count(0), "0");
        assert_eq!(show_count(1024), "1,024");
        assert_eq!(show_count(1_234_567), "1,234,567");
    }
}

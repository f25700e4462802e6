//! The catalogue of metrics: every name, unit, label and meaning; the counters behind them.
//!
//! Counters are plain atomics, so that `stats` and `/metrics` read the same numbers. Gauges that
//! somebody else owns (entries, bytes, owed uploads) come in through `Gauges` when asked for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

mod render;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub fn inc(&self) {
        self.add(1);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that is set.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Errors since something last went well.
#[derive(Debug, Default)]
pub struct Streak {
    /// Nearly always there is nothing to forget.
    is_bad: AtomicBool,
    errors: Mutex<(u64, Option<Arc<str>>)>,
}

impl Streak {
    pub fn good(&self) {
        if self.is_bad.load(Ordering::Acquire) {
            let mut errors = self.errors();
            *errors = (0, None);
            self.is_bad.store(false, Ordering::Release);
        }
    }

    pub fn bad(&self, error: &dyn std::fmt::Display) {
        let mut errors = self.errors();
        *errors = (errors.0 + 1, Some(error.to_string().into()));
        self.is_bad.store(true, Ordering::Release);
    }

    pub fn in_a_row(&self) -> u64 {
        self.errors().0
    }

    pub fn last(&self) -> Option<Arc<str>> {
        self.errors().1.clone()
    }

    fn errors(&self) -> MutexGuard<'_, (u64, Option<Arc<str>>)> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const BUCKETS: usize = 128;

/// Durations in buckets a quarter of a power of two wide, from a microsecond up.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_us: Counter::default() }
    }
}

impl Histogram {
    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(us)].fetch_add(1, Ordering::Relaxed);
        self.sum_us.add(us);
    }

    fn bucket(us: u64) -> usize {
        let us = us.max(1);
        let power = us.ilog2();
        let quarter = if power >= 2 { (us >> (power - 2)) & 3 } else { 0 };
        (power as usize * 4 + usize::try_from(quarter).unwrap_or(0)).min(BUCKETS - 1)
    }

    /// Upper edge of a bucket.
    fn edge(bucket: usize) -> Duration {
        let (power, quarter) = (bucket / 4, bucket % 4);
        let base = 1_u64 << power.min(62);
        Duration::from_micros(base + base / 4 * (quarter as u64 + 1))
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum()
    }

    /// The duration that `share` of all recorded ones stay below; zero if there are none.
    pub fn quantile(&self, share: f64) -> Duration {
        let total = self.count();
        if total == 0 {
            return Duration::ZERO;
        }
        let mut left = (total as f64 * share).ceil();
        for (i, bucket) in self.buckets.iter().enumerate() {
            left -= bucket.load(Ordering::Relaxed) as f64;
            if left <= 0.0 {
                return Self::edge(i);
            }
        }
        Self::edge(BUCKETS - 1)
    }
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Go,
    Kv,
    Cas,
    Ac,
}

impl Protocol {
    pub const ALL: [Self; 4] = [Self::Go, Self::Kv, Self::Cas, Self::Ac];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Kv => "kv",
            Self::Cas => "cas",
            Self::Ac => "ac",
        }
    }
}

/// Names of misses, in the order of `Requests::miss`.
pub const MISSES: [&str; 6] = ["absent", "fault", "deadline", "breaker", "local", "policy"];

/// Counters of one protocol.
#[derive(Debug, Default)]
pub struct Requests {
    pub gets: Counter,
    pub puts: Counter,
    pub hit_memory: Counter,
    pub hit_disk: Counter,
    pub hit_native: Counter,
    pub hit_upstream: Counter,
    pub coalesced: Counter,
    pub miss: [Counter; MISSES.len()],
}

/// Counters of one upstream.
#[derive(Debug, Default)]
pub struct Upstream {
    pub gets: Counter,
    pub puts: Counter,
    pub retries: Counter,
    pub failures: Counter,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    /// Time to the first byte of an answer.
    pub latency: Histogram,
    /// Bits a second of the last bodies worth measuring, smoothed.
    pub bandwidth_bits: Gauge,
    /// 0 closed, 1 half open, 2 open.
    pub breaker: Gauge,
    pub breaker_opened: Counter,
    /// What goes wrong with questions and bodies, and with uploads.
    pub get_errors: Streak,
    pub put_errors: Streak,
}

impl Upstream {
    /// What went wrong last, if nothing has gone well since.
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.get_errors.last().or_else(|| self.put_errors.last())
    }

    pub fn state(&self) -> &'static str {
        match self.breaker.get() {
            0 => "closed",
            1 => "half_open",
            _ => "open",
        }
    }
}

/// Why an owed upload was given up, in the order of `Metrics::dropped`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Upstream will never take it: too large, or with a name that it cannot tell from another.
    Refused,
    /// The entry was evicted or purged before it was sent.
    Gone,
    /// Tried for too long.
    Expired,
    /// The journal was full.
    Full,
    /// Bytes on disk did not match their digest.
    Corrupt,
}

impl Dropped {
    pub const ALL: [Self; 5] =
        [Self::Refused, Self::Gone, Self::Expired, Self::Full, Self::Corrupt];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Gone => "gone",
            Self::Expired => "expired",
            Self::Full => "full",
            Self::Corrupt => "corrupt",
        }
    }
}

/// All counters of a daemon.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: [Requests; 4],
    upstreams: RwLock<BTreeMap<Arc<str>, Arc<Upstream>>>,
    pub evicted_entries: Counter,
    pub evicted_bytes: Counter,
    pub corrupt: Counter,
    pub store_faults: Counter,
    pub not_stored: Counter,
    pub uploaded_entries: Counter,
    pub uploaded_bytes: Counter,
    pub upload_retries: Counter,
    pub prefetched_entries: Counter,
    pub prefetched_bytes: Counter,
    pub prefetch_used: Counter,
    pub manifests_written: Counter,
    pub dropped: [Counter; Dropped::ALL.len()],
    pub connections: Counter,
    pub connections_refused: Counter,
    pub panics: Counter,
}

impl Metrics {
    pub fn of(&self, protocol: Protocol) -> &Requests {
        &self.requests[protocol as usize]
    }

    pub fn upstream(&self, name: &str) -> Arc<Upstream> {
        let read = self.upstreams.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = read.get(name) {
            return found.clone();
        }
        drop(read);
        let mut write = self.upstreams.write().unwrap_or_else(PoisonError::into_inner);
        write.entry(name.into()).or_default().clone()
    }

    pub fn upstreams(&self) -> BTreeMap<Arc<str>, Arc<Upstream>> {
        self.upstreams.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn drop_upload(&self, why: Dropped) {
        self.dropped[why as usize].inc();
    }
}

/// Gauges that others own, read when somebody looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    pub uptime_s: u64,
    pub memory_entries: u64,
    pub memory_bytes: u64,
    pub memory_limit_bytes: u64,
    pub disk_entries: u64,
    pub disk_bytes: u64,
    pub disk_limit_bytes: u64,
    pub disk_free_bytes: u64,
    pub owed_entries: u64,
    pub owed_bytes: u64,
    pub owed_oldest_s: u64,
    pub flights: u64,
    pub tasks: u64,
    /// Of tasks that nobody starts again.
    pub task_panics: u64,
}

/// One row of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub name: &'static str,
    pub kind: &'static str,
    pub labels: &'static str,
    pub meaning: &'static str,
}

const fn row(
    name: &'static str,
    kind: &'static str,
    labels: &'static str,
    meaning: &'static str,
) -> Row {
    Row { name, kind, labels, meaning }
}

/// Every metric there is. The README's table is tested against it.
pub const CATALOGUE: &[Row] = &[
    row("larder_uptime_seconds", "gauge", "", "time since the daemon started"),
    row("larder_gets_total", "counter", "protocol", "lookups"),
    row("larder_puts_total", "counter", "protocol", "stores"),
    row("larder_hits_total", "counter", "protocol, source", "lookups answered, by where from"),
    row("larder_misses_total", "counter", "protocol, why", "lookups not answered, by reason"),
    row("larder_coalesced_total", "counter", "protocol", "lookups that joined a fetch under way"),
    row("larder_memory_entries", "gauge", "", "entries in the memory tier"),
    row("larder_memory_bytes", "gauge", "", "bytes in the memory tier"),
    row("larder_memory_limit_bytes", "gauge", "", "limit of the memory tier"),
    row("larder_disk_entries", "gauge", "", "entries on disk"),
    row("larder_disk_bytes", "gauge", "", "bytes on disk"),
    row("larder_disk_limit_bytes", "gauge", "", "limit of the disk tier"),
    row("larder_disk_free_bytes", "gauge", "", "free space of the store's file system"),
    row("larder_evicted_entries_total", "counter", "", "entries removed for space"),
    row("larder_evicted_bytes_total", "counter", "", "bytes removed for space"),
    row("larder_corrupt_total", "counter", "", "entries found damaged, dropped and never served"),
    row("larder_store_faults_total", "counter", "", "failed reads and writes of the store"),
    row("larder_not_stored_total", "counter", "", "stores refused for space or by a fault"),
    row("larder_owed_entries", "gauge", "", "uploads owed"),
    row("larder_owed_bytes", "gauge", "", "bytes of uploads owed"),
    row("larder_owed_oldest_seconds", "gauge", "", "age of the oldest owed upload"),
    row("larder_uploaded_entries_total", "counter", "", "uploads done"),
    row("larder_uploaded_bytes_total", "counter", "", "bytes uploaded"),
    row("larder_upload_retries_total", "counter", "", "uploads tried again"),
    row("larder_uploads_dropped_total", "counter", "reason", "uploads given up"),
    row(
        "larder_prefetched_entries_total",
        "counter",
        "",
        "entries fetched before they were asked for",
    ),
    row("larder_prefetched_bytes_total", "counter", "", "bytes of frames fetched ahead"),
    row("larder_prefetch_used_total", "counter", "", "entries fetched ahead that a build used"),
    row("larder_manifests_written_total", "counter", "", "manifests of builds written upstream"),
    row("larder_upstream_gets_total", "counter", "upstream", "requests for entries"),
    row("larder_upstream_puts_total", "counter", "upstream", "requests to store entries"),
    row("larder_upstream_retries_total", "counter", "upstream", "requests tried again"),
    row("larder_upstream_failures_total", "counter", "upstream", "requests that failed"),
    row("larder_upstream_received_bytes_total", "counter", "upstream", "bytes of bodies received"),
    row("larder_upstream_sent_bytes_total", "counter", "upstream", "bytes of bodies sent"),
    row("larder_upstream_latency_seconds", "summary", "upstream, quantile", "time to first byte"),
    row("larder_upstream_breaker_state", "gauge", "upstream", "0 closed, 1 half open, 2 open"),
    row("larder_upstream_breaker_opened_total", "counter", "upstream", "times the breaker opened"),
    row("larder_flights", "gauge", "", "fetches under way"),
    row("larder_connections_total", "counter", "", "connections accepted"),
    row("larder_connections_refused_total", "counter", "", "users turned away from the socket"),
    row("larder_tasks", "gauge", "", "tasks alive"),
    row("larder_panics_total", "counter", "", "tasks that panicked; please report any"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_within_a_bucket_of_the_truth() {
        let histogram = Histogram::default();
        for ms in 1..=1000 {
            histogram.record(Duration::from_millis(ms));
        }
        let p50 = histogram.quantile(0.5).as_secs_f64();
        let p99 = histogram.quantile(0.99).as_secs_f64();
        assert!((0.45..0.65).contains(&p50), "{p50}");
        assert!((0.9..1.25).contains(&p99), "{p99}");
    }

    #[test]
    fn every_row_of_the_catalogue_is_rendered() {
        let metrics = Metrics::default();
        metrics.upstream("central").gets.inc();
        let text = metrics.render(&Gauges::default());
        for row in CATALOGUE {
            let shown = text.lines().filter(|l| !l.starts_with('#') && l.starts_with(row.name));
            assert!(shown.count() > 0, "{} has no value", row.name);
        }
        assert!(text.contains("larder_upstream_gets_total{upstream=\"central\"} 1"));
    }
}

//! The catalogue with its values, as Prometheus reads it.

use std::fmt::Write as _;
use std::time::Duration;

use crate::telemetry::metrics::{
    CATALOGUE, Dropped, Gauges, MISSES, Metrics, Protocol, Requests, Upstream,
};

impl Metrics {
    /// Everything in Prometheus' text format.
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut out = String::with_capacity(8 << 10);
        for row in CATALOGUE {
            // Writing into a string does not fail.
            let _ = writeln!(
                out,
                "# HELP {} {}\n# TYPE {} {}",
                row.name, row.meaning, row.name, row.kind
            );
            self.render_row(row.name, gauges, &mut out);
        }
        out
    }

    fn render_row(&self, name: &str, gauges: &Gauges, out: &mut String) {
        if let Some(value) = self.plain(name, gauges) {
            let _ = writeln!(out, "{name} {value}");
        } else if name.starts_with("larder_upstream_") {
            for (upstream, counters) in self.upstreams() {
                render_upstream(name, &upstream, &counters, out);
            }
        } else if name == "larder_uploads_dropped_total" {
            for why in Dropped::ALL {
                let value = self.dropped[why as usize].get();
                let _ = writeln!(out, "{name}{{reason=\"{}\"}} {value}", why.name());
            }
        } else {
            for protocol in Protocol::ALL {
                render_protocol(name, protocol.name(), self.of(protocol), out);
            }
        }
    }

    fn plain(&self, name: &str, g: &Gauges) -> Option<u64> {
        Some(match name {
            "larder_uptime_seconds" => g.uptime_s,
            "larder_memory_entries" => g.memory_entries,
            "larder_memory_bytes" => g.memory_bytes,
            "larder_memory_limit_bytes" => g.memory_limit_bytes,
            "larder_disk_entries" => g.disk_entries,
            "larder_disk_bytes" => g.disk_bytes,
            "larder_disk_limit_bytes" => g.disk_limit_bytes,
            "larder_disk_free_bytes" => g.disk_free_bytes,
            "larder_owed_entries" => g.owed_entries,
            "larder_owed_bytes" => g.owed_bytes,
            "larder_owed_oldest_seconds" => g.owed_oldest_s,
            "larder_flights" => g.flights,
            "larder_tasks" => g.tasks,
            "larder_evicted_entries_total" => self.evicted_entries.get(),
            "larder_evicted_bytes_total" => self.evicted_bytes.get(),
            "larder_corrupt_total" => self.corrupt.get(),
            "larder_store_faults_total" => self.store_faults.get(),
            "larder_not_stored_total" => self.not_stored.get(),
            "larder_uploaded_entries_total" => self.uploaded_entries.get(),
            "larder_uploaded_bytes_total" => self.uploaded_bytes.get(),
            "larder_upload_retries_total" => self.upload_retries.get(),
            "larder_prefetched_entries_total" => self.prefetched_entries.get(),
            "larder_prefetched_bytes_total" => self.prefetched_bytes.get(),
            "larder_prefetch_used_total" => self.prefetch_used.get(),
            "larder_manifests_written_total" => self.manifests_written.get(),
            "larder_connections_total" => self.connections.get(),
            "larder_connections_refused_total" => self.connections_refused.get(),
            "larder_panics_total" => self.panics.get() + g.task_panics,
            _ => return None,
        })
    }
}

fn render_protocol(name: &str, protocol: &str, r: &Requests, out: &mut String) {
    let mut line = |labels: &str, value: u64| {
        let _ = writeln!(out, "{name}{{protocol=\"{protocol}\"{labels}}} {value}");
    };
    match name {
        "larder_gets_total" => line("", r.gets.get()),
        "larder_puts_total" => line("", r.puts.get()),
        "larder_coalesced_total" => line("", r.coalesced.get()),
        "larder_hits_total" => {
            line(",source=\"memory\"", r.hit_memory.get());
            line(",source=\"disk\"", r.hit_disk.get());
            line(",source=\"native\"", r.hit_native.get());
            line(",source=\"upstream\"", r.hit_upstream.get());
        }
        _ => {
            for (why, counter) in MISSES.iter().zip(&r.miss) {
                line(&format!(",why=\"{why}\""), counter.get());
            }
        }
    }
}

fn render_upstream(name: &str, upstream: &str, u: &Upstream, out: &mut String) {
    let value = match name {
        "larder_upstream_gets_total" => u.gets.get(),
        "larder_upstream_puts_total" => u.puts.get(),
        "larder_upstream_retries_total" => u.retries.get(),
        "larder_upstream_failures_total" => u.failures.get(),
        "larder_upstream_received_bytes_total" => u.bytes_in.get(),
        "larder_upstream_sent_bytes_total" => u.bytes_out.get(),
        "larder_upstream_breaker_state" => u.breaker.get(),
        "larder_upstream_breaker_opened_total" => u.breaker_opened.get(),
        _ => {
            for share in [0.5, 0.99] {
                let seconds = u.latency.quantile(share).as_secs_f64();
                let _ = writeln!(
                    out,
                    "{name}{{upstream=\"{upstream}\",quantile=\"{share}\"}} {seconds}"
                );
            }
            let sum = Duration::from_micros(u.latency.sum_us.get()).as_secs_f64();
            let _ = writeln!(out, "{name}_sum{{upstream=\"{upstream}\"}} {sum}");
            let _ = writeln!(out, "{name}_count{{upstream=\"{upstream}\"}} {}", u.latency.count());
            return;
        }
    };
    let _ = writeln!(out, "{name}{{upstream=\"{upstream}\"}} {value}");
}

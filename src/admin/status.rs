//! What a daemon says of itself: the JSON of `stats --json` and `/status`, and the gauges of
//! `/metrics`. Its keys are a contract: scripts read them; keys may be added, none goes away.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value, json};

use super::Sources;
use crate::cache::Cache;
use crate::cache::forecast::{Forecast, Phase};
use crate::cache::session::Session;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Dropped, Gauges, MISSES, Protocol, Requests, Streak, Upstream};
use crate::worker::{WorkerStatus, Workers};

/// Version of the whole object.
const VERSION: u32 = 1;

/// Everything, version 1.
pub fn collect(sources: &Sources) -> Value {
    let cache = &sources.cache;
    let metrics = cache.metrics();
    let gauges = gauges(sources);
    json!({
        "version": VERSION,
        "larder": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "ready": sources.ready.load(Ordering::Relaxed),
        "uptime_s": gauges.uptime_s,
        "store": cache.store().dir().display().to_string(),
        "listen": sources.listen,
        "requests": requests(metrics),
        "memory": {
            "entries": gauges.memory_entries,
            "bytes": gauges.memory_bytes,
            "limit_bytes": gauges.memory_limit_bytes,
        },
        "disk": {
            "entries": gauges.disk_entries,
            "bytes": gauges.disk_bytes,
            "limit_bytes": gauges.disk_limit_bytes,
            "free_bytes": gauges.disk_free_bytes,
            "evicted_entries": metrics.evicted_entries.get(),
            "evicted_bytes": metrics.evicted_bytes.get(),
            "corrupt": metrics.corrupt.get(),
            "faults": metrics.store_faults.get(),
            "not_stored": metrics.not_stored.get(),
            "full": cache.store().is_full(),
        },
        "journal": journal(metrics, &gauges),
        "upstream": upstreams(cache),
        "sessions": sessions(cache, None),
        "workers": workers(&sources.workers),
    })
}

/// The gauges that the metrics do not hold themselves.
pub fn gauges(sources: &Sources) -> Gauges {
    let cache = &sources.cache;
    let (store, memory) = (cache.store(), cache.memory());
    Gauges {
        uptime_s: cache.clock().elapsed().as_secs(),
        memory_entries: memory.entries(),
        memory_bytes: memory.bytes(),
        memory_limit_bytes: memory.limit(),
        disk_entries: store.entries(),
        disk_bytes: store.used_bytes(),
        disk_limit_bytes: store.limit_bytes(),
        disk_free_bytes: store.free_bytes(),
        owed_entries: store.owed_entries(),
        owed_bytes: store.owed_bytes(),
        owed_oldest_s: store.owed_oldest_s(),
        flights: cache.flights().len() as u64,
        tasks: cache.tasks().alive() as u64,
        task_panics: cache.tasks().panics(),
    }
}

fn workers(workers: &Workers) -> Value {
    let show = |worker: WorkerStatus| {
        json!({
            "name": worker.name,
            "state": worker.state,
            "runs": worker.runs,
            "panics": worker.panics,
        })
    };
    workers.status().into_iter().map(show).collect()
}

fn requests(metrics: &Metrics) -> Value {
    let of = |protocol: Protocol| (protocol.name().to_owned(), counts(metrics.of(protocol)));
    Value::Object(Protocol::ALL.into_iter().map(of).collect())
}

fn counts(r: &Requests) -> Value {
    let miss: Map<String, Value> = MISSES
        .iter()
        .zip(&r.miss)
        .map(|(why, counter)| ((*why).to_owned(), counter.get().into()))
        .collect();
    json!({
        "gets": r.gets.get(),
        "puts": r.puts.get(),
        "hit_memory": r.hit_memory.get(),
        "hit_disk": r.hit_disk.get(),
        "hit_native": r.hit_native.get(),
        "hit_upstream": r.hit_upstream.get(),
        "coalesced": r.coalesced.get(),
        "miss": miss,
    })
}

fn journal(metrics: &Metrics, gauges: &Gauges) -> Value {
    let dropped: Map<String, Value> = Dropped::ALL
        .into_iter()
        .map(|why| (why.name().to_owned(), metrics.dropped[why as usize].get().into()))
        .collect();
    json!({
        "owed_entries": gauges.owed_entries,
        "owed_bytes": gauges.owed_bytes,
        "uploaded_entries": metrics.uploaded_entries.get(),
        "uploaded_bytes": metrics.uploaded_bytes.get(),
        "retried": metrics.upload_retries.get(),
        "dropped": dropped,
        "oldest_s": gauges.owed_oldest_s,
    })
}

fn upstreams(cache: &Cache) -> Value {
    // One that was not asked yet has no counters yet, but is to be seen all the same.
    for upstream in cache.realms().upstreams() {
        cache.metrics().upstream(&upstream.name);
    }
    let all = cache.metrics().upstreams();
    Value::Object(all.iter().map(|(name, u)| (name.to_string(), upstream(u))).collect())
}

fn upstream(u: &Upstream) -> Value {
    json!({
        "state": u.state(),
        "gets": u.gets.get(),
        "puts": u.puts.get(),
        "bytes_in": u.bytes_in.get(),
        "bytes_out": u.bytes_out.get(),
        "retries": u.retries.get(),
        "failures": u.failures.get(),
        "get_errors": streak(&u.get_errors),
        "put_errors": streak(&u.put_errors),
        "latency_ms": { "p50": latency_ms(u, 0.5), "p99": latency_ms(u, 0.99) },
        "bandwidth_mbit": u.bandwidth_bits.get() as f64 / 1e6,
    })
}

fn streak(errors: &Streak) -> Value {
    json!({ "in_a_row": errors.in_a_row(), "last": errors.last().as_deref() })
}

fn latency_ms(u: &Upstream, share: f64) -> f64 {
    u.latency.quantile(share).as_secs_f64() * 1e3
}

/// The sessions that are remembered, or those with one id.
pub fn sessions(cache: &Cache, id: Option<&str>) -> Value {
    let all = cache.sessions().list();
    all.iter()
        .filter(|session| id.is_none_or(|id| *session.id == *id))
        .map(|session| show_session(cache, session))
        .collect()
}

fn show_session(cache: &Cache, s: &Session) -> Value {
    let realm = cache.realms().by_id(s.realm);
    let ended = s.ended.get();
    let forecast = |count: fn(&Forecast) -> &AtomicU64| {
        s.forecast.as_ref().map_or(0, |forecast| count(forecast).load(Ordering::Relaxed))
    };
    json!({
        "id": &*s.id,
        "realm": realm.as_ref().map_or("", |realm| &*realm.namespace),
        "realm_id": s.realm.to_string(),
        "scope": &*s.scope,
        "commit": &*s.commit,
        "started": s.started.seconds(),
        // Null while a helper is there.
        "ended": (ended > 0).then_some(ended),
        "hits": s.hits_near.get() + s.hits_upstream.get(),
        "hits_upstream": s.hits_upstream.get(),
        "misses": s.misses.get(),
        "puts": s.puts.get(),
        // What was fetched ahead came over the network too.
        "bytes_in": s.bytes_in.get() + forecast(|f| &f.fetched_bytes),
        "saved_s": s.saved_ms.get() as f64 / 1e3,
        "waited_s": s.waited_ms.get() as f64 / 1e3,
        "branch": &*s.branch,
        "misses_policy": s.misses_policy.get(),
        "misses_local": s.misses_local.get(),
        "misses_new": s.misses_new.get(),
        // What is known of the build beforehand.
        "forecast": match s.forecast.as_ref().map(|forecast| forecast.phase()) {
            None => "none",
            Some(Phase::Loading) => "loading",
            Some(Phase::Known) => "known",
            Some(Phase::Nothing) => "nothing",
        },
        "prefetched": forecast(|forecast| &forecast.fetched),
        "prefetch_used": forecast(|forecast| &forecast.used),
    })
}

//! What the control client may ask: each operation by name, answered in JSON.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::admin::{self, Sources};
use crate::daemon::{prefetch, purge};
use crate::frontend::Control;
use crate::store::verify::Verified;

/// How often progress is told, in entries.
const PROGRESS_EVERY: u64 = 512;
/// Bad entries named in an answer; their number is always told.
const NAMED_MAX: usize = 1000;
/// Numbers that come from a stuck file system are not waited for longer.
const COLLECT_WITHIN: Duration = Duration::from_secs(5);
const FLUSH_DEFAULT: Duration = Duration::from_secs(600);
/// How often it is told what is left to be uploaded.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Answers with what the daemon knows.
pub(super) struct Controls {
    sources: Sources,
    stopping: watch::Sender<bool>,
}

impl Controls {
    pub(super) const fn new(sources: Sources, stopping: watch::Sender<bool>) -> Self {
        Self { sources, stopping }
    }

    /// Collected where a disk that hangs holds up nobody else.
    async fn status(&self) -> Value {
        let sources = self.sources.clone();
        let collect = move || admin::status::collect(&sources);
        let collecting = self.sources.cache.tasks().blocking("status", collect);
        match tokio::time::timeout(COLLECT_WITHIN, collecting).await {
            Ok(Some(status)) => status,
            Ok(None) => json!({"error": "collecting has failed; the log says how"}),
            Err(_) => json!({"error": "the store does not answer"}),
        }
    }

    async fn flush(&self, request: &Value, progress: &(dyn Fn(Value) + Send + Sync)) -> Value {
        let realms = self.sources.cache.realms();
        if request["upstream"].as_str().is_some_and(|url| !realms.has_upstream(url)) {
            return json!({"error": prefetch::OTHER_UPSTREAM});
        }
        let within = request["timeout_ms"].as_u64().map_or(FLUSH_DEFAULT, Duration::from_millis);
        let flushing = self.sources.workers.flush(within);
        tokio::pin!(flushing);
        let mut ticks = tokio::time::interval(TELL_EVERY);
        let flushed = loop {
            tokio::select! {
                flushed = &mut flushing => break flushed,
                _ = ticks.tick() => {
                    let left = self.sources.cache.store().owed_entries();
                    let why = self.sources.workers.trouble();
                    progress(json!({"progress": {"left": left, "why": why}}));
                }
            }
        };
        json!({
            "left_entries": flushed.left_entries,
            "left_bytes": flushed.left_bytes,
            "why": flushed.why,
        })
    }

    async fn verify(&self, request: &Value, progress: &(dyn Fn(Value) + Send + Sync)) -> Value {
        let store = self.sources.cache.store().clone();
        let repair = request["repair"].as_bool().unwrap_or(false);
        let (sender, mut steps) = tokio::sync::mpsc::channel(16);
        let work = self.sources.cache.tasks().blocking("verify", move || {
            store.verify(repair, |so_far| {
                if so_far.entries.is_multiple_of(PROGRESS_EVERY) {
                    // A step that nobody has time for is left out.
                    let _ = sender.try_send((so_far.entries, so_far.bytes));
                }
            })
        });
        tokio::pin!(work);
        let report = loop {
            tokio::select! {
                report = &mut work => break report.unwrap_or_default(),
                Some((entries, bytes)) = steps.recv() => {
                    progress(json!({"progress": {"entries": entries, "bytes": bytes}}));
                }
            }
        };
        if repair && report.repaired > 0 {
            self.sources.cache.memory().clear();
        }
        verified_json(&report)
    }

    async fn purge(&self, request: &Value) -> Value {
        let cache = &self.sources.cache;
        let (store, request) = (cache.store().clone(), request.clone());
        let removed = cache.tasks().blocking("purge", move || purge(&store, &request)).await;
        // What was purged must not be served from memory.
        cache.memory().clear();
        match removed.unwrap_or_else(|| Err("purging has failed; the log says how".to_owned())) {
            Ok(removed) => json!({"removed": removed}),
            Err(error) => json!({"error": error}),
        }
    }
}

fn verified_json(report: &Verified) -> Value {
    let bad: Vec<Value> = report
        .bad
        .iter()
        .take(NAMED_MAX)
        .map(|(key, problem)| json!({"key": key.to_string(), "problem": problem}))
        .collect();
    json!({
        "entries": report.entries,
        "bytes": report.bytes,
        "bad_entries": report.bad.len(),
        "bad": bad,
        "repaired": report.repaired,
    })
}

impl Control for Controls {
    fn call<'a>(
        &'a self,
        request: Value,
        progress: &'a (dyn Fn(Value) + Send + Sync),
    ) -> BoxFuture<'a, Value> {
        Box::pin(async move {
            let mut reply = match request["op"].as_str() {
                Some("stats" | "sessions") => self.status().await,
                Some("flush") => self.flush(&request, progress).await,
                Some("prefetch") => prefetch::serve(&self.sources.cache, &request, progress).await,
                Some("verify") => self.verify(&request, progress).await,
                Some("purge") => self.purge(&request).await,
                Some("stop") => {
                    self.stopping.send_replace(true);
                    let store = self.sources.cache.store().dir().to_string_lossy().into_owned();
                    json!({"pid": std::process::id(), "store": store})
                }
                _ => json!({"error": "unknown operation: this daemon may be of an older version"}),
            };
            if let Value::Object(reply) = &mut reply {
                reply.insert("done".into(), Value::Bool(true));
                reply.entry("version").or_insert_with(|| Value::from(1));
            }
            reply
        })
    }
}

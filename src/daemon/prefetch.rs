//! What `larder prefetch` asks for: a forecast without a build, wanted until it is fulfilled.
//!
//! Here: what the client names, how far it is, and what is said in the end. The workers read and fetch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cache::Cache;
use crate::cache::forecast::{Aim, Forecast, Phase};
use crate::cache::realm::{Realm, Wanted};
use crate::telemetry::metrics::Upstream;

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Begins it; waits for its end as long as the client does.
pub(super) async fn serve(
    cache: &Cache,
    request: &Value,
    progress: &(dyn Fn(Value) + Send + Sync),
) -> Value {
    let (realm, aim) = match aim(cache, request) {
        Ok(found) => found,
        Err(error) => return json!({ "error": error }),
    };
    if let Some(why) = why_never(cache, &realm, request) {
        return json!({ "state": "nothing", "why": why });
    }
    let (began, failed) = (cache.clock().elapsed(), upstream_of(cache, &realm).failures.get());
    let forecast = cache.forecast(aim);
    forecast.want();
    let parents: Vec<Arc<str>> = texts(&request["parents"]).map(Arc::from).collect();
    if !parents.is_empty() {
        forecast.parents_are(&parents);
    }
    cache.tasks().spawn("prefetch for a client", see_through(cache.clone(), forecast.clone()));
    let Some(wait_ms) = request["wait_ms"].as_u64() else {
        return told(cache, &forecast, began);
    };
    let within = Duration::from_millis(wait_ms);
    let waiting = tokio::time::timeout(within, finished(&forecast, progress));
    let is_late = waiting.await.is_err();
    let mut reply = told(cache, &forecast, began);
    reply["late"] = is_late.into();
    if !is_late && forecast.phase() != Phase::Known {
        let upstream = upstream_of(cache, &realm);
        let is_trouble = upstream.state() != "closed" || upstream.failures.get() > failed;
        reply["state"] = "nothing".into();
        reply["why"] = why_nothing(is_trouble.then(|| upstream.trouble()).as_ref()).into();
    }
    reply
}

/// Wants it until it is fulfilled, whether or not the client is still there.
async fn see_through(cache: Cache, forecast: Arc<Forecast>) {
    let mut shutdown = cache.tasks().shutdown_signal();
    tokio::select! {
        () = forecast.finished() => {}
        () = shutdown.wait() => {}
    }
    forecast.unwant();
}

fn aim(cache: &Cache, request: &Value) -> Result<(Arc<Realm>, Aim), String> {
    let text = |key: &str| request[key].as_str().unwrap_or_default();
    let config = cache.config();
    let namespace = request["namespace"].as_str().unwrap_or(&config.namespace);
    let trust = request["trust"].as_str().or(config.trust.as_deref());
    let wanted = Wanted { namespace, trust, upstream: request["upstream"].as_str() };
    let realm = cache.realms().resolve(wanted).map_err(|error| error.to_string())?;
    if text("scope").is_empty() || text("commit").is_empty() {
        return Err("a scope and a commit are needed".to_owned());
    }
    let aim = Aim {
        realm: realm.clone(),
        scope: text("scope").into(),
        commit: text("commit").into(),
        branch: text("branch").into(),
        default_branch: text("default_branch").into(),
    };
    Ok((realm, aim))
}

/// What is said to whoever names an upstream that the daemon does not have.
pub(super) const OTHER_UPSTREAM: &str =
    "the daemon that runs was started with another upstream; `larder stop` ends it";

/// Why nothing can ever be known, if so.
fn why_never(cache: &Cache, realm: &Realm, request: &Value) -> Option<&'static str> {
    if realm.upstream.is_some() {
        return None;
    }
    let is_other =
        request["upstream"].as_str().is_some_and(|url| !cache.realms().has_upstream(url));
    Some(if is_other {
        OTHER_UPSTREAM
    } else {
        "there is no central cache; name one with --upstream"
    })
}

/// `trouble`: what upstream did not answer as it should, and its words as far as they are known.
fn why_nothing(trouble: Option<&Option<Arc<str>>>) -> String {
    match trouble {
        Some(Some(trouble)) => format!("the central cache did not answer as it should: {trouble}"),
        Some(None) => {
            "the central cache did not answer as it should; `larder doctor` looks why".to_owned()
        }
        None => "no manifest of this commit, its parents or its branches; the first build with \
                 larder writes one"
            .to_owned(),
    }
}

fn upstream_of(cache: &Cache, realm: &Realm) -> Arc<Upstream> {
    let name = realm.upstream.as_ref().map_or("", |upstream| &*upstream.name);
    cache.metrics().upstream(name)
}

/// Returns when nothing more is fetched; tells how far it is.
async fn finished(forecast: &Forecast, progress: &(dyn Fn(Value) + Send + Sync)) {
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let end = forecast.finished();
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return,
            _ = ticks.tick() => progress(json!({ "progress": counts(forecast) })),
        }
    }
}

fn counts(forecast: &Forecast) -> Value {
    json!({
        "listed": forecast.lists(),
        "fetched": forecast.fetched.load(Ordering::Relaxed),
        "bytes": forecast.fetched_bytes.load(Ordering::Relaxed),
        "left": forecast.count_left(),
    })
}

fn told(cache: &Cache, forecast: &Forecast, began: Duration) -> Value {
    let took = cache.clock().elapsed().saturating_sub(began);
    let mut reply = counts(forecast);
    let is_fetched = forecast.is_finished() && forecast.phase() == Phase::Known;
    reply["state"] = if is_fetched { "fetched" } else { "fetching" }.into();
    reply["scope"] = (*forecast.aim.scope).into();
    reply["commit"] = (*forecast.aim.commit).into();
    reply["took_ms"] = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).into();
    reply
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

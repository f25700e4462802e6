//! What a daemon is put together from: descriptors, the store, the upstreams.

use std::sync::Arc;
use std::time::Duration;

use crate::backend;
use crate::cache::realm::Upstream;
use crate::config::Config;
use crate::daemon::{Options, StartError};
use crate::store::layout::LayoutError;
use crate::store::{OpenError, Store};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::units::Clock;

/// A daemon that was started for a build waits so long for one that is ending.
const FREE_WITHIN: Duration = Duration::from_secs(15);
const FREE_LOOK: Duration = Duration::from_millis(10);

/// Who is started for a build while another daemon is ending gets the store a moment later.
pub(super) async fn open_store(
    tasks: &Tasks,
    config: &Config,
    clock: &Clock,
    metrics: &Arc<Metrics>,
    options: Options,
) -> Result<Store, StartError> {
    let until = clock.elapsed() + FREE_WITHIN;
    loop {
        let is_late = !options.detached || clock.elapsed() > until;
        let (config, clock, metrics) = (config.store.clone(), clock.clone(), metrics.clone());
        let open = move || Store::open(&config, clock, metrics);
        let opened = tasks.blocking("open the store", open).await;
        match opened.ok_or_else(|| StartError::System(std::io::Error::other("panicked")))? {
            Err(OpenError::Layout(LayoutError::InUse { is_ending: true, .. })) if !is_late => {
                tokio::time::sleep(FREE_LOOK).await;
            }
            opened => return Ok(opened?),
        }
    }
}

pub(super) fn build_upstreams(
    config: &Config,
    metrics: &Metrics,
    clock: &Clock,
) -> Result<Vec<Upstream>, StartError> {
    let mut upstreams = Vec::new();
    for (config, seed) in config.upstreams.iter().zip(clock.now().0..) {
        upstreams.push(Upstream {
            name: config.name.as_str().into(),
            url: config.url.as_str().into(),
            backend: backend::build(config, metrics, seed)?,
            writes: config.write,
        });
    }
    Ok(upstreams)
}

/// Takes all descriptors that the system lets us have.
pub(super) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Refused is fine: the limits on connections and open segments hold all the same.
    let _ = setrlimit(Resource::Nofile, raised);
}

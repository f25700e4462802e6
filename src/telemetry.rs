//! What operators see: log and metrics.

pub mod log;
pub mod metrics;

pub use metrics::Metrics;

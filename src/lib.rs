//! larder: a per-machine caching proxy daemon for build caches.
//!
//! The map of the house is written below as its rooms are built.

pub mod admin;
pub mod backend;
pub mod cache;
pub mod client;
pub mod config;
pub mod entry;
pub mod frontend;
pub mod git;
pub mod gocache;
pub mod gocacheprog;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod units;
pub mod wire;
pub mod worker;

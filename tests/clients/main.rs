//! Real clients against larder, and the tools that run them.
//!
//! A client that is not installed makes its tests say `SKIPPED`; `LARDER_TEST_CLIENTS=install`
//! installs all. What needs no real client is in `tests/it`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "the other binary lets single calls fail")]
#[path = "../support/failing.rs"]
mod failing;
#[path = "../support/mod.rs"]
mod support;
#[path = "../../benches/support/wan.rs"]
mod wan;

#[expect(dead_code, reason = "what speaks HTTP to a daemon is used by the other binary")]
#[path = "../it/harness.rs"]
mod harness;

mod go;
mod tools_cache_server;
mod tools_go;
mod tools_nginx;
mod tools_wan;

//! The promises of the README, each a test named after it, against a real daemon over real sockets.
//!
//! Nothing here needs a tool that is not on every machine with Rust; real clients are in
//! `tests/clients`. Tests wait for states, never for moments.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "other binaries let single calls fail")]
#[path = "../support/failing.rs"]
mod failing;
mod harness;
#[expect(dead_code, reason = "what needs real clients is used by the other binary")]
#[path = "../support/mod.rs"]
mod support;

mod canary;
mod crash;
mod crowd;
mod curl;
mod demo;
mod doctor;
mod doors;
mod eviction;
mod full;
mod helper;
mod model;
mod outage;
mod passed;
mod prefetch;
mod proxy;
mod run;
mod semantics;
mod tidy;
mod upkeep;

//! larder: a per-machine caching proxy daemon for build caches. This page is the map.
//!
//! Layers, top to bottom; an arrow follows the data and never turns back:
//!
//! ```text
//!   cli ── daemon (wiring) ──────────────┐        client ── gocacheprog   (other processes)
//!            │                           │                      │
//!        frontend   admin   worker       │                      │ index and files, read only
//!            └─────────┴──┬────┘         │                      │
//!                       cache            │                      │
//!                  ┌──────┴──────┐       │                      │
//!                store        backend ◄──┘ builds them        store::reader
//!                  └──────┬──────┘
//!             entry   wire   tasks   telemetry   units
//! ```
//!
//! **A GET**: `frontend::listener` (connection, on one of the `tasks::Lanes`) → `frontend::http`
//! (route, admit) → `Cache::get`: memory, `Store::find` and `load`, absences, else one flight:
//! `cache::fetch` → `backend::guard` → `backend::http` → staged, verified, kept →
//! `frontend::respond`.
//! **A PUT**: … → `Cache::put`: stage, hash, verify, `Store::put` (append, overlay, owe), memory →
//! acknowledged; later `worker::uploader` → backend → settle.
//! **Go's get**: `gocacheprog` reads index and file itself; on a miss a frame over the socket →
//! `frontend::go` → `Cache::get_go`. **Go's put**: the helper places the file, answers go, tells the
//! daemon, which records and owes it.
//! **A prefetch**: a session's hello, or `daemon::prefetch` → `cache::forecast` → `worker::prefetcher`:
//! manifests (`sources`), `plan`, packs in streams → `Cache::keep_ahead`; gets join the flights.
//! **A manifest**: what a `Session` has used → `worker::recorder` at its end: packs, then manifest and
//! trail, as `manifest` encodes them → backend.
//!
//! Invariants that hold everywhere:
//! - A cache may forget; it never lies: nothing is handed out that was not verified.
//! - A fault of the cache is a miss, never an error of the build.
//! - Everything has a limit, named where it is enforced.
//! - `cache` knows no protocol; `frontend` opens no file and calls no backend; `worker` is never
//!   awaited by a request; only `store` touches the store; only `tasks` spawns; only `config` reads
//!   the environment; only `units` reads the clock. A test holds the arrows.
//! - Flights, the store and the uploader's word to those who wait take their locks from `tasks::sync`, so
//!   that `tests/races` can explore their interleavings.

pub mod units;
pub mod wire;

pub mod telemetry;

pub mod tasks;

pub mod entry;
pub mod git;
pub mod gocache;
pub mod manifest;

pub mod backend;
pub mod store;

pub mod cache;

pub mod worker;

pub mod frontend;

pub mod admin;

pub mod client;
pub mod gocacheprog;

pub mod config;

pub mod daemon;

pub mod cli;

#[cfg(fuzzing)]
pub mod fuzzing;

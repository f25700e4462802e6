//! The nouns: what is cached, by what it is named, and how an answer reads.
//!
//! No I/O lives here. Every layer from the wire to the disk speaks in these types.

pub mod action;
pub mod blob;
pub mod body;
pub mod class;
pub mod digest;
pub mod key;

pub use blob::{Blob, COST_MAX_MS, Found, Lookup, Meta, Why};
pub use body::{Body, BodyError, Chunks, Incoming};
pub use class::Class;
pub use digest::{Digest, Hasher};
pub use key::{Id, Key, Kind, RealmId};

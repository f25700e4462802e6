//! Placeholder while the room is being built.
#[derive(Clone, Debug, Default)]
pub struct Config;

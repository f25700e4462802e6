//! Formats that both ends of a connection speak, without cache types.

pub mod go;

//! Where objects come from.

pub mod dir;
pub mod read;

//! Where objects come from.

pub mod read;

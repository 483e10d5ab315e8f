//! The pure core of portcullis: objects in, tables out. No I/O, no clock, no kernel.
#![forbid(unsafe_code)]

pub mod answer;
pub mod backends;
pub mod change;
pub mod compile;
pub mod convert;
pub mod delta;
pub mod desired;
pub mod diff;
pub mod findings;
pub mod frame;
#[cfg(test)]
mod host_tests;
pub mod manifest;
pub mod model;
pub mod select;
pub mod sizes;
#[cfg(test)]
mod testing;
pub mod turn;
pub mod why;
pub mod written;

//! The pure core of portcullis: objects in, tables out. No I/O, no clock, no kernel.
#![forbid(unsafe_code)]

pub mod convert;
pub mod manifest;
pub mod model;

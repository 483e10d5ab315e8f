//! The node agent: reads objects, compiles them with `portcullis_policy`, writes the kernel's maps, attaches
//! the programs, and answers questions.

pub mod api;
pub mod attach;
pub mod bpf;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod health;
pub mod http;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod observe;
pub mod older;
pub mod output;
pub mod preflight;
pub mod reconcile;
mod refused;
pub mod report;
#[cfg(test)]
mod scratch;
pub mod source;
pub mod tables;
pub mod verbs;
pub mod world;

//! The node agent: reads objects, compiles them with `portcullis_policy`, writes the kernel's maps, attaches
//! the programs, and answers questions.

pub mod api;
pub mod attach;
pub mod bpf;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod observe;
pub mod output;
pub mod preflight;
pub mod reconcile;
mod refused;
#[cfg(test)]
mod scratch;
pub mod source;
pub mod verbs;
pub mod world;

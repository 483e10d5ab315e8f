//! The node agent: reads objects, compiles them with `portcullis_policy`, writes the kernel's maps, attaches
//! the programs, and answers questions.

pub mod api;
pub mod attach;
pub mod bpf;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod output;
pub mod preflight;
pub mod reconcile;
#[cfg(test)]
mod scratch;
pub mod source;
pub mod verbs;
pub mod world;

//! The node agent: reads objects, compiles them with `portcullis_policy`, writes the kernel's maps, attaches
//! the programs, and answers questions.

pub mod api;
pub mod attach;
pub mod bpf;
mod changes;
pub mod cli;
pub mod clock;
pub mod cni;
pub mod config;
pub mod daemon;
pub mod firewall;
mod gap;
pub mod health;
mod holds;
pub mod host_side;
pub mod host_status;
pub mod http;
pub mod listen;
pub mod log;
pub mod mark;
pub mod metrics;
mod node_ports;
pub mod observe;
pub mod older;
pub mod output;
pub mod plugin;
pub mod preflight;
pub mod reconcile;
mod refused;
pub mod report;
pub mod rollback;
#[cfg(test)]
mod scratch;
pub mod source;
pub mod tables;
pub mod told;
pub mod verbs;
mod waiting;
pub mod world;

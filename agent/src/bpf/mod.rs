//! The kernel boundary: the one place that makes, writes and reads maps and loads programs. Knows the layout;
//! decides nothing.

pub mod counters;
pub mod events;
pub mod figures;
pub mod flows;
pub mod kernel;
pub mod load;
pub mod probe;
pub mod programs;
pub mod shape;
mod sys;
mod wire;

pub use kernel::Kernel;
pub use load::{BpfError, Pins};

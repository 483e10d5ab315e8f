//! The kernel boundary: the one place that makes, writes and reads maps and loads programs. Knows the layout;
//! decides nothing.

pub mod counters;
pub mod events;
pub mod figures;
pub mod flows;
mod host;
mod inner;
pub mod kernel;
pub mod load;
mod node_ports;
pub mod probe;
pub mod programs;
pub mod shape;
pub(crate) mod sys;
pub(crate) mod wire;

pub use host::network_cookie;
pub use kernel::Kernel;
pub use load::{BpfError, Pins};

//! The node agent: reads objects, compiles them with `portcullis_policy`, writes the kernel's maps, attaches
//! the programs, and answers questions.

pub mod attach;
pub mod bpf;
pub mod world;

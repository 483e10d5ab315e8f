//! What the tests share: from an oracle's cluster to ours, and from our answers to what an oracle says.

pub mod apiserver;
pub mod attached;
pub mod cluster;
pub mod compare;
pub mod device;
pub mod dump;
pub mod edits;
pub mod field;
pub mod flow;
pub mod foreign;
pub mod frames;
pub mod fuzz;
pub mod hosts;
pub mod ipvs;
pub mod kernel;
pub mod lifecycle;
pub mod live;
pub mod privilege;
pub mod runtime;
pub mod seeds;
pub mod services;
pub mod tap;

//! A naive evaluator of Kubernetes NetworkPolicy, the other opinion that the real dataplane is tested against.
//!
//! It owns one reading of the policy semantics, written for obviousness: manifests in, plain structs, and loops
//! over all of them for every question. It must not know the other crates of this workspace, nor share a table,
//! a type or a trick with them. `S1` to `S50` in comments are the numbered statements of the semantics.
//!
//! - [`World`] reads manifests and answers who may reach whom, and which rule says so;
//! - [`hosts`] says what HostPolicies make of nodes and hostNetwork pods (`H1` to `H11`);
//! - [`service`] says whom a Service leads to;
//! - [`generate`] makes random clusters from a seed, valid ones and badly broken ones;
//! - [`cyclonus`] loads the truth matrices that the Cyclonus simulator made;
//! - [`packet`] reads frames, [`endpoint`] says what becomes of them at a pod's interface, and
//!   [`flows`] what they leave there.

pub mod cyclonus;
pub mod endpoint;
pub mod flows;
pub mod generate;
pub mod hosts;
pub mod packet;
pub mod rng;
pub mod service;

mod ip_block;
mod policy;
mod ports;
mod read;
mod selector;
mod verdict;
mod workload;
mod world;

pub use verdict::{
    DirVerdict, Direction, Family, PairVerdict, PolicyKey, Protocol, Reason, Traffic, Verdict,
};
pub use world::World;

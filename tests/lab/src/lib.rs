//! The lab: network namespaces that stand for a node, its pods and the world outside, made from the same
//! manifests that the agent reads, and real connections between them.
//!
//! ```text
//!  pcl-ID-p0 eth0 ── pcl0 ┐                       ┌ lo: every outside address
//!  pcl-ID-p1 eth0 ── pcl1 ┤ pcl-ID-node   uplink ─┴ uplink  pcl-ID-out
//!  pcl-ID-pN eth0 ── pclN ┘
//! ```
//!
//! Pods are routed as by ptp and kindnet: a /32 or /128 route in the node's namespace leads to the host side
//! of each pod's veth pair, and the pod's default route leads back. Or ([`Cni::Bridge`]) they are ports of a
//! bridge as flannel and the bridge plugin make it, and talk to each other without the node. [`Lab`] owns all of it and takes it away
//! when it is dropped. Everything carries the lab's id, so that labs run side by side; nothing here touches
//! the namespace of the machine itself. What a policy means is not known here: the lab only tries.
#![forbid(unsafe_code)]

mod agent;
mod ip;
mod lab;
mod matrix;
pub mod netns;
pub mod plan;
mod pods;
mod probing;
mod samples;
mod serving;
mod shape;
pub mod source;
pub mod state;
mod topology;
pub mod traffic;
pub mod unfit;

pub use agent::{AgentSpec, Hook};
pub use ip::run as ip_batch;
pub use lab::{Lab, LabOptions, Servers};
pub use matrix::{MatrixResult, default_family, default_ports};
pub use serving::run as serve;
pub use shape::Cni;
pub use traffic::{Ask, Client, Family, Outcome, Probe, ProbeOptions, Target};

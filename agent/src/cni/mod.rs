//! No gap at pod start: the CNI plugin, chained behind the primary one, that lets a pod start only when it is enforced
//! ([`plugin`]), and the configuration that puts it there ([`conflist`], [`install`], [`follow`]).
//!
//! Attaching when netlink tells of a new interface loses the race with the pod's first packets in some starts (T15,
//! S31). The runtime runs the plugins of a network before any container of the pod starts, and waits for them.

pub mod conf;
pub mod conflist;
pub mod error;
pub mod follow;
pub mod host;
pub mod install;
pub mod plugin;

/// The plugin's name: of the binary and of its `type` in configurations.
pub const PLUGIN: &str = "portcullis-cni";

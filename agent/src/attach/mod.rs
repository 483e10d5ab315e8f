//! Owns the TC hooks of pods' host-side devices: which device leads to which pod ([`discover`], [`bridge`]), what has to
//! change ([`mod@plan`]), and the change itself ([`exec`]). It must not know policies, maps or the API server.
//!
//! Enforcement outlives the agent. A TCX link is pinned, a clsact filter belongs to its device, and no owner of
//! either is kept in this process: nothing that drops when it ends can detach them. A running program is only
//! ever swapped in place.
//!
//! Everything happens in the network namespace of the calling thread.

pub mod bridge;
pub mod cgroup;
mod clsact;
pub mod conntrack;
pub mod discover;
pub mod exec;
pub mod foreign;
pub mod neighbours;
mod netlink;
pub mod plan;
pub mod pods;
pub mod rules;
pub mod sockets;
mod tcx;
pub mod trial;

use std::error::Error;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use nix::libc;
use portcullis_common::event::Direction;
use thiserror::Error;

pub use bridge::{Bridges, Claim, Placement, Trouble};
pub use discover::{Interface, Lead, Network, Peer, Watch, watch};
pub use exec::{Attacher, Cleanup, Programs, Report, cleanup};
pub use neighbours::{HeldPort, Mac};
pub use plan::{
    AttachOp, Hook, HookChoice, HookError, KernelRelease, Observed, ProgramIds, Role, Slot, State, Why, plan,
};

/// What bpf(2), or the reading of what it made, said.
#[derive(Debug, Error)]
pub enum BpfError {
    /// Of a program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Of a link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Of the interface's name or a descriptor's description.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What went wrong with a hook, by operation and interface.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Netlink refused.
    #[error("{operation} on {interface}: {cause}")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// Name and index.
        interface: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A table of the kernel could not be read.
    #[error("list {what} by netlink: {cause}")]
    List {
        /// Which one.
        what: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The kernel would not ask for an address.
    #[error("ask for a neighbour by netlink: {cause}")]
    Neighbour {
        /// The kernel's answer.
        cause: io::Error,
    },
    /// bpf(2) refused.
    #[error("{operation} {} on {interface}: {}", direction.name(), chain(cause.as_ref()))]
    Program {
        /// What was tried.
        operation: &'static str,
        /// The pod's direction.
        direction: Direction,
        /// Name and index.
        interface: String,
        /// What it said.
        cause: Box<BpfError>,
    },
    /// A new link could not be pinned, and was therefore given up.
    #[error("pin link {}: {}", path.display(), chain(cause.as_ref()))]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Aya's error.
        cause: Box<PinError>,
    },
    /// A pin, or the directory of pins, could not be read or removed.
    #[error("{operation} {}: {cause}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The error.
        cause: io::Error,
    },
    /// The interface got another index, or its name another interface, while we attached.
    #[error("attach {} on {interface}: the interface was renamed meanwhile", direction.name())]
    Renamed {
        /// The pod's direction.
        direction: Direction,
        /// Name and index.
        interface: String,
    },
    /// An `ingress` qdisc is where clsact has to be; the two exclude each other.
    #[error(
        "{interface} has an ingress qdisc, which excludes clsact: use hook tcx (kernel 6.6), or remove it \
         (tc qdisc del dev NAME ingress) and what made it, often a bandwidth plugin"
    )]
    IngressQdisc {
        /// Name and index.
        interface: String,
    },
    /// Somebody else's filter has the priority that ours needs.
    #[error(
        "priority {priority} {} on {interface} is taken by a filter of kind {occupant}: move that filter \
         to a higher number, or use hook tcx (kernel 6.6)",
        direction.name()
    )]
    PriorityTaken {
        /// The pod's direction.
        direction: Direction,
        /// Name and index.
        interface: String,
        /// The priority.
        priority: u16,
        /// Kind, and name where it has one.
        occupant: String,
    },
}

/// An error with its causes: Aya's name the system call and leave what it answered to their source.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// An interface for people: its present name and its index.
fn label(interface: u32) -> String {
    match name(interface) {
        Ok(Some(name)) => format!("{name} (interface {interface})"),
        Ok(None) | Err(_) => format!("interface {interface}"),
    }
}

/// What the kernel tells of a link of ours, of any kind. Asked of procfs: Aya's link information lacks what a link hangs at,
/// and its query of an interface wants `CAP_SYS_ADMIN`.
struct LinkFacts(String);

impl LinkFacts {
    fn read(link: RawFd) -> io::Result<Self> {
        fs::read_to_string(format!("/proc/self/fdinfo/{link}")).map(Self)
    }

    /// The number behind this word.
    fn number<T: FromStr>(&self, key: &str) -> Option<T> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

/// Removes the pin of a link, and with it the link. False if there was none.
fn remove_pin(path: PathBuf) -> Result<bool, AttachError> {
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(AttachError::File { operation: "remove pin", path, cause }),
    }
}

/// Whether the interface has left this network namespace.
fn is_gone(interface: u32) -> bool {
    matches!(name(interface), Ok(None))
}

/// The interface's present name, if it is in this network namespace.
fn name(interface: u32) -> io::Result<Option<String>> {
    match discover::link(interface) {
        Ok(link) => Ok(Some(link.name)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

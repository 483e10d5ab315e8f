//! Owns the two programs at the root of the node's cgroups. Through the one of ingress goes everything that ends at a socket of
//! the node: the backend of a Service may be there, and the host firewall judges what comes in. Through the one of egress, which
//! is there with the host firewall only, goes what sockets of the node send. Their links are pinned in the directory of links:
//! `cgroup-deliver` and `cgroup-host`. Minimum kernel 5.7 (links of cgroups).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::programs::links::{CgroupAttachMode, FdLink};
use aya::programs::{CgroupSkb, CgroupSkbAttachType};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use portcullis_common::event::Direction;

use super::{AttachError, BpfError, LinkFacts, remove_pin};
use crate::bpf::sys;

/// Where cgroups are mounted.
pub const MOUNT: &str = "/sys/fs/cgroup";
/// Where version 2 is in there beside version 1.
const UNIFIED: &str = "unified";
const PIN_IN: &str = "cgroup-deliver";
const PIN_OUT: &str = "cgroup-host";

/// The root of the node's cgroups.
#[derive(Clone, Debug)]
pub struct Root {
    cgroup: PathBuf,
    links: PathBuf,
}

/// The pin of the link for a direction, seen from the node.
const fn pin(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => PIN_IN,
        Direction::Egress => PIN_OUT,
    }
}

/// What a link is attached to, and with which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    cgroup: u64,
    program: u32,
}

/// The directory of cgroup2 that this is, or that is in it beside version 1.
#[must_use]
pub fn below(path: &Path) -> Option<PathBuf> {
    let is_cgroup2 =
        |path: &PathBuf| statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
    [path.to_owned(), path.join(UNIFIED)].into_iter().find(is_cgroup2)
}

impl Root {
    /// A directory of cgroup2, and where links are pinned.
    #[must_use]
    pub fn new(cgroup: &Path, links_dir: &Path) -> Self {
        Self { cgroup: cgroup.to_owned(), links: links_dir.to_owned() }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.cgroup
    }

    /// Brings the program there: attaches it, or swaps it in the link that is there. Nothing to do is nothing done, so the
    /// same call is the audit.
    pub fn bring(&self, direction: Direction, program: &mut CgroupSkb) -> Result<(), AttachError> {
        let failed = |operation, cause: BpfError| self.failed(direction, operation, cause);
        let cgroup = fs::metadata(&self.cgroup).map_err(|e| failed("look at", e.into()))?.ino();
        let id = program.info().map_err(|e| failed("look at the program for", e.into()))?.id();
        match self.found(direction)? {
            Some(found) if found == (Target { cgroup, program: id }) => Ok(()),
            Some(found) if found.cgroup == cgroup => self.replace(direction, program),
            Some(_) | None => self.attach(direction, program),
        }
    }

    /// Takes away what is there for a direction. False if nothing was.
    pub fn remove(&self, direction: Direction) -> Result<bool, AttachError> {
        remove_pin(self.pin(direction))
    }

    fn pin(&self, direction: Direction) -> PathBuf {
        self.links.join(pin(direction))
    }

    fn attach(&self, direction: Direction, program: &mut CgroupSkb) -> Result<(), AttachError> {
        let failed = |cause: BpfError| self.failed(direction, "attach to", cause);
        let cgroup = File::open(&self.cgroup).map_err(|e| failed(e.into()))?;
        let kind = match direction {
            Direction::Ingress => CgroupSkbAttachType::Ingress,
            Direction::Egress => CgroupSkbAttachType::Egress,
        };
        // A link always leaves room for others, and takes no flag that says so (`cgroup_bpf_link_attach`).
        let id = program.attach(cgroup, kind, CgroupAttachMode::Single).map_err(|e| failed(e.into()))?;
        let link = program.take_link(id).map_err(|e| failed(e.into()))?;
        let link = FdLink::try_from(link).map_err(|e| failed(e.into()))?;
        // What was pinned there before hangs elsewhere, or nowhere.
        let path = self.pin(direction);
        remove_pin(path.clone())?;
        link.pin(&path).map_err(|cause| AttachError::Pin { path, cause: Box::new(cause) })?;
        Ok(())
    }

    fn replace(&self, direction: Direction, program: &CgroupSkb) -> Result<(), AttachError> {
        let failed = |cause: BpfError| self.failed(direction, "replace at", cause);
        let link = self.open(direction).map_err(failed)?;
        let program = program.fd().map_err(|e| failed(e.into()))?;
        sys::update_link(link.as_fd(), program.as_fd()).map_err(|e| failed(e.into()))
    }

    /// What is pinned, and still attached.
    fn found(&self, direction: Direction) -> Result<Option<Target>, AttachError> {
        if fs::symlink_metadata(self.pin(direction))
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        {
            return Ok(None);
        }
        let failed = |cause: BpfError| self.failed(direction, "look at the link of", cause);
        let link = self.open(direction).map_err(failed)?;
        Ok(Target::of(&LinkFacts::read(link.as_raw_fd()).map_err(|e| failed(e.into()))?))
    }

    fn open(&self, direction: Direction) -> Result<OwnedFd, BpfError> {
        Ok(sys::pinned(&self.pin(direction))?)
    }

    fn failed(&self, direction: Direction, operation: &'static str, cause: BpfError) -> AttachError {
        AttachError::Program {
            operation,
            direction,
            interface: format!("cgroup {}", self.cgroup.display()),
            cause: Box::new(cause),
        }
    }
}

/// Removes the pins in this directory of links, and with them the links. False if there was none.
pub(super) fn cleanup(links_dir: &Path) -> Result<bool, AttachError> {
    let removed =
        [Direction::Ingress, Direction::Egress].map(|direction| remove_pin(links_dir.join(pin(direction))));
    removed.into_iter().try_fold(false, |any, one| Ok(any | one?))
}

impl Target {
    fn of(link: &LinkFacts) -> Option<Self> {
        Some(Self { cgroup: link.number("cgroup_id")?, program: link.number("prog_id")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_tells_its_cgroup_and_program() {
        let text =
            "pos:\t0\nlink_type:\tcgroup\nlink_id:\t7\nprog_id:\t42\ncgroup_id:\t4611\nattach_type:\t0\n";
        let facts = |text: &str| LinkFacts(text.to_owned());
        assert_eq!(Target::of(&facts(text)), Some(Target { cgroup: 4611, program: 42 }));
        assert_eq!(Target::of(&facts("pos:\t0\nmap_type:\t1\n")), None);
    }
}

//! Owns TCX links and their pins, `tcx-INDEX-DIRECTION` in the directory of links. Minimum kernel 6.6.
//!
//! An interface index is used again after its device is gone, and a link can be detached while its pin stays,
//! so a pin's name is a claim: what the link is attached to is read from the kernel.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, MultiProgLink, SchedClassifier, TcAttachType};
use aya::sys::SyscallError;
use nix::errno::Errno;
use portcullis_common::event::Direction;

use super::plan::{Hook, Observed, Slot, State};
use super::{AttachError, BpfError, LinkFacts, is_gone, label, name, remove_pin};

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of `enum bpf_attach_type`.
const ATTACH_TYPES: (u32, u32) = (46, 47);

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    interface: u32,
    attach_type: u32,
    program: u32,
}

/// Everything with the name of a TCX link of ours. Other pins are left alone. No directory: nothing.
pub(super) fn observed(links_dir: &Path) -> Result<Vec<Observed>, AttachError> {
    let mut found = Vec::new();
    for slot in pinned(links_dir)? {
        match state(links_dir, slot) {
            Ok(state) => found.push(Observed { slot, hook: Hook::Tcx, state }),
            // Gone since the directory was read.
            Err(error) if is_missing(&error) => {}
            Err(cause) => return Err(program_error("open link", slot, cause)),
        }
    }
    Ok(found)
}

/// The places whose pins exist, in order.
pub(super) fn pinned(links_dir: &Path) -> Result<Vec<Slot>, AttachError> {
    let failed = |cause| AttachError::File { operation: "read directory", path: links_dir.to_owned(), cause };
    let entries = match fs::read_dir(links_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut slots = Vec::new();
    for entry in entries {
        slots.extend(entry.map_err(failed)?.file_name().to_str().and_then(slot_of));
    }
    slots.sort_unstable();
    Ok(slots)
}

/// Attaches ahead of every other TCX program and pins the link.
pub(super) fn attach(links_dir: &Path, slot: Slot, program: &mut SchedClassifier) -> Result<(), AttachError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(links_dir).map_err(|cause| {
        AttachError::File { operation: "create directory", path: links_dir.to_owned(), cause }
    })?;
    let failed = |cause: BpfError| program_error("attach tcx", slot, cause);
    let name = name(slot.interface)
        .and_then(|name| name.ok_or_else(|| Errno::ENODEV.into()))
        .map_err(|error| failed(error.into()))?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(&name, side(slot.direction), order).map_err(|e| failed(e.into()))?;
    let link = program.take_link(id).map_err(|e| failed(e.into()))?;
    // Aya attaches by name, and a name can move to another interface.
    if target(&link).map_err(failed)?.is_none_or(|target| !target.is(slot)) {
        return Err(AttachError::Renamed { direction: slot.direction, interface: label(slot.interface) });
    }
    let path = pin_path(links_dir, slot);
    FdLink::try_from(link)
        .map_err(|error| failed(error.into()))?
        .pin(&path)
        .map_err(|cause| AttachError::Pin { path, cause: Box::new(cause) })?;
    Ok(())
}

/// Swaps the program by one `bpf_link_update`.
pub(super) fn replace(
    links_dir: &Path,
    slot: Slot,
    program: &mut SchedClassifier,
) -> Result<(), AttachError> {
    let failed = |cause: BpfError| program_error("replace tcx", slot, cause);
    let link = open(links_dir, slot).map_err(failed)?;
    let id = program.attach_to_link(link).map_err(|e| failed(e.into()))?;
    // Closes our descriptor only: the pin holds the link.
    drop(program.take_link(id).map_err(|e| failed(e.into()))?);
    Ok(())
}

/// Removes the pin, and with it the link. The kernel detaches some milliseconds later.
pub(super) fn remove(links_dir: &Path, slot: Slot) -> Result<(), AttachError> {
    remove_pin(pin_path(links_dir, slot)).map(drop)
}

/// Whether what is pinned under this name does what the name says.
fn state(links_dir: &Path, slot: Slot) -> Result<State, BpfError> {
    let link = match open(links_dir, slot) {
        Ok(link) => link,
        // Something else under our name.
        Err(BpfError::Link(LinkError::InvalidLink)) => return Ok(State::Dead),
        Err(error) => return Err(error),
    };
    Ok(match target(&link)? {
        // A device that was moved to another namespace keeps its link, and often its index.
        Some(target) if target.is(slot) && !is_gone(slot.interface) => {
            State::Live { program: target.program }
        }
        Some(_) | None => State::Dead,
    })
}

fn open(links_dir: &Path, slot: Slot) -> Result<SchedClassifierLink, BpfError> {
    let pinned = PinnedLink::from_pin(pin_path(links_dir, slot))?;
    Ok(SchedClassifierLink::try_from(FdLink::from(pinned))?)
}

/// What a link is attached to.
fn target(link: &SchedClassifierLink) -> Result<Option<Target>, BpfError> {
    Ok(Target::of(&LinkFacts::read(link.fd()?.as_raw_fd())?))
}

impl Target {
    fn of(link: &LinkFacts) -> Option<Self> {
        Some(Self {
            interface: link.number("ifindex")?,
            attach_type: link.number("attach_type")?,
            program: link.number("prog_id")?,
        })
    }

    const fn is(self, slot: Slot) -> bool {
        let expected = match slot.direction {
            Direction::Egress => ATTACH_TYPES.0,
            Direction::Ingress => ATTACH_TYPES.1,
        };
        self.interface == slot.interface && self.attach_type == expected
    }
}

/// The pod's egress is its host-side device's TC ingress.
const fn side(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Egress => TcAttachType::Ingress,
        Direction::Ingress => TcAttachType::Egress,
    }
}

fn pin_path(links_dir: &Path, slot: Slot) -> PathBuf {
    links_dir.join(format!("tcx-{}-{}", slot.interface, slot.direction.name()))
}

fn slot_of(pin: &str) -> Option<Slot> {
    let (interface, direction) = pin.strip_prefix("tcx-")?.split_once('-')?;
    let direction = [Direction::Ingress, Direction::Egress].into_iter().find(|d| d.name() == direction)?;
    Some(Slot { interface: interface.parse().ok()?, direction })
}

fn program_error(operation: &'static str, slot: Slot, cause: BpfError) -> AttachError {
    AttachError::Program {
        operation,
        direction: slot.direction,
        interface: label(slot.interface),
        cause: Box::new(cause),
    }
}

fn is_missing(error: &BpfError) -> bool {
    matches!(
        error,
        BpfError::Link(LinkError::SyscallError(SyscallError { io_error, .. }))
            if io_error.raw_os_error() == Some(Errno::ENOENT as i32)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FDINFO: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t2059\nlink_type:\ttcx\nlink_id:\t7\n\
        prog_tag:\tabcdef0123456789\nprog_id:\t42\nifindex:\t9\nattach_type:\t46 (tcx_ingress)\n";

    #[test]
    fn a_pin_names_its_place() {
        for direction in [Direction::Ingress, Direction::Egress] {
            let slot = Slot { interface: 4_294_967_295, direction };
            let path = pin_path(Path::new("/run"), slot);
            assert_eq!(path.file_name().and_then(|name| name.to_str()).and_then(slot_of), Some(slot));
        }
        for other in ["tcx-7", "tcx-x-egress", "tcx-7-both", "cgroup-egress", "tcx--1-egress"] {
            assert_eq!(slot_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_link_at_tc_ingress_is_the_pods_egress() {
        let target = Target::of(&LinkFacts(FDINFO.to_owned())).expect("a target");
        assert_eq!(target, Target { interface: 9, attach_type: 46, program: 42 });
        assert!(target.is(Slot { interface: 9, direction: Direction::Egress }));
        assert!(!target.is(Slot { interface: 9, direction: Direction::Ingress }));
        assert!(!target.is(Slot { interface: 8, direction: Direction::Egress }));
    }

    #[test]
    fn a_descriptor_of_something_else_is_no_target() {
        assert_eq!(Target::of(&LinkFacts("pos:\t0\nmap_type:\t1\nmap_id:\t3\n".to_owned())), None);
    }
}

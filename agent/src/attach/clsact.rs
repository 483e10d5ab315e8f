//! Owns direct-action filters on the clsact qdisc, for kernels without TCX.
//!
//! A filter has no pin. It is known by its place (priority and handle) and its name, belongs to its device,
//! and stays when its maker ends. Aya's owner of a filter detaches it when dropped and finds interfaces by
//! name, so filters are made here.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::programs::SchedClassifier;
use nix::libc;
use portcullis_common::event::Direction;

use super::netlink::{Attributes, Netlink, Request, push_attribute, text, u32_at};
use super::plan::{Hook, Observed, Role, Slot, State};
use super::{AttachError, is_gone, label};

/// First of all filters. Every filter of one priority has one kind and one protocol.
const PRIORITY: u16 = 1;
/// Ours among the filters of that priority; Cilium and Aya's defaults use 1.
const HANDLE: u32 = 0x706f_7274;

/// `TC_H_CLSACT` of `linux/pkt_sched.h`; its upper half is the qdisc's handle.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` below that handle.
const PARENTS: (u32, u32) = (0xffff_fff2, 0xffff_fff3);
/// `struct tcmsg`.
const TCMSG: usize = 20;
/// `ETH_P_ALL`.
const ANY_PROTOCOL: u16 = 3;
/// `TCA_BPF_*` of `linux/pkt_cls.h`.
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
const BPF_ID: u16 = 11;
const BPF_FLAG_ACT_DIRECT: u32 = 1;
/// `TCA_CHAIN`.
const CHAIN: u16 = 11;

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// The name that `tc filter show` prints.
const fn filter_name(role: Role, direction: Direction) -> &'static str {
    match (role, direction) {
        (Role::Pod, Direction::Ingress) => "portcullis_pod_ingress",
        (Role::Device, Direction::Ingress) => "portcullis_deliver_out",
        (_, Direction::Egress) => "portcullis_pod_egress",
    }
}

/// One filter of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter {
    priority: u16,
    protocol: u16,
    handle: u32,
    chain: u32,
    kind: String,
    name: Option<String>,
    program: Option<u32>,
}

/// What a qdisc at clsact's place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qdisc {
    Clsact,
    Ingress,
}

/// What is left of a device's clsact after we took ours away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leftover {
    /// Somebody else's filters, so the qdisc stays.
    Filters,
    /// Nothing: the qdisc went too.
    Nothing,
}

/// Every filter of ours at its place.
pub(super) fn observed() -> Result<Vec<Observed>, AttachError> {
    let mut netlink = open()?;
    let mut found = Vec::new();
    for interface in interfaces(&mut netlink)? {
        for direction in DIRECTIONS {
            let slot = Slot { interface, direction };
            let filters = filters(&mut netlink, slot)?;
            let ours = filters.iter().find(|filter| filter.is_ours(direction) && filter.is_in_place());
            found.extend(ours.and_then(|filter| filter.program).map(|program| Observed {
                slot,
                hook: Hook::Clsact,
                state: State::Live { program },
            }));
        }
    }
    Ok(found)
}

/// The interfaces that have a clsact qdisc, in order.
pub(super) fn devices() -> Result<Vec<u32>, AttachError> {
    interfaces(&mut open()?)
}

/// Makes the qdisc where it is missing, and the filter.
pub(super) fn attach(slot: Slot, role: Role, program: &SchedClassifier) -> Result<(), AttachError> {
    let mut netlink = open()?;
    add_qdisc(&mut netlink, slot.interface)?;
    let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let Err(cause) = netlink.act(&filter_request(create, slot, role, program)?) else {
        return Ok(());
    };
    let occupant = filters(&mut netlink, slot)?
        .into_iter()
        .find(|other| other.chain == 0 && other.priority == PRIORITY && !other.leaves_room());
    Err(match occupant {
        Some(filter) => AttachError::PriorityTaken {
            direction: slot.direction,
            interface: label(slot.interface),
            priority: PRIORITY,
            occupant: filter.describe(),
        },
        None => failed("add clsact filter", slot, cause),
    })
}

/// Swaps the program in the filter. Without `NLM_F_CREATE` the kernel takes the filter at this place and
/// replaces it by one `list_replace_rcu` (`cls_bpf_change`): a packet sees the old one or the new one.
pub(super) fn replace(slot: Slot, role: Role, program: &SchedClassifier) -> Result<(), AttachError> {
    open()?
        .act(&filter_request(0, slot, role, program)?)
        .map_err(|cause| failed("replace clsact filter", slot, cause))
}

/// Takes away every filter of our name, wherever it sits. The qdisc stays, because its removal loses packets;
/// it goes with its device or by [`remove_unused_qdisc`].
pub(super) fn remove(slot: Slot) -> Result<(), AttachError> {
    let mut netlink = open()?;
    let mut refused = None;
    for filter in filters(&mut netlink, slot)?.iter().filter(|filter| filter.is_ours(slot.direction)) {
        let request = Request::new(libc::RTM_DELTFILTER, 0, &filter.header(slot))
            .with(CHAIN, &filter.chain.to_ne_bytes())
            .with(libc::TCA_KIND, b"bpf\0");
        refused = netlink.act(&request).err().or(refused);
    }
    // What the kernel refused to delete may have gone by itself, so what counts is what is there.
    let Some(cause) = refused else { return Ok(()) };
    if filters(&mut netlink, slot)?.iter().any(|filter| filter.is_ours(slot.direction)) {
        return Err(failed("delete clsact filter", slot, cause));
    }
    Ok(())
}

/// Takes the clsact qdisc away unless somebody's filter is on it. While it does, the kernel deactivates the
/// device's queues for some milliseconds (`qdisc_graft`), and what is sent to the pod then is lost.
pub(super) fn remove_unused_qdisc(interface: u32) -> Result<Leftover, AttachError> {
    let mut netlink = open()?;
    for direction in DIRECTIONS {
        if !filters(&mut netlink, Slot { interface, direction })?.is_empty() {
            return Ok(Leftover::Filters);
        }
    }
    match netlink.act(&qdisc_request(libc::RTM_DELQDISC, 0, interface)) {
        // Gone meanwhile, alone or with its device.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)) => {
            Ok(Leftover::Nothing)
        }
        Err(cause) => {
            Err(AttachError::Netlink { operation: "delete clsact qdisc", interface: label(interface), cause })
        }
        Ok(()) => Ok(Leftover::Nothing),
    }
}

/// The directions in which the device has filters of our name.
pub(super) fn ours(interface: u32) -> Result<Vec<Slot>, AttachError> {
    let mut netlink = open()?;
    let mut slots = Vec::new();
    for direction in DIRECTIONS {
        let slot = Slot { interface, direction };
        if filters(&mut netlink, slot)?.iter().any(|filter| filter.is_ours(direction)) {
            slots.push(slot);
        }
    }
    Ok(slots)
}

/// A filter of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Others {
    pub(super) interface: u32,
    pub(super) direction: Direction,
    pub(super) program: Option<u32>,
    pub(super) label: String,
}

/// The filters of others on every device that has a clsact or an ingress qdisc.
pub(super) fn foreign() -> Result<Vec<Others>, AttachError> {
    let mut netlink = open()?;
    let mut found = Vec::new();
    for (interface, qdisc) in qdiscs(&mut netlink)? {
        let directions = match qdisc {
            Qdisc::Clsact => &DIRECTIONS[..],
            Qdisc::Ingress => &[Direction::Egress],
        };
        for direction in directions {
            let slot = Slot { interface, direction: *direction };
            let filters = match filters(&mut netlink, slot) {
                // Gone meanwhile.
                Err(_) if is_gone(interface) => continue,
                other => other?,
            };
            // A filter that has no handle stands for all of its priority.
            let others = filters.iter().filter(|filter| !filter.is_ours(*direction) && filter.handle != 0);
            found.extend(others.map(|filter| Others {
                interface,
                direction: *direction,
                program: filter.program,
                label: filter.name.clone().unwrap_or_else(|| filter.kind.clone()),
            }));
        }
    }
    Ok(found)
}

fn add_qdisc(netlink: &mut Netlink, interface: u32) -> Result<(), AttachError> {
    let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let cause = match netlink.act(&qdisc_request(libc::RTM_NEWQDISC, create, interface)) {
        Ok(()) => return Ok(()),
        Err(cause) => cause,
    };
    match qdiscs(netlink)?.into_iter().find_map(|(found, kind)| (found == interface).then_some(kind)) {
        Some(Qdisc::Clsact) => Ok(()),
        Some(Qdisc::Ingress) => Err(AttachError::IngressQdisc { interface: label(interface) }),
        None => {
            Err(AttachError::Netlink { operation: "add clsact qdisc", interface: label(interface), cause })
        }
    }
}

fn interfaces(netlink: &mut Netlink) -> Result<Vec<u32>, AttachError> {
    let mut interfaces: Vec<u32> = qdiscs(netlink)?
        .into_iter()
        .filter_map(|(interface, kind)| (kind == Qdisc::Clsact).then_some(interface))
        .collect();
    interfaces.sort_unstable();
    Ok(interfaces)
}

fn qdiscs(netlink: &mut Netlink) -> Result<Vec<(u32, Qdisc)>, AttachError> {
    let request = Request::new(libc::RTM_GETQDISC, 0, &tcmsg(0, 0, 0, 0));
    let messages = netlink.dump(&request).map_err(|cause| AttachError::List { what: "qdiscs", cause })?;
    Ok(messages.iter().filter_map(|body| parse_qdisc(body)).collect())
}

fn parse_qdisc(body: &[u8]) -> Option<(u32, Qdisc)> {
    let kind = match Attributes::find(body, TCMSG, libc::TCA_KIND)? {
        b"clsact\0" => Qdisc::Clsact,
        b"ingress\0" => Qdisc::Ingress,
        _ => return None,
    };
    Some((u32_at(body, 4)?, kind))
}

fn filters(netlink: &mut Netlink, slot: Slot) -> Result<Vec<Filter>, AttachError> {
    let request = Request::new(libc::RTM_GETTFILTER, 0, &tcmsg(slot.interface, 0, parent(slot.direction), 0));
    let messages = netlink.dump(&request).map_err(|cause| failed("list filters", slot, cause))?;
    Ok(messages.iter().filter_map(|body| Filter::parse(body)).collect())
}

impl Filter {
    fn parse(body: &[u8]) -> Option<Self> {
        let info = u32_at(body, 16)?;
        let options = Attributes::find(body, TCMSG, libc::TCA_OPTIONS).unwrap_or_default();
        let kind = text(Attributes::find(body, TCMSG, libc::TCA_KIND)?);
        let is_bpf = kind == "bpf";
        let option = |which| if is_bpf { Attributes::find(options, 0, which) } else { None };
        Some(Self {
            priority: u16::try_from(info >> 16).ok()?,
            protocol: u16::from_be(u16::try_from(info & 0xffff).ok()?),
            handle: u32_at(body, 8)?,
            chain: Attributes::find(body, TCMSG, CHAIN).and_then(|v| u32_at(v, 0)).unwrap_or(0),
            name: option(BPF_NAME).map(text),
            program: option(BPF_ID).and_then(|value| u32_at(value, 0)),
            kind,
        })
    }

    fn is_ours(&self, direction: Direction) -> bool {
        [Role::Pod, Role::Device]
            .iter()
            .any(|role| self.name.as_deref() == Some(filter_name(*role, direction)))
    }

    fn is_in_place(&self) -> bool {
        self.priority == PRIORITY && self.handle == HANDLE && self.chain == 0
    }

    /// Whether ours can stand beside it.
    fn leaves_room(&self) -> bool {
        self.kind == "bpf" && self.protocol == ANY_PROTOCOL && self.handle != HANDLE
    }

    fn header(&self, slot: Slot) -> [u8; TCMSG] {
        let info = u32::from(self.priority) << 16 | u32::from(self.protocol.to_be());
        tcmsg(slot.interface, self.handle, parent(slot.direction), info)
    }

    fn describe(&self) -> String {
        match &self.name {
            Some(name) => format!("{} ({name})", self.kind),
            None => self.kind.clone(),
        }
    }
}

fn filter_request(
    flags: libc::c_int,
    slot: Slot,
    role: Role,
    program: &SchedClassifier,
) -> Result<Request, AttachError> {
    let fd = program.fd().map_err(|cause| AttachError::Program {
        operation: "use program",
        direction: slot.direction,
        interface: label(slot.interface),
        cause: Box::new(cause.into()),
    })?;
    let mut options = Vec::new();
    push_attribute(&mut options, BPF_FD, &fd.as_fd().as_raw_fd().to_ne_bytes());
    push_attribute(&mut options, BPF_NAME, format!("{}\0", filter_name(role, slot.direction)).as_bytes());
    push_attribute(&mut options, BPF_FLAGS, &BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    let info = u32::from(PRIORITY) << 16 | u32::from(ANY_PROTOCOL.to_be());
    let header = tcmsg(slot.interface, HANDLE, parent(slot.direction), info);
    Ok(Request::new(libc::RTM_NEWTFILTER, flags, &header)
        .with(libc::TCA_KIND, b"bpf\0")
        .with(libc::TCA_OPTIONS, &options))
}

fn qdisc_request(kind: u16, flags: libc::c_int, interface: u32) -> Request {
    Request::new(kind, flags, &tcmsg(interface, CLSACT_HANDLE, CLSACT, 0)).with(libc::TCA_KIND, b"clsact\0")
}

/// `struct tcmsg`: family and padding, interface, handle, parent, info (priority and protocol).
fn tcmsg(interface: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut bytes = [0; TCMSG];
    for (word, value) in bytes.chunks_exact_mut(4).skip(1).zip([interface, handle, parent, info]) {
        word.copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

/// The pod's egress is its host-side device's TC ingress.
const fn parent(direction: Direction) -> u32 {
    match direction {
        Direction::Egress => PARENTS.0,
        Direction::Ingress => PARENTS.1,
    }
}

fn open() -> Result<Netlink, AttachError> {
    Netlink::open().map_err(|cause| AttachError::List { what: "filters", cause })
}

fn failed(operation: &'static str, slot: Slot, cause: io::Error) -> AttachError {
    AttachError::Netlink { operation, interface: label(slot.interface), cause }
}

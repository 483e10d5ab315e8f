//! What others have on the interfaces of this network namespace: their programs and filters, their addresses, their
//! chains. Reads only, and decides nothing: [`crate::preflight`] does.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use nix::libc;
use portcullis_common::event::Direction;

use super::netlink::{Attributes, Netlink, Request, bytes_at, text, u32_at};
use super::plan::State;
use super::{AttachError, clsact, tcx};
use crate::bpf::programs::{MultiHook, at_hook};

/// `struct ifinfomsg` and `struct ifaddrmsg`.
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
/// `IFLA_INFO_KIND`, `IFLA_XDP` and what is in it (`linux/if_link.h`): the program's number, and those of each mode
/// where there are several.
const INFO_KIND: u16 = 1;
const XDP: u16 = 43;
const XDP_IDS: [u16; 4] = [4, 5, 6, 7];
/// `struct nfgenmsg`; the subsystem of `nf_tables` (`linux/netfilter/nfnetlink.h`), its request for chains and what an
/// answer holds (`linux/netfilter/nf_tables.h`).
const NFGENMSG: usize = 4;
const GET_CHAIN: u16 = 10 << 8 | 4;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The kind of virtual device.
    pub kind: Option<String>,
    /// The programs at its XDP hook.
    pub xdp: Vec<u32>,
}

/// Where somebody's program or filter hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The XDP hook.
    Xdp,
    /// TCX, at ingress.
    TcxIngress,
    /// TCX, at egress.
    TcxEgress,
    /// A filter of the clsact or ingress qdisc, at ingress.
    TcIngress,
    /// A filter of the clsact qdisc, at egress.
    TcEgress,
    /// The host's end of a netkit pair.
    NetkitPrimary,
    /// The pod's end of a netkit pair.
    NetkitPeer,
}

impl Place {
    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "XDP",
            Self::TcxIngress => "TCX ingress",
            Self::TcxEgress => "TCX egress",
            Self::TcIngress => "TC ingress",
            Self::TcEgress => "TC egress",
            Self::NetkitPrimary => "netkit primary",
            Self::NetkitPeer => "netkit peer",
        }
    }
}

/// Something of somebody else on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The interface's index.
    pub index: u32,
    /// The interface's name.
    pub interface: String,
    /// Where on it.
    pub place: Place,
    /// The program's number; `None` for a filter that runs none.
    pub program: Option<u32>,
    /// What the filter calls itself: its name, else its kind.
    pub label: Option<String>,
}

/// The devices of this network namespace, in the order of their numbers.
pub fn devices() -> Result<Vec<Device>, AttachError> {
    let request = Request::new(libc::RTM_GETLINK, 0, &[0; IFINFOMSG]);
    let links = Netlink::open()
        .and_then(|mut netlink| netlink.dump(&request))
        .map_err(|cause| AttachError::List { what: "links", cause })?;
    let mut devices: Vec<Device> = links.iter().filter_map(|body| parse_device(body)).collect();
    devices.sort_by_key(|device| device.index);
    Ok(devices)
}

/// The addresses of this network namespace.
pub fn addresses() -> Result<BTreeSet<IpAddr>, AttachError> {
    let request = Request::new(libc::RTM_GETADDR, 0, &[0; IFADDRMSG]);
    let found = Netlink::open()
        .and_then(|mut netlink| netlink.dump(&request))
        .map_err(|cause| AttachError::List { what: "addresses", cause })?;
    Ok(found.iter().filter_map(|body| parse_address(body)).collect())
}

/// Those of them that lead others to the node: not what only loopback or one link has.
pub fn node_addresses() -> Result<BTreeSet<IpAddr>, AttachError> {
    let mut addresses = addresses()?;
    addresses.retain(|address| !address.is_loopback() && !is_link_local(*address));
    Ok(addresses)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// What is on these devices and not ours, in their order. Ours are the filters of our names, and the programs of
/// the links pinned in `links_dir`.
pub fn foreign(devices: &[Device], links_dir: &Path) -> Result<Vec<Foreign>, AttachError> {
    let ours: BTreeSet<u32> = tcx::observed(links_dir)?
        .into_iter()
        .filter_map(|observed| match observed.state {
            State::Live { program } => Some(program),
            State::Dead => None,
        })
        .collect();
    let filters = clsact::foreign()?;
    let mut found = Vec::new();
    for device in devices {
        let mut push = |place, program, label| {
            let interface = device.name.clone();
            found.push(Foreign { index: device.index, interface, place, program, label });
        };
        for program in &device.xdp {
            push(Place::Xdp, Some(*program), None);
        }
        for (hook, place) in hooks(device) {
            let programs = at_hook(device.index, hook)
                .map_err(|cause| AttachError::List { what: "programs of an interface", cause })?;
            for program in programs.into_iter().filter(|program| !ours.contains(program)) {
                push(place, Some(program), None);
            }
        }
        for filter in filters.iter().filter(|filter| filter.interface == device.index) {
            let place = match filter.direction {
                Direction::Egress => Place::TcIngress,
                Direction::Ingress => Place::TcEgress,
            };
            push(place, filter.program, Some(filter.label.clone()));
        }
    }
    Ok(found)
}

/// The chains of `nf_tables` in this network namespace as `TABLE/CHAIN`: those that iptables makes by it too. Empty on
/// a kernel without it. To be called where `nf_tables` is there already, for asking may load it.
pub fn chains() -> Result<BTreeSet<String>, AttachError> {
    let request = Request::new(GET_CHAIN, 0, &[0; NFGENMSG]);
    let answer = Netlink::open_netfilter().and_then(|mut netlink| netlink.dump(&request));
    let chains = match answer {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Vec::new(),
        Err(cause) => return Err(AttachError::List { what: "chains of nf_tables", cause }),
        Ok(chains) => chains,
    };
    let name = |body: &[u8]| {
        let part = |kind| Attributes::find(body, NFGENMSG, kind).map(text);
        Some(format!("{}/{}", part(CHAIN_TABLE)?, part(CHAIN_NAME)?))
    };
    Ok(chains.iter().filter_map(|body| name(body)).collect())
}

fn hooks(device: &Device) -> Vec<(MultiHook, Place)> {
    let mut hooks =
        vec![(MultiHook::TcxIngress, Place::TcxIngress), (MultiHook::TcxEgress, Place::TcxEgress)];
    if device.kind.as_deref() == Some("netkit") {
        hooks.push((MultiHook::NetkitPrimary, Place::NetkitPrimary));
        hooks.push((MultiHook::NetkitPeer, Place::NetkitPeer));
    }
    hooks
}

fn parse_device(body: &[u8]) -> Option<Device> {
    let find = |kind| Attributes::find(body, IFINFOMSG, kind);
    let info = find(libc::IFLA_LINKINFO).unwrap_or_default();
    let xdp = find(XDP).unwrap_or_default();
    let ids: BTreeSet<u32> = Attributes::after(xdp, 0)
        .filter(|(kind, _)| XDP_IDS.contains(kind))
        .filter_map(|(_, value)| u32_at(value, 0))
        .filter(|id| *id != 0)
        .collect();
    Some(Device {
        index: u32_at(body, 4)?,
        name: text(find(libc::IFLA_IFNAME)?),
        kind: Attributes::find(info, 0, INFO_KIND).map(text),
        xdp: ids.into_iter().collect(),
    })
}

/// The own address: of a link to a peer the other one is that peer's.
fn parse_address(body: &[u8]) -> Option<IpAddr> {
    let find = |kind| Attributes::find(body, IFADDRMSG, kind);
    let value = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS))?;
    match (i32::from(*body.first()?), value.len()) {
        (libc::AF_INET, 4) => bytes_at::<4>(value, 0).map(IpAddr::from),
        (libc::AF_INET6, 16) => bytes_at::<16>(value, 0).map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::netlink::push_attribute;
    use super::*;

    #[test]
    fn a_device_shows_its_xdp_programs_once_each() {
        let mut body = vec![0; IFINFOMSG];
        body[4] = 7;
        push_attribute(&mut body, libc::IFLA_IFNAME, b"eth0\0");
        let mut xdp = Vec::new();
        push_attribute(&mut xdp, 2, &[2]);
        push_attribute(&mut xdp, 4, &42u32.to_ne_bytes());
        push_attribute(&mut xdp, 5, &42u32.to_ne_bytes());
        push_attribute(&mut xdp, 6, &0u32.to_ne_bytes());
        push_attribute(&mut body, XDP, &xdp);
        let device = Device { index: 7, name: "eth0".to_owned(), kind: None, xdp: vec![42] };
        assert_eq!(parse_device(&body), Some(device));
    }

    #[test]
    fn the_own_address_is_taken_and_not_the_peers() {
        let mut body = vec![2, 32, 0, 0, 1, 0, 0, 0];
        push_attribute(&mut body, libc::IFA_ADDRESS, &[10, 0, 0, 2]);
        push_attribute(&mut body, libc::IFA_LOCAL, &[10, 0, 0, 1]);
        assert_eq!(parse_address(&body), Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))));
        assert_eq!(parse_address(&[]), None);
        assert_eq!(parse_address(&[2, 32, 0, 0]), None);
    }
}

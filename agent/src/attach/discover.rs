//! Owns the question which host-side interface leads to which address, in the network namespace of the calling
//! thread, and the news that the answer may have changed. It must not know pods.
//!
//! An address is led to by a route of the main table to that one address that names a device and no gateway:
//! what ptp, kindnet, the AWS VPC CNI, Calico and the like make for each pod. Pods behind a bridge are found by
//! its forwarding table and neighbours instead: another [`Lead`], another source beside `from_routes`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use nix::libc;
use tokio::net::UnixDatagram;
use tokio::task::spawn_blocking;

use super::AttachError;
use super::netlink::{Attributes, Netlink, Request, bytes_at, listen, text, u16_at, u32_at};

/// `struct ifinfomsg` and `struct rtmsg`.
const IFINFOMSG: usize = 16;
const RTMSG: usize = 12;
/// `IFLA_INFO_KIND` and `IFLA_LINK_NETNSID` of `linux/if_link.h`.
const INFO_KIND: u16 = 1;
const LINK_NETNSID: u16 = 37;
/// `RTA_MULTIPATH`, `RTA_VIA` and `RTA_ENCAP` of `linux/rtnetlink.h`.
const MULTIPATH: u16 = 9;
const VIA: u16 = 18;
const ENCAP: u16 = 22;
/// Most datagrams to take before the news is passed on.
const DRAIN: usize = 4096;

/// How an interface was found to lead to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lead {
    /// By a route to the one address.
    Route,
}

/// The other end of a veth or netkit pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its interface index in its own network namespace.
    pub index: u32,
    /// This namespace's number (`RTM_GETNSID`) for the other end's; none when it is this one, or unnumbered.
    pub namespace: Option<i32>,
}

/// A host-side interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name when asked.
    pub name: String,
    /// Its own hardware address, where it has one of Ethernet's length.
    pub mac: Option<[u8; 6]>,
    /// `ARPHRD_*`: packets start at L2 for 1 (Ethernet), at L3 for 65534 (none).
    pub arphrd: u16,
    /// The kind of virtual device: `veth`, `netkit`, `wireguard`.
    pub kind: Option<String>,
    /// The bridge or VRF that it is a port of.
    pub master: Option<u32>,
    /// The other end, for the kinds that are pairs.
    pub peer: Option<Peer>,
    /// How it was found.
    pub lead: Lead,
}

/// Which interface leads to which address, now.
pub async fn interfaces() -> Result<BTreeMap<IpAddr, Interface>, AttachError> {
    spawn_blocking(interfaces_blocking)
        .await
        .map_err(|cause| AttachError::List { what: "routes", cause: io::Error::other(cause) })?
}

/// [`interfaces`] for callers without a runtime: one dump of the links, one of the routes.
pub fn interfaces_blocking() -> Result<BTreeMap<IpAddr, Interface>, AttachError> {
    let dump = |what, kind, fixed| {
        Netlink::open()
            .and_then(|mut netlink| netlink.dump(&Request::new(kind, 0, fixed)))
            .map_err(|cause| AttachError::List { what, cause })
    };
    let routes = dump("routes", libc::RTM_GETROUTE, &[0; RTMSG])?;
    let links = dump("links", libc::RTM_GETLINK, &[0; IFINFOMSG])?;
    let links: BTreeMap<u32, Interface> =
        links.iter().filter_map(|body| parse_link(body)).map(|link| (link.index, link)).collect();
    let routes: Vec<Route> = routes.iter().filter_map(|body| parse_route(body)).collect();
    Ok(from_routes(&links, &routes))
}

/// The interface with this index. `ENODEV` when there is none.
pub(super) fn link(interface: u32) -> io::Result<Interface> {
    let mut fixed = [0; IFINFOMSG];
    for (byte, value) in fixed.iter_mut().skip(4).zip(interface.to_ne_bytes()) {
        *byte = value;
    }
    let answer = Netlink::open()?.ask(&Request::new(libc::RTM_GETLINK, 0, &fixed))?;
    answer.iter().find_map(|body| parse_link(body)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A route to one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    destination: IpAddr,
    kind: RouteKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RouteKind {
    /// The address is this node's own.
    Local,
    /// Straight to a device.
    Device { interface: u32, metric: u32 },
}

fn from_routes(links: &BTreeMap<u32, Interface>, routes: &[Route]) -> BTreeMap<IpAddr, Interface> {
    // An own address of full length has a route in the main table too.
    let own: BTreeSet<IpAddr> =
        routes.iter().filter(|route| route.kind == RouteKind::Local).map(|route| route.destination).collect();
    let mut best: BTreeMap<IpAddr, (u32, &Interface)> = BTreeMap::new();
    for route in routes.iter().filter(|route| !own.contains(&route.destination)) {
        let RouteKind::Device { interface, metric } = route.kind else { continue };
        let Some(link) = links.get(&interface).filter(|link| link.arphrd != libc::ARPHRD_LOOPBACK) else {
            continue;
        };
        let entry = best.entry(route.destination).or_insert((metric, link));
        if metric < entry.0 {
            *entry = (metric, link);
        }
    }
    best.into_iter().map(|(address, (_, link))| (address, link.clone())).collect()
}

fn parse_link(body: &[u8]) -> Option<Interface> {
    let find = |kind| Attributes::find(body, IFINFOMSG, kind);
    let number = |kind| find(kind).and_then(|value| u32_at(value, 0));
    let info = find(libc::IFLA_LINKINFO).unwrap_or_default();
    let kind = Attributes::find(info, 0, INFO_KIND).map(text);
    let is_pair = matches!(kind.as_deref(), Some("veth" | "netkit"));
    let peer = number(libc::IFLA_LINK).filter(|_| is_pair).map(|index| Peer {
        index,
        namespace: number(LINK_NETNSID).map(u32::cast_signed).filter(|id| *id >= 0),
    });
    Some(Interface {
        index: u32_at(body, 4)?,
        name: text(find(libc::IFLA_IFNAME)?),
        mac: find(libc::IFLA_ADDRESS).and_then(|value| value.try_into().ok()),
        arphrd: u16_at(body, 2)?,
        kind,
        master: number(libc::IFLA_MASTER),
        peer,
        lead: Lead::Route,
    })
}

/// None for prefixes, gateways, several next hops, tunnels' encapsulations and other tables and types.
fn parse_route(body: &[u8]) -> Option<Route> {
    let [family, length, _, _, table, _, _, kind] = bytes_at::<8>(body, 0)?;
    let find = |kind| Attributes::find(body, RTMSG, kind);
    let number = |kind| find(kind).and_then(|value| u32_at(value, 0));
    let destination = find(libc::RTA_DST)?;
    let destination = match (i32::from(family), length) {
        (libc::AF_INET, 32) => IpAddr::from(bytes_at::<4>(destination, 0)?),
        (libc::AF_INET6, 128) => IpAddr::from(bytes_at::<16>(destination, 0)?),
        _ => return None,
    };
    if kind == libc::RTN_LOCAL {
        return Some(Route { destination, kind: RouteKind::Local });
    }
    let indirect = [libc::RTA_GATEWAY, MULTIPATH, VIA, ENCAP];
    let table = number(libc::RTA_TABLE).unwrap_or_else(|| table.into());
    if kind != libc::RTN_UNICAST
        || table != u32::from(libc::RT_TABLE_MAIN)
        || indirect.into_iter().any(|attribute| find(attribute).is_some())
    {
        return None;
    }
    let metric = number(libc::RTA_PRIORITY).unwrap_or(0);
    Some(Route { destination, kind: RouteKind::Device { interface: number(libc::RTA_OIF)?, metric } })
}

/// News of links, addresses and routes.
#[derive(Debug)]
pub struct Watch {
    /// A netlink socket. Of Tokio's types this one asks nothing of a socket but that it is one of datagrams,
    /// and takes it over without the unsafe contract of `AsyncFd`.
    socket: UnixDatagram,
}

/// Starts to listen, inside a Tokio runtime. What happens after this call is heard, so: watch first, then look.
pub fn watch() -> io::Result<Watch> {
    let groups = libc::RTMGRP_LINK
        | libc::RTMGRP_IPV4_IFADDR
        | libc::RTMGRP_IPV4_ROUTE
        | libc::RTMGRP_IPV6_IFADDR
        | libc::RTMGRP_IPV6_ROUTE;
    let socket = listen(groups.cast_unsigned())?;
    Ok(Watch { socket: UnixDatagram::from_std(socket.into())? })
}

impl Watch {
    /// Returns once something has changed since the last call; many changes are one. News that the socket's
    /// buffer had no room for are news too. Can be dropped and called again.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            self.socket.readable().await?;
            if self.drain()? == Heard::Something {
                return Ok(());
            }
        }
    }

    fn drain(&self) -> io::Result<Heard> {
        let mut heard = Heard::Nothing;
        // What a message says is of no interest; the rest of it is cut off.
        let mut buffer = [0; 16];
        for _ in 0..DRAIN {
            match self.socket.try_recv(&mut buffer) {
                Ok(_) => heard = Heard::Something,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard = Heard::Something,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(heard)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Something,
    Nothing,
}

#[cfg(test)]
#[path = "discover_tests.rs"]
mod tests;

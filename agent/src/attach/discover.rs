//! Owns the question which host-side interface leads to which address, in the network namespace of the calling
//! thread, and the news that the answer may have changed. It must not know pods.
//!
//! An address is led to by a route of the main table to that one address that names a device and no gateway:
//! what ptp, kindnet, the AWS VPC CNI, Calico and the like make for each pod. Where the route to an address,
//! that of a whole subnet usually, ends at a bridge instead, [`super::bridge`] finds the port.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::libc;
use tokio::net::UnixDatagram;

use super::AttachError;
use super::neighbours::{Mac, News};
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
/// Bytes of a datagram of news that are looked at: a neighbour's message fits.
const NOTICE: usize = 512;
/// Most datagrams to take before the news is passed on.
const DRAIN: usize = 4096;

/// How an interface was found to lead to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lead {
    /// By a route to the one address.
    Route,
    /// As the port of a bridge at which the address answers.
    Bridge,
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
    pub mac: Option<Mac>,
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
    /// The hardware address of who answers behind it, where it was found by that.
    pub station: Option<Mac>,
}

/// The links and routes of a network namespace at one moment.
#[derive(Clone, Debug, Default)]
pub struct Network {
    links: BTreeMap<u32, Interface>,
    /// By routes to one address.
    straight: BTreeMap<IpAddr, Interface>,
    ways: Ways,
}

impl Network {
    /// What is there now: one dump of the links, one of the routes.
    pub fn look() -> Result<Self, AttachError> {
        let routes = dump("routes", libc::RTM_GETROUTE, &[0; RTMSG])?;
        let links = dump("links", libc::RTM_GETLINK, &[0; IFINFOMSG])?;
        let links = links.iter().filter_map(|body| parse_link(body)).map(|link| (link.index, link)).collect();
        let routes: Vec<Route> = routes.iter().filter_map(|body| parse_route(body)).collect();
        Ok(Self::new(links, &routes))
    }

    fn new(links: BTreeMap<u32, Interface>, routes: &[Route]) -> Self {
        Self { straight: from_routes(&links, routes), ways: Ways::new(&links, routes), links }
    }

    /// These devices, and routes to some of them.
    #[cfg(test)]
    pub(super) fn of(links: impl IntoIterator<Item = Interface>, routes: &[(&str, u32)]) -> Self {
        let route = |(net, interface): &(&str, u32)| Route {
            destination: net.parse().unwrap(),
            kind: RouteKind::Device { interface: *interface, metric: 0 },
        };
        let routes: Vec<Route> = routes.iter().map(route).collect();
        Self::new(links.into_iter().map(|link| (link.index, link)).collect(), &routes)
    }

    /// Which interface a route to one address leads to.
    #[must_use]
    pub const fn straight(&self) -> &BTreeMap<IpAddr, Interface> {
        &self.straight
    }

    /// The bridge that the best route to an address ends at.
    #[must_use]
    pub fn bridge_to(&self, address: IpAddr) -> Option<u32> {
        self.ways.bridge_to(address)
    }

    /// True if a route ends at a bridge.
    #[must_use]
    pub const fn has_bridges(&self) -> bool {
        self.ways.any_bridge
    }

    /// The device with this index.
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Interface> {
        self.links.get(&index)
    }

    /// All veth devices.
    pub fn veths(&self) -> impl Iterator<Item = &Interface> {
        self.links.values().filter(|link| link.is_veth())
    }

    /// All devices but the loopback.
    pub fn devices(&self) -> impl Iterator<Item = &Interface> {
        self.links.values().filter(|link| link.arphrd != libc::ARPHRD_LOOPBACK)
    }

    /// All bridges.
    pub fn bridges(&self) -> impl Iterator<Item = u32> {
        self.links.values().filter(|link| link.kind.as_deref() == Some("bridge")).map(|link| link.index)
    }

    /// The veth devices that are ports of a bridge.
    pub fn ports(&self, bridge: u32) -> impl Iterator<Item = &Interface> {
        self.links.values().filter(move |link| link.master == Some(bridge) && link.is_veth())
    }

    /// A device, if it is a veth port of this bridge.
    #[must_use]
    pub fn port(&self, bridge: u32, index: u32) -> Option<&Interface> {
        self.links.get(&index).filter(|link| link.master == Some(bridge) && link.is_veth())
    }
}

impl Interface {
    /// The node's end of a veth pair, going by its kind.
    #[must_use]
    pub fn is_veth(&self) -> bool {
        self.kind.as_deref() == Some("veth")
    }
}

/// All of one of the kernel's tables.
pub(super) fn dump(what: &'static str, kind: u16, fixed: &[u8]) -> Result<Vec<Vec<u8>>, AttachError> {
    Netlink::open()
        .and_then(|mut netlink| netlink.dump(&Request::new(kind, 0, fixed)))
        .map_err(|cause| AttachError::List { what, cause })
}

/// The interface with this index. `ENODEV` when there is none.
pub(crate) fn link(interface: u32) -> io::Result<Interface> {
    let mut fixed = [0; IFINFOMSG];
    for (byte, value) in fixed.iter_mut().skip(4).zip(interface.to_ne_bytes()) {
        *byte = value;
    }
    let answer = Netlink::open()?.ask(&Request::new(libc::RTM_GETLINK, 0, &fixed))?;
    answer.iter().find_map(|body| parse_link(body)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The interface with this name. `ENODEV` when there is none.
pub(crate) fn link_named(name: &str) -> io::Result<Interface> {
    let name = [name.as_bytes(), &[0]].concat();
    let request = Request::new(libc::RTM_GETLINK, 0, &[0; IFINFOMSG]).with(libc::IFLA_IFNAME, &name);
    let answer = Netlink::open()?.ask(&request)?;
    answer.iter().find_map(|body| parse_link(body)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    destination: IpNet,
    kind: RouteKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RouteKind {
    /// The address is this node's own.
    Local,
    /// Straight to a device.
    Device { interface: u32, metric: u32 },
    /// By a gateway, several next hops or a tunnel, or nowhere.
    Elsewhere { metric: u32 },
}

impl Route {
    /// The address, of a route to one.
    fn host(&self) -> Option<IpAddr> {
        (self.destination.prefix_len() == self.destination.max_prefix_len()).then(|| self.destination.addr())
    }
}

/// Where the best route to an address ends: the longest prefix, then the lowest metric.
#[derive(Clone, Debug, Default)]
struct Ways {
    /// By prefix: metric, and the bridge where one is the end.
    best: BTreeMap<IpNet, (u32, Option<u32>)>,
    /// Prefix lengths that any has.
    lengths: BTreeSet<u8>,
    own: BTreeSet<IpAddr>,
    any_bridge: bool,
}

impl Ways {
    fn new(links: &BTreeMap<u32, Interface>, routes: &[Route]) -> Self {
        let mut ways = Self::default();
        for route in routes {
            let (metric, bridge) = match route.kind {
                RouteKind::Local => {
                    ways.own.extend(route.host());
                    continue;
                }
                RouteKind::Device { interface, metric } => {
                    let is_bridge = |link: &&Interface| link.kind.as_deref() == Some("bridge");
                    (metric, links.get(&interface).filter(is_bridge).map(|link| link.index))
                }
                RouteKind::Elsewhere { metric } => (metric, None),
            };
            ways.any_bridge |= bridge.is_some();
            ways.lengths.insert(route.destination.prefix_len());
            let entry = ways.best.entry(route.destination).or_insert((metric, bridge));
            if metric < entry.0 {
                *entry = (metric, bridge);
            }
        }
        ways
    }

    fn bridge_to(&self, address: IpAddr) -> Option<u32> {
        if self.own.contains(&address) {
            return None;
        }
        let longest = IpNet::from(address).prefix_len();
        let prefix = |length| IpNet::new(address, length).ok().map(|net| net.trunc());
        let mut nets = self.lengths.range(..=longest).rev().filter_map(|length| prefix(*length));
        nets.find_map(|net| self.best.get(&net)).and_then(|(_, bridge)| *bridge)
    }
}

fn from_routes(links: &BTreeMap<u32, Interface>, routes: &[Route]) -> BTreeMap<IpAddr, Interface> {
    // An own address of full length has a route in the main table too.
    let own: BTreeSet<IpAddr> =
        routes.iter().filter(|route| route.kind == RouteKind::Local).filter_map(Route::host).collect();
    let mut best: BTreeMap<IpAddr, (u32, &Interface)> = BTreeMap::new();
    for route in routes {
        let Some(destination) = route.host().filter(|address| !own.contains(address)) else { continue };
        let RouteKind::Device { interface, metric } = route.kind else { continue };
        let Some(link) = links.get(&interface).filter(|link| link.arphrd != libc::ARPHRD_LOOPBACK) else {
            continue;
        };
        let entry = best.entry(destination).or_insert((metric, link));
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
        station: None,
    })
}

/// None for other tables than the main one (the node's own addresses count in any), and for multicast and the
/// like.
fn parse_route(body: &[u8]) -> Option<Route> {
    let [family, length, _, _, table, _, _, kind] = bytes_at::<8>(body, 0)?;
    let find = |kind| Attributes::find(body, RTMSG, kind);
    let number = |kind| find(kind).and_then(|value| u32_at(value, 0));
    // A default route has no destination.
    let bytes = find(libc::RTA_DST).unwrap_or(&[0; 16]);
    let address = match i32::from(family) {
        libc::AF_INET => IpAddr::from(bytes_at::<4>(bytes, 0)?),
        libc::AF_INET6 => IpAddr::from(bytes_at::<16>(bytes, 0)?),
        _ => return None,
    };
    let destination = IpNet::new(address, length).ok()?.trunc();
    if kind == libc::RTN_LOCAL {
        return Some(Route { destination, kind: RouteKind::Local });
    }
    let table = number(libc::RTA_TABLE).unwrap_or_else(|| table.into());
    if table != u32::from(libc::RT_TABLE_MAIN) {
        return None;
    }
    let metric = number(libc::RTA_PRIORITY).unwrap_or(0);
    let indirect = [libc::RTA_GATEWAY, MULTIPATH, VIA, ENCAP];
    let is_straight = indirect.into_iter().all(|attribute| find(attribute).is_none());
    let kind = match (kind, number(libc::RTA_OIF)) {
        (libc::RTN_UNICAST, Some(interface)) if is_straight => RouteKind::Device { interface, metric },
        (libc::RTN_UNICAST | libc::RTN_BLACKHOLE | libc::RTN_UNREACHABLE | libc::RTN_PROHIBIT, _) => {
            RouteKind::Elsewhere { metric }
        }
        _ => return None,
    };
    Some(Route { destination, kind })
}

/// News of links, addresses, routes and neighbours.
#[derive(Debug)]
pub struct Watch {
    /// Which news of neighbours are news.
    neighbours: News,
    /// A netlink socket. Of Tokio's types this one asks nothing of a socket but that it is one of datagrams,
    /// and takes it over without the unsafe contract of `AsyncFd`.
    socket: UnixDatagram,
}

/// Starts to listen, inside a Tokio runtime. What happens after this call is heard, so: watch first, then look.
pub fn watch() -> io::Result<Watch> {
    let groups = libc::RTMGRP_LINK
        | libc::RTMGRP_NEIGH
        | libc::RTMGRP_IPV4_IFADDR
        | libc::RTMGRP_IPV4_ROUTE
        | libc::RTMGRP_IPV6_IFADDR
        | libc::RTMGRP_IPV6_ROUTE;
    let socket = listen(groups.cast_unsigned())?;
    Ok(Watch { neighbours: News::default(), socket: UnixDatagram::from_std(socket.into())? })
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

    fn drain(&mut self) -> io::Result<Heard> {
        let mut heard = Heard::Nothing;
        // What a message says is of interest of neighbours only, and there at its start; the rest is cut off.
        let mut buffer = [0; NOTICE];
        for _ in 0..DRAIN {
            match self.socket.try_recv(&mut buffer) {
                Ok(length) => {
                    if self.neighbours.is_news(buffer.get(..length).unwrap_or_default()) {
                        heard = Heard::Something;
                    }
                }
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

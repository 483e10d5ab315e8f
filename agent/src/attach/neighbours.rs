//! Owns the kernel's tables of neighbours: what ARP and neighbour discovery know, what bridges have heard, how to
//! make the kernel ask, and which messages about them are news. It must not know claims or pods.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use nix::libc;

use super::AttachError;
use super::discover::dump;
use super::netlink::{Attributes, HEADER, Netlink, Request, bytes_at, u16_at, u32_at};

/// `struct ndmsg` of `linux/neighbour.h`.
const NDMSG: usize = 12;
/// `NDA_MASTER` of the same: the bridge of an entry of a forwarding table.
const MASTER: u16 = 9;
/// States in which a neighbour's MAC address is known.
const ANSWERED: u16 = libc::NUD_REACHABLE
    | libc::NUD_STALE
    | libc::NUD_DELAY
    | libc::NUD_PROBE
    | libc::NUD_NOARP
    | libc::NUD_PERMANENT;
/// States that somebody has set, who shall keep them.
const SET: u16 = libc::NUD_NOARP | libc::NUD_PERMANENT;
/// Neighbours of which the last news are remembered; past it all are news again.
const MAX_NEWS: usize = 65_536;

/// A hardware address of Ethernet.
pub type Mac = [u8; 6];

/// A port, and the MAC address behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldPort {
    /// The port's interface index.
    pub port: u32,
    /// The MAC address that its frames bear; none if any may.
    pub station: Option<Mac>,
}

/// What neighbour discovery and bridges have learned.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// By device and address: state, and MAC address where there is one.
    neighbours: BTreeMap<(u32, IpAddr), (u16, Option<Mac>)>,
    /// By bridge and MAC address: ports, several where VLANs are kept apart.
    stations: BTreeMap<(u32, Mac), BTreeSet<u32>>,
}

impl Tables {
    pub(super) fn read() -> Result<Self, AttachError> {
        let of = |what, family: libc::c_int| {
            let mut fixed = [0; NDMSG];
            // The families that are asked for fit a byte.
            fixed[0] = u8::try_from(family).unwrap_or_default();
            dump(what, libc::RTM_GETNEIGH, &fixed)
        };
        let mut tables = Self::default();
        for body in
            of("neighbours", libc::AF_UNSPEC)?.iter().chain(&of("bridges' stations", libc::AF_BRIDGE)?)
        {
            tables.take(Entry::parse(body));
        }
        Ok(tables)
    }

    pub(super) fn take(&mut self, entry: Option<Entry>) {
        match entry {
            Some(Entry::Neighbour { device, address, state, mac }) => {
                self.neighbours.insert((device, address), (state, mac));
            }
            Some(Entry::Station { bridge: Some(bridge), port, mac }) => {
                self.stations.entry((bridge, mac)).or_default().insert(port);
            }
            Some(Entry::Station { bridge: None, .. }) | None => {}
        }
    }

    /// At which port of the bridge an address answers, if at one.
    pub(super) fn answer(&self, bridge: u32, address: IpAddr) -> Option<HeldPort> {
        let (state, mac) = self.neighbours.get(&(bridge, address))?;
        let mac = mac.filter(|_| state & ANSWERED != 0)?;
        let mut ports = self.stations.get(&(bridge, mac))?.iter();
        match (ports.next(), ports.next()) {
            (Some(port), None) => Some(HeldPort { port: *port, station: Some(mac) }),
            (_, _) => None,
        }
    }

    pub(super) fn heard(&self) -> BTreeSet<(u32, Mac, u32)> {
        let of = |((bridge, mac), ports): (&(u32, Mac), &BTreeSet<u32>)| {
            let (bridge, mac) = (*bridge, *mac);
            ports.iter().map(move |port| (bridge, mac, *port)).collect::<Vec<_>>()
        };
        self.stations.iter().flat_map(of).collect()
    }

    /// Lets the kernel ask everybody on the bridge for an address. What it knows it forgets first: it would ask
    /// only whom it knows, and that one can be gone. What somebody has set stays.
    pub(super) fn resolve(&self, netlink: &mut Netlink, (bridge, address): (u32, IpAddr)) -> io::Result<()> {
        if let Some((state, _)) = self.neighbours.get(&(bridge, address)) {
            if state & SET != 0 {
                return Ok(());
            }
            gone_is_fine(netlink.act(&neighbour(libc::RTM_DELNEIGH, 0, 0, bridge, address)))?;
        }
        // `NTF_USE` is the kernel's word for: as if a packet were to be sent there.
        let ask = neighbour(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE, libc::NTF_USE, bridge, address);
        gone_is_fine(netlink.act(&ask))
    }
}

/// An entry, or a bridge, that has gone meanwhile needs no answer; and a full table has room again later.
fn gone_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENOBUFS)) => {
            Ok(())
        }
        other => other,
    }
}

fn neighbour(kind: u16, flags: libc::c_int, how: u8, bridge: u32, address: IpAddr) -> Request {
    let (family, bytes) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let [a, b, c, d] = bridge.to_ne_bytes();
    // Family, padding, interface, state (none), flags, type.
    let fixed = [u8::try_from(family).unwrap_or_default(), 0, 0, 0, a, b, c, d, 0, 0, how, 0];
    Request::new(kind, flags, &fixed).with(libc::NDA_DST, &bytes)
}

/// A neighbour's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Of ARP or of neighbour discovery.
    Neighbour { device: u32, address: IpAddr, state: u16, mac: Option<Mac> },
    /// Of a bridge's forwarding table. The bridge's own MAC addresses are not among them.
    Station { bridge: Option<u32>, port: u32, mac: Mac },
}

impl Entry {
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let family = i32::from(*body.first()?);
        let (device, state) = (u32_at(body, 4)?, u16_at(body, 8)?);
        let find = |kind| Attributes::find(body, NDMSG, kind);
        let mac: Option<Mac> = find(libc::NDA_LLADDR).and_then(|value| value.try_into().ok());
        let address = match family {
            libc::AF_INET => IpAddr::from(bytes_at::<4>(find(libc::NDA_DST)?, 0)?),
            libc::AF_INET6 => IpAddr::from(bytes_at::<16>(find(libc::NDA_DST)?, 0)?),
            libc::AF_BRIDGE if state & libc::NUD_PERMANENT == 0 => {
                let bridge = find(MASTER).and_then(|value| u32_at(value, 0));
                return Some(Self::Station { bridge, port: device, mac: mac? });
            }
            _ => return None,
        };
        Some(Self::Neighbour { device, address, state, mac })
    }
}

/// Tells news of neighbours from the many messages that say the same again: a neighbour in use changes its state
/// every few seconds.
#[derive(Debug, Default)]
pub(super) struct News {
    last: BTreeMap<(u32, Subject), Mac>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Address(IpAddr),
    Station(Mac),
}

impl News {
    /// Whether a datagram says something new. Whatever it cannot read, or is about something else, is.
    pub(super) fn is_news(&mut self, datagram: &[u8]) -> bool {
        let Some(kind @ (libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH)) = u16_at(datagram, 4) else {
            return true;
        };
        if self.last.len() > MAX_NEWS {
            self.last.clear();
        }
        let (subject, mac) = match Entry::parse(datagram.get(HEADER..).unwrap_or_default()) {
            Some(Entry::Neighbour { device, address, state, mac }) => {
                ((device, Subject::Address(address)), mac.filter(|_| state & ANSWERED != 0))
            }
            Some(Entry::Station { port, mac, .. }) => ((port, Subject::Station(mac)), Some(mac)),
            // Proxies, the bridge's own addresses and other families.
            None => return false,
        };
        match mac.filter(|_| kind == libc::RTM_NEWNEIGH) {
            Some(mac) => self.last.insert(subject, mac) != Some(mac),
            // A station that a bridge forgets it may have heard before anybody listened.
            None => self.last.remove(&subject).is_some() || matches!(subject, (_, Subject::Station(_))),
        }
    }
}

#[cfg(test)]
#[path = "neighbours_tests.rs"]
mod tests;

//! Owns the question which port of a bridge leads to which address: what flannel and the bridge plugin make is one
//! route to the whole subnet, which ends at the bridge, and a veth port for each pod. It must not know pods, only
//! claims to addresses.
//!
//! A port is found by two of the kernel's tables: the neighbours of the bridge say which MAC address an IP address
//! has, the bridge's forwarding table says at which port that one was last heard. Both are learned from frames, so
//! an address that nobody has talked to is asked for, by the kernel's own neighbour discovery. What is learned from
//! frames can be forged: an address keeps the port that it was given for as long as port and claim live.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::libc;

use super::AttachError;
use super::discover::{Interface, Lead, Network, dump};
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
/// How long to wait for addresses that are asked for the first time: on one machine an answer takes less than a
/// millisecond, and what waits for it are all other changes.
const PATIENCE: Duration = Duration::from_millis(200);
/// Between two looks for the answer.
const PAUSE: Duration = Duration::from_millis(2);
/// How long an address that did not answer is left alone, at first and at most; doubled each time.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(32);
/// The same where the bridge has heard somebody new meanwhile.
const SHORT_REST: Duration = Duration::from_millis(100);
/// Neighbours of which the last news are remembered; past it all are news again.
const MAX_NEWS: usize = 65_536;

/// A hardware address of Ethernet.
pub type Mac = [u8; 6];

/// Somebody's claim to addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The addresses, of which one is enough to find the port.
    pub addresses: Vec<IpAddr>,
    /// The port that the same claimant has already.
    pub held: Option<u32>,
}

/// Why a claim is not simply placed. The claims are numbered as they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It keeps its port, and answers elsewhere.
    Moved {
        /// The port that it keeps.
        held: String,
        /// Where it answers.
        answers: String,
    },
    /// It answers at the port of another claim: it gets none.
    Taken {
        /// The port.
        port: String,
        /// The other claim.
        by: usize,
    },
    /// It answers at the same port as another that has none yet: neither gets it.
    Shared {
        /// The port.
        port: String,
        /// The other claim.
        with: usize,
    },
}

/// Which ports lead to what is claimed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Ports, by the claimed address.
    pub interfaces: BTreeMap<IpAddr, Interface>,
    /// Ports that must carry nothing but neighbour discovery until it is clear whose they are.
    pub quarantined: BTreeMap<u32, Interface>,
    /// What is wrong, by the number of the claim.
    pub troubles: BTreeMap<usize, Trouble>,
}

/// Finds ports, and remembers what was found and asked.
#[derive(Debug, Default)]
pub struct Bridges {
    /// Addresses that did not answer: how often they were asked, and when last.
    asked: BTreeMap<(u32, IpAddr), (u32, Instant)>,
    /// Ports of addresses, from earlier. One that carries nothing cannot answer any more.
    known: BTreeMap<IpAddr, u32>,
    /// Who was heard where when last looked.
    heard: BTreeSet<(u32, Mac, u32)>,
    quarantined: BTreeSet<u32>,
}

impl Bridges {
    /// Places the claims whose addresses are behind bridges. Asks for addresses that nothing is known of, and
    /// waits for those that are asked for the first time, [`PATIENCE`] at most.
    pub fn place(&mut self, network: &Network, claims: &[Claim]) -> Result<Placement, AttachError> {
        if !network.has_bridges() {
            *self = Self::default();
            return Ok(Placement::default());
        }
        let mut tables = Tables::read()?;
        let mut decision = decide(network, &tables, claims, &self.known, &self.quarantined);
        let mut fresh = self.ask(&tables, &decision.unanswered)?;
        let deadline = Instant::now() + PATIENCE;
        while !fresh.is_empty() && Instant::now() < deadline {
            sleep(PAUSE);
            tables = Tables::read()?;
            decision = decide(network, &tables, claims, &self.known, &self.quarantined);
            fresh.retain(|asked| decision.unanswered.contains_key(asked));
        }
        self.asked.retain(|asked, _| decision.unanswered.contains_key(asked));
        self.heard = tables.heard();
        for (address, port) in &decision.placement.interfaces {
            self.known.insert(*address, port.index);
        }
        self.quarantined = decision.placement.quarantined.keys().copied().collect();
        Ok(decision.placement)
    }

    /// Asks for the addresses whose turn it is; returns those that somebody waits for, asked for the first time.
    fn ask(
        &mut self,
        tables: &Tables,
        unanswered: &BTreeMap<(u32, IpAddr), Urgency>,
    ) -> Result<BTreeSet<(u32, IpAddr)>, AttachError> {
        let now = Instant::now();
        let is_news = tables.heard().difference(&self.heard).next().is_some();
        let mut fresh = BTreeSet::new();
        let mut netlink = None;
        for (at, urgency) in unanswered {
            let times = match self.asked.get(at) {
                None => 0,
                Some((times, last)) => {
                    let rest = if is_news { SHORT_REST } else { rest_after(*times) };
                    if now.duration_since(*last) < rest {
                        continue;
                    }
                    *times
                }
            };
            if times == 0 && *urgency == Urgency::Waited {
                fresh.insert(*at);
            }
            self.asked.insert(*at, (times.saturating_add(1), now));
            let netlink = match &mut netlink {
                Some(netlink) => netlink,
                none @ None => none.insert(Netlink::open().map_err(cannot_ask)?),
            };
            tables.resolve(netlink, *at).map_err(cannot_ask)?;
        }
        Ok(fresh)
    }
}

fn cannot_ask(cause: io::Error) -> AttachError {
    AttachError::Neighbour { cause }
}

fn rest_after(times: u32) -> Duration {
    let factor = 1u32.checked_shl(times.saturating_sub(1)).unwrap_or(u32::MAX);
    REST.saturating_mul(factor).min(LONGEST_REST)
}

/// How much an answer matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// The port is known; the bridge should not forget it, or it floods.
    Refresh,
    /// There is no port without it.
    Waited,
}

#[derive(Debug, Default)]
struct Decision {
    placement: Placement,
    unanswered: BTreeMap<(u32, IpAddr), Urgency>,
}

/// What is known of a claim's place.
enum Place {
    /// No address is behind a bridge.
    NotBridged,
    /// It keeps this port of this bridge.
    Held(u32, u32),
    /// It answers at this port of this bridge.
    Answers(u32, u32),
    /// It answers at a port that is no veth: another machine's.
    Elsewhere,
    Unknown,
}

/// Places claims by what the tables say. Whoever holds a port keeps it; of the others each port takes one.
fn decide(
    network: &Network,
    tables: &Tables,
    claims: &[Claim],
    known: &BTreeMap<IpAddr, u32>,
    quarantined: &BTreeSet<u32>,
) -> Decision {
    let mut decision = Decision::default();
    let mut owners: BTreeMap<u32, usize> = BTreeMap::new();
    let mut takers: BTreeMap<u32, Vec<(usize, u32)>> = BTreeMap::new();
    // A bridge that leads to a claim, and the trouble that is on it.
    let mut unclear: BTreeSet<u32> = BTreeSet::new();
    for (number, claim) in claims.iter().enumerate() {
        let behind: Vec<(u32, IpAddr)> = behind_bridges(network, claim).collect();
        let heard: Vec<(u32, u32)> =
            behind.iter().filter_map(|(bridge, a)| Some((*bridge, tables.port(*bridge, *a)?))).collect();
        let urgency = match place_of(network, claim, &behind, &heard, known) {
            Place::NotBridged | Place::Elsewhere => continue,
            Place::Held(bridge, port) => {
                owners.insert(port, number);
                if let Some((_, other)) = heard.iter().find(|(_, heard)| *heard != port) {
                    let held = network.port(bridge, port).map(Interface::label).unwrap_or_default();
                    let trouble = Trouble::Moved { held, answers: label(network, bridge, *other) };
                    decision.placement.troubles.insert(number, trouble);
                }
                Urgency::Refresh
            }
            Place::Answers(bridge, port) => {
                takers.entry(port).or_default().push((number, bridge));
                Urgency::Refresh
            }
            Place::Unknown => Urgency::Waited,
        };
        // One address that answers is enough, and a wrong answer is asked for again.
        if heard.is_empty() || decision.placement.troubles.contains_key(&number) {
            decision.unanswered.extend(behind.iter().map(|at| (*at, urgency)));
        }
    }
    for (port, claimants) in takers {
        let taken = owners.get(&port).copied();
        for (position, (number, bridge)) in claimants.iter().enumerate() {
            let other = claimants.iter().enumerate().find(|(p, _)| *p != position).map(|(_, (n, _))| *n);
            let name = label(network, *bridge, port);
            let trouble = match (taken, other) {
                (Some(by), _) => Trouble::Taken { port: name, by },
                (None, Some(with)) => Trouble::Shared { port: name, with },
                (None, None) => {
                    owners.insert(port, *number);
                    continue;
                }
            };
            unclear.insert(*bridge);
            decision.placement.troubles.insert(*number, trouble);
            let again = claims.get(*number).into_iter().flat_map(|claim| behind_bridges(network, claim));
            decision.unanswered.extend(again.map(|at| (at, Urgency::Refresh)));
        }
    }
    for (port, number) in &owners {
        for address in claims.get(*number).into_iter().flat_map(|claim| &claim.addresses) {
            let port = network.bridge_to(*address).and_then(|bridge| network.port(bridge, *port));
            decision.placement.interfaces.extend(port.map(|port| (*address, port.behind_bridge())));
        }
    }
    // Somebody lies about addresses, and it may be a port that nobody knows.
    let suspects = unclear.iter().flat_map(|bridge| network.ports(*bridge));
    let still =
        network.bridges().flat_map(|bridge| network.ports(bridge)).filter(|p| quarantined.contains(&p.index));
    let free = suspects.chain(still).filter(|port| !owners.contains_key(&port.index));
    decision.placement.quarantined = free.map(|port| (port.index, port.behind_bridge())).collect();
    decision
}

fn behind_bridges(network: &Network, claim: &Claim) -> impl Iterator<Item = (u32, IpAddr)> {
    claim.addresses.iter().filter_map(|address| Some((network.bridge_to(*address)?, *address)))
}

fn place_of(
    network: &Network,
    claim: &Claim,
    behind: &[(u32, IpAddr)],
    heard: &[(u32, u32)],
    known: &BTreeMap<IpAddr, u32>,
) -> Place {
    if behind.is_empty() {
        return Place::NotBridged;
    }
    let is_port = |bridge: u32, port: u32| network.port(bridge, port).is_some();
    if let Some(port) = claim.held
        && let Some((bridge, _)) = behind.iter().find(|(bridge, _)| is_port(*bridge, port))
    {
        return Place::Held(*bridge, port);
    }
    if let Some((bridge, port)) = heard.iter().find(|(bridge, port)| is_port(*bridge, *port)) {
        return Place::Answers(*bridge, *port);
    }
    if !heard.is_empty() {
        return Place::Elsewhere;
    }
    let earlier = behind.iter().filter_map(|(bridge, address)| Some((*bridge, *known.get(address)?)));
    match earlier.filter(|(bridge, port)| is_port(*bridge, *port)).last() {
        Some((bridge, port)) => Place::Answers(bridge, port),
        None => Place::Unknown,
    }
}

fn label(network: &Network, bridge: u32, port: u32) -> String {
    network.port(bridge, port).map_or_else(|| format!("interface {port}"), Interface::label)
}

impl Interface {
    fn label(&self) -> String {
        format!("{} (interface {})", self.name, self.index)
    }

    fn behind_bridge(&self) -> Self {
        Self { lead: Lead::Bridge, ..self.clone() }
    }
}

/// What neighbour discovery and bridges have learned.
#[derive(Debug, Default)]
struct Tables {
    /// By device and address: state, and MAC address where there is one.
    neighbours: BTreeMap<(u32, IpAddr), (u16, Option<Mac>)>,
    /// By bridge and MAC address: ports, several where VLANs are kept apart.
    stations: BTreeMap<(u32, Mac), BTreeSet<u32>>,
}

impl Tables {
    fn read() -> Result<Self, AttachError> {
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

    fn take(&mut self, entry: Option<Entry>) {
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
    fn port(&self, bridge: u32, address: IpAddr) -> Option<u32> {
        let (state, mac) = self.neighbours.get(&(bridge, address))?;
        let mac = mac.filter(|_| state & ANSWERED != 0)?;
        let mut ports = self.stations.get(&(bridge, mac))?.iter();
        match (ports.next(), ports.next()) {
            (Some(port), None) => Some(*port),
            (_, _) => None,
        }
    }

    fn heard(&self) -> BTreeSet<(u32, Mac, u32)> {
        let of = |((bridge, mac), ports): (&(u32, Mac), &BTreeSet<u32>)| {
            let (bridge, mac) = (*bridge, *mac);
            ports.iter().map(move |port| (bridge, mac, *port)).collect::<Vec<_>>()
        };
        self.stations.iter().flat_map(of).collect()
    }

    /// Lets the kernel ask everybody on the bridge for an address. What it knows it forgets first: it would ask
    /// only whom it knows, and that one can be gone. What somebody has set stays.
    fn resolve(&self, netlink: &mut Netlink, (bridge, address): (u32, IpAddr)) -> io::Result<()> {
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
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// Of ARP or of neighbour discovery.
    Neighbour { device: u32, address: IpAddr, state: u16, mac: Option<Mac> },
    /// Of a bridge's forwarding table. The bridge's own MAC addresses are not among them.
    Station { bridge: Option<u32>, port: u32, mac: Mac },
}

impl Entry {
    fn parse(body: &[u8]) -> Option<Self> {
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
    last: BTreeMap<(u32, Subject), Option<Mac>>,
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
            Some(mac) => self.last.insert(subject, Some(mac)) != Some(Some(mac)),
            None => self.last.remove(&subject).is_some(),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moved { held, answers } => {
                write!(f, "answers at {answers} too, and {held} is still there: it stays at {held}")
            }
            Self::Taken { port, .. } => write!(f, "answers at {port}, which is another pod's"),
            Self::Shared { port, .. } => write!(f, "answers at {port}, as another pod does"),
        }
    }
}

#[cfg(test)]
#[path = "bridge_tests.rs"]
mod tests;

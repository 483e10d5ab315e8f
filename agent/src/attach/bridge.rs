//! Owns the question which port of a bridge leads to which address: what flannel and the bridge plugin make is one
//! route to the whole subnet, which ends at the bridge, and a veth port for each pod. It must not know pods, only
//! claims to addresses.
//!
//! A port is found by two of the kernel's tables: the neighbours of the bridge say which MAC address an IP address
//! has, the bridge's forwarding table says at which port that one was last heard. Both are learned from frames, so
//! an address that nobody has talked to is asked for, by the kernel's own neighbour discovery. What is learned from
//! frames can be forged: an address keeps the port that it was given for as long as port and claim live.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::AttachError;
use super::discover::{Interface, Lead, Network};
use super::neighbours::{HeldPort, Mac, Tables};
use super::netlink::Netlink;

/// How long to wait for addresses that are asked for the first time: on one machine an answer takes less than a
/// millisecond, and what waits for it are all other changes.
const PATIENCE: Duration = Duration::from_millis(200);
/// Between two looks for the answer.
const PAUSE: Duration = Duration::from_millis(2);
/// After how many questions without an answer the claimant may have another MAC address: seven seconds.
const FORGET_AFTER: u32 = 3;
/// How long an address that did not answer is left alone, at first and at most; doubled each time.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(32);
/// The same where the bridge has heard somebody new meanwhile.
const SHORT_REST: Duration = Duration::from_millis(100);
/// Somebody's claim to addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The addresses, of which one is enough to find the port.
    pub addresses: Vec<IpAddr>,
    /// What the same claimant has already.
    pub held: Option<HeldPort>,
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

impl Trouble {
    /// What is wrong and what to do, where claims are those of pods with these names.
    pub fn tell(&self, name: impl Fn(usize) -> String) -> String {
        let look = "look for a pod that forges ARP or MAC addresses, and drop NET_RAW from it";
        match self {
            Self::Moved { held, answers } => {
                format!("answers at {answers}, and {held} is still there: it stays at {held}; {look}")
            }
            Self::Taken { port, by } => {
                let by = name(*by);
                format!(
                    "answers at {port}, which is Pod {by}'s: it is not found, and ports of nobody are closed; {look}"
                )
            }
            Self::Shared { port, with } => {
                let with = name(*with);
                format!(
                    "answers at {port}, and so does Pod {with}: neither is found, and ports of nobody are closed; {look}"
                )
            }
        }
    }
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
    /// Where addresses were, from earlier. A port that carries nothing cannot answer any more.
    known: BTreeMap<IpAddr, HeldPort>,
    /// Who was heard where when last looked.
    heard: BTreeSet<(u32, Mac, u32)>,
    quarantined: BTreeSet<u32>,
}

impl Bridges {
    /// Places the claims whose addresses are behind bridges. Asks for addresses that nothing is known of, and
    /// waits for those that are asked for the first time, 200 ms at most.
    pub fn place(&mut self, network: &Network, claims: &[Claim]) -> Result<Placement, AttachError> {
        if !network.has_bridges() {
            *self = Self::default();
            return Ok(Placement::default());
        }
        let mut tables = Tables::read()?;
        let mut decision = decide(network, &tables, claims, self);
        let mut fresh = self.ask(&tables, &decision.unanswered)?;
        let deadline = Instant::now() + PATIENCE;
        while !fresh.is_empty() && Instant::now() < deadline {
            sleep(PAUSE);
            tables = Tables::read()?;
            decision = decide(network, &tables, claims, self);
            fresh.retain(|asked| decision.unanswered.contains_key(asked));
        }
        self.asked.retain(|asked, _| decision.unanswered.contains_key(asked));
        self.heard = tables.heard();
        for (address, port) in &decision.placement.interfaces {
            self.known.insert(*address, HeldPort { port: port.index, station: port.station });
        }
        self.quarantined = decision.placement.quarantined.keys().copied().collect();
        Ok(decision.placement)
    }

    /// Takes over what was quarantined by an earlier agent.
    pub fn restore(&mut self, quarantined: impl IntoIterator<Item = u32>) {
        self.quarantined.extend(quarantined);
    }

    /// Whether addresses have been silent for so long that they may have moved to another MAC address.
    fn is_silent(&self, behind: &[(u32, IpAddr)]) -> bool {
        behind.iter().any(|at| self.asked.get(at).is_some_and(|(times, _)| *times >= FORGET_AFTER))
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
                none @ None => {
                    none.insert(Netlink::open().map_err(|cause| AttachError::Neighbour { cause })?)
                }
            };
            // An address that the kernel refuses must not keep the others from being enforced.
            if let Err(error) = tables.resolve(netlink, *at) {
                tracing::warn!("asking for {} on interface {}: {error}", at.1, at.0);
            }
        }
        Ok(fresh)
    }
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
    /// It keeps what it has, at this bridge.
    Held(u32, HeldPort),
    /// It answers there, at this bridge.
    Answers(u32, HeldPort),
    /// No address is behind a bridge; or it answers at a port that is no veth, another machine's.
    Elsewhere,
    Unknown,
}

/// Places claims by what the tables say. Whoever holds a port keeps it; of the others each port takes one.
fn decide(network: &Network, tables: &Tables, claims: &[Claim], bridges: &Bridges) -> Decision {
    let mut decision = Decision::default();
    let mut owners: BTreeMap<u32, (usize, Option<Mac>)> = BTreeMap::new();
    let mut takers: BTreeMap<u32, Vec<(usize, u32, Option<Mac>)>> = BTreeMap::new();
    // A bridge that leads to a claim, and the trouble that is on it.
    let mut unclear: BTreeSet<u32> = BTreeSet::new();
    for (number, claim) in claims.iter().enumerate() {
        let behind: Vec<(u32, IpAddr)> = behind_bridges(network, claim).collect();
        let heard: Vec<(u32, HeldPort)> =
            behind.iter().filter_map(|(bridge, a)| Some((*bridge, tables.answer(*bridge, *a)?))).collect();
        let urgency = match place_of(network, claim, &behind, &heard, bridges) {
            Place::Elsewhere => continue,
            Place::Held(bridge, HeldPort { port, station }) => {
                owners.insert(port, (number, station));
                if let Some((_, other)) = heard.iter().find(|(_, heard)| heard.port != port) {
                    let held = network.port(bridge, port).map(Interface::label).unwrap_or_default();
                    let trouble = Trouble::Moved { held, answers: label(network, bridge, other.port) };
                    decision.placement.troubles.insert(number, trouble);
                }
                Urgency::Refresh
            }
            Place::Answers(bridge, HeldPort { port, station }) => {
                takers.entry(port).or_default().push((number, bridge, station));
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
        let taken = owners.get(&port).map(|(number, _)| *number);
        for (number, bridge, station) in &claimants {
            let other = claimants.iter().map(|(other, _, _)| *other).find(|other| other != number);
            let name = label(network, *bridge, port);
            let trouble = match (taken, other) {
                (Some(by), _) => Trouble::Taken { port: name, by },
                (None, Some(with)) => Trouble::Shared { port: name, with },
                (None, None) => {
                    owners.insert(port, (*number, *station));
                    continue;
                }
            };
            unclear.insert(*bridge);
            decision.placement.troubles.insert(*number, trouble);
            let again = claims.get(*number).into_iter().flat_map(|claim| behind_bridges(network, claim));
            decision.unanswered.extend(again.map(|at| (at, Urgency::Refresh)));
        }
    }
    for (port, (number, station)) in &owners {
        for address in claims.get(*number).into_iter().flat_map(|claim| &claim.addresses) {
            let port = network.bridge_to(*address).and_then(|bridge| network.port(bridge, *port));
            decision.placement.interfaces.extend(port.map(|port| (*address, port.behind_bridge(*station))));
        }
    }
    // Somebody lies about addresses, and it may be a port that nobody knows.
    let suspects = unclear.iter().flat_map(|bridge| network.ports(*bridge));
    let still = network
        .bridges()
        .flat_map(|bridge| network.ports(bridge))
        .filter(|p| bridges.quarantined.contains(&p.index));
    let free = suspects.chain(still).filter(|port| !owners.contains_key(&port.index));
    decision.placement.quarantined = free.map(|port| (port.index, port.behind_bridge(None))).collect();
    decision
}

fn behind_bridges(network: &Network, claim: &Claim) -> impl Iterator<Item = (u32, IpAddr)> {
    claim.addresses.iter().filter_map(|address| Some((network.bridge_to(*address)?, *address)))
}

fn place_of(
    network: &Network,
    claim: &Claim,
    behind: &[(u32, IpAddr)],
    heard: &[(u32, HeldPort)],
    bridges: &Bridges,
) -> Place {
    let is_port = |bridge: u32, port: u32| network.port(bridge, port).is_some();
    if let Some(held) = claim.held
        && let Some((bridge, _)) = behind.iter().find(|(bridge, _)| is_port(*bridge, held.port))
    {
        let answer =
            heard.iter().find(|(_, heard)| heard.port == held.port).and_then(|(_, heard)| heard.station);
        let kept = held.station.filter(|_| !bridges.is_silent(behind));
        return Place::Held(*bridge, HeldPort { station: answer.or(kept), ..held });
    }
    if let Some((bridge, heard)) = heard.iter().find(|(bridge, heard)| is_port(*bridge, heard.port)) {
        return Place::Answers(*bridge, *heard);
    }
    if behind.is_empty() || !heard.is_empty() {
        return Place::Elsewhere;
    }
    let mut earlier =
        behind.iter().filter_map(|(bridge, address)| Some((*bridge, *bridges.known.get(address)?)));
    match earlier.find(|(bridge, held)| is_port(*bridge, held.port)) {
        Some((bridge, held)) => Place::Answers(bridge, held),
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

    pub(crate) fn behind_bridge(&self, station: Option<Mac>) -> Self {
        Self { lead: Lead::Bridge, station, ..self.clone() }
    }
}

#[cfg(test)]
#[path = "bridge_tests.rs"]
mod tests;

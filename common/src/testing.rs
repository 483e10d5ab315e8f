//! What this crate's tests are built from: a random generator of fixed seeds, frames, and an environment in
//! memory.

use core::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use crate::addr::{Addr, mix64};
use crate::classify::Tables;
use crate::event::Direction;
use crate::judge::{At, Environment, Flows, Origin, Verdict, Work, judge};
use crate::packet::{ICMP, ICMPV6, Link, Packet, SCTP, TCP, UDP, parse};
use crate::wire::{
    CLASS_NONE, ENDPOINT_USED, EndpointConfig, EndpointWord, FlowEntry, FlowKey, MAX_ENDPOINT_ADDRS,
    PORT_RANGE_END, PeerRowKey, PeerRowWord, PeerWord, PortRange, ROW_BITS, RULESET_OPEN, Row, Rule, Ruleset,
};

/// splitmix64: the same numbers on every machine.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.0)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.next() % u64::from(end)).unwrap()
    }

    /// One of `n` times.
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(u32::try_from(of.len()).unwrap()) as usize]
    }

    pub(crate) fn bytes(&mut self, len: u32) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }
}

pub(crate) const POD4: Addr = Addr::v4([10, 0, 0, 1]);
pub(crate) const PEER4: Addr = Addr::v4([10, 0, 0, 2]);
pub(crate) const POD6: Addr = v6([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
pub(crate) const PEER6: Addr = v6([0xfd00, 0, 0, 0, 0, 0, 0, 2]);
pub(crate) const LINK_LOCAL: Addr = v6([0xfe80, 0, 0, 0, 0, 0, 0, 9]);

/// An IPv6 address of its eight groups.
pub(crate) const fn v6(groups: [u16; 8]) -> Addr {
    let mut bytes = [0; 16];
    let mut at = 0;
    while at < 8 {
        let [high, low] = groups[at].to_be_bytes();
        bytes[2 * at] = high;
        bytes[2 * at + 1] = low;
        at += 1;
    }
    Addr::v6(bytes)
}

pub(crate) fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = std::vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet; options have to be whole words.
pub(crate) fn ipv4_with(
    options: &[u8],
    fragment: u16,
    protocol: u8,
    (src, dst): (Addr, Addr),
    payload: &[u8],
) -> Vec<u8> {
    assert!(options.len().is_multiple_of(4) && src.is_v4() && dst.is_v4());
    let header = 20 + options.len();
    let mut packet = std::vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
    packet.extend(u16::try_from(header + payload.len()).unwrap().to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(&src.bytes[12..]);
    packet.extend(&dst.bytes[12..]);
    packet.extend(options);
    packet.extend(payload);
    packet
}

pub(crate) fn ipv4(protocol: u8, ends: (Addr, Addr), payload: &[u8]) -> Vec<u8> {
    ipv4_with(&[], 0, protocol, ends, payload)
}

pub(crate) fn ipv6_with(next: u8, hops: u8, (src, dst): (Addr, Addr), payload: &[u8]) -> Vec<u8> {
    let mut packet = std::vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(src.bytes);
    packet.extend(dst.bytes);
    packet.extend(payload);
    packet
}

pub(crate) fn ipv6(next: u8, ends: (Addr, Addr), payload: &[u8]) -> Vec<u8> {
    ipv6_with(next, 64, ends, payload)
}

fn are_v4(ends: (Addr, Addr)) -> bool {
    ends.0.is_v4() && ends.1.is_v4()
}

/// The family's IP around a payload.
pub(crate) fn ip(protocol: u8, ends: (Addr, Addr), payload: &[u8]) -> Vec<u8> {
    if are_v4(ends) { ipv4(protocol, ends, payload) } else { ipv6(protocol, ends, payload) }
}

pub(crate) fn tcp(src_port: u16, dst_port: u16, flags: u8) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(src_port.to_be_bytes());
    header.extend(dst_port.to_be_bytes());
    header.extend([0; 8]);
    header.extend([5 << 4, flags]);
    header.extend([0; 6]);
    header
}

pub(crate) fn udp(src_port: u16, dst_port: u16) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(src_port.to_be_bytes());
    header.extend(dst_port.to_be_bytes());
    header.extend([0, 8, 0, 0]);
    header
}

pub(crate) fn sctp(src_port: u16, dst_port: u16, chunk: u8) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(src_port.to_be_bytes());
    header.extend(dst_port.to_be_bytes());
    header.extend([0; 8]);
    header.extend([chunk, 0, 0, 4]);
    header
}

pub(crate) fn icmp(kind: u8, id: u16) -> Vec<u8> {
    let mut header = std::vec![kind, 0, 0, 0];
    header.extend(id.to_be_bytes());
    header.extend([0, 1]);
    header
}

pub(crate) fn neighbour(kind: u8, target: Addr) -> Vec<u8> {
    let mut message = icmp(kind, 0);
    message.extend(target.bytes);
    message
}

/// Parses from an IP header on.
pub(crate) fn read_ip(bytes: &[u8]) -> Packet {
    read(Link::Ip, bytes)
}

pub(crate) fn read(link: Link, bytes: &[u8]) -> Packet {
    let mut packet = Packet::OTHER;
    parse(&bytes, link, &mut packet);
    packet
}

/// A packet of most kinds there are, IP header first, between random ends of these.
pub(crate) fn some_packet(rng: &mut Rng, v4: &[Addr], v6: &[Addr]) -> Vec<u8> {
    let of = if rng.one_in(2) { v4 } else { v6 };
    let ends = (rng.pick(of), rng.pick(of));
    let (a, b) = (rng.pick(&[53, 80, 443, 67, 68, 40_000]), rng.pick(&[53, 80, 443, 67, 68, 40_000]));
    let icmp_protocol = if are_v4(ends) { ICMP } else { ICMPV6 };
    match rng.below(7) {
        0 => ip(TCP, ends, &tcp(a, b, rng.byte())),
        1 => ip(UDP, ends, &udp(a, b)),
        2 => {
            let chunk = rng.pick(&[0, 1, 2, 14]);
            ip(SCTP, ends, &sctp(a, b, chunk))
        }
        3 => {
            let kind = rng.pick(&[0, 1, 3, 5, 8, 11, 13, 128, 129, 130, 133, 134, 135, 136, 143]);
            let mut message = icmp(kind, a);
            message.extend(ip(TCP, (ends.1, ends.0), &tcp(b, a, 2)));
            if are_v4(ends) {
                ip(icmp_protocol, ends, &message)
            } else {
                ipv6_with(icmp_protocol, rng.pick(&[1, 64, 255]), ends, &message)
            }
        }
        4 => {
            let (protocol, len) = (rng.byte(), rng.below(64));
            ip(protocol, ends, &rng.bytes(len))
        }
        5 if are_v4(ends) => {
            let (len, word) = (rng.below(11) * 4, rng.pick(&[0, 0, 0x4000, 0x2000, 1]));
            ipv4_with(&rng.bytes(len), word, TCP, ends, &tcp(a, b, 2))
        }
        5 => {
            let mut chain = std::vec![rng.pick(&[ICMPV6, TCP, UDP, 44, 0]), 0, 5, 2, 0, 0, 1, 0];
            chain.extend(icmp(rng.byte(), a));
            ipv6_with(0, rng.pick(&[1, 64]), ends, &chain)
        }
        _ => {
            let len = rng.below(100);
            rng.bytes(len)
        }
    }
}

/// A rule before it is bits.
#[derive(Clone, Debug)]
pub(crate) struct TestRule {
    /// Classes; `None` matches any peer, known or not.
    pub(crate) peers: Option<Vec<u32>>,
    /// Ranges of positions, ends included; `None` matches any.
    pub(crate) ports: Option<Vec<(u32, u32)>>,
    pub(crate) rule: Rule,
}

impl TestRule {
    pub(crate) fn matches_peer(&self, class: u32) -> bool {
        self.peers.as_ref().is_none_or(|classes| class != CLASS_NONE && classes.contains(&class))
    }

    pub(crate) fn matches_port(&self, position: u32) -> bool {
        self.ports.as_ref().is_none_or(|ranges| ranges.iter().any(|(a, b)| (*a..=*b).contains(&position)))
    }
}

/// Everything outside a packet, in memory. Its one slot is a pod with [`POD4`] and [`POD6`].
pub(crate) struct World {
    pub(crate) slot: u32,
    pub(crate) config: EndpointConfig,
    pub(crate) endpoint: EndpointWord,
    pub(crate) rulesets: BTreeMap<u32, Ruleset>,
    pub(crate) peers: BTreeMap<(u32, Addr), PeerWord>,
    pub(crate) peer_rows: BTreeMap<PeerRowKey, PeerRowWord>,
    pub(crate) rows: Vec<Row>,
    pub(crate) port_ranges: Vec<PortRange>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) flows: RefCell<BTreeMap<FlowKey, FlowEntry>>,
    pub(crate) epochs: Cell<u32>,
    pub(crate) prefix_epoch: Cell<u32>,
    pub(crate) audit: Cell<bool>,
    pub(crate) now: Cell<u32>,
    pub(crate) delivers: Cell<bool>,
    pub(crate) node_ports: BTreeSet<(Addr, u8, u16)>,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut addrs = [Addr::UNSPECIFIED; MAX_ENDPOINT_ADDRS];
        (addrs[0], addrs[1]) = (POD4, POD6);
        let config = EndpointConfig {
            ifindex: 7,
            link: 1,
            flags: ENDPOINT_USED,
            addr_count: 2,
            pod: 1,
            cgroup: 0,
            mac: [0; 8],
            addrs,
        };
        let open = u16::try_from(RULESET_OPEN).unwrap();
        Self {
            slot: 0,
            config,
            endpoint: EndpointWord { ingress: open, egress: open, generation: 1 },
            rulesets: BTreeMap::new(),
            peers: BTreeMap::new(),
            peer_rows: BTreeMap::new(),
            rows: Vec::new(),
            port_ranges: Vec::new(),
            rules: Vec::new(),
            flows: RefCell::default(),
            epochs: Cell::new(0),
            prefix_epoch: Cell::new(0),
            audit: Cell::new(false),
            now: Cell::new(1_000),
            delivers: Cell::new(false),
            node_ports: BTreeSet::new(),
        }
    }

    /// Gives an address its class, in bank 0.
    pub(crate) fn set_class(&mut self, addr: Addr, class: u32) {
        self.peers.insert((0, addr), PeerWord { class, tag: addr.hash() });
    }

    /// Writes a ruleset as the compiler lays it out.
    pub(crate) fn set_ruleset(&mut self, id: u32, flags: u32, rules: &[TestRule], pass_to: u32) {
        let to_u32 = |n: usize| u32::try_from(n).unwrap();
        let chunks = to_u32(rules.len()).div_ceil(ROW_BITS).max(1);
        let any_row = self.add_vector(chunks, rules, |rule| rule.peers.is_none());
        let classes: BTreeSet<u32> = rules.iter().flat_map(|r| r.peers.iter().flatten()).copied().collect();
        for class in classes {
            let row = self.add_vector(chunks, rules, |rule| rule.matches_peer(class));
            let key = PeerRowKey { ruleset: id, class };
            self.peer_rows.insert(key, PeerRowWord { row, tag: key.tag() });
        }
        let ports = rules.iter().flat_map(|r| r.ports.iter().flatten());
        let mut starts: BTreeSet<u32> = ports.flat_map(|(from, to)| [*from, *to + 1]).collect();
        starts.insert(0);
        let mut ranges = Vec::new();
        for from in starts {
            ranges.push(PortRange { from, row: self.add_vector(chunks, rules, |r| r.matches_port(from)) });
        }
        ranges.resize(ranges.len().next_power_of_two(), PortRange { from: PORT_RANGE_END, row: 0 });
        let ruleset = Ruleset {
            bank: 0,
            chunks,
            any_row,
            ports_start: to_u32(self.port_ranges.len()),
            ports_log2: ranges.len().trailing_zeros(),
            rules_start: to_u32(self.rules.len()),
            rules_len: to_u32(rules.len()),
            flags,
            reserved: 0,
            pass_to,
        };
        self.port_ranges.extend(ranges);
        self.rules.extend(rules.iter().map(|rule| rule.rule));
        self.rulesets.insert(id, ruleset);
    }

    fn add_vector(&mut self, chunks: u32, rules: &[TestRule], matches: impl Fn(&TestRule) -> bool) -> u32 {
        let first = self.rows.len();
        self.rows.resize(first + chunks as usize, Row::default());
        for (index, _) in rules.iter().enumerate().filter(|(_, rule)| matches(rule)) {
            let (row, bit) = (index / ROW_BITS as usize, index % ROW_BITS as usize);
            self.rows[first + row].words[bit / 64] |= 1 << (bit % 64);
        }
        u32::try_from(first).unwrap()
    }

    /// Judges a packet that starts with its IP header.
    pub(crate) fn judge(&self, direction: Direction, origin: Origin, bytes: &[u8]) -> Verdict {
        self.judge_frame(Link::Ip, direction, origin, bytes)
    }

    pub(crate) fn judge_frame(
        &self,
        link: Link,
        direction: Direction,
        origin: Origin,
        bytes: &[u8],
    ) -> Verdict {
        let mut work = Work::EMPTY;
        parse(&bytes, link, &mut work.packet);
        judge(self, &bytes, &mut work, At { slot: self.slot, direction, origin })
    }

    pub(crate) fn to_pod(&self, bytes: &[u8]) -> Verdict {
        self.judge(Direction::Ingress, Origin::Forwarded, bytes)
    }

    pub(crate) fn by_pod(&self, bytes: &[u8]) -> Verdict {
        self.judge(Direction::Egress, Origin::OwnInterface, bytes)
    }

    pub(crate) fn flow_count(&self) -> usize {
        self.flows.borrow().len()
    }
}

impl Tables for World {
    fn ruleset(&self, id: u32) -> Option<&Ruleset> {
        self.rulesets.get(&id)
    }

    fn peer(&self, bank: u32, addr: &Addr) -> Option<PeerWord> {
        self.peers.get(&(bank, *addr)).copied()
    }

    fn prefix(&self, _: u32, _: &Addr) -> Option<PeerWord> {
        None
    }

    fn peer_row(&self, key: &PeerRowKey) -> Option<PeerRowWord> {
        self.peer_rows.get(key).copied()
    }

    fn row(&self, id: u32) -> Option<&Row> {
        self.rows.get(id as usize)
    }

    fn port_range(&self, index: u32) -> Option<PortRange> {
        self.port_ranges.get(index as usize).copied()
    }

    fn rule(&self, index: u32) -> Option<Rule> {
        self.rules.get(index as usize).copied()
    }
}

impl Flows for World {
    type Handle = FlowKey;

    fn find(&self, _: u32, key: &FlowKey) -> Option<FlowKey> {
        self.flows.borrow().contains_key(key).then_some(*key)
    }

    fn deciding(&self, flow: FlowKey) -> (u32, u32) {
        let flows = self.flows.borrow();
        (flows[&flow].stamp, flows[&flow].tag)
    }

    fn age(&self, flow: FlowKey) -> (u32, u32) {
        let flows = self.flows.borrow();
        (flows[&flow].seen, flows[&flow].state)
    }

    fn renew(&self, flow: FlowKey, stamp: u32, tag: u32) {
        let mut flows = self.flows.borrow_mut();
        let entry = flows.get_mut(&flow).unwrap();
        (entry.stamp, entry.tag) = (stamp, tag);
    }

    fn touch(&self, flow: FlowKey, seen: u32, state: u32) {
        let mut flows = self.flows.borrow_mut();
        let entry = flows.get_mut(&flow).unwrap();
        (entry.seen, entry.state) = (seen, state);
    }

    fn passed(&self, flow: FlowKey) -> (u32, u32) {
        let flows = self.flows.borrow();
        (flows[&flow].counter, flows[&flow].opened)
    }

    fn pass(&self, flow: FlowKey, passed: u32, total: u32) {
        let mut flows = self.flows.borrow_mut();
        let entry = flows.get_mut(&flow).unwrap();
        (entry.counter, entry.opened) = (passed, total);
    }

    fn insert(&self, _: u32, key: &FlowKey, entry: &FlowEntry) {
        self.flows.borrow_mut().insert(*key, *entry);
    }

    fn remove(&self, _: u32, key: &FlowKey) {
        self.flows.borrow_mut().remove(key);
    }
}

impl Environment for World {
    fn config(&self, slot: u32) -> Option<&EndpointConfig> {
        (slot == self.slot).then_some(&self.config)
    }

    fn endpoint(&self, slot: u32) -> Option<EndpointWord> {
        (slot == self.slot).then_some(self.endpoint)
    }

    fn epoch(&self, _: u32) -> u32 {
        self.epochs.get()
    }

    fn prefix_epoch(&self) -> u32 {
        self.prefix_epoch.get()
    }

    fn is_audit(&self) -> bool {
        self.audit.get()
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn delivers(&self) -> bool {
        self.delivers.get()
    }

    fn is_node_port(&self, remote: &Addr, protocol: u8, port: u16) -> bool {
        self.node_ports.contains(&(*remote, protocol, port))
    }
}

//! Keys and values of the maps, byte for byte. A hash element can be recycled while it is read, so every
//! hash value that decides something is one aligned 8-byte word that carries a tag of its key; whatever is
//! larger lives in arrays by id. Plain integers, so that `bpftool map dump` reads in words.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Addr, mix64};
use crate::event::Direction;
use crate::packet::{SCTP, TCP, UDP};

/// Version of this layout; part of the pins' path. From the first release on raise it with every change to a type or a
/// size in this module, and with every new [`crate::event::Reason`]. A map that is pinned already keeps its size, and an
/// agent that wants another refuses it.
pub const LAYOUT_VERSION: u32 = 1;

// The numbers of entries are those of an agent that is told no others (`--map-size`): no program relies on one.

/// Endpoints a node can hold.
pub const MAX_ENDPOINTS: u32 = 4096;
/// Addresses an endpoint can hold; `status.podIPs` holds at most two.
pub const MAX_ENDPOINT_ADDRS: usize = 4;
/// Rulesets a node can hold, all banks: ids fit an endpoint word's 16 bits.
pub const MAX_RULESETS: u32 = 24_576;
/// 64-bit words of one row.
pub const ROW_WORDS: usize = 8;
/// Rules that one row holds.
#[allow(clippy::cast_possible_truncation)]
pub const ROW_BITS: u32 = ROW_WORDS as u32 * 64;
/// Rows that a vector can span: 8,192 rules for an endpoint and direction. Past it the agent refuses the
/// ruleset and closes the endpoint; nothing is truncated.
pub const MAX_CHUNKS: u32 = 16;
/// Rows in all banks.
pub const MAX_ROWS: u32 = 98_304;
/// Port ranges in all banks.
pub const MAX_PORT_RANGES: u32 = 393_216;
/// Port ranges of one ruleset: what the kernel's binary search reaches.
pub const MAX_RULESET_RANGES: u32 = 1 << SEARCH_STEPS;
/// Steps of the binary search.
pub const SEARCH_STEPS: u32 = 16;
/// Rules in all banks, over all rulesets.
pub const MAX_RULES: u32 = 393_216;
/// Counters in all: one for each rule of a policy and direction, and one for each isolation.
pub const MAX_COUNTERS: u32 = 65_536;
/// Pairs of ruleset and class that have a row, in all banks.
pub const MAX_PEER_ROWS: u32 = 393_216;
/// Peer addresses that match a selector, in one bank.
pub const MAX_PEERS: u32 = 131_072;
/// Prefixes in one bank.
pub const MAX_PREFIXES: u32 = 65_536;
/// Banks of tables: a starting agent fills one that no endpoint uses. Three, because an agent that is killed
/// while it flips the endpoints leaves two in use.
pub const BANKS: u32 = 3;
/// Cells of the epoch table; a power of two.
pub const EPOCH_CELLS: u32 = 65_536;
/// The cell behind them grows with every change of any: for flows whose backend nobody knows.
pub const EPOCH_ANY: u32 = EPOCH_CELLS;
/// Flows for which an endpoint has room at first. Room costs 16 bytes each before it is used, so it starts small and
/// grows with use.
pub const FIRST_FLOWS: u32 = 16_384;
/// By how much a table of flows grows.
pub const FLOWS_GROWTH: u32 = 4;
/// Flows of one endpoint unless the agent is told otherwise.
pub const DEFAULT_FLOWS: u32 = 1_048_576;
/// Interfaces that are found by index in an array, before the hash is asked; a power of two.
pub const IFACE_CELLS: u32 = 65_536;
/// Devices whose packets start with an IP header (`wireguard`, `ipip`, `ppp`), without pods'.
pub const MAX_DEVICES: u32 = 4096;
/// Bytes of events at which the programs wake whoever reads them; before, it looks by itself.
pub const EVENT_WAKE_BYTES: u32 = 1 << 14;
/// Nodes' addresses at which ports are translated.
pub const MAX_NODE_ADDRS: u32 = 16_384;
/// Cgroups of pods of this node.
pub const MAX_CGROUPS: u32 = 4096;
/// Words of `node_ports`: a bit for each port of TCP, UDP and SCTP.
pub const NODE_PORT_WORDS: u32 = 3 * (65_536 / 64);
/// Milliseconds after which whoever reads events looks by itself.
pub const EVENT_DELAY_MS: u64 = 50;
/// Bytes of the event ring.
pub const EVENT_RING_BYTES: u32 = 1 << 20;

/// Ruleset 0: the direction is open. It has no entry in the table.
pub const RULESET_OPEN: u32 = 0;
/// Ruleset 1: the direction is closed, whatever policies would say. No entry either: it is decided without tables.
pub const RULESET_CLOSED: u32 = 1;
/// The ruleset judges traffic from a pod that a policy isolates, which may still be translated: virtual addresses
/// are told apart.
pub const RULESET_EGRESS: u32 = 1;
/// Only policies in audit mode isolate: what is denied here passes.
pub const RULESET_AUDIT: u32 = 2;
/// Class 0: an address that no selector on this node matches.
pub const CLASS_NONE: u32 = 0;
/// Bit of a class that marks a Service's virtual address, whose verdict needs its translation.
pub const CLASS_VIRTUAL: u32 = 1 << 31;
/// Bit of a class that marks a pod's address that a Service claims too: what is sent there may be translated, so it is judged
/// at the pod and where it is delivered.
pub const CLASS_CLAIMED: u32 = 1 << 30;
/// Bit beside the reason in the answer of an asked load: the verdict is not enforced.
pub const ANSWER_AUDITED: u32 = 1 << 8;
/// Slot of events about an interface that leads to no endpoint.
pub const NO_ENDPOINT: u32 = u32::MAX;
/// Counter 0: no rule decided.
pub const COUNTER_NONE: u32 = 0;

macro_rules! wire {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[repr(C, align(8))]
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable,
            KnownLayout,
        )]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
    };
}

wire! {
    /// `ifaces`, and `iface_index` by the index's lower bits: interface index to endpoint.
    pub struct IfaceWord {
        /// Index into `endpoints`, `endpoint_cfg` and `flows`.
        pub slot: u32,
        /// The key again: the tag.
        pub ifindex: u32,
    }
}

wire! {
    /// `endpoints`: what changes when policies do; flipped by one store.
    pub struct EndpointWord {
        /// Ruleset of traffic to the pod.
        pub ingress: u16,
        /// Ruleset of traffic from the pod.
        pub egress: u16,
        /// Grows with every flip.
        pub generation: u32,
    }
}

impl EndpointWord {
    /// The ruleset of a direction.
    #[inline(always)]
    #[must_use]
    pub const fn ruleset(self, direction: Direction) -> u16 {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

wire! {
    /// `endpoint_cfg`: what an endpoint is; written before the endpoint can be reached, never in place.
    pub struct EndpointConfig {
        /// The host-side interface.
        pub ifindex: u32,
        /// [`LINK_ETHERNET`] or [`LINK_IP`].
        pub link: u32,
        /// Or of the `ENDPOINT_` flags.
        pub flags: u32,
        /// How many of `addrs` count.
        pub addr_count: u32,
        /// A hash of the pod's UID and name: another pod never inherits this one's flows.
        pub pod: u64,
        /// The cgroup of a pod in the node's network; 0 of all others.
        pub cgroup: u64,
        /// The pod's MAC address in the first six, with [`ENDPOINT_MAC`].
        pub mac: [u8; 8],
        /// The pod's addresses.
        pub addrs: [Addr; MAX_ENDPOINT_ADDRS],
    }
}

impl EndpointConfig {
    /// True if frames of the pod have to bear its MAC address, and those that do not are for others.
    #[inline(always)]
    #[must_use]
    pub const fn is_bound_to_mac(&self) -> bool {
        self.flags & (ENDPOINT_MAC | ENDPOINT_UNBOUND) == ENDPOINT_MAC
    }
}

/// Packets of the interface start with an Ethernet header.
pub const LINK_ETHERNET: u32 = 0;
/// Packets of the interface start with an IP header.
pub const LINK_IP: u32 = 1;
/// The slot is in use.
pub const ENDPOINT_USED: u32 = 1;
/// An administrator opted this endpoint out of source binding.
pub const ENDPOINT_UNBOUND: u32 = 2;
/// Frames from the pod bear its MAC address. Set behind bridges, which learn from frames where an address is.
pub const ENDPOINT_MAC: u32 = 4;
/// It is not clear whose interface this is: neighbour discovery passes, so that it can become clear, nothing else.
pub const ENDPOINT_QUARANTINED: u32 = 8;
/// The node, or a pod in its network: any of the node's addresses is its own.
pub const ENDPOINT_HOST: u32 = 16;

wire! {
    /// `cgroups`: a cgroup's number to whose sockets are in it and below it.
    pub struct CgroupWord {
        /// The endpoint, or [`CGROUP_ELSEWHERE`].
        pub slot: u32,
        /// [`cgroup_tag`] of the key.
        pub tag: u32,
    }
}

/// A pod with a network of its own: its sockets are judged at its interface.
pub const CGROUP_ELSEWHERE: u32 = NO_ENDPOINT - 1;

/// The tag of an entry of `cgroups`.
#[inline(always)]
#[must_use]
#[allow(clippy::cast_possible_truncation)]
pub const fn cgroup_tag(cgroup: u64) -> u32 {
    mix64(cgroup) as u32
}

wire! {
    /// `host_state`, one entry: how the node's own sockets are judged.
    pub struct HostState {
        /// The cgroup below which the pods' are; 0: there is none.
        pub pods: u64,
        /// Or of the `HOST_` flags.
        pub flags: u32,
        /// The node's endpoint.
        pub node: u32,
        /// The endpoint of pods of which nothing is known yet, or [`CGROUP_ELSEWHERE`] where they pass.
        pub unknown: u32,
        /// Not used; 0.
        pub reserved: u32,
        /// The cookie of the node's network namespace, where the programs can ask for a socket's.
        pub network: u64,
    }
}

/// The host firewall is on.
pub const HOST_ON: u32 = 1;
/// Levels below the pods' cgroup at which a pod's may lie: at once, or below that of its class of service.
pub const CGROUP_LEVELS: u32 = 2;
/// Levels below the machine's root at which the pods' cgroup is looked for: a node may itself be a container.
pub const CGROUP_DEPTH: u32 = 12;

wire! {
    /// `peers` and `prefixes`: address to class.
    pub struct PeerWord {
        /// The class, with [`CLASS_VIRTUAL`] for a virtual address and [`CLASS_CLAIMED`] for a pod's that a Service claims.
        pub class: u32,
        /// In `peers` [`Addr::hash`] of the key; in `prefixes`, which are swapped whole, 0.
        pub tag: u32,
    }
}

wire! {
    /// `node_addrs`: an address of a node whose ports in `node_ports` this node's rules translate.
    pub struct NodeAddrWord {
        /// [`Addr::hash`] of the key.
        pub tag: u32,
        /// Not used; 0.
        pub reserved: u32,
    }
}

/// Where in `node_ports` a port's bit is: the word, and the bit in it. `None` for protocols without ports.
#[inline(always)]
#[must_use]
pub const fn node_port(protocol: u8, port: u16) -> Option<(u32, u64)> {
    let protocol = match protocol {
        TCP => 0,
        UDP => 1,
        SCTP => 2,
        _ => return None,
    };
    Some(((protocol << 10) | (port >> 6) as u32, 1 << (port & 63)))
}

wire! {
    /// `peer_rows`, key: a ruleset and a class that matches one of its selectors.
    pub struct PeerRowKey {
        /// The ruleset.
        pub ruleset: u32,
        /// The class, without these bits.
        pub class: u32,
    }
}

impl PeerRowKey {
    /// The tag that the entry of this key carries.
    #[inline(always)]
    #[must_use]
    #[allow(clippy::cast_possible_truncation)]
    pub const fn tag(&self) -> u32 {
        mix64(((self.ruleset as u64) << 32) | self.class as u64) as u32
    }
}

wire! {
    /// `peer_rows`, value.
    pub struct PeerRowWord {
        /// First row of the vector of rules whose peers match.
        pub row: u32,
        /// [`PeerRowKey::tag`].
        pub tag: u32,
    }
}

wire! {
    /// `rows`: rules as bits, rule 0 in the lowest bit of word 0. A vector of more than [`ROW_BITS`] rules
    /// goes on in the next row.
    pub struct Row {
        /// The bits.
        pub words: [u64; ROW_WORDS],
    }
}

wire! {
    /// `rulesets`: the rules of an endpoint and direction. Written once, before anything points at it.
    pub struct Ruleset {
        /// Which bank of `peers` and `prefixes` its classes are of.
        pub bank: u32,
        /// Rows that its vectors span, at least 1.
        pub chunks: u32,
        /// First row of the vector of rules that match any peer.
        pub any_row: u32,
        /// First of its ranges in `port_ranges`.
        pub ports_start: u32,
        /// Binary logarithm of the number of its ranges, at most [`SEARCH_STEPS`]: filled up with ranges
        /// that start at [`PORT_RANGE_END`].
        pub ports_log2: u32,
        /// First of its rules in `rules`.
        pub rules_start: u32,
        /// Number of its rules.
        pub rules_len: u32,
        /// Or of the `RULESET_` flags.
        pub flags: u32,
        /// Not used; 0.
        pub reserved: u32,
        /// The ruleset of the tiers behind the first, where a Pass goes on; [`RULESET_OPEN`] where none is, as
        /// everywhere now.
        pub pass_to: u32,
    }
}

wire! {
    /// `port_ranges`: from this protocol and port up to the next range, the rules of this vector match.
    pub struct PortRange {
        /// Protocol number times 65,536, plus the port (0 for protocols without).
        pub from: u32,
        /// First row of the vector.
        pub row: u32,
    }
}

/// Behind every position: what fills a ruleset's ranges up.
pub const PORT_RANGE_END: u32 = u32::MAX;

/// The position of a protocol and port in [`PortRange::from`]'s order.
#[inline(always)]
#[must_use]
pub const fn port_position(protocol: u8, port: u16) -> u32 {
    ((protocol as u32) << 16) | port as u32
}

wire! {
    /// `rules`: what a rule does, by its position in its ruleset.
    pub struct Rule {
        /// Index into `rule_stats`, and what attributes the verdict.
        pub counter: u32,
        /// [`ACTION_ALLOW`], [`ACTION_DENY`], [`ACTION_PASS`] or [`ACTION_AUDIT`].
        pub action: u8,
        /// [`KIND_RULE`], [`KIND_ISOLATION`], [`KIND_INVALID`], [`KIND_OWN_NODE`] or [`KIND_FAILSAFE`].
        pub kind: u8,
        /// 0 Admin, 1 NetworkPolicy, 2 Baseline; only 1 is used now.
        pub tier: u8,
        /// Not used; 0.
        pub reserved: u8,
    }
}

/// The packet is allowed.
pub const ACTION_ALLOW: u8 = 0;
/// The packet is denied.
pub const ACTION_DENY: u8 = 1;
/// The rest of the tier is skipped.
pub const ACTION_PASS: u8 = 2;
/// The packet is denied, and passes: only policies in audit mode isolate.
pub const ACTION_AUDIT: u8 = 3;
/// A rule of a policy.
pub const KIND_RULE: u8 = 0;
/// The deny that stands for isolation.
pub const KIND_ISOLATION: u8 = 1;
/// The deny of policies that could not be read.
pub const KIND_INVALID: u8 = 2;
/// The agent lets pods reach their own node.
pub const KIND_OWN_NODE: u8 = 3;
/// A port that always stays open, of the node or of a pod in its network.
pub const KIND_FAILSAFE: u8 = 4;

wire! {
    /// `rule_stats` and `verdicts`, a value for each CPU. Of a flow, a rule counts the packet that opened it, and
    /// those that were judged again and denied.
    pub struct Stats {
        /// Packets.
        pub packets: u64,
        /// Bytes, from the IP header.
        pub bytes: u64,
    }
}

wire! {
    /// `flows`, key in an endpoint's own map: the tuple as the endpoint sees it, or a datagram whose fragments follow.
    pub struct FlowKey {
        /// The peer.
        pub remote: Addr,
        /// The endpoint's port; the identifier of an ICMP echo; the lower half of a datagram's identification.
        pub local_port: u16,
        /// The peer's port; an echo's identifier again; the upper half of a datagram's identification.
        pub remote_port: u16,
        /// IP protocol number; of a datagram what its fragments give.
        pub protocol: u8,
        /// Which of the endpoint's addresses, an index.
        pub local: u8,
        /// One of the `FLOW_KIND_` numbers.
        pub kind: u16,
    }
}

impl FlowKey {
    /// 29 bits of tag for the entry of this key.
    #[inline(always)]
    #[must_use]
    #[allow(clippy::cast_possible_truncation)]
    pub const fn tag(&self) -> u32 {
        let ports = ((self.kind as u64) << 48)
            | ((self.local_port as u64) << 32)
            | ((self.remote_port as u64) << 16)
            | ((self.protocol as u64) << 8)
            | self.local as u64;
        (mix64(self.remote.mix() ^ ports) as u32) & !FLOW_TAG_FLAGS
    }
}

/// The entry is a flow.
pub const FLOW_KIND_FLOW: u16 = 0;
/// The entry is a datagram towards the pod, whose first fragment has passed.
pub const FLOW_KIND_FRAGMENTS_INGRESS: u16 = 1;
/// The entry is a datagram from the pod, whose first fragment has passed.
pub const FLOW_KIND_FRAGMENTS_EGRESS: u16 = 2;
/// A socket of the node's network that is not connected has sent something that passed: of it virtual addresses may answer.
/// Instead of the remote address the key has the socket's cookie.
pub const FLOW_KIND_SOCKET: u16 = 3;

/// Bits of a flow's tag word that are flags.
pub const FLOW_TAG_FLAGS: u32 = 7;
/// The flow was opened towards the pod.
pub const FLOW_OPENED_INGRESS: u32 = 1;
/// The flow was opened by the pod's own node, or by the pod itself through a Service.
pub const FLOW_OWN_NODE: u32 = 2;
/// The pod opened the flow to an address that may be translated: its packets are judged again where they are delivered.
pub const FLOW_DELIVERED: u32 = 4;

wire! {
    /// `flows`, value. The first word decides and is read in one load.
    pub struct FlowEntry {
        /// Endpoint generation, the peer's epoch cell and the prefix epoch, added up: each only grows, so
        /// the sum is the same only if none has changed. Of a datagram the endpoint's port, and times 65,536 the peer's.
        pub stamp: u32,
        /// [`FlowKey::tag`] and the flags.
        pub tag: u32,
        /// Seconds of the monotonic clock at which the last packet came; of a datagram the first fragment.
        pub seen: u32,
        /// A `STATE_` of [`crate::flow`] in the lowest byte, see [`crate::flow::Stage`]. Of a datagram the bytes that its first fragment holds, and times 65,536 the
        /// number of the protocol that they start with.
        pub state: u32,
        /// The rule that allowed it when it opened; judging it again does not change it. Of a datagram the bytes that
        /// have passed.
        pub counter: u32,
        /// Seconds of the monotonic clock at which it was opened. Of a datagram the bytes that it has, 0 before its last
        /// fragment tells.
        pub opened: u32,
    }
}

wire! {
    /// `flows_made` and `flows_gone`: entries of an endpoint's table, made and removed ever, by the direction that opened
    /// the flow. How many there are is the difference. The programs write the first and the agent the second, so
    /// that neither overwrites what the other counts; CPUs may lose a count to each other, which the agent sets right.
    pub struct FlowCount {
        /// Opened towards the pod.
        pub ingress: u64,
        /// Opened by the pod.
        pub egress: u64,
    }
}

impl FlowCount {
    /// Entries that were made and are not among those that are `gone`. Counts that were lost can make it less than none, which
    /// is none: as a number without sign it would be more than any table holds, and no flow would be made any more.
    #[inline(always)]
    #[must_use]
    pub const fn less(self, gone: Self) -> Self {
        Self { ingress: left(self.ingress, gone.ingress), egress: left(self.egress, gone.egress) }
    }
}

#[inline(always)]
const fn left(made: u64, gone: u64) -> u64 {
    let left = made.wrapping_sub(gone);
    if left > u64::MAX / 2 { 0 } else { left }
}

wire! {
    /// `flows_room`: how much an endpoint's table of flows holds.
    pub struct FlowRoom {
        /// Entries for which the table has room.
        pub capacity: u32,
        /// 1 once a program has told that half of it is taken.
        pub told: u32,
        /// Flows opened towards the pod that it may hold: the rest is for the pod's own, which no peer can take.
        pub most_ingress: u32,
        /// Not used; 0.
        pub reserved: u32,
    }
}

/// One part in so many of a table is the pod's own: peers cannot take it.
pub const OWN_FLOWS_SHARE: u32 = 4;

wire! {
    /// `node_state`, one entry.
    pub struct NodeState {
        /// Grows with every swap of `prefixes`, and when `mode` changes.
        pub prefix_epoch: u32,
        /// [`MODE_ENFORCE`] or [`MODE_AUDIT`], written in one store with the epoch: the node switches at once, and
        /// every flow is judged again.
        pub mode: u32,
        /// [`SERVICES_DELIVERED`] or [`SERVICES_CLOSED`].
        pub services: u32,
        /// By how many bits [`MARK_BITS`] are shifted in a packet's mark; below 32.
        pub mark_shift: u32,
    }
}

/// Nothing judges what is delivered: virtual addresses are denied.
pub const SERVICES_CLOSED: u32 = 0;
/// All places where packets are delivered have programs.
pub const SERVICES_DELIVERED: u32 = 1;

/// Bits of a packet's mark that are ours, as they stand before they are shifted to where `--mark-mask` says: the
/// endpoint that sent it, ...
pub const MARK_SLOT: u32 = 0x3ff;
/// ... that it opens a flow whose verdict waits ...
pub const MARK_OPENS: u32 = 0x400;
/// ... and that it is to be judged where it is delivered.
pub const MARK_JUDGE: u32 = 0x800;
/// All of them.
pub const MARK_BITS: u32 = MARK_SLOT | MARK_OPENS | MARK_JUDGE;
/// Where they are unless the agent is told otherwise: a mask of `0x0fff0000`.
pub const DEFAULT_MARK_SHIFT: u32 = 16;

/// What is denied is dropped.
pub const MODE_ENFORCE: u32 = 0;
/// What is denied passes, counted and told as audited.
pub const MODE_AUDIT: u32 = 1;

wire! {
    /// `cpu_state`, one entry for each CPU.
    pub struct CpuState {
        /// The second that `sent` is about.
        pub second: u32,
        /// Events sent in it.
        pub sent: u32,
        /// Events not sent, ever: over budget, or the ring was full.
        pub lost: u64,
        /// Flows not made, ever: the endpoint's table was full.
        pub flows_refused: u64,
    }
}

/// Bytes of a namespace's name, NUL-padded (RFC 1123 label: 63).
pub const NAMESPACE_BYTES: usize = 64;
/// Bytes of an object's name, NUL-padded (RFC 1123 subdomain: 253).
pub const NAME_BYTES: usize = 256;

/// `counter_names`, key: which rule a counter counts. Userspace only: it gives a restarted agent the same
/// counters, and a reader of `rule_stats` the names.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct CounterKey {
    /// The policy's namespace.
    pub namespace: [u8; NAMESPACE_BYTES],
    /// The policy's name.
    pub name: [u8; NAME_BYTES],
    /// One of the `POLICY_` numbers.
    pub policy_kind: u16,
    /// 0 ingress, 1 egress.
    pub direction: u16,
    /// The rule's index, [`RULE_ISOLATION`] for the isolation itself.
    pub rule: u32,
}

/// A NetworkPolicy.
pub const POLICY_NETWORK: u16 = 0;
/// No policy: pods of a namespace that nothing declares are isolated both ways (S34).
pub const POLICY_NO_NAMESPACE: u16 = 1;
/// No policy: the agent lets pods reach their own node.
pub const POLICY_OWN_NODE: u16 = 2;
/// A HostPolicy, which has no namespace.
pub const POLICY_HOST: u16 = 3;
/// No policy: ports that always stay open.
pub const POLICY_FAILSAFE: u16 = 4;
/// No policy: of a host, what no policy could be applied to.
pub const POLICY_CLOSED: u16 = 5;
/// Rule index of a policy's isolation.
pub const RULE_ISOLATION: u32 = u32::MAX;

const _: () = {
    assert!(size_of::<IfaceWord>() == 8);
    assert!(size_of::<EndpointWord>() == 8);
    assert!(size_of::<PeerWord>() == 8);
    assert!(size_of::<PeerRowWord>() == 8);
    assert!(size_of::<PortRange>() == 8);
    assert!(size_of::<Rule>() == 8);
    assert!(size_of::<FlowKey>() == 24);
    assert!(size_of::<FlowEntry>() == 24);
    assert!(size_of::<FlowCount>() == 16);
    assert!(IFACE_CELLS.is_power_of_two() && EPOCH_CELLS.is_power_of_two());
    assert!(size_of::<Row>() == 64);
};

#[cfg(test)]
mod tests;

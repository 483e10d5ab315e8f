//! The faults: what somebody could get wrong in the packet path and in the tables, and who notices. The layer that is named
//! is the cheapest: the pure crates' own tests where they can see it, the loaded programs where it is in the kernel's shell,
//! real interfaces where only these show it.

use std::fmt;

/// A fault.
pub(super) struct Fault {
    pub(super) name: &'static str,
    /// What is wrong then.
    pub(super) what: &'static str,
    pub(super) file: &'static str,
    /// Text that is in the file once.
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    /// Who notices.
    pub(super) tests: Tests,
}

/// Tests that are run together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tests {
    /// Of `portcullis-common`, in memory, by the start of their path.
    Common(&'static str),
    /// Of `portcullis-policy`.
    Policy(&'static str),
    /// The loaded programs, by a target of `portcullis-tests` and the start of a test's path.
    Kernel(&'static str, &'static str),
    /// Pods as namespaces, by a target of `portcullis-tests` and the start of a test's path.
    Lab(&'static str, &'static str),
}

impl Tests {
    pub(super) const fn layer(self) -> &'static str {
        match self {
            Self::Common(_) | Self::Policy(_) => "unit",
            Self::Kernel(..) => "kernel",
            Self::Lab(..) => "lab",
        }
    }

    pub(super) const fn needs_root(self) -> bool {
        matches!(self, Self::Kernel(..) | Self::Lab(..))
    }

    /// What cargo has to build before, for each call of it.
    pub(super) fn built(self) -> Vec<Vec<&'static str>> {
        let mut built = Vec::new();
        if let Self::Lab(..) = self {
            built.push(vec!["build", "--locked", "--workspace", "--bin", "portcullis"]);
        }
        let mut tests = self.run();
        tests.truncate(tests.iter().position(|word| *word == "--").unwrap_or(tests.len()));
        tests.push("--no-run");
        built.push(tests);
        built
    }

    pub(super) fn run(self) -> Vec<&'static str> {
        let mut words = vec!["test", "--locked"];
        match self {
            Self::Common(path) => words.extend(["-p", "portcullis-common", "--lib", "--", path]),
            Self::Policy(path) => words.extend(["-p", "portcullis-policy", "--lib", "--", path]),
            Self::Kernel(target, path) | Self::Lab(target, path) => {
                words.extend(["--workspace", "--test", target, "--", path]);
            }
        }
        if self.needs_root() {
            words.push("--test-threads=1");
        }
        words
    }
}

impl fmt::Display for Tests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Common(path) => write!(f, "portcullis-common, {path}"),
            Self::Policy(path) => write!(f, "portcullis-policy, {path}"),
            Self::Kernel(target, path) | Self::Lab(target, path) => write!(f, "{target} {path}"),
        }
    }
}

const PACKET: &str = "common/src/packet.rs";
const JUDGE: &str = "common/src/judge.rs";
const DELIVERED: &str = "common/src/judge/delivered.rs";
const TUPLE: &str = "common/src/judge/tuple.rs";
const FRAGMENTS: &str = "common/src/judge/fragments.rs";
const FLOW: &str = "common/src/flow.rs";
const WIRE: &str = "common/src/wire.rs";
const CLASSIFY: &str = "common/src/classify.rs";
const SKB: &str = "ebpf/src/skb.rs";
const TABLES: &str = "ebpf/src/tables.rs";

const PARSER: Tests = Tests::Common("packet::tests");
const JUDGEMENT: Tests = Tests::Common("judge::tests");
const PIECES: Tests = Tests::Common("judge::fragments::tests");
const WALK: Tests = Tests::Common("classify::tests");
const SERVICES: Tests = Tests::Common("judge::delivered");
const LAB_SERVICES: Tests = Tests::Lab("lab_services", "s23_");
const LAB_HOSTS: Tests = Tests::Lab("lab_hosts", "two_pods");
const LAB_HOSTS_SOCKETS: Tests = Tests::Lab("lab_hosts_sockets", "a");

#[rustfmt::skip]
pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "ihl-ignored", what: "ports are read behind 20 bytes, whatever IHL says", file: PACKET,
        from: "parse_transport(view, packet, l3 + ihl, total - ihl, head[8]);",
        to: "parse_transport(view, packet, l3 + IPV4_MIN_BYTES, total - ihl, head[8]);", tests: PARSER,
    },
    Fault {
        name: "ihl-too-small", what: "an IHL below 5 is accepted", file: PACKET,
        from: "if ihl < IPV4_MIN_BYTES || total < ihl {", to: "if total < ihl {", tests: PARSER,
    },
    Fault {
        name: "port-endianness", what: "ports are read in the machine's byte order", file: PACKET,
        from: "(u16::from_be_bytes([head[0], head[1]]), u16::from_be_bytes([head[2], head[3]]))",
        to: "(u16::from_le_bytes([head[0], head[1]]), u16::from_le_bytes([head[2], head[3]]))", tests: PARSER,
    },
    Fault {
        name: "strict-source-route", what: "strict source routing passes", file: PACKET,
        from: "LOOSE | STRICT => return", to: "LOOSE => return", tests: PARSER,
    },
    Fault {
        name: "offset-ignored", what: "the last fragment counts as a whole packet", file: PACKET,
        from: "if word & (IPV4_MORE | IPV4_OFFSET) != 0 {", to: "if word & IPV4_MORE != 0 {", tests: PARSER,
    },
    Fault {
        name: "offset-one", what: "a fragment at offset 1 writes over the transport header", file: PACKET,
        from: "if offset == 1 || bytes == 0", to: "if bytes == 0", tests: PARSER,
    },
    Fault {
        name: "tiny-first", what: "a first fragment may end inside the TCP header", file: PACKET,
        from: "        TCP => 20,\n", to: "        TCP => 14,\n", tests: PARSER,
    },
    Fault {
        name: "headers-unbounded", what: "one extension header more than the bound", file: PACKET,
        from: "    for _ in 0..MAX_EXTENSION_HEADERS {", to: "    for _ in 0..=MAX_EXTENSION_HEADERS {", tests: PARSER,
    },
    Fault {
        name: "routing-header-zero", what: "IPv6 routing header type 0 passes", file: PACKET,
        from: "NEXT_ROUTING if head[2] == ROUTING_SOURCE_ROUTE || head[3] != 0 => {",
        to: "NEXT_ROUTING if head[3] != 0 => {", tests: PARSER,
    },
    Fault {
        name: "ah-length", what: "the authentication header is measured as the others are", file: PACKET,
        from: "        NEXT_AH => (words + 2) * 4,\n", to: "", tests: PARSER,
    },
    Fault {
        name: "mapped-source", what: "an IPv6 packet may carry a mapped IPv4 address", file: PACKET,
        from: "    if src.is_v4() || dst.is_v4() {\n        return packet.broken",
        to: "    if false {\n        return packet.broken", tests: PARSER,
    },
    Fault {
        name: "hidden-discovery", what: "discovery behind extension headers always passes", file: PACKET,
        from: "| Shape::RouterAdvertisement => packet.hide(ParseError::ExtensionHeader),",
        to: "| Shape::RouterAdvertisement => {}", tests: PARSER,
    },
    Fault {
        name: "syn-ack-opens", what: "SYN with ACK opens a flow", file: PACKET,
        from: "} else if flags & (TCP_SYN | TCP_ACK) != TCP_SYN {", to: "} else if flags & TCP_SYN == 0 {", tests: PARSER,
    },
    Fault {
        name: "fragment-overlap", what: "a later fragment may write over the first", file: FRAGMENTS,
        from: "if start < state & 0xffff {", to: "if start < 8 {", tests: PIECES,
    },
    Fault {
        name: "fragment-id-cut", what: "half of IPv6's identification tells datagrams apart", file: FRAGMENTS,
        from: "remote_port: (packet.datagram >> 16) as u16,", to: "remote_port: 0,", tests: PIECES,
    },
    Fault {
        name: "fragment-direction", what: "a datagram's rest may come from the other side", file: FRAGMENTS,
        from: "(packet.dst, FLOW_KIND_FRAGMENTS_EGRESS)", to: "(packet.dst, FLOW_KIND_FRAGMENTS_INGRESS)", tests: PIECES,
    },
    Fault {
        name: "fragment-of-denied", what: "a denied first fragment is remembered", file: TUPLE,
        from: "    if let Part::First = work.packet.part\n        && !verdict.drops()\n    {",
        to: "    if let Part::First = work.packet.part {", tests: PIECES,
    },
    Fault {
        name: "reply-without-state", what: "a reply passes without a flow", file: TUPLE,
        from: "            Held::None => return none,",
        to: "            Held::None if !opening => return Packed::new(Verdict::allow(Reason::Flow)),\n            Held::None => return none,",
        tests: JUDGEMENT,
    },
    Fault {
        name: "stamp-not-compared", what: "a flow outlives the policies that allowed it", file: TUPLE,
        from: "} else if held_stamp != stamped(stamp, flags, work.any)\n",
        to: "} else if (held_stamp != stamped(stamp, flags, work.any) && held_stamp == 0)\n", tests: JUDGEMENT,
    },
    Fault {
        name: "tag-not-compared", what: "a recycled entry answers for another key", file: TUPLE,
        from: "            if found & !FLOW_TAG_FLAGS == tag {", to: "            if found & !FLOW_TAG_FLAGS != !tag {", tests: JUDGEMENT,
    },
    Fault {
        name: "judged-again-wrong-way", what: "a flow is judged again in the packet's direction, not in its opener's", file: TUPLE,
        from: "work.again = self.judged_again(work, opener(flags), flags);",
        to: "work.again = self.judged_again(work, self.at.direction, flags);",
        tests: JUDGEMENT,
    },
    Fault {
        name: "denied-makes-state", what: "a denied packet makes a flow", file: TUPLE,
        from: "if verdict.drops() || held.0 & Packed::MAY_OPEN == 0 {", to: "if held.0 & Packed::MAY_OPEN == 0 {",
        tests: JUDGEMENT,
    },
    Fault {
        name: "error-without-flow", what: "an ICMP error passes without the flow that it is about", file: TUPLE,
        from: "            Held::None => Packed(Packed::NO_FLOW),\n", to: "            Held::None => self.of_flow(0),\n",
        tests: JUDGEMENT,
    },
    Fault {
        name: "error-from-anyone", what: "an ICMP error may be for another than the packet that it is about", file: JUDGE,
        from: "        if !outer.same(local) || is_for_another {", to: "        if is_for_another {",
        tests: JUDGEMENT,
    },
    Fault {
        name: "source-unbound", what: "a pod may send from any address", file: JUDGE,
        from: "            if !bound || (packet.hidden && own.is_none()) {", to: "            if !bound && packet.hidden {",
        tests: JUDGEMENT,
    },
    Fault {
        name: "router-advertisement", what: "a pod may advertise a router", file: JUDGE,
        from: "if from_pod && !self.is_host() && matches!(packet.shape, Shape::RouterAdvertisement) {",
        to: "if from_pod && packet.hidden && matches!(packet.shape, Shape::RouterAdvertisement) {", tests: JUDGEMENT,
    },
    Fault {
        name: "flows-never-expire", what: "every flow lives as long as an established connection", file: FLOW,
        from: "    is_over(seen, now, timeout(protocol, state))",
        to: "    is_over(seen, now, timeout(crate::packet::TCP, STATE_ESTABLISHED + 0 * (protocol as u32 + state)))",
        tests: Tests::Common("flow::tests"),
    },
    Fault {
        name: "reset-kills", what: "a forged RST shortens a connection for good", file: FLOW,
        from: "return if state == STATE_ESTABLISHED { STATE_RESET } else { state };", to: "return STATE_CLOSING;",
        tests: Tests::Common("flow::tests"),
    },
    Fault {
        name: "tag-without-address", what: "flows of different peers have the same tag", file: WIRE,
        from: "(mix64(self.remote.mix() ^ ports) as u32)", to: "(mix64(ports) as u32)", tests: Tests::Common("wire::tests"),
    },
    Fault {
        name: "range-start", what: "a range of ports begins one later", file: CLASSIFY,
        from: "        if range.from <= position {", to: "        if range.from < position {", tests: WALK,
    },
    Fault {
        name: "peer-tag", what: "a recycled element gives an address another's class", file: CLASSIFY,
        from: "        Some(word) if word.tag == tag => Ok((word.class, Peer::Pod)),\n        Some(_) => Err(Unreadable),",
        to: "        Some(word) => Ok((word.class, Peer::Pod)),", tests: WALK,
    },
    Fault {
        name: "no-row-is-no-rule", what: "an address that no selector matches meets no rule, not those for anyone", file: CLASSIFY,
        from: ".unwrap_or(ruleset.any_row);", to: ".unwrap_or(0);", tests: WALK,
    },
    Fault {
        name: "range-end", what: "a range of ports ends one later", file: "agent/policy/src/compile/built.rs",
        from: "turns.entry(to + 1).or_default().push(index);", to: "turns.entry(to + 2).or_default().push(index);",
        tests: Tests::Policy("compile::built"),
    },
    Fault {
        name: "except-everywhere", what: "an except takes away from every block that holds it", file: "agent/policy/src/compile/classes.rs",
        from: "let removed: Vec<u32> = turn.ends.into_iter().filter(|number| holding.remove(number)).collect();",
        to: "let removed: Vec<u32> = if turn.ends.is_empty() { Vec::new() } else { std::mem::take(&mut holding).into_iter().collect() };",
        tests: Tests::Policy("compile::classes"),
    },
    Fault {
        name: "epoch-not-bumped", what: "flows of an address that left are not judged again", file: "agent/policy/src/diff.rs",
        from: "        plan.before.push(MapOp::DeletePeer(*addr));\n        cells.insert(cell(addr));\n",
        to: "        plan.before.push(MapOp::DeletePeer(*addr));\n", tests: Tests::Policy("diff::"),
    },
    Fault {
        name: "families-mixed", what: "an IPv4 prefix matches IPv6 addresses", file: "agent/policy/src/desired.rs",
        from: "IpNet::V4(_) => Self { addr: wire_addr(net.network()), bits: bits + V4_PREFIX_BITS },",
        to: "IpNet::V4(_) => Self { addr: wire_addr(net.network()), bits },", tests: Tests::Policy("turn::"),
    },
    Fault {
        name: "bytes-behind-the-end", what: "what the packet has no bytes for is read from the one before", file: SKB,
        from: "if offset as usize + N <= self.head.have as usize {", to: "if offset as usize <= self.head.have as usize {",
        tests: Tests::Kernel("kernel_frames", ""),
    },
    Fault {
        name: "own-node-by-device", what: "whatever lost its device counts as the own node's", file: SKB,
        from: "if came_from == 0 && self.has_socket() {", to: "if came_from == 0 {",
        tests: Tests::Lab("lab_threats", "routed_and_tracked"),
    },
    Fault {
        name: "tag-taken-out", what: "a VLAN tag that the kernel took out is none", file: "ebpf/src/main.rs",
        from: "    if !skb.is_tagged() {\n        let link", to: "    if !skb.is_tagged() || slot != NO_ENDPOINT {\n        let link",
        tests: Tests::Lab("lab_threats", "routed_and_tracked"),
    },
    Fault {
        name: "one-table-for-all", what: "a flow of one pod answers for another's", file: TABLES,
        from: "        let flows = FLOWS.get(slot)?;\n        match", to: "        let flows = FLOWS.get(0)?;\n        match",
        tests: Tests::Kernel("differential_fuzz", "sequences_that_once"),
    },
    Fault {
        name: "station-unchecked", what: "a pod behind a bridge may speak for another station", file: SKB,
        from: "station != own && station[0] & group == 0", to: "station != own && station[0] & group == 2",
        tests: Tests::Lab("lab_bridge", "what_a_bridge_floods"),
    },
    Fault {
        name: "delivered-by-source", what: "what is delivered is judged by where it is from", file: DELIVERED,
        from: "let Packet { dst, protocol, dst_port, .. } = work.packet;",
        to: "let Packet { src: dst, protocol, dst_port, .. } = work.packet;", tests: SERVICES,
    },
    Fault {
        name: "virtual-passes-untranslated", what: "a virtual address that nobody translated is delivered", file: DELIVERED,
        from: "if verdict.0 & Packed::WAITS != 0 {", to: "if verdict.0 & Packed::WAITS == u64::MAX {", tests: SERVICES,
    },
    Fault {
        name: "denied-backend-keeps-flow", what: "the flow to a denied backend stays", file: DELIVERED,
        from: "        env.remove(slot, &work.sent);", to: "        let _ = &work.sent;", tests: SERVICES,
    },
    Fault {
        name: "answers-for-ever", what: "answers through a Service pass however long the pod is silent", file: TUPLE,
        from: "                if stage.is_over(now) {", to: "                if stage.is_over(now) && now == 0 {", tests: SERVICES,
    },
    Fault {
        name: "node-port-without-mark", what: "a node port waits though the mark has no room for the pod", file: TUPLE,
        from: "        && work.slot <= MARK_SLOT\n", to: "", tests: SERVICES,
    },
    Fault {
        name: "node-port-unread", what: "what is sent to a node port is judged as the node's", file: TUPLE,
        from: "        && env.is_node_port(&key.remote,", to: "        && !env.is_node_port(&key.remote,", tests: SERVICES,
    },
    Fault {
        name: "itself-isolated", what: "a pod does not reach itself through a Service that masquerades", file: TUPLE,
        from: "(Direction::Ingress, Origin::OwnInterface, TCP | UDP | SCTP)",
        to: "(Direction::Ingress, Origin::OwnInterface, UDP | SCTP)", tests: SERVICES,
    },
    Fault {
        name: "mark-not-written", what: "what may be translated is judged nowhere else", file: "ebpf/src/main.rs",
        from: "        mark::write(packet, slot, verdict.delivery);", to: "        mark::write(packet, slot, Delivery::Done);",
        tests: LAB_SERVICES,
    },
    Fault {
        name: "uplink-passes-all", what: "what leaves by a device is not judged there", file: "ebpf/src/main.rs",
        from: "    deliver(skb, &mut scratch.work, link, sent)", to: "    deliver(skb, &mut scratch.work, link, sent) | PASS",
        tests: LAB_SERVICES,
    },
    Fault {
        name: "socket-passes-all", what: "what ends at a socket of the node is not judged there", file: "ebpf/src/main.rs",
        from: "sent) == PASS { CGROUP_PASS } else { CGROUP_DROP }", to: "sent) == PASS { CGROUP_PASS } else { CGROUP_DROP | CGROUP_PASS }",
        tests: LAB_SERVICES,
    },
    Fault {
        name: "loopback-decided-at-once", what: "what a host pod sends by the loopback device is judged before it ends", file: TUPLE,
        from: "if self.loops() && u32::from(self.word.egress) > RULESET_CLOSED {",
        to: "if self.loops() && u32::from(self.word.egress) > u32::from(u16::MAX) {", tests: LAB_HOSTS,
    },
    Fault {
        name: "any-pod-is-the-node", what: "one hostNetwork pod reaches another as the node's own processes do", file: "ebpf/src/host.rs",
        from: "    } else if from == state.node {", to: "    } else if from != slot {", tests: LAB_HOSTS,
    },
    Fault {
        name: "cgroup-of-another", what: "a pod in the node's network is judged as the node", file: "ebpf/src/host.rs",
        from: "            return slot;\n", to: "            return if slot == CGROUP_ELSEWHERE { slot } else { state.node };\n", tests: LAB_HOSTS,
    },
    Fault {
        name: "echo-for-everybody", what: "the kernel answers whom the node's policies do not let in", file: "ebpf/src/host.rs",
        from: "(packet.shape, packet.protocol), (Shape::Ongoing, ICMP | ICMPV6))",
        to: "(packet.shape, packet.protocol), (Shape::Arp, ICMP | ICMPV6))",
        tests: LAB_HOSTS_SOCKETS,
    },
    Fault {
        name: "anybody-answers", what: "a socket that is not connected hears anybody once it has sent", file: TUPLE,
        from: "if verdict.drops() && self.is_virtual(&work.packet.src, UDP, work.packet.src_port) =>",
        to: "if verdict.drops() && work.packet.protocol == UDP =>",
        tests: LAB_HOSTS_SOCKETS,
    },
];

//! T19: the exemption of the own node is for what the node itself makes, and not for what says so.

use std::net::{IpAddr, SocketAddr};

use portcullis_common::event::{Direction, Reason};
use portcullis_lab::{Ask, Client, Cni, Family, Probe, ProbeOptions, Target};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::field::{Conntrack, Fate, Field, OPEN, Shot, Who, run};
use portcullis_tests::frames::{self, DESTINATION, FRAGMENT, HOP_BY_HOP, Ipv6, Path, SYN, TCP, UDP};

use crate::FAMILIES;

const ISOLATED: Fate = Fate::Dropped(Direction::Ingress, Reason::Isolated);
const SPOOFED: Fate = Fate::Dropped(Direction::Egress, Reason::SpoofedSource);
/// Node ports of the server and of the open pod.
const NODE_PORT: u16 = 30_080;
const OPEN_NODE_PORT: u16 = 30_081;

pub(crate) fn attack(field: &mut Field) {
    for family in FAMILIES {
        itself(field, family);
        itself_in_pieces(field, family);
        forged(field, family);
    }
    in_fragments(field);
    reflected(field);
    if field.conntrack == Conntrack::On {
        node_ports(field);
    }
}

fn own(field: &Field, family: Family) -> IpAddr {
    let link = field.lab.state().link;
    match family {
        Family::Ipv4 => link.node4.into(),
        Family::Ipv6 => link.node6.into(),
    }
}

/// By real connections: the node reaches the server at the port that its friends use.
fn itself(field: &mut Field, family: Family) {
    let probes = [Protocol::Tcp, Protocol::Udp].map(|protocol| Probe {
        from: Client::Node,
        to: Target::Pod(ObjectKey::new("field", "server"), family),
        ask: Ask::Port(protocol, OPEN),
    });
    let outcomes = field.lab.probe(&probes, &ProbeOptions::default()).unwrap();
    for (probe, outcome) in probes.iter().zip(outcomes) {
        if outcome.cell() != '.' {
            field.wrong.push(format!("T19 the node itself, {:?} {}: {outcome}", probe.ask, family.name()));
        }
    }
}

/// What the node sends in pieces reaches every pod, and the answer comes back: the node is no peer of anybody's.
fn itself_in_pieces(field: &mut Field, family: Family) {
    for pod in ["server", "caged"] {
        let to = SocketAddr::new(field.address(Who::Pod(pod), family), 0);
        let outcome = field.lab.node().run(|| crate::fragments::echo(to)).unwrap();
        if !matches!(outcome, Ok(20_008)) {
            let name = family.name();
            field
                .wrong
                .push(format!("T19 an echo of 20,000 bytes from the node to {pod}, {name}: {outcome:?}"));
        }
    }
}

fn shot(what: &str, from: Who, family: Family, fate: Fate) -> Shot {
    Shot { threat: "T19", what: what.to_owned(), from, to: "server", family, fate }
}

fn forged(field: &mut Field, family: Family) {
    let mut addresses = vec![own(field, family)];
    if family == Family::Ipv6 {
        addresses.push("fe80::1".parse().unwrap());
    }
    for address in addresses {
        for pod in ["friend", "stranger", "open"] {
            let what = format!("from {address}");
            for protocol in [TCP, UDP] {
                field.shoot(&shot(&what, Who::Pod(pod), family, SPOOFED), |path, mark| {
                    vec![opening(path.from(address), protocol, mark)]
                });
            }
        }
    }
    let address = own(field, family);
    // A host does not forward what comes in its own name by IPv4; by IPv6 it does.
    let mut outsiders = vec![(Who::Outside, if family == Family::Ipv4 { Fate::Lost } else { ISOLATED })];
    if field.cni == Cni::Bridge {
        outsiders.push((Who::Stray, ISOLATED));
    }
    for (from, fate) in outsiders {
        for protocol in [TCP, UDP] {
            field.shoot(&shot(&format!("from {address}"), from, family, fate), |path, mark| {
                vec![opening(path.from(address), protocol, mark)]
            });
        }
        // And in its own name it is anybody.
        field
            .shoot(&shot("from itself", from, family, ISOLATED), |path, mark| vec![opening(path, UDP, mark)]);
    }
}

fn opening(path: Path, protocol: u8, mark: &[u8]) -> Vec<u8> {
    let segment = match protocol {
        TCP => frames::tcp(path, (40_050, OPEN), SYN, mark),
        _ => frames::udp(path, (40_050, OPEN), mark),
    };
    frames::frame(path, protocol, &segment)
}

/// Two IPv6 fragments whose first alone has a header in front: put together and taken apart again they lose their
/// device on the way.
fn in_fragments(field: &mut Field) {
    let family = Family::Ipv6;
    let node = own(field, family);
    let mut senders = vec![(Who::Outside, Some(node)), (Who::Outside, None), (Who::Pod("stranger"), None)];
    if field.cni == Cni::Bridge {
        senders.extend([(Who::Stray, Some(node)), (Who::Stray, None)]);
    }
    senders.push((Who::Pod("stranger"), Some(node)));
    for (number, (from, address)) in (0u32..).zip(senders) {
        for (kind, header) in [None, Some(DESTINATION), Some(HOP_BY_HOP)].into_iter().enumerate() {
            for protocol in [TCP, UDP] {
                let what =
                    format!("two fragments from {address:?}, {header:?} in front, protocol {protocol}");
                let id = 0x7119_0000 + number * 8 + kind as u32 * 2 + u32::from(protocol == TCP);
                field.shoot(&shot(&what, from, family, Fate::Lost), |path, mark| {
                    let path = address.map_or(path, |address| path.from(address));
                    two_fragments(path, header, id, protocol, mark)
                });
            }
        }
    }
}

fn two_fragments(path: Path, header: Option<u8>, id: u32, protocol: u8, mark: &[u8]) -> Vec<Vec<u8>> {
    let body = [mark, &[0; 64], mark].concat();
    let whole = match protocol {
        TCP => frames::tcp(path, (40_051, OPEN), SYN, &body),
        _ => frames::udp(path, (40_051, OPEN), &body),
    };
    let (first, second) = whole.split_at(48);
    let fragment = |offset: u16, more: u16, part: &[u8]| {
        let word = (offset & 0xfff8 | more).to_be_bytes();
        [&[protocol, 0][..], &word, &id.to_be_bytes(), part].concat()
    };
    let first = fragment(0, 1, first);
    let (next, first) = match header {
        // One option that pads.
        Some(header) => (header, [&[FRAGMENT, 0, 1, 4, 0, 0, 0, 0][..], &first].concat()),
        None => (FRAGMENT, first),
    };
    vec![
        Ipv6::default().frame(path, next, &first),
        Ipv6::default().frame(path, FRAGMENT, &fragment(48, 0, second)),
    ]
}

/// A SYN in a pod's name to a port of the node where nobody listens: the kernel refuses it with a segment that has neither
/// device nor socket, and it is no more than what outside made it send.
fn reflected(field: &mut Field) {
    const NOBODY: u16 = 9;
    let node = own(field, Family::Ipv6);
    let server = field.address(Who::Pod("server"), Family::Ipv6);
    field.shoot(&shot("the node's refusal", Who::Outside, Family::Ipv6, ISOLATED), |path, mark| {
        let path = path.from(server).to(node);
        vec![frames::frame(path, TCP, &frames::tcp(path, (40_053, NOBODY), SYN, mark))]
    });
}

/// From outside to a port of the node, which sends it on to the pod in its own name.
fn node_ports(field: &mut Field) {
    for family in FAMILIES {
        let node = own(field, family);
        let target = |pod| field.address(Who::Pod(pod), family);
        let (word, brackets) = match family {
            Family::Ipv4 => ("ip", ("", "")),
            Family::Ipv6 => ("ip6", ("[", "]")),
        };
        let to = |pod| format!("{}{}{}:{OPEN}", brackets.0, target(pod), brackets.1);
        let rules = format!(
            "table {word} ports {{
                chain pre {{ type nat hook prerouting priority -100;
                    udp dport {NODE_PORT} dnat to {}; udp dport {OPEN_NODE_PORT} dnat to {};
                    tcp dport {NODE_PORT} dnat to {}; tcp dport {OPEN_NODE_PORT} dnat to {}; }}
                chain post {{ type nat hook postrouting priority 100; ct status dnat masquerade; }}
            }}",
            to("server"),
            to("open"),
            to("server"),
            to("open"),
        );
        drop(run(field.lab.node(), &["nft", &rules]));
        for protocol in [TCP, UDP] {
            for (to, port, fate) in [("server", NODE_PORT, ISOLATED), ("open", OPEN_NODE_PORT, Fate::Arrives)]
            {
                let what = format!("node port {port}, protocol {protocol}");
                field.shoot(&Shot { to, ..shot(&what, Who::Outside, family, fate) }, |path, mark| {
                    let path = path.to(node);
                    let segment = match protocol {
                        TCP => frames::tcp(path, (40_052, port), SYN, mark),
                        _ => frames::udp(path, (40_052, port), mark),
                    };
                    vec![frames::frame(path, protocol, &segment)]
                });
            }
        }
        drop(run(field.lab.node(), &["nft", "delete", "table", word, "ports"]));
    }
}

//! T7: what is inside a packet is nothing to the programs, but where the node's own tunnel device lets it out.

use std::net::IpAddr;

use portcullis_common::event::{Direction, Reason};
use portcullis_lab::Family;
use portcullis_tests::field::{CONTROL, Fate, Field, OPEN, Shot, Who, run};
use portcullis_tests::frames::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Mac, Path};

use crate::{FAMILIES, WAYS};

/// IP in IP, IPv6 in IP, GRE, ESP and L2TP.
const PROTOCOLS: [u8; 5] = [4, 41, 47, 50, 115];
/// VXLAN's ports: Linux's and IANA's. GENEVE's.
const PORTS: [u16; 3] = [8472, 4789, 6081];
const VNI: [u8; 3] = [0, 0, 42];
const DEVICE_MAC: Mac = [2, 0, 0, 0, 0, 0x42];
const FAR4: [u8; 4] = [10, 80, 0, 1];
const FAR6: &str = "fd80::1";

pub(crate) fn attack(field: &mut Field) {
    for family in FAMILIES {
        for way in WAYS {
            carried(field, way.from, way.direction, family);
        }
        carried(field, Who::Outside, Direction::Ingress, family);
    }
    let link = field.lab.state().link;
    let local = link.node4.to_string();
    let node = field.lab.node();
    for words in [
        "link add vx0 address 02:00:00:00:00:42 type vxlan id 42 dstport 8472 dev uplink nolearning local",
        "link set vx0 up",
    ] {
        let mut command: Vec<&str> = std::iter::once("ip").chain(words.split(' ')).collect();
        if words.ends_with("local") {
            command.push(&local);
        }
        drop(run(node, &command));
    }
    for family in FAMILIES {
        let_out(field, family, link.node4.into());
    }
    drop(run(field.lab.node(), &["ip", "link", "del", "vx0"]));
}

/// A packet that the receiver would take, were it not inside another.
fn inside(path: Path, port: u16, mark: &[u8]) -> Vec<u8> {
    frames::packet(path, frames::UDP, &frames::udp(path, (40_030, port), mark))
}

fn carried(field: &mut Field, from: Who, direction: Direction, family: Family) {
    let denied = Fate::Dropped(direction, Reason::Isolated);
    let shot = |what: &str, to, fate| Shot { threat: "T7", what: what.to_owned(), from, to, family, fate };
    let friend = field.address(Who::Pod("friend"), family);
    for protocol in PROTOCOLS {
        field.shoot(&shot(&format!("protocol {protocol}"), "server", denied), |path, mark| {
            vec![frames::frame(path, protocol, &inside(path.from(friend), OPEN, mark))]
        });
        if from == Who::Pod("friend") {
            // What may use any protocol may use these.
            field.shoot(&shot(&format!("protocol {protocol}"), "bell", Fate::Arrives), |path, mark| {
                vec![frames::frame(path, protocol, &inside(path, OPEN, mark))]
            });
        }
    }
    for port in PORTS {
        field.shoot(&shot(&format!("VXLAN to port {port}"), "server", denied), |path, mark| {
            let body = vxlan(path.from(friend), path.dst_mac, &inside(path.from(friend), OPEN, mark));
            vec![frames::frame(path, frames::UDP, &frames::udp(path, (40_031, port), &body))]
        });
    }
    if from != Who::Outside {
        // At a port that is allowed it is a datagram like any other.
        field.shoot(&shot("VXLAN to the open port", "server", Fate::Arrives), |path, mark| {
            let body = vxlan(path, path.dst_mac, &inside(path, CONTROL, mark));
            vec![frames::frame(path, frames::UDP, &frames::udp(path, (40_032, OPEN), &body))]
        });
    }
}

/// A header and a frame (RFC 7348).
fn vxlan(path: Path, station: Mac, packet: &[u8]) -> Vec<u8> {
    let kind = if path.is_v6() { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
    let mut body = vec![8, 0, 0, 0];
    body.extend(VNI);
    body.push(0);
    body.extend(frames::ethernet(
        Path { dst_mac: station, src_mac: [2, 0, 0, 0, 0, 0x43], ..path },
        kind,
        packet,
    ));
    body
}

/// From outside to the node's own tunnel device: the inner packet is judged where it goes on to the pod.
fn let_out(field: &mut Field, family: Family, node: IpAddr) {
    let outer = field.path(Who::Outside, "server", Family::Ipv4).to(node);
    let far: IpAddr = match family {
        Family::Ipv4 => FAR4.into(),
        Family::Ipv6 => FAR6.parse().unwrap(),
    };
    let cases = [
        ("denied inside", "server", OPEN, Fate::Dropped(Direction::Ingress, Reason::Isolated)),
        ("allowed inside", "server", CONTROL, Fate::Arrives),
        ("to an open pod inside", "open", OPEN, Fate::Arrives),
    ];
    for (what, to, port, fate) in cases {
        let shot = Shot { threat: "T7", what: what.to_owned(), from: Who::Outside, to, family, fate };
        field.shoot(&shot, |path, mark| {
            let path = path.from(far);
            let body = vxlan(path, DEVICE_MAC, &inside(path, port, mark));
            vec![frames::frame(outer, frames::UDP, &frames::udp(outer, (40_033, PORTS[0]), &body))]
        });
    }
}

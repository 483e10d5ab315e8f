//! T6: every field that says who somebody is, forged by a pod whose own frames pass. The frames are for the port that
//! anybody may use: nothing but the binding of an interface to its pod stops them.

use std::net::{IpAddr, Ipv6Addr};

use portcullis_common::event::{Direction, Reason};
use portcullis_lab::{Cni, Family};
use portcullis_tests::field::{CONTROL, Fate, Field, Mark, OPEN, Shot, Who};
use portcullis_tests::frames::{self, ICMPV6, Mac, Path};

use crate::FAMILIES;

const LIAR: Who = Who::Pod("stranger");
const SPOOFED: Fate = Fate::Dropped(Direction::Egress, Reason::SpoofedSource);
const BROADCAST: Mac = [0xff; 6];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// The source's and the target's link-layer address, and a nonce (RFC 3971), in which there is room for a mark.
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
const NONCE: u8 = 14;
/// Router advertisement's and neighbour advertisement's flags: solicited, override.
const OVERRIDE: [u8; 4] = [0x20, 0, 0, 0];

pub(crate) fn attack(field: &mut Field) {
    for family in FAMILIES {
        addresses(field, family);
        stations(field, family);
    }
    arp(field);
    advertisements(field);
    routers(field);
    redirects(field);
    channels(field);
}

fn shot(what: &str, family: Family, fate: Fate) -> Shot {
    Shot { threat: "T6", what: what.to_owned(), from: LIAR, to: "server", family, fate }
}

fn datagram(path: Path, mark: &[u8]) -> Vec<u8> {
    frames::frame(path, frames::UDP, &frames::udp(path, (40_020, CONTROL), mark))
}

/// Addresses that are somebody else's, nobody's, or of no host.
fn addresses(field: &mut Field, family: Family) {
    let link = field.lab.state().link;
    let others = ["friend", "server", "caged"].map(|pod| field.address(Who::Pod(pod), family));
    let parse = |text: &[&str]| text.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
    let more = match family {
        Family::Ipv4 => {
            let mut all =
                parse(&["0.0.0.0", "127.0.0.1", "255.255.255.255", "224.0.0.1", "169.254.7.7", "10.79.0.77"]);
            all.extend([IpAddr::from(link.node4), link.outside4.into()]);
            all
        }
        Family::Ipv6 => {
            let mut all = parse(&["::", "::1", "ff02::1", "fe80::1", "fe80::77", "fd79::77", "2001:db8::77"]);
            all.extend([IpAddr::from(link.node6), link.outside6.into(), eui64(field.mac(LIAR)).into()]);
            all
        }
    };
    field.shoot(&shot("its own address", family, Fate::Arrives), |path, mark| vec![datagram(path, mark)]);
    for source in others.into_iter().chain(more) {
        field.shoot(&shot(&format!("from {source}"), family, SPOOFED), |path, mark| {
            vec![datagram(path.from(source), mark)]
        });
    }
    if family == Family::Ipv6 {
        // An IPv4 address in IPv6's clothes: it is no address on a wire (RFC 4291 section 2.5.5.2).
        let fate = Fate::Dropped(Direction::Egress, Reason::BadHeader);
        for source in ["::ffff:10.79.0.2", "::ffff:10.79.0.3"] {
            field.shoot(&shot(&format!("from {source}"), family, fate), |path, mark| {
                vec![datagram(path.from(source.parse().unwrap()), mark)]
            });
        }
    }
}

/// Behind a bridge a frame's own source draws the traffic of whoever has that address. On a link of two it means
/// nothing.
fn stations(field: &mut Field, family: Family) {
    let fate = match field.cni {
        Cni::Routed => Fate::Arrives,
        Cni::Bridge => SPOOFED,
    };
    let others = ["friend", "server"].map(|pod| field.mac(Who::Pod(pod)));
    for mac in others.into_iter().chain([field.gateway(LIAR), [0x0a, 0x58, 9, 9, 9, 9]]) {
        field.shoot(&shot(&format!("from station {mac:02x?}"), family, fate), |path, mark| {
            vec![datagram(Path { src_mac: mac, ..path }, mark)]
        });
    }
    for mac in [[0; 6], BROADCAST, [0x01, 0, 0x5e, 0, 0, 1]] {
        // No station has such an address; a host need not take it.
        let fate = if fate == Fate::Arrives { return } else { fate };
        field.shoot(&shot(&format!("from station {mac:02x?}"), family, fate), |path, mark| {
            vec![datagram(Path { src_mac: mac, ..path }, mark)]
        });
    }
}

fn arp(field: &mut Field) {
    let own = (field.mac(LIAR), field.address(LIAR, Family::Ipv4));
    let target = ([0; 6], field.address(Who::Pod("server"), Family::Ipv4));
    let marked = |path: Path, op, sender, target, mark: &[u8]| {
        let mut frame = frames::arp(Path { dst_mac: BROADCAST, ..path }, op, sender, target);
        frame.extend(mark);
        vec![frame]
    };
    let bridged = field.cni == Cni::Bridge;
    if bridged {
        for (what, op, sender) in [
            ("ARP request", REQUEST, own),
            ("ARP announcement", REPLY, own),
            ("ARP probe", REQUEST, (own.0, [0, 0, 0, 0].into())),
        ] {
            field.shoot(&shot(what, Family::Ipv4, Fate::Arrives), |path, mark| {
                marked(path, op, sender, target, mark)
            });
        }
    }
    let node = IpAddr::from(field.lab.state().link.node4);
    let others = ["friend", "server"].map(|pod| field.address(Who::Pod(pod), Family::Ipv4));
    for other in others.into_iter().chain([node, [10, 79, 0, 77].into(), [255; 4].into()]) {
        for op in [REQUEST, REPLY] {
            let what = format!("ARP {op} of {other}");
            field.shoot(&shot(&what, Family::Ipv4, SPOOFED), |path, mark| {
                marked(path, op, (own.0, other), target, mark)
            });
            let what = format!("ARP {op} of {other} about itself");
            field.shoot(&shot(&what, Family::Ipv4, SPOOFED), |path, mark| {
                marked(path, op, (own.0, other), (BROADCAST, other), mark)
            });
        }
    }
    if bridged {
        // Its own address, at another station: nobody else's traffic, but the bridge's order.
        for mac in [field.mac(Who::Pod("friend")), field.gateway(LIAR)] {
            field.shoot(&shot(&format!("ARP at {mac:02x?}"), Family::Ipv4, SPOOFED), |path, mark| {
                marked(path, REPLY, (mac, own.1), target, mark)
            });
        }
    }
    // Of other hardware, or another protocol: it is not ARP for IPv4 over Ethernet.
    for (place, byte) in [(15, 6), (16, 0x86), (18, 8), (19, 16)] {
        let fate = Fate::Dropped(Direction::Egress, Reason::NotIp);
        field.shoot(&shot(&format!("ARP with {byte} at {place}"), Family::Ipv4, fate), |path, mark| {
            let mut frames = marked(path, REPLY, own, target, mark);
            frames[0][place] = byte;
            frames
        });
    }
}

fn nonce(mark: &[u8]) -> Vec<u8> {
    [&[NONCE, 2, 0, 0, 0, 0, 0, 0][..], mark].concat()
}

/// What a neighbour says of a target, with what it says the target's station is.
fn said(path: Path, kind: u8, target: IpAddr, link: Option<(u8, Mac)>, mark: &[u8]) -> Vec<u8> {
    let mut rest = frames::octets(target);
    rest.extend(link.map(|(kind, mac)| frames::link_option(kind, mac)).unwrap_or_default());
    rest.extend(nonce(mark));
    frames::discovery(path, kind, OVERRIDE, &rest)
}

fn advertisements(field: &mut Field) {
    let family = Family::Ipv6;
    let own = (field.mac(LIAR), field.address(LIAR, family));
    let bridged = field.cni == Cni::Bridge;
    let others = ["friend", "server"].map(|pod| field.address(Who::Pod(pod), family));
    let node = IpAddr::from(field.lab.state().link.node6);
    if bridged {
        field.shoot(&shot("advertisement of its own", family, Fate::Arrives), |path, mark| {
            vec![said(path, ADVERTISEMENT, own.1, Some((TARGET_LINK, own.0)), mark)]
        });
        field.shoot(&shot("solicitation", family, Fate::Arrives), |path, mark| {
            vec![said(path, SOLICITATION, path.dst, Some((SOURCE_LINK, own.0)), mark)]
        });
        field.shoot(&shot("solicitation from nobody", family, Fate::Arrives), |path, mark| {
            vec![said(path.from(Ipv6Addr::UNSPECIFIED.into()), SOLICITATION, own.1, None, mark)]
        });
    }
    for target in others.into_iter().chain([node, "fd79::77".parse().unwrap()]) {
        for link in [None, Some((TARGET_LINK, own.0))] {
            field.shoot(&shot(&format!("advertisement of {target}"), family, SPOOFED), |path, mark| {
                vec![said(path, ADVERTISEMENT, target, link, mark)]
            });
        }
        field.shoot(&shot(&format!("advertisement from {target}"), family, SPOOFED), |path, mark| {
            vec![said(path.from(target), ADVERTISEMENT, target, Some((TARGET_LINK, own.0)), mark)]
        });
        field.shoot(&shot(&format!("solicitation from {target}"), family, SPOOFED), |path, mark| {
            vec![said(path.from(target), SOLICITATION, path.dst, Some((SOURCE_LINK, own.0)), mark)]
        });
    }
    if bridged {
        let friend = field.mac(Who::Pod("friend"));
        for (what, kind, target, link) in [
            ("advertisement of the gateway", ADVERTISEMENT, "fe80::1".parse().unwrap(), (TARGET_LINK, own.0)),
            ("advertisement at another station", ADVERTISEMENT, own.1, (TARGET_LINK, friend)),
            ("solicitation at another station", SOLICITATION, own.1, (SOURCE_LINK, friend)),
        ] {
            field.shoot(&shot(what, family, SPOOFED), |path, mark| {
                vec![said(path, kind, target, Some(link), mark)]
            });
        }
        field.shoot(&shot("solicitation from the gateway", family, SPOOFED), |path, mark| {
            vec![said(path.from("fe80::1".parse().unwrap()), SOLICITATION, path.dst, None, mark)]
        });
    }
    // Too long to be neighbour discovery, and not from this link: to be judged like anything else.
    let fate = field.unreadable(Direction::Ingress, Reason::BadHeader);
    field.shoot(&shot("a long solicitation", family, fate), |path, mark| {
        let rest = [frames::octets(path.dst), nonce(mark), vec![0; 128]].concat();
        vec![frames::discovery(path, SOLICITATION, [0; 4], &rest)]
    });
    field.shoot(&shot("advertisement from afar", family, fate), |path, mark| {
        let rest = [frames::octets(own.1), nonce(mark)].concat();
        let message = frames::icmp(path, ADVERTISEMENT, 0, OVERRIDE, &rest);
        vec![frames::frame_with_hops(path, 254, ICMPV6, &message)]
    });
}

fn routers(field: &mut Field) {
    let family = Family::Ipv6;
    let advertisement = |path: Path, mark: &[u8]| {
        let rest = [&[0; 8][..], &nonce(mark)].concat();
        frames::discovery(path, ROUTER_ADVERTISEMENT, [64, 0, 0x0f, 0xff], &rest)
    };
    let fate = Fate::Dropped(Direction::Egress, Reason::RouterAdvertisement);
    let everybody = ("ff02::1".parse().unwrap(), [0x33, 0x33, 0, 0, 0, 1]);
    for (what, source) in [
        ("router advertisement", field.address(LIAR, family)),
        ("router advertisement from its link", eui64(field.mac(LIAR)).into()),
        ("router advertisement from the gateway", "fe80::1".parse().unwrap()),
    ] {
        field.shoot(&shot(what, family, fate), |path, mark| vec![advertisement(path.from(source), mark)]);
        field.shoot(&shot(&format!("{what} to all"), family, fate), |path, mark| {
            let path = Path { dst_mac: everybody.1, ..path.from(source).to(everybody.0) };
            vec![advertisement(path, mark)]
        });
    }
    if field.cni == Cni::Bridge {
        // Routers are not pods, and pods hear them.
        let stray = Shot { from: Who::Stray, ..shot("router advertisement", family, Fate::Arrives) };
        field.shoot(&stray, |path, mark| vec![advertisement(path.from("fe80::99".parse().unwrap()), mark)]);
        // Nor are they asked by a pod in another's name.
        field.shoot(&shot("router solicitation from another", family, SPOOFED), |path, mark| {
            vec![frames::discovery(
                path.from("fe80::1".parse().unwrap()),
                ROUTER_SOLICITATION,
                [0; 4],
                &nonce(mark),
            )]
        });
    }
}

/// What always passes carries nothing else, from one that may send nothing.
fn channels(field: &mut Field) {
    let caged = Who::Pod("caged");
    let own = (field.mac(caged), field.address(caged, Family::Ipv4));
    let denied = |reason| Fate::Dropped(Direction::Egress, reason);
    let of = |what: &str, family, fate| Shot { from: caged, to: "open", ..shot(what, family, fate) };
    field.shoot(&of("a long ARP frame", Family::Ipv4, denied(Reason::NotIp)), |path, mark| {
        let target = ([0; 6], path.dst);
        vec![[frames::arp(path, REQUEST, own, target), vec![0; 400], mark.to_vec()].concat()]
    });
    let family = Family::Ipv6;
    field.shoot(&of("what stands behind a solicitation", family, denied(Reason::BadHeader)), |path, mark| {
        vec![[said(path, SOLICITATION, path.dst, None, &[0; 8]), vec![0; 400], mark.to_vec()].concat()]
    });
    let report = |path: Path, mark: &Mark| {
        let message = frames::icmp(path, 143, 0, [0, 0, 0, 0], mark);
        vec![frames::frame_with_hops(path, 1, ICMPV6, &message)]
    };
    field.shoot(&of("a report to one host", family, denied(Reason::Isolated)), report);
    if field.cni == Cni::Bridge {
        field.shoot(&of("a report to a group", family, Fate::Arrives), |path, mark| {
            report(Path { dst_mac: [0x33, 0x33, 0, 0, 0, 1], ..path.to("ff02::1".parse().unwrap()) }, mark)
        });
    }
    // A server that hands out addresses is one that may be reached.
    let isolated = Fate::Dropped(Direction::Ingress, Reason::Isolated);
    field.shoot(&shot("an answer of DHCP", Family::Ipv4, isolated), |path, mark| {
        vec![frames::frame(path, frames::UDP, &frames::udp(path, (67, 68), mark))]
    });
    field.shoot(&of("IGMP", Family::Ipv4, denied(Reason::Isolated)), |path, mark| {
        vec![frames::frame(path.to([224, 0, 0, 22].into()), 2, mark)]
    });
    // To everybody: whoever is isolated hears what is allowed to anybody, and nothing else.
    if field.cni == Cni::Bridge {
        for (family, group, station) in [
            (Family::Ipv4, "255.255.255.255", BROADCAST),
            (Family::Ipv4, "224.0.0.1", [0x01, 0, 0x5e, 0, 0, 1]),
            (Family::Ipv6, "ff02::1", [0x33, 0x33, 0, 0, 0, 1]),
        ] {
            for (port, fate) in [(CONTROL, Fate::Arrives), (OPEN, Fate::Lost)] {
                field.shoot(&shot(&format!("to {group}, {port}"), family, fate), |path, mark| {
                    let path = Path { dst_mac: station, ..path.to(group.parse().unwrap()) };
                    vec![frames::frame(path, frames::UDP, &frames::udp(path, (40_021, port), mark))]
                });
            }
        }
    }
}

/// No pod sends others elsewhere.
fn redirects(field: &mut Field) {
    let friend = field.address(Who::Pod("friend"), Family::Ipv6);
    let fate = match field.cni {
        // The node's end of the link hears it, and does not follow; nobody else does.
        Cni::Routed => Fate::Lost,
        Cni::Bridge => SPOOFED,
    };
    for source in [field.address(LIAR, Family::Ipv6), eui64(field.mac(LIAR)).into()] {
        field.shoot(&shot(&format!("redirect from {source}"), Family::Ipv6, fate), |path, mark| {
            let rest = [frames::octets(source), frames::octets(friend), nonce(mark)].concat();
            vec![frames::discovery(path.from(source), REDIRECT, [0; 4], &rest)]
        });
    }
    let fate = Fate::Dropped(Direction::Ingress, Reason::Isolated);
    let IpAddr::V4(own) = field.address(LIAR, Family::Ipv4) else { return };
    for code in 0..4 {
        field.shoot(&shot(&format!("ICMP redirect {code}"), Family::Ipv4, fate), |path, mark| {
            let about = frames::packet(path.turned(), frames::UDP, &frames::udp(path.turned(), (1, 2), mark));
            vec![frames::frame(path, frames::ICMP, &frames::icmp(path, 5, code, own.octets(), &about))]
        });
    }
}

/// The link-local address of a station (RFC 4291 appendix A).
fn eui64(mac: Mac) -> Ipv6Addr {
    let [first, second, third, rest @ ..] = mac;
    let mut bytes = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, first ^ 2, second, third, 0xff, 0xfe, 0, 0, 0];
    bytes[13..].copy_from_slice(&rest);
    bytes.into()
}

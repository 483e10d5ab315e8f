//! The parser: every kind of header whole, cut at every length, and corrupted.

use std::vec::Vec;

use super::*;
use crate::testing::{
    LINK_LOCAL, PEER4, PEER6, POD4, POD6, Rng, ethernet, icmp, ipv4, ipv4_with, ipv6, ipv6_with, neighbour,
    read, read_ip, sctp, some_packet, tcp, udp, v6,
};

const ENDS4: (Addr, Addr) = (POD4, PEER4);
const ENDS6: (Addr, Addr) = (POD6, PEER6);
/// Hop-by-hop: `ICMPv6` next, one word of 8 bytes, router alert for multicast listener discovery.
const HOP_BY_HOP: [u8; 8] = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];

fn error_of(packet: &Packet) -> Option<ParseError> {
    matches!(packet.shape, Shape::Unreadable | Shape::BrokenIp).then_some(packet.error)
}

fn behind_hop_by_hop(first: u8) -> Vec<u8> {
    let mut payload = HOP_BY_HOP.to_vec();
    payload.extend(icmp(first, 0));
    payload
}

/// One of each kind that is read, IP header first.
fn whole() -> Vec<(&'static str, Vec<u8>, Shape)> {
    let quoted = |mut message: Vec<u8>, of: Vec<u8>| {
        message.extend(of);
        message
    };
    let error4 = quoted(icmp(3, 0), ipv4(TCP, (PEER4, POD4), &tcp(80, 4000, 0)));
    let error6 = quoted(icmp(1, 0), ipv6(TCP, (PEER6, POD6), &tcp(80, 4000, 0)));
    let discover = ipv4(UDP, (Addr::v4([0; 4]), Addr::v4([255; 4])), &udp(68, 67));
    std::vec![
        ("TCP SYN", ipv4(TCP, ENDS4, &tcp(4000, 80, TCP_SYN)), Shape::Opening),
        ("TCP ACK", ipv4(TCP, ENDS4, &tcp(4000, 80, TCP_ACK)), Shape::Ongoing),
        ("TCP with options", ipv4_with(&[1; 40], 0, TCP, ENDS4, &tcp(4000, 80, TCP_SYN)), Shape::Opening),
        ("do not fragment", ipv4_with(&[], 0x4000, TCP, ENDS4, &tcp(4000, 80, TCP_SYN)), Shape::Opening),
        ("UDP", ipv4(UDP, ENDS4, &udp(4000, 53)), Shape::Opening),
        ("SCTP INIT", ipv4(SCTP, ENDS4, &sctp(4000, 80, 1)), Shape::Opening),
        ("SCTP DATA", ipv4(SCTP, ENDS4, &sctp(4000, 80, 0)), Shape::Ongoing),
        ("echo request", ipv4(ICMP, ENDS4, &icmp(8, 77)), Shape::Opening),
        ("echo reply", ipv4(ICMP, ENDS4, &icmp(0, 77)), Shape::Ongoing),
        ("timestamp", ipv4(ICMP, ENDS4, &icmp(13, 77)), Shape::Ongoing),
        ("unreachable", ipv4(ICMP, ENDS4, &error4), Shape::IcmpError),
        ("DHCP discover", discover, Shape::DhcpDiscover),
        ("GRE", ipv4(47, ENDS4, &[0; 8]), Shape::Opening),
        ("IPv6 TCP SYN", ipv6(TCP, ENDS6, &tcp(4000, 80, TCP_SYN)), Shape::Opening),
        ("IPv6 UDP", ipv6(UDP, ENDS6, &udp(4000, 53)), Shape::Opening),
        ("IPv6 echo request", ipv6(ICMPV6, ENDS6, &icmp(128, 77)), Shape::Opening),
        ("IPv6 echo reply", ipv6(ICMPV6, ENDS6, &icmp(129, 77)), Shape::Ongoing),
        ("IPv6 unreachable", ipv6(ICMPV6, ENDS6, &error6), Shape::IcmpError),
        ("ESP", ipv6(50, ENDS6, &[0; 16]), Shape::Opening),
        ("solicitation", ipv6_with(ICMPV6, 255, ENDS6, &neighbour(135, PEER6)), Shape::Neighbour),
        (
            "advertisement",
            ipv6_with(ICMPV6, 255, ENDS6, &neighbour(136, POD6)),
            Shape::NeighbourAdvertisement
        ),
        ("router", ipv6_with(ICMPV6, 255, ENDS6, &neighbour(134, POD6)), Shape::RouterAdvertisement),
        (
            "listener report",
            ipv6_with(0, 1, (LINK_LOCAL, PEER6), &behind_hop_by_hop(143)),
            Shape::ListenerDiscovery
        ),
    ]
}

#[test]
fn every_kind_is_read_with_and_without_an_ethernet_header() {
    for (what, bytes, shape) in whole() {
        let bare = read_ip(&bytes);
        assert_eq!((bare.shape, error_of(&bare)), (shape, None), "{what}");
        assert_eq!(bare.bytes as usize, bytes.len(), "{what}");
        let kind = if bytes[0] >> 4 == 4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let framed = read(Link::Ethernet, &ethernet(kind, &bytes));
        let inner = if bare.inner == 0 { 0 } else { bare.inner + ETHERNET_BYTES };
        assert_eq!(framed, Packet { inner, ..bare }, "{what}");
    }
}

#[test]
fn a_packet_that_is_cut_at_any_length_is_never_read() {
    for (what, bytes, _) in whole() {
        for len in 0..bytes.len() {
            let packet = read_ip(&bytes[..len]);
            assert_eq!(error_of(&packet), Some(ParseError::Truncated), "{what} cut at {len}: {packet:?}");
        }
        let kind = if bytes[0] >> 4 == 4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let frame = ethernet(kind, &bytes);
        for len in 0..frame.len() {
            let packet = read(Link::Ethernet, &frame[..len]);
            let refused = error_of(&packet) == Some(ParseError::Truncated);
            assert_eq!(refused, len >= 14, "{what}, frame cut at {len}: {packet:?}");
            assert!(refused || packet == Packet::OTHER, "{what}, frame cut at {len}: {packet:?}");
        }
    }
}

#[test]
fn a_packet_whose_ip_length_is_cut_with_it_lacks_its_transport_header() {
    let cut = |protocol: u8, header: Vec<u8>| {
        for len in 0..header.len() {
            for packet in [ipv4(protocol, ENDS4, &header[..len]), ipv6(protocol, ENDS6, &header[..len])] {
                let packet = read_ip(&packet);
                assert_eq!(error_of(&packet), Some(ParseError::Truncated), "{protocol} cut at {len}");
                assert_eq!((packet.src_port, packet.dst_port), (0, 0), "{protocol} cut at {len}");
            }
        }
    };
    cut(TCP, tcp(4000, 80, TCP_SYN));
    cut(UDP, udp(4000, 53));
    cut(SCTP, sctp(4000, 80, 1));
    for len in 0..8 {
        for (protocol, kind) in [(ICMP, 8), (ICMPV6, 128)] {
            let header = &icmp(kind, 1)[..len];
            let packet =
                if protocol == ICMP { ipv4(protocol, ENDS4, header) } else { ipv6(protocol, ENDS6, header) };
            assert_eq!(error_of(&read_ip(&packet)), Some(ParseError::Truncated));
        }
    }
}

#[test]
fn a_longer_frame_than_its_packet_is_padding() {
    let mut bytes = ipv4(UDP, ENDS4, &udp(4000, 53));
    let read_whole = read_ip(&bytes);
    bytes.extend([0xaa; 18]);
    assert_eq!(read_ip(&bytes), read_whole);
}

#[test]
fn ports_addresses_and_flags_are_where_they_belong() {
    for options in 0..=10 {
        let options = std::vec![1; options * 4];
        let packet = read_ip(&ipv4_with(&options, 0, TCP, ENDS4, &tcp(4000, 80, TCP_SYN | 0xc0)));
        assert_eq!((packet.src, packet.dst), ENDS4);
        assert_eq!((packet.src_port, packet.dst_port, packet.tcp_flags), (4000, 80, TCP_SYN | 0xc0));
        assert_eq!(packet.shape, Shape::Opening);
    }
    let packet = read_ip(&ipv6(ICMPV6, ENDS6, &icmp(128, 0x1234)));
    assert_eq!((packet.src, packet.dst), ENDS6);
    assert_eq!((packet.src_port, packet.dst_port), (0x1234, 0x1234));
}

#[test]
fn only_syn_alone_of_the_four_flags_opens() {
    for flags in 0..=u8::MAX {
        let shape = read_ip(&ipv4(TCP, ENDS4, &tcp(4000, 80, flags))).shape;
        let opens = flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN;
        assert_eq!(shape, if opens { Shape::Opening } else { Shape::Ongoing }, "flags {flags:#x}");
    }
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    let valid = ipv4(TCP, ENDS4, &tcp(4000, 80, TCP_SYN));
    let with = |at: usize, value: u8| {
        let mut bytes = valid.clone();
        bytes[at] = value;
        read_ip(&bytes)
    };
    for ihl in 0..5 {
        assert_eq!(error_of(&with(0, 0x40 | ihl)), Some(ParseError::BadHeader), "IHL {ihl}");
    }
    for version in [0, 1, 2, 3, 5, 7, 15] {
        let packet = with(0, version << 4 | 5);
        assert_eq!((packet.shape, packet.error), (Shape::BrokenIp, ParseError::BadHeader));
    }
    assert_eq!(error_of(&with(3, 19)), Some(ParseError::BadHeader), "shorter than its header");
    for offset in 0..5u8 {
        assert_eq!(error_of(&with(20 + 12, offset << 4)), Some(ParseError::BadHeader), "TCP offset {offset}");
    }
    assert_eq!(
        error_of(&with(20 + 12, 6 << 4)),
        Some(ParseError::Truncated),
        "TCP options that are not there"
    );
    for length in 1..8 {
        let mut header = udp(4000, 53);
        header[5] = length;
        assert_eq!(error_of(&read_ip(&ipv4(UDP, ENDS4, &header))), Some(ParseError::BadHeader));
    }
}

#[test]
fn a_version_other_than_the_ethertypes_is_broken() {
    let (four, six) = (ipv4(TCP, ENDS4, &[0; 40]), ipv6(TCP, ENDS6, &tcp(1, 2, TCP_SYN)));
    for (kind, bytes) in [(ETHERTYPE_IPV6, four), (ETHERTYPE_IPV4, six)] {
        let packet = read(Link::Ethernet, &ethernet(kind, &bytes));
        assert_eq!((packet.shape, packet.error), (Shape::BrokenIp, ParseError::BadHeader));
    }
}

#[test]
fn source_routing_is_found_at_every_place_of_the_options() {
    for kind in [131, 137] {
        for before in 0..=36 {
            let mut options = std::vec![1; before];
            options.extend([kind, 3, 4]);
            options.resize(40, 0);
            let packet = read_ip(&ipv4_with(&options, 0, TCP, ENDS4, &tcp(4000, 80, TCP_SYN)));
            assert_eq!(error_of(&packet), Some(ParseError::SourceRoute), "{kind} behind {before}");
        }
    }
    let behind_the_end = ipv4_with(&[0, 131, 3, 4], 0, TCP, ENDS4, &tcp(4000, 80, TCP_SYN));
    assert_eq!(error_of(&read_ip(&behind_the_end)), None, "what follows the end is no option");
    let inside_another = ipv4_with(&[7, 4, 131, 3], 0, TCP, ENDS4, &tcp(4000, 80, TCP_SYN));
    assert_eq!(error_of(&read_ip(&inside_another)), None, "an option's data is no option");
}

#[test]
fn options_that_do_not_fit_are_refused() {
    for options in [[7, 0, 0, 0], [7, 1, 0, 0], [7, 5, 0, 0], [7, 255, 0, 0], [1, 1, 1, 7]] {
        let packet = read_ip(&ipv4_with(&options, 0, TCP, ENDS4, &tcp(4000, 80, TCP_SYN)));
        assert_eq!(error_of(&packet), Some(ParseError::BadHeader), "{options:?}");
    }
}

#[test]
fn fragments_are_refused_with_known_addresses() {
    for word in [0x2000, 0x2001, 1, 0x1fff, 0x3fff, 0x6000] {
        let packet = read_ip(&ipv4_with(&[], word, TCP, ENDS4, &tcp(4000, 80, TCP_SYN)));
        assert_eq!((packet.shape, packet.error), (Shape::Unreadable, ParseError::Fragment), "{word:#x}");
        assert_eq!((packet.src, packet.dst, packet.src_port), (POD4, PEER4, 0));
    }
    let packet = read_ip(&ipv6(NEXT_FRAGMENT, ENDS6, &[0; 40]));
    assert_eq!((packet.shape, packet.error), (Shape::Unreadable, ParseError::Fragment));
    assert_eq!((packet.src, packet.dst), ENDS6);
}

#[test]
fn extension_headers_are_refused() {
    for next in [43, 51, 60, 135, 139, 140] {
        let packet = read_ip(&ipv6(next, ENDS6, &[0; 64]));
        assert_eq!(error_of(&packet), Some(ParseError::ExtensionHeader), "next header {next}");
    }
}

#[test]
fn hop_by_hop_goes_before_listener_discovery_only() {
    for first in 0..=u8::MAX {
        let packet = read_ip(&ipv6_with(0, 1, ENDS6, &behind_hop_by_hop(first)));
        if matches!(first, 130..=132 | 143) {
            assert_eq!((packet.shape, packet.protocol), (Shape::ListenerDiscovery, ICMPV6), "type {first}");
        } else {
            assert_eq!(error_of(&packet), Some(ParseError::ExtensionHeader), "type {first}");
        }
    }
    for next in (0..=u8::MAX).filter(|next| *next != ICMPV6) {
        let mut payload = behind_hop_by_hop(143);
        payload[0] = next;
        let packet = read_ip(&ipv6_with(0, 1, ENDS6, &payload));
        assert_eq!(error_of(&packet), Some(ParseError::ExtensionHeader), "next header {next}");
    }
}

#[test]
fn a_hop_by_hop_header_of_any_length_has_to_be_there() {
    for words in 0..=u8::MAX {
        let mut payload = std::vec![ICMPV6, words, 5, 2, 0, 0, 1, 0];
        payload.resize((usize::from(words) + 1) * 8, 0);
        payload.extend(icmp(143, 0));
        assert_eq!(
            read_ip(&ipv6_with(0, 1, ENDS6, &payload)).shape,
            Shape::ListenerDiscovery,
            "{words} words"
        );
        payload.pop();
        let packet = read_ip(&ipv6_with(0, 1, ENDS6, &payload));
        assert_eq!(error_of(&packet), Some(ParseError::Truncated), "{words} words");
    }
}

#[test]
fn listener_discovery_that_a_router_could_forward_is_refused() {
    for hops in (0..=u8::MAX).filter(|hops| *hops != 1) {
        for first in [130, 131, 132, 143] {
            let behind = ipv6_with(0, hops, ENDS6, &behind_hop_by_hop(first));
            assert_eq!(error_of(&read_ip(&behind)), Some(ParseError::BadHeader), "{first}, {hops} hops");
            let bare = ipv6_with(ICMPV6, hops, ENDS6, &icmp(first, 0));
            assert_eq!(error_of(&read_ip(&bare)), Some(ParseError::BadHeader), "{first}, {hops} hops");
        }
    }
}

#[test]
fn neighbour_discovery_that_a_router_forwarded_is_refused() {
    for kind in 133..=137 {
        for hops in 0..u8::MAX {
            let packet = read_ip(&ipv6_with(ICMPV6, hops, ENDS6, &neighbour(kind, PEER6)));
            assert_eq!(error_of(&packet), Some(ParseError::BadHeader), "type {kind}, {hops} hops");
        }
        assert_eq!(error_of(&read_ip(&ipv6_with(ICMPV6, 255, ENDS6, &neighbour(kind, PEER6)))), None);
    }
    let short = ipv6_with(ICMPV6, 255, ENDS6, &icmp(136, 0));
    assert_eq!(error_of(&read_ip(&short)), Some(ParseError::Truncated), "an advertisement without target");
}

#[test]
fn neighbour_discovery_carries_nothing_else() {
    for kind in [133, 135, 136, 137] {
        let mut message = neighbour(kind, PEER6);
        message.resize(ND_MAX_BYTES as usize, 0);
        assert_eq!(error_of(&read_ip(&ipv6_with(ICMPV6, 255, ENDS6, &message))), None, "type {kind}");
        message.push(0);
        let packet = read_ip(&ipv6_with(ICMPV6, 255, ENDS6, &message));
        assert_eq!(error_of(&packet), Some(ParseError::BadHeader), "type {kind}");
    }
}

/// A flow is found by its ports: those of an echo are equal, whatever its identifier.
#[test]
fn icmp_other_than_echo_has_the_ports_of_no_echo() {
    for kind in 0..=u8::MAX {
        let packet = read_ip(&ipv4(ICMP, ENDS4, &icmp(kind, 0)));
        let echo = packet.src_port == packet.dst_port;
        assert_eq!(echo, matches!(kind, 0 | 8 | 3 | 11 | 12), "ICMP type {kind}");
        let packet = read_ip(&ipv6_with(ICMPV6, 255, ENDS6, &icmp(kind, 0)));
        if let Shape::Ongoing = packet.shape {
            assert_eq!(packet.src_port == packet.dst_port, kind == 129, "ICMPv6 type {kind}");
        }
    }
}

#[test]
fn mapped_addresses_have_no_meaning_in_ipv6() {
    for ends in [(POD4, PEER6), (POD6, PEER4), (POD4, PEER4)] {
        let packet = read_ip(&ipv6(TCP, ends, &tcp(4000, 80, TCP_SYN)));
        assert_eq!((packet.shape, packet.error), (Shape::BrokenIp, ParseError::BadHeader), "{ends:?}");
        assert_eq!((packet.src, packet.dst), (Addr::UNSPECIFIED, Addr::UNSPECIFIED));
    }
    // The deprecated compatible form is IPv6 like any other.
    let compatible = v6([0, 0, 0, 0, 0, 0, 0x0a00, 1]);
    assert_eq!(read_ip(&ipv6(TCP, (compatible, PEER6), &tcp(1, 2, TCP_SYN))).shape, Shape::Opening);
}

#[test]
fn the_other_familys_icmp_is_a_protocol_without_ports() {
    let packets = [ipv4(ICMPV6, ENDS4, &icmp(135, 9)), ipv6(ICMP, ENDS6, &icmp(8, 9))];
    for packet in packets.map(|bytes| read_ip(&bytes)) {
        assert_eq!((packet.shape, packet.src_port, packet.dst_port), (Shape::Opening, 0, 0));
    }
}

#[test]
fn dhcp_discovery_has_both_its_ports_and_both_its_addresses() {
    let (none, all) = (Addr::v4([0; 4]), Addr::v4([255; 4]));
    let shape = |src_port, dst_port, ends| read_ip(&ipv4(UDP, ends, &udp(src_port, dst_port))).shape;
    assert_eq!(shape(68, 67, (none, all)), Shape::DhcpDiscover);
    for (src_port, dst_port, ends) in [
        (67, 68, (none, all)),
        (68, 68, (none, all)),
        (68, 67, (POD4, all)),
        (68, 67, (none, PEER4)),
        (40_000, 67, (none, all)),
    ] {
        assert_eq!(shape(src_port, dst_port, ends), Shape::Opening);
    }
}

#[test]
fn arp_is_of_ipv4_over_ethernet() {
    let mut body = std::vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2];
    body.extend(&POD4.bytes[12..]);
    body.extend([0; 6]);
    body.extend(&PEER4.bytes[12..]);
    let frame = ethernet(ETHERTYPE_ARP, &body);
    let packet = read(Link::Ethernet, &frame);
    assert_eq!((packet.shape, packet.src), (Shape::Arp, POD4));
    for len in 0..frame.len() {
        assert_eq!(read(Link::Ethernet, &frame[..len]), Packet::OTHER, "cut at {len}");
    }
    for at in 0..6 {
        let mut other = frame.clone();
        other[14 + at] ^= 0x10;
        assert_eq!(read(Link::Ethernet, &other), Packet::OTHER, "byte {at}");
    }
}

#[test]
fn other_ethertypes_are_nothing() {
    for kind in [0x0026, 0x8100, 0x88a8, 0x8847, 0x8863, 0x0801, 0x86dc] {
        assert_eq!(read(Link::Ethernet, &ethernet(kind, &[0; 60])), Packet::OTHER, "{kind:#x}");
    }
}

fn embedded(bytes: &[u8], protocol: u8) -> Option<Embedded> {
    let mut inner = Embedded::NONE;
    parse_embedded(&bytes, 0, protocol, &mut inner).map(|()| inner)
}

#[test]
fn an_error_tells_the_flow_that_it_is_about() {
    for (protocol, quoted) in [
        (ICMP, ipv4(TCP, ENDS4, &tcp(4000, 80, TCP_SYN))),
        (ICMP, ipv4_with(&[1; 40], 0x2000, TCP, ENDS4, &tcp(4000, 80, TCP_SYN))),
        (ICMPV6, ipv6(TCP, ENDS6, &tcp(4000, 80, TCP_SYN))),
    ] {
        let whole = embedded(&quoted[..], protocol).unwrap();
        assert_eq!((whole.protocol, whole.src_port, whole.dst_port), (TCP, 4000, 80));
        assert_eq!((whole.src, whole.dst), if protocol == ICMP { ENDS4 } else { ENDS6 });
        let transport = quoted.len() - 20;
        for len in 0..transport + 8 {
            assert_eq!(embedded(&quoted[..len], protocol), None, "cut at {len}");
        }
        assert_eq!(embedded(&quoted[..transport + 8], protocol), Some(whole));
    }
    let later = ipv4_with(&[], 1, TCP, ENDS4, &tcp(4000, 80, TCP_SYN));
    assert_eq!(embedded(&later[..], ICMP), None, "a later fragment has no ports");
    let mapped = ipv6(TCP, (POD4, PEER6), &tcp(4000, 80, TCP_SYN));
    assert_eq!(embedded(&mapped[..], ICMPV6), None);
    let mut short = ipv4(TCP, ENDS4, &tcp(4000, 80, TCP_SYN));
    short[0] = 0x44;
    assert_eq!(embedded(&short[..], ICMP), None);
}

/// What is true of whatever was parsed.
fn holds(bytes: &[u8], packet: &Packet) {
    let known = !matches!(packet.shape, Shape::BrokenIp | Shape::Other | Shape::Arp);
    if known {
        assert_eq!(packet.src.is_v4(), packet.dst.is_v4(), "{packet:?}");
    }
    match packet.shape {
        Shape::Other => assert_eq!(*packet, Packet::OTHER),
        Shape::BrokenIp | Shape::Unreadable | Shape::Arp => {}
        Shape::Opening
        | Shape::Ongoing
        | Shape::DhcpDiscover
        | Shape::Neighbour
        | Shape::NeighbourAdvertisement
        | Shape::RouterAdvertisement
        | Shape::ListenerDiscovery
        | Shape::IcmpError => {
            assert!(packet.bytes as usize <= bytes.len(), "{packet:?} of {} bytes", bytes.len());
            assert!(packet.bytes >= 20 && packet.inner as usize <= bytes.len(), "{packet:?}");
        }
    }
    let has_ports = matches!(packet.protocol, TCP | UDP | SCTP | ICMP | ICMPV6);
    assert!(has_ports || (packet.src_port, packet.dst_port) == (0, 0), "{packet:?}");
    assert!(packet.protocol == TCP || packet.tcp_flags == 0, "{packet:?}");
}

#[test]
fn whatever_comes_is_read_or_refused() {
    let mut rng = Rng::new(1);
    let (four, six) = ([POD4, PEER4], [POD6, PEER6, LINK_LOCAL, POD4]);
    for _ in 0..200_000 {
        let mut bytes = some_packet(&mut rng, &four, &six);
        for _ in 0..rng.below(4) {
            if !bytes.is_empty() {
                let at = rng.below(u32::try_from(bytes.len()).unwrap()) as usize;
                bytes[at] = rng.byte();
            }
        }
        if rng.one_in(4) {
            let len = rng.below(u32::try_from(bytes.len()).unwrap() + 1) as usize;
            bytes.truncate(len);
        }
        holds(&bytes, &read_ip(&bytes));
        let kind = rng.pick(&[ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_ARP]);
        let frame = ethernet(kind, &bytes);
        holds(&frame, &read(Link::Ethernet, &frame));
    }
}

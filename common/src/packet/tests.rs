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
        let expected = match (flags & (TCP_SYN | TCP_ACK), flags & (TCP_RST | TCP_FIN)) {
            (TCP_SYN, 0) => Shape::Opening,
            (TCP_SYN, _) => Shape::Stray,
            _ => Shape::Ongoing,
        };
        assert_eq!(shape, expected, "flags {flags:#x}");
    }
}

#[test]
fn an_sctp_chunk_stands_for_the_flags_that_do_the_same() {
    for chunk in 0..=u8::MAX {
        let packet = read_ip(&ipv4(SCTP, ENDS4, &sctp(4000, 80, chunk)));
        let expected = match chunk {
            1 => TCP_SYN,
            6 => TCP_RST,
            7 | 8 | 14 => TCP_FIN,
            _ => TCP_ACK,
        };
        assert_eq!(packet.tcp_flags, expected, "chunk {chunk}");
        assert_eq!(packet.shape, if chunk == 1 { Shape::Opening } else { Shape::Ongoing });
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
        let mut bytes = ipv4(47, ENDS4, &[0; 20]);
        bytes[0] = 0x40 | ihl;
        assert_eq!(
            error_of(&read_ip(&bytes)),
            Some(ParseError::BadHeader),
            "IHL {ihl}, nothing read behind it"
        );
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

/// A fragment header (RFC 8200 section 4.5).
fn fragment_header(next: u8, offset: u16, more: bool, id: u32) -> Vec<u8> {
    let mut header = std::vec![next, 0];
    header.extend((offset << 3 | u16::from(more)).to_be_bytes());
    header.extend(id.to_be_bytes());
    header
}

#[test]
fn t2_a_first_fragment_is_read_and_later_ones_say_of_what() {
    let syn = tcp(4000, 80, TCP_SYN);
    let mut payload = syn.clone();
    payload.resize(24, 0);
    let mut behind = fragment_header(TCP, 0, true, 0x1234_5678);
    behind.extend(&payload);
    for (bytes, id) in
        [(ipv4_with(&[], 0x2000, TCP, ENDS4, &payload), 1), (ipv6(44, ENDS6, &behind), 0x1234_5678)]
    {
        let packet = read_ip(&bytes);
        assert_eq!((packet.shape, packet.part, packet.offset), (Shape::Opening, Part::First, 0));
        assert_eq!((packet.src_port, packet.dst_port, packet.payload), (4000, 80, 24));
        assert_eq!((packet.datagram, packet.carries), (id, TCP));
    }
    for (word, part) in [(0x2002, Part::Later), (2, Part::Last), (0x1000, Part::Last)] {
        let packet = read_ip(&ipv4_with(&[], word, TCP, ENDS4, &payload));
        assert_eq!((packet.shape, packet.part, packet.src_port), (Shape::Later, part, 0), "{word:#x}");
        assert_eq!((packet.offset, packet.payload), (word & 0x1fff, 24));
        let mut behind = fragment_header(60, word & 0x1fff, word & 0x2000 != 0, 9);
        behind.extend(&payload);
        let packet = read_ip(&ipv6(44, ENDS6, &behind));
        assert_eq!((packet.shape, packet.part, packet.carries), (Shape::Later, part, 60), "{word:#x}");
    }
}

#[test]
fn t2_fragments_that_nobody_honest_sends_are_refused() {
    let refused = |bytes: &[u8], what| {
        let packet = read_ip(bytes);
        assert_eq!(error_of(&packet), Some(ParseError::Fragment), "{what}");
    };
    let long = [0; 32];
    for cut in 0..20 {
        let whole = tcp(4000, 80, TCP_SYN);
        refused(&ipv4_with(&[], 0x2000, TCP, ENDS4, &whole[..cut]), "TCP without its whole header");
    }
    let mut options = tcp(4000, 80, TCP_SYN);
    options[12] = 0xf0;
    options.resize(56, 0);
    refused(&ipv4_with(&[], 0x2000, TCP, ENDS4, &options), "TCP without its options");
    refused(&ipv4_with(&[], 0x2000, SCTP, ENDS4, &sctp(1, 2, 1)[..8]), "SCTP without its chunk");
    refused(&ipv4_with(&[], 0x2000, UDP, ENDS4, &[]), "nothing");
    for word in [1, 0x2001] {
        refused(&ipv4_with(&[], word, TCP, ENDS4, &long), "offset 1");
    }
    refused(&ipv4_with(&[], 0x2002, UDP, ENDS4, &long[..12]), "half a unit, and more");
    refused(&ipv4_with(&[], 0x1fff, UDP, ENDS4, &long), "past the largest datagram");
    let mut error = icmp(3, 0);
    error.extend(ipv4(TCP, (PEER4, POD4), &tcp(80, 4000, 0)));
    error.resize(48, 0);
    refused(&ipv4_with(&[], 0x2000, ICMP, ENDS4, &error), "an ICMP error");
    for kind in [133, 134, 135, 136, 137] {
        let mut message = fragment_header(ICMPV6, 0, true, 1);
        message.extend(neighbour(kind, POD6));
        let packet = read_ip(&ipv6_with(44, 255, ENDS6, &message));
        assert!(packet.hidden && packet.error == ParseError::Fragment, "discovery {kind}: {packet:?}");
    }
}

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    let mut payload = fragment_header(TCP, 0, false, 7);
    payload.extend(tcp(4000, 80, TCP_SYN));
    let packet = read_ip(&ipv6(44, ENDS6, &payload));
    assert_eq!((packet.shape, packet.part, packet.dst_port), (Shape::Opening, Part::Whole, 80));
}

/// A chain of extension headers, 8 bytes each, before `last`.
fn chain(kinds: &[u8], last: u8, payload: &[u8]) -> (u8, Vec<u8>) {
    let mut bytes = Vec::new();
    for (index, kind) in kinds.iter().enumerate() {
        let next = kinds.get(index + 1).copied().unwrap_or(last);
        match kind {
            44 => bytes.extend(fragment_header(next, 0, false, 1)),
            // RFC 4302: no check value, so 12 bytes; 16 with padding would be 2.
            51 => bytes.extend([next, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            43 => bytes.extend([next, 0, 4, 0, 0, 0, 0, 0]),
            _ => bytes.extend([next, 0, 1, 4, 0, 0, 0, 0]),
        }
    }
    bytes.extend(payload);
    (kinds.first().copied().unwrap_or(last), bytes)
}

#[test]
fn t3_extension_headers_are_walked_up_to_a_bound() {
    let syn = tcp(4000, 80, TCP_SYN);
    let mut rng = Rng::new(3);
    for _ in 0..20_000 {
        let kinds: Vec<u8> = (0..rng.below(12)).map(|_| rng.pick(&[43, 51, 60, 60, 44, 0])).collect();
        let (first, payload) = chain(&kinds, TCP, &syn);
        let packet = read_ip(&ipv6(first, ENDS6, &payload));
        let misplaced = kinds.iter().skip(1).any(|kind| matches!(kind, 0 | 44));
        if kinds.len() > MAX_EXTENSION_HEADERS as usize || misplaced {
            assert_eq!(error_of(&packet), Some(ParseError::ExtensionHeader), "{kinds:?}");
        } else {
            assert_eq!((packet.shape, packet.protocol), (Shape::Opening, TCP), "{kinds:?}");
            assert_eq!((packet.src_port, packet.dst_port), (4000, 80), "{kinds:?}");
        }
    }
    for kind in [135, 139, 140] {
        let (first, payload) = chain(&[60, kind], TCP, &syn);
        assert_eq!(
            error_of(&read_ip(&ipv6(first, ENDS6, &payload))),
            Some(ParseError::ExtensionHeader),
            "{kind}"
        );
    }
    for (kind, left) in [(0, 0), (0, 1), (4, 1), (2, 255)] {
        let payload = [&[TCP, 0, kind, left, 0, 0, 0, 0][..], &syn].concat();
        assert_eq!(
            error_of(&read_ip(&ipv6(43, ENDS6, &payload))),
            Some(ParseError::SourceRoute),
            "{kind} {left}"
        );
    }
    let (first, payload) = chain(&[60, 51], TCP, &syn);
    for cut in 0..payload.len() {
        let packet = read_ip(&ipv6(first, ENDS6, &payload[..cut]));
        assert_eq!(error_of(&packet), Some(ParseError::Truncated), "cut at {cut}");
    }
}

#[test]
fn t6_discovery_behind_extension_headers_is_known_and_hidden() {
    for kind in [130, 133, 134, 135, 136, 137, 143] {
        let hops = if kind == 130 || kind == 143 { 1 } else { 255 };
        let (first, payload) = chain(&[60], ICMPV6, &neighbour(kind, POD6));
        let packet = read_ip(&ipv6_with(first, hops, ENDS6, &payload));
        assert!(packet.hidden && packet.error == ParseError::ExtensionHeader, "{kind}: {packet:?}");
        assert!(!matches!(packet.shape, Shape::Opening | Shape::Ongoing | Shape::Unreadable), "{kind}");
    }
}

#[test]
fn hop_by_hop_goes_before_listener_discovery() {
    for first in 0..=u8::MAX {
        let packet = read_ip(&ipv6_with(0, 1, ENDS6, &behind_hop_by_hop(first)));
        if matches!(first, 130..=132 | 143) {
            assert_eq!((packet.shape, packet.protocol), (Shape::ListenerDiscovery, ICMPV6), "type {first}");
            assert!(!packet.hidden);
        }
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
        // Nor behind what the IP header says is there.
        let mut trailed = ipv6_with(ICMPV6, 255, ENDS6, &neighbour(kind, PEER6));
        trailed.resize(40 + ND_MAX_BYTES as usize, 0);
        assert_eq!(error_of(&read_ip(&trailed)), None, "type {kind}");
        trailed.push(0);
        assert_eq!(error_of(&read_ip(&trailed)), Some(ParseError::BadHeader), "type {kind}");
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
    let mut padded = frame.clone();
    padded.resize(64, 0);
    assert_eq!(read(Link::Ethernet, &padded).shape, Shape::Arp);
    padded.push(0);
    assert_eq!(read(Link::Ethernet, &padded), Packet::OTHER, "what always passes carries nothing else");
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
        | Shape::Stray
        | Shape::Later
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
    assert!(matches!(packet.protocol, TCP | SCTP) || packet.tcp_flags == 0, "{packet:?}");
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

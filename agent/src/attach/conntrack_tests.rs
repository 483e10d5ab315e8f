//! Entries as a kernel (Linux 6.18) wrote them, and what breaks of them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::super::netlink::push_attribute;
use super::*;

/// `10.0.0.1:40000` to `10.0.0.2:80`, established.
const TCP_V4: &str = "\
    020000003400018014000180080001000a000001080002000a0000021c0002800500010006000000060002009c400000060003000050\
    00003400028014000180080001000a000002080002000a0000011c00028005000100060000000600020000500000060003009c400000\
    080003000000000e080008000000000008000c00246beb8c08000b0000000001080007000006977f300004802c000180050001000300\
    0000050002000a000000050003000a00000006000400230000000600050023000000";
/// The same over IPv6.
const TCP_V6: &str = "\
    0a0000004c0001802c00018014000300fd00000000000000000000000000000114000400fd0000000000000000000000000000021c00\
    02800500010006000000060002009c40000006000300005000004c0002802c00018014000300fd000000000000000000000000000002\
    14000400fd0000000000000000000000000000011c00028005000100060000000600020000500000060003009c400000080003000000\
    000e080008000000000008000c003b8468ca08000b0000000001080007000006977f300004802c000180050001000300000005000200\
    0a000000050003000a00000006000400230000000600050023000000";
/// `10.0.0.1:5000` to `10.0.0.2:53`, answered.
const UDP_V4: &str = "\
    020000003400018014000180080001000a000001080002000a0000021c00028005000100110000000600020013880000060003000035\
    00003400028014000180080001000a000002080002000a0000011c000280050001001100000006000200003500000600030013880000\
    080003000000000a080008000000000008000c00fe25322208000b0000000001080007000000001d";
/// Port 5001 instead, not answered.
const UDP_UNANSWERED: &str = "\
    020000003400018014000180080001000a000001080002000a0000021c00028005000100110000000600020013890000060003000035\
    00003400028014000180080001000a000002080002000a0000011c000280050001001100000006000200003500000600030013890000\
    0800030000000008080008000000000008000c0091b4a89808000b0000000001080007000000001d";
/// `10.0.0.1:7000` to `10.0.0.2:7001`, aborted.
const SCTP_ABORTED: &str = "\
    020000003400018014000180080001000a000001080002000a0000021c0002800500010084000000060002001b580000060003001b59\
    00003400028014000180080001000a000002080002000a0000011c0002800500010084000000060002001b590000060003001b580000\
    0800030000000008080008000000000008000c0015954bf608000b00000000010800070000000009200004801c000380050001000100\
    000008000200000000000800030000001234";
/// `10.0.0.1` to `10.0.0.2`, protocol 253.
const OTHER: &str = "\
    0200000024000180140001800800010\
    00a000001080002000a0000020c00028005000100fd0000002400028014000180080001000a000002080002000a0000010c0002800500\
    0100fd0000000800030000000008080008000000000008000c00955337fc08000b00000000010800070000000258";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn tuple(source: &str, destination: &str, source_port: u16, destination_port: u16) -> Tuple {
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    Tuple { source, destination, source_port, destination_port }
}

/// Puts a byte where the recorded one has the protocol's state: its last attribute of this shape.
fn with_state(recorded: &str, state: u8) -> Vec<u8> {
    let mut bytes = bytes(recorded);
    let at = bytes.windows(4).rposition(|window| window == [5, 0, 1, 0]).unwrap();
    bytes[at + 4] = state;
    bytes
}

#[test]
fn recorded_entries_are_read() {
    let v4 = |protocol, source_port, destination_port, stage| Tracked {
        protocol,
        original: tuple("10.0.0.1", "10.0.0.2", source_port, destination_port),
        reply: tuple("10.0.0.2", "10.0.0.1", destination_port, source_port),
        stage,
    };
    let v6 = Tracked {
        original: tuple("fd00::1", "fd00::2", 40_000, 80),
        reply: tuple("fd00::2", "fd00::1", 80, 40_000),
        ..v4(TCP, 0, 0, Stage::Established)
    };
    for (recorded, expected) in [
        (TCP_V4, Some(v4(TCP, 40_000, 80, Stage::Established))),
        (TCP_V6, Some(v6)),
        (UDP_V4, Some(v4(UDP, 5000, 53, Stage::Answered))),
        (UDP_UNANSWERED, Some(v4(UDP, 5001, 53, Stage::Opening))),
        (SCTP_ABORTED, None),
        (OTHER, Some(v4(253, 0, 0, Stage::Opening))),
    ] {
        assert_eq!(parse(&bytes(recorded)), Some(expected.map_or(Entry::NoFlow, Entry::Alive)), "{recorded}");
    }
}

#[test]
fn a_state_is_a_stage_or_the_end() {
    let stage = |recorded, state| match parse(&with_state(recorded, state)).unwrap() {
        Entry::Alive(tracked) => Some(tracked.stage),
        Entry::NoFlow => None,
    };
    let tcp: Vec<_> = (0..=10).map(|state| stage(TCP_V4, state)).collect();
    let (opening, answered) = (Some(Stage::Opening), Some(Stage::Answered));
    let (established, closing) = (Some(Stage::Established), Some(Stage::Closing));
    let expected =
        [None, opening, answered, established, closing, closing, closing, closing, None, opening, None];
    assert_eq!(tcp, expected);
    let sctp: Vec<_> = (0..=9).map(|state| stage(SCTP_ABORTED, state)).collect();
    let expected = [None, None, opening, answered, established, closing, closing, closing, None, None];
    assert_eq!(sctp, expected);
}

/// A tuple of ICMP: an identifier and a type.
fn icmp(kinds: [u16; 2], protocol: u8, source: u8, identifier: u16, kind: u8) -> Vec<u8> {
    let (mut addresses, mut layer4, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
    push_attribute(&mut addresses, V4[0], &[10, 0, 0, source]);
    push_attribute(&mut addresses, V4[1], &[10, 0, 0, 3 - source]);
    push_attribute(&mut layer4, NUMBER, &[protocol]);
    push_attribute(&mut layer4, kinds[0], &identifier.to_be_bytes());
    push_attribute(&mut layer4, kinds[1], &[kind]);
    push_attribute(&mut tuple, TUPLE_ADDRESSES, &addresses);
    push_attribute(&mut tuple, TUPLE_PROTOCOL, &layer4);
    tuple
}

#[test]
fn an_echo_is_its_identifier_and_other_icmp_no_flow() {
    let entry = |kinds, protocol, request, answer| {
        let mut body = vec![2, 0, 0, 0];
        push_attribute(&mut body, ORIGINAL, &icmp(kinds, protocol, 1, 77, request));
        push_attribute(&mut body, REPLY, &icmp(kinds, protocol, 2, 78, answer));
        push_attribute(&mut body, STATUS, &SEEN_REPLY.to_be_bytes());
        parse(&body)
    };
    let echo = |protocol| Tracked {
        protocol,
        original: tuple("10.0.0.1", "10.0.0.2", 77, 77),
        // Translated: the one who answers saw another identifier.
        reply: tuple("10.0.0.2", "10.0.0.1", 78, 78),
        stage: Stage::Answered,
    };
    assert_eq!(entry(ICMP_ID_AND_TYPE, ICMP, 8, 0), Some(Entry::Alive(echo(ICMP))));
    assert_eq!(entry(ICMP_ID_AND_TYPE, ICMP, 13, 14), Some(Entry::NoFlow), "a timestamp");
    assert_eq!(entry(ICMPV6_ID_AND_TYPE, ICMPV6, 128, 129), Some(Entry::Alive(echo(ICMPV6))));
}

#[test]
fn an_entry_that_is_cut_off_anywhere_is_unreadable_or_another() {
    for recorded in [TCP_V4, TCP_V6, UDP_V4, SCTP_ABORTED, OTHER] {
        let whole = bytes(recorded);
        let expected = parse(&whole);
        for length in 0..whole.len() {
            let cut = parse(&whole[..length]);
            assert!(cut.is_none() || cut == expected, "{length} of {recorded}: {cut:?}");
        }
    }
}

#[test]
fn an_entry_with_any_byte_changed_makes_nobody_panic() {
    for recorded in [TCP_V4, TCP_V6, UDP_V4, SCTP_ABORTED, OTHER] {
        for at in 0..bytes(recorded).len() {
            for value in [0, 1, 3, 4, 0x7f, 0xff] {
                let mut changed = bytes(recorded);
                changed[at] = value;
                let _ = parse(&changed);
            }
        }
    }
}

/// Lets the kernel track established connections of a client at ever other ports to port 80 of an address.
pub(crate) fn track(client: [u8; 4], server: [u8; 4], connections: u16) {
    /// `IPCTNL_MSG_CT_NEW`, `CTA_TIMEOUT`, and `IPS_ASSURED` with `IPS_CONFIRMED`.
    const NEW: u16 = 1 << 8;
    const TIMEOUT: u16 = 7;
    const ASSURED: u32 = 1 << 2 | 1 << 3;
    let tuple = |source: [u8; 4], destination: [u8; 4], ports: [u16; 2]| {
        let (mut addresses, mut layer4, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
        push_attribute(&mut addresses, V4[0], &source);
        push_attribute(&mut addresses, V4[1], &destination);
        push_attribute(&mut layer4, NUMBER, &[TCP]);
        push_attribute(&mut layer4, PORTS[0], &ports[0].to_be_bytes());
        push_attribute(&mut layer4, PORTS[1], &ports[1].to_be_bytes());
        push_attribute(&mut tuple, TUPLE_ADDRESSES, &addresses);
        push_attribute(&mut tuple, TUPLE_PROTOCOL, &layer4);
        tuple
    };
    let (mut info, mut state) = (Vec::new(), Vec::new());
    push_attribute(&mut info, INFO_STATE, &[3]);
    push_attribute(&mut state, TCP_INFO, &info);
    let mut netlink = Netlink::open_netfilter().unwrap();
    for port in 0..connections {
        let request = Request::new(NEW, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &[2, 0, 0, 0])
            .with(ORIGINAL, &tuple(client, server, [port + 1, 80]))
            .with(REPLY, &tuple(server, client, [80, port + 1]))
            .with(STATUS, &(SEEN_REPLY | ASSURED).to_be_bytes())
            .with(TIMEOUT, &600u32.to_be_bytes())
            .with(PROTOCOL_STATE, &state);
        netlink.act(&request).unwrap();
    }
}

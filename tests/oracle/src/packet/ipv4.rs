//! RFC 791.

use std::net::IpAddr;

use super::transport::{self, Carried};
use super::{Contents, Datagram, Flaw, Inner, Piece, Reading, array, be16, byte, from};

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// Protocol numbers of ICMP, and of `ICMPv6`, which is none in IPv4.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

pub(super) fn read(packet: &[u8]) -> Reading<'_> {
    let (Some(first), Some(total), Some(fragment), Some(src), Some(dst)) =
        (byte(packet, 0), be16(packet, 2), be16(packet, 6), array::<4>(packet, 12), array::<4>(packet, 16))
    else {
        return Reading::Broken(Flaw::Truncated);
    };
    if first >> 4 != 4 {
        return Reading::Broken(Flaw::BadHeader);
    }
    let protocol = byte(packet, 9).unwrap_or_default();
    let datagram = |piece, (contents, hidden)| {
        Reading::Ip(Datagram { src: src.into(), dst: dst.into(), protocol, piece, contents, hidden })
    };
    let unreadable = |flaw| datagram(None, (Contents::Unreadable(flaw), None));
    let header = usize::from(first & 15) * 4;
    let total = usize::from(total);
    // T1: an IHL of less than 5.
    if header < 20 || total < header {
        return unreadable(Flaw::BadHeader);
    }
    let Some(payload) = packet.get(header..total) else {
        return unreadable(Flaw::Truncated);
    };
    if let Some(flaw) = options(packet.get(20..header).unwrap_or_default()) {
        return unreadable(flaw);
    }
    let piece = (fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0).then(|| Piece {
        id: u32::from(be16(packet, 4).unwrap_or_default()),
        protocol,
        offset: usize::from(fragment & FRAGMENT_OFFSET) * 8,
        bytes: payload.len(),
        last: fragment & MORE_FRAGMENTS == 0,
    });
    let carried = Carried {
        protocol,
        payload,
        // What a neighbour says has no meaning in IPv4.
        rest: payload,
        hops: byte(packet, 8).unwrap_or_default(),
        ends: (src.into(), dst.into()),
        is_foreign: protocol == ICMPV6,
    };
    datagram(piece, transport::read_piece(piece, &carried))
}

/// RFC 791 section 3.1: a list of options, each one byte or with a length; 0 ends it.
fn options(mut list: &[u8]) -> Option<Flaw> {
    loop {
        match list {
            [] | [0, ..] => return None,
            [1, rest @ ..] => list = rest,
            [131 | 137, ..] => return Some(Flaw::SourceRoute),
            [_, length, ..] if *length >= 2 && usize::from(*length) <= list.len() => {
                list = from(list, usize::from(*length));
            }
            [_, ..] => return Some(Flaw::BadHeader),
        }
    }
}

/// The packet that an error is about: its header, and at least 8 bytes of what follows (RFC 792).
pub(super) fn inner(packet: &[u8]) -> Option<Inner> {
    let first = byte(packet, 0)?;
    let header = usize::from(first & 15) * 4;
    // Only of a first fragment ports are known.
    if first >> 4 != 4 || header < 20 || be16(packet, 6)? & FRAGMENT_OFFSET != 0 {
        return None;
    }
    let protocol = byte(packet, 9)?;
    let (src, dst): ([u8; 4], [u8; 4]) = (array(packet, 12)?, array(packet, 16)?);
    let head: [u8; 8] = array(packet, header)?;
    let ports = match protocol {
        ICMP => transport::echo_identifier(head, 8, 0),
        ICMPV6 => Some((0, 0)),
        _ => transport::inner_ports(protocol, head),
    };
    Some(Inner { src: IpAddr::from(src), dst: IpAddr::from(dst), protocol, ports })
}

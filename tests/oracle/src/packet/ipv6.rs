//! RFC 8200.

use std::net::{IpAddr, Ipv6Addr};

use super::transport::{self, Carried};
use super::{Contents, Datagram, Flaw, Inner, Piece, Reading, array, be16, byte, from};

/// Extension headers of one packet.
const MOST: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

pub(super) fn read(packet: &[u8]) -> Reading<'_> {
    let (Some(first), Some(length), Some(next), Some(hops), Some(src), Some(dst)) = (
        byte(packet, 0),
        be16(packet, 4),
        byte(packet, 6),
        byte(packet, 7),
        array::<16>(packet, 8).map(Ipv6Addr::from),
        array::<16>(packet, 24).map(Ipv6Addr::from),
    ) else {
        return Reading::Broken(Flaw::Truncated);
    };
    // RFC 4291 section 2.5.5.2: ::ffff:0:0/96 stands for IPv4 addresses, and is no address on the wire.
    if first >> 4 != 6 || src.to_ipv4_mapped().is_some() || dst.to_ipv4_mapped().is_some() {
        return Reading::Broken(Flaw::BadHeader);
    }
    let (src, dst) = (IpAddr::from(src), IpAddr::from(dst));
    let payload = from(packet, 40);
    let Some(whole) = payload.get(..usize::from(length)) else {
        let contents = Contents::Unreadable(Flaw::Truncated);
        return Reading::Ip(Datagram { src, dst, protocol: next, piece: None, contents, hidden: None });
    };
    let walked = walk(next, whole);
    let (contents, hidden) = match walked.flaw {
        Some(flaw) => (Contents::Unreadable(flaw), None),
        None => transport::read_piece(
            walked.piece,
            &Carried {
                protocol: walked.next,
                payload: from(whole, walked.at),
                rest: from(payload, walked.at),
                hops,
                ends: (src, dst),
                is_foreign: walked.next == ICMP,
            },
        ),
    };
    // RFC 6980 for neighbours; RFC 3810 section 5: before listener discovery stands a router alert, and nothing else.
    let router_alert = next == HOP_BY_HOP && walked.at == 8 && contents == Contents::Listener;
    let behind = walked.at > 0 && contents.is_discovery() && !router_alert;
    let hidden = hidden.or(behind.then_some(Flaw::ExtensionHeader));
    Reading::Ip(Datagram { src, dst, protocol: walked.next, piece: walked.piece, contents, hidden })
}

/// Where a walk over extension headers ended.
struct Walked {
    next: u8,
    at: usize,
    piece: Option<Piece>,
    flaw: Option<Flaw>,
}

/// Goes over the extension headers, up to what is none.
fn walk(first: u8, payload: &[u8]) -> Walked {
    let mut walked = Walked { next: first, at: 0, piece: None, flaw: None };
    for count in 0.. {
        walked.flaw = match walked.next {
            // These are for hosts that move, have several names or several providers; nobody here is one.
            MOBILITY | HIP | SHIM6 => Some(Flaw::ExtensionHeader),
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION if count == MOST => {
                Some(Flaw::ExtensionHeader)
            }
            HOP_BY_HOP | FRAGMENT if count > 0 => Some(Flaw::ExtensionHeader),
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION => header(&mut walked, payload),
            _ => return walked,
        };
        // Behind a later fragment's header there is no header.
        if walked.flaw.is_some() || walked.piece.is_some_and(|piece| piece.offset > 0) {
            return walked;
        }
    }
    walked
}

/// Steps over one extension header.
fn header(walked: &mut Walked, payload: &[u8]) -> Option<Flaw> {
    let here = from(payload, walked.at);
    let too_short = if walked.piece.is_some() { Flaw::Fragment } else { Flaw::Truncated };
    let Some([next, length, third, fourth]) = array(here, 0) else {
        return Some(too_short);
    };
    let length = usize::from(length);
    let bytes = match walked.next {
        FRAGMENT => 8,
        AUTHENTICATION => (length + 2) * 4,
        _ => (length + 1) * 8,
    };
    if here.len() < bytes {
        return Some(too_short);
    }
    if walked.next == ROUTING && (third == 0 || fourth > 0) {
        return Some(Flaw::SourceRoute);
    }
    if walked.next == FRAGMENT {
        let place = u16::from_be_bytes([third, fourth]);
        // RFC 6946: alone it is no fragment.
        if place & 0xfff9 != 0 {
            walked.piece = Some(Piece {
                id: array(here, 4).map_or(0, u32::from_be_bytes),
                protocol: next,
                offset: usize::from(place & 0xfff8),
                bytes: here.len() - 8,
                last: place & 1 == 0,
            });
        }
    }
    walked.next = next;
    walked.at += bytes;
    walked.piece.is_some_and(|piece| piece.is_odd()).then_some(Flaw::Fragment)
}

/// The packet that an error is about (RFC 4443): whole or a first fragment, and its transport header follows at once.
pub(super) fn inner(packet: &[u8]) -> Option<Inner> {
    let (src, dst): ([u8; 16], [u8; 16]) = (array(packet, 8)?, array(packet, 24)?);
    let (src, dst) = (Ipv6Addr::from(src), Ipv6Addr::from(dst));
    if byte(packet, 0)? >> 4 != 6 || src.to_ipv4_mapped().is_some() || dst.to_ipv4_mapped().is_some() {
        return None;
    }
    let mut protocol = byte(packet, 6)?;
    let mut at = 40;
    if protocol == FRAGMENT {
        // Only of a first fragment ports are known.
        if be16(packet, at + 2)? & 0xfff8 != 0 {
            return None;
        }
        protocol = byte(packet, at)?;
        at += 8;
    }
    let head: [u8; 8] = array(packet, at)?;
    let ports = match protocol {
        ICMPV6 => transport::echo_identifier(head, 128, 129),
        ICMP => Some((0, 0)),
        _ => transport::inner_ports(protocol, head),
    };
    Some(Inner { src: src.into(), dst: dst.into(), protocol, ports })
}

//! What IP carries: TCP (RFC 9293), UDP (RFC 768), SCTP (RFC 9260), ICMP (RFC 792), `ICMPv6` (RFC 4443, 4861, 3810).

use std::net::{IpAddr, Ipv4Addr};

use super::{Contents, Flaw, Piece, array, be16, byte, from, ipv4, ipv6};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// Bytes of a neighbour discovery message that always passes.
const LONGEST_NEIGHBOUR: usize = 128;

/// A packet that policies are asked about, as its sender sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// Source and destination port; of an echo its identifier, twice; 0 of what has none.
    pub ports: (u16, u16),
    /// What it says about its connection.
    pub signal: Signal,
}

/// What a packet says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Let there be one: SYN, INIT.
    Connect,
    /// May be the first as well as any other: UDP, protocols without ports.
    Datagram,
    /// An echo request.
    Request,
    /// The answer to a connect: SYN with ACK.
    Accept,
    /// Anything inside of a connection.
    Data,
    /// This side is done: FIN, SHUTDOWN.
    Finish,
    /// It is over: RST, ABORT.
    Reset,
    /// Belongs to no connection and makes none: SYN with FIN or RST; ICMP that is neither echo nor error.
    Alone,
}

/// What an IP header says of what it carries.
pub(super) struct Carried<'a> {
    pub(super) protocol: u8,
    pub(super) payload: &'a [u8],
    /// The payload, and what the frame holds behind it.
    pub(super) rest: &'a [u8],
    pub(super) hops: u8,
    pub(super) ends: (IpAddr, IpAddr),
    /// The other family's ICMP: a protocol without ports.
    pub(super) is_foreign: bool,
}

/// T2: of fragments, the first has to hold the whole transport header, and nothing that passes without being asked.
/// The second value is why discovery does not pass for that.
pub(super) fn read_piece<'a>(piece: Option<Piece>, carried: &Carried<'a>) -> (Contents<'a>, Option<Flaw>) {
    let contents = || if carried.is_foreign { segment((0, 0), Signal::Datagram) } else { read(carried) };
    let Some(piece) = piece else { return (contents(), None) };
    if piece.is_odd() {
        return (Contents::Unreadable(Flaw::Fragment), None);
    }
    if piece.offset > 0 {
        return (Contents::LaterPiece, None);
    }
    let contents = contents();
    if matches!(contents, Contents::Unreadable(Flaw::Truncated) | Contents::Error(_)) {
        return (Contents::Unreadable(Flaw::Fragment), None);
    }
    (contents, contents.is_discovery().then_some(Flaw::Fragment))
}

impl Contents<'_> {
    /// What tells who is where.
    pub(super) const fn is_discovery(&self) -> bool {
        match self {
            Contents::Dhcp | Contents::Neighbour(_) | Contents::RouterAdvertisement | Contents::Listener => {
                true
            }
            Contents::Unreadable(_) | Contents::LaterPiece | Contents::Segment(_) | Contents::Error(_) => {
                false
            }
        }
    }
}

fn segment(ports: (u16, u16), signal: Signal) -> Contents<'static> {
    Contents::Segment(Segment { ports, signal })
}

fn read<'a>(carried: &Carried<'a>) -> Contents<'a> {
    let payload = carried.payload;
    let truncated = Contents::Unreadable(Flaw::Truncated);
    let ports = be16(payload, 0).zip(be16(payload, 2));
    let head: Option<[u8; 8]> = array(payload, 0);
    match carried.protocol {
        TCP => match (ports, byte(payload, 12), byte(payload, 13)) {
            (Some(ports), Some(offset), Some(flags)) if payload.len() >= 20 => {
                let header = usize::from(offset >> 4) * 4;
                if header < 20 {
                    Contents::Unreadable(Flaw::BadHeader)
                } else if header > payload.len() {
                    truncated
                } else {
                    segment(ports, tcp(flags))
                }
            }
            _ => truncated,
        },
        UDP => match (ports, be16(payload, 4)) {
            // 0 is left there by segmentation offload, and by jumbograms.
            (Some(_), Some(1..=7)) if payload.len() >= 8 => Contents::Unreadable(Flaw::BadHeader),
            (Some((68, 67)), Some(_)) if payload.len() >= 8 && is_discover(carried.ends) => Contents::Dhcp,
            (Some(ports), Some(_)) if payload.len() >= 8 => segment(ports, Signal::Datagram),
            _ => truncated,
        },
        SCTP => match (ports, byte(payload, 12)) {
            (Some(ports), Some(chunk)) if payload.len() >= 16 => segment(ports, sctp(chunk)),
            _ => truncated,
        },
        ICMP => head.map_or(truncated, |head| icmp(head, payload)),
        ICMPV6 => head.map_or(truncated, |head| icmpv6(head, carried)),
        _ => segment((0, 0), Signal::Datagram),
    }
}

fn is_discover(ends: (IpAddr, IpAddr)) -> bool {
    ends == (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into())
}

fn tcp(flags: u8) -> Signal {
    let has = |bit: u8| flags & bit != 0;
    let (fin, syn, rst, ack) = (has(1), has(2), has(4), has(16));
    match (syn, ack) {
        (true, false) if fin || rst => Signal::Alone,
        (true, false) => Signal::Connect,
        _ if rst => Signal::Reset,
        _ if fin => Signal::Finish,
        (true, true) => Signal::Accept,
        (false, _) => Signal::Data,
    }
}

/// By the type of the first chunk.
fn sctp(chunk: u8) -> Signal {
    match chunk {
        1 => Signal::Connect,
        6 => Signal::Reset,
        7 | 8 | 14 => Signal::Finish,
        _ => Signal::Data,
    }
}

fn icmp(head: [u8; 8], payload: &[u8]) -> Contents<'_> {
    let id = u16::from_be_bytes([head[4], head[5]]);
    match head[0] {
        8 => segment((id, id), Signal::Request),
        0 => segment((id, id), Signal::Data),
        3 | 11 | 12 => Contents::Error(ipv4::inner(from(payload, 8))),
        _ => segment((0, 0), Signal::Alone),
    }
}

fn icmpv6<'a>(head: [u8; 8], carried: &Carried<'a>) -> Contents<'a> {
    let id = u16::from_be_bytes([head[4], head[5]]);
    let bad = Contents::Unreadable(Flaw::BadHeader);
    let bytes = carried.payload.len();
    match head[0] {
        128 => segment((id, id), Signal::Request),
        129 => segment((id, id), Signal::Data),
        1..=4 => Contents::Error(ipv6::inner(from(carried.payload, 8))),
        // RFC 3810 section 5: listener discovery never leaves its link.
        130..=132 | 143 if carried.hops != 1 => bad,
        130..=132 | 143 => Contents::Listener,
        // RFC 4861 section 7.1: nor does neighbour discovery, which would arrive with less.
        133..=137 if carried.hops != 255 => bad,
        134 => Contents::RouterAdvertisement,
        // What always passes must not be a way to carry much.
        133 | 135..=137 if bytes > LONGEST_NEIGHBOUR => bad,
        136 if bytes < 24 => Contents::Unreadable(Flaw::Truncated),
        133 | 135..=137 => Contents::Neighbour(carried.rest),
        _ => segment((0, 0), Signal::Alone),
    }
}

/// Ports of the packet in an error, from the 8 bytes that it is sure to have.
pub(super) fn inner_ports(protocol: u8, head: [u8; 8]) -> Option<(u16, u16)> {
    match protocol {
        TCP | UDP | SCTP => be16(&head, 0).zip(be16(&head, 2)),
        _ => Some((0, 0)),
    }
}

/// The identifier of an echo in an error, twice.
pub(super) fn echo_identifier(head: [u8; 8], request: u8, reply: u8) -> Option<(u16, u16)> {
    let id = be16(&head, 4)?;
    (head[0] == request || head[0] == reply).then_some((id, id))
}

//! The packet parser: from bytes to a tuple, with every read checked. What cannot be read is a typed
//! [`ParseError`]; whether it is dropped is for [`crate::judge`]. Nothing here knows endpoints or policies.

use crate::addr::Addr;
use crate::event::Reason;

/// A packet's bytes, whoever holds them.
pub trait PacketView {
    /// Bytes of the packet.
    fn len(&self) -> u32;

    /// True for a packet without bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `N` bytes at an offset; `None` if the packet ends before, or they cannot be had.
    fn load<const N: usize>(&self, offset: u32) -> Option<Bytes<N>>;

    /// The same where it is seldom asked for or may lie far behind: no way of its own for what is near.
    #[inline(always)]
    fn load_far<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        self.load(offset)
    }
}

/// Bytes of a packet, aligned so that header fields compile to single loads.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes<const N: usize>(pub [u8; N]);

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// SCTP's protocol number.
pub const SCTP: u8 = 132;
/// ICMP's protocol number.
pub const ICMP: u8 = 1;
/// `ICMPv6`'s protocol number.
pub const ICMPV6: u8 = 58;

/// TCP's FIN flag.
pub const TCP_FIN: u8 = 0x01;
/// TCP's SYN flag.
pub const TCP_SYN: u8 = 0x02;
/// TCP's RST flag.
pub const TCP_RST: u8 = 0x04;
/// TCP's ACK flag.
pub const TCP_ACK: u8 = 0x10;

/// Types of SCTP chunks (RFC 9260 section 3.2).
const SCTP_INIT: u8 = 1;
const SCTP_ABORT: u8 = 6;
const SCTP_SHUTDOWN: u8 = 7;
const SCTP_SHUTDOWN_ACK: u8 = 8;
const SCTP_SHUTDOWN_COMPLETE: u8 = 14;

const ETHERNET_BYTES: u32 = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const IPV4_MIN_BYTES: u32 = 20;
/// RFC 791: an IHL of 15 words, less the fixed header.
const IPV4_MAX_OPTION_BYTES: u32 = 40;
/// RFC 791: the flag that more fragments follow, and the offset in units of 8 bytes.
const IPV4_MORE: u16 = 0x2000;
const IPV4_OFFSET: u16 = 0x1fff;
/// RFC 8200 section 4.5: the same in a fragment header, where the offset stands above three bits.
const IPV6_MORE: u16 = 1;
const IPV6_OFFSET: u16 = 0xfff8;
const FRAGMENT_UNIT: u32 = 8;
/// The end of the largest datagram that fragments can make (RFC 791, RFC 8200 section 4.5).
const DATAGRAM_MAX_BYTES: u32 = 65_535;
/// IPv6 extension headers that are walked, fragment headers among them. Real traffic has two at most.
pub const MAX_EXTENSION_HEADERS: u32 = 8;
/// Bytes of the hop-by-hop header that multicast listener discovery carries: a router alert (RFC 3810 section 5).
const ROUTER_ALERT_BYTES: u32 = 8;
/// RFC 5095: routing headers of this type are not to be used.
const ROUTING_SOURCE_ROUTE: u8 = 0;
const IPV6_BYTES: u32 = 40;
const NEXT_HOP_BY_HOP: u8 = 0;
const NEXT_ROUTING: u8 = 43;
const NEXT_FRAGMENT: u8 = 44;
const NEXT_ESP: u8 = 50;
const NEXT_AH: u8 = 51;
const NEXT_DESTINATION: u8 = 60;
const NEXT_MOBILITY: u8 = 135;
const NEXT_HIP: u8 = 139;
const NEXT_SHIM6: u8 = 140;
/// RFC 4861 section 7.1: neighbour discovery that a router forwarded is not neighbour discovery.
const ND_HOP_LIMIT: u8 = 255;
/// RFC 3810 section 5: listener discovery stays on its link.
const MLD_HOP_LIMIT: u8 = 1;
/// Bytes of a neighbour discovery message that always passes: the longest is a solicitation of 24 with options
/// for a link-layer address and a nonce (RFC 3971). What always passes must not carry much else.
pub(crate) const ND_MAX_BYTES: u32 = 128;
/// The longest frame of ARP: 28 bytes, padded to the shortest frame of Ethernet with a tag that was taken out.
const ARP_MAX_FRAME: u32 = 64;
/// Stands for the ports of ICMP other than echo: both of an echo's are its identifier, so no flow has these.
const NO_ECHO: (u16, u16) = (0, 1);
const DHCP_CLIENT: u16 = 68;
const DHCP_SERVER: u16 = 67;

/// Why a packet could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// It ends before its headers do.
    Truncated,
    /// A header contradicts itself.
    BadHeader,
    /// IPv4 loose or strict source routing; an IPv6 routing header of type 0 or with segments left.
    SourceRoute,
    /// A fragment that no honest sender makes: a first one without the whole transport header, one that could
    /// overwrite that header, one that ends past the largest datagram; or of a message that is never fragmented.
    Fragment,
    /// More IPv6 extension headers than [`MAX_EXTENSION_HEADERS`], one of a kind that is not read, or one at a place
    /// where it must not be.
    ExtensionHeader,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, with the transport header.
    First,
    /// A later one, and more follow.
    Later,
    /// The last.
    Last,
}

impl ParseError {
    /// The reason under which it is dropped.
    #[inline(always)]
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Truncated => Reason::Truncated,
            Self::BadHeader => Reason::BadHeader,
            Self::SourceRoute => Reason::SourceRoute,
            Self::Fragment => Reason::Fragment,
            Self::ExtensionHeader => Reason::ExtensionHeader,
        }
    }
}

/// A frame as the parser read it. One flat value: fields that its [`Shape`] gives no meaning to are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address; of ARP the sender's protocol address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Bytes from the IP header on, 0 where it is unknown.
    pub bytes: u32,
    /// Where the inside starts: the packet that an ICMP error is about, what follows the 8 bytes of a neighbour discovery
    /// message's head, of ARP the sender's hardware address.
    pub inner: u32,
    /// Source port; an echo's identifier; else 0.
    pub src_port: u16,
    /// Destination port; an echo's identifier; else 0.
    pub dst_port: u16,
    /// IP protocol number (for IPv6 the last header's).
    pub protocol: u8,
    /// TCP flags; of SCTP those that its first chunk stands for; 0 for others.
    pub tcp_flags: u8,
    /// What it is.
    pub shape: Shape,
    /// What went wrong, where the shape says that something did, or `hidden`.
    pub error: ParseError,
    /// Discovery behind extension headers or in a fragment, where no honest sender puts it: whose it is has to be right
    /// all the same, but it does not always pass.
    pub hidden: bool,
    /// Which part of a datagram it is. The fields behind are 0 for a whole one.
    pub part: Part,
    /// Of a fragment, the protocol number that the IPv4 or fragment header gives.
    pub carries: u8,
    /// Where a fragment's payload stands in the datagram's, in units of 8 bytes.
    pub offset: u16,
    /// Bytes of a fragment's payload.
    pub payload: u32,
    /// The identification of a fragment's datagram.
    pub datagram: u32,
}

/// What matters of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// IP that may open a flow: TCP SYN without ACK, SCTP INIT, UDP, an echo request, any other protocol.
    Opening,
    /// IP that belongs to a flow or is judged alone: other TCP and SCTP, other ICMP.
    Ongoing,
    /// TCP with SYN and without ACK that opens nothing either, for FIN or RST: belongs to no flow, judged alone.
    Stray,
    /// A fragment behind the first: whose ports are not in it.
    Later,
    /// DHCP discovery.
    DhcpDiscover,
    /// `ICMPv6` 133, 135 and 137 with a hop limit of 255.
    Neighbour,
    /// `ICMPv6` 136 with a hop limit of 255.
    NeighbourAdvertisement,
    /// `ICMPv6` 134 with a hop limit of 255.
    RouterAdvertisement,
    /// `ICMPv6` 130 to 132 and 143 with a hop limit of 1.
    ListenerDiscovery,
    /// An ICMP error.
    IcmpError,
    /// IP with known addresses; what follows could not be read.
    Unreadable,
    /// IP whose addresses could not be read.
    BrokenIp,
    /// ARP for IPv4 over Ethernet.
    Arp,
    /// Anything else.
    Other,
}

/// How a device's packets start (its ARPHRD type tells).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// With an Ethernet header.
    Ethernet,
    /// With an IP header.
    Ip,
}

impl Packet {
    /// A frame of which nothing is known yet.
    pub const OTHER: Self = Self {
        src: Addr::UNSPECIFIED,
        dst: Addr::UNSPECIFIED,
        bytes: 0,
        inner: 0,
        src_port: 0,
        dst_port: 0,
        protocol: 0,
        tcp_flags: 0,
        shape: Shape::Other,
        error: ParseError::Truncated,
        hidden: false,
        part: Part::Whole,
        carries: 0,
        offset: 0,
        payload: 0,
        datagram: 0,
    };

    #[inline(always)]
    fn unreadable(&mut self, error: ParseError) {
        self.shape = Shape::Unreadable;
        self.error = error;
    }

    /// Of discovery: keeps what it is, and does not let it pass for that.
    #[inline(always)]
    fn hide(&mut self, error: ParseError) {
        self.hidden = true;
        self.error = error;
    }

    #[inline(always)]
    fn broken(&mut self, error: ParseError) {
        self.shape = Shape::BrokenIp;
        self.error = error;
    }
}

/// Reads a frame into `packet`, which is [`Packet::OTHER`] before. A function of its own in eBPF.
#[inline(never)]
pub fn parse<V: PacketView>(view: &V, link: Link, packet: &mut Packet) {
    match link {
        Link::Ethernet => {
            let Some(Bytes(kind)) = view.load::<2>(12) else {
                return;
            };
            match u16::from_be_bytes(kind) {
                ETHERTYPE_IPV4 => parse_ipv4(view, ETHERNET_BYTES, packet),
                ETHERTYPE_IPV6 => parse_ipv6(view, ETHERNET_BYTES, packet),
                ETHERTYPE_ARP => parse_arp(view, packet),
                _ => {}
            }
        }
        Link::Ip => match view.load::<1>(0) {
            None => packet.broken(ParseError::Truncated),
            Some(Bytes([first])) => match first >> 4 {
                4 => parse_ipv4(view, 0, packet),
                6 => parse_ipv6(view, 0, packet),
                _ => packet.broken(ParseError::BadHeader),
            },
        },
    }
}

/// The tuple of the packet that an ICMP error is about, as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedded {
    /// Its source.
    pub src: Addr,
    /// Its destination.
    pub dst: Addr,
    /// Its protocol.
    pub protocol: u8,
    /// Its source port, or an echo's identifier.
    pub src_port: u16,
    /// Its destination port, or an echo's identifier.
    pub dst_port: u16,
}

impl Embedded {
    /// Before reading.
    pub const NONE: Self =
        Self { src: Addr::UNSPECIFIED, dst: Addr::UNSPECIFIED, protocol: 0, src_port: 0, dst_port: 0 };
}

/// Reads the packet that an ICMP error carries into `inner`: its IP header and the first 8 bytes behind. `None`
/// leaves it half written. Into memory of the caller's and in small pieces, because in eBPF this stands behind
/// two callers and together their stacks have 512 bytes (before Linux 6.13; measured on 6.1).
#[inline(always)]
pub fn parse_embedded<V: PacketView>(
    view: &V,
    offset: u32,
    protocol: u8,
    inner: &mut Embedded,
) -> Option<()> {
    let Bytes([first]) = view.load_far::<1>(offset)?;
    let l4 = if protocol == ICMP {
        let ihl = u32::from(first & 0x0f) * 4;
        let Bytes(fragment) = view.load_far::<2>(offset + 6)?;
        if first >> 4 != 4 || ihl < IPV4_MIN_BYTES || u16::from_be_bytes(fragment) & 0x1fff != 0 {
            return None;
        }
        let Bytes([next]) = view.load_far::<1>(offset + 9)?;
        inner.protocol = next;
        inner.src = Addr::v4(view.load_far::<4>(offset + 12)?.0);
        inner.dst = Addr::v4(view.load_far::<4>(offset + 16)?.0);
        offset + ihl
    } else {
        if first >> 4 != 6 {
            return None;
        }
        let Bytes([next]) = view.load_far::<1>(offset + 6)?;
        inner.protocol = next;
        inner.src = Addr::v6(view.load_far::<16>(offset + 8)?.0);
        inner.dst = Addr::v6(view.load_far::<16>(offset + 24)?.0);
        if inner.src.is_v4() || inner.dst.is_v4() {
            return None;
        }
        if next == NEXT_FRAGMENT {
            // What was too big, or came too late, may have been a first fragment.
            let Bytes([next, _, high, low]) = view.load_far::<4>(offset + IPV6_BYTES)?;
            if u16::from_be_bytes([high, low]) >> 3 != 0 {
                return None;
            }
            inner.protocol = next;
            offset + IPV6_BYTES + 8
        } else {
            offset + IPV6_BYTES
        }
    };
    let Bytes(ports) = view.load_far::<8>(l4)?;
    (inner.src_port, inner.dst_port) = match inner.protocol {
        TCP | UDP | SCTP => ports_of(&ports),
        // Of its own family; the other's is a protocol without ports, as where it is sent.
        ICMP | ICMPV6 if inner.protocol == protocol => match (protocol, ports[0]) {
            (ICMP, 0 | 8) | (ICMPV6, 128 | 129) => {
                let id = u16::from_be_bytes([ports[4], ports[5]]);
                (id, id)
            }
            _ => NO_ECHO,
        },
        _ => (0, 0),
    };
    Some(())
}

/// ARP for IPv4 over Ethernet (RFC 826).
#[inline(always)]
fn parse_arp<V: PacketView>(view: &V, packet: &mut Packet) {
    let Some(Bytes(head)) = view.load_far::<28>(ETHERNET_BYTES) else {
        return;
    };
    let plain = head[0] == 0 && head[1] == 1 && head[2] == 8 && head[3] == 0 && head[4] == 6 && head[5] == 4;
    if plain && view.len() <= ARP_MAX_FRAME {
        packet.shape = Shape::Arp;
        packet.src = Addr::v4([head[14], head[15], head[16], head[17]]);
        packet.inner = ETHERNET_BYTES + 8;
    }
}

#[inline(always)]
fn ipv4_addresses(head: &[u8; 20]) -> (Addr, Addr) {
    (Addr::v4([head[12], head[13], head[14], head[15]]), Addr::v4([head[16], head[17], head[18], head[19]]))
}

#[inline(always)]
fn ipv6_addresses(head: &[u8; 40]) -> (Addr, Addr) {
    let mut src = [0; 16];
    let mut dst = [0; 16];
    src.copy_from_slice(&head[8..24]);
    dst.copy_from_slice(&head[24..40]);
    (Addr::v6(src), Addr::v6(dst))
}

#[inline(always)]
fn ports_of(head: &[u8; 8]) -> (u16, u16) {
    (u16::from_be_bytes([head[0], head[1]]), u16::from_be_bytes([head[2], head[3]]))
}

#[inline(always)]
fn parse_ipv4<V: PacketView>(view: &V, l3: u32, packet: &mut Packet) {
    let Some(Bytes(head)) = view.load::<20>(l3) else {
        return packet.broken(ParseError::Truncated);
    };
    if head[0] >> 4 != 4 {
        return packet.broken(ParseError::BadHeader);
    }
    (packet.src, packet.dst) = ipv4_addresses(&head);
    packet.protocol = head[9];
    let ihl = u32::from(head[0] & 0x0f) * 4;
    let total = match u32::from(u16::from_be_bytes([head[2], head[3]])) {
        // What segmentation offload leaves there for more than 16 bits can hold.
        0 if view.len() > l3 + DATAGRAM_MAX_BYTES => view.len() - l3,
        total => total,
    };
    packet.bytes = total;
    if ihl < IPV4_MIN_BYTES || total < ihl {
        return packet.unreadable(ParseError::BadHeader);
    }
    if view.len() < l3 + total {
        return packet.unreadable(ParseError::Truncated);
    }
    if ihl > IPV4_MIN_BYTES
        && let Some(error) = bad_options(view, l3 + IPV4_MIN_BYTES, ihl - IPV4_MIN_BYTES)
    {
        return packet.unreadable(error);
    }
    packet.shape = Shape::Opening;
    let word = u16::from_be_bytes([head[6], head[7]]);
    if word & (IPV4_MORE | IPV4_OFFSET) != 0 {
        packet.datagram = u32::from(u16::from_be_bytes([head[4], head[5]]));
        packet.carries = packet.protocol;
        fragment(packet, word & IPV4_OFFSET, word & IPV4_MORE != 0, total - ihl);
    }
    // ICMPv6 inside IPv4 is neither; it follows the rules that name no ports.
    if let Shape::Opening = packet.shape
        && packet.protocol != ICMPV6
    {
        parse_transport(view, packet, l3 + ihl, total - ihl, head[8]);
    }
    whole_header(packet);
}

/// Takes in what the header says of a fragment. A first one goes on as a packet, with a shape to open flows.
#[inline(always)]
fn fragment(packet: &mut Packet, offset: u16, more: bool, bytes: u32) {
    packet.offset = offset;
    packet.payload = bytes;
    packet.part = match (offset, more) {
        (0, _) => Part::First,
        (_, true) => Part::Later,
        (_, false) => Part::Last,
    };
    let end = u32::from(offset) * FRAGMENT_UNIT + bytes;
    // Offset 1 writes over the transport header's second half (RFC 1858, RFC 3128).
    if offset == 1 || bytes == 0 || (more && !bytes.is_multiple_of(FRAGMENT_UNIT)) || end > DATAGRAM_MAX_BYTES
    {
        packet.unreadable(ParseError::Fragment);
    } else if offset != 0 {
        packet.shape = Shape::Later;
    }
}

/// A first fragment has to hold the whole transport header, and some messages are never fragmented (RFC 6980).
#[inline(always)]
fn whole_header(packet: &mut Packet) {
    let Part::First = packet.part else {
        return;
    };
    match packet.shape {
        Shape::Unreadable if matches!(packet.error, ParseError::Truncated) => {
            packet.error = ParseError::Fragment;
        }
        Shape::IcmpError => packet.unreadable(ParseError::Fragment),
        Shape::DhcpDiscover
        | Shape::Neighbour
        | Shape::NeighbourAdvertisement
        | Shape::RouterAdvertisement
        | Shape::ListenerDiscovery => packet.hide(ParseError::Fragment),
        Shape::Opening
        | Shape::Ongoing
        | Shape::Stray
        | Shape::Later
        | Shape::Unreadable
        | Shape::BrokenIp
        | Shape::Arp
        | Shape::Other => {}
    }
}

/// Looks for loose and strict source routing (RFC 791: types 131 and 137).
#[inline(always)]
fn bad_options<V: PacketView>(view: &V, start: u32, len: u32) -> Option<ParseError> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    let mut at = 0;
    // Each turn consumes at least one byte.
    for _ in 0..IPV4_MAX_OPTION_BYTES {
        if at >= len {
            return None;
        }
        let Some(Bytes([kind])) = view.load_far::<1>(start + at) else {
            return Some(ParseError::Truncated);
        };
        match kind {
            END => return None,
            LOOSE | STRICT => return Some(ParseError::SourceRoute),
            NO_OPERATION => at += 1,
            _ => {
                let Some(Bytes([size])) = view.load_far::<1>(start + at + 1) else {
                    return Some(ParseError::Truncated);
                };
                if size < 2 || at + u32::from(size) > len {
                    return Some(ParseError::BadHeader);
                }
                at += u32::from(size);
            }
        }
    }
    None
}

#[inline(always)]
fn parse_ipv6<V: PacketView>(view: &V, l3: u32, packet: &mut Packet) {
    let Some(Bytes(head)) = view.load::<40>(l3) else {
        return packet.broken(ParseError::Truncated);
    };
    if head[0] >> 4 != 6 {
        return packet.broken(ParseError::BadHeader);
    }
    let (src, dst) = ipv6_addresses(&head);
    if src.is_v4() || dst.is_v4() {
        return packet.broken(ParseError::BadHeader);
    }
    (packet.src, packet.dst) = (src, dst);
    packet.protocol = head[6];
    let l4 = l3 + IPV6_BYTES;
    let payload = match u32::from(u16::from_be_bytes([head[4], head[5]])) {
        // A jumbogram (RFC 2675), as segmentation offload makes them.
        0 if view.len() > l4 + DATAGRAM_MAX_BYTES => view.len() - l4,
        payload => payload,
    };
    packet.bytes = payload + IPV6_BYTES;
    if view.len() < l4 + payload {
        return packet.unreadable(ParseError::Truncated);
    }
    packet.shape = Shape::Opening;
    let start = match packet.protocol {
        NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_FRAGMENT | NEXT_AH | NEXT_DESTINATION | NEXT_MOBILITY
        | NEXT_HIP | NEXT_SHIM6 => walk(view, packet, l4, l4 + payload),
        _ => l4,
    };
    if let Shape::Opening = packet.shape {
        match packet.protocol {
            // ESP hides what follows: a protocol like any other. ICMPv4 inside IPv6 is neither.
            NEXT_ESP | ICMP => {}
            _ => parse_transport(view, packet, start, (l4 + payload).wrapping_sub(start), head[7]),
        }
        let router_alert = head[6] == NEXT_HOP_BY_HOP && start == l4 + ROUTER_ALERT_BYTES;
        // Nor does it carry anything behind its end, where a bridge takes it along.
        if matches!(packet.shape, Shape::Neighbour | Shape::NeighbourAdvertisement)
            && view.len() > start.wrapping_add(ND_MAX_BYTES)
        {
            packet.unreadable(ParseError::BadHeader);
        }
        if start != l4 {
            behind_headers(packet, router_alert);
        }
    }
    whole_header(packet);
}

/// Walks the extension headers that start at `start`, up to `end`. Returns where the transport header is, and leaves
/// its protocol in the packet; or leaves a shape other than [`Shape::Opening`].
#[inline(never)]
fn walk<V: PacketView>(view: &V, packet: &mut Packet, start: u32, end: u32) -> u32 {
    packet.inner = start;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if step(view, packet, start, end) == WALKED {
            break;
        }
    }
    // One more that is a transport header, or too many.
    if is_extension(packet.protocol) && matches!(packet.shape, Shape::Opening) {
        packet.unreadable(ParseError::ExtensionHeader);
    }
    let at = packet.inner;
    packet.inner = 0;
    at
}

/// The walk has ended.
const WALKED: u32 = 1;

#[inline(always)]
const fn is_extension(kind: u8) -> bool {
    matches!(
        kind,
        NEXT_HOP_BY_HOP
            | NEXT_ROUTING
            | NEXT_FRAGMENT
            | NEXT_AH
            | NEXT_DESTINATION
            | NEXT_MOBILITY
            | NEXT_HIP
            | NEXT_SHIM6
    )
}

/// One extension header of a walk, where the packet's `inner` points; [`WALKED`] if there is none, or no more may be. A
/// function of its own in eBPF: of a loop with more in it, kernels before 6.3 refuse what the compiler makes.
#[inline(never)]
fn step<V: PacketView>(view: &V, packet: &mut Packet, start: u32, end: u32) -> u32 {
    let (kind, at) = (packet.protocol, packet.inner);
    match kind {
        NEXT_HOP_BY_HOP | NEXT_FRAGMENT if at != start => {
            packet.unreadable(ParseError::ExtensionHeader);
            return WALKED;
        }
        NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_FRAGMENT | NEXT_AH | NEXT_DESTINATION => {}
        NEXT_MOBILITY | NEXT_HIP | NEXT_SHIM6 => {
            packet.unreadable(ParseError::ExtensionHeader);
            return WALKED;
        }
        _ => return WALKED,
    }
    let Some(Bytes(head)) = view.load_far::<8>(at) else {
        packet.unreadable(ParseError::Truncated);
        return WALKED;
    };
    let words = u32::from(head[1]);
    let bytes = match kind {
        NEXT_FRAGMENT => 8,
        // RFC 4302 section 2.2: in words of 4 bytes, less 2.
        NEXT_AH => (words + 2) * 4,
        _ => (words + 1) * 8,
    };
    if at + bytes > end {
        packet.unreadable(ParseError::Truncated);
        return WALKED;
    }
    packet.protocol = head[0];
    packet.inner = at + bytes;
    match kind {
        NEXT_ROUTING if head[2] == ROUTING_SOURCE_ROUTE || head[3] != 0 => {
            packet.unreadable(ParseError::SourceRoute);
            WALKED
        }
        NEXT_FRAGMENT => {
            let word = u16::from_be_bytes([head[2], head[3]]);
            // Alone it is a whole packet (RFC 6946).
            if word & (IPV6_OFFSET | IPV6_MORE) != 0 {
                packet.datagram = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
                packet.carries = packet.protocol;
                fragment(packet, word >> 3, word & IPV6_MORE != 0, end - (at + bytes));
            }
            if matches!(packet.shape, Shape::Opening) { 0 } else { WALKED }
        }
        _ => 0,
    }
}

/// Behind extension headers stands no discovery, but for one router alert before multicast listener discovery.
#[inline(always)]
fn behind_headers(packet: &mut Packet, router_alert: bool) {
    match packet.shape {
        Shape::ListenerDiscovery if router_alert => {}
        Shape::ListenerDiscovery
        | Shape::Neighbour
        | Shape::NeighbourAdvertisement
        | Shape::RouterAdvertisement => packet.hide(ParseError::ExtensionHeader),
        Shape::Opening
        | Shape::Ongoing
        | Shape::Stray
        | Shape::Later
        | Shape::DhcpDiscover
        | Shape::IcmpError
        | Shape::Unreadable
        | Shape::BrokenIp
        | Shape::Arp
        | Shape::Other => {}
    }
}

/// Reads the transport header; `remaining` is what the IP header says is there, already checked to be.
#[inline(always)]
fn parse_transport<V: PacketView>(view: &V, packet: &mut Packet, at: u32, remaining: u32, hops: u8) {
    let needed = match packet.protocol {
        TCP => 20,
        UDP | ICMP | ICMPV6 => 8,
        SCTP => 16,
        _ => return,
    };
    if remaining < needed {
        return packet.unreadable(ParseError::Truncated);
    }
    let Some(Bytes(head)) = view.load::<8>(at) else {
        return packet.unreadable(ParseError::Truncated);
    };
    match packet.protocol {
        ICMP => icmp(packet, &head, at),
        ICMPV6 => icmpv6(packet, &head, at, remaining, hops),
        TCP => {
            (packet.src_port, packet.dst_port) = ports_of(&head);
            tcp(view, packet, at, remaining);
        }
        SCTP => {
            (packet.src_port, packet.dst_port) = ports_of(&head);
            // RFC 9260 section 3.2: the first chunk's type follows the common header.
            let Some(Bytes([chunk])) = view.load::<1>(at + 12) else {
                return packet.unreadable(ParseError::Truncated);
            };
            if chunk != SCTP_INIT {
                packet.shape = Shape::Ongoing;
            }
            packet.tcp_flags = match chunk {
                SCTP_INIT => TCP_SYN,
                SCTP_ABORT => TCP_RST,
                SCTP_SHUTDOWN | SCTP_SHUTDOWN_ACK | SCTP_SHUTDOWN_COMPLETE => TCP_FIN,
                _ => TCP_ACK,
            };
        }
        _ => {
            (packet.src_port, packet.dst_port) = ports_of(&head);
            let length = u32::from(u16::from_be_bytes([head[4], head[5]]));
            // A length of 0 is what segmentation offload and jumbograms leave there.
            if length != 0 && length < 8 {
                packet.unreadable(ParseError::BadHeader);
            } else if packet.src_port == DHCP_CLIENT
                && packet.dst_port == DHCP_SERVER
                && packet.src.same(&Addr::v4([0; 4]))
                && packet.dst.same(&Addr::v4([255; 4]))
            {
                packet.shape = Shape::DhcpDiscover;
            }
        }
    }
}

#[inline(always)]
fn tcp<V: PacketView>(view: &V, packet: &mut Packet, at: u32, remaining: u32) {
    let Some(Bytes([offset, flags])) = view.load::<2>(at + 12) else {
        return packet.unreadable(ParseError::Truncated);
    };
    let header = u32::from(offset >> 4) * 4;
    packet.tcp_flags = flags;
    if header < 20 {
        packet.unreadable(ParseError::BadHeader);
    } else if header > remaining {
        packet.unreadable(ParseError::Truncated);
    } else if flags & (TCP_SYN | TCP_ACK) != TCP_SYN {
        packet.shape = Shape::Ongoing;
    } else if flags & (TCP_RST | TCP_FIN) != 0 {
        packet.shape = Shape::Stray;
    }
}

#[inline(always)]
fn icmp(packet: &mut Packet, head: &[u8; 8], at: u32) {
    let id = u16::from_be_bytes([head[4], head[5]]);
    match head[0] {
        8 => (packet.src_port, packet.dst_port) = (id, id),
        0 => {
            (packet.src_port, packet.dst_port) = (id, id);
            packet.shape = Shape::Ongoing;
        }
        3 | 11 | 12 => {
            packet.shape = Shape::IcmpError;
            packet.inner = at + 8;
        }
        // Others (timestamp, redirect ...) are judged one by one and make no state.
        _ => {
            (packet.src_port, packet.dst_port) = NO_ECHO;
            packet.shape = Shape::Ongoing;
        }
    }
}

#[inline(always)]
fn icmpv6(packet: &mut Packet, head: &[u8; 8], at: u32, remaining: u32, hops: u8) {
    let id = u16::from_be_bytes([head[4], head[5]]);
    (packet.src_port, packet.dst_port) = NO_ECHO;
    packet.shape = match head[0] {
        128 => {
            (packet.src_port, packet.dst_port) = (id, id);
            Shape::Opening
        }
        129 => {
            (packet.src_port, packet.dst_port) = (id, id);
            Shape::Ongoing
        }
        1..=4 => {
            packet.inner = at + 8;
            Shape::IcmpError
        }
        130..=132 | 143 if hops != MLD_HOP_LIMIT => return packet.unreadable(ParseError::BadHeader),
        130..=132 | 143 => Shape::ListenerDiscovery,
        133 | 135..=137 if remaining > ND_MAX_BYTES => return packet.unreadable(ParseError::BadHeader),
        133..=137 if hops != ND_HOP_LIMIT => return packet.unreadable(ParseError::BadHeader),
        133 | 135 | 137 => {
            packet.inner = at + 8;
            Shape::Neighbour
        }
        134 => Shape::RouterAdvertisement,
        136 => {
            if remaining < 24 {
                return packet.unreadable(ParseError::Truncated);
            }
            packet.inner = at + 8;
            Shape::NeighbourAdvertisement
        }
        _ => Shape::Ongoing,
    };
}

/// A packet in a slice: for tests and for building `explain`'s.
impl PacketView for &[u8] {
    fn len(&self) -> u32 {
        u32::try_from((**self).len()).unwrap_or(u32::MAX)
    }

    fn load<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(N)?)?.try_into().ok().map(Bytes)
    }
}

#[cfg(test)]
mod tests;

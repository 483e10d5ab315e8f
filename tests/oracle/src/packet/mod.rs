//! A naive reader of packets, the other opinion about what a frame is. It owns one reading of the RFCs and of which
//! packets are refused unread, written for obviousness: slices, from the outside in. It must not know the real parser,
//! nor who is judged; that is [`crate::endpoint`].

mod ipv4;
mod ipv6;
mod transport;

use std::net::{IpAddr, Ipv4Addr};

pub use transport::{Segment, Signal};

/// How frames of a device start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    /// With an Ethernet header.
    Ethernet,
    /// With an IP header.
    Ip,
}

/// Why a packet is refused unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flaw {
    /// It ends before its headers do.
    Truncated,
    /// A header contradicts itself, or the standard.
    BadHeader,
    /// The sender wants to choose the way (IPv4 options 131 and 137, IPv6 routing headers).
    SourceRoute,
    /// A fragment that hides what it belongs to.
    Fragment,
    /// Extension headers that are too many, misplaced or unknown.
    ExtensionHeader,
}

/// A frame, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading<'a> {
    /// Neither IPv4, IPv6 nor ARP for IPv4 over Ethernet.
    NotIp,
    /// ARP for IPv4 over Ethernet (RFC 826).
    Arp {
        /// Whose hardware address is told.
        station: [u8; 6],
        /// And whose protocol address.
        sender: Ipv4Addr,
    },
    /// Announced as IP, and not even its addresses can be read.
    Broken(Flaw),
    /// IP.
    Ip(Datagram<'a>),
}

/// An IP packet, or a fragment of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// The protocol behind all headers of IP that were read.
    pub protocol: u8,
    /// Where in its datagram a fragment lies.
    pub piece: Option<Piece>,
    /// What it holds.
    pub contents: Contents<'a>,
    /// Why it does not pass for discovery, though that is what it holds: it stands where discovery never does.
    pub hidden: Option<Flaw>,
}

/// A fragment's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Piece {
    /// The datagram's identification.
    pub id: u32,
    /// The protocol that the fragment itself names.
    pub protocol: u8,
    /// Bytes of payload before it.
    pub offset: usize,
    /// Bytes of payload in it.
    pub bytes: usize,
    /// True unless more follow.
    pub last: bool,
}

/// The end of the largest datagram.
const LARGEST: usize = 65_535;

impl Piece {
    /// A fragment that nobody makes: empty, not in whole units of 8 bytes where more follow, past the end of the largest
    /// datagram, or at 8, where it would overwrite the flags of a TCP header (RFC 1858).
    fn is_odd(&self) -> bool {
        let is_ragged = self.bytes == 0 || (!self.last && !self.bytes.is_multiple_of(8));
        is_ragged || self.offset == 8 || self.offset + self.bytes > LARGEST
    }
}

/// What an IP packet holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents<'a> {
    /// What is refused.
    Unreadable(Flaw),
    /// A fragment that is not the first: its ports are elsewhere.
    LaterPiece,
    /// What policies are about.
    Segment(Segment),
    /// DHCP discovery.
    Dhcp,
    /// `ICMPv6` 133, 135, 136 and 137: the message, from its type on, and what follows it in the frame.
    Neighbour(&'a [u8]),
    /// `ICMPv6` 134.
    RouterAdvertisement,
    /// `ICMPv6` 130 to 132 and 143.
    Listener,
    /// An ICMP error: what it is about.
    Error(Option<Inner>),
}

/// The packet inside an ICMP error, as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Its source.
    pub src: IpAddr,
    /// Its destination.
    pub dst: IpAddr,
    /// Its protocol.
    pub protocol: u8,
    /// Its ports; of an echo its identifier, twice; none where the protocol has no flows.
    pub ports: Option<(u16, u16)>,
}

/// Reads a frame.
#[must_use]
pub fn read(frame: &[u8], link: Link) -> Reading<'_> {
    match link {
        Link::Ethernet => match be16(frame, 12) {
            Some(0x0800) => ipv4::read(from(frame, 14)),
            Some(0x86dd) => ipv6::read(from(frame, 14)),
            Some(0x0806) => arp(from(frame, 14)),
            Some(_) | None => Reading::NotIp,
        },
        Link::Ip => match byte(frame, 0).map(|first| first >> 4) {
            Some(4) => ipv4::read(frame),
            Some(6) => ipv6::read(frame),
            Some(_) => Reading::Broken(Flaw::BadHeader),
            None => Reading::Broken(Flaw::Truncated),
        },
    }
}

/// RFC 826: hardware type 1 (Ethernet, 6 bytes), protocol type 0x0800 (IPv4, 4 bytes).
fn arp(packet: &[u8]) -> Reading<'_> {
    let is_ours = packet.starts_with(&[0, 1, 8, 0, 6, 4]) && packet.len() >= 28;
    match (array(packet, 8), array::<4>(packet, 14)) {
        (Some(station), Some(sender)) if is_ours => Reading::Arp { station, sender: sender.into() },
        _ => Reading::NotIp,
    }
}

fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The bytes from there on; nothing where there are fewer.
fn from(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..).unwrap_or_default()
}

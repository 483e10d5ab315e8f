//! Frames made by hand, right in every field that a caller does not choose otherwise: what no socket would send.
//! Knows the wire formats only.

use std::net::IpAddr;

/// A MAC address.
pub type Mac = [u8; 6];

/// Ethernet's types.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// See [`ETHERTYPE_IPV4`].
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// See [`ETHERTYPE_IPV4`].
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// A customer's tag (802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// A provider's tag (802.1ad).
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Protocol numbers.
pub const ICMP: u8 = 1;
/// See [`ICMP`].
pub const TCP: u8 = 6;
/// See [`ICMP`].
pub const UDP: u8 = 17;
/// See [`ICMP`].
pub const ICMPV6: u8 = 58;
/// See [`ICMP`].
pub const SCTP: u8 = 132;
/// Hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// The routing header.
pub const ROUTING: u8 = 43;
/// The fragment header.
pub const FRAGMENT: u8 = 44;
/// The authentication header.
pub const AH: u8 = 51;
/// Destination options.
pub const DESTINATION: u8 = 60;

/// TCP's flags.
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const PSH: u8 = 0x08;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
/// What a host sends with, unless a caller says otherwise. Two links are on the longest way of a lab.
const TTL: u8 = 64;

/// From where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The sender's MAC address.
    pub src_mac: Mac,
    /// The next station's.
    pub dst_mac: Mac,
    /// The sender's address.
    pub src: IpAddr,
    /// The receiver's; of the same family.
    pub dst: IpAddr,
}

impl Path {
    /// From another address.
    #[must_use]
    pub fn from(self, src: IpAddr) -> Self {
        Self { src, ..self }
    }

    /// To another address.
    #[must_use]
    pub fn to(self, dst: IpAddr) -> Self {
        Self { dst, ..self }
    }

    /// The addresses the other way round: what an ICMP error embeds.
    #[must_use]
    pub fn turned(self) -> Self {
        Self { src: self.dst, dst: self.src, ..self }
    }

    /// True for IPv6.
    #[must_use]
    pub fn is_v6(self) -> bool {
        self.dst.is_ipv6()
    }

    /// ICMP of this family.
    #[must_use]
    pub fn icmp(self) -> u8 {
        if self.is_v6() { ICMPV6 } else { ICMP }
    }
}

/// A number whose low bits fit.
#[allow(clippy::cast_possible_truncation, reason = "a test's numbers fit")]
fn word(number: usize) -> [u8; 2] {
    (number as u16).to_be_bytes()
}

/// One piece of a datagram whose transport's bytes these are, as a frame: where it begins, in units of eight bytes, and
/// whether more follow. IPv4 has 16 bits of the identification.
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "a test's numbers fit")]
pub fn piece(path: Path, protocol: u8, id: u32, offset: u16, more: bool, bytes: &[u8]) -> Vec<u8> {
    if path.is_v6() {
        Ipv6::default().frame(path, FRAGMENT, &fragment_header(protocol, id, offset, more, bytes))
    } else {
        let fragment = offset | if more { MORE4 } else { 0 };
        Ipv4 { id: id as u16, fragment, ..Ipv4::default() }.frame(path, protocol, bytes)
    }
}

/// A fragment header of IPv6, and what stands behind it.
#[must_use]
pub fn fragment_header(next: u8, id: u32, offset: u16, more: bool, bytes: &[u8]) -> Vec<u8> {
    let word = (offset << 3) | u16::from(more);
    [&[next, 0][..], &word.to_be_bytes(), &id.to_be_bytes(), bytes].concat()
}

/// A datagram in pieces of `size` bytes, which is a multiple of eight.
///
/// # Panics
///
/// For another size.
#[must_use]
pub fn pieces(path: Path, protocol: u8, id: u32, size: usize, whole: &[u8]) -> Vec<Vec<u8>> {
    assert!(size.is_multiple_of(8) && size > 0, "pieces are of whole units");
    let last = whole.len().div_ceil(size) - 1;
    let parts = whole.chunks(size).enumerate();
    parts
        .map(|(number, part)| {
            let offset = u16::try_from(number * size / 8).expect("a datagram has 64 KiB at most");
            piece(path, protocol, id, offset, number < last, part)
        })
        .collect()
}

/// An address's bytes.
#[must_use]
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A frame of any type.
#[must_use]
pub fn ethernet(path: Path, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&path.dst_mac[..], &path.src_mac, &kind.to_be_bytes(), payload].concat()
}

/// A frame of IEEE 802.3 with an LLC and SNAP header (RFC 1042).
#[must_use]
pub fn snap(path: Path, kind: u16, payload: &[u8]) -> Vec<u8> {
    let body = [&[0xaa, 0xaa, 3, 0, 0, 0][..], &kind.to_be_bytes(), payload].concat();
    [&path.dst_mac[..], &path.src_mac, &word(body.len()), &body].concat()
}

/// A frame's bytes after these tags: `(ethertype, tag)` from the outermost in.
#[must_use]
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let (stations, rest) = frame.split_at(12);
    let mut out = stations.to_vec();
    for (kind, tag) in tags {
        out.extend(kind.to_be_bytes());
        out.extend(tag.to_be_bytes());
    }
    out.extend(rest);
    out
}

/// What of an IPv4 header a caller may choose.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// The header's length in words, where it shall not be the true one.
    pub ihl: Option<u8>,
    /// The total length, where it shall not be the true one.
    pub total: Option<u16>,
}

impl Default for Ipv4 {
    fn default() -> Self {
        Self { id: 0, fragment: 0, ttl: TTL, options: Vec::new(), ihl: None, total: None }
    }
}

/// The more-fragments flag of IPv4.
pub const MORE4: u16 = 0x2000;

impl Ipv4 {
    /// A packet without its frame.
    ///
    /// # Panics
    ///
    /// For IPv6 addresses.
    #[must_use]
    pub fn packet(&self, src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        assert!(src.is_ipv4() && dst.is_ipv4(), "{src} -> {dst} is not IPv4");
        let length = IPV4 + self.options.len();
        let ihl = self.ihl.unwrap_or(u8::try_from(length / 4).expect("options have at most 40 bytes"));
        let total = self.total.map_or(word(length + payload.len()), u16::to_be_bytes);
        let mut head = vec![0x40 | ihl, 0];
        head.extend(total);
        head.extend(self.id.to_be_bytes());
        head.extend(self.fragment.to_be_bytes());
        head.extend([self.ttl, protocol, 0, 0]);
        head.extend(octets(src));
        head.extend(octets(dst));
        head.extend(&self.options);
        // Of what the header says is header, as a host would check it.
        let covered = usize::from(ihl) * 4;
        let all = [&head[..], payload].concat();
        let sum = checksum(&all[..covered.clamp(IPV4, all.len())]);
        head[10..12].copy_from_slice(&sum);
        [head, payload.to_vec()].concat()
    }

    /// A frame.
    #[must_use]
    pub fn frame(&self, path: Path, protocol: u8, payload: &[u8]) -> Vec<u8> {
        ethernet(path, ETHERTYPE_IPV4, &self.packet(path.src, path.dst, protocol, payload))
    }
}

/// What of an IPv6 header a caller may choose.
#[derive(Clone, Debug)]
pub struct Ipv6 {
    /// The flow label, 20 bits.
    pub label: u32,
    /// The hop limit.
    pub hops: u8,
    /// The payload's length, where it shall not be the true one.
    pub length: Option<u16>,
}

impl Default for Ipv6 {
    fn default() -> Self {
        Self { label: 0, hops: TTL, length: None }
    }
}

impl Ipv6 {
    /// A packet without its frame; `next` is what `payload` starts with.
    ///
    /// # Panics
    ///
    /// For IPv4 addresses.
    #[must_use]
    pub fn packet(&self, src: IpAddr, dst: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
        assert!(src.is_ipv6() && dst.is_ipv6(), "{src} -> {dst} is not IPv6");
        let mut head = (0x6000_0000 | self.label & 0xf_ffff).to_be_bytes().to_vec();
        head.extend(self.length.map_or(word(payload.len()), u16::to_be_bytes));
        head.extend([next, self.hops]);
        head.extend(octets(src));
        head.extend(octets(dst));
        head.extend(payload);
        head
    }

    /// A frame.
    #[must_use]
    pub fn frame(&self, path: Path, next: u8, payload: &[u8]) -> Vec<u8> {
        ethernet(path, ETHERTYPE_IPV6, &self.packet(path.src, path.dst, next, payload))
    }
}

/// A packet of the path's family.
#[must_use]
pub fn packet(path: Path, protocol: u8, payload: &[u8]) -> Vec<u8> {
    if path.is_v6() {
        Ipv6::default().packet(path.src, path.dst, protocol, payload)
    } else {
        Ipv4::default().packet(path.src, path.dst, protocol, payload)
    }
}

/// A frame of the path's family.
#[must_use]
pub fn frame(path: Path, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let kind = if path.is_v6() { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
    ethernet(path, kind, &packet(path, protocol, payload))
}

/// A frame whose hop limit is not the usual one.
#[must_use]
pub fn frame_with_hops(path: Path, hops: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    if path.is_v6() {
        Ipv6 { hops, ..Ipv6::default() }.frame(path, protocol, payload)
    } else {
        Ipv4 { ttl: hops, ..Ipv4::default() }.frame(path, protocol, payload)
    }
}

/// A UDP datagram.
#[must_use]
pub fn udp(path: Path, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut segment =
        [ports.0.to_be_bytes(), ports.1.to_be_bytes(), word(8 + payload.len()), [0, 0]].concat();
    segment.extend(payload);
    fill(path, UDP, &mut segment, 6);
    segment
}

/// A TCP segment; sequence and acknowledgement as a stranger would guess them.
#[must_use]
pub fn tcp(path: Path, ports: (u16, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend(1u32.to_be_bytes());
    segment.extend(1u32.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    fill(path, TCP, &mut segment, 16);
    segment
}

/// An ICMP message of the path's family: type, code, the four bytes behind the checksum, and the rest.
#[must_use]
pub fn icmp(path: Path, kind: u8, code: u8, four: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(four);
    message.extend(rest);
    if path.is_v6() {
        fill(path, ICMPV6, &mut message, 2);
    } else {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum);
    }
    message
}

/// An SCTP packet of these chunks (RFC 9260).
#[must_use]
pub fn sctp(ports: (u16, u16), verification: u32, chunks: &[u8]) -> Vec<u8> {
    let mut packet = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    packet.extend(verification.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(chunks);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// A chunk of SCTP, padded.
#[must_use]
pub fn chunk(kind: u8, flags: u8, value: &[u8]) -> Vec<u8> {
    let mut chunk = vec![kind, flags];
    chunk.extend(word(4 + value.len()));
    chunk.extend(value);
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

/// ARP for IPv4 over Ethernet (RFC 826), `op` 1 a request and 2 a reply.
///
/// # Panics
///
/// For IPv6.
#[must_use]
pub fn arp(path: Path, op: u16, sender: (Mac, IpAddr), target: (Mac, IpAddr)) -> Vec<u8> {
    assert!(sender.1.is_ipv4() && target.1.is_ipv4(), "ARP is of IPv4");
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend(op.to_be_bytes());
    for (mac, address) in [sender, target] {
        body.extend(mac);
        body.extend(octets(address));
    }
    ethernet(path, ETHERTYPE_ARP, &body)
}

/// A neighbour discovery message with a hop limit of 255: type, the four bytes behind the checksum, and the rest.
#[must_use]
pub fn discovery(path: Path, kind: u8, four: [u8; 4], rest: &[u8]) -> Vec<u8> {
    frame_with_hops(path, 255, ICMPV6, &icmp(path, kind, 0, four, rest))
}

/// An option of neighbour discovery that holds a link-layer address: 1 the source's, 2 the target's.
#[must_use]
pub fn link_option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

/// Writes a transport checksum with its pseudo header at a place that holds zeros.
fn fill(path: Path, protocol: u8, segment: &mut [u8], place: usize) {
    let mut bytes = octets(path.src);
    bytes.extend(octets(path.dst));
    // For sums of 16-bit words the forms of IPv4 and IPv6 are alike.
    bytes.extend([0, protocol]);
    bytes.extend(word(segment.len()));
    bytes.extend(&*segment);
    let sum = match checksum(&bytes) {
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    segment[place..place + 2].copy_from_slice(&sum);
}

/// The internet checksum (RFC 1071).
#[must_use]
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    word(!(sum as usize) & 0xffff)
}

/// CRC-32C, bit by bit (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// The offset of the IP header's payload in a frame with the shortest header of its family.
#[must_use]
pub fn transport(path: Path) -> usize {
    ETHERNET + if path.is_v6() { IPV6 } else { IPV4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(src: &str, dst: &str) -> Path {
        let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
        Path { src_mac: [2; 6], dst_mac: [4; 6], src, dst }
    }

    /// What was captured between real hosts.
    #[test]
    fn checksums_are_those_of_the_standards() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), [0x22, 0x0d], "RFC 1071");
        assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
    }

    #[test]
    fn a_header_sums_up_to_nothing() {
        for path in [path("10.0.0.1", "10.0.0.2"), path("fd00::1", "fd00::2")] {
            let segment = udp(path, (1, 2), b"abc");
            let mut bytes = octets(path.src);
            bytes.extend(octets(path.dst));
            bytes.extend([0, UDP]);
            bytes.extend(word(segment.len()));
            bytes.extend(&segment);
            assert_eq!(checksum(&bytes), [0, 0]);
        }
        let packet = Ipv4 { options: vec![1; 8], ..Ipv4::default() }.packet(
            [10, 0, 0, 1].into(),
            [10, 0, 0, 2].into(),
            UDP,
            &[],
        );
        assert_eq!(packet[0], 0x47);
        assert_eq!(checksum(&packet), [0, 0]);
    }

    #[test]
    fn tags_stand_behind_the_stations() {
        let plain = ethernet(path("10.0.0.1", "10.0.0.2"), 0x0800, &[9]);
        let tagged = tagged(&plain, &[(ETHERTYPE_QINQ, 5), (ETHERTYPE_VLAN, 6)]);
        assert_eq!(&tagged[..12], &plain[..12]);
        assert_eq!(&tagged[12..], [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0, 9]);
    }
}

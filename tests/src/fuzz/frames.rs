//! Random frames of all shapes: well-formed ones of every protocol that matters, and those with something wrong. Owns
//! what is likely; knows nothing of who judges them or what should come of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portcullis_oracle::Direction;
use portcullis_oracle::packet::Link;
use portcullis_oracle::rng::SplitMix64;

/// Ports that rules name (those of the oracle's random clusters), and one beside.
const PORTS: [u16; 8] = [80, 81, 443, 53, 8080, 1, 65_535, 82];
/// Bytes of a large packet's payload, at most: a test run takes less than a page.
const LARGE: usize = 3_000;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
/// Protocols without ports, known and not: IGMP, IPIP, IPv6 in IPv4, GRE, ESP, AH, no next header, OSPF, and some.
const OTHERS: [u8; 12] = [2, 4, 41, 47, 50, 51, 59, 89, 103, 200, 253, 255];
/// Extension headers that are walked.
const WALKED: [u8; 5] = [0, 43, 44, 51, 60];

/// Who is around.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    /// The pod's addresses.
    pub own: &'a [IpAddr],
    /// Addresses worth sending to and from.
    pub peers: &'a [IpAddr],
    /// The pod's MAC address, where it is known.
    pub station: [u8; 6],
    /// How the frame starts.
    pub link: Link,
}

/// Makes frames, one after another in the same memory.
#[derive(Debug)]
pub struct Forge {
    rng: SplitMix64,
    payload: Vec<u8>,
    packet: Vec<u8>,
    frame: Vec<u8>,
}

/// The transport part of a packet that is being made.
struct Part {
    protocol: u8,
    hops: u8,
}

impl Forge {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            rng: SplitMix64::new(seed),
            payload: Vec::with_capacity(4_096),
            packet: Vec::with_capacity(4_096),
            frame: Vec::with_capacity(4_096),
        }
    }

    /// The numbers that are left: for what else the caller decides about this frame.
    pub fn rng(&mut self) -> &mut SplitMix64 {
        &mut self.rng
    }

    /// The next frame, on its way in a direction.
    pub fn next(&mut self, scene: &Scene<'_>, direction: Direction) -> &[u8] {
        self.frame.clear();
        let (src, dst) = self.ends(scene, direction);
        let ethertype = match self.rng.below(100) {
            0 => self.arp(scene, src),
            1 => self.other(src, dst),
            _ => self.ip(scene, src, dst),
        };
        if scene.link == Link::Ethernet {
            let stranger = self.rng.next_u64().to_be_bytes();
            let (to, from) = match direction {
                Direction::Egress => (&stranger[..6], &scene.station[..]),
                Direction::Ingress => (&scene.station[..], &stranger[..6]),
            };
            self.frame.extend_from_slice(to);
            self.frame.extend_from_slice(from);
            self.frame.extend(ethertype.to_be_bytes());
        }
        self.frame.extend_from_slice(&self.packet);
        self.spoil();
        &self.frame
    }

    /// Source and destination, of one family.
    fn ends(&mut self, scene: &Scene<'_>, direction: Direction) -> (IpAddr, IpAddr) {
        let local = match self.rng.below(40) {
            0 => self.odd(true),
            1 => self.odd(false),
            2 => *self.rng.pick(scene.peers),
            _ if scene.own.is_empty() => self.odd(true),
            _ => *self.rng.pick(scene.own),
        };
        let v4 = local.is_ipv4();
        let remote = match self.rng.below(40) {
            0 | 1 => self.odd(v4),
            2 => scene.own.iter().copied().find(|own| own.is_ipv4() == v4).unwrap_or(local),
            _ => {
                (0..8).map(|_| *self.rng.pick(scene.peers)).find(|peer| peer.is_ipv4() == v4).unwrap_or(local)
            }
        };
        match direction {
            Direction::Egress => (local, remote),
            Direction::Ingress => (remote, local),
        }
    }

    /// Addresses that are nobody's, or everybody's.
    fn odd(&mut self, v4: bool) -> IpAddr {
        let random = self.rng.next_u64();
        let low = random.to_be_bytes();
        if v4 {
            let some: [Ipv4Addr; 8] = [
                Ipv4Addr::UNSPECIFIED,
                Ipv4Addr::BROADCAST,
                Ipv4Addr::LOCALHOST,
                Ipv4Addr::new(224, 0, 0, 251),
                Ipv4Addr::new(169, 254, low[0], low[1]),
                Ipv4Addr::new(10, 0, 0, low[0]),
                Ipv4Addr::new(10, 0, 0, 255),
                Ipv4Addr::new(low[0], low[1], low[2], low[3]),
            ];
            return (*self.rng.pick(&some)).into();
        }
        let link = (0xfe80_u128 << 112) | u128::from(random);
        let some: [Ipv6Addr; 9] = [
            Ipv6Addr::UNSPECIFIED,
            Ipv6Addr::LOCALHOST,
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16),
            Ipv6Addr::from(link),
            Ipv6Addr::from(link),
            Ipv4Addr::new(10, 0, 0, low[0]).to_ipv6_mapped(),
            Ipv6Addr::from((0xfd00_u128 << 112) | u128::from(random & 15)),
            Ipv6Addr::from((u128::from(random) << 64) | u128::from(self.rng.next_u64())),
        ];
        (*self.rng.pick(&some)).into()
    }

    fn port(&mut self) -> u16 {
        if self.rng.chance(100) { self.sixteen() } else { *self.rng.pick(&PORTS) }
    }

    fn sixteen(&mut self) -> u16 {
        u16::from_be_bytes([self.eight(), self.eight()])
    }

    fn eight(&mut self) -> u8 {
        self.rng.next_u64().to_be_bytes()[0]
    }

    fn arp(&mut self, scene: &Scene<'_>, src: IpAddr) -> u16 {
        self.packet.clear();
        self.packet.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        self.packet[7] = *self.rng.pick(&[1, 1, 2, 2, 3]);
        self.station(scene);
        let sender = match src {
            IpAddr::V4(src) => src,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        self.packet.extend(sender.octets());
        self.packet.extend([0; 6]);
        self.packet.extend([10, 0, 0, 1]);
        0x0806
    }

    /// The pod's hardware address, or somebody's.
    fn station(&mut self, scene: &Scene<'_>) {
        let station = if self.rng.chance(700) { scene.station } else { [2, 0, 0, 9, 9, self.eight()] };
        self.packet.extend_from_slice(&station);
    }

    /// What is not IP, and IP behind a tag.
    fn other(&mut self, src: IpAddr, dst: IpAddr) -> u16 {
        self.packet.clear();
        match self.rng.below(4) {
            // LLC: a length instead of a type.
            0 => {
                self.packet.extend_from_slice(&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0]);
                38
            }
            1 => self.sixteen(),
            kind => {
                let part = self.transport(src, dst);
                self.plain(src, dst, &part);
                let inner: [u8; 4] = if src.is_ipv4() { [0, 5, 8, 0] } else { [0, 5, 0x86, 0xdd] };
                self.packet.splice(0..0, inner);
                if kind == 2 { 0x8100 } else { 0x88a8 }
            }
        }
    }

    fn ip(&mut self, scene: &Scene<'_>, src: IpAddr, dst: IpAddr) -> u16 {
        let part = if self.rng.chance(60) && !src.is_ipv4() {
            self.discovery(scene, src)
        } else {
            self.transport(src, dst)
        };
        match (src, dst) {
            (IpAddr::V4(mut src), IpAddr::V4(mut dst)) => {
                if part.protocol == UDP && self.payload.starts_with(&[0, 68, 0, 67]) && self.rng.chance(800) {
                    (src, dst) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
                }
                self.ipv4(src, dst, &part);
                0x0800
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                self.ipv6(src, dst, &part);
                0x86dd
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                self.packet.clear();
                0x0800
            }
        }
    }

    /// IP with nothing special.
    fn plain(&mut self, src: IpAddr, dst: IpAddr, part: &Part) {
        self.packet.clear();
        head(&mut self.packet, src, dst, part.protocol, part.hops, self.payload.len());
        self.packet.extend_from_slice(&self.payload);
    }

    fn ipv4(&mut self, src: Ipv4Addr, dst: Ipv4Addr, part: &Part) {
        self.plain(src.into(), dst.into(), part);
        if self.rng.chance(250) {
            let mut options = Vec::new();
            self.options(&mut options);
            let words = options.len().div_ceil(4);
            options.resize(words * 4, 0);
            self.packet.splice(20..20, options);
            self.packet[0] = 0x40 | u8::try_from(5 + words).unwrap_or(15);
            self.set16(2, self.packet.len());
        }
        if self.rng.chance(15) {
            // Any IHL, with what looks like ports at 20.
            self.packet[0] = 0x40 | (self.eight() & 15);
        }
        if self.rng.chance(120) {
            let word = self.fragment_word();
            self.set16(6, usize::from(word));
        }
    }

    /// Up to 40 bytes of options.
    fn options(&mut self, options: &mut Vec<u8>) {
        for _ in 0..=self.rng.below(5) {
            match self.rng.below(24) {
                0 => options.push(0),
                1 => options.extend_from_slice(&[131, 7, 4, 10, 0, 0, 9]),
                2 => options.extend_from_slice(&[137, 7, 4, 10, 0, 0, 9]),
                3 => options.extend([self.eight(), self.eight()]),
                4..=9 => options.push(1),
                10..=14 => options.extend_from_slice(&[148, 4, 0, 0]),
                15..=19 => options.extend_from_slice(&[7, 7, 4, 0, 0, 0, 0]),
                _ => {
                    let length = self.rng.between(2, 12);
                    options.push(68);
                    options.push(u8::try_from(length).unwrap_or(2));
                    options.resize(options.len() + length - 2, 5);
                }
            }
        }
        options.truncate(40);
    }

    /// Offset and more-fragments flag, as IPv4 has them.
    fn fragment_word(&mut self) -> u16 {
        match self.rng.below(10) {
            0..=3 => 0x2000,
            4 => 0x2001,
            5 => 1,
            6 => 0x2000 | (self.sixteen() & 0x1f),
            7 => self.sixteen() & 0x1f,
            _ => self.sixteen(),
        }
    }

    fn ipv6(&mut self, src: Ipv6Addr, dst: Ipv6Addr, part: &Part) {
        let mut chain = Vec::new();
        let mut first = part.protocol;
        if self.rng.chance(300) {
            let count = if self.rng.chance(800) { self.rng.between(1, 3) } else { self.rng.between(1, 10) };
            let kinds: Vec<u8> = (0..count).map(|at| self.extension(at)).collect();
            for (at, kind) in kinds.iter().enumerate() {
                let next = kinds.get(at + 1).copied().unwrap_or(part.protocol);
                self.extension_header(*kind, next, &mut chain);
            }
            first = kinds.first().copied().unwrap_or(first);
        }
        if !chain.is_empty() {
            self.payload.splice(0..0, chain);
        }
        self.plain(src.into(), dst.into(), &Part { protocol: first, hops: part.hops });
        if self.rng.chance(10) {
            // A jumbogram's, or a lie.
            let length = if self.rng.chance(500) { 0 } else { self.payload.len() + self.rng.below(3) };
            self.set16(4, length);
        }
    }

    fn extension(&mut self, at: usize) -> u8 {
        match self.rng.below(30) {
            0 => *self.rng.pick(&[135, 139, 140]),
            1 => *self.rng.pick(&WALKED),
            _ if at == 0 && self.rng.chance(300) => 0,
            2..=8 => 43,
            9..=16 => 44,
            17..=20 => 51,
            _ => 60,
        }
    }

    fn extension_header(&mut self, kind: u8, next: u8, chain: &mut Vec<u8>) {
        let words = u8::try_from(*self.rng.pick(&[0_usize, 0, 0, 1, 2])).unwrap_or(0);
        match kind {
            44 => {
                let word = match self.rng.below(12) {
                    0..=4 => 0,
                    5..=7 => 1,
                    8 => 9,
                    9 => 8,
                    _ => (self.sixteen() & 0xff) & 0xfff9,
                };
                let [high, low] = word.to_be_bytes();
                chain.extend_from_slice(&[next, 0, high, low, 0, 0, 0, 7]);
            }
            51 => {
                let units = *self.rng.pick(&[1_u8, 4, 4, 4, 2, 0]);
                chain.extend_from_slice(&[next, units, 0, 0]);
                chain.resize(chain.len() + (usize::from(units) + 1) * 4, 0x11);
            }
            43 => {
                let (kind, left) = *self.rng.pick(&[(2, 0), (3, 0), (4, 0), (2, 0), (0, 0), (2, 1), (0, 1)]);
                chain.extend_from_slice(&[next, words, kind, left]);
                chain.resize(chain.len() + 4 + usize::from(words) * 8, 0);
            }
            _ => {
                chain.extend_from_slice(&[next, words, 5, 2, 0, 0, 1, 0]);
                chain.resize(chain.len() + usize::from(words) * 8, 0);
            }
        }
    }

    /// Fills the payload.
    fn transport(&mut self, src: IpAddr, dst: IpAddr) -> Part {
        self.payload.clear();
        let hops = *self.rng.pick(&[64, 64, 255, 1]);
        let protocol = match self.rng.below(100) {
            0..=39 => self.tcp(),
            40..=61 => self.udp(src.is_ipv4()),
            62..=71 => self.sctp(),
            72..=91 => self.icmp(src, dst),
            _ => {
                self.payload.extend([0x45; 24]);
                *self.rng.pick(&OTHERS)
            }
        };
        if self.rng.chance(300) {
            let more = if self.rng.chance(100) { self.rng.below(LARGE) } else { self.rng.below(64) };
            self.payload.resize(self.payload.len() + more, 0xa5);
        }
        Part { protocol, hops }
    }

    fn ports(&mut self) {
        let (source, destination) = (self.port(), self.port());
        self.payload.extend(source.to_be_bytes());
        self.payload.extend(destination.to_be_bytes());
    }

    fn tcp(&mut self) -> u8 {
        self.ports();
        let flags = match self.rng.below(4) {
            0 | 1 => 2,
            2 => 16,
            _ => self.eight(),
        };
        let words: u8 = match self.rng.below(20) {
            0 => self.eight() >> 4,
            1..=4 => 10,
            _ => 5,
        };
        self.payload.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        if self.rng.chance(900) {
            self.payload.resize(self.payload.len().max(usize::from(words) * 4), 1);
        }
        TCP
    }

    fn udp(&mut self, v4: bool) -> u8 {
        if v4 && self.rng.chance(60) {
            self.payload.extend_from_slice(&[0, 68, 0, 67]);
        } else {
            self.ports();
        }
        let length = if self.rng.chance(60) { self.rng.below(10) } else { 8 };
        self.payload.extend(u16::try_from(length).unwrap_or(8).to_be_bytes());
        self.payload.extend([0, 0]);
        UDP
    }

    fn sctp(&mut self) -> u8 {
        self.ports();
        let chunk = if self.rng.chance(500) { 1 } else { self.eight() & 15 };
        self.payload.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, chunk, 0, 0, 20]);
        self.payload.extend([0; 16]);
        SCTP
    }

    fn icmp(&mut self, src: IpAddr, dst: IpAddr) -> u8 {
        let v4 = src.is_ipv4();
        let kind = match (self.rng.below(10), v4) {
            (0..=3, true) => 8,
            (4, true) => 0,
            (5..=7, true) => *self.rng.pick(&[3, 11, 12]),
            (0..=3, false) => 128,
            (4, false) => 129,
            (5..=7, false) => *self.rng.pick(&[1, 2, 3, 4]),
            _ => self.eight(),
        };
        let id = self.sixteen();
        let [high, low] = id.to_be_bytes();
        self.payload.extend_from_slice(&[kind, 0, 0, 0, high, low, 0, 1]);
        // Errors carry a packet, mostly one that the receiver could have sent.
        let (from, to) = if self.rng.chance(800) { (dst, src) } else { (self.odd(v4), dst) };
        if from.is_ipv4() == to.is_ipv4() {
            let protocol = *self.rng.pick(&[TCP, UDP, SCTP, ICMP, ICMPV6, 47]);
            let mut inner = Vec::with_capacity(64);
            head(&mut inner, from, to, protocol, 63, 8);
            inner.extend(self.port().to_be_bytes());
            inner.extend(self.port().to_be_bytes());
            inner.extend([0; 4]);
            self.payload.extend_from_slice(&inner);
        }
        if v4 == self.rng.chance(980) { ICMP } else { ICMPV6 }
    }

    /// Neighbour and listener discovery.
    fn discovery(&mut self, scene: &Scene<'_>, src: IpAddr) -> Part {
        self.payload.clear();
        let kind = *self.rng.pick(&[133, 134, 135, 136, 136, 137, 130, 131, 132, 143]);
        let hops = match (self.rng.chance(100), kind) {
            (true, _) => 64,
            (false, 133..=137) => 255,
            (false, _) => 1,
        };
        self.payload.extend_from_slice(&[kind, 0, 0, 0, 0x60, 0, 0, 0]);
        if matches!(kind, 135..=137) {
            let target = match self.rng.below(4) {
                0 => self.odd(false),
                1 => *self.rng.pick(scene.peers),
                2 => src,
                _ => scene.own.iter().copied().find(IpAddr::is_ipv6).unwrap_or(src),
            };
            match target {
                IpAddr::V6(target) => self.payload.extend(target.octets()),
                IpAddr::V4(_) => self.payload.extend([0; 16]),
            }
        }
        for _ in 0..self.rng.below(3) {
            let (option, length) =
                (*self.rng.pick(&[1, 2, 1, 2, 3, 14]), *self.rng.pick(&[1, 1, 1, 1, 0, 2]));
            self.payload.extend_from_slice(&[option, length]);
            let station = if self.rng.chance(700) { scene.station } else { [2, 0, 0, 9, 9, 9] };
            self.payload.extend_from_slice(&station);
        }
        if self.rng.chance(50) {
            self.payload.resize(200, 0);
        }
        Part { protocol: ICMPV6, hops }
    }

    fn set16(&mut self, at: usize, value: usize) {
        let bytes = u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes();
        if let Some(place) = self.packet.get_mut(at..at + 2) {
            place.copy_from_slice(&bytes);
        }
    }

    /// Cuts, corrupts and prolongs.
    fn spoil(&mut self) {
        let start = 12.min(self.frame.len());
        match self.rng.below(30) {
            0 | 1 => {
                let keep = self.rng.below(self.frame.len() + 1);
                self.frame.truncate(keep);
            }
            2 | 3 => {
                for _ in 0..=self.rng.below(3) {
                    let at = start + self.rng.below(self.frame.len() - start);
                    let value = self.eight();
                    if let Some(byte) = self.frame.get_mut(at) {
                        *byte = value;
                    }
                }
            }
            4 => {
                let more = self.rng.below(40);
                let value = self.eight();
                self.frame.resize(self.frame.len() + more, value);
            }
            _ => {}
        }
    }
}

/// An IP header of the addresses' family, without options.
pub fn head(packet: &mut Vec<u8>, src: IpAddr, dst: IpAddr, protocol: u8, hops: u8, payload: usize) {
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let [high, low] = length(payload + 20);
            packet.extend_from_slice(&[0x45, 0, high, low, 0, 7, 0, 0, hops, protocol, 0, 0]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let [high, low] = length(payload);
            packet.extend_from_slice(&[0x60, 0, 0, 0, high, low, protocol, hops]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
    }
}

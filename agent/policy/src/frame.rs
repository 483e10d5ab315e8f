//! Packets that stand for traffic: what `explain`, `matrix` and tests put to the judgement and, through
//! `BPF_PROG_TEST_RUN`, to the kernel. An opening packet each: TCP SYN, UDP, SCTP INIT, ICMP echo request.

use std::fmt;
use std::net::IpAddr;

use portcullis_common::packet::{ICMP, ICMPV6, TCP_SYN};

use crate::model::Protocol;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// A transport protocol, and the destination's port.
    To(Protocol, u16),
    /// An ICMP echo request of the addresses' family.
    Echo,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::To(protocol, port) => write!(f, "{protocol}/{port}"),
            Self::Echo => f.write_str("ICMP"),
        }
    }
}

/// `PROTO/PORT` or `ICMP` could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not PROTO/PORT: write TCP/80, UDP/53, SCTP/9999 or ICMP, with a port from 1 to 65535")]
pub struct BadTraffic(String);

impl std::str::FromStr for Traffic {
    type Err = BadTraffic;

    fn from_str(text: &str) -> Result<Self, BadTraffic> {
        let bad = || BadTraffic(text.to_owned());
        let upper = text.to_ascii_uppercase();
        if upper == "ICMP" {
            return Ok(Self::Echo);
        }
        let (protocol, port) = upper.split_once('/').ok_or_else(bad)?;
        let protocol = Protocol::from_name(protocol).ok_or_else(bad)?;
        match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Self::To(protocol, port)),
            Ok(_) | Err(_) => Err(bad()),
        }
    }
}

/// Source port of these packets: of the dynamic range, and no service's.
pub const SOURCE_PORT: u16 = 49_999;

const ETHERNET: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// An Ethernet frame with the opening packet; `None` where the addresses are of different families.
#[must_use]
pub fn opening(from: IpAddr, to: IpAddr, traffic: Traffic) -> Option<Vec<u8>> {
    let (number, payload) = match traffic {
        Traffic::To(protocol, port) => (protocol.number(), transport(protocol, port)),
        Traffic::Echo => {
            let (number, kind) = if from.is_ipv4() { (ICMP, 8) } else { (ICMPV6, 128) };
            (number, vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1])
        }
    };
    packet(from, to, number, &payload)
}

/// An Ethernet frame with an IP packet of this protocol and payload.
#[must_use]
pub fn packet(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let mut frame = ETHERNET.to_vec();
    let len = u16::try_from(payload.len()).ok()?;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend(len.checked_add(20)?.to_be_bytes());
            frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(len.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    frame.extend(payload);
    Some(frame)
}

fn transport(protocol: Protocol, port: u16) -> Vec<u8> {
    let mut bytes = SOURCE_PORT.to_be_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    match protocol {
        Protocol::Tcp => bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, TCP_SYN, 0xff, 0xff, 0, 0, 0, 0]),
        Protocol::Udp => bytes.extend([0, 8, 0, 0]),
        // Verification tag and checksum, then an INIT chunk of 20 bytes.
        Protocol::Sctp => bytes
            .extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]),
    }
    bytes
}

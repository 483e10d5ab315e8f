//! Addresses and CIDRs as Kubernetes stores them: older API servers accepted host bits and leading zeros, and
//! such objects live on (S20). Leading zeros are decimal, as Kubernetes' own lenient parser reads them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The longest run of digits that is looked at; longer ones are no number of ours.
const MAX_DIGITS: usize = 16;

/// Reads `ADDRESS/LENGTH` and masks it. An IPv4-mapped IPv6 address is refused: whether it means IPv4 packets
/// or none cannot be told.
pub(crate) fn cidr(text: &str) -> Option<IpNet> {
    let (addr, length) = text.split_once('/')?;
    let length = u8::try_from(decimal(length)?).ok()?;
    IpNet::new(address(addr)?, length).ok().map(|net| net.trunc())
}

/// Reads an address, leading zeros allowed.
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let addr: Ipv6Addr = without_leading_zeros(text)?.parse().ok()?;
        return addr.to_ipv4_mapped().is_none().then_some(IpAddr::V6(addr));
    }
    ipv4(text).map(IpAddr::V4)
}

fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = u8::try_from(decimal(parts.next()?)?).ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

fn decimal(digits: &str) -> Option<u32> {
    let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !all_digits || digits.len() > MAX_DIGITS {
        return None;
    }
    digits.parse().ok()
}

/// An IPv6 text in which no group has more leading zeros than the standard parser takes.
fn without_leading_zeros(text: &str) -> Option<String> {
    let mut groups = Vec::new();
    for group in text.split(':') {
        groups.push(if group.contains('.') {
            ipv4(group)?.to_string()
        } else if group.len() > MAX_DIGITS {
            return None;
        } else {
            match group.trim_start_matches('0') {
                "" if group.is_empty() => String::new(),
                "" => "0".to_owned(),
                significant => significant.to_owned(),
            }
        });
    }
    Some(groups.join(":"))
}

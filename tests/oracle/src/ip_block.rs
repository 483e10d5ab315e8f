//! `ipBlock` peers: reading addresses leniently and matching them. It does not know whose address it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;

use crate::read::field;

/// An `ipBlock` that could be read in full.
#[derive(Debug)]
pub(crate) struct IpBlock {
    cidr: IpNet,
    except: Vec<IpNet>,
}

impl IpBlock {
    /// Reads a block; none if its cidr or any except is unreadable or of the wrong family (S13).
    pub(crate) fn read(value: &Value) -> Option<IpBlock> {
        let cidr = read_cidr(field(value, "cidr")?.as_str()?)?;
        let mut block = IpBlock { cidr, except: Vec::new() };
        if let Some(except) = field(value, "except") {
            for except in except.as_array()? {
                let except = read_cidr(except.as_str()?)?;
                if except.addr().is_ipv4() != cidr.addr().is_ipv4() {
                    return None;
                }
                block.except.push(except);
            }
        }
        Some(block)
    }

    /// S16: any address counts, a pod's too. S17 and S18: the excepts take away from this block alone, each by
    /// itself, whichever prefix is the longest. S13: one outside the cidr has nothing here to take away.
    /// S19: an address of the other family is in no block.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|except| except.contains(&address))
    }
}

/// S20: host bits are masked; leading zeros in IPv4 octets, and in the prefix length, are decimal.
fn read_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length = decimal(length)?;
    if address.contains(':') {
        let address: Ipv6Addr = address.parse().ok()?;
        Some(IpNet::V6(Ipv6Net::new(address, length).ok()?.trunc()))
    } else {
        let mut octets = address.split('.').map(decimal);
        let mut next = || octets.next().flatten();
        let address = Ipv4Addr::new(next()?, next()?, next()?, next()?);
        if octets.next().is_some() {
            return None;
        }
        Some(IpNet::V4(Ipv4Net::new(address, length).ok()?.trunc()))
    }
}

/// Decimal digits only, any number of leading zeros, at most 255.
fn decimal(text: &str) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = text.trim_start_matches('0');
    if digits.is_empty() { Some(0) } else { digits.parse().ok() }
}

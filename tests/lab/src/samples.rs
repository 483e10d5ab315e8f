//! Addresses outside that make ipBlocks worth probing: one inside each block, and one inside each except.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_policy::model::{Cluster, DirectionSpec, IpBlock, Peer, Peers};

/// How many addresses of a block are looked at before it counts as having no free one.
const STEPS: usize = 4096;

/// Adds to `outside` one address in each ipBlock (net without its excepts) and one in each except, unless
/// there is one already. None that is in `taken`, and none that cannot stand on an interface.
pub(crate) fn add(outside: &mut BTreeSet<IpAddr>, cluster: &Cluster, taken: &BTreeSet<IpAddr>) {
    for block in blocks(cluster) {
        let whole = IpBlock { net: block.net, except: block.except.clone() };
        let excepted = block.except.iter().map(|net| IpBlock { net: *net, except: Vec::new() });
        for part in std::iter::once(whole).chain(excepted) {
            if !outside.iter().any(|a| contains(&part, *a)) {
                outside.extend(sample(&part, taken));
            }
        }
    }
}

/// True for an address that an interface can hold and a route can lead to.
pub(crate) fn usable(address: IpAddr) -> bool {
    let broadcast = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets().first() == Some(&0),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(broadcast || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

fn blocks(cluster: &Cluster) -> impl Iterator<Item = &IpBlock> {
    cluster
        .policies
        .values()
        .flat_map(|policy| [&policy.ingress, &policy.egress])
        .flat_map(|spec| match spec {
            DirectionSpec::Ignored => &[][..],
            DirectionSpec::Isolated { rules, .. } => rules,
        })
        .flat_map(|rule| match &rule.peers {
            Peers::Any => &[][..],
            Peers::Only(peers) => peers,
        })
        .filter_map(|peer| match peer {
            Peer::Pods { .. } | Peer::Nodes(_) => None,
            Peer::Block(block) => Some(block),
        })
}

fn contains(block: &IpBlock, address: IpAddr) -> bool {
    block.net.contains(&address) && !block.except.iter().any(|net| net.contains(&address))
}

fn sample(block: &IpBlock, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let mut candidate = block.net.network();
    if block.net.prefix_len() + 1 < block.net.max_prefix_len() {
        candidate = next(candidate)?;
    }
    for _ in 0..STEPS {
        if !block.net.contains(&candidate) {
            return None;
        }
        let jump = skip(candidate).or_else(|| block.except.iter().find(|n| n.contains(&candidate)).copied());
        match jump {
            Some(net) => candidate = next(net.broadcast())?,
            None if usable(candidate) && !taken.contains(&candidate) => return Some(candidate),
            None => candidate = next(candidate)?,
        }
    }
    None
}

/// The net of unusable addresses that the address is in: stepping through 127.0.0.0/8 one by one would not end.
fn skip(address: IpAddr) -> Option<IpNet> {
    ["0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "::/8", "fe80::/10", "ff00::/8"]
        .iter()
        .filter_map(|net| net.parse::<IpNet>().ok())
        .find(|net| net.contains(&address))
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(net: &str, except: &[&str]) -> IpBlock {
        IpBlock { net: net.parse().unwrap(), except: except.iter().map(|n| n.parse().unwrap()).collect() }
    }

    fn sampled(net: &str, except: &[&str], taken: &[&str]) -> Option<String> {
        let taken = taken.iter().map(|a| a.parse().unwrap()).collect();
        sample(&block(net, except), &taken).map(|a| a.to_string())
    }

    #[test]
    fn first_free_address_is_taken() {
        assert_eq!(sampled("172.17.0.0/16", &[], &[]), Some("172.17.0.1".into()));
        assert_eq!(sampled("172.17.0.0/16", &[], &["172.17.0.1"]), Some("172.17.0.2".into()));
        assert_eq!(sampled("10.1.2.3/32", &[], &[]), Some("10.1.2.3".into()));
        assert_eq!(sampled("10.1.2.3/32", &[], &["10.1.2.3"]), None);
        assert_eq!(sampled("10.1.2.2/31", &[], &[]), Some("10.1.2.2".into()));
    }

    #[test]
    fn excepts_and_odd_ranges_are_jumped() {
        assert_eq!(sampled("172.17.0.0/16", &["172.17.0.0/24"], &[]), Some("172.17.1.0".into()));
        assert_eq!(sampled("0.0.0.0/0", &["1.0.0.0/8"], &[]), Some("2.0.0.0".into()));
        assert_eq!(sampled("::/0", &[], &[]), Some("100::".into()));
        assert_eq!(sampled("127.0.0.0/8", &[], &[]), None);
        assert_eq!(sampled("10.0.0.0/24", &["10.0.0.0/24"], &[]), None);
    }
}

//! Made-up addresses for pods that have none yet. They depend on the pod's name and, only where two names
//! collide, on the other pods: another pod seldom moves them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Options, used_addresses};
use crate::convert::{Path, Report};
use crate::model::{AddressesFrom, Cluster, ObjectKey, Problem};

/// Gives every live pod with a network of its own but no address one of each family in the options.
pub(super) fn assign(cluster: &mut Cluster, options: &Options, problems: &mut Vec<Problem>) {
    let used: BTreeSet<IpAddr> = used_addresses(cluster).collect();
    let mut v4 = Pool::new(options, Family::V4, &used);
    let mut v6 = Pool::new(options, Family::V6, &used);
    let mut without = 0_usize;
    for (key, pod) in &mut cluster.pods {
        if !pod.is_live() || !pod.has_own_network() || !pod.addresses.is_empty() {
            continue;
        }
        pod.addresses.extend(v4.take(key));
        pod.addresses.extend(v6.take(key));
        pod.addresses_from = AddressesFrom::MadeUp;
        if pod.addresses.is_empty() {
            without = without.saturating_add(1);
        }
    }
    let exhausted = |pool: &Pool| pool.missed > 0 && !pool.ranges.is_empty();
    let mut report = Report::new("--pod-cidr", None);
    for pool in [&v4, &v6] {
        if exhausted(pool) {
            report.error(
                Path::ROOT,
                format_args!("has no room for {} pods, which stay without address; widen it", pool.missed),
            );
        }
    }
    if without > 0 && !exhausted(&v4) && !exhausted(&v6) {
        report.error(
            Path::ROOT,
            format_args!("is empty, so {without} pods stay without address; give a range or status.podIPs"),
        );
    }
    problems.append(&mut report.into_problems());
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

/// The ranges of one family, and who has what in them.
struct Pool {
    ranges: Vec<Range>,
    taken: BTreeSet<IpAddr>,
    missed: usize,
}

impl Pool {
    fn new(options: &Options, family: Family, used: &BTreeSet<IpAddr>) -> Self {
        let ranges = options.pod_cidrs.iter().filter(|net| match family {
            Family::V4 => matches!(net, IpNet::V4(_)),
            Family::V6 => matches!(net, IpNet::V6(_)),
        });
        let ranges = ranges.filter_map(|net| Range::new(*net, used)).collect();
        Self { ranges, taken: used.clone(), missed: 0 }
    }

    fn take(&mut self, key: &ObjectKey) -> Option<IpAddr> {
        for range in &mut self.ranges {
            if let Some(address) = range.take(key, &mut self.taken) {
                return Some(address);
            }
        }
        self.missed = self.missed.saturating_add(1);
        None
    }
}

/// A range without its network and first address, which a gateway has, and its last, the broadcast.
struct Range {
    /// The first address that a pod may have.
    first: IpAddr,
    size: u128,
    free: u128,
}

impl Range {
    /// `None` if the range has no address for a pod.
    fn new(net: IpNet, used: &BTreeSet<IpAddr>) -> Option<Self> {
        let bits = match net {
            IpNet::V4(net) => 32 - net.prefix_len(),
            IpNet::V6(net) => 128 - net.prefix_len(),
        };
        let all = 1_u128.checked_shl(u32::from(bits)).unwrap_or(u128::MAX);
        let size = all.checked_sub(3).filter(|size| *size > 0)?;
        let first = plus(net.network(), 2);
        let held = used.range(first..=plus(first, size - 1)).count();
        Some(Self { first, size, free: size.saturating_sub(u128::try_from(held).unwrap_or(u128::MAX)) })
    }

    fn take(&mut self, key: &ObjectKey, taken: &mut BTreeSet<IpAddr>) -> Option<IpAddr> {
        if self.free == 0 {
            return None;
        }
        let mut offset = hash(key) % self.size;
        loop {
            let address = plus(self.first, offset);
            if taken.insert(address) {
                self.free -= 1;
                return Some(address);
            }
            offset = if offset + 1 == self.size { 0 } else { offset + 1 };
        }
    }
}

fn plus(address: IpAddr, offset: u128) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits().saturating_add(offset)))
        }
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits().saturating_add(offset))),
    }
}

/// FNV-1a over `NAMESPACE/NAME`, then the finaliser of `SplitMix64`, which spreads what few changed
/// characters at the end moved. Part of what users see: never change it.
fn hash(key: &ObjectKey) -> u128 {
    let bytes = key.namespace.bytes().chain([b'/']).chain(key.name.bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    u128::from(hash ^ (hash >> 31))
}

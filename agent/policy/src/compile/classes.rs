//! Which selectors match an address or a prefix, for many of both: one walk over nested prefixes instead of every
//! block for every prefix. Knows nothing of rulesets and tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::index::Index;
use crate::model::{IpBlock, ObjectKey};
use crate::select::{Base, Directory, PeerSelector, PodFacts};

/// Pairs of prefix and block that holds it, over all prefixes: what the walk writes down. Nested or overlapping
/// blocks make many of few prefixes; past this, 16 MiB of numbers, the rulesets do not fit.
pub(super) const MAX_OVERLAPS: usize = 1 << 22;

/// There are more than [`MAX_OVERLAPS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyOverlaps;

/// The prefixes that a selector's blocks bring; none where it has none, or its pods must declare a port: that matches
/// pods' addresses only.
pub(super) fn block_prefixes(selector: &PeerSelector) -> impl Iterator<Item = IpNet> {
    let base = selector.named.is_none().then_some(&selector.base);
    base.into_iter().flat_map(Base::blocks).flat_map(prefixes_of)
}

fn prefixes_of(block: &IpBlock) -> impl Iterator<Item = IpNet> {
    block.except.iter().copied().chain([block.net]).map(|net| net.trunc())
}

/// For every prefix among blocks and excepts, the numbers of the blocks that hold all of it; and so, for an address,
/// those of its longest prefix.
#[derive(Debug, Default)]
pub(super) struct Nested {
    holders: BTreeMap<IpNet, Vec<u32>>,
    /// Lengths that occur, by family, the longest first.
    v4: BTreeSet<std::cmp::Reverse<u8>>,
    v6: BTreeSet<std::cmp::Reverse<u8>>,
}

/// What begins or ends at a prefix.
#[derive(Default)]
struct Turn {
    begins: Vec<u32>,
    ends: Vec<u32>,
}

/// A prefix on the way down to the present one, and what it changed.
struct Outer {
    net: IpNet,
    added: Vec<u32>,
    removed: Vec<u32>,
}

impl Nested {
    /// Of numbered blocks; several without excepts may bear one number.
    pub(super) fn new<'a>(
        blocks: impl IntoIterator<Item = (u32, &'a IpBlock)>,
    ) -> Result<Self, TooManyOverlaps> {
        Self::within(blocks, MAX_OVERLAPS)
    }

    /// Of blocks that hold each other's prefixes this often at most.
    pub(super) fn within<'a>(
        blocks: impl IntoIterator<Item = (u32, &'a IpBlock)>,
        bound: usize,
    ) -> Result<Self, TooManyOverlaps> {
        let mut turns: BTreeMap<IpNet, Turn> = BTreeMap::new();
        for (number, block) in blocks {
            turns.entry(block.net.trunc()).or_default().begins.push(number);
            for except in &block.except {
                turns.entry(except.trunc()).or_default().ends.push(number);
            }
        }
        if turns.keys().any(reaches_mapped) {
            turns.entry(IpNet::V4(Ipv4Net::default())).or_default();
        }
        let mut nested = Self::default();
        let mut path: Vec<Outer> = Vec::new();
        let mut holding: BTreeSet<u32> = BTreeSet::new();
        let mut overlaps = 0usize;
        // In order of address, then length: an outer prefix comes before those inside it.
        for (net, turn) in turns {
            while path.last().is_some_and(|outer| !outer.net.contains(&net)) {
                if let Some(outer) = path.pop() {
                    holding.extend(outer.removed);
                    for number in outer.added {
                        holding.remove(&number);
                    }
                }
            }
            let added: Vec<u32> = turn.begins.into_iter().filter(|number| holding.insert(*number)).collect();
            let removed: Vec<u32> = turn.ends.into_iter().filter(|number| holding.remove(number)).collect();
            path.push(Outer { net, added, removed });
            overlaps = overlaps.saturating_add(holding.len());
            if overlaps > bound {
                return Err(TooManyOverlaps);
            }
            match net {
                IpNet::V4(_) => nested.v4.insert(std::cmp::Reverse(net.prefix_len())),
                IpNet::V6(_) => nested.v6.insert(std::cmp::Reverse(net.prefix_len())),
            };
            nested.holders.insert(net, holding.iter().copied().collect());
        }
        Ok(nested)
    }

    /// The prefixes, each with the blocks that hold it, in order.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = (&IpNet, &[u32])> {
        self.holders.iter().map(|(net, holders)| (net, holders.as_slice()))
    }

    /// The longest prefix of an address, with the blocks that hold the address.
    pub(super) fn longest(&self, address: IpAddr) -> Option<(IpNet, &[u32])> {
        let lengths = match address {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        lengths.iter().find_map(|length| {
            let net = IpNet::new(address, length.0).ok()?.trunc();
            self.holders.get(&net).map(|holders| (net, holders.as_slice()))
        })
    }
}

/// True for an IPv6 prefix that reaches the mapped addresses which stand for IPv4 (S19): then `0.0.0.0/0`, which only
/// IPv4 blocks can match, is put in its way.
fn reaches_mapped(net: &IpNet) -> bool {
    match net {
        IpNet::V4(_) => false,
        IpNet::V6(v6) => {
            let mapped = std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
            Ipv6Net::new(v6.network(), v6.prefix_len()).is_ok_and(|net| net.contains(&mapped))
        }
    }
}

/// The numbered selectors, sorted by how they are asked.
#[derive(Debug)]
pub(super) struct Matcher {
    /// What addresses outside match, and pods' too.
    pub(super) blocks: Nested,
    /// Blocks whose pods must declare a port.
    named_blocks: Nested,
    named: BTreeMap<u32, PeerSelector>,
    pods: Index,
}

impl Matcher {
    pub(super) fn new(selectors: &BTreeMap<u32, &PeerSelector>) -> Result<Self, TooManyOverlaps> {
        let (mut blocks, mut named_blocks) = (Vec::new(), Vec::new());
        let (mut named, mut pods) = (BTreeMap::new(), Index::default());
        for (number, selector) in selectors {
            match (&selector.base, &selector.named) {
                (base @ (Base::Block(_) | Base::Blocks(_)), None) => {
                    blocks.extend(base.blocks().map(|block| (*number, block)));
                }
                (base @ (Base::Block(_) | Base::Blocks(_)), Some(_)) => {
                    named_blocks.extend(base.blocks().map(|block| (*number, block)));
                    named.insert(*number, (*selector).clone());
                }
                (Base::AnyPod | Base::Pods(..), _) => pods.insert(*number, selector),
            }
        }
        Ok(Self { blocks: Nested::new(blocks)?, named_blocks: Nested::new(named_blocks)?, named, pods })
    }

    /// The numbers of the selectors that match, sorted, for each address that somebody owns or a Service has.
    pub(super) fn addresses<'d>(
        &'d self,
        directory: &'d Directory<'_>,
    ) -> impl Iterator<Item = (IpAddr, Owned, Vec<u32>)> + 'd {
        let mut of_pods: BTreeMap<&ObjectKey, Vec<u32>> = BTreeMap::new();
        let owned = directory.owners.iter().filter_map(move |(address, key)| {
            let facts = directory.pods.get(*key)?;
            let of_pod = of_pods.entry(*key).or_insert_with(|| self.pods.matching(facts)).clone();
            Some((*address, Owned::Pod, self.completed(of_pod, *address, facts)))
        });
        let virtual_addresses = directory.virtual_addresses.iter().map(|address| {
            let holders = self.blocks.longest(*address).map_or(&[][..], |(_, holders)| holders);
            (*address, Owned::Service, holders.to_vec())
        });
        owned.chain(virtual_addresses)
    }

    /// The numbers of the selectors that match an address of a pod, sorted.
    pub(super) fn of_address(&self, address: IpAddr, facts: &PodFacts<'_>) -> Vec<u32> {
        self.completed(self.pods.matching(facts), address, facts)
    }

    /// With the blocks that hold the address.
    fn completed(&self, mut numbers: Vec<u32>, address: IpAddr, facts: &PodFacts<'_>) -> Vec<u32> {
        numbers.extend(self.blocks.longest(address).map_or(&[][..], |(_, holders)| holders));
        let named = self.named_blocks.longest(address).map_or(&[][..], |(_, holders)| holders);
        let declared =
            |number: &&u32| self.named.get(*number).is_some_and(|s| s.matches(address, Some(facts)));
        numbers.extend(named.iter().filter(declared));
        numbers.sort_unstable();
        numbers
    }
}

/// Whose an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owned {
    /// A pod's.
    Pod,
    /// A Service's.
    Service,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::select::{block_holds, block_holds_prefix};

    /// Few bits decide, so that prefixes nest, repeat and lie side by side.
    fn net() -> impl Strategy<Value = IpNet> {
        (any::<bool>(), 0u32..64, 0u8..=6).prop_map(|(v6, bits, length)| {
            let net = if v6 {
                IpNet::new(IpAddr::from((u128::from(bits) << 122).to_be_bytes()), length)
            } else {
                IpNet::new(IpAddr::from((bits << 26).to_be_bytes()), length)
            };
            net.unwrap().trunc()
        })
    }

    fn block() -> impl Strategy<Value = IpBlock> {
        (net(), prop::collection::vec(net(), 0..4)).prop_map(|(net, nets)| {
            let mut except: Vec<IpNet> = nets.into_iter().filter(|one| net.contains(one)).collect();
            except.sort();
            except.dedup();
            IpBlock { net, except }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn s18_the_walk_finds_what_asking_every_block_finds(blocks in prop::collection::vec(block(), 0..24)) {
            let numbered: Vec<(u32, &IpBlock)> = (0u32..).zip(&blocks).collect();
            let nested = Nested::new(numbered.iter().copied()).unwrap();
            let mut wanted: BTreeSet<IpNet> = blocks.iter().flat_map(prefixes_of).collect();
            if wanted.iter().any(reaches_mapped) {
                wanted.insert(IpNet::V4(Ipv4Net::default()));
            }
            prop_assert_eq!(nested.prefixes().map(|(net, _)| *net).collect::<BTreeSet<_>>(), wanted);
            for (net, holders) in nested.prefixes() {
                let naive: Vec<u32> =
                    numbered.iter().filter(|(_, b)| block_holds_prefix(b, net)).map(|(n, _)| *n).collect();
                prop_assert_eq!(holders, &naive[..], "{}", net);
            }
            for bits in 0..64u32 {
                for address in [
                    IpAddr::from((bits << 26 | 1).to_be_bytes()),
                    IpAddr::from((u128::from(bits) << 122 | 1).to_be_bytes()),
                ] {
                    let naive: Vec<u32> =
                        numbered.iter().filter(|(_, b)| block_holds(b, address)).map(|(n, _)| *n).collect();
                    let found = nested.longest(address).map_or(&[][..], |(_, holders)| holders);
                    prop_assert_eq!(found, &naive[..], "{}", address);
                }
            }
        }
    }

    #[test]
    fn overlaps_are_bounded() {
        // Each except is held by every block but its own.
        let everything: IpNet = "0.0.0.0/0".parse().unwrap();
        let blocks: Vec<IpBlock> = (0..6_000u32)
            .map(|n| IpBlock {
                net: everything,
                except: vec![Ipv4Net::new((n << 8).into(), 24).unwrap().into()],
            })
            .collect();
        let error = Nested::new((0u32..).zip(&blocks)).unwrap_err();
        assert_eq!(error, TooManyOverlaps);
    }
}

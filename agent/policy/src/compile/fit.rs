//! Which rulesets get a place where the tables have none for all: what is in force stays, of the new ones the
//! smallest come first, and no namespace takes more than its share. Decides by counts alone; writes nothing.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::classes::{MAX_OVERLAPS, Nested};
use super::wanted::Candidate;
use crate::desired::CounterName;
use crate::model::IpBlock;
use crate::sizes::{Sizes, Table};

/// A namespace can have one part in so many of what a bank has of a table: the policies of one never fill it. Half,
/// so that old and new tables of one namespace find room beside each other while they change.
pub const NAMESPACE_SHARE: u32 = 2;

/// The tables that namespaces share by count.
const SHARED: [Table; 7] = [
    Table::Rulesets,
    Table::Rules,
    Table::PortRanges,
    Table::Rows,
    Table::PeerRows,
    Table::Prefixes,
    Table::Counters,
];

/// What a namespace can have of a table.
pub(super) fn share(sizes: &Sizes, table: Table) -> u64 {
    u64::from(sizes.of_bank(table) / NAMESPACE_SHARE).max(1)
}

/// What a namespace takes; what several rulesets need once counts once.
#[derive(Default)]
struct Usage<'a> {
    sums: BTreeMap<Table, u64>,
    prefixes: BTreeMap<IpNet, u32>,
    counters: BTreeMap<&'a CounterName, u32>,
    /// By the candidate's place.
    held: BTreeMap<usize, u32>,
}

impl<'a> Usage<'a> {
    fn add(&mut self, place: usize, one: &'a Candidate) {
        let times = self.held.entry(place).or_default();
        *times += 1;
        if *times > 1 {
            return;
        }
        for table in SHARED {
            *self.sums.entry(table).or_default() += one.built.takes(table);
        }
        for net in &one.built.prefixes {
            *self.prefixes.entry(*net).or_default() += 1;
        }
        for rule in &one.rules {
            *self.counters.entry(&rule.name).or_default() += 1;
        }
    }

    fn remove(&mut self, place: usize, one: &'a Candidate) {
        match self.held.get_mut(&place) {
            None => return,
            Some(times) if *times > 1 => {
                *times -= 1;
                return;
            }
            Some(_) => {}
        }
        self.held.remove(&place);
        for table in SHARED {
            let sum = self.sums.entry(table).or_default();
            *sum = sum.saturating_sub(one.built.takes(table));
        }
        for net in &one.built.prefixes {
            release(&mut self.prefixes, net);
        }
        for rule in &one.rules {
            release(&mut self.counters, &&rule.name);
        }
    }

    fn of(&self, table: Table) -> u64 {
        match table {
            Table::Prefixes => self.prefixes.len() as u64,
            Table::Counters => self.counters.len() as u64,
            Table::Rulesets
            | Table::Rules
            | Table::PortRanges
            | Table::Rows
            | Table::PeerRows
            | Table::Peers
            | Table::Endpoints
            | Table::Events => self.sums.get(&table).copied().unwrap_or(0),
        }
    }
}

fn release<K: Ord + Clone>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// The candidates that exceed their namespace's share, by the table that they exceed it in. What one that is refused
/// would replace stays and counts.
pub(super) fn beyond_shares(candidates: &[Candidate], sizes: &Sizes) -> BTreeMap<usize, Table> {
    let mut namespaces: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, one) in candidates.iter().enumerate() {
        if one.is_wanted {
            namespaces.entry(one.namespace()).or_default().push(place);
        }
    }
    let mut refused = BTreeMap::new();
    for places in namespaces.into_values() {
        let overlapping = beyond_overlaps(candidates, &places);
        let places = places.into_iter().filter(|place| !overlapping.contains(place)).collect::<Vec<_>>();
        refused.extend(overlapping.into_iter().map(|place| (place, Table::Prefixes)));
        let mut usage = Usage::default();
        let mut rest: BTreeSet<usize> = BTreeSet::new();
        for place in places {
            if let Some(one) = candidates.get(place) {
                usage.add(place, one);
                if one.is_new() {
                    rest.insert(place);
                }
            }
        }
        while let Some(table) = SHARED.into_iter().find(|table| usage.of(*table) > share(sizes, *table)) {
            let Some(place) = heaviest(candidates, &rest, table) else {
                break;
            };
            rest.remove(&place);
            refused.insert(place, table);
            if let Some(one) = candidates.get(place) {
                usage.remove(place, one);
                for old in &one.replaces {
                    if let Some(kept) = candidates.get(*old) {
                        usage.add(*old, kept);
                    }
                }
            }
        }
    }
    refused
}

/// The new ones of a namespace that it has to do without so that its blocks hold each other's prefixes no more often
/// than its share of [`MAX_OVERLAPS`]: the fewest, those with most blocks first.
fn beyond_overlaps(candidates: &[Candidate], places: &[usize]) -> Vec<usize> {
    let bound = MAX_OVERLAPS / NAMESPACE_SHARE as usize;
    let is_beyond = |without: &[usize]| {
        let kept = places.iter().filter(|place| !without.contains(place));
        let kept = kept.filter_map(|place| candidates.get(*place));
        let blocks: BTreeSet<&IpBlock> = kept.flat_map(|one| one.built.blocks()).collect();
        // So few cannot, whatever they hold.
        let prefixes: usize = blocks.iter().map(|block| 1 + block.except.len()).sum();
        blocks.len().saturating_mul(prefixes) > bound && Nested::within((0u32..).zip(blocks), bound).is_err()
    };
    if !is_beyond(&[]) {
        return Vec::new();
    }
    let is_new = |place: &usize| candidates.get(*place).is_some_and(Candidate::is_new);
    let mut order: Vec<usize> = places.iter().copied().filter(is_new).collect();
    let count = |place: &usize| candidates.get(*place).map_or(0, |one| one.built.blocks().count());
    order.sort_by_key(|place| std::cmp::Reverse(count(place)));
    let enough = partition(order.len(), |without| is_beyond(order.get(..without).unwrap_or_default()));
    order.truncate(enough);
    order
}

/// The least number up to `most` for which something is not true any more, that is true for all below.
fn partition(most: usize, is_true: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = usize::midpoint(low, high);
        if is_true(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Of these, the one that takes most of a table; of equal ones the greatest in all, then the last by content.
fn heaviest(candidates: &[Candidate], places: &BTreeSet<usize>, table: Table) -> Option<usize> {
    places.iter().copied().max_by(|a, b| match (candidates.get(*a), candidates.get(*b)) {
        (Some(a), Some(b)) => weight(a, table).cmp(&weight(b, table)),
        (a, b) => a.is_some().cmp(&b.is_some()),
    })
}

/// By what it takes of the table that is full; else by all that it takes, and by content, so that the order is one.
pub(super) fn weight(one: &Candidate, table: Table) -> (u64, u64, &[super::ruleset::RuleContent]) {
    let all = SHARED.into_iter().map(|table| one.built.takes(table)).sum();
    (one.built.weight(table), all, &one.rules)
}

/// The namespace whose served rulesets take most of a table, and how much.
pub(super) fn biggest_user<'a>(
    candidates: impl IntoIterator<Item = &'a Candidate>,
    table: Table,
) -> Option<(&'a str, u64)> {
    let mut usage: BTreeMap<&str, Usage<'_>> = BTreeMap::new();
    for (place, one) in candidates.into_iter().enumerate() {
        usage.entry(one.namespace()).or_default().add(place, one);
    }
    usage.into_iter().map(|(namespace, usage)| (namespace, usage.of(table))).max_by_key(|(_, count)| *count)
}

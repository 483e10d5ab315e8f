//! A ruleset worked out: vectors by peer selector and by port range, and what it takes of each table. Knows
//! neither numbers nor other rulesets.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use portcullis_common::wire::{ROW_BITS, ROW_WORDS};

use super::classes::block_prefixes;
use super::ruleset::{LAST_POSITION, PeerSet, RuleContent};
use crate::desired::RuleSource;
use crate::model::IpBlock;
use crate::select::PeerSelector;
use crate::sizes::Table;

/// Vectors by peer selector and by port range.
#[derive(Clone, Debug)]
pub(super) struct Built {
    /// Rows that a vector spans.
    pub(super) chunks: u32,
    /// The rules that match anyone.
    pub(super) any: Vec<u64>,
    /// The rules that a selector makes match, by their positions.
    pub(super) by_selector: BTreeMap<PeerSelector, Vec<u32>>,
    /// The rules that match from a position on.
    pub(super) ports: Vec<(u32, Vec<u64>)>,
    /// Its blocks and their excepts: each is an entry of `prefixes`, and a class of its own at worst.
    pub(super) prefixes: BTreeSet<IpNet>,
    rules: u32,
    rows: u32,
}

impl Built {
    pub(super) fn new(rules: &[RuleContent]) -> Self {
        let chunks = to_u32(rules.len()).div_ceil(ROW_BITS).max(1);
        let empty = vec![0u64; chunks as usize * ROW_WORDS];
        let mut any = empty.clone();
        let mut by_selector: BTreeMap<PeerSelector, Vec<u32>> = BTreeMap::new();
        // Where rules start and stop matching, by position.
        let mut turns: BTreeMap<u32, Vec<u32>> = BTreeMap::from([(0, Vec::new())]);
        for (index, rule) in (0u32..).zip(rules) {
            match &rule.peers {
                PeerSet::Anyone => set_bit(&mut any, index),
                PeerSet::Selected(selectors) => {
                    for selector in selectors {
                        by_selector.entry(selector.clone()).or_default().push(index);
                    }
                }
            }
            for (from, to) in &rule.ports {
                turns.entry(*from).or_default().push(index);
                if *to < LAST_POSITION {
                    turns.entry(to + 1).or_default().push(index);
                }
            }
        }
        let mut ports: Vec<(u32, Vec<u64>)> = Vec::new();
        let mut vector = empty;
        for (position, rules) in turns {
            for rule in rules {
                flip_bit(&mut vector, rule);
            }
            if ports.last().is_none_or(|(_, last)| *last != vector) {
                ports.push((position, vector.clone()));
            }
        }
        let vectors: BTreeSet<&Vec<u64>> = ports.iter().map(|(_, vector)| vector).chain([&any]).collect();
        let rows = to_u32(vectors.len()).saturating_mul(chunks);
        let prefixes = by_selector.keys().flat_map(block_prefixes).collect();
        Self { chunks, any, by_selector, ports, prefixes, rules: to_u32(rules.len()), rows }
    }

    /// The blocks that its rules name.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &IpBlock> {
        self.by_selector.keys().flat_map(|selector| selector.base.blocks())
    }

    /// Binary logarithm of the port ranges that it is given: the search halves them.
    pub(super) fn ports_log2(&self) -> u32 {
        to_u32(self.ports.len()).next_power_of_two().trailing_zeros()
    }

    /// What it takes of a table, as far as it tells by itself: which classes others' selectors make of its peers'
    /// addresses it does not know.
    pub(super) fn takes(&self, table: Table) -> u64 {
        match table {
            Table::Rulesets => 1,
            Table::Rules | Table::Counters => u64::from(self.rules),
            Table::Rows => u64::from(self.rows) + self.prefixes.len() as u64,
            Table::PortRanges => 1 << self.ports_log2(),
            Table::PeerRows | Table::Prefixes => self.prefixes.len() as u64,
            Table::Peers | Table::Endpoints | Table::Events => 0,
        }
    }

    /// By which of those that have no room the largest is found: what it takes, and who may come to be its peers.
    pub(super) fn weight(&self, table: Table) -> u64 {
        match table {
            Table::PeerRows | Table::Peers => self.prefixes.len() as u64 + self.by_selector.len() as u64,
            Table::Rulesets
            | Table::Rules
            | Table::Counters
            | Table::Rows
            | Table::PortRanges
            | Table::Prefixes
            | Table::Endpoints
            | Table::Events => self.takes(table),
        }
    }
}

/// The namespace whose policies a ruleset is of, among others those of the hosts; empty where it is of these alone.
pub(super) fn namespace_of(rules: &[RuleContent]) -> &str {
    // From the end: the isolation is the last, and of a ruleset without HostPolicies it tells.
    let named = rules.iter().rev().find_map(|rule| match &rule.name.source {
        RuleSource::NetworkPolicy(key, _) | RuleSource::Isolation(key) => Some(key.namespace.as_str()),
        RuleSource::UndeclaredNamespace(namespace) => Some(namespace),
        RuleSource::HostPolicy(..)
        | RuleSource::HostIsolation(_)
        | RuleSource::OwnNode
        | RuleSource::Failsafe
        | RuleSource::Closed => None,
    });
    named.unwrap_or_default()
}

pub(super) fn set_bit(vector: &mut [u64], bit: u32) {
    if let Some(word) = vector.get_mut(bit as usize / 64) {
        *word |= 1 << (bit % 64);
    }
}

fn flip_bit(vector: &mut [u64], bit: u32) {
    if let Some(word) = vector.get_mut(bit as usize / 64) {
        *word ^= 1 << (bit % 64);
    }
}

pub(super) fn to_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use portcullis_common::event::Direction;
    use portcullis_common::wire::KIND_OWN_NODE;

    use super::super::ruleset::closing;
    use super::*;

    #[test]
    fn s24_a_range_ends_behind_its_last_port() {
        let rule = |ports: &[(u32, u32)]| RuleContent {
            ports: ports.to_vec(),
            ..closing(RuleSource::OwnNode, Direction::Egress, KIND_OWN_NODE)
        };
        let built = Built::new(&[rule(&[(10, 20)]), rule(&[(15, 15), (21, LAST_POSITION)])]);
        let ranges: Vec<(u32, u64)> =
            built.ports.iter().filter_map(|(from, rows)| Some((*from, *rows.first()?))).collect();
        assert_eq!(ranges, [(0, 0), (10, 1), (15, 3), (16, 1), (21, 2)]);
    }
}

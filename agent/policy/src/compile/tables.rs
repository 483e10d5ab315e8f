//! From rulesets with numbers to the entries of the tables. Takes numbers for whatever they point at; where there is
//! none left, nothing is undone here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portcullis_common::event::Direction;
use portcullis_common::wire::{
    ACTION_AUDIT, CLASS_CLAIMED, CLASS_NONE, CLASS_VIRTUAL, PORT_RANGE_END, PeerRowKey, PeerRowWord,
    PeerWord, PortRange, ROW_WORDS, RULESET_AUDIT, RULESET_EGRESS, RULESET_OPEN, Row, Rule, Ruleset,
};

use super::built::{Built, set_bit, to_u32};
use super::classes::{Matcher, Owned, TooManyOverlaps};
use super::follow::Standing;
use super::ruleset::RuleContent;
use super::{CompileError, Compiler};
use crate::desired::{Desired, RuleSource, WirePrefix, wire_addr};
use crate::select::{Directory, PeerSelector};
use crate::sizes::Table;

impl Compiler {
    /// Every ruleset that a reader may hold, with its rules, port ranges and any-peer row.
    pub(super) fn write_rulesets(
        &mut self,
        dropped: &BTreeSet<u32>,
        desired: &mut Desired,
    ) -> Result<(), CompileError> {
        let live: Vec<(Vec<RuleContent>, u32)> = self
            .rulesets
            .contents()
            .filter(|(_, id)| !dropped.contains(id))
            .map(|(content, id)| (content.clone(), id))
            .collect();
        let ids: BTreeSet<u32> = self.rulesets.contents().map(|(_, id)| id).collect();
        self.built.retain(|id, _| ids.contains(id));
        for (rules, id) in live {
            let built = Arc::clone(self.built.entry(id).or_insert_with(|| Arc::new(Built::new(&rules))));
            let rules_start = self.full(Table::Rules, |c| c.rule_runs.intern(&rules, to_u32(rules.len())))?;
            for (index, rule) in (rules_start..).zip(&rules) {
                let counter = self.full(Table::Counters, |c| c.counters.intern(&rule.name, 1))?;
                desired.counters.insert(counter, rule.name.clone());
                let wire =
                    Rule { counter, action: rule.action, kind: rule.kind, tier: rule.tier, reserved: 0 };
                desired.rules.insert(index, wire);
            }
            let ports_log2 = built.ports_log2();
            let ports_start =
                self.full(Table::PortRanges, |c| c.port_runs.intern(&built.ports, 1 << ports_log2))?;
            let mut filler = 0;
            for (index, (from, vector)) in (ports_start..).zip(&built.ports) {
                let row = self.row(vector, desired)?;
                desired.port_ranges.insert(index, PortRange { from: *from, row });
                filler = row;
            }
            for index in ports_start + to_u32(built.ports.len())..ports_start + (1 << ports_log2) {
                desired.port_ranges.insert(index, PortRange { from: PORT_RANGE_END, row: filler });
            }
            let any_row = self.row(&built.any, desired)?;
            // What no policy isolates waits for nothing, and a host's packets are translated before they are judged.
            let waits = |rule: &RuleContent| match rule.name.source {
                RuleSource::UndeclaredNamespace(_) | RuleSource::Failsafe | RuleSource::Closed => false,
                RuleSource::NetworkPolicy(..)
                | RuleSource::Isolation(_)
                | RuleSource::OwnNode
                | RuleSource::HostPolicy(..)
                | RuleSource::HostIsolation(_) => true,
            };
            let egress = rules.iter().all(waits)
                && rules.iter().any(|rule| matches!(rule.name.direction, Direction::Egress));
            let audit = rules.iter().any(|rule| rule.action == ACTION_AUDIT);
            desired.rulesets.insert(
                id,
                Ruleset {
                    bank: self.bank,
                    chunks: built.chunks,
                    any_row,
                    ports_start,
                    ports_log2,
                    rules_start,
                    rules_len: to_u32(rules.len()),
                    flags: if egress { RULESET_EGRESS } else { 0 } | if audit { RULESET_AUDIT } else { 0 },
                    reserved: 0,
                    pass_to: RULESET_OPEN,
                },
            );
        }
        Ok(())
    }

    /// First row of a vector.
    pub(super) fn row(&mut self, vector: &Vec<u64>, desired: &mut Desired) -> Result<u32, CompileError> {
        let chunks = vector.len() / ROW_WORDS;
        let start = self.full(Table::Rows, |c| c.rows.intern(vector, to_u32(chunks)))?;
        for (id, words) in (start..).zip(vector.chunks_exact(ROW_WORDS)) {
            desired.rows.entry(id).or_insert_with(|| {
                let mut row = Row::default();
                row.words.copy_from_slice(words);
                row
            });
        }
        Ok(start)
    }

    /// Classes of the addresses and prefixes that any live ruleset's selectors match, and their rows.
    pub(super) fn write_peers(
        &mut self,
        dropped: &BTreeSet<u32>,
        directory: &Directory<'_>,
        desired: &mut Desired,
    ) -> Result<(), CompileError> {
        let live: Vec<(u32, Arc<Built>)> = self
            .built
            .iter()
            .filter(|(id, _)| !dropped.contains(id))
            .map(|(id, built)| (*id, Arc::clone(built)))
            .collect();
        let mut selectors: BTreeMap<u32, &PeerSelector> = BTreeMap::new();
        let mut asking: BTreeMap<u32, Vec<(u32, &Vec<u32>)>> = BTreeMap::new();
        for (ruleset, built) in &live {
            for (selector, rules) in &built.by_selector {
                let number = self.full(Table::PeerRows, |c| c.selectors.intern(selector, 1))?;
                selectors.insert(number, selector);
                asking.entry(number).or_default().push((*ruleset, rules));
            }
        }
        let asked: BTreeMap<u32, Vec<(u32, Vec<u32>)>> = asking
            .iter()
            .map(|(number, users)| {
                (*number, users.iter().map(|(ruleset, rules)| (*ruleset, (*rules).clone())).collect())
            })
            .collect();
        let matcher = Matcher::new(&selectors).map_err(|TooManyOverlaps| CompileError::Overlaps)?;
        let mut used: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let mut by_prefix = BTreeMap::new();
        for (prefix, holders) in matcher.blocks.prefixes() {
            let class = self.class(holders, &mut used)?;
            by_prefix.insert(*prefix, class);
            desired.prefixes.insert(WirePrefix::from(*prefix), PeerWord { class, tag: 0 });
        }
        self.within(Table::Prefixes, desired.prefixes.len())?;
        for (address, owned, numbers) in matcher.addresses(directory) {
            let flag = match owned {
                Owned::Pod if directory.services.contains(&address) => CLASS_CLAIMED,
                Owned::Pod => 0,
                Owned::Service => CLASS_VIRTUAL,
            };
            let class = self.class(&numbers, &mut used)?;
            // The trie gives the same for an address that only blocks match.
            let prefix = matcher.blocks.longest(address).map(|(prefix, _)| prefix);
            let covered = prefix.and_then(|prefix| by_prefix.get(&prefix)).copied().unwrap_or(CLASS_NONE);
            if class | flag != covered {
                let addr = wire_addr(address);
                desired.peers.insert(addr, PeerWord { class: class | flag, tag: addr.hash() });
            }
        }
        self.within(Table::Peers, desired.peers.len())?;
        let built: BTreeMap<u32, &Built> = live.iter().map(|(id, built)| (*id, built.as_ref())).collect();
        self.write_peer_rows(&used, &asking, &built, desired)?;
        let used = used.into_keys().collect();
        self.standing = Some(Standing::new(directory, matcher, by_prefix, asked, used));
        Ok(())
    }

    pub(super) fn within(&self, table: Table, count: usize) -> Result<(), CompileError> {
        if count > self.sizes.of_bank(table) as usize { Err(self.is_full(table)) } else { Ok(()) }
    }

    fn class(&mut self, selectors: &[u32], used: &mut BTreeMap<u32, Vec<u32>>) -> Result<u32, CompileError> {
        if selectors.is_empty() {
            return Ok(CLASS_NONE);
        }
        let selectors = selectors.to_vec();
        let class = self.full(Table::PeerRows, |c| c.classes.intern(&selectors, 1))?;
        used.entry(class).or_insert(selectors);
        Ok(class)
    }

    /// A row for each ruleset and class that matches one of its selectors.
    fn write_peer_rows(
        &mut self,
        used: &BTreeMap<u32, Vec<u32>>,
        asking: &BTreeMap<u32, Vec<(u32, &Vec<u32>)>>,
        built: &BTreeMap<u32, &Built>,
        desired: &mut Desired,
    ) -> Result<(), CompileError> {
        let mut vectors: BTreeMap<PeerRowKey, Vec<u64>> = BTreeMap::new();
        for (class, selectors) in used {
            for (ruleset, rules) in selectors.iter().filter_map(|number| asking.get(number)).flatten() {
                let key = PeerRowKey { ruleset: *ruleset, class: *class };
                let any = || built.get(ruleset).map(|built| built.any.clone()).unwrap_or_default();
                let vector = vectors.entry(key).or_insert_with(any);
                for rule in *rules {
                    set_bit(vector, *rule);
                }
            }
            self.within(Table::PeerRows, vectors.len())?;
        }
        for (key, vector) in vectors {
            let row = self.row(&vector, desired)?;
            desired.peer_rows.insert(key, PeerRowWord { row, tag: key.tag() });
        }
        Ok(())
    }
}

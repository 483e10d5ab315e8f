//! The compiler: a cluster and the pods to enforce in, tables out. It keeps the numbers between
//! compilations, so that a change is small in the tables too, and keeps what a reader may still hold: the
//! tables serve the rulesets of before and after, until [`Compiler::sweep`].

pub mod pool;
pub mod ruleset;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portcullis_common::event::Direction;
use portcullis_common::wire::{
    ACTION_AUDIT, BANKS, CLASS_NONE, CLASS_VIRTUAL, MAX_CHUNKS, MAX_COUNTERS, MAX_PEER_ROWS, MAX_PEERS,
    MAX_PORT_RANGES, MAX_PREFIXES, MAX_ROWS, MAX_RULES, MAX_RULESET_RANGES, MAX_RULESETS, PORT_RANGE_END,
    PeerRowKey, PeerRowWord, PeerWord, PortRange, ROW_BITS, ROW_WORDS, RULESET_AUDIT, RULESET_CLOSED,
    RULESET_EGRESS, RULESET_OPEN, Row, Rule, Ruleset,
};

use crate::desired::{CounterName, Desired, EndpointRulesets, RuleSource, WirePrefix, wire_addr};
use crate::model::{Cluster, ObjectKey, Problem, Severity};
use crate::select::{Base, Directory, PeerSelector, block_holds_prefix};
use pool::{Full, Pool};
use ruleset::{PeerSet, RuleContent, rules_of};

/// Why tables could not be made. The old ones stay in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A table has no room.
    #[error("{0}: raise its size or split the load over more nodes")]
    Full(#[from] Full),
    /// A table of addresses has no room.
    #[error("{what}: {count} entries, room for {capacity}")]
    TooMany {
        /// Which table.
        what: &'static str,
        /// How many entries it would have.
        count: usize,
        /// How many it can have.
        capacity: u32,
    },
}

/// A ruleset worked out: vectors by peer selector and by port range.
#[derive(Clone, Debug)]
struct Built {
    chunks: u32,
    any: Vec<u64>,
    by_selector: BTreeMap<PeerSelector, Vec<u32>>,
    ports: Vec<(u32, Vec<u64>)>,
}

/// Keeps numbers between compilations.
#[derive(Debug)]
pub struct Compiler {
    bank: u32,
    rulesets: Pool<Vec<RuleContent>>,
    rule_runs: Pool<Vec<RuleContent>>,
    port_runs: Pool<Vec<(u32, Vec<u64>)>>,
    rows: Pool<Vec<u64>>,
    classes: Pool<BTreeSet<PeerSelector>>,
    counters: Pool<CounterName>,
    built: BTreeMap<u32, Built>,
}

impl Compiler {
    /// A compiler whose numbers lie in the part of the tables that belongs to this bank (below [`BANKS`]), so that a
    /// starting agent writes beside whatever the last one left.
    #[must_use]
    pub fn new(bank: u32) -> Self {
        let bank = bank.min(BANKS - 1);
        // The lowest two ruleset ids mean open and closed; row, rule and range 0 stay empty.
        let part = |total: u32, reserved: u32| {
            let share = total / BANKS;
            let start = (bank * share).max(reserved);
            (start, (bank + 1) * share - start)
        };
        let pool = |what, (start, len)| (what, start, len);
        let (rulesets, rules, ranges, rows) = (
            pool("rulesets", part(MAX_RULESETS, RULESET_CLOSED + 1)),
            pool("rules", part(MAX_RULES, 1)),
            pool("port ranges", part(MAX_PORT_RANGES, 1)),
            pool("rows", part(MAX_ROWS, 1)),
        );
        Self {
            bank,
            rulesets: Pool::new(rulesets.0, rulesets.1, rulesets.2),
            rule_runs: Pool::new(rules.0, rules.1, rules.2),
            port_runs: Pool::new(ranges.0, ranges.1, ranges.2),
            rows: Pool::new(rows.0, rows.1, rows.2),
            classes: Pool::new("peer classes", CLASS_NONE + 1, CLASS_VIRTUAL - 1),
            counters: Pool::new("rule counters", 1, MAX_COUNTERS - 1),
            built: BTreeMap::new(),
        }
    }

    /// The bank.
    #[must_use]
    pub fn bank(&self) -> u32 {
        self.bank
    }

    /// Gives a rule the counter that it had before a restart.
    pub fn restore_counter(&mut self, name: CounterName, counter: u32) -> bool {
        self.counters.restore(name, counter)
    }

    /// True if a sweep would free something: compile once more after it, so that tables follow.
    #[must_use]
    pub fn has_unused(&self) -> bool {
        self.rulesets.has_unused()
            || self.rule_runs.has_unused()
            || self.port_runs.has_unused()
            || self.rows.has_unused()
            || self.classes.has_unused()
            || self.counters.has_unused()
    }

    /// Forgets what the last compilation did not use. To be called when its tables are in force and a grace
    /// period has passed.
    pub fn sweep(&mut self) {
        self.rulesets.sweep();
        self.rule_runs.sweep();
        self.port_runs.sweep();
        self.rows.sweep();
        self.classes.sweep();
        self.counters.sweep();
    }

    /// Makes the tables for these pods. Problems tell of endpoints that had to be closed.
    pub fn compile<'a>(
        &mut self,
        cluster: &Cluster,
        subjects: impl IntoIterator<Item = &'a ObjectKey>,
    ) -> Result<(Desired, Vec<Problem>), CompileError> {
        for pool in [&mut self.rulesets, &mut self.rule_runs] {
            pool.begin();
        }
        self.port_runs.begin();
        self.rows.begin();
        self.classes.begin();
        self.counters.begin();

        let directory = Directory::new(cluster);
        let mut desired = Desired { bank: self.bank, ..Desired::default() };
        let mut problems = Vec::new();
        for key in subjects {
            let Some(facts) = directory.pods.get(key) else {
                continue;
            };
            if !facts.pod.has_known_labels() {
                desired.endpoints.insert(key.clone(), EndpointRulesets::CLOSED);
                continue;
            }
            let mut of = |direction| -> Result<u16, CompileError> {
                match rules_of(cluster, &directory, key, facts, direction) {
                    None => Ok(wire_ruleset(RULESET_OPEN)),
                    Some(rules) => self.ruleset(key, direction, &rules, &mut problems),
                }
            };
            let rulesets =
                EndpointRulesets { ingress: of(Direction::Ingress)?, egress: of(Direction::Egress)? };
            desired.endpoints.insert(key.clone(), rulesets);
        }
        self.write_rulesets(&mut desired)?;
        self.write_peers(&directory, &mut desired)?;
        Ok((desired, problems))
    }

    /// The number of a ruleset; closes, with a problem, what no table holds.
    fn ruleset(
        &mut self,
        key: &ObjectKey,
        direction: Direction,
        rules: &Vec<RuleContent>,
        problems: &mut Vec<Problem>,
    ) -> Result<u16, CompileError> {
        let built = Built::new(rules);
        let rule_limit = (MAX_CHUNKS * ROW_BITS) as usize;
        if rules.len() > rule_limit || built.ports.len() > MAX_RULESET_RANGES as usize {
            problems.push(Problem {
                severity: Severity::Error,
                object: format!("Pod {key}"),
                field: String::new(),
                message: format!(
                    "{} rules with {} port ranges apply to its {}, more than the {rule_limit} and \
                     {MAX_RULESET_RANGES} that an endpoint can hold; its {} is closed: select it with fewer policies",
                    rules.len(),
                    built.ports.len(),
                    direction.name(),
                    direction.name(),
                ),
                location: None,
            });
            return Ok(wire_ruleset(RULESET_CLOSED));
        }
        let id = self.rulesets.intern(rules, 1)?;
        self.built.insert(id, built);
        Ok(wire_ruleset(id))
    }

    /// Every ruleset that a reader may hold, with its rules, port ranges and any-peer row.
    fn write_rulesets(&mut self, desired: &mut Desired) -> Result<(), CompileError> {
        let live: Vec<(Vec<RuleContent>, u32)> =
            self.rulesets.contents().map(|(content, id)| (content.clone(), id)).collect();
        let ids: BTreeSet<u32> = live.iter().map(|(_, id)| *id).collect();
        self.built.retain(|id, _| ids.contains(id));
        for (rules, id) in live {
            let built = self.built.entry(id).or_insert_with(|| Built::new(&rules)).clone();
            let rules_start = self.rule_runs.intern(&rules, to_u32(rules.len()))?;
            for (index, rule) in (rules_start..).zip(&rules) {
                let counter = self.counters.intern(&rule.name, 1)?;
                desired.counters.insert(counter, rule.name.clone());
                let wire =
                    Rule { counter, action: rule.action, kind: rule.kind, tier: rule.tier, reserved: 0 };
                desired.rules.insert(index, wire);
            }
            let ports_log2 = to_u32(built.ports.len()).next_power_of_two().trailing_zeros();
            let ports_start = self.port_runs.intern(&built.ports, 1 << ports_log2)?;
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
            // What no policy isolates waits for nothing.
            let egress = rules.iter().any(|rule| {
                matches!(rule.name.direction, Direction::Egress)
                    && !matches!(rule.name.source, RuleSource::UndeclaredNamespace(_))
            });
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
    fn row(&mut self, vector: &Vec<u64>, desired: &mut Desired) -> Result<u32, CompileError> {
        let chunks = vector.len() / ROW_WORDS;
        let start = self.rows.intern(vector, to_u32(chunks))?;
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
    fn write_peers(&mut self, directory: &Directory<'_>, desired: &mut Desired) -> Result<(), CompileError> {
        let selectors: BTreeSet<PeerSelector> =
            self.built.values().flat_map(|built| built.by_selector.keys().cloned()).collect();
        let mut used: BTreeMap<u32, BTreeSet<PeerSelector>> = BTreeMap::new();

        let prefixes = prefixes_of(&selectors);
        let mut by_prefix: Vec<(IpNet, u32)> = Vec::new();
        for prefix in &prefixes {
            let matching = selectors
                .iter()
                .filter(|s| match (&s.base, &s.named) {
                    (Base::Block(block), None) => block_holds_prefix(block, prefix),
                    (Base::Block(_) | Base::AnyPod | Base::Pods(..), _) => false,
                })
                .cloned()
                .collect();
            let class = self.class(matching, &mut used)?;
            desired.prefixes.insert(WirePrefix::from(*prefix), PeerWord { class, tag: 0 });
            by_prefix.push((*prefix, class));
        }
        let virtual_addresses =
            directory.virtual_addresses.iter().map(|address| (address, None, CLASS_VIRTUAL));
        let owned = directory.owners.iter().map(|(address, key)| (address, directory.pods.get(*key), 0));
        for (address, owner, flag) in owned.chain(virtual_addresses) {
            let matching = selectors.iter().filter(|s| s.matches(*address, owner)).cloned().collect();
            let class = self.class(matching, &mut used)?;
            // The trie gives the same for an address that only blocks match.
            let covered = by_prefix
                .iter()
                .filter(|(prefix, _)| prefix.contains(address))
                .max_by_key(|(prefix, _)| prefix.prefix_len())
                .map_or(CLASS_NONE, |(_, class)| *class);
            if class | flag != covered {
                let addr = wire_addr(*address);
                desired.peers.insert(addr, PeerWord { class: class | flag, tag: addr.hash() });
            }
        }
        self.write_peer_rows(&used, desired)?;
        within("peer addresses", desired.peers.len(), MAX_PEERS)?;
        within("peer prefixes", desired.prefixes.len(), MAX_PREFIXES)?;
        within("peer rows", desired.peer_rows.len(), MAX_PEER_ROWS / BANKS)
    }

    fn class(
        &mut self,
        selectors: BTreeSet<PeerSelector>,
        used: &mut BTreeMap<u32, BTreeSet<PeerSelector>>,
    ) -> Result<u32, CompileError> {
        if selectors.is_empty() {
            return Ok(CLASS_NONE);
        }
        let class = self.classes.intern(&selectors, 1)?;
        used.entry(class).or_insert(selectors);
        Ok(class)
    }

    /// A row for each ruleset and class that matches one of its selectors.
    fn write_peer_rows(
        &mut self,
        used: &BTreeMap<u32, BTreeSet<PeerSelector>>,
        desired: &mut Desired,
    ) -> Result<(), CompileError> {
        let mut vectors = Vec::new();
        for (ruleset, built) in &self.built {
            for (class, selectors) in used {
                let mut vector = built.any.clone();
                let mut matched = false;
                for rule in selectors.iter().filter_map(|s| built.by_selector.get(s)).flatten() {
                    matched = true;
                    set_bit(&mut vector, *rule);
                }
                if matched {
                    vectors.push((PeerRowKey { ruleset: *ruleset, class: *class }, vector));
                }
            }
        }
        for (key, vector) in vectors {
            let row = self.row(&vector, desired)?;
            desired.peer_rows.insert(key, PeerRowWord { row, tag: key.tag() });
        }
        Ok(())
    }
}

impl Built {
    fn new(rules: &[RuleContent]) -> Self {
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
                if *to < ruleset::LAST_POSITION {
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
        Self { chunks, any, by_selector, ports }
    }
}

/// Blocks and their excepts; and `::ffff:0:0/96` where an IPv6 prefix would otherwise reach the mapped
/// addresses that stand for IPv4 (S19): `0.0.0.0/0`, which only IPv4 blocks can match.
fn prefixes_of(selectors: &BTreeSet<PeerSelector>) -> BTreeSet<IpNet> {
    let mut prefixes: BTreeSet<IpNet> = selectors
        .iter()
        .filter_map(|s| match (&s.base, &s.named) {
            (Base::Block(block), None) => Some(block),
            (Base::Block(_) | Base::AnyPod | Base::Pods(..), _) => None,
        })
        .flat_map(|block| block.except.iter().copied().chain([block.net]))
        .map(|net| net.trunc())
        .collect();
    let everything = Ipv4Net::default();
    let reaches = |net: &IpNet| match net {
        IpNet::V4(_) => false,
        IpNet::V6(v6) => {
            let mapped = std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
            Ipv6Net::new(v6.network(), v6.prefix_len()).is_ok_and(|net| net.contains(&mapped))
        }
    };
    if prefixes.iter().any(reaches) {
        prefixes.insert(IpNet::V4(everything));
    }
    prefixes
}

fn within(what: &'static str, count: usize, capacity: u32) -> Result<(), CompileError> {
    if count > capacity as usize { Err(CompileError::TooMany { what, count, capacity }) } else { Ok(()) }
}

fn set_bit(vector: &mut [u64], bit: u32) {
    if let Some(word) = vector.get_mut(bit as usize / 64) {
        *word |= 1 << (bit % 64);
    }
}

fn flip_bit(vector: &mut [u64], bit: u32) {
    if let Some(word) = vector.get_mut(bit as usize / 64) {
        *word ^= 1 << (bit % 64);
    }
}

fn to_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Ruleset numbers fit an endpoint word by the bounds of their pool; one that does not closes.
fn wire_ruleset(id: u32) -> u16 {
    u16::try_from(id).unwrap_or(EndpointRulesets::CLOSED.ingress)
}

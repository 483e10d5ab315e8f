//! The compiler: a cluster and the pods to enforce in, tables out. It keeps the numbers between
//! compilations, so that a change is small in the tables too, and keeps what a reader may still hold: the
//! tables serve the rulesets of before and after, until [`Compiler::sweep`].

mod built;
mod classes;
pub mod fit;
mod follow;
mod index;
pub mod pool;
pub mod ruleset;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portcullis_common::event::Direction;
use portcullis_common::wire::{
    ACTION_AUDIT, BANKS, CLASS_NONE, CLASS_VIRTUAL, MAX_CHUNKS, MAX_RULESET_RANGES, PORT_RANGE_END,
    PeerRowKey, PeerRowWord, PeerWord, PortRange, ROW_BITS, ROW_WORDS, RULESET_AUDIT, RULESET_CLOSED,
    RULESET_EGRESS, RULESET_OPEN, Row, Rule, Ruleset,
};

use crate::desired::{CounterName, Desired, EndpointRulesets, RuleSource, WirePrefix, wire_addr};
use crate::model::{Cluster, ObjectKey, Problem, Severity};
use crate::select::{Directory, PeerSelector};
use crate::sizes::{Sizes, Table};
use built::{Built, namespace_of, set_bit, to_u32};
use classes::{MAX_OVERLAPS, Matcher, Owned};
use follow::Standing;
use pool::{NoRoom, Pool};
use ruleset::{RuleContent, rules_of};

/// Why tables could not be made. The old ones stay in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A table has no room.
    #[error(
        "the table {table} is full ({capacity} entries): start the agent with a larger --map-size {table}=N, or split \
         the load over more nodes"
    )]
    Full {
        /// Which.
        table: Table,
        /// What a bank has of it.
        capacity: u32,
    },
    /// Blocks hold each other's prefixes too often.
    #[error(
        "ipBlocks overlap in more than {MAX_OVERLAPS} places: name fewer blocks that lie in each other, or split the \
         load over more nodes"
    )]
    Overlaps,
}

impl CompileError {
    /// The table by which rulesets are weighed where there is no room.
    fn table(self) -> Table {
        match self {
            Self::Full { table, .. } => table,
            Self::Overlaps => Table::Prefixes,
        }
    }
}

/// A ruleset that somebody wants, or that is in force and that its endpoint may have to keep.
#[derive(Clone, Debug)]
struct Candidate {
    rules: Vec<RuleContent>,
    built: Arc<Built>,
    /// Its number, if it has one.
    number: Option<u32>,
    is_wanted: bool,
    /// The candidates that are in force where this one is wanted.
    replaces: BTreeSet<usize>,
}

impl Candidate {
    fn is_new(&self) -> bool {
        self.number.is_none()
    }

    fn namespace(&self) -> &str {
        namespace_of(&self.rules)
    }
}

/// What a direction of a pod should have.
#[derive(Clone, Copy, Debug)]
enum Want {
    Open,
    /// It exceeds what any endpoint can hold.
    Closed,
    /// A candidate's place.
    Rules(usize),
}

/// What all pods want.
#[derive(Debug, Default)]
struct Wanted {
    pods: BTreeMap<ObjectKey, [(Direction, Want); 2]>,
    candidates: Vec<Candidate>,
    problems: Vec<Problem>,
}

/// A direction of a pod whose policies have no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The pod.
    pub pod: ObjectKey,
    /// Which way.
    pub direction: Direction,
    /// The table that has no room.
    pub table: Table,
    /// What is in force instead.
    pub instead: Instead,
}

/// What is in force where new policies have no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// The last complete ruleset.
    Last,
    /// Nothing passes: there was no ruleset.
    Closed,
}

/// Tables with what had room.
#[derive(Clone, Debug, Default)]
pub struct Fitted {
    /// The tables.
    pub desired: Desired,
    /// What is wrong: endpoints that had to be closed, and those below.
    pub problems: Vec<Problem>,
    /// Where policies have no room.
    pub held: Vec<Held>,
}

/// Keeps numbers between compilations.
#[derive(Debug)]
pub struct Compiler {
    bank: u32,
    sizes: Sizes,
    rulesets: Pool<Vec<RuleContent>>,
    rule_runs: Pool<Vec<RuleContent>>,
    port_runs: Pool<Vec<(u32, Vec<u64>)>>,
    rows: Pool<Vec<u64>>,
    selectors: Pool<PeerSelector>,
    /// A class is the selectors that match, by their numbers, sorted.
    classes: Pool<Vec<u32>>,
    counters: Pool<CounterName>,
    built: BTreeMap<u32, Arc<Built>>,
    /// What [`Compiler::follow`] goes on from.
    standing: Option<Standing>,
}

impl Compiler {
    /// A compiler for tables of the usual sizes; see [`Compiler::with_sizes`].
    #[must_use]
    pub fn new(bank: u32) -> Self {
        Self::with_sizes(bank, Sizes::default())
    }

    /// A compiler whose numbers lie in the part of the tables that belongs to this bank (below [`BANKS`]), so that a
    /// starting agent writes beside whatever the last one left.
    #[must_use]
    pub fn with_sizes(bank: u32, sizes: Sizes) -> Self {
        let bank = bank.min(BANKS - 1);
        // The lowest two ruleset ids mean open and closed; row, rule and range 0 stay empty.
        let part = |table: Table, reserved: u32| {
            let share = sizes.of_bank(table);
            let start = (bank * share).max(reserved);
            (start, ((bank + 1) * share).saturating_sub(start))
        };
        let (rulesets, rules, ranges, rows) = (
            part(Table::Rulesets, RULESET_CLOSED + 1),
            part(Table::Rules, 1),
            part(Table::PortRanges, 1),
            part(Table::Rows, 1),
        );
        Self {
            bank,
            rulesets: Pool::new(rulesets.0, rulesets.1),
            rule_runs: Pool::new(rules.0, rules.1),
            port_runs: Pool::new(ranges.0, ranges.1),
            rows: Pool::new(rows.0, rows.1),
            selectors: Pool::new(0, u32::MAX),
            classes: Pool::new(CLASS_NONE + 1, CLASS_VIRTUAL - 1),
            counters: Pool::new(1, sizes.of(Table::Counters) - 1),
            built: BTreeMap::new(),
            standing: None,
            sizes,
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
            || self.selectors.has_unused()
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
        self.selectors.sweep();
        self.classes.sweep();
        self.counters.sweep();
    }

    /// Makes the tables for these pods, all of them or none: what a question is answered from. Problems tell of
    /// endpoints that had to be closed.
    pub fn compile<'a>(
        &mut self,
        cluster: &Cluster,
        subjects: impl IntoIterator<Item = &'a ObjectKey>,
    ) -> Result<(Desired, Vec<Problem>), CompileError> {
        let directory = Directory::new(cluster);
        let mut wanted = self.wanted(cluster, &directory, subjects, &BTreeMap::new());
        let all = (0..wanted.candidates.len()).collect();
        let (desired, _) = self.attempt(&directory, &wanted, &BTreeMap::new(), &all)?;
        Ok((desired, std::mem::take(&mut wanted.problems)))
    }

    /// Makes the tables for these pods. Where they have no room for all, a pod whose ruleset finds none keeps the one
    /// that is in force, or is closed if that is none; the others go on. What is in force comes first, then the
    /// smallest; a namespace has its share ([`fit::NAMESPACE_SHARE`]). An error, where not even what is in force has
    /// room: nothing changes.
    pub fn compile_what_fits<'a>(
        &mut self,
        cluster: &Cluster,
        subjects: impl IntoIterator<Item = &'a ObjectKey>,
        in_force: &BTreeMap<ObjectKey, EndpointRulesets>,
    ) -> Result<Fitted, CompileError> {
        let directory = Directory::new(cluster);
        let wanted = self.wanted(cluster, &directory, subjects, in_force);
        let mut refused = fit::beyond_shares(&wanted.candidates, &self.sizes);
        let mut made = self.try_without(&directory, &wanted, in_force, &refused);
        // First the new ones; then those in force, unless it is a table that pods fill and not policies.
        for of_new in [true, false] {
            if let Err(full) = made
                && (of_new || full.table() != Table::Peers)
            {
                made = self.fewest_without(&directory, &wanted, in_force, &mut refused, full, of_new);
            }
        }
        let (desired, held) = made?;
        let mut problems = wanted.problems.clone();
        problems.extend(self.held_problems(&wanted, &refused, &held));
        Ok(Fitted { desired, problems, held })
    }

    /// Leaves out as few of the heaviest as it takes for the others to have room.
    fn fewest_without(
        &mut self,
        directory: &Directory<'_>,
        wanted: &Wanted,
        in_force: &BTreeMap<ObjectKey, EndpointRulesets>,
        refused: &mut BTreeMap<usize, Table>,
        full: CompileError,
        of_new: bool,
    ) -> Result<(Desired, Vec<Held>), CompileError> {
        let table = full.table();
        let mut order: Vec<(usize, &Candidate)> = wanted
            .candidates
            .iter()
            .enumerate()
            .filter(|(place, one)| one.is_wanted && one.is_new() == of_new && !refused.contains_key(place))
            .collect();
        order.sort_by(|(_, a), (_, b)| fit::weight(b, table).cmp(&fit::weight(a, table)));
        let without = |count: usize| -> BTreeMap<usize, Table> {
            let more = order.iter().take(count).map(|(place, _)| (*place, table));
            refused.iter().map(|(place, table)| (*place, *table)).chain(more).collect()
        };
        // Leaving out more never takes more room, so halving finds the fewest.
        let (mut too_few, mut enough) = (0, order.len());
        while enough - too_few > 1 {
            let half = usize::midpoint(too_few, enough);
            if self.try_without(directory, wanted, in_force, &without(half)).is_ok() {
                self.undo();
                enough = half;
            } else {
                too_few = half;
            }
        }
        *refused = without(enough);
        self.try_without(directory, wanted, in_force, refused)
    }

    fn try_without(
        &mut self,
        directory: &Directory<'_>,
        wanted: &Wanted,
        in_force: &BTreeMap<ObjectKey, EndpointRulesets>,
        refused: &BTreeMap<usize, Table>,
    ) -> Result<(Desired, Vec<Held>), CompileError> {
        let accepted = (0..wanted.candidates.len()).filter(|place| !refused.contains_key(place)).collect();
        let (desired, mut held) = self.attempt(directory, wanted, in_force, &accepted)?;
        for one in &mut held {
            if let Some(Want::Rules(place)) = wanted.want(&one.pod, one.direction)
                && let Some(table) = refused.get(&place)
            {
                one.table = *table;
            }
        }
        Ok((desired, held))
    }

    /// What each pod should have, each ruleset once.
    fn wanted<'a>(
        &self,
        cluster: &Cluster,
        directory: &Directory<'_>,
        subjects: impl IntoIterator<Item = &'a ObjectKey>,
        in_force: &BTreeMap<ObjectKey, EndpointRulesets>,
    ) -> Wanted {
        let contents: BTreeMap<u32, &Vec<RuleContent>> =
            self.rulesets.contents().map(|(content, id)| (id, content)).collect();
        let mut wanted = Wanted::default();
        let mut places: BTreeMap<Vec<RuleContent>, usize> = BTreeMap::new();
        let mut place_of = |rules: &Vec<RuleContent>, candidates: &mut Vec<Candidate>| {
            if let Some(place) = places.get(rules) {
                return *place;
            }
            let number = self.rulesets.number(rules);
            let known = number.and_then(|number| self.built.get(&number));
            let built = known.map_or_else(|| Arc::new(Built::new(rules)), Arc::clone);
            let (rules, replaces) = (rules.clone(), BTreeSet::new());
            places.insert(rules.clone(), candidates.len());
            candidates.push(Candidate { rules, built, number, is_wanted: false, replaces });
            candidates.len() - 1
        };
        for key in subjects {
            let Some(facts) = directory.pods.get(key) else {
                continue;
            };
            let mut want = |direction| {
                // Nobody knows which policies select it.
                if !facts.pod.has_known_labels() {
                    return Want::Closed;
                }
                let Some(rules) = rules_of(cluster, directory, key, facts, direction) else {
                    return Want::Open;
                };
                let place = place_of(&rules, &mut wanted.candidates);
                let Some(built) = wanted.candidates.get(place).map(|one| Arc::clone(&one.built)) else {
                    return Want::Closed;
                };
                if let Some(problem) = exceeding(key, direction, &rules, &built) {
                    wanted.problems.push(problem);
                    return Want::Closed;
                }
                let now = in_force.get(key).map(|of| u32::from(of.of(direction)));
                let old =
                    now.and_then(|id| contents.get(&id)).map(|old| place_of(old, &mut wanted.candidates));
                if let Some(one) = wanted.candidates.get_mut(place) {
                    one.is_wanted = true;
                    one.replaces.extend(old.filter(|old| *old != place));
                }
                Want::Rules(place)
            };
            let wants = [Direction::Ingress, Direction::Egress].map(|direction| (direction, want(direction)));
            wanted.pods.insert(key.clone(), wants);
        }
        wanted
    }

    /// Makes the tables with these candidates, and says which directions did not get theirs. An error leaves the
    /// numbers as they were.
    fn attempt(
        &mut self,
        directory: &Directory<'_>,
        wanted: &Wanted,
        in_force: &BTreeMap<ObjectKey, EndpointRulesets>,
        accepted: &BTreeSet<usize>,
    ) -> Result<(Desired, Vec<Held>), CompileError> {
        self.begin();
        let made = self.attempted(directory, wanted, in_force, accepted);
        if made.is_err() {
            self.undo();
        }
        made
    }

    fn attempted(
        &mut self,
        directory: &Directory<'_>,
        wanted: &Wanted,
        in_force: &BTreeMap<ObjectKey, EndpointRulesets>,
        accepted: &BTreeSet<usize>,
    ) -> Result<(Desired, Vec<Held>), CompileError> {
        let mut desired = Desired { bank: self.bank, ..Desired::default() };
        let mut held = Vec::new();
        let dropped: BTreeSet<u32> = (0..)
            .zip(&wanted.candidates)
            .filter(|(place, one)| one.is_wanted && !accepted.contains(place))
            .filter_map(|(_, one)| one.number)
            .collect();
        for (key, wants) in &wanted.pods {
            let mut numbers = EndpointRulesets::CLOSED;
            for (direction, want) in wants {
                let number = match want {
                    Want::Open => RULESET_OPEN,
                    Want::Closed => RULESET_CLOSED,
                    Want::Rules(place) => match wanted.candidates.get(*place) {
                        Some(one) if one.is_wanted && accepted.contains(place) => {
                            let id = self.full(Table::Rulesets, |c| c.rulesets.intern(&one.rules, 1))?;
                            self.built.entry(id).or_insert_with(|| Arc::clone(&one.built));
                            id
                        }
                        Some(_) | None => {
                            let last = self.last(key, *direction, in_force, &dropped);
                            let instead = if last.is_some() { Instead::Last } else { Instead::Closed };
                            let (pod, table) = (key.clone(), Table::Rulesets);
                            held.push(Held { pod, direction: *direction, table, instead });
                            last.unwrap_or(RULESET_CLOSED)
                        }
                    },
                };
                *numbers.of_mut(*direction) = wire_ruleset(number);
            }
            desired.endpoints.insert(key.clone(), numbers);
        }
        self.write_rulesets(&dropped, &mut desired)?;
        self.write_peers(&dropped, directory, &mut desired)?;
        Ok((desired, held))
    }

    /// The ruleset that is in force, which goes on being used.
    fn last(
        &mut self,
        key: &ObjectKey,
        direction: Direction,
        in_force: &BTreeMap<ObjectKey, EndpointRulesets>,
        dropped: &BTreeSet<u32>,
    ) -> Option<u32> {
        let id = u32::from(in_force.get(key)?.of(direction));
        let known = !dropped.contains(&id) && self.rulesets.contents().any(|(_, held)| held == id);
        known.then(|| {
            self.rulesets.keep(id);
            id
        })
    }

    fn begin(&mut self) {
        self.standing = None;
        self.rulesets.begin();
        self.rule_runs.begin();
        self.port_runs.begin();
        self.rows.begin();
        self.selectors.begin();
        self.classes.begin();
        self.counters.begin();
    }

    fn undo(&mut self) {
        self.standing = None;
        self.rulesets.undo();
        self.rule_runs.undo();
        self.port_runs.undo();
        self.rows.undo();
        self.selectors.undo();
        self.classes.undo();
        self.counters.undo();
        // Numbers that were given back must not keep what they stood for.
        self.built.clear();
    }

    fn full<T>(
        &mut self,
        table: Table,
        take: impl FnOnce(&mut Self) -> Result<T, NoRoom>,
    ) -> Result<T, CompileError> {
        take(self).map_err(|NoRoom| self.is_full(table))
    }

    fn is_full(&self, table: Table) -> CompileError {
        CompileError::Full { table, capacity: self.sizes.of_bank(table) }
    }

    /// Every ruleset that a reader may hold, with its rules, port ranges and any-peer row.
    fn write_rulesets(&mut self, dropped: &BTreeSet<u32>, desired: &mut Desired) -> Result<(), CompileError> {
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
    fn write_peers(
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
        let matcher = Matcher::new(&selectors).map_err(|classes::TooManyOverlaps| CompileError::Overlaps)?;
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

    fn within(&self, table: Table, count: usize) -> Result<(), CompileError> {
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

    /// One problem for each ruleset that has no room.
    fn held_problems(
        &self,
        wanted: &Wanted,
        refused: &BTreeMap<usize, Table>,
        held: &[Held],
    ) -> Vec<Problem> {
        let mut pods: BTreeMap<usize, Vec<&Held>> = BTreeMap::new();
        for one in held {
            if let Some(Want::Rules(place)) = wanted.want(&one.pod, one.direction) {
                pods.entry(place).or_default().push(one);
            }
        }
        let mut users: BTreeMap<Table, String> = BTreeMap::new();
        let problem = |(place, held): (usize, Vec<&Held>)| {
            let (candidate, first) = (wanted.candidates.get(place)?, held.first()?);
            let table = first.table;
            let (capacity, share) = (self.sizes.of_bank(table), fit::share(&self.sizes, table));
            let user = users.entry(table).or_insert_with(|| {
                let served = (0..).zip(&wanted.candidates).filter(|(at, _)| !refused.contains_key(at));
                fit::biggest_user(served.map(|(_, one)| one), table)
                    .map(|(namespace, count)| format!("; namespace {namespace} has most of it, {count}"))
                    .unwrap_or_default()
            });
            let instead = |what: Instead| held.iter().filter(|one| one.instead == what).count();
            Some(Problem {
                severity: Severity::Error,
                object: format!("Pod {}", first.pod),
                field: String::new(),
                message: format!(
                    "{NO_ROOM} {table} for its {} rules, of {}: they need {} of {capacity}, of which a namespace can \
                     have {share}{user}; {} pods with these rules keep their last ones, {} are closed: start the agent \
                     with a larger --map-size {table}=N, or use fewer rules",
                    first.direction.name(),
                    policies_of(&candidate.rules),
                    candidate.built.takes(table),
                    instead(Instead::Last),
                    instead(Instead::Closed),
                ),
                location: None,
            })
        };
        pods.into_iter().filter_map(problem).collect()
    }
}

/// How the message of a problem begins that tells of a full table.
pub const NO_ROOM: &str = "no room in the table";

/// Policies that a problem names; of more it tells the number.
const NAMED_POLICIES: usize = 3;

fn policies_of(rules: &[RuleContent]) -> String {
    let names: BTreeSet<String> = rules
        .iter()
        .map(|rule| match &rule.name.source {
            RuleSource::NetworkPolicy(key, _) | RuleSource::Isolation(key) => format!("NetworkPolicy {key}"),
            RuleSource::UndeclaredNamespace(name) => format!("undeclared Namespace {name}"),
        })
        .collect();
    let named: Vec<&str> = names.iter().take(NAMED_POLICIES).map(String::as_str).collect();
    match names.len().saturating_sub(NAMED_POLICIES) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

impl Wanted {
    fn want(&self, pod: &ObjectKey, direction: Direction) -> Option<Want> {
        self.pods.get(pod)?.iter().find(|(of, _)| *of == direction).map(|(_, want)| *want)
    }
}

/// What no endpoint can hold, as a problem.
fn exceeding(key: &ObjectKey, direction: Direction, rules: &[RuleContent], built: &Built) -> Option<Problem> {
    let rule_limit = (MAX_CHUNKS * ROW_BITS) as usize;
    if rules.len() <= rule_limit && built.ports.len() <= MAX_RULESET_RANGES as usize {
        return None;
    }
    Some(Problem {
        severity: Severity::Error,
        object: format!("Pod {key}"),
        field: String::new(),
        message: format!(
            "{} rules with {} port ranges apply to its {}, more than the {rule_limit} and {MAX_RULESET_RANGES} that \
             an endpoint can hold; its {} is closed: select it with fewer policies",
            rules.len(),
            built.ports.len(),
            direction.name(),
            direction.name(),
        ),
        location: None,
    })
}

/// Ruleset numbers fit an endpoint word by the bounds of their pool; one that does not closes.
fn wire_ruleset(id: u32) -> u16 {
    u16::try_from(id).unwrap_or(EndpointRulesets::CLOSED.ingress)
}

//! The compiler: a cluster and the pods to enforce in, tables out. It keeps the numbers between
//! compilations, so that a change is small in the tables too, and keeps what a reader may still hold: the
//! tables serve the rulesets of before and after, until [`Compiler::sweep`].

mod built;
mod classes;
pub mod fit;
mod follow;
mod index;
pub mod pool;
mod report;
pub mod ruleset;
mod tables;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portcullis_common::event::Direction;
use portcullis_common::wire::{BANKS, CLASS_CLAIMED, CLASS_NONE, RULESET_CLOSED, RULESET_OPEN};

use crate::desired::{CounterName, Desired, EndpointRulesets};
use crate::model::{Cluster, ObjectKey, Problem};
use crate::select::{Directory, PeerSelector};
use crate::sizes::{Sizes, Table};
use built::{Built, namespace_of};
use classes::MAX_OVERLAPS;
use follow::Standing;
use pool::{NoRoom, Pool, Rounds};
use ruleset::RuleContent;
use wanted::{Candidate, Want, Wanted};

pub use report::NO_ROOM;

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
    /// Nothing passes, to a host and from it nothing but what always does: there was no ruleset.
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
            classes: Pool::new(CLASS_NONE + 1, CLASS_CLAIMED - 1),
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
        let Self { rulesets, rule_runs, port_runs, rows, selectors, classes, counters, .. } = self;
        let all: [&dyn Rounds; 7] = [rulesets, rule_runs, port_runs, rows, selectors, classes, counters];
        all.into_iter().any(Rounds::has_unused)
    }

    /// Forgets what the last compilation did not use. To be called when its tables are in force and a grace
    /// period has passed.
    pub fn sweep(&mut self) {
        self.pools().into_iter().for_each(Rounds::sweep);
    }

    fn pools(&mut self) -> [&mut dyn Rounds; 7] {
        let Self { rulesets, rule_runs, port_runs, rows, selectors, classes, counters, .. } = self;
        [rulesets, rule_runs, port_runs, rows, selectors, classes, counters]
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
        // What peer rows a ruleset takes depends on all others' prefixes, and is known only now.
        for is_last in [false, true] {
            let Ok((desired, _)) = &made else { break };
            let more = self.beyond_row_shares(&wanted, desired, &refused, is_last);
            if more.is_empty() {
                break;
            }
            refused.extend(more.into_iter().map(|place| (place, Table::PeerRows)));
            self.undo();
            made = self.try_without(&directory, &wanted, in_force, &refused);
        }
        let (desired, held) = made?;
        let mut problems = wanted.problems.clone();
        problems.extend(self.held_problems(&wanted, &refused, &held));
        Ok(Fitted { desired, problems, held })
    }

    /// The new rulesets that namespaces with more than their share of peer rows have to do without: the fewest, those with
    /// most rows first, or all of them, for what a ruleset's prefixes cost the namespace's others is not counted.
    fn beyond_row_shares(
        &self,
        wanted: &Wanted,
        desired: &Desired,
        refused: &BTreeMap<usize, Table>,
        all: bool,
    ) -> Vec<usize> {
        let share = fit::share(&self.sizes, Table::PeerRows);
        let mut of_ruleset: BTreeMap<u32, u64> = BTreeMap::new();
        for key in desired.peer_rows.keys() {
            *of_ruleset.entry(key.ruleset).or_default() += 1;
        }
        let mut of_namespace: BTreeMap<&str, u64> = BTreeMap::new();
        for (rules, id) in self.rulesets.contents() {
            *of_namespace.entry(namespace_of(rules)).or_default() +=
                of_ruleset.get(&id).copied().unwrap_or(0);
        }
        let mut beyond = Vec::new();
        for (namespace, mut sum) in of_namespace.into_iter().filter(|(_, sum)| *sum > share) {
            let is_new = |one: &Candidate| one.is_wanted && one.is_new() && one.namespace() == namespace;
            let rows = |one: &Candidate| {
                self.rulesets.number(&one.rules).and_then(|id| of_ruleset.get(&id)).copied().unwrap_or(0)
            };
            let mut order: Vec<(u64, usize)> = (0..)
                .zip(&wanted.candidates)
                .filter(|(place, one)| is_new(one) && !refused.contains_key(place))
                .map(|(place, one)| (rows(one), place))
                .collect();
            order.sort_unstable_by(|a, b| b.cmp(a));
            for (rows, place) in order {
                if sum <= share && !all {
                    break;
                }
                sum = sum.saturating_sub(rows);
                beyond.push(place);
            }
        }
        beyond
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
        // Of the namespace that takes most first: one that has little does not wait for another's many.
        let mut taken: BTreeMap<&str, u64> = BTreeMap::new();
        for one in wanted.candidates.iter().filter(|one| one.is_wanted) {
            *taken.entry(one.namespace()).or_default() += one.built.weight(table);
        }
        let weight = |one: &Candidate| taken.get(one.namespace()).copied().unwrap_or(0);
        // What is the hosts' own waits for no tenant.
        let is_tenants = |one: &Candidate| !one.namespace().is_empty();
        order.sort_by(|(_, a), (_, b)| {
            let of_b = (is_tenants(b), weight(b), fit::weight(b, table));
            of_b.cmp(&(is_tenants(a), weight(a), fit::weight(a, table)))
        });
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
            if let Some(Want::Rules(place, _)) = wanted.want(&one.pod, one.direction)
                && let Some(table) = refused.get(&place)
            {
                one.table = *table;
            }
        }
        Ok((desired, held))
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
                    Want::Rules(place, spare) => match wanted.candidates.get(*place) {
                        Some(one) if one.is_wanted && accepted.contains(place) => self.take(one)?,
                        Some(_) | None => {
                            let last = self.last(key, *direction, in_force, &dropped);
                            let instead = if last.is_some() { Instead::Last } else { Instead::Closed };
                            let (pod, table) = (key.clone(), Table::Rulesets);
                            held.push(Held { pod, direction: *direction, table, instead });
                            let spare = spare.and_then(|spare| wanted.candidates.get(spare));
                            match (last, spare) {
                                (Some(last), _) => last,
                                (None, Some(spare)) => self.take(spare)?,
                                (None, None) => RULESET_CLOSED,
                            }
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

    fn take(&mut self, one: &Candidate) -> Result<u32, CompileError> {
        let id = self.full(Table::Rulesets, |c| c.rulesets.intern(&one.rules, 1))?;
        self.built.entry(id).or_insert_with(|| Arc::clone(&one.built));
        Ok(id)
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
        self.pools().into_iter().for_each(Rounds::begin);
    }

    fn undo(&mut self) {
        self.standing = None;
        self.pools().into_iter().for_each(Rounds::undo);
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
}

/// Ruleset numbers fit an endpoint word by the bounds of their pool; one that does not closes.
fn wire_ruleset(id: u32) -> u16 {
    u16::try_from(id).unwrap_or(EndpointRulesets::CLOSED.ingress)
}

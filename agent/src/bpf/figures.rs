//! What the programs counted, read beside the agent that keeps the maps. Reads only.

use std::time::Instant;

use aya::maps::{ArrayOfMaps, HashMap, MapData, PerCpuArray};
use portcullis_common::event::{Direction, Outcome, Reason, verdict_cell};
use portcullis_common::wire::{CpuState, FlowEntry, FlowKey, Stats};

use super::counters::{pinned, sum};
use super::load::{BpfError, Pins};
use super::wire::Wire;

type FlowsMap = HashMap<MapData, Wire<FlowKey>, Wire<FlowEntry>>;

/// The counters of a load.
pub struct Figures {
    verdicts: PerCpuArray<MapData, Wire<Stats>>,
    rules: PerCpuArray<MapData, Wire<Stats>>,
    cpus: PerCpuArray<MapData, Wire<CpuState>>,
    flows: ArrayOfMaps<MapData, FlowsMap>,
}

impl std::fmt::Debug for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Figures").finish_non_exhaustive()
    }
}

/// A kind of verdict, and how often it fell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Which way.
    pub direction: Direction,
    /// What came of the packets.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// How many, all CPUs.
    pub stats: Stats,
}

/// What was not done for want of room, ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanting {
    /// Events that were not sent.
    pub events_lost: u64,
    /// Flows that were not made.
    pub flows_refused: u64,
}

impl Figures {
    /// Opens the pins that an agent made.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        Ok(Self {
            verdicts: pinned(pins, "verdicts")?,
            rules: pinned(pins, "rule_stats")?,
            cpus: pinned(pins, "cpu_state")?,
            flows: pinned(pins, "flows")?,
        })
    }

    /// Every kind of verdict that ever fell.
    pub fn verdicts(&self) -> Result<Vec<Counted>, BpfError> {
        let mut all = Vec::new();
        for reason in Reason::ALL {
            for direction in [Direction::Ingress, Direction::Egress] {
                for outcome in Outcome::ALL {
                    let cell = verdict_cell(direction, outcome, *reason);
                    let values =
                        self.verdicts.get(&cell, 0).map_err(|e| BpfError::map("read", "verdicts", e))?;
                    let stats = sum(values.iter().map(|one| one.0));
                    if stats.packets > 0 {
                        all.push(Counted { direction, outcome, reason: *reason, stats });
                    }
                }
            }
        }
        Ok(all)
    }

    /// Packets and bytes under a counter.
    pub fn rule(&self, counter: u32) -> Result<Stats, BpfError> {
        let values = self.rules.get(&counter, 0).map_err(|e| BpfError::map("read", "rule_stats", e))?;
        Ok(sum(values.iter().map(|one| one.0)))
    }

    /// What was not done for want of room.
    pub fn wanting(&self) -> Result<Wanting, BpfError> {
        let values = self.cpus.get(&0, 0).map_err(|e| BpfError::map("read", "cpu_state", e))?;
        Ok(values.iter().fold(Wanting::default(), |sum, one| Wanting {
            events_lost: sum.events_lost + one.0.lost,
            flows_refused: sum.flows_refused + one.0.flows_refused,
        }))
    }

    /// Flows in the table of a slot, silent ones that are not yet removed included. `None` if counting takes
    /// longer than until then: a table is counted entry by entry.
    #[must_use]
    pub fn flows(&self, slot: u32, until: Instant) -> Option<u64> {
        let Ok(table) = self.flows.get(&slot, 0) else {
            return Some(0);
        };
        let mut flows = 0;
        for key in table.keys() {
            if key.is_err() || Instant::now() > until {
                return None;
            }
            flows += 1;
        }
        Some(flows)
    }
}

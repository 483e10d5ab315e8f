//! What the programs counted, read beside the agent that keeps the maps. Reads only.

use aya::maps::{Array, MapData, PerCpuArray};
use portcullis_common::event::{Direction, Outcome, Reason, verdict_cell};
use portcullis_common::wire::{CpuState, FlowCount, FlowRoom, Stats};

use super::counters::{pinned, sum};
use super::flows::entries;
use super::load::{BpfError, Pins};
use super::wire::Wire;

/// The counters of a load.
pub struct Figures {
    verdicts: PerCpuArray<MapData, Wire<Stats>>,
    rules: PerCpuArray<MapData, Wire<Stats>>,
    cpus: PerCpuArray<MapData, Wire<CpuState>>,
    flows_made: Array<MapData, Wire<FlowCount>>,
    flows_gone: Array<MapData, Wire<FlowCount>>,
    flows_room: Array<MapData, Wire<FlowRoom>>,
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
            flows_made: pinned(pins, "flows_made")?,
            flows_gone: pinned(pins, "flows_gone")?,
            flows_room: pinned(pins, "flows_room")?,
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

    /// Entries in the table of flows of a slot, silent ones that are not yet removed included; and for how many it has
    /// room now.
    pub fn flows(&self, slot: u32) -> Result<(u64, u64), BpfError> {
        let made = self.flows_made.get(&slot, 0).map_err(|e| BpfError::map("read", "flows_made", e))?.0;
        let gone = self.flows_gone.get(&slot, 0).map_err(|e| BpfError::map("read", "flows_gone", e))?.0;
        let room = self.flows_room.get(&slot, 0).map_err(|e| BpfError::map("read", "flows_room", e))?.0;
        Ok((entries(made, gone), room.capacity.into()))
    }
}

//! The flow tables of endpoints, as userspace has to do with them: makes and grows them, takes spent entries out, and
//! writes flows that the programs did not see open. Which packet makes a flow it does not know.
//!
//! A table grows beside itself: the larger one takes the place of the smaller in `flows`, which goes to `flows_before`,
//! where the programs look when `flows` has no entry. What is left there is copied. Tables never shrink.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::Ebpf;
use aya::maps::{Array, MapData};
use portcullis_common::flow::is_spent;
use portcullis_common::wire::{
    FIRST_FLOWS, FLOW_KIND_FLOW, FLOW_KIND_FRAGMENTS_INGRESS, FLOW_OPENED_INGRESS, FLOWS_GROWTH, FlowCount,
    FlowEntry, FlowKey, FlowRoom, OWN_FLOWS_SHARE,
};
use zerocopy::FromZeros as _;

use super::inner::InnerPins;
use super::kernel::{data, put, take};
use super::load::BpfError;
use super::sys;
use super::wire::Wire;

/// `BPF_NOEXIST` of include/uapi/linux/bpf.h.
const NO_EXIST: u64 = 1;
/// Entries that are read by one call; more where a bucket of the hash holds more.
const STEP: usize = 4_096;

/// What came of flows that were to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// They are there now.
    pub made: u64,
    /// They were there, and stay as they were.
    pub were_there: u64,
    /// The table is full.
    pub no_room: u64,
}

/// Whether a table could take all that was to come into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// It has them.
    Done,
    /// It is full: the smaller table stays behind it.
    NoRoom,
    /// It is as large as it may be.
    Largest,
}

/// The tables of all endpoints.
pub struct FlowTables {
    flows: MapData,
    before: MapData,
    made: Array<MapData, Wire<FlowCount>>,
    gone: Array<MapData, Wire<FlowCount>>,
    room: Array<MapData, Wire<FlowRoom>>,
    pattern: MapData,
    pins: InnerPins,
}

impl std::fmt::Debug for FlowTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowTables").finish_non_exhaustive()
    }
}

impl FlowTables {
    pub(super) fn of(ebpf: &mut Ebpf, pins: InnerPins) -> Result<Self, BpfError> {
        Ok(Self {
            pins,
            flows: data(ebpf, "flows")?,
            before: data(ebpf, "flows_before")?,
            made: take(ebpf, "flows_made")?,
            gone: take(ebpf, "flows_gone")?,
            room: take(ebpf, "flows_room")?,
            pattern: data(ebpf, "flows_inner")?,
        })
    }

    /// Takes away what an agent that was killed over a table left of it.
    pub(super) fn sweep(&self) -> Result<(), BpfError> {
        let slots = |map: &MapData| sys::map_info(fd(map)).map(|info| info.max_entries);
        slots(&self.flows)
            .and_then(|of_flows| {
                let arrays = [(fd(&self.flows), of_flows), (fd(&self.before), slots(&self.before)?)];
                self.pins.sweep(&arrays)
            })
            .map_err(|e| BpfError::map("sweep pins of", "flows", e))
    }

    /// An empty table for an endpoint that no packet reaches yet; in time it may hold `largest` flows.
    pub(super) fn make(&mut self, slot: u32, largest: u32) -> Result<(), BpfError> {
        let first = largest.min(FIRST_FLOWS);
        let table = self.table_of(first)?;
        self.empty_before(slot)?;
        self.pins.replace(fd(&self.flows), slot, &table).map_err(|e| BpfError::map("write", "flows", e))?;
        let made = self.made.get(&slot, 0).map_err(|e| BpfError::map("read", "flows_made", e))?.0;
        put(&mut self.gone, "flows_gone", slot, made)?;
        self.has_room(slot, first)
    }

    /// Frees a table. To be called a grace period after its endpoint was forgotten.
    pub(super) fn free(&mut self, slot: u32) -> Result<(), BpfError> {
        self.empty_before(slot)?;
        self.pins.empty(fd(&self.flows), slot).map_err(|e| BpfError::map("empty", "flows", e))
    }

    /// The table of a slot.
    pub fn table(&self, slot: u32) -> Result<FlowTable, BpfError> {
        match self.inner(slot)? {
            Some(table) => Ok(FlowTable(table)),
            None => Err(BpfError::Missing(format!("table of flows of endpoint {slot}"))),
        }
    }

    /// Goes on with what another agent made, and may have been killed over: the size is what the table says.
    pub fn take_over(&mut self, slot: u32) -> Result<(), BpfError> {
        let Some(table) = self.inner(slot)? else { return Ok(()) };
        let found =
            sys::map_info(table.as_fd()).map_err(|e| BpfError::map("ask for the size of", "flows", e))?;
        // The pins' own shapes were compared; this is behind them, and the kernel copies by its sizes, not by ours.
        let (key, value) = (size_of::<FlowKey>(), size_of::<FlowEntry>());
        if (found.key_size as usize, found.value_size as usize) != (key, value) {
            let cause = format!(
                "endpoint {slot}: its entries have {} and {} bytes, this agent's {key} and {value}: end the agent that \
                 made them and run `portcullis cleanup`",
                found.key_size, found.value_size
            );
            return Err(BpfError::map("take over", "flows", cause));
        }
        self.has_room(slot, found.max_entries)?;
        self.finish(slot).map(drop)
    }

    /// Flows were written to a slot's table by this side.
    pub fn count(&mut self, slot: u32, ingress: u64, egress: u64) -> Result<(), BpfError> {
        let mut gone = self.gone.get(&slot, 0).map_err(|e| BpfError::map("read", "flows_gone", e))?.0;
        gone.ingress = gone.ingress.wrapping_sub(ingress);
        gone.egress = gone.egress.wrapping_sub(egress);
        put(&mut self.gone, "flows_gone", slot, gone)
    }

    /// Entries of a slot, and how many have room.
    pub fn fill(&self, slot: u32) -> Result<(u64, FlowRoom), BpfError> {
        let made = self.made.get(&slot, 0).map_err(|e| BpfError::map("read", "flows_made", e))?.0;
        let gone = self.gone.get(&slot, 0).map_err(|e| BpfError::map("read", "flows_gone", e))?.0;
        let room = self.room.get(&slot, 0).map_err(|e| BpfError::map("read", "flows_room", e))?.0;
        Ok((entries(made, gone), room))
    }

    /// Grows a table that is half full, and takes up what was left half-way. `None` where there is nothing to do.
    pub fn tend(&mut self, slot: u32, largest: u32) -> Result<Option<Growth>, BpfError> {
        let (entries, room) = self.fill(slot)?;
        if entries >= u64::from(room.capacity / 2) && room.capacity < largest {
            return self.grow(slot, largest).map(Some);
        }
        let is_growing = sys::inner_id(fd(&self.before), slot)
            .map_err(|e| BpfError::map("open", "flows_before", e))?
            .is_some();
        if is_growing { self.finish(slot).map(Some) } else { Ok(None) }
    }

    /// Gives an endpoint a larger table, with all that the smaller one holds.
    pub fn grow(&mut self, slot: u32, largest: u32) -> Result<Growth, BpfError> {
        // What is still behind the present table has to be in it before that goes behind another.
        if self.finish(slot)? == Growth::NoRoom {
            return Ok(Growth::NoRoom);
        }
        let Some(table) = self.inner(slot)? else { return Ok(Growth::Largest) };
        let capacity = self.fill(slot)?.1.capacity;
        if capacity >= largest {
            return Ok(Growth::Largest);
        }
        let larger = capacity.saturating_mul(FLOWS_GROWTH).min(largest);
        let next = self.table_of(larger)?;
        // When the second call returns no program uses the smaller table as the present one: the kernel waits for those
        // that run. Between the two calls a program that misses looks at one table twice.
        sys::set_inner(fd(&self.before), slot, table.as_fd())
            .map_err(|e| BpfError::map("write", "flows_before", e))?;
        sys::set_inner(fd(&self.flows), slot, next.as_fd())
            .map_err(|e| BpfError::map("write", "flows", e))?;
        self.has_room(slot, larger)?;
        tracing::debug!("endpoint {slot}: its table of flows grows from {capacity} to {larger}");
        self.finish(slot)
    }

    /// Copies what is left in the table that a slot has grown out of, and lets go of it.
    fn finish(&mut self, slot: u32) -> Result<Growth, BpfError> {
        let before =
            self.pins.open(fd(&self.before), slot).map_err(|e| BpfError::map("open", "flows_before", e))?;
        let (Some(before), Some(table)) = (before, self.inner(slot)?) else { return Ok(Growth::Done) };
        let mut table = FlowTable(table);
        let mut no_room = 0;
        let mut failed = None;
        walk(before.as_fd(), |keys, entries| match table.write_new(keys, entries) {
            Ok(written) => no_room += written.no_room,
            Err(error) => failed = Some(error),
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        if no_room > 0 {
            return Ok(Growth::NoRoom);
        }
        // A program may have missed in the larger table before the copy, and is about to look in the smaller.
        sys::grace_period().map_err(|e| BpfError::map("wait for readers of", "flows_before", e))?;
        self.empty_before(slot)?;
        Ok(Growth::Done)
    }

    /// Removes entries that have been silent for too long, as the judgement would find them, and sets the counts right.
    /// Returns how many.
    pub fn expire(&mut self, slot: u32, now: u32) -> Result<u64, BpfError> {
        let Some(table) = self.inner(slot)? else { return Ok(0) };
        let made = self.made.get(&slot, 0).map_err(|e| BpfError::map("read", "flows_made", e))?.0;
        let gone = self.gone.get(&slot, 0).map_err(|e| BpfError::map("read", "flows_gone", e))?.0;
        // Not less than none either: such a count is wrong, and is set right here.
        if made == gone {
            return Ok(0);
        }
        // Without room for what is behind the table, room is made here; what is spent must not come back from there.
        let before = match self.finish(slot)? {
            Growth::NoRoom => self
                .pins
                .open(fd(&self.before), slot)
                .map_err(|e| BpfError::map("open", "flows_before", e))?,
            Growth::Done | Growth::Largest => None,
        };
        let (mut kept, mut ended) = (FlowCount::default(), FlowCount::default());
        let mut removed = 0;
        let mut failed = None;
        let mut spent = Vec::new();
        walk(table.as_fd(), |keys, entries| {
            spent.clear();
            for (key, entry) in keys.iter().zip(entries) {
                let count = if is_spent(key, entry, now) {
                    spent.push(*key);
                    &mut ended
                } else {
                    &mut kept
                };
                if is_ingress(key, entry) {
                    count.ingress += 1;
                } else {
                    count.egress += 1;
                }
            }
            // One may have come back to life meanwhile: then it opens again with its next opening packet, or is judged
            // alone, which an expired flow would have been too.
            let behind = before.as_ref().map_or(Ok(0u64), |before| sys::delete_all(before.as_fd(), &spent));
            match behind.and_then(|_| sys::delete_all(table.as_fd(), &spent)) {
                Ok(count) => removed += count,
                Err(error) => failed = Some(error),
            }
        })?;
        if let Some(error) = failed {
            return Err(BpfError::map("delete from", "flows", error));
        }
        let after = self.made.get(&slot, 0).map_err(|e| BpfError::map("read", "flows_made", e))?.0;
        let told = after.less(gone);
        let ingress = settled(
            kept.ingress,
            after.ingress.wrapping_sub(made.ingress),
            told.ingress.saturating_sub(ended.ingress),
        );
        let egress = settled(
            kept.egress,
            after.egress.wrapping_sub(made.egress),
            told.egress.saturating_sub(ended.egress),
        );
        let gone = FlowCount {
            ingress: after.ingress.wrapping_sub(ingress),
            egress: after.egress.wrapping_sub(egress),
        };
        put(&mut self.gone, "flows_gone", slot, gone)?;
        Ok(removed)
    }

    fn inner(&self, slot: u32) -> Result<Option<OwnedFd>, BpfError> {
        self.pins.open(fd(&self.flows), slot).map_err(|e| BpfError::map("open", "flows", e))
    }

    fn empty_before(&self, slot: u32) -> Result<(), BpfError> {
        self.pins.empty(fd(&self.before), slot).map_err(|e| BpfError::map("empty", "flows_before", e))
    }

    fn table_of(&self, entries: u32) -> Result<OwnedFd, BpfError> {
        sys::map_info(fd(&self.pattern))
            .and_then(|info| sys::create_like(&info, "flows_in", entries))
            .and_then(|table| self.pins.keep(table.as_fd()).map(|()| table))
            .map_err(|e| BpfError::map("make inner map of", "flows", e))
    }

    fn has_room(&mut self, slot: u32, capacity: u32) -> Result<(), BpfError> {
        // Of what there is room for now: a table that cannot grow, for want of an agent, has a share too.
        let most_ingress = capacity - capacity / OWN_FLOWS_SHARE;
        put(&mut self.room, "flows_room", slot, FlowRoom { capacity, told: 0, most_ingress, reserved: 0 })
    }
}

/// Entries of a table; counts that were lost make it less than it is, never less than none.
pub(super) fn entries(made: FlowCount, gone: FlowCount) -> u64 {
    let there = made.less(gone);
    there.ingress + there.egress
}

/// How many entries a table has after a walk that saw `kept` of them while the programs added `made` (a number that wrapped
/// is of those that they removed): nobody knows which of these it saw. So what the counts told stands where the walk does
/// not refute it.
fn settled(kept: u64, made: u64, told: u64) -> u64 {
    let other = kept.saturating_add_signed(made.cast_signed());
    told.clamp(kept.min(other), kept.max(other))
}

/// As the programs count it.
fn is_ingress(key: &FlowKey, entry: &FlowEntry) -> bool {
    match key.kind {
        FLOW_KIND_FLOW => entry.tag & FLOW_OPENED_INGRESS != 0,
        kind => kind == FLOW_KIND_FRAGMENTS_INGRESS,
    }
}

/// An endpoint's table.
#[derive(Debug)]
pub struct FlowTable(OwnedFd);

impl FlowTable {
    /// Writes flows, but none over one that is there: what the programs made is younger.
    pub fn write_new(&mut self, keys: &[FlowKey], entries: &[FlowEntry]) -> Result<Written, BpfError> {
        let mut written = Written::default();
        for (key, entry) in keys.iter().zip(entries) {
            let error = sys::update(self.0.as_fd(), key, entry, NO_EXIST).err();
            match error.as_ref().map(std::io::Error::raw_os_error) {
                None => written.made += 1,
                Some(Some(libc::EEXIST)) => written.were_there += 1,
                Some(Some(libc::E2BIG | libc::ENOMEM)) => written.no_room += 1,
                Some(_) => {
                    let error = error.unwrap_or_else(|| std::io::ErrorKind::Other.into());
                    return Err(BpfError::map("write", "flows", error));
                }
            }
        }
        Ok(written)
    }

    /// All entries.
    pub fn all(&self) -> Result<Vec<(FlowKey, FlowEntry)>, BpfError> {
        let mut all = Vec::new();
        walk(self.0.as_fd(), |keys, entries| all.extend(keys.iter().copied().zip(entries.iter().copied())))?;
        Ok(all)
    }
}

/// Hands over the entries of a table, many at once. What comes or goes meanwhile may be among them or not.
fn walk(table: BorrowedFd<'_>, mut each: impl FnMut(&[FlowKey], &[FlowEntry])) -> Result<(), BpfError> {
    let mut keys = vec![FlowKey::new_zeroed(); STEP];
    let mut entries = vec![FlowEntry::new_zeroed(); STEP];
    let mut at = None;
    loop {
        let (count, error) = sys::lookup_batch(table, &mut at, &mut keys, &mut entries);
        let is_last = match error.as_ref().map(std::io::Error::raw_os_error) {
            None => false,
            Some(Some(libc::ENOENT)) => true,
            // A bucket with more: peers choose keys, so there is no bound but the table's size.
            Some(Some(libc::ENOSPC)) => {
                let larger = keys.len().saturating_mul(2);
                keys.resize(larger, FlowKey::new_zeroed());
                entries.resize(larger, FlowEntry::new_zeroed());
                continue;
            }
            Some(_) => {
                let error = error.unwrap_or_else(|| std::io::ErrorKind::Other.into());
                return Err(BpfError::map("read", "flows", error));
            }
        };
        each(keys.get(..count).unwrap_or_default(), entries.get(..count).unwrap_or_default());
        if is_last {
            return Ok(());
        }
    }
}

fn fd(map: &MapData) -> BorrowedFd<'_> {
    map.fd().as_fd()
}

#[cfg(test)]
#[path = "flows_tests.rs"]
mod tests;

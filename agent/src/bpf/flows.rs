//! The flow table of an endpoint, as userspace writes it: only flows that the programs did not see open.

use std::io;

use aya::maps::{HashMap, MapData, MapError};
use portcullis_common::wire::{FlowEntry, FlowKey};

use super::load::BpfError;
use super::wire::Wire;

pub(super) type FlowsMap = HashMap<MapData, Wire<FlowKey>, Wire<FlowEntry>>;

/// `BPF_NOEXIST` of include/uapi/linux/bpf.h.
const NO_EXIST: u64 = 1;

/// What came of a flow that was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is there now.
    Made,
    /// It was there, and stays as it was.
    WasThere,
    /// The table is full.
    NoRoom,
}

/// An endpoint's table.
pub struct FlowTable(FlowsMap);

impl std::fmt::Debug for FlowTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowTable").finish_non_exhaustive()
    }
}

impl FlowTable {
    pub(super) const fn new(map: FlowsMap) -> Self {
        Self(map)
    }

    /// Writes a flow, unless there is one of this key: what the programs made is younger.
    pub fn write_new(&mut self, key: FlowKey, entry: FlowEntry) -> Result<Written, BpfError> {
        let Err(error) = self.0.insert(Wire(key), Wire(entry), NO_EXIST) else {
            return Ok(Written::Made);
        };
        match errno(&error) {
            Some(libc::EEXIST) => Ok(Written::WasThere),
            Some(libc::E2BIG | libc::ENOMEM) => Ok(Written::NoRoom),
            Some(_) | None => Err(BpfError::map("write", "flows", error)),
        }
    }

    /// All flows that are there.
    pub fn all(&self) -> impl Iterator<Item = (FlowKey, FlowEntry)> + '_ {
        self.0.iter().filter_map(Result::ok).map(|(key, entry)| (key.0, entry.0))
    }
}

/// What the kernel answered.
fn errno(error: &MapError) -> Option<i32> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}

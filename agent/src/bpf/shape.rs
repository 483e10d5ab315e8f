//! What each map is: type, sizes of key and value, entries, flags. A pin that is something else is refused before
//! anything is written: an agent of another shape made it.

use std::fs;
use std::os::fd::AsFd as _;

use aya::maps::{MapData, MapType};
use portcullis_common::addr::Addr;
use portcullis_common::event::VERDICT_CELLS;
use portcullis_common::wire::{
    BANKS, CgroupWord, CounterKey, CpuState, EPOCH_ANY, EndpointConfig, EndpointWord, FlowCount, FlowRoom,
    HostState, IFACE_CELLS, IfaceWord, MAX_CGROUPS, MAX_DEVICES, MAX_NODE_ADDRS, NODE_PORT_WORDS,
    NodeAddrWord, NodeState, PeerRowKey, PeerRowWord, PortRange, Row, Rule, Ruleset, Stats,
};
use portcullis_policy::sizes::{Sizes, Table};

use super::load::{BpfError, Pins};
use super::sys;

/// `BPF_F_NO_PREALLOC` of include/uapi/linux/bpf.h.
const NO_PREALLOC: u32 = 1;

/// A pinned map as it should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Its name, and that of its pin.
    pub name: &'static str,
    /// Its type.
    pub kind: MapType,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Entries; bytes of a ring.
    pub entries: u32,
    /// `BPF_F_`.
    pub flags: u32,
    /// The option that sets the entries.
    pub table: Option<Table>,
}

/// The pinned maps at these sizes, in the order of `docs/maps.md`.
#[must_use]
pub fn shapes(sizes: &Sizes) -> [Shape; 29] {
    let chosen = |name, kind, key, value: usize, table| Shape {
        name,
        kind,
        key,
        value: bytes(value),
        entries: sizes.of(table),
        flags: 0,
        table: Some(table),
    };
    let fixed = |name, kind, value: usize, entries| Shape {
        name,
        kind,
        key: 4,
        value: bytes(value),
        entries,
        flags: 0,
        table: None,
    };
    let array = |name, value, table| chosen(name, MapType::Array, 4, value, table);
    [
        chosen("ifaces", MapType::Hash, 4, size_of::<IfaceWord>(), Table::Endpoints),
        fixed("iface_index", MapType::Array, size_of::<IfaceWord>(), IFACE_CELLS),
        fixed("devices", MapType::Hash, size_of::<u32>(), MAX_DEVICES),
        Shape {
            flags: NO_PREALLOC,
            key: bytes(size_of::<Addr>()),
            ..fixed("node_addrs", MapType::Hash, size_of::<NodeAddrWord>(), MAX_NODE_ADDRS)
        },
        fixed("node_ports", MapType::Array, size_of::<u64>(), NODE_PORT_WORDS),
        Shape {
            flags: NO_PREALLOC,
            key: bytes(size_of::<Addr>()),
            ..fixed("nodes", MapType::Hash, size_of::<NodeAddrWord>(), MAX_NODE_ADDRS)
        },
        Shape {
            flags: NO_PREALLOC,
            key: bytes(size_of::<u64>()),
            ..fixed("cgroups", MapType::Hash, size_of::<CgroupWord>(), MAX_CGROUPS)
        },
        fixed("host_state", MapType::Array, size_of::<HostState>(), 1),
        array("endpoints", size_of::<EndpointWord>(), Table::Endpoints),
        array("endpoint_cfg", size_of::<EndpointConfig>(), Table::Endpoints),
        array("rulesets", size_of::<Ruleset>(), Table::Rulesets),
        array("rules", size_of::<Rule>(), Table::Rules),
        array("rows", size_of::<Row>(), Table::Rows),
        array("port_ranges", size_of::<PortRange>(), Table::PortRanges),
        fixed("peers", MapType::ArrayOfMaps, size_of::<u32>(), BANKS),
        fixed("prefixes", MapType::ArrayOfMaps, size_of::<u32>(), BANKS),
        Shape {
            flags: NO_PREALLOC,
            ..chosen(
                "peer_rows",
                MapType::Hash,
                bytes(size_of::<PeerRowKey>()),
                size_of::<PeerRowWord>(),
                Table::PeerRows,
            )
        },
        fixed("epochs", MapType::Array, size_of::<u32>(), EPOCH_ANY + 1),
        fixed("node_state", MapType::Array, size_of::<NodeState>(), 1),
        chosen("flows", MapType::ArrayOfMaps, 4, size_of::<u32>(), Table::Endpoints),
        chosen("flows_before", MapType::ArrayOfMaps, 4, size_of::<u32>(), Table::Endpoints),
        array("flows_made", size_of::<FlowCount>(), Table::Endpoints),
        array("flows_gone", size_of::<FlowCount>(), Table::Endpoints),
        array("flows_room", size_of::<FlowRoom>(), Table::Endpoints),
        chosen("rule_stats", MapType::PerCpuArray, 4, size_of::<Stats>(), Table::Counters),
        fixed("verdicts", MapType::PerCpuArray, size_of::<Stats>(), VERDICT_CELLS),
        fixed("cpu_state", MapType::PerCpuArray, size_of::<CpuState>(), 1),
        chosen("events", MapType::RingBuf, 0, 0, Table::Events),
        Shape {
            flags: NO_PREALLOC,
            ..chosen(
                "counter_names",
                MapType::Hash,
                bytes(size_of::<CounterKey>()),
                size_of::<u32>(),
                Table::Counters,
            )
        },
    ]
}

fn bytes(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Refuses pins that are not what this agent would make.
pub(super) fn check(pins: &Pins, sizes: &Sizes) -> Result<(), BpfError> {
    for shape in shapes(sizes) {
        let path = pins.maps().join(shape.name);
        // What is not there is made; what cannot be looked at fails below.
        if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            continue;
        }
        let data = MapData::from_pin(&path).map_err(|e| BpfError::map("open", shape.name, e))?;
        let found = sys::map_info(data.fd().as_fd()).map_err(|e| BpfError::map("look at", shape.name, e))?;
        let other = |what, found, wanted, remedy| {
            Err(BpfError::OtherShape { map: shape.name, what, path: path.clone(), found, wanted, remedy })
        };
        let cleanup = "or end its agent and run `portcullis cleanup`, which opens the node's pods until an agent \
                       runs again";
        for (what, found, wanted) in [
            ("type", found.kind, shape.kind as u32),
            ("bytes of key", found.key_size, shape.key),
            ("bytes of value", found.value_size, shape.value),
            ("flags", found.flags, shape.flags),
        ] {
            if found != wanted {
                return other(what, found, wanted, format!("start the agent that made it, {cleanup}"));
            }
        }
        if found.max_entries != shape.entries {
            let remedy = match shape.table {
                Some(table) => {
                    format!("start the agent with --map-size {table}={}, {cleanup}", found.max_entries)
                }
                None => format!("start the agent that made it, {cleanup}"),
            };
            return other("entries", found.max_entries, shape.entries, remedy);
        }
    }
    Ok(())
}

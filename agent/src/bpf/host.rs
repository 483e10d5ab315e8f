//! How the node's own sockets are judged: `host_state`, `cgroups` and `nodes`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use portcullis_common::wire::{CgroupWord, HostState, MAX_CGROUPS, MAX_NODE_ADDRS, NodeAddrWord, cgroup_tag};
use portcullis_policy::desired::wire_addr;

use super::kernel::{gone, put, take};
use super::load::BpfError;
use super::wire::Wire;

/// The three maps.
pub(super) struct Host {
    state: Array<MapData, Wire<HostState>>,
    cgroups: HashMap<MapData, u64, Wire<CgroupWord>>,
    nodes: HashMap<MapData, [u8; 16], Wire<NodeAddrWord>>,
}

impl Host {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self { state: take(ebpf, "host_state")?, cgroups: take(ebpf, "cgroups")?, nodes: take(ebpf, "nodes")? })
    }

    /// What is there.
    pub(super) fn state(&self) -> Result<HostState, BpfError> {
        Ok(self.state.get(&0, 0).map_err(|e| BpfError::map("read", "host_state", e))?.0)
    }

    /// Leaves this there; nothing is written where it is there already.
    pub(super) fn set_state(&mut self, wanted: HostState) -> Result<(), BpfError> {
        if self.state()? == wanted { Ok(()) } else { put(&mut self.state, "host_state", 0, wanted) }
    }

    /// Whose the cgroups are.
    pub(super) fn found(&self) -> BTreeMap<u64, u32> {
        self.cgroups.iter().filter_map(Result::ok).map(|(cgroup, word)| (cgroup, word.0.slot)).collect()
    }

    /// Says whose sockets are below a cgroup.
    pub(super) fn lead(&mut self, cgroup: u64, slot: u32) -> Result<(), BpfError> {
        let word = CgroupWord { slot, tag: cgroup_tag(cgroup) };
        self.cgroups.insert(cgroup, Wire(word), 0).map_err(|e| BpfError::map("write", "cgroups", e))
    }

    /// Of what is below it nothing is known from here on.
    pub(super) fn forget(&mut self, cgroup: u64) -> Result<(), BpfError> {
        gone(self.cgroups.remove(&cgroup), "cgroups")
    }

    /// Leaves these addresses there, as many as there is room for.
    pub(super) fn set_nodes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), BpfError> {
        let failed = |operation| move |e| BpfError::map(operation, "nodes", e);
        let found: BTreeSet<[u8; 16]> =
            self.nodes.keys().collect::<Result<_, _>>().map_err(failed("read"))?;
        let wanted: BTreeMap<[u8; 16], u32> = addresses
            .iter()
            .take(MAX_NODE_ADDRS as usize)
            .map(|address| wire_addr(*address))
            .map(|addr| (addr.bytes, addr.hash()))
            .collect();
        for key in found.iter().filter(|key| !wanted.contains_key(*key)) {
            gone(self.nodes.remove(key), "nodes")?;
        }
        for (key, tag) in wanted.iter().filter(|(key, _)| !found.contains(*key)) {
            let word = Wire(NodeAddrWord { tag: *tag, reserved: 0 });
            self.nodes.insert(key, word, 0).map_err(failed("write"))?;
        }
        Ok(())
    }
}

/// Cgroups that one node can have told apart.
pub const CGROUPS: usize = MAX_CGROUPS as usize;

//! Which ports of which nodes' addresses this node's rules translate: `node_addrs` and `node_ports`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use portcullis_common::wire::{MAX_NODE_ADDRS, NODE_PORT_WORDS, NodeAddrWord, node_port};
use portcullis_policy::desired::wire_addr;
use portcullis_policy::model::Protocol;

use super::kernel::{gone, take};
use super::load::BpfError;
use super::wire::Wire;

/// The two maps, and what they are known to hold.
pub(super) struct NodePorts {
    addrs: HashMap<MapData, [u8; 16], Wire<NodeAddrWord>>,
    ports: Array<MapData, u64>,
    words: Vec<u64>,
}

impl NodePorts {
    /// Reads what another agent left.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let ports: Array<MapData, u64> = take(ebpf, "node_ports")?;
        let words = (0..NODE_PORT_WORDS).map(|word| ports.get(&word, 0)).collect::<Result<_, _>>();
        let words = words.map_err(|e| BpfError::map("read", "node_ports", e))?;
        Ok(Self { addrs: take(ebpf, "node_addrs")?, ports, words })
    }

    /// Leaves these addresses and ports there, as many addresses as there is room for. Returns whether anything was others.
    pub(super) fn set(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        ports: &BTreeSet<(Protocol, u16)>,
    ) -> Result<bool, BpfError> {
        let mut words = vec![0; NODE_PORT_WORDS as usize];
        for (protocol, port) in ports {
            if let Some((word, bit)) = node_port(protocol.number(), *port)
                && let Some(held) = words.get_mut(word as usize)
            {
                *held |= bit;
            }
        }
        // What is no node port any more first: whatever fails then, it is judged as the node's.
        let left: Vec<u64> = words.iter().zip(&self.words).map(|(new, held)| new & held).collect();
        let mut changed = self.put(&left)?;
        let failed = |operation| move |e| BpfError::map(operation, "node_addrs", e);
        let found: BTreeSet<[u8; 16]> =
            self.addrs.keys().collect::<Result<_, _>>().map_err(failed("read"))?;
        let wanted: BTreeMap<[u8; 16], u32> = addresses
            .iter()
            .take(MAX_NODE_ADDRS as usize)
            .map(|address| wire_addr(*address))
            .map(|addr| (addr.bytes, addr.hash()))
            .collect();
        for key in found.iter().filter(|key| !wanted.contains_key(*key)) {
            gone(self.addrs.remove(key), "node_addrs")?;
            changed = true;
        }
        for (key, tag) in wanted.iter().filter(|(key, _)| !found.contains(*key)) {
            let word = Wire(NodeAddrWord { tag: *tag, reserved: 0 });
            self.addrs.insert(key, word, 0).map_err(failed("write"))?;
            changed = true;
        }
        changed |= self.put(&words)?;
        Ok(changed)
    }

    /// Writes the words that are others; returns whether any was.
    fn put(&mut self, words: &[u64]) -> Result<bool, BpfError> {
        let mut changed = false;
        for ((word, new), held) in (0u32..).zip(words).zip(&mut self.words) {
            if held != new {
                self.ports.set(word, new, 0).map_err(|e| BpfError::map("write", "node_ports", e))?;
                *held = *new;
                changed = true;
            }
        }
        Ok(changed)
    }
}

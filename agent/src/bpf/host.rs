//! How the node's own sockets are judged: `host_state`, `cgroups` and `nodes`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use portcullis_common::wire::{CgroupWord, HostState, MAX_NODE_ADDRS, NodeAddrWord, cgroup_tag};
use portcullis_policy::desired::wire_addr;

use super::kernel::{gone, put, take};
use super::load::{self, BpfError};
use super::wire::Wire;

/// The three maps.
pub(super) struct Host {
    state: Array<MapData, Wire<HostState>>,
    cgroups: HashMap<MapData, u64, Wire<CgroupWord>>,
    nodes: HashMap<MapData, [u8; 16], Wire<NodeAddrWord>>,
    /// Addresses of nodes that there is no room for.
    left_out: usize,
}

impl Host {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            state: take(ebpf, "host_state")?,
            cgroups: take(ebpf, "cgroups")?,
            nodes: take(ebpf, "nodes")?,
            left_out: 0,
        })
    }

    /// What is there.
    pub(super) fn state(&self) -> Result<HostState, BpfError> {
        Ok(self.state.get(&0, 0).map_err(|e| BpfError::map("read", "host_state", e))?.0)
    }

    /// Leaves this there; nothing is written where it is there already.
    pub(super) fn set_state(&mut self, wanted: HostState) -> Result<(), BpfError> {
        let found = self.state()?;
        if found == wanted {
            return Ok(());
        }
        // A value of several words can be read half written: it is whole before it counts.
        if found.flags == 0 && wanted.flags != 0 {
            put(&mut self.state, "host_state", 0, HostState { flags: 0, ..wanted })?;
        }
        put(&mut self.state, "host_state", 0, wanted)
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

    /// Leaves these addresses there, as many as there is room for; the log warns of how many are left out.
    pub(super) fn set_nodes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), BpfError> {
        let left_out = left_out(addresses.len());
        if left_out != std::mem::replace(&mut self.left_out, left_out) && left_out > 0 {
            tracing::warn!(
                "{left_out} addresses of nodes have no room in the map `nodes` ({MAX_NODE_ADDRS}): what tunnels send there is \
                 judged by the node's policies for egress, as if it were for anybody"
            );
        }
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

/// How many of so many addresses there is no room for.
const fn left_out(addresses: usize) -> usize {
    addresses.saturating_sub(MAX_NODE_ADDRS as usize)
}

/// `SO_NETNS_COOKIE` of include/uapi/asm-generic/socket.h (Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of this thread's network namespace; 0 where the programs cannot ask for a socket's.
pub fn network_cookie() -> io::Result<u64> {
    if !load::tells_networks() {
        return Ok(0);
    }
    let socket =
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes into `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

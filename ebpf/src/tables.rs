//! The maps, and the kernel's side of the traits over them. Names have at most 15 characters; types are BTF
//! types, so that `bpftool map dump` names the fields.

use core::hint::black_box;

use aya_ebpf::bindings::{
    BPF_EXIST, BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP,
    bpf_spin_lock,
};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, PerCpuArray, RingBuf};
use aya_ebpf::helpers::generated::{
    bpf_get_smp_processor_id, bpf_ringbuf_query, bpf_spin_lock as lock, bpf_spin_unlock as unlock,
};
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use portcullis_common::addr::Addr;
use portcullis_common::classify::Tables;
use portcullis_common::event::{Event, VERDICT_CELLS};
use portcullis_common::judge::{At, Environment, Flows, Origin, Packed, Work};
use portcullis_common::packet::Link;
use portcullis_common::wire::{
    BANKS, CgroupWord, CounterKey, CpuState, DEFAULT_MARK_SHIFT, EPOCH_ANY, EVENT_RING_BYTES,
    EVENT_WAKE_BYTES, EndpointConfig, EndpointWord, FIRST_FLOWS, FLOW_KIND_FRAGMENTS_INGRESS,
    FLOW_OPENED_INGRESS, FlowCount, FlowEntry, FlowKey, FlowRoom, HOST_ON, HostState, IFACE_CELLS, IfaceWord,
    LINK_IP, MAX_CGROUPS, MAX_COUNTERS, MAX_DEVICES, MAX_ENDPOINTS, MAX_NODE_ADDRS, MAX_PEER_ROWS, MAX_PEERS,
    MAX_PORT_RANGES, MAX_PREFIXES, MAX_ROWS, MAX_RULES, MAX_RULESETS, MODE_AUDIT, NODE_PORT_WORDS,
    NodeAddrWord, NodeState, PeerRowKey, PeerRowWord, PeerWord, PortRange, Row, Rule, Ruleset,
    SERVICES_DELIVERED, Stats, cgroup_tag, node_port,
};

use crate::globals;
use crate::report;
use crate::skb::{Head, is_probe};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const NEW_ONLY: u64 = BPF_NOEXIST as u64;
const THERE_ONLY: u64 = BPF_EXIST as u64;

#[btf_map(name = "ifaces")]
static IFACES: HashMap<u32, IfaceWord, { MAX_ENDPOINTS as usize }> = HashMap::new();
#[btf_map(name = "iface_index")]
static IFACE_INDEX: Array<IfaceWord, { IFACE_CELLS as usize }> = Array::new();
/// How packets of the node's other devices start, where it is not with an Ethernet header.
#[btf_map(name = "devices")]
static DEVICES: HashMap<u32, u32, { MAX_DEVICES as usize }> = HashMap::new();
#[btf_map(name = "node_addrs")]
static NODE_ADDRS: HashMap<Addr, NodeAddrWord, { MAX_NODE_ADDRS as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "node_ports")]
static NODE_PORTS: Array<u64, { NODE_PORT_WORDS as usize }> = Array::new();
/// Addresses of all nodes, between which the kernel's tunnels go on.
#[btf_map(name = "nodes")]
static NODES: HashMap<Addr, NodeAddrWord, { MAX_NODE_ADDRS as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "cgroups")]
static CGROUPS: HashMap<u64, CgroupWord, { MAX_CGROUPS as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "host_state")]
static HOST_STATE: Array<HostState, 1> = Array::new();
#[btf_map(name = "endpoints")]
static ENDPOINTS: Array<EndpointWord, { MAX_ENDPOINTS as usize }> = Array::new();
#[btf_map(name = "endpoint_cfg")]
static ENDPOINT_CFG: Array<EndpointConfig, { MAX_ENDPOINTS as usize }> = Array::new();
#[btf_map(name = "rulesets")]
static RULESETS: Array<Ruleset, { MAX_RULESETS as usize }> = Array::new();
#[btf_map(name = "rules")]
static RULES: Array<Rule, { MAX_RULES as usize }> = Array::new();
#[btf_map(name = "rows")]
static ROWS: Array<Row, { MAX_ROWS as usize }> = Array::new();
#[btf_map(name = "port_ranges")]
static PORT_RANGES: Array<PortRange, { MAX_PORT_RANGES as usize }> = Array::new();
#[btf_map(name = "peer_rows")]
static PEER_ROWS: HashMap<PeerRowKey, PeerRowWord, { MAX_PEER_ROWS as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "epochs")]
static EPOCHS: Array<u32, { EPOCH_ANY as usize + 1 }> = Array::new();
#[btf_map(name = "node_state")]
static NODE_STATE: Array<NodeState, 1> = Array::new();
#[btf_map(name = "peers")]
static PEERS: ArrayOfMaps<PeersInner, { BANKS as usize }> = ArrayOfMaps::new();
#[btf_map(name = "prefixes")]
static PREFIXES: ArrayOfMaps<PrefixesInner, { BANKS as usize }> = ArrayOfMaps::new();
#[btf_map(name = "flows")]
static FLOWS: ArrayOfMaps<FlowsInner, { MAX_ENDPOINTS as usize }> = ArrayOfMaps::new();
/// Tables that endpoints are growing out of.
#[btf_map(name = "flows_before")]
static FLOWS_BEFORE: ArrayOfMaps<FlowsInner, { MAX_ENDPOINTS as usize }> = ArrayOfMaps::new();
#[btf_map(name = "flows_made")]
static FLOWS_MADE: Array<FlowCount, { MAX_ENDPOINTS as usize }> = Array::new();
#[btf_map(name = "flows_gone")]
static FLOWS_GONE: Array<FlowCount, { MAX_ENDPOINTS as usize }> = Array::new();
#[btf_map(name = "flows_room")]
static FLOWS_ROOM: Array<FlowRoom, { MAX_ENDPOINTS as usize }> = Array::new();
#[btf_map(name = "rule_stats")]
static RULE_STATS: PerCpuArray<Stats, { MAX_COUNTERS as usize }> = PerCpuArray::new();
#[btf_map(name = "verdicts")]
static VERDICTS: PerCpuArray<Stats, { VERDICT_CELLS as usize }> = PerCpuArray::new();
#[btf_map(name = "events")]
static EVENTS: RingBuf<Event, { EVENT_RING_BYTES as usize }> = RingBuf::new();
#[btf_map(name = "cpu_state")]
static CPU_STATE: PerCpuArray<CpuState, 1> = PerCpuArray::new();
/// What a program works on.
#[repr(C, align(8))]
pub struct Scratch {
    /// The judgement.
    pub work: Work,
    /// The packet's first bytes.
    pub head: Head,
    /// Where it came from.
    pub origin: SomeOrigin,
}

/// Programs of what sockets send that may be under way on one CPU: of a process, of the softirqs that interrupt it, and, where
/// the kernel preempts itself, of processes that take its place. A bit each of [`Places`].
const NESTED: u32 = 16;
/// CPUs that there are places for, until the loader says how many the machine may have.
const MAX_CPUS: usize = 8192;

/// Which places of a CPU are taken by what its sockets send. Behind a lock, which keeps its CPU from being taken away: two loads and
/// a store would be seen half done by another process that takes its place.
#[repr(C, align(64))]
pub struct Places {
    lock: bpf_spin_lock,
    /// A bit each, of the lowest [`NESTED`].
    taken: u32,
    reserved: [u64; 7],
}

/// By CPU: maps that are each CPU's own have no locks.
#[btf_map(name = "places")]
static PLACES: Array<Places, MAX_CPUS> = Array::new();

/// An origin by way of memory, for which the verifier forgets it: else it would go on with each as a case of its own.
#[repr(C, align(8))]
pub struct SomeOrigin(u32);

impl SomeOrigin {
    /// The same origin.
    #[inline(always)]
    pub fn forget(&mut self, origin: Origin) -> Origin {
        let place = &raw mut self.0;
        // SAFETY: a field behind a reference; volatile, or the compiler would go around the memory.
        unsafe { core::ptr::write_volatile(place, origin.number()) };
        // SAFETY: as above.
        Origin::from_number(unsafe { core::ptr::read_volatile(place) })
    }
}

/// What this CPU's program works on. In a map, not on the stack: the stack is short, and the verifier forgets
/// what it knew of a value that comes from a map, so that the parser's many ways out become one.
#[btf_map(name = "scratch")]
static SCRATCH: PerCpuArray<Scratch, { 1 + NESTED as usize }> = PerCpuArray::new();

// Userspace's own: which rule a counter counts, for agents to come.
#[btf_map(name = "counter_names")]
static COUNTER_NAMES: HashMap<CounterKey, u32, { MAX_COUNTERS as usize }, NO_PREALLOC> = HashMap::new();

// Never used: from these the agent takes the BTF types of the inner maps that it makes.
#[btf_map(name = "peers_inner")]
static PEERS_INNER: HashMap<Addr, PeerWord, 1, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "prefixes_inner")]
static PREFIXES_INNER: LpmTrie<[u8; 16], PeerWord, 1> = LpmTrie::new();
#[btf_map(name = "flows_inner")]
static FLOWS_INNER: HashMap<FlowKey, FlowEntry, 1, NO_PREALLOC> = HashMap::new();

type PeersInner = HashMap<Addr, PeerWord, { MAX_PEERS as usize }, NO_PREALLOC>;
type PrefixesInner = LpmTrie<[u8; 16], PeerWord, { MAX_PREFIXES as usize }>;
type FlowsInner = HashMap<FlowKey, FlowEntry, { FIRST_FLOWS as usize }, NO_PREALLOC>;

/// Set before 5.11, which has no coarse clock: the fine one costs 12 ns more.
#[unsafe(no_mangle)]
static FINE_CLOCK: u32 = 0;
/// The kernel's ticks in 1/2^32 of a second, and the count of ticks that it starts with. The tick is read in one load
/// (`bpf_jiffies64`, inlined), which the clocks are not.
#[unsafe(no_mangle)]
static TICK: u64 = 0;
#[unsafe(no_mangle)]
static FIRST_TICK: u64 = 0;

/// Reads an aligned word of the kernel's memory in one load, which cannot tear.
#[inline(always)]
fn load_word(word: *const u64) -> u64 {
    // SAFETY: callers pass pointers that a lookup returned, aligned to 8 bytes.
    unsafe { core::ptr::read_volatile(word) }
}

#[inline(always)]
fn store_word(word: *mut u64, value: u64) {
    // SAFETY: callers pass pointers that a lookup returned, aligned to 8 bytes.
    unsafe { core::ptr::write_volatile(word, value) }
}

/// Two 32-bit fields that share a word, in memory order.
#[inline(always)]
const fn split(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

#[inline(always)]
const fn join(low: u32, high: u32) -> u64 {
    low as u64 | ((high as u64) << 32)
}

/// The endpoint of an interface.
#[inline(always)]
pub fn slot_of(ifindex: u32) -> Option<u32> {
    if let Some(word) = IFACE_INDEX.get_ptr(ifindex & (IFACE_CELLS - 1)) {
        let (slot, tag) = split(load_word(word.cast()));
        if tag == ifindex {
            return Some(slot);
        }
    }
    for _ in 0..2 {
        if let Some(word) = IFACES.get_ptr(ifindex) {
            let (slot, tag) = split(load_word(word.cast()));
            if tag == ifindex {
                return Some(slot);
            }
        }
    }
    None
}

/// How the node's own sockets are judged; none where they are not.
#[inline(always)]
pub fn host_state() -> Option<&'static HostState> {
    let state = HOST_STATE.get(0)?;
    if state.flags & HOST_ON == 0 {
        // A branch to the compiler too: it would mask the pointer else, which the verifier of Linux 6.1 refuses.
        black_box(());
        return None;
    }
    Some(state)
}

/// Whose sockets are below a cgroup.
#[inline(always)]
pub fn slot_of_cgroup(cgroup: u64) -> Option<u32> {
    let tag = cgroup_tag(cgroup);
    for _ in 0..2 {
        if let Some(word) = CGROUPS.get_ptr(cgroup) {
            let (slot, found) = split(load_word(word.cast()));
            if found == tag {
                return Some(slot);
            }
        }
    }
    None
}

/// True for an address of a node, this one or another.
#[inline(always)]
pub fn is_node(addr: &Addr) -> bool {
    of_node(addr) != 0
}

/// [`is_node`] as a function of its own, for its stack.
#[inline(never)]
fn of_node(addr: &Addr) -> u32 {
    let tag = addr.hash();
    u32::from(NODES.get_ptr(addr).is_some_and(|word| split(load_word(word.cast())).0 == tag))
}

/// How packets of a device start that is no pod's.
#[inline(always)]
pub fn link_of(ifindex: u32) -> Link {
    // SAFETY: a value that nobody writes in place.
    match unsafe { DEVICES.get(ifindex) } {
        Some(link) if *link == LINK_IP => Link::Ip,
        Some(_) | None => Link::Ethernet,
    }
}

/// By how many bits our part of a packet's mark is shifted.
#[inline(always)]
pub fn mark_shift() -> u32 {
    NODE_STATE.get(0).map_or(DEFAULT_MARK_SHIFT, |state| state.mark_shift)
}

/// What an endpoint is.
#[inline(always)]
pub fn config_of(slot: u32) -> Option<&'static EndpointConfig> {
    ENDPOINT_CFG.get(slot)
}

/// This CPU's place to work. Programs at TC, and of cgroups towards a socket, run with softirqs off: none interrupts another
/// on a CPU.
#[inline(always)]
pub fn scratch<'a>() -> Option<&'a mut Scratch> {
    scratch_at(0)
}

/// One of this CPU's places to work, by its number.
#[inline(always)]
pub fn scratch_at<'a>(place: u32) -> Option<&'a mut Scratch> {
    // SAFETY: the only reference on this CPU until the program ends, see `scratch` and `enter`.
    SCRATCH.get_ptr_mut(place).map(|scratch| unsafe { &mut *scratch })
}

/// Takes a place to work for what a socket sends, until [`leave`]: softirqs are on there, and where the kernel preempts itself
/// processes come in between, too, in any order. Returns its number; none where all are taken.
#[inline(always)]
pub fn enter() -> Option<u32> {
    // SAFETY: a helper without arguments; no program changes its CPU.
    let places = PLACES.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })?;
    // SAFETY: a field of a value that a lookup returned.
    let guard = unsafe { &raw mut (*places).lock };
    // SAFETY: as above.
    let taken = unsafe { &raw mut (*places).taken };
    // SAFETY: unlocked before anything else is called.
    unsafe { lock(guard) };
    // SAFETY: a field of the value; volatile, to stay where the lock is held.
    let before = unsafe { core::ptr::read_volatile(taken) };
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(taken, before | before.wrapping_add(1)) };
    // SAFETY: locked above.
    unsafe { unlock(guard) };
    // The lowest bit that was not set, without branches: the verifier would go on with each. Bits beyond stay set, and mean nothing.
    let place = (before.wrapping_add(1) & !before).wrapping_sub(1).count_ones();
    if place < NESTED { Some(place + 1) } else { None }
}

/// Gives a place back.
#[inline(always)]
pub fn leave(place: u32) {
    // SAFETY: as in `enter`.
    let Some(places) = PLACES.get_ptr_mut(unsafe { bpf_get_smp_processor_id() }) else {
        return;
    };
    // SAFETY: as in `enter`.
    let guard = unsafe { &raw mut (*places).lock };
    // SAFETY: as in `enter`.
    let taken = unsafe { &raw mut (*places).taken };
    let held = 1u32.wrapping_shl(place.wrapping_sub(1));
    // SAFETY: as in `enter`.
    unsafe { lock(guard) };
    // SAFETY: as in `enter`.
    let before = unsafe { core::ptr::read_volatile(taken) };
    // SAFETY: as in `enter`.
    unsafe { core::ptr::write_volatile(taken, before & !held) };
    // SAFETY: as in `enter`.
    unsafe { unlock(guard) };
}

/// Counts a packet under a rule.
#[inline(always)]
pub fn count_rule(counter: u32, bytes: u32) {
    if let Some(stats) = RULE_STATS.get_ptr_mut(counter) {
        count(stats, bytes);
    }
}

/// Counts a packet under its verdict.
#[inline(always)]
pub fn count_verdict(cell: u32, bytes: u32) {
    if let Some(stats) = VERDICTS.get_ptr_mut(cell) {
        count(stats, bytes);
    }
}

/// Counts a flow that found its endpoint's table full.
#[inline(always)]
pub fn count_flow_refused() {
    if let Some(budget) = cpu_state() {
        // SAFETY: a per-CPU value that a lookup returned; programs do not preempt each other on a CPU.
        unsafe { (*budget).flows_refused += 1 };
    }
}

#[inline(always)]
fn count(stats: *mut Stats, bytes: u32) {
    // SAFETY: a per-CPU value that a lookup returned; programs do not preempt each other on a CPU.
    unsafe { (*stats).packets += 1 };
    // SAFETY: as above.
    unsafe { (*stats).bytes += u64::from(bytes) };
}

/// True if the node drops nothing. In the asking load too it tells what would come of the packet.
#[inline(always)]
pub fn is_audit() -> bool {
    NODE_STATE.get(0).is_some_and(|state| state.mode == MODE_AUDIT)
}

/// This CPU's state.
#[inline(always)]
pub fn cpu_state() -> Option<*mut CpuState> {
    CPU_STATE.get_ptr_mut(0)
}

/// Sends an event; false if the ring is full. Who reads the ring is woken at once if told so or if much waits there, and
/// looks by itself after `EVENT_DELAY_MS`: to be woken for each costs a new connection a third of its time. It is made where it is
/// read, for the stack.
#[inline(always)]
pub fn send(at_once: bool, event: impl FnOnce() -> Event) -> bool {
    // SAFETY: the map's own pointer, as its other methods pass it.
    let waiting = unsafe {
        bpf_ringbuf_query(core::ptr::from_ref(&EVENTS).cast_mut().cast(), BPF_RB_AVAIL_DATA.into())
    };
    let flags = if at_once || waiting >= u64::from(EVENT_WAKE_BYTES) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    let Some(mut place) = EVENTS.reserve(0) else {
        return false;
    };
    place.write(event());
    place.submit(flags.into());
    true
}

/// Nanoseconds of the monotonic clock, to a tick's precision where the kernel has the coarse clock.
#[inline(always)]
pub fn clock() -> u64 {
    // SAFETY: a static of this object; volatile because the loader sets it before the kernel freezes it.
    let fine = unsafe { core::ptr::read_volatile(&raw const FINE_CLOCK) };
    if fine != 0 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    } else {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}

/// The maps as the judgement sees them.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn ruleset(&self, id: u32) -> Option<&Ruleset> {
        RULESETS.get(id)
    }

    #[inline(always)]
    fn peer(&self, bank: u32, addr: &Addr) -> Option<PeerWord> {
        let word = PEERS.get(bank)?.get_ptr(addr)?;
        let (class, tag) = split(load_word(word.cast()));
        Some(PeerWord { class, tag })
    }

    #[inline(always)]
    fn prefix(&self, bank: u32, addr: &Addr) -> Option<PeerWord> {
        let word = core::ptr::from_ref(PREFIXES.get(bank)?.get(&Key::new(128, addr.bytes))?);
        let (class, tag) = split(load_word(word.cast()));
        Some(PeerWord { class, tag })
    }

    #[inline(always)]
    fn peer_row(&self, key: &PeerRowKey) -> Option<PeerRowWord> {
        let word = PEER_ROWS.get_ptr(key)?;
        let (row, tag) = split(load_word(word.cast()));
        Some(PeerRowWord { row, tag })
    }

    #[inline(always)]
    fn row(&self, id: u32) -> Option<&Row> {
        ROWS.get(id)
    }

    #[inline(always)]
    fn port_range(&self, index: u32) -> Option<PortRange> {
        PORT_RANGES.get(index).copied()
    }

    #[inline(always)]
    fn rule(&self, index: u32) -> Option<Rule> {
        RULES.get(index).copied()
    }
}

impl Flows for Maps {
    type Handle = *mut FlowEntry;

    #[inline(always)]
    fn find(&self, slot: u32, key: &FlowKey) -> Option<Self::Handle> {
        if is_probe() {
            return None;
        }
        let flows = FLOWS.get(slot)?;
        match flows.get_ptr_mut(key) {
            None => moved(slot, key),
            found => found,
        }
    }

    #[inline(always)]
    fn deciding(&self, flow: Self::Handle) -> (u32, u32) {
        split(load_word(flow.cast()))
    }

    #[inline(always)]
    fn age(&self, flow: Self::Handle) -> (u32, u32) {
        // SAFETY: the second word of a value of three.
        split(load_word(unsafe { flow.cast::<u64>().add(1) }))
    }

    #[inline(always)]
    fn renew(&self, flow: Self::Handle, stamp: u32, tag: u32) {
        store_word(flow.cast(), join(stamp, tag));
    }

    #[inline(always)]
    fn touch(&self, flow: Self::Handle, seen: u32, state: u32) {
        // SAFETY: the second word of a value of three.
        store_word(unsafe { flow.cast::<u64>().add(1) }, join(seen, state));
    }

    #[inline(always)]
    fn passed(&self, flow: Self::Handle) -> (u32, u32) {
        // SAFETY: the third word of a value of three.
        split(load_word(unsafe { flow.cast::<u64>().add(2) }))
    }

    #[inline(always)]
    fn pass(&self, flow: Self::Handle, passed: u32, total: u32) {
        // SAFETY: the third word of a value of three.
        store_word(unsafe { flow.cast::<u64>().add(2) }, join(passed, total));
    }

    #[inline(always)]
    fn insert(&self, slot: u32, key: &FlowKey, entry: &FlowEntry) {
        if !is_probe() {
            insert(slot, key, entry);
        }
    }

    #[inline(always)]
    fn remove(&self, slot: u32, key: &FlowKey) {
        if is_probe() {
            return;
        }
        if let Some(before) = FLOWS_BEFORE.get(slot) {
            let _ = before.remove(key);
        }
        if let Some(flows) = FLOWS.get(slot)
            && flows.remove(key).is_ok()
        {
            count_flow(slot, key.kind == FLOW_KIND_FRAGMENTS_INGRESS, u64::MAX);
        }
    }
}

/// Takes a flow along from the table that its endpoint is growing out of.
#[inline(never)]
fn moved(slot: u32, key: &FlowKey) -> Option<*mut FlowEntry> {
    let entry = FLOWS_BEFORE.get(slot)?.get_ptr_mut(key)?;
    let flows = FLOWS.get(slot)?;
    // SAFETY: a value that a lookup returned; copied by the kernel.
    let _ = flows.insert(key, unsafe { *entry }, NEW_ONLY);
    // Where the larger one is full already it stays where it is.
    flows.get_ptr_mut(key).or(Some(entry))
}

/// Makes an entry, or replaces the one that is there; without room it makes none, and counts that. Returns nothing of
/// meaning: a function of its own has to return a number.
#[inline(never)]
fn insert(slot: u32, key: &FlowKey, entry: &FlowEntry) -> u32 {
    let ingress = entry.tag & FLOW_OPENED_INGRESS != 0;
    let Some(flows) = FLOWS.get(slot) else {
        return 0;
    };
    let (made, gone) = (FLOWS_MADE.get(slot), FLOWS_GONE.get(slot));
    let (Some(room), Some(made), Some(gone)) = (FLOWS_ROOM.get(slot), made, gone) else {
        return 0;
    };
    let there = made.less(*gone);
    let taken = there.ingress.wrapping_add(there.egress);
    if ingress && there.ingress >= room.most_ingress.into() {
        count_flow_refused();
        return 0;
    }
    if flows.insert(key, entry, NEW_ONLY).is_ok() {
        count_flow(slot, ingress, 1);
        if room.told == 0
            && taken.wrapping_add(1) >= u64::from(room.capacity / 2)
            && let Some(room) = FLOWS_ROOM.get_ptr_mut(slot)
        {
            // SAFETY: a value that a lookup returned.
            unsafe { (*room).told = 1 };
            report::half_full(slot);
        }
    } else if flows.insert(key, entry, THERE_ONLY).is_err() {
        count_flow_refused();
    }
    0
}

/// Adds to the entries that a slot's table has. The target has no atomic addition in `core`: two CPUs can lose a count,
/// and the agent sets it right each time that it goes through the table.
#[inline(always)]
fn count_flow(slot: u32, ingress: bool, number: u64) {
    if let Some(made) = FLOWS_MADE.get_ptr_mut(slot) {
        let cell = if ingress {
            // SAFETY: a value that a lookup returned.
            unsafe { &raw mut (*made).ingress }
        } else {
            // SAFETY: as above.
            unsafe { &raw mut (*made).egress }
        };
        store_word(cell, load_word(cell).wrapping_add(number));
    }
}

/// Whether this node translates what is sent there: a function of its own, for its stack; numbers in, a number out.
#[inline(never)]
fn leads_on(remote: &Addr, protocol: u32, port: u32) -> u32 {
    let Some((word, bit)) = node_port(protocol as u8, port as u16) else {
        return 0;
    };
    if NODE_PORTS.get_ptr(word).is_none_or(|bits| load_word(bits) & bit == 0) {
        return 0;
    }
    let tag = remote.hash();
    // A miss, and a word that is another's by now, is confirmed.
    let is_ours = || NODE_ADDRS.get_ptr(remote).is_some_and(|word| split(load_word(word.cast())).0 == tag);
    u32::from(is_ours() || is_ours())
}

impl Environment for Maps {
    #[inline(always)]
    fn config(&self, slot: u32) -> Option<&EndpointConfig> {
        ENDPOINT_CFG.get(slot)
    }

    #[inline(always)]
    fn endpoint(&self, slot: u32) -> Option<EndpointWord> {
        let word = ENDPOINTS.get_ptr(slot)?;
        let (rulesets, generation) = split(load_word(word.cast()));
        Some(EndpointWord { ingress: rulesets as u16, egress: (rulesets >> 16) as u16, generation })
    }

    #[inline(always)]
    fn epoch(&self, cell: u32) -> u32 {
        EPOCHS.get(cell).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn prefix_epoch(&self) -> u32 {
        NODE_STATE.get(0).map_or(0, |state| state.prefix_epoch)
    }

    #[inline(always)]
    fn is_audit(&self) -> bool {
        is_audit()
    }

    #[inline(always)]
    fn delivers(&self) -> bool {
        !is_probe() && NODE_STATE.get(0).is_some_and(|state| state.services == SERVICES_DELIVERED)
    }

    #[inline(always)]
    fn is_node_port(&self, remote: &Addr, protocol: u8, port: u16) -> bool {
        leads_on(remote, protocol.into(), port.into()) != 0
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: a static of this object; volatile because the loader sets it before the kernel freezes it.
        let tick = unsafe { core::ptr::read_volatile(&raw const TICK) };
        // SAFETY: as above.
        let first = unsafe { core::ptr::read_volatile(&raw const FIRST_TICK) };
        // SAFETY: a helper without arguments.
        let ticks = unsafe { bpf_jiffies64() };
        (ticks.wrapping_sub(first).wrapping_mul(tick) >> 32) as u32
    }

    #[inline(always)]
    fn by_tuple(&self, work: &mut Work, at: At) -> Packed {
        globals::by_tuple(work, at)
    }

    #[inline(always)]
    fn existing(&self, work: &mut Work, at: At) -> Packed {
        globals::existing(work, at)
    }

    #[inline(always)]
    fn ahead(&self, work: &Work, verdict: Packed) -> Packed {
        globals::ahead(work, verdict)
    }

    #[inline(always)]
    fn decide(&self, remote: &Addr, ruleset: u16, protocol: u8, port: u16) -> Packed {
        globals::decide(remote, ruleset, protocol, port)
    }
}

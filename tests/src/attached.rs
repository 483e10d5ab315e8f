//! The attached kind of load with maps of its own: finds endpoints by device, keeps flows, counts and reports as
//! on a node. Packets come from real devices or, by `BPF_PROG_TEST_RUN`, from a caller. No pins.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapInfo, PerCpuArray, RingBuf};
use aya::programs::links::LinkOrder;
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunOptions};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use portcullis_agent::attach::{Programs, cgroup};
use portcullis_agent::bpf::load::{self, EMPTY, HOST_IN, HOST_OUT, POD_EGRESS, POD_INGRESS, Purpose};
use portcullis_agent::bpf::{Kernel, network_cookie};
use portcullis_agent::mark::MarkMask;
use portcullis_common::event::{Action, Direction, Outcome, Reason, verdict_cell};
use portcullis_common::flow::ESTABLISHED_SECONDS;
use portcullis_common::wire::{
    DEFAULT_FLOWS, ENDPOINT_HOST, ENDPOINT_UNBOUND, ENDPOINT_USED, EndpointConfig, EndpointWord, FIRST_FLOWS,
    FlowEntry, FlowKey, FlowRoom, HOST_ON, HostState, SERVICES_DELIVERED,
};
use portcullis_policy::answer::pod_config;
use portcullis_policy::desired::{Desired, EndpointRulesets};
use portcullis_policy::diff::diff;
use portcullis_policy::model::{Cluster, ObjectKey};
use portcullis_policy::select::Directory;
use zerocopy::FromBytes as _;

/// Bytes of `struct __sk_buff` that are passed, up to and with `cb`.
const CONTEXT_BYTES: usize = 68;
/// Where the mark stands in it, ...
const MARK: usize = 8;
/// ... where the device that a packet came from stands in it (a test run takes it since Linux 5.15).
const INGRESS_IFINDEX: usize = 36;
/// Where the hook's device stands in it (since Linux 5.10).
const IFINDEX: usize = 40;
/// What the program returns for "allowed" and for "denied".
const PASS: u32 = u32::MAX;
const DROP: u32 = 2;

/// `BPF_F_NO_PREALLOC` of include/uapi/linux/bpf.h.
const NO_PREALLOC: u32 = 1;

/// An endpoint's table of flows.
pub type FlowTable = HashMap<MapData, [u8; size_of::<FlowKey>()], [u8; size_of::<FlowEntry>()]>;

/// A load.
pub struct Attached {
    kernel: Kernel,
    ebpf: Ebpf,
    /// Packets and bytes by cell.
    verdicts: PerCpuArray<MapData, [u64; 2]>,
    events: RingBuf<MapData>,
    links: Vec<SchedClassifierLink>,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

/// Where a packet is put to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Seen from the pod.
    pub direction: Direction,
    /// The device at whose hook the program stands; it must exist in this network namespace.
    pub ifindex: u32,
    /// The device that the packet came from, 0 for none. Not before Linux 5.15.
    pub came_from: u32,
}

/// What a test run says.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// What the program did with the packet the last time.
    pub action: Action,
    /// What the thread's CPU clock says of the whole call. The kernel gives whole nanoseconds a packet, which
    /// is coarse for a program that takes five; over many packets the call's own cost vanishes.
    pub time: Duration,
    /// Whole nanoseconds a packet, by the kernel.
    pub kernel: Duration,
}

/// Where an endpoint stands, for [`Attached::write_at`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Whose configuration and rulesets it has. Several may be the same pod's.
    pub pod: ObjectKey,
    /// The device.
    pub ifindex: u32,
    /// Entries that its flow table has room for.
    pub flows: u32,
}

/// What a program has taken so far, while the kernel counted.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// How often it ran.
    pub runs: u64,
    /// How long.
    pub time: Duration,
}

impl Attached {
    /// Loads the programs.
    pub fn load() -> Result<Self> {
        let (kernel, mut ebpf) = Kernel::private(Purpose::Attach, 0)?;
        load::classifier(&mut ebpf, EMPTY)?.load().context("loading the empty program")?;
        let map = ebpf.take_map("verdicts").context("the object has no map verdicts")?;
        let events = ebpf.take_map("events").context("the object has no map events")?;
        let (verdicts, events) = (PerCpuArray::try_from(map)?, RingBuf::try_from(events)?);
        Ok(Self { kernel, ebpf, verdicts, events, links: Vec::new() })
    }

    /// The host firewall with the node of the calling thread's namespace as its only endpoint, of these rulesets; attached to this
    /// root of cgroups.
    pub fn guard(&mut self, root: &cgroup::Root, rulesets: EndpointRulesets) -> Result<()> {
        const NODE: u32 = 0;
        let EndpointRulesets { ingress, egress } = rulesets;
        let generation = u32::from(ingress) + 1;
        let flags = ENDPOINT_USED | ENDPOINT_UNBOUND | ENDPOINT_HOST;
        let config = EndpointConfig { flags, ..EndpointConfig::default() };
        let word = EndpointWord { ingress, egress, generation };
        if self.kernel.host_state()?.flags == 0 {
            self.kernel.add_endpoint(NODE, config, word, DEFAULT_FLOWS)?;
        } else {
            self.kernel.flip(NODE, word)?;
        }
        for (direction, name) in [(Direction::Ingress, HOST_IN), (Direction::Egress, HOST_OUT)] {
            root.bring(direction, load::loaded(&mut self.ebpf, name)?)?;
        }
        let network = network_cookie().context("asking for the network namespace")?;
        let state = HostState { flags: HOST_ON, node: NODE, unknown: NODE, network, ..HostState::default() };
        Ok(self.kernel.set_host_state(state)?)
    }

    /// Of all CPUs, how many places are taken by what sockets send ([`Attached::guard`]).
    pub fn places_taken(&mut self) -> Result<u32> {
        // Of `Places` in ebpf/src/tables.rs: its size, and where `taken` is.
        const PLACES: usize = 64;
        const TAKEN: std::ops::Range<usize> = 4..8;
        let ids = load::of_cgroup(&mut self.ebpf, HOST_OUT)?.info()?.map_ids()?.unwrap_or_default();
        let places = map_of(&ids, "places")?;
        let places: Array<MapData, [u8; PLACES]> = Array::try_from(Map::Array(places))?;
        let mut taken = 0;
        for place in places.iter() {
            let place = place.context("reading places")?;
            let word = place.get(TAKEN).and_then(|word| word.try_into().ok()).context("a place's size")?;
            taken += u32::from_ne_bytes(word).count_ones();
        }
        Ok(taken)
    }

    /// Writes compiled tables, and endpoints behind devices. To be called once.
    pub fn write(&mut self, cluster: &Cluster, desired: &Desired, at: &[(ObjectKey, u32)]) -> Result<()> {
        let seat = |(pod, ifindex): &(ObjectKey, u32)| Seat {
            pod: pod.clone(),
            ifindex: *ifindex,
            flows: FIRST_FLOWS,
        };
        self.write_at(cluster, desired, &at.iter().map(seat).collect::<Vec<_>>())
    }

    /// The same, with flow tables of other sizes. The place in the list is the endpoint's slot.
    pub fn write_at(&mut self, cluster: &Cluster, desired: &Desired, at: &[Seat]) -> Result<()> {
        let empty = Desired { bank: desired.bank, ..Desired::default() };
        let plan = diff(&empty, desired);
        for op in plan.before.iter().chain(&plan.after) {
            self.kernel.apply(op)?;
        }
        let directory = Directory::new(cluster);
        for (slot, Seat { pod, ifindex, flows }) in (0u32..).zip(at) {
            let rulesets = desired.endpoints.get(pod).copied().unwrap_or(EndpointRulesets::CLOSED);
            let config = EndpointConfig { ifindex: *ifindex, ..pod_config(&directory, pod) };
            let word = EndpointWord { ingress: rulesets.ingress, egress: rulesets.egress, generation: 1 };
            self.kernel.add_endpoint(slot, config, word, DEFAULT_FLOWS.max(*flows))?;
            self.make_room(slot, *flows)?;
            self.kernel.lead_to(config.ifindex, slot)?;
        }
        Ok(())
    }

    /// An empty table with room for all its flows at once, where the first one has not: nobody is here who would let
    /// it grow.
    fn make_room(&mut self, slot: u32, flows: u32) -> Result<()> {
        if flows == FIRST_FLOWS {
            return Ok(());
        }
        let table = FlowTable::create(flows, NO_PREALLOC).context("making a flow table")?;
        let tables = Map::ArrayOfMaps(self.map("flows")?);
        let mut tables: ArrayOfMaps<MapData, FlowTable> = ArrayOfMaps::try_from(tables)?;
        tables.set(slot, &table, 0).context("writing flows")?;
        let rooms = Map::Array(self.map("flows_room")?);
        let mut rooms: Array<MapData, [u8; size_of::<FlowRoom>()]> = Array::try_from(rooms)?;
        let room = rooms.get(&slot, 0).context("reading flows_room")?;
        let room = FlowRoom::read_from_bytes(&room).ok().context("the size of a flow table's room")?;
        let room: [u8; size_of::<FlowRoom>()] = zerocopy::transmute!(FlowRoom { capacity: flows, ..room });
        rooms.set(slot, room, 0).context("writing flows_room")
    }

    /// The table of a slot's flows, opened again: keys and values as the kernel holds them.
    pub fn flow_table(&mut self, slot: u32) -> Result<FlowTable> {
        let tables = Map::ArrayOfMaps(self.map("flows")?);
        let tables: ArrayOfMaps<MapData, FlowTable> = ArrayOfMaps::try_from(tables)?;
        tables.get(&slot, 0).with_context(|| format!("opening the flow table of slot {slot}"))
    }

    /// A map of the programs, opened again by its name.
    pub fn map(&mut self, name: &str) -> Result<MapData> {
        let ids = load::classifier(&mut self.ebpf, POD_EGRESS)?.info()?.map_ids()?.unwrap_or_default();
        map_of(&ids, name)
    }

    /// Hangs the program for packets from a pod at a device's TC ingress, behind the empty one. TCX, so Linux 6.6.
    pub fn attach_beside_empty(&mut self, device: &str) -> Result<()> {
        self.hang(EMPTY, device, TcAttachType::Ingress)?;
        self.hang(POD_EGRESS, device, TcAttachType::Ingress)
    }

    /// Hangs both programs at the host side of a pod's veth pair. TCX, so Linux 6.6.
    pub fn attach(&mut self, device: &str) -> Result<()> {
        self.hang(POD_EGRESS, device, TcAttachType::Ingress)?;
        self.hang(POD_INGRESS, device, TcAttachType::Egress)
    }

    /// Takes down what hangs.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    fn hang(&mut self, name: &str, device: &str, side: TcAttachType) -> Result<()> {
        let program = load::classifier(&mut self.ebpf, name)?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::last());
        let id = program
            .attach_with_options(device, side, order)
            .with_context(|| format!("attaching {name} to {device}"))?;
        self.links.push(program.take_link(id)?);
        Ok(())
    }

    /// Forgets a slot's flows, as if they had been silent for too long.
    pub fn forget_flows(&mut self, slot: u32) -> Result<()> {
        let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the clock")?.into();
        let later = u32::try_from(now.as_secs())? + 2 * ESTABLISHED_SECONDS;
        self.kernel.flow_tables.expire(slot, later)?;
        Ok(())
    }

    /// What the program for packets from a pod, and the empty one, have taken while the kernel counted
    /// (`BPF_ENABLE_STATS`).
    pub fn costs(&mut self) -> Result<[Cost; 2]> {
        let mut of = |name| -> Result<Cost> {
            let info = load::classifier(&mut self.ebpf, name)?.info()?;
            Ok(Cost { runs: info.run_count(), time: info.run_time() })
        };
        Ok([of(POD_EGRESS)?, of(EMPTY)?])
    }

    /// Flows that found their table full.
    pub fn flows_refused(&self) -> Result<u64> {
        Ok(self.kernel.flows_refused()?)
    }

    /// The programs, to be attached.
    pub fn programs(&mut self) -> Result<Programs<'_>> {
        Ok(load::programs(&mut self.ebpf)?)
    }

    /// Packets under a verdict so far, all CPUs.
    pub fn packets(&self, direction: Direction, action: Action, reason: Reason) -> Result<u64> {
        let outcome = match action {
            Action::Allow => Outcome::Allow,
            Action::Deny => Outcome::Deny,
        };
        let values = self.verdicts.get(&verdict_cell(direction, outcome, reason), 0)?;
        Ok(values.iter().map(|[packets, _]| packets).sum())
    }

    /// Takes the events that are in the ring; returns how many.
    pub fn drain(&mut self) -> u64 {
        let mut events = 0;
        while self.events.next().is_some() {
            events += 1;
        }
        events
    }

    /// Waits for events, for so long at most, and takes those that are there.
    pub fn read_events(&mut self, patience: Duration) -> Result<u64> {
        // SAFETY: the ring is open for as long as the load is borrowed.
        let ring = unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) };
        let patience = PollTimeout::try_from(patience).context("waiting so long for events")?;
        poll(&mut [PollFd::new(ring, PollFlags::POLLIN)], patience).context("waiting for events")?;
        Ok(self.drain())
    }

    /// Puts a frame to a program, `repeat` times in one call.
    pub fn run(&mut self, at: Place, frame: &[u8], repeat: u32) -> Result<Ran> {
        let name = program_of(at.direction);
        test_run(load::classifier(&mut self.ebpf, name)?, at, frame, repeat)
            .with_context(|| format!("BPF_PROG_TEST_RUN of {name}"))
    }

    /// The same of a frame whose packet bears a mark.
    pub fn run_marked(&mut self, at: Place, frame: &[u8], mark: u32, repeat: u32) -> Result<Ran> {
        let name = program_of(at.direction);
        marked_run(load::classifier(&mut self.ebpf, name)?, at, frame, mark, repeat)
            .with_context(|| format!("BPF_PROG_TEST_RUN of {name}"))
    }

    /// From here on packets are judged again where they are delivered, as on a node whose devices all have programs.
    pub fn deliver(&mut self) -> Result<()> {
        self.kernel.set_mark(MarkMask::default())?;
        Ok(self.kernel.set_services(SERVICES_DELIVERED)?)
    }

    /// Puts a frame to a program that does nothing.
    pub fn run_empty(&mut self, at: Place, frame: &[u8], repeat: u32) -> Result<Ran> {
        test_run(load::classifier(&mut self.ebpf, EMPTY)?, at, frame, repeat)
            .with_context(|| format!("BPF_PROG_TEST_RUN of {EMPTY}"))
    }
}

fn map_of(ids: &[u32], name: &str) -> Result<MapData> {
    for id in ids {
        if MapInfo::from_id(*id)?.name_as_str() == Some(name) {
            return MapData::from_id(*id).with_context(|| format!("opening map {name}"));
        }
    }
    bail!("the programs have no map {name}")
}

const fn program_of(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => POD_INGRESS,
        Direction::Egress => POD_EGRESS,
    }
}

/// Puts a frame to a program, `repeat` times in one call; of the network namespace of the calling thread.
pub fn test_run(program: &SchedClassifier, at: Place, frame: &[u8], repeat: u32) -> Result<Ran> {
    marked_run(program, at, frame, 0, repeat)
}

fn marked_run(program: &SchedClassifier, at: Place, frame: &[u8], mark: u32, repeat: u32) -> Result<Ran> {
    let mut context = [0u8; CONTEXT_BYTES];
    for (offset, value) in [(MARK, mark), (INGRESS_IFINDEX, at.came_from), (IFINDEX, at.ifindex)] {
        if let Some(place) = context.get_mut(offset..offset + 4) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
    }
    let options =
        TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), repeat, ..TestRunOptions::default() };
    let begin = cpu_time()?;
    let result = program.test_run(options)?;
    let time = cpu_time()?.saturating_sub(begin);
    let action = match result.return_value {
        PASS => Action::Allow,
        DROP => Action::Deny,
        other => bail!("the program returned {other}"),
    };
    Ok(Ran { action, time, kernel: result.duration })
}

/// What this thread has used of a CPU: time in which others ran does not count.
fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("reading the thread's CPU clock")?.into())
}

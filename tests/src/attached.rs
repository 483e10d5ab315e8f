//! The attached kind of load with maps of its own: finds endpoints by device, keeps flows, counts and reports as
//! on a node. Packets come from real devices or, by `BPF_PROG_TEST_RUN`, from a caller. No pins.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use nix::time::{ClockId, clock_gettime};
use portcullis_agent::attach::Programs;
use portcullis_agent::bpf::Kernel;
use portcullis_agent::bpf::load::{self, EMPTY, POD_EGRESS, POD_INGRESS, Purpose};
use portcullis_common::event::{Action, Direction, Outcome, Reason, verdict_cell};
use portcullis_common::wire::{DEFAULT_FLOWS, EndpointConfig, EndpointWord};
use portcullis_policy::answer::pod_config;
use portcullis_policy::desired::{Desired, EndpointRulesets};
use portcullis_policy::diff::diff;
use portcullis_policy::model::{Cluster, ObjectKey};
use portcullis_policy::select::Directory;

/// Bytes of `struct __sk_buff` that are passed, up to and with `cb`.
const CONTEXT_BYTES: usize = 68;
/// Where the device that a packet came from stands in it (a test run takes it since Linux 5.15).
const INGRESS_IFINDEX: usize = 36;
/// Where the hook's device stands in it (since Linux 5.10).
const IFINDEX: usize = 40;
/// What the program returns for "allowed" and for "denied".
const PASS: u32 = u32::MAX;
const DROP: u32 = 2;

/// A load.
pub struct Attached {
    kernel: Kernel,
    ebpf: Ebpf,
    /// Packets and bytes by cell.
    verdicts: PerCpuArray<MapData, [u64; 2]>,
    events: RingBuf<MapData>,
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

impl Attached {
    /// Loads the programs.
    pub fn load() -> Result<Self> {
        let (kernel, mut ebpf) = Kernel::private(Purpose::Attach, 0)?;
        load::classifier(&mut ebpf, EMPTY)?.load().context("loading the empty program")?;
        let map = ebpf.take_map("verdicts").context("the object has no map verdicts")?;
        let events = ebpf.take_map("events").context("the object has no map events")?;
        let (verdicts, events) = (PerCpuArray::try_from(map)?, RingBuf::try_from(events)?);
        Ok(Self { kernel, ebpf, verdicts, events })
    }

    /// Writes compiled tables, and endpoints behind devices. To be called once.
    pub fn write(&mut self, cluster: &Cluster, desired: &Desired, at: &[(ObjectKey, u32)]) -> Result<()> {
        let empty = Desired { bank: desired.bank, ..Desired::default() };
        let plan = diff(&empty, desired);
        for op in plan.before.iter().chain(&plan.after) {
            self.kernel.apply(op)?;
        }
        let directory = Directory::new(cluster);
        for (slot, (pod, ifindex)) in (0u32..).zip(at) {
            let rulesets = desired.endpoints.get(pod).copied().unwrap_or(EndpointRulesets::CLOSED);
            let config = EndpointConfig { ifindex: *ifindex, ..pod_config(&directory, pod) };
            let word = EndpointWord { ingress: rulesets.ingress, egress: rulesets.egress, generation: 1 };
            self.kernel.add_endpoint(slot, config, word, DEFAULT_FLOWS)?;
            self.kernel.lead_to(config.ifindex, slot)?;
        }
        Ok(())
    }

    /// The programs, to be attached.
    pub fn programs(&mut self) -> Result<Programs<'_>> {
        let (egress, ingress) = load::both(&mut self.ebpf)?;
        Ok(Programs { egress, ingress })
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

    /// Puts a frame to a program, `repeat` times in one call.
    pub fn run(&mut self, at: Place, frame: &[u8], repeat: u32) -> Result<Ran> {
        let name = match at.direction {
            Direction::Ingress => POD_INGRESS,
            Direction::Egress => POD_EGRESS,
        };
        test_run(load::classifier(&mut self.ebpf, name)?, at, frame, repeat)
            .with_context(|| format!("BPF_PROG_TEST_RUN of {name}"))
    }

    /// Puts a frame to a program that does nothing.
    pub fn run_empty(&mut self, at: Place, frame: &[u8], repeat: u32) -> Result<Ran> {
        test_run(load::classifier(&mut self.ebpf, EMPTY)?, at, frame, repeat)
            .with_context(|| format!("BPF_PROG_TEST_RUN of {EMPTY}"))
    }
}

/// Puts a frame to a program, `repeat` times in one call; of the network namespace of the calling thread.
pub fn test_run(program: &SchedClassifier, at: Place, frame: &[u8], repeat: u32) -> Result<Ran> {
    let mut context = [0u8; CONTEXT_BYTES];
    for (offset, value) in [(INGRESS_IFINDEX, at.came_from), (IFINDEX, at.ifindex)] {
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

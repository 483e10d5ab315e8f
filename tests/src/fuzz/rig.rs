//! A node to play sequences on: a network namespace and a bpffs of its own, devices where pods may be, and the agent's
//! reconciler, which compiles, writes, flips and adopts as on any node. Packets come by `BPF_PROG_TEST_RUN`. Owns the
//! kernel's side; what should come of it is [`super::script`]'s.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{ArrayOfMaps, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use portcullis_agent::attach::HookChoice;
use portcullis_agent::bpf::Pins;
use portcullis_agent::bpf::load::{POD_EGRESS, POD_INGRESS, classifier, kernel_release};
use portcullis_agent::reconcile::{Outcome, Reconciler};
use portcullis_common::event::{Direction as Way, Outcome as Came, Reason, verdict_cell};
use portcullis_lab::ip_batch;
use portcullis_oracle::Direction;
use portcullis_oracle::endpoint::Origin;
use portcullis_policy::model::{Cluster, Mode};
use portcullis_policy::sizes::Sizes;

use crate::device::{Veth, ip};

/// Devices that pods can be behind.
pub const DEVICES: usize = 4;

/// Bytes of `struct __sk_buff` that are passed, and where the devices stand in it.
const CONTEXT_BYTES: usize = 68;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
/// What the program returns for "allowed".
const PASS: u32 = u32::MAX;

/// A flow as the map has it: key and value, as words of the wire.
type FlowTable = HashMap<MapData, [u8; 24], [u32; 6]>;
/// The place of `seen` in the value.
const SEEN: usize = 2;

/// One entry of a flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The key's bytes.
    pub key: [u8; 24],
    /// The value's words.
    pub value: [u32; 6],
}

/// A node.
pub struct Rig {
    reconciler: Option<Reconciler>,
    pins: Pins,
    devices: Vec<Veth>,
    uplink: Veth,
    verdicts: PerCpuArray<MapData, [u64; 2]>,
    /// What the cells held when last looked at.
    counted: BTreeMap<u32, u64>,
    tables: ArrayOfMaps<MapData, FlowTable>,
    /// The slot behind each device.
    slots: Vec<Option<u32>>,
    /// Their tables of flows, as far as they are open: to open one takes a dozen calls.
    opened: Vec<Option<FlowTable>>,
    /// The addresses that lead to each device.
    led: Vec<Vec<IpAddr>>,
    /// What is in force.
    cluster: Option<Arc<Cluster>>,
    /// Goes last.
    _bpffs: Bpffs,
}

/// A bpffs at a directory of its own; both go with it.
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir(&at)?;
        let bpffs = Self(at);
        let none: Option<&str> = None;
        mount(Some("bpf"), &bpffs.0, Some("bpf"), MsFlags::empty(), none)?;
        Ok(bpffs)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // The namespaces end with the thread; the directory is everybody's. One that nothing was mounted at goes too.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        drop(fs::remove_dir(&self.0));
    }
}

impl std::fmt::Debug for Rig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rig").finish_non_exhaustive()
    }
}

impl Rig {
    /// Moves the calling thread, for good, to namespaces of its own, and makes a node there.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("making namespaces")?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let name = format!("portcullis-fuzz-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let bpffs = Bpffs::mount(std::env::temp_dir().join(name))?;
        ip(&["link", "set", "lo", "up"])?;
        let uplink = quiet("uplink")?;
        let devices: Vec<Veth> =
            (0..DEVICES).map(|number| quiet(&format!("pod{number}"))).collect::<Result<_>>()?;
        let pins = Pins::new(&bpffs.0);
        pins.prepare(&bpffs.0)?;
        let reconciler = open(&pins)?;
        let map = |name: &str| MapData::from_pin(pins.maps().join(name));
        let verdicts = PerCpuArray::try_from(Map::PerCpuArray(map("verdicts")?))?;
        let tables = ArrayOfMaps::try_from(Map::ArrayOfMaps(map("flows")?))?;
        let mut rig = Self {
            reconciler: Some(reconciler),
            pins,
            devices,
            uplink,
            verdicts,
            counted: BTreeMap::new(),
            tables,
            slots: vec![None; DEVICES],
            opened: (0..DEVICES).map(|_| None).collect(),
            led: vec![Vec::new(); DEVICES],
            cluster: None,
            _bpffs: bpffs,
        };
        rig.count_all()?;
        Ok(rig)
    }

    /// Leads addresses to the devices, and nowhere else.
    pub fn lead(&mut self, addresses: &[Vec<IpAddr>]) -> Result<()> {
        self.cluster = None;
        let mut lines = Vec::new();
        let mut say = |verb: &str, device: &Veth, addresses: &[IpAddr]| {
            for address in addresses {
                lines.push(format!("route {verb} {address} dev {}", device.name()));
            }
        };
        for (device, before) in self.devices.iter().zip(&self.led) {
            say("del", device, before);
        }
        self.led = addresses.iter().cloned().chain(std::iter::repeat(Vec::new())).take(DEVICES).collect();
        for (device, now) in self.devices.iter().zip(&self.led) {
            say("add", device, now);
        }
        if lines.is_empty() { Ok(()) } else { ip_batch(&lines) }
    }

    /// Brings enforcement to these objects, unless they are in force.
    pub fn reconcile(&mut self, cluster: &Arc<Cluster>) -> Result<()> {
        if self.cluster.as_ref().is_some_and(|in_force| Arc::ptr_eq(in_force, cluster)) {
            return Ok(());
        }
        self.cluster = Some(Arc::clone(cluster));
        self.opened.fill_with(|| None);
        let outcome = self.reconciler()?.reconcile(cluster)?;
        self.look(&outcome)
    }

    /// Frees what changes left behind.
    pub fn settle(&mut self) -> Result<()> {
        self.reconciler()?.settle()
    }

    /// Another agent takes over.
    pub fn restart(&mut self, cluster: &Arc<Cluster>) -> Result<()> {
        (self.reconciler, self.cluster) = (None, None);
        self.reconciler = Some(open(&self.pins)?);
        self.reconcile(cluster)
    }

    /// Removes flows that have been silent for too long; returns how many.
    pub fn expire(&mut self) -> Result<u64> {
        self.reconciler()?.expire_flows()
    }

    /// Every flow is older by so much: as if time had passed.
    pub fn age(&mut self, seconds: u32) -> Result<()> {
        for device in 0..DEVICES {
            let Some(table) = self.table(device)? else { continue };
            let entries: Vec<_> = table.iter().collect::<Result<_, _>>()?;
            for (key, mut value) in entries {
                value[SEEN] = value[SEEN].wrapping_sub(seconds);
                table.insert(key, value, 0)?;
            }
        }
        Ok(())
    }

    /// The flow table behind a device.
    pub fn entries(&mut self, device: usize) -> Result<Vec<Entry>> {
        let Some(table) = self.table(device)? else { return Ok(Vec::new()) };
        let mut entries: Vec<Entry> = table
            .iter()
            .map(|entry| entry.map(|(key, value)| Entry { key, value }))
            .collect::<Result<_, _>>()?;
        entries.sort_unstable();
        Ok(entries)
    }

    fn table(&mut self, device: usize) -> Result<Option<&mut FlowTable>> {
        let Some(slot) = self.slots.get(device).copied().flatten() else { return Ok(None) };
        let opened = self.opened.get_mut(device).context("a device")?;
        if opened.is_none() {
            *opened = Some(self.tables.get(&slot, 0)?);
        }
        Ok(opened.as_mut())
    }

    /// Puts a frame to the program at a device.
    pub fn put(&mut self, device: usize, direction: Direction, origin: Origin, frame: &[u8]) -> Result<bool> {
        let here = self.devices[device].index;
        let came_from = match origin {
            Origin::Pod => here,
            Origin::Node => 0,
            Origin::Elsewhere => self.uplink.index,
        };
        let mut context = [0_u8; CONTEXT_BYTES];
        for (at, value) in [(INGRESS_IFINDEX, came_from), (IFINDEX, here)] {
            context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let name = if direction == Direction::Egress { POD_EGRESS } else { POD_INGRESS };
        let program = classifier(self.reconciler()?.ebpf_mut(), name)?;
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::default() };
        match program.test_run(options).with_context(|| format!("BPF_PROG_TEST_RUN of {name}"))?.return_value
        {
            PASS => Ok(true),
            2 => Ok(false),
            other => bail!("{name} returned {other}"),
        }
    }

    /// True if a verdict was counted since the last look, with this reason.
    pub fn counted(&mut self, direction: Direction, passes: bool, reason: &str) -> Result<bool> {
        let Some(reason) = Reason::ALL.iter().copied().find(|one| one.name() == reason) else {
            return Ok(false);
        };
        let came = if passes { Came::Allow } else { Came::Deny };
        let cell = verdict_cell(way(direction), came, reason);
        let now = self.cell(cell)?;
        Ok(self.counted.insert(cell, now) != Some(now))
    }

    /// The verdicts that were counted since the last look.
    pub fn count_all(&mut self) -> Result<Vec<String>> {
        let mut news = Vec::new();
        for reason in Reason::ALL {
            for direction in [Way::Ingress, Way::Egress] {
                for came in Came::ALL {
                    let cell = verdict_cell(direction, came, *reason);
                    let now = self.cell(cell)?;
                    if self.counted.insert(cell, now).is_some_and(|before| before != now) {
                        news.push(format!("{} {came:?}", reason.name()));
                    }
                }
            }
        }
        Ok(news)
    }

    fn cell(&self, cell: u32) -> Result<u64> {
        Ok(self.verdicts.get(&cell, 0)?.iter().map(|[packets, _]| packets).sum())
    }

    fn look(&mut self, outcome: &Outcome) -> Result<()> {
        ensure!(outcome.complete, "not all is in force: {:?}", outcome.problems);
        for (slot, device) in self.slots.iter_mut().zip(&self.devices) {
            let here = outcome.endpoints.values().find(|enforced| enforced.config.ifindex == device.index);
            *slot = here.map(|enforced| enforced.slot);
        }
        Ok(())
    }

    fn reconciler(&mut self) -> Result<&mut Reconciler> {
        self.reconciler.as_mut().context("an agent that failed to start")
    }
}

fn open(pins: &Pins) -> Result<Reconciler> {
    let hook = HookChoice::Auto.resolve(kernel_release()?)?;
    Reconciler::open(pins, hook, FLOWS, Mode::Enforce, &Sizes::default())
}

/// Flows of an endpoint: many more than a sequence makes.
const FLOWS: u32 = 4_096;

/// A device from which the kernel itself says nothing.
fn quiet(name: &str) -> Result<Veth> {
    let veth = Veth::create(name)?;
    veth.silence()?;
    veth.up()?;
    Ok(veth)
}

/// Our word for the oracle's direction.
#[must_use]
pub fn way(direction: Direction) -> Way {
    match direction {
        Direction::Ingress => Way::Ingress,
        Direction::Egress => Way::Egress,
    }
}

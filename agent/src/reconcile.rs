//! From objects to enforcement: compiles, writes beside, flips, attaches, and settles behind. One thread at a
//! time; every step that fails leaves what was in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aya::Ebpf;
use nix::time::{ClockId, clock_gettime};
use portcullis_common::addr::Addr;
use portcullis_common::wire::{
    BANKS, EndpointConfig, EndpointWord, LINK_ETHERNET, LINK_IP, MAX_COUNTERS, MAX_ENDPOINT_ADDRS,
    MAX_ENDPOINTS, MAX_PEER_ROWS, MAX_PEERS, MAX_PORT_RANGES, MAX_PREFIXES, MAX_ROWS, MAX_RULES,
    MAX_RULESETS,
};
use portcullis_policy::answer::{endpoint_config, owned_addresses};
use portcullis_policy::compile::Compiler;
use portcullis_policy::desired::{CounterName, Desired, EndpointRulesets, ip_addr};
use portcullis_policy::diff::{MapOp, diff, released};
use portcullis_policy::model::{Cluster, ObjectKey, Problem, Severity};
use portcullis_policy::select::Directory;

use crate::attach::{Attacher, Hook, Interface, Programs, State, discover, plan};
use crate::bpf::counters::CounterNames;
use crate::bpf::load;
use crate::bpf::{Kernel, Pins};
use crate::metrics::Fill;

/// Rounds of settling after a change: contents, what they point at, and their numbers go one after another.
const SETTLE_ROUNDS: u32 = 6;
/// `ARPHRD_ETHER` of `include/uapi/linux/if_arp.h`.
const ARPHRD_ETHER: u16 = 1;

/// An endpoint that is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enforced {
    /// Its slot.
    pub slot: u32,
    /// What it is.
    pub config: EndpointConfig,
    /// Its rulesets and generation.
    pub word: EndpointWord,
}

/// What a reconciliation came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The pods that are enforced here, by slot.
    pub local: BTreeMap<ObjectKey, u32>,
    /// What is in force at each.
    pub endpoints: BTreeMap<ObjectKey, Enforced>,
    /// How full the tables are.
    pub fills: Vec<Fill>,
    /// What the counters count.
    pub counters: BTreeMap<u32, CounterName>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// True if everything that was wanted is in force.
    pub complete: bool,
}

/// A compilation: while its input is the same, there is nothing to do.
#[derive(Debug)]
struct Compiled {
    cluster: Arc<Cluster>,
    pods: BTreeSet<ObjectKey>,
    problems: Vec<Problem>,
}

/// Keeps the node's enforcement.
#[derive(Debug)]
pub struct Reconciler {
    kernel: Kernel,
    ebpf: Ebpf,
    names: CounterNames,
    attacher: Attacher,
    compiler: Compiler,
    /// The tables as they are known to be.
    written: Desired,
    /// The tables as they were last compiled.
    goal: Desired,
    endpoints: BTreeMap<ObjectKey, Enforced>,
    free: BTreeSet<u32>,
    retired: Vec<u32>,
    /// What the tables were compiled from, and what was wrong with it.
    compiled: Option<Compiled>,
    flows: u32,
    started: bool,
}

impl Reconciler {
    /// Opens the pins and takes over what is there.
    pub fn open(pins: &Pins, hook: Hook, flows: u32) -> anyhow::Result<Self> {
        let (kernel, mut ebpf) = Kernel::open(pins)?;
        let mut compiler = Compiler::new(kernel.bank());
        let names = CounterNames::open(&mut ebpf)?;
        for (counter, name) in names.all() {
            compiler.restore_counter(name.clone(), *counter);
        }
        let written = Desired { bank: kernel.bank(), ..Desired::default() };
        Ok(Self {
            kernel,
            ebpf,
            names,
            attacher: Attacher::new(hook, pins.links()),
            compiler,
            goal: written.clone(),
            written,
            endpoints: BTreeMap::new(),
            free: (0..MAX_ENDPOINTS).collect(),
            retired: Vec::new(),
            compiled: None,
            flows,
            started: false,
        })
    }

    /// The object, for its rings.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Brings enforcement to what these objects say. An error leaves what was in force before; pods that are
    /// new meanwhile are closed.
    pub fn reconcile(&mut self, cluster: &Arc<Cluster>) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome { complete: true, ..Outcome::default() };
        let interfaces = discover::interfaces_blocking()?;
        let directory = Directory::new(cluster);
        let wanted = wanted(&directory, &interfaces, &mut outcome.problems);
        let mut adopted = BTreeMap::new();
        if !self.started {
            adopted = self.adopt(&wanted)?;
        }
        self.drop_unwanted(&wanted)?;

        let compiled = self.compiled_for(cluster, wanted.keys().cloned().collect());
        let rulesets = if let Ok(problems) = &compiled {
            outcome.problems.extend_from_slice(problems);
            self.written.endpoints.clone()
        } else {
            let owned = |addr: &Addr| directory.owners.contains_key(&ip_addr(addr));
            for op in released(&self.written, owned).before {
                self.write(&op)?;
            }
            BTreeMap::new()
        };
        self.place(&wanted, &rulesets, &adopted)?;
        self.attach(&wanted, &mut outcome)?;
        if let Err(error) = compiled {
            return Err(error.context("the last complete policies stay in force, new pods are closed"));
        }
        if !self.started {
            self.kernel.grace_period()?;
            self.kernel.clear_other_banks()?;
            self.started = true;
        }
        outcome.local = self.endpoints.iter().map(|(key, e)| (key.clone(), e.slot)).collect();
        outcome.endpoints.clone_from(&self.endpoints);
        outcome.fills = self.fills();
        outcome.counters.clone_from(&self.written.counters);
        Ok(outcome)
    }

    /// Frees what the last change left behind. To be called when it is in force; takes some grace periods.
    pub fn settle(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        for _ in 0..SETTLE_ROUNDS {
            let after = diff(&self.written, &self.goal).after;
            if after.is_empty() && self.retired.is_empty() && !self.compiler.has_unused() {
                return Ok(());
            }
            self.kernel.grace_period()?;
            for op in &after {
                self.write(op)?;
            }
            for slot in std::mem::take(&mut self.retired) {
                self.kernel.free_slot(slot)?;
                self.free.insert(slot);
            }
            self.compiler.sweep();
            let keys: Vec<ObjectKey> = self.endpoints.keys().cloned().collect();
            self.compile_and_write(cluster, keys.iter())?;
            let rulesets = self.written.endpoints.clone();
            self.flip_changed(&rulesets)?;
        }
        Ok(())
    }

    /// Removes flows that have been silent for too long. Returns how many.
    pub fn expire_flows(&self) -> anyhow::Result<u64> {
        let now = u32::try_from(clock_gettime(ClockId::CLOCK_MONOTONIC)?.tv_sec()).unwrap_or(0);
        let mut removed = 0;
        for enforced in self.endpoints.values() {
            removed += self.kernel.expire_flows(enforced.slot, now)?;
        }
        Ok(removed)
    }

    /// How full the tables are that this agent writes: its bank's, by what is known to be written.
    fn fills(&self) -> Vec<Fill> {
        let written = &self.written;
        [
            ("endpoints", self.endpoints.len(), MAX_ENDPOINTS),
            ("rulesets", written.rulesets.len(), MAX_RULESETS / BANKS),
            ("rules", written.rules.len(), MAX_RULES / BANKS),
            ("rows", written.rows.len(), MAX_ROWS / BANKS),
            ("port_ranges", written.port_ranges.len(), MAX_PORT_RANGES / BANKS),
            ("peer_rows", written.peer_rows.len(), MAX_PEER_ROWS / BANKS),
            ("peers", written.peers.len(), MAX_PEERS),
            ("prefixes", written.prefixes.len(), MAX_PREFIXES),
            ("counter_names", self.names.all().len(), MAX_COUNTERS),
        ]
        .map(|(map, entries, capacity)| Fill { map, entries: entries as u64, capacity: u64::from(capacity) })
        .to_vec()
    }

    /// Events that were not sent, ever.
    pub fn lost_events(&self) -> anyhow::Result<u64> {
        Ok(self.kernel.lost_events()?)
    }

    /// Packets under a counter.
    pub fn hits(&self, counter: u32) -> anyhow::Result<u64> {
        Ok(self.kernel.rule_stats(counter)?.packets)
    }

    /// Compiles and writes, unless the tables are what these pods need already.
    fn compiled_for(
        &mut self,
        cluster: &Arc<Cluster>,
        pods: BTreeSet<ObjectKey>,
    ) -> anyhow::Result<Vec<Problem>> {
        if let Some(last) = &self.compiled
            && Arc::ptr_eq(&last.cluster, cluster)
            && last.pods == pods
        {
            return Ok(last.problems.clone());
        }
        self.compiled = None;
        let problems = self.compile_and_write(cluster, &pods)?;
        self.compiled = Some(Compiled { cluster: Arc::clone(cluster), pods, problems: problems.clone() });
        Ok(problems)
    }

    fn compile_and_write<'a>(
        &mut self,
        cluster: &Cluster,
        keys: impl IntoIterator<Item = &'a ObjectKey>,
    ) -> anyhow::Result<Vec<Problem>> {
        let (desired, problems) = self.compiler.compile(cluster, keys)?;
        for (counter, name) in &desired.counters {
            if self.names.name(*counter) != Some(name) {
                self.kernel.zero_counter(*counter)?;
                self.names.set(*counter, name)?;
            }
        }
        let plan = diff(&self.written, &desired);
        for op in &plan.before {
            self.write(op)?;
        }
        self.written.endpoints.clone_from(&desired.endpoints);
        self.written.counters.clone_from(&desired.counters);
        self.goal = desired;
        Ok(problems)
    }

    fn write(&mut self, op: &MapOp) -> anyhow::Result<()> {
        self.kernel.apply(op)?;
        op.apply(&mut self.written);
        Ok(())
    }

    /// Matches what the last agent left with what is wanted, so that flows live on.
    fn adopt(
        &mut self,
        wanted: &BTreeMap<ObjectKey, EndpointConfig>,
    ) -> anyhow::Result<BTreeMap<ObjectKey, Enforced>> {
        let found = self.kernel.found_endpoints()?;
        let ifaces = self.kernel.found_ifaces();
        let mut adopted = BTreeMap::new();
        for (key, config) in wanted {
            let slot = ifaces.get(&config.ifindex).copied();
            if let Some((slot, found)) = slot.and_then(|slot| found.get(&slot).map(|f| (slot, f)))
                && found.config == *config
            {
                adopted.insert(key.clone(), Enforced { slot, config: *config, word: found.word });
            }
        }
        let kept: BTreeSet<u32> = adopted.values().map(|e| e.slot).collect();
        for (ifindex, slot) in ifaces.iter().filter(|(_, slot)| !kept.contains(slot)) {
            self.kernel.forget_iface(*ifindex)?;
            tracing::debug!("interface {ifindex} had endpoint {slot} of a pod that is gone");
        }
        for slot in found.keys() {
            self.free.remove(slot);
            if !kept.contains(slot) {
                self.retired.push(*slot);
            }
        }
        Ok(adopted)
    }

    /// Pods that are gone, or are another pod now: their interface leads nowhere from here on.
    fn drop_unwanted(&mut self, wanted: &BTreeMap<ObjectKey, EndpointConfig>) -> anyhow::Result<()> {
        let gone: Vec<(ObjectKey, Enforced)> = self
            .endpoints
            .iter()
            .filter(|(key, enforced)| wanted.get(*key) != Some(&enforced.config))
            .map(|(key, enforced)| (key.clone(), *enforced))
            .collect();
        for (key, enforced) in gone {
            self.kernel.forget_iface(enforced.config.ifindex)?;
            self.retired.push(enforced.slot);
            self.endpoints.remove(&key);
        }
        Ok(())
    }

    /// Flips the endpoints that are there, and adds those that are new.
    fn place(
        &mut self,
        wanted: &BTreeMap<ObjectKey, EndpointConfig>,
        rulesets: &BTreeMap<ObjectKey, EndpointRulesets>,
        adopted: &BTreeMap<ObjectKey, Enforced>,
    ) -> anyhow::Result<()> {
        for (key, enforced) in adopted {
            self.endpoints.insert(key.clone(), *enforced);
        }
        if !rulesets.is_empty() {
            self.flip_changed(rulesets)?;
        }
        for (key, config) in wanted {
            if self.endpoints.contains_key(key) {
                continue;
            }
            let Some(slot) = self.free.pop_first() else {
                anyhow::bail!("Pod {key}: all {MAX_ENDPOINTS} endpoints are in use: its interface is closed");
            };
            let of = rulesets.get(key).copied().unwrap_or(EndpointRulesets::CLOSED);
            let word = EndpointWord { ingress: of.ingress, egress: of.egress, generation: 1 };
            self.kernel.add_endpoint(slot, *config, word, self.flows)?;
            self.endpoints.insert(key.clone(), Enforced { slot, config: *config, word });
        }
        Ok(())
    }

    fn flip_changed(&mut self, rulesets: &BTreeMap<ObjectKey, EndpointRulesets>) -> anyhow::Result<()> {
        for (key, enforced) in &mut self.endpoints {
            let Some(of) = rulesets.get(key) else {
                continue;
            };
            if (of.ingress, of.egress) != (enforced.word.ingress, enforced.word.egress) {
                let generation = enforced.word.generation.wrapping_add(1);
                let word = EndpointWord { ingress: of.ingress, egress: of.egress, generation };
                self.kernel.flip(enforced.slot, word)?;
                enforced.word = word;
            }
        }
        Ok(())
    }

    /// Attaches what is wanted, replaces what another load attached, keeps what stays on an interface whose
    /// pod is gone: there it drops everything.
    fn attach(
        &mut self,
        wanted: &BTreeMap<ObjectKey, EndpointConfig>,
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        let observed = self.attacher.observed()?;
        let mut interfaces: BTreeSet<u32> = wanted.values().map(|config| config.ifindex).collect();
        interfaces.extend(observed.iter().filter_map(|one| match one.state {
            State::Live { .. } => Some(one.slot.interface),
            State::Dead => None,
        }));
        let (egress, ingress) = load::both(&mut self.ebpf)?;
        let mut programs = Programs { egress, ingress };
        let ops = plan(self.attacher.hook(), &interfaces, &observed, programs.ids()?);
        if ops.is_empty() {
            return Ok(());
        }
        let report = self.attacher.apply(&ops, &mut programs);
        for (op, error) in &report.failed {
            outcome.complete = false;
            outcome.problems.push(Problem {
                severity: Severity::Error,
                object: "Node".to_owned(),
                field: String::new(),
                message: format!("{op}: {error}"),
                location: None,
            });
        }
        Ok(())
    }
}

/// The endpoints that should be here: live pods to one of whose addresses an interface of this network
/// namespace leads.
fn wanted(
    directory: &Directory<'_>,
    interfaces: &BTreeMap<std::net::IpAddr, Interface>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<ObjectKey, EndpointConfig> {
    let mut wanted = BTreeMap::new();
    let mut taken: BTreeMap<u32, ObjectKey> = BTreeMap::new();
    for (key, facts) in &directory.pods {
        let addresses = owned_addresses(directory, key);
        let Some(interface) =
            addresses.iter().find_map(|address| interfaces.get(address)).filter(|i| is_pods(i))
        else {
            continue;
        };
        let mut trouble = |message: String| {
            problems.push(Problem {
                severity: Severity::Error,
                object: format!("Pod {key}"),
                field: "status.podIPs".to_owned(),
                message,
                location: None,
            });
        };
        if let Some(other) = taken.insert(interface.index, (*key).clone()) {
            trouble(format!("{} leads to Pod {other} too: it is enforced as this pod", interface.name));
            wanted.remove(&other);
        }
        if addresses.len() > MAX_ENDPOINT_ADDRS {
            trouble(format!(
                "only the first {MAX_ENDPOINT_ADDRS} addresses count; the pod cannot use the others"
            ));
        }
        let mut config = endpoint_config(&addresses);
        config.ifindex = interface.index;
        config.link = if interface.arphrd == ARPHRD_ETHER { LINK_ETHERNET } else { LINK_IP };
        config.pod = identity(&facts.pod.uid, key);
        wanted.insert((*key).clone(), config);
    }
    wanted
}

/// The node's end of a veth pair. A route to one address can also lead into a tunnel, which is no pod's.
fn is_pods(interface: &Interface) -> bool {
    interface.kind.as_deref() == Some("veth")
}

/// FNV-1a over UID and name.
fn identity(uid: &str, key: &ObjectKey) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in uid.bytes().chain([0]).chain(key.to_string().bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

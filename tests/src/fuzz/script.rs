//! A sequence that can be played: states of a cluster, and steps. Plays it on a [`Rig`] and in the oracle's model of
//! flows side by side. Owns the comparison; who makes up the steps is [`super::sequences`]'.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use portcullis_oracle::endpoint::{Because, Binding, Endpoint, Hook, Origin, Owner};
use portcullis_oracle::flows::{Flows, Phase, Tuple};
use portcullis_oracle::packet::{Link, read};
use portcullis_oracle::{Direction, Traffic, World};
use portcullis_policy::model::Cluster;
use serde_json::{Value, json};

use super::rig::{DEVICES, Entry, Rig};
use super::{Difference, hex};
use crate::compare::cluster_of;

/// Seconds by which nothing may be close to its end after a wait: the real clock runs too.
const MARGIN: u64 = 10;

/// States of a cluster, and where its addresses lead.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Manifests of each state.
    pub states: Vec<Vec<Value>>,
    /// Addresses behind each device.
    pub devices: Vec<Vec<IpAddr>>,
}

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A packet comes to a hook.
    Packet(Packet),
    /// The cluster comes into a state.
    State(usize),
    /// What changes left behind is freed.
    Settle,
    /// Seconds pass.
    Wait(u64),
    /// The agent removes what is too old.
    Expire,
    /// Another agent takes over.
    Restart,
}

/// A packet at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// At which device.
    pub device: usize,
    /// Seen from the pod.
    pub direction: Direction,
    /// From where.
    pub origin: Origin,
    /// Its bytes.
    pub frame: Vec<u8>,
}

/// A script that is ready to be played.
#[derive(Debug)]
pub struct Stage {
    devices: Vec<Vec<IpAddr>>,
    states: Vec<State>,
}

#[derive(Debug)]
struct State {
    cluster: Arc<Cluster>,
    world: World,
    pods: Vec<Option<Pod>>,
    known: HashMap<(usize, Direction, IpAddr, Traffic), Because>,
}

/// Who is behind a device: as long as this stays, its flows do.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pod {
    key: String,
    uid: String,
    addresses: Vec<IpAddr>,
}

/// Where and how the two differ.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// After which step, counted from 0.
    pub step: usize,
    /// How.
    pub difference: Difference,
}

/// What a play came to.
#[derive(Debug, Default)]
pub struct Played {
    /// Packets put to the programs.
    pub packets: u64,
    /// The first difference.
    pub wrong: Option<Wrong>,
    /// What the oracle said, how often.
    pub answers: BTreeMap<&'static str, u64>,
}

impl Stage {
    /// Reads a script.
    #[must_use]
    pub fn new(script: &Script) -> Self {
        let states = script.states.iter().map(|manifests| State::new(manifests, &script.devices)).collect();
        Self { devices: script.devices.clone(), states }
    }

    /// Number of states.
    #[must_use]
    pub fn states(&self) -> usize {
        self.states.len()
    }

    /// Where packets of a state's pods go: its addresses lead to these devices.
    pub fn set(&self, rig: &mut Rig) -> Result<()> {
        rig.lead(&self.devices)
    }

    /// Plays steps from a state on, until the first difference.
    pub fn play(&mut self, rig: &mut Rig, first: usize, steps: &[Step]) -> Result<Played> {
        let mut played = Played::default();
        clean(rig)?;
        rig.reconcile(&self.state(first)?.cluster)?;
        let mut play = Play { now: first, flows: vec![Flows::default(); DEVICES] };
        for (number, step) in steps.iter().enumerate() {
            let difference = play.step(self, rig, step, &mut played)?;
            if let Some(difference) = difference {
                played.wrong = Some(Wrong { step: number, difference });
                return Ok(played);
            }
        }
        let end = play.compare(self, rig)?;
        played.wrong = end.map(|difference| Wrong { step: steps.len().saturating_sub(1), difference });
        Ok(played)
    }

    fn state(&self, number: usize) -> Result<&State> {
        self.states.get(number).with_context(|| format!("there is no state {number}"))
    }
}

/// No flows, as at first; by the agent's own means.
fn clean(rig: &mut Rig) -> Result<()> {
    rig.age(100_000)?;
    rig.expire()?;
    for device in 0..DEVICES {
        let left = rig.entries(device)?;
        if !left.is_empty() {
            bail!("device {device}: {} entries of 100,000 s ago are still there", left.len());
        }
    }
    Ok(())
}

/// A play in progress.
struct Play {
    now: usize,
    flows: Vec<Flows>,
}

impl Play {
    fn step(
        &mut self,
        stage: &mut Stage,
        rig: &mut Rig,
        step: &Step,
        played: &mut Played,
    ) -> Result<Option<Difference>> {
        match step {
            Step::Packet(packet) => return self.packet(stage, rig, packet, played),
            Step::State(next) => {
                rig.reconcile(&stage.state(*next)?.cluster)?;
                for device in 0..DEVICES {
                    if stage.state(*next)?.pods[device] != stage.state(self.now)?.pods[device] {
                        self.flows[device] = Flows::default();
                    }
                }
                self.now = *next;
            }
            Step::Settle => rig.settle()?,
            Step::Wait(seconds) => {
                let mut all = *seconds;
                self.wait(*seconds);
                while self.flows.iter().any(|flows| flows.margin() < MARGIN) {
                    self.wait(1);
                    all += 1;
                }
                rig.age(u32::try_from(all)?)?;
            }
            Step::Expire => {
                rig.expire()?;
                return self.compare(stage, rig);
            }
            Step::Restart => {
                rig.restart(&stage.state(self.now)?.cluster)?;
                return self.compare(stage, rig);
            }
        }
        Ok(None)
    }

    fn wait(&mut self, seconds: u64) {
        for flows in &mut self.flows {
            flows.wait(seconds);
        }
    }

    fn packet(
        &mut self,
        stage: &mut Stage,
        rig: &mut Rig,
        packet: &Packet,
        played: &mut Played,
    ) -> Result<Option<Difference>> {
        let theirs = self.oracle(stage, packet)?;
        let passes = rig.put(packet.device, packet.direction, packet.origin, &packet.frame)?;
        let is_counted = rig.counted(packet.direction, passes, theirs.name())?;
        played.packets += 1;
        *played.answers.entry(theirs.name()).or_default() += 1;
        if passes == theirs.passes() && is_counted {
            return Ok(None);
        }
        let counted = rig.count_all()?;
        let verdict = if passes { "Allow" } else { "Deny" };
        Ok(Some(Difference { oracle: theirs.name().to_owned(), program: format!("{verdict} {counted:?}") }))
    }

    fn oracle(&mut self, stage: &mut Stage, packet: &Packet) -> Result<Because> {
        let Packet { device, direction, origin, ref frame } = *packet;
        let State { world, pods, known, .. } = stage.states.get_mut(self.now).context("a state")?;
        let Some(pod) = pods.get(device).context("a device")? else {
            return Ok(Because::UnknownEndpoint);
        };
        let mut decide = |direction, remote, traffic| {
            *known.entry((device, direction, remote, traffic)).or_insert_with(|| {
                let verdict = world.judge_by_policies(&pod.key, direction, remote, traffic);
                Because::from(&verdict.expect("the pod is there").reason)
            })
        };
        let nobody = IpAddr::from([0; 4]);
        let is_isolated = decide(direction, nobody, Traffic::IcmpEcho) != Because::NotIsolated;
        let endpoint = Endpoint {
            addresses: pod.addresses.clone(),
            link: Link::Ethernet,
            station: None,
            binding: Binding::On,
            owner: Owner::Known,
        };
        let reading = read(frame, Link::Ethernet);
        let hook = Hook { direction, origin, is_isolated };
        Ok(self.flows[device].judge(&endpoint, &reading, hook, &mut decide))
    }

    /// Every flow that lives here lives there, and is as far.
    fn compare(&self, stage: &Stage, rig: &mut Rig) -> Result<Option<Difference>> {
        let pods = &stage.state(self.now)?.pods;
        let now = seconds()?;
        for (device, pod) in pods.iter().enumerate() {
            let Some(pod) = pod else { continue };
            let theirs: BTreeSet<String> = self.flows[device]
                .live()
                .map(|(tuple, flow)| told(tuple, flow.opener, flow.of_node, flow.phase))
                .collect();
            let ours: BTreeSet<String> =
                rig.entries(device)?.iter().filter_map(|entry| told_of(entry, pod, now)).collect();
            if theirs != ours {
                let only = |some: &BTreeSet<String>, others: &BTreeSet<String>| {
                    let only: Vec<&str> = some.difference(others).map(String::as_str).collect();
                    format!("flows at device {device}: {}", only.join("; "))
                };
                return Ok(Some(Difference { oracle: only(&theirs, &ours), program: only(&ours, &theirs) }));
            }
        }
        Ok(None)
    }
}

impl State {
    fn new(manifests: &[Value], devices: &[Vec<IpAddr>]) -> Self {
        let world = World::new(manifests);
        // A pod has one interface, where the first of its addresses leads that leads anywhere: one that it takes over from
        // a pod that is gone leads to that one's, which is nobody's then. Of two at one interface the last has it.
        let mut pods = vec![None; DEVICES];
        for key in world.subjects() {
            let addresses = world.addresses(&key);
            let lead = |address| devices.iter().position(|led| led.contains(address));
            let Some(device) = addresses.iter().find_map(lead).and_then(|device| pods.get_mut(device)) else {
                continue;
            };
            let Some((namespace, name)) = key.split_once('/') else { continue };
            let is_it = |object: &&Value| {
                let of = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("");
                let of = if of.is_empty() { "default" } else { of };
                object["kind"] == "Pod" && of == namespace && object["metadata"]["name"] == name
            };
            let last = manifests.iter().rfind(is_it);
            let uid = last.and_then(|pod| pod.pointer("/metadata/uid")).and_then(Value::as_str);
            *device = Some(Pod { addresses, uid: uid.unwrap_or_default().to_owned(), key });
        }
        Self { cluster: Arc::new(cluster_of(manifests)), world, pods, known: HashMap::new() }
    }
}

/// Seconds of the clock that the programs read.
fn seconds() -> Result<u32> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(u32::try_from(now.tv_sec())?)
}

fn told(tuple: &Tuple, opener: Direction, of_node: bool, phase: Phase) -> String {
    let Tuple { local, remote, protocol, local_port, remote_port } = tuple;
    let node = if of_node { ", the node's" } else { "" };
    format!("{local} {local_port} {remote} {remote_port} protocol {protocol}: {opener:?}{node}, {phase:?}")
}

/// An entry in the oracle's words; none for one that is too old, or no flow.
fn told_of(entry: &Entry, pod: &Pod, now: u32) -> Option<String> {
    const OPENED_INGRESS: u32 = 1;
    const OWN_NODE: u32 = 2;
    let Entry { key, value: [_, tag, seen, phase, ..] } = entry;
    let phase = match phase {
        1 => Phase::Opening,
        2 => Phase::Answered,
        3 => Phase::Established,
        4 => Phase::Closing,
        _ => Phase::Reset,
    };
    let half = |at: usize| u16::from_ne_bytes([key[at], key[at + 1]]);
    let remote: [u8; 16] = key[..16].try_into().ok()?;
    let remote = std::net::Ipv6Addr::from(remote);
    let remote = remote.to_ipv4_mapped().map_or(IpAddr::from(remote), IpAddr::from);
    let (protocol, local, kind) = (key[20], key[21], half(22));
    let age = u64::from(now.wrapping_sub(*seen));
    if kind != 0 || age > portcullis_oracle::flows::patience(protocol, phase) {
        return None;
    }
    let local = pod.addresses.get(usize::from(local)).copied().unwrap_or(IpAddr::from([0; 4]));
    let tuple = Tuple { local, remote, protocol, local_port: half(16), remote_port: half(18) };
    let opener = if tag & OPENED_INGRESS == 0 { Direction::Egress } else { Direction::Ingress };
    Some(told(&tuple, opener, tag & OWN_NODE != 0, phase))
}

impl Step {
    /// As a case is written.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Packet(packet) => json!({
                "device": packet.device,
                "direction": if packet.direction == Direction::Egress { "egress" } else { "ingress" },
                "from": match packet.origin {
                    Origin::Pod => "pod",
                    Origin::Node => "node",
                    Origin::Elsewhere => "elsewhere",
                },
                "frame": hex(&packet.frame),
            }),
            Self::State(number) => json!({"state": number}),
            Self::Settle => json!("settle"),
            Self::Wait(seconds) => json!({"wait": seconds}),
            Self::Expire => json!("expire"),
            Self::Restart => json!("restart"),
        }
    }

    /// Reads what [`Step::to_json`] writes.
    pub fn from_json(value: &Value) -> Result<Self> {
        if let Some(word) = value.as_str() {
            return Ok(match word {
                "settle" => Self::Settle,
                "expire" => Self::Expire,
                "restart" => Self::Restart,
                other => bail!("{other} is no step"),
            });
        }
        if let Some(seconds) = value["wait"].as_u64() {
            return Ok(Self::Wait(seconds));
        }
        if let Some(number) = value["state"].as_u64() {
            return Ok(Self::State(usize::try_from(number)?));
        }
        let (direction, origin) = place_from_json(value)?;
        let device = usize::try_from(value["device"].as_u64().context("a step without device")?)?;
        let frame = unhex(value["frame"].as_str().context("a step without frame")?)?;
        Ok(Self::Packet(Packet { device, direction, origin, frame }))
    }
}

/// Direction and origin of a case.
pub fn place_from_json(value: &Value) -> Result<(Direction, Origin)> {
    let direction = match value["direction"].as_str() {
        Some("egress") => Direction::Egress,
        Some("ingress") => Direction::Ingress,
        other => bail!("{other:?} is no direction"),
    };
    let origin = match value["from"].as_str() {
        Some("pod") => Origin::Pod,
        Some("node") => Origin::Node,
        Some("elsewhere") => Origin::Elsewhere,
        other => bail!("packets come from pod, node or elsewhere, not from {other:?}"),
    };
    Ok((direction, origin))
}

/// Bytes of a case.
pub fn unhex(text: &str) -> Result<Vec<u8>> {
    let digit = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    (0..text.len()).step_by(2).map(|at| digit(at).with_context(|| format!("no byte at {at}"))).collect()
}

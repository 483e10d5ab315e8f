//! Packets one by one: random frames at the endpoints of random clusters, put to the asked load, which keeps no flows.
//! The oracle reads the frame and asks its own policies. A unit is one cluster.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use portcullis_agent::bpf::Kernel;
use portcullis_agent::bpf::load::{self, Purpose};
use portcullis_common::event::{Action, Direction as Way, Reason};
use portcullis_common::judge::{At, Origin as From};
use portcullis_common::wire::{
    ANSWER_AUDITED, ENDPOINT_MAC, ENDPOINT_QUARANTINED, ENDPOINT_UNBOUND, EndpointConfig, EndpointWord,
    LINK_IP,
};
use portcullis_oracle::endpoint::{self, Because, Binding, Endpoint, Hook, Origin, Owner};
use portcullis_oracle::generate;
use portcullis_oracle::packet::{self, Link};
use portcullis_oracle::{Direction, Traffic, World};
use portcullis_policy::answer::{endpoint_config, owned_addresses, verdict_at};
use portcullis_policy::desired::{Desired, EndpointRulesets};
use portcullis_policy::diff::diff;
use portcullis_policy::model::Mode;
use portcullis_policy::select::Directory;
use serde_json::Value;

use super::frames::{Forge, Scene};
use super::script::{place_from_json, unhex};
use super::{Difference, End, Extent, Findings, hex, on_threads, seed_of};
use crate::compare::{cluster_of, compile, key_of};

/// Packets of one cluster, unless told otherwise: to write its tables takes as long as some thousand packets.
pub const PACKETS: u64 = 20_000;

/// Packets between two looks at the clock.
const BETWEEN_LOOKS: u64 = 256;

/// Bytes of `struct __sk_buff` that are passed, up to and with `cb`.
const CONTEXT_BYTES: usize = 68;
/// Where `cb` starts in it.
const CB: usize = 48;
/// Room for the whole of it on the way back.
const ANSWER_BYTES: usize = 256;
/// What the program returns for "allowed".
const PASS: u32 = u32::MAX;
/// The MAC address of every pod, where it is known.
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Most endpoints of a cluster: each pod, and each kind of interface for it.
const MOST_PODS: usize = 8;

/// The kinds of interface that a pod gets.
const KINDS: [Kind; 5] = [Kind::Routed, Kind::Layer3, Kind::Bridged, Kind::Unbound, Kind::Quarantined];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Routed,
    Layer3,
    Bridged,
    Unbound,
    Quarantined,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Layer3 => "layer3",
            Self::Bridged => "bridged",
            Self::Unbound => "unbound",
            Self::Quarantined => "quarantined",
        }
    }

    fn endpoint(self, addresses: Vec<IpAddr>) -> Endpoint {
        Endpoint {
            addresses,
            link: if self == Self::Layer3 { Link::Ip } else { Link::Ethernet },
            station: (self == Self::Bridged).then_some(STATION),
            binding: if self == Self::Unbound { Binding::Off } else { Binding::On },
            owner: if self == Self::Quarantined { Owner::Unknown } else { Owner::Known },
        }
    }

    fn config(self, addresses: &[IpAddr]) -> EndpointConfig {
        let mut config = endpoint_config(addresses);
        match self {
            Self::Routed => {}
            Self::Layer3 => config.link = LINK_IP,
            Self::Bridged => {
                config.flags |= ENDPOINT_MAC;
                config.mac[..6].copy_from_slice(&STATION);
            }
            Self::Unbound => config.flags |= ENDPOINT_UNBOUND,
            Self::Quarantined => config.flags |= ENDPOINT_QUARANTINED,
        }
        config
    }
}

/// Compares random packets.
pub fn run(seed: u64, threads: usize, extent: Extent, packets: u64) -> Result<Findings> {
    on_threads(threads, extent, Load::new, |load, number, end| load.unit(seed_of(seed, number), packets, end))
}

/// Puts each packet of a case file to an interface of its manifests; returns what is not as expected. An object with
/// `manifests` and `cases`, each with `why`, `pod`, `kind`, `direction`, `from`, `frame` and `expect`.
pub fn replay(file: &Value) -> Result<Vec<String>> {
    let list = |name: &str| file[name].as_array().cloned().unwrap_or_default();
    let mut load = Load::new()?;
    let (mut policies, places) = load.stage(&list("manifests"))?;
    let (egress, ingress) = load::both(&mut load.ebpf)?;
    let mut wrong = Vec::new();
    for case in list("cases") {
        let why = case["why"].as_str().context("a case without `why`")?;
        let (direction, origin) = place_from_json(&case)?;
        let frame = unhex(case["frame"].as_str().context("a case without `frame`")?)?;
        let pod = policies.pods.iter().position(|pod| case["pod"] == **pod);
        let kind = KINDS.iter().position(|kind| case["kind"] == kind.name());
        let (pod, kind) = pod.zip(kind).with_context(|| format!("{why}: no such pod or kind"))?;
        let place = &places[pod * KINDS.len() + kind];
        let question = Question { place, direction, origin, frame: &frame };
        let theirs = oracle(&question, &mut policies);
        let program = if direction == Direction::Egress { &*egress } else { &*ingress };
        let ours = if is_askable(&frame) {
            asked(program, &question, false)?
        } else {
            offline(&load.written, &question)
        };
        if !ours.agrees(theirs) || case["expect"] != theirs.name() {
            wrong.push(format!(
                "{why}: expected {}, oracle {}, program {ours}",
                case["expect"],
                theirs.name()
            ));
        }
    }
    Ok(wrong)
}

/// An asked load, and what its tables hold.
struct Load {
    kernel: Kernel,
    ebpf: Ebpf,
    written: Desired,
}

/// A pod's interface, as both sides know it.
struct Place {
    slot: u32,
    pod: usize,
    endpoint: Endpoint,
    config: EndpointConfig,
    rulesets: EndpointRulesets,
}

/// The oracle's policies, each answer looked up once.
struct Policies {
    world: World,
    pods: Vec<String>,
    known: HashMap<(usize, Direction, IpAddr, Traffic), Because>,
}

impl Policies {
    fn decide(&mut self, pod: usize, direction: Direction, remote: IpAddr, traffic: Traffic) -> Because {
        let Self { world, pods, known } = self;
        *known.entry((pod, direction, remote, traffic)).or_insert_with(|| {
            let verdict = world.judge_by_policies(&pods[pod], direction, remote, traffic);
            Because::from(&verdict.expect("the pod is there").reason)
        })
    }

    fn is_isolated(&mut self, pod: usize, direction: Direction) -> bool {
        let nobody = IpAddr::from([0; 4]);
        self.decide(pod, direction, nobody, Traffic::IcmpEcho) != Because::NotIsolated
    }
}

/// A packet and where it is put.
struct Question<'a> {
    place: &'a Place,
    direction: Direction,
    origin: Origin,
    frame: &'a [u8],
}

impl Load {
    fn new() -> Result<Self> {
        let (kernel, ebpf) = Kernel::private(Purpose::Ask, 0)?;
        Ok(Self { kernel, ebpf, written: Desired::default() })
    }

    /// Writes the tables of a cluster, and its pods' interfaces of all kinds.
    fn stage(&mut self, manifests: &[Value]) -> Result<(Policies, Vec<Place>)> {
        let cluster = cluster_of(manifests);
        let desired = compile(&cluster);
        let plan = diff(&self.written, &desired);
        for op in plan.before.iter().chain(&plan.after) {
            self.kernel.apply(op)?;
        }
        self.written = desired;
        let world = World::new(manifests);
        let directory = Directory::new(&cluster);
        let pods: Vec<String> = world.subjects().into_iter().take(MOST_PODS).collect();
        let mut places = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            let key = key_of(pod);
            let (addresses, owned) = (world.addresses(pod), owned_addresses(&directory, &key));
            ensure!(addresses == owned, "{pod} owns {addresses:?}, compiled {owned:?}");
            let rulesets = self.written.endpoints.get(&key).copied().unwrap_or(EndpointRulesets::CLOSED);
            for kind in KINDS {
                let slot = u32::try_from(places.len())?;
                let config = kind.config(&addresses);
                let EndpointRulesets { ingress, egress } = rulesets;
                self.kernel.set_endpoint(slot, config, EndpointWord { ingress, egress, generation: 0 })?;
                let endpoint = kind.endpoint(addresses.clone());
                places.push(Place { slot, pod: number, endpoint, config, rulesets });
            }
        }
        Ok((Policies { world, pods, known: HashMap::new() }, places))
    }

    fn unit(&mut self, seed: u64, packets: u64, end: End) -> Result<Findings> {
        let case = generate::cluster(seed);
        let mut forge = Forge::new(seed_of(seed, 0));
        let (mut policies, places) =
            self.stage(&case.manifests).with_context(|| format!("cluster {seed}"))?;
        let audit = forge.rng().chance(100);
        self.kernel.set_mode(if audit { Mode::Audit } else { Mode::Enforce })?;
        let mut findings = Findings::default();
        if places.is_empty() {
            // A cluster without pods gives way to the next.
            return self.unit(seed_of(seed, 1), packets, end);
        }
        let (egress, ingress) = load::both(&mut self.ebpf)?;
        let mut counts = [0_u64; 256];
        for number in 0..packets {
            if number % BETWEEN_LOOKS == 0 && end.has_come() {
                break;
            }
            // Mostly a plain interface: what the others differ in is soon said.
            let rng = forge.rng();
            let kind = if rng.chance(600) { 0 } else { rng.below(KINDS.len()) };
            let place = &places[rng.below(places.len() / KINDS.len()) * KINDS.len() + kind];
            let (direction, origin) = match rng.below(20) {
                0..=8 => (Direction::Egress, Origin::Pod),
                9 => (Direction::Ingress, Origin::Node),
                10 => (Direction::Ingress, Origin::Pod),
                _ => (Direction::Ingress, Origin::Elsewhere),
            };
            let scene = Scene {
                own: &place.endpoint.addresses,
                peers: &case.externals,
                station: STATION,
                link: place.endpoint.link,
            };
            let frame = forge.next(&scene, direction);
            let question = Question { place, direction, origin, frame };
            let theirs = oracle(&question, &mut policies);
            let program = if direction == Direction::Egress { &*egress } else { &*ingress };
            let ours = if is_askable(frame) {
                findings.packets += 1;
                asked(program, &question, audit)?
            } else {
                offline(&self.written, &question)
            };
            findings.compared += 1;
            counts[usize::from(ours.reason as u8)] += 1;
            if !ours.agrees(theirs) {
                let difference = Difference { oracle: theirs.name().to_owned(), program: ours.to_string() };
                findings.note(difference, || {
                    format!(
                        "cluster {seed}, packet {number}: pod {} {:?} {direction:?} {origin:?} {:?} {}",
                        policies.pods[place.pod],
                        place.endpoint,
                        packet::read(frame, place.endpoint.link),
                        hex(frame)
                    )
                });
            }
        }
        for reason in Reason::ALL {
            let count = counts[usize::from(*reason as u8)];
            if count > 0 {
                findings.answers.insert(reason.name(), count);
            }
        }
        Ok(findings)
    }
}

fn oracle(question: &Question<'_>, policies: &mut Policies) -> Because {
    let Question { place, direction, origin, frame } = *question;
    let hook = Hook { direction, origin, is_isolated: policies.is_isolated(place.pod, direction) };
    let reading = packet::read(frame, place.endpoint.link);
    let mut decide = |remote, traffic| policies.decide(place.pod, direction, remote, traffic);
    endpoint::judge_alone(&place.endpoint, &reading, hook, &mut decide)
}

/// What was answered.
struct Answer {
    action: Action,
    reason: Reason,
}

impl Answer {
    fn agrees(&self, theirs: Because) -> bool {
        (self.action == Action::Allow) == theirs.passes() && self.reason.name() == theirs.name()
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.reason.name(), self.action)
    }
}

/// True if a test run takes it. `BPF_PROG_TEST_RUN` takes nothing shorter than an Ethernet header, and newer kernels (6.18) nothing whose bytes 12
/// and 13 say IP and that ends before the fixed IP header does.
#[must_use]
pub fn is_askable(frame: &[u8]) -> bool {
    let shortest = match frame.get(12..14) {
        Some([0x08, 0x00]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        _ => 14,
    };
    frame.len() >= shortest
}

fn asked(program: &SchedClassifier, question: &Question<'_>, audit: bool) -> Result<Answer> {
    let origin: u32 = match question.origin {
        Origin::Elsewhere => 0,
        Origin::Node => 1,
        Origin::Pod => 2,
    };
    let mut context = [0_u8; CONTEXT_BYTES];
    context[CB..CB + 4].copy_from_slice(&question.place.slot.to_ne_bytes());
    context[CB + 4..CB + 8].copy_from_slice(&origin.to_ne_bytes());
    let mut answer = [0_u8; ANSWER_BYTES];
    let ran = program
        .test_run(TestRunOptions {
            data_in: Some(question.frame),
            ctx_in: Some(&context),
            ctx_out: Some(&mut answer),
            ..TestRunOptions::default()
        })
        .with_context(|| format!("BPF_PROG_TEST_RUN of {} bytes", question.frame.len()))?;
    let word = u32::from_ne_bytes([answer[CB + 8], answer[CB + 9], answer[CB + 10], answer[CB + 11]]);
    let action = if ran.return_value == PASS { Action::Allow } else { Action::Deny };
    let is_audited = word & ANSWER_AUDITED != 0;
    ensure!(is_audited == (audit && action == Action::Deny), "audited: {is_audited}, {word}, {action:?}");
    let number = u8::try_from(word & !ANSWER_AUDITED)?;
    let reason = Reason::from_number(number).with_context(|| format!("unknown reason {number}"))?;
    Ok(Answer { action, reason })
}

/// The same code on the compiler's tables, for frames that a test run does not take.
fn offline(tables: &Desired, question: &Question<'_>) -> Answer {
    let direction = match question.direction {
        Direction::Ingress => Way::Ingress,
        Direction::Egress => Way::Egress,
    };
    let origin = match question.origin {
        Origin::Elsewhere => From::Forwarded,
        Origin::Pod => From::OwnInterface,
        Origin::Node => From::OwnNode,
    };
    let at = At { slot: 0, direction, origin };
    let place = question.place;
    let verdict = verdict_at(tables, place.config, place.rulesets, at, question.frame);
    Answer { action: verdict.action, reason: verdict.reason }
}

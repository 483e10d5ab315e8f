//! What a packet to a Service costs more than one to a pod, by `BPF_PROG_TEST_RUN`: at the client's pod, where it is marked,
//! and at the backend's, where it is judged; and what the program on the node's other devices costs everybody else.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use portcullis_common::event::{Action, Direction, Reason};
use portcullis_common::packet::{TCP_ACK, TCP_SYN};
use portcullis_common::wire::{DEFAULT_MARK_SHIFT, MARK_JUDGE, MARK_OPENS};
use portcullis_oracle::rng::SplitMix64;
use portcullis_policy::compile::Compiler;
use portcullis_policy::model::ObjectKey;
use portcullis_tests::attached::{Attached, Place};
use portcullis_tests::compare::cluster_of;
use portcullis_tests::device::Veth;
use serde_json::{Value, json};

use crate::measure::{Times, times};
use crate::scenario;

const CLIENT: &str = "10.1.0.1";
const BACKEND: &str = "10.1.0.2";
const VIRTUAL: &str = "10.96.0.1";
/// The client's slot: the first endpoint.
const SLOT: u32 = 0;
const MARK: u32 = (MARK_JUDGE | SLOT) << DEFAULT_MARK_SHIFT;
const OPENING: u32 = MARK | MARK_OPENS << DEFAULT_MARK_SHIFT;
const PORT: u16 = 8080;
const ESTABLISHED: u16 = 40_000;
const NEW: u16 = 40_001;
/// Packets before a measurement, which are not measured.
const WARM_UP: u32 = 200;

/// One thing to measure, as a pair: of a pod's address, and of a Service's.
#[derive(Clone, Debug)]
struct Pair {
    name: &'static str,
    place: Place,
    /// Frame, mark, and the reason that is counted.
    sides: [(Vec<u8>, u32, Reason); 2],
    samples: [Vec<f64>; 2],
}

/// What came out.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    name: &'static str,
    pod: Times,
    service: Times,
}

/// The programs, tables of one Service, and what is put to them.
pub(crate) fn measure(rounds: u32, packets: u32, rng: &mut SplitMix64) -> Result<Vec<Row>> {
    let (client, backend, uplink) =
        (Veth::create("pcb-client")?, Veth::create("pcb-backend")?, Veth::create("pcb-up")?);
    let mut load = load(&client, &backend)?;
    let frame = |to: &str, port, from, flags| {
        scenario::tcp(CLIENT.parse()?, to.parse()?, from, port, flags).context("a frame")
    };
    let from_client = Place { direction: Direction::Egress, ifindex: client.index, came_from: client.index };
    let to_backend = Place { direction: Direction::Ingress, ifindex: backend.index, came_from: uplink.index };
    let pair = |name, place, sides| Pair { name, place, sides, samples: [Vec::new(), Vec::new()] };
    let ack = |to, port| frame(to, port, ESTABLISHED, TCP_ACK);
    let syn = |to, port| frame(to, port, NEW, TCP_SYN);
    let mut pairs = vec![
        pair(
            "client, established",
            from_client,
            [(ack(BACKEND, PORT)?, 0, Reason::Flow), (ack(VIRTUAL, 80)?, 0, Reason::Flow)],
        ),
        pair(
            "client, new",
            from_client,
            [(syn(BACKEND, PORT)?, 0, Reason::Rule), (syn(VIRTUAL, 80)?, 0, Reason::Service)],
        ),
        pair(
            "backend, established",
            to_backend,
            [(ack(BACKEND, PORT)?, 0, Reason::Flow), (ack(BACKEND, PORT)?, MARK, Reason::Flow)],
        ),
        pair(
            "backend, new",
            to_backend,
            [(syn(BACKEND, PORT)?, 0, Reason::Rule), (syn(BACKEND, PORT)?, OPENING, Reason::Rule)],
        ),
    ];
    for (to, port) in [(BACKEND, PORT), (VIRTUAL, 80)] {
        let first = frame(to, port, ESTABLISHED, TCP_SYN)?;
        load.run(from_client, &first, 1)?;
    }
    load.run(to_backend, &frame(BACKEND, PORT, ESTABLISHED, TCP_SYN)?, 1)?;
    for _ in 0..rounds {
        rng.shuffle(&mut pairs);
        for pair in &mut pairs {
            let first = rng.below(2);
            for number in [first, 1 - first] {
                let (Some((frame, mark, reason)), Some(samples)) =
                    (pair.sides.get(number), pair.samples.get_mut(number))
                else {
                    continue;
                };
                let direction = pair.place.direction;
                load.run_marked(pair.place, frame, *mark, WARM_UP)?;
                let before = load.packets(direction, Action::Allow, *reason)?;
                let ran = load.run_marked(pair.place, frame, *mark, packets)?;
                let counted = load.packets(direction, Action::Allow, *reason)? - before;
                ensure!(
                    counted == u64::from(packets) && ran.action == Action::Allow,
                    "{}: {counted} of {packets} packets were {reason:?}, the last was {:?}",
                    pair.name,
                    ran.action
                );
                samples.push(ran.time.as_secs_f64() * 1e9 / f64::from(packets));
            }
        }
    }
    pairs.sort_by_key(|pair| (pair.place.direction.index() == 0, pair.name));
    Ok(pairs
        .into_iter()
        .map(|Pair { name, samples: [pod, service], .. }| Row {
            name,
            pod: times(pod),
            service: times(service),
        })
        .collect())
}

/// Two pods here: one that may send to the other and is isolated, one that takes it and is isolated.
fn load(client: &Veth, backend: &Veth) -> Result<Attached> {
    let pod = |name: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "bench", "labels": {"app": name}},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}})
    };
    let peers = |app: &str| json!([{"podSelector": {"matchLabels": {"app": app}}}]);
    let policy = |name: &str, word: &str, side: &str, peers: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "bench"},
            "spec": {"podSelector": {"matchLabels": {"app": name}}, "policyTypes": [word],
                side: [{(if side == "egress" { "to" } else { "from" }): peers, "ports": [{"port": PORT}]}]}})
    };
    let manifests = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}}),
        pod("client", CLIENT),
        pod("backend", BACKEND),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "bench"},
            "spec": {"clusterIP": VIRTUAL, "clusterIPs": [VIRTUAL], "ports": [{"port": 80, "targetPort": PORT}]}}),
        policy("client", "Egress", "egress", peers("backend")),
        policy("backend", "Ingress", "ingress", peers("client")),
    ];
    let cluster = cluster_of(&manifests);
    let keys = ["client", "backend"].map(|name| ObjectKey::new("bench", name));
    let (desired, problems) = Compiler::new(0).compile(&cluster, &keys)?;
    ensure!(problems.is_empty(), "the compiler has problems: {problems:?}");
    let mut load = Attached::load()?;
    let [first, second] = keys;
    load.write(&cluster, &desired, &[(first, client.index), (second, backend.index)])?;
    load.deliver()?;
    Ok(load)
}

pub(crate) fn text(rounds: u32, packets: u32, rows: &[Row]) -> String {
    let mut text = format!(
        "\nServices: ns a packet by BPF_PROG_TEST_RUN, {rounds} rounds of {packets} packets, lowest and median\n\n\
         {:<22}{:>16}{:>16}{:>8}\n",
        "", "to a pod", "to a Service", "ratio"
    );
    for Row { name, pod, service } in rows {
        let cell = |times: &Times| format!("{:>8.0}{:>8.0}", times.lowest, times.median);
        let ratio = service.median / pod.median;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<22}{}{}{ratio:>7.2}x", cell(pod), cell(service));
    }
    text
}

pub(crate) fn json(rows: &[Row]) -> Value {
    let of =
        |times: &Times| json!({"lowest": times.lowest, "median": times.median, "highest": times.highest});
    rows.iter()
        .map(|row| json!({"name": row.name, "pod": of(&row.pod), "service": of(&row.service)}))
        .collect()
}

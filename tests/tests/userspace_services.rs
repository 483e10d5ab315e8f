//! `explain` and `matrix` of Services of random clusters, against the oracle: the same backends, and of each the verdict
//! that the oracle has for the pod, the backend's address and the target port.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis_agent::output::Verdict;
use portcullis_agent::verbs::ask::{
    ExplainRequest, Family as AskedFamily, Judge, MatrixRequest, TrafficText,
};
use portcullis_agent::verbs::explain::{ExplainedService, Explanation, ServiceVerdict, explain};
use portcullis_agent::verbs::matrix::matrix;
use portcullis_agent::world::World as Asked;
use portcullis_oracle::rng::SplitMix64;
use portcullis_oracle::service::backends;
use portcullis_oracle::{Direction, Family, Protocol, Traffic, Verdict as Theirs, World, generate};
use portcullis_tests::compare::{cluster_of, compile};
use portcullis_tests::privilege::number;
use portcullis_tests::seeds::tallied;
use serde_json::{Value, json};

/// Clusters of the property test; `PORTCULLIS_CLUSTERS` and `PORTCULLIS_SEED` ask for others.
const CLUSTERS: u64 = 300;

/// Services that a cluster gets beside its own.
const SERVICES: usize = 4;

/// A port of a Service that was drawn.
struct Drawn {
    service: String,
    port: u16,
    protocol: Protocol,
    address: Option<IpAddr>,
}

#[derive(Default)]
struct Tally {
    questions: u64,
    verdicts: BTreeMap<&'static str, u64>,
    backends: u64,
    own: u64,
    outside: u64,
    by_address: u64,
    cells: BTreeMap<char, u64>,
}

impl Tally {
    fn plus(mut self, other: Self) -> Self {
        self.questions += other.questions;
        self.backends += other.backends;
        self.own += other.own;
        self.outside += other.outside;
        self.by_address += other.by_address;
        for (verdict, count) in other.verdicts {
            *self.verdicts.entry(verdict).or_default() += count;
        }
        for (cell, count) in other.cells {
            *self.cells.entry(cell).or_default() += count;
        }
        self
    }
}

#[test]
fn each_backend_of_a_service_has_the_oracles_verdict() {
    let (clusters, seed) = (number("PORTCULLIS_CLUSTERS", CLUSTERS), number("PORTCULLIS_SEED", 1));
    let tally = tallied(&(seed..seed + clusters), one, Tally::plus);
    println!(
        "{clusters} clusters, {} questions {:?}, {} backends ({} the sender itself, {} no pods), {} by address, cells {:?}",
        tally.questions,
        tally.verdicts,
        tally.backends,
        tally.own,
        tally.outside,
        tally.by_address,
        tally.cells
    );
    if clusters >= CLUSTERS {
        for verdict in ["allow", "deny", "mixed", "none"] {
            assert!(
                tally.verdicts.get(verdict).is_some_and(|count| *count > clusters / 4),
                "{:?}",
                tally.verdicts
            );
        }
        assert!(tally.own > clusters / 4 && tally.outside > clusters / 4 && tally.by_address > clusters / 4);
        assert!(['.', 'X', '/'].iter().all(|cell| tally.cells.contains_key(cell)), "{:?}", tally.cells);
    }
}

/// All pods to all Services of one cluster.
fn one(seed: u64, tally: &mut Tally) {
    let mut manifests = generate::cluster(seed).manifests;
    let drawn = add_services(&mut manifests, seed);
    let oracle = World::new(&manifests);
    let cluster = cluster_of(&manifests);
    let desired = compile(&cluster);
    let world = Asked { cluster, desired, ..Asked::default() };
    for of in &drawn {
        let expected =
            backends(&manifests, &oracle, &of.service, of.port, of.protocol).expect("it was drawn");
        for from in oracle.subjects() {
            let what = format!("seed {seed}: {from} -> {} {}/{}", of.service, of.protocol, of.port);
            let to = format!("svc/{}:{}/{}", of.service, of.port, of.protocol);
            if let Some(found) = ask(&world, &from, &to, None) {
                check(&oracle, &from, &expected, &found, &what, tally);
                by_address(&world, &from, of, &found, &what, tally);
            } else {
                // It has no address of any family that the backends have.
                let has = |address: &IpAddr| oracle.address(&from, Family::of(*address)).is_some();
                let nowhere = oracle.addresses(&from).is_empty();
                assert!(nowhere || !expected.iter().any(|(address, _)| has(address)), "{what}: no answer");
            }
        }
    }
    for family in [AskedFamily::Ipv4, AskedFamily::Ipv6] {
        columns(&world, &oracle, &manifests, &drawn, family, tally);
    }
}

fn ask(world: &Asked, from: &str, to: &str, sent: Option<&str>) -> Option<ExplainedService> {
    let request = ExplainRequest {
        from: from.to_owned(),
        to: to.to_owned(),
        sent: sent.map(|sent| sent.parse().unwrap()),
        family: None,
        namespace: None,
    };
    match explain(world, None, &request).ok()?.result {
        Explanation::Service(found) => Some(*found),
        Explanation::Flow(flow) => panic!("{from} -> {to}: {flow:?}"),
    }
}

/// The backends are the oracle's, each with its verdict, and over all stands what they come to.
fn check(
    oracle: &World,
    from: &str,
    expected: &BTreeSet<(IpAddr, u16)>,
    found: &ExplainedService,
    what: &str,
    tally: &mut Tally,
) {
    let family_of = |address: &IpAddr| oracle.address(from, Family::of(*address));
    let reachable: BTreeSet<&(IpAddr, u16)> =
        expected.iter().filter(|(address, _)| family_of(address).is_some()).collect();
    let listed: Vec<(IpAddr, u16)> = found
        .backends
        .iter()
        .map(|backend| (backend.address.parse().unwrap(), backend.explained.port.unwrap()))
        .collect();
    assert_eq!(listed.iter().collect::<BTreeSet<_>>(), reachable, "{what}");
    assert_eq!(listed.len(), reachable.len(), "{what}: one twice");
    let protocol = Protocol::parse(&found.service.protocol).unwrap();
    let mut all = BTreeSet::new();
    for (backend, (address, port)) in found.backends.iter().zip(listed) {
        let theirs =
            verdict(oracle, from, address, Traffic::To(protocol, port)).expect("the sender is known");
        assert_eq!(backend.explained.verdict, theirs, "{what} at {address}:{port}");
        let owner = oracle.owner(address);
        assert!(
            owner.is_none() || owner == backend.pod,
            "{what} at {address}: {:?}, not {owner:?}",
            backend.pod
        );
        tally.own += u64::from(owner.as_deref() == Some(from));
        tally.outside += u64::from(owner.is_none());
        tally.backends += 1;
        all.insert(theirs.name());
    }
    let come_to = match (all.contains("allow"), all.contains("deny")) {
        (true, true) => (ServiceVerdict::Mixed, "mixed"),
        (true, false) => (ServiceVerdict::Allow, "allow"),
        (false, true) => (ServiceVerdict::Deny, "deny"),
        (false, false) => (ServiceVerdict::Deny, "none"),
    };
    assert_eq!(found.verdict, come_to.0, "{what}");
    *tally.verdicts.entry(come_to.1).or_default() += 1;
    tally.questions += 1;
}

/// The oracle's verdict on what a pod sends to an address; none if the pod has no address of that family.
fn verdict(oracle: &World, from: &str, to: IpAddr, traffic: Traffic) -> Option<Verdict> {
    let source = oracle.address(from, Family::of(to))?;
    let egress = oracle.judge(from, Direction::Egress, to, traffic)?.verdict;
    let ingress = oracle.owner(to).and_then(|pod| oracle.judge(&pod, Direction::Ingress, source, traffic));
    let denied = egress == Theirs::Deny || ingress.is_some_and(|judged| judged.verdict == Theirs::Deny);
    Some(if denied { Verdict::Deny } else { Verdict::Allow })
}

/// A virtual address that no other Service has does for the Service.
fn by_address(
    world: &Asked,
    from: &str,
    of: &Drawn,
    found: &ExplainedService,
    what: &str,
    tally: &mut Tally,
) {
    let Some(address) = of.address else { return };
    let sent = format!("{}/{}", of.protocol, of.port);
    assert_eq!(
        ask(world, from, &address.to_string(), Some(&sent)).as_ref(),
        Some(found),
        "{what} by {address}"
    );
    tally.by_address += 1;
}

/// The cells of Services say what the oracle says of the backends of the family.
fn columns(
    world: &Asked,
    oracle: &World,
    manifests: &[Value],
    drawn: &[Drawn],
    family: AskedFamily,
    tally: &mut Tally,
) {
    let request = MatrixRequest {
        ports: vec![TrafficText("TCP/80".parse().unwrap())],
        family: Some(family),
        judge: Judge::Userspace,
        namespaces: Vec::new(),
        services: drawn.iter().map(|of| format!("svc/{}:{}/{}", of.service, of.port, of.protocol)).collect(),
        hosts: portcullis_agent::verbs::ask::Hosts::Out,
    };
    let Ok(reply) = matrix(world, None, &request) else { return };
    let found = &reply.result[0];
    assert_eq!(found.services.len(), drawn.len());
    assert_eq!(found.service_rows.len(), found.order.len());
    for (from, row) in found.order.iter().zip(&found.service_rows) {
        for (of, cell) in drawn.iter().zip(row.chars()) {
            let all = backends(manifests, oracle, &of.service, of.port, of.protocol).expect("it was drawn");
            let of_family =
                all.iter().filter(|(address, _)| address.is_ipv4() == (family == AskedFamily::Ipv4));
            let each: BTreeSet<&str> = of_family
                .map(|(address, port)| {
                    let traffic = Traffic::To(of.protocol, *port);
                    verdict(oracle, from, *address, traffic).expect("it has the family").name()
                })
                .collect();
            let expected = match (each.contains("allow"), each.contains("deny")) {
                (true, true) => '/',
                (true, false) => '.',
                (false, _) => 'X',
            };
            assert_eq!(cell, expected, "{from} -> {} {}/{} {family:?}", of.service, of.protocol, of.port);
            *tally.cells.entry(cell).or_default() += 1;
        }
    }
}

/// Adds Services with selectors, and slices, in the vocabulary of the generated pods.
fn add_services(manifests: &mut Vec<Value>, seed: u64) -> Vec<Drawn> {
    let mut rng = SplitMix64::new(seed ^ 0x5eed);
    let before = World::new(manifests);
    let subjects = before.subjects();
    let namespaces: BTreeSet<&str> = subjects.iter().filter_map(|pod| Some(pod.split_once('/')?.0)).collect();
    let namespaces: Vec<&str> = namespaces.into_iter().chain(["elsewhere"]).collect();
    let shown: Vec<IpAddr> = subjects.iter().flat_map(|pod| before.addresses(pod)).collect();
    let mut drawn = Vec::new();
    for number in 0..SERVICES {
        let namespace = *rng.pick(&namespaces);
        let name = format!("drawn{number}");
        // Of ranges that nobody else has an address in.
        let address = format!("10.97.{}.{}", seed % 250, number + 1);
        let mut spec = match rng.below(6) {
            0 => json!({"clusterIP": "None"}),
            1 => json!({"clusterIP": "None", "ipFamilies": [*rng.pick(&["IPv4", "IPv6"])]}),
            2 => json!({"clusterIPs": [address, format!("fd00:97::{}", number + 1)]}),
            3 => json!({"clusterIP": format!("fd00:97::{}", number + 1)}),
            _ => json!({"clusterIP": address, "clusterIPs": [address]}),
        };
        let virtual_address = spec["clusterIPs"][0].as_str().or(spec["clusterIP"].as_str());
        let virtual_address = virtual_address.and_then(|text| text.parse().ok());
        spec["selector"] = match rng.below(5) {
            0 => json!(null),
            1 => json!({}),
            2 => json!({"tier": *rng.pick(&["front", "back"])}),
            3 => json!({"app": *rng.pick(&["web", "db"]), "tier": *rng.pick(&["front", "back"])}),
            _ => json!({"app": *rng.pick(&["web", "web", "db", ""])}),
        };
        let mut ports = Vec::new();
        for place in 0..rng.between(1, 2) {
            let protocol = *rng.pick(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp]);
            let port = 80 + u16::try_from(place).unwrap();
            let mut entry =
                json!({"name": format!("port{place}"), "port": port, "protocol": protocol.to_string()});
            match rng.below(3) {
                0 => {}
                1 => entry["targetPort"] = json!(*rng.pick(&[80, 81, 443, 53, 8080])),
                _ => entry["targetPort"] = json!(*rng.pick(&["web", "dns", "metrics"])),
            }
            ports.push(entry);
            let service = format!("{namespace}/{name}");
            drawn.push(Drawn { service, port, protocol, address: virtual_address });
        }
        for turn in 0..*rng.pick(&[0, 0, 0, 1, 2]) {
            let slice = slice(&mut rng, &ports, &shown);
            let mut labels = json!({"kubernetes.io/service-name": name});
            if rng.chance(500) {
                labels["endpointslice.kubernetes.io/managed-by"] = json!(*rng.pick(&[
                    "endpointslice-controller.k8s.io",
                    "endpointslicemirroring-controller.k8s.io",
                    "me",
                ]));
            }
            let mut slice = slice;
            slice["metadata"] =
                json!({"namespace": namespace, "name": format!("{name}-{turn}"), "labels": labels});
            manifests.push(slice);
        }
        spec["ports"] = json!(ports);
        manifests.push(json!({"apiVersion": "v1", "kind": "Service", "spec": spec,
            "metadata": {"namespace": namespace, "name": name}}));
    }
    drawn
}

/// Endpoints of pods and of others, some not ready, some of which end.
fn slice(rng: &mut SplitMix64, ports: &[Value], shown: &[IpAddr]) -> Value {
    let v4 = rng.chance(600);
    let mut endpoints = Vec::new();
    for _ in 0..rng.between(0, 3) {
        let outside: IpAddr = if v4 { "192.0.2.77" } else { "2001:db8::77" }.parse().unwrap();
        let known: Vec<IpAddr> = shown.iter().copied().filter(|address| address.is_ipv4() == v4).collect();
        let address = if known.is_empty() || rng.chance(250) { outside } else { *rng.pick(&known) };
        let conditions = match rng.below(5) {
            0 => json!({"ready": false}),
            1 => json!({"ready": false, "serving": true, "terminating": true}),
            2 => json!({}),
            _ => json!({"ready": true, "serving": true, "terminating": false}),
        };
        endpoints.push(json!({"addresses": [address.to_string()], "conditions": conditions}));
    }
    let port = |port: &Value| json!({"name": port["name"], "protocol": port["protocol"], "port": *rng.pick(&[80, 443, 8080])});
    let ports: Vec<Value> = ports.iter().map(port).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "ports": ports, "endpoints": endpoints,
        "addressType": if v4 { "IPv4" } else { "IPv6" }})
}

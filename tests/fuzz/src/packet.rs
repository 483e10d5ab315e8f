//! Frames: the judgement of the packet path, run on compiled tables in userspace, against the oracle's reader. The
//! first byte says where the frame is put, the rest is the frame.
#![no_main]

use std::cell::RefCell;
use std::net::IpAddr;
use std::thread_local;

use libfuzzer_sys::fuzz_target;
use portcullis_common::event::{Action, Direction as Way};
use portcullis_common::judge::{At, Origin as From};
use portcullis_common::wire::{
    ENDPOINT_MAC, ENDPOINT_QUARANTINED, ENDPOINT_UNBOUND, EndpointConfig, LINK_IP,
};
use portcullis_oracle::endpoint::{Because, Binding, Endpoint, Hook, Origin, Owner, judge_alone};
use portcullis_oracle::packet::{Link, read};
use portcullis_oracle::{Direction, Traffic, World};
use portcullis_policy::answer::{endpoint_config, verdict_at};
use portcullis_policy::compile::Compiler;
use portcullis_policy::desired::{Desired, EndpointRulesets};
use portcullis_policy::manifest::{ManifestObject, Options, ParsedFile, load};
use portcullis_policy::model::ObjectKey;
use serde_json::{Value, json};

const PODS: [&str; 2] = ["closed", "open"];
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 2];

struct Case {
    world: World,
    desired: Desired,
}

thread_local! {
    static CASE: RefCell<Case> = RefCell::new(Case::new());
}

impl Case {
    fn new() -> Self {
        let pod = |name: &str, number: u8| {
            let addresses = [format!("10.77.0.{number}"), format!("fd77::{number}")];
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": name, "labels": {"app": name}},
                "spec": {"containers": [{"name": "c"}]},
                "status": {"podIPs": [{"ip": addresses[0]}, {"ip": addresses[1]}]},
            })
        };
        let rules = json!([{"ports": [{"port": 80}, {"protocol": "UDP", "port": 53}, {"protocol": "SCTP"}]}]);
        let objects = [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}),
            pod(PODS[0], 1),
            pod(PODS[1], 2),
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "x", "name": "p"},
                "spec": {"podSelector": {"matchLabels": {"app": PODS[0]}}, "policyTypes": ["Ingress", "Egress"],
                    "ingress": rules, "egress": rules},
            }),
        ];
        let of = |value: &Value| ManifestObject { line: 1, value: value.clone() };
        let file = ParsedFile { path: "case.json".to_owned(), objects: objects.iter().map(of).collect() };
        let cluster = load(&[file], &Options { pod_cidrs: Vec::new() }).cluster;
        let (desired, _) = Compiler::new(0).compile(&cluster, cluster.pods.keys()).expect("there is room");
        Self { world: World::new(&objects), desired }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((place, frame)) = data.split_first() else { return };
    CASE.with_borrow(|case| compare(case, *place, frame));
});

fn compare(case: &Case, place: u8, frame: &[u8]) {
    let pod = PODS[usize::from(place & 1)];
    let key = format!("x/{pod}");
    let addresses = case.world.addresses(&key);
    let mut config: EndpointConfig = endpoint_config(&addresses);
    let mut endpoint = Endpoint {
        addresses,
        link: Link::Ethernet,
        station: None,
        binding: Binding::On,
        owner: Owner::Known,
    };
    match place >> 3 & 7 {
        1 => (config.link, endpoint.link) = (LINK_IP, Link::Ip),
        2 => {
            config.flags |= ENDPOINT_MAC;
            config.mac[..6].copy_from_slice(&STATION);
            endpoint.station = Some(STATION);
        }
        3 => (config.flags, endpoint.binding) = (config.flags | ENDPOINT_UNBOUND, Binding::Off),
        4 => (config.flags, endpoint.owner) = (config.flags | ENDPOINT_QUARANTINED, Owner::Unknown),
        _ => {}
    }
    let (direction, origin, way, from) = match place >> 1 & 3 {
        0 => (Direction::Ingress, Origin::Elsewhere, Way::Ingress, From::Forwarded),
        1 => (Direction::Ingress, Origin::Node, Way::Ingress, From::OwnNode),
        2 => (Direction::Ingress, Origin::Pod, Way::Ingress, From::OwnInterface),
        _ => (Direction::Egress, Origin::Pod, Way::Egress, From::OwnInterface),
    };
    let mut decide = |remote: IpAddr, traffic: Traffic| {
        let verdict = case.world.judge_by_policies(&key, direction, remote, traffic);
        Because::from(&verdict.expect("the pod is there").reason)
    };
    let nobody = IpAddr::from([0; 4]);
    let is_isolated = decide(nobody, Traffic::IcmpEcho) != Because::NotIsolated;
    let reading = read(frame, endpoint.link);
    let theirs = judge_alone(&endpoint, &reading, Hook { direction, origin, is_isolated }, &mut decide);
    let rulesets = case.desired.endpoints.get(&ObjectKey::new("x", pod)).copied();
    let rulesets = rulesets.unwrap_or(EndpointRulesets::CLOSED);
    let at = At { slot: 0, direction: way, origin: from };
    let ours = verdict_at(&case.desired, config, rulesets, at, frame);
    assert!(
        (ours.action == Action::Allow) == theirs.passes() && ours.reason.name() == theirs.name(),
        "{endpoint:?} {direction:?} {origin:?} {reading:?}: oracle {theirs:?}, ours {ours:?}"
    );
}

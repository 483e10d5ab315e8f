//! Cyclonus cases as real pods: their labels, namespaces and policies, with CIDRs around the addresses that the pods
//! got, against what the oracle says of the cluster's own objects. `PORTCULLIS_CYCLONUS_CASES=20` covers every tag.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use portcullis_oracle::cyclonus::{self, Case, Step};
use portcullis_oracle::{Family, Traffic};
use portcullis_tests::cluster::probe::{Agreement, Truth, agree};
use portcullis_tests::cluster::scene::count;
use portcullis_tests::cluster::{Cluster, items, server, text};
use serde_json::{Value, json};

/// How many cases cover every tag.
const CASES: usize = 20;
/// How many run in the gate: of those that cover most.
const IN_THE_GATE: usize = 6;
/// What cannot be probed everywhere: not every kernel has sockets for it.
const LEFT_OUT: &str = "sctp";
/// The ports that every pod of the cases serves.
const TRAFFIC: [Traffic; 4] = [
    Traffic::To(portcullis_oracle::Protocol::Tcp, 80),
    Traffic::To(portcullis_oracle::Protocol::Tcp, 81),
    Traffic::To(portcullis_oracle::Protocol::Udp, 80),
    Traffic::To(portcullis_oracle::Protocol::Udp, 81),
];

fn tags(case: &Case) -> BTreeSet<&str> {
    case.iter().flat_map(|step| &step.tags).map(String::as_str).filter(|tag| *tag != LEFT_OUT).collect()
}

/// Whichever covers most tags that none has covered yet, the first of several that do, until all are covered; then
/// others in turn, every fourth of IPv6. In the file's order.
fn choose(cases: &[Case], many: usize) -> Vec<&Case> {
    let mut missing: BTreeSet<&str> = cases.iter().flat_map(tags).collect();
    let mut rest: Vec<(usize, &Case)> = cases.iter().enumerate().collect();
    let mut chosen = Vec::new();
    while chosen.len() < many && !rest.is_empty() {
        let gain = |case: &Case| tags(case).intersection(&missing).count();
        let wanted = if chosen.len() % 4 == 3 { Family::Ipv6 } else { Family::Ipv4 };
        let fits = |case: &Case| missing.is_empty() && case[0].family == wanted;
        let best = (0..rest.len())
            .rev()
            .max_by_key(|at| (gain(rest[*at].1), fits(rest[*at].1)))
            .expect("there are cases left");
        let next = rest.remove(best);
        missing = missing.difference(&tags(next.1)).copied().collect();
        chosen.push(next);
    }
    chosen.sort_by_key(|(position, _)| *position);
    chosen.into_iter().map(|(_, case)| case).collect()
}

/// An object of a step, by kind, namespace and name.
type Key = (String, String, String);

fn key(object: &Value) -> Key {
    (text(object, "/kind"), text(object, "/metadata/namespace"), text(object, "/metadata/name"))
}

/// The cluster as the last step left it.
struct Stage<'a> {
    cluster: &'a Cluster,
    nodes: Vec<String>,
    there: BTreeMap<Key, Value>,
}

impl Stage<'_> {
    /// Namespaces and pods first: the CIDRs of policies are made of the addresses that the pods got.
    fn set(&mut self, step: &Step) -> Result<()> {
        let mut wanted: BTreeMap<Key, Value> = BTreeMap::new();
        for object in step.manifests.iter().filter(|object| object["kind"] != "NetworkPolicy") {
            let object = if object["kind"] == "Pod" { self.pod(object) } else { object.clone() };
            wanted.insert(key(&object), object);
        }
        // A namespace before what lies in it: kinds in the order of their names would be the same by chance only.
        let (namespaces, pods): (Vec<Value>, Vec<Value>) =
            wanted.values().cloned().partition(|object| object["kind"] == "Namespace");
        self.apply(&namespaces)?;
        self.apply(&pods)?;
        self.remove_all_but(|key| wanted.contains_key(key) || key.0 == "NetworkPolicy")?;
        let addresses = self.addresses(step)?;
        let policies: Vec<Value> = step
            .manifests
            .iter()
            .filter(|object| object["kind"] == "NetworkPolicy")
            .map(|policy| moved(policy, &addresses))
            .collect();
        let named: BTreeSet<Key> = policies.iter().map(key).collect();
        self.remove_all_but(|key| wanted.contains_key(key) || named.contains(key))?;
        self.apply(&policies)
    }

    /// What differs from what is there.
    fn apply(&mut self, objects: &[Value]) -> Result<()> {
        let news: Vec<Value> =
            objects.iter().filter(|object| self.there.get(&key(object)) != Some(*object)).cloned().collect();
        self.cluster.apply(&news)?;
        self.there.extend(news.into_iter().map(|object| (key(&object), object)));
        Ok(())
    }

    fn remove_all_but(&mut self, keep: impl Fn(&Key) -> bool) -> Result<()> {
        let gone: Vec<Key> = self.there.keys().filter(|key| !keep(key)).cloned().collect();
        // A namespace takes what lies in it along.
        for key in gone.iter().rev() {
            let (kind, namespace, name) = key;
            let mut words = vec!["delete", kind, name, "--ignore-not-found", "--wait"];
            if !namespace.is_empty() {
                words.extend(["-n", namespace]);
            }
            self.cluster.kubectl(&words)?;
            self.there.remove(key);
        }
        Ok(())
    }

    /// A case's pod as one that runs: a server a port, on one of the nodes.
    fn pod(&self, pod: &Value) -> Value {
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let place = namespace.bytes().chain(name.bytes()).map(usize::from).sum::<usize>();
        let declared = pod.pointer("/spec/containers/0/ports").and_then(Value::as_array);
        let of_port = |port: u16| -> Vec<Value> {
            let all = declared.into_iter().flatten();
            all.filter(|declared| declared["containerPort"] == port).cloned().collect()
        };
        let servers = [80, 81].map(|port| server(&format!("serve-{port}"), port, &json!(of_port(port))));
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": pod.pointer("/metadata/labels")},
            "spec": {
                "nodeName": self.nodes[place % self.nodes.len()],
                "terminationGracePeriodSeconds": 0,
                "containers": servers,
            },
        })
    }

    /// The pods' addresses in the case and here, once all run.
    fn addresses(&self, step: &Step) -> Result<Vec<(IpAddr, IpAddr)>> {
        let pods = step.manifests.iter().filter(|object| object["kind"] == "Pod");
        let namespaces: BTreeSet<String> = pods.map(|pod| text(pod, "/metadata/namespace")).collect();
        for namespace in &namespaces {
            let ready = ["-n", namespace, "wait", "--for=condition=Ready", "--timeout=120s", "pods", "--all"];
            self.cluster.kubectl(&ready)?;
        }
        let truth = Truth::read(self.cluster)?;
        let mut pairs = Vec::new();
        for pod in step.manifests.iter().filter(|object| object["kind"] == "Pod") {
            let name = format!("{}/{}", text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
            let case: IpAddr = text(pod, "/status/podIP").parse()?;
            let here = truth.world().address(&name, step.family);
            pairs.push((case, here.with_context(|| format!("{name} has no address of {:?}", step.family))?));
        }
        Ok(pairs)
    }
}

/// The policy with each of its prefixes around the address that the first pod in it has here.
fn moved(policy: &Value, addresses: &[(IpAddr, IpAddr)]) -> Value {
    match policy {
        Value::String(text) => match text.parse::<IpNet>() {
            Ok(net) => {
                let first = addresses.iter().find(|(case, _)| net.contains(case));
                let around = first.and_then(|(_, here)| IpNet::new(*here, net.prefix_len()).ok());
                json!(around.unwrap_or(net).trunc().to_string())
            }
            Err(_) => policy.clone(),
        },
        Value::Array(all) => all.iter().map(|value| moved(value, addresses)).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), moved(value, addresses))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => policy.clone(),
    }
}

fn has_family(cluster: &Cluster, family: Family) -> Result<bool> {
    let nodes = cluster.get(&["nodes"])?;
    let cidrs =
        items(&nodes).iter().flat_map(|node| node["spec"]["podCIDRs"].as_array().into_iter().flatten());
    let families = cidrs.filter_map(Value::as_str).filter_map(|cidr| cidr.parse::<IpNet>().ok());
    Ok(families.map(|net| Family::of(net.addr())).any(|found| found == family))
}

#[test]
fn the_chosen_cases_cover_every_tag_but_sctp_and_both_families() {
    let cases = cyclonus::cases().unwrap();
    let chosen = choose(&cases, CASES);
    let every: BTreeSet<&str> = cases.iter().flat_map(tags).collect();
    let covered: BTreeSet<&str> = chosen.iter().flat_map(|case| tags(case)).collect();
    assert_eq!((chosen.len(), &covered), (CASES, &every));
    assert!(chosen.iter().any(|case| case[0].family == Family::Ipv6));
}

#[test]
fn cases_run_as_the_oracle_says() {
    let Some(cluster) = Cluster::of_environment() else { return };
    cluster.install().unwrap();
    cluster.delete_namespaces(&["x", "y", "z"]).unwrap();
    let mut stage = Stage { cluster: &cluster, nodes: cluster.nodes().unwrap(), there: BTreeMap::new() };
    let all = cyclonus::cases().unwrap();
    let chosen = choose(&all, count("PORTCULLIS_CYCLONUS_CASES", IN_THE_GATE));
    let (mut states, mut sum, mut wrong) = (0, Agreement::default(), Vec::new());
    for case in &chosen {
        if !has_family(&cluster, case[0].family).unwrap() {
            println!("case {} is left out: pods here have no {:?}", case[0].id, case[0].family);
            continue;
        }
        for step in *case {
            let what = format!("case {} {:?} step {}: {}", step.id, step.family, step.step, step.description);
            stage.set(step).with_context(|| what.clone()).unwrap();
            let truth = Truth::read(&cluster).unwrap();
            let probes = truth.probes(&step.order, &TRAFFIC, step.family);
            match agree(&cluster, &truth, &probes) {
                Ok(agreement) => {
                    sum.agreed += agreement.agreed;
                    sum.denied += agreement.denied;
                }
                Err(error) => wrong.push(format!("{what}: {error:#}")),
            }
            states += 1;
        }
    }
    println!(
        "{} cases, {states} states: {} probes agree, {} of them denied",
        chosen.len(),
        sum.agreed,
        sum.denied
    );
    cluster.delete_namespaces(&["x", "y", "z"]).unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(sum.denied > 0 && sum.agreed > sum.denied);
}

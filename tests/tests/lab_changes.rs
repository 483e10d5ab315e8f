//! Changes of labels, names of ports, addresses, pods, namespaces and policies, and clusters that have little in
//! common, given to one running agent: what it enforces then is what the oracle says and what an agent enforces
//! that starts in that state.
#![allow(missing_docs)]

use std::thread::sleep;
use std::time::Duration;

use portcullis_lab::Hook;
use portcullis_oracle::{Traffic, generate};
use portcullis_tests::compare::cluster_of;
use portcullis_tests::live::agreement::Tally;
use portcullis_tests::live::expected::Expected;
use portcullis_tests::live::{Live, Rig, State, in_all_rigs};
use portcullis_tests::privilege::{is_root, number};
use serde_json::{Value, json};

/// Random clusters for each hook, and the first one's seed.
const CLUSTERS: u64 = 6;
const SEED: u64 = 7_000;

/// Longer than the agent waits for quiet, and than from one audit to the next.
const REST: Duration = Duration::from_millis(2_500);

/// The addresses of two pods that take each other's.
const WEB: [&str; 2] = ["10.244.5.1", "fd00:10:244:5::1"];
const CLIENT: [&str; 2] = ["10.244.5.2", "fd00:10:244:5::2"];

/// A cluster, its parts to be changed one at a time.
#[derive(Clone)]
struct Shop {
    bank: Value,
    web_port: u16,
    web_phase: &'static str,
    web_ips: Vec<&'static str>,
    client_app: &'static str,
    client_ips: Vec<&'static str>,
    more: Vec<Value>,
    policies: Vec<Value>,
}

impl Shop {
    /// Clients and the bank reach the web server at its port `http`; the client reaches nobody else.
    fn new() -> Self {
        let web_in = policy(
            "web-in",
            json!({
                "podSelector": {"matchLabels": {"app": "web"}},
                "ingress": [{
                    "from": [
                        {"podSelector": {"matchLabels": {"app": "client"}}},
                        {"namespaceSelector": {"matchLabels": {"team": "bank"}}},
                    ],
                    "ports": [{"port": "http"}],
                }],
            }),
        );
        let client_out = policy(
            "client-out",
            json!({
                "podSelector": {"matchLabels": {"app": "client"}},
                "policyTypes": ["Egress"],
                "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": "http"}]}],
            }),
        );
        Self {
            bank: namespace("bank", &json!({"team": "bank"})),
            web_port: 80,
            web_phase: "Running",
            web_ips: WEB.to_vec(),
            client_app: "client",
            client_ips: CLIENT.to_vec(),
            more: vec![pod("bank", "teller", "teller", &["10.244.6.1", "fd00:10:244:6::1"], 81, "Running")],
            policies: vec![web_in, client_out],
        }
    }

    fn manifests(&self) -> Vec<Value> {
        let mut all = vec![
            namespace("shop", &json!({})),
            self.bank.clone(),
            pod("shop", "web", "web", &self.web_ips, self.web_port, self.web_phase),
            pod("shop", "client", self.client_app, &self.client_ips, 82, "Running"),
        ];
        all.extend(self.more.iter().chain(&self.policies).cloned());
        all
    }
}

fn namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn pod(namespace: &str, name: &str, app: &str, ips: &[&str], port: u16, phase: &str) -> Value {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {"phase": phase, "podIPs": ips},
    })
}

fn policy(name: &str, spec: Value) -> Value {
    let mut policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": name},
    });
    policy["spec"] = spec;
    policy
}

/// States that follow each other, each by one change.
fn changes() -> Vec<(&'static str, Shop)> {
    let mut states = vec![("the first state", Shop::new())];
    let mut change = |what, how: &dyn Fn(&mut Shop)| {
        let mut next = states.last().expect("there is one").1.clone();
        how(&mut next);
        states.push((what, next));
    };
    change("the client loses its label", &|s| s.client_app = "stranger");
    change("the client has it again", &|s| s.client_app = "client");
    change("the bank's namespace loses its label", &|s| s.bank = namespace("bank", &json!({"team": "none"})));
    change("the bank's namespace has it again", &|s| s.bank = Shop::new().bank);
    change("the port's name means another number", &|s| s.web_port = 8080);
    change("web and client change places", &|s| (s.web_ips, s.client_ips) = (CLIENT.to_vec(), WEB.to_vec()));
    change("web has finished, another pod has its addresses", &|s| {
        s.web_phase = "Succeeded";
        s.more.push(pod("shop", "web-2", "web", &CLIENT, 80, "Running"));
    });
    change("the policy lets a range in, without the client", &|s| {
        s.policies[0] = policy(
            "web-in",
            json!({
                "podSelector": {"matchLabels": {"app": "web"}},
                "ingress": [{"from": [{"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.5.1/32"]}}]}],
            }),
        );
    });
    change("everything of the shop is closed", &|s| {
        s.policies.push(policy("closed", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})));
    });
    change("the bank goes with its pod", &|s| {
        s.bank = namespace("empty", &json!({}));
        s.more.remove(0);
    });
    change("no policy is left", &|s| s.policies.clear());
    states
}

/// What a state is, its objects, and what is asked.
type Step = (String, Vec<Value>, Vec<Traffic>);

fn run(steps: &[Step], rig: Rig) -> Tally {
    let mut tally = Tally::default();
    let mut live = None;
    for (what, manifests, traffics) in steps {
        let expected = Expected::by_oracle(manifests, traffics);
        let live = Live::bring(&mut live, &State::of_objects(manifests), &[], rig);
        let what = format!("{what} ({})", rig.name());
        tally += live.check_agreement(&expected).of(&what);
        live.start_cold();
        tally += live.check_agreement(&expected).of(&format!("{what}, started cold"));
    }
    tally
}

#[test]
fn every_kind_of_change_converges() {
    if !is_root("a lab") {
        return;
    }
    let traffics = [Traffic::tcp(80), Traffic::tcp(8080), Traffic::udp(80), Traffic::IcmpEcho];
    let steps: Vec<Step> = changes()
        .into_iter()
        .map(|(what, shop)| (what.to_owned(), shop.manifests(), traffics.to_vec()))
        .collect();
    let tally = in_all_rigs(|rig, _| run(&steps, rig));
    println!("{tally}");
    tally.assert_right();
}

#[test]
fn random_clusters_follow_each_other() {
    if !is_root("a lab") {
        return;
    }
    let (clusters, seed) = (number("PORTCULLIS_LAB_CLUSTERS", CLUSTERS), number("PORTCULLIS_LAB_SEED", SEED));
    println!("{clusters} clusters for each hook from seed {seed}");
    let tally = in_all_rigs(|rig, part| {
        let suitable = (seed..).map(generate::cluster).filter(has_all_addresses);
        let steps: Vec<Step> = suitable
            .skip(part)
            .step_by(2)
            .zip(0..clusters)
            .map(|(c, _)| (format!("seed {}", c.seed), c.manifests, c.traffics))
            .collect();
        run(&steps, rig)
    });
    println!("{tally}");
    tally.assert_right();
}

/// A pod without an address would get one from the manifests' reader, of which the oracle knows nothing.
fn has_all_addresses(cluster: &generate::Cluster) -> bool {
    let pods = cluster_of(&cluster.manifests).pods;
    pods.values().all(|pod| !pod.is_live() || !pod.has_own_network() || !pod.addresses.is_empty())
}

#[test]
fn a_directory_at_rest_is_read_once() {
    if !is_root("a lab") {
        return;
    }
    let live = Live::up(&State::of_objects(&Shop::new().manifests()), Vec::new(), Hook::Auto);
    sleep(REST);
    assert_eq!(live.lab().applied(), Some(1), "reading is no news, and neither is an audit");
}

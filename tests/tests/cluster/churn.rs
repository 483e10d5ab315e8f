//! Policies that come, change and go many times a second, beside pods that come and go. Every version allows one flow
//! and denies another, so neither may ever be judged otherwise; at rest everything is as the oracle says.
//! `PORTCULLIS_CHURN_SECONDS=N` goes on for so long, `PORTCULLIS_CHURN_SEED=N` begins with that seed.

use std::thread::sleep;
use std::time::{Duration, Instant};

use portcullis_oracle::rng::SplitMix64;
use portcullis_oracle::{Family, Traffic};
use portcullis_tests::cluster::api::Api;
use portcullis_tests::cluster::probe::{Agreement, Truth, agree};
use portcullis_tests::cluster::scene::{count, datagrams, idle, pod, policy};
use portcullis_tests::cluster::{Cluster, server};
use serde_json::{Value, json};

const OURS: &str = "pc-churn";
/// In the gate.
const SECONDS: usize = 15;
/// Between two changes of policies.
const PACE: Duration = Duration::from_millis(40);
/// Policies that come and go.
const POLICIES: usize = 24;
/// Changes from one change of a pod to the next.
const CHANGES_A_POD: usize = 60;
/// Pods that come and go.
const GUESTS: usize = 4;
/// How long it goes on from one rest to the next.
const STRETCH: Duration = Duration::from_mins(1);

/// Labels that no pod has which must stay out.
const OTHERS: [&str; 4] = ["guest-0", "guest-1", "guest-2", "nobody"];

/// What allows the friend, in one of many ways, and perhaps others.
fn allows(rng: &mut SplitMix64, addresses: &[String]) -> Value {
    let blocks = || -> Vec<Value> {
        let length = |address: &String| if address.contains(':') { 128 } else { 32 };
        let block = |address: &String| json!({"ipBlock": {"cidr": format!("{address}/{}", length(address))}});
        addresses.iter().map(block).collect()
    };
    let mut peers = match rng.below(4) {
        0 => vec![json!({"podSelector": {"matchLabels": {"app": "friend"}}})],
        1 => vec![json!({"podSelector": {"matchExpressions":
            [{"key": "app", "operator": "In", "values": ["friend", rng.pick(&OTHERS)]}]}})],
        2 => vec![json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": OURS}},
            "podSelector": {"matchLabels": {"app": "friend"}}})],
        _ => blocks(),
    };
    if rng.chance(500) {
        peers.push(json!({"podSelector": {"matchLabels": {"app": rng.pick(&OTHERS)}}}));
    }
    json!(peers)
}

/// All forms in which the port is named.
fn ports(rng: &mut SplitMix64) -> Value {
    match rng.below(3) {
        0 => json!([]),
        1 => json!([{"protocol": "UDP", "port": 80}, {"protocol": "TCP", "port": 80}]),
        _ => json!([{"protocol": "UDP", "port": 70, "endPort": 90}, {"port": 80}]),
    }
}

/// The friend's addresses and the server's, by which blocks allow them.
struct Addresses {
    friend: Vec<String>,
    server: Vec<String>,
}

/// Any policy under which the friend reaches the server, and the stranger not the vault.
fn any(rng: &mut SplitMix64, name: &str, addresses: &Addresses) -> Value {
    let ingress = json!([{"from": allows(rng, &addresses.friend), "ports": ports(rng)}]);
    let guests = json!([{"from": [{"podSelector": {"matchLabels": {"app": rng.pick(&OTHERS)}}}]}]);
    let egress = |rng: &mut SplitMix64| {
        let to = if rng.chance(500) {
            json!([{"podSelector": {"matchLabels": {"app": "server"}}}])
        } else {
            let block = |address: &String| {
                let length = if address.contains(':') { 128 } else { 32 };
                json!({"ipBlock": {"cidr": format!("{address}/{length}")}})
            };
            json!(addresses.server.iter().map(block).collect::<Vec<_>>())
        };
        json!([{"to": to, "ports": ports(rng)}])
    };
    let of = |app: &str| json!({"matchLabels": {"app": app}});
    let spec = match rng.below(6) {
        0 => json!({"podSelector": of("server"), "policyTypes": ["Ingress"], "ingress": [{}]}),
        1 | 2 => json!({"podSelector": of("server"), "policyTypes": ["Ingress"], "ingress": ingress}),
        3 => json!({"podSelector": of("friend"), "policyTypes": ["Egress"], "egress": egress(rng)}),
        4 => json!({"podSelector": of("vault"), "policyTypes": ["Ingress"], "ingress": guests}),
        _ => json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": ingress,
            "egress": [{"to": [{"podSelector": {}}]}]}),
    };
    policy(OURS, name, &spec)
}

/// Asks, on a flow of its own each time, and counts what is not answered: nothing is sent twice.
fn asker(address: &str) -> String {
    format!(
        "n=0; lost=0; while read -r -t 0.02 stop; [ $? -gt 128 ]; do n=$((n + 1)); \
           exec 3<>/dev/udp/{address}/80; echo hostname >&3; read -r -N 1 -t 5 -u 3 || lost=$((lost + 1)); \
         done 2>/dev/null; echo $n $lost"
    )
}

/// Sends what must not arrive.
fn stranger(addresses: &[String]) -> String {
    let datagrams = datagrams(addresses);
    let address = &addresses[0];
    format!(
        "n=0; while read -r -t 0.01 stop; [ $? -gt 128 ]; do n=$((n + 1)); {datagrams} \
           if [ $((n % 100)) = 0 ]; then kill -9 $(jobs -pr); (exec 3<>/dev/tcp/{address}/80) & fi; \
         done 2>/dev/null; kill -9 $(jobs -pr) 2>/dev/null; echo $n"
    )
}

struct Churn<'a> {
    api: &'a Api,
    rng: SplitMix64,
    nodes: &'a [String],
    addresses: Addresses,
    there: Vec<bool>,
    guests: Vec<Option<String>>,
    changes: usize,
    visits: usize,
}

impl Churn<'_> {
    fn change(&mut self) {
        let policies = format!("/apis/networking.k8s.io/v1/namespaces/{OURS}/networkpolicies");
        let at = self.rng.below(POLICIES);
        let name = format!("p{at}");
        let one = format!("{policies}/{name}");
        let made = any(&mut self.rng, &name, &self.addresses);
        match (self.there[at], self.rng.chance(250)) {
            (true, true) => {
                self.api.done("DELETE", &one, None, 404).unwrap();
                self.there[at] = false;
            }
            (true, false) => self.api.done("PUT", &one, Some(&made), 409).unwrap(),
            (false, _) => {
                self.api.done("POST", &policies, Some(&made), 409).unwrap();
                self.there[at] = true;
            }
        }
        self.changes += 1;
        if self.changes.is_multiple_of(CHANGES_A_POD) {
            self.visit();
        }
    }

    /// A guest goes, and another comes in its place.
    fn visit(&mut self) {
        let pods = format!("/api/v1/namespaces/{OURS}/pods");
        let at = self.visits % GUESTS;
        if let Some(gone) = self.guests[at].take() {
            self.api.done("DELETE", &format!("{pods}/{gone}"), None, 404).unwrap();
        }
        let name = format!("g{}", self.visits);
        let node = &self.nodes[self.visits % self.nodes.len()];
        let serving = json!([server("serve", 80, &json!([{"containerPort": 80}]))]);
        let labels = json!({"app": OTHERS[at % 3]});
        self.api.done("POST", &pods, Some(&pod(OURS, &name, node, &labels, &serving)), 409).unwrap();
        self.guests[at] = Some(name);
        self.visits += 1;
    }

    /// All pairs, as the oracle says.
    fn rest(&self, cluster: &Cluster) -> Agreement {
        cluster.pods_ready(OURS).unwrap();
        let truth = Truth::read(cluster).unwrap();
        let pods: Vec<String> = ["friend", "server", "stranger"]
            .iter()
            .map(|name| (*name).to_owned())
            .chain(self.guests.iter().flatten().cloned())
            .map(|name| format!("{OURS}/{name}"))
            .collect();
        let ports = [Traffic::tcp(80), Traffic::udp(80)];
        let all: Vec<_> = [Family::Ipv4, Family::Ipv6]
            .into_iter()
            .flat_map(|family| truth.probes(&pods, &ports, family))
            // Only the others serve.
            .filter(|probe| !probe.to.ends_with("/friend") && !probe.to.ends_with("/stranger"))
            .collect();
        agree(cluster, &truth, &all).unwrap()
    }
}

#[test]
fn policies_that_churn_never_open_what_all_deny_nor_deny_what_all_allow() {
    let Some(cluster) = Cluster::of_environment() else { return };
    cluster.install().unwrap();
    let nodes = cluster.nodes().unwrap();
    let serving = json!([server("serve", 80, &json!([{"containerPort": 80}]))]);
    let named = |name: &str, node: &String, containers: &Value| {
        pod(OURS, name, node, &json!({"app": name}), containers)
    };
    let (first, last) = (&nodes[0], nodes.last().unwrap());
    let closed = policy(
        OURS,
        "vault",
        &json!({"podSelector": {"matchLabels": {"app": "vault"}}, "policyTypes": ["Ingress"]}),
    );
    let objects = [
        named("server", first, &serving),
        named("friend", last, &idle()),
        named("stranger", first, &idle()),
        named("vault", last, &idle()),
        closed,
    ];
    cluster.stage(OURS, &objects).unwrap();
    let of = |name: &str| cluster.addresses(OURS, name).unwrap();
    let addresses = Addresses { friend: of("friend"), server: of("server") };
    let vault = of("vault");
    let before = cluster.arrived(OURS, "vault").unwrap();
    let asking: Vec<_> = addresses
        .server
        .iter()
        .map(|address| cluster.in_pod(OURS, "friend", &asker(address)).unwrap())
        .collect();
    let knocking = cluster.in_pod(OURS, "stranger", &stranger(&vault)).unwrap();
    let api = Api::start(&cluster).unwrap();
    let seed = count("PORTCULLIS_CHURN_SEED", 1);
    let mut churn = Churn {
        api: &api,
        rng: SplitMix64::new(seed as u64),
        nodes: &nodes,
        addresses,
        there: vec![false; POLICIES],
        guests: vec![None; GUESTS],
        changes: 0,
        visits: 0,
    };
    // when
    let mut left = Duration::from_secs(count("PORTCULLIS_CHURN_SECONDS", SECONDS) as u64);
    let (mut changing, mut rests) = (Duration::ZERO, Vec::new());
    while !left.is_zero() {
        let stretch = left.min(STRETCH);
        let begun = Instant::now();
        let mut next = begun;
        while begun.elapsed() < stretch {
            churn.change();
            next += PACE;
            sleep(next.saturating_duration_since(Instant::now()));
        }
        changing += begun.elapsed();
        left -= stretch;
        rests.push(churn.rest(&cluster));
    }
    // then
    let asked: Vec<String> =
        asking.into_iter().map(|going| going.stop().unwrap().trim().to_owned()).collect();
    let knocked = knocking.stop().unwrap();
    println!(
        "seed {seed}: {} changes of policies in {} s, {} pods; at rest {rests:?}; asked and lost {asked:?}, knocked {}",
        churn.changes,
        changing.as_secs(),
        churn.visits,
        knocked.trim()
    );
    for said in &asked {
        let (times, unanswered) = said.split_once(' ').unwrap();
        assert!(times.parse::<u64>().unwrap() > 50, "{said}");
        assert_eq!(unanswered, "0", "of what every version allows");
    }
    assert!(knocked.trim().parse::<u64>().unwrap() > 50, "{knocked}");
    let arrived = cluster.arrived(OURS, "vault").unwrap() - before;
    assert_eq!(arrived, 0, "of what every version denies");
    cluster.delete_namespaces(&[OURS]).unwrap();
}

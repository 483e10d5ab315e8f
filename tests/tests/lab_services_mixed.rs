//! Services with backends of which policies allow some and deny others, by translators of kube-proxy's shapes. Which backend
//! was chosen the kernel's table of connections says, and what policies say of that one an oracle of its own.
//! `PORTCULLIS_CONNECTIONS` sets how many connections are made, [`CONNECTIONS`] else.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;
use portcullis_lab::netns::Netns;
use portcullis_lab::{AgentSpec, Cni, Hook, Lab, LabOptions};
use portcullis_oracle::World;
use portcullis_oracle::rng::SplitMix64;
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::field::run;
use portcullis_tests::lifecycle::{PATIENCE, agent};
use portcullis_tests::privilege::{is_root, number};
use portcullis_tests::services::{
    Ask, Call, Chosen, Face, Field, Heard, QUIET, Score, enter_cgroup, leave_cgroup, listen,
};
use serde_json::{Value, json};

/// Connections of all scenes together.
const CONNECTIONS: u64 = 2_000;
/// How many are open at once.
const BATCH: u64 = 400;
/// What backends listen at, and policies speak of.
const PORT: u16 = 5000;
/// What they listen at too.
const SHUT: u16 = 5001;
/// What nobody listens at.
const CLOSED: u16 = 5009;
/// Connections that are held while a backend becomes denied.
const HELD: usize = 200;
const SEED: u64 = 1;
/// A datagram that has to be cut.
const LARGE: usize = 4_000;
/// kube-proxy's mark of what it masquerades.
const MASQUERADE: &str = "0x4000";

const CLIENTS: [&str; 4] = ["mix/c1", "mix/c2", "mix/c3", "mix/c4"];
/// Pods in the order of their numbers, from 1: clients, then backends.
const PODS: [&str; 8] = ["c1", "c2", "c3", "c4", "b1", "b2", "b3", "b4"];
const OUTSIDE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Beyond the tunnel.
const FAR: [&str; 2] = ["10.244.3.20", "fd00:244:3::20"];

/// Behind a virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Pod(&'static str),
    Outside,
    Far,
    Node,
}

/// The Services: the backends of each.
const SERVICES: [&[(Place, u16)]; 6] = [
    &[(Place::Pod("b1"), PORT), (Place::Pod("b2"), PORT), (Place::Pod("b3"), PORT), (Place::Pod("b4"), PORT)],
    &[
        (Place::Pod("b1"), PORT),
        (Place::Pod("b1"), SHUT),
        (Place::Pod("b2"), SHUT),
        (Place::Outside, PORT),
        (Place::Outside, SHUT),
        (Place::Far, PORT),
        (Place::Far, SHUT),
        (Place::Node, PORT),
    ],
    // Each client is a backend.
    &[(Place::Pod("c1"), PORT), (Place::Pod("c2"), PORT), (Place::Pod("b2"), PORT)],
    // Nobody listens.
    &[(Place::Pod("b1"), CLOSED), (Place::Pod("b2"), CLOSED), (Place::Outside, CLOSED)],
    // No Service: a pod's host port.
    &[(Place::Pod("b4"), PORT)],
    // No backend.
    &[],
];
/// Which of them is a host port.
const HOST_PORT: usize = 4;

/// Where a Service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    Cluster,
    External,
    NodePort,
    /// A rule that no Service shows.
    Unknown,
}

const FRONTS: [Front; 4] = [Front::Cluster, Front::External, Front::NodePort, Front::Unknown];

impl Front {
    const fn face(self) -> Face {
        match self {
            Self::Cluster | Self::External => Face::Virtual,
            Self::NodePort => Face::NodePort,
            Self::Unknown => Face::Unknown,
        }
    }

    /// The address and the port, of a node with these addresses.
    fn at(self, service: usize, family: usize, node: Both) -> (IpAddr, u16) {
        match self {
            Self::Cluster => (cluster_ip(service)[family], 80),
            Self::External => (external_ip(service)[family], 80),
            Self::NodePort => (node[family], node_port(service)),
            Self::Unknown => (unknown_ip(service)[family], 80),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Translator {
    Nft,
    Iptables,
}

/// Addresses of both families: IPv4, then IPv6.
type Both = [IpAddr; 2];

fn both(texts: [&str; 2]) -> Both {
    texts.map(|text| text.parse().unwrap())
}

fn pod_addresses(name: &str) -> Both {
    let number = PODS.iter().position(|pod| *pod == name).unwrap() + 1;
    [format!("10.79.0.{number}").parse().unwrap(), format!("fd79::{number}").parse().unwrap()]
}

struct Scene {
    lab: Lab,
    dir: PathBuf,
    world: World,
    node: Both,
}

impl Scene {
    fn up(translator: Translator, cni: Cni, hook: Hook) -> Self {
        // Before the node's sockets are opened.
        let cgroup = enter_cgroup();
        let dir = std::env::temp_dir().join(format!(
            "portcullis-mixed-{translator:?}-{}-{}",
            hook.name(),
            std::process::id()
        ));
        fs::create_dir_all(&dir).unwrap();
        // The uplink's addresses are the lab's to choose.
        write(&dir, &manifests(both(["192.168.50.1", "fd50::1"]), "a"));
        let cluster = portcullis_lab::source::read(&dir, &[]).unwrap().cluster;
        let protocols = [Protocol::Tcp, Protocol::Udp];
        let ports = protocols.iter().flat_map(|protocol| [(*protocol, PORT), (*protocol, SHUT)]).collect();
        let outside = both(FAR).into();
        let mut lab = Lab::up(&cluster, LabOptions { ports, outside, cni, ..LabOptions::default() }).unwrap();
        let link = &lab.state().link;
        let node = [link.node4.into(), link.node6.into()];
        let manifests = manifests(node, "a");
        write(&dir, &manifests);
        tunnel(&lab);
        switch_bridges(&lab);
        match translator {
            Translator::Nft => nft(&lab, node),
            Translator::Iptables => iptables(&lab, node),
        }
        let arguments = vec![OsString::from("--cgroup-root"), cgroup.into_os_string()];
        let spec = AgentSpec { binary: agent(), source: dir.clone(), hook, arguments };
        lab.start_agent(&spec).unwrap();
        lab.wait_applied(1, PATIENCE).unwrap();
        Self { lab, dir, world: World::new(&manifests), node }
    }
}

impl Field for Scene {
    fn node(&self) -> &Netns {
        self.lab.node()
    }

    fn pod(&self, name: &str) -> &Netns {
        let (namespace, name) = name.split_once('/').unwrap();
        self.lab.pod(&ObjectKey::new(namespace, name)).unwrap()
    }

    fn world(&self) -> &World {
        &self.world
    }

    fn is_closed(&self, backend: SocketAddr) -> bool {
        backend.port() == CLOSED
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", fs::read_to_string(self.lab.agent_log()).unwrap_or_default());
        }
        drop(fs::remove_dir_all(&self.dir));
    }
}

fn cluster_ip(service: usize) -> Both {
    [format!("10.96.9.{}", service + 1).parse().unwrap(), format!("fd96::9:{}", service + 1).parse().unwrap()]
}

fn external_ip(service: usize) -> Both {
    [
        format!("198.51.100.{}", service + 1).parse().unwrap(),
        format!("2001:db8:51::{}", service + 1).parse().unwrap(),
    ]
}

fn unknown_ip(service: usize) -> Both {
    [
        format!("203.0.113.{}", service + 1).parse().unwrap(),
        format!("2001:db8:113::{}", service + 1).parse().unwrap(),
    ]
}

fn node_port(service: usize) -> u16 {
    30_080 + u16::try_from(service).unwrap()
}

/// c1 and c2 may send to some pods and addresses, c3 to everything outside of the cluster, c4 anywhere; b3 takes only what c1
/// sends.
fn manifests(node: Both, tier_of_b1: &str) -> Vec<Value> {
    let mut all = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mix"}})];
    for name in PODS {
        let tier = match name {
            "b1" => tier_of_b1,
            "b2" => "b",
            "b3" => "a",
            _ => "none",
        };
        let [v4, v6] = pod_addresses(name);
        let mut ports = vec![json!({"containerPort": PORT})];
        if name == "b4" {
            let port = |protocol: &str| json!({"containerPort": PORT, "hostPort": node_port(HOST_PORT), "protocol": protocol});
            ports = ["TCP", "UDP"].map(port).into();
        }
        all.push(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "mix", "labels": {"app": name, "tier": tier}},
            "spec": {"containers": [{"name": "c", "ports": ports}]},
            "status": {"podIPs": [{"ip": v4}, {"ip": v6}]}}));
    }
    for service in (0..SERVICES.len()).filter(|service| *service != HOST_PORT) {
        let addresses = cluster_ip(service);
        let ports = ["TCP", "UDP"].map(|protocol| {
            json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "nodePort": node_port(service)})
        });
        all.push(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": format!("s{service}"), "namespace": "mix"},
            "spec": {"type": "NodePort", "clusterIP": addresses[0], "clusterIPs": addresses,
                "externalIPs": external_ip(service), "ports": ports}}));
    }
    let block = |cidr: &str| json!({"ipBlock": {"cidr": cidr}});
    let host = |address: IpAddr| block(&format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }));
    let tier = |tier: &str| json!({"podSelector": {"matchLabels": {"tier": tier}}});
    let port = |port: u16| json!([{"port": port}, {"port": port, "protocol": "UDP"}]);
    let unknown = [block("203.0.113.0/24"), block("2001:db8:113::/48")];
    let outside = both(OUTSIDE).map(host);
    let far = both(FAR).map(host);
    let mut policy = |name: &str, spec: Value| {
        all.push(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "mix"}, "spec": spec}));
    };
    let egress = |app: &str, rules: Value| json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Egress"], "egress": rules});
    policy(
        "c1",
        egress(
            "c1",
            json!([{"to": [tier("a"), outside[0], outside[1]], "ports": port(PORT)}, {"to": unknown}]),
        ),
    );
    policy(
        "c2",
        egress(
            "c2",
            json!([{"to": [tier("b"), far[0], far[1]]}, {"to": node.map(host), "ports": port(PORT)}, {"to": unknown}]),
        ),
    );
    policy(
        "c3",
        egress(
            "c3",
            json!([{"to": [
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", format!("{}/32", node[0])]}},
            {"ipBlock": {"cidr": "::/0", "except": ["fc00::/7"]}}]}]),
        ),
    );
    policy(
        "b3",
        json!({"podSelector": {"matchLabels": {"app": "b3"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "c1"}}}]}]}),
    );
    all
}

fn write(dir: &Path, manifests: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": manifests});
    let new = dir.join("new");
    fs::write(&new, list.to_string()).unwrap();
    fs::rename(new, dir.join("all.json")).unwrap();
}

/// A VXLAN tunnel between node and outside, and the way to [`FAR`] by it.
fn tunnel(lab: &Lab) {
    let link = &lab.state().link;
    let ends = [(lab.node(), link.node4, link.outside4, 1), (lab.outside(), link.outside4, link.node4, 2)];
    for (netns, local, remote, number) in ends {
        let (local, remote) = (local.to_string(), remote.to_string());
        let _ = run(
            netns,
            &[
                "ip", "link", "add", "vx0", "type", "vxlan", "id", "7", "local", &local, "remote", &remote,
                "dstport", "4789",
            ],
        );
        let _ = run(netns, &["ip", "addr", "add", &format!("10.244.255.{number}/24"), "dev", "vx0"]);
        let _ = run(netns, &["ip", "addr", "add", &format!("fd00:255::{number}/64"), "dev", "vx0", "nodad"]);
        let _ = run(netns, &["ip", "link", "set", "vx0", "up"]);
    }
    let _ = run(lab.node(), &["ip", "route", "replace", &format!("{}/32", FAR[0]), "via", "10.244.255.2"]);
    let _ =
        run(lab.node(), &["ip", "-6", "route", "replace", &format!("{}/128", FAR[1]), "via", "fd00:255::2"]);
}

/// What a bridge forwards is translated too, as on nodes.
fn switch_bridges(lab: &Lab) {
    let switched = lab.node().run(|| {
        for file in ["iptables", "ip6tables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{file}");
            if fs::exists(&path).unwrap_or(false) {
                fs::write(path, "1").unwrap();
            }
        }
    });
    switched.unwrap();
}

fn address_of(place: Place, family: usize, node: Both) -> IpAddr {
    match place {
        Place::Pod(name) => pod_addresses(name)[family],
        Place::Outside => both(OUTSIDE)[family],
        Place::Far => both(FAR)[family],
        Place::Node => node[family],
    }
}

/// As kube-proxy's nftables mode: verdict maps from addresses to Services' chains, a random endpoint's chain, a mark for what
/// is masqueraded.
fn nft(lab: &Lab, node: Both) {
    let mut rules = String::new();
    let mut chains = String::new();
    for (family, word) in ["ip", "ip6"].into_iter().enumerate() {
        for (service, backends) in SERVICES.iter().enumerate() {
            for (number, (place, port)) in backends.iter().enumerate() {
                let address = address_of(*place, family, node);
                let to = SocketAddr::new(address, *port);
                writeln!(chains, "chain {word}-ep-{service}-{number} {{").unwrap();
                writeln!(chains, " {word} saddr {address} meta mark set meta mark or {MASQUERADE}").unwrap();
                writeln!(chains, " meta l4proto {{ tcp, udp }} dnat {word} to {to}\n}}").unwrap();
            }
            if backends.is_empty() {
                continue;
            }
            writeln!(chains, "chain {word}-svc-{service} {{\n numgen random mod {} vmap {{", backends.len())
                .unwrap();
            for number in 0..backends.len() {
                writeln!(chains, "  {number} : goto {word}-ep-{service}-{number},").unwrap();
            }
            chains += " }\n}\n";
            for front in FRONTS {
                let (address, port) = front.at(service, family, node);
                let marked = match front {
                    Front::NodePort => format!("meta mark set meta mark or {MASQUERADE} "),
                    Front::Cluster | Front::External | Front::Unknown => String::new(),
                };
                writeln!(
                    rules,
                    "  {word} daddr {address} meta l4proto {{ tcp, udp }} th dport {port} {marked}goto {word}-svc-{service}"
                )
                .unwrap();
            }
        }
    }
    let text = format!(
        "table inet kubeish {{\n{chains}\nchain pre {{ type nat hook prerouting priority dstnat;\n{rules}}}\n\
         chain post {{ type nat hook postrouting priority srcnat;\n\
         meta mark & {MASQUERADE} == 0 return\n meta mark set meta mark ^ {MASQUERADE}\n masquerade fully-random\n}}\n}}\n"
    );
    feed(lab, &["nft", "-f", "-"], &text);
}

/// As kube-proxy's iptables mode.
fn iptables(lab: &Lab, node: Both) {
    for (family, program) in ["iptables-restore", "ip6tables-restore"].into_iter().enumerate() {
        let mut text = String::from("*nat\n:SERVICES - [0:0]\n:MARK-MASQ - [0:0]\n:POSTR - [0:0]\n");
        let mut rules = format!("-A MARK-MASQ -j MARK --or-mark {MASQUERADE}\n");
        for (service, backends) in SERVICES.iter().enumerate().filter(|(_, backends)| !backends.is_empty()) {
            writeln!(text, ":SVC-{service} - [0:0]\n:EXT-{service} - [0:0]").unwrap();
            writeln!(rules, "-A EXT-{service} -j MARK-MASQ\n-A EXT-{service} -j SVC-{service}").unwrap();
            for front in FRONTS {
                let (address, port) = front.at(service, family, node);
                let chain = if front == Front::NodePort { "EXT" } else { "SVC" };
                for protocol in ["tcp", "udp"] {
                    writeln!(
                        rules,
                        "-A SERVICES -d {address} -p {protocol} --dport {port} -j {chain}-{service}"
                    )
                    .unwrap();
                }
            }
            for (number, (place, port)) in backends.iter().enumerate() {
                let address = address_of(*place, family, node);
                let to = SocketAddr::new(address, *port);
                writeln!(text, ":SEP-{service}-{number} - [0:0]").unwrap();
                let left = backends.len() - number;
                let chance = if left == 1 {
                    String::new()
                } else {
                    format!(
                        "-m statistic --mode random --probability {:.6} ",
                        1.0 / f64::from(u32::try_from(left).unwrap())
                    )
                };
                writeln!(rules, "-A SVC-{service} {chance}-j SEP-{service}-{number}").unwrap();
                writeln!(rules, "-A SEP-{service}-{number} -s {address} -j MARK-MASQ").unwrap();
                for protocol in ["tcp", "udp"] {
                    writeln!(rules, "-A SEP-{service}-{number} -p {protocol} -j DNAT --to-destination {to}")
                        .unwrap();
                }
            }
        }
        text += &rules;
        writeln!(
            text,
            "-A PREROUTING -j SERVICES\n-A POSTROUTING -j POSTR\n-A POSTR -m mark ! --mark {MASQUERADE}/{MASQUERADE} -j RETURN\n\
             -A POSTR -j MARK --xor-mark {MASQUERADE}\n-A POSTR -j MASQUERADE --random-fully\nCOMMIT"
        )
        .unwrap();
        feed(lab, &[program], &text);
    }
}

fn feed(lab: &Lab, command: &[&str], text: &str) {
    let output = lab.node().run(|| {
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let output = output.unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{text}", String::from_utf8_lossy(&output.stderr));
}

/// True for a Service that has backends which listen.
fn listens(service: usize) -> bool {
    SERVICES[service].first().is_some_and(|(_, port)| *port != CLOSED)
}

/// Makes so many connections, a batch at a time.
fn mixed(scene: &Scene, connections: u64, draw: &mut SplitMix64) -> Score {
    let mut score = Score::default();
    let mut left = connections;
    while left > 0 {
        let count = left.min(BATCH);
        left -= count;
        let asks: Vec<Ask<'_>> = (0..count)
            .map(|_| {
                let service = draw.below(SERVICES.len());
                let front = if service == HOST_PORT { Front::NodePort } else { *draw.pick(&FRONTS) };
                // Where nobody listens a connection is refused, and then the kernel knows no more of it.
                let protocol =
                    if listens(service) && draw.chance(500) { Protocol::Tcp } else { Protocol::Udp };
                let (address, port) = front.at(service, draw.below(2), scene.node);
                Ask {
                    client: CLIENTS[draw.below(CLIENTS.len())],
                    face: front.face(),
                    protocol,
                    to: SocketAddr::new(address, port),
                    // Some datagrams have to be cut.
                    bytes: if draw.chance(125) { LARGE } else { 1 },
                }
            })
            .collect();
        score.add(scene, &asks);
    }
    score
}

/// Connections that are held while one backend becomes denied: how many went on, and how many were cut.
fn relabelled(scene: &mut Scene, draw: &mut SplitMix64) -> (usize, usize) {
    let asks: Vec<Ask<'_>> = (0..HELD)
        .map(|_| {
            let front = *draw.pick(&[Front::Cluster, Front::NodePort]);
            let (address, port) = front.at(0, draw.below(2), scene.node);
            let protocol = *draw.pick(&[Protocol::Tcp, Protocol::Udp]);
            Ask {
                client: CLIENTS[0],
                face: front.face(),
                protocol,
                to: SocketAddr::new(address, port),
                bytes: 1,
            }
        })
        .collect();
    let mut calls: Vec<Call> = asks.iter().map(|ask| scene.open(ask)).collect();
    listen(&mut calls, QUIET, |_| true);
    let chosen = Chosen::read(scene.lab.node());
    let allowed = |scene: &Scene, calls: &[Call]| -> Vec<bool> {
        asks.iter().zip(calls).map(|(ask, call)| scene.is_allowed(ask, chosen.of(call))).collect()
    };
    let before = allowed(scene, &calls);
    listen(&mut calls, PATIENCE, |number| before[number]);
    let manifests = manifests(scene.node, "none");
    write(&scene.dir, &manifests);
    scene.lab.wait_applied(2, PATIENCE).unwrap();
    scene.world = World::new(&manifests);
    for (call, was_allowed) in calls.iter_mut().zip(&before) {
        assert_eq!(call.heard() == Heard::Answer, *was_allowed, "{call:?}");
        call.say_again();
    }
    let after = allowed(scene, &calls);
    listen(&mut calls, PATIENCE, |number| after[number]);
    listen(&mut calls, QUIET, |_| true);
    for (call, still) in calls.iter().zip(&after) {
        assert_eq!(call.heard() == Heard::Answer, *still, "{call:?} {:?}", chosen.of(call));
    }
    let count = |of: &[bool]| of.iter().filter(|one| **one).count();
    (count(&after), count(&before) - count(&after))
}

#[test]
fn s23_of_mixed_backends_the_one_that_was_chosen_decides() {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let began = Instant::now();
    let scenes = [
        (Translator::Nft, Cni::Routed, Hook::Tcx),
        (Translator::Iptables, Cni::Routed, Hook::Clsact),
        (Translator::Nft, Cni::Bridge, Hook::Tcx),
        (Translator::Iptables, Cni::Bridge, Hook::Tcx),
    ];
    let each = number("PORTCULLIS_CONNECTIONS", CONNECTIONS) / scenes.len() as u64;
    let mut draw = SplitMix64::new(SEED);
    for (translator, cni, hook) in scenes {
        let mut scene = Scene::up(translator, cni, hook);
        let score = mixed(&scene, each, &mut draw);
        score.check();
        let (kept, cut) = relabelled(&mut scene, &mut draw);
        assert!(kept > 0 && cut > 0, "{kept} kept, {cut} cut");
        println!(
            "{translator:?}, {cni:?}, {hook:?}: {} connections, {} answered, {} refused, 0 wrong; relabelled: {kept} kept, {cut} cut",
            score.asked, score.answered, score.refused
        );
        scene.lab.kill(Signal::SIGTERM).unwrap();
        drop(scene);
    }
    leave_cgroup(&enter_cgroup());
    println!("{} s", began.elapsed().as_secs());
}

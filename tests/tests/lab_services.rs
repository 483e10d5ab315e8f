//! Egress through Services: the verdict is the one for the backend that a translator chose, wherever it is. The translator is
//! `nft` with rules of kube-proxy's shape; who answers tells which backend it was.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket,
};
use portcullis_lab::{
    AgentSpec, Ask, Client, Family, Hook, Lab, LabOptions, Outcome, Probe, ProbeOptions, Target,
};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::field::run;
use portcullis_tests::frames::{chunk, sctp};
use portcullis_tests::lifecycle::{PATIENCE, agent};
use portcullis_tests::privilege::is_root;
use portcullis_tests::services::{enter_cgroup, leave_cgroup};
use serde_json::Value;

/// What every backend listens at.
const PORT: u16 = 5000;
/// What no policy allows, and every backend listens at too.
const SHUT: u16 = 5001;
/// The chunk that asks for an association.
const SCTP_INIT: u8 = 1;
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// `client` may send to `good` and to one address outside, at one port, and to a range in which only an administrator's rule
/// lives. `free` may send anything anywhere.
const MANIFESTS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: svc}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: svc}
spec:
  clusterIPs: [10.96.7.7, 'fd96::7:7']
  clusterIP: 10.96.7.7
  externalIPs: [192.0.2.77]
  ports: [PORTS]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: svc}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: good}}}, {ipBlock: {cidr: 192.0.2.1/32}}, {ipBlock: {cidr: 2001:db8::1/128}}]
    ports: [{port: 5000}, {port: 5000, protocol: UDP}, {port: 5000, protocol: SCTP}]
  - to: [{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: 2001:db8:113::/48}}]
";

/// Pods in the order of their numbers, from 1.
const PODS: [&str; 4] = ["client", "good", "bad", "free"];

/// Where a virtual address's port leads, by the lower digit of the port: the backend and its port; none: nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Pod(&'static str, u16),
    Outside(u16),
    Node(u16),
    Nowhere,
}

const WAYS: [Way; 8] = [
    Way::Pod("good", PORT),
    Way::Pod("bad", PORT),
    Way::Pod("good", SHUT),
    Way::Outside(PORT),
    Way::Outside(SHUT),
    Way::Node(PORT),
    Way::Pod("client", SHUT),
    Way::Nowhere,
];

/// Whose rule translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Virtual {
    /// A Service's cluster address.
    Cluster,
    /// Its external address; IPv4 only.
    External,
    /// An address that no Service shows.
    Unknown,
}

impl Virtual {
    const fn address(self, family: Family) -> Option<&'static str> {
        match (self, family) {
            (Self::Cluster, Family::Ipv4) => Some("10.96.7.7"),
            (Self::Cluster, Family::Ipv6) => Some("fd96::7:7"),
            (Self::External, Family::Ipv4) => Some("192.0.2.77"),
            (Self::External, Family::Ipv6) => None,
            (Self::Unknown, Family::Ipv4) => Some("203.0.113.9"),
            (Self::Unknown, Family::Ipv6) => Some("2001:db8:113::9"),
        }
    }
}

fn pod(name: &str, number: usize) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: svc, labels: {{app: {name}}}}}\n\
         spec: {{containers: [{{name: c, ports: [{{containerPort: {PORT}}}]}}]}}\n\
         status: {{podIPs: [{{ip: 10.78.0.{number}}}, {{ip: 'fd78::{number}'}}]}}\n"
    )
}

fn number(name: &str) -> usize {
    PODS.iter().position(|pod| *pod == name).unwrap() + 1
}

/// What the policies of `client` say of a backend (S23), told which one was chosen.
fn expected(of: Virtual, way: Way) -> Option<String> {
    match way {
        Way::Pod("good", PORT) => Some("svc/good".to_owned()),
        // The pod itself.
        Way::Pod("client", _) => Some("svc/client".to_owned()),
        Way::Outside(PORT) if of != Virtual::Unknown => Some("outside".to_owned()),
        // What no Service shows is judged before and behind its translation, and passes where both allow.
        Way::Outside(PORT) => Some("outside".to_owned()),
        Way::Pod(..) | Way::Outside(_) | Way::Node(_) | Way::Nowhere => None,
    }
}

struct Scene {
    lab: Lab,
    dir: PathBuf,
}

impl Scene {
    fn up(hook: Hook) -> Self {
        // Before the node's sockets are opened.
        let cgroup = enter_cgroup();
        let dir =
            std::env::temp_dir().join(format!("portcullis-services-{}-{}", hook.name(), std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        write_manifests(&dir, "good");
        let cluster = portcullis_lab::source::read(&dir, &[]).unwrap().cluster;
        let ports = PROTOCOLS.iter().flat_map(|protocol| [(*protocol, PORT), (*protocol, SHUT)]).collect();
        let mut lab = Lab::up(&cluster, LabOptions { ports, ..LabOptions::default() }).unwrap();
        translate(&lab);
        let arguments = vec![OsString::from("--cgroup-root"), cgroup.into_os_string()];
        let spec = AgentSpec { binary: agent(), source: dir.clone(), hook, arguments };
        lab.start_agent(&spec).unwrap();
        lab.wait_applied(1, PATIENCE).unwrap();
        Self { lab, dir }
    }

    fn asks(from: &str, of: Virtual) -> Vec<(Probe, Way)> {
        let mut asks = Vec::new();
        for (family, protocol) in FAMILIES.iter().flat_map(|f| PROTOCOLS.map(|p| (*f, p))) {
            let Some(address) = of.address(family) else { continue };
            for (digit, way) in (0u16..).zip(WAYS) {
                let to = Target::Address(address.parse().unwrap());
                let from = Client::Pod(ObjectKey::new("svc", from));
                asks.push((Probe { from, to, ask: Ask::Port(protocol, 8000 + digit) }, way));
            }
        }
        asks
    }

    fn answers(&self, asks: &[(Probe, Way)]) -> Vec<Outcome> {
        let probes: Vec<Probe> = asks.iter().map(|(probe, _)| probe.clone()).collect();
        self.lab.probe(&probes, &ProbeOptions::default()).unwrap()
    }
}

impl Scene {
    /// The kernel may know no sockets of SCTP: chunks are written and read raw. The backends listen to whatever comes.
    fn sctp_opens_to_the_allowed_backend_only(&self) {
        let listening: Vec<(u16, OwnedFd)> = (0u16..)
            .zip(WAYS)
            .filter_map(|(digit, way)| match way {
                Way::Pod(name @ ("good" | "bad"), _) => Some((8000 + digit, self.raw(name))),
                Way::Pod(..) | Way::Outside(_) | Way::Node(_) | Way::Nowhere => None,
            })
            .collect();
        let client = self.raw("client");
        // The allowed one last: when it is there, the others would have been.
        for (port, _) in listening.iter().rev() {
            let init = sctp_init(7_000 + port, *port);
            let to = SockaddrIn::new(10, 96, 7, 7, 0);
            assert_eq!(sendto(client.as_raw_fd(), &init, &to, MsgFlags::empty()).unwrap(), init.len());
        }
        let allowed = |port: u16| port == 8000;
        let begun = Instant::now();
        let mut arrived = BTreeSet::new();
        while !arrived.contains(&8000) && begun.elapsed() < PATIENCE {
            arrived
                .extend(listening.iter().flat_map(|(_, socket)| from_ports(socket)).map(|port| port - 7_000));
            std::thread::sleep(Duration::from_millis(20));
        }
        arrived.extend(listening.iter().flat_map(|(_, socket)| from_ports(socket)).map(|port| port - 7_000));
        assert_eq!(arrived, listening.iter().map(|(port, _)| *port).filter(|port| allowed(*port)).collect());
    }

    fn raw(&self, pod: &str) -> OwnedFd {
        let netns = self.lab.pod(&ObjectKey::new("svc", pod)).unwrap();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let open = || socket(AddressFamily::Inet, SockType::Raw, flags, Some(SockProtocol::Sctp));
        netns.run(open).unwrap().unwrap()
    }

    /// Of a denied backend `observe` says which Service led there, and of one that no Service shows the address.
    fn backends_are_told_with_their_service(&self) {
        let mut observe = Command::new(agent());
        let asked = "observe -o json --verdict deny --protocol TCP --to svc/bad --last 1000 --run-dir";
        observe.args(asked.split(' '));
        let output = observe.arg(self.lab.run_dir()).output().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let told: BTreeSet<(String, Option<String>)> = lines
            .lines()
            .filter_map(|line| {
                let verdict: Value = serde_json::from_str(line).unwrap();
                let via = verdict.get("via").filter(|via| via.is_object())?;
                let name = via.pointer("/service/name").and_then(Value::as_str).map(str::to_owned);
                Some((via.get("address").and_then(Value::as_str)?.to_owned(), name))
            })
            .collect();
        let shown = |address: &str| (address.to_owned(), Some("web".to_owned()));
        let unknown = |address: &str| (address.to_owned(), None);
        let wanted = BTreeSet::from([
            shown("10.96.7.7"),
            shown("fd96::7:7"),
            shown("192.0.2.77"),
            unknown("203.0.113.9"),
            unknown("2001:db8:113::9"),
        ]);
        assert_eq!(told, wanted, "{lines}");
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

fn write_manifests(dir: &Path, good: &str) {
    let ports: Vec<String> = (8000..8000 + WAYS.len())
        .flat_map(|port| {
            ["TCP", "UDP"].map(|name| {
                format!("{{name: {}-{port}, port: {port}, protocol: {name}}}", name.to_lowercase())
            })
        })
        .collect();
    let mut text = MANIFESTS.replace("PORTS", &ports.join(", "));
    for name in PODS {
        let manifest = pod(name, number(name));
        text +=
            &if name == "good" { manifest.replace("app: good", &format!("app: {good}")) } else { manifest };
    }
    let new = dir.join("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, dir.join("all.yaml")).unwrap();
}

/// Rules as kube-proxy's: destination translated before routing, what comes back to its sender masqueraded.
fn translate(lab: &Lab) {
    let mut rules =
        String::from("table inet portcullis_lab {\n chain pre { type nat hook prerouting priority dstnat;\n");
    let link = &lab.state().link;
    for of in [Virtual::Cluster, Virtual::External, Virtual::Unknown] {
        for family in FAMILIES {
            let Some(address) = of.address(family) else { continue };
            let (word, node) = match family {
                Family::Ipv4 => ("ip", link.node4.to_string()),
                Family::Ipv6 => ("ip6", link.node6.to_string()),
            };
            for (digit, way) in (0u16..).zip(WAYS) {
                let (to, port) = match (way, family) {
                    (Way::Nowhere, _) => continue,
                    (Way::Pod(name, port), Family::Ipv4) => (format!("10.78.0.{}", number(name)), port),
                    (Way::Pod(name, port), Family::Ipv6) => (format!("fd78::{}", number(name)), port),
                    (Way::Outside(port), Family::Ipv4) => ("192.0.2.1".to_owned(), port),
                    (Way::Outside(port), Family::Ipv6) => ("2001:db8::1".to_owned(), port),
                    (Way::Node(port), _) => (node.clone(), port),
                };
                let to = if family == Family::Ipv6 { format!("[{to}]") } else { to };
                for protocol in ["tcp", "udp", "sctp"] {
                    writeln!(
                        rules,
                        "  {word} daddr {address} {protocol} dport {} dnat {word} to {to}:{port}",
                        8000 + digit
                    )
                    .unwrap();
                }
            }
        }
    }
    rules += " }\n chain post { type nat hook postrouting priority srcnat;\n";
    let client = number("client");
    writeln!(rules, "  ip saddr 10.78.0.{client} ip daddr 10.78.0.{client} masquerade").unwrap();
    writeln!(rules, "  ip6 saddr fd78::{client} ip6 daddr fd78::{client} masquerade").unwrap();
    rules += " }\n}\n";
    let file = std::env::temp_dir().join(format!("portcullis-nft-{}-{}", std::process::id(), lab.id()));
    fs::write(&file, rules).unwrap();
    let path = file.to_str().unwrap();
    let _ = run(lab.node(), &["nft", "-f", path]);
    fs::remove_file(file).unwrap();
}

/// A packet of an INIT (RFC 9260 section 3.3.2).
fn sctp_init(from: u16, to: u16) -> Vec<u8> {
    let init = [0, 0, 0, 9, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1];
    sctp((from, to), 0, &chunk(SCTP_INIT, 0, &init))
}

/// Source ports of the SCTP packets that have come.
fn from_ports(socket: &OwnedFd) -> Vec<u16> {
    let mut ports = Vec::new();
    let mut packet = [0; 256];
    while let Ok(length) = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
        // An IPv4 header without options stands before it.
        assert!(length >= 24, "{length} bytes");
        ports.push(u16::from_be_bytes([packet[20], packet[21]]));
    }
    ports
}

fn answered(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Answered(name) => Some(name.clone().unwrap_or_default()),
        // Another server than the address's own is what a translator is for.
        Outcome::Misdelivered(name) => Some(name.clone()),
        Outcome::Refused | Outcome::Silent | Outcome::Stalled | Outcome::Failed(_) => None,
    }
}

#[test]
fn s23_egress_through_a_service_is_judged_by_the_backend_that_was_chosen() {
    if !is_root("an agent in a network namespace") {
        return;
    }
    for hook in [Hook::Tcx, Hook::Clsact] {
        let mut scene = Scene::up(hook);
        let mut asked = 0;
        for of in [Virtual::Cluster, Virtual::External, Virtual::Unknown] {
            let asks = Scene::asks("client", of);
            for ((probe, way), outcome) in asks.iter().zip(scene.answers(&asks)) {
                assert_eq!(
                    answered(&outcome),
                    expected(of, *way),
                    "{hook:?} {of:?} {way:?}: {probe:?}: {outcome:?}"
                );
                asked += 1;
            }
            // Nobody isolates it: every backend is reached.
            let asks = Scene::asks("free", of);
            for ((probe, way), outcome) in asks.iter().zip(scene.answers(&asks)) {
                assert_eq!(
                    answered(&outcome).is_some(),
                    *way != Way::Nowhere,
                    "{hook:?}: {probe:?}: {outcome:?}"
                );
                asked += 1;
            }
        }
        println!("{hook:?}: {asked} connections through Services, 0 wrong");
        scene.sctp_opens_to_the_allowed_backend_only();
        scene.backends_are_told_with_their_service();
        // A backend that is not allowed any more.
        write_manifests(&scene.dir, "other");
        scene.lab.wait_applied(2, PATIENCE).unwrap();
        let asks = Scene::asks("client", Virtual::Cluster);
        for ((probe, way), outcome) in asks.iter().zip(scene.answers(&asks)) {
            let wanted = expected(Virtual::Cluster, *way).filter(|name| name != "svc/good");
            assert_eq!(answered(&outcome), wanted, "{hook:?} relabelled: {probe:?}: {outcome:?}");
        }
        scene.lab.kill(Signal::SIGTERM).unwrap();
        drop(scene);
    }
    leave_cgroup(&enter_cgroup());
}

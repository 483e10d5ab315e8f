//! What an administrator asks the running agent, against what the kernel counted: verdicts under a flood, names of
//! addresses that moved, status, endpoints, policies, probes and metrics.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use portcullis_agent::bpf::Pins;
use portcullis_agent::bpf::figures::Figures;
use portcullis_common::event::Outcome;
use portcullis_lab::{
    AgentSpec, Ask, Client, Family, Hook, Lab, LabOptions, Outcome as Probed, Probe, ProbeOptions, Target,
};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::lifecycle::{PATIENCE, agent};
use portcullis_tests::live::{Live, State};
use portcullis_tests::privilege::{is_root, number};
use serde_json::{Value, json};

/// Datagrams of the flood; `PORTCULLIS_FLOOD` sets another number.
const FLOOD: u64 = 200_000;
/// Ports that it goes to, in turn: each comes back within the time in which repeats are folded.
const PORTS: u64 = 1_000;
/// Senders of the flood, each on a CPU's budget of events if there are as many.
const SENDERS: u64 = 2;

const MANIFESTS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: life}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: life, labels: {app: server}}
spec: {containers: [{name: c, ports: [{containerPort: 5000}]}]}
status: {podIPs: [{ip: 10.78.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, namespace: life, labels: {app: friend}}
status: {podIPs: [{ip: 10.78.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: life, labels: {app: stranger}}
status: {podIPs: [{ip: 10.78.0.3}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: silent, namespace: life}
spec: {podSelector: {matchLabels: {app: stranger}}, policyTypes: [Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends-only, namespace: life}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]
";

fn pod(name: &str) -> ObjectKey {
    ObjectKey::new("life", name)
}

/// A lab with an agent that may still be starting.
struct Node {
    lab: Lab,
    dir: PathBuf,
}

impl Node {
    fn up(id: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("portcullis-{id}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("all.yaml"), MANIFESTS).unwrap();
        let cluster = portcullis_lab::source::read(&dir, &[]).unwrap().cluster;
        Self { lab: Lab::up(&cluster, LabOptions::default()).unwrap(), dir }
    }

    fn start(&mut self, hook: Hook, arguments: &[&str]) {
        let arguments = arguments.iter().map(OsString::from).collect();
        let spec = AgentSpec { binary: agent(), source: self.dir.clone(), hook, arguments };
        self.lab.start_agent(&spec).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(agent());
        command.args(arguments).arg("--run-dir").arg(self.lab.run_dir()).stdin(Stdio::null());
        command
    }

    fn verb(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.verb(&[arguments, &["-o", "json"]].concat());
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Status and body of a page, asked from the node.
    fn page(&self, port: u16, path: &str) -> Option<(u16, String)> {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.lab.node().run(ask).unwrap().ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// Waits for a page of this status.
    fn wait_page(&self, port: u16, path: &str, status: u16) -> String {
        let begun = Instant::now();
        loop {
            let found = self.page(port, path);
            if let Some((found, body)) = &found
                && *found == status
            {
                return body.clone();
            }
            assert!(begun.elapsed() < PATIENCE, "{path} is not {status} but {found:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn figures(&self) -> Figures {
        Figures::open(&Pins::new(self.lab.bpffs())).unwrap()
    }

    /// Sends datagrams from the stranger, none of which may leave it; returns how many a second.
    fn flood(&self, datagrams: u64) -> f64 {
        let from = self.lab.pod(&pod("stranger")).unwrap();
        let begun = Instant::now();
        thread::scope(|scope| {
            for sender in 0..SENDERS {
                scope.spawn(move || {
                    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
                    for number in (sender..datagrams).step_by(usize::try_from(SENDERS).unwrap()) {
                        let port = u16::try_from(20_000 + number % PORTS).unwrap();
                        // A full queue refuses: what the kernel counts is what counts.
                        let _ = socket.send_to(b"x", SocketAddr::from(([10, 78, 0, 1], port)));
                    }
                });
            }
        });
        #[allow(clippy::cast_precision_loss)]
        let rate = datagrams as f64 / begun.elapsed().as_secs_f64();
        rate
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.lab.agent_log()).unwrap_or_default();
            eprintln!("the agent's log:\n{log}");
        }
        // Temporary; a leftover does no harm.
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Denied packets.
fn denied(figures: &Figures) -> u64 {
    figures
        .verdicts()
        .unwrap()
        .iter()
        .filter(|one| one.outcome == Outcome::Deny)
        .map(|one| one.stats.packets)
        .sum()
}

/// A running `observe`.
struct Observer {
    child: Child,
    lines: Receiver<Value>,
    seen: Seen,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    lines: u64,
    allowed: u64,
    denied: u64,
    lost: u64,
}

impl Observer {
    /// When it returns, the agent counts it in.
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut note = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut note).unwrap();
        assert!(note.starts_with("note: verdicts"), "{note}");
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(serde_json::from_str(&line).unwrap()).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, seen: Seen::default() }
    }

    /// Takes what it said until enough is accounted for, or nothing more comes in time.
    fn until(&mut self, enough: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.seen) {
            let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                break;
            };
            if let Some(lost) = line["lost"].as_u64() {
                self.seen.lost += lost;
                continue;
            }
            let count = line["count"].as_u64().unwrap();
            self.seen.lines += 1;
            match line["verdict"].as_str() {
                Some("deny") => self.seen.denied += count,
                _ => self.seen.allowed += count,
            }
        }
        self.seen
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn under_a_flood_what_is_shown_and_what_is_lost_are_all_that_the_kernel_counted() {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let mut node = Node::up("flood");
    node.start(Hook::Auto, &[]);
    node.lab.wait_applied(1, PATIENCE).unwrap();
    let figures = node.figures();
    let before = (denied(&figures), figures.wanting().unwrap().events_lost);
    let mut observer = Observer::start(node.command(&["observe", "-f", "-o", "json"]));
    let mut narrow = Observer::start(node.command(&["observe", "-f", "-o", "json", "--pod", "life/friend"]));
    let mut each = Observer::start(node.command(&["observe", "-f", "-o", "json", "--no-fold"]));
    let rate = node.flood(number("PORTCULLIS_FLOOD", FLOOD));
    let counted = denied(&figures) - before.0;
    let unsent = figures.wanting().unwrap().events_lost - before.1;
    let seen = observer.until(|seen| seen.denied + seen.lost >= counted);
    println!(
        "{rate:.0} datagrams a second; the kernel counted {counted}, sent {}; {} lines stand for {}, {} lost",
        counted - unsent,
        seen.lines,
        seen.denied,
        seen.lost
    );
    assert_eq!(seen.allowed, 0, "nothing but the flood");
    assert_eq!(seen.denied + seen.lost, counted, "{seen:?}");
    assert!(seen.lines < seen.denied, "repeats are folded: {seen:?}");
    let single = each.until(|seen| seen.denied + seen.lost >= counted);
    println!("without folding {} lines, {} lost", single.lines, single.lost);
    assert_eq!((single.denied + single.lost, single.lines), (counted, single.denied), "{single:?}");
    let narrowed = narrow.until(|seen| seen.lost >= unsent);
    assert_eq!((narrowed.lines, narrowed.lost >= unsent), (0, true), "{narrowed:?}");
    // Nothing comes late, and none twice.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(denied(&figures) - before.0, counted);
    let late = observer.lines.try_iter().collect::<Vec<_>>();
    assert_eq!(late, Vec::<Value>::new());
}

fn http_value(metrics: &str, series: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

#[test]
fn the_agent_says_how_the_node_does() {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let mut node = Node::up("says");
    node.start(Hook::Auto, &["--metrics-listen", "127.0.0.1:9870", "--metrics-policy-labels"]);
    node.lab.wait_applied(1, PATIENCE).unwrap();
    assert_eq!(node.wait_page(9869, "/livez", 200), "ok\n");
    assert_eq!(node.wait_page(9869, "/readyz", 200), "ok\n");
    assert_eq!(node.page(9869, "/metrics").map(|(status, _)| status), Some(404), "each listener has its own");
    let series = "portcullis_packets_total{direction=\"egress\",verdict=\"deny\",reason=\"isolated\"}";
    let rule =
        "portcullis_rule_packets_total{direction=\"egress\",namespace=\"life\",policy=\"silent\",rule=\"\"}";
    let before = node.wait_page(9870, "/metrics", 200);
    node.flood(100);
    let probe = Probe {
        from: Client::Pod(pod("friend")),
        to: Target::Pod(pod("server"), Family::Ipv4),
        ask: Ask::Port(Protocol::Tcp, 5000),
    };
    let outcomes = node.lab.probe(&[probe], &ProbeOptions::default()).unwrap();
    assert!(matches!(outcomes.as_slice(), [Probed::Answered(_)]), "{outcomes:?}");
    let after = node.wait_page(9870, "/metrics", 200);
    let counted = http_value(&after, series);
    assert!(counted > http_value(&before, series), "{after}");
    assert_eq!(counted, http_value(&after, rule));
    assert!(http_value(&after, "portcullis_flows ") >= 2, "a flow at each end\n{after}");
    assert_eq!(http_value(&after, "portcullis_endpoints "), 3);
    assert_eq!(http_value(&after, "portcullis_ready "), 1);
    for line in after.lines() {
        assert!(!line.contains("stranger") && !line.contains("10.78."), "no pods, no addresses: {line}");
    }

    let output = node.verb(&["status", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&status["ready"], &status["not_ready"]), (&json!(true), &json!([])));
    assert_eq!(status["endpoints"], json!({"enforced": 3, "known": 3}));
    assert_eq!(status["policies"], json!({"total": 2, "selecting_here": 2, "with_problems": 0}));
    assert!(status["reconciliation"]["time"].is_string(), "{status}");

    let endpoints = node.json(&["endpoints", "-n", "life"]);
    let stranger = endpoints.as_array().unwrap().iter().find(|one| one["name"] == "stranger").unwrap();
    assert_eq!(stranger["addresses"], json!(["10.78.0.3"]));
    assert!(stranger["interface"].as_str().unwrap().starts_with("pcl"), "{stranger}");
    assert_eq!(
        stranger["ingress"],
        json!({"ruleset": 0, "isolated": false, "audited": false, "policies": []})
    );
    assert_eq!(stranger["egress"]["policies"], json!([{"namespace": "life", "name": "silent"}]));
    assert_eq!(node.json(&["endpoints", "-n", "other"]), json!([]));

    let silent = &node.json(&["policies", "life/silent"])[0];
    assert_eq!(silent["selects_here"], json!([{"namespace": "life", "name": "stranger"}]));
    assert_eq!(silent["directions"][0]["isolation"]["packets"], json!(counted));
    assert!(silent["directions"][0]["isolation"]["last_hit"].is_string(), "{silent}");
    assert_eq!(silent["problems"][0]["kind"], json!("no-dns"));
    let friends = &node.json(&["policies", "life/friends-only"])[0];
    assert_eq!(friends["directions"][0]["rules"][0]["packets"], json!(1), "the SYN that opened: {friends}");
    assert_eq!(node.verb(&["policies", "life/none"]).status.code(), Some(2));

    for verb in ["status", "endpoints", "policies"] {
        for format in ["table", "yaml"] {
            let output = node.verb(&[verb, "-o", format]);
            assert_eq!(output.status.code(), Some(0), "{verb} {format}");
            assert!(!output.stdout.is_empty(), "{verb} {format}");
        }
    }

    // The next agent could not take over what is here.
    fs::remove_file(Pins::new(node.lab.bpffs()).maps().join("endpoints")).unwrap();
    assert!(node.wait_page(9869, "/readyz", 503).contains("is gone"));
    assert_eq!(node.page(9869, "/livez").map(|(status, _)| status), Some(200));
    assert_eq!(node.verb(&["status"]).status.code(), Some(1));
}

#[test]
fn an_agent_that_cannot_attach_is_not_ready_until_it_can() {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let node = Node::up("unready");
    let qdisc = |verb: &str| {
        let mut command = Command::new("tc");
        command.args(["qdisc", verb, "dev", "pcl0", "ingress"]);
        assert!(node.lab.node().run(|| command.status()).unwrap().unwrap().success(), "tc qdisc {verb}");
    };
    // Where there is an ingress qdisc there can be no clsact.
    qdisc("add");
    let arguments = ["--health-listen", "127.0.0.1:9999"];
    let spec = AgentSpec {
        binary: agent(),
        source: node.dir.clone(),
        hook: Hook::Clsact,
        arguments: arguments.map(OsString::from).to_vec(),
    };
    let mut lab = Lab::open(node.lab.id()).unwrap();
    lab.start_agent(&spec).unwrap();
    let reasons = node.wait_page(9999, "/readyz", 503);
    assert!(reasons.contains("reconcil"), "{reasons}");
    assert!(node.wait_page(9999, "/livez", 200).contains("ok"));
    assert_eq!(node.page(9869, "/readyz"), None, "it listens where it was told and nowhere else");
    assert_eq!(node.page(9870, "/metrics"), None);
    let begun = Instant::now();
    while node.json(&["status"])["reconcile_errors"].as_u64().unwrap() == 0 {
        assert!(begun.elapsed() < PATIENCE, "no error is counted");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(node.verb(&["status"]).status.code(), Some(1));
    qdisc("del");
    node.wait_page(9999, "/readyz", 200);
    lab.kill(nix::sys::signal::Signal::SIGTERM).unwrap();
}

/// Two pods, the second of this name and address.
fn moving(name: &str, app: &str) -> State {
    let address = "10.79.0.2";
    let pod = |name: &str, app: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "life", "labels": {"app": app}},
            "status": {"podIPs": [{"ip": address}]}})
    };
    State::of_objects(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "life"}}),
        pod("client", "client", "10.79.0.1"),
        pod(name, app, address),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "silent", "namespace": "life"},
            "spec": {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]}}),
    ])
}

#[test]
fn an_address_that_moved_is_shown_with_its_owner_of_that_time() {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let mut live = Live::up(&moving("old", "old"), Vec::new(), Hook::Auto);
    let send = |live: &Live, port: u16| {
        let from = live.lab().pod(&pod("client")).unwrap();
        let socket = from.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        socket.send_to(b"x", SocketAddr::from(([10, 79, 0, 2], port))).unwrap();
    };
    send(&live, 1001);
    live.apply(&moving("new", "new"));
    send(&live, 1002);
    let peers = |filter: &[&str]| -> BTreeMap<u64, Value> {
        let mut command = Command::new(agent());
        command.args(["observe", "-o", "json", "--verdict", "deny", "--protocol", "udp"]).args(filter);
        let output = command.arg("--run-dir").arg(live.lab().run_dir()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| (line["destination_port"].as_u64().unwrap(), line["peer"]["name"].clone())).collect()
    };
    let begun = Instant::now();
    let both = BTreeMap::from([(1001, json!("old")), (1002, json!("new"))]);
    while peers(&[]) != both {
        assert!(begun.elapsed() < PATIENCE, "{:?}", peers(&[]));
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(peers(&["-l", "app=old"]), BTreeMap::from([(1001, json!("old"))]));
    assert_eq!(peers(&["--to", "life/new"]), BTreeMap::from([(1002, json!("new"))]));
    assert_eq!(peers(&["--last", "1"]), BTreeMap::from([(1002, json!("new"))]));
    assert_eq!(peers(&["--port", "1001", "--policy", "life/silent"]), BTreeMap::from([(1001, json!("old"))]));
}

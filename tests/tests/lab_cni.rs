//! No gap at pod start (T15, S31): pods whose sandbox a runtime sets up with the real plugin, and who send from their
//! first moment on under a policy that denies it.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use portcullis_agent::clock::monotonic;
use portcullis_lab::{AgentSpec, Cni, Hook, Lab, LabOptions};
use portcullis_policy::model::ObjectKey;
use portcullis_tests::lifecycle::{PATIENCE, agent};
use portcullis_tests::privilege::{is_root, number};
use portcullis_tests::runtime::{Answer, Configured, Manifests, Runtime, Sandbox, Sender, Sink, plugin};
use serde_json::Value;

/// Who is there before any start: the sink, a bell, and a policy that lets pods of the application `caged` send nothing.
const BEFORE: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: start}
---
apiVersion: v1
kind: Pod
metadata: {name: sink, namespace: start, labels: {app: sink}}
status: {podIPs: [{ip: 10.99.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bell, namespace: start, labels: {app: bell}}
status: {podIPs: [{ip: 10.99.0.2}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: caged, namespace: start}
spec: {podSelector: {matchLabels: {app: caged}}, policyTypes: [Ingress, Egress]}
";

/// How long a pod sends.
const SENDS: Duration = Duration::from_millis(15);
/// How long one sends whose interface nobody told of.
const SENDS_UNTOLD: Duration = Duration::from_millis(400);

/// Starts without the plugin, for comparison.
const UNTOLD: u64 = 8;

struct Start {
    lab: Lab,
    manifests: Manifests,
    runtime: Runtime,
    sink: Sink,
    hook: Hook,
    next: u32,
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("start", name)
}

impl Start {
    fn up(hook: Hook, cni: Cni) -> Self {
        let manifests = Manifests::new("start");
        manifests.write("before.yaml", BEFORE);
        let cluster = portcullis_lab::source::read(manifests.dir(), &[]).unwrap().cluster;
        let lab = Lab::up(&cluster, LabOptions { cni, ..LabOptions::default() }).unwrap();
        let runtime = Runtime::new(&lab, cni, &key("sink"));
        let sink = Sink::open(&lab, &key("sink"), &key("bell"));
        Self { lab, manifests, runtime, sink, hook, next: 0 }
    }

    fn agent(&mut self, arguments: &[&str]) {
        let arguments = arguments.iter().map(OsString::from).collect();
        let spec = AgentSpec {
            binary: agent(),
            source: self.manifests.dir().to_owned(),
            hook: self.hook,
            arguments,
        };
        self.lab.start_agent(&spec).unwrap();
        self.lab.wait_applied(1, PATIENCE).unwrap();
    }

    /// A sandbox for a new pod, and the pod's address, which others had before.
    fn sandbox(&mut self) -> (Sandbox, Ipv4Addr) {
        let number = self.next;
        self.next += 1;
        let last = u8::try_from(10 + number % 200).unwrap();
        (self.runtime.sandbox(&key(&format!("pod{number}"))), Ipv4Addr::new(10, 99, 0, last))
    }

    /// What `endpoints` says of a pod.
    fn endpoint(&self, pod: &ObjectKey) -> Option<Value> {
        let mut command = Command::new(agent());
        command.args(["endpoints", "-o", "json", "--run-dir"]).arg(self.lab.run_dir());
        let output = command.output().unwrap();
        let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        all.into_iter().find(|one| one["name"] == pod.name.as_str())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.lab.agent_log()).unwrap_or_default()
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// How a pod starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Its object is there, without an address, when the plugin asks.
    Before,
    /// It comes while the plugin waits.
    Meanwhile,
}

/// One start with the plugin. Returns what arrived of what the pod sent after the plugin had answered, and how long the
/// plugin took.
fn start(start: &mut Start, app: &str, known: Known) -> (u64, Duration) {
    let (mut sandbox, address) = start.sandbox();
    if known == Known::Before {
        start.manifests.pod(&sandbox, app, None);
    }
    start.runtime.primary(&mut sandbox, address);
    let mut sender = Sender::ready(&start.runtime, &sandbox);
    let begun = Instant::now();
    let conf = start.runtime.conf(&sandbox, Configured::default());
    let child = start.runtime.spawn("ADD", &sandbox, &conf, &plugin());
    if known == Known::Meanwhile {
        thread::sleep(Duration::from_millis(20));
        start.manifests.pod(&sandbox, app, None);
    }
    let answer = Answer::of(child);
    let took = begun.elapsed();
    // The runtime starts the pod's first process.
    sender.go();
    assert_eq!(answer.error, None);
    assert_eq!(answer.text, sandbox.result, "what the primary made is passed on in its own bytes");
    sender.send_for(SENDS);
    let arrived = start.sink.of(sender.number);
    // As in Kubernetes: the address comes with the status, now.
    start.manifests.pod(&sandbox, app, Some(address));
    assert_eq!(start.runtime.call("CHECK", &sandbox, Configured::default()).error, None);
    start.runtime.remove(&sandbox);
    (arrived.packets, took)
}

/// One start without the plugin, of a pod whose address the agent knows beforehand. Returns what arrived, and how long
/// after the first packet the last one was sent.
fn start_untold(start: &mut Start) -> (u64, Duration) {
    let (mut sandbox, address) = start.sandbox();
    let before = start.lab.applied().unwrap();
    start.manifests.pod(&sandbox, "caged", Some(address));
    start.lab.wait_applied(before + 1, PATIENCE).unwrap();
    let mut sender = Sender::ready(&start.runtime, &sandbox);
    start.runtime.primary(&mut sandbox, address);
    sender.send_for(SENDS_UNTOLD);
    let arrived = start.sink.of(sender.number);
    start.runtime.remove(&sandbox);
    (arrived.packets, Duration::from_nanos(arrived.last - arrived.first))
}

fn starts(hook: Hook, cni: Cni) {
    if !is_root("pods that start in network namespaces") {
        return;
    }
    let rounds = number("PORTCULLIS_STARTS", 20);
    let mut lab = Start::up(hook, cni);
    lab.agent(&[]);
    // It sends what arrives, where nothing forbids it.
    let (free, _) = start(&mut lab, "free", Known::Before);
    assert!(free > 0, "a pod that may send is not heard");
    let (mut leaked, mut times) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let known = if round % 2 == 0 { Known::Before } else { Known::Meanwhile };
        let (packets, took) = start(&mut lab, "caged", known);
        if packets > 0 {
            leaked.push((round, known, packets));
        }
        if known == Known::Before {
            times.push(took);
        }
    }
    times.sort_unstable();
    let at = |part: usize| times.get(times.len().saturating_sub(1) * part / 100).copied().unwrap_or_default();
    let (mut gaps, mut most) = (Vec::new(), 0);
    for _ in 0..rounds.min(UNTOLD) {
        let (packets, gap) = start_untold(&mut lab);
        most = most.max(packets);
        if packets > 0 {
            gaps.push(gap);
        }
    }
    println!(
        "{}, {cni}: {rounds} starts with the plugin, {} leaked; it took {:?} (p50), {:?} (p95). Without it {} of {} \
         leaked, {most} packets at most, for {:?} at most",
        hook.name(),
        leaked.len(),
        at(50),
        at(95),
        gaps.len(),
        rounds.min(UNTOLD),
        gaps.iter().max().copied().unwrap_or_default()
    );
    assert_eq!(leaked, Vec::new(), "round, when its object came, packets that arrived");
}

#[test]
fn nothing_passes_before_the_policy_on_tcx() {
    starts(Hook::Tcx, Cni::Routed);
}

#[test]
fn nothing_passes_before_the_policy_on_clsact() {
    starts(Hook::Clsact, Cni::Routed);
}

#[test]
fn nothing_passes_before_the_policy_behind_a_bridge() {
    starts(Hook::Auto, Cni::Bridge);
}

/// Whether our programs hang on an interface: their links are pinned.
fn is_attached(lab: &Lab, interface: u32) -> bool {
    let links = lab.bpffs().join("portcullis/v1/links");
    ["ingress", "egress"].iter().all(|way| links.join(format!("tcx-{interface}-{way}")).exists())
}

/// A process in the sandbox that does not wait for the runtime: what it sends passes until the plugin asks, and from
/// then on nothing, whatever becomes of the agent.
#[test]
fn an_agent_that_is_killed_while_a_pod_waits_opens_nothing() {
    if !is_root("pods that start in network namespaces") {
        return;
    }
    let mut lab = Start::up(Hook::Tcx, Cni::Routed);
    lab.agent(&[]);
    let (mut sandbox, address) = lab.sandbox();
    lab.runtime.primary(&mut sandbox, address);
    let mut init = Sender::ready(&lab.runtime, &sandbox);
    init.go();
    let conf = lab.runtime.conf(&sandbox, Configured { timeout: 60, ..Configured::default() });
    let mut child = lab.runtime.spawn("ADD", &sandbox, &conf, &plugin());
    wait_for("the interface is closed", || is_attached(&lab.lab, sandbox.interface));
    let closed = monotonic();
    let check = lab.runtime.call("CHECK", &sandbox, Configured::default()).error;
    assert_eq!(check.map(|(code, _)| code), Some(101), "it is not enforced yet");
    lab.lab.kill(Signal::SIGKILL).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none(), "the plugin waits for the next agent");
    // The next one knows of the interface before it is asked again, and still knows no pod.
    lab.agent(&[]);
    thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none(), "the pod is not known");
    lab.manifests.pod(&sandbox, "caged", None);
    let answer = Answer::of(child);
    assert_eq!((answer.error, &answer.text), (None, &sandbox.result));
    // The source shows no address yet: what was told holds over a restart.
    let told = lab.endpoint(&sandbox.pod).expect("the pod is enforced");
    assert_eq!(told["addresses"], serde_json::json!([address]));
    lab.lab.kill(Signal::SIGKILL).unwrap();
    lab.agent(&[]);
    let again = lab.endpoint(&sandbox.pod).expect("the pod is enforced by the next agent");
    assert_eq!((&again["addresses"], &again["slot"]), (&told["addresses"], &told["slot"]));
    init.send_for(Duration::ZERO);
    let arrived = lab.sink.of(init.number);
    println!(
        "before the plugin asked, {} packets of a process in the sandbox passed; the last {:?} before it was closed",
        arrived.packets,
        Duration::from_nanos(closed.saturating_sub(arrived.last))
    );
    assert!(arrived.last < closed, "sent {} ns after the interface was closed", arrived.last - closed);
    // The policy lets it go on where it is taken away: the flow of events did not lose the pod.
    let before = lab.lab.applied().unwrap();
    lab.manifests.pod(&sandbox, "free", Some(address));
    lab.lab.wait_applied(before + 1, PATIENCE).unwrap();
    let mut sender = Sender::ready(&lab.runtime, &sandbox);
    sender.go();
    wait_for("a pod that may send is heard", || lab.sink.of(sender.number).packets > 0);
    sender.stop();
    lab.runtime.remove(&sandbox);
    wait_for("a pod whose interface is gone is no endpoint", || lab.endpoint(&key("pod0")).is_none());
    let told = fs::read_to_string(lab.lab.run_dir().join("told.json")).unwrap();
    assert!(!told.contains("pod0"), "{told}");
}

#[test]
fn without_an_agent_a_pod_fails_within_its_bound_or_starts_where_that_was_asked_for() {
    if !is_root("pods that start in network namespaces") {
        return;
    }
    let mut lab = Start::up(Hook::Auto, Cni::Routed);
    let (mut sandbox, address) = lab.sandbox();
    lab.runtime.primary(&mut sandbox, address);
    let bound = Configured { timeout: 1, ..Configured::default() };
    let (code, message) = lab.runtime.call("ADD", &sandbox, bound).error.unwrap();
    assert_eq!(code, 11, "{message}");
    assert!(message.contains("agent.sock") && message.contains("look at"), "{message}");
    assert_eq!(lab.runtime.call("STATUS", &sandbox, bound).error.map(|(code, _)| code), Some(50));
    let open = Configured { when_unavailable: "allow", ..bound };
    let answer = lab.runtime.call("ADD", &sandbox, open);
    assert_eq!((answer.error, &answer.text), (None, &sandbox.result));
    // An agent that is there and does not know the pod lets nobody in, whatever was asked for.
    lab.agent(&[]);
    // Long enough for an agent on a busy machine to look at it.
    let patient = Configured { timeout: 10, ..open };
    let (code, message) = lab.runtime.call("ADD", &sandbox, patient).error.unwrap();
    assert_eq!(code, 11, "{message}");
    assert!(message.contains("Pod start/pod0 is not known yet"), "{message}");
    assert_eq!(lab.runtime.call("STATUS", &sandbox, bound).error, None);
    // Garbage collection forgets it; a version of before 0.3.1 is refused.
    let gc = Configured { version: "1.1.0", ..bound };
    assert_eq!(lab.runtime.call("GC", &sandbox, gc).error, None);
    assert_eq!(lab.runtime.call("CHECK", &sandbox, bound).error, None, "nothing was told of it");
    let old = Configured { version: "0.2.0", ..bound };
    assert_eq!(lab.runtime.call("ADD", &sandbox, old).error.map(|(code, _)| code), Some(1));
    lab.runtime.remove(&sandbox);
}

/// A pod gets an address that a pod which is gone still shows (T12): it is enforced as itself.
#[test]
fn an_address_that_a_gone_pod_still_shows_is_the_new_pod_s() {
    if !is_root("pods that start in network namespaces") {
        return;
    }
    for cni in [Cni::Routed, Cni::Bridge] {
        let mut lab = Start::up(Hook::Auto, cni);
        lab.agent(&[]);
        let (mut old, address) = lab.sandbox();
        lab.manifests.pod(&old, "free", None);
        lab.runtime.primary(&mut old, address);
        assert_eq!(lab.runtime.call("ADD", &old, Configured::default()).error, None);
        lab.manifests.pod(&old, "free", Some(address));
        lab.runtime.remove(&old);
        // Its object stays, with its address.
        let (mut new, _) = lab.sandbox();
        lab.manifests.pod(&new, "caged", None);
        lab.runtime.primary(&mut new, address);
        assert_eq!(lab.runtime.call("ADD", &new, Configured::default()).error, None, "{cni}");
        let mut sender = Sender::ready(&lab.runtime, &new);
        sender.send_for(SENDS);
        assert_eq!(lab.sink.of(sender.number).packets, 0, "{cni}: it sends as the pod that is gone");
        let endpoint = lab.endpoint(&new.pod).expect("the new pod is enforced");
        assert_eq!(endpoint["addresses"], serde_json::json!([address]), "{cni}");
        assert_eq!(lab.endpoint(&key("pod0")), None, "{cni}: the old pod is nowhere");
        lab.runtime.remove(&new);
    }
}

fn primary(mtu: u64) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"lab","plugins":[{{"type":"primary","mtu":{mtu}}},{{"type":"portmap"}}]}}"#
    )
}

/// What a runtime takes: the first configuration by name.
fn first_conf(dir: &Path) -> (String, Value) {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let ends =
        |name: &String| Path::new(name).extension().is_some_and(|end| end == "conflist" || end == "conf");
    let mut names: Vec<String> = names.filter(ends).collect();
    names.sort();
    let first = names.first().expect("a configuration").clone();
    let text = fs::read_to_string(dir.join(&first)).unwrap();
    (first, serde_json::from_str(&text).expect("a runtime never sees half a configuration"))
}

fn portcullis(arguments: &[&str]) -> String {
    let output = Command::new(agent()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_primary_that_writes_its_configuration_anew_stays_chained_while_pods_start() {
    if !is_root("pods that start in network namespaces") {
        return;
    }
    let mut lab = Start::up(Hook::Auto, Cni::Routed);
    let (conf, bin) = (Manifests::new("cni-conf"), Manifests::new("cni-bin"));
    let (conf_dir, bin_dir) =
        (conf.dir().to_str().unwrap().to_owned(), bin.dir().to_str().unwrap().to_owned());
    let run_dir = lab.lab.run_dir().to_str().unwrap().to_owned();
    conf.write("10-primary.conflist", &primary(0));
    let install = ["cni", "install", "--bin-dir", &bin_dir, "--conf-dir", &conf_dir, "--run-dir", &run_dir];
    let said = portcullis(&install);
    assert!(said.contains("follows 10-primary.conflist"), "{said}");
    assert_eq!(first_conf(conf.dir()).0, "00-portcullis.conflist");
    lab.agent(&["--cni-conf-dir", &conf_dir]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut mtu = 0;
            while !stop.load(Ordering::Relaxed) {
                mtu += 1;
                if mtu % 2 == 0 {
                    conf.write("10-primary.conflist", &primary(mtu));
                } else {
                    // In place: half of it is there for a moment.
                    fs::write(conf.dir().join("10-primary.conflist"), primary(mtu)).unwrap();
                }
                thread::sleep(Duration::from_millis(3));
            }
            mtu
        });
        for round in 0..number("PORTCULLIS_STARTS", 20).min(20) {
            let (mut sandbox, address) = lab.sandbox();
            lab.manifests.pod(&sandbox, "caged", None);
            let (name, list) = first_conf(conf.dir());
            assert_eq!(name, "00-portcullis.conflist", "round {round}");
            let types: Vec<&str> =
                list["plugins"].as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap()).collect();
            assert_eq!(types, ["primary", "portmap", "portcullis-cni"], "round {round}");
            lab.runtime.primary(&mut sandbox, address);
            // As a runtime merges them: the list's name and version, and the result before.
            let mut own = list["plugins"][2].clone();
            for key in ["name", "cniVersion"] {
                own[key] = list[key].clone();
            }
            own["prevResult"] = serde_json::from_str(&sandbox.result).unwrap();
            let binary = bin.dir().join("portcullis-cni");
            let answer = Answer::of(lab.runtime.spawn("ADD", &sandbox, &own.to_string(), &binary));
            let mut sender = Sender::ready(&lab.runtime, &sandbox);
            assert_eq!(answer.error, None, "round {round}");
            sender.send_for(SENDS);
            assert_eq!(lab.sink.of(sender.number).packets, 0, "round {round}");
            lab.runtime.remove(&sandbox);
        }
        stop.store(true, Ordering::Relaxed);
        let last = writer.join().unwrap();
        wait_for("the last configuration is followed", || {
            first_conf(conf.dir()).1["plugins"][0]["mtu"] == last
        });
    });
    // A broken one is not followed, and `status` says so.
    conf.write("10-primary.conflist", "{\"cniVersion\":");
    let status = || {
        let mut command = Command::new(agent());
        command.args(["status", "--run-dir", &run_dir]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    wait_for("status tells of a broken configuration", || {
        let status = status();
        status.contains("10-primary.conflist") && status.contains("mend")
    });
    assert_eq!(first_conf(conf.dir()).0, "00-portcullis.conflist");
    // Gone: ours goes. Back: ours comes, without a restart.
    conf.remove("10-primary.conflist");
    let ours = conf.dir().join("00-portcullis.conflist");
    wait_for("ours goes with the primary's", || !ours.exists());
    wait_for("status tells that there is none", || {
        status().contains("no primary plugin has a configuration")
    });
    conf.write("10-primary.conflist", &primary(7));
    wait_for("ours comes back", || ours.exists());
    wait_for("nothing is wrong with it", || !status().contains("CNI configuration"));
    lab.lab.kill(Signal::SIGTERM).unwrap();
    assert!(ours.exists(), "an agent that ends leaves pods closed");
    let dirs = ["--bin-dir", &bin_dir, "--conf-dir", &conf_dir, "--run-dir", &run_dir];
    portcullis(&[&["cni", "remove"], &dirs[..]].concat());
    assert_eq!(first_conf(conf.dir()).0, "10-primary.conflist");
    assert_eq!(fs::read_dir(bin.dir()).unwrap().count(), 0);
}

//! What a container runtime does for a pod, as far as networks go: makes its network namespace, lets a primary plugin
//! make the interface, and runs our plugin behind it, the real binary. Beside it: pods that send from the first
//! moment on, and somebody who counts what arrives.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use portcullis_agent::clock::monotonic;
use portcullis_lab::netns::{self, Netns};
use portcullis_lab::{Cni, Lab};
use portcullis_policy::model::ObjectKey;
use serde_json::{Value, json};

use crate::lifecycle::{PATIENCE, agent};

/// Where the sink listens.
const PORT: u16 = 7777;
/// Numbers of the first sandbox: beyond those of the lab's own pods.
const FIRST: u32 = 5000;

/// The plugin's binary, built beside the agent's.
#[must_use]
pub fn plugin() -> PathBuf {
    agent().with_file_name("portcullis-cni")
}

/// What the plugin is configured with, beyond where the agent is.
#[derive(Clone, Copy, Debug)]
pub struct Configured {
    /// The version that the runtime speaks.
    pub version: &'static str,
    /// `timeoutSeconds`.
    pub timeout: u64,
    /// `whenUnavailable`.
    pub when_unavailable: &'static str,
}

impl Default for Configured {
    fn default() -> Self {
        Self { version: "1.0.0", timeout: 20, when_unavailable: "deny" }
    }
}

/// The runtime of a lab's node.
#[derive(Debug)]
pub struct Runtime {
    node: Netns,
    id: String,
    run_dir: PathBuf,
    cni: Cni,
    gateway: Ipv4Addr,
    sink: Ipv4Addr,
    sink_mac: String,
    next: AtomicU32,
}

/// A pod's sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// Its network namespace.
    pub netns: Netns,
    /// The pod.
    pub pod: ObjectKey,
    /// `CNI_CONTAINERID`, and the pod's UID.
    pub container: String,
    /// Index of the host-side interface.
    pub interface: u32,
    /// What the primary plugin answered, in its own bytes.
    pub result: String,
    number: u32,
    device: String,
}

fn ip(netns: &Netns, lines: &[String]) {
    for line in lines {
        let mut command = Command::new("ip");
        command.args(line.split(' '));
        let output = netns.run(|| command.output()).expect("the namespace is there").expect("ip runs");
        assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The hardware address of a device.
fn mac_of(netns: &Netns, device: &str) -> String {
    let mut command = Command::new("ip");
    command.args(["-j", "link", "show", device]);
    let output = netns.run(|| command.output()).expect("the namespace is there").expect("ip runs");
    let links: Value = serde_json::from_slice(&output.stdout).expect("ip -j writes JSON");
    links[0]["address"].as_str().expect("an Ethernet device").to_owned()
}

impl Runtime {
    /// Of a lab in which a pod is the sink.
    #[must_use]
    pub fn new(lab: &Lab, cni: Cni, sink: &ObjectKey) -> Self {
        let state = lab.pod_state(sink).expect("the sink is in the lab");
        let address = state.addresses.iter().find_map(|address| match address {
            std::net::IpAddr::V4(address) => Some(*address),
            std::net::IpAddr::V6(_) => None,
        });
        Self {
            node: Netns::open(lab.node().name()).expect("the node is there"),
            id: lab.id().to_owned(),
            run_dir: lab.run_dir().to_owned(),
            cni,
            gateway: lab.state().link.node4,
            sink: address.expect("the sink has an address"),
            sink_mac: mac_of(lab.pod(sink).expect("the sink is in the lab"), "eth0"),
            next: AtomicU32::new(FIRST),
        }
    }

    /// A sandbox without an interface.
    #[must_use]
    pub fn sandbox(&self, pod: &ObjectKey) -> Sandbox {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Named as the lab's pods are: what a test leaves goes with its lab.
        let netns = Netns::create(&format!("pcl-{}-p{number}", self.id)).expect("a namespace");
        Sandbox {
            netns,
            pod: pod.clone(),
            container: format!("sandbox-{}-{number}", self.id),
            interface: number,
            result: String::new(),
            number,
            device: format!("cni{number}"),
        }
    }

    /// What the primary plugin does: a veth pair with an address. Neighbours are known, so that the pod's first packet
    /// waits for nobody.
    pub fn primary(&self, sandbox: &mut Sandbox, address: Ipv4Addr) {
        let Sandbox { netns, device, interface, number, .. } = sandbox;
        let [_, _, a, b] = number.to_be_bytes();
        let (mac, host_mac) =
            (format!("0a:58:0a:63:{a:02x}:{b:02x}"), format!("02:58:0a:63:{a:02x}:{b:02x}"));
        let gateway = self.gateway;
        let add = format!(
            "link add {device} index {interface} address {host_mac} type veth peer name eth0 address {mac} netns {}",
            netns.name()
        );
        let (length, next_hop, on_node) = match self.cni {
            Cni::Routed => (
                32,
                (gateway, host_mac.clone()),
                vec![
                    add,
                    format!("link set {device} up"),
                    format!("route replace {address}/32 dev {device}"),
                ],
            ),
            Cni::Bridge => (
                24,
                (self.sink, self.sink_mac.clone()),
                vec![add, format!("link set {device} master cni0"), format!("link set {device} up")],
            ),
        };
        ip(&self.node, &on_node);
        let mut inside = vec![
            "link set lo up".to_owned(),
            format!("addr add {address}/{length} dev eth0"),
            "link set eth0 up".to_owned(),
        ];
        if let Cni::Routed = self.cni {
            inside.push(format!("route add {gateway}/32 dev eth0 scope link"));
            inside.push(format!("route add default via {gateway}"));
        }
        inside.push(format!("neigh replace {} lladdr {} dev eth0 nud permanent", next_hop.0, next_hop.1));
        ip(netns, &inside);
        // Spaces and numbers as only this primary writes them: they have to come out of the chain as they went in.
        sandbox.result = format!(
            "{{\"cniVersion\": \"1.0.0\",  \"interfaces\": [{{\"name\":\"cni0\"}}, {{\"name\":\"{device}\",\
             \"mac\":\"{host_mac}\"}},{{\"name\":\"eth0\",\"mac\":\"{mac}\",\"sandbox\":\"{}\"}}],\
             \"ips\":[{{\"interface\":2,\"address\":\"{address}/{length}\"}}], \"x\":1.50}}",
            path(netns).display()
        );
    }

    /// The configuration that the plugin gets.
    #[must_use]
    pub fn conf(&self, sandbox: &Sandbox, configured: Configured) -> String {
        let Configured { version, timeout, when_unavailable } = configured;
        format!(
            "{{\"cniVersion\":\"{version}\",\"name\":\"lab\",\"type\":\"portcullis-cni\",\"runDir\":{},\
             \"timeoutSeconds\":{timeout},\"whenUnavailable\":\"{when_unavailable}\",\
             \"cni.dev/valid-attachments\":[],\"prevResult\":{}}}",
            json!(self.run_dir),
            if sandbox.result.is_empty() { "null" } else { &sandbox.result }
        )
    }

    /// Starts the plugin.
    #[must_use]
    pub fn spawn(&self, command: &str, sandbox: &Sandbox, conf: &str, binary: &Path) -> Child {
        let ObjectKey { namespace, name } = &sandbox.pod;
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
             K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            sandbox.container, sandbox.container
        );
        let variables: [(&str, OsString); 6] = [
            ("CNI_COMMAND", command.into()),
            ("CNI_CONTAINERID", sandbox.container.clone().into()),
            ("CNI_NETNS", path(&sandbox.netns).into()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_ARGS", args.into()),
            ("CNI_PATH", "/opt/cni/bin".into()),
        ];
        let mut run = Command::new(binary);
        run.env_clear().envs(variables);
        run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = self
            .node
            .run(|| run.spawn())
            .expect("the node is there")
            .unwrap_or_else(|error| panic!("{}: {error}: build the agent's binaries", binary.display()));
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(conf.as_bytes()).expect("the plugin reads its configuration");
        child
    }

    /// Runs the plugin to its end.
    #[must_use]
    pub fn call(&self, command: &str, sandbox: &Sandbox, configured: Configured) -> Answer {
        let child = self.spawn(command, sandbox, &self.conf(sandbox, configured), &plugin());
        Answer::of(child)
    }

    /// What the runtime does when a pod is gone, or could not start: the plugins' `DEL`, last first, then the sandbox.
    pub fn remove(&self, sandbox: &Sandbox) {
        let answer = self.call("DEL", sandbox, Configured::default());
        assert_eq!(answer.error, None, "DEL never fails");
        let Sandbox { netns, device, .. } = sandbox;
        let mut command = Command::new("ip");
        command.args(["link", "del", device]);
        // One that never got an interface has none to lose.
        drop(self.node.run(|| command.output()));
        netns::delete(netns.name()).expect("the namespace goes");
    }
}

fn path(netns: &Netns) -> PathBuf {
    Path::new("/run/netns").join(netns.name())
}

/// What the plugin answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Stdout.
    pub text: String,
    /// The code of its error, and the message.
    pub error: Option<(u64, String)>,
}

impl Answer {
    /// Waits for the plugin's end.
    #[must_use]
    pub fn of(child: Child) -> Self {
        let Output { status, stdout, .. } = child.wait_with_output().expect("the plugin ends");
        let text = String::from_utf8(stdout).expect("the plugin writes text");
        let error = (!status.success()).then(|| {
            let error: Value = serde_json::from_str(&text).expect("an error is JSON");
            let message = error["msg"].as_str().expect("an error has a message").to_owned();
            (error["code"].as_u64().expect("an error has a code"), message)
        });
        Self { text, error }
    }
}

/// What arrived of one sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Datagrams.
    pub packets: u64,
    /// When the first of them was sent, by the monotonic clock in nanoseconds.
    pub first: u64,
    /// And the last.
    pub last: u64,
}

/// Counts what arrives at a pod.
#[derive(Debug)]
pub struct Sink {
    arrived: Arc<Mutex<BTreeMap<u32, Arrived>>>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
    /// A pod whose datagrams always arrive.
    bell: UdpSocket,
    rings: AtomicU32,
}

impl Sink {
    /// In a pod of the lab, with another that rings the bell.
    #[must_use]
    pub fn open(lab: &Lab, sink: &ObjectKey, bell: &ObjectKey) -> Self {
        let address = lab.pod_state(sink).expect("the sink is in the lab").addresses[0];
        let socket =
            lab.pod(sink).expect("the sink is in the lab").run(|| UdpSocket::bind(("0.0.0.0", PORT)));
        let socket = socket.expect("the namespace is there").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a time-out");
        let bell = lab.pod(bell).expect("the bell is in the lab").run(|| UdpSocket::bind(("0.0.0.0", 0)));
        let bell = bell.expect("the namespace is there").expect("a socket");
        bell.connect((address, PORT)).expect("a way");
        let (arrived, stop) = (Arc::new(Mutex::default()), Arc::new(AtomicBool::new(false)));
        let worker = {
            let (arrived, stop) = (Arc::clone(&arrived), Arc::clone(&stop));
            thread::spawn(move || count(&socket, &arrived, &stop))
        };
        Self { arrived, stop, worker: Some(worker), bell, rings: AtomicU32::new(1 << 31) }
    }

    /// What arrived of a sender, once everything that it has sent by now is there or never will be.
    #[must_use]
    pub fn of(&self, sender: u32) -> Arrived {
        let ring = self.rings.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        while !self.known(ring) {
            assert!(begun.elapsed() < PATIENCE, "the bell is not heard");
            drop(self.bell.send(&datagram(ring, 0)));
            thread::sleep(Duration::from_millis(1));
        }
        self.arrived.lock().expect("no counter panicked").get(&sender).copied().unwrap_or_default()
    }

    fn known(&self, sender: u32) -> bool {
        self.arrived.lock().expect("no counter panicked").contains_key(&sender)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            // It only counts.
            drop(worker.join());
        }
    }
}

fn count(socket: &UdpSocket, arrived: &Mutex<BTreeMap<u32, Arrived>>, stop: &AtomicBool) {
    let mut buffer = [0; 12];
    while !stop.load(Ordering::Relaxed) {
        let Ok(12) = socket.recv(&mut buffer) else { continue };
        let [a, b, c, d, stamp @ ..] = buffer;
        let stamp = u64::from_ne_bytes(stamp);
        let mut arrived = arrived.lock().expect("no counter panicked");
        let entry = arrived.entry(u32::from_ne_bytes([a, b, c, d])).or_default();
        entry.packets += 1;
        entry.first = if entry.packets == 1 { stamp } else { entry.first.min(stamp) };
        entry.last = entry.last.max(stamp);
    }
}

fn datagram(sender: u32, stamp: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&sender.to_ne_bytes());
    bytes[4..].copy_from_slice(&stamp.to_ne_bytes());
    bytes
}

/// A process of the pod's: sends as fast as it can from a moment on.
#[derive(Debug)]
pub struct Sender {
    /// Its number, for the sink.
    pub number: u32,
    go: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    worker: Option<JoinHandle<()>>,
}

impl Sender {
    /// Ready in a sandbox, and silent.
    #[must_use]
    pub fn ready(runtime: &Runtime, sandbox: &Sandbox) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (go, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let to = (runtime.sink, PORT);
        let socket = sandbox.netns.run(|| UdpSocket::bind(("0.0.0.0", 0)));
        let socket = socket.expect("the namespace is there").expect("a socket");
        let sent = Arc::new(AtomicU64::new(0));
        let worker = {
            let (go, stop, sent) = (Arc::clone(&go), Arc::clone(&stop), Arc::clone(&sent));
            thread::spawn(move || {
                while !go.load(Ordering::Acquire) {
                    // The machine has other work to do, which is to be waited for.
                    thread::yield_now();
                }
                while !stop.load(Ordering::Relaxed) {
                    // Until there is a route there is none.
                    let one = u64::from(socket.send_to(&datagram(number, monotonic()), to).is_ok());
                    sent.fetch_add(one, Ordering::Relaxed);
                }
            })
        };
        Self { number, go, stop, sent, worker: Some(worker) }
    }

    /// Sends from now on.
    pub fn go(&self) {
        self.go.store(true, Ordering::Release);
    }

    /// Sends for so long from now on, or from when the machine came to it.
    pub fn send_for(&mut self, duration: Duration) {
        self.go();
        let begun = Instant::now();
        while self.sent.load(Ordering::Relaxed) == 0 {
            assert!(begun.elapsed() < PATIENCE, "nothing was sent");
            thread::yield_now();
        }
        thread::sleep(duration);
        self.stop();
    }

    /// Stops.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.go();
        if let Some(worker) = self.worker.take() {
            worker.join().expect("the sender ends");
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.go();
        if let Some(worker) = self.worker.take() {
            drop(worker.join());
        }
    }
}

/// A directory of manifests that changes file by file, each in one step.
#[derive(Debug)]
pub struct Manifests(PathBuf);

impl Manifests {
    /// A new one.
    #[must_use]
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("portcullis-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for manifests");
        Self(dir)
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Writes a file.
    pub fn write(&self, name: &str, text: &str) {
        let beside = self.0.join(".beside");
        fs::write(&beside, text).expect("the manifests are written");
        fs::rename(&beside, self.0.join(name)).expect("the manifests are put in place");
    }

    /// Takes a file away.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.0.join(name)).expect("the manifests are there");
    }

    /// Writes a pod of a sandbox, with this label `app`, and its address once its status is there.
    pub fn pod(&self, sandbox: &Sandbox, app: &str, shown: Option<Ipv4Addr>) {
        let ObjectKey { namespace, name } = &sandbox.pod;
        let status = shown.map_or(
            json!({"phase": "Pending"}),
            |address| json!({"phase": "Running", "podIPs": [{"ip": address}]}),
        );
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "uid": sandbox.container, "labels": {"app": app}},
            "spec": {"containers": [{"name": "c"}]},
            "status": status,
        });
        self.write(&format!("pod-{name}.json"), &pod.to_string());
    }
}

impl Drop for Manifests {
    fn drop(&mut self) {
        // Temporary; a leftover does no harm.
        drop(fs::remove_dir_all(&self.0));
    }
}

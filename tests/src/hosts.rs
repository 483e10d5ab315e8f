//! A node with hostNetwork pods, as processes in cgroups of their own: this process goes into the cgroup of whoever opens a
//! socket, for a socket is for ever of the cgroup that it was opened in.
#![allow(clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use portcullis_lab::{AgentSpec, Family, Hook, Lab, LabOptions};
use portcullis_policy::model::{ObjectKey, Protocol};
use serde_json::{Value, json};

use crate::lifecycle::{PATIENCE, agent};
use crate::services::{Call, Heard, QUIET, Score, enter_cgroup, leave_cgroup, listen};

/// The first port of each party; the second is the next.
const PORTS: u16 = 2;
/// Of pods and of what is outside.
pub const PORT: u16 = 5000;
const X_UID: &str = "0a000000-0000-4000-8000-00000000000a";
const Y_UID: &str = "0b000000-0000-4000-8000-00000000000b";
const POD: [&str; 2] = ["10.77.0.1", "fd77::1"];
const REMOTE_POD: [&str; 2] = ["10.244.9.9", "fd00:244:9::9"];
const REMOTE_NODE: [&str; 2] = ["192.168.60.2", "fd60::2"];
const OUTSIDE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// The node's name.
pub const NODE: &str = "n1";
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Who sends and who gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A hostNetwork pod.
    X,
    /// Another.
    Y,
    /// A process of the node.
    Host,
    /// A pod on the node, with a network of its own.
    Pod,
    /// A pod elsewhere.
    RemotePod,
    /// Another node.
    RemoteNode,
    /// Neither.
    Outside,
}

impl Party {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::X, Self::Y, Self::Host, Self::Pod, Self::RemotePod, Self::RemoteNode, Self::Outside];

    /// True for those with the node's addresses.
    #[must_use]
    pub const fn is_here(self) -> bool {
        matches!(self, Self::X | Self::Y | Self::Host)
    }

    /// The ports that it listens at.
    #[must_use]
    pub fn ports(self) -> std::ops::Range<u16> {
        let first = match self {
            Self::X => 7000,
            Self::Y => 7010,
            Self::Host => 7020,
            Self::Pod | Self::RemotePod | Self::RemoteNode | Self::Outside => PORT,
        };
        first..first + PORTS
    }
}

/// By which address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The one of the uplink; for others than the node their own.
    Address,
    /// The loopback device's.
    Loopback,
}

/// Where something is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// To whom.
    pub of: Party,
    /// At which of its addresses.
    pub place: Place,
    /// Protocol.
    pub protocol: Protocol,
    /// Family.
    pub family: Family,
    /// Port.
    pub port: u16,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}, {}/{}, {:?}", self.of, self.place, self.protocol, self.port, self.family)
    }
}

/// The node, its pods, and an agent with the host firewall on.
#[derive(Debug)]
pub struct Stage {
    lab: Lab,
    spec: AgentSpec,
    dir: PathBuf,
    root: PathBuf,
    servers: Option<Servers>,
    node: [IpAddr; 2],
    applied: u64,
}

impl Stage {
    /// A stage without policies. With these arguments the agent is started beside those that it needs.
    ///
    /// # Panics
    ///
    /// Where anything of it fails, as all here does.
    #[must_use]
    pub fn up(hook: Hook, arguments: &[&str]) -> Self {
        let root = enter_cgroup();
        for party in [Party::X, Party::Y, Party::Host] {
            fs::create_dir_all(root.join(cgroup(party))).expect("a cgroup can be made");
        }
        enter(&root, Party::Host);
        let dir =
            std::env::temp_dir().join(format!("portcullis-hosts-{}-{}", hook.name(), std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for manifests");
        write(&dir, &objects([[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()], &[], false));
        let cluster = portcullis_lab::source::read(&dir, &[]).expect("the manifests can be read").cluster;
        let ports =
            PROTOCOLS.iter().flat_map(|one| Party::Pod.ports().map(move |port| (*one, port))).collect();
        let outside = [REMOTE_POD, REMOTE_NODE, OUTSIDE].concat().iter().map(|text| parse(text)).collect();
        let options =
            LabOptions { ports, outside, node_name: Some(NODE.to_owned()), ..LabOptions::default() };
        let mut lab = Lab::up(&cluster, options).expect("the lab comes up");
        let link = &lab.state().link;
        let node = [link.node4.into(), link.node6.into()];
        write(&dir, &objects(node, &[], true));
        let mut all: Vec<OsString> =
            vec!["--cgroup-root".into(), root.clone().into_os_string(), "--host-firewall".into()];
        all.extend(arguments.iter().map(OsString::from));
        let spec = AgentSpec { binary: agent(), source: dir.clone(), hook, arguments: all };
        lab.start_agent(&spec).expect("the agent starts");
        let applied = lab.wait_applied(1, PATIENCE).expect("the manifests are in force");
        let servers = Servers::start(&lab, &root, node);
        Self { lab, spec, dir, root, servers: Some(servers), node, applied }
    }

    /// Ends the agent by this signal.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn kill(&mut self, signal: Signal) {
        self.lab.kill(signal).expect("the agent ends");
    }

    /// Starts it again, and waits until it enforces.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn restart(&mut self) {
        self.enter(Party::Host);
        self.lab.start_agent(&self.spec).expect("the agent starts");
        self.applied = self.lab.wait_applied(1, PATIENCE).expect("the manifests are in force");
    }

    /// Writes these policies and does not wait.
    pub fn write(&self, policies: &[Value]) {
        write(&self.dir, &self.objects(policies));
    }

    /// Writes these policies and objects, and waits until they are in force.
    ///
    /// # Panics
    ///
    /// If they are not after [`PATIENCE`].
    pub fn apply_all(&mut self, objects: &[Value]) {
        write(&self.dir, objects);
        self.applied = self.lab.wait_applied(self.applied + 1, PATIENCE).expect("the objects are in force");
    }

    /// The node's cgroups.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// From here on this process opens sockets of that party.
    pub fn enter(&self, party: Party) {
        enter(&self.root, party);
    }

    /// What `portcullis` says to these words on the node, and how it ends.
    ///
    /// # Panics
    ///
    /// If it cannot be run.
    #[must_use]
    pub fn verb(&self, words: &[&str]) -> (i32, String) {
        let mut command = Command::new(agent());
        command.args(words).arg("--run-dir").arg(self.lab.run_dir());
        if matches!(words.first(), Some(&("host-firewall" | "cleanup"))) {
            command.arg("--bpffs").arg(self.lab.bpffs());
        }
        let output =
            self.lab.node().run(|| command.output()).expect("the namespace is there").expect("it runs");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), text)
    }

    /// True if somebody answers.
    ///
    /// # Panics
    ///
    /// If there is no socket.
    #[must_use]
    pub fn reaches(&self, from: Party, at: At) -> bool {
        let Ok(call) = self.open(from, at) else { return false };
        let mut calls = [call];
        listen(&mut calls, QUIET, |_| true);
        calls[0].heard() == Heard::Answer
    }

    /// The lab.
    #[must_use]
    pub const fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The lab, to be changed.
    pub const fn lab_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }

    /// What is there with these policies, as the agent reads it.
    #[must_use]
    pub fn objects(&self, policies: &[Value]) -> Vec<Value> {
        objects(self.node, policies, true)
    }

    /// Brings these policies into force, and no others.
    ///
    /// # Panics
    ///
    /// If they are not after [`PATIENCE`].
    pub fn apply(&mut self, policies: &[Value]) {
        write(&self.dir, &self.objects(policies));
        self.applied = self.lab.wait_applied(self.applied + 1, PATIENCE).expect("the policies are in force");
    }

    /// The address of a party, and of the node by a place.
    #[must_use]
    pub fn address(&self, party: Party, place: Place, family: Family) -> IpAddr {
        let index = usize::from(family == Family::Ipv6);
        let loopback = ["127.0.0.1", "::1"];
        match (party, place) {
            (Party::X | Party::Y | Party::Host, Place::Address) => self.node[index],
            (Party::X | Party::Y | Party::Host, Place::Loopback) => parse(loopback[index]),
            (Party::Pod, _) => parse(POD[index]),
            (Party::RemotePod, _) => parse(REMOTE_POD[index]),
            (Party::RemoteNode, _) => parse(REMOTE_NODE[index]),
            (Party::Outside, _) => parse(OUTSIDE[index]),
        }
    }

    /// Opens a call, from a socket of this party.
    ///
    /// # Panics
    ///
    /// If there is no socket.
    pub fn open(&self, from: Party, at: At) -> std::io::Result<Call> {
        if from.is_here() {
            enter(&self.root, from);
        }
        let place = if at.of.is_here() { at.place } else { Place::Address };
        let source = self.address(from, place, at.family);
        let to = SocketAddr::new(self.address(at.of, at.place, at.family), at.port);
        let netns = match from {
            Party::X | Party::Y | Party::Host => self.lab.node(),
            Party::Pod => self.lab.pod(&ObjectKey::new("apps", "p")).expect("the lab has the pod"),
            Party::RemotePod | Party::RemoteNode | Party::Outside => self.lab.outside(),
        };
        netns.run(|| Call::open(at.protocol, source, to, 8)).expect("the namespace is there")
    }

    /// Every party to every other that can be reached by the node.
    #[must_use]
    pub fn ways() -> Vec<(Party, At)> {
        let mut ways = Vec::new();
        for (from, to) in Party::ALL.iter().flat_map(|from| Party::ALL.map(|to| (*from, to))) {
            // What does not pass the node is not judged here.
            if !from.is_here() && !to.is_here() {
                continue;
            }
            for place in [Place::Address, Place::Loopback] {
                if place == Place::Loopback && !(from.is_here() && to.is_here()) {
                    continue;
                }
                for (protocol, family) in
                    PROTOCOLS.iter().flat_map(|one| FAMILIES.map(|family| (*one, family)))
                {
                    ways.extend(to.ports().map(|port| (from, At { of: to, place, protocol, family, port })));
                }
            }
        }
        ways
    }

    /// Calls each way, and compares with what is expected.
    pub fn matrix(&self, is_allowed: impl Fn(Party, At) -> bool) -> Score {
        let ways = Self::ways();
        // What may not leave is refused to the sender at once.
        let mut calls: Vec<(usize, Call)> = Vec::new();
        for (number, (from, at)) in ways.iter().enumerate() {
            if let Ok(call) = self.open(*from, *at) {
                calls.push((number, call));
            }
        }
        let (numbers, mut calls): (Vec<usize>, Vec<Call>) = calls.into_iter().unzip();
        let allowed: Vec<bool> =
            numbers.iter().map(|number| is_allowed(ways[*number].0, ways[*number].1)).collect();
        listen(&mut calls, PATIENCE, |number| allowed[number]);
        listen(&mut calls, QUIET, |_| true);
        let mut score = Score::default();
        let heard: BTreeMap<usize, Heard> =
            numbers.iter().zip(&calls).map(|(number, call)| (*number, call.heard())).collect();
        for (number, (from, at)) in ways.iter().enumerate() {
            let wanted = if is_allowed(*from, *at) { Heard::Answer } else { Heard::Nothing };
            let heard = heard.get(&number).copied().unwrap_or(Heard::Nothing);
            score.asked += 1;
            score.answered += usize::from(heard == Heard::Answer);
            if heard != wanted {
                score.wrong.push(format!("{from:?} to {at}: {heard:?}, not {wanted:?}"));
            }
        }
        score
    }

    /// Takes everything down.
    ///
    /// # Panics
    ///
    /// If something stays.
    pub fn down(mut self) {
        drop(self.servers.take());
        enter(&self.root, Party::Host);
        let root = self.root.clone();
        drop(self);
        leave(&root);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", fs::read_to_string(self.lab.agent_log()).unwrap_or_default());
        }
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Goes back to the root, and takes all cgroups away.
fn leave(root: &Path) {
    let process = std::process::id().to_string();
    drop(fs::write(root.join("cgroup.procs"), process));
    for party in [Party::X, Party::Y, Party::Host] {
        let mut dir = root.join(cgroup(party));
        while dir != *root {
            drop(fs::remove_dir(&dir));
            dir.pop();
        }
    }
    leave_cgroup(root);
}

/// Where a party's container is, below the root: of two classes, as the driver cgroupfs names them. systemd's names are tried in
/// `agent/src/attach/pods.rs`.
fn cgroup(party: Party) -> String {
    match party {
        Party::X => format!("kubepods/pod{X_UID}/c"),
        Party::Y => format!("kubepods/besteffort/pod{Y_UID}/c"),
        Party::Host | Party::Pod | Party::RemotePod | Party::RemoteNode | Party::Outside => {
            "system/host.service".to_owned()
        }
    }
}

/// From here on this process opens sockets of that party.
pub fn enter(root: &Path, party: Party) {
    let procs = root.join(cgroup(party)).join("cgroup.procs");
    fs::write(procs, std::process::id().to_string()).expect("a cgroup can be entered");
}

fn parse(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The cluster; the pod elsewhere is left out where a lab would make it here.
fn objects(node: [IpAddr; 2], policies: &[Value], whole: bool) -> Vec<Value> {
    let node_object = |name: &str, addresses: [String; 2]| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"role": name}},
            "status": {"addresses": addresses.map(|a| json!({"type": "InternalIP", "address": a}))}})
    };
    let pod = |name: &str, uid: &str, node: &str, host: bool, addresses: [String; 2]| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "apps", "uid": uid, "labels": {"app": name}},
            "spec": {"nodeName": node, "hostNetwork": host, "containers": [{"name": "c", "ports": [{"name": "main", "containerPort": match name { "x" => 7000, "y" => 7010, _ => PORT }}]}]},
            "status": {"phase": "Running", "podIPs": addresses.map(|ip| json!({"ip": ip}))}})
    };
    let text = |both: [&str; 2]| both.map(str::to_owned);
    let here = node.map(|address| address.to_string());
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "apps", "labels": {"team": "a"}}}),
        node_object(NODE, here.clone()),
        node_object("n2", text(REMOTE_NODE)),
        pod("x", X_UID, NODE, true, here.clone()),
        pod("y", Y_UID, NODE, true, here),
        pod("p", "0c000000-0000-4000-8000-00000000000c", NODE, false, text(POD)),
    ];
    if whole {
        all.push(pod("r", "0d000000-0000-4000-8000-00000000000d", "n2", false, text(REMOTE_POD)));
    }
    all.extend(policies.iter().cloned());
    all
}

fn write(dir: &Path, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let new = dir.join("new");
    fs::write(&new, list.to_string())
        .and_then(|()| fs::rename(new, dir.join("all.json")))
        .expect("manifests");
}

/// Who answers at the node's sockets.
#[derive(Debug)]
struct Servers {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Server {
    Tcp(TcpListener),
    Udp(UdpSocket),
    Line(TcpStream),
}

impl Server {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
            Self::Line(stream) => stream.as_fd(),
        }
    }

    /// Answers; a new connection where there is one, and whether to go on.
    fn serve(&mut self) -> (Option<Self>, bool) {
        let mut bytes = [0; 2_048];
        match self {
            Self::Tcp(listener) => match listener.accept() {
                Ok((mut stream, _)) => {
                    drop(stream.write_all(b"hello\n"));
                    drop(stream.set_nonblocking(true));
                    (Some(Self::Line(stream)), true)
                }
                Err(_) => (None, true),
            },
            Self::Udp(socket) => {
                if let Ok((read, from)) = socket.recv_from(&mut bytes) {
                    drop(socket.send_to(&bytes[..read], from));
                }
                (None, true)
            }
            Self::Line(stream) => match stream.read(&mut bytes) {
                Ok(0) | Err(_) => (None, false),
                Ok(read) => {
                    drop(stream.write_all(&bytes[..read]));
                    (None, true)
                }
            },
        }
    }
}

impl Servers {
    fn start(lab: &Lab, root: &Path, node: [IpAddr; 2]) -> Self {
        let mut servers = Vec::new();
        let addresses = [node[0], node[1], parse("127.0.0.1"), parse("::1")];
        for party in [Party::X, Party::Y, Party::Host] {
            enter(root, party);
            for (address, port) in addresses.iter().flat_map(|a| party.ports().map(|port| (*a, port))) {
                let at = SocketAddr::new(address, port);
                let opened = lab
                    .node()
                    .run(|| Ok::<_, std::io::Error>((TcpListener::bind(at)?, UdpSocket::bind(at)?)));
                let (tcp, udp) = opened.expect("the namespace is there").expect("ports are free");
                tcp.set_nonblocking(true).expect("non-blocking");
                udp.set_nonblocking(true).expect("non-blocking");
                servers.extend([Server::Tcp(tcp), Server::Udp(udp)]);
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let ready: Vec<bool> = {
                    let mut fds: Vec<PollFd<'_>> =
                        servers.iter().map(|one| PollFd::new(one.fd(), PollFlags::POLLIN)).collect();
                    let _ = poll(&mut fds, PollTimeout::from(20u8));
                    fds.iter().map(|fd| fd.any().unwrap_or(false)).collect()
                };
                let mut new = Vec::new();
                let mut kept = Vec::new();
                for (mut server, ready) in servers.drain(..).zip(ready) {
                    let (more, goes_on) = if ready { server.serve() } else { (None, true) };
                    new.extend(more);
                    if goes_on {
                        kept.push(server);
                    }
                }
                servers = kept;
                servers.append(&mut new);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

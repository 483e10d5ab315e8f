//! A lab in which frames are sent by hand and judged by what arrives: pods of every kind of isolation, an enforcing
//! agent, a packet socket in each namespace. Each shot is followed by a legal frame on the same way: once that is
//! heard, what was not heard before it did not arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, PerCpuArray};
use portcullis_agent::bpf::Pins;
use portcullis_common::event::{Direction, Outcome, Reason, verdict_cell};
use portcullis_lab::netns::Netns;
use portcullis_lab::{AgentSpec, Cni, Family, Hook, Lab, LabOptions};
use portcullis_policy::model::ObjectKey;

use crate::frames::{self, Mac, Path};
use crate::lifecycle::{PATIENCE, agent};
use crate::tap::{Ring, Tap, stay_on_one_cpu};

/// The port that the server's friends may use, by TCP, UDP and SCTP.
pub const OPEN: u16 = 5000;
/// A port that nobody may use.
pub const SHUT: u16 = 6000;
/// The port that anybody may send datagrams to, at every pod.
pub const CONTROL: u16 = 9999;
/// How long a legal frame may take on a loaded machine.
const SOON: Duration = Duration::from_secs(10);
/// What marks start with.
const MAGIC: [u8; 4] = *b"PCL!";

/// A pod's first part, to be completed with its name and its number.
const POD: &str = r"
---
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: field, labels: {app: NAME}}
spec: {containers: [{name: c, ports: [{containerPort: 5000}, {containerPort: 5000, protocol: UDP}]}]}
status: {podIPs: [{ip: 10.79.0.NUMBER}, {ip: 'fd79::NUMBER'}]}
";

/// Pods in the order of their numbers, from 1.
const PODS: [&str; 7] = ["server", "friend", "stranger", "open", "caged", "half", "bell"];

/// `server`: friend and caged at one port. `caged`: isolated both ways, may send to the server's port. `half`:
/// isolated in what it sends. `bell`: the friend, by any protocol. All of them: datagrams to the control port.
const POLICIES: &str = r"
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: field}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [friend, caged]}]}}]
    ports: [{port: 5000}, {port: 5000, protocol: UDP}, {port: 5000, protocol: SCTP}]
  - ports: [{port: 9999, protocol: UDP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: caged, namespace: field}
spec:
  podSelector: {matchLabels: {app: caged}}
  policyTypes: [Ingress, Egress]
  ingress: [{ports: [{port: 9999, protocol: UDP}]}]
  egress:
  - to: [{podSelector: {matchLabels: {app: server}}}]
    ports: [{port: 5000}, {port: 5000, protocol: UDP}, {port: 5000, protocol: SCTP}]
  - ports: [{port: 9999, protocol: UDP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: half, namespace: field}
spec:
  podSelector: {matchLabels: {app: half}}
  policyTypes: [Egress]
  egress: [{ports: [{port: 9999, protocol: UDP}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: bell, namespace: field}
spec:
  podSelector: {matchLabels: {app: bell}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: friend}}}]
  - ports: [{port: 9999, protocol: UDP}]
";

/// Whether the node's namespace tracks connections, which reassembles fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conntrack {
    /// It does, bridged packets included.
    On,
    /// It does not.
    Off,
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A pod.
    Pod(&'static str),
    /// A host at the other end of the node's uplink.
    Outside,
    /// Whoever is at a port of the bridge that is no pod's.
    Stray,
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(name) => f.write_str(name),
            Self::Outside => f.write_str("outside"),
            Self::Stray => f.write_str("stray"),
        }
    }
}

/// What must become of a shot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The receiver hears it.
    Arrives,
    /// The programs drop every frame of it, and count it so.
    Dropped(Direction, Reason),
    /// The receiver does not hear it. The node may drop it on the way, so no counter tells.
    Lost,
}

/// A mark, by which a frame is known again wherever it turns up.
pub type Mark = [u8; 8];

/// One frame or several that share a fate.
#[derive(Clone, Debug)]
pub struct Shot {
    /// `T1` and so on.
    pub threat: &'static str,
    /// What it is.
    pub what: String,
    /// Who sends.
    pub from: Who,
    /// Which pod it is for.
    pub to: &'static str,
    /// Over which protocol.
    pub family: Family,
    /// What must become of it.
    pub fate: Fate,
}

#[derive(Debug)]
struct Post {
    tap: Tap,
    mac: Mac,
    /// Where frames go that leave the link.
    gateway: Mac,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

/// The lab.
pub struct Field {
    /// The lab itself.
    pub lab: Lab,
    /// How pods hang on the node.
    pub cni: Cni,
    /// Whether the node tracks connections.
    pub conntrack: Conntrack,
    dir: PathBuf,
    posts: BTreeMap<Who, Post>,
    verdicts: PerCpuArray<MapData, [u64; 2]>,
    /// By which a sender sends for now.
    ring: Option<(Who, Ring)>,
    next: u32,
    /// What must not be heard, whenever it may come.
    dropped: BTreeMap<(&'static str, u32), String>,
    /// Shots by threat.
    shots: BTreeMap<&'static str, u64>,
    /// What was otherwise than it must be.
    pub wrong: Vec<String>,
}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Field")
            .field("cni", &self.cni)
            .field("conntrack", &self.conntrack)
            .finish_non_exhaustive()
    }
}

impl Field {
    /// A field with an enforcing agent and these further manifests; their pods have no packet sockets unless named.
    ///
    /// # Panics
    ///
    /// Where anything of it fails, as all here does.
    #[must_use]
    pub fn up(cni: Cni, conntrack: Conntrack, more: &str, heard: &[(&'static str, u8)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        stay_on_one_cpu();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("portcullis-field-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for manifests");
        let mut text = String::from("apiVersion: v1\nkind: Namespace\nmetadata: {name: field}\n");
        for (name, number) in PODS.iter().zip(1..) {
            text += &pod(name, number);
        }
        fs::write(dir.join("field.yaml"), text + POLICIES + more).expect("the manifests are written");
        let cluster = portcullis_lab::source::read(&dir, &[]).expect("the manifests are good").cluster;
        let options = LabOptions { cni, ..LabOptions::default() };
        let mut lab = Lab::up(&cluster, options).expect("the lab comes up");
        track(lab.node(), conntrack);
        let spec =
            AgentSpec { binary: agent(), source: dir.clone(), hook: Hook::Auto, arguments: Vec::new() };
        lab.start_agent(&spec).expect("the agent starts");
        lab.wait_applied(1, PATIENCE).expect("the agent enforces");
        let posts = posts(&lab, cni, heard);
        let pin = Pins::new(lab.bpffs()).maps().join("verdicts");
        let map = Map::from_map_data(MapData::from_pin(pin).expect("the agent has pinned its counters"));
        let verdicts = PerCpuArray::try_from(map.expect("a map")).expect("counters of each CPU");
        let mut field = Self {
            lab,
            cni,
            conntrack,
            dir,
            posts,
            verdicts,
            ring: None,
            next: 0,
            dropped: BTreeMap::new(),
            shots: BTreeMap::new(),
            wrong: Vec::new(),
        };
        field.meet();
        field
    }

    /// Everybody sends to every pod once: neighbours are known from here on.
    fn meet(&mut self) {
        let senders: Vec<Who> = self.posts.keys().copied().collect();
        for from in senders {
            for to in PODS.into_iter().filter(|to| from != Who::Pod(to)) {
                for family in [Family::Ipv4, Family::Ipv6] {
                    let shot =
                        Shot { threat: "", what: String::new(), from, to, family, fate: Fate::Arrives };
                    self.shoot(&shot, |path, mark| {
                        vec![frames::frame(path, frames::UDP, &frames::udp(path, (CONTROL, CONTROL), mark))]
                    });
                }
            }
        }
        self.shots.clear();
        let tracked = self.lab.node().run(|| {
            let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or_default();
            count.trim().parse::<u64>().unwrap_or(0)
        });
        let tracks = if tracked.expect("the node is there") > 0 { Conntrack::On } else { Conntrack::Off };
        assert_eq!(tracks, self.conntrack, "what the node tracks");
    }

    /// From a sender to a pod, by the ways that the kernel would go.
    ///
    /// # Panics
    ///
    /// For a pod that the field does not have.
    #[must_use]
    pub fn path(&self, from: Who, to: &'static str, family: Family) -> Path {
        let receiver = self.post(Who::Pod(to));
        let sender = self.post(from);
        let dst_mac = match (self.cni, from) {
            (Cni::Bridge, Who::Pod(_) | Who::Stray) => receiver.mac,
            (Cni::Routed | Cni::Bridge, _) => sender.gateway,
        };
        let (src, dst) = match family {
            Family::Ipv4 => (sender.v4.into(), receiver.v4.into()),
            Family::Ipv6 => (sender.v6.into(), receiver.v6.into()),
        };
        Path { src_mac: sender.mac, dst_mac, src, dst }
    }

    /// The address of a sender or pod.
    #[must_use]
    pub fn address(&self, who: Who, family: Family) -> IpAddr {
        let post = self.post(who);
        match family {
            Family::Ipv4 => post.v4.into(),
            Family::Ipv6 => post.v6.into(),
        }
    }

    /// The MAC address of a sender or pod.
    #[must_use]
    pub fn mac(&self, who: Who) -> Mac {
        self.post(who).mac
    }

    /// The MAC address to which a sender's frames go that leave its link.
    #[must_use]
    pub fn gateway(&self, who: Who) -> Mac {
        self.post(who).gateway
    }

    fn post(&self, who: Who) -> &Post {
        self.posts.get(&who).unwrap_or_else(|| panic!("the field has no {who}"))
    }

    /// True for a pod whose frames are heard.
    #[must_use]
    pub fn hears(&self, pod: &'static str) -> bool {
        self.posts.contains_key(&Who::Pod(pod))
    }

    /// A pod's namespace.
    ///
    /// # Panics
    ///
    /// For a pod that the field does not have.
    #[must_use]
    pub fn netns(&self, pod: &str) -> &Netns {
        self.lab.pod(&ObjectKey::new("field", pod)).unwrap_or_else(|| panic!("the field has no pod {pod}"))
    }

    /// What becomes of frames that cannot be read, or are not IP, in this direction. Towards a pod only a bridge
    /// without netfilter hands on whatever it is.
    #[must_use]
    pub fn unreadable(&self, direction: Direction, reason: Reason) -> Fate {
        match (direction, self.cni, self.conntrack) {
            (Direction::Egress, _, _) | (Direction::Ingress, Cni::Bridge, Conntrack::Off) => {
                Fate::Dropped(direction, reason)
            }
            (Direction::Ingress, _, _) => Fate::Lost,
        }
    }

    /// A mark that no frame had.
    pub fn mark(&mut self) -> Mark {
        self.next += 1;
        mark_of(self.next)
    }

    /// Sends a frame as it is.
    pub fn send(&self, from: Who, frame: &[u8]) {
        match &self.ring {
            Some((who, ring)) if *who == from => ring.send(frame),
            Some(_) | None => self.post(from).tap.send(frame),
        }
    }

    /// Lets a pod send from a ring whose pages stay its own, until it is told to stop.
    pub fn send_by_ring(&mut self, pod: Option<&'static str>) {
        self.ring = pod.map(|pod| (Who::Pod(pod), Ring::open(self.netns(pod), "eth0")));
    }

    /// Hears what waits at a pod; the length of the longest frame.
    ///
    /// # Panics
    ///
    /// For a pod that the field does not have.
    pub fn longest(&mut self, pod: &'static str) -> usize {
        let post = self.posts.get_mut(&Who::Pod(pod)).expect("the field has the pod");
        let mut longest = 0;
        while let Some(frame) = post.tap.hear() {
            longest = longest.max(frame.len());
        }
        longest
    }

    /// Packets under a verdict so far.
    ///
    /// # Panics
    ///
    /// If the counters cannot be read.
    #[must_use]
    pub fn counted(&self, direction: Direction, outcome: Outcome, reason: Reason) -> u64 {
        let cell = verdict_cell(direction, outcome, reason);
        let values = self.verdicts.get(&cell, 0).expect("the counters are there");
        values.iter().map(|[packets, _]| packets).sum()
    }

    /// Sends a shot's frames and a legal one behind them; says whether the shot was heard before that one. What is
    /// not as it must be is noted in [`Field::wrong`].
    pub fn shoot(&mut self, shot: &Shot, make: impl FnOnce(Path, &Mark) -> Vec<Vec<u8>>) -> bool {
        let path = self.path(shot.from, shot.to, shot.family);
        let mark = self.mark();
        let number = self.next;
        let shooting = make(path, &mark);
        *self.shots.entry(shot.threat).or_default() += 1;
        let cell = match shot.fate {
            Fate::Dropped(direction, reason) => Some((direction, Outcome::Deny, reason)),
            Fate::Arrives | Fate::Lost => None,
        };
        let before = cell.map(|(direction, outcome, reason)| self.counted(direction, outcome, reason));
        for frame in &shooting {
            self.send(shot.from, frame);
        }
        let heard = self.listen(shot.from, shot.to, shot.family).contains(&number);
        let name =
            format!("{} {}: {} -> {} {}", shot.threat, shot.what, shot.from, shot.to, shot.family.name());
        match shot.fate {
            Fate::Arrives if !heard => self.wrong.push(format!("{name}: did not arrive")),
            Fate::Arrives => {}
            Fate::Dropped(..) | Fate::Lost => {
                if heard {
                    self.wrong.push(format!("{name}: ARRIVED"));
                }
                self.dropped.insert((shot.to, number), name.clone());
            }
        }
        if let (Some((direction, outcome, reason)), Some(before)) = (cell, before) {
            let counted = self.counted(direction, outcome, reason) - before;
            if counted != shooting.len() as u64 {
                self.wrong.push(format!(
                    "{name}: {counted} of {} frames under {} {}",
                    shooting.len(),
                    direction.name(),
                    reason.name()
                ));
            }
        }
        heard
    }

    /// Sends several frames, each with a mark of its own, and a legal one behind them; those that `arrives` names, by
    /// their places, must be heard, and no other. The shot's fate, if it is to be dropped, is that of `dropped` frames.
    pub fn volley(
        &mut self,
        shot: &Shot,
        frames: &[(Vec<u8>, Mark)],
        arrives: &BTreeSet<usize>,
        dropped: usize,
    ) {
        *self.shots.entry(shot.threat).or_default() += 1;
        let name =
            format!("{} {}: {} -> {} {}", shot.threat, shot.what, shot.from, shot.to, shot.family.name());
        let counted = |field: &Self| match shot.fate {
            Fate::Dropped(direction, reason) => field.counted(direction, Outcome::Deny, reason),
            Fate::Arrives | Fate::Lost => 0,
        };
        let before = counted(self);
        for (frame, _) in frames {
            self.send(shot.from, frame);
        }
        let heard = self.listen(shot.from, shot.to, shot.family);
        for (place, (_, mark)) in frames.iter().enumerate() {
            let number = number_of(mark);
            match (arrives.contains(&place), heard.contains(&number)) {
                (true, true) => {}
                (true, false) => self.wrong.push(format!("{name}: frame {place} did not arrive")),
                (false, is_heard) => {
                    if is_heard {
                        self.wrong.push(format!("{name}: frame {place} ARRIVED"));
                    }
                    self.dropped.insert((shot.to, number), format!("{name}: frame {place}"));
                }
            }
        }
        let counted = counted(self) - before;
        if let Fate::Dropped(direction, reason) = shot.fate
            && counted != dropped as u64
        {
            self.wrong.push(format!(
                "{name}: {counted} and not {dropped} frames under {} {}",
                direction.name(),
                reason.name()
            ));
        }
    }

    /// Sends a legal frame, and returns the marks that the pod hears up to it.
    ///
    /// # Panics
    ///
    /// If the legal frame does not arrive.
    pub fn listen(&mut self, from: Who, to: &'static str, family: Family) -> BTreeSet<u32> {
        let path = self.path(from, to, family);
        let control = self.mark();
        let last = self.next;
        let datagram = frames::udp(path, (CONTROL, CONTROL), &control);
        self.send(from, &frames::frame(path, frames::UDP, &datagram));
        let mut heard = BTreeSet::new();
        let deadline = Instant::now() + SOON;
        let post = self.posts.get_mut(&Who::Pod(to)).expect("the field has the pod");
        while !heard.contains(&last) {
            match post.tap.hear() {
                Some(frame) => heard.extend(marks(frame)),
                None => assert!(
                    post.tap.wait(deadline),
                    "a legal frame {from} -> {to} {} did not arrive; before it: {:#?}",
                    family.name(),
                    self.wrong
                ),
            }
        }
        let late: Vec<&String> = heard.iter().filter_map(|number| self.dropped.get(&(to, *number))).collect();
        self.wrong.extend(late.into_iter().map(|name| format!("{name}: ARRIVED, late")));
        heard
    }

    /// Hears what is left, and says what there was; everything must have been as it must be.
    ///
    /// # Panics
    ///
    /// If something was not.
    pub fn close(mut self) {
        for to in PODS.into_iter().filter(|to| *to != "open") {
            self.listen(Who::Pod("open"), to, Family::Ipv4);
        }
        let counts: Vec<String> =
            self.shots.iter().map(|(threat, count)| format!("{threat} {count}")).collect();
        println!("{}, conntrack {:?}: shots: {}", self.cni, self.conntrack, counts.join(", "));
        self.wrong.sort();
        self.wrong.dedup();
        assert!(self.wrong.is_empty(), "{} wrong:\n{}", self.wrong.len(), self.wrong.join("\n"));
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.lab.agent_log()).unwrap_or_default();
            eprintln!("the agent's log:\n{log}");
        }
        // Temporary; a leftover does no harm.
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// A manifest of a pod of the field.
#[must_use]
pub fn pod(name: &str, number: u8) -> String {
    POD.replace("NAME", name).replace("NUMBER", &number.to_string())
}

fn mark_of(number: u32) -> Mark {
    let mut mark = [0; 8];
    mark[..4].copy_from_slice(&MAGIC);
    mark[4..].copy_from_slice(&number.to_be_bytes());
    mark
}

/// The number of a mark.
#[must_use]
pub fn number_of(mark: &Mark) -> u32 {
    let [.., first, second, third, fourth] = *mark;
    u32::from_be_bytes([first, second, third, fourth])
}

/// The numbers of the marks in a frame.
pub fn marks(frame: &[u8]) -> impl Iterator<Item = u32> + '_ {
    frame.windows(8).filter(|window| window[..4] == MAGIC).map(|window| {
        let number: [u8; 4] = window[4..].try_into().expect("a window has eight bytes");
        u32::from_be_bytes(number)
    })
}

/// Runs a command in a namespace; what it printed.
///
/// # Panics
///
/// If it fails.
#[must_use]
pub fn run(netns: &Netns, command: &[&str]) -> String {
    let output = netns.run(|| Command::new(command[0]).args(&command[1..]).output());
    let output = output.expect("the namespace is there").unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Lets the node track connections, or not.
fn track(node: &Netns, conntrack: Conntrack) {
    let value = match conntrack {
        Conntrack::On => "1",
        Conntrack::Off => "0",
    };
    node.run(|| {
        for file in ["iptables", "ip6tables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{file}");
            if fs::exists(&path).unwrap_or(false) {
                fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}"));
            }
        }
    })
    .expect("the node is there");
    if conntrack == Conntrack::On {
        // To look at a connection's state is to track it. Nothing is dropped.
        let rules = "table inet field {\nchain forward { type filter hook forward priority 0; ct state new accept; }\n}";
        drop(run(node, &["nft", rules]));
    }
}

fn posts(lab: &Lab, cni: Cni, heard: &[(&'static str, u8)]) -> BTreeMap<Who, Post> {
    let mut posts = BTreeMap::new();
    for (name, number) in PODS.into_iter().zip(1..).chain(heard.iter().copied()) {
        let key = ObjectKey::new("field", name);
        let state = lab.pod_state(&key).expect("the lab has the pod");
        let netns = lab.pod(&key).expect("the lab has the pod");
        let link = match cni {
            Cni::Routed => state.device.as_str(),
            Cni::Bridge => "cni0",
        };
        let post = Post {
            tap: Tap::open(netns, "eth0"),
            mac: mac(netns, "eth0"),
            gateway: mac(lab.node(), link),
            v4: Ipv4Addr::new(10, 79, 0, number),
            v6: six(number),
        };
        posts.insert(Who::Pod(name), post);
    }
    let link = &lab.state().link;
    let outside = Post {
        tap: Tap::open(lab.outside(), "uplink"),
        mac: mac(lab.outside(), "uplink"),
        gateway: mac(lab.node(), "uplink"),
        v4: link.outside4,
        v6: link.outside6,
    };
    posts.insert(Who::Outside, outside);
    if cni == Cni::Bridge {
        // Of the lab by its name, which is what takes it away.
        let netns = Netns::create(&format!("pcl-{}-p900", lab.id())).expect("a namespace");
        for command in [
            // Indices that no two ends share: see the lab's topology.
            "ip link add stray index 50 type veth peer name eth0 index 51 netns PEER",
            "ip link set stray master cni0",
            "ip link set stray up",
        ] {
            let words: Vec<&str> =
                command.split(' ').map(|word| if word == "PEER" { netns.name() } else { word }).collect();
            drop(run(lab.node(), &words));
        }
        drop(run(&netns, &["ip", "link", "set", "eth0", "up"]));
        // The bridge takes frames from it once it has seen that the other end is up.
        let deadline = Instant::now() + SOON;
        while !run(lab.node(), &["bridge", "link", "show", "dev", "stray"]).contains("state forwarding") {
            assert!(Instant::now() < deadline, "the stray port does not come up");
            thread::sleep(Duration::from_millis(2));
        }
        let stray = Post {
            tap: Tap::open(&netns, "eth0"),
            mac: mac(&netns, "eth0"),
            gateway: mac(lab.node(), "cni0"),
            v4: Ipv4Addr::new(10, 79, 0, 200),
            v6: six(200),
        };
        posts.insert(Who::Stray, stray);
    }
    posts
}

/// The address that a manifest's text `fd79::NUMBER` is.
fn six(number: u8) -> Ipv6Addr {
    format!("fd79::{number}").parse().expect("an address")
}

fn mac(netns: &Netns, device: &str) -> Mac {
    let text = run(netns, &["ip", "-o", "link", "show", device]);
    let mut words = text.split_whitespace().skip_while(|word| *word != "link/ether");
    let text = words.nth(1).unwrap_or_else(|| panic!("{device} has no MAC address"));
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
    bytes.try_into().expect("six bytes")
}

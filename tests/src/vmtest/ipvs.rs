//! Services through IPVS, in kube-proxy's shape: their addresses on a dummy device of the node, masquerading forwarding,
//! round robin. What isolated pods send is judged by the backend that IPVS chose; who answers tells which that was.
//!
//! The node is the calling thread's network namespace, pods are others; all of it is enforced by the agent's own reconciler.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use nix::unistd::gettid;
use portcullis_agent::attach::{self, HookChoice, KernelRelease, cgroup};
use portcullis_agent::bpf::Pins;
use portcullis_agent::bpf::figures::Figures;
use portcullis_agent::mark::MarkMask;
use portcullis_agent::reconcile::Reconciler;
use portcullis_common::event::{Direction, Outcome};
use portcullis_common::wire::DEFAULT_FLOWS;
use portcullis_lab::netns::{self, Netns};
use portcullis_policy::model::{Mode, Protocol};
use portcullis_policy::sizes::Sizes;
use portcullis_tests::compare::cluster_of;
use portcullis_tests::device::{Veth, ip, own_namespace};
use portcullis_tests::ipvs::{Ipvs, VirtualServer};
use serde_json::{Value, json};

use crate::Checks;

/// Where the agent's pins are; nothing else of it runs here.
const BPFFS: &str = "/sys/fs/bpf";
/// Pods in the order of their numbers, from 1.
const PODS: [&str; 4] = ["client", "free", "good", "bad"];
/// What backends listen at, and the policy speaks of.
const PORT: u16 = 5000;
/// Where virtual servers are asked.
const FRONT_PORT: u16 = 80;
/// IPVS has connections tracked for FTP's control port (`FTPPORT` in `ip_vs_ctl.c`), in the whole network namespace. On a node
/// kube-proxy's rules of the packet filter do that.
const TRACKED_PORT: u16 = 21;
/// Calls at once, so that each of two backends gets half of them.
const CALLS: usize = 40;
/// The pods' gateway, by ARP and by neighbour discovery.
const GATEWAY: &str = "169.254.1.1";
const GATEWAY6: &str = "fe80::1";
/// The device of kube-proxy.
const DUMMY: &str = "kube-ipvs0";

/// How long an answer may take, on a machine without KVM.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long is listened for answers that must not come, once all that must have come and the others were dropped.
const QUIET: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);
/// Datagrams are sent again after so many looks: neighbours that have to be found first hold few.
const AGAIN: u32 = 50;

/// A virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    /// A Service with both backends.
    Both,
    /// A Service whose backend no policy allows.
    Bad,
    /// Both backends, and no Service shows it.
    Unknown,
}

impl Front {
    const ALL: [Self; 3] = [Self::Both, Self::Bad, Self::Unknown];

    const fn addresses(self) -> [&'static str; 2] {
        match self {
            Self::Both => ["10.96.81.1", "fd96::81:1"],
            Self::Bad => ["10.96.81.2", "fd96::81:2"],
            Self::Unknown => ["203.0.113.81", "2001:db8:113::81"],
        }
    }

    const fn backends(self) -> &'static [&'static str] {
        match self {
            Self::Both | Self::Unknown => &["good", "bad"],
            Self::Bad => &["bad"],
        }
    }

    fn address(self, family: usize) -> Result<SocketAddr> {
        let address = self.addresses().into_iter().nth(family).context("a family")?;
        Ok(SocketAddr::new(address.parse()?, FRONT_PORT))
    }
}

/// Asks through every kind of virtual address, by both families.
pub(crate) fn check(release: KernelRelease, checks: &mut Checks) -> Result<()> {
    thread::scope(|scope| {
        let node = scope.spawn(|| {
            own_namespace()?;
            let Some(ipvs) = Ipvs::open()? else {
                checks.skip("Services through IPVS", "this kernel has no IPVS");
                return Ok(());
            };
            let scene = Scene::up(release, &ipvs).context("Services through IPVS")?;
            for (family, name) in ["IPv4", "IPv6"].into_iter().enumerate() {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let what = format!("Services through IPVS, {name}, {protocol:?}");
                    checks.note(&what, &scene.ask_all(family, protocol));
                }
            }
            scene.down()
        });
        node.join().map_err(|_| anyhow!("the node's thread panicked"))?
    })
}

struct Pod {
    netns: Netns,
    addresses: [IpAddr; 2],
}

struct Scene {
    pods: Vec<Pod>,
    servers: Servers,
    pins: Pins,
    figures: Figures,
    // Programs stay with their links.
    _reconciler: Reconciler,
}

impl Scene {
    fn up(release: KernelRelease, ipvs: &Ipvs) -> Result<Self> {
        set("ipv6/conf/default/accept_dad", "0")?;
        ip(&["link", "set", "lo", "up"])?;
        set("ipv4/ip_forward", "1")?;
        set("ipv6/conf/all/forwarding", "1")?;
        let mut pods = Vec::new();
        for (number, name) in (1..).zip(PODS) {
            pods.push(Pod::up(number, name).with_context(|| format!("making pod {name}"))?);
        }
        translate(ipvs, &pods)?;
        let servers = Servers::start(&pods)?;

        let bpffs = Path::new(BPFFS);
        let pins = Pins::new(bpffs);
        pins.prepare(bpffs)?;
        let hook = HookChoice::Auto.resolve(release)?;
        let mut reconciler = Reconciler::open(&pins, hook, DEFAULT_FLOWS, Mode::Enforce, &Sizes::default())?;
        let root = cgroup::below(Path::new(cgroup::MOUNT)).context("no cgroup2 is mounted")?;
        reconciler.follow_services(Some(cgroup::Root::new(&root, &pins.links())), MarkMask::default())?;
        let outcome = reconciler.reconcile(&Arc::new(cluster_of(&manifests(&pods))))?;
        ensure!(outcome.complete, "not all is enforced: {:?}", outcome.problems);
        ensure!(outcome.local.len() == PODS.len(), "enforced are {:?}", outcome.local);
        let figures = Figures::open(&pins)?;
        Ok(Self { pods, servers, pins, figures, _reconciler: reconciler })
    }

    fn down(self) -> Result<()> {
        self.servers.stop()?;
        let cleanup = attach::cleanup(&self.pins.links());
        ensure!(cleanup.failed.is_empty(), "cleaning up: {:?}", cleanup.failed);
        fs::remove_dir_all(self.pins.root()).context("removing pins")?;
        PODS.into_iter().try_for_each(netns::delete)
    }

    fn pod(&self, name: &str) -> Result<&Pod> {
        let found = PODS.iter().zip(&self.pods).find(|(pod, _)| **pod == name);
        found.map(|(_, pod)| pod).with_context(|| format!("pod {name}"))
    }

    /// Packets of pods that were dropped so far.
    fn dropped(&self) -> Result<u64> {
        let verdicts = self.figures.verdicts()?;
        let denied =
            verdicts.iter().filter(|v| v.direction == Direction::Egress && v.outcome == Outcome::Deny);
        Ok(denied.map(|v| v.stats.packets).sum())
    }

    /// Both clients at every virtual address.
    fn ask_all(&self, family: usize, protocol: Protocol) -> Result<String> {
        let mut found = Vec::new();
        for front in Front::ALL {
            let to = front.address(family)?;
            let free = self.ask("free", protocol, to, CALLS).with_context(|| format!("free to {front:?}"))?;
            let each = CALLS / front.backends().len();
            for backend in front.backends() {
                ensure!(free.of(backend) == each, "free to {front:?} heard {free:?}");
            }
            // Policies allow one backend of the Service, and none behind an address that they do not name.
            let allowed = if front == Front::Both { each } else { 0 };
            let heard =
                self.ask("client", protocol, to, allowed).with_context(|| format!("client to {front:?}"))?;
            ensure!(
                heard.of("good") == allowed && heard.0.len() == allowed,
                "client to {front:?} heard {heard:?}"
            );
            found.push(format!("{front:?}: free {free:?}, client {heard:?}"));
        }
        let client = self.pod("client")?.addresses;
        let seen = self.servers.seen();
        ensure!(
            !seen.iter().any(|(name, from)| *name == "bad" && client.contains(from)),
            "the client came through to bad"
        );
        ensure!(
            seen.iter().any(|(name, from)| *name == "good" && client.contains(from)),
            "good was not asked in the client's own name"
        );
        let tracked = tracked(Front::Both.address(family)?.ip())?;
        ensure!(tracked > 0, "no connection to {:?} is tracked", Front::Both);
        Ok(format!("{CALLS} calls each: {}; {tracked} tracked", found.join("; ")))
    }

    /// Makes calls until so many were answered and as many packets as there are other calls were dropped, and listens on for
    /// what must not come.
    fn ask(&self, from: &str, protocol: Protocol, to: SocketAddr, answers: usize) -> Result<Heard> {
        let dropped = self.dropped()?;
        let work = || -> Result<Heard> {
            let mut calls = (0..CALLS).map(|_| Call::open(protocol, to)).collect::<Result<Vec<_>>>()?;
            let mut heard = Heard::default();
            let (begun, mut looks, mut enough) = (Instant::now(), 0u32, None);
            loop {
                calls.retain_mut(|call| call.hear().is_none_or(|said| heard.add(said)));
                if enough.is_none() && heard.0.len() >= answers {
                    let since = self.dropped()?.saturating_sub(dropped);
                    if since >= u64::try_from(CALLS - answers)? {
                        enough = Some(Instant::now());
                    }
                }
                if calls.is_empty() || enough.is_some_and(|at| at.elapsed() > QUIET) {
                    return Ok(heard);
                }
                ensure!(
                    begun.elapsed() < PATIENCE,
                    "after {} s heard {heard:?}, with {} packets dropped",
                    PATIENCE.as_secs(),
                    self.dropped()?.saturating_sub(dropped)
                );
                looks += 1;
                if looks.is_multiple_of(AGAIN) {
                    calls.iter().for_each(Call::again);
                }
                thread::sleep(LOOK);
            }
        };
        self.pod(from)?.netns.run(work)?
    }
}

/// Who answered, once for each answer.
#[derive(Default)]
struct Heard(Vec<String>);

impl Heard {
    /// False: the call is over.
    fn add(&mut self, said: String) -> bool {
        self.0.push(said);
        false
    }

    fn of(&self, name: &str) -> usize {
        self.0.iter().filter(|said| *said == name).count()
    }
}

impl std::fmt::Debug for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut names = self.0.clone();
        names.sort();
        names.dedup();
        if names.is_empty() {
            return write!(f, "nothing");
        }
        let counts: Vec<String> = names.iter().map(|name| format!("{name} {}", self.of(name))).collect();
        write!(f, "{}", counts.join(" "))
    }
}

enum Call {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Call {
    /// From the calling thread's namespace, without waiting.
    fn open(protocol: Protocol, to: SocketAddr) -> Result<Self> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let kind = match protocol {
            Protocol::Tcp => SockType::Stream,
            Protocol::Udp | Protocol::Sctp => SockType::Datagram,
        };
        let fd = socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error).with_context(|| format!("connecting to {to}")),
        }
        let call = match protocol {
            Protocol::Tcp => Self::Tcp(fd.into()),
            Protocol::Udp | Protocol::Sctp => Self::Udp(fd.into()),
        };
        call.again();
        Ok(call)
    }

    /// A datagram is sent again; TCP does so itself.
    fn again(&self) {
        if let Self::Udp(socket) = self {
            // What is not sent is not answered, and sent again.
            drop(socket.send(b"?"));
        }
    }

    /// What came back: a name, or an error.
    fn hear(&mut self) -> Option<String> {
        let mut bytes = [0; 16];
        let read = match self {
            Self::Tcp(stream) => stream.read(&mut bytes),
            Self::Udp(socket) => socket.recv(&mut bytes),
        };
        match read {
            Ok(length) => Some(String::from_utf8_lossy(bytes.get(..length)?).into_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => Some(error.to_string()),
        }
    }
}

impl Pod {
    /// A namespace, behind a veth device of the calling thread's.
    fn up(number: u8, name: &str) -> Result<Self> {
        let addresses = [format!("10.81.0.{number}"), format!("fd81::{number}")];
        let [v4, v6] = &addresses;
        let device = format!("pod{number}");
        let node = gettid().to_string();
        let netns = Netns::create(name)?;
        let inside = || -> Result<()> {
            set("ipv6/conf/default/accept_dad", "0")?;
            ip(&["link", "set", "lo", "up"])?;
            let veth = Veth::create("eth0")?;
            ip(&["link", "set", veth.peer(), "name", &device])?;
            ip(&["link", "set", &device, "netns", &node])?;
            ip(&["addr", "add", &format!("{v4}/32"), "dev", "eth0"])?;
            ip(&["link", "set", "eth0", "up"])?;
            ip(&["-6", "addr", "add", &format!("{v6}/128"), "dev", "eth0"])?;
            ip(&["route", "add", &format!("{GATEWAY}/32"), "dev", "eth0"])?;
            ip(&["route", "add", "default", "via", GATEWAY, "dev", "eth0"])?;
            ip(&["-6", "route", "add", "default", "via", GATEWAY6, "dev", "eth0"])
        };
        netns.run(inside)??;
        ip(&["addr", "add", &format!("{GATEWAY}/32"), "dev", &device])?;
        ip(&["link", "set", &device, "up"])?;
        ip(&["-6", "addr", "add", &format!("{GATEWAY6}/64"), "dev", &device])?;
        ip(&["route", "add", &format!("{v4}/32"), "dev", &device])?;
        ip(&["-6", "route", "add", &format!("{v6}/128"), "dev", &device])?;
        Ok(Self { netns, addresses: [v4.parse()?, v6.parse()?] })
    }
}

/// Writes a variable of the network of the calling thread's namespace.
fn set(name: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys/net").join(name), value).with_context(|| format!("setting net/{name}"))
}

/// Connections that were opened to an address, as the kernel tracks them in the calling thread's namespace.
fn tracked(to: IpAddr) -> Result<usize> {
    let all =
        fs::read_to_string("/proc/thread-self/net/nf_conntrack").context("reading tracked connections")?;
    let opened_to = |line: &str| {
        let address = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("dst="))?;
        address.parse::<IpAddr>().ok()
    };
    Ok(all.lines().filter(|line| opened_to(line) == Some(to)).count())
}

/// As kube-proxy does it.
fn translate(ipvs: &Ipvs, pods: &[Pod]) -> Result<()> {
    for (name, value) in [("conntrack", "1"), ("expire_nodest_conn", "1"), ("expire_quiescent_template", "1")]
    {
        set(&format!("ipv4/vs/{name}"), value)?;
    }
    ip(&["link", "add", DUMMY, "type", "dummy"])?;
    ip(&["link", "set", DUMMY, "up"])?;
    for (family, backend) in pods.first().context("a pod")?.addresses.into_iter().enumerate() {
        let address = SocketAddr::new(Front::Unknown.address(family)?.ip(), TRACKED_PORT);
        let server = VirtualServer { protocol: Protocol::Tcp, address };
        ipvs.add_server(server)?;
        ipvs.add_backend(server, SocketAddr::new(backend, TRACKED_PORT))?;
    }
    for front in Front::ALL {
        let [v4, v6] = front.addresses();
        ip(&["addr", "add", &format!("{v4}/32"), "dev", DUMMY])?;
        ip(&["-6", "addr", "add", &format!("{v6}/128"), "dev", DUMMY])?;
        for (family, protocol) in (0..2).flat_map(|f| [(f, Protocol::Tcp), (f, Protocol::Udp)]) {
            let server = VirtualServer { protocol, address: front.address(family)? };
            ipvs.add_server(server)?;
            for (name, pod) in PODS.iter().zip(pods).filter(|(name, _)| front.backends().contains(name)) {
                let address = pod.addresses.into_iter().nth(family);
                let address = address.with_context(|| format!("an address of {name}"))?;
                ipvs.add_backend(server, SocketAddr::new(address, PORT))?;
            }
        }
    }
    Ok(())
}

/// `client` may send to `good` at one port and nowhere else; nobody isolates `free`.
fn manifests(pods: &[Pod]) -> Vec<Value> {
    let mut all = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ipvs"}})];
    for (name, pod) in PODS.iter().zip(pods) {
        let addresses = pod.addresses.map(|address| json!({"ip": address}));
        all.push(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "ipvs", "name": name, "labels": {"app": name}},
            "status": {"phase": "Running", "podIPs": addresses}}));
    }
    for front in [Front::Both, Front::Bad] {
        let addresses = front.addresses();
        let ports = ["TCP", "UDP"].map(
            |protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": FRONT_PORT}),
        );
        all.push(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "ipvs", "name": format!("{front:?}").to_lowercase()},
            "spec": {"clusterIP": addresses[0], "clusterIPs": addresses, "ports": ports}}));
    }
    all.push(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "ipvs", "name": "client"},
        "spec": {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "good"}}}],
                "ports": [{"port": PORT}, {"port": PORT, "protocol": "UDP"}]}]}}));
    all
}

/// Who was asked, and by whom.
type Seen = Arc<Mutex<Vec<(&'static str, IpAddr)>>>;

/// Backends that say their names.
struct Servers {
    stop: Arc<AtomicBool>,
    seen: Seen,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Servers {
    fn start(pods: &[Pod]) -> Result<Self> {
        let mut servers = Self { stop: Arc::default(), seen: Arc::default(), threads: Vec::new() };
        for (name, pod) in PODS.into_iter().zip(pods) {
            let open = || -> Result<(Vec<TcpListener>, Vec<UdpSocket>)> {
                let (mut listeners, mut sockets) = (Vec::new(), Vec::new());
                for address in pod.addresses {
                    let listener = TcpListener::bind((address, PORT)).context("listening")?;
                    listener.set_nonblocking(true)?;
                    listeners.push(listener);
                    let socket = UdpSocket::bind((address, PORT)).context("waiting for datagrams")?;
                    socket.set_nonblocking(true)?;
                    sockets.push(socket);
                }
                Ok((listeners, sockets))
            };
            let (listeners, sockets) = pod.netns.run(open)??;
            let (stop, seen) = (Arc::clone(&servers.stop), Arc::clone(&servers.seen));
            servers.threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    serve(name, &listeners, &sockets, &seen);
                    thread::sleep(LOOK);
                }
            }));
        }
        Ok(servers)
    }

    fn seen(&self) -> Vec<(&'static str, IpAddr)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow!("a server panicked")))
    }
}

/// Answers all who wait.
fn serve(name: &'static str, listeners: &[TcpListener], sockets: &[UdpSocket], seen: &Seen) {
    let note = |from: SocketAddr| seen.lock().unwrap_or_else(PoisonError::into_inner).push((name, from.ip()));
    for listener in listeners {
        while let Ok((mut stream, from)) = listener.accept() {
            note(from);
            // Who went away meanwhile hears nothing.
            drop(stream.write_all(name.as_bytes()));
        }
    }
    for socket in sockets {
        let mut bytes = [0; 16];
        while let Ok((_, from)) = socket.recv_from(&mut bytes) {
            note(from);
            drop(socket.send_to(name.as_bytes(), from));
        }
    }
}

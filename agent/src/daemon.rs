//! The daemon: turns what the sources, the network and the clock tell into reconciliations, and publishes what
//! is in force. Killed or ended, it leaves enforcement as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use hyper::StatusCode;
use ipnet::IpNet;
use notify::{EventKind, RecursiveMode, Watcher as _};
use portcullis_common::event::NOTICE_FLOWS_HALF;
use portcullis_policy::compile::Compiler;
use portcullis_policy::desired::CounterName;
use portcullis_policy::findings::{Finding, findings};
use portcullis_policy::manifest::{self, Loaded};
use portcullis_policy::model::{Cluster, Host, Mode, ObjectKey, Pod, Problem, Severity, SourceBinding};
use portcullis_policy::select::Directory;
use portcullis_policy::sizes::Sizes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::api::{self, Backend, CniAsk, Refusal};
use crate::attach::{self, Hook, HookChoice, cgroup};
use crate::bpf::Pins;
use crate::bpf::events::Events;
use crate::bpf::figures::Figures;
use crate::bpf::load::{kernel_release, tells_networks};
use crate::bpf::probe::Asker;
use crate::changes;
use crate::clock::monotonic;
use crate::cni::conflist::Settings;
use crate::cni::follow::{Following, follow};
use crate::firewall::{self, Firewall, HostOptions};
use crate::health::{Health, Wanting};
use crate::holds::{Changed, Holds, TOLD};
use crate::host_side::HostSide;
use crate::host_status::{self, Reconciled};
use crate::http::{self, Page, Pages};
use crate::listen::{HealthPages, ListenArgs};
use crate::mark::MarkMask;
use crate::metrics::{self, Fill, HostReadings, Metrics, PolicyLabels};
use crate::observe::Recorder;
use crate::observe::names::{Asked, Moment, Named, Owners};
use crate::older::OlderFlows;
use crate::preflight::marks;
use crate::reconcile::{Enforced, Outcome, Reconciler};
use crate::refused::RefusedFlows;
use crate::report::{Facts, Reporter};
use crate::rollback::Rollback;
use crate::source::dir::{DirSource, Signature};
use crate::source::kube::{self, Decides, HostPolicies, KubeSource, Said};
use crate::source::{Choice, Source};
use crate::verbs::endpoints::{Endpoint, Scope};
use crate::verbs::policies::{PoliciesRequest, PolicyReport};
use crate::verbs::status::Status;
use crate::waiting::{InForce, Waiter};
use crate::world::{AskKernel, KernelAnswer, World};

/// How long a directory must be quiet before it is read: a change is in force 1 s after its last write.
const QUIET: Duration = Duration::from_millis(150);
/// How long one that is never quiet may wait.
const RESTLESS: Duration = Duration::from_millis(600);
/// How often attachments are audited, and the directory looked at for changes that no event told of.
const AUDIT: Duration = Duration::from_secs(1);
/// How often the API server's name is resolved anew.
const RESOLVE: Duration = Duration::from_secs(30);
/// How often expired flows are removed.
const EXPIRE: Duration = Duration::from_secs(30);
/// Tables of flows that wait to grow.
const GROWING: usize = 1_024;
/// CNI plugins' requests that wait to be taken.
const ASKS: usize = 1_024;
/// File in the run directory that says how many changes are in force.
const READY: &str = "ready";
/// File in the run directory with what the manifests said last.
const MEMORY: &str = "manifests.json";

/// How the daemon runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where objects come from.
    pub source: Choice,
    /// Where the socket is.
    pub run_dir: PathBuf,
    /// Where pins are.
    pub bpffs: PathBuf,
    /// Where programs hang.
    pub hook: HookChoice,
    /// This node's name.
    pub node_name: Option<String>,
    /// Where pods without an address get one; empty: the default ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// What pods may send to their own node.
    pub own_node_egress: OwnNodeEgress,
    /// What pods may send to virtual addresses.
    pub services: Services,
    /// The root of the node's cgroups; else it is looked for.
    pub cgroup_root: Option<PathBuf>,
    /// How the node's own sockets are judged; none: by nobody.
    pub host: Option<HostOptions>,
    /// Which bits of the packet mark are ours.
    pub mark_mask: MarkMask,
    /// Namespaces whose pods may send from any address, unless the Namespace itself says otherwise.
    pub unbound_namespaces: BTreeSet<String>,
    /// The most flows that an endpoint's table may grow to.
    pub flows_per_endpoint: u32,
    /// Whether what is denied is dropped.
    pub mode: Mode,
    /// Sizes of the maps.
    pub sizes: Sizes,
    /// Where probes and Prometheus ask.
    pub listen: ListenArgs,
    /// The runtime's directory of CNI configurations, if ours is to follow the primary's there, and what the plugin is
    /// told.
    pub cni: Option<(PathBuf, Settings)>,
}

/// What pods whose egress is isolated may send to their own node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnNodeEgress {
    /// What policies say.
    #[default]
    Policy,
    /// All.
    Allow,
}

/// What pods whose egress is isolated may send to the virtual addresses of Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Services {
    /// What policies say of the backend that is chosen.
    Follow,
    /// Nothing.
    Deny,
}

impl Services {
    /// What rules of the node do to our bits of the packet mark, where they are used.
    fn marks(&self, mask: MarkMask) -> Option<watch::Receiver<Vec<Problem>>> {
        match self {
            Self::Deny => None,
            Self::Follow => Some(marks::follow(mask)),
        }
    }
}

/// The root of the node's cgroups; none where there is none.
fn cgroup_root(options: &Options, pins: &Pins) -> anyhow::Result<Option<cgroup::Root>> {
    let dir = match &options.cgroup_root {
        None => Path::new(cgroup::MOUNT),
        Some(dir) => {
            anyhow::ensure!(dir.is_dir(), "--cgroup-root {}: no such directory", dir.display());
            dir
        }
    };
    Ok(cgroup::below(dir).map(|root| cgroup::Root::new(&root, &pins.links())))
}

/// Lets the reconciler judge what ends at the node's own sockets, as far as it was asked for.
fn judge_sockets(options: &Options, pins: &Pins, reconciler: &mut Reconciler) -> anyhow::Result<()> {
    let root = cgroup_root(options, pins)?;
    let mount = "mount it (mount -t cgroup2 none DIR) and say --cgroup-root DIR";
    // Before the source is heard of: what is in force may be what keeps it away.
    if options.host.is_none() || firewall::is_off(&options.run_dir) {
        reconciler.release_host(root.as_ref())?;
    }
    if let Some(host) = &options.host {
        if !tells_networks() {
            tracing::warn!(
                "this kernel does not tell whose network a socket is in (Linux 6.15 does): new pods are closed until they are known, and \
                 containers outside of kubepods are judged as the node"
            );
        }
        let Some(root) = root.clone() else {
            anyhow::bail!("--host-firewall: no cgroup2 is mounted: {mount}");
        };
        reconciler.guard_host(Some(HostSide::new(root, host.unknown)));
    }
    let services = match options.services {
        Services::Deny => None,
        Services::Follow => {
            if root.is_none() {
                tracing::warn!(
                    "no cgroup2 is mounted: virtual addresses of Services are denied where egress is isolated; {mount}"
                );
            }
            root
        }
    };
    reconciler.follow_services(services, options.mark_mask)
}

/// What is in force, for those who ask.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) problems: Vec<Problem>,
    node: Option<String>,
    local: BTreeMap<ObjectKey, u32>,
    /// Pods whose policies have no room in the tables: they have other rulesets than the objects say.
    pub(crate) held: BTreeSet<ObjectKey>,
    pub(crate) endpoints: BTreeMap<ObjectKey, Enforced>,
    pub(crate) fills: Vec<Fill>,
    pub(crate) older: OlderFlows,
    pub(crate) counters: BTreeMap<u32, CounterName>,
    /// Of the host firewall.
    pub(crate) host: HostReadings,
    /// Since when each policy is as it is, by the monotonic clock.
    pub(crate) since: Arc<BTreeMap<ObjectKey, u64>>,
    /// Looked for when somebody asks.
    findings: Arc<OnceLock<Vec<Finding>>>,
    /// Compiled for all pods when somebody asks.
    world: OnceLock<Arc<World>>,
}

impl Snapshot {
    /// What is odd about the policies.
    pub(crate) fn findings(&self) -> &[Finding] {
        self.findings.get_or_init(|| findings(&self.cluster))
    }

    /// Takes over what was found out about the same objects, and since when policies are as they are.
    fn follow(&mut self, last: &Self, now: u64) {
        if Arc::ptr_eq(&last.cluster, &self.cluster) {
            self.findings = Arc::clone(&last.findings);
            self.since = Arc::clone(&last.since);
            if last.local == self.local && last.problems == self.problems {
                self.world = last.world.clone();
            }
            return;
        }
        let policies = self.cluster.policies.iter();
        let since = |key: &ObjectKey| last.since.get(key).copied();
        self.since = Arc::new(
            policies
                .map(|(key, policy)| {
                    let same = last.cluster.policies.get(key) == Some(policy);
                    (key.clone(), since(key).filter(|_| same).unwrap_or(now))
                })
                .collect(),
        );
    }
}

/// What the API server and the event reader share with the main loop.
struct Shared {
    snapshot: RwLock<Arc<Snapshot>>,
    asker: Asker,
    recorder: Recorder,
    figures: Figures,
    health: Arc<Health>,
    metrics: Metrics,
    policy_labels: PolicyLabels,
    facts: Facts,
    waiter: Waiter,
    cni: mpsc::Sender<CniAsk>,
}

impl Shared {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// This is in force; `began` is when the change to it began, by the monotonic clock. Owners are published
    /// only where they changed: the audit comes here every second.
    fn publish(&self, mut snapshot: Snapshot, began: u64) {
        let last = self.snapshot();
        snapshot.follow(&last, monotonic());
        let same = Arc::ptr_eq(&last.cluster, &snapshot.cluster)
            && last.local == snapshot.local
            && last.counters == snapshot.counters;
        if !same {
            let moment = Moment { began, ended: monotonic() };
            self.recorder.names.publish(owners(&snapshot, &last), moment);
            for (counter, name) in &snapshot.counters {
                if last.counters.get(counter) != Some(name) {
                    let packets = self.figures.rule(*counter).unwrap_or_default().packets;
                    self.recorder.renamed(*counter, packets, began);
                }
            }
        }
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    fn report<T>(&self, report: impl FnOnce(Reporter<'_>) -> T) -> T {
        report(Reporter {
            snapshot: &self.snapshot(),
            figures: &self.figures,
            health: &self.health,
            recorder: &self.recorder,
            facts: &self.facts,
        })
    }
}

/// `/metrics`.
impl Pages for Shared {
    fn page(&self, path: &str) -> Option<Page> {
        if path != "/metrics" {
            return None;
        }
        let readings = self.report(|reporter| reporter.readings(self.policy_labels));
        Some(match self.metrics.encode(&readings) {
            Ok(body) => Page { status: StatusCode::OK, media: metrics::MEDIA, body },
            Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        })
    }
}

/// Who owns what, for the names of verdicts.
fn owners(snapshot: &Snapshot, last: &Snapshot) -> Owners {
    let directory = Directory::new(&snapshot.cluster);
    let pods: BTreeMap<&ObjectKey, Arc<Named>> = directory
        .pods
        .iter()
        .chain(&directory.hosts)
        .map(|(key, facts)| (*key, Arc::new(Named { key: (*key).clone(), labels: facts.pod.labels.clone() })))
        .collect();
    let named = |key: &ObjectKey| pods.get(key).cloned();
    let of_node = |key: &ObjectKey| {
        let labels =
            snapshot.cluster.nodes.get(&key.name).map(|node| node.labels.clone()).unwrap_or_default();
        Arc::new(Named { key: key.clone(), labels })
    };
    let at_slot = |key: &ObjectKey| {
        if key.is_node() || key.is_unknown() { Some(of_node(key)) } else { named(key) }
    };
    let (new, old) = (&snapshot.cluster, &last.cluster);
    let is_new = new.services != old.services || new.nodes != old.nodes;
    Owners {
        slots: snapshot.local.iter().filter_map(|(key, slot)| Some((*slot, at_slot(key)?))).collect(),
        addresses: directory
            .owners
            .iter()
            .filter_map(|(address, key)| Some((*address, named(key)?)))
            .collect(),
        counters: snapshot.counters.iter().map(|(n, name)| (*n, Arc::new(name.clone()))).collect(),
        services: is_new.then(|| asked(&snapshot.cluster, snapshot.node.as_deref())),
    }
}

/// Where Services are asked on this node. Of two at one place the first by name is told.
fn asked(cluster: &Cluster, node: Option<&str>) -> BTreeMap<Asked, Arc<ObjectKey>> {
    let own = node.and_then(|node| cluster.nodes.get(node)).map_or(&[][..], |node| &node.addresses);
    let mut all = BTreeMap::new();
    for (key, service) in &cluster.services {
        let key = Arc::new(key.clone());
        for port in &service.ports {
            let protocol = port.protocol.number();
            let virtuals = service.addresses.iter().map(|address| (*address, protocol, port.port));
            let node_ports = port.node_port.into_iter();
            let of_node =
                node_ports.flat_map(|port| own.iter().map(move |address| (*address, protocol, port)));
            for place in virtuals.chain(of_node) {
                all.entry(place).or_insert_with(|| Arc::clone(&key));
            }
        }
    }
    all
}

impl Backend for Shared {
    fn world(&self) -> Arc<World> {
        let snapshot = self.snapshot();
        let world = snapshot.world.get_or_init(|| {
            let cluster = Cluster::clone(&snapshot.cluster);
            let mut problems = snapshot.problems.clone();
            let desired = match Compiler::new(0).compile(&cluster, &cluster.subjects()) {
                Ok((desired, closed)) => {
                    problems.extend(closed);
                    desired
                }
                Err(error) => {
                    problems.push(Problem::of_node(
                        Severity::Error,
                        format!("not every pod can be judged: {error}"),
                    ));
                    portcullis_policy::desired::Desired::default()
                }
            };
            let local = Some(snapshot.local.keys().cloned().collect());
            let audit = matches!(self.facts.mode, Mode::Audit);
            Arc::new(World { cluster, desired, problems, node: snapshot.node.clone(), audit, local })
        });
        Arc::clone(world)
    }

    fn kernel(&self) -> Option<&(dyn AskKernel + Sync)> {
        Some(self)
    }

    fn status(&self) -> Status {
        self.report(|reporter| reporter.status())
    }

    fn endpoints(&self, scope: &Scope) -> Vec<Endpoint> {
        self.report(|reporter| reporter.endpoints(scope))
    }

    fn policies(&self, request: &PoliciesRequest) -> Result<Vec<PolicyReport>, Refusal> {
        self.report(|reporter| reporter.policies(request))
    }

    fn node(&self) -> Option<String> {
        self.facts.node.clone()
    }

    fn waiter(&self) -> Waiter {
        self.waiter.clone()
    }

    fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    fn cni(&self) -> Option<&mpsc::Sender<CniAsk>> {
        Some(&self.cni)
    }
}

impl AskKernel for Shared {
    fn ask(&self, question: &portcullis_policy::answer::Question) -> anyhow::Result<Option<KernelAnswer>> {
        let snapshot = self.snapshot();
        match snapshot.local.get(&question.pod).filter(|_| !snapshot.held.contains(&question.pod)) {
            None => Ok(None),
            Some(slot) => {
                self.asker.run(*slot, question.direction, question.origin, &question.frame).map(Some)
            }
        }
    }
}

/// A source before anything of the node was touched.
enum Opening {
    Directory(PathBuf),
    Server(Box<kube::Config>),
}

impl Opening {
    /// The API server's name and port.
    fn server(&self) -> Option<(String, u16)> {
        let Self::Server(config) = self else {
            return None;
        };
        let url = &config.cluster_url;
        let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
        let name = url.host().unwrap_or_default().trim_matches(['[', ']']);
        Some((name.to_owned(), port))
    }

    /// Starts to follow it.
    fn source(self, options: &Options, reconciler: &mut Reconciler) -> anyhow::Result<Source> {
        match self {
            Self::Directory(dir) => {
                let pod_cidrs = manifest::Options::with(&options.pod_cidrs).pod_cidrs;
                Ok(Source::Dir(DirSource::new(dir, options.run_dir.join(MEMORY), pod_cidrs)))
            }
            Self::Server(config) => {
                tracing::info!("watching the API server {}", config.cluster_url);
                reconciler.keep_to_node(options.node_name.clone());
                let unbound = options.unbound_namespaces.clone();
                let node = options.node_name.clone().unwrap_or_default();
                let host_policies =
                    if options.host.is_some() { HostPolicies::Watched } else { HostPolicies::Ignored };
                let tuning = kube::Tuning::default();
                let source = KubeSource::start(*config, tuning, unbound, node, host_policies)?;
                Ok(Source::Kube(Box::new(source)))
            }
        }
    }
}

fn reconciler(options: &Options, pins: &Pins, hook: Hook) -> anyhow::Result<Reconciler> {
    let mut reconciler =
        Reconciler::open(pins, hook, options.flows_per_endpoint, options.mode, &options.sizes)?;
    judge_sockets(options, pins, &mut reconciler)?;
    Ok(reconciler)
}

/// Resolves the API server's name, again and again: every address that it ever had stays one of the API server's.
fn follow_servers(server: Option<(String, u16)>) -> watch::Receiver<Vec<SocketAddr>> {
    let (send, receive) = watch::channel(Vec::new());
    let Some((name, port)) = server else {
        return receive;
    };
    let resolve = |name: &str| (name, port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    match resolve(&name) {
        Ok(found) => drop(send.send_replace(found)),
        Err(error) => tracing::warn!("{name}: {error}: its address is not known to be the API server's yet"),
    }
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(RESOLVE).await;
            let Ok(found) = tokio::net::lookup_host((name.as_str(), port)).await else { continue };
            let new: Vec<SocketAddr> = found.filter(|at| !send.borrow().contains(at)).collect();
            if !new.is_empty() {
                send.send_modify(|all| all.extend(new));
            }
        }
    });
    receive
}

/// Runs until SIGTERM or SIGINT. Enforcement stays.
pub async fn run(options: Options) -> anyhow::Result<()> {
    // Before anything is touched: an API server that nobody knows.
    let opening = match options.source.clone() {
        Choice::Directory(dir) => Opening::Directory(dir),
        Choice::Kube { kubeconfig } => Opening::Server(Box::new(kube::config(kubeconfig.as_deref()).await?)),
    };
    let listener = api::server::bind(&options.run_dir)?;
    let ready = options.run_dir.join(READY);
    remove_if_there(&ready)?;
    let kernel = kernel_release()?;
    let hook = options.hook.resolve(kernel)?;
    let pins = Pins::new(&options.bpffs);
    let health = Arc::new(Health::new(pins.maps().join("endpoints")));
    // Before the first reconciliation, which may take its time: until then the answer is "not ready".
    if let Some(listener) = options.listen.health()? {
        http::serve("health", listener, Arc::new(HealthPages(Arc::clone(&health))))?;
    }
    let metrics_listener = options.listen.metrics()?;
    pins.prepare(&options.bpffs)?;
    let mut reconciler = reconciler(&options, &pins, hook)?;
    // What earlier agents lost is nothing that this one's observers miss.
    let lost = reconciler.lost_events()?;
    let refused = RefusedFlows::new(reconciler.flows_refused()?);
    let events = Events::open(reconciler.ebpf_mut())?;
    follow_logs(&mut reconciler);
    let servers = follow_servers(opening.server());
    let source = opening.source(&options, &mut reconciler)?;
    let (in_force, awaited) = watch::channel(InForce::default());
    let (look, mut looks) = mpsc::channel(1);
    let server = source.server();
    let (cni, mut asks) = mpsc::channel(ASKS);
    let shared = Arc::new(Shared {
        cni,
        snapshot: RwLock::default(),
        asker: Asker::beside(&pins, &options.sizes)?,
        recorder: Recorder::default(),
        figures: Figures::open(&pins)?,
        health,
        metrics: Metrics::new(kernel.to_string(), hook.to_string(), options.listen.policy_labels()),
        policy_labels: options.listen.policy_labels(),
        facts: Facts {
            node: options.node_name.clone(),
            mode: options.mode,
            hook: hook.to_string(),
            kernel: kernel.to_string(),
            source: options.source.to_string(),
            flows_per_endpoint: options.flows_per_endpoint,
        },
        waiter: Waiter { in_force: awaited, look, server },
    });
    let (wake, mut wakes) = wakes(options.source.directory())?;
    let mut agent = Agent {
        reconciler,
        source,
        holds: Holds::open(&options.run_dir),
        following: None,
        marks: options.services.marks(options.mark_mask),
        shared: Arc::clone(&shared),
        node: options.node_name.clone(),
        unbound: options.unbound_namespaces,
        own_node_egress: options.own_node_egress,
        firewall: options
            .host
            .map(|host| Firewall::open(host, options.mode, &options.run_dir))
            .transpose()?,
        effective: None,
        cgroups: Cgroups { wakes: wake, watcher: None, watched: BTreeSet::new() },
        servers,
        ready,
        applied: 0,
        lost,
        refused,
        cluster: None,
        said: None,
        problems: Problems::default(),
        pending: true,
        signature: None,
        noticed: None,
        in_force,
        looked: 0,
    };
    agent.begin()?;
    if let Some(listener) = metrics_listener {
        http::serve("metrics", listener, shared.clone())?;
    }
    agent.enforce();
    agent.following = options.cni.map(|(dir, settings)| follow(dir, settings));
    let (half_full, mut growing) = mpsc::channel(GROWING);
    tokio::spawn(api::server::serve(listener, shared.clone()));
    tokio::spawn(read_events(events, shared, half_full));
    let doing = match options.mode {
        Mode::Enforce => "enforcing",
        Mode::Audit => "auditing, nothing is dropped:",
    };
    tracing::info!("{doing} what {} says, by {hook:?}", options.source);
    agent.serve(&mut wakes, &mut growing, &mut looks, &mut asks).await
}

/// Hands events to whoever observes, and tells of tables of flows that are half full.
async fn read_events(mut events: Events, shared: Arc<Shared>, half_full: mpsc::Sender<u32>) {
    loop {
        let read = events.read(|event| {
            if event.reason == NOTICE_FLOWS_HALF {
                // One that is not heard of now the audit finds.
                let _ = half_full.try_send(event.slot);
            } else {
                shared.recorder.record(event);
            }
        });
        if let Err(error) = read.await {
            tracing::error!("reading events: {error}: `observe` is silent from here on");
            return;
        }
    }
}

/// Why the main loop wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wake {
    Source,
    Network,
}

/// What no source says and verdicts depend on.
#[derive(Debug, PartialEq, Eq)]
struct Around {
    own_node: BTreeSet<IpAddr>,
    host: Option<Host>,
    /// HostPolicies that were rolled back.
    left_out: BTreeSet<String>,
}

struct Agent {
    reconciler: Reconciler,
    source: Source,
    shared: Arc<Shared>,
    node: Option<String>,
    unbound: BTreeSet<String>,
    own_node_egress: OwnNodeEgress,
    firewall: Option<Firewall>,
    /// What is enforced instead of what the source says, and what it was made from.
    effective: Option<(Arc<Cluster>, Around, Arc<Cluster>)>,
    /// Where pods' cgroups appear.
    cgroups: Cgroups,
    /// Where the source's API server is.
    servers: watch::Receiver<Vec<SocketAddr>>,
    ready: PathBuf,
    applied: u64,
    lost: u64,
    refused: RefusedFlows,
    /// What the source said when it could last be used; `None` until it could: what the last agent left stays.
    cluster: Option<Arc<Cluster>>,
    /// What the API server said last.
    said: Option<Said>,
    problems: Problems,
    /// True while what the source says is not in force.
    pending: bool,
    signature: Option<Signature>,
    /// When the change was noticed that is not in force yet.
    noticed: Option<Instant>,
    /// For those who wait.
    in_force: watch::Sender<InForce>,
    /// When the directory was looked at that said so.
    looked: u64,
    /// Pods that wait to start.
    holds: Holds,
    following: Option<Following>,
    /// What rules of the node do to our bits of the packet mark, where they are used.
    marks: Option<watch::Receiver<Vec<Problem>>>,
}

/// What is wrong, by where it was found: what one step finds does not hide what another did.
#[derive(Debug, Default)]
struct Problems {
    /// The source cannot be used.
    source: Vec<Problem>,
    /// Its objects.
    objects: Vec<Problem>,
    /// The last reconciliation that came to an end.
    outcome: Vec<Problem>,
    /// Why the last one did not.
    failure: Vec<Problem>,
    /// What packets met.
    traffic: Vec<Problem>,
    /// The CNI configuration that is followed.
    cni: Vec<Problem>,
    /// Rules of the node that write our bits of the packet mark.
    marks: Vec<Problem>,
    /// Those that were logged.
    said: Vec<Problem>,
}

impl Problems {
    fn all(&self) -> Vec<Problem> {
        [&self.source, &self.objects, &self.outcome, &self.failure, &self.traffic, &self.cni, &self.marks]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Logs those that were not there before.
    fn say(&mut self) {
        let all = self.all();
        for problem in all.iter().filter(|problem| !self.said.contains(problem)) {
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
                Severity::Note => tracing::info!("{problem}"),
            }
        }
        self.said = all;
    }
}

/// When the directory is to be read: it is quiet, or has been written to for too long.
#[derive(Clone, Copy, Debug, Default)]
struct Due(Option<(Instant, Instant)>);

impl Due {
    /// It was written to.
    fn written(&mut self) {
        let now = Instant::now();
        let latest = self.0.map_or(now + RESTLESS, |(_, latest)| latest);
        self.0 = Some(((now + QUIET).min(latest), latest));
    }

    /// When it was first written to.
    fn began(self) -> Option<Instant> {
        self.0.and_then(|(_, latest)| latest.checked_sub(RESTLESS))
    }

    async fn wait(self) {
        match self.0 {
            Some((at, _)) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

impl Agent {
    /// A directory is read before anything is changed. The API server is waited for in the main loop.
    fn begin(&mut self) -> anyhow::Result<()> {
        self.looked = monotonic();
        self.signature = self.source.signature();
        if let Some(loaded) = self.usable().context("nothing was changed")? {
            (self.cluster, self.problems.objects) = (Some(Arc::new(loaded.cluster)), loaded.problems);
            self.shared.health.source_is_read();
        }
        self.look_at_watches();
        Ok(())
    }

    async fn serve(
        &mut self,
        wakes: &mut mpsc::Receiver<Wake>,
        growing: &mut mpsc::Receiver<u32>,
        looks: &mut mpsc::Receiver<()>,
        asks: &mut mpsc::Receiver<CniAsk>,
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut audit = interval(AUDIT);
        audit.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut expire = interval(EXPIRE);
        expire.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut due = Due::default();
        loop {
            self.shared.health.turn();
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                wake = wakes.recv() => {
                    let Some(first) = wake else { anyhow::bail!("the watches ended") };
                    let mut woken = BTreeSet::from([first]);
                    while let Ok(another) = wakes.try_recv() {
                        woken.insert(another);
                    }
                    if woken.contains(&Wake::Source) {
                        due.written();
                    }
                    // A new interface does not wait for the directory to be quiet.
                    if woken.contains(&Wake::Network) {
                        self.noticed.get_or_insert_with(Instant::now);
                        self.enforce();
                    }
                }
                () = self.source.changed() => {
                    self.noticed = self.noticed.or(self.source.noticed());
                    self.listen();
                    self.enforce();
                }
                () = due.wait() => {
                    self.noticed = self.noticed.or(due.began());
                    due = Due::default();
                    self.read();
                    self.enforce();
                }
                _ = audit.tick() => {
                    let signature = self.source.signature();
                    if due.0.is_none() && self.signature != signature {
                        due.written();
                    } else if signature.is_some() && self.problems.source.is_empty() {
                        self.shared.health.source_is_read();
                    }
                    self.look_at_watches();
                    self.enforce();
                    self.grow(None);
                }
                Some(()) = looks.recv() => due.written(),
                Some(slot) = growing.recv() => self.grow(Some(slot)),
                Some(ask) = asks.recv() => self.hold(ask, asks),
                _ = expire.tick() => self.expire(),
            }
        }
    }

    fn expire(&mut self) {
        if let Err(error) = tokio::task::block_in_place(|| self.reconciler.expire_flows()) {
            tracing::warn!("removing expired flows: {error:#}");
        }
    }

    fn grow(&mut self, slot: Option<u32>) {
        if let Err(error) = tokio::task::block_in_place(|| self.reconciler.grow_flows(slot)) {
            tracing::warn!("growing tables of flows: {error:#}");
        }
    }

    /// Does what CNI plugins ask: all that have asked by now, then one reconciliation for them.
    fn hold(&mut self, first: CniAsk, more: &mut mpsc::Receiver<CniAsk>) {
        let mut changed = Changed::Nothing;
        let mut next = Some(first);
        while let Some(ask) = next {
            let (reconciler, health) = (&mut self.reconciler, &self.shared.health);
            if tokio::task::block_in_place(|| self.holds.take(ask, reconciler, health)) == Changed::Something
            {
                changed = Changed::Something;
            }
            next = more.try_recv().ok();
        }
        if changed == Changed::Something {
            self.enforce();
        }
    }

    /// Reads the directory. One that cannot be used changes nothing, until it is written to again.
    fn read(&mut self) {
        // Before it is read: what is written meanwhile is seen at the next audit.
        self.signature = self.source.signature();
        let looked = monotonic();
        match tokio::task::block_in_place(|| self.usable()) {
            Ok(None) => {}
            Ok(Some(loaded)) => {
                self.cluster = Some(Arc::new(loaded.cluster));
                self.problems.objects = loaded.problems;
                self.problems.source.clear();
                self.shared.health.source_is_read();
                self.pending = true;
                self.looked = looked;
            }
            Err(error) => {
                let message = format!("{error:#}: what it said last stays in force");
                self.problems.source = vec![Problem::of_node(Severity::Error, message)];
            }
        }
    }

    /// What a directory says; `None` of any other source.
    fn usable(&mut self) -> anyhow::Result<Option<Loaded>> {
        let Source::Dir(source) = &mut self.source else { return Ok(None) };
        let mut loaded = source.read()?;
        anyhow::ensure!(
            loaded.cluster_policies.is_empty(),
            "ClusterNetworkPolicy is not supported by this version yet: take {} out of {}",
            loaded.cluster_policies.join(", "),
            source.dir().display()
        );
        for (name, namespace) in &mut loaded.cluster.namespaces {
            if self.unbound.contains(name) {
                namespace.source_binding.get_or_insert(SourceBinding::Off);
            }
        }
        Ok(Some(loaded))
    }

    /// Takes over what the API server said since. Until it has listed everything once, it says nothing.
    fn listen(&mut self) {
        self.look_at_watches();
        let Source::Kube(source) = &self.source else { return };
        let Some(said) = source.read() else { return };
        self.problems.objects.clone_from(&said.problems);
        let same = self.said.as_ref().is_some_and(|last| Arc::ptr_eq(&last.cluster, &said.cluster));
        if !same {
            self.cluster = Some(Arc::clone(&said.cluster));
            self.pending = true;
        }
        self.said = Some(said);
    }

    /// How the watches do, for those who ask.
    fn look_at_watches(&mut self) {
        let watches = self.source.watches();
        if watches.is_empty() {
            return;
        }
        self.problems.source = watches.iter().filter_map(trouble).collect();
        self.shared.health.watched(watches);
    }

    /// Brings what is known into force. What fails is tried again at the next wake, the audit at the latest.
    fn enforce(&mut self) {
        self.problems.marks = self.marks.as_ref().map(|marks| marks.borrow().clone()).unwrap_or_default();
        if self.cluster.is_none() {
            self.problems.say();
            return;
        }
        let began = monotonic();
        let failure =
            tokio::task::block_in_place(|| self.reconcile()).err().map(|error| format!("{error:#}"));
        if let Some(failure) = &failure {
            self.holds.failed(failure);
        }
        self.problems.cni = self.following.as_ref().map(Following::problems).unwrap_or_default();
        self.problems.failure = failure
            .iter()
            .map(|error| Problem::of_node(Severity::Error, format!("{error}: it will be tried again")))
            .collect();
        self.shared.health.reconciled(began, failure);
        self.watch_flows();
        self.problems.say();
        self.tell_losses();
    }

    /// What the source says, with what it does not know: the node's addresses, and how the node's own sockets are judged.
    fn effective(&mut self) -> anyhow::Result<Arc<Cluster>> {
        let own_node = match self.own_node_egress {
            OwnNodeEgress::Policy => BTreeSet::new(),
            OwnNodeEgress::Allow => attach::foreign::node_addresses()?,
        };
        let said = Arc::clone(self.cluster.get_or_insert_default());
        let (host, left_out) = match &mut self.firewall {
            None => (None, BTreeSet::new()),
            Some(firewall) => firewall.look(&said, &self.servers.borrow()),
        };
        let around = Around { own_node, host, left_out };
        if let Some((of, held, effective)) = &self.effective
            && Arc::ptr_eq(of, &said)
            && *held == around
        {
            return Ok(Arc::clone(effective));
        }
        let mut effective = Cluster::clone(&said);
        effective.own_node.clone_from(&around.own_node);
        effective.host.clone_from(&around.host);
        effective.host_policies.retain(|name, _| !around.left_out.contains(name));
        let effective = Arc::new(effective);
        self.effective = Some((said, around, Arc::clone(&effective)));
        Ok(effective)
    }

    fn reconcile(&mut self) -> anyhow::Result<()> {
        let began = monotonic();
        let cluster = self.effective()?;
        let cluster = self.holds.over(&cluster, &mut self.reconciler);
        let outcome = self.reconciler.reconcile(&cluster)?;
        let seen = began.saturating_sub(self.noticed.map_or(0, nanoseconds_since));
        let ended = self.holds.reconciled(&cluster, &outcome, seen);
        let (complete, has_room) = (outcome.complete, outcome.held.is_empty());
        self.problems.outcome.clone_from(&outcome.problems);
        self.problems.outcome.extend(self.firewall.iter().flat_map(Firewall::problems));
        let changed = self.pending || self.shared.snapshot().local != outcome.local;
        self.shared.health.wanting(Wanting {
            missing: missing(&cluster, self.node.as_deref(), &outcome.local),
            held: outcome
                .held
                .iter()
                .map(|held| held.pod.to_string())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            unread: self.source.never_read().to_vec(),
        });
        let mut snapshot = snapshot(Arc::clone(&cluster), self.problems.all(), self.node.clone(), outcome);
        let after = Reconciled { cluster: &cluster, complete, held: &snapshot.held };
        if let Some(firewall) = &mut self.firewall {
            firewall.reconciled(after, &snapshot.local);
        }
        let host = host_status::readings(self.firewall.as_ref(), after);
        if let (Some(firewall), Some(said)) = (&self.firewall, &self.said) {
            self.source.tell_status(host_status::states(said, &self.problems.objects, firewall, after));
        }
        snapshot.host = host;
        self.shared.publish(snapshot, began);
        ended.tell(&self.shared.metrics);
        // With a file that nobody could read nobody knows what should be in force.
        let known = self.source.never_read().is_empty();
        // Neither is a change in force that waits for a measure.
        let is_held = self.firewall.as_ref().and_then(Firewall::rollback).is_some_and(Rollback::holds);
        // A change that has no room somewhere is not in force; settling may make room.
        if self.pending && complete && has_room && known && !is_held {
            self.pending = false;
            self.applied += 1;
            let text = format!("{{\"applied\": {}}}\n", self.applied);
            let beside = self.ready.with_extension("new");
            fs::write(&beside, text)
                .and_then(|()| fs::rename(&beside, &self.ready))
                .with_context(|| self.ready.display().to_string())?;
        }
        if !self.pending {
            self.in_force.send_replace(InForce {
                cluster: Some(Arc::clone(&cluster)),
                versions: self.said.as_ref().map(|said| Arc::clone(&said.versions)),
                looked: self.looked,
            });
        }
        let in_force = changed && complete && has_room;
        if let Some(noticed) = self.noticed.take().filter(|_| in_force) {
            self.shared.metrics.programmed(noticed.elapsed());
        }
        self.cgroups.follow(self.reconciler.cgroup_directories());
        // What could not be placed may find what settling frees.
        self.reconciler.settle()?;
        anyhow::ensure!(complete, "not every pod could be placed and attached to");
        Ok(())
    }

    fn watch_flows(&mut self) {
        if let Ok(total) = self.reconciler.flows_refused()
            && let Some(problems) = self.refused.look(total, Instant::now().into_std())
        {
            self.problems.traffic = problems;
        }
    }

    fn tell_losses(&mut self) {
        let lost = self.reconciler.lost_events().unwrap_or(self.lost);
        let new = lost.saturating_sub(self.lost);
        self.lost = lost;
        self.shared.recorder.lose(new);
        if new > 0 {
            let snapshot = self.shared.snapshot();
            let packets = |counter: &u32| Some((*counter, self.shared.figures.rule(*counter).ok()?.packets));
            self.shared.recorder.catch_up(snapshot.counters.keys().filter_map(packets), monotonic());
        }
    }
}

fn snapshot(
    cluster: Arc<Cluster>,
    problems: Vec<Problem>,
    node: Option<String>,
    outcome: Outcome,
) -> Snapshot {
    Snapshot {
        cluster,
        problems,
        node,
        held: outcome.held.into_iter().map(|one| one.pod).collect(),
        local: outcome.local,
        endpoints: outcome.endpoints,
        fills: outcome.fills,
        older: outcome.older,
        counters: outcome.counters,
        host: HostReadings::default(),
        since: Arc::default(),
        findings: Arc::default(),
        world: OnceLock::new(),
    }
}

/// Pods of this node that have an address and are not enforced.
fn missing(cluster: &Cluster, node: Option<&str>, local: &BTreeMap<ObjectKey, u32>) -> Vec<String> {
    let is_here =
        |pod: &Pod| node.is_some() && pod.node.as_deref() == node && pod.is_live() && pod.has_own_network();
    cluster
        .pods
        .iter()
        .filter(|(key, pod)| is_here(pod) && !pod.addresses.is_empty() && !local.contains_key(*key))
        .map(|(key, _)| key.to_string())
        .collect()
}

/// What is wrong with a watch.
fn trouble(watch: &kube::WatchState) -> Option<Problem> {
    if watch.absent {
        let message = format!(
            "the API server does not know the kind {}: there are none; apply its CustomResourceDefinition (deploy/manifests) to \
             have some",
            watch.kind.name()
        );
        return Some(Problem::of_node(Severity::Note, message));
    }
    let trouble = watch.trouble.as_ref()?;
    if !watch.needed {
        let (severity, means) = match watch.decides {
            Decides::Names => (
                Severity::Note,
                "no verdict depends on it; backends of Services that `explain` names are those that pods and selectors \
                 tell",
            ),
            Decides::ApiServers | Decides::Verdicts => (
                Severity::Warning,
                "the host firewall does not know which API servers are behind the Service default/kubernetes, and \
                 policies for hosts may deny them; say them with --api-server",
            ),
        };
        let message = format!(
            "watching {}: {trouble}: {means}; give the agent the right to list and watch it",
            watch.kind.plural()
        );
        return Some(Problem::of_node(severity, message));
    }
    let means = if watch.listed {
        "what the API server said last stays in force"
    } else {
        "what the last agent left stays in force; look for the API server, and for the agent's right to list and watch"
    };
    Some(Problem::of_node(Severity::Error, format!("watching {}: {trouble}: {means}", watch.kind.plural())))
}

fn nanoseconds_since(moment: Instant) -> u64 {
    u64::try_from(moment.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Changes of the directory, where there is one, and of the network.
fn wakes(source: Option<&Path>) -> anyhow::Result<(mpsc::Sender<Wake>, mpsc::Receiver<Wake>)> {
    let (send, receive) = mpsc::channel(64);
    let wake = send.clone();
    if let Some(source) = source {
        let send = send.clone();
        changes::follow(source, RecursiveMode::Recursive, "once a second", move || {
            // A full channel has a wake in it already.
            let _ = send.try_send(Wake::Source);
        });
    }
    let mut watch = attach::watch().context("watching links and routes")?;
    tokio::spawn(async move {
        while watch.changed().await.is_ok() {
            if send.send(Wake::Network).await.is_err() {
                return;
            }
        }
    });
    Ok((wake, receive))
}

/// Wakes the main loop when a pod's cgroup appears: until it is known whose it is, the pod is closed. What it misses the audit
/// finds.
struct Cgroups {
    wakes: mpsc::Sender<Wake>,
    watcher: Option<notify::RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
}

impl Cgroups {
    fn follow(&mut self, directories: &[PathBuf]) {
        if directories.iter().eq(&self.watched) {
            return;
        }
        let wakes = self.wakes.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let is_change =
                event.is_ok_and(|event| matches!(event.kind, EventKind::Create(_) | EventKind::Remove(_)));
            if is_change {
                // A full channel has a wake in it already.
                let _ = wakes.try_send(Wake::Network);
            }
        });
        let following = watcher.and_then(|mut watcher| {
            for directory in directories {
                watcher.watch(directory, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        match following {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.watched = directories.iter().cloned().collect();
            }
            Err(error) => tracing::debug!("watching cgroups: {error}: new ones are seen once a second"),
        }
    }
}

/// The programs' own diagnostics go to our log. Without them everything works.
fn follow_logs(reconciler: &mut Reconciler) {
    let logger = aya_log::EbpfLogger::init(reconciler.ebpf_mut());
    // The error is large because it hands the logger back, once in the life of the process.
    #[allow(clippy::result_large_err)]
    // SAFETY: the logger owns its ring and leaves it open for as long as it lives.
    match logger.map(|logger| unsafe { tokio::io::unix::AsyncFd::register(logger) }) {
        Ok(Ok(mut logger)) => {
            tokio::spawn(async move {
                while let Ok(mut ready) = logger.readable_mut().await {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
            });
        }
        Ok(Err(_)) => tracing::warn!("the programs' log cannot be watched"),
        Err(error) => tracing::warn!("the programs' log: {error}"),
    }
}

fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What `cleanup` took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Taken.
    pub taken: Vec<String>,
    /// Not taken, and why.
    pub failed: Vec<String>,
}

/// Takes away programs, links, pins and the socket. Refuses while an agent runs: it would put them back.
pub fn cleanup(run_dir: &Path, bpffs: &Path) -> anyhow::Result<Taken> {
    let socket = api::socket(run_dir);
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        anyhow::bail!(
            "an agent answers on {}: stop it first, it would put everything back",
            socket.display()
        );
    }
    let pins = Pins::new(bpffs);
    let attached = attach::cleanup(&pins.links());
    let mut result = Taken { taken: attached.taken, failed: Vec::new() };
    result.failed.extend(attached.failed.iter().map(ToString::to_string));
    for path in [socket, run_dir.join(READY), run_dir.join(MEMORY), run_dir.join(TOLD)] {
        match fs::remove_file(&path) {
            Ok(()) => result.taken.push(format!("file {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => result.failed.push(format!("{}: {error}", path.display())),
        }
    }
    take_pins(pins.root(), &mut result);
    Ok(result)
}

/// Removes a directory of pins from its leaves up.
fn take_pins(dir: &Path, result: &mut Taken) {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return result.failed.push(format!("{}: {error}", dir.display())),
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            take_pins(&path, result);
        } else {
            match fs::remove_file(&path) {
                Ok(()) => result.taken.push(format!("pin {}", path.display())),
                Err(error) => result.failed.push(format!("{}: {error}", path.display())),
            }
        }
    }
    if let Err(error) = fs::remove_dir(dir) {
        result.failed.push(format!("{}: {error}", dir.display()));
    }
}

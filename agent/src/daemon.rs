//! The daemon: turns what the sources, the network and the clock tell into reconciliations, and publishes what
//! is in force. Killed or ended, it leaves enforcement as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use hyper::StatusCode;
use ipnet::IpNet;
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher as _};
use portcullis_common::event::NOTICE_FLOWS_HALF;
use portcullis_policy::compile::Compiler;
use portcullis_policy::desired::CounterName;
use portcullis_policy::findings::{Finding, findings};
use portcullis_policy::manifest::{self, Loaded};
use portcullis_policy::model::{Cluster, Mode, ObjectKey, Pod, Problem, Severity, SourceBinding};
use portcullis_policy::select::Directory;
use portcullis_policy::sizes::Sizes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::api::{self, Backend, Refusal};
use crate::attach::{self, HookChoice};
use crate::bpf::Pins;
use crate::bpf::events::Events;
use crate::bpf::figures::Figures;
use crate::bpf::load::kernel_release;
use crate::bpf::probe::Asker;
use crate::clock::monotonic;
use crate::health::{Health, Wanting};
use crate::http::{self, Page, Pages};
use crate::listen::{HealthPages, ListenArgs};
use crate::metrics::{self, Fill, Metrics, PolicyLabels};
use crate::observe::Recorder;
use crate::observe::names::{Moment, Named, Owners};
use crate::older::OlderFlows;
use crate::reconcile::{Enforced, Outcome, Reconciler};
use crate::refused::RefusedFlows;
use crate::report::{Facts, Reporter};
use crate::source::dir::{DirSource, Signature};
use crate::verbs::endpoints::{Endpoint, Scope};
use crate::verbs::policies::{PoliciesRequest, PolicyReport};
use crate::verbs::status::Status;
use crate::world::{AskKernel, KernelAnswer, World};

/// How long a directory must be quiet before it is read: a change is in force 1 s after its last write.
const QUIET: Duration = Duration::from_millis(150);
/// How long one that is never quiet may wait.
const RESTLESS: Duration = Duration::from_millis(600);
/// How often attachments are audited, and the directory looked at for changes that no event told of.
const AUDIT: Duration = Duration::from_secs(1);
/// How often expired flows are removed.
const EXPIRE: Duration = Duration::from_secs(30);
/// Tables of flows that wait to grow.
const GROWING: usize = 1_024;
/// File in the run directory that says how many changes are in force.
const READY: &str = "ready";
/// File in the run directory with what the manifests said last.
const MEMORY: &str = "manifests.json";

/// How the daemon runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of manifests.
    pub source: PathBuf,
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
            self.recorder.names.publish(owners(&snapshot), moment);
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
fn owners(snapshot: &Snapshot) -> Owners {
    let directory = Directory::new(&snapshot.cluster);
    let pods: BTreeMap<&ObjectKey, Arc<Named>> = directory
        .pods
        .iter()
        .map(|(key, facts)| (*key, Arc::new(Named { key: (*key).clone(), labels: facts.pod.labels.clone() })))
        .collect();
    let named = |key: &ObjectKey| pods.get(key).cloned();
    Owners {
        slots: snapshot.local.iter().filter_map(|(key, slot)| Some((*slot, named(key)?))).collect(),
        addresses: directory
            .owners
            .iter()
            .filter_map(|(address, key)| Some((*address, named(key)?)))
            .collect(),
        counters: snapshot.counters.iter().map(|(n, name)| (*n, Arc::new(name.clone()))).collect(),
    }
}

impl Backend for Shared {
    fn world(&self) -> Arc<World> {
        let snapshot = self.snapshot();
        let world = snapshot.world.get_or_init(|| {
            let cluster = Cluster::clone(&snapshot.cluster);
            let mut problems = snapshot.problems.clone();
            let desired = match Compiler::new(0).compile(&cluster, cluster.pods.keys()) {
                Ok((desired, closed)) => {
                    problems.extend(closed);
                    desired
                }
                Err(error) => {
                    problems.push(node_problem(format!("not every pod can be judged: {error}")));
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

    fn recorder(&self) -> &Recorder {
        &self.recorder
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

/// Runs until SIGTERM or SIGINT. Enforcement stays.
pub async fn run(options: Options) -> anyhow::Result<()> {
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
    let mut reconciler =
        Reconciler::open(&pins, hook, options.flows_per_endpoint, options.mode, &options.sizes)?;
    // What earlier agents lost is nothing that this one's observers miss.
    let lost = reconciler.lost_events()?;
    let refused = RefusedFlows::new(reconciler.flows_refused()?);
    let mut events = Events::open(reconciler.ebpf_mut())?;
    follow_logs(&mut reconciler);
    let shared = Arc::new(Shared {
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
            source: options.source.display().to_string(),
            flows_per_endpoint: options.flows_per_endpoint,
        },
    });
    let mut wakes = wakes(&options.source)?;
    let pod_cidrs = manifest::Options::with(&options.pod_cidrs).pod_cidrs;
    let source = DirSource::new(options.source.clone(), options.run_dir.join(MEMORY), pod_cidrs);
    let mut agent = Agent {
        reconciler,
        source,
        shared: Arc::clone(&shared),
        node: options.node_name.clone(),
        unbound: options.unbound_namespaces,
        own_node_egress: options.own_node_egress,
        ready,
        applied: 0,
        lost,
        refused,
        cluster: Arc::default(),
        problems: Problems::default(),
        pending: true,
        signature: None,
        noticed: None,
    };
    agent.signature = agent.source.signature();
    let loaded = agent.usable().context("nothing was changed")?;
    (agent.cluster, agent.problems.objects) = (Arc::new(loaded.cluster), loaded.problems);
    shared.health.source_is_read();
    if let Some(listener) = metrics_listener {
        http::serve("metrics", listener, shared.clone())?;
    }
    agent.enforce();
    let (half_full, mut growing) = mpsc::channel(GROWING);
    tokio::spawn(api::server::serve(listener, shared.clone()));
    tokio::spawn(async move {
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
    });
    let doing = match options.mode {
        Mode::Enforce => "enforcing",
        Mode::Audit => "auditing, nothing is dropped:",
    };
    tracing::info!("{doing} {} by {hook:?}", options.source.display());
    agent.serve(&mut wakes, &mut growing).await
}

/// Why the main loop wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wake {
    Source,
    Network,
}

struct Agent {
    reconciler: Reconciler,
    source: DirSource,
    shared: Arc<Shared>,
    node: Option<String>,
    unbound: BTreeSet<String>,
    own_node_egress: OwnNodeEgress,
    ready: PathBuf,
    applied: u64,
    lost: u64,
    refused: RefusedFlows,
    /// What the directory said when it could last be used.
    cluster: Arc<Cluster>,
    problems: Problems,
    /// True while what the directory says is not in force.
    pending: bool,
    signature: Option<Signature>,
    /// When the change was noticed that is not in force yet.
    noticed: Option<Instant>,
}

/// What is wrong, by where it was found: what one step finds does not hide what another did.
#[derive(Debug, Default)]
struct Problems {
    /// The directory cannot be used.
    source: Vec<Problem>,
    /// Its objects.
    objects: Vec<Problem>,
    /// The last reconciliation that came to an end.
    outcome: Vec<Problem>,
    /// Why the last one did not.
    failure: Vec<Problem>,
    /// What packets met.
    traffic: Vec<Problem>,
    /// Those that were logged.
    said: Vec<Problem>,
}

impl Problems {
    fn all(&self) -> Vec<Problem> {
        [&self.source, &self.objects, &self.outcome, &self.failure, &self.traffic]
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
    async fn serve(
        &mut self,
        wakes: &mut mpsc::Receiver<Wake>,
        growing: &mut mpsc::Receiver<u32>,
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
                    self.enforce();
                    self.grow(None);
                }
                Some(slot) = growing.recv() => self.grow(Some(slot)),
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

    /// Reads the directory. One that cannot be used changes nothing, until it is written to again.
    fn read(&mut self) {
        // Before it is read: what is written meanwhile is seen at the next audit.
        self.signature = self.source.signature();
        match tokio::task::block_in_place(|| self.usable()) {
            Ok(loaded) => {
                self.cluster = Arc::new(loaded.cluster);
                self.problems.objects = loaded.problems;
                self.problems.source.clear();
                self.shared.health.source_is_read();
                self.pending = true;
            }
            Err(error) => {
                let message = format!("{error:#}: what it said last stays in force");
                self.problems.source = vec![node_problem(message)];
            }
        }
    }

    fn usable(&mut self) -> anyhow::Result<Loaded> {
        let mut loaded = self.source.read()?;
        anyhow::ensure!(
            loaded.cluster_policies.is_empty(),
            "ClusterNetworkPolicy is not supported by this version yet: take {} out of {}",
            loaded.cluster_policies.join(", "),
            self.source.dir().display()
        );
        for (name, namespace) in &mut loaded.cluster.namespaces {
            if self.unbound.contains(name) {
                namespace.source_binding.get_or_insert(SourceBinding::Off);
            }
        }
        Ok(loaded)
    }

    /// Brings what is known into force. What fails is tried again at the next wake, the audit at the latest.
    fn enforce(&mut self) {
        let began = monotonic();
        let failure =
            tokio::task::block_in_place(|| self.reconcile()).err().map(|error| format!("{error:#}"));
        self.problems.failure =
            failure.iter().map(|error| node_problem(format!("{error}: it will be tried again"))).collect();
        self.shared.health.reconciled(began, failure);
        self.watch_flows();
        self.problems.say();
        self.tell_losses();
    }

    /// Follows the addresses of the node. Those that only loopback or one link has are nobody's way to it.
    fn follow_own_node(&mut self) -> anyhow::Result<()> {
        let own_node = match self.own_node_egress {
            OwnNodeEgress::Policy => BTreeSet::new(),
            OwnNodeEgress::Allow => attach::foreign::addresses()?
                .into_iter()
                .filter(|address| !address.is_loopback() && !is_link_local(*address))
                .collect(),
        };
        if self.cluster.own_node != own_node {
            self.cluster = Arc::new(Cluster { own_node, ..Cluster::clone(&self.cluster) });
        }
        Ok(())
    }

    fn reconcile(&mut self) -> anyhow::Result<()> {
        let began = monotonic();
        self.follow_own_node()?;
        let outcome = self.reconciler.reconcile(&self.cluster)?;
        let (complete, has_room) = (outcome.complete, outcome.held.is_empty());
        self.problems.outcome.clone_from(&outcome.problems);
        let changed = self.pending || self.shared.snapshot().local != outcome.local;
        self.shared.health.wanting(Wanting {
            missing: missing(&self.cluster, self.node.as_deref(), &outcome.local),
            held: outcome
                .held
                .iter()
                .map(|held| held.pod.to_string())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            unread: self.source.never_read().to_vec(),
        });
        let snapshot = snapshot(Arc::clone(&self.cluster), self.problems.all(), self.node.clone(), outcome);
        self.shared.publish(snapshot, began);
        // With a file that nobody could read nobody knows what should be in force.
        let known = self.source.never_read().is_empty();
        // A change that has no room somewhere is not in force; settling may make room.
        if self.pending && complete && has_room && known {
            self.pending = false;
            self.applied += 1;
            let text = format!("{{\"applied\": {}}}\n", self.applied);
            let beside = self.ready.with_extension("new");
            fs::write(&beside, text)
                .and_then(|()| fs::rename(&beside, &self.ready))
                .with_context(|| self.ready.display().to_string())?;
        }
        let in_force = changed && complete && has_room;
        if let Some(noticed) = self.noticed.take().filter(|_| in_force) {
            self.shared.metrics.programmed(noticed.elapsed());
        }
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

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn node_problem(message: String) -> Problem {
    Problem {
        severity: Severity::Error,
        object: "Node".to_owned(),
        field: String::new(),
        message,
        location: None,
    }
}

/// Changes of the directory and of the network.
fn wakes(source: &Path) -> anyhow::Result<mpsc::Receiver<Wake>> {
    let (send, receive) = mpsc::channel(64);
    let of_source = send.clone();
    // A full channel has a wake in it already.
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is an event too, and we read. An error (the queue ran over) may hide a change.
        let read = event.is_ok_and(|event| match event.kind {
            EventKind::Access(kind) => kind != AccessKind::Close(AccessMode::Write),
            EventKind::Any
            | EventKind::Create(_)
            | EventKind::Modify(_)
            | EventKind::Remove(_)
            | EventKind::Other => false,
        });
        if !read {
            let _ = of_source.try_send(Wake::Source);
        }
    });
    match watcher.and_then(|mut w| w.watch(source, RecursiveMode::Recursive).map(|()| w)) {
        // It watches for as long as the process lives.
        Ok(watcher) => std::mem::forget(watcher),
        Err(error) => tracing::warn!("{}: {error}: changes are seen once a second", source.display()),
    }
    let mut watch = attach::watch().context("watching links and routes")?;
    tokio::spawn(async move {
        while watch.changed().await.is_ok() {
            if send.send(Wake::Network).await.is_err() {
                return;
            }
        }
    });
    Ok(receive)
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
    for path in [socket, run_dir.join(READY), run_dir.join(MEMORY)] {
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

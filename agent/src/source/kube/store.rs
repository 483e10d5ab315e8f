//! What the API server said, as one [`Cluster`]. Owns the order of things: lists that count only when they are
//! whole, repeats and late news of the past, and policies that outlive their objects while their namespace
//! terminates (S33). Pure: time is an argument, and nothing here knows connections.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_policy::findings::policy_object;
use portcullis_policy::model::{Cluster, ObjectKey, Problem, Severity};

use super::HostPolicies;
use super::object::{Decides, Kept, Kind, Seen, Version};

/// How many pods are named where many have the same problem.
const NAMED_PODS: usize = 5;

/// What a watch tells of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A list begins.
    Begin,
    /// An object of the list.
    Listed(Box<Seen>),
    /// The list is whole: what it did not name is gone.
    Complete,
    /// An object is new or has changed.
    Put(Box<Seen>),
    /// An object is gone.
    Gone(ObjectKey, Version),
}

/// Policies by name, with the state of each that was heard of.
pub type Versions = BTreeMap<ObjectKey, Version>;

/// `HostPolicies` by name, with the state of each that was heard of.
pub type HostVersions = BTreeMap<String, Version>;

/// What the API server says.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// The objects.
    pub cluster: Arc<Cluster>,
    /// What is wrong with them.
    pub problems: Vec<Problem>,
    /// Which state of each policy it is.
    pub versions: Arc<Versions>,
    /// Which state of each HostPolicy it is.
    pub host_versions: Arc<HostVersions>,
}

/// Of one kind.
#[derive(Debug, Default)]
struct Watched {
    /// True once a list was whole.
    listed: bool,
    /// True while the server gives no right to it.
    forbidden: bool,
    /// A list that is not whole yet.
    staged: Option<BTreeMap<ObjectKey, Seen>>,
    /// The newest state that was heard of since the last list: the server tells them in order, so what is not newer
    /// is a repeat.
    newest: u64,
}

impl Watched {
    /// True if it was heard before. What is no number cannot be compared, and counts as new.
    fn is_repeat(&mut self, version: &Version) -> bool {
        let Some(number) = version.resource_version else { return false };
        if number <= self.newest {
            return true;
        }
        self.newest = number;
        false
    }
}

/// Keeps what the API server said.
#[derive(Debug)]
pub(super) struct Store {
    grace: Duration,
    /// Those that are watched.
    kinds: Vec<Kind>,
    cluster: Arc<Cluster>,
    watched: [Watched; Kind::ALL.len()],
    versions: Arc<Versions>,
    host_versions: Arc<HostVersions>,
    problems: BTreeMap<(Kind, ObjectKey), Vec<Problem>>,
    /// Namespaces that are being deleted.
    terminating: BTreeSet<String>,
    /// Policies that are in force and whose object is gone.
    leaving: BTreeMap<ObjectKey, Leaving>,
}

/// A policy whose object is gone.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    since: Instant,
    /// True while its namespace terminates and has pods.
    held: bool,
}

impl Store {
    /// An empty one, of these kinds. A policy whose object is gone stays for `grace`, in which the watch of namespaces can tell that
    /// its namespace terminates: the two watches keep no common order.
    pub(super) fn new(grace: Duration, kinds: Vec<Kind>) -> Self {
        Self {
            grace,
            kinds,
            cluster: Arc::default(),
            watched: Default::default(),
            versions: Arc::default(),
            host_versions: Arc::default(),
            problems: BTreeMap::new(),
            terminating: BTreeSet::new(),
            leaving: BTreeMap::new(),
        }
    }

    /// Takes a change in. Returns whether it changed anything that is told.
    pub(super) fn apply(&mut self, kind: Kind, change: Change, now: Instant) -> bool {
        let Some(watched) = self.watched.get_mut(kind.index()) else { return false };
        match change {
            Change::Begin => {
                watched.staged = Some(BTreeMap::new());
                false
            }
            Change::Listed(seen) => {
                if let Some(staged) = &mut watched.staged {
                    staged.insert(seen.key.clone(), *seen);
                }
                false
            }
            Change::Complete => {
                let Some(staged) = watched.staged.take() else { return false };
                (watched.listed, watched.forbidden) = (true, false);
                watched.newest =
                    staged.values().filter_map(|seen| seen.version.resource_version).max().unwrap_or(0);
                self.replace(kind, staged, now);
                true
            }
            Change::Put(seen) => {
                let fresh = !watched.is_repeat(&seen.version) && !self.is_status(&seen);
                if fresh {
                    let namespace = seen.key.namespace.clone();
                    self.put(kind, *seen);
                    // A pod can end as well as go.
                    self.hold_or_release(&namespace);
                }
                fresh
            }
            Change::Gone(key, version) => {
                let fresh = !watched.is_repeat(&version);
                if fresh {
                    self.gone(kind, &key, now);
                }
                fresh
            }
        }
    }

    /// How many nodes there are.
    pub(super) fn nodes(&self) -> usize {
        self.cluster.nodes.len()
    }

    /// The server does not know the kind: there are no objects of it. Returns whether that is news.
    pub(super) fn absent(&mut self, kind: Kind, now: Instant) -> bool {
        let listed = self.watched.get(kind.index()).is_some_and(|watched| watched.listed);
        let is_empty = match kind {
            Kind::HostPolicy => self.cluster.host_policies.is_empty(),
            // Every server knows these.
            Kind::Namespace
            | Kind::Node
            | Kind::Pod
            | Kind::NetworkPolicy
            | Kind::Service
            | Kind::EndpointSlice => return false,
        };
        if listed && is_empty {
            return false;
        }
        self.apply(kind, Change::Begin, now);
        self.apply(kind, Change::Complete, now)
    }

    /// The server gives no right to the kind. Returns whether that is news.
    pub(super) fn forbid(&mut self, kind: Kind) -> bool {
        let Some(watched) = self.watched.get_mut(kind.index()) else { return false };
        !std::mem::replace(&mut watched.forbidden, true)
    }

    /// True if nothing is told before it was listed.
    pub(super) fn needs(&self, kind: Kind) -> bool {
        match kind.decides(self.host_policies()) {
            Decides::Verdicts => true,
            Decides::ApiServers => {
                let watched = self.watched.get(kind.index());
                watched.is_none_or(|watched| watched.listed || !watched.forbidden)
            }
            Decides::Names => false,
        }
    }

    /// Whether they are watched.
    pub(super) fn host_policies(&self) -> HostPolicies {
        if self.kinds.contains(&Kind::HostPolicy) { HostPolicies::Watched } else { HostPolicies::Ignored }
    }

    /// True of a HostPolicy that is as it was but for its status: every agent of the cluster writes there.
    fn is_status(&self, seen: &Seen) -> bool {
        let Kept::HostPolicy(policy) = &seen.kept else { return false };
        let same =
            |known: &Version| known.uid == seen.version.uid && known.generation == seen.version.generation;
        self.host_versions.get(&seen.key.name).is_some_and(same)
            && self.cluster.host_policies.get(&seen.key.name) == Some(policy)
    }

    /// Lets go of policies whose time has come. Returns when the next one's comes, and whether any went.
    pub(super) fn settle(&mut self, now: Instant) -> (Option<Instant>, bool) {
        let namespaces: BTreeSet<String> = self.leaving.keys().map(|key| key.namespace.clone()).collect();
        for namespace in &namespaces {
            self.hold_or_release(namespace);
        }
        let waiting = self.leaving.iter().filter(|(_, leaving)| !leaving.held);
        let due: Vec<(ObjectKey, Instant)> =
            waiting.map(|(key, leaving)| (key.clone(), leaving.since + self.grace)).collect();
        let next = due.iter().map(|(_, due)| *due).filter(|due| *due > now).min();
        let gone: Vec<ObjectKey> =
            due.into_iter().filter(|(_, due)| *due <= now).map(|(key, _)| key).collect();
        for key in &gone {
            self.leaving.remove(key);
            self.problems.remove(&(Kind::NetworkPolicy, key.clone()));
            Arc::make_mut(&mut self.cluster).policies.remove(key);
        }
        (next, !gone.is_empty())
    }

    /// Kinds of which no list was whole yet.
    pub(super) fn missing(&self) -> Vec<Kind> {
        self.kinds
            .iter()
            .copied()
            .filter(|kind| self.watched.get(kind.index()).is_none_or(|watched| !watched.listed))
            .collect()
    }

    /// Everything, once each kind was listed that is needed.
    pub(super) fn said(&self) -> Option<Said> {
        if self.missing().into_iter().any(|kind| self.needs(kind)) {
            return None;
        }
        let mut problems: Vec<Problem> = self.problems.values().flatten().cloned().collect();
        let held = self.leaving.iter().filter(|(_, leaving)| leaving.held);
        problems.extend(held.map(|(key, _)| outlives(key)));
        problems.extend(self.waiting());
        Some(Said {
            cluster: Arc::clone(&self.cluster),
            problems,
            versions: Arc::clone(&self.versions),
            host_versions: Arc::clone(&self.host_versions),
        })
    }

    /// Policies of a namespace that is being deleted and has pods stay until it has none (S33), also if it is heard to
    /// be gone before its last pod is.
    fn hold_or_release(&mut self, namespace: &str) {
        if self.leaving.is_empty() {
            return;
        }
        let has_pods = self.has_pods(namespace);
        let terminates = self.terminating.contains(namespace);
        let from = ObjectKey::new(namespace, "");
        let leaving = self.leaving.range_mut(from..).take_while(|(key, _)| key.namespace == namespace);
        for (_, leaving) in leaving {
            leaving.held = has_pods && (leaving.held || terminates);
        }
    }

    fn has_pods(&self, namespace: &str) -> bool {
        let from = ObjectKey::new(namespace, "");
        let pods = self.cluster.pods.range(from..).take_while(|(key, _)| key.namespace == namespace);
        // Where the host firewall is on, policies may select hostNetwork pods (H6).
        let hosts_count = self.host_policies() == HostPolicies::Watched;
        pods.into_iter().any(|(_, pod)| pod.is_live() && (hosts_count || pod.has_own_network()))
    }

    fn replace(&mut self, kind: Kind, staged: BTreeMap<ObjectKey, Seen>, now: Instant) {
        let cluster = Arc::make_mut(&mut self.cluster);
        match kind {
            Kind::Namespace => {
                cluster.namespaces.clear();
                self.terminating.clear();
            }
            Kind::Node => cluster.nodes.clear(),
            Kind::Pod => cluster.pods.clear(),
            Kind::Service => cluster.services.clear(),
            Kind::EndpointSlice => cluster.slices.clear(),
            Kind::HostPolicy => {
                cluster.host_policies.clear();
                Arc::make_mut(&mut self.host_versions).clear();
            }
            Kind::NetworkPolicy => {
                let gone = cluster.policies.keys().filter(|key| !staged.contains_key(*key));
                for key in gone {
                    self.leaving.entry(key.clone()).or_insert(Leaving { since: now, held: false });
                }
                Arc::make_mut(&mut self.versions).clear();
            }
        }
        let leaving = &self.leaving;
        self.problems
            .retain(|(of, key), _| *of != kind || (kind == Kind::NetworkPolicy && leaving.contains_key(key)));
        for seen in staged.into_values() {
            self.put(kind, seen);
        }
    }

    fn put(&mut self, kind: Kind, seen: Seen) {
        let Seen { key, version, kept, problems } = seen;
        if problems.is_empty() {
            self.problems.remove(&(kind, key.clone()));
        } else {
            self.problems.insert((kind, key.clone()), problems);
        }
        let cluster = Arc::make_mut(&mut self.cluster);
        match kept {
            Kept::Namespace { namespace, terminating } => {
                if terminating {
                    self.terminating.insert(key.name.clone());
                } else {
                    self.terminating.remove(&key.name);
                }
                match namespace {
                    Some(namespace) => cluster.namespaces.insert(key.name, namespace),
                    None => cluster.namespaces.remove(&key.name),
                };
            }
            Kept::Node(node) => {
                cluster.nodes.insert(key.name, node);
            }
            Kept::Pod(pod) => {
                cluster.pods.insert(key, pod);
            }
            Kept::Service(service) => {
                cluster.services.insert(key, service);
            }
            Kept::Slice(slice) => {
                match slice {
                    Some(slice) => cluster.slices.insert(key, slice),
                    None => cluster.slices.remove(&key),
                };
            }
            Kept::Policy(policy) => {
                self.leaving.remove(&key);
                Arc::make_mut(&mut self.versions).insert(key.clone(), version);
                cluster.policies.insert(key, policy);
            }
            Kept::HostPolicy(policy) => {
                Arc::make_mut(&mut self.host_versions).insert(key.name.clone(), version);
                cluster.host_policies.insert(key.name, policy);
            }
        }
    }

    fn gone(&mut self, kind: Kind, key: &ObjectKey, now: Instant) {
        let cluster = Arc::make_mut(&mut self.cluster);
        match kind {
            Kind::Namespace => {
                cluster.namespaces.remove(&key.name);
                self.hold_or_release(&key.name);
                self.terminating.remove(&key.name);
            }
            Kind::Node => {
                cluster.nodes.remove(&key.name);
            }
            Kind::Service => {
                cluster.services.remove(key);
            }
            Kind::EndpointSlice => {
                cluster.slices.remove(key);
            }
            Kind::HostPolicy => {
                Arc::make_mut(&mut self.host_versions).remove(&key.name);
                cluster.host_policies.remove(&key.name);
            }
            Kind::Pod => {
                cluster.pods.remove(key);
                // At once: the next pods of this name may be of another namespace of this name.
                self.hold_or_release(&key.namespace);
            }
            Kind::NetworkPolicy => {
                Arc::make_mut(&mut self.versions).remove(key);
                if cluster.policies.contains_key(key) {
                    self.leaving.entry(key.clone()).or_insert(Leaving { since: now, held: false });
                }
                return;
            }
        }
        self.problems.remove(&(kind, key.clone()));
    }

    /// Pods that wait for their Namespace, isolated both ways (S34).
    fn waiting(&self) -> Vec<Problem> {
        let mut by_namespace: BTreeMap<&str, Vec<&ObjectKey>> = BTreeMap::new();
        for (key, pod) in &self.cluster.pods {
            if pod.is_live() && !self.cluster.namespaces.contains_key(&key.namespace) {
                by_namespace.entry(&key.namespace).or_default().push(key);
            }
        }
        by_namespace.into_iter().map(|(namespace, pods)| waits(namespace, &pods)).collect()
    }
}

fn waits(namespace: &str, pods: &[&ObjectKey]) -> Problem {
    let mut names: Vec<String> = pods.iter().take(NAMED_PODS).map(ToString::to_string).collect();
    let more = pods.len().saturating_sub(NAMED_PODS);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    Problem {
        severity: Severity::Note,
        object: format!("Namespace {namespace}"),
        field: String::new(),
        message: format!(
            "the API server has not told of it yet: its pods are isolated both ways until it does ({})",
            names.join(", ")
        ),
        location: None,
    }
}

fn outlives(key: &ObjectKey) -> Problem {
    Problem {
        severity: Severity::Note,
        object: policy_object(key),
        field: String::new(),
        message: "is deleted with its namespace and stays in force until the namespace's pods are gone"
            .to_owned(),
        location: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "store_tests.rs"]
mod tests;

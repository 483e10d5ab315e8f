//! From documents to objects with an identity: lists opened, kinds told apart, duplicates settled.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use super::ParsedFile;
use crate::convert::{Object, Path, Report, field, printable, what_is};
use crate::model::{ObjectKey, Problem, Severity};

/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// Groups of other projects that have a kind NetworkPolicy of their own. Any other apiVersion of that kind is
/// taken for ours with a mistake in it, and closes.
const FOREIGN_POLICY_GROUPS: [&str; 3] = ["projectcalico.org", "crd.projectcalico.org", "crd.antrea.io"];

/// The group of EndpointSlice.
const SLICE_GROUP: &str = "discovery.k8s.io";

/// What the version that is understood of NetworkPolicy is called.
const NETWORK_POLICY_VERSION: &str = "networking.k8s.io/v1";

/// The group of our own kinds.
const OWN_GROUP: &str = "portcullis.dev";

/// What the version that is understood of HostPolicy is called.
const HOST_POLICY_VERSION: &str = "portcullis.dev/v1alpha1";

/// The kinds of the network-policy-api.
const CLUSTER_POLICIES: [&str; 3] =
    ["ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"];

/// The most letters that make one kind another's misspelling.
const NEAR_EDITS: usize = 2;

/// The shortest kind that is looked for by its letters.
const NEAR_LENGTH: usize = 9;

/// The kinds that this module reads. Cluster-scoped ones have an empty namespace in their key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    NetworkPolicy,
    HostPolicy,
    Workload(Workload),
}

/// The kinds that stand for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Workload {
    Deployment,
    StatefulSet,
    DaemonSet,
    ReplicaSet,
    Job,
    CronJob,
}

impl Workload {
    pub(super) const ALL: [Self; 6] =
        [Self::Deployment, Self::StatefulSet, Self::DaemonSet, Self::ReplicaSet, Self::Job, Self::CronJob];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::ReplicaSet => "ReplicaSet",
            Self::Job => "Job",
            Self::CronJob => "CronJob",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn groups(self) -> &'static [&'static str] {
        match self {
            Self::Deployment | Self::StatefulSet | Self::DaemonSet | Self::ReplicaSet => {
                &["apps", "extensions"]
            }
            Self::Job | Self::CronJob => &["batch"],
        }
    }
}

impl Kind {
    const ALL: [Self; 13] = {
        let [a, b, c, d, e, f] = Workload::ALL;
        [
            Self::Namespace,
            Self::Node,
            Self::Pod,
            Self::Service,
            Self::EndpointSlice,
            Self::NetworkPolicy,
            Self::HostPolicy,
            Self::Workload(a),
            Self::Workload(b),
            Self::Workload(c),
            Self::Workload(d),
            Self::Workload(e),
            Self::Workload(f),
        ]
    };

    /// The kind that a manifest means, `None` if it is none of ours. An absent apiVersion is taken for the
    /// right one.
    fn of(kind: &str, group: Option<&str>) -> Option<Self> {
        let core = group.is_none_or(str::is_empty);
        match kind {
            "Namespace" if core => Some(Self::Namespace),
            "Node" if core => Some(Self::Node),
            "Pod" if core => Some(Self::Pod),
            "Service" if core => Some(Self::Service),
            "EndpointSlice" if group.is_none_or(|group| group == SLICE_GROUP) => Some(Self::EndpointSlice),
            "NetworkPolicy" if group.is_none_or(|group| !FOREIGN_POLICY_GROUPS.contains(&group)) => {
                Some(Self::NetworkPolicy)
            }
            // Nobody else has this kind: any other apiVersion is a mistake in ours, and closes.
            "HostPolicy" => Some(Self::HostPolicy),
            other => Workload::from_name(other)
                .filter(|workload| group.is_none_or(|group| workload.groups().contains(&group)))
                .map(Self::Workload),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::HostPolicy => "HostPolicy",
            Self::Workload(workload) => workload.name(),
        }
    }

    fn is_namespaced(self) -> bool {
        match self {
            Self::Namespace | Self::Node | Self::HostPolicy => false,
            Self::Pod | Self::Service | Self::EndpointSlice | Self::NetworkPolicy | Self::Workload(_) => true,
        }
    }

    /// Without a name of its own it still selects, or is, something: it gets a made-up one. The others mean
    /// nothing without their name.
    fn counts_without_name(self) -> bool {
        match self {
            Self::Pod | Self::NetworkPolicy | Self::HostPolicy | Self::Workload(_) => true,
            Self::Namespace | Self::Node | Self::Service | Self::EndpointSlice => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An object and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Found<'a> {
    pub(super) value: &'a Value,
    pub(super) location: String,
}

impl Found<'_> {
    /// A report on this object.
    pub(super) fn report(&self, kind: Kind, key: &ObjectKey) -> Report {
        Report::new(&object_name(kind, key), Some(&self.location))
    }

    /// Its name and place, as problems show them.
    pub(super) fn place(&self, kind: Kind, key: &ObjectKey) -> (String, String) {
        (printable(&object_name(kind, key)), printable(&self.location))
    }
}

/// The objects of a directory, each once.
pub(super) type Objects<'a> = BTreeMap<(Kind, ObjectKey), Found<'a>>;

/// What a directory holds.
#[derive(Default)]
pub(super) struct Collected<'a> {
    pub(super) objects: Objects<'a>,
    pub(super) cluster_policies: Vec<String>,
    /// Files with an object that is left out though it may be a policy or a pod.
    pub(super) incomplete: BTreeSet<String>,
}

/// Collects the objects of files in their order; of two of the same kind, namespace and name the later wins.
pub(super) fn collect<'a>(files: &'a [ParsedFile], problems: &mut Vec<Problem>) -> Collected<'a> {
    let mut collector = Collector {
        collected: Collected::default(),
        unnamed: BTreeMap::new(),
        noted: BTreeSet::new(),
        problems,
    };
    for file in files {
        collector.noted.clear();
        for document in &file.objects {
            let at = At { file: &file.path, line: document.line };
            collector.document(&document.value, Inherited::default(), at);
        }
    }
    collector.collected
}

#[derive(Clone, Copy)]
struct At<'a> {
    file: &'a str,
    line: u64,
}

impl At<'_> {
    fn location(self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    fn report(self, object: &str) -> Report {
        Report::new(object, Some(&self.location()))
    }
}

/// What an item of a typed list need not say itself.
#[derive(Clone, Copy, Default)]
struct Inherited<'a> {
    kind: Option<&'a str>,
    api_version: Option<&'a str>,
}

struct Collector<'a, 'p> {
    collected: Collected<'a>,
    /// How many objects of a kind had no name.
    unnamed: BTreeMap<Kind, usize>,
    /// Kinds that this file's notes have named.
    noted: BTreeSet<String>,
    problems: &'p mut Vec<Problem>,
}

impl<'a> Collector<'a, '_> {
    fn document(&mut self, value: &'a Value, inherited: Inherited<'a>, at: At<'a>) {
        let Value::Object(fields) = value else {
            let message = format!(
                "holds {} where an object of Kubernetes must stand; it is skipped, write a mapping with \
                 apiVersion, kind and metadata",
                what_is(value)
            );
            return self.report(at, at.file, Path::ROOT, Severity::Error, &message);
        };
        let Some(kind) = field(fields, "kind").map_or(inherited.kind, Value::as_str) else {
            let message = "names no kind; the object is skipped, write its kind";
            return self.report(at, at.file, Path::ROOT.field("kind"), Severity::Error, message);
        };
        // An apiVersion of a wrong type is no group of anybody: what is ours takes it for its own.
        let api_version = field(fields, "apiVersion").map_or(inherited.api_version, Value::as_str);
        match (kind.strip_suffix("List"), fields.get("items")) {
            (Some(item_kind), Some(Value::Array(items))) => {
                let inherited = if item_kind.is_empty() {
                    Inherited::default()
                } else {
                    Inherited { kind: Some(item_kind), api_version }
                };
                for item in items {
                    self.document(item, inherited, at);
                }
            }
            (Some(""), None | Some(Value::Null)) => {}
            (Some(_), Some(other)) if !other.is_null() => {
                let message =
                    format!("is {} and must be a list; nothing of it is read, write a list", what_is(other));
                self.report(at, kind, Path::ROOT.field("items"), Severity::Error, &message);
            }
            (_, _) => self.object(value, fields, kind, api_version, at),
        }
    }

    fn object(
        &mut self,
        value: &'a Value,
        fields: &'a Object,
        kind: &'a str,
        api_version: Option<&str>,
        at: At<'a>,
    ) {
        let group = api_version.map(|version| version.split_once('/').map_or("", |(group, _)| group));
        if is_cluster_policy(kind, group) {
            let name = field(fields, "metadata").and_then(|m| m.get("name")).and_then(Value::as_str);
            let name = name.unwrap_or("(no name)");
            self.collected.cluster_policies.push(printable(&format!("{name} ({})", at.location())));
            return;
        }
        let Some(kind) = Kind::of(kind, group) else {
            return self.unknown_kind(kind, api_version, group, at);
        };
        let Some(key) = self.key(kind, fields, at) else { return };
        let found = Found { value, location: at.location() };
        let mut report = found.report(kind, &key);
        match (kind, api_version) {
            (Kind::NetworkPolicy, Some(NETWORK_POLICY_VERSION))
            | (Kind::HostPolicy, Some(HOST_POLICY_VERSION)) => {}
            (Kind::NetworkPolicy | Kind::HostPolicy, _) => {
                let version =
                    if kind == Kind::HostPolicy { HOST_POLICY_VERSION } else { NETWORK_POLICY_VERSION };
                let message =
                    format!("is not understood and the policy is read as {version}; write that version");
                report.error(Path::ROOT.field("apiVersion"), message);
            }
            (_, None) => {
                report.warning(Path::ROOT.field("apiVersion"), "is missing; kubectl refuses this object");
            }
            (_, Some(_)) => {}
        }
        if let Some(earlier) = self.collected.objects.get(&(kind, key.clone())) {
            report.warning(
                Path::ROOT,
                format_args!("stands in {} too; this later one counts, take one out", earlier.location),
            );
        }
        self.problems.append(&mut report.into_problems());
        self.collected.objects.insert((kind, key), found);
    }

    /// The object's key; `None` if it counts for nothing without a name, or has no readable namespace.
    fn key(&mut self, kind: Kind, fields: &Object, at: At<'_>) -> Option<ObjectKey> {
        let no_metadata = Object::new();
        let metadata_path = Path::ROOT.field("metadata");
        let metadata = match field(fields, "metadata") {
            None => &no_metadata,
            Some(Value::Object(metadata)) => metadata,
            Some(other) => {
                self.left_out(other, "a mapping", kind, metadata_path, at);
                return None;
            }
        };
        let namespace = if kind.is_namespaced() {
            // In `default` it would close pods that it does not mean, and open those that it does.
            if let Some(other @ (Value::Array(_) | Value::Object(_))) = field(metadata, "namespace") {
                self.left_out(other, "a string", kind, metadata_path.field("namespace"), at);
                return None;
            }
            self.identifier(metadata, "namespace", kind, at).unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())
        } else {
            String::new()
        };
        if let Some(name) = self.identifier(metadata, "name", kind, at) {
            return Some(ObjectKey { namespace, name });
        }
        if !kind.counts_without_name() {
            let message = "is missing; the object is skipped, give it a name";
            self.report(at, kind.name(), metadata_path.field("name"), Severity::Error, message);
            return None;
        }
        let count = self.unnamed.entry(kind).or_default();
        let prefix = metadata.get("generateName").and_then(Value::as_str).unwrap_or("unnamed-");
        let name = format!("{prefix}{count}");
        *count += 1;
        let message = format!("is missing; the object counts as {name}, give it a name");
        self.report(at, kind.name(), metadata_path.field("name"), Severity::Error, &message);
        Some(ObjectKey { namespace, name })
    }

    /// Reports an object of which nobody knows which one it is. It is treated like an unreadable file: what its
    /// file said last counts, where that is known.
    fn left_out(&mut self, value: &Value, wanted: &str, kind: Kind, path: Path<'_>, at: At<'_>) {
        let message = format!(
            "is {} and must be {wanted}: nobody knows which object this is, so it is left out, and an agent keeps \
             what the whole file said last; write {wanted}",
            what_is(value)
        );
        self.collected.incomplete.insert(at.file.to_owned());
        self.report(at, kind.name(), path, Severity::Error, &message);
    }

    /// A name or namespace; one that was written as a number or boolean counts as its text.
    fn identifier(&mut self, metadata: &Object, name: &str, kind: Kind, at: At<'_>) -> Option<String> {
        let value = field(metadata, name)?;
        let metadata_path = Path::ROOT.field("metadata");
        let path = metadata_path.field(name);
        match value {
            Value::String(text) => (!text.is_empty()).then(|| text.clone()),
            Value::Bool(_) | Value::Number(_) => {
                let text = value.to_string();
                let message = format!("is {} and counts as its text; quote it", what_is(value));
                self.report(at, kind.name(), path, Severity::Warning, &message);
                Some(text)
            }
            Value::Null | Value::Array(_) | Value::Object(_) => {
                let message = format!("is {} and counts as missing; write a string", what_is(value));
                self.report(at, kind.name(), path, Severity::Error, &message);
                None
            }
        }
    }

    fn unknown_kind(&mut self, kind: &str, api_version: Option<&str>, group: Option<&str>, at: At<'_>) {
        if (kind, group) == ("Endpoints", Some("")) {
            return;
        }
        let full = api_version.map_or_else(|| kind.to_owned(), |version| format!("{kind} of {version}"));
        if let Some(meant) = near_miss(kind, group) {
            return self.misspelt(&full, meant, at);
        }
        if !self.noted.insert(full.clone()) {
            return;
        }
        if group == Some(OWN_GROUP) {
            let message = "is not supported by this version and has no effect; take it out until it is";
            self.report(at, &full, Path::ROOT, Severity::Warning, message);
        } else {
            let message = "is skipped, for it says nothing about reachability that portcullis reads";
            self.report(at, &full, Path::ROOT, Severity::Note, message);
        }
    }

    /// A policy that nobody reads opens what it should isolate, so an agent keeps what its file said last.
    fn misspelt(&mut self, full: &str, meant: &str, at: At<'_>) {
        let what_follows = if is_policy(meant) {
            self.collected.incomplete.insert(at.file.to_owned());
            "the policy is not read, and an agent keeps what the whole file said last"
        } else {
            "the object is skipped"
        };
        let message = format!("is no kind of Kubernetes: {what_follows}; write {meant} if that is meant");
        self.report(at, full, Path::ROOT.field("kind"), Severity::Error, &message);
    }

    fn report(&mut self, at: At<'_>, object: &str, path: Path<'_>, severity: Severity, message: &str) {
        let mut report = at.report(object);
        report.push(severity, path, message);
        self.problems.append(&mut report.into_problems());
    }
}

/// The kind of ours that somebody may have meant who wrote another, in this group.
fn near_miss(kind: &str, group: Option<&str>) -> Option<&'static str> {
    let ours = Kind::ALL.into_iter().map(Kind::name).filter(|name| Kind::of(name, group).is_some());
    let cluster = CLUSTER_POLICIES.into_iter().filter(|name| is_cluster_policy(name, group));
    ours.chain(cluster).find(|name| is_near(kind, name))
}

/// Whether one word is the other misspelt: in another case, in plural, or, where it is long enough that real
/// kinds do not lie that close, with up to [`NEAR_EDITS`] letters wrong.
fn is_near(written: &str, name: &str) -> bool {
    let (written, name) = (written.to_ascii_lowercase(), name.to_ascii_lowercase());
    let plural = name.strip_suffix('y').map_or_else(|| format!("{name}s"), |stem| format!("{stem}ies"));
    if written == name || written == plural {
        return true;
    }
    name.len() >= NEAR_LENGTH && written.len() <= name.len() + NEAR_EDITS && {
        edits(written.as_bytes(), name.as_bytes()) <= NEAR_EDITS
    }
}

/// The Levenshtein distance of two short words.
fn edits(one: &[u8], other: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, a) in (1..).zip(one) {
        let mut diagonal = row.first().copied().unwrap_or_default();
        let mut left = above;
        if let Some(first) = row.first_mut() {
            *first = above;
        }
        for (place, b) in row.iter_mut().skip(1).zip(other) {
            let replaced = diagonal + usize::from(a != b);
            diagonal = *place;
            *place = replaced.min(diagonal + 1).min(left + 1);
            left = *place;
        }
    }
    row.last().copied().unwrap_or_default()
}

fn is_policy(kind: &str) -> bool {
    [Kind::NetworkPolicy, Kind::HostPolicy].into_iter().any(|of| of.name() == kind)
        || CLUSTER_POLICIES.contains(&kind)
}

fn is_cluster_policy(kind: &str, group: Option<&str>) -> bool {
    CLUSTER_POLICIES.contains(&kind) && group.is_none_or(|group| group == "policy.networking.k8s.io")
}

fn object_name(kind: Kind, key: &ObjectKey) -> String {
    if kind.is_namespaced() { format!("{kind} {key}") } else { format!("{kind} {}", key.name) }
}

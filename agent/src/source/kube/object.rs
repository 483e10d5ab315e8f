//! Objects as the API server shows them, and what is kept of them. Owns which kinds are watched; what an object
//! means is [`portcullis_policy::convert`]'s, as for files.

use std::borrow::Cow;
use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use portcullis_policy::convert::{self, MANAGED_BY, Report, SLICE_CONTROLLER};
use portcullis_policy::findings::policy_object;
use portcullis_policy::model::{
    EndpointSlice, HostPolicy, Namespace, NetworkPolicy, Node, ObjectKey, Pod, Problem, Service,
    SourceBinding,
};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::Value;

use super::HostPolicies;

/// What depends on a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decides {
    /// Verdicts: nothing is told before it was listed.
    Verdicts,
    /// Which API servers the host firewall keeps reachable. The same, but an agent goes on without the right to it: the role
    /// of an older installation gives none, and other kinds tell of some of them.
    ApiServers,
    /// What `explain` names: nothing waits for it.
    Names,
}

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Labels, the annotations of ours, and whether it is terminating.
    Namespace,
    /// Labels and addresses.
    Node,
    /// Of all nodes: each is a peer.
    Pod,
    /// Of `networking.k8s.io/v1`.
    NetworkPolicy,
    /// Addresses, ports, and the labels of their pods.
    Service,
    /// Those that the controller which follows selectors did not make: pods and Services say what stands in its own.
    EndpointSlice,
    /// Of `portcullis.dev/v1alpha1`, where the host firewall is on.
    HostPolicy,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::NetworkPolicy,
        Self::Service,
        Self::EndpointSlice,
        Self::HostPolicy,
    ];

    /// As manifests spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::HostPolicy => "HostPolicy",
        }
    }

    /// As paths spell it.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::NetworkPolicy => "networkpolicies",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::HostPolicy => "hostpolicies",
        }
    }

    /// Position in [`Kind::ALL`].
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Namespace => 0,
            Self::Node => 1,
            Self::Pod => 2,
            Self::NetworkPolicy => 3,
            Self::Service => 4,
            Self::EndpointSlice => 5,
            Self::HostPolicy => 6,
        }
    }

    const fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service => "",
            Self::NetworkPolicy => "networking.k8s.io",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::HostPolicy => "portcullis.dev",
        }
    }

    const fn version(self) -> &'static str {
        match self {
            Self::Namespace
            | Self::Node
            | Self::Pod
            | Self::NetworkPolicy
            | Self::Service
            | Self::EndpointSlice => "v1",
            Self::HostPolicy => "v1alpha1",
        }
    }

    /// `GROUP/VERSION`, as manifests spell it.
    #[must_use]
    pub fn api_version(self) -> String {
        let group = self.group();
        if group.is_empty() { self.version().to_owned() } else { format!("{group}/{}", self.version()) }
    }

    /// What depends on it, for an agent that watches HostPolicies or none.
    #[must_use]
    pub const fn decides(self, host_policies: HostPolicies) -> Decides {
        match (self, host_policies) {
            (
                Self::Namespace
                | Self::Node
                | Self::Pod
                | Self::NetworkPolicy
                | Self::Service
                | Self::HostPolicy,
                _,
            ) => Decides::Verdicts,
            (Self::EndpointSlice, HostPolicies::Watched) => Decides::ApiServers,
            (Self::EndpointSlice, HostPolicies::Ignored) => Decides::Names,
        }
    }

    /// True of a kind of ours: a server that was never told of it has none of its objects.
    pub(super) const fn is_custom(self) -> bool {
        match self {
            Self::Namespace
            | Self::Node
            | Self::Pod
            | Self::NetworkPolicy
            | Self::Service
            | Self::EndpointSlice => false,
            Self::HostPolicy => true,
        }
    }

    /// Which objects of the kind are watched; `None`: all.
    pub(super) fn label_selector(self) -> Option<String> {
        match self {
            Self::Namespace
            | Self::Node
            | Self::Pod
            | Self::NetworkPolicy
            | Self::Service
            | Self::HostPolicy => None,
            Self::EndpointSlice => Some(format!("{MANAGED_BY}!={SLICE_CONTROLLER}")),
        }
    }

    /// Where the API server has it.
    pub(super) fn resource(self) -> ApiResource {
        ApiResource {
            group: self.group().to_owned(),
            version: self.version().to_owned(),
            api_version: self.api_version(),
            kind: self.name().to_owned(),
            plural: self.plural().to_owned(),
        }
    }

    /// False of a kind whose objects are the whole cluster's.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        match self {
            Self::Namespace | Self::Node | Self::HostPolicy => false,
            Self::Pod | Self::NetworkPolicy | Self::Service | Self::EndpointSlice => true,
        }
    }
}

/// An object whose fields nobody has judged yet. Whatever has a name can be read: an object that cannot would be
/// lost, and a lost policy opens pods.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    metadata: ObjectMeta,
    value: Value,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = |name| value.get("metadata").and_then(|m| m.get(name)).and_then(Value::as_str);
        let metadata = ObjectMeta {
            name: text("name").map(str::to_owned),
            namespace: text("namespace").map(str::to_owned),
            uid: text("uid").map(str::to_owned),
            resource_version: text("resourceVersion").map(str::to_owned),
            ..ObjectMeta::default()
        };
        if metadata.name.is_none() {
            return Err(D::Error::custom("an object without metadata.name"));
        }
        Ok(Self { metadata, value })
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Which state of an object it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`: grows with every change of the spec.
    pub generation: u64,
    /// `metadata.resourceVersion` where it is a number: grows with every change.
    pub resource_version: Option<u64>,
}

impl Version {
    /// Of an object's JSON.
    pub(super) fn of(value: &Value) -> Self {
        let field = |name| value.get("metadata").and_then(|metadata| metadata.get(name));
        Self {
            uid: field("uid").and_then(Value::as_str).unwrap_or_default().to_owned(),
            generation: field("generation").and_then(Value::as_u64).unwrap_or(0),
            resource_version: field("resourceVersion").and_then(Value::as_str).and_then(|v| v.parse().ok()),
        }
    }

    /// True if this state is the other, or came after it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self.resource_version, other.resource_version) {
            (Some(own), Some(other)) => own >= other,
            (None, _) | (_, None) => self.uid == other.uid && self.generation >= other.generation,
        }
    }
}

/// What is kept of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// `None`: its labels cannot be read, so nobody knows what selects it (S34).
    Namespace {
        namespace: Option<Namespace>,
        terminating: bool,
    },
    Node(Node),
    Pod(Pod),
    Policy(NetworkPolicy),
    Service(Service),
    /// `None`: no Service's, or without addresses.
    Slice(Option<EndpointSlice>),
    HostPolicy(HostPolicy),
}

/// An object that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) key: ObjectKey,
    pub(super) version: Version,
    pub(super) kept: Kept,
    pub(super) problems: Vec<Problem>,
}

impl Raw {
    /// Which object it is.
    pub(super) fn key(&self, kind: Kind) -> ObjectKey {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let namespace = if kind.is_namespaced() { text(&self.metadata.namespace) } else { String::new() };
        ObjectKey { namespace, name: text(&self.metadata.name) }
    }

    /// The object as it was shown.
    pub(super) const fn value(&self) -> &Value {
        &self.value
    }

    /// Which state of it.
    pub(super) fn version(&self) -> Version {
        Version::of(&self.value)
    }

    /// Reads it. The pods of unbound namespaces may send from any address, unless the Namespace says otherwise.
    pub(super) fn read(&self, kind: Kind, unbound: &BTreeSet<String>) -> Seen {
        let (key, value) = (self.key(kind), &self.value);
        let name = match kind {
            Kind::NetworkPolicy => policy_object(&key),
            Kind::Pod | Kind::Service | Kind::EndpointSlice => format!("{} {key}", kind.name()),
            Kind::Namespace | Kind::Node | Kind::HostPolicy => format!("{} {}", kind.name(), key.name),
        };
        let mut report = Report::new(&name, None);
        let kept = match kind {
            Kind::Namespace => {
                let mut namespace = convert::namespace(value, &key.name, &mut report);
                if unbound.contains(&key.name)
                    && let Some(namespace) = &mut namespace
                {
                    namespace.source_binding.get_or_insert(SourceBinding::Off);
                }
                let deleted = value.get("metadata").and_then(|metadata| metadata.get("deletionTimestamp"));
                Kept::Namespace { namespace, terminating: deleted.is_some_and(|time| !time.is_null()) }
            }
            Kind::Node => Kept::Node(convert::node(value, &mut report)),
            Kind::Pod => Kept::Pod(convert::pod(value, &key, &mut report)),
            Kind::NetworkPolicy => Kept::Policy(convert::network_policy(value, &key.namespace, &mut report)),
            Kind::Service => Kept::Service(convert::service(value, &mut report)),
            Kind::EndpointSlice => Kept::Slice(convert::endpoint_slice(value, &key.namespace, &mut report)),
            Kind::HostPolicy => Kept::HostPolicy(convert::host_policy(value, &mut report)),
        };
        Seen { key, version: self.version(), kept, problems: report.into_problems() }
    }
}

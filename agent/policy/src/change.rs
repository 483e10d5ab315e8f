//! Edits of objects that turn a verdict: what they are, how they are told, and what a cluster is after them.
//! Which of them to propose is [`crate::turn`]'s.

use portcullis_common::event::{Action, Direction};
use serde_json::{Value, json};

use crate::convert::METADATA_NAME;
use crate::model::{
    Cluster, DirectionSpec, HostPolicy, IsolationCause, Labels, Namespace, NetworkPolicy, ObjectKey,
    PolicyRef, Rule,
};
use crate::written;

/// What would turn a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What the verdict becomes.
    pub becomes: Action,
    /// What to do, in this order. None: nothing can be done, and `text` says why.
    pub edits: Vec<Edit>,
    /// What to know beside the edits.
    pub text: Option<String>,
}

/// One edit of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Declare a namespace.
    CreateNamespace(String),
    /// Write a new NetworkPolicy.
    CreatePolicy(ObjectKey, NetworkPolicy),
    /// Write a new HostPolicy.
    CreateHostPolicy(String, HostPolicy),
    /// Write the spec of a policy again that could not be read.
    ReplaceSpec {
        /// What it says then, and which it is.
        spec: Spec,
        /// What was wrong with it, where that is known: field and message.
        mend: Vec<(String, String)>,
    },
    /// Add a rule to a direction that the policy isolates.
    AppendRule {
        /// Which policy.
        policy: PolicyRef,
        /// Which list.
        direction: Direction,
        /// The rule.
        rule: Rule,
    },
    /// Take a rule out.
    RemoveRule {
        /// Which policy.
        policy: PolicyRef,
        /// Which list.
        direction: Direction,
        /// Its index there, when the edits before this one are done.
        rule: u32,
    },
    /// Write out policyTypes that were defaulted to both: without egress rules the default would leave egress
    /// open (S6). The model holds what was meant and does not change.
    WriteTypes(PolicyRef),
    /// Give a pod a label that it does not have.
    AddLabel {
        /// Which pod.
        pod: ObjectKey,
        /// The label's key.
        key: String,
        /// Its value.
        value: String,
    },
}

/// A policy of either kind, with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// A NetworkPolicy.
    Network(ObjectKey, NetworkPolicy),
    /// A HostPolicy.
    Host(String, HostPolicy),
}

impl Spec {
    /// Of a policy of the cluster.
    #[must_use]
    pub fn of(cluster: &Cluster, policy: &PolicyRef) -> Option<Self> {
        Some(match policy {
            PolicyRef::Host(name) => Self::Host(name.clone(), cluster.host_policies.get(name)?.clone()),
            PolicyRef::Network(key) => Self::Network(key.clone(), cluster.policies.get(key)?.clone()),
        })
    }

    /// Which it is.
    #[must_use]
    pub fn policy(&self) -> PolicyRef {
        match self {
            Self::Network(key, _) => PolicyRef::Network(key.clone()),
            Self::Host(name, _) => PolicyRef::Host(name.clone()),
        }
    }

    /// Both directions, ingress first.
    pub fn directions_mut(&mut self) -> [&mut DirectionSpec; 2] {
        match self {
            Self::Network(_, policy) => [&mut policy.ingress, &mut policy.egress],
            Self::Host(_, policy) => [&mut policy.ingress, &mut policy.egress],
        }
    }

    fn written(&self) -> Value {
        match self {
            Self::Network(key, policy) => written::spec(policy, &key.namespace),
            Self::Host(_, policy) => written::host_spec(policy),
        }
    }
}

impl Edit {
    /// The object, `KIND NAMESPACE/NAME`.
    #[must_use]
    pub fn object(&self) -> String {
        match self {
            Self::CreateNamespace(name) => format!("Namespace {name}"),
            Self::CreatePolicy(policy, _) => format!("NetworkPolicy {policy}"),
            Self::CreateHostPolicy(name, _) => format!("HostPolicy {name}"),
            Self::ReplaceSpec { spec, .. } => spec.policy().object(),
            Self::AppendRule { policy, .. } | Self::RemoveRule { policy, .. } | Self::WriteTypes(policy) => {
                policy.object()
            }
            Self::AddLabel { pod, .. } => format!("Pod {pod}"),
        }
    }

    /// The field's path; empty: the object itself.
    #[must_use]
    pub fn field(&self) -> String {
        match self {
            Self::CreateNamespace(_) | Self::CreatePolicy(..) | Self::CreateHostPolicy(..) => String::new(),
            Self::ReplaceSpec { .. } => "spec".to_owned(),
            Self::AppendRule { direction, .. } => format!("spec.{}", direction.name()),
            Self::RemoveRule { direction, rule, .. } => format!("spec.{}[{rule}]", direction.name()),
            Self::WriteTypes(_) => "spec.policyTypes".to_owned(),
            Self::AddLabel { .. } => "metadata.labels".to_owned(),
        }
    }

    /// What to do there: `create` the object, `replace` the field, `append` to its list, `remove` it, `merge`
    /// into its mapping.
    #[must_use]
    pub const fn op(&self) -> &'static str {
        match self {
            Self::CreateNamespace(_) | Self::CreatePolicy(..) | Self::CreateHostPolicy(..) => "create",
            Self::ReplaceSpec { .. } | Self::WriteTypes(_) => "replace",
            Self::AppendRule { .. } => "append",
            Self::RemoveRule { .. } => "remove",
            Self::AddLabel { .. } => "merge",
        }
    }

    /// What is written, as in a manifest; null where something goes.
    #[must_use]
    pub fn value(&self) -> Value {
        match self {
            Self::CreateNamespace(name) => written::namespace(name),
            Self::CreatePolicy(key, policy) => written::policy(key, policy),
            Self::CreateHostPolicy(name, policy) => written::host_policy(name, policy),
            Self::ReplaceSpec { spec, .. } => spec.written(),
            Self::AppendRule { policy, direction, rule } => {
                written::rule(rule, *direction, policy.namespace().unwrap_or_default()).unwrap_or(Value::Null)
            }
            Self::RemoveRule { .. } => Value::Null,
            Self::WriteTypes(_) => json!(["Ingress", "Egress"]),
            Self::AddLabel { key, value, .. } => json!({key: value}),
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let (object, field) = (self.object(), self.field());
        match self {
            Self::CreateNamespace(_) => format!("declare {object}: pods of an undeclared one are isolated"),
            Self::CreateHostPolicy(_, policy) => {
                let of = written::host_spec(policy);
                let of = of.get("subject").map(Value::to_string).unwrap_or_default();
                format!(
                    "create {object}, which isolates subject {of} for {} and allows nothing but what always passes",
                    isolated(&policy.ingress).name()
                )
            }
            Self::CreatePolicy(_, policy) => {
                let direction = isolated(&policy.ingress);
                let of = written::spec(policy, "");
                let of = of.get("podSelector").map(Value::to_string).unwrap_or_default();
                format!(
                    "create {object}, which isolates podSelector {of} for {} and allows nothing",
                    direction.name()
                )
            }
            Self::ReplaceSpec { mend, .. } => {
                let wrong: Vec<String> =
                    mend.iter().map(|(field, message)| format!("{field} {message}")).collect();
                let wrong = if wrong.is_empty() { String::new() } else { format!(" ({})", wrong.join("; ")) };
                format!(
                    "mend {object}, which could not be read{wrong}; with spec {} it allows this",
                    self.value()
                )
            }
            Self::AppendRule { .. } => format!("add to {field} of {object}: {}", self.value()),
            Self::RemoveRule { .. } => format!("take {field} out of {object}, or narrow it"),
            Self::WriteTypes(_) => {
                format!(
                    "write {field} of {object}: {}, so that egress without rules stays isolated",
                    self.value()
                )
            }
            Self::AddLabel { key, value, .. } => {
                format!(
                    "give {object} the label {key}={value}, in the template of its workload if it has one"
                )
            }
        }
    }
}

/// The one direction that a new policy isolates.
fn isolated(ingress: &DirectionSpec) -> Direction {
    match ingress {
        DirectionSpec::Isolated { .. } => Direction::Ingress,
        DirectionSpec::Ignored => Direction::Egress,
    }
}

/// The cluster after the edits. An edit of an object that is not there changes nothing.
#[must_use]
pub fn apply(cluster: &Cluster, change: &Change) -> Cluster {
    let mut after = cluster.clone();
    apply_edits(&mut after, &change.edits);
    after
}

/// Does the edits one after the other.
pub fn apply_edits(cluster: &mut Cluster, edits: &[Edit]) {
    for edit in edits {
        match edit {
            Edit::CreateNamespace(name) => {
                let labels = Labels::from([(METADATA_NAME.to_owned(), name.clone())]);
                cluster.namespaces.entry(name.clone()).or_insert(Namespace {
                    labels,
                    mode: None,
                    source_binding: None,
                });
            }
            Edit::CreatePolicy(key, policy) => {
                cluster.policies.insert(key.clone(), policy.clone());
            }
            Edit::CreateHostPolicy(name, policy) => {
                cluster.host_policies.insert(name.clone(), policy.clone());
            }
            Edit::ReplaceSpec { spec: Spec::Network(key, spec), .. } => {
                if let Some(held) = cluster.policies.get_mut(key) {
                    held.clone_from(spec);
                }
            }
            Edit::ReplaceSpec { spec: Spec::Host(name, spec), .. } => {
                if let Some(held) = cluster.host_policies.get_mut(name) {
                    held.clone_from(spec);
                }
            }
            Edit::AppendRule { policy, direction, rule } => {
                if let Some(rules) = rules_of(cluster, policy, *direction) {
                    rules.push(rule.clone());
                }
            }
            Edit::RemoveRule { policy, direction, rule } => {
                let index = usize::try_from(*rule).unwrap_or(usize::MAX);
                if let Some(rules) = rules_of(cluster, policy, *direction)
                    && index < rules.len()
                {
                    rules.remove(index);
                }
            }
            Edit::WriteTypes(_) => {}
            Edit::AddLabel { pod, key, value } => {
                if let Some(pod) = cluster.pods.get_mut(pod) {
                    pod.labels.insert(key.clone(), value.clone());
                }
            }
        }
    }
}

/// The rules of a direction that is isolated as written; those of an unreadable policy allow nothing, whatever
/// is added to them.
fn rules_of<'a>(
    cluster: &'a mut Cluster,
    policy: &PolicyRef,
    direction: Direction,
) -> Option<&'a mut Vec<Rule>> {
    let [ingress, egress] = match policy {
        PolicyRef::Host(name) => {
            let policy = cluster.host_policies.get_mut(name)?;
            [&mut policy.ingress, &mut policy.egress]
        }
        PolicyRef::Network(key) => {
            let policy = cluster.policies.get_mut(key)?;
            [&mut policy.ingress, &mut policy.egress]
        }
    };
    let spec = match direction {
        Direction::Ingress => ingress,
        Direction::Egress => egress,
    };
    match spec {
        DirectionSpec::Isolated { rules, cause: IsolationCause::Written } => Some(rules),
        DirectionSpec::Isolated { cause: IsolationCause::Invalid, .. } | DirectionSpec::Ignored => None,
    }
}

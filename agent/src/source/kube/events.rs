//! Tells the owners of a policy that cannot be read, or that was rolled back on a node, by an Event on it. Every agent sees the
//! same mistake, so the Event's name is made of the policy's state and of what is wrong: the first agent makes it, the others
//! find it there. Nothing waits for it, and nothing depends on it.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use portcullis_policy::model::{ObjectKey, Problem, Severity};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::object::{Kind, Seen, Version};
use super::watch::with_causes;

/// Who reports.
const COMPONENT: &str = "portcullis";
/// Where Events on objects of the whole cluster are, as client-go's recorder puts them.
const CLUSTER_EVENTS: &str = "default";
/// Policies that wait to be told of. What has no place is told of by `status` alone.
pub(super) const WAITING: usize = 64;
/// Time between two Events of an agent.
const PAUSE: Duration = Duration::from_secs(2);
/// How long an agent waits at most before it tells: those of a cluster must not all come at once.
pub(super) const SPREAD: Duration = Duration::from_secs(10);
/// Events that were told and are remembered.
const REMEMBERED: usize = 4_096;
/// The longest message that the API server takes, in bytes.
const MESSAGE: usize = 1_024;
/// The longest name of an object.
const NAME: usize = 253;

/// Why an Event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    NotUnderstood,
    RolledBack,
}

impl Reason {
    const fn name(self) -> &'static str {
        match self {
            Self::NotUnderstood => "NotUnderstood",
            Self::RolledBack => "RolledBack",
        }
    }
}

/// What is to be told about a policy.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    kind: Kind,
    key: ObjectKey,
    version: Version,
    reason: Reason,
    message: String,
}

impl Notice {
    /// Of a policy that cannot be read; `None` where nothing is closed.
    pub(super) fn not_understood(kind: Kind, seen: &Seen) -> Option<Self> {
        let errors = errors(&seen.problems);
        (!errors.is_empty()).then(|| Self {
            kind,
            key: seen.key.clone(),
            version: seen.version.clone(),
            reason: Reason::NotUnderstood,
            message: shortened(errors),
        })
    }

    /// Of a HostPolicy that was rolled back on a node, for the node did not reach what it had reached.
    pub(super) fn rolled_back(name: &str, version: &Version, node: &str, lost: &str) -> Self {
        let message = format!(
            "rolled back on node {node}, and not in force there: since it came the node did not reach {lost}; it is tried again when \
             it changes"
        );
        Self {
            kind: Kind::HostPolicy,
            key: ObjectKey::new("", name),
            version: version.clone(),
            reason: Reason::RolledBack,
            message: shortened(message),
        }
    }

    fn namespace(&self) -> &str {
        if self.key.namespace.is_empty() { CLUSTER_EVENTS } else { &self.key.namespace }
    }

    fn object(&self) -> String {
        if self.key.namespace.is_empty() {
            format!("{} {}", self.kind.name(), self.key.name)
        } else {
            format!("{} {}", self.kind.name(), self.key)
        }
    }

    /// The same for every agent.
    fn name(&self) -> String {
        let state = [&self.version.uid, &self.version.generation.to_string(), &self.message]
            .map(String::as_str)
            .join("\n");
        let suffix = format!(".{:016x}", fnv(state.as_bytes()));
        let own: String = self.key.name.chars().take(NAME - suffix.len()).collect();
        // A part of a name must not end in what no name ends in.
        format!("{}{suffix}", own.trim_end_matches(['.', '-']))
    }

    fn event(&self, name: String, node: &str) -> Event {
        let now = Timestamp::now();
        let own_namespace = Some(self.key.namespace.clone()).filter(|namespace| !namespace.is_empty());
        Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(self.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(self.kind.api_version()),
                kind: Some(self.kind.name().to_owned()),
                namespace: own_namespace,
                name: Some(self.key.name.clone()),
                uid: Some(self.version.uid.clone()),
                ..ObjectReference::default()
            },
            type_: Some("Warning".to_owned()),
            reason: Some(self.reason.name().to_owned()),
            message: Some(self.message.clone()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(node.to_owned()) }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(node.to_owned()),
            ..Event::default()
        }
    }
}

/// What closes something, as one text.
pub(super) fn errors(problems: &[Problem]) -> String {
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    errors.map(|p| format!("{}: {}", p.field, p.message)).collect::<Vec<_>>().join("; ")
}

/// A text that the API server takes as a message.
pub(super) fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE {
        let end = (0..=MESSAGE - 3).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push_str("...");
    }
    message
}

/// Tells until nobody has anything to tell any more, or until the API server forbids it.
pub(super) async fn tell(
    client: Client,
    node: String,
    mut notices: mpsc::Receiver<Notice>,
    spread: Duration,
) {
    let mut told = BTreeSet::new();
    let mut next = Instant::now();
    while let Some(one) = notices.recv().await {
        let name = one.name();
        if told.len() >= REMEMBERED {
            told.clear();
        }
        if !told.insert(name.clone()) {
            continue;
        }
        sleep(spread * u32::try_from(RandomState::new().hash_one(()) % 1_000).unwrap_or(0) / 1_000).await;
        sleep_until(next).await;
        next = Instant::now() + PAUSE.min(spread);
        let api: Api<Event> = Api::namespaced(client.clone(), one.namespace());
        match api.create(&PostParams::default(), &one.event(name, &node)).await {
            // Another agent was first.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) if status.code == 403 => {
                // A namespace that terminates takes none either: only that one is left out.
                tracing::debug!("no Event on {}: {}", one.object(), status.message);
            }
            Err(error) => tracing::debug!("no Event on {}: {}", one.object(), with_causes(&error)),
            Ok(_) => tracing::debug!("told of {} by an Event", one.object()),
        }
    }
}

/// FNV-1a: the same on every node and in every version.
pub(super) fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn seen(severity: Severity, message: &str) -> Seen {
        let value = serde_json::json!({"metadata": {"name": "deny", "namespace": "shop", "uid": "u", "generation": 3,
            "resourceVersion": "9"}, "spec": {"podSelector": {}}});
        let raw: super::super::object::Raw = serde_json::from_value(value).unwrap();
        let problem = Problem {
            severity,
            object: "NetworkPolicy shop/deny".to_owned(),
            field: "spec.ingress[0]".to_owned(),
            message: message.to_owned(),
            location: None,
        };
        Seen { problems: vec![problem], ..raw.read(Kind::NetworkPolicy, &BTreeSet::new()) }
    }

    fn notice(severity: Severity, message: &str) -> Option<Notice> {
        Notice::not_understood(Kind::NetworkPolicy, &seen(severity, message))
    }

    #[test]
    fn only_what_closes_is_told() {
        assert!(notice(Severity::Warning, "odd").is_none());
        assert_eq!(notice(Severity::Error, "bad").unwrap().message, "spec.ingress[0]: bad");
        let long = notice(Severity::Error, &"ä".repeat(2_000)).unwrap().message;
        assert!(long.len() <= MESSAGE && long.ends_with("..."));
    }

    #[test]
    fn all_agents_name_the_same_state_alike() {
        let (one, two) = (notice(Severity::Error, "bad").unwrap(), notice(Severity::Error, "bad").unwrap());
        assert_eq!(one.name(), two.name());
        assert_ne!(one.name(), notice(Severity::Error, "worse").unwrap().name());
        let later = Notice { version: Version { generation: 4, ..one.version.clone() }, ..two };
        assert_ne!(one.name(), later.name());
        let long = Notice { key: ObjectKey::new("shop", "a".repeat(253)), ..later };
        assert_eq!(long.name().len(), NAME);
    }

    #[test]
    fn a_policy_of_the_whole_cluster_has_its_event_where_kubectl_looks_for_it() {
        let version = Version { uid: "u".to_owned(), generation: 3, resource_version: None };
        let notice = Notice::rolled_back("web", &version, "n1", "the API server");
        let event = notice.event(notice.name(), "n1");
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.involved_object.api_version.as_deref(), Some("portcullis.dev/v1alpha1"));
        assert_eq!(event.involved_object.namespace, None);
        assert_eq!(event.reason.as_deref(), Some("RolledBack"));
        // Each node tells for itself.
        assert_ne!(notice.name(), Notice::rolled_back("web", &version, "n2", "the API server").name());
    }
}

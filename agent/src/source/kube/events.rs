//! Tells the owners of a policy that cannot be read, by an Event on it. Every agent sees the same mistake, so the
//! Event's name is made of the policy's state and of what is wrong: the first agent makes it, the others find it there.
//! Nothing waits for it, and nothing depends on it.

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

use super::object::{Kind, Version};
use super::watch::with_causes;

/// Who reports.
const COMPONENT: &str = "portcullis";
/// Why.
const REASON: &str = "NotUnderstood";
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

/// A policy that cannot be read.
#[derive(Debug)]
pub(super) struct Invalid {
    pub(super) key: ObjectKey,
    pub(super) version: Version,
    pub(super) problems: Vec<Problem>,
}

impl Invalid {
    /// What is to be told; `None` where nothing is closed.
    fn message(&self) -> Option<String> {
        let errors = self.problems.iter().filter(|problem| problem.severity == Severity::Error);
        let texts: Vec<String> = errors.map(|p| format!("{}: {}", p.field, p.message)).collect();
        let mut message = texts.join("; ");
        if message.len() > MESSAGE {
            let end = (0..=MESSAGE - 3).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
            message.truncate(end);
            message.push_str("...");
        }
        (!message.is_empty()).then_some(message)
    }

    /// The same for every agent.
    fn name(&self, message: &str) -> String {
        let state = [self.version.uid.as_str(), &self.version.generation.to_string(), message].join("\n");
        let suffix = format!(".{:016x}", fnv(state.as_bytes()));
        let own: String = self.key.name.chars().take(NAME - suffix.len()).collect();
        // A part of a name must not end in what no name ends in.
        format!("{}{suffix}", own.trim_end_matches(['.', '-']))
    }

    fn event(&self, name: String, message: String, node: &str) -> Event {
        let now = Timestamp::now();
        Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(self.key.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("networking.k8s.io/v1".to_owned()),
                kind: Some(Kind::NetworkPolicy.name().to_owned()),
                namespace: Some(self.key.namespace.clone()),
                name: Some(self.key.name.clone()),
                uid: Some(self.version.uid.clone()),
                ..ObjectReference::default()
            },
            type_: Some("Warning".to_owned()),
            reason: Some(REASON.to_owned()),
            message: Some(message),
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

/// Tells until nobody has anything to tell any more, or until the API server forbids it.
pub(super) async fn tell(
    client: Client,
    node: String,
    mut invalid: mpsc::Receiver<Invalid>,
    spread: Duration,
) {
    let mut told = BTreeSet::new();
    let mut next = Instant::now();
    while let Some(one) = invalid.recv().await {
        let Some(message) = one.message() else { continue };
        let name = one.name(&message);
        if told.len() >= REMEMBERED {
            told.clear();
        }
        if !told.insert(name.clone()) {
            continue;
        }
        sleep(spread * u32::try_from(RandomState::new().hash_one(()) % 1_000).unwrap_or(0) / 1_000).await;
        sleep_until(next).await;
        next = Instant::now() + PAUSE.min(spread);
        let api: Api<Event> = Api::namespaced(client.clone(), &one.key.namespace);
        match api.create(&PostParams::default(), &one.event(name, message, &node)).await {
            // Another agent was first.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) if status.code == 403 => {
                // A namespace that terminates takes none either: only that one is left out.
                tracing::debug!("no Event on NetworkPolicy {}: {}", one.key, status.message);
            }
            Err(error) => tracing::debug!("no Event on NetworkPolicy {}: {}", one.key, with_causes(&error)),
            Ok(_) => tracing::debug!("told of NetworkPolicy {} by an Event", one.key),
        }
    }
}

/// FNV-1a: the same on every node and in every version.
fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn invalid(severity: Severity, message: &str) -> Invalid {
        Invalid {
            key: ObjectKey::new("shop", "deny"),
            version: Version { uid: "u".to_owned(), generation: 3, resource_version: Some(9) },
            problems: vec![Problem {
                severity,
                object: "NetworkPolicy shop/deny".to_owned(),
                field: "spec.ingress[0]".to_owned(),
                message: message.to_owned(),
                location: None,
            }],
        }
    }

    #[test]
    fn only_what_closes_is_told() {
        assert_eq!(invalid(Severity::Warning, "odd").message(), None);
        assert_eq!(invalid(Severity::Error, "bad").message().unwrap(), "spec.ingress[0]: bad");
        let long = invalid(Severity::Error, &"ä".repeat(2_000)).message().unwrap();
        assert!(long.len() <= MESSAGE && long.ends_with("..."));
    }

    #[test]
    fn all_agents_name_the_same_state_alike() {
        let (one, two) = (invalid(Severity::Error, "bad"), invalid(Severity::Error, "bad"));
        assert_eq!(one.name("bad"), two.name("bad"));
        assert_ne!(one.name("bad"), one.name("worse"));
        let later = Invalid { version: Version { generation: 4, ..one.version.clone() }, ..two };
        assert_ne!(one.name("bad"), later.name("bad"));
        let long = Invalid { key: ObjectKey::new("shop", "a".repeat(253)), ..later };
        assert_eq!(long.name("bad").len(), NAME);
    }
}

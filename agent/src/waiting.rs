//! Waits until a policy is in force on this node: the state of it that the source shows when it is asked, or a later
//! one. Decides nothing; the main loop says what is in force.

use std::sync::Arc;
use std::time::Duration;

use portcullis_policy::model::{Cluster, ObjectKey};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::clock::monotonic;
use crate::source::kube::{self, ServerView, Version, Versions};

/// How long to wait before the API server is asked again that could not be asked.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// What is in force, as far as those who wait care.
#[derive(Clone, Debug, Default)]
pub(crate) struct InForce {
    /// The objects; none before the first are in force.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// Of the API server, which state of each policy that is.
    pub(crate) versions: Option<Arc<Versions>>,
    /// When the source was looked at that said so, by the monotonic clock. Of a directory.
    pub(crate) looked: u64,
}

/// Why waiting ended without the policy in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outwaited {
    /// The source does not show the policy.
    Absent,
    /// It is known, and not in force.
    NotInForce,
}

/// Waits for one asker at a time; clones share what they are told.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    /// What is in force.
    pub(crate) in_force: watch::Receiver<InForce>,
    /// Asks the main loop to look at a directory.
    pub(crate) look: mpsc::Sender<()>,
    /// Asks the API server what it shows.
    pub(crate) server: Option<ServerView>,
}

/// Which state has to be in force.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    /// What the directory says now.
    LookedAfter(u64),
    /// What the API server says now.
    Version(Version),
}

impl Waiter {
    /// Returns once the policy is in force as it is now, or why it is not after that time.
    pub(crate) async fn policy(mut self, key: &ObjectKey, time: Duration) -> Result<(), Outwaited> {
        let until = Instant::now() + time;
        let Ok(wanted) = timeout_at(until, self.wanted(key)).await else { return Err(Outwaited::Absent) };
        loop {
            let why = {
                let in_force = self.in_force.borrow_and_update();
                match (&wanted, holds(&in_force, key, &wanted)) {
                    (_, true) => return Ok(()),
                    (Wanted::LookedAfter(at), false) if in_force.looked >= *at => Outwaited::Absent,
                    (Wanted::LookedAfter(_) | Wanted::Version(_), false) => Outwaited::NotInForce,
                }
            };
            match timeout_at(until, self.in_force.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(why),
            }
        }
    }

    /// The state that the source shows. Of a policy that the API server does not have, the first that it has.
    async fn wanted(&self, key: &ObjectKey) -> Wanted {
        let Some(server) = &self.server else {
            let asked = monotonic();
            // A full channel has a look in it already, which comes after this.
            let _ = self.look.try_send(());
            return Wanted::LookedAfter(asked);
        };
        loop {
            match server.policy(key).await {
                Ok(Some(version)) => return Wanted::Version(version),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!("asking for NetworkPolicy {key}: {}", kube::with_causes(&error));
                    // What was told last is the newest that anybody here knows.
                    let told = self.in_force.borrow().versions.as_ref().and_then(|all| all.get(key).cloned());
                    if let Some(version) = told {
                        return Wanted::Version(version);
                    }
                }
            }
            sleep(ASK_AGAIN).await;
        }
    }
}

fn holds(in_force: &InForce, key: &ObjectKey, wanted: &Wanted) -> bool {
    let there = in_force.cluster.as_ref().is_some_and(|cluster| cluster.policies.contains_key(key));
    there
        && match wanted {
            Wanted::LookedAfter(at) => in_force.looked >= *at,
            Wanted::Version(version) => {
                let own = in_force.versions.as_ref().and_then(|versions| versions.get(key));
                own.is_some_and(|own| own.covers(version))
            }
        }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use portcullis_policy::convert::{Report, network_policy};
    use serde_json::json;

    use super::*;

    fn cluster() -> (ObjectKey, Arc<Cluster>) {
        let key = ObjectKey::new("shop", "deny");
        let policy = network_policy(&json!({"spec": {}}), "shop", &mut Report::new("x", None));
        let mut cluster = Cluster::default();
        cluster.policies.insert(key.clone(), policy);
        (key, Arc::new(cluster))
    }

    fn waiter() -> (watch::Sender<InForce>, mpsc::Receiver<()>, Waiter) {
        let (tell, in_force) = watch::channel(InForce::default());
        let (look, looks) = mpsc::channel(1);
        (tell, looks, Waiter { in_force, look, server: None })
    }

    #[tokio::test]
    async fn a_directory_is_looked_at_again_before_anything_counts() {
        let (key, cluster) = cluster();
        let (tell, mut looks, waiter) = waiter();
        let before = InForce { cluster: Some(Arc::clone(&cluster)), versions: None, looked: monotonic() };
        tell.send_replace(before);
        let waiting = tokio::spawn({
            let key = key.clone();
            async move { waiter.policy(&key, Duration::from_mins(1)).await }
        });
        looks.recv().await.unwrap();
        assert!(!waiting.is_finished(), "what was looked at before does not count");
        tell.send_replace(InForce { cluster: Some(cluster), versions: None, looked: monotonic() });
        assert_eq!(waiting.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn what_is_not_there_in_time_is_told_apart() {
        let (key, _) = cluster();
        let (tell, _looks, waiter) = waiter();
        let time = Duration::from_millis(5);
        assert_eq!(waiter.clone().policy(&key, time).await, Err(Outwaited::NotInForce));
        tell.send_replace(InForce { cluster: Some(Arc::default()), versions: None, looked: u64::MAX });
        assert_eq!(waiter.policy(&key, time).await, Err(Outwaited::Absent));
    }

    #[test]
    fn a_later_state_counts_and_an_earlier_does_not() {
        let (key, cluster) = cluster();
        let version = |number| Version { uid: "u".to_owned(), generation: 1, resource_version: Some(number) };
        let versions = Some(Arc::new(Versions::from([(key.clone(), version(7))])));
        let in_force = InForce { cluster: Some(cluster), versions, looked: 0 };
        for (wanted, held) in [(6, true), (7, true), (8, false)] {
            assert_eq!(holds(&in_force, &key, &Wanted::Version(version(wanted))), held, "{wanted}");
        }
    }
}

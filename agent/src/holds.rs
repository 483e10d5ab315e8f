//! Pods that wait to start: what the CNI plugin asks, done and answered. Between the socket, the memory of what was
//! told and the reconciler; it runs in the main loop.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_policy::model::{Cluster, ObjectKey};
use tokio::sync::watch;

use crate::api::CniAsk;
use crate::api::cni::{Attachment, CniAnswer, CniRequest, Made};
use crate::attach::discover::link;
use crate::clock::monotonic;
use crate::gap::Gaps;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::reconcile::{Outcome, Reconciler};
use crate::told::Memory;

/// File in the run directory with what was told.
pub(crate) const TOLD: &str = "told.json";

/// A plugin that waits.
#[derive(Debug)]
struct Waiting {
    pod: ObjectKey,
    uid: Option<String>,
    interface: u32,
    answer: watch::Sender<CniAnswer>,
}

/// What was told, who waits, and for how long interfaces stood open.
#[derive(Debug)]
pub(crate) struct Holds {
    memory: Memory,
    waiting: Vec<Waiting>,
    gaps: Gaps,
    /// Interfaces of pods that are enforced.
    enforced: BTreeSet<(ObjectKey, u32)>,
}

/// Whether what was asked changes what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    Something,
    Nothing,
}

/// What came to its end with a reconciliation.
#[derive(Debug)]
pub(crate) struct Ended {
    gaps: Vec<Duration>,
    answers: Vec<(watch::Sender<CniAnswer>, CniAnswer)>,
}

impl Ended {
    /// Tells it: who is answered finds in `endpoints` what it was told.
    pub(crate) fn tell(self, metrics: &Metrics) {
        for gap in self.gaps {
            metrics.enforced_after(gap);
        }
        for (waits, answer) in self.answers {
            waits.send_replace(answer);
        }
    }
}

impl Holds {
    /// With what an earlier agent was told.
    pub(crate) fn open(run_dir: &Path) -> Self {
        Self {
            memory: Memory::open(run_dir.join(TOLD)),
            waiting: Vec::new(),
            gaps: Gaps::default(),
            enforced: BTreeSet::new(),
        }
    }

    /// Takes a request. What changes something is to be reconciled at once.
    pub(crate) fn take(&mut self, ask: CniAsk, reconciler: &mut Reconciler, health: &Health) -> Changed {
        let CniAsk { request, answer } = ask;
        let (said, changed) = match request {
            CniRequest::Hold { made, patience_ms: _ } => match self.hold(&made, reconciler) {
                Err(why) => (CniAnswer::refused(why), Changed::Nothing),
                Ok(pod) => {
                    let Made { uid, interface, .. } = *made;
                    self.waiting.push(Waiting { pod, uid, interface, answer });
                    return Changed::Something;
                }
            },
            CniRequest::Check(attachment) => (self.check(&attachment), Changed::Nothing),
            CniRequest::Release(attachment) => (CniAnswer::Done, self.forget(|one| *one != attachment, None)),
            CniRequest::Retain { network, valid } => {
                (CniAnswer::Done, self.forget(|one| valid.contains(one), Some(&network)))
            }
            CniRequest::Ready => (ready(health), Changed::Nothing),
        };
        // Who asked may have gone.
        let _ = answer.send(said);
        changed
    }

    /// Remembers an interface and closes it.
    fn hold(&mut self, made: &Made, reconciler: &mut Reconciler) -> Result<ObjectKey, String> {
        let pod = ObjectKey::new(made.namespace.clone(), made.pod.clone());
        let Attachment { container, ifname } = &made.attachment;
        let of_the_pod = |one: &&crate::told::Told| one.made.attachment.container == *container;
        if let Some(other) = self.memory.told().iter().find(of_the_pod).map(|one| &one.made.attachment)
            && other.ifname != *ifname
        {
            return Err(format!(
                "Pod {pod} has {} already, and would get {ifname} too: one interface of a pod can be enforced; \
                 take portcullis-cni out of the second network",
                other.ifname
            ));
        }
        let host = link(made.interface).map_err(|error| {
            format!(
                "interface {} ({}): {error}: the agent has to run in the node's network namespace",
                made.name, made.interface
            )
        })?;
        if host.name != made.name || !host.is_veth() {
            return Err(format!(
                "interface {} is {} and no veth device of the name {}: only veth pairs can be enforced",
                made.interface, host.name, made.name
            ));
        }
        if made.addresses.is_empty() {
            return Err(format!("Pod {pod} has no address: give its network an `ipam` section"));
        }
        // First of all: whatever fails behind this leaves it closed.
        reconciler.close(made.interface, &pod).map_err(|error| format!("{}: {error:#}", made.name))?;
        self.gaps.told(made.interface, monotonic());
        self.memory.take(made.clone(), now()).map_err(|error| {
            let path = self.memory.path().display();
            format!("{path}: {error}: a restart would forget the pod; make room there")
        })?;
        Ok(pod)
    }

    /// Forgets all but those; of one network, or of all.
    fn forget(&mut self, keep: impl Fn(&Attachment) -> bool, network: Option<&str>) -> Changed {
        let is_kept = |one: &crate::told::Told| {
            network.is_some_and(|network| one.made.network != network) || keep(&one.made.attachment)
        };
        if self.memory.retain(is_kept) { Changed::Something } else { Changed::Nothing }
    }

    fn check(&self, attachment: &Attachment) -> CniAnswer {
        match self.memory.of(attachment) {
            // An agent that was installed after the pod was told of nothing: that is no fault of the pod.
            None => CniAnswer::Done,
            Some(told) if self.enforced.contains(&(told.key(), told.made.interface)) => CniAnswer::Done,
            Some(told) => CniAnswer::waiting(format!(
                "Pod {} is not enforced: {} is closed",
                told.key(),
                told.made.name
            )),
        }
    }

    /// Puts what was told over what the source says, for the objects and for the reconciler.
    pub(crate) fn over(&mut self, cluster: &Arc<Cluster>, reconciler: &mut Reconciler) -> Arc<Cluster> {
        reconciler.tell(self.memory.ports(cluster));
        self.memory.over(cluster)
    }

    /// This is in force. Returns what is to be told once it is published: answers to those who waited for it, and for
    /// how long interfaces that are enforced now stood open; they were seen at a moment, all of them.
    pub(crate) fn reconciled(&mut self, cluster: &Cluster, outcome: &Outcome, seen: u64) -> Ended {
        let pairs = outcome.endpoints.iter().map(|(key, one)| (key.clone(), one.config.ifindex));
        self.enforced = pairs.collect();
        self.memory.retain(|told| !outcome.gone.contains(&told.made.interface));
        let waiting = std::mem::take(&mut self.waiting);
        let mut answers = Vec::new();
        for one in waiting {
            let answer = self.judge(&one, cluster, outcome);
            if let CniAnswer::Waiting { .. } = answer
                && !one.answer.is_closed()
            {
                one.answer.send_replace(answer);
                self.waiting.push(one);
            } else {
                answers.push((one.answer, answer));
            }
        }
        let enforced = self.enforced.iter().map(|(_, interface)| *interface).collect();
        Ended { gaps: self.gaps.look(&outcome.veths, &enforced, seen, monotonic()), answers }
    }

    /// What could not be brought into force, for those who wait.
    pub(crate) fn failed(&mut self, why: &str) {
        self.waiting.retain(|one| !one.answer.is_closed());
        for one in &self.waiting {
            one.answer.send_replace(CniAnswer::waiting(why));
        }
    }

    fn judge(&self, one: &Waiting, cluster: &Cluster, outcome: &Outcome) -> CniAnswer {
        let Waiting { pod, uid, interface, .. } = one;
        if !self.memory.told().iter().any(|told| told.made.interface == *interface && told.key() == *pod) {
            return CniAnswer::refused(format!("the interface of Pod {pod} went while it waited"));
        }
        if self.enforced.contains(&(pod.clone(), *interface)) {
            if outcome.held.iter().any(|held| held.pod == *pod) {
                return CniAnswer::waiting(format!(
                    "the tables have no room for the policies of Pod {pod}: see the agent's log for the table"
                ));
            }
            return CniAnswer::Done;
        }
        let Some(known) = cluster.pods.get(pod) else {
            return CniAnswer::waiting(format!(
                "Pod {pod} is not known yet: the agent's source does not show it"
            ));
        };
        let object = format!("Pod {pod}");
        let problem = outcome.problems.iter().find(|problem| problem.object == object);
        CniAnswer::waiting(match (problem, uid) {
            (Some(problem), _) => problem.to_string(),
            (None, Some(uid)) if *uid != known.uid => format!(
                "Pod {pod} is known with UID {}, an earlier one of the name: this one has {uid}",
                known.uid
            ),
            (None, _) => {
                format!("Pod {pod} is known and not enforced: it is finished, or in the host's network")
            }
        })
    }
}

fn ready(health: &Health) -> CniAnswer {
    match health.dead() {
        Some(why) => CniAnswer::waiting(why),
        None if health.progress().enforced => CniAnswer::Done,
        None => CniAnswer::waiting("the agent has not read its source yet"),
    }
}

/// Seconds since the Unix epoch, as `status.startTime` has them.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

//! Writes what became of each HostPolicy on this node to the policy's `status.nodes[NODE]`. Each agent applies its own entry,
//! under a field manager of its own, so that no agent touches another's. Nothing waits for it, and nothing depends on it: only
//! the newest state is kept, and what cannot be written is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use portcullis_policy::model::Problem;
use serde_json::{Value, json};
use tokio::sync::watch as latest;
use tokio::time::{Instant, sleep, sleep_until};

use super::Tuning;
use super::events::{errors, shortened};
use super::object::{Kind, Raw, Version};
use super::watch::with_causes;

/// Time between two writes of an agent.
pub(super) const PAUSE: Duration = Duration::from_millis(300);
/// The longest name of a field manager (`validation.ValidateFieldManager` of Kubernetes).
const MANAGER: usize = 128;
/// With more nodes than this those that do what a policy says have no entry: each agent hears of each write, so there
/// would be as many as the square of it, and an object has to stay small.
const CROWD: usize = 100;
/// Without the right to write, which may still come.
const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;

/// What became of a HostPolicy on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPolicyState {
    /// Its name.
    pub name: String,
    /// Which state of it.
    pub version: Version,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// Whom it selects on this node.
    pub selects: Selects,
    /// What it does here.
    pub standing: Standing,
    /// What the node did not reach since it came, if it was rolled back.
    pub rolled_back: Option<String>,
}

/// Whom a HostPolicy selects on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selects {
    /// True if the node itself.
    pub node: bool,
    /// How many hostNetwork pods.
    pub pods: usize,
}

impl Selects {
    const fn is_nothing(self) -> bool {
        !self.node && self.pods == 0
    }
}

/// Whether what a policy says is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is in force.
    InForce,
    /// Not all that it selects here is enforced yet.
    Pending,
    /// The host firewall is turned off on this node.
    TurnedOff,
}

/// A condition of a node: type, status, reason and message.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    kind: &'static str,
    is_true: bool,
    reason: &'static str,
    message: String,
}

impl Condition {
    fn new(kind: &'static str, is_true: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, is_true, reason, message: shortened(message.into()) }
    }

    fn status(&self) -> &'static str {
        if self.is_true { "True" } else { "False" }
    }
}

impl HostPolicyState {
    fn conditions(&self) -> Vec<Condition> {
        let errors = errors(&self.problems);
        let accepted = if errors.is_empty() {
            Condition::new("Accepted", true, "Understood", "")
        } else {
            Condition::new("Accepted", false, "NotUnderstood", errors)
        };
        let mut all = vec![accepted, self.realised()];
        if let Some(lost) = &self.rolled_back {
            let message =
                format!("since it came the node did not reach {lost}; it is tried again when it changes");
            all.push(Condition::new("RolledBack", true, "Unreachable", message));
        }
        if self.selects.is_nothing() {
            let message = "it selects neither this node nor a hostNetwork pod on it";
            all.push(Condition::new("SelectsNothing", true, "NoSubject", message));
        }
        all
    }

    fn realised(&self) -> Condition {
        let not = |reason, message: &str| Condition::new("Realised", false, reason, message);
        if self.rolled_back.is_some() {
            return not("RolledBack", "it was rolled back");
        }
        match self.standing {
            Standing::TurnedOff => not("TurnedOff", "the host firewall is turned off on this node"),
            Standing::Pending => not("Pending", "not all that it selects here is enforced yet"),
            Standing::InForce if self.selects.is_nothing() => {
                not("NoSubject", "there is nothing to enforce it on")
            }
            Standing::InForce => {
                let pods = match self.selects.pods {
                    0 => String::new(),
                    1 => "1 hostNetwork pod".to_owned(),
                    pods => format!("{pods} hostNetwork pods"),
                };
                let node = if self.selects.node { "this node" } else { "" };
                let both = if self.selects.node && self.selects.pods > 0 { " and " } else { "" };
                Condition::new("Realised", true, "InForce", format!("on {node}{both}{pods}"))
            }
        }
    }

    /// True where there is nothing to look into.
    fn is_fine(&self) -> bool {
        errors(&self.problems).is_empty() && self.rolled_back.is_none() && self.standing == Standing::InForce
    }

    /// The node's entry. A condition that was as it is keeps its time.
    fn entry(&self, before: Option<&Value>, now: &str) -> Value {
        let old = before.and_then(|entry| entry["conditions"].as_array()).map_or(&[][..], Vec::as_slice);
        let since = |condition: &Condition| {
            let same = |one: &&Value| one["type"] == condition.kind && one["status"] == condition.status();
            old.iter().find(same).and_then(|one| one["lastTransitionTime"].as_str()).unwrap_or(now).to_owned()
        };
        let generation = self.version.generation;
        let conditions: Vec<Value> = self
            .conditions()
            .iter()
            .map(|condition| {
                json!({
                    "type": condition.kind, "status": condition.status(), "reason": condition.reason,
                    "message": condition.message, "observedGeneration": generation,
                    "lastTransitionTime": since(condition),
                })
            })
            .collect();
        json!({"observedGeneration": generation, "conditions": conditions})
    }
}

/// What is to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Telling {
    pub(super) states: Vec<HostPolicyState>,
    is_crowded: bool,
}

impl Telling {
    /// In a cluster of so many nodes.
    pub(super) const fn new(states: Vec<HostPolicyState>, nodes: usize) -> Self {
        Self { states, is_crowded: nodes > CROWD }
    }
}

/// Under which name a node's agent applies.
fn manager(node: &str) -> String {
    let name = format!("portcullis-{node}");
    if name.len() <= MANAGER {
        return name;
    }
    // Two long names must not become one.
    let suffix = format!("-{:016x}", super::events::fnv(node.as_bytes()));
    name.chars().take(MANAGER - suffix.len()).collect::<String>() + &suffix
}

/// Why an entry was not written.
#[derive(Debug)]
enum Failed {
    /// The policy is gone, or another one has its name.
    Gone,
    /// It may be written another time.
    ForNow(kube::Error),
}

impl From<kube::Error> for Failed {
    fn from(error: kube::Error) -> Self {
        let is_gone = matches!(&error, kube::Error::Api(status) if status.code == NOT_FOUND);
        if is_gone { Self::Gone } else { Self::ForNow(error) }
    }
}

/// Writes entries of this node.
struct Writer {
    api: Api<Raw>,
    node: String,
    params: PatchParams,
}

impl Writer {
    /// The entry that is there, of this policy.
    async fn found(&self, state: &HostPolicyState) -> Result<Option<Value>, Failed> {
        let raw = self.api.get(&state.name).await?;
        if raw.version().uid != state.version.uid {
            return Err(Failed::Gone);
        }
        let entries = raw.value().pointer("/status/nodes");
        Ok(entries.and_then(|entries| entries.get(&self.node)).cloned())
    }

    async fn apply(&self, state: &HostPolicyState, entry: &Value) -> Result<(), Failed> {
        let mut nodes = serde_json::Map::new();
        nodes.insert(self.node.clone(), entry.clone());
        // The identity keeps it from a policy that was made anew under the name.
        let body = json!({
            "apiVersion": Kind::HostPolicy.api_version(), "kind": Kind::HostPolicy.name(),
            "metadata": {"name": state.name, "uid": state.version.uid},
            "status": {"nodes": nodes},
        });
        self.api.patch_status(&state.name, &self.params, &Patch::Apply(body)).await?;
        Ok(())
    }

    /// Has the entry say so, where there is to be one; returns it.
    async fn bring(
        &self,
        state: &HostPolicyState,
        known: Option<&Value>,
        is_crowded: bool,
    ) -> Result<Option<Value>, Failed> {
        let found = match known {
            Some(entry) => Some(entry.clone()),
            None => self.found(state).await?,
        };
        if found.is_none() && is_crowded && state.is_fine() {
            return Ok(None);
        }
        let entry = state.entry(found.as_ref(), &Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        if found.as_ref() != Some(&entry) {
            self.apply(state, &entry).await?;
        }
        Ok(Some(entry))
    }
}

/// Writes until nobody has anything to tell any more.
pub(super) async fn write(client: Client, node: String, mut told: latest::Receiver<Telling>, tuning: Tuning) {
    if node.is_empty() {
        return;
    }
    let params = PatchParams::apply(&manager(&node)).force();
    let writer = Writer { api: Api::all_with(client, &Kind::HostPolicy.resource()), node, params };
    // What was written, by name, with what it was made of.
    let mut written: BTreeMap<String, (HostPolicyState, Option<Value>)> = BTreeMap::new();
    let mut backoff = tuning.backoff_first;
    let mut again: Option<Instant> = None;
    loop {
        let wait = async {
            match again {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = told.changed() => if changed.is_err() { return },
            () = wait => {}
        }
        again = None;
        let Telling { states, is_crowded } = told.borrow_and_update().clone();
        let names: BTreeSet<&str> = states.iter().map(|state| state.name.as_str()).collect();
        written.retain(|name, _| names.contains(name.as_str()));
        for state in &states {
            let known = written.get(&state.name).filter(|(held, _)| held.version.uid == state.version.uid);
            if known.is_some_and(|(held, _)| held == state) {
                continue;
            }
            match writer.bring(state, known.and_then(|(_, entry)| entry.as_ref()), is_crowded).await {
                Ok(entry) => {
                    written.insert(state.name.clone(), (state.clone(), entry));
                    backoff = tuning.backoff_first;
                }
                // The watch tells.
                Err(Failed::Gone) => {
                    written.remove(&state.name);
                }
                Err(Failed::ForNow(error)) => {
                    written.remove(&state.name);
                    let text = with_causes(&error);
                    let is_forbidden = matches!(&error, kube::Error::Api(status) if status.code == FORBIDDEN);
                    if is_forbidden && backoff == tuning.backoff_first {
                        tracing::warn!(
                            "the status of HostPolicy {} cannot be written: {text}: give the agent the right to patch \
                             hostpolicies/status",
                            state.name
                        );
                    } else {
                        tracing::debug!("the status of HostPolicy {}: {text}", state.name);
                    }
                    again = Some(Instant::now() + backoff);
                    backoff = backoff.saturating_mul(2).min(tuning.backoff_most);
                    if !matches!(error, kube::Error::Api(_)) {
                        // Nobody answers: the others can wait, too.
                        break;
                    }
                }
            }
            sleep(tuning.status_pause).await;
            // Something newer goes first.
            if told.has_changed().unwrap_or(false) {
                break;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use portcullis_policy::model::Severity;

    use super::*;

    fn state() -> HostPolicyState {
        HostPolicyState {
            name: "web".to_owned(),
            version: Version { uid: "u".to_owned(), generation: 3, resource_version: None },
            problems: Vec::new(),
            selects: Selects { node: true, pods: 2 },
            standing: Standing::InForce,
            rolled_back: None,
        }
    }

    fn told(state: &HostPolicyState) -> Vec<String> {
        let told = |one: &Condition| format!("{}={} {}", one.kind, one.status(), one.reason);
        state.conditions().iter().map(told).collect()
    }

    #[test]
    fn conditions_say_what_became_of_it() {
        assert_eq!(told(&state()), ["Accepted=True Understood", "Realised=True InForce"]);
        assert_eq!(state().realised().message, "on this node and 2 hostNetwork pods");
        let nothing = HostPolicyState { selects: Selects::default(), ..state() };
        let expected =
            ["Accepted=True Understood", "Realised=False NoSubject", "SelectsNothing=True NoSubject"];
        assert_eq!(told(&nothing), expected);
        let back = HostPolicyState { rolled_back: Some("the API server".to_owned()), ..state() };
        let expected =
            ["Accepted=True Understood", "Realised=False RolledBack", "RolledBack=True Unreachable"];
        assert_eq!(told(&back), expected);
        let problem = |severity| Problem {
            severity,
            object: "HostPolicy web".to_owned(),
            field: "spec.subject".to_owned(),
            message: "is missing".to_owned(),
            location: None,
        };
        let odd = HostPolicyState { problems: vec![problem(Severity::Warning)], ..state() };
        assert_eq!(told(&odd).first().unwrap(), "Accepted=True Understood");
        let closed = HostPolicyState { problems: vec![problem(Severity::Error)], ..state() };
        assert_eq!(told(&closed), ["Accepted=False NotUnderstood", "Realised=True InForce"]);
        for (standing, reason) in [(Standing::Pending, "Pending"), (Standing::TurnedOff, "TurnedOff")] {
            let state = HostPolicyState { standing, ..state() };
            assert_eq!(told(&state).last().unwrap(), &format!("Realised=False {reason}"));
        }
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let first = state().entry(None, "2026-01-01T00:00:00Z");
        let time = |entry: &Value, kind: &str| {
            let all = entry["conditions"].as_array().unwrap();
            let one = all.iter().find(|one| one["type"] == kind).unwrap();
            one["lastTransitionTime"].as_str().unwrap().to_owned()
        };
        assert_eq!(state().entry(Some(&first), "2026-02-01T00:00:00Z"), first);
        let pending = HostPolicyState { standing: Standing::Pending, ..state() };
        let later = pending.entry(Some(&first), "2026-02-01T00:00:00Z");
        assert_eq!(time(&later, "Realised"), "2026-02-01T00:00:00Z");
        assert_eq!(time(&later, "Accepted"), "2026-01-01T00:00:00Z");
    }

    #[test]
    fn a_manager_of_any_node_has_a_name_that_the_server_takes() {
        assert_eq!(manager("n1"), "portcullis-n1");
        let (one, two) = (manager(&("a".repeat(252) + "x")), manager(&("a".repeat(252) + "y")));
        assert!(one.len() == MANAGER && two.len() == MANAGER && one != two);
    }
}

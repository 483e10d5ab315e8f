//! `explain`: the verdict of one flow, what decided in each direction, and what the kernel says to the same
//! packet; why each other rule did not, and what would turn the verdict.

mod backends;
mod change;
mod rules;
mod table;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use portcullis_common::event::{Action, Direction as Way, Reason};
use portcullis_policy::answer::{Answers, DirectionAnswer, Family as IpFamily, Party};
use portcullis_policy::convert::printable;
use portcullis_policy::desired::RuleSource;
use portcullis_policy::frame::Traffic;
use portcullis_policy::model::{ObjectKey, PolicyRef as Policy, SourceBinding};
use portcullis_policy::turn;
use serde::{Deserialize, Serialize};

pub use backends::{ExplainedBackend, ExplainedService, Explanation, ServiceName, ServiceVerdict};
pub use change::{ExplainedChange, ExplainedEdit};
pub use rules::{ExplainedMiss, ExplainedRule, ExplainedWhy};
pub use table::table;

use super::ask::{AskError, ExplainRequest, Family, Heard, Reply, Sent, hear};
use super::ends::{End, Wanted, resolve};
use super::service::{self, AtAddress};
use crate::output::{Colour, Exit, Verdict};
use crate::world::{AskKernel, KernelAnswer, World};

/// A policy, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRef {
    /// `NetworkPolicy` or `HostPolicy`.
    pub kind: String,
    /// Its namespace; `None` of a HostPolicy.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl PolicyRef {
    /// Of a NetworkPolicy.
    #[must_use]
    pub fn network_policy(key: &ObjectKey) -> Self {
        Self::from(&Policy::Network(key.clone()))
    }

    /// The policy and the rule of it that decided: a rule's index, `None` for an isolation.
    #[must_use]
    pub fn of(source: &RuleSource) -> (Option<Self>, Option<u32>) {
        source.policy().map_or((None, None), |(policy, rule)| (Some(Self::from(&policy)), rule))
    }

    /// What filters write before its name: the namespace, or the kind of a policy without one, which no namespace
    /// can be called.
    #[must_use]
    pub fn scope(&self) -> &str {
        self.namespace.as_ref().unwrap_or(&self.kind)
    }

    /// For a line.
    #[must_use]
    pub fn label(&self) -> String {
        let Self { kind, namespace, name } = self;
        printable(&match namespace {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        })
    }
}

impl From<&Policy> for PolicyRef {
    fn from(policy: &Policy) -> Self {
        Self {
            kind: policy.kind().to_owned(),
            namespace: policy.namespace().map(str::to_owned),
            name: policy.name().to_owned(),
        }
    }
}

/// An end of the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedEnd {
    /// `ns/pod`, `node`, `node/NAME`, `world` or the address.
    pub name: String,
    /// The address that it was judged by.
    pub address: String,
    /// `off` for a pod that may send from any address; left out for all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_binding: Option<String>,
}

/// One direction's verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// Allowed or denied.
    pub verdict: Verdict,
    /// A name of [`Reason`].
    pub reason: String,
    /// Of the deciding rule; the first isolating one where isolation decided; else `None`.
    pub policy: Option<PolicyRef>,
    /// 0-based index in `spec.ingress` or `spec.egress`; `None` where no rule decided.
    pub rule: Option<u32>,
    /// Every isolating policy, where isolation decided.
    pub policies: Vec<PolicyRef>,
    /// The namespace that nothing declares, where that is what isolates (S34).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undeclared_namespace: Option<String>,
    /// What the loaded program says; `None` where it cannot be asked.
    pub kernel: Option<Verdict>,
    /// Every rule of the policies that isolate the subject, in the order in which they are asked; the first that
    /// matches decides. None where something else decides.
    pub rules: Vec<ExplainedRule>,
    /// False if it is denied and passes, for the node or every isolating policy is in audit mode; left out where
    /// neither is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced: Option<bool>,
    /// The same by the loaded program; left out where it was not asked, or knows of no audit either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_enforced: Option<bool>,
}

/// The JSON of `explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// Allowed only if both directions allow it.
    pub verdict: Verdict,
    /// The sender's side; `None` if no policy can select that.
    pub egress: Option<Direction>,
    /// The receiver's side; `None` if no policy can select that.
    pub ingress: Option<Direction>,
    /// What the loaded program says; `None` where it cannot be asked.
    pub kernel: Option<Verdict>,
    /// Who sends.
    pub from: ExplainedEnd,
    /// To whom.
    pub to: ExplainedEnd,
    /// `TCP`, `UDP`, `SCTP` or `ICMP`.
    pub protocol: String,
    /// Destination port; ICMP has none.
    pub port: Option<u16>,
    /// Of the addresses.
    pub family: Family,
    /// The smallest change that turns the verdict.
    pub change: ExplainedChange,
    /// False if the verdict is to deny and the packet passes, for neither direction drops it; left out where nothing
    /// is in audit mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced: Option<bool>,
}

/// Whether kernel and classifier say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// They do, or the kernel was not asked.
    Agrees,
    /// They do not: a defect of ours.
    Disagrees,
}

impl Explained {
    /// Compares wherever the kernel answered.
    #[must_use]
    pub fn agreement(&self) -> Agreement {
        let differs = |d: &Option<Direction>| {
            d.as_ref().is_some_and(|d| {
                d.kernel.is_some_and(|kernel| kernel != d.verdict)
                    || d.kernel_enforced.is_some_and(|kernel| kernel != d.enforced.unwrap_or(true))
            })
        };
        let overall = self.kernel.is_some_and(|kernel| kernel != self.verdict);
        if overall || differs(&self.egress) || differs(&self.ingress) {
            Agreement::Disagrees
        } else {
            Agreement::Agrees
        }
    }

    /// How the program ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match (self.agreement(), self.verdict) {
            (Agreement::Disagrees, _) => Exit::Unfit,
            (Agreement::Agrees, Verdict::Allow) => Exit::Fine,
            (Agreement::Agrees, Verdict::Deny) => Exit::Negative,
        }
    }
}

/// Answers.
pub fn explain(
    world: &World,
    kernel: Option<&dyn AskKernel>,
    request: &ExplainRequest,
) -> Result<Reply<Explanation>, AskError> {
    let answers = Answers::new(&world.cluster, &world.desired);
    let mut asker = Asker { world, kernel, answers: &answers, request, notes: Vec::new() };
    let result = asker.explanation()?;
    // The kernel's absence is the same for each backend.
    let mut notes = asker.notes;
    let mut seen = BTreeSet::new();
    notes.retain(|note| seen.insert(note.clone()));
    Ok(Reply { result, notes })
}

/// What every flow of one request is asked by, and what there is to say beside the answers.
struct Asker<'a> {
    world: &'a World,
    kernel: Option<&'a dyn AskKernel>,
    answers: &'a Answers<'a>,
    request: &'a ExplainRequest,
    notes: Vec<String>,
}

impl Asker<'_> {
    fn explanation(&mut self) -> Result<Explanation, AskError> {
        let Self { world, answers, request, .. } = *self;
        let ExplainRequest { from, to, sent, namespace, .. } = request;
        let namespace = namespace.as_deref();
        if service::is_named(&world.cluster, from, namespace) {
            return Err(AskError::ServiceSends(from.clone()));
        }
        if let Some(target) = service::target(&world.cluster, to, *sent, namespace)? {
            return self.backends(&target).map(Explanation::service);
        }
        let Some(Sent::Traffic(traffic)) = *sent else { return Err(AskError::NoTraffic(to.clone())) };
        if let Ok(address) = to.parse::<IpAddr>() {
            let address = address.to_canonical();
            match service::at_address(&world.cluster, answers.directory(), address, traffic) {
                AtAddress::None => {}
                AtAddress::NoPort(words) => {
                    self.notes.push(format!("{address} has no port {traffic}: {words}"));
                }
                AtAddress::Port(target, others) => {
                    if let Some(other) = others.first() {
                        let key = target.key;
                        self.notes
                            .push(format!("Service {other} has {address} {traffic} too: {key} is explained"));
                    }
                    return self.backends(&target).map(Explanation::service);
                }
            }
        }
        self.flow(to, traffic, request.family.map(Into::into)).map(Explanation::flow)
    }

    /// Who sends has to be somebody, also where it is sent to nobody.
    fn sender(&self) -> Result<(), AskError> {
        let (from, namespace) = (&*self.request.from, self.request.namespace.as_deref());
        let wanted = Wanted { from, to: "world", family: None, namespace };
        resolve(self.world, self.answers.directory(), wanted).map(|_| ())
    }

    /// The answer about one flow.
    fn flow(&mut self, to: &str, traffic: Traffic, family: Option<IpFamily>) -> Result<Explained, AskError> {
        let Self { world, kernel, answers, request, .. } = *self;
        let namespace = request.namespace.as_deref();
        let wanted = Wanted { from: &request.from, to, family, namespace };
        let ends = resolve(world, answers.directory(), wanted)?;
        let (from, to) = (&ends.from, &ends.to);
        let answer = answers.answer(&from.party, &to.party, traffic);
        let (egress, ingress) = answers.questions(&from.party, &to.party, traffic);
        let notes = &mut self.notes;
        let heard = kernel.map_or(Heard::default(), |kernel| {
            hear(kernel, (egress.as_ref(), ingress.as_ref())).unwrap_or_else(|error| {
                notes.push(format!("the kernel's answer is missing: {error}"));
                Heard::default()
            })
        });
        if answer.egress.is_none() && answer.ingress.is_none() {
            notes.push(
                "neither end is a pod, or a host whose firewall is on: no policy judges this".to_owned(),
            );
        }
        if from.name == "world" || to.name == "world" {
            notes.push(format!("world is {}", ends.family.world()));
        }
        let (protocol, port) = match traffic {
            Traffic::To(protocol, port) => (protocol.name(), Some(port)),
            Traffic::Echo => ("ICMP", None),
        };
        let change = turn::change(answers, &from.party, &to.party, traffic, &world.problems).into();
        let side = |way: Way, answer: Option<DirectionAnswer>, heard| {
            let (subject, remote) = match way {
                Way::Egress => (&from.party, &to.party),
                Way::Ingress => (&to.party, &from.party),
            };
            answer.map(|answer| {
                let rules = rules::rules(answers, &answer, way, (subject, remote), traffic);
                Direction { rules, ..direction(answer, heard, world.audit) }
            })
        };
        let asked = [(egress.is_some(), heard.egress), (ingress.is_some(), heard.ingress)];
        let verdict = answer.action().into();
        let egress = side(Way::Egress, answer.egress, heard.egress);
        let ingress = side(Way::Ingress, answer.ingress, heard.ingress);
        let both: Vec<&Direction> = egress.iter().chain(&ingress).collect();
        Ok(Explained {
            enforced: enforced_overall(&both),
            verdict,
            egress,
            ingress,
            kernel: overall(asked),
            from: shown(from, answers),
            to: shown(to, answers),
            protocol: protocol.to_owned(),
            port,
            family: ends.family.into(),
            change,
        })
    }
}

/// One deny denies; to allow, every end that was to be asked has to have answered.
fn overall(asked: [(bool, Option<KernelAnswer>); 2]) -> Option<Verdict> {
    let answers = || asked.iter().filter(|(is_asked, _)| *is_asked).map(|(_, answer)| *answer);
    let verdicts = || answers().map(|a| a.map(|a| Verdict::from(a.action)));
    if verdicts().any(|v| v == Some(Verdict::Deny)) {
        Some(Verdict::Deny)
    } else if answers().count() > 0 && verdicts().all(|v| v == Some(Verdict::Allow)) {
        Some(Verdict::Allow)
    } else {
        None
    }
}

fn shown(end: &End, answers: &Answers<'_>) -> ExplainedEnd {
    let binding = match &end.party {
        Party::Pod(key, _) => answers.directory().source_binding(key),
        Party::HostPod(..) | Party::OwnNode(_) | Party::Address(_) => SourceBinding::On,
    };
    ExplainedEnd {
        name: end.name.clone(),
        address: end.party.address().to_string(),
        source_binding: (binding == SourceBinding::Off).then(|| binding.name().to_owned()),
    }
}

/// A verdict to deny is enforced if one direction drops the packet; one to allow always is.
fn enforced_overall(both: &[&Direction]) -> Option<bool> {
    if both.iter().all(|direction| direction.enforced.is_none()) {
        return None;
    }
    let denied = || both.iter().filter(|direction| direction.verdict == Verdict::Deny);
    Some(denied().count() == 0 || denied().any(|direction| direction.enforced != Some(false)))
}

fn direction(answer: DirectionAnswer, kernel: Option<KernelAnswer>, node_audits: bool) -> Direction {
    let is_audited = node_audits || answer.audited;
    let source = answer.decided_by.map(|name| name.source);
    let (policy, rule) = source.as_ref().map_or((None, None), PolicyRef::of);
    let undeclared_namespace = match source {
        Some(RuleSource::UndeclaredNamespace(namespace)) => Some(namespace),
        Some(
            RuleSource::NetworkPolicy(..)
            | RuleSource::Isolation(_)
            | RuleSource::OwnNode
            | RuleSource::HostPolicy(..)
            | RuleSource::HostIsolation(_)
            | RuleSource::Failsafe
            | RuleSource::Closed,
        )
        | None => None,
    };
    let policies = match undeclared_namespace {
        Some(_) => Vec::new(),
        None => answer.policies.iter().map(PolicyRef::from).collect(),
    };
    Direction {
        verdict: answer.action.into(),
        reason: answer.reason.name().to_owned(),
        policy,
        rule,
        policies,
        undeclared_namespace,
        kernel: kernel.map(|k| k.action.into()),
        rules: Vec::new(),
        enforced: is_audited.then_some(answer.action == Action::Allow),
        kernel_enforced: kernel
            .filter(|k| is_audited || k.audited)
            .map(|k| k.action == Action::Allow || !k.audited),
    }
}

/// One direction as lines for people: the verdict's, and one for each rule that did not decide.
pub(super) fn lines(
    answers: &Answers<'_>,
    answer: DirectionAnswer,
    way: Way,
    ends: (&Party, &Party),
    traffic: Traffic,
) -> (String, Vec<String>) {
    let rules = rules::rules(answers, &answer, way, ends, traffic);
    let direction = Direction { rules, ..direction(answer, None, false) };
    let name = way.name();
    let line = table::direction_line(name, Some(&direction), Colour::Plain);
    (line.trim().to_owned(), table::other_rules(name, &direction))
}

/// The reasons, for `--help`.
#[must_use]
pub fn reasons_help() -> String {
    let width = Reason::ALL.iter().map(|reason| reason.name().len()).max().unwrap_or(0);
    Reason::ALL.iter().fold("Reasons:\n".to_owned(), |mut text, reason| {
        let _ = writeln!(text, "  {:width$}  {}", reason.name(), reason.describe());
        text
    })
}

//! The smallest change that turns a verdict. Of edits that do, the smallest turns the fewest other pairs of pods at
//! this protocol and port, for that is what a change risks. Of two that turn as many, denied to allowed prefers a
//! label to a rule (one line, and the policy's author meant such pods), and allowed to denied prefers to take rules
//! out over isolating what is open, which closes every port; then fewer edits, then the receiver's side, whose owner
//! decides who may come.
//!
//! Denied to allowed, for each direction that denies one edit: the label that the other end lacks for a rule whose
//! ports match, where no other selector of the cluster cares about it; or a rule with this peer and this port, in
//! the policy that isolates the fewest pods. Allowed to denied, for one direction: every rule that matches goes,
//! or, where nothing isolates the pod, a policy that does.
//!
//! How many pairs an edit turns is estimated from above, by how many pods its selectors match.

mod advisor;

use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::event::{Action, Direction, Reason};

pub use advisor::{Advisor, Proposal, is_named_by_address};

use crate::answer::{Answers, DirectionAnswer, Party};
use crate::change::{Change, Edit, apply_edits};
use crate::compile::ruleset::passes_always;
use crate::desired::{CounterName, RuleSource};
use crate::frame::Traffic;
use crate::model::{Cluster, IpBlock, ObjectKey, Peer, Peers, Problem, Rule};
use crate::select::Directory;
use crate::why::{Sight, Standing};

/// Why nothing opens the way to a Service.
const VIRTUAL: &str = "no rule allows a Service's virtual address from an isolated pod: ask about one of the \
                       Service's ports, or about a backend and its target port";

/// What to know of a rule that names a pod by its address.
const BY_ADDRESS: &str = "the other end has no lasting labels, so the rule names its address, which its next pod will \
                          not have: better label it first";

/// The smallest change that turns the verdict of a flow. Problems name what is wrong in policies that could not
/// be read.
#[must_use]
pub fn change(
    answers: &Answers<'_>,
    from: &Party,
    to: &Party,
    traffic: Traffic,
    problems: &[Problem],
) -> Change {
    let answer = answers.answer(from, to, traffic);
    let becomes = match answer.action() {
        Action::Allow => Action::Deny,
        Action::Deny => Action::Allow,
    };
    let nothing = |text: &str| Change { becomes, edits: Vec::new(), text: Some(text.to_owned()) };
    let sides = [
        (Direction::Egress, answer.egress.as_ref(), from, to),
        (Direction::Ingress, answer.ingress.as_ref(), to, from),
    ];
    let judged: Vec<Side<'_>> = sides
        .into_iter()
        .filter_map(|(direction, answer, subject, remote)| {
            let (answer, subject) = (answer?, answers.subject(subject)?);
            Some(Side { direction, answer, subject, remote: remote.address() })
        })
        .collect();
    if judged.is_empty() {
        return nothing("no policy judges this, for neither end is a pod, or a host whose firewall is on");
    }
    let proposed = match becomes {
        Action::Allow => to_allow(answers, &judged, traffic, problems),
        Action::Deny => to_deny(answers, &judged, traffic, problems),
    };
    match proposed {
        Ok(edits) => {
            let by_address = judged.iter().any(|side| names_pod(&edits, answers.directory(), side.remote));
            Change { becomes, text: by_address.then(|| BY_ADDRESS.to_owned()), edits }
        }
        Err(why) => nothing(why),
    }
}

/// True if an edit names a pod by its address.
fn names_pod(edits: &[Edit], directory: &Directory<'_>, remote: IpAddr) -> bool {
    let named = Peer::Block(IpBlock { net: IpNet::from(remote), except: Vec::new() });
    directory.owners.contains_key(&remote)
        && edits.iter().any(|edit| match edit {
            Edit::AppendRule { rule: Rule { peers: Peers::Only(peers), .. }, .. } => peers.contains(&named),
            Edit::AppendRule { .. }
            | Edit::CreateNamespace(_)
            | Edit::CreatePolicy(..)
            | Edit::CreateHostPolicy(..)
            | Edit::ReplaceSpec { .. }
            | Edit::RemoveRule { .. }
            | Edit::WriteTypes(_)
            | Edit::AddLabel { .. } => false,
        })
}

/// A direction of the flow that policies judge.
struct Side<'a> {
    direction: Direction,
    answer: &'a DirectionAnswer,
    subject: ObjectKey,
    remote: IpAddr,
}

impl Side<'_> {
    fn sight<'b>(
        &'b self,
        cluster: &'b Cluster,
        directory: &'b Directory<'b>,
        traffic: Traffic,
    ) -> Sight<'b> {
        let Self { direction, ref subject, remote, .. } = *self;
        Sight { cluster, directory, subject, direction, remote, traffic }
    }
}

fn to_allow(
    answers: &Answers<'_>,
    judged: &[Side<'_>],
    traffic: Traffic,
    problems: &[Problem],
) -> Result<Vec<Edit>, &'static str> {
    let denying: Vec<&Side<'_>> = judged.iter().filter(|side| side.answer.action == Action::Deny).collect();
    for side in &denying {
        match (side.answer.reason, &side.answer.decided_by) {
            (Reason::InvalidClosed, None | Some(CounterName { source: RuleSource::Closed, .. }))
                if answers
                    .directory()
                    .subject(&side.subject)
                    .is_some_and(|one| one.facts().is_some_and(|f| !f.pod.has_known_labels())) =>
            {
                return Err("the pod's labels cannot be read, and it is closed: mend its metadata.labels");
            }
            (Reason::InvalidClosed, None | Some(CounterName { source: RuleSource::Closed, .. })) => {
                return Err(
                    "more rules apply than an endpoint can hold, and it is closed: select the pod with fewer \
                     policies",
                );
            }
            (Reason::Isolated | Reason::InvalidClosed, Some(_)) => {}
            (Reason::ServiceNotResolved, _) => return Err(VIRTUAL),
            (_, _) => return Err("no change of policies allows this packet"),
        }
    }
    // A namespace first: once it is declared, other selectors match and other policies isolate.
    let mut cluster = answers.cluster().clone();
    let mut edits = Vec::new();
    for side in &denying {
        let namespace = &side.subject.namespace;
        if !side.subject.is_node() && !cluster.namespaces.contains_key(namespace) {
            let edit = Edit::CreateNamespace(namespace.clone());
            apply_edits(&mut cluster, std::slice::from_ref(&edit));
            edits.push(edit);
        }
    }
    for side in &denying {
        let proposal = {
            let directory = Directory::new(&cluster);
            let sight = side.sight(&cluster, &directory, traffic);
            let is_virtual = !sight.whom().is_some_and(|whom| whom.is_host())
                && side.direction == Direction::Egress
                && directory.virtual_addresses.contains(&side.remote);
            if is_virtual && matches!(sight.standing(), Standing::Isolated(_)) {
                return Err(VIRTUAL);
            }
            Advisor::new(&cluster, &directory, problems).opening(&sight)
        };
        // Both directions may need the same policy: the second edit starts from what the first leaves.
        if let Some(Proposal { edits: of_side, .. }) = proposal {
            apply_edits(&mut cluster, &of_side);
            edits.extend(of_side);
        }
    }
    Ok(edits)
}

/// How large a change from allowed to denied is, what matters most first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Size {
    pairs: usize,
    /// It closes every port, and not only those of some rules.
    isolates: bool,
    edits: usize,
}

fn to_deny(
    answers: &Answers<'_>,
    judged: &[Side<'_>],
    traffic: Traffic,
    problems: &[Problem],
) -> Result<Vec<Edit>, &'static str> {
    let (cluster, directory) = (answers.cluster(), answers.directory());
    let advisor = Advisor::new(cluster, directory, problems);
    let mut best: Option<(Size, Proposal)> = None;
    let mut why = "no policy can deny this";
    // The receiver's side first: of equals the first stays.
    for side in judged.iter().rev() {
        match side.answer.reason {
            Reason::Rule | Reason::NotIsolated => {
                let subject = directory.subject(&side.subject);
                let always = subject.and_then(|subject| {
                    passes_always(cluster, directory, &subject, side.direction, side.remote, traffic)
                });
                if let Some(source) = always {
                    why = passing(&source, side);
                    continue;
                }
                let proposal = advisor.closing(&side.sight(cluster, directory, traffic));
                let isolates = side.answer.reason == Reason::NotIsolated;
                let size = Size { pairs: proposal.pairs, isolates, edits: proposal.edits.len() };
                if best.as_ref().is_none_or(|(held, _)| size < *held) {
                    best = Some((size, proposal));
                }
            }
            Reason::OwnNode => why = passing(&RuleSource::OwnNode, side),
            Reason::SelfTraffic => why = "no policy can deny this: a pod always reaches itself",
            Reason::Failsafe => why = passing(&RuleSource::Failsafe, side),
            // Packets that open nothing; `frame::opening` makes none of them.
            Reason::Isolated
            | Reason::InvalidClosed
            | Reason::Flow
            | Reason::Discovery
            | Reason::RelatedError
            | Reason::UnreadableOpen
            | Reason::Service
            | Reason::ServiceNotResolved
            | Reason::SpoofedSource
            | Reason::NotIp
            | Reason::RouterAdvertisement
            | Reason::Truncated
            | Reason::BadHeader
            | Reason::SourceRoute
            | Reason::Fragment
            | Reason::FragmentAhead
            | Reason::ExtensionHeader
            | Reason::UnrelatedError
            | Reason::TablesUnreadable
            | Reason::UnknownEndpoint
            | Reason::OtherStation => {}
        }
    }
    best.map(|(_, proposal)| proposal.edits).ok_or(why)
}

/// Why no policy denies what passes always.
fn passing(source: &RuleSource, side: &Side<'_>) -> &'static str {
    match (source, side.direction) {
        (RuleSource::Failsafe, _) => "no policy can deny this: the host firewall keeps this port open",
        (_, Direction::Ingress) => "no policy can deny this: a pod's own node always reaches it",
        (_, Direction::Egress) if side.subject.is_node() => {
            "no policy can deny this: a node always reaches its own pods"
        }
        (_, Direction::Egress) => "no policy can deny this: the agent runs with --own-node-egress=allow",
    }
}

#[cfg(test)]
mod tests;

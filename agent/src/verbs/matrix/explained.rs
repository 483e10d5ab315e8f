//! The explanation of every cell, small enough to be carried in a page: pods that policies cannot tell apart share
//! theirs, and every line of text is there once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis_common::event::{Direction as Way, Reason};
use portcullis_policy::answer::{Party, Question};
use portcullis_policy::change::Edit;
use portcullis_policy::convert::printable;
use portcullis_policy::frame::Traffic;
use portcullis_policy::model::{
    Cluster, DirectionSpec, IpBlock, Labels, ObjectKey, Peer, Peers, PolicyRef, Problem, Protocol,
};
use portcullis_policy::select::{PodFacts, block_holds};
use portcullis_policy::turn::{Advisor, is_named_by_address};
use portcullis_policy::why::{Sight, Standing};
use serde::{Deserialize, Serialize};

use super::Filler;
use crate::verbs::explain;

/// The most explanations that one page holds, counted by direction, port and pair of groups: 300 pods that are all
/// different, at three ports, need 540,000.
pub const MAX_EXPLAINED: usize = 600_000;

/// Explanations of the cells of matrices that share an order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanations {
    /// Every piece of text, once.
    pub texts: Vec<String>,
    /// Every line: two places in `texts`, of which the first is what the second is said of.
    pub lines: Vec<(usize, usize)>,
    /// Every list of lines: places in `lines`. The first is empty.
    pub lists: Vec<Vec<usize>>,
    /// Explanations of one direction; the first stands for none.
    pub notes: Vec<Note>,
    /// The sender's side.
    pub egress: Side,
    /// The receiver's side.
    pub ingress: Side,
    /// Ports whose explanations were left out, for there would be more than the bound.
    pub left_out: Vec<String>,
}

/// One direction's explanation: the place in `lines` of the verdict and what decided; the places in `lists` of the
/// rules that did not, and of what would turn it. No change where [`Side::isolation`] tells or nothing does.
pub type Note = (usize, usize, usize);

/// The explanations of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// For each pod the group that it is in as a subject: the same policies select it.
    pub subjects: Vec<usize>,
    /// For each pod the group that it is in as a peer: the same selectors match it.
    pub peers: Vec<usize>,
    /// For each port, subject group and peer group a place in [`Explanations::notes`].
    pub notes: Vec<Vec<Vec<usize>>>,
    /// For each pod how to isolate it, a place in [`Explanations::lists`].
    pub isolation: Vec<usize>,
}

/// Gives equal values the same number.
struct Numbers<T> {
    places: BTreeMap<T, usize>,
}

impl<T: Ord + Clone> Numbers<T> {
    fn starting_with(first: T) -> Self {
        Self { places: BTreeMap::from([(first, 0)]) }
    }

    fn of(&mut self, value: T) -> usize {
        let next = self.places.len();
        *self.places.entry(value).or_insert(next)
    }

    /// The values in the order of their numbers.
    fn into_values(self) -> Vec<T> {
        let mut all: Vec<(usize, T)> = self.places.into_iter().map(|(value, place)| (place, value)).collect();
        all.sort_unstable_by_key(|(place, _)| *place);
        all.into_iter().map(|(_, value)| value).collect()
    }
}

/// What makes a peer another one, to every rule of the cluster.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct PeerKey<'a> {
    namespace: &'a str,
    labels: &'a Labels,
    named_ports: &'a BTreeMap<(String, Protocol), u16>,
    blocks: Vec<bool>,
    address: Option<IpAddr>,
}

/// What makes a subject another one: its namespace, the policies that isolate it, and on ingress its named ports.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct SubjectKey<'a> {
    namespace: &'a str,
    policies: Vec<PolicyRef>,
    named_ports: Option<&'a BTreeMap<(String, Protocol), u16>>,
}

/// Explains every cell of these ports, as many ports as the bound has room for.
pub(super) fn explained(
    filler: &Filler<'_>,
    ports: &[Traffic],
    problems: &[Problem],
    bound: usize,
) -> Explanations {
    let (cluster, directory) = (filler.answers.cluster(), filler.answers.directory());
    let advisor = Advisor::new(cluster, directory, problems);
    let mut maker = Maker {
        filler,
        advisor,
        texts: Numbers::starting_with(String::new()),
        lines: Numbers::starting_with((0, 0)),
        lists: Numbers::starting_with(Vec::new()),
        notes: Numbers::starting_with((0, 0, 0)),
        left: bound,
    };
    let (mut egress, mut ingress) = (maker.side(Way::Egress), maker.side(Way::Ingress));
    let mut left_out = Vec::new();
    for traffic in ports {
        let needed = size(filler, &egress) + size(filler, &ingress);
        if let Some(left) = maker.left.checked_sub(needed) {
            maker.left = left;
            for (way, side) in [(Way::Egress, &mut egress), (Way::Ingress, &mut ingress)] {
                let notes = maker.port(way, side, *traffic);
                side.notes.push(notes);
            }
        } else {
            left_out.push(traffic.to_string());
            for side in [&mut egress, &mut ingress] {
                side.notes.push(Vec::new());
            }
        }
    }
    let Maker { texts, lines, lists, notes, .. } = maker;
    Explanations {
        texts: texts.into_values(),
        lines: lines.into_values(),
        lists: lists.into_values(),
        notes: notes.into_values(),
        egress,
        ingress,
        left_out,
    }
}

/// How many explanations a port needs: for each pair of groups, but for those outside of the wanted namespaces. All
/// pods of a group are of one namespace.
fn size(filler: &Filler<'_>, side: &Side) -> usize {
    let groups = |of: &[usize]| {
        let outside = of.iter().zip(&filler.order).filter(|(_, (key, _))| !filler.scope.touches(key, key));
        let outside: BTreeSet<usize> = outside.map(|(group, _)| *group).collect();
        (of.iter().max().map_or(0, |last| last + 1), outside.len())
    };
    let ((subjects, subjects_outside), (peers, peers_outside)) =
        (groups(&side.subjects), groups(&side.peers));
    subjects * peers - subjects_outside * peers_outside
}

/// How the policies of a pod see an address.
fn sight<'s>(
    filler: &'s Filler<'_>,
    subject: &'s ObjectKey,
    direction: Way,
    remote: IpAddr,
    traffic: Traffic,
) -> Sight<'s> {
    let (cluster, directory) = (filler.answers.cluster(), filler.answers.directory());
    Sight { cluster, directory, subject, direction, remote, traffic }
}

struct Maker<'a, 'f> {
    filler: &'f Filler<'a>,
    advisor: Advisor<'f>,
    texts: Numbers<String>,
    lines: Numbers<(usize, usize)>,
    lists: Numbers<Vec<usize>>,
    notes: Numbers<Note>,
    left: usize,
}

impl Maker<'_, '_> {
    /// Groups, and the texts that a pod has of its own.
    fn side(&mut self, way: Way) -> Side {
        let filler = self.filler;
        let blocks = blocks(filler.answers.cluster());
        let facts = |key: &ObjectKey| filler.answers.directory().pods.get(key);
        let mut subjects: BTreeMap<SubjectKey<'_>, usize> = BTreeMap::new();
        let mut peers: BTreeMap<PeerKey<'_>, usize> = BTreeMap::new();
        let mut side = Side::default();
        for (key, address) in &filler.order {
            let Some(facts) = facts(key) else { continue };
            let next = subjects.len();
            let subject = subject_key(facts, &sight(filler, key, way, *address, Traffic::Echo));
            side.subjects.push(*subjects.entry(subject).or_insert(next));
            let next = peers.len();
            side.peers.push(*peers.entry(peer_key(facts, *address, &blocks)).or_insert(next));
            let isolation = self.advisor.isolation(&sight(filler, key, way, *address, Traffic::Echo));
            side.isolation.push(self.edits(&isolation.edits));
        }
        side
    }

    fn port(&mut self, way: Way, side: &Side, traffic: Traffic) -> Vec<Vec<usize>> {
        let (subjects, peers) = (members(&side.subjects), members(&side.peers));
        subjects
            .iter()
            .map(|subjects| peers.iter().map(|peers| self.note(way, (subjects, peers), traffic)).collect())
            .collect()
    }

    /// The explanation of any two pods of these groups; 0 where no cell needs it.
    fn note(&mut self, way: Way, (subjects, peers): (&[usize], &[usize]), traffic: Traffic) -> usize {
        let filler = self.filler;
        let pod = |place: &usize| filler.order.get(*place);
        let pairs = subjects.iter().flat_map(|subject| peers.iter().map(move |peer| (subject, peer)));
        let wanted = pairs.filter(|(subject, peer)| subject != peer).find_map(|(subject, peer)| {
            let (subject, peer) = (pod(subject)?, pod(peer)?);
            filler.scope.touches(&subject.0, &peer.0).then_some((subject, peer))
        });
        let Some((subject, peer)) = wanted else { return 0 };
        let party = |(key, address): &(ObjectKey, IpAddr)| Party::Pod(key.clone(), *address);
        let (own, other) = (party(subject), party(peer));
        let question: Option<Question> = match way {
            Way::Egress => filler.answers.questions(&own, &other, traffic).0,
            Way::Ingress => filler.answers.questions(&other, &own, traffic).1,
        };
        let Some(question) = question else { return 0 };
        let answer = filler.answers.direction(&question);
        let sight = sight(filler, &subject.0, way, peer.1, traffic);
        let edits = if answer.reason == Reason::Rule {
            self.advisor.closing(&sight).edits
        } else if answer.decided_by.is_some() {
            self.advisor.opening(&sight).map(|proposal| proposal.edits).unwrap_or_default()
        } else {
            Vec::new()
        };
        let (line, rules) = explain::lines(&filler.answers, answer, way, (&own, &other), traffic);
        let line = self.line(&line, "  ");
        let rules: Vec<usize> = rules.iter().map(|text| self.line(text, "  ")).collect();
        let note = (line, self.lists.of(rules), self.edits(&edits));
        self.notes.of(note)
    }

    /// The place of a list of edits.
    fn edits(&mut self, edits: &[Edit]) -> usize {
        let lines = edits.iter().map(|edit| self.line(&printable(&text_of(edit)), ": ")).collect();
        self.lists.of(lines)
    }

    /// The place of a line, cut behind its first separator: what comes before names a rule or an object, and what
    /// comes after is often said of others too.
    fn line(&mut self, text: &str, separator: &str) -> usize {
        let cut = text.find(separator).map_or(0, |at| at + separator.len());
        let (of, said) = text.split_at(cut);
        let pieces = (self.texts.of(of.to_owned()), self.texts.of(said.to_owned()));
        self.lines.of(pieces)
    }
}

/// Words that fit every pod of a group.
fn text_of(edit: &Edit) -> String {
    match edit {
        Edit::AddLabel { key, value, .. } => {
            format!(
                "give the other end the label {key}={value}, in the template of its workload if it has one"
            )
        }
        Edit::CreateNamespace(_)
        | Edit::CreatePolicy(..)
        | Edit::CreateHostPolicy(..)
        | Edit::ReplaceSpec { .. }
        | Edit::AppendRule { .. }
        | Edit::RemoveRule { .. }
        | Edit::WriteTypes(_) => edit.text(),
    }
}

/// The places of each group's members.
fn members(groups: &[usize]) -> Vec<Vec<usize>> {
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, group) in groups.iter().enumerate() {
        members.entry(*group).or_default().push(place);
    }
    members.into_values().collect()
}

fn subject_key<'a>(facts: &PodFacts<'a>, sight: &Sight<'a>) -> SubjectKey<'a> {
    let policies = match sight.standing() {
        Standing::Open | Standing::Unknown | Standing::Undeclared => Vec::new(),
        Standing::Isolated(policies) => policies.into_iter().map(|one| one.policy).collect(),
    };
    let named_ports = match sight.direction {
        Way::Ingress => Some(&facts.pod.named_ports),
        Way::Egress => None,
    };
    SubjectKey { namespace: facts.namespace, policies, named_ports }
}

fn peer_key<'a>(facts: &PodFacts<'a>, address: IpAddr, blocks: &[&IpBlock]) -> PeerKey<'a> {
    PeerKey {
        namespace: facts.namespace,
        labels: &facts.pod.labels,
        named_ports: &facts.pod.named_ports,
        // Which except takes an address away is told too.
        blocks: blocks
            .iter()
            .flat_map(|block| {
                let excepts = block.except.iter().map(|except| except.contains(&address));
                std::iter::once(block_holds(block, address)).chain(excepts)
            })
            .collect(),
        address: is_named_by_address(facts).then_some(address),
    }
}

/// Every ipBlock of the cluster, once.
fn blocks(cluster: &Cluster) -> Vec<&IpBlock> {
    let mut all: Vec<&IpBlock> = Vec::new();
    for policy in cluster.policies.values() {
        for side in [&policy.ingress, &policy.egress] {
            let DirectionSpec::Isolated { rules, .. } = side else { continue };
            for rule in rules {
                let Peers::Only(peers) = &rule.peers else { continue };
                all.extend(peers.iter().filter_map(|peer| match peer {
                    Peer::Block(block) => Some(block),
                    Peer::Pods { .. } | Peer::Nodes(_) => None,
                }));
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

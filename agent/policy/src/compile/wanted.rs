//! What each pod should have: the rulesets that its policies make, each once, beside those that are in force. Knows
//! nothing of room.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portcullis_common::event::Direction;
use portcullis_common::wire::{MAX_CHUNKS, MAX_RULESET_RANGES, ROW_BITS};

use super::Compiler;
use super::built::{Built, namespace_of};
use super::ruleset::{RuleContent, closed, rules_of};
use crate::desired::EndpointRulesets;
use crate::model::{Cluster, ObjectKey, Problem, Severity};
use crate::select::{Directory, Subject};

/// A ruleset that somebody wants, or that is in force and that its endpoint may have to keep.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) rules: Vec<RuleContent>,
    pub(super) built: Arc<Built>,
    /// Its number, if it has one.
    pub(super) number: Option<u32>,
    pub(super) is_wanted: bool,
    /// The candidates that are in force where this one is wanted.
    pub(super) replaces: BTreeSet<usize>,
}

impl Candidate {
    pub(super) fn is_new(&self) -> bool {
        self.number.is_none()
    }

    pub(super) fn namespace(&self) -> &str {
        namespace_of(&self.rules)
    }
}

/// What a direction of a pod should have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Want {
    Open,
    /// It exceeds what any endpoint can hold.
    Closed,
    /// A candidate's place, and of a host the place of what it has where that finds no room: closed but for what
    /// always passes.
    Rules(usize, Option<usize>),
}

/// What all pods want.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) pods: BTreeMap<ObjectKey, [(Direction, Want); 2]>,
    pub(super) candidates: Vec<Candidate>,
    pub(super) problems: Vec<Problem>,
}

impl Wanted {
    pub(super) fn want(&self, pod: &ObjectKey, direction: Direction) -> Option<Want> {
        self.pods.get(pod)?.iter().find(|(of, _)| *of == direction).map(|(_, want)| *want)
    }
}

impl Compiler {
    /// What each pod should have, each ruleset once.
    pub(super) fn wanted<'a>(
        &self,
        cluster: &Cluster,
        directory: &Directory<'_>,
        subjects: impl IntoIterator<Item = &'a ObjectKey>,
        in_force: &BTreeMap<ObjectKey, EndpointRulesets>,
    ) -> Wanted {
        let contents: BTreeMap<u32, &Vec<RuleContent>> =
            self.rulesets.contents().map(|(content, id)| (id, content)).collect();
        let mut wanted = Wanted::default();
        let mut places: BTreeMap<Vec<RuleContent>, usize> = BTreeMap::new();
        let mut place_of = |rules: &Vec<RuleContent>, candidates: &mut Vec<Candidate>| {
            if let Some(place) = places.get(rules) {
                return *place;
            }
            let number = self.rulesets.number(rules);
            let known = number.and_then(|number| self.built.get(&number));
            let built = known.map_or_else(|| Arc::new(Built::new(rules)), Arc::clone);
            let (rules, replaces) = (rules.clone(), BTreeSet::new());
            places.insert(rules.clone(), candidates.len());
            candidates.push(Candidate { rules, built, number, is_wanted: false, replaces });
            candidates.len() - 1
        };
        for key in subjects {
            let Some(subject) = directory.subject(key) else {
                continue;
            };
            let is_unknown = matches!(subject, Subject::Pod(facts) if !facts.pod.has_known_labels());
            let mut want = |direction| {
                // Nobody knows which policies select it.
                if is_unknown {
                    return Want::Closed;
                }
                let Some(rules) = rules_of(cluster, directory, key, &subject, direction) else {
                    return Want::Open;
                };
                let spare = subject.is_host().then(|| {
                    place_of(&closed(cluster, directory, &subject, direction), &mut wanted.candidates)
                });
                let mut place = place_of(&rules, &mut wanted.candidates);
                let Some(built) = wanted.candidates.get(place).map(|one| Arc::clone(&one.built)) else {
                    return Want::Closed;
                };
                if let Some(problem) = exceeding(key, direction, &rules, &built) {
                    wanted.problems.push(problem);
                    match spare {
                        Some(spare) => place = spare,
                        None => return Want::Closed,
                    }
                }
                let now = in_force.get(key).map(|of| u32::from(of.of(direction)));
                let old =
                    now.and_then(|id| contents.get(&id)).map(|old| place_of(old, &mut wanted.candidates));
                if let Some(one) = wanted.candidates.get_mut(place) {
                    one.is_wanted = true;
                    one.replaces.extend(old.filter(|old| *old != place));
                }
                Want::Rules(place, spare)
            };
            let wants = [Direction::Ingress, Direction::Egress].map(|direction| (direction, want(direction)));
            wanted.pods.insert(key.clone(), wants);
        }
        wanted
    }
}

/// What no endpoint can hold, as a problem.
fn exceeding(key: &ObjectKey, direction: Direction, rules: &[RuleContent], built: &Built) -> Option<Problem> {
    let rule_limit = (MAX_CHUNKS * ROW_BITS) as usize;
    if rules.len() <= rule_limit && built.ports.len() <= MAX_RULESET_RANGES as usize {
        return None;
    }
    Some(Problem {
        severity: Severity::Error,
        object: key.object(),
        field: String::new(),
        message: format!(
            "{} rules with {} port ranges apply to its {}, more than the {rule_limit} and {MAX_RULESET_RANGES} that \
             an endpoint can hold; its {} is closed: select it with fewer policies",
            rules.len(),
            built.ports.len(),
            direction.name(),
            direction.name(),
        ),
        location: None,
    })
}

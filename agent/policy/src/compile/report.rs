//! What is said of rulesets that have no room: which pods and policies, which table, who has most of it, what to do.

use std::collections::{BTreeMap, BTreeSet};

use super::ruleset::RuleContent;
use super::wanted::{Want, Wanted};
use super::{Compiler, Held, Instead, fit};
use crate::desired::RuleSource;
use crate::model::{Problem, Severity};
use crate::sizes::Table;

/// How the message of a problem begins that tells of a full table.
pub const NO_ROOM: &str = "no room in the table";

/// Policies that a problem names; of more it tells the number.
const NAMED_POLICIES: usize = 3;

impl Compiler {
    /// One problem for each ruleset that has no room.
    pub(super) fn held_problems(
        &self,
        wanted: &Wanted,
        refused: &BTreeMap<usize, Table>,
        held: &[Held],
    ) -> Vec<Problem> {
        let mut pods: BTreeMap<usize, Vec<&Held>> = BTreeMap::new();
        for one in held {
            if let Some(Want::Rules(place, _)) = wanted.want(&one.pod, one.direction) {
                pods.entry(place).or_default().push(one);
            }
        }
        let mut users: BTreeMap<Table, String> = BTreeMap::new();
        let problem = |(place, held): (usize, Vec<&Held>)| {
            let (candidate, first) = (wanted.candidates.get(place)?, held.first()?);
            let table = first.table;
            let (capacity, share) = (self.sizes.of_bank(table), fit::share(&self.sizes, table));
            let user = users.entry(table).or_insert_with(|| {
                let served = (0..).zip(&wanted.candidates).filter(|(at, _)| !refused.contains_key(at));
                fit::biggest_user(served.map(|(_, one)| one), table)
                    .map(|(namespace, count)| format!("; namespace {namespace} has most of it, {count}"))
                    .unwrap_or_default()
            });
            let instead = |what: Instead| held.iter().filter(|one| one.instead == what).count();
            Some(Problem {
                severity: Severity::Error,
                object: first.pod.object(),
                field: String::new(),
                message: format!(
                    "{NO_ROOM} {table} for its {} rules, of {}: they need {} of {capacity}, of which a namespace can \
                     have {share}{user}; {} pods with these rules keep their last ones, {} are closed: start the agent \
                     with a larger --map-size {table}=N, or use fewer rules",
                    first.direction.name(),
                    policies_of(&candidate.rules),
                    candidate.built.takes(table),
                    instead(Instead::Last),
                    instead(Instead::Closed),
                ),
                location: None,
            })
        };
        pods.into_iter().filter_map(problem).collect()
    }
}

fn policies_of(rules: &[RuleContent]) -> String {
    let names: BTreeSet<String> = rules
        .iter()
        .map(|rule| match &rule.name.source {
            RuleSource::NetworkPolicy(key, _) | RuleSource::Isolation(key) => format!("NetworkPolicy {key}"),
            RuleSource::UndeclaredNamespace(name) => format!("undeclared Namespace {name}"),
            RuleSource::HostPolicy(name, _) | RuleSource::HostIsolation(name) => format!("HostPolicy {name}"),
            RuleSource::OwnNode => "--own-node-egress".to_owned(),
            RuleSource::Failsafe | RuleSource::Closed => "the host firewall".to_owned(),
        })
        .collect();
    let first: Vec<&str> = names.iter().take(NAMED_POLICIES).map(String::as_str).collect();
    match names.len().saturating_sub(NAMED_POLICIES) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

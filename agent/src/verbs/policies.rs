//! `policies`: what each policy does here.

use std::fmt::Write as _;
use std::path::Path;

use clap::Args;
use portcullis_policy::convert::printable;
use portcullis_policy::model::Severity;
use serde::{Deserialize, Serialize};

use super::table::columns;
use super::{Face, Failure};
use crate::api::{PodName, Request, client};
use crate::observe::filter::NameText;
use crate::output::Exit;

/// Which policies are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoliciesRequest {
    /// This one only.
    pub policy: Option<NameText>,
    /// Those of this namespace only.
    pub namespace: Option<String>,
}

/// What is asked without a subcommand.
#[derive(Clone, Debug, Args)]
pub struct PoliciesAsk {
    /// One policy, with its rules and problems: NAMESPACE/NAME, or HostPolicy/NAME
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(value_name = "POLICY")]
    policy: Option<NameText>,
    /// Those of one namespace
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "policy")]
    namespace: Option<String>,
    /// Those of all namespaces, as without -n
    #[arg(short = 'A', long, conflicts_with_all = ["policy", "namespace"])]
    all_namespaces: bool,
}

impl From<PoliciesAsk> for PoliciesRequest {
    fn from(ask: PoliciesAsk) -> Self {
        Self { policy: ask.policy, namespace: ask.namespace }
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReport {
    /// `NetworkPolicy` or `HostPolicy`.
    pub kind: String,
    /// Its name.
    #[serde(flatten)]
    pub name: PodName,
    /// `enforce` or `audit`: its own, whatever the node's.
    pub mode: String,
    /// Since when it is in force as it is, as far as this agent knows; RFC 3339, UTC.
    pub since: Option<String>,
    /// Pods of the cluster that it selects.
    pub selects: u64,
    /// Those of them that are enforced here.
    pub selects_here: Vec<PodName>,
    /// `ingress` and `egress`, where it isolates.
    pub directions: Vec<DirectionReport>,
    /// What is wrong or odd.
    pub problems: Vec<ProblemReport>,
}

/// A direction that a policy isolates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionReport {
    /// `ingress` or `egress`.
    pub direction: String,
    /// Its rules, in order.
    pub rules: Vec<RuleReport>,
    /// What no rule allowed, where this is the first policy that isolates the pod; others' drops count there.
    pub isolation: Hits,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReport {
    /// Its index.
    pub rule: u32,
    /// What it decided: of a flow, the packet that opened it.
    #[serde(flatten)]
    pub hits: Hits,
}

/// What was counted; all `None` where nothing here uses the rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    /// Packets.
    pub packets: Option<u64>,
    /// Bytes, from the IP header on.
    pub bytes: Option<u64>,
    /// The last one; RFC 3339, UTC; `None` if there was none since the agent started.
    pub last_hit: Option<String>,
}

/// Something wrong or odd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemReport {
    /// `note`, `warning` or `error`.
    pub severity: String,
    /// What kind: `invalid`, `selects-nothing-here`, or one of the findings'.
    pub kind: String,
    /// The field, empty where it is the whole object.
    pub field: String,
    /// What, and the remedy.
    pub message: String,
}

impl ProblemReport {
    /// The word of a severity.
    #[must_use]
    pub const fn severity(severity: Severity) -> &'static str {
        match severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// Asks the running agent.
pub fn policies(run_dir: &Path, request: PoliciesRequest, face: Face) -> Result<Exit, Failure> {
    let one = request.policy.is_some();
    let policies: Vec<PolicyReport> = client::ask(run_dir, &Request::Policies(request))?.answer()?;
    face.show(&policies, || match policies.as_slice() {
        [policy] if one => detail(policy),
        _ => table(&policies),
    })?;
    Ok(Exit::Fine)
}

/// A line for each.
#[must_use]
pub fn table(policies: &[PolicyReport]) -> String {
    let row = |one: &PolicyReport| {
        let all = || one.directions.iter().flat_map(|direction| &direction.rules);
        let latest = all().filter_map(|rule| rule.hits.last_hit.as_deref()).max();
        let words: Vec<&str> = one.directions.iter().map(|direction| direction.direction.as_str()).collect();
        let denied = total(one.directions.iter().map(|direction| direction.isolation.packets));
        [
            printable(&one.name.namespace),
            printable(&one.name.name),
            words.join(","),
            format!("{}/{}", one.selects_here.len(), one.selects),
            all().count().to_string(),
            total(all().map(|rule| rule.hits.packets)),
            denied,
            latest.map_or_else(|| "-".to_owned(), short),
            one.since.as_deref().map_or_else(|| "-".to_owned(), short),
            one.problems.len().to_string(),
        ]
    };
    let rows: Vec<[String; 10]> = policies.iter().map(row).collect();
    let head = [
        "NAMESPACE",
        "NAME",
        "ISOLATES",
        "HERE/PODS",
        "RULES",
        "HITS",
        "DENIED",
        "LAST HIT",
        "SINCE",
        "PROBLEMS",
    ];
    columns(head, &rows)
}

/// Everything about one.
#[must_use]
pub fn detail(policy: &PolicyReport) -> String {
    let name = |pod: &PodName| printable(&format!("{}/{}", pod.namespace, pod.name));
    let mut text = format!("{} {}\n", policy.kind, name(&policy.name));
    // Writing to a string cannot fail.
    let mut line = |indent: usize, words: String| {
        let _ = writeln!(text, "{:indent$}{words}", "");
    };
    if policy.mode != "enforce" {
        line(2, format!("mode {}: its isolation drops nothing", policy.mode));
    }
    if let Some(since) = &policy.since {
        line(2, format!("in force since {}", short(since)));
    }
    line(2, format!("pods selected: {}, here {}", policy.selects, policy.selects_here.len()));
    for pod in &policy.selects_here {
        line(4, name(pod));
    }
    for direction in &policy.directions {
        line(2, format!("{} isolated, denied {}", direction.direction, hits(&direction.isolation)));
        for rule in &direction.rules {
            line(4, format!("spec.{}[{}]: {}", direction.direction, rule.rule, hits(&rule.hits)));
        }
    }
    for problem in &policy.problems {
        let field = if problem.field.is_empty() { String::new() } else { format!("{}: ", problem.field) };
        line(2, printable(&format!("{} {}: {field}{}", problem.severity, problem.kind, problem.message)));
    }
    text
}

fn hits(hits: &Hits) -> String {
    match (hits.packets, hits.bytes) {
        (Some(packets), Some(bytes)) => {
            let last = hits.last_hit.as_deref().map(|last| format!(", last {}", short(last)));
            format!("{packets} packets, {bytes} bytes{}", last.unwrap_or_default())
        }
        (None, _) | (_, None) => "not used here".to_owned(),
    }
}

/// The sum of what is known; `-` where nothing is.
fn total(each: impl Iterator<Item = Option<u64>>) -> String {
    let known: Vec<u64> = each.flatten().collect();
    if known.is_empty() { "-".to_owned() } else { known.iter().sum::<u64>().to_string() }
}

/// Without fractions of a second.
fn short(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(whole, _)| format!("{whole}Z"))
}

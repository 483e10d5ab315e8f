//! The rules of a direction as `explain` shows them, each with why it does not match.

use portcullis_common::event::{Direction as Way, Reason};
use portcullis_policy::answer::{Answers, DirectionAnswer, Party};
use portcullis_policy::frame::Traffic;
use portcullis_policy::why::{Finding, Miss, Sight, WhyNot};
use serde::{Deserialize, Serialize};

use super::PolicyRef;

/// What one rule says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedRule {
    /// Its policy.
    pub policy: PolicyRef,
    /// 0-based index in `spec.ingress` or `spec.egress`.
    pub rule: u32,
    /// Whether it matches; the first that does decides.
    pub matched: bool,
    /// Why it does not match; `None` where it does.
    pub why: Option<ExplainedWhy>,
}

/// Why a rule does not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedWhy {
    /// `peer`, `port`, `protocol` or `invalid`.
    pub kind: String,
    /// For people.
    pub text: String,
    /// For each peer of the rule what it wants and does not find.
    pub misses: Vec<ExplainedMiss>,
    /// The ports that the rule names, where the packet's is none of them.
    pub ports: Vec<String>,
}

/// What a peer wants and does not find.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedMiss {
    /// `pod`, `namespace` or `address`.
    pub of: String,
    /// As a selector is written, or a range.
    pub wants: String,
    /// What is there instead; `None`: nothing.
    pub has: Option<String>,
}

impl From<Finding> for ExplainedRule {
    fn from(finding: Finding) -> Self {
        Self {
            policy: PolicyRef::from(&finding.policy),
            rule: finding.rule,
            matched: finding.why.is_none(),
            why: finding.why.map(Into::into),
        }
    }
}

impl From<WhyNot> for ExplainedWhy {
    fn from(why: WhyNot) -> Self {
        let WhyNot { kind, text, misses, ports } = why;
        let misses = misses.into_iter().map(Into::into).collect();
        Self { kind: kind.name().to_owned(), text, misses, ports }
    }
}

impl From<Miss> for ExplainedMiss {
    fn from(miss: Miss) -> Self {
        Self { of: miss.of.name().to_owned(), wants: miss.wants, has: miss.has }
    }
}

/// The rules that were asked; none where something before them decided.
pub(super) fn rules(
    answers: &Answers<'_>,
    answer: &DirectionAnswer,
    direction: Way,
    (subject, remote): (&Party, &Party),
    traffic: Traffic,
) -> Vec<ExplainedRule> {
    let asked = matches!(answer.reason, Reason::Rule | Reason::Isolated | Reason::InvalidClosed)
        && answer.decided_by.is_some();
    let Some(subject) = answers.subject(subject).filter(|_| asked) else { return Vec::new() };
    let (cluster, directory) = (answers.cluster(), answers.directory());
    let sight = Sight { cluster, directory, subject: &subject, direction, remote: remote.address(), traffic };
    sight.findings().into_iter().map(Into::into).collect()
}

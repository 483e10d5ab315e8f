//! NetworkPolicy (S5 to S27, S49), and what a HostPolicy shares with it. Whatever cannot be understood closes: the invariant of this file is that
//! no mistake in a manifest allows more than leaving the mistaken part out of it would.

use serde_json::Value;

use super::mode::mode;
use super::peers::{Owner, peers};
use super::ports::ports;
use super::report::{Path, Report, quoted};
use super::selector::{Unreadable, selector};
use super::shape::{
    EGRESS_RULE, ENVELOPE, Fields, HOST_EGRESS_RULE, HOST_INGRESS_RULE, INGRESS_RULE, SELECTOR, SPEC, Shape,
    check, check_fields,
};
use super::value::{Object, Read, entry, field, list, what_is, wrong_type};
use crate::model::{DirectionSpec, IsolationCause, NetworkPolicy, Rule, Selector, Severity, Subject};

const CLOSES: &str = "the policy isolates what it selects both ways and allows nothing";

/// Reads a NetworkPolicy of `namespace`. It always gives a policy: one that cannot be read isolates.
#[must_use]
pub fn network_policy(value: &Value, namespace: &str, report: &mut Report) -> NetworkPolicy {
    let no_fields = Object::new();
    let fields = value.as_object().unwrap_or(&no_fields);
    check_fields(fields, ENVELOPE, Path::ROOT, report, Severity::Warning, "it has no effect");
    let mode = mode(value, report);
    let path = Path::ROOT.field("spec");
    let policy = match field(fields, "spec") {
        Some(Value::Object(spec)) => read_spec(spec, namespace, path, report),
        Some(other) => {
            wrong_type(other, "a mapping", path, report, "the policy isolates its whole namespace both ways");
            closed(&Object::new())
        }
        None => {
            report.warning(
                path,
                "is missing: the policy isolates every pod of its namespace for ingress; indent what belongs \
                 to it, or take the policy out",
            );
            read_spec(&Object::new(), namespace, path, report)
        }
    };
    NetworkPolicy { mode, ..policy }
}

/// Where a policy stands towards one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Not its concern.
    Ignored,
    /// Isolated as written; its rules count.
    Written,
    /// Isolated because something could not be read; no rule counts.
    Closed,
}

impl Standing {
    fn closed_if_isolated(self) -> Self {
        match self {
            Self::Ignored => Self::Ignored,
            Self::Written | Self::Closed => Self::Closed,
        }
    }
}

struct Standings {
    ingress: Standing,
    egress: Standing,
}

struct Direction {
    name: &'static str,
    policy_type: &'static str,
    peers: &'static str,
    rule: &'static Shape,
    host_rule: &'static Shape,
}

const INGRESS: Direction = Direction {
    name: "ingress",
    policy_type: "Ingress",
    peers: "from",
    rule: &INGRESS_RULE,
    host_rule: &HOST_INGRESS_RULE,
};
const EGRESS: Direction = Direction {
    name: "egress",
    policy_type: "Egress",
    peers: "to",
    rule: &EGRESS_RULE,
    host_rule: &HOST_EGRESS_RULE,
};

/// What a policy says about both directions.
pub(super) struct Directions {
    pub(super) ingress: DirectionSpec,
    pub(super) egress: DirectionSpec,
}

impl Directions {
    /// Both closed; the rules are there for their indices only.
    pub(super) fn closed(spec: &Object) -> Self {
        Self { ingress: closed_direction(spec, &INGRESS), egress: closed_direction(spec, &EGRESS) }
    }

    /// Reads types and rules of a spec. Where something outside of the rules is unknown, both directions close; where
    /// the policy's subject cannot be read, those that it isolates do.
    pub(super) fn read(
        spec: &Object,
        outside: Fields,
        subject: SubjectRead,
        owner: Owner<'_>,
        path: Path<'_>,
        report: &mut Report,
    ) -> Self {
        let mut standings = policy_types(spec, path, report);
        if outside == Fields::Unknown {
            standings = Standings { ingress: Standing::Closed, egress: Standing::Closed };
        }
        if subject == SubjectRead::Unreadable {
            standings = Standings {
                ingress: standings.ingress.closed_if_isolated(),
                egress: standings.egress.closed_if_isolated(),
            };
        }
        Self {
            ingress: direction(spec, &INGRESS, standings.ingress, owner, path, report),
            egress: direction(spec, &EGRESS, standings.egress, owner, path, report),
        }
    }
}

/// Whether a policy's subject could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SubjectRead {
    /// All of it.
    Whole,
    /// It selects more than was meant, so none of its rules counts (S13).
    Unreadable,
}

fn read_spec(spec: &Object, namespace: &str, path: Path<'_>, report: &mut Report) -> NetworkPolicy {
    let spec_fields = check_fields(spec, SPEC, path, report, Severity::Error, CLOSES);
    let (subject_fields, subject) = read_subject(spec, path, report);
    let (subject, read) = match subject {
        Ok(subject) => (Subject::Pods(subject), SubjectRead::Whole),
        Err(Unreadable::Requirement) => (Subject::Unreadable, SubjectRead::Unreadable),
        // Nothing is known of what was meant, so neither direction is left open.
        Err(Unreadable::Type) => {
            policy_types(spec, path, report);
            return closed(spec);
        }
    };
    let owner = Owner::Namespace(namespace);
    let Directions { ingress, egress } =
        Directions::read(spec, spec_fields.and(subject_fields), read, owner, path, report);
    NetworkPolicy { mode: None, subject, ingress, egress }
}

/// Reads `spec.podSelector`. With an unknown field it selects what its known fields select (S49).
fn read_subject(
    spec: &Object,
    path: Path<'_>,
    report: &mut Report,
) -> (Fields, Result<Selector, Unreadable>) {
    let Some(value) = field(spec, "podSelector") else {
        return (Fields::Known, Ok(Selector::default()));
    };
    let path = path.field("podSelector");
    let fields = check(value, &SELECTOR, path, report, Severity::Error, CLOSES);
    (fields, selector(value, path, report))
}

/// A policy of which nothing is understood: it isolates its namespace both ways.
fn closed(spec: &Object) -> NetworkPolicy {
    let Directions { ingress, egress } = Directions::closed(spec);
    NetworkPolicy { mode: None, subject: Subject::Unreadable, ingress, egress }
}

/// A closed direction; the rules are there for their indices only.
fn closed_direction(spec: &Object, direction: &Direction) -> DirectionSpec {
    let count = field(spec, direction.name).and_then(Value::as_array).map_or(0, Vec::len);
    DirectionSpec::Isolated { rules: vec![Rule::nothing(); count], cause: IsolationCause::Invalid }
}

/// Reads `policyTypes` (S6).
fn policy_types(spec: &Object, path: Path<'_>, report: &mut Report) -> Standings {
    let means =
        "the policy isolates both directions, and rules of a direction that is not named do not count";
    let types = match list(spec, "policyTypes", path, report, means) {
        Read::Absent | Read::Is([]) => return defaulted(spec),
        Read::WrongType => return Standings { ingress: Standing::Closed, egress: Standing::Closed },
        Read::Is(types) => types,
    };
    let path = path.field("policyTypes");
    let mut standings = Standings { ingress: Standing::Ignored, egress: Standing::Ignored };
    let mut unknown = false;
    for (index, value) in types.iter().enumerate() {
        match value.as_str() {
            Some("Ingress") => standings.ingress = Standing::Written,
            Some("Egress") => standings.egress = Standing::Written,
            Some(other) => {
                unknown = true;
                report.error(
                    path.index(index),
                    format_args!("{} is unknown: {means}; write Ingress or Egress", quoted(other)),
                );
            }
            None => {
                unknown = true;
                wrong_type(value, "a string", path.index(index), report, means);
            }
        }
    }
    if unknown {
        for standing in [&mut standings.ingress, &mut standings.egress] {
            if *standing == Standing::Ignored {
                *standing = Standing::Closed;
            }
        }
    }
    standings
}

/// Without policyTypes: Ingress, and Egress too if there are egress rules. Egress rules of a wrong type are
/// rules that somebody meant.
fn defaulted(spec: &Object) -> Standings {
    let egress = match field(spec, EGRESS.name) {
        None => Standing::Ignored,
        Some(Value::Array(rules)) if rules.is_empty() => Standing::Ignored,
        Some(_) => Standing::Written,
    };
    Standings { ingress: Standing::Written, egress }
}

fn direction(
    spec: &Object,
    direction: &Direction,
    standing: Standing,
    owner: Owner<'_>,
    path: Path<'_>,
    report: &mut Report,
) -> DirectionSpec {
    match standing {
        Standing::Closed => closed_direction(spec, direction),
        Standing::Ignored => {
            if field(spec, direction.name).is_some_and(|rules| rules.as_array().is_none_or(|r| !r.is_empty()))
            {
                report.warning(
                    path.field(direction.name),
                    format_args!(
                        "does not count, for policyTypes does not name {}; name it or take the rules out",
                        direction.policy_type
                    ),
                );
            }
            DirectionSpec::Ignored
        }
        Standing::Written => {
            let means = "the direction is isolated and nothing in it is allowed";
            match list(spec, direction.name, path, report, means) {
                Read::Absent | Read::WrongType => {
                    DirectionSpec::Isolated { rules: Vec::new(), cause: IsolationCause::Written }
                }
                Read::Is(entries) => {
                    let path = path.field(direction.name);
                    let read = |(index, value)| rule(value, direction, owner, path.index(index), report);
                    DirectionSpec::Isolated {
                        rules: entries.iter().enumerate().map(read).collect(),
                        cause: IsolationCause::Written,
                    }
                }
            }
        }
    }
}

fn rule(value: &Value, direction: &Direction, owner: Owner<'_>, path: Path<'_>, report: &mut Report) -> Rule {
    let means = "the rule matches nothing";
    if value.is_null() {
        report.error(
            path,
            format_args!("is {}: {means}; write {{}} for a rule that allows everything", what_is(value)),
        );
        return Rule::nothing();
    }
    let Some(fields) = entry(value, path, report, means) else {
        return Rule::nothing();
    };
    // S49 goes first: with an unknown field nothing that stands beside it can be trusted.
    let shape = match owner {
        Owner::Namespace(_) => direction.rule,
        Owner::Hosts => direction.host_rule,
    };
    if check(value, shape, path, report, Severity::Error, means) == Fields::Unknown {
        return Rule::nothing();
    }
    Rule { peers: peers(fields, direction.peers, owner, path, report), ports: ports(fields, path, report) }
}

//! Which fields a NetworkPolicy and a HostPolicy may have. An unknown field closes (S49): `port:` for `ports:` must not mean
//! every port.

use serde_json::Value;

use super::report::{Path, Report};
use super::value::Object;
use crate::model::Severity;

/// The names that a mapping may have, each with what stands there.
pub(crate) type Known = [(&'static str, &'static Shape)];

/// The fields that a part of an object may have.
#[derive(Debug)]
pub(crate) enum Shape {
    /// Not looked into: a scalar, a mapping with free keys, or a part that is checked by itself.
    Any,
    /// A mapping with these fields.
    Object(&'static Known),
    /// A list of such.
    List(&'static Shape),
}

/// A label selector.
pub(crate) const SELECTOR: Shape = Shape::Object(&[
    ("matchLabels", &Shape::Any),
    (
        "matchExpressions",
        &Shape::List(&Shape::Object(&[
            ("key", &Shape::Any),
            ("operator", &Shape::Any),
            ("values", &Shape::Any),
        ])),
    ),
]);

const PEERS: Shape = Shape::List(&Shape::Object(&[
    ("podSelector", &SELECTOR),
    ("namespaceSelector", &SELECTOR),
    ("ipBlock", &Shape::Object(&[("cidr", &Shape::Any), ("except", &Shape::Any)])),
]));

const PORTS: Shape = Shape::List(&Shape::Object(&[
    ("protocol", &Shape::Any),
    ("port", &Shape::Any),
    ("endPort", &Shape::Any),
]));

/// A rule of `spec.ingress`.
pub(crate) const INGRESS_RULE: Shape = Shape::Object(&[("from", &PEERS), ("ports", &PORTS)]);

/// A rule of `spec.egress`.
pub(crate) const EGRESS_RULE: Shape = Shape::Object(&[("to", &PEERS), ("ports", &PORTS)]);

/// Nodes by label, as a peer and as a subject.
const NODES: Shape = Shape::Object(&[("nodeSelector", &SELECTOR)]);

const HOST_PEERS: Shape = Shape::List(&Shape::Object(&[
    ("podSelector", &SELECTOR),
    ("namespaceSelector", &SELECTOR),
    ("ipBlock", &Shape::Object(&[("cidr", &Shape::Any), ("except", &Shape::Any)])),
    ("nodes", &NODES),
]));

/// A rule of a HostPolicy's `spec.ingress`.
pub(crate) const HOST_INGRESS_RULE: Shape = Shape::Object(&[("from", &HOST_PEERS), ("ports", &PORTS)]);

/// A rule of a HostPolicy's `spec.egress`.
pub(crate) const HOST_EGRESS_RULE: Shape = Shape::Object(&[("to", &HOST_PEERS), ("ports", &PORTS)]);

/// `spec.subject` of a HostPolicy.
pub(crate) const HOST_SUBJECT: Shape = Shape::Object(&[
    ("nodes", &NODES),
    ("pods", &Shape::Object(&[("namespaceSelector", &SELECTOR), ("podSelector", &SELECTOR)])),
]);

/// `spec` of a HostPolicy.
pub(crate) const HOST_SPEC: &Known = &[
    ("mode", &Shape::Any),
    ("subject", &Shape::Any),
    ("policyTypes", &Shape::Any),
    ("ingress", &Shape::Any),
    ("egress", &Shape::Any),
];

/// `spec`, what stands inside its fields left to whoever reads them.
pub(crate) const SPEC: &Known = &[
    ("podSelector", &Shape::Any),
    ("policyTypes", &Shape::Any),
    ("ingress", &Shape::Any),
    ("egress", &Shape::Any),
];

/// A policy outside its spec. `status` of a NetworkPolicy existed from Kubernetes 1.24 to 1.27.
pub(crate) const ENVELOPE: &Known = &[
    ("apiVersion", &Shape::Any),
    ("kind", &Shape::Any),
    ("metadata", &METADATA),
    ("spec", &Shape::Any),
    ("status", &Shape::Any),
];

/// `ObjectMeta` of Kubernetes, fields that were once there included.
const METADATA: Shape = Shape::Object(&[
    ("annotations", &Shape::Any),
    ("clusterName", &Shape::Any),
    ("creationTimestamp", &Shape::Any),
    ("deletionGracePeriodSeconds", &Shape::Any),
    ("deletionTimestamp", &Shape::Any),
    ("finalizers", &Shape::Any),
    ("generateName", &Shape::Any),
    ("generation", &Shape::Any),
    ("labels", &Shape::Any),
    ("managedFields", &Shape::Any),
    ("name", &Shape::Any),
    ("namespace", &Shape::Any),
    ("ownerReferences", &Shape::Any),
    ("resourceVersion", &Shape::Any),
    ("selfLink", &Shape::Any),
    ("uid", &Shape::Any),
]);

/// Whether every field is a known one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fields {
    /// All of them.
    Known,
    /// At least one is not; each has been reported.
    Unknown,
}

impl Fields {
    pub(crate) fn and(self, other: Self) -> Self {
        match self {
            Self::Known => other,
            Self::Unknown => Self::Unknown,
        }
    }
}

/// Reports every unknown field in `value`. Wrong types are not this function's concern: what has another
/// type than its shape is closed by whoever reads it. `means` says what follows.
pub(crate) fn check(
    value: &Value,
    shape: &Shape,
    path: Path<'_>,
    report: &mut Report,
    severity: Severity,
    means: &str,
) -> Fields {
    match (shape, value) {
        (Shape::Object(known), Value::Object(fields)) => {
            check_fields(fields, known, path, report, severity, means)
        }
        (Shape::List(shape), Value::Array(entries)) => {
            let mut found = Fields::Known;
            for (index, value) in entries.iter().enumerate() {
                found = found.and(check(value, shape, path.index(index), report, severity, means));
            }
            found
        }
        (Shape::Any | Shape::Object(_) | Shape::List(_), _) => Fields::Known,
    }
}

/// Reports every unknown field in a mapping. One closes also where it is `null`: its name alone says that
/// something else was meant.
pub(crate) fn check_fields(
    fields: &Object,
    known: &Known,
    path: Path<'_>,
    report: &mut Report,
    severity: Severity,
    means: &str,
) -> Fields {
    let mut found = Fields::Known;
    for (name, value) in fields {
        let path = path.field(name);
        let entry = known.iter().find(|(known_name, _)| known_name == name);
        let inner = if let Some((_, shape)) = entry {
            check(value, shape, path, report, severity, means)
        } else {
            report.push(severity, path, format_args!("is unknown: {means}; {}", remedy(known)));
            Fields::Unknown
        };
        found = found.and(inner);
    }
    found
}

fn remedy(known: &Known) -> String {
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    format!("mend its spelling or take it out (known here: {})", names.join(", "))
}

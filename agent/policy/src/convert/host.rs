//! HostPolicy (H1 to H4): who it selects. Its rules are read as a NetworkPolicy's are.

use serde_json::Value;

use super::peers::Owner;
use super::policy::{Directions, SubjectRead};
use super::report::{Path, Report, quoted};
use super::selector::selector;
use super::shape::{ENVELOPE, Fields, HOST_SPEC, HOST_SUBJECT, check, check_fields};
use super::value::{Object, Read, entry, field, object, wrong_type};
use crate::model::{HostPolicy, HostSubject, Mode, Selector, Severity};

const CLOSES: &str = "the policy isolates what it selects both ways and allows nothing";
const EVERYONE: &str = "the policy selects every node and every hostNetwork pod, and allows nothing";

/// Reads a HostPolicy. It always gives a policy: one that cannot be read isolates (H3).
#[must_use]
pub fn host_policy(value: &Value, report: &mut Report) -> HostPolicy {
    let no_fields = Object::new();
    let fields = value.as_object().unwrap_or(&no_fields);
    check_fields(fields, ENVELOPE, Path::ROOT, report, Severity::Warning, "it has no effect");
    let path = Path::ROOT.field("spec");
    match field(fields, "spec") {
        Some(Value::Object(spec)) => read_spec(spec, path, report),
        Some(other) => {
            wrong_type(other, "a mapping", path, report, EVERYONE);
            let Directions { ingress, egress } = Directions::closed(&no_fields);
            HostPolicy { mode: Mode::Enforce, subject: HostSubject::Unreadable, ingress, egress }
        }
        None => {
            report.error(path, format_args!("is missing: {EVERYONE}; write it, or take the policy out"));
            read_spec(&no_fields, path, report)
        }
    }
}

fn read_spec(spec: &Object, path: Path<'_>, report: &mut Report) -> HostPolicy {
    let spec_fields = check_fields(spec, HOST_SPEC, path, report, Severity::Error, CLOSES);
    let (mode_fields, mode) = read_mode(spec, path, report);
    let (subject_fields, subject, read) = read_subject(spec, path, report);
    let outside = spec_fields.and(mode_fields).and(subject_fields);
    let Directions { ingress, egress } = Directions::read(spec, outside, read, Owner::Hosts, path, report);
    HostPolicy { mode, subject, ingress, egress }
}

/// Reads `spec.mode`; one that says nothing that has a meaning closes as an unknown field does.
fn read_mode(spec: &Object, path: Path<'_>, report: &mut Report) -> (Fields, Mode) {
    let path = path.field("mode");
    let Some(value) = field(spec, "mode") else { return (Fields::Known, Mode::Enforce) };
    match value.as_str() {
        Some("Enforce") => (Fields::Known, Mode::Enforce),
        Some("Audit") => (Fields::Known, Mode::Audit),
        Some(other) => {
            report
                .error(path, format_args!("{} is unknown: {CLOSES}; write Enforce or Audit", quoted(other)));
            (Fields::Unknown, Mode::Enforce)
        }
        None => {
            wrong_type(value, "a string", path, report, CLOSES);
            (Fields::Unknown, Mode::Enforce)
        }
    }
}

/// Reads `spec.subject`. With an unknown field it selects what its known fields select (S49).
fn read_subject(spec: &Object, path: Path<'_>, report: &mut Report) -> (Fields, HostSubject, SubjectRead) {
    let unreadable = |fields| (fields, HostSubject::Unreadable, SubjectRead::Unreadable);
    let path = path.field("subject");
    let one = "give exactly one of nodes and pods";
    let Some(value) = field(spec, "subject") else {
        report.error(path, format_args!("is missing: {EVERYONE}; {one}"));
        return unreadable(Fields::Known);
    };
    let Some(subject) = entry(value, path, report, EVERYONE) else { return unreadable(Fields::Known) };
    let fields = check(value, &HOST_SUBJECT, path, report, Severity::Error, CLOSES);
    let nodes = object(subject, "nodes", path, report, EVERYONE);
    let pods = object(subject, "pods", path, report, EVERYONE);
    let (subject, read) = match (nodes, pods) {
        (Read::Is(nodes), Read::Absent) => {
            let (nodes, read) = one_selector(nodes, "nodeSelector", path.field("nodes"), report);
            (HostSubject::Nodes(nodes), read)
        }
        (Read::Absent, Read::Is(pods)) => {
            let path = path.field("pods");
            let (namespaces, of_namespaces) = one_selector(pods, "namespaceSelector", path, report);
            let (pods, of_pods) = one_selector(pods, "podSelector", path, report);
            match (of_namespaces, of_pods) {
                (SubjectRead::Whole, SubjectRead::Whole) => {
                    (HostSubject::Pods { namespaces, pods }, SubjectRead::Whole)
                }
                // Every one of them, whatever the other selector says.
                (SubjectRead::Unreadable, _) | (_, SubjectRead::Unreadable) => {
                    let all = Selector::default;
                    (HostSubject::Pods { namespaces: all(), pods: all() }, SubjectRead::Unreadable)
                }
            }
        }
        (Read::Absent, Read::Absent) => {
            report.error(path, format_args!("selects nothing: {EVERYONE}; {one}"));
            return unreadable(fields);
        }
        (Read::Is(_), Read::Is(_)) => {
            report
                .error(path, format_args!("has nodes and pods: {EVERYONE}; {one}, make two policies of it"));
            return unreadable(fields);
        }
        (Read::WrongType, _) | (_, Read::WrongType) => return unreadable(fields),
    };
    (fields, subject, read)
}

/// Reads a selector that may be absent; one that cannot be read matches everything.
fn one_selector(parent: &Object, name: &str, path: Path<'_>, report: &mut Report) -> (Selector, SubjectRead) {
    match field(parent, name).map(|value| selector(value, path.field(name), report)) {
        None => (Selector::default(), SubjectRead::Whole),
        Some(Ok(selector)) => (selector, SubjectRead::Whole),
        Some(Err(_)) => (Selector::default(), SubjectRead::Unreadable),
    }
}

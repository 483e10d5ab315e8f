//! `ports` of a rule (S21, S24, S25).

use serde_json::Value;

use super::report::{Path, Report, quoted};
use super::value::{Object, Read, entry, field, list, text, wrong_type};
use crate::model::{PortMatch, PortSpec, Ports, Protocol};

/// The longest name of a port in Kubernetes.
const MAX_PORT_NAME: usize = 15;

const NOTHING: &str = "the entry matches nothing";

/// Reads `ports`; `path` leads to the rule.
pub(crate) fn ports(rule: &Object, path: Path<'_>, report: &mut Report) -> Ports {
    match list(rule, "ports", path, report, "the rule matches nothing") {
        Read::Absent | Read::Is([]) => Ports::Any,
        Read::WrongType => Ports::Only(Vec::new()),
        Read::Is(entries) => {
            let path = path.field("ports");
            let read = |(index, value)| port_match(value, path.index(index), report);
            Ports::Only(entries.iter().enumerate().filter_map(read).collect())
        }
    }
}

fn port_match(value: &Value, path: Path<'_>, report: &mut Report) -> Option<PortMatch> {
    let fields = entry(value, path, report, NOTHING)?;
    let protocol = protocol(fields, path, report);
    let port = port_spec(fields, path, report);
    Some(PortMatch { protocol: protocol?, port: port? })
}

/// Reads `protocol`, TCP where it is absent.
pub(crate) fn protocol(fields: &Object, path: Path<'_>, report: &mut Report) -> Option<Protocol> {
    let name = match text(fields, "protocol", path, report, NOTHING) {
        Read::Absent => return Some(Protocol::Tcp),
        Read::WrongType => return None,
        Read::Is(name) => name,
    };
    let protocol = Protocol::from_name(name);
    if protocol.is_none() {
        report.error(
            path.field("protocol"),
            format_args!("{} is no protocol: {NOTHING}; write TCP, UDP or SCTP", quoted(name)),
        );
    }
    protocol
}

/// A whole number from 1 to 65535 that is written as a number.
pub(crate) fn port_number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)
}

fn port_spec(fields: &Object, path: Path<'_>, report: &mut Report) -> Option<PortSpec> {
    let port_path = path.field("port");
    let port = match field(fields, "port") {
        None => PortSpec::All,
        Some(value @ Value::Number(_)) => {
            let Some(number) = port_number(value) else {
                report.error(
                    port_path,
                    format_args!("{value} is no port: {NOTHING}; write a whole number from 1 to 65535"),
                );
                return None;
            };
            PortSpec::Range(number, number)
        }
        Some(Value::String(name)) => {
            if !is_port_name(name) {
                report.error(
                    port_path,
                    format_args!(
                        "{} is no port name: {NOTHING}; write a number without quotes, or at most \
                         {MAX_PORT_NAME} of a-z, 0-9 and single inner dashes, one a letter",
                        quoted(name)
                    ),
                );
                return None;
            }
            PortSpec::Named(name.clone())
        }
        Some(other @ (Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_))) => {
            wrong_type(other, "a number or a name", port_path, report, NOTHING);
            return None;
        }
    };
    match field(fields, "endPort") {
        None => Some(port),
        Some(end) => range(&port, end, path.field("endPort"), report),
    }
}

fn range(port: &PortSpec, end: &Value, path: Path<'_>, report: &mut Report) -> Option<PortSpec> {
    let PortSpec::Range(first, _) = port else {
        report.error(path, format_args!("needs a numeric port: {NOTHING}; give port as a number"));
        return None;
    };
    let last = port_number(end).filter(|last| last >= first);
    if last.is_none() {
        let text = quoted(&end.to_string());
        report.error(
            path,
            format_args!("{text} ends no range: {NOTHING}; write a whole number from {first} to 65535"),
        );
    }
    Some(PortSpec::Range(*first, last?))
}

/// `IsValidPortName` of Kubernetes' validation.
fn is_port_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() <= MAX_PORT_NAME
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.iter().any(u8::is_ascii_lowercase)
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-')
}

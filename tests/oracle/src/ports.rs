//! `ports` of a rule: reading the entries and matching traffic. A named port asks the destination for its number;
//! who that is, the caller knows.

use serde_json::Value;

use crate::read::{field, port_number};
use crate::verdict::{Protocol, Traffic};
use crate::workload::Pod;

/// What a rule says about ports.
#[derive(Debug)]
pub(crate) enum Ports {
    /// S21: no `ports`: every protocol and port, ICMP echo too.
    Every,
    /// Any one of the entries has to match (S22).
    Of(Vec<Entry>),
}

/// One entry of `ports`.
#[derive(Debug)]
pub(crate) enum Entry {
    /// S24: matches nothing.
    Invalid,
    /// S21: no port: every port of the protocol.
    Protocol(Protocol),
    /// S24: both ends inclusive; a single port is a range of one.
    Range(Protocol, u16, u16),
    /// S25: a named port.
    Named(Protocol, String),
}

impl Ports {
    /// Reads a rule's `ports`. A field of the wrong type matches nothing.
    pub(crate) fn read(rule: &Value) -> Ports {
        let Some(ports) = field(rule, "ports") else { return Ports::Every };
        match ports.as_array() {
            None => Ports::Of(Vec::new()),
            Some(entries) if entries.is_empty() => Ports::Every,
            // S24: a list of invalid entries stays a list that matches nothing.
            Some(entries) => {
                Ports::Of(entries.iter().map(|entry| read_entry(entry).unwrap_or(Entry::Invalid)).collect())
            }
        }
    }

    /// Whether traffic to `destination` matches; none stands for a destination that is no pod.
    pub(crate) fn matches(&self, traffic: Traffic, destination: Option<&Pod>) -> bool {
        match (self, traffic) {
            (Ports::Every, _) => true,
            // Echo follows the rules that name no ports.
            (Ports::Of(_), Traffic::IcmpEcho) => false,
            (Ports::Of(entries), Traffic::To(protocol, port)) => {
                entries.iter().any(|entry| entry.matches(protocol, port, destination))
            }
        }
    }
}

impl Entry {
    /// S27: an entry for one protocol opens no other. S23: the port is the destination pod's.
    fn matches(&self, protocol: Protocol, port: u16, destination: Option<&Pod>) -> bool {
        match self {
            Entry::Invalid => false,
            Entry::Protocol(mine) => *mine == protocol,
            Entry::Range(mine, first, last) => *mine == protocol && (*first..=*last).contains(&port),
            // S25: resolved for each destination; S26: what is no pod declares no port.
            Entry::Named(mine, name) => {
                *mine == protocol && destination.and_then(|pod| pod.named_port(name, *mine)) == Some(port)
            }
        }
    }
}

/// S24: one entry, none if it is invalid.
fn read_entry(entry: &Value) -> Option<Entry> {
    if !entry.is_object() {
        return None;
    }
    let protocol = match field(entry, "protocol") {
        None => Protocol::Tcp,
        Some(protocol) => Protocol::parse(protocol.as_str()?)?,
    };
    match (field(entry, "port"), field(entry, "endPort")) {
        (None, None) => Some(Entry::Protocol(protocol)),
        (None, Some(_)) => None,
        (Some(port), None) if port.is_string() => {
            let name = port.as_str()?;
            is_port_name(name).then(|| Entry::Named(protocol, name.to_owned()))
        }
        (Some(port), None) => {
            let port = port_number(port)?;
            Some(Entry::Range(protocol, port, port))
        }
        (Some(port), Some(end)) => {
            let (port, end) = (port_number(port)?, port_number(end)?);
            (port <= end).then_some(Entry::Range(protocol, port, end))
        }
    }
}

/// `IANA_SVC_NAME`: 1 to 15 of a-z, 0-9 and single inner hyphens, with a letter; so a numeric string is none.
fn is_port_name(name: &str) -> bool {
    name.len() <= 15
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

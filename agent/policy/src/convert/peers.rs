//! `from` and `to` of a rule (S10 to S13, S16 to S20).

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::Value;

use super::cidr::cidr;
use super::report::{Path, Report, quoted};
use super::selector::selector;
use super::value::{Object, Read, entry, field, list, text, wrong_type};
use crate::model::{IpBlock, NamespaceScope, Peer, Peers, Selector};

const NOTHING: &str = "the peer matches nothing";

/// Reads the peers of a rule from `name` (`from` or `to`); `namespace` is the policy's own.
pub(crate) fn peers(
    rule: &Object,
    name: &str,
    namespace: &str,
    path: Path<'_>,
    report: &mut Report,
) -> Peers {
    match list(rule, name, path, report, "the rule matches nothing") {
        Read::Absent | Read::Is([]) => Peers::Any,
        Read::WrongType => Peers::Only(Vec::new()),
        Read::Is(entries) => {
            let path = path.field(name);
            let read = |(index, value)| peer(value, namespace, path.index(index), report);
            Peers::Only(entries.iter().enumerate().filter_map(read).collect())
        }
    }
}

fn peer(value: &Value, namespace: &str, path: Path<'_>, report: &mut Report) -> Option<Peer> {
    let fields = entry(value, path, report, NOTHING)?;
    let pods = field(fields, "podSelector");
    let namespaces = field(fields, "namespaceSelector");
    match (field(fields, "ipBlock"), namespaces, pods) {
        (None, None, None) => {
            report.error(
                path,
                format_args!("has no field: {NOTHING}; give podSelector, namespaceSelector or ipBlock"),
            );
            None
        }
        (Some(block), None, None) => ip_block(block, path.field("ipBlock"), report).map(Peer::Block),
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            report.error(
                path.field("ipBlock"),
                format_args!("stands beside a selector: {NOTHING}; make two entries of it"),
            );
            None
        }
        (None, namespaces, pods) => pod_peer(namespaces, pods, namespace, path, report),
    }
}

fn pod_peer(
    namespaces: Option<&Value>,
    pods: Option<&Value>,
    namespace: &str,
    path: Path<'_>,
    report: &mut Report,
) -> Option<Peer> {
    // Both are read before either is judged, so that everything wrong is reported.
    let namespaces = match namespaces {
        None => Some(NamespaceScope::Named(namespace.to_owned())),
        Some(value) => {
            selector(value, path.field("namespaceSelector"), report).ok().map(NamespaceScope::Matching)
        }
    };
    let pods = match pods {
        None => Some(Selector::default()),
        Some(value) => selector(value, path.field("podSelector"), report).ok(),
    };
    Some(Peer::Pods { namespaces: namespaces?, pods: pods? })
}

fn ip_block(value: &Value, path: Path<'_>, report: &mut Report) -> Option<IpBlock> {
    let fields = entry(value, path, report, NOTHING)?;
    let net = match text(fields, "cidr", path, report, NOTHING) {
        Read::Is(cidr) => read_cidr(cidr, path.field("cidr"), report),
        Read::WrongType => None,
        Read::Absent => {
            report.error(
                path.field("cidr"),
                format_args!("is missing: {NOTHING}; write a range such as 10.0.0.0/8"),
            );
            None
        }
    };
    let excepts = match list(fields, "except", path, report, NOTHING) {
        Read::Absent => &[][..],
        Read::WrongType => return None,
        Read::Is(entries) => entries,
    };
    let except_path = path.field("except");
    let mut readable = true;
    let mut except = BTreeSet::new();
    for (index, value) in excepts.iter().enumerate() {
        match read_except(value, net, except_path.index(index), report) {
            Except::Unreadable => readable = false,
            Except::Nothing => {}
            Except::Takes(net) => {
                except.insert(net);
            }
        }
    }
    let net = net?;
    readable.then(|| IpBlock { net, except: except.into_iter().collect() })
}

/// What an except takes from its block.
enum Except {
    /// It cannot be read: the whole block matches nothing.
    Unreadable,
    /// It lies outside.
    Nothing,
    /// This part.
    Takes(IpNet),
}

fn read_except(value: &Value, net: Option<IpNet>, path: Path<'_>, report: &mut Report) -> Except {
    let Value::String(text) = value else {
        wrong_type(value, "a string", path, report, NOTHING);
        return Except::Unreadable;
    };
    let (Some(except), Some(net)) = (read_cidr(text, path, report), net) else {
        return Except::Unreadable;
    };
    match (net, except) {
        (IpNet::V4(_), IpNet::V6(_)) | (IpNet::V6(_), IpNet::V4(_)) => {
            report.error(
                path,
                format_args!("{} is of another address family than cidr: {NOTHING}; mend it", quoted(text)),
            );
            Except::Unreadable
        }
        (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_)) => {
            if net.contains(&except) {
                Except::Takes(except)
            } else if except.contains(&net) {
                report.warning(path, "covers the whole cidr: the block matches nothing; narrow it");
                Except::Takes(net)
            } else {
                report.warning(path, "lies outside cidr and takes nothing away; mend it or take it out");
                Except::Nothing
            }
        }
    }
}

fn read_cidr(text: &str, path: Path<'_>, report: &mut Report) -> Option<IpNet> {
    let net = cidr(text);
    if net.is_none() {
        report.error(
            path,
            format_args!(
                "{} is no CIDR: {NOTHING}; write an address and a prefix length, such as 10.0.0.0/8 or \
                 fd00::/8",
                quoted(text)
            ),
        );
    }
    net
}

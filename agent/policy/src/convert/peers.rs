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

/// Whose policy it is: it says where a peer without namespaceSelector is looked for, and whether peers can be nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner<'a> {
    /// A namespace's, by its name: pods of the same.
    Namespace(&'a str),
    /// The hosts': pods of every namespace, and nodes.
    Hosts,
}

/// Reads the peers of a rule from `name` (`from` or `to`).
pub(crate) fn peers(
    rule: &Object,
    name: &str,
    owner: Owner<'_>,
    path: Path<'_>,
    report: &mut Report,
) -> Peers {
    match list(rule, name, path, report, "the rule matches nothing") {
        Read::Absent | Read::Is([]) => Peers::Any,
        Read::WrongType => Peers::Only(Vec::new()),
        Read::Is(entries) => {
            let path = path.field(name);
            let read = |(index, value)| peer(value, owner, path.index(index), report);
            Peers::Only(entries.iter().enumerate().filter_map(read).collect())
        }
    }
}

fn peer(value: &Value, owner: Owner<'_>, path: Path<'_>, report: &mut Report) -> Option<Peer> {
    let fields = entry(value, path, report, NOTHING)?;
    let pods = field(fields, "podSelector");
    let namespaces = field(fields, "namespaceSelector");
    let (nodes, kinds) = match owner {
        Owner::Namespace(_) => (None, "podSelector, namespaceSelector or ipBlock"),
        Owner::Hosts => (field(fields, "nodes"), "podSelector, namespaceSelector, ipBlock or nodes"),
    };
    match (field(fields, "ipBlock"), namespaces, pods, nodes) {
        (None, None, None, None) => {
            report.error(path, format_args!("has no field: {NOTHING}; give {kinds}"));
            None
        }
        (Some(block), None, None, None) => ip_block(block, path.field("ipBlock"), report).map(Peer::Block),
        (None, None, None, Some(nodes)) => node_peer(nodes, path.field("nodes"), report),
        (_, _, _, Some(_)) => {
            report.error(
                path.field("nodes"),
                format_args!("stands beside a peer of another kind: {NOTHING}; make two entries of it"),
            );
            None
        }
        (Some(_), _, _, None) => {
            report.error(
                path.field("ipBlock"),
                format_args!("stands beside a selector: {NOTHING}; make two entries of it"),
            );
            None
        }
        (None, namespaces, pods, None) => pod_peer(namespaces, pods, owner, path, report),
    }
}

fn node_peer(value: &Value, path: Path<'_>, report: &mut Report) -> Option<Peer> {
    let fields = entry(value, path, report, NOTHING)?;
    let nodes = match field(fields, "nodeSelector") {
        None => Selector::default(),
        Some(value) => selector(value, path.field("nodeSelector"), report).ok()?,
    };
    Some(Peer::Nodes(nodes))
}

fn pod_peer(
    namespaces: Option<&Value>,
    pods: Option<&Value>,
    owner: Owner<'_>,
    path: Path<'_>,
    report: &mut Report,
) -> Option<Peer> {
    // Both are read before either is judged, so that everything wrong is reported.
    let namespaces = match (namespaces, owner) {
        (None, Owner::Namespace(own)) => Some(NamespaceScope::Named(own.to_owned())),
        (None, Owner::Hosts) => Some(NamespaceScope::Matching(Selector::default())),
        (Some(value), _) => {
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

//! Whether one thing matches all that another does, told from how they are written. "Yes" holds for every cluster;
//! "no" may be wrong.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::convert::METADATA_NAME;
use crate::model::{
    IpBlock, NamespaceScope, Operator, Peer, Peers, PortMatch, PortSpec, Ports, Protocol, Requirement, Rule,
    Selector, Subject,
};

/// True for a rule none of whose peers or ports could be read.
pub(super) fn is_nothing(rule: &Rule) -> bool {
    let nobody = match &rule.peers {
        Peers::Any => false,
        Peers::Only(list) => list.is_empty(),
    };
    let nowhere = match &rule.ports {
        Ports::Any => false,
        Ports::Only(list) => list.is_empty(),
    };
    nobody || nowhere
}

/// True if the first selects every pod that the second does, both in one namespace.
pub(super) fn subject_covers(wide: &Subject, narrow: &Subject) -> bool {
    match (wide, narrow) {
        (Subject::Pods(wide), Subject::Pods(narrow)) => selector_covers(wide, narrow),
        // What cannot be read allows nothing, so it makes nothing needless.
        (Subject::Unreadable, _) | (_, Subject::Unreadable) => false,
    }
}

/// True if the first allows all that the second does. A rule that allows nothing is no matter of this.
pub(super) fn rule_covers(wide: &Rule, narrow: &Rule) -> bool {
    !is_nothing(wide)
        && !is_nothing(narrow)
        && peers_cover(&wide.peers, &narrow.peers)
        && ports_cover(&wide.ports, &narrow.ports)
}

fn peers_cover(wide: &Peers, narrow: &Peers) -> bool {
    match (wide, narrow) {
        (Peers::Any, _) => true,
        (Peers::Only(_), Peers::Any) => false,
        (Peers::Only(wide), Peers::Only(narrow)) => {
            narrow.iter().all(|peer| wide.iter().any(|other| peer_covers(other, peer)))
        }
    }
}

fn peer_covers(wide: &Peer, narrow: &Peer) -> bool {
    match (wide, narrow) {
        (
            Peer::Pods { namespaces: wide_in, pods: wide },
            Peer::Pods { namespaces: narrow_in, pods: narrow },
        ) => scope_covers(wide_in, narrow_in) && selector_covers(wide, narrow),
        (Peer::Block(wide), Peer::Block(narrow)) => block_covers(wide, narrow),
        // Which addresses pods and nodes have is not written.
        (Peer::Nodes(wide), Peer::Nodes(narrow)) => selector_covers(wide, narrow),
        (Peer::Pods { .. } | Peer::Nodes(_), Peer::Block(_))
        | (Peer::Block(_) | Peer::Nodes(_), Peer::Pods { .. })
        | (Peer::Block(_) | Peer::Pods { .. }, Peer::Nodes(_)) => false,
    }
}

fn scope_covers(wide: &NamespaceScope, narrow: &NamespaceScope) -> bool {
    selector_covers(&as_selector(wide), &as_selector(narrow))
}

/// A namespace by name is the namespace with that name's label, which it always has (S15).
fn as_selector(scope: &NamespaceScope) -> Selector {
    match scope {
        NamespaceScope::Matching(selector) => selector.clone(),
        NamespaceScope::Named(name) => Selector {
            requirements: BTreeSet::from([Requirement {
                key: METADATA_NAME.to_owned(),
                operator: Operator::In(BTreeSet::from([name.clone()])),
            }]),
        },
    }
}

/// Requirements only ever narrow: each of the wider one has to follow from one of the narrower.
fn selector_covers(wide: &Selector, narrow: &Selector) -> bool {
    wide.requirements.iter().all(|wanted| {
        narrow.requirements.iter().any(|given| given.key == wanted.key && follows(given, wanted))
    })
}

fn follows(given: &Requirement, wanted: &Requirement) -> bool {
    match (&given.operator, &wanted.operator) {
        (Operator::In(given), Operator::In(wanted)) => given.is_subset(wanted),
        (Operator::In(given), Operator::NotIn(wanted)) => given.is_disjoint(wanted),
        (Operator::NotIn(given), Operator::NotIn(wanted)) => wanted.is_subset(given),
        (Operator::In(_) | Operator::Exists, Operator::Exists)
        | (Operator::DoesNotExist, Operator::DoesNotExist | Operator::NotIn(_)) => true,
        (Operator::In(_) | Operator::NotIn(_) | Operator::Exists, Operator::DoesNotExist)
        | (Operator::NotIn(_) | Operator::DoesNotExist, Operator::Exists)
        | (Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist, Operator::In(_))
        | (Operator::Exists, Operator::NotIn(_)) => false,
    }
}

/// What the wider one excepts inside the narrower one, the narrower has to except too.
fn block_covers(wide: &IpBlock, narrow: &IpBlock) -> bool {
    let excepted = IpNet::aggregate(&narrow.except);
    let outside = |except: &IpNet| !except.contains(&narrow.net) && !narrow.net.contains(except);
    wide.net.contains(&narrow.net)
        && wide
            .except
            .iter()
            .all(|except| outside(except) || excepted.iter().any(|other| other.contains(except)))
}

fn ports_cover(wide: &Ports, narrow: &Ports) -> bool {
    match (wide, narrow) {
        (Ports::Any, _) => true,
        (Ports::Only(_), Ports::Any) => false,
        (Ports::Only(wide), Ports::Only(narrow)) => narrow.iter().all(|port| port_covered(wide, port)),
    }
}

fn port_covered(wide: &[PortMatch], narrow: &PortMatch) -> bool {
    let same = wide.iter().filter(|entry| entry.protocol == narrow.protocol);
    match &narrow.port {
        PortSpec::All => covers_range(wide, narrow.protocol, 0, u16::MAX),
        PortSpec::Range(from, to) => covers_range(wide, narrow.protocol, *from, *to),
        PortSpec::Named(name) => same.clone().any(|entry| match &entry.port {
            PortSpec::All => true,
            PortSpec::Named(other) => other == name,
            PortSpec::Range(from, to) => *from <= 1 && *to == u16::MAX,
        }),
    }
}

/// True if the ranges of the protocol together hold every port from the first to the last.
fn covers_range(wide: &[PortMatch], protocol: Protocol, from: u16, to: u16) -> bool {
    let mut ranges: Vec<(u32, u32)> = wide
        .iter()
        .filter(|entry| entry.protocol == protocol)
        .filter_map(|entry| match &entry.port {
            PortSpec::All => Some((0, u32::from(u16::MAX))),
            PortSpec::Range(from, to) => Some((u32::from(*from), u32::from(*to))),
            PortSpec::Named(_) => None,
        })
        .collect();
    ranges.sort_unstable();
    let mut next = u32::from(from);
    for (start, end) in ranges {
        if start <= next && next <= end {
            next = end + 1;
        }
    }
    next > u32::from(to)
}

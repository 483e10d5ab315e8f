//! `matrix --diff`: what a change of manifests opens and closes, and which pods come and go. Made of two matrices,
//! and knows nothing of policies.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use portcullis_policy::convert::printable;
use serde::{Deserialize, Serialize};

use super::Matrix;
use crate::output::{Colour, Exit, Verdict};
use crate::verbs::ask::Family;

/// From whom to whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pair {
    /// `ns/pod`.
    pub from: String,
    /// `ns/pod`.
    pub to: String,
}

/// What differs for one protocol and port. Pairs are of pods that are on both sides; senders in the order of the
/// matrix, then receivers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// `TCP`, `UDP`, `SCTP` or `ICMP`.
    pub protocol: String,
    /// Destination port; ICMP has none.
    pub port: Option<u16>,
    /// Of the addresses.
    pub family: Family,
    /// Denied before, allowed after.
    pub opened: Vec<Pair>,
    /// Allowed before, denied after.
    pub closed: Vec<Pair>,
    /// Pods that are only there after.
    pub added: Vec<String>,
    /// Pods that were only there before.
    pub removed: Vec<String>,
}

impl Difference {
    fn is_empty(&self) -> bool {
        [self.opened.len(), self.closed.len(), self.added.len(), self.removed.len()] == [0; 4]
    }
}

/// How the program ends: negative where anything differs.
#[must_use]
pub fn exit(differences: &[Difference]) -> Exit {
    if differences.iter().all(Difference::is_empty) { Exit::Fine } else { Exit::Negative }
}

/// Compares matrices of the same ports in the same order. Of named namespaces only: pairs with an end there, and
/// the pods there.
#[must_use]
pub fn differences(before: &[Matrix], after: &[Matrix], namespaces: &[String]) -> Vec<Difference> {
    before.iter().zip(after).map(|(before, after)| difference(before, after, namespaces)).collect()
}

fn difference(before: &Matrix, after: &Matrix, namespaces: &[String]) -> Difference {
    let places: BTreeMap<&str, usize> =
        after.order.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
    let mut found = Difference {
        protocol: before.protocol.clone(),
        port: before.port,
        family: before.family,
        opened: Vec::new(),
        closed: Vec::new(),
        added: only_in(&after.order, &before.order, namespaces),
        removed: only_in(&before.order, &after.order, namespaces),
    };
    let columns: Vec<Option<usize>> =
        before.order.iter().map(|name| places.get(name.as_str()).copied()).collect();
    for (from, row) in before.order.iter().zip(&before.rows) {
        let Some(then) = places.get(from.as_str()).and_then(|place| after.rows.get(*place)) else { continue };
        // Cells are ASCII: a byte each.
        let then = then.as_bytes();
        for ((to, cell), column) in before.order.iter().zip(row.bytes()).zip(&columns) {
            let Some(now) = column.and_then(|column| then.get(column)) else { continue };
            if !(is_in(from, namespaces) || is_in(to, namespaces)) {
                continue;
            }
            let list = match (cell, now) {
                (b'X', b'.') => &mut found.opened,
                (b'.', b'X') => &mut found.closed,
                _ => continue,
            };
            list.push(Pair { from: from.clone(), to: to.clone() });
        }
    }
    found
}

/// The names of the first that are not in the second.
fn only_in(first: &[String], second: &[String], namespaces: &[String]) -> Vec<String> {
    let second: BTreeSet<&String> = second.iter().collect();
    first.iter().filter(|name| !second.contains(name) && is_in(name, namespaces)).cloned().collect()
}

/// True for a pod of one of these namespaces; none named: for every pod.
fn is_in(pod: &str, namespaces: &[String]) -> bool {
    let namespace = pod.split_once('/').map_or("", |(namespace, _)| namespace);
    namespaces.is_empty() || namespaces.iter().any(|wanted| wanted == namespace)
}

/// For people: a line for each pair and pod; nothing where nothing differs.
#[must_use]
pub fn table(differences: &[Difference], colour: Colour) -> String {
    let mut text = String::new();
    let mut pods = BTreeSet::new();
    for found in differences {
        for (word, verdict, names) in
            [("added", Verdict::Allow, &found.added), ("removed", Verdict::Deny, &found.removed)]
        {
            // The same for every port of the family.
            for name in names.iter().filter(|name| pods.insert((word, *name))) {
                let word = colour.paint(verdict, &format!("{word:7}"));
                let _ = writeln!(text, "{word} {} {}", printable(name), found.family.name());
            }
        }
    }
    for found in differences {
        let port = found.port.map(|port| format!("/{port}")).unwrap_or_default();
        for (word, verdict, pairs) in
            [("opened", Verdict::Allow, &found.opened), ("closed", Verdict::Deny, &found.closed)]
        {
            for Pair { from, to } in pairs {
                let word = colour.paint(verdict, &format!("{word:7}"));
                let (from, to) = (printable(from), printable(to));
                let (protocol, family) = (&found.protocol, found.family.name());
                let _ = writeln!(text, "{word} {from} -> {to} {protocol}{port} {family}");
            }
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn matrix(order: &[&str], rows: &[&str]) -> Matrix {
        let text = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect();
        let (order, rows) = (text(order), text(rows));
        let (services, service_rows) = (Vec::new(), Vec::new());
        let protocol = "TCP".to_owned();
        Matrix { protocol, port: Some(80), family: Family::Ipv4, order, rows, services, service_rows }
    }

    #[test]
    fn pairs_of_both_sides_open_and_close_and_pods_come_and_go() {
        let before = matrix(&["a/x", "a/y", "b/z"], &["-X.", ".-X", "XX-"]);
        let after = matrix(&["a/w", "a/x", "b/z"], &["-..", ".-X", "..-"]);
        let found = differences(&[before], &[after], &[]);
        let text = table(&found, Colour::Plain);
        assert_eq!(
            text,
            "added   a/w ipv4\nremoved a/y ipv4\nopened  b/z -> a/x TCP/80 ipv4\nclosed  a/x -> b/z TCP/80 ipv4\n"
        );
        assert_eq!(exit(&found), Exit::Negative);
        let value = serde_json::to_value(&found).unwrap();
        assert_eq!(
            value,
            serde_json::json!([{"protocol": "TCP", "port": 80, "family": "ipv4",
                "opened": [{"from": "b/z", "to": "a/x"}], "closed": [{"from": "a/x", "to": "b/z"}],
                "added": ["a/w"], "removed": ["a/y"]}])
        );
    }

    #[test]
    fn the_same_twice_differs_in_nothing() {
        let one = matrix(&["a/x", "a/y"], &["-X", ".-"]);
        let found = differences(std::slice::from_ref(&one), std::slice::from_ref(&one), &[]);
        assert_eq!((exit(&found), table(&found, Colour::Plain)), (Exit::Fine, String::new()));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn of_a_namespace_only_what_touches_it_differs() {
        let before = matrix(&["a/x", "b/y", "c/z"], &["-XX", ".-X", ".X-"]);
        let after = matrix(&["a/x", "b/y", "d/w"], &["-..", ".-.", "..-"]);
        let found =
            differences(std::slice::from_ref(&before), std::slice::from_ref(&after), &["c".to_owned()]);
        assert_eq!(table(&found, Colour::Plain), "removed c/z ipv4\n");
        let found = differences(&[before], &[after], &["b".to_owned()]);
        assert_eq!(table(&found, Colour::Plain), "opened  a/x -> b/y TCP/80 ipv4\n");
    }
}

//! T18: "no peers" is never "any peer", nor "no port" any port: rules that match nothing beside rules that match
//! everything, each by packets, both ways.

use std::fmt::Write as _;

use portcullis_common::event::{Direction, Reason};
use portcullis_tests::field::{Fate, Field, OPEN, Shot, Who, pod};
use portcullis_tests::frames;

use crate::FAMILIES;

/// Pods, one for each of [`RULES`].
pub(crate) const PODS: [(&str, u8); 18] = [
    ("n20", 20),
    ("n21", 21),
    ("n22", 22),
    ("n23", 23),
    ("n24", 24),
    ("n25", 25),
    ("n26", 26),
    ("n27", 27),
    ("n28", 28),
    ("n29", 29),
    ("n30", 30),
    ("n31", 31),
    ("n32", 32),
    ("n33", 33),
    ("n34", 34),
    ("n35", 35),
    ("n36", 36),
    ("n37", 37),
];

/// Rules of a direction, `PEERS` standing for `from` or `to`, and whether a friend passes by them.
const RULES: [(&str, bool); 18] = [
    ("[]", false),
    ("[{}]", true),
    ("[{PEERS: []}]", true),
    ("[{PEERS: null}]", true),
    ("[{PEERS: [{}]}]", false),
    ("[{PEERS: [{podSelector: {}}]}]", true),
    ("[{PEERS: [{podSelector: {matchLabels: {app: nobody}}}]}]", false),
    ("[{PEERS: [{podSelector: {matchExpressions: [{key: app, operator: In, values: []}]}}]}]", false),
    ("[{PEERS: [{podSelector: {matchExpressions: [{key: app, operator: Bogus}]}}]}]", false),
    ("[{PEERS: [{namespaceSelector: {matchLabels: {team: nobody}}}]}]", false),
    ("[{PEERS: [{podSelector: {}, ipBlock: {cidr: 0.0.0.0/0}}]}]", false),
    ("[{PEERS: [{ipBlock: {cidr: bogus}}]}]", false),
    (
        "[{PEERS: [{ipBlock: {cidr: 0.0.0.0/0, except: [0.0.0.0/0]}}, {ipBlock: {cidr: '::/0', except: ['::/0']}}]}]",
        false,
    ),
    ("[{ports: []}]", true),
    ("[{ports: [{protocol: BOGUS, port: 5000}]}]", false),
    ("[{ports: [{protocol: UDP, port: nobody}]}]", false),
    ("[{ports: [{protocol: UDP, port: 0}]}]", false),
    ("[{former: [{podSelector: {}}]}]", false),
];

pub(crate) fn manifests() -> String {
    let mut text = String::new();
    for ((name, number), (rules, _)) in PODS.into_iter().zip(RULES) {
        text += &pod(name, number);
        let (ingress, egress) = (rules.replace("PEERS", "from"), rules.replace("PEERS", "to"));
        let _ = write!(
            text,
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: field}}\n\
             spec:\n  podSelector: {{matchLabels: {{app: {name}}}}}\n  policyTypes: [Ingress, Egress]\n  \
             ingress: {ingress}\n  egress: {egress}\n"
        );
    }
    let names: Vec<&str> = PODS.iter().map(|(name, _)| *name).collect();
    text + &format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: control, namespace: field}}\n\
         spec:\n  podSelector: {{matchExpressions: [{{key: app, operator: In, values: [{}]}}]}}\n  \
         policyTypes: [Ingress, Egress]\n  ingress: [{{ports: [{{port: 9999, protocol: UDP}}]}}]\n  \
         egress: [{{ports: [{{port: 9999, protocol: UDP}}]}}]\n",
        names.join(", ")
    )
}

pub(crate) fn attack(field: &mut Field) {
    if !field.hears(PODS[0].0) {
        return;
    }
    for ((name, _), (rules, allowed)) in PODS.into_iter().zip(RULES) {
        for family in FAMILIES {
            for (from, to, direction) in [
                (Who::Pod("friend"), name, Direction::Ingress),
                (Who::Pod(name), "friend", Direction::Egress),
            ] {
                let fate = if allowed { Fate::Arrives } else { Fate::Dropped(direction, Reason::Isolated) };
                let shot = Shot { threat: "T18", what: rules.to_owned(), from, to, family, fate };
                field.shoot(&shot, |path, mark| {
                    vec![frames::frame(path, frames::UDP, &frames::udp(path, (40_040, OPEN), mark))]
                });
            }
        }
    }
}
